"""The room of one round, as a node counts it.

For: the shell of a simulated node. Must not know: what fills it. The one idea: the same admission as in
`logd.node.actor`, by the round's bytes and by the space that is allocated to each group's active segment.
"""

from logd.replica.driver import Admission
from logd.store.format import BATCH_ENTRY, HARD_STATE_ENTRY, START_ENTRY, align
from logd.store.log import Log
from logd.store.round import ROUND_OVERHEAD_BYTES
from logd.store.store import Store


def _has_space(log: Log, batch_bytes: int, index: int | None) -> bool:
    if index is not None and index <= log.tail.index:
        cut = log.cut
        return (
            cut is not None
            and cut.index == index
            and not cut.segment.busy
            and cut.position + batch_bytes <= cut.segment.allocated
        )
    segment = log.active
    if segment is None:
        return False
    end = segment.end_position + batch_bytes
    fits = end <= log.context.options.segment_bytes_max or segment.is_empty
    return fits and end <= segment.allocated


class SimulatedRoom:
    """Asked batch by batch while a round is put together. `short` tells which groups need space, and how much."""

    def __init__(self, store: Store, round_bytes_max: int) -> None:
        self._store = store
        self._round_bytes_max = round_bytes_max
        self._bytes = ROUND_OVERHEAD_BYTES
        self._taken_bytes: dict[int, int] = {}
        # The index from which a group's batches of this round replace what is there; None where they do not.
        self._replaced: dict[int, int | None] = {}
        self.short: dict[int, tuple[int, bool, int | None]] = {}

    def admit(self, group: int, batch_bytes: int, *, control: bool, index: int | None = None) -> Admission:
        """See `logd.replica.driver.Room`."""
        bytes_then = self._bytes + 2 * BATCH_ENTRY.size + batch_bytes
        if align(bytes_then) > self._round_bytes_max:
            return Admission.ROUND_FULL
        first = self._replaced.setdefault(group, index)
        taken_bytes = self._taken_bytes.get(group, 0) + batch_bytes
        if not _has_space(self._store.groups[group], taken_bytes, first):
            self.short[group] = (taken_bytes, control, first)
            return Admission.NO_SPACE
        self._bytes = bytes_then
        self._taken_bytes[group] = taken_bytes
        return Admission.TAKEN

    def admit_entry(self) -> bool:
        """See `logd.replica.driver.Room`."""
        bytes_then = self._bytes + 2 * max(HARD_STATE_ENTRY.size, START_ENTRY.size)
        if align(bytes_then) > self._round_bytes_max:
            return False
        self._bytes = bytes_then
        return True
