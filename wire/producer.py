"""The producer: records in, one at a time; batches out, in order, exactly once.

For: programs that write. Must not know: sockets, or how a batch is stored. The one idea: a partition is a *lane*, a row
of batches that are filled, sent and answered in one order, and a record's acknowledgement is its batch and its number
in it. So the cost of a record is encoding it and two appends; all else happens once per batch.

A lane is in one of three conditions. It *flows*: batches are sent as they are ready, at most five unanswered. It
*recovers*: something could be tried again, so it waits until all that is in flight is answered, pauses, and sends the
unacknowledged batches again, the same bytes in the same order; the node recognises those it has. It *failed*: what
could not be acknowledged failed, with everything behind it in this lane, lest the log have a hole; the next record
starts under a new identity.
"""

import dataclasses
import math
import random
import time
from collections import deque
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import anyio
import anyio.lowlevel

from wire.client import BACKOFF_SECONDS_MAX, Backoff, Client, Session, again
from wire.errors import (
    BufferFull,
    ClientClosed,
    ConnectionLost,
    InvalidRequest,
    LogdError,
    NotYetAvailable,
    OutcomeUnknown,
    Overloaded,
    RecordTooLarge,
    SequenceGap,
    StorageFailed,
    TopicNotFound,
    UnknownProducer,
)
from wire.messages import Message, Produce, Produced, ProducerInitialized
from wire.record import HEADER_BYTES, PRODUCER_PART, PayloadBuilder, partition_for_key
from wire.types import Acks, Codec, Durability

# The server remembers as many batches of a producer: more in flight could not be told from duplicates.
BATCHES_IN_FLIGHT_MAX: Final = 5
# Long enough for company under load, and no longer than a person notices.
LINGER_SECONDS_DEFAULT: Final = 0.005
# Beyond this a larger batch is no cheaper per byte, and four of them are in flight within one MiB.
BATCH_BYTES_MAX_DEFAULT: Final = 256 << 10
# A reader decodes a batch at a time: this bounds its memory and its delay.
BATCH_RECORDS_MAX_DEFAULT: Final = 10_000
BUFFER_BYTES_MAX_DEFAULT: Final = 32 << 20
# How long a batch is tried before it fails: longer than any restart or election takes.
DELIVERY_SECONDS_MAX_DEFAULT: Final = 120.0
# The answer to a question that the node itself has to make durable.
_IDENTITY_SECONDS_MAX: Final = 10.0
# How often the age of batches is looked at.
_EXPIRY_INTERVAL_SECONDS: Final = 1.0
# `send` lets other tasks run after so many records, if it did not have to wait meanwhile: about half a millisecond.
_RECORDS_PER_CHECKPOINT: Final = 200
_FAILED_BATCHES_KEPT: Final = 1000
# What zstd may add to bytes that it cannot compress: one part in 256, and its frame.
_ZSTD_EXPANSION_SHIFT: Final = 8
_ZSTD_FRAME_BYTES: Final = 64
_TIMESTAMP_MS_MAX: Final = 2**63 - 1

# After these the records may be in the log: without an identity, sending them again could add them twice.
_OUTCOME_UNKNOWN: Final = (ConnectionLost, OutcomeUnknown, StorageFailed)


class Receipt(NamedTuple):
    """The acknowledgement of one record, worth keeping.

    `offset` is -1 with `acks=none`. `index`, `term` and `chain` are of
    its batch; `chain` proves later what the log must hold. `nodes` are those that had it on disk. `duplicate`: the
    batch had been appended by an earlier attempt.

    ```python
    receipt = await producer.send_nowait(b"third")
    assert (receipt.topic, receipt.partition, receipt.offset) == ("events", 0, 2)
    print("proof:", receipt.index, receipt.term, receipt.chain.hex())
    ```
    """

    topic: str
    partition: int
    offset: int
    index: int  # type: ignore[assignment]  # the glossary's word wins over `tuple.index`, which nobody needs here
    term: int
    chain: bytes
    durability: Durability
    nodes: tuple[str, ...]
    duplicate: bool


class _Batch:
    """Some records on their way, and what became of them."""

    __slots__ = (
        "_event",
        "builder",
        "closed_at",
        "lane",
        "may_be_in_log",
        "number",
        "outcome",
        "records",
        "request",
        "rows_bytes",
        "was_raised",
    )

    def __init__(self, lane: "_Lane") -> None:
        self.lane = lane
        # Invariant: a batch without an outcome has a builder until it is first sent, and a request from then on.
        self.builder: PayloadBuilder | None = PayloadBuilder()
        self.request: Produce | None = None
        self.records = 0
        self.rows_bytes = 0
        # Which of its lane's batches it is, in the order of sending.
        self.number = 0
        # By the event loop's clock, in seconds: its time for delivery counts from then.
        self.closed_at = math.inf
        # Whether an attempt ended without telling what it did.
        self.may_be_in_log = False
        # Set once, when all is known.
        self.outcome: Produced | LogdError | None = None
        # Whether somebody was told of its error.
        self.was_raised = False
        self._event: anyio.Event | None = None

    def finish(self, outcome: Produced | LogdError) -> None:
        self.outcome = outcome
        self.builder = self.request = None
        if self._event is not None:
            self._event.set()

    async def wait(self) -> None:
        if self.outcome is None:
            # Made at the first wait: most records have nobody who waits for them one by one.
            if self._event is None:
                self._event = anyio.Event()
            await self._event.wait()


class Acknowledgement:
    """What `send` returns: await it for the receipt of that record, or drop it.

    ```python
    acknowledgement = await producer.send(b"third")
    receipt = await acknowledgement
    assert receipt.offset == 2
    ```
    """

    __slots__ = ("_batch", "_position")

    def __init__(self, batch: _Batch, position: int) -> None:
        self._batch = batch
        self._position = position

    @property
    def done(self) -> bool:
        """Whether the receipt or the error is there.

        ```python
        acknowledgement = await producer.send(b"third")
        await producer.flush()
        assert acknowledgement.done
        ```
        """
        return self._batch.outcome is not None

    def receipt_nowait(self) -> Receipt | None:
        """The receipt, or None while the record is on its way. Raises the error it failed with.

        ```python
        acknowledgement = await producer.send(b"third")
        assert acknowledgement.receipt_nowait() is None
        await producer.flush()
        assert acknowledgement.receipt_nowait().offset == 2
        ```
        """
        outcome = self._batch.outcome
        if outcome is None:
            return None
        if isinstance(outcome, LogdError):
            self._batch.was_raised = True
            raise again(outcome)
        lane = self._batch.lane
        known = outcome.durability is not Durability.NONE
        return Receipt(
            lane.topic,
            lane.partition,
            outcome.base_offset + self._position if known else -1,
            outcome.index,
            outcome.term,
            outcome.chain,
            outcome.durability,
            outcome.nodes,
            outcome.duplicate,
        )

    async def wait(self) -> Receipt:
        """The receipt, when it comes. Raises the typed error that says why the record was not acknowledged.

        ```python
        acknowledgement = await producer.send(b"third")
        assert (await acknowledgement.wait()).offset == 2
        ```
        """
        await self._batch.wait()
        receipt = self.receipt_nowait()
        assert receipt is not None
        return receipt

    def __await__(self) -> Generator[Any, Any, Receipt]:
        return self.wait().__await__()


class _Lane:
    """One partition as a producer sees it."""

    __slots__ = (
        "backoff",
        "failure",
        "in_flight",
        "is_recovering",
        "next_number",
        "next_sequence",
        "open",
        "partition",
        "producer_epoch",
        "producer_id",
        "ready",
        "retry_at",
        "topic",
        "unanswered",
    )

    def __init__(self, topic: str, partition: int, chance: random.Random) -> None:
        self.topic = topic
        self.partition = partition
        # Invariant: a batch without an outcome is in exactly one of the three; everything in `in_flight` comes before
        # everything in `ready`, which comes before `open`. Only batches of `in_flight` have a sequence.
        self.in_flight: deque[_Batch] = deque()
        self.ready: deque[_Batch] = deque()
        self.open: _Batch | None = None
        # Who counts the sequence. None: an identity must be asked for first; 0: nobody counts.
        self.producer_id: int | None = None
        self.producer_epoch = 0
        self.next_sequence = 0
        self.next_number = 0
        # Invariant: the number of requests sent and not answered, those of batches that failed meanwhile included.
        self.unanswered = 0
        self.is_recovering = False
        # Why it recovers, and when it may go on, by the event loop's clock in seconds.
        self.failure: LogdError | None = None
        self.retry_at = 0.0
        self.backoff = Backoff(chance)

    def unfinished(self) -> list[_Batch]:
        """All batches without an outcome, in order."""
        return [*self.in_flight, *self.ready, *((self.open,) if self.open is not None else ())]

    @property
    def may_send(self) -> bool:
        """Whether one more batch may be in flight.

        What counts is the distance to the first unacknowledged one, even if those between are acknowledged: that one
        may be in the log and have to be sent again, and the node knows it only as one of the last few.
        """
        distance = self.next_number - self.in_flight[0].number if self.in_flight else 0
        return distance < BATCHES_IN_FLIGHT_MAX and self.unanswered < BATCHES_IN_FLIGHT_MAX and not self.is_recovering

    @property
    def oldest_closed_at(self) -> float:
        """When the first closed batch without an outcome was closed; infinity if there is none."""
        first = self.in_flight or self.ready
        return first[0].closed_at if first else math.inf


@dataclass(frozen=True, slots=True)
class ProducerStatistics:
    """What a producer has done so far, in records, bytes of encoded records, and batches.

    ```python
    await producer.send_nowait(b"third")
    assert producer.statistics.records_acknowledged == 1
    print(producer.statistics)
    ```
    """

    records_sent: int = 0
    records_acknowledged: int = 0
    records_failed: int = 0
    bytes_sent: int = 0
    bytes_acknowledged: int = 0
    batches_sent: int = 0
    batches_acknowledged: int = 0
    in_flight_bytes: int = 0
    """Taken and neither acknowledged nor failed: what `buffer_bytes_max` bounds."""
    retries: int = 0


class Producer:
    """Writes records to a topic: batched in the background, acknowledged one by one, idempotent.

    Arguments: `client`; `topic`, which must exist; `acks`, when a record counts as acknowledged; `linger_seconds`, how
    long a record waits for company before its batch is sent (0: until the next time other tasks run);
    `batch_bytes_max` and `batch_records_max`, when a batch is sent without waiting (a larger record has one of its
    own); `codec`, how batches are compressed; `buffer_bytes_max`, the bound on what is taken and not acknowledged;
    `idempotent`, whether what may or may not have arrived is sent again, and appended once; `name`, to be the same
    producer after a restart and fence off an older one of this name; `delivery_seconds_max`, how long a batch is tried
    before it fails.

    A record goes to the partition that is named, or that its key belongs to; without either, one partition at a time
    gets a batch. Records of one partition are appended in the order of the calls. What fails for good fails together
    with everything sent to that partition before the failure was known; records sent after that are tried anew.

    Leaving the block waits until everything is acknowledged, and raises the first error that nobody was told of;
    leaving it by an exception or a cancellation waits for nothing, and what is not acknowledged fails with
    ClientClosed. For the tasks of one event loop.

    ```python
    async with wire.Client(address, tls=tls) as client:
        await client.create_topic("orders", partitions=3)
        async with wire.Producer(client, "orders") as producer:
            for number in range(1000):
                await producer.send(b"order %d" % number, key=b"customer %d" % (number % 7))
            receipt = await producer.send_nowait(b"the last one", partition=0)
            print(receipt.partition, receipt.offset, receipt.durability)
    ```
    """

    def __init__(
        self,
        client: Client,
        topic: str,
        *,
        acks: Acks = Acks.QUORUM,
        linger_seconds: float = LINGER_SECONDS_DEFAULT,
        batch_bytes_max: int = BATCH_BYTES_MAX_DEFAULT,
        batch_records_max: int = BATCH_RECORDS_MAX_DEFAULT,
        codec: Codec = Codec.NONE,
        buffer_bytes_max: int = BUFFER_BYTES_MAX_DEFAULT,
        idempotent: bool = True,
        name: str | None = None,
        delivery_seconds_max: float = DELIVERY_SECONDS_MAX_DEFAULT,
    ) -> None:
        for word, value in (("batch_bytes_max", batch_bytes_max), ("batch_records_max", batch_records_max)):
            if value <= 0:
                raise InvalidRequest(f"{word} is {value}, but must be positive")
        if not 0 <= linger_seconds < math.inf:
            raise InvalidRequest(f"linger_seconds is {linger_seconds}, but must be 0 or more")
        if name is not None and not idempotent:
            raise InvalidRequest("a producer with a name is idempotent: the name is what its sequences are kept under")
        self.topic: Final = topic
        self._client = client
        self._acks = acks
        self._linger_seconds = linger_seconds
        self._batch_bytes_max = batch_bytes_max
        self._batch_records_max = batch_records_max
        self._codec = codec
        self._buffer_bytes_max = buffer_bytes_max
        self._is_idempotent = idempotent
        self._name = name
        self._delivery_seconds_max = delivery_seconds_max
        # What a batch is closed at, and what a record may have that gets a batch of its own.
        self._rows_bytes_max = 0
        self._record_bytes_max = 0
        self._is_open = False
        self._lanes: list[_Lane] = []
        # Where records without a key or a partition go until its batch is closed.
        self._sticky: _Lane = _Lane(topic, 0, client.chance)
        # Invariant: the sum of `rows_bytes` of all batches without an outcome; at most `buffer_bytes_max`.
        self._buffered_bytes = 0
        # Invariant: holds every open batch with the time when it is due, in the order of time: linger is one for all.
        self._lingering: deque[tuple[float, _Batch]] = deque()
        # Invariant: holds every lane that cannot go on without the task; a dict, for its order.
        self._needy: dict[_Lane, None] = {}
        self._waiting_for_room: deque[anyio.Event] = deque()
        # Made when the producer is entered: there may be no event loop yet.
        self._wake: anyio.Event
        self._scope: anyio.CancelScope
        self._room_asked: Session | None = None
        # The last batches that failed, until an error of theirs was raised: bounded, for `flush` raises only one.
        self._failed: deque[_Batch] = deque(maxlen=_FAILED_BATCHES_KEPT)
        self._expired_until = -math.inf
        self._records_since_checkpoint = 0
        self._records_closed = 0
        self._bytes_closed = 0
        self._records_acknowledged = 0
        self._records_failed = 0
        self._bytes_acknowledged = 0
        self._batches_sent = 0
        self._batches_acknowledged = 0
        self._retries = 0

    # --- life ---

    async def __aenter__(self) -> Self:
        if self._lanes:
            raise ClientClosed("a producer can be entered once")
        description = await self._client.describe_topic(self.topic)
        batch_bytes_max = self._client.limits.batch_bytes_max
        self._rows_bytes_max = self._room_for_rows(min(self._batch_bytes_max, batch_bytes_max))
        self._record_bytes_max = min(self._room_for_rows(batch_bytes_max), self._buffer_bytes_max)
        if self._rows_bytes_max <= 0 or self._buffer_bytes_max < self._rows_bytes_max:
            raise InvalidRequest("buffer_bytes_max must hold a batch, and batch_bytes_max more than a header")
        chance = self._client.chance
        lanes = [_Lane(self.topic, number, chance) for number in range(len(description.partitions))]
        identity = await self._client.init_producer(self._name) if self._is_idempotent else None
        for lane in lanes:
            lane.producer_id = identity.producer_id if identity else 0
            lane.producer_epoch = identity.producer_epoch if identity else 0
        self._lanes = lanes
        self._sticky = chance.choice(lanes)
        self._wake = anyio.Event()
        self._scope = anyio.CancelScope()
        self._is_open = True
        self._client.spawn(self._run)
        return self

    def _room_for_rows(self, batch_bytes: int) -> int:
        room = batch_bytes - HEADER_BYTES - PayloadBuilder.ARRAY_HEADER_BYTES_MAX
        if self._codec is not Codec.NONE:
            room -= (room >> _ZSTD_EXPANSION_SHIFT) + _ZSTD_FRAME_BYTES
        return room

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self.flush()
        finally:
            self._end()
            self._scope.cancel()

    def _end(self) -> None:
        self._is_open = False
        for lane in self._lanes:
            self._fail(lane, ClientClosed("the producer was closed before this was acknowledged"))
        while self._waiting_for_room:
            self._waiting_for_room.popleft().set()

    @property
    def in_flight_bytes(self) -> int:
        """What was taken and is neither acknowledged nor failed.

        ```python
        await producer.send(b"third")
        assert producer.in_flight_bytes > 0
        await producer.flush()
        assert producer.in_flight_bytes == 0
        ```
        """
        return self._buffered_bytes

    @property
    def statistics(self) -> ProducerStatistics:
        """What was done so far.

        ```python
        await producer.send_nowait(b"third")
        assert producer.statistics.batches_acknowledged == 1
        ```
        """
        in_open = [lane.open for lane in self._lanes if lane.open is not None]
        return ProducerStatistics(
            records_sent=self._records_closed + sum(batch.records for batch in in_open),
            records_acknowledged=self._records_acknowledged,
            records_failed=self._records_failed,
            bytes_sent=self._bytes_closed + sum(batch.rows_bytes for batch in in_open),
            bytes_acknowledged=self._bytes_acknowledged,
            batches_sent=self._batches_sent,
            batches_acknowledged=self._batches_acknowledged,
            in_flight_bytes=self._buffered_bytes,
            retries=self._retries,
        )

    # --- taking records ---

    def send_nowait(
        self,
        value: bytes | None,
        key: bytes | None = None,
        headers: Mapping[str, bytes] | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> Acknowledgement:
        """Take one record, or refuse it, at once.

        Arguments: `value` and `key`, bytes or None; `headers`, text to bytes; `partition`, None for the one that the
        key belongs to, or any; `timestamp_ms`, ms since 1970 UTC, None for now.

        Raises BufferFull when `buffer_bytes_max` is reached, RecordTooLarge, TopicNotFound for a partition that the
        topic does not have, ClientClosed, and TypeError or InvalidRequest for what is no record. The record was not
        taken then.

        ```python
        receipt = await producer.send_nowait(b"third", key=b"anna", headers={"trace": b"7"})
        assert receipt.offset == 2
        ```
        """
        if (
            type(value) is not bytes
            or (key is not None and type(key) is not bytes)
            or headers is not None
            or timestamp_ms is not None
        ):
            value, key, headers = checked_record(value, key, headers, timestamp_ms)
        if partition is not None:
            lane = self._lane(partition)
        elif key is None:
            lane = self._sticky
        else:
            lane = self._lanes[partition_for_key(key, len(self._lanes))]
        if timestamp_ms is None:
            timestamp_ms = time.time_ns() // 1_000_000
        batch = lane.open
        if batch is None:
            # It joins the lane with its first record.
            batch = _Batch(lane)
        builder = batch.builder
        assert builder is not None
        try:
            row = builder.encode_row(value, key, timestamp_ms, headers)
        except (OverflowError, ValueError) as error:
            raise InvalidRequest(f"a record that cannot be encoded: {error}") from error
        row_bytes = len(row)
        rows_bytes = batch.rows_bytes + row_bytes
        buffered_bytes = self._buffered_bytes + row_bytes
        is_tight = rows_bytes > self._rows_bytes_max or buffered_bytes > self._buffer_bytes_max or not self._is_open
        if is_tight and self._make_way(lane, row_bytes):
            return self.send_nowait(value, key, headers, partition, timestamp_ms)
        builder.add(row, timestamp_ms)
        position = batch.records
        if not position:
            self._begin(lane, batch)
        batch.records = position + 1
        batch.rows_bytes = rows_bytes
        self._buffered_bytes = buffered_bytes
        if position + 1 >= self._batch_records_max or rows_bytes >= self._rows_bytes_max:
            self._close(lane)
            self._flow(lane)
        return Acknowledgement(batch, position)

    def _lane(self, partition: int) -> _Lane:
        if not 0 <= partition < len(self._lanes):
            count = len(self._lanes)
            raise TopicNotFound(
                f"topic {self.topic} has no partition {partition}, "
                f"only {count} partition{'' if count == 1 else 's'}, counted from 0",
                {"topic": self.topic, "partition": partition, "partitions": count},
            )
        return self._lanes[partition]

    def _make_way(self, lane: _Lane, row_bytes: int) -> bool:
        """Say why a record cannot be taken, or close the batch that is too full for it.

        False if it gets a batch of its own, being larger than what batches are closed at.
        """
        if not self._is_open:
            raise ClientClosed("the producer is not open: use it as `async with Producer(…) as producer`")
        if row_bytes > self._record_bytes_max:
            raise RecordTooLarge(
                f"a record of {row_bytes} bytes, where a batch holds at most {self._record_bytes_max}",
                {"record_bytes": row_bytes, "record_bytes_max": self._record_bytes_max},
            )
        if self._buffered_bytes + row_bytes > self._buffer_bytes_max:
            raise BufferFull(
                f"{self._buffered_bytes} bytes await their acknowledgement, of {self._buffer_bytes_max}",
                {"buffered_bytes": self._buffered_bytes, "buffer_bytes_max": self._buffer_bytes_max},
            )
        if lane.open is None:
            return False
        self._close(lane)
        self._flow(lane)
        return True

    async def send(
        self,
        value: bytes | None,
        key: bytes | None = None,
        headers: Mapping[str, bytes] | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> Acknowledgement:
        """Take one record as `send_nowait` does, but wait for room instead of raising BufferFull.

        ```python
        acknowledgements = [await producer.send(b"%d" % number) for number in range(10)]
        assert (await acknowledgements[-1]).offset == 11
        ```
        """
        self._records_since_checkpoint += 1
        if self._records_since_checkpoint >= _RECORDS_PER_CHECKPOINT:
            self._records_since_checkpoint = 0
            await anyio.lowlevel.checkpoint()
        if not self._waiting_for_room:
            try:
                return self.send_nowait(value, key, headers, partition, timestamp_ms)
            except BufferFull:
                # Nobody can join what is waiting for company.
                self._close_all()
        turn = anyio.Event()
        self._waiting_for_room.append(turn)
        while True:
            await self._wait_for(turn)
            try:
                acknowledgement = self.send_nowait(value, key, headers, partition, timestamp_ms)
            except BufferFull:
                turn = anyio.Event()
                self._waiting_for_room.appendleft(turn)
            else:
                self._records_since_checkpoint = 0
                self._offer_room()
                return acknowledgement

    async def _wait_for(self, turn: anyio.Event) -> None:
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():
                self._offer_room()
            else:
                self._waiting_for_room.remove(turn)
            raise

    def _offer_room(self) -> None:
        # One at a time: who finds room offers what is left to the next.
        if self._waiting_for_room:
            self._waiting_for_room.popleft().set()

    async def flush(self) -> None:
        """Wait until everything sent so far is acknowledged or has failed, without lingering.

        Raises the first error since the last `flush` that no acknowledgement has raised; the acknowledgements say what
        else failed.

        ```python
        acknowledgement = await producer.send(b"third")
        await producer.flush()
        assert acknowledgement.done
        ```
        """
        unfinished = [batch for lane in self._lanes for batch in lane.unfinished()]
        self._close_all()
        await anyio.lowlevel.checkpoint()
        for batch in unfinished:
            await batch.wait()
        failures = [batch.outcome for batch in self._failed if not batch.was_raised]
        self._failed.clear()
        if failures and isinstance(failures[0], LogdError):
            raise again(failures[0])

    # --- lanes: from record to answer, without waiting ---

    def _begin(self, lane: _Lane, batch: _Batch) -> None:
        lane.open = batch
        self._lingering.append((anyio.current_time() + self._linger_seconds, batch))
        if len(self._lingering) == 1:
            self._wake.set()

    def _close(self, lane: _Lane) -> None:
        batch = lane.open
        assert batch is not None
        lane.open = None
        lane.ready.append(batch)
        batch.closed_at = anyio.current_time()
        self._records_closed += batch.records
        self._bytes_closed += batch.rows_bytes
        if lane is self._sticky:
            self._sticky = self._lanes[(lane.partition + 1) % len(self._lanes)]

    def _close_all(self) -> None:
        for lane in self._lanes:
            if lane.open is not None:
                self._close(lane)
                self._flow(lane)

    def _flow(self, lane: _Lane) -> None:
        """Send what may be sent; what is in the way of the rest is left to the task."""
        while lane.ready and lane.may_send:
            session = self._client.session_nowait()
            if session is None or lane.producer_id is None:
                self._need(lane)
                return
            if not session.has_room():
                if self._room_asked is not session:
                    self._room_asked = session
                    session.call_when_room(self._on_room)
                return
            batch = lane.ready.popleft()
            lane.in_flight.append(batch)
            batch.number = lane.next_number
            lane.next_number += 1
            assert batch.builder is not None
            data = batch.builder.build(
                codec=self._codec,
                producer_id=lane.producer_id,
                producer_epoch=lane.producer_epoch,
                base_sequence=lane.next_sequence if lane.producer_id else 0,
            )
            batch.builder = None
            batch.request = Produce(self.topic, lane.partition, self._acks, data)
            lane.next_sequence += batch.records
            self._transmit(session, batch)

    def _on_room(self) -> bool:
        self._room_asked = None
        sent = self._batches_sent
        for lane in self._lanes:
            if lane.ready:
                self._flow(lane)
        return self._batches_sent > sent

    def _need(self, lane: _Lane) -> None:
        self._needy[lane] = None
        self._wake.set()

    def _transmit(self, session: Session, batch: _Batch) -> None:
        assert batch.request is not None
        batch.lane.unanswered += 1
        self._batches_sent += 1
        try:
            session.send(batch.request, lambda outcome: self._on_outcome(batch, outcome))
        except LogdError as error:
            self._on_outcome(batch, error)

    def _on_outcome(self, batch: _Batch, outcome: Message | LogdError) -> None:
        lane = batch.lane
        lane.unanswered -= 1
        if batch.outcome is not None:
            pass  # it failed with its lane before the answer came
        elif isinstance(outcome, LogdError):
            batch.may_be_in_log |= isinstance(outcome, _OUTCOME_UNKNOWN)
            self._on_error(lane, batch, outcome)
        else:
            assert isinstance(outcome, Produced)
            lane.in_flight.remove(batch)
            lane.backoff.reset()
            lane.failure = None
            self._batches_acknowledged += 1
            self._records_acknowledged += batch.records
            self._bytes_acknowledged += batch.rows_bytes
            self._settle(batch, outcome)
        if not lane.is_recovering:
            self._flow(lane)
        elif not lane.unanswered:
            self._need(lane)

    def _on_error(self, lane: _Lane, batch: _Batch, error: LogdError) -> None:
        is_first = batch is lane.in_flight[0]
        if isinstance(error, (SequenceGap, UnknownProducer)) and not is_first:
            may_retry = True  # for want of the batch before it, whose own answer says what is to be done
        elif isinstance(error, SequenceGap):
            may_retry = lane.is_recovering
        elif isinstance(error, UnknownProducer):
            # Forgotten for its long silence: what never arrived can be sent under a new identity.
            may_retry = not any(other.may_be_in_log for other in lane.in_flight)
            lane.producer_id = None
        else:
            may_retry = error.retriable and (self._is_idempotent or not isinstance(error, _OUTCOME_UNKNOWN))
        if not may_retry:
            self._fail(lane, error)
            return
        if not lane.is_recovering:
            lane.is_recovering = True
            lane.failure = error
            lane.retry_at = anyio.current_time() + self._pause_seconds(lane, error)

    def _pause_seconds(self, lane: _Lane, error: LogdError) -> float:
        wished = error.details.get("delay_seconds") if isinstance(error, Overloaded) else None
        if isinstance(wished, (int, float)) and wished > 0:
            # Not before the server wishes, and not all at once then.
            return min(float(wished), BACKOFF_SECONDS_MAX) * self._client.chance.uniform(1.0, 1.5)
        return lane.backoff.next_seconds()

    def _fail(self, lane: _Lane, error: LogdError) -> None:
        unfinished = lane.unfinished()
        if lane.open is not None:
            self._close(lane)
        lane.in_flight.clear()
        lane.ready.clear()
        lane.is_recovering = False
        lane.retry_at = 0.0
        lane.producer_id = None if self._is_idempotent else 0
        self._needy.pop(lane, None)
        for batch in unfinished:
            self._records_failed += batch.records
            self._failed.append(batch)
            self._settle(batch, error)

    def _settle(self, batch: _Batch, outcome: Produced | LogdError) -> None:
        self._buffered_bytes -= batch.rows_bytes
        batch.finish(outcome)
        self._offer_room()

    # --- the task: what takes time ---

    async def _run(self) -> None:
        try:
            with self._scope:
                while True:
                    await self._wait_until_due()
                    self._close_due()
                    self._expire()
                    await self._mend()
        finally:
            # The client may be closed under a producer that is still open.
            self._end()

    async def _wait_until_due(self) -> None:
        due = self._lingering[0][0] if self._lingering else math.inf
        if self._buffered_bytes:
            # Only for `_expire`, which need not be exact.
            due = min(due, anyio.current_time() + _EXPIRY_INTERVAL_SECONDS)
        for lane in self._needy:
            due = min(due, lane.retry_at)
        with anyio.CancelScope(deadline=due):
            await self._wake.wait()
        self._wake = anyio.Event()

    def _close_due(self) -> None:
        now = anyio.current_time()
        while self._lingering:
            due, batch = self._lingering[0]
            if batch.lane.open is batch:
                if due > now:
                    return
                self._close(batch.lane)
                self._flow(batch.lane)
            self._lingering.popleft()

    def _expire(self) -> None:
        """Fail the lanes whose oldest batch has had its time."""
        too_old = anyio.current_time() - self._delivery_seconds_max
        if too_old < self._expired_until:
            return
        self._expired_until = too_old + _EXPIRY_INTERVAL_SECONDS
        for lane in self._lanes:
            if lane.oldest_closed_at < too_old:
                self._fail(lane, lane.failure or OutcomeUnknown(f"no answer in {self._delivery_seconds_max:g} s"))

    async def _mend(self) -> None:
        """Let the lanes go on that need a connection, an identity, or their batches sent again."""
        now = anyio.current_time()
        due = [lane for lane in self._needy if lane.retry_at <= now]
        if not due:
            return
        try:
            session = await self._client.session()
            for lane in due:
                await self._mend_lane(session, lane)
        except LogdError as error:
            for lane in due:
                if lane not in self._needy:
                    continue  # mended before, or failed meanwhile
                if not error.retriable:
                    self._fail(lane, error)
                else:
                    lane.failure = error
                    lane.retry_at = anyio.current_time() + self._pause_seconds(lane, error)

    async def _new_identity(self) -> ProducerInitialized:
        with anyio.move_on_after(_IDENTITY_SECONDS_MAX):
            return await self._client.init_producer(self._name)
        raise NotYetAvailable(f"no new identity within {_IDENTITY_SECONDS_MAX:g} s")

    async def _mend_lane(self, session: Session, lane: _Lane) -> None:
        if lane.producer_id is None:
            identity = await self._new_identity()
            lane.producer_id, lane.producer_epoch = identity.producer_id, identity.producer_epoch
            lane.next_sequence = 0
            for batch in lane.in_flight:
                assert batch.request is not None
                data = renumbered(
                    batch.request.batch, identity.producer_id, identity.producer_epoch, lane.next_sequence
                )
                batch.request = dataclasses.replace(batch.request, batch=data)
                lane.next_sequence += batch.records
        if lane not in self._needy:
            return  # it failed meanwhile
        del self._needy[lane]
        lane.retry_at = 0.0
        lane.is_recovering = False
        for batch in list(lane.in_flight):
            self._retries += 1
            self._transmit(session, batch)
            if lane.is_recovering or batch.outcome is not None:
                return
        self._flow(lane)


def renumbered(batch: bytes, producer_id: int, producer_epoch: int, base_sequence: int) -> bytes:
    """The same batch under another identity. Its digest covers the payload only, so nothing else changes."""
    fields = list(PRODUCER_PART.unpack_from(batch))
    fields[3], fields[6], fields[7] = producer_epoch, producer_id, base_sequence
    return PRODUCER_PART.pack(*fields) + batch[PRODUCER_PART.size :]


def checked_record(
    value: object, key: object, headers: Mapping[str, bytes] | None, timestamp_ms: object
) -> tuple[bytes | None, bytes | None, dict[str, bytes] | None]:
    """The parts of a record in the types of the format. Raises TypeError, or InvalidRequest for a time out of range."""
    if headers is not None:
        headers = dict(headers)
        for name, content in headers.items():
            if type(name) is not str or type(content) is not bytes:
                raise TypeError(f"headers are text to bytes, not {type(name).__name__} to {type(content).__name__}")
    if timestamp_ms is not None and (type(timestamp_ms) is not int or abs(timestamp_ms) > _TIMESTAMP_MS_MAX):
        raise InvalidRequest(f"timestamp_ms is {timestamp_ms!r}, but is a whole number of 64 bits")
    return _bytes_or_none("value", value), _bytes_or_none("key", key), headers


def _bytes_or_none(word: str, content: object) -> bytes | None:
    if content is None or type(content) is bytes:
        return content
    if isinstance(content, (bytes, bytearray, memoryview)):
        return bytes(content)
    raise TypeError(f"{word} is bytes or None, not {type(content).__name__}: encode it first")
