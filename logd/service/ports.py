"""What the service needs of the node it runs in, as protocols.

For: the service, which is written against these; the node, which keeps them; tests, whose fakes keep them too. Must not
know: tasks, disks, the driver. The one idea: a door asks for things in the words of the protocol, and whether a Raft
actor or a dictionary answers is not its business.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from logd.meta.commands import Command
from logd.meta.state import Outcome, Topic
from wire.errors import LogdError
from wire.messages import Produced
from wire.record import BatchHeader
from wire.types import Acks

ProduceReply = Callable[[Produced | LogdError], None]
"""Called exactly once, in the node's own thread, and never blocks."""


class Bounds(NamedTuple):
    """The readable range of a partition: `[log_start_offset, high_watermark)`."""

    log_start_offset: int
    high_watermark: int


class Slice(NamedTuple):
    """Contiguous stored batches, as they stand on the disk, and one past their last record."""

    batches: bytes | memoryview
    next_offset: int


class PartitionSize(NamedTuple):
    """What a partition takes on this node."""

    log_end_offset: int
    log_bytes: int
    segments: int


class Partition(Protocol):
    """One partition that this node leads or may lead."""

    def produce(
        self, batch: bytes, header: BatchHeader, acks: Acks, expected_offset: int | None, reply: ProduceReply
    ) -> None:
        """Append a batch that passed `check_produced`. Refusals go to `reply` too."""
        ...

    def bounds(self) -> Bounds:
        """The readable range now. Raises NotYetAvailable, NotLeader or CorruptBatch."""
        ...

    async def read(self, offset: int, bytes_max: int) -> Slice:
        """Batches from the one that holds `offset` on, within the readable range; empty at its end.

        Raises CorruptBatch where the replica is damaged, and what `bounds` raises.
        """
        ...

    async def wait_beyond(self, offset: int) -> None:
        """Wait until a record at `offset` is readable, or the partition leaves this node."""
        ...

    async def offset_at(self, timestamp_ms: int) -> int:
        """The first offset whose batch was appended at or after a time; the high watermark if none was."""
        ...

    async def confirm_damage(self, base_offset: int, next_offset: int) -> bool:
        """Read a range again and verify it; true if it is damaged here."""
        ...

    def leader(self) -> tuple[str | None, int]:
        """The leader's name, and the term."""
        ...

    def size(self) -> PartitionSize: ...


class Cluster(Protocol):
    """The node's view of the cluster."""

    node: str
    address: tuple[str, int]

    def topics(self) -> Mapping[str, Topic]:
        """All topics, by name, as of the last applied command."""
        ...

    def partition(self, topic: str, partition: int) -> Partition:
        """Raises TopicNotFound, or NotLeader while the partition is being set up."""
        ...

    async def command(self, command: Command) -> Outcome:
        """Have group 0 decide a command; returns when it is committed and applied."""
        ...

    async def wait_ready(self, groups: Sequence[int]) -> None:
        """Wait until the groups can be written to here, or are gone."""
        ...


class Authorizer(Protocol):
    """Who may do what. `principal` is the URI of a certificate's identity."""

    def check(self, principal: str, action: str, resource: str) -> None:
        """Raises NotAuthorized."""
        ...
