"""What the store noticed and somebody should hear of: typed values, logged by the caller.

For: start-up and housekeeping, which collect them in `Store.events`. Must not know: loggers or levels. The one idea:
each event names the file, the position and the index range that it is about, so that an operator can go and look.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """The base of all events. `path` is the file that it is about."""

    path: str


@dataclass(frozen=True, slots=True)
class TornTail(Event):
    """Expected after a crash: bytes beyond the last promise were cut, or a round that was never promised dropped."""

    position: int
    reason: str


@dataclass(frozen=True, slots=True)
class DamagedRound(Event):
    """A round of the journal that was durable once and does not verify now.

    `is_directory_readable` says whether one copy of its head still tells what it held.
    """

    position: int
    round_number: int
    is_directory_readable: bool
    reason: str


@dataclass(frozen=True, slots=True)
class DamagedTable(Event):
    """A journal file whose table does not verify in either copy, or in one of them (`is_lost` false)."""

    file_number: int
    is_lost: bool


@dataclass(frozen=True, slots=True)
class MissingJournalFile(Event):
    """A journal file that the newest table needs is not there."""

    file_number: int


@dataclass(frozen=True, slots=True)
class Corruption(Event):
    """A log misses what was promised, or holds it damaged: indexes `[first_index, next_index)` of a group."""

    group: int
    position: int
    first_index: int
    next_index: int
    reason: str


@dataclass(frozen=True, slots=True)
class DamagedStart(Event):
    """A group's start file does not verify: its membership and producer table are lost, its log is not."""

    group: int
    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class HardStateLost(Event):
    """Nothing readable says what a replica voted last: it is a wiped voter until it is re-admitted."""

    group: int


@dataclass(frozen=True, slots=True)
class UnknownGroup(Event):
    """The journal has entries of a group whose beginning is damaged; they cannot be placed."""

    group: int


@dataclass(frozen=True, slots=True)
class IndexRebuilt(Event):
    """A sparse index was missing, torn or stale, and was built again from its segment."""

    group: int
    first_index: int
    reason: str
