"""The node's side of the service's ports: partitions and the cluster, as the doors see them.

For: the service, through `logd.service.ports`. Must not know: connections, or how a round is made. The one idea: a
write goes to the actor, a read goes straight to the log's files, and both see the same two numbers: the high watermark,
which says what may be read, and how far the segments are written, which a read waits for.
"""

import errno
from collections.abc import Mapping, Sequence
from typing import Final

import trio

from logd.meta.commands import Command
from logd.meta.state import META_GROUP, Outcome, Topic
from logd.node.actor import RaftActor
from logd.replica.types import Proposal
from logd.service.ports import Bounds, PartitionSize, ProduceReply, Slice
from logd.store.errors import ReadOutdated
from logd.store.log import Log
from wire.errors import (
    CorruptBatch,
    LogdError,
    NotLeader,
    NotYetAvailable,
    OffsetOutOfRange,
    Overloaded,
    TopicNotFound,
)
from wire.record import BatchHeader, check_alone, split_batches
from wire.types import Acks

# A report names one batch; what is looked at again for one report is bounded all the same.
DAMAGE_READ_BYTES: Final = 1 << 20
DAMAGE_READS_MAX: Final = 8


class NodePartition:
    """One partition whose replica is here.

    Arguments: `reads`, the limiter of reads that miss the page cache.
    """

    def __init__(self, actor: RaftActor, group: int, reads: trio.CapacityLimiter, node: str) -> None:
        self._actor = actor
        self._group = group
        self._reads = reads
        self._node = node

    def produce(
        self, batch: bytes, header: BatchHeader, acks: Acks, expected_offset: int | None, reply: ProduceReply
    ) -> None:
        """Put the batch into the actor's queue."""
        self._actor.propose(self._group, Proposal(batch, header, acks, expected_offset, reply))

    def bounds(self) -> Bounds:
        """The readable range. What is committed and not in its segment yet counts: a read of it waits a moment."""
        log = self._log()
        high_watermark = self._actor.driver.high_watermark(self._group)
        if high_watermark is None:
            lost = self._actor.driver.lost(self._group)
            if lost:
                raise CorruptBatch(lost, {"group": self._group})
            raise NotYetAvailable("no commit in the current term is known yet", {"delay_seconds": 0.05})
        return Bounds(log.log_start_offset, high_watermark)

    async def read(self, offset: int, bytes_max: int) -> Slice:
        """Read within the readable range: from memory if it is there, else in a thread."""
        while True:
            bounds = self.bounds()
            if offset < bounds.log_start_offset:
                # Retention was faster. What is there now must not be taken for what was asked for.
                raise OffsetOutOfRange(
                    f"offset {offset} is not in [{bounds.log_start_offset}, {bounds.high_watermark}]",
                    {**bounds._asdict(), "offset": offset},
                )
            if offset >= bounds.high_watermark:
                return Slice(b"", offset)
            log = self._log()
            if log.written_next_offset <= offset:
                # Whoever was told an offset finds it: the answer to a produce may be faster than the segment.
                await self._actor.wait_arrival(self._group)
                continue
            plan = log.plan_read(offset, bounds.high_watermark, bytes_max)
            try:
                result = plan.run(nowait=True)
                if result is not None:
                    # A read from memory takes no time that anybody waits for, but readers must not starve the others.
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    return Slice(result.batches, result.next_offset)
                result = await trio.to_thread.run_sync(plan.run, limiter=self._reads)
            except ReadOutdated:
                continue  # retention or a truncation gave the segment up: look at the bounds again
            except OSError as error:
                raise self._unreadable(error, offset, offset + 1) from error
            assert result is not None
            return Slice(result.batches, result.next_offset)

    async def wait_beyond(self, offset: int) -> None:
        """Wait until a record at `offset` is readable; raises what `bounds` raises."""
        while min(self.bounds().high_watermark, self._log().written_next_offset) <= offset:
            await self._actor.wait_arrival(self._group)

    async def offset_at(self, timestamp_ms: int) -> int:
        """Look a time up in the indexes."""
        # As in `read`: what is committed counts, and the indexes know of it once it is in its segment.
        await self.wait_beyond(self.bounds().high_watermark - 1)
        while True:
            log = self._log()
            try:
                found = await trio.to_thread.run_sync(log.offset_at(timestamp_ms).run, limiter=self._reads)
            except ReadOutdated:
                continue  # as in `read`
            except OSError as error:
                raise self._unreadable(error, log.log_start_offset, log.written_next_offset) from error
            return log.written_next_offset if found is None else found

    async def confirm_damage(self, base_offset: int, next_offset: int) -> bool:
        """Read a reported range from the disk and verify every batch in it."""
        bounds = self.bounds()
        end = min(next_offset, bounds.high_watermark)
        position = max(base_offset, bounds.log_start_offset)
        for _ in range(DAMAGE_READS_MAX):
            if position >= end:
                break
            try:
                part = await self.read(position, DAMAGE_READ_BYTES)
                for batch in split_batches(part.batches):
                    check_alone(batch)
            except CorruptBatch:
                return True
            position = max(part.next_offset, position + 1)
        return False

    def leader(self) -> tuple[str | None, int]:
        """This node, once it is ready."""
        driver = self._actor.driver
        ready = driver.high_watermark(self._group) is not None
        return (self._node if ready else None), driver.term(self._group)

    def size(self) -> PartitionSize:
        log = self._log()
        return PartitionSize(log.end.next_offset, log.retained_bytes, len(log.segments))

    def _unreadable(self, error: OSError, base_offset: int, next_offset: int) -> LogdError:
        """What a reader is told when the disk does not give the bytes. Other ranges are served on."""
        self._actor.report_unreadable(self._group, error)
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            return Overloaded(f"the node is short of something: {error.strerror}", {"delay_seconds": 1.0})
        return CorruptBatch(
            f"the disk does not give what is stored there: {error.strerror}",
            {"base_offset": base_offset, "next_offset": next_offset},
        )

    def _log(self) -> Log:
        log = self._actor.store.groups.get(self._group)
        if log is None:
            raise NotLeader("this partition is being set up here", {"group": self._group})
        return log


class NodeCluster:
    """The cluster of one node.

    Arguments: `address`, where clients reach this node.
    """

    def __init__(self, node: str, address: tuple[str, int], actor: RaftActor, reads: trio.CapacityLimiter) -> None:
        self.node = node
        self.address = address
        self._actor = actor
        self._reads = reads
        # A partition's object costs nothing to keep, and a lookup for each produce would cost something to make.
        self._partitions: dict[int, NodePartition] = {}

    def topics(self) -> Mapping[str, Topic]:
        """The state of group 0."""
        return self._actor.driver.meta.topics

    def partition(self, topic: str, partition: int) -> NodePartition:
        """Raises TopicNotFound, or NotLeader while the partition is being set up."""
        found = self.topics().get(topic)
        if found is None:
            raise TopicNotFound(f"there is no topic {topic}", {"topic": topic})
        if partition >= len(found.groups):
            raise TopicNotFound(
                f"topic {topic} has {len(found.groups)} partitions, there is no partition {partition}",
                {"topic": topic, "partition": partition, "partitions": len(found.groups)},
            )
        group = found.groups[partition]
        if not self._actor.driver.knows(group):
            raise NotLeader(f"partition {topic}/{partition} is being set up", {"delay_seconds": 0.05})
        known = self._partitions.get(group)
        if known is None:
            known = self._partitions[group] = NodePartition(self._actor, group, self._reads, self.node)
        return known

    async def command(self, command: Command) -> Outcome:
        """Have group 0 decide."""
        return await self._actor.command(command)

    async def wait_ready(self, groups: Sequence[int]) -> None:
        """Wait until each group has a commit in its term, or left the cluster's state."""
        driver = self._actor.driver
        wanted = set(groups)
        while True:
            wanted &= {META_GROUP, *driver.meta.groups()}
            wanted = {group for group in wanted if driver.high_watermark(group) is None and not driver.lost(group)}
            if not wanted:
                return
            await self._actor.wait_change()
