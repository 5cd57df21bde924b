"""The ports of `logd.service` in memory: partitions that are lists of batches, and a cluster that decides at once.

They keep the contracts that `logd.service.ports` states: a reply comes exactly once, a read gives whole contiguous
batches and at least one if there is any, `wait_beyond` returns when a record is readable or raises what `bounds` does.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import trio

from logd.meta.commands import Command
from logd.meta.state import MetaState, Outcome, Topic, TopicChanged, TopicRemoved
from logd.service.ports import Bounds, PartitionSize, ProduceReply, Slice
from wire.errors import LogdError, NotLeader, NotYetAvailable, OffsetMismatch, TopicNotFound
from wire.messages import Produced
from wire.record import BatchHeader, Stamp, StampedBatch, check_produced, encode_batch, stamp
from wire.types import Acks, Durability

NODE = "node-1"
TERM = 3
TIME_MS = 1_700_000_000_000


class Held(NamedTuple):
    """A produced batch whose answer is held back."""

    batch: bytes
    reply: ProduceReply
    expected_offset: int | None


class FakePartition:
    """A partition; batch n was appended at `TIME_MS + 1000 n`.

    With `holds`, produced batches wait in `held` until `release`. `error` is raised by `bounds` if it is set.
    """

    def __init__(self) -> None:
        self.batches: list[StampedBatch] = []
        self.log_start_offset = 0
        self.holds = False
        self.held: list[Held] = []
        self.error: LogdError | None = None
        self.damaged: set[int] = set()
        # What reads were asked for, and how many are under way at once.
        self.reads: list[tuple[int, int]] = []
        self.reading = 0
        self.reading_max = 0
        self._lot = trio.lowlevel.ParkingLot()

    # --- The port -----------------------------------------------------------------------------------------------------

    def produce(
        self, batch: bytes, header: BatchHeader, acks: Acks, expected_offset: int | None, reply: ProduceReply
    ) -> None:
        assert header == check_produced(batch)
        if self.error is not None:
            reply(self.error)
        elif acks is Acks.NONE:
            reply(Produced(0, 0, 0, b"", Durability.NONE, ()))
            self.append(batch)
        elif self.holds:
            self.held.append(Held(batch, reply, expected_offset))
        else:
            self._answer(Held(batch, reply, expected_offset))

    def bounds(self) -> Bounds:
        if self.error is not None:
            raise self.error
        return Bounds(self.log_start_offset, self.end)

    async def read(self, offset: int, bytes_max: int) -> Slice:
        self.reads.append((offset, bytes_max))
        self.reading += 1
        self.reading_max = max(self.reading_max, self.reading)
        try:
            await trio.lowlevel.checkpoint()
        finally:
            self.reading -= 1
        self.bounds()
        parts: list[bytes] = []
        next_offset = offset
        for batch in self.batches:
            if batch.header.next_offset <= offset:
                continue
            if parts and sum(map(len, parts)) + batch.batch_bytes > bytes_max:
                break
            parts.append(batch.to_bytes())
            next_offset = batch.header.next_offset
        return Slice(b"".join(parts), next_offset)

    async def wait_beyond(self, offset: int) -> None:
        while self.bounds().high_watermark <= offset:
            await self._lot.park()

    async def offset_at(self, timestamp_ms: int) -> int:
        await trio.lowlevel.checkpoint()
        for batch in self.batches:
            if batch.header.append_timestamp >= timestamp_ms:
                return batch.header.base_offset
        return self.end

    async def confirm_damage(self, base_offset: int, next_offset: int) -> bool:
        await trio.lowlevel.checkpoint()
        return not self.damaged.isdisjoint(range(base_offset, next_offset))

    def leader(self) -> tuple[str | None, int]:
        return NODE, TERM

    def size(self) -> PartitionSize:
        return PartitionSize(self.end, sum(batch.batch_bytes for batch in self.batches), 1)

    # --- What a test does ---------------------------------------------------------------------------------------------

    @property
    def end(self) -> int:
        return self.batches[-1].header.next_offset if self.batches else 0

    def append(self, batch: bytes) -> StampedBatch:
        """Store a batch, which is readable at once."""
        number = len(self.batches)
        previous = self.batches[-1].header.chain if self.batches else bytes(32)
        stored = stamp(batch, Stamp(self.end, number + 1, TERM, TIME_MS + 1000 * number, previous))
        self.batches.append(stored)
        self._lot.unpark_all()
        return stored

    def fill(self, batches: int, *, records: int = 1, value: bytes = b"x") -> int:
        """Append so many equal batches; returns the size of one in bytes."""
        for _ in range(batches):
            stored = self.append(batch_of(records, value=value))
        return stored.batch_bytes

    def fail(self, error: LogdError) -> None:
        """From now on `error`; whoever waits learns it."""
        self.error = error
        self._lot.unpark_all()

    def release(self, error: LogdError | None = None) -> None:
        """Answer everything that was held back."""
        held, self.held = self.held, []
        for item in held:
            if error is not None:
                item.reply(error)
            else:
                self._answer(item)

    def _answer(self, item: Held) -> None:
        if item.expected_offset not in (None, self.end):
            item.reply(OffsetMismatch("another offset is next", {"next_offset": self.end}))
            return
        header = self.append(item.batch).header
        item.reply(Produced(header.base_offset, header.index, TERM, header.chain, Durability.QUORUM_FSYNC, (NODE,)))


class FakeCluster:
    """A cluster of one node whose group 0 decides at once."""

    def __init__(self) -> None:
        self.node = NODE
        self.address = ("127.0.0.1", 7421)
        self.meta = MetaState()
        self.partitions: dict[int, FakePartition] = {}
        self.commands: list[Command] = []
        # While it is set and not happened, commands wait for it.
        self.gate: trio.Event | None = None
        # Groups of new topics are not there yet while this is set.
        self.sets_up = True

    def topics(self) -> Mapping[str, Topic]:
        return self.meta.topics

    def partition(self, topic: str, partition: int) -> FakePartition:
        found = self.meta.topics.get(topic)
        if found is None or partition >= len(found.groups):
            raise TopicNotFound(f"there is no {topic}/{partition}", {"topic": topic})
        known = self.partitions.get(found.groups[partition])
        if known is None:
            raise NotLeader("being set up")
        return known

    async def command(self, command: Command) -> Outcome:
        await trio.lowlevel.checkpoint()
        if self.gate is not None:
            await self.gate.wait()
        self.commands.append(command)
        outcome = self.meta.apply(command)
        if isinstance(outcome, TopicChanged) and self.sets_up:
            self.set_up(outcome.topic.groups)
        if isinstance(outcome, TopicRemoved):
            for group in outcome.topic.groups:
                partition = self.partitions.pop(group, None)
                if partition is not None:
                    partition.fail(NotLeader("the partition left this node"))
        return outcome

    async def wait_ready(self, groups: Sequence[int]) -> None:
        await trio.lowlevel.checkpoint()
        if not all(group in self.partitions for group in groups):
            raise NotYetAvailable("this fake does not wait")

    # --- What a test does ---------------------------------------------------------------------------------------------

    def set_up(self, groups: Sequence[int]) -> None:
        for group in groups:
            self.partitions.setdefault(group, FakePartition())


def batch_of(records: int = 1, *, value: bytes = b"x", timestamp_ms: int = TIME_MS) -> bytes:
    """A batch as a client sends it."""
    return encode_batch([(value, None, timestamp_ms, None)] * records)
