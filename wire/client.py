"""The client: one connection to a cluster, kept alive, shared by everybody in the program who wants something.

For: users, and the producers and consumers that stand on it. Must not know: how records are batched or decoded. The
one idea: a request is sent by whoever makes it, in one function call, and its answer goes straight to a function (the
*sink*) that was given with it. Between the two there is one task, which reads. Waiting for an answer, counting it or
putting it in a queue are then matters of the sink alone.
"""

import random
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar

import anyio
import anyio.abc

from wire.codec import Headers
from wire.connection import Answered, ClientConnection, ClientEvent, Delivered, Limits, Refused, State, Welcomed
from wire.errors import (
    ClientClosed,
    ConnectionFailed,
    ConnectionLost,
    InvalidRequest,
    LogdError,
    Misconfigured,
    ProtocolError,
)
from wire.messages import (
    ONE_WAY,
    AlterTopic,
    ClusterMetadata,
    CreateTopic,
    DeleteTopic,
    DescribeTopic,
    Fetch,
    Fetched,
    InitProducer,
    ListedOffsets,
    ListOffsets,
    Message,
    Metadata,
    Ping,
    Pong,
    Produce,
    Produced,
    ProducerInitialized,
    Subscribe,
    Subscribed,
    TopicAltered,
    TopicCreated,
    TopicDeleted,
    TopicDescription,
    Welcome,
)
from wire.stream import Address, SecureStream, Tls, connect
from wire.types import Acks, Anchor

Sink = Callable[[Message | LogdError], None]
"""Takes the answer to a request, or the error that ended it, once; of a subscription, all of its messages.

It is called by the task that reads: it may neither raise nor block, and may send.
"""

# Software and version, for the server's log.
CLIENT_NAME: Final = "wire/0.1"
# Pauses between two rounds through the addresses: short enough not to notice a restart, long enough not to be a load.
BACKOFF_SECONDS_MIN: Final = 0.05
BACKOFF_SECONDS_MAX: Final = 2.0
# With the pauses above, about one and a half seconds: longer than a node takes to start again.
CONNECT_ROUNDS_MAX: Final = 6
# One fetch without a wish: as one batch of the largest size.
FETCH_BYTES_DEFAULT: Final = 1 << 20

_AnswerT = TypeVar("_AnswerT", bound=Message)


class Backoff:
    """Growing pauses with jitter, so that many clients of one lost node do not come back in one moment."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._next_seconds = BACKOFF_SECONDS_MIN

    def next_seconds(self) -> float:
        """How long to pause this time: between half and the whole of a duration that doubles each time."""
        seconds = self._next_seconds
        self._next_seconds = min(2 * seconds, BACKOFF_SECONDS_MAX)
        return seconds * self._chance.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begin with the shortest pause again: it works."""
        self._next_seconds = BACKOFF_SECONDS_MIN


def again(error: LogdError) -> LogdError:
    """The same error as an exception of its own: several tasks must not raise one object."""
    copy = type(error)(error.message, error.details)
    copy.__cause__ = error.__cause__
    return copy


def _ignore(_outcome: Message | LogdError) -> None:
    """The sink of a request for which nobody waits any more."""


class _Open(NamedTuple):
    """A request in flight, or a subscription."""

    sink: Sink
    frame_bytes: int
    is_subscription: bool


class Session:
    """One live connection, from its greeting to its end. It never comes back: the client makes another."""

    def __init__(self, stream: SecureStream, connection: ClientConnection, welcome: Welcome) -> None:
        self.welcome = welcome
        self.limits = connection.limits
        self.error: LogdError | None = None
        self._stream = stream
        self._connection = connection
        # Invariant: holds each request that was sent and has not ended; the two sums are over its values.
        self._open: dict[int, _Open] = {}
        self._subscriptions = 0
        self._bytes_in_flight = 0
        self._waiting_for_room: deque[Callable[[], bool]] = deque()
        self._scope = anyio.CancelScope()

    @property
    def is_open(self) -> bool:
        return self.error is None

    # --- sending ---

    def has_room(self) -> bool:
        """Whether one more request may be in flight. The last one may exceed the bound on bytes, as at the server."""
        return (
            len(self._open) - self._subscriptions < self.limits.requests_in_flight_max
            and self._bytes_in_flight < self.limits.bytes_in_flight_max
        )

    def call_when_room(self, callback: Callable[[], bool]) -> None:
        """Have `callback` called once, in its turn, when there is room, or when the session has ended.

        It returns whether it takes the room; if not, the next is asked.
        """
        self._waiting_for_room.append(callback)

    def forget_room(self, callback: Callable[[], bool]) -> None:
        """Whoever gave `callback` does not want the room any more; it goes to the next."""
        try:
            self._waiting_for_room.remove(callback)
        except ValueError:
            self._offer_room()

    def _offer_room(self) -> None:
        while self._waiting_for_room and self.has_room():
            if self._waiting_for_room.popleft()():
                return

    def send(self, message: Message, sink: Sink, headers: Headers | None = None) -> int:
        """Send a request; `sink` gets its answer. Returns its id. Never waits.

        Raises InvalidRequest or ProtocolError for a message that cannot be sent, and the session's error when it has
        ended; nothing was sent then.
        """
        if self.error is not None:
            raise again(self.error)
        try:
            request_id, data = self._connection.request(message, headers)
        except (ValueError, TypeError, OverflowError, struct.error) as error:
            raise InvalidRequest(f"{type(message).__name__} cannot be encoded: {error}") from error
        if type(message) not in ONE_WAY:
            is_subscription = type(message) is Subscribe
            self._open[request_id] = _Open(sink, len(data), is_subscription)
            self._bytes_in_flight += len(data)
            self._subscriptions += is_subscription
        self._stream.send_nowait(data)
        return request_id

    def forget(self, request_id: int) -> None:
        """Drop the answer of a request, when it comes; a subscription is ended."""
        request = self._open.get(request_id)
        if request is not None:
            self._open[request_id] = request._replace(sink=_ignore)
            if request.is_subscription:
                self._stream.send_nowait(self._connection.unsubscribe(request_id))

    def credit(self, request_id: int, credit_bytes: int) -> None:
        """Give a subscription more room."""
        data = self._connection.credit(request_id, credit_bytes)
        if data and self.error is None:
            self._stream.send_nowait(data)

    # --- receiving ---

    async def run(self) -> None:
        """Read until the connection ends, for whatever reason; then every request in flight has its error."""
        try:
            with self._scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._run_sender)
                    await self._run_reader()
        finally:
            self.end(ClientClosed("the client was closed"))
            self._stream.close_nowait()

    async def _run_sender(self) -> None:
        try:
            await self._stream.run_sender()
        except ConnectionLost as error:
            self.end(error)

    async def _run_reader(self) -> None:
        try:
            while True:
                data = await self._stream.receive()
                if self.error is not None:
                    return  # it was ended while these bytes were on their way: nobody waits for them any more
                self._connection.feed(data)
                for event in self._connection.events():
                    self._on_event(event)
        except (ConnectionLost, ProtocolError) as error:
            self.end(error)

    def _on_event(self, event: ClientEvent) -> None:
        if isinstance(event, Answered):
            if isinstance(event.answer, Subscribed):
                self._open[event.request_id].sink(event.answer)
            else:
                self._finish(event.request_id, event.answer)
        elif isinstance(event, Delivered):
            self._open[event.request_id].sink(event.delivery)
        elif isinstance(event, Refused):
            if self._connection.state is State.CLOSED:
                # It concerns no request but the connection, which the server closes.
                self.end(event.error)
            else:
                self._finish(event.request_id, event.error)

    def _finish(self, request_id: int, outcome: Message | LogdError) -> None:
        request = self._open.pop(request_id)
        self._bytes_in_flight -= request.frame_bytes
        self._subscriptions -= request.is_subscription
        request.sink(outcome)
        if self._waiting_for_room:
            self._offer_room()

    def end(self, error: LogdError) -> None:
        """End the session: all that is in flight fails with `error`, at once. The first reason stands."""
        if self.error is not None:
            return
        self.error = error
        self._scope.cancel()
        lost = error if isinstance(error, ClientClosed) else ConnectionLost(f"the connection was lost: {error}")
        lost.__cause__ = error if lost is not error else error.__cause__
        ended, self._open = self._open, {}
        for request in ended.values():
            request.sink(again(lost))
        while self._waiting_for_room:
            self._waiting_for_room.popleft()()


async def open_session(address: Address, tls: Tls, client_name: str) -> Session:
    """Connect and greet. Raises ConnectionFailed or Misconfigured, and nothing is left open."""
    stream, _ = await connect(address, tls)
    connection = ClientConnection()
    try:
        stream.send_nowait(connection.hello(client_name))
        while True:
            connection.feed(await stream.receive())
            for event in connection.events():
                if isinstance(event, Welcomed):
                    return Session(stream, connection, event.welcome)
                assert isinstance(event, Refused)
                raise ConnectionFailed(f"{address}: the server refused the greeting: {event.error}") from event.error
    except ConnectionLost as error:
        stream.close_nowait()
        raise _refused(address, error) from error.__cause__
    except ProtocolError as error:
        stream.close_nowait()
        raise Misconfigured(f"{address}: not a server of this protocol: {error}") from error
    except BaseException:
        stream.close_nowait()
        raise


def _refused(address: Address, error: ConnectionLost) -> ConnectionFailed | Misconfigured:
    # A TLS alert in answer to the first bytes is the server's verdict on the certificate: see `SecureStream.handshake`.
    text = str(error)
    if "alert" in text:
        return Misconfigured(f"{address}: the server refused the certificate: {text.removeprefix('TLS: ')}")
    return ConnectionFailed(
        f"{address}: the server ended the connection before its greeting; its log says why ({text})"
    )


class _Waiter:
    """The sink of a task that waits."""

    __slots__ = ("event", "outcome")

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.outcome: Message | LogdError | None = None

    def __call__(self, outcome: Message | LogdError) -> None:
        self.outcome = outcome
        self.event.set()


class Client:
    """A connection to a cluster that is made again when it is lost.

    Arguments: `addresses`, one or several of `"host:port"`, `"[::1]:7421"`, `"host"` or `Address`, tried in turn;
    `tls`, the certificates; `name`, what the server's log calls this software; `chance` and `sleep`, to be replaced by
    tests.

    Entering the block connects: the addresses are tried in rounds with growing pauses (50 ms to 2 s, with jitter), at
    most `CONNECT_ROUNDS_MAX` of them; bound it more tightly with a cancel scope around it. When the connection is
    lost, everything in flight fails with ConnectionLost, and the next request connects again in the same way.

    A request that is cancelled leaves the connection as it is: its late answer is dropped. Whether it was carried out
    is unknown then.

    Every method raises the typed errors of `wire.errors`: those of the server, ConnectionFailed, ConnectionLost,
    Misconfigured where trying again cannot help (an address, a file, a certificate), and ClientClosed after the block
    was left. One client serves any number of tasks of one event loop.

    ```python
    async with wire.Client(address, tls=tls) as client:
        await client.create_topic("greetings", partitions=1)
        batch = wire.encode_batch([(b"hello", None, 0, None)])
        produced = await client.produce("greetings", 0, batch)
        fetched = await client.fetch("greetings", 0, produced.base_offset)
        assert b"hello" in fetched.batches
    ```
    """

    def __init__(
        self,
        addresses: str | Address | Sequence[str | Address],
        *,
        tls: Tls,
        name: str = CLIENT_NAME,
        chance: random.Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        several = [addresses] if isinstance(addresses, (str, Address)) else list(addresses)
        self.addresses: Final = tuple(item if isinstance(item, Address) else Address.parse(item) for item in several)
        if not self.addresses:
            raise Misconfigured("a client needs at least one address")
        self.tls: Final = tls
        self.name: Final = name
        # Jitter is no secret: it need not be unpredictable.
        self.chance: Final = chance or random.Random()  # noqa: S311
        self._sleep = sleep
        self._session: Session | None = None
        self._closed = False
        # The next address to try: after a loss, the one that was good before.
        self._address_index = 0
        self._group: anyio.abc.TaskGroup | None = None
        self._connecting: anyio.Lock | None = None

    # --- life ---

    async def __aenter__(self) -> Self:
        if self._group is not None or self._closed:
            raise ClientClosed("a client can be entered once")
        group = anyio.create_task_group()
        await group.__aenter__()
        self._group = group
        self._connecting = anyio.Lock()
        try:
            await self.session()
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed = True
        if self._session is not None:
            self._session.end(ClientClosed("the client was closed"))
        group, self._group = self._group, None
        if group is not None:
            await close_task_group(group, error)

    def spawn(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a task that lives as long as the client at most; what it raises it must handle itself.

        ```python
        import anyio

        woken = anyio.Event()

        async def wake() -> None:
            woken.set()

        client.spawn(wake)
        await woken.wait()
        ```
        """
        if self._group is None or self._closed:
            raise ClientClosed("the client is not open")
        self._group.start_soon(function)

    # --- the connection ---

    @property
    def node(self) -> str:
        """The name of the node that answers, as it says itself.

        ```python
        print("connected to", client.node)
        ```
        """
        return self._last_session().welcome.node

    @property
    def cluster_id(self) -> bytes:
        """The 16 bytes that were made when the cluster formed.

        ```python
        assert len(client.cluster_id) == 16
        ```
        """
        return self._last_session().welcome.cluster_id

    @property
    def limits(self) -> Limits:
        """The bounds that the server told in its greeting.

        ```python
        assert client.limits.batch_bytes_max <= client.limits.frame_bytes_max
        ```
        """
        return self._last_session().limits

    def _last_session(self) -> Session:
        if self._session is None:
            raise ClientClosed("the client is not connected yet: use it as `async with Client(…) as client`")
        return self._session

    def session_nowait(self) -> Session | None:
        """The live connection, if there is one.

        ```python
        session = client.session_nowait()
        assert session is None or session.is_open
        ```
        """
        session = self._session
        return session if session is not None and session.error is None else None

    async def session(self) -> Session:
        """The live connection, made again if need be. Raises ConnectionFailed, Misconfigured or ClientClosed.

        ```python
        session = await client.session()
        print("connected to", session.welcome.node)
        ```
        """
        if self._connecting is None:
            raise ClientClosed("the client is not open: use it as `async with Client(…) as client`")
        while True:
            if self._closed:
                raise ClientClosed("the client was closed")
            session = self.session_nowait()
            if session is not None:
                return session
            # One connects, the others wait; if that one is cancelled, the next takes over.
            async with self._connecting:
                if self.session_nowait() is None and not self._closed:
                    session = await self._connect()
                    self._session = session
                    self.spawn(session.run)

    async def _connect(self) -> Session:
        backoff = Backoff(self.chance)
        for last_round in (number == CONNECT_ROUNDS_MAX for number in range(1, CONNECT_ROUNDS_MAX + 1)):
            failures: list[ConnectionFailed | Misconfigured] = []
            for _ in self.addresses:
                try:
                    return await open_session(self.addresses[self._address_index], self.tls, self.name)
                except (ConnectionFailed, Misconfigured) as error:
                    failures.append(error)
                    self._address_index = (self._address_index + 1) % len(self.addresses)
            if last_round or not any(failure.retriable for failure in failures):
                break
            await self._sleep(backoff.next_seconds())
        if len(failures) == 1:
            raise failures[0]
        kind = ConnectionFailed if any(failure.retriable for failure in failures) else Misconfigured
        raise kind("no address answers: " + "; ".join(map(str, failures))) from failures[0]

    async def request(self, message: Message, *, headers: Headers | None = None) -> Message:
        """Send any request and return its answer. Raises the error it was answered with, or that ended it.

        Cancelled: whether the server carried it out is unknown; the client is as usable as before.

        ```python
        from wire.messages import Ping, Pong

        assert await client.request(Ping()) == Pong()
        ```
        """
        session = self.session_nowait() or await self.session()
        while not session.has_room() or not session.is_open:
            await _wait_for_room(session)
            session = await self.session()
        waiter = _Waiter()
        request_id = session.send(message, waiter, headers)
        try:
            await waiter.event.wait()
        except BaseException:
            session.forget(request_id)
            raise
        outcome = waiter.outcome
        if isinstance(outcome, Message):
            return outcome
        assert outcome is not None
        raise outcome

    async def _ask(self, message: Message, kind: type[_AnswerT]) -> _AnswerT:
        answer = await self.request(message)
        # The connection has seen to it that an answer is of the type that belongs to its request.
        assert isinstance(answer, kind)
        return answer

    # --- requests ---

    async def ping(self) -> None:
        """Return when the node has answered.

        ```python
        await client.ping()
        ```
        """
        await self._ask(Ping(), Pong)

    async def metadata(self, topics: Sequence[str] | None = None) -> ClusterMetadata:
        """The nodes, and the topics named (None: all) with their partitions and leaders.

        ```python
        metadata = await client.metadata(["events"])
        assert [topic.topic for topic in metadata.topics] == ["events"]
        ```
        """
        return await self._ask(Metadata(None if topics is None else tuple(topics)), ClusterMetadata)

    async def create_topic(
        self, topic: str, partitions: int = 0, replicas: int = 0, configuration: Mapping[str, str] | None = None
    ) -> TopicCreated:
        """Make a topic; 0 partitions or replicas mean the cluster's default. Raises TopicExists, InvalidTopic.

        ```python
        created = await client.create_topic("letters", 3, configuration={"retention.seconds": "3600"})
        assert created.partitions == 3
        ```
        """
        return await self._ask(CreateTopic(topic, partitions, replicas, dict(configuration or {})), TopicCreated)

    async def alter_topic(
        self, topic: str, partitions: int | None = None, configuration: Mapping[str, str | None] | None = None
    ) -> TopicAltered:
        """Change keys of a topic's configuration (None: back to the default), or raise its number of partitions.

        ```python
        altered = await client.alter_topic("events", partitions=2, configuration={"retention.seconds": "3600"})
        assert altered.partitions == 2
        ```
        """
        return await self._ask(AlterTopic(topic, partitions, dict(configuration or {})), TopicAltered)

    async def delete_topic(self, topic: str) -> None:
        """Remove a topic and its records for good. Raises TopicNotFound.

        ```python
        await client.delete_topic("events")
        assert "events" not in [topic.topic for topic in (await client.metadata()).topics]
        ```
        """
        await self._ask(DeleteTopic(topic), TopicDeleted)

    async def describe_topic(self, topic: str) -> TopicDescription:
        """A topic with its partitions' offsets and sizes, and its configuration. Raises TopicNotFound.

        ```python
        description = await client.describe_topic("events")
        assert [partition.high_watermark for partition in description.partitions] == [2]
        ```
        """
        return await self._ask(DescribeTopic(topic), TopicDescription)

    async def list_offsets(self, topic: str, partition: int, at: Anchor | int = Anchor.END) -> ListedOffsets:
        """An end of the readable range; or the first offset appended at or after `at` ms since 1970 UTC.

        ```python
        end = await client.list_offsets("events", 0, wire.Anchor.END)
        assert end.offset == 2
        ```
        """
        return await self._ask(ListOffsets(topic, partition, at), ListedOffsets)

    async def produce(
        self,
        topic: str,
        partition: int,
        batch: bytes,
        *,
        acks: Acks = Acks.QUORUM,
        expected_offset: int | None = None,
    ) -> Produced:
        """Append one batch of `wire.encode_batch`; with `expected_offset`, only if its first record gets that offset.

        On ConnectionLost or OutcomeUnknown it may be in the log or not: `Producer` knows how to try again.

        ```python
        batch = wire.encode_batch([(b"third", None, 0, None)])
        produced = await client.produce("events", 0, batch, expected_offset=2)
        assert produced.base_offset == 2
        ```
        """
        return await self._ask(Produce(topic, partition, acks, batch, expected_offset), Produced)

    async def fetch(
        self,
        topic: str,
        partition: int,
        offset: int,
        *,
        bytes_max: int = FETCH_BYTES_DEFAULT,
        wait_seconds: float = 0.0,
        linearizable: bool = False,
    ) -> Fetched:
        """Batches from `offset` on, as they are stored; at the end of the log, wait up to `wait_seconds` for one.

        ```python
        fetched = await client.fetch("events", 0, 1, wait_seconds=1.0)
        assert fetched.next_offset == 2 and b"second" in fetched.batches
        ```
        """
        wait_ms = round(wait_seconds * 1000)
        return await self._ask(Fetch(topic, partition, offset, bytes_max, wait_ms, linearizable), Fetched)

    async def init_producer(self, name: str | None = None) -> ProducerInitialized:
        """A producer's identity; with a name, the same id as before and the next epoch.

        ```python
        first = await client.init_producer("billing")
        again = await client.init_producer("billing")
        assert (again.producer_id, again.producer_epoch) == (first.producer_id, first.producer_epoch + 1)
        ```
        """
        return await self._ask(InitProducer(name), ProducerInitialized)


async def _wait_for_room(session: Session) -> None:
    if not session.is_open:
        return
    event = anyio.Event()

    def take() -> bool:
        event.set()
        return True

    session.call_when_room(take)
    try:
        await event.wait()
    except BaseException:
        session.forget_room(take)
        raise


async def close_task_group(group: anyio.abc.TaskGroup, error: BaseException | None) -> None:
    """End a task group that was entered in one method and is left in another; `error` goes on as it is.

    A task group wraps what leaves its body in an exception group. The tasks of this library raise nothing themselves,
    so the body's own exception is all there can be, and whoever uses the library gets that.
    """
    group.cancel_scope.cancel()
    cancelled = isinstance(error, anyio.get_cancelled_exc_class())
    try:
        if cancelled and error is not None:
            await group.__aexit__(type(error), error, error.__traceback__)
        else:
            await group.__aexit__(None, None, None)
    except BaseExceptionGroup as wrapped:
        # A defect in a task of ours comes out as it is, not hidden by the cancellation that it caused.
        defects = wrapped.split(anyio.get_cancelled_exc_class())[1]
        if defects is not None:
            raise defects.exceptions[0] from error
        if not cancelled:
            raise
