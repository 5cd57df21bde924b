"""The connection as a machine without sockets: bytes in, events and bytes out.

For: both ends of the native protocol, and every test of it. Must not know: streams, TLS, time, tasks. The one idea:
what may arrive when is a table, `CLIENT_HANDLERS` and `SERVER_HANDLERS`, with every pair of state and message either
handled or refused; `docs/protocol.md` draws the machine from it.

Neither class is safe for use by two tasks at once, nor needs to be: no method blocks.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NamedTuple

from wire.codec import REQUEST_ID_MAX, Envelope, Headers, MessageFault, decode, encode
from wire.errors import LogdError, ProtocolError, ServerError, Unsupported, server_error
from wire.frame import FRAME_BYTES_MAX_DEFAULT, GREETING_FRAME_BYTES_MAX, FrameReader
from wire.messages import (
    ANSWERS,
    ONE_WAY,
    Credit,
    Delivery,
    Error,
    Hello,
    Message,
    Subscribe,
    Unsubscribe,
    Unsubscribed,
    Welcome,
)
from wire.record import BATCH_BYTES_MAX_DEFAULT
from wire.types import PROTOCOL_VERSION


class State(Enum):
    """Where a connection stands."""

    GREETING = auto()
    """`Hello` and `Welcome` have not both passed."""
    READY = auto()
    CLOSED = auto()
    """Nothing more is read or written."""


# Request id 0 belongs to the connection itself: `Hello`, and an `Error` before the close.
CONNECTION_REQUEST_ID: Final = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one connection, told by the server in `Welcome`. Sizes in bytes.

    ```python
    assert client.limits.requests_in_flight_max >= 1
    print(client.limits)
    ```
    """

    # Where the numbers come from stands beside the server's settings of the same names.
    frame_bytes_max: int = FRAME_BYTES_MAX_DEFAULT
    batch_bytes_max: int = BATCH_BYTES_MAX_DEFAULT
    requests_in_flight_max: int = 256
    bytes_in_flight_max: int = 32 << 20

    def to_wire(self) -> dict[str, int]:
        """As they stand in `Welcome.limits`."""
        return {name: getattr(self, name) for name in self.__match_args__}

    @classmethod
    def from_wire(cls, limits: Mapping[str, int]) -> "Limits":
        """From `Welcome.limits`; unknown names are a newer server's and do not concern this client."""
        return cls(**{name: limits[name] for name in cls.__match_args__ if name in limits})


# --- Events -----------------------------------------------------------------------------------------------------------


class Welcomed(NamedTuple):
    """Client: the handshake is complete."""

    welcome: Welcome
    limits: Limits


class Answered(NamedTuple):
    """Client: the answer to a request. The request is over, but for `Subscribe`, whose deliveries follow."""

    request_id: int
    answer: Message


class Refused(NamedTuple):
    """Client: a request, or a running subscription, ended with an error."""

    request_id: int
    error: ServerError


class Delivered(NamedTuple):
    """Client: batches of a subscription."""

    request_id: int
    delivery: Delivery


class Greeted(NamedTuple):
    """Server: a client said hello; answer with `welcome` or `farewell`."""

    hello: Hello


class Requested(NamedTuple):
    """Server: a request that must be answered once, by `answer` or `refuse` (a subscription: until it ends)."""

    request_id: int
    message: Message
    headers: Headers


class CreditGiven(NamedTuple):
    """Server: more room for a subscription."""

    request_id: int
    credit_bytes: int


class UnsubscribeAsked(NamedTuple):
    """Server: the client wants a subscription to end; answer it with `Unsubscribed`."""

    request_id: int


class Faulted(NamedTuple):
    """Server: a request could not be understood. It was refused already: `reply` holds the bytes to send."""

    request_id: int
    error: ServerError
    reply: bytes


ClientEvent = Welcomed | Answered | Refused | Delivered
ServerEvent = Greeted | Requested | CreditGiven | UnsubscribeAsked | Faulted


# --- The client's end -------------------------------------------------------------------------------------------------


class ClientConnection:
    """The end that asks.

    `feed` what arrives and take `events`; send what `hello`, `request` and the others return. A ProtocolError from
    `events` leaves the connection CLOSED: whatever was in flight has an unknown outcome.
    """

    def __init__(self) -> None:
        self.state = State.GREETING
        self.limits = Limits()
        # The greeting's answer may be longer than its question, but not by much.
        self._reader = FrameReader(4 * GREETING_FRAME_BYTES_MAX)
        self._last_request_id = CONNECTION_REQUEST_ID
        # Invariant: holds each request that was sent and has not ended, by its id.
        self._open: dict[int, type[Message]] = {}

    @property
    def requests_in_flight(self) -> int:
        return len(self._open)

    def hello(self, client: str) -> bytes:
        """The first bytes to send. `client` names the software, for the server's log."""
        self._open[CONNECTION_REQUEST_ID] = Hello
        return encode(Hello((PROTOCOL_VERSION,), client), CONNECTION_REQUEST_ID)

    def request(self, message: Message, headers: Headers | None = None) -> tuple[int, bytes]:
        """Open a request; returns its id and the bytes to send.

        Raises ProtocolError when the handshake is not complete, or the frame is above the server's limit: nothing
        was opened then.
        """
        if self.state is not State.READY:
            raise ProtocolError(f"a request on a connection that is {self.state.name.lower()}")
        request_id = self._next_request_id()
        data = encode(message, request_id, headers)
        if len(data) > self.limits.frame_bytes_max:
            raise ProtocolError(f"a frame of {len(data)} bytes is above the limit of {self.limits.frame_bytes_max}")
        self._last_request_id = request_id
        if type(message) not in ONE_WAY:
            self._open[request_id] = type(message)
        return request_id, data

    def credit(self, request_id: int, credit_bytes: int) -> bytes:
        """More room for a subscription; nothing to send if it ended meanwhile."""
        return encode(Credit(credit_bytes), request_id) if request_id in self._open else b""

    def unsubscribe(self, request_id: int) -> bytes:
        """Ask for the end of a subscription; nothing to send if it ended meanwhile."""
        return encode(Unsubscribe(), request_id) if request_id in self._open else b""

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes that arrived."""
        self._reader.feed(data)

    def events(self) -> Iterator[ClientEvent]:
        """What the bytes so far amount to. Raises ProtocolError, after which the connection is CLOSED."""
        try:
            for body in self._reader.bodies():
                envelope = self._decode(body)
                handler = CLIENT_HANDLERS.get((self.state, type(envelope.message)))
                if handler is None:
                    name = type(envelope.message).__name__
                    raise ProtocolError(f"{name} may not arrive while {self.state.name.lower()}")
                yield handler(self, envelope)
        except ProtocolError:
            self.state = State.CLOSED
            raise

    def _decode(self, body: memoryview) -> Envelope:
        try:
            return decode(body)
        except MessageFault as fault:
            # A server that sends what this client cannot read is not speaking the version that was agreed.
            raise ProtocolError(f"an answer that cannot be understood: {fault.error}") from fault

    def _next_request_id(self) -> int:
        request_id = self._last_request_id
        while True:
            request_id = request_id % REQUEST_ID_MAX + 1
            if request_id not in self._open:
                return request_id

    def _on_welcome(self, envelope: Envelope) -> Welcomed:
        welcome = envelope.message
        assert isinstance(welcome, Welcome)
        if welcome.version != PROTOCOL_VERSION:
            raise ProtocolError(f"the server chose version {welcome.version}, which was not offered")
        del self._open[CONNECTION_REQUEST_ID]
        self.state = State.READY
        self.limits = Limits.from_wire(welcome.limits)
        self._reader.frame_bytes_max = self.limits.frame_bytes_max
        return Welcomed(welcome, self.limits)

    def _on_error(self, envelope: Envelope) -> Refused:
        error = envelope.message
        assert isinstance(error, Error)
        typed = server_error(error.code, error.message, error.details)
        if envelope.request_id == CONNECTION_REQUEST_ID:
            self.state = State.CLOSED
        elif self._open.pop(envelope.request_id, None) is None:
            raise ProtocolError(f"an error for request {envelope.request_id}, which is not open")
        return Refused(envelope.request_id, typed)

    def _on_answer(self, envelope: Envelope) -> Answered:
        request_id, answer = envelope.request_id, envelope.message
        asked = self._open.get(request_id)
        expected = (
            Unsubscribed if asked is Subscribe and type(answer) is Unsubscribed else ANSWERS.get(asked or Message)
        )
        if asked is None or type(answer) is not expected:
            raise ProtocolError(f"{type(answer).__name__} does not answer request {request_id}")
        if asked is not Subscribe or type(answer) is Unsubscribed:
            del self._open[request_id]
        return Answered(request_id, answer)

    def _on_delivery(self, envelope: Envelope) -> Delivered:
        delivery = envelope.message
        assert isinstance(delivery, Delivery)
        if self._open.get(envelope.request_id) is not Subscribe:
            raise ProtocolError(f"a delivery for request {envelope.request_id}, which is no subscription")
        return Delivered(envelope.request_id, delivery)


ClientHandler = Callable[[ClientConnection, Envelope], ClientEvent]

CLIENT_HANDLERS: Final[Mapping[tuple[State, type[Message]], ClientHandler]] = {
    (State.GREETING, Welcome): ClientConnection._on_welcome,  # noqa: SLF001  # the table belongs to the class
    (State.GREETING, Error): ClientConnection._on_error,  # noqa: SLF001
    (State.READY, Error): ClientConnection._on_error,  # noqa: SLF001
    (State.READY, Delivery): ClientConnection._on_delivery,  # noqa: SLF001
    **{
        (State.READY, answer): ClientConnection._on_answer  # noqa: SLF001
        for answer in (*ANSWERS.values(), Unsubscribed)
        if answer is not Welcome
    },
}
"""What may arrive at a client when. Every pair that is not here is a ProtocolError."""


# --- The server's end -------------------------------------------------------------------------------------------------


class ServerConnection:
    """The end that answers.

    `feed` what arrives and take `next_event` until it is None; send what the answering methods return. Stop feeding
    and taking while `is_full`: that is the bound on what one client can have in flight. A ProtocolError from
    `next_event` leaves the connection CLOSED: send `farewell` of it and close.
    """

    def __init__(self, limits: Limits) -> None:
        self.state = State.GREETING
        self.limits = limits
        self.bytes_in_flight = 0
        self._reader = FrameReader(GREETING_FRAME_BYTES_MAX)
        # Invariant: holds the size in bytes of each request that is not ended, by its id; a running subscription
        # counts with 0, its deliveries being bounded by credit.
        self._open: dict[int, int] = {}
        self._subscriptions: set[int] = set()

    @property
    def requests_in_flight(self) -> int:
        return len(self._open)

    @property
    def subscriptions(self) -> frozenset[int]:
        """The request ids of the running subscriptions."""
        return frozenset(self._subscriptions)

    def request_bytes(self, request_id: int) -> int:
        """The size of an open request, as it counts in `bytes_in_flight`."""
        return self._open[request_id]

    @property
    def is_full(self) -> bool:
        """Whether the client has as much in flight as it may; answers make room."""
        # Subscriptions stay open by their nature: they are bounded by a count of their own, at the session.
        return (
            len(self._open) - len(self._subscriptions) >= self.limits.requests_in_flight_max
            or self.bytes_in_flight >= self.limits.bytes_in_flight_max
        )

    @property
    def is_between_frames(self) -> bool:
        """Whether no frame is half received."""
        return not self._reader.buffered_bytes

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes that arrived."""
        self._reader.feed(data)

    def next_event(self) -> ServerEvent | None:
        """The next event that the bytes so far amount to. Raises ProtocolError, after which it is CLOSED."""
        if self.state is State.CLOSED:
            return None
        try:
            for body in self._reader.bodies():
                event = self._on_body(body)
                if event is not None:
                    return event
        except ProtocolError:
            self.state = State.CLOSED
            raise
        return None

    def _on_body(self, body: memoryview) -> ServerEvent | None:
        try:
            envelope = decode(body)
        except MessageFault as fault:
            if self.state is State.GREETING:
                raise ProtocolError(f"a greeting that cannot be understood: {fault.error}") from fault
            self._check_request_id(fault.request_id)
            return Faulted(fault.request_id, fault.error, _encode_error(fault.request_id, fault.error))
        kind = type(envelope.message)
        handler = SERVER_HANDLERS.get((self.state, kind))
        if handler is None:
            if self.state is State.GREETING:
                raise ProtocolError(f"{kind.__name__} before the greeting")
            self._check_request_id(envelope.request_id)
            error = Unsupported(f"{kind.__name__} is not a request")
            return Faulted(envelope.request_id, error, _encode_error(envelope.request_id, error))
        return handler(self, envelope, len(body))

    def _check_request_id(self, request_id: int) -> None:
        if request_id == CONNECTION_REQUEST_ID or request_id in self._open:
            raise ProtocolError(f"request id {request_id} is in use")

    def _on_hello(self, envelope: Envelope, _body_bytes: int) -> Greeted:
        hello = envelope.message
        assert isinstance(hello, Hello)
        if envelope.request_id != CONNECTION_REQUEST_ID:
            raise ProtocolError("Hello has request id 0")
        return Greeted(hello)

    def _on_request(self, envelope: Envelope, body_bytes: int) -> Requested:
        request_id = envelope.request_id
        self._check_request_id(request_id)
        self._open[request_id] = body_bytes
        self.bytes_in_flight += body_bytes
        if type(envelope.message) is Subscribe:
            self._subscriptions.add(request_id)
        return Requested(request_id, envelope.message, envelope.headers)

    def _on_credit(self, envelope: Envelope, _body_bytes: int) -> CreditGiven | None:
        credit = envelope.message
        assert isinstance(credit, Credit)
        # Credit that crosses the end of its subscription on the way is nobody's fault.
        return CreditGiven(envelope.request_id, credit.credit_bytes) if self._is_subscription(envelope) else None

    def _on_unsubscribe(self, envelope: Envelope, _body_bytes: int) -> UnsubscribeAsked | None:
        return UnsubscribeAsked(envelope.request_id) if self._is_subscription(envelope) else None

    def _is_subscription(self, envelope: Envelope) -> bool:
        return envelope.request_id in self._subscriptions

    def welcome(self, node: str, cluster_id: bytes) -> bytes:
        """The answer to `Greeted`: from here on the connection is ready, and its larger limits hold."""
        self.state = State.READY
        self._reader.frame_bytes_max = self.limits.frame_bytes_max
        welcome = Welcome(PROTOCOL_VERSION, node, cluster_id, (), self.limits.to_wire())
        return encode(welcome, CONNECTION_REQUEST_ID)

    def answer(self, request_id: int, answer: Message) -> bytes:
        """The answer that ends a request; of a subscription, `Subscribed` begins and `Unsubscribed` ends it."""
        if request_id not in self._subscriptions or type(answer) is Unsubscribed:
            self._end(request_id)
        else:
            self.bytes_in_flight -= self._open[request_id]
            self._open[request_id] = 0
        return encode(answer, request_id)

    def refuse(self, request_id: int, error: LogdError) -> bytes:
        """The error that ends a request or a subscription."""
        self._end(request_id)
        return _encode_error(request_id, error)

    def deliver(self, request_id: int, delivery: Delivery) -> bytes:
        """One delivery of a subscription."""
        return encode(delivery, request_id)

    def farewell(self, error: LogdError) -> bytes:
        """The last bytes of a connection that is closed for a reason."""
        self.state = State.CLOSED
        return _encode_error(CONNECTION_REQUEST_ID, error)

    def _end(self, request_id: int) -> None:
        self.bytes_in_flight -= self._open.pop(request_id)
        self._subscriptions.discard(request_id)


# An error may repeat what was asked for, such as a topic's name; this much of it is enough for anybody.
_ERROR_CHARACTERS_MAX: Final = 1_000


def _encode_error(request_id: int, error: LogdError) -> bytes:
    details = {
        name: value[:_ERROR_CHARACTERS_MAX] if isinstance(value, str) else value
        for name, value in error.details.items()
    }
    return encode(Error(error.code, str(error)[:_ERROR_CHARACTERS_MAX], details, error.retriable), request_id)


ServerHandler = Callable[[ServerConnection, Envelope, int], ServerEvent | None]

SERVER_HANDLERS: Final[Mapping[tuple[State, type[Message]], ServerHandler]] = {
    (State.GREETING, Hello): ServerConnection._on_hello,  # noqa: SLF001  # the table belongs to the class
    **{
        (State.READY, request): ServerConnection._on_request  # noqa: SLF001
        for request in ANSWERS
        if request not in (Hello, Unsubscribe)
    },
    (State.READY, Credit): ServerConnection._on_credit,  # noqa: SLF001
    (State.READY, Unsubscribe): ServerConnection._on_unsubscribe,  # noqa: SLF001
}
"""What may arrive at a server when. In GREETING every other pair is a ProtocolError, in READY it is `Unsupported`."""
