"""The room of one round, counted batch by batch while the driver fills it.

For: the driver, which asks, and whoever has a store, who answers by it. Must not know: what is in a batch. The one
idea: a batch is only taken into a round if its bytes fit and its segment has the space, so that a round that was put
together can always be written.
"""

from enum import Enum, auto
from typing import NamedTuple, Protocol

from logd.store.format import BATCH_ENTRY, HARD_STATE_ENTRY, START_ENTRY, align
from logd.store.log import Log
from logd.store.round import ROUND_OVERHEAD_BYTES
from logd.store.store import Store


class Admission(Enum):
    """What the disk says to one more batch in the round that is being put together."""

    TAKEN = auto()
    """There is room, and it is counted."""
    ROUND_FULL = auto()
    """Not in this round; the next one is as good."""
    NO_SPACE = auto()
    """Space must be allocated to the group first; its batches wait for `on_space`."""


class Room(Protocol):
    """The disk's room for one round, asked batch by batch while it is put together."""

    def admit(self, group: int, batch_bytes: int, *, control: bool, index: int) -> Admission:
        """Whether a batch fits at `index`, perhaps in place of others; TAKEN takes the room."""
        ...

    def admit_entry(self) -> bool:
        """Whether an entry without payload fits; True takes the room."""
        ...


class Shortage(NamedTuple):
    """Space that a group needs before its next batch: the arguments of `Log.space_for`."""

    batch_bytes: int
    control: bool
    index: int | None  # type: ignore[assignment]  # the glossary's word wins over `tuple.index`
    """The first index, where it takes the place of another batch."""


class StoreRoom:
    """The room of one round of a store. Arguments: `store`; `round_bytes_max`."""

    def __init__(self, store: Store, round_bytes_max: int) -> None:
        self._store = store
        self._round_bytes_max = round_bytes_max
        self._bytes = ROUND_OVERHEAD_BYTES
        self._taken_bytes: dict[int, int] = {}
        # Where the batches of a group begin that take the place of others in this round.
        self._replacing: dict[int, int] = {}
        self.short: dict[int, Shortage] = {}
        """Groups that need space before their next batch."""

    def admit(self, group: int, batch_bytes: int, *, control: bool, index: int) -> Admission:
        """See `Room`."""
        # The directory stands in a round twice, at its head and at its end.
        bytes_then = self._bytes + 2 * BATCH_ENTRY.size + batch_bytes
        if align(bytes_then) > self._round_bytes_max:
            return Admission.ROUND_FULL
        log = self._store.groups[group]
        taken = self._taken_bytes.get(group)
        taken_bytes = (taken or 0) + batch_bytes
        first_replaced = self._replacing.get(group)
        if taken is None and index <= log.tail.index:
            first_replaced = index
        if not _has_space(log, taken_bytes, first_replaced):
            self.short[group] = Shortage(batch_bytes, control, first_replaced)
            # What was taken goes into this round; the rest asks again.
            return Admission.NO_SPACE
        if first_replaced is not None:
            self._replacing[group] = first_replaced
        self._bytes = bytes_then
        self._taken_bytes[group] = taken_bytes
        return Admission.TAKEN

    def admit_entry(self) -> bool:
        """See `Room`."""
        bytes_then = self._bytes + 2 * max(HARD_STATE_ENTRY.size, START_ENTRY.size)
        if align(bytes_then) > self._round_bytes_max:
            return False
        self._bytes = bytes_then
        return True


def _has_space(log: Log, batch_bytes: int, first_replaced: int | None) -> bool:
    """Whether so many bytes of batches fit into the segment that they would go to, as it is."""
    if first_replaced is not None:
        cut = log.cut
        if cut is None or cut.index != first_replaced or cut.segment.busy:
            return False
        return cut.position + batch_bytes <= cut.segment.allocated
    segment = log.active
    if segment is None:
        return False
    end = segment.end_position + batch_bytes
    fits = end <= log.context.options.segment_bytes_max or segment.is_empty
    return fits and end <= segment.allocated
