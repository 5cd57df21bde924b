"""One connection, from its greeting to its end.

For: the listener. Must not know: TLS contexts, the Raft actor, files. The one idea: all tasks of a
session share one `ServerConnection`, which never blocks: the reader feeds it, requests answer through it, and what it
returns leaves through one outbox. What one client does wrong ends this session and nothing else.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import trio

from logd.observability.logs import LimitedLogger
from logd.server.door import AsyncVerb, Door
from logd.server.outbox import ByteStream, Corks, Outbox
from logd.service.fetch import Subscription
from logd.service.ports import ProduceReply
from wire.connection import (
    CreditGiven,
    Faulted,
    Greeted,
    Limits,
    Requested,
    ServerConnection,
    ServerEvent,
    State,
    UnsubscribeAsked,
)
from wire.errors import (
    ConnectionLost,
    InternalError,
    LogdError,
    OutcomeUnknown,
    Overloaded,
    ProtocolError,
    ShuttingDown,
    Unsupported,
)
from wire.messages import (
    HEADER_TIMEOUT_MS,
    DescribeTopic,
    Fetch,
    Fetched,
    Message,
    Metadata,
    Produce,
    Produced,
    Subscribe,
    Subscribed,
    Unsubscribed,
)
from wire.types import PROTOCOL_VERSION

# How long the last words of a connection may take: a client that does not read them has lost interest.
FAREWELL_SECONDS: Final = 1.0
# So many events are handled before other connections have their turn; a full buffer holds thousands of small ones.
EVENTS_AT_ONCE_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """The bounds of one session. Where the numbers come from stands beside the settings of the same names."""

    node: str
    cluster_id: bytes
    limits: Limits
    handshake_seconds: float
    idle_seconds: float
    frame_seconds: float
    write_stall_seconds: float
    subscriptions_max: int


@dataclass(slots=True)
class Budget:
    """The bytes of unanswered requests over all sessions.

    Invariant: `taken_bytes` is the sum of all sessions' `bytes_in_flight`.
    """

    bytes_max: int
    taken_bytes: int = 0


@dataclass(slots=True)
class Gate:
    """Whether new work is taken. Closed once, when the node drains; `requests` counts what is still unanswered."""

    is_open: bool = True
    requests: int = 0
    idle: trio.Event = field(default_factory=trio.Event)
    # Requests that only wait for something to come: draining ends their waits.
    waits: set[trio.CancelScope] = field(default_factory=set)

    def enter(self) -> None:
        self.requests += 1

    def leave(self) -> None:
        self.requests -= 1
        self.check_idle()

    def check_idle(self) -> None:
        if not self.is_open and not self.requests:
            self.idle.set()

    async def drain(self) -> None:
        """Take no new work, and wait until what is there is answered."""
        self.is_open = False
        for wait in self.waits:
            wait.cancel()
        self.check_idle()
        await self.idle.wait()


class Session:
    """One authenticated connection.

    Arguments: `stream`, after its TLS handshake; `principal`, the URI of the client's identity; `after_requests`,
    called when all that arrived together was handed on.
    """

    def __init__(
        self,
        stream: ByteStream,
        principal: str,
        door: Door,
        options: SessionOptions,
        budget: Budget,
        gate: Gate,
        corks: Corks,
        log: LimitedLogger,
        after_requests: Callable[[], None],
    ) -> None:
        self.principal = principal
        self._stream = stream
        self._door = door
        self._options = options
        self._budget = budget
        self._gate = gate
        self._log = log
        self._connection = ServerConnection(options.limits)
        self._outbox = Outbox(stream)
        self._corks = corks
        self._after_requests = after_requests
        self._answered = trio.Event()
        self._subscriptions: dict[int, tuple[trio.CancelScope, Callable[[int], None]]] = {}
        # When a produce request that is not answered yet has waited long enough, how long that is, and whom to tell.
        # Invariant: holds none that is answered, so that it is bounded by the requests in flight.
        self._deadlines: dict[int, tuple[float, float, ProduceReply]] = {}
        self._nearest_deadline = math.inf
        self._deadlines_changed = trio.Event()
        self._last_answer_time = -math.inf
        # Whoever reads data holds it until its answer is in the outbox: so one answer at most goes above its bound.
        self._reading = trio.Lock()
        # While an event is handled, the reader will flush.
        self._is_in_event = False
        self._sender_scope = trio.CancelScope(shield=True)
        self._sync_verbs = door.sync_verbs()
        self._async_verbs: Mapping[type[Message], AsyncVerb] = {**door.async_verbs(), Fetch: self._fetch}

    async def run(self) -> None:
        """Serve until the client leaves, breaks the protocol or stalls, or until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, nursery.cancel_scope)
                nursery.start_soon(self._expire)
                try:
                    reason = await self._read(nursery)
                    self._log.debug("session_ended", principal=self.principal, reason=reason)
                finally:
                    # Let the last words out, and whatever was answered before them, also when the node stops.
                    self._outbox.flush()
                    with trio.move_on_after(FAREWELL_SECONDS, shield=True):
                        await self._stream.wait_sent(0)
                    self._sender_scope.cancel()
                    nursery.cancel_scope.cancel()
        finally:
            self._release()

    def _release(self) -> None:
        """Requests whose answers nobody will read no longer count."""
        self._outbox.close()
        self._budget.taken_bytes -= self._connection.bytes_in_flight
        for _ in range(self._connection.requests_in_flight - len(self._connection.subscriptions)):
            self._gate.leave()
        # Late answers find another connection than the one they belong to, and are dropped.
        self._connection = ServerConnection(self._options.limits)

    # --- Reading ------------------------------------------------------------------------------------------------------

    async def _read(self, nursery: trio.Nursery) -> str:
        connection = self._connection
        # One deadline for the whole greeting; afterwards one for each frame, and one for the silence between two.
        deadline = trio.current_time() + self._options.handshake_seconds
        was_between_frames = True
        try:
            while True:
                with trio.move_on_at(deadline) as patience:
                    connection.feed(await self._stream.receive())
                if patience.cancelled_caught and self._is_not_silent():
                    deadline = self._next_deadline()
                    continue
                if patience.cancelled_caught:
                    return self._refuse_session(ProtocolError(self._what_took_too_long()), "too_slow")
                any_event = await self._take_events(nursery)
                if any_event or connection.is_between_frames != was_between_frames:
                    was_between_frames = connection.is_between_frames
                    if connection.state is State.READY:
                        deadline = self._next_deadline()
        except ProtocolError as error:
            return self._refuse_session(error, "protocol_error")
        except ConnectionLost as error:
            return str(error)

    def _refuse_session(self, error: LogdError, event: str) -> str:
        self._log.warning(event, principal=self.principal, problem=str(error))
        # What stood in front of the fault was taken, and is carried out.
        self._after_requests()
        self._outbox.put(self._connection.farewell(error))
        return str(error)

    def _next_deadline(self) -> float:
        if not self._connection.is_between_frames:
            return trio.current_time() + self._options.frame_seconds
        return trio.current_time() + (self._options.idle_seconds or math.inf)

    def _is_not_silent(self) -> bool:
        """Whether it is the node's turn to speak, with an answer or a delivery, or was until just now."""
        connection = self._connection
        if not connection.is_between_frames or connection.state is State.GREETING:
            return False
        return bool(connection.requests_in_flight) or (
            trio.current_time() < self._last_answer_time + self._options.idle_seconds
        )

    def _what_took_too_long(self) -> str:
        if self._connection.state is State.GREETING:
            return f"no greeting within {self._options.handshake_seconds:g} s"
        if not self._connection.is_between_frames:
            return f"a frame that takes longer than {self._options.frame_seconds:g} s"
        return f"no request within {self._options.idle_seconds:g} s"

    async def _take_events(self, nursery: trio.Nursery) -> bool:
        """Handle what has arrived; true if there was any whole frame."""
        connection = self._connection
        count = 0
        while True:
            while connection.is_full:
                # The bound on what one client has in flight: it is not read until something is answered.
                self._hand_on()
                self._answered = trio.Event()
                await self._answered.wait()
            if not self._outbox.has_room:
                # Nor is it read while it does not read itself.
                self._hand_on()
                await self._outbox.wait_room()
            event = connection.next_event()
            if event is None:
                self._hand_on()
                return bool(count)
            self._is_in_event = True
            self._on_event(event, nursery)
            self._is_in_event = False
            count += 1
            if count % EVENTS_AT_ONCE_MAX == 0 or (type(event) is Requested and type(event.message) in _LONG_ANSWERS):
                # Nothing is handed on yet: what came together goes into one round.
                await trio.lowlevel.checkpoint()

    def _hand_on(self) -> None:
        """Before the reader waits for anything: all that it took is on its way, and all answers to it."""
        self._after_requests()
        self._outbox.flush()

    def _on_event(self, event: ServerEvent, nursery: trio.Nursery) -> None:
        match event:
            case Requested(request_id, message, headers):
                self._on_request(request_id, message, headers, nursery)
            case Faulted(_, error, reply):
                self._log.warning("bad_request", principal=self.principal, problem=str(error))
                self._outbox.put(reply)
            case CreditGiven(request_id, credit_bytes):
                if request_id in self._subscriptions:
                    self._subscriptions[request_id][1](credit_bytes)
            case UnsubscribeAsked(request_id):
                if request_id in self._subscriptions:
                    self._subscriptions[request_id][0].cancel()
            case Greeted(hello):
                if PROTOCOL_VERSION not in hello.versions:
                    raise ProtocolError(
                        f"none of the versions {list(hello.versions)} is spoken here: "
                        f"this is version {PROTOCOL_VERSION}",
                        {"versions": [PROTOCOL_VERSION]},
                    )
                self._outbox.put(self._connection.welcome(self._options.node, self._options.cluster_id))
                self._log.debug("session_started", principal=self.principal, client=hello.client)

    # --- Requests -----------------------------------------------------------------------------------------------------

    def _on_request(
        self, request_id: int, message: Message, headers: Mapping[str, object], nursery: trio.Nursery
    ) -> None:
        self._gate.enter()
        before_bytes = self._budget.taken_bytes
        self._budget.taken_bytes += self._connection.request_bytes(request_id)
        if not self._gate.is_open:
            self._refuse(request_id, ShuttingDown("the node is shutting down"))
        elif before_bytes and self._budget.taken_bytes > self._budget.bytes_max:
            self._refuse(
                request_id,
                Overloaded(f"requests of {before_bytes} bytes are unanswered already", {"delay_seconds": 0.1}),
            )
        elif type(message) is Produce:
            self._produce(request_id, message, headers)
        elif type(message) is Subscribe:
            self._subscribe(request_id, message, nursery)
        elif (sync_verb := self._sync_verbs.get(type(message))) is not None:
            try:
                self._answer(request_id, sync_verb(self.principal, message))
            except LogdError as error:
                self._refuse(request_id, error)
        elif (async_verb := self._async_verbs.get(type(message))) is not None:
            nursery.start_soon(self._run_verb, request_id, async_verb, message, headers)
        else:
            self._refuse(request_id, Unsupported(f"{type(message).__name__} is not answered here"))

    def _produce(self, request_id: int, message: Produce, headers: Mapping[str, object]) -> None:
        reply = self._reply_once(request_id)
        seconds = _timeout_seconds(headers)
        if seconds is not None:
            deadline = trio.current_time() + seconds
            self._deadlines[request_id] = (deadline, seconds, reply)
            if deadline < self._nearest_deadline:
                self._deadlines_changed.set()
        self._door.produce.produce(self.principal, message, reply)

    def _reply_once(self, request_id: int) -> ProduceReply:
        """A reply for one request: the first call answers it, a later one (after a deadline) is dropped."""
        connection = self._connection
        is_open = True

        def reply(outcome: Produced | LogdError) -> None:
            nonlocal is_open
            if not is_open or self._connection is not connection:
                return
            is_open = False
            self._deadlines.pop(request_id, None)
            if isinstance(outcome, LogdError):
                self._refuse(request_id, outcome)
            else:
                self._answer(request_id, outcome)
            if not self._is_in_event:
                self._corks.add(self._outbox)

        return reply

    async def _expire(self) -> None:
        """Answer produce requests whose time is up; one task for all, and nothing to do for those that are in time."""
        while True:
            self._nearest_deadline = min((deadline for deadline, *_ in self._deadlines.values()), default=math.inf)
            self._deadlines_changed = trio.Event()
            with trio.move_on_at(self._nearest_deadline):
                await self._deadlines_changed.wait()
            now = trio.current_time()
            for deadline, seconds, reply in list(self._deadlines.values()):
                if deadline <= now:
                    reply(OutcomeUnknown(f"not durable within the {seconds:g} s that the request allows"))
            self._outbox.flush()

    async def _run_verb(
        self,
        request_id: int,
        verb: AsyncVerb,
        message: Message,
        headers: Mapping[str, object],
    ) -> None:
        connection = self._connection
        seconds = _timeout_seconds(headers)
        try:
            with trio.fail_after(math.inf if seconds is None else seconds):
                await self._outbox.wait_room()
                answer: Message | LogdError = await verb(self.principal, message)
        except LogdError as error:
            answer = error
        except trio.TooSlowError:
            answer = OutcomeUnknown(f"no outcome within the {seconds:g} s that the request allows")
        if self._connection is not connection:
            return
        if isinstance(answer, LogdError):
            self._refuse(request_id, answer)
        else:
            self._answer(request_id, answer)
        self._outbox.flush()

    async def _fetch(self, principal: str, request: Fetch) -> Fetched:
        wait = trio.CancelScope()
        self._gate.waits.add(wait)
        try:
            with wait:
                await self._door.fetch.wait_readable(principal, request)
        finally:
            self._gate.waits.discard(wait)
        async with self._reading:
            await self._outbox.wait_room()
            return await self._door.fetch.read(principal, request)

    # --- Subscriptions ------------------------------------------------------------------------------------------------

    def _subscribe(self, request_id: int, message: Subscribe, nursery: trio.Nursery) -> None:
        if len(self._subscriptions) >= self._options.subscriptions_max:
            most = self._options.subscriptions_max
            self._refuse(
                request_id,
                Overloaded(f"this connection has {most} subscriptions already", {"delay_seconds": 1.0}),
            )
            return
        try:
            bounds, subscription = self._door.fetch.subscribe(self.principal, message)
        except LogdError as error:
            self._refuse(request_id, error)
            return
        # From here on only its credit bounds it: it counts neither as unanswered nor as bytes in flight.
        self._answer(request_id, Subscribed(*bounds))
        scope = trio.CancelScope()
        self._subscriptions[request_id] = (scope, subscription.add_credit)
        nursery.start_soon(self._deliver, request_id, scope, subscription)

    async def _deliver(self, request_id: int, scope: trio.CancelScope, subscription: Subscription) -> None:
        connection = self._connection
        error: LogdError | None = None
        with scope:
            try:
                while True:
                    await subscription.wait()
                    async with self._reading:
                        await self._outbox.wait_room()
                        delivery = await subscription.read()
                        if delivery is not None:
                            self._outbox.put(connection.deliver(request_id, delivery))
                            self._outbox.flush()
            except LogdError as caught:
                error = caught
        del self._subscriptions[request_id]
        if self._connection is not connection or connection.state is State.CLOSED:
            return
        if error is None:
            self._outbox.put(connection.answer(request_id, Unsubscribed()))
        else:
            self._outbox.put(connection.refuse(request_id, error))
        self._outbox.flush()

    # --- Answering ----------------------------------------------------------------------------------------------------

    def _answer(self, request_id: int, answer: Message) -> None:
        size = self._connection.request_bytes(request_id)
        self._outbox.put(self._connection.answer(request_id, answer))
        self._ended(size)

    def _refuse(self, request_id: int, error: LogdError) -> None:
        size = self._connection.request_bytes(request_id)
        if isinstance(error, InternalError):
            self._log.error("request_failed", principal=self.principal, problem=str(error))
        self._outbox.put(self._connection.refuse(request_id, error))
        self._ended(size)

    def _ended(self, request_bytes: int) -> None:
        self._budget.taken_bytes -= request_bytes
        self._gate.leave()
        self._answered.set()
        self._last_answer_time = trio.current_time()

    async def _send(self, scope: trio.CancelScope) -> None:
        """Send on what the kernel did not take at once; ends the session when the client takes nothing any more."""
        # Shielded: what was answered leaves, as long as the farewell may take.
        with self._sender_scope:
            try:
                await self._stream.run_sender()
            except ConnectionLost as error:
                self._log.warning("send_failed", principal=self.principal, problem=str(error))
        scope.cancel()


# Their answers take milliseconds to make where there are many partitions.
_LONG_ANSWERS: Final = frozenset((Metadata, DescribeTopic))


def _timeout_seconds(headers: Mapping[str, object]) -> float | None:
    timeout_ms = headers.get(HEADER_TIMEOUT_MS)
    # A header that makes no sense is ignored, as unknown headers are.
    return timeout_ms / 1000 if type(timeout_ms) is int and timeout_ms > 0 else None
