"""The words of the driver: what goes into it, and what comes out.

For: the driver, and whoever feeds it and carries out what it returns. Must not know: how any of it comes about. The one
idea: everything is a value; an effect is something that only the shell can do, and whose end it reports.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from logd.meta.state import Outcome
from logd.raft.types import (
    Configuration,
    GroupOptions,
)
from logd.store.format import Start
from wire.messages import Produced
from wire.record import (
    BatchHeader,
)
from wire.types import Acks


@dataclass(frozen=True, slots=True)
class DriverOptions:
    """The bounds of the driver. Where the numbers come from stands beside the settings of the same names."""

    waiting_bytes_max: int = 64 << 20
    producers_max: int = 10_000
    producer_expiry_ms: int = 7 * 24 * 3600 * 1000
    raft: GroupOptions = field(default_factory=GroupOptions)
    frame_bytes_max: int = 4 << 20
    """Entries of one frame to a peer: half of what a frame may have, as one message may exceed it by a batch."""
    disk_ticks_max: int = 30
    """Heartbeats stop when the disk's oldest round is older: 3 s of ticks of 100 ms. A leader whose disk hangs
    must not keep others from leading."""
    promotion_lag_max: int = 100
    """How many entries a learner may lack to be made a voter: what is committed within an election timeout or so."""
    feature_level: int = 2
    """What this software speaks. Level 2 lets groups rest; a group rests only if all its members speak it."""


# --- What goes in -----------------------------------------------------------------------------------------------------


class Proposal(NamedTuple):
    """A produced batch that passed `check_produced`, and who is to be answered.

    `reply` is handed back with the answer and means nothing here.
    """

    batch: bytes
    header: BatchHeader
    acks: Acks
    expected_offset: int | None
    reply: Any


# --- What comes out ---------------------------------------------------------------------------------------------------


class ReadAt(NamedTuple):
    """The outcome of `read_index`: a linearizable read of this group may be served here, up to `high_watermark`."""

    index: int  # type: ignore[assignment]  # the glossary's word wins over `tuple.index`
    high_watermark: int


class Reconfigured(NamedTuple):
    """The outcome of `change_membership`: it is committed, and in force here."""

    configuration: Configuration


class Answer(NamedTuple):
    """What one proposal came to."""

    reply: Any
    outcome: Produced | Outcome | ReadAt | Reconfigured


class CreateGroup(NamedTuple):
    """Effect: make the directory of a group that meta wants here, then `install` it."""

    group: int
    topic_id: bytes
    partition: int


class MoveStart(NamedTuple):
    """Effect: everything up to and including `index` is given up, by the group's own committed decision."""

    group: int
    index: int  # type: ignore[assignment]  # the glossary's word wins over `tuple.index`


class SnapshotMeta(NamedTuple):
    """Effect: keep the state of group 0 as of the batch `header`, so that what is below need not be replayed."""

    header: BatchHeader
    state: bytes
    membership: bytes


class InstallStart(NamedTuple):
    """Effect: write the file of a start that a leader sent, which replaces the log; then `install` it."""

    group: int
    start: Start


class ReadRange(NamedTuple):
    """Effect: read whole batches `[first_index, next_index)`, up to `bytes_max`, at least two; then `on_range`."""

    group: int
    first_index: int
    next_index: int
    bytes_max: int
    token: int


Effect = CreateGroup | MoveStart | SnapshotMeta | InstallStart | ReadRange
