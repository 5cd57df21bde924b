"""A whole server in one module and in memory: what the client library is tested against beside the real daemon.

It keeps the protocol's promises in the simplest way there is (a list of batches per partition), over real TLS sockets,
under Trio and asyncio. It also breaks them when told to: a test gives `interfere`, which sees each request first.
"""

import ssl
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.abc
from anyio.streams.tls import TLSListener, TLSStream

from wire.connection import CreditGiven, Faulted, Greeted, Limits, Requested, ServerConnection, UnsubscribeAsked
from wire.errors import (
    DuplicateSequence,
    Fenced,
    InvalidTopic,
    LogdError,
    OffsetMismatch,
    OffsetOutOfRange,
    ProtocolError,
    SequenceGap,
    TopicExists,
    TopicNotFound,
    UnknownProducer,
    Unsupported,
)
from wire.messages import (
    AlterTopic,
    ClusterMetadata,
    CreateTopic,
    DamageReported,
    DeleteTopic,
    Delivery,
    DescribeTopic,
    Fetch,
    Fetched,
    InitProducer,
    ListedOffsets,
    ListOffsets,
    Message,
    Metadata,
    NodeDescription,
    PartitionDescription,
    Ping,
    Pong,
    Produce,
    Produced,
    ProducerInitialized,
    ReportDamage,
    Subscribe,
    Subscribed,
    TopicAltered,
    TopicCreated,
    TopicDeleted,
    TopicDescription,
    Unsubscribed,
)
from wire.record import BatchHeader, Stamp, check_produced, first_chain, stamp
from wire.types import Acks, Anchor, Durability

CLUSTER_ID = bytes(range(16))
TOPIC_ID = bytes(reversed(range(16)))


class Drop(Exception):
    """Raised by `interfere`: close the connection without a word."""


class Silence(Exception):
    """Raised by `interfere`: never answer this request."""


@dataclass
class AfterwardsDrop:
    """Returned by `interfere`: carry the request out, and close the connection instead of answering."""


@dataclass
class _Log:
    """One partition."""

    partition: int
    batches: list[bytes] = field(default_factory=list)
    headers: list[BatchHeader] = field(default_factory=list)
    log_start_offset: int = 0
    # By producer id: the epoch, and the last five batches.
    producers: dict[int, tuple[int, deque[tuple[int, int, Produced]]]] = field(default_factory=dict)
    grown: anyio.Event = field(default_factory=anyio.Event)

    @property
    def high_watermark(self) -> int:
        return self.headers[-1].next_offset if self.headers else 0

    def append(self, batch: bytes, now_ms: int) -> BatchHeader:
        previous = self.headers[-1] if self.headers else None
        chain = previous.chain if previous else first_chain(CLUSTER_ID, TOPIC_ID, self.partition)
        stamped = stamp(batch, Stamp(self.high_watermark, len(self.batches) + 1, 1, now_ms, chain))
        self.batches.append(stamped.to_bytes())
        self.headers.append(stamped.header)
        self.grown.set()
        self.grown = anyio.Event()
        return stamped.header

    def known(self, header: BatchHeader) -> Produced | None:
        """The original answer if the batch is a repeat; raises what the format says of every other wrong sequence."""
        if not header.producer_id:
            return None
        epoch, recent = self.producers.get(header.producer_id, (0, deque()))
        if header.producer_epoch < epoch:
            raise Fenced("an older epoch")
        if header.producer_epoch > epoch:
            recent = deque()
        for base_sequence, record_count, answer in recent:
            if (base_sequence, record_count) == (header.base_sequence, header.record_count):
                return Produced(
                    answer.base_offset, answer.index, answer.term, answer.chain, answer.durability, answer.nodes, True
                )
        if not recent:
            if header.base_sequence:
                raise UnknownProducer("never seen")
            return None
        expected = recent[-1][0] + recent[-1][1]
        if header.base_sequence > expected:
            raise SequenceGap(f"expected {expected}")
        if header.base_sequence < expected:
            raise DuplicateSequence("long ago")
        return None

    def remember(self, header: BatchHeader, answer: Produced) -> None:
        epoch, recent = self.producers.get(header.producer_id, (header.producer_epoch, deque(maxlen=5)))
        if epoch != header.producer_epoch:
            recent = deque(maxlen=5)
        recent.append((header.base_sequence, header.record_count, answer))
        self.producers[header.producer_id] = header.producer_epoch, recent

    def read(self, offset: int, bytes_max: int) -> tuple[bytes, int]:
        taken: list[bytes] = []
        size = 0
        next_offset = offset
        any_records = False
        first = self._locate(offset)
        for batch, header in zip(self.batches[first:], self.headers[first:], strict=True):
            if any_records and size + len(batch) > bytes_max:
                break
            taken.append(batch)
            size += len(batch)
            any_records |= not header.is_control
            next_offset = header.next_offset
        return b"".join(taken), next_offset

    def _locate(self, offset: int) -> int:
        low, high = 0, len(self.headers)
        while low < high:
            middle = (low + high) // 2
            if self.headers[middle].next_offset > offset:
                high = middle
            else:
                low = middle + 1
        return low

    def check_range(self, offset: int) -> None:
        if not self.log_start_offset <= offset <= self.high_watermark:
            raise OffsetOutOfRange(
                f"{offset} is not in [{self.log_start_offset}, {self.high_watermark}]",
                {"log_start_offset": self.log_start_offset, "high_watermark": self.high_watermark, "offset": offset},
            )


Interference = Callable[[Message], Any]


class ReferenceServer:
    """The server. `interfere` may raise an error to answer with, `Drop` or `Silence`, or return `AfterwardsDrop`."""

    def __init__(self, context: ssl.SSLContext, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.port = 0
        self.topics: dict[str, list[_Log]] = {}
        self.interfere: Interference = lambda _message: None
        self.damage_reports: list[ReportDamage] = []
        self.requests: list[Message] = []
        self.sessions = 0
        self.delivery_bytes_max = 1 << 20
        self._context = context
        self._producer_id = 0
        self._producer_names: dict[str, tuple[int, int]] = {}
        self._streams: set[TLSStream] = set()
        self._stop = anyio.Event()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled, on the same port each time it is run."""
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=self.port)
        self.port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with _QuietListener(listener, self._context, standard_compatible=False) as tls_listener:
            task_status.started()
            await tls_listener.serve(self._serve)

    def log(self, topic: str, partition: int = 0) -> _Log:
        logs = self.topics.get(topic)
        if logs is None or partition >= len(logs):
            raise TopicNotFound(f"{topic}/{partition}")
        return logs[partition]

    async def drop_all(self) -> None:
        """Cut every connection."""
        for stream in list(self._streams):
            await anyio.aclose_forcefully(stream)

    async def _serve(self, stream: TLSStream) -> None:
        self.sessions += 1
        self._streams.add(stream)
        try:
            async with anyio.create_task_group() as group:
                await _Session(self, stream, group).run()
                group.cancel_scope.cancel()
        except* (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, anyio.BusyResourceError):
            pass
        finally:
            self._streams.discard(stream)
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(stream)

    # --- what requests mean ---

    def answer(self, message: Message) -> Message:  # noqa: C901  # a table in the form of a match
        match message:
            case Ping():
                return Pong()
            case CreateTopic(topic, partitions):
                if not topic:
                    raise InvalidTopic("no name")
                if topic in self.topics:
                    raise TopicExists(topic)
                self.topics[topic] = [_Log(number) for number in range(partitions or 1)]
                return TopicCreated(TOPIC_ID, partitions or 1)
            case AlterTopic(topic, partitions):
                self.log(topic)
                logs = self.topics[topic]
                logs += [_Log(number) for number in range(len(logs), partitions or 0)]
                return TopicAltered(len(logs), {})
            case DeleteTopic(topic):
                self.log(topic)
                del self.topics[topic]
                return TopicDeleted()
            case DescribeTopic(topic):
                self.log(topic)
                return self._describe(topic)
            case Metadata(topics):
                names = self.topics if topics is None else topics
                return ClusterMetadata(
                    (NodeDescription("node-1", "127.0.0.1", self.port),),
                    tuple(self._describe(name) for name in names if name in self.topics),
                )
            case Produce():
                return self._produce(message)
            case ListOffsets():
                return self._list_offsets(message)
            case InitProducer(name):
                return self._init_producer(name)
            case ReportDamage():
                self.damage_reports.append(message)
                return DamageReported(confirmed=False)
        raise Unsupported(type(message).__name__)

    def _describe(self, topic: str) -> TopicDescription:
        return TopicDescription(
            topic,
            TOPIC_ID,
            tuple(
                PartitionDescription(
                    log.partition,
                    log.partition + 1,
                    "node-1",
                    1,
                    ("node-1",),
                    log.log_start_offset,
                    log.high_watermark,
                    log.high_watermark,
                )
                for log in self.topics[topic]
            ),
            {},
        )

    def _produce(self, message: Produce) -> Produced:
        log = self.log(message.topic, message.partition)
        header = check_produced(message.batch, self.limits.batch_bytes_max)
        known = log.known(header)
        if known is not None:
            return known
        if message.expected_offset is not None and message.expected_offset != log.high_watermark:
            raise OffsetMismatch("not the next offset", {"next_offset": log.high_watermark})
        place = log.append(message.batch, time.time_ns() // 1_000_000)
        durability = Durability.LEADER_FSYNC if message.acks is Acks.LEADER else Durability.QUORUM_FSYNC
        answer = Produced(place.base_offset, place.index, place.term, place.chain, durability, ("node-1",))
        if header.producer_id:
            log.remember(header, answer)
        return Produced(0, 0, 0, b"", Durability.NONE, ()) if message.acks is Acks.NONE else answer

    def _list_offsets(self, message: ListOffsets) -> ListedOffsets:
        log = self.log(message.topic, message.partition)
        if message.at is Anchor.START:
            offset = log.log_start_offset
        elif message.at is Anchor.END:
            offset = log.high_watermark
        else:
            found = (header.base_offset for header in log.headers if header.append_timestamp >= message.at)
            offset = next(found, log.high_watermark)
        return ListedOffsets(offset, log.log_start_offset, log.high_watermark)

    def _init_producer(self, name: str | None) -> ProducerInitialized:
        if name in self._producer_names:
            producer_id, epoch = self._producer_names[name]
            epoch += 1
        else:
            self._producer_id += 1
            producer_id, epoch = self._producer_id, 0
        if name is not None:
            self._producer_names[name] = producer_id, epoch
        return ProducerInitialized(producer_id, epoch)


class _Session:
    """One connection."""

    def __init__(self, server: ReferenceServer, stream: TLSStream, group: anyio.abc.TaskGroup) -> None:
        self._server = server
        self._stream = stream
        self._group = group
        self._connection = ServerConnection(server.limits)
        self._sending = anyio.Lock()
        # By request id: the credit in bytes, and what is set when there is more.
        self._subscriptions: dict[int, tuple[list[int], anyio.Event, anyio.CancelScope]] = {}

    async def run(self) -> None:
        try:
            while True:
                self._connection.feed(await self._stream.receive(1 << 16))
                while (event := self._connection.next_event()) is not None:
                    await self._on_event(event)
        except ProtocolError as error:
            await self._send(self._connection.farewell(error))
        except (Drop, anyio.EndOfStream):
            pass

    async def _send(self, data: bytes) -> None:
        async with self._sending:
            await self._stream.send(data)

    async def _on_event(self, event: object) -> None:
        match event:
            case Greeted():
                await self._send(self._connection.welcome("node-1", CLUSTER_ID))
            case Faulted(_, _, reply):
                await self._send(reply)
            case CreditGiven(request_id, credit_bytes) if request_id in self._subscriptions:
                credit, event_, _ = self._subscriptions[request_id]
                credit[0] += credit_bytes
                event_.set()
            case UnsubscribeAsked(request_id) if request_id in self._subscriptions:
                self._subscriptions.pop(request_id)[2].cancel()
                await self._send(self._connection.answer(request_id, Unsubscribed()))
            case Requested(request_id, message):
                self._server.requests.append(message)
                await self._on_request(request_id, message)

    async def _on_request(self, request_id: int, message: Message) -> None:
        try:
            interference = self._server.interfere(message)
            if isinstance(message, Fetch):
                self._group.start_soon(self._fetch, request_id, message)
                return
            if isinstance(message, Subscribe):
                await self._subscribe(request_id, message)
                if isinstance(interference, AfterwardsDrop):
                    raise Drop
                return
            answer = self._server.answer(message)
            if isinstance(interference, AfterwardsDrop):
                raise Drop
            await self._send(self._connection.answer(request_id, answer))
        except LogdError as error:
            await self._send(self._connection.refuse(request_id, error))
        except Silence:
            pass

    async def _fetch(self, request_id: int, message: Fetch) -> None:
        try:
            log = self._server.log(message.topic, message.partition)
            log.check_range(message.offset)
            with anyio.move_on_after(message.max_wait_ms / 1000):
                while message.offset >= log.high_watermark and message.max_wait_ms:
                    await log.grown.wait()
            batches, next_offset = log.read(message.offset, message.max_bytes)
            answer = Fetched(batches, next_offset, log.log_start_offset, log.high_watermark)
            await self._send(self._connection.answer(request_id, answer))
        except LogdError as error:
            await self._send(self._connection.refuse(request_id, error))

    async def _subscribe(self, request_id: int, message: Subscribe) -> None:
        log = self._server.log(message.topic, message.partition)
        log.check_range(message.offset)
        await self._send(self._connection.answer(request_id, Subscribed(log.log_start_offset, log.high_watermark)))
        scope = anyio.CancelScope()
        self._subscriptions[request_id] = [message.credit_bytes], anyio.Event(), scope
        self._group.start_soon(self._deliver, request_id, log, message.offset, scope)

    async def _deliver(self, request_id: int, log: _Log, offset: int, scope: anyio.CancelScope) -> None:
        with scope:
            while request_id in self._subscriptions:
                credit, credited, _ = self._subscriptions[request_id]
                if credit[0] <= 0:
                    await credited.wait()
                    self._subscriptions[request_id] = credit, anyio.Event(), scope
                elif offset >= log.high_watermark:
                    await log.grown.wait()
                else:
                    batches, offset = log.read(offset, min(credit[0], self._server.delivery_bytes_max))
                    credit[0] -= len(batches)
                    delivery = Delivery(batches, offset, log.log_start_offset, log.high_watermark)
                    data = self._connection.deliver(request_id, delivery)
                    with anyio.CancelScope(shield=True):
                        await self._send(data)


class _QuietListener(TLSListener):
    """A client that cannot prove itself is told by TLS; nobody else need know."""

    @staticmethod
    async def handle_handshake_error(exc: BaseException, stream: anyio.abc.AnyByteStream) -> None:
        await anyio.aclose_forcefully(stream)
        if not isinstance(exc, Exception) or isinstance(exc, anyio.get_cancelled_exc_class()):
            raise exc
