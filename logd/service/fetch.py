"""Reading: one fetch, a subscription, and where to start.

For: every door. Must not know: connections, files, the Raft actor (a read never enters it). The one idea: a read is a
slice of stored bytes between an offset and the high watermark; at the end it waits for the watermark to move, and
never polls.
"""

from dataclasses import dataclass

import trio

from logd.service import authorization
from logd.service.ports import Authorizer, Bounds, Cluster, Partition
from wire.errors import InvalidRequest, OffsetOutOfRange
from wire.messages import DamageReported, Delivery, Fetch, Fetched, ListedOffsets, ListOffsets, ReportDamage, Subscribe
from wire.types import Anchor


@dataclass(frozen=True, slots=True)
class FetchService:
    """Arguments: `fetch_bytes_max` and `fetch_wait_seconds_max`, the bounds of one answer."""

    cluster: Cluster
    authorizer: Authorizer
    fetch_bytes_max: int
    fetch_wait_seconds_max: float

    async def fetch(self, principal: str, request: Fetch) -> Fetched:
        """Batches from an offset on, waiting at the end of the log as long as the request allows.

        Raises OffsetOutOfRange, NotYetAvailable, CorruptBatch, TopicNotFound or NotAuthorized.
        """
        await self.wait_readable(principal, request)
        return await self.read(principal, request)

    async def wait_readable(self, principal: str, request: Fetch) -> None:
        """The first half of `fetch`, which may take long and holds nothing; raises the same."""
        partition = self._open(principal, request.topic, request.partition)
        bounds = _check_range(partition, request.offset)
        if request.offset == bounds.high_watermark and request.max_wait_ms:
            with trio.move_on_after(min(request.max_wait_ms / 1000, self.fetch_wait_seconds_max)):
                await partition.wait_beyond(request.offset)

    async def read(self, principal: str, request: Fetch) -> Fetched:
        """The second half of `fetch`: what is there now, which is in memory until it is sent; raises the same."""
        partition = self._open(principal, request.topic, request.partition)
        bounds = _check_range(partition, request.offset)
        if request.offset == bounds.high_watermark:
            return Fetched(b"", request.offset, *bounds)
        batches, next_offset = await partition.read(request.offset, min(request.max_bytes, self.fetch_bytes_max))
        return Fetched(batches, next_offset, *partition.bounds())  # type: ignore[arg-type]  # encoded as they are

    def subscribe(self, principal: str, request: Subscribe) -> tuple[Bounds, "Subscription"]:
        """Open a subscription; raises what `fetch` raises."""
        partition = self._open(principal, request.topic, request.partition)
        bounds = _check_range(partition, request.offset)
        return bounds, Subscription(partition, request.offset, request.credit_bytes, self.fetch_bytes_max)

    async def list_offsets(self, principal: str, request: ListOffsets) -> ListedOffsets:
        """Where to start reading."""
        partition = self._open(principal, request.topic, request.partition)
        bounds = partition.bounds()
        match request.at:
            case Anchor.START:
                offset = bounds.log_start_offset
            case Anchor.END:
                offset = bounds.high_watermark
            case timestamp_ms:
                found = await partition.offset_at(timestamp_ms)
                offset = min(max(found, bounds.log_start_offset), bounds.high_watermark)
        return ListedOffsets(offset, *bounds)

    async def report_damage(self, principal: str, request: ReportDamage) -> DamageReported:
        """A reader found a range that does not verify: look at it again."""
        partition = self._open(principal, request.topic, request.partition)
        if request.base_offset >= request.next_offset:
            raise InvalidRequest("ReportDamage: base_offset is not below next_offset")
        _check_range(partition, request.base_offset)
        return DamageReported(await partition.confirm_damage(request.base_offset, request.next_offset))

    def _open(self, principal: str, topic: str, partition: int) -> Partition:
        self.authorizer.check(principal, authorization.CONSUME, topic)
        return self.cluster.partition(topic, partition)


def _check_range(partition: Partition, offset: int) -> Bounds:
    bounds = partition.bounds()
    if not bounds.log_start_offset <= offset <= bounds.high_watermark:
        raise OffsetOutOfRange(
            f"offset {offset} is not in [{bounds.log_start_offset}, {bounds.high_watermark}]",
            {**bounds._asdict(), "offset": offset},
        )
    return bounds


class Subscription:
    """A running subscription: what is to be sent, as credit and records come. `wait`, then `read`, and so on.

    Invariant: what was delivered never exceeds the credit given by more than one batch.
    """

    def __init__(self, partition: Partition, offset: int, credit_bytes: int, delivery_bytes_max: int) -> None:
        self._partition = partition
        self._offset = offset
        self._credit_bytes = credit_bytes
        self._delivery_bytes_max = delivery_bytes_max
        self._credited = trio.Event()

    def add_credit(self, credit_bytes: int) -> None:
        """More room. Credit is bounded by what a u32 holds, so that a client cannot grow a number for ever."""
        self._credit_bytes = min(self._credit_bytes + credit_bytes, 2**32 - 1)
        self._credited.set()

    async def wait(self) -> None:
        """Wait until there is credit, and a record to send. Raises what `fetch` raises; it is over then."""
        while self._credit_bytes <= 0:
            self._credited = trio.Event()
            await self._credited.wait()
        await self._partition.wait_beyond(self._offset)

    async def read(self) -> Delivery | None:
        """What is to be sent next; None when there is nothing after all. Raises what `fetch` raises."""
        _check_range(self._partition, self._offset)
        bytes_max = min(self._credit_bytes, self._delivery_bytes_max)
        batches, next_offset = await self._partition.read(self._offset, bytes_max)
        if not batches:
            return None
        self._offset = next_offset
        self._credit_bytes -= len(batches)
        return Delivery(batches, next_offset, *self._partition.bounds())  # type: ignore[arg-type]  # as in fetch
