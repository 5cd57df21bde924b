"""A replica's log as consensus sees it: entries by reference, and how far each promise has come.

For: the core. Must not know: disks, or what an entry holds. The one idea: one list of entries, and indexes that only
move along it: handed out, durable, committed, handed out to be applied, applied. What is durable and applied leaves
memory at the front; who still needs it gets a range to be read from disk.
"""

from collections.abc import Sequence
from typing import Final

from logd.raft.types import Entry, EntryId, EntryRange, Recovered, SafetyViolation, Snapshot

# An entry without payload still costs memory: its object, and its header in the driver.
ENTRY_OVERHEAD_BYTES: Final = 256


class RaftLog:
    """The log of one replica. Arguments: `recovered`, what it comes back with; the bounds of GroupOptions."""

    # Invariant: snapshot.index <= base.index <= applied <= applying <= commit <= last.index.
    # Invariant: base.index <= stable <= handed_out <= last.index.

    __slots__ = (
        "_applying_bytes",
        "_is_applying_paused",
        "_window_bytes",
        "applied",
        "applying",
        "base",
        "base_chain",
        "commit",
        "committed_bytes_max",
        "entries",
        "handed_out",
        "is_snapshot_handed_out",
        "offered",
        "pending_snapshot",
        "snapshot",
        "stable",
        "truncated_from",
        "window_bytes_max",
    )

    def __init__(self, recovered: Recovered, committed_bytes_max: int, window_bytes_max: int) -> None:
        self.snapshot = recovered.snapshot
        """What stands before the first retained entry."""
        self.offered = recovered.snapshot
        """What a follower gets that needs what is not retained."""
        self.base = recovered.base or recovered.snapshot.id
        """The entry before the first one in memory."""
        self.base_chain = recovered.base_chain if recovered.base is not None else recovered.snapshot.chain
        self.entries: list[Entry] = list(recovered.entries)
        assert all(entry.index == self.base.index + 1 + place for place, entry in enumerate(self.entries))
        last = self.last.index
        # Invariant: the log is durable up to here, and these entries are never overwritten before the disk was told.
        self.stable = last
        self.handed_out = last
        self.commit = recovered.snapshot.index
        self.applied = self.applying = max(recovered.applied, recovered.snapshot.index)
        self.pending_snapshot: Snapshot | None = None
        """A snapshot that replaces the log and is not durable yet."""
        self.is_snapshot_handed_out = False
        self.truncated_from: int | None = None
        """The first index of what was handed out before and is to be replaced, if the disk was not told yet."""
        self.committed_bytes_max = committed_bytes_max
        self.window_bytes_max = window_bytes_max
        self._applying_bytes = 0
        self._is_applying_paused = False
        self._window_bytes = sum(entry.size_bytes + ENTRY_OVERHEAD_BYTES for entry in self.entries)

    # --- Looking ------------------------------------------------------------------------------------------------------

    @property
    def first_index(self) -> int:
        """The first entry that is retained, in memory or on disk."""
        return self.snapshot.index + 1

    @property
    def last(self) -> EntryId:
        return self.entries[-1].id if self.entries else self.base

    @property
    def last_index(self) -> int:
        return self.base.index + len(self.entries)

    def term_at(self, index: int) -> int | None:
        """The term of an entry; None if there is none, or it left memory."""
        place = index - self.base.index - 1
        if 0 <= place < len(self.entries):
            return self.entries[place].term
        if place == -1:
            return self.base.term
        return self.snapshot.term if index == self.snapshot.index else None

    def chain_at(self, index: int) -> bytes:
        """The chain at an entry; empty if it is not known here."""
        place = index - self.base.index - 1
        if 0 <= place < len(self.entries):
            return self.entries[place].chain
        if place == -1:
            return self.base_chain
        return self.snapshot.chain if index == self.snapshot.index else b""

    def matches(self, entry: EntryId) -> bool:
        return self.term_at(entry.index) == entry.term

    def entries_from(self, first_index: int, next_index: int, bytes_max: int) -> list[Entry]:
        """Entries `[first_index, next_index)`, as many as fit into `bytes_max`, at least one. All are in memory."""
        first = first_index - self.base.index - 1
        assert first >= 0, "these entries left memory"
        bytes_ = 0
        for place in range(first, next_index - self.base.index - 1):
            bytes_ += self.entries[place].size_bytes
            if bytes_ > bytes_max and place > first:
                return self.entries[first:place]
        return self.entries[first : next_index - self.base.index - 1]

    def is_in_memory(self, index: int) -> bool:
        """Whether the entry at `index`, or the place for it, is in memory."""
        return index > self.base.index

    def range_from(self, first_index: int, bytes_max: int) -> EntryRange:
        """What the shell has to read for somebody who needs `first_index`, which left memory."""
        return EntryRange(first_index, self.base.index, bytes_max)

    def is_up_to_date(self, other: EntryId, floor: EntryId | None) -> bool:
        """Whether a candidate's log is at least as up-to-date as this one (section 5.4.1).

        `floor`: what this replica promised and does not hold any more counts as if it did.
        """
        own_index, own_term = self.last
        if floor is not None and (floor.term, floor.index) > (own_term, own_index):
            own_index, own_term = floor
        return (other.term, other.index) >= (own_term, own_index)

    def find_conflict_by_term(self, index: int, term: int) -> tuple[int, int]:
        """The last entry at or below `index` whose term is at most `term`: the logs cannot agree above it.

        Returns (index, its term, or 0 if that is not known here).
        """
        while index > 0:
            own_term = self.term_at(index)
            if own_term is None:
                return index, 0
            if own_term <= term:
                return index, own_term
            index -= 1
        return 0, 0

    def has_unapplied_change(self) -> bool:
        """Whether a change of membership is committed and not applied."""
        first = self.applied - self.base.index
        return any(entry.change is not None for entry in self.entries[first : self.commit - self.base.index])

    # --- Growing ------------------------------------------------------------------------------------------------------

    def append(self, entries: Sequence[Entry]) -> None:
        """Put entries at their indexes, in place of whatever stood there and above. Raises SafetyViolation."""
        first_index = entries[0].index
        if first_index <= self.commit:
            raise SafetyViolation(f"entry {first_index} would replace a committed one (the commit is {self.commit})")
        place = first_index - self.base.index - 1
        if place < len(self.entries):
            replaced = self.entries[place:]
            del self.entries[place:]
            self._window_bytes -= sum(entry.size_bytes + ENTRY_OVERHEAD_BYTES for entry in replaced)
            if first_index <= self.handed_out:
                previous = self.truncated_from
                self.truncated_from = first_index if previous is None else min(previous, first_index)
                # reachable: a suffix that was handed out is replaced
                self.handed_out = first_index - 1
                self.stable = min(self.stable, first_index - 1)
        self.entries.extend(entries)
        for entry in entries:
            self._window_bytes += entry.size_bytes + ENTRY_OVERHEAD_BYTES

    def maybe_append(self, previous: EntryId, chain: bytes, entries: Sequence[Entry], commit: int) -> int | None:
        """Take a leader's entries, if they follow what stands here (section 5.3).

        Returns the last index that is now known to be the leader's, or None where the logs do not meet. Raises
        SafetyViolation if a committed entry would be replaced, or equal identities have unequal chains.
        """
        if not self.matches(previous):
            return None
        _check_chain(previous, self.chain_at(previous.index), chain)
        last_index = previous.index + len(entries)
        for place, entry in enumerate(entries):
            if self.term_at(entry.index) != entry.term:
                self.append(entries[place:])
                break
            _check_chain(entry.id, self.chain_at(entry.index), entry.chain)
        self.commit_to(min(commit, last_index))
        return last_index

    def commit_to(self, index: int) -> None:
        """Advance the commit; never back. Raises SafetyViolation beyond the log's end."""
        if index > self.commit:
            if index > self.last_index:
                raise SafetyViolation(f"{index} is committed, and this log ends at {self.last_index}: was it lost?")
            self.commit = index

    def restore(self, snapshot: Snapshot) -> None:
        """Begin anew behind a snapshot."""
        self.pending_snapshot = snapshot
        self.is_snapshot_handed_out = False
        self.snapshot = self.offered = snapshot
        self.base = snapshot.id
        self.base_chain = snapshot.chain
        self.entries.clear()
        self._window_bytes = 0
        self.stable = self.handed_out = self.commit = snapshot.index
        self.truncated_from = None

    # --- The disk -----------------------------------------------------------------------------------------------------

    @property
    def has_unstable(self) -> bool:
        return self.stable < self.last_index

    @property
    def has_next_unstable(self) -> bool:
        return self.handed_out < self.last_index

    def next_unstable(self) -> tuple[Entry, ...]:
        """What has to become durable and was not handed out yet."""
        return tuple(self.entries[self.handed_out - self.base.index :])

    @property
    def next_snapshot(self) -> Snapshot | None:
        return None if self.is_snapshot_handed_out else self.pending_snapshot

    def accept_unstable(self) -> None:
        """What `next_unstable` and `next_snapshot` said was handed out."""
        self.handed_out = self.last_index
        self.is_snapshot_handed_out = self.pending_snapshot is not None
        self.truncated_from = None

    def stable_to(self, entry: EntryId) -> None:
        """The disk has the log up to `entry`: unless that was replaced meanwhile, which its term shows."""
        if entry.index > self.stable and self.matches(entry):
            self.stable = entry.index
            self.handed_out = max(self.handed_out, entry.index)

    def stable_snapshot(self, index: int) -> None:
        if self.pending_snapshot is not None and self.pending_snapshot.index == index:
            self.pending_snapshot = None
            self.is_snapshot_handed_out = False

    # --- Applying -----------------------------------------------------------------------------------------------------

    def _appliable(self, *, includes_unstable: bool) -> int:
        if self._is_applying_paused or self.pending_snapshot is not None:
            return self.applying
        return self.commit if includes_unstable else min(self.commit, self.stable)

    def has_next_committed(self, *, includes_unstable: bool) -> bool:
        return self.applying < self._appliable(includes_unstable=includes_unstable)

    def next_committed(self, *, includes_unstable: bool) -> list[Entry]:
        """What may be applied and was not handed out for it yet."""
        next_index = self._appliable(includes_unstable=includes_unstable) + 1
        if self.applying + 1 >= next_index:
            return []
        return self.entries_from(self.applying + 1, next_index, self.committed_bytes_max - self._applying_bytes)

    def accept_applying(self, entries: Sequence[Entry], *, includes_unstable: bool) -> None:
        """`entries` were handed out to be applied."""
        self.applying = entries[-1].index
        self._applying_bytes += sum(entry.size_bytes for entry in entries)
        self._is_applying_paused = self._applying_bytes >= self.committed_bytes_max or self.applying < self._appliable(
            includes_unstable=includes_unstable
        )

    def applied_to(self, index: int, size_bytes: int) -> None:
        """Everything up to `index` is applied; `size_bytes` of it since the last time."""
        # A damaged replica may have applied more than it knows, in what is left of its log, to be committed.
        if not self.applied <= index <= max(self.commit, self.applied):
            raise SafetyViolation(f"{index} was applied, after {self.applied}, with a commit of {self.commit}")
        self.applied = index
        self.applying = max(self.applying, index)
        self._applying_bytes = max(self._applying_bytes - size_bytes, 0)
        self._is_applying_paused = self._applying_bytes >= self.committed_bytes_max
        self._trim()

    # --- Shrinking ----------------------------------------------------------------------------------------------------

    def _trim(self) -> None:
        """Let what is durable and applied leave memory when the window is full; half of it at once: O(1) an entry."""
        if self._window_bytes <= self.window_bytes_max:
            return
        count = min(self.applied, self.stable) - self.base.index
        place = 0
        while place < count and self._window_bytes > self.window_bytes_max // 2:
            self._window_bytes -= self.entries[place].size_bytes + ENTRY_OVERHEAD_BYTES
            place += 1
        if place:
            self._drop(place)

    def _drop(self, count: int) -> None:
        entry = self.entries[count - 1]
        self.base, self.base_chain = entry.id, entry.chain
        del self.entries[:count]

    def compact(self, snapshot: Snapshot) -> None:
        """The log now begins behind `snapshot`, which is applied."""
        if snapshot.index <= self.snapshot.index:
            return
        assert snapshot.index <= self.applied, "only what is applied is given up"
        self.snapshot = snapshot
        if self.offered.index < snapshot.index:
            self.offered = snapshot
        count = snapshot.index - self.base.index
        if count > 0:
            self._window_bytes -= sum(entry.size_bytes + ENTRY_OVERHEAD_BYTES for entry in self.entries[:count])
            self._drop(count)


def _check_chain(entry: EntryId, own: bytes, other: bytes) -> None:
    if own and other and own != other:
        chains = f"chain {own.hex()[:16]}… here and {other.hex()[:16]}… at the leader"
        raise SafetyViolation(f"entry {entry.index} of term {entry.term} has the {chains}")
