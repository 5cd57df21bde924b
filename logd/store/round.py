"""A round: what one fsync makes durable, for all groups at once.

For: `Store.prepare_round`, and the threads that carry a round out. Must not know: who wants the entries, or why. The
one idea: four steps, each in its place. `prepare` (owner) gives every batch its segment and position and builds the
bytes; `write` (writer thread) makes them durable in the journal, after which the promises may leave; `apply_durable`
(owner) moves the logs' ends; `settle` (writer thread) brings the batches to their segments through the page cache, and
`apply_written` (owner) lets readers see them.

`prepare_round` is the hot path of the store: it costs per batch, never per record, and touches no payload.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from logd.store.errors import JournalFull, NoRoom, ReadOutdated, RoundTooLarge, TooManyGroups, WrongEntry
from logd.store.files import Buffer, FileSystem
from logd.store.format import (
    BATCH_ENTRY,
    DIGEST_BYTES,
    END_ENTRY,
    HARD_STATE_ENTRY,
    INITIAL_HARD_STATE,
    KIND_BATCH,
    NODE_NAME_BYTES_MAX,
    REMOVE_ENTRY,
    ROUND_HEAD,
    START_ENTRY,
    TRAILER,
    EndEntry,
    HardState,
    HardStateEntry,
    LogEnd,
    Place,
    RemoveEntry,
    Start,
    StartEntry,
    encode_entry,
    encode_round_head,
    encode_table,
    encode_trailer,
    round_bytes,
    table_bytes,
)
from logd.store.index import append_entry, index_path
from logd.store.journal import Journal, JournalFile
from logd.store.log import Cut, Log, Placed
from logd.store.open_files import Borrowed, OpenFiles
from logd.store.segment import Segment
from wire.record import HEADER_BYTES, LENGTH_FIELD_BYTES, BatchHeader, StampedBatch

if TYPE_CHECKING:
    from logd.store.store import Store


# --- Entries, as the caller gives them --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Append:
    """Append a batch, or replace the batch of its index and all above. Room was made by `Log.space_for`."""

    group: int
    batch: StampedBatch


@dataclass(frozen=True, slots=True)
class SetHardState:
    """Remember term, vote and commit. In the round of the first batch of that term, or before."""

    group: int
    hard_state: HardState


@dataclass(frozen=True, slots=True)
class SetStart:
    """A log begins after `start`, whose file a job has written: `Store.create_group` or `Log.prepare_start`.

    With `keeps_suffix` (retention) batches above it stay; without (a snapshot that replaces the log) none do.
    """

    group: int
    start: Start
    keeps_suffix: bool = True
    is_unadmitted: bool = False
    """Of a new group: it has no hard state, also after a restart, until one is written. A replica that may have been
    here before, and may have promised what it does not know any more."""


@dataclass(frozen=True, slots=True)
class Remove:
    """The replica leaves this node; housekeeping deletes its directory."""

    group: int


@dataclass(frozen=True, slots=True)
class AcceptEnd:
    """An operator accepts that a log ends at `index`, which it holds, and that what was promised above is lost.

    If `index` is below the end, `Log.space_for(0, index=index + 1)` has answered None.
    """

    group: int
    index: int


RoundEntry = Append | SetHardState | SetStart | Remove | AcceptEnd

ROUND_OVERHEAD_BYTES: Final = 2 * ROUND_HEAD.size + DIGEST_BYTES + TRAILER.size
"""What a round holds besides its entries, before it is rounded up to whole blocks."""

_ENTRY_BYTES: Final = {
    SetHardState: 2 * HARD_STATE_ENTRY.size,
    SetStart: 2 * START_ENTRY.size,
    Remove: 2 * REMOVE_ENTRY.size,
    AcceptEnd: 2 * END_ENTRY.size,
}


def entry_bytes(entry: RoundEntry) -> int:
    """What an entry adds to a round: with `ROUND_OVERHEAD_BYTES`, the sum must not pass `round_bytes_max`."""
    if isinstance(entry, Append):
        return 2 * BATCH_ENTRY.size + HEADER_BYTES + len(entry.batch.payload)
    return _ENTRY_BYTES[type(entry)]


# --- The round --------------------------------------------------------------------------------------------------------


class _LogWork:
    """What a round does to one log: collected by `prepare_round`, carried out step by step."""

    __slots__ = (
        "begin",
        "borrowed",
        "buffers",
        "cut",
        "entries",
        "entry_position",
        "group",
        "hard_state",
        "index",
        "is_end_accepted",
        "is_removed",
        "items",
        "log",
        "next_chain",
        "next_offset",
        "placed",
        "position",
        "segment",
        "start",
        "term_max",
        "voided",
    )

    def __init__(self, group: int, log: Log | None) -> None:
        self.group = group
        self.log = log
        """None for a group that this round creates, until it is durable."""
        self.hard_state: HardState | None = None
        self.start: SetStart | None = None
        self.is_removed = False
        self.is_end_accepted = False
        self.cut: Cut | None = None
        self.voided: tuple[Segment, ...] = ()
        # The batches: where the next one goes, what it has to follow, and what has been collected.
        self.segment: Segment | None = None
        self.begin = self.position = 0
        self.index = self.next_offset = 0
        self.next_chain = b""
        self.entry_position = 0
        self.term_max: int | None = None
        self.buffers: list[Buffer] = []
        self.items: list[tuple[BatchHeader, Segment, int]] = []
        self.entries: list[tuple[int, int, int, int]] = []
        self.placed: Placed | None = None
        self.borrowed: Borrowed | None = None
        if log is not None:
            self._continue_from(log.tail, log.active)
            self.term_max = log.hard_state.term if log.hard_state is not None else None

    def _continue_from(self, tail: LogEnd, segment: Segment | None) -> None:
        self.index, self.next_offset, self.next_chain = tail.index, tail.next_offset, tail.chain
        self.segment = segment
        if segment is not None:
            self.begin = self.position = segment.end_position
            positions = segment.entries.positions if segment.entries is not None else None
            self.entry_position = positions[-1] if positions else -1

    @property
    def name(self) -> str:
        return f"group {self.group}"

    def check_alone(self) -> None:
        """Refuse what may not share a round with other changes of the same log."""
        if self.items or self.start is not None or self.is_removed or self.is_end_accepted:
            raise WrongEntry(f"{self.name}: this entry must be the only change of its log in a round")

    def replace_suffix(self, index: int) -> None:
        """Begin to replace the batches from `index` on."""
        log = self.log
        assert log is not None
        if self.items or self.cut is not None:
            raise WrongEntry(f"{self.name}: index {index} is replaced in the round that has it")
        cut = log.cut
        if cut is None or cut.index != index or cut.segment.busy:
            raise NoRoom(f"{self.name}: nobody asked space_for(…, index={index})")
        self.cut = cut
        later = [segment for segment in log.segments if segment.first_index > cut.segment.first_index]
        self.voided = tuple(later)
        self._continue_from(cut.before, None)
        self.segment = cut.segment
        self.begin = self.position = cut.position
        self.entry_position = cut.entries.positions[-1] if cut.entries.positions else -1

    # --- The steps --------------------------------------------------------------------------------------------------

    def commit(self, journal: Journal) -> None:
        """The round was accepted: take the room, and move the tail. Owner's thread."""
        log = self.log
        if log is None:
            return
        cut = self.cut
        if cut is not None:
            self._void(log, cut, journal)
        if self.items:
            header, segment, position = self.items[-1]
            end = LogEnd(header.index, header.term, header.next_offset, header.append_timestamp, header.chain)
            log.tail, log.tail_place = end, Place(segment.first_index, position, header.batch_bytes)
            segment.end_position = self.position
            journal.mark_dirty(segment)
            self.placed = Placed(end, log.tail_place, self.items)
        elif cut is not None:
            self.placed = Placed(cut.before, cut.before_place, [])
        if self.placed is not None:
            log.unwritten.append(self.placed)

    def _void(self, log: Log, cut: Cut, journal: Journal) -> None:
        """Everything from the cut on is void: what is written at its place comes once the round is durable."""
        segment = cut.segment
        log.segments = log.segments[: len(log.segments) - len(self.voided)]
        for later in self.voided:
            later.is_retired = True
        if self.voided:
            journal.current.directories.add(log.directory)
        log.voids_unwritten += 1
        log.cuts_made += 1
        segment.is_sealed = segment.is_finished = False
        segment.end_position = cut.position
        if self.is_end_accepted:
            segment.allocated = cut.position
        segment.entries = cut.entries
        journal.mark_dirty(segment)
        log.tail, log.tail_place = cut.before, cut.before_place
        log.cut = None
        if log.written.index >= cut.index:
            log.written, log.written_place = cut.before, cut.before_place
        for placed in log.unwritten:
            if placed.end.index >= cut.index:
                placed.end, placed.end_place = cut.before, cut.before_place

    def apply_durable(self, store: "Store") -> None:
        """Move what was promised. Owner's thread."""
        log = self.log
        if self.is_removed:
            assert log is not None
            store.forget(log)
            return
        if self.start is not None:
            log = self._apply_start(store, self.start)
        assert log is not None
        if self.hard_state is not None:
            log.hard_state = self.hard_state
            log.known_term = max(log.known_term, self.hard_state.term)
        if self.cut is not None:
            cut = self.cut
            log.damage = tuple(damage for damage in log.damage if damage.next_index <= cut.index)
        if self.placed is not None:
            log.end, log.end_place = log.tail, log.tail_place
            self.placed.is_durable = True
            if self.segment is not None and self.segment.entries is not None:
                for entry in self.entries:
                    append_entry(self.segment.entries, *entry)
            log.known_term = max(log.known_term, log.end.term)
        if self.is_end_accepted:
            log.damage, log.floor = (), None
        log.settle_floor()
        log.changed()

    def _apply_start(self, store: "Store", entry: SetStart) -> Log:
        start = entry.start
        log = self.log
        if log is None:
            return store.created(self.group, start, None if entry.is_unadmitted else INITIAL_HARD_STATE)
        log.move_start(start, log.prepared_starts[start.index][1], keeps_suffix=entry.keeps_suffix)
        return log

    def settle(self, open_files: OpenFiles, files: FileSystem) -> None:
        """Bring the batches to their segment. Writer thread."""
        for segment in reversed(self.voided):
            # Highest first: whatever a crash leaves of them is contiguous.
            files.unlink(segment.path)
            if files.exists(index_path(segment)):
                files.unlink(index_path(segment))
            open_files.forget(segment)
        segment_ = self.segment
        if self.is_end_accepted and self.cut is not None and not self.cut.segment.is_retired:
            # Nothing replaces what was given up, and it must not look like batches that the journal has forgotten.
            with open_files.borrow_open(self.cut.segment) as file:
                file.truncate(self.cut.position)
                file.sync()
            return
        if not self.items or segment_ is None or segment_.is_retired:
            return
        # A borrow of its own: the owner may give the segment up, and its pin with it, while this is written.
        try:
            self.borrowed = open_files.borrow_open(segment_)
        except ReadOutdated:
            return
        self.borrowed.file.pwritev(self.buffers, self.begin)

    def apply_written(self) -> None:
        """Let readers see the batches. Owner's thread."""
        for segment in self.voided:
            segment.unpin()
        if self.borrowed is not None:
            # The segment has unsynced bytes from now on, so its file stays open until they are synced.
            assert self.segment is not None
            if self.segment.pin is None and not self.segment.is_retired:
                self.segment.pin = self.borrowed
            else:
                self.borrowed.release()
            self.borrowed = None
        placed, log = self.placed, self.log
        if log is not None and self.cut is not None:
            log.voids_unwritten -= 1
        if placed is None or log is None:
            return
        if log.unwritten and log.unwritten[0] is placed:
            log.unwritten.popleft()
            log.written, log.written_place = placed.end, placed.end_place


class Round:
    """One round. Its methods are called in order: `write`, `apply_durable`, `settle`, `apply_written`."""

    def __init__(
        self,
        store: "Store",
        file: JournalFile,
        position: int,
        length: int,
        buffers: list[Buffer],
        table: bytes | None,
        first_needed: int,
        works: list[_LogWork],
    ) -> None:
        self._store = store
        self.number = store.journal.last_round
        self._file = file
        self._position = position
        self.length = length
        """Bytes of the round in the journal."""
        self._buffers = buffers
        self._table = table
        self._first_needed = first_needed
        self._works = works

    def pending_entries(self, log: Log) -> list[tuple[int, int, int, int]]:
        """What the round will add to the sparse index of a log's active segment."""
        for work in self._works:
            if work.log is log:
                return work.entries
        return []

    def write(self) -> None:
        """Make the round durable, on the writer thread. After it returned the promises may leave.

        Raises OSError, which is final: nothing may be promised any more.
        """
        journal = self._store.journal
        # Were this round written before the last one's fsync returned, a crash could leave it and not the last one.
        assert journal.durable_round == self.number - 1, "the round before is not durable"
        file = self._file.file
        if self._table is not None:
            file.pwritev([self._table], 0)
            file.sync()
        file.pwritev(self._buffers, self._position)
        file.sync()
        journal.durable_round = self.number

    def apply_durable(self) -> None:
        """Move the logs' promised ends, on the owner's thread, after `write`."""
        store = self._store
        assert store.journal.durable_round >= self.number, "applied before it was durable"
        self._buffers = []
        if self._table is not None:
            self._table = None
            store.journal.rolled(self._first_needed)
        for work in self._works:
            work.apply_durable(store)
        store.round_in_flight = None

    def settle(self) -> None:
        """Bring the batches to their segments, on the writer thread, rounds in order. Raises OSError: final."""
        context = self._store.context
        for work in self._works:
            work.settle(context.open_files, context.files)

    def apply_written(self) -> None:
        """Let readers see the batches, on the owner's thread, after `settle`."""
        self._file.unwritten_rounds -= 1
        for work in self._works:
            work.apply_written()
        self._works = []


# --- Making one -------------------------------------------------------------------------------------------------------


def prepare_round(store: "Store", entries: Sequence[RoundEntry]) -> Round:
    """See `Store.prepare_round`."""
    assert store.round_in_flight is None, "the round before is not durable yet"
    interval = store.context.options.index_interval_bytes
    works: dict[int, _LogWork] = {}
    directory: list[bytes] = []
    buffers: list[Buffer] = []
    batch_bytes = 0
    pack = BATCH_ENTRY.pack
    for entry in entries:
        group = entry.group
        work = works.get(group)
        if work is None:
            work = works[group] = _LogWork(group, store.groups.get(group))
        if type(entry) is not Append:
            directory.append(_prepare_other(store, work, entry))
            continue
        batch = entry.batch
        header = batch.header
        index = header.index
        if index != work.index + 1:
            _prepare_replacing(work, index)
        if header.previous_chain != work.next_chain or header.base_offset != work.next_offset:
            raise WrongEntry(f"{work.name}: the batch of index {index} does not follow the one before it")
        term = header.term
        if work.term_max is not None and term > work.term_max:
            raise WrongEntry(f"{work.name}: a batch of term {term} before the hard state of that term")
        segment = work.segment
        position = work.position
        length = header.length + LENGTH_FIELD_BYTES
        if segment is None or position + length > segment.allocated:
            raise NoRoom(f"{work.name}: space_for({length}) was not asked, or not for the whole round")
        chain = header.chain
        directory.append(pack(KIND_BATCH, 0, group, index, term, segment.first_index, position, length, chain))
        pair = (batch.header_bytes, batch.payload)
        buffers += pair
        work.buffers += pair
        batch_bytes += length
        work.items.append((header, segment, position))
        if work.entry_position < 0 or position - work.entry_position >= interval:
            work.entry_position = position
            work.entries.append((position, work.next_offset, index, header.append_timestamp))
        work.position = position + length
        work.index = index
        work.next_chain = chain
        work.next_offset += header.record_count
    return _finish(store, list(works.values()), directory, buffers, batch_bytes)


def _finish(
    store: "Store", works: list[_LogWork], directory: list[bytes], buffers: list[Buffer], batch_bytes: int
) -> Round:
    """Nothing was changed so far: find the round's place, and then take it."""
    journal, options = store.journal, store.context.options
    directory_bytes = sum(map(len, directory))
    length = round_bytes(directory_bytes, batch_bytes)
    if length > options.round_bytes_max:
        raise RoundTooLarge(f"a round of {length} bytes is above the limit of {options.round_bytes_max}")
    table: bytes | None = None
    first_needed = 0
    journal.is_spare_wanted = journal.is_spare_wanted or journal.has_spare_failed
    journal.has_spare_failed = False
    if journal.must_roll or journal.position + length > options.journal_file_bytes:
        if journal.spare is None:
            raise JournalFull("the next journal file is not free yet")
        first_needed = journal.first_needed_after_roll()
        if not journal.has_next_spare(first_needed):
            raise JournalFull("the oldest journal file is needed still")
        rows = [log.row() for _, log in sorted(store.groups.items())]
        number = journal.spare.number
        table = encode_table(
            store.context.journal_id, number, first_needed, journal.last_round, journal.last_digest, rows
        )
        journal.roll(len(table))
    file, position = journal.current, journal.position
    head, digest = encode_round_head(
        store.context.journal_id, file.number, position, journal.last_round + 1, length, journal.last_digest, directory
    )
    padding = length - (2 * len(head) + DIGEST_BYTES + batch_bytes + TRAILER.size)
    tail = b"".join((bytes(padding), head, encode_trailer(length, head, digest)))
    journal.position = position + length
    journal.last_round += 1
    journal.last_digest = digest
    file.unwritten_rounds += 1
    for work in works:
        work.commit(journal)
        if work.log is not None and work.items and work.log.wants_room():
            store.thirsty[work.log] = None
    made = Round(store, file, position, length, [head, digest, *buffers, tail], table, first_needed, works)
    store.round_in_flight = made
    return made


def _prepare_replacing(work: _LogWork, index: int) -> None:
    if work.log is None or index > work.index + 1 or work.start is not None or work.is_removed:
        raise WrongEntry(f"{work.name}: index {index} does not follow {work.index}")
    work.replace_suffix(index)


def _prepare_other(store: "Store", work: _LogWork, entry: RoundEntry) -> bytes:
    """An entry that is no batch: checked, noted, encoded."""
    group = entry.group
    if isinstance(entry, SetStart):
        return _prepare_start(store, work, entry)
    log = work.log
    if log is None and work.start is None:
        raise WrongEntry(f"{work.name} does not exist here")
    if isinstance(entry, SetHardState):
        _check_hard_state(work, entry.hard_state)
        work.hard_state = entry.hard_state
        work.term_max = entry.hard_state.term
        return encode_entry(HardStateEntry(group, entry.hard_state))
    if log is None:
        raise WrongEntry(f"{work.name} is created in this round")
    work.check_alone()
    if isinstance(entry, Remove):
        work.is_removed = True
        return encode_entry(RemoveEntry(group))
    assert isinstance(entry, AcceptEnd)
    if entry.index != log.tail.index:
        if entry.index > log.tail.index:
            raise WrongEntry(f"{work.name} ends at index {log.tail.index}, before {entry.index}")
        work.replace_suffix(entry.index + 1)
    work.is_end_accepted = True
    end = work.cut.before if work.cut is not None else log.tail
    return encode_entry(EndEntry(group, end.index, end.term, end.chain))


def _check_hard_state(work: _LogWork, hard_state: HardState) -> None:
    known = work.hard_state or (work.log.hard_state if work.log is not None else INITIAL_HARD_STATE)
    if known is not None:
        if hard_state.term < known.term:
            raise WrongEntry(f"{work.name}: term {hard_state.term} after term {known.term}")
        if hard_state.term == known.term and known.vote and hard_state.vote != known.vote:
            raise WrongEntry(f"{work.name}: a second vote in term {known.term}")
    if len(hard_state.vote.encode()) > NODE_NAME_BYTES_MAX:
        raise WrongEntry(f"{work.name}: a vote for a name of more than {NODE_NAME_BYTES_MAX} bytes")


def _prepare_start(store: "Store", work: _LogWork, entry: SetStart) -> bytes:
    work.check_alone()
    start, log = entry.start, work.log
    if log is None:
        prepared = store.prepared_group(entry.group)
        options = store.context.options
        if table_bytes(len(store.groups) + 1) + options.round_bytes_max > options.journal_file_bytes:
            raise TooManyGroups(f"a journal file of {options.journal_file_bytes} bytes is too small for another group")
        work.term_max = None
        keeps_suffix = False
    else:
        prepared = log.prepared_starts.get(start.index)
        keeps_suffix = entry.keeps_suffix
        if keeps_suffix and start.index > log.tail.index:
            raise WrongEntry(f"{work.name}: a start at {start.index} keeps nothing of a log that ends before it")
    if prepared is None or prepared[0] != start:
        raise WrongEntry(f"{work.name}: the start file was not written by a job")
    work.start = entry
    if not keeps_suffix:
        # What follows in this round would go behind the old end: it has to wait for the next.
        work.segment = None
    is_unadmitted = entry.is_unadmitted and log is None
    return encode_entry(
        StartEntry(entry.group, start.end, start.topic_id, start.partition, prepared[1], keeps_suffix, is_unadmitted)
    )
