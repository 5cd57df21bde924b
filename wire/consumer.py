"""The consumer: batches in, verified; records out, in order, from any offset.

For: programs that read. Must not know: sockets, or who wrote. The one idea: the server sends ahead within a credit of
bytes, and credit comes back as batches are handed out. So there is always something to decode, memory is bounded, and
a record costs no more than its share of decoding one batch.
"""

import contextlib
import math
import operator
import random
from collections import deque
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Final, NamedTuple, Self

import anyio
import anyio.lowlevel

from wire.client import BACKOFF_SECONDS_MAX, Backoff, Client, Session, again
from wire.errors import (
    ClientClosed,
    CorruptBatch,
    InvalidRequest,
    LogdError,
    Overloaded,
    TopicNotFound,
)
from wire.messages import Delivery, Message, ReportDamage, Subscribe, Subscribed
from wire.record import (
    BatchHeader,
    check_alone,
    check_in_place,
    decode_header,
    decode_records,
    split_batches,
)
from wire.types import Anchor, Record

# Several deliveries in flight over any link, and still little memory.
CREDIT_BYTES_DEFAULT: Final = 8 << 20
# With many partitions each still gets room for something; a delivery may exceed it by one batch.
_CREDIT_BYTES_MIN: Final = 64 << 10
# What a node may take to look at its disk; the reader's error waits for it, so that a second try finds it repaired.
_REPORT_SECONDS_MAX: Final = 10.0
# A subscription that lasted so long works, also where there was nothing to deliver. It is the longest pause: whoever
# ends a subscription again and again is not asked more often for having kept it a while.
_STEADY_SECONDS: Final = BACKOFF_SECONDS_MAX
# How long a lost subscription is tried again before its error is raised: longer than any restart or election takes.
RECOVERY_SECONDS_MAX: Final = 120.0


class Batch(NamedTuple):
    """One batch as the log holds it, decoded. `records` begins at the offset that was asked for.

    ```python
    batch = await consumer.next_batch()
    assert batch.header.next_offset == batch.records[-1].offset + 1
    ```
    """

    partition: int
    header: BatchHeader
    records: list[Record]
    high_watermark: int


class _Lane:
    """One partition as a consumer sees it."""

    __slots__ = (
        "backoff",
        "batches",
        "credit_owed",
        "deliveries",
        "delivery_end",
        "end_offset",
        "failed_since",
        "failure",
        "high_watermark",
        "in_line",
        "is_seam",
        "partition",
        "position",
        "previous",
        "request_id",
        "retry_at",
        "session",
        "subscribe_offset",
        "subscribed_at",
    )

    def __init__(self, partition: int, offset: int, chance: random.Random) -> None:
        self.partition = partition
        # Invariant: position <= subscribe_offset. The next offset to hand out, and the next to ask a server for: the
        # difference is in `batches` and `deliveries`.
        self.position = offset
        self.subscribe_offset = offset
        self.deliveries: deque[Delivery] = deque()
        # The rest of the delivery that is being handed out.
        self.batches: Iterator[memoryview] = iter(())
        # The batch before, to compare the next one with, and whether a seam between deliveries lies between them. A
        # delivery begins at an offset: the batches without records that stand just before it may be left out.
        self.previous: BatchHeader | None = None
        self.is_seam = True
        # Where the delivery ends that is being handed out.
        self.delivery_end = offset
        # Invariant: both are None while there is no subscription.
        self.session: Session | None = None
        self.request_id: int | None = None
        self.credit_owed = 0
        self.high_watermark = 0
        # Where to stop, if the consumer does not follow; known with the first answer.
        self.end_offset: float | None = None
        # Why it has no subscription, since when, and when to try again, by the event loop's clock in seconds.
        self.failure: LogdError | None = None
        self.failed_since = math.inf
        self.retry_at = 0.0
        # Begins anew with what shows that the subscription works: a delivery, or that it lasted.
        self.backoff = Backoff(chance)
        # When the server took the subscription, by the same clock; infinite while it did not.
        self.subscribed_at = math.inf
        # Whether it stands in the consumer's line of lanes that have something.
        self.in_line = False

    @property
    def is_finished(self) -> bool:
        return self.end_offset is not None and self.position >= self.end_offset


class Consumer:
    """Reads the records of a topic: in order within each partition, verified, from any offset, once or for ever.

    Arguments: `client`; `topic`; `partition`, one number or None for all; `start`, an end of the readable range or an
    offset (of each partition); `start_time_ms`, instead of it the first batch appended at or after a time in ms since
    1970 UTC; `credit_bytes`, how much the server may send ahead; `follow`, whether to wait for new records, or to end
    at the high watermark seen at the start; `verify`, whether to check digests and chains.

    Iterate over it for records, or over `batches()` for whole batches. A lost connection is made again and nothing is
    handed out twice. These errors come out of the iteration, which may be gone on with after each:

    - CorruptBatch: bytes that do not verify; it was reported to the node. The consumer still stands before the batch.
    - UndecodableBatch: a batch that verifies and holds no records of this format. The consumer stands past it.
    - OffsetOutOfRange: retention has overtaken the consumer; the details hold the range.
    - ConnectionFailed and the other retriable ones: the way back was not found within `RECOVERY_SECONDS_MAX`.

    A consumer is for one task at a time.

    ```python
    async with wire.Client(address, tls=tls) as client:
        await client.create_topic("events", partitions=2)
        async with wire.Producer(client, "events") as producer:
            await producer.send(b"something happened")
        async with wire.Consumer(client, "events", follow=False) as consumer:
            async for record in consumer:
                print(record.partition, record.offset, record.value)
    ```
    """

    def __init__(
        self,
        client: Client,
        topic: str,
        *,
        partition: int | None = None,
        start: Anchor | int = Anchor.START,
        start_time_ms: int | None = None,
        credit_bytes: int = CREDIT_BYTES_DEFAULT,
        follow: bool = True,
        verify: bool = True,
    ) -> None:
        if credit_bytes <= 0:
            raise InvalidRequest(f"credit_bytes is {credit_bytes}, but must be positive")
        self.topic: Final = topic
        self._client = client
        self._partition = partition
        self._start = start
        self._start_time_ms = start_time_ms
        self._credit_bytes = credit_bytes
        self._follow = follow
        self._verify = verify
        self._is_open = False
        self._lanes: dict[int, _Lane] = {}
        # Invariant: holds exactly the lanes that have batches to hand out, in the order of their turns.
        self._line: deque[_Lane] = deque()
        # Invariant: holds exactly the lanes without a subscription that are not finished.
        self._lapsed: deque[_Lane] = deque()
        # Made when the consumer is entered: there may be no event loop yet.
        self._wake: anyio.Event
        # What was found and is still to be told.
        self._damage: tuple[_Lane, CorruptBatch] | None = None
        # The batch whose records are handed out one by one, and those that are still to come.
        self._current: Batch | None = None
        self._rest: Iterator[Record] = iter(())

    # --- life ---

    async def __aenter__(self) -> Self:
        if self._lanes:
            raise ClientClosed("a consumer can be entered once")
        if self._partition is None:
            partitions = range(len((await self._client.describe_topic(self.topic)).partitions))
        else:
            partitions = range(self._partition, self._partition + 1)
        for partition in partitions:
            self._lanes[partition] = _Lane(partition, await self._start_offset(partition), self._client.chance)
        if not self._lanes:
            raise TopicNotFound(f"topic {self.topic!r} has no partitions")
        self._credit_bytes = max(self._credit_bytes // len(self._lanes), _CREDIT_BYTES_MIN)
        self._lapsed.extend(self._lanes.values())
        self._wake = anyio.Event()
        self._is_open = True
        return self

    async def _start_offset(self, partition: int) -> int:
        if self._start_time_ms is None and not isinstance(self._start, Anchor):
            return self._start
        at = self._start if self._start_time_ms is None else self._start_time_ms
        return (await self._client.list_offsets(self.topic, partition, at)).offset

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_open = False
        for lane in self._lanes.values():
            self._unsubscribe(lane)
        self._wake.set()

    # --- where it stands ---

    def position(self, partition: int) -> int:
        """The offset after the last record that was handed out of this partition; before that, where it starts.

        ```python
        record = await anext(consumer)
        assert consumer.position(0) == record.offset + 1
        ```
        """
        position = self._lane(partition).position
        if self._current is not None and self._current.partition == partition:
            # Offsets are dense: what is left of the batch is what lies between.
            position -= operator.length_hint(self._rest)
        return position

    def high_watermark(self, partition: int) -> int:
        """The partition's high watermark as last heard of; 0 before that.

        ```python
        record = await anext(consumer)
        print("behind by", consumer.high_watermark(record.partition) - consumer.position(record.partition))
        ```
        """
        return self._lane(partition).high_watermark

    def _lane(self, partition: int) -> _Lane:
        lane = self._lanes.get(partition)
        if lane is None:
            raise TopicNotFound(f"this consumer does not read partition {partition} of topic {self.topic!r}")
        return lane

    # --- handing out ---

    def __aiter__(self) -> AsyncIterator[Record]:
        return self

    async def __anext__(self) -> Record:
        while True:
            # The fast path is all there is to most records; a generator would be faster by a little, and warn of
            # every `break` under Trio.
            for record in self._rest:
                return record
            batch = await self._next()
            if batch is None:
                raise StopAsyncIteration
            self._current = batch
            self._rest = iter(batch.records)

    def batches(self) -> AsyncIterator[Batch]:
        """Iterate over whole batches: what is left of one whose records were handed out singly comes first.

        ```python
        async for batch in consumer.batches():
            print(batch.partition, batch.header.base_offset, len(batch.records))
        ```
        """
        return _Batches(self)

    async def next_batch(self) -> Batch | None:
        """The next batch with records; None at the end of a consumer that does not follow.

        ```python
        while (batch := await consumer.next_batch()) is not None:
            print(batch.partition, [record.value for record in batch.records])
        ```
        """
        left = list(self._rest)
        current, self._current = self._current, None
        if left and current is not None:
            return current._replace(records=left)
        return await self._next()

    def next_batch_nowait(self) -> Batch | None:
        """A batch that has come already; None if there is none, or if something else is to be done first.

        ```python
        batch = consumer.next_batch_nowait() or await consumer.next_batch()
        assert batch.records[0].value == b"first"
        ```
        """
        if not self._is_open or self._damage is not None or operator.length_hint(self._rest):
            return None
        self._current = None
        while self._line:
            lane = self._line[0]
            try:
                batch = self._take(lane)
            except CorruptBatch as error:
                # What is to be done about it takes time.
                self._damage = lane, error
                return None
            if batch is not None:
                self._line.rotate(-1)
                return batch
        return None

    async def _next(self) -> Batch | None:
        # Once for each batch: what is there already must not keep other tasks, such as the one that reads, from it.
        await anyio.lowlevel.checkpoint()
        while True:
            if not self._is_open:
                raise ClientClosed("the consumer is not open: use it as `async with Consumer(…) as consumer`")
            batch = self.next_batch_nowait()
            if batch is not None:
                return batch
            if self._damage is not None:
                (lane, damage), self._damage = self._damage, None
                raise await self._on_damage(lane, damage) from damage
            if all(lane.is_finished for lane in self._lanes.values()):
                return None
            now = anyio.current_time()
            due = next((lane for lane in self._lapsed if lane.retry_at <= now), None)
            if due is not None:
                await self._mend(due)
                continue
            with anyio.CancelScope(deadline=min((lane.retry_at for lane in self._lapsed), default=math.inf)):
                await self._wake.wait()
                self._wake = anyio.Event()

    def _take(self, lane: _Lane) -> Batch | None:
        """The lane's next batch with records, or None: then it has left the line.

        Raises CorruptBatch, with the consumer as it was, or UndecodableBatch, with the batch skipped.
        """
        while not lane.is_finished:
            view = next(lane.batches, None)
            if view is None:
                if not lane.deliveries:
                    break
                delivery = lane.deliveries.popleft()
                lane.is_seam = True
                lane.delivery_end = delivery.next_offset
                lane.batches = split_batches(delivery.batches)
                self._give_credit(lane, len(delivery.batches))
                continue
            header = self._check(lane, view)
            lane.previous = header
            lane.is_seam = False
            wanted = lane.position
            lane.position = max(wanted, header.next_offset)
            if header.is_control or header.next_offset <= wanted:
                continue
            records = decode_records(header, view, lane.partition)
            if header.base_offset < wanted:
                del records[: wanted - header.base_offset]
            return Batch(lane.partition, header, records, lane.high_watermark)
        lane.in_line = False
        self._line.popleft()
        if lane.is_finished:
            self._unsubscribe(lane)
        return None

    def _check(self, lane: _Lane, view: memoryview) -> BatchHeader:
        if not self._verify:
            return decode_header(view)
        header = check_alone(view)
        previous = lane.previous
        if previous is not None and (header.index == previous.index + 1 or not lane.is_seam):
            check_in_place(header, previous)
        elif header.base_offset > lane.position:
            raise CorruptBatch(f"offset {lane.position} was asked for, and {header.base_offset} is the first to come")
        return header

    def _give_credit(self, lane: _Lane, consumed_bytes: int) -> None:
        lane.credit_owed += consumed_bytes
        # In few and large pieces, and early enough that the server never runs out of it.
        if 4 * lane.credit_owed >= self._credit_bytes and lane.session is not None and lane.request_id is not None:
            lane.session.credit(lane.request_id, lane.credit_owed)
            lane.credit_owed = 0

    # --- subscriptions ---

    def _subscribe(self, lane: _Lane, session: Session) -> None:
        lane.session = session
        lane.credit_owed = 0
        lane.subscribed_at = math.inf
        message = Subscribe(self.topic, lane.partition, lane.subscribe_offset, self._credit_bytes)
        lane.request_id = session.send(message, lambda outcome: self._on_message(lane, outcome))

    def _on_message(self, lane: _Lane, outcome: Message | LogdError) -> None:
        if isinstance(outcome, Delivery):
            lane.deliveries.append(outcome)
            lane.subscribe_offset = outcome.next_offset
            lane.high_watermark = outcome.high_watermark
            self._on_success(lane)
            if not lane.in_line:
                lane.in_line = True
                self._line.append(lane)
        elif isinstance(outcome, Subscribed):
            lane.high_watermark = outcome.high_watermark
            # No success yet: a node may take every subscription and end every session at once.
            lane.subscribed_at = anyio.current_time()
            if lane.end_offset is None:
                lane.end_offset = math.inf if self._follow else outcome.high_watermark
        elif isinstance(outcome, LogdError):
            lane.session = lane.request_id = None
            if anyio.current_time() - lane.subscribed_at >= _STEADY_SECONDS:
                self._on_success(lane)
            self._fail(lane, outcome)
            if not lane.is_finished:
                self._lapsed.append(lane)
        self._wake.set()

    def _unsubscribe(self, lane: _Lane) -> None:
        if lane.session is not None and lane.request_id is not None:
            lane.session.forget(lane.request_id)
        lane.session = lane.request_id = None

    def _on_success(self, lane: _Lane) -> None:
        lane.failed_since = math.inf
        lane.backoff.reset()

    def _fail(self, lane: _Lane, failure: LogdError) -> None:
        now = anyio.current_time()
        lane.failure = failure
        lane.failed_since = min(lane.failed_since, now)
        lane.retry_at = now + lane.backoff.next_seconds() if failure.retriable else now

    async def _mend(self, lane: _Lane) -> None:
        """Subscribe again, or raise what is in the way of it."""
        if lane.is_finished:
            self._lapsed.remove(lane)
            return
        failure, lane.failure = lane.failure, None
        if failure is not None and not (failure.retriable and self._may_wait(lane, failure)):
            # Iterating again tries again.
            lane.failed_since = math.inf
            raise again(failure)
        try:
            self._subscribe(lane, await self._client.session())
        except LogdError as error:
            self._fail(lane, error)
        else:
            self._lapsed.remove(lane)

    def _may_wait(self, lane: _Lane, failure: LogdError) -> bool:
        # More partitions than a connection may have subscriptions: its turn comes when another one is finished.
        waits_for_others = (
            isinstance(failure, Overloaded)
            and not self._follow
            and any(other.session is not None for other in self._lanes.values())
        )
        return waits_for_others or anyio.current_time() - lane.failed_since <= RECOVERY_SECONDS_MAX

    async def _on_damage(self, lane: _Lane, error: CorruptBatch) -> CorruptBatch:
        """Tell the node, and stand before the damage; returns the error to raise."""
        problem = str(error)
        end_offset = max(lane.delivery_end, lane.position + 1)
        self._unsubscribe(lane)
        lane.batches = iter(())
        lane.deliveries.clear()
        lane.subscribe_offset = lane.position
        lane.in_line = False
        self._line.remove(lane)
        self._lapsed.append(lane)
        with anyio.move_on_after(_REPORT_SECONDS_MAX), contextlib.suppress(LogdError):
            # The error goes to the caller in any case.
            await self._client.request(ReportDamage(self.topic, lane.partition, lane.position, end_offset, problem))
        return CorruptBatch(
            f"{self.topic}/{lane.partition}: what follows offset {lane.position} does not verify: {problem}",
            {
                "topic": self.topic,
                "partition": lane.partition,
                "base_offset": lane.position,
                "next_offset": end_offset,
            },
        )


class _Batches:
    """A consumer seen as its batches."""

    __slots__ = ("_consumer",)

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self

    async def __anext__(self) -> Batch:
        batch = await self._consumer.next_batch()
        if batch is None:
            raise StopAsyncIteration
        return batch
