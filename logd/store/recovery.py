"""Recovery: what was promised, read from the journal, and brought to the segments where it is not there.

For: `Store.open`. Must not know: what a promise means. The one idea: reading decides, and only then is anything
written. `replay` turns the journal's files into one `Replayed` for each group; `restore` makes a group's segments say
what that says. Neither changes a journal file (`make_last_round_durable` writes what it has read, where it has read
it), and everything that is written would be written again: all of it can be cut anywhere and repeated.

The six points of `docs/storage-format.md` ("Recovery") are marked R1 to R6 where they are carried out.
"""

import errno
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, NamedTuple

from logd.store.context import Context
from logd.store.errors import JournalLost, Unreadable
from logd.store.events import (
    Corruption,
    DamagedRound,
    DamagedStart,
    DamagedTable,
    HardStateLost,
    MissingJournalFile,
    TornTail,
    UnknownGroup,
)
from logd.store.files import Buffer, File
from logd.store.format import (
    BATCH_ENTRY,
    BLANK_DIGEST,
    DIGEST_BYTES,
    INITIAL_HARD_STATE,
    NOWHERE,
    ROUND_MAGIC,
    SEGMENT_HEADER_BYTES,
    BatchEntry,
    EndEntry,
    Entry,
    Floor,
    HardState,
    HardStateEntry,
    LogEnd,
    Place,
    RemoveEntry,
    RoundHead,
    SegmentHeader,
    Start,
    StartEntry,
    Table,
    TableRow,
    decode_start,
    encode_segment_header,
)
from logd.store.index import append_entry, load_entries
from logd.store.journal import find_heads, journal_numbers, read_head, read_table
from logd.store.layout import INDEX_SUFFIX, SEGMENT_SUFFIX, START_SUFFIX, number_name, parse_number
from logd.store.log import Damage, Log
from logd.store.segment import INDEX_FIELD, INDEX_FIELD_POSITION, Segment, walk_headers
from wire.errors import CorruptBatch
from wire.record import HEADER_BYTES, BatchHeader, check_alone, decode_header, header_chain_holds

# What a batch takes in a round at least: its header, and its entry in both directories.
_JOURNALED_BATCH_BYTES_MIN: Final = HEADER_BYTES + 2 * BATCH_ENTRY.size
# How many bytes of batches are gathered for one write.
WRITE_BYTES: Final = 4 << 20
# A header that cannot be read says no length: the next batch is looked for by its index, so many batches ahead.
RESYNC_INDEXES_MAX: Final = 16


# --- R1, R2: reading the journal --------------------------------------------------------------------------------------


class Placement(NamedTuple):
    """A batch that a round promised and nothing after it voided."""

    index: int  # type: ignore[assignment]  # see `format.LogEnd`
    term: int
    chain: bytes
    place: Place
    file: File
    """The journal file that holds a copy."""
    journal_position: int
    header: BatchHeader | None
    """None if the journal's copy does not verify."""


@dataclass(slots=True)
class Replayed:
    """What the journal says of one group."""

    group: int
    topic_id: bytes
    partition: int
    start: LogEnd
    start_digest: bytes
    hard_state: HardState | None
    base: LogEnd
    """The promised end before the first round that was read: everything up to it is in segments, synced."""
    base_place: Place
    promised: tuple[int, int, bytes]
    """Index, term and chain of the promised end."""
    floor: Floor | None
    known_term: int
    is_fresh: bool = False
    """Started or replaced in a round that was read: no older segment is of any use."""
    is_end_uncertain: bool = False
    """A round that may have held entries of this group cannot be read at all, and nothing later tells."""
    lost_batches_max: int = 0
    """While that is so: how many batches it can have held, so that no promise lies beyond the end plus this."""
    is_base_doubtful: bool = False
    """A file of the journal is missing: what it covered, up to `base`, may not be in segments."""
    commit: int = 0
    """What is known to be committed: nothing up to here was ever replaced."""
    may_be_overwritten: bool = False
    """A round that cannot be read may have replaced batches in segments, below what was promised later or before."""
    has_voided: bool = False
    """Rounds that were read gave batches up: the process before may have unlinked segments and not synced that."""
    placements: list[Placement] = field(default_factory=list)
    """In order of index, without a gap unless rounds are damaged."""
    below: list[Placement] = field(default_factory=list)
    """Batches that a start has passed since: they are only of use where they share a segment with what is retained."""

    @classmethod
    def from_row(cls, row: TableRow) -> "Replayed":
        """A group as a table knows it."""
        end = row.end
        return cls(
            row.group,
            row.topic_id,
            row.partition,
            row.start,
            row.start_digest,
            row.hard_state,
            end,
            row.place,
            (end.index, end.term, end.chain),
            row.floor,
            max(end.term, row.floor.term if row.floor else 0, row.hard_state.term if row.hard_state else 0),
            commit=row.hard_state.commit if row.hard_state else 0,
        )

    def adopt(self, row: TableRow) -> None:
        """A later table: what it says holds, whatever was read of the rounds before it."""
        fresh = Replayed.from_row(row)
        if row.start != self.start:
            self.start, self.start_digest = row.start, row.start_digest
            self.topic_id, self.partition = row.topic_id, row.partition
            self._pass(row.start.index)
        self.hard_state, self.floor, self.is_end_uncertain = row.hard_state, row.floor, False
        self.known_term = max(self.known_term, fresh.known_term)
        self.commit = max(self.commit, fresh.commit)
        if self.promised != fresh.promised:
            self.has_voided = True
            # Rounds in between are damaged: of what was read, only what the table's end allows can still be true.
            index, _, chain = self.promised = fresh.promised
            self.void(index + 1)
            if self.placements and self.placements[-1].index == index and self.placements[-1].chain != chain:
                self.placements.clear()

    def _pass(self, index: int) -> None:
        self.below += [placement for placement in self.placements if placement.index <= index]
        self.placements = [placement for placement in self.placements if placement.index > index]

    def void(self, index: int) -> None:
        """The batches from `index` on are void."""
        placements = self.placements
        while placements and placements[-1].index >= index:
            placements.pop()
            self.has_voided = True

    def append(self, placement: Placement) -> None:
        """A batch: it voids its index and all above. (Raft may put a lower term there: figure 8 of the paper.)."""
        index = placement.index
        if index <= self.start.index:
            return
        self.void(index)
        if index <= self.base.index:
            # Segments hold what was there before only below this index.
            self._lower_base(index - 1)
        self.placements.append(placement)
        self.promised = (index, placement.term, placement.chain)
        self.is_end_uncertain = False
        self.known_term = max(self.known_term, placement.term)

    def _lower_base(self, index: int) -> None:
        # What the log's end was there is found again from the segment (`_Restore.anchor`).
        self.has_voided = True
        self.base = LogEnd(index, 0, 0, 0, b"")
        self.base_place = NOWHERE

    def apply_start(self, entry: StartEntry) -> None:
        """The log begins elsewhere."""
        self.start, self.start_digest = entry.end, entry.digest
        self.topic_id, self.partition = entry.topic_id, entry.partition
        if entry.keeps_suffix:
            self._pass(entry.end.index)
            return
        self.placements.clear()
        self.below.clear()
        self.is_fresh = self.has_voided = True
        self.is_end_uncertain = False
        self.base, self.base_place = entry.end, NOWHERE
        self.promised = (entry.end.index, entry.end.term, entry.end.chain)
        if self.floor is not None and self.floor.is_reached_by(entry.end):
            self.floor = None

    def apply_end(self, entry: EndEntry) -> None:
        """An operator accepted that the log ends here."""
        self.void(entry.index + 1)
        if self.base.index > entry.index:
            self._lower_base(entry.index)
        self.promised = (entry.index, entry.term, entry.chain)
        self.floor, self.is_end_uncertain = None, False


@dataclass(slots=True)
class Replay:
    """What the whole journal says."""

    groups: dict[int, Replayed]
    newest_table: int
    last_round: int
    last_digest: bytes
    has_lost_rounds: bool = False
    """Entries were lost, of groups that nobody knows, after the last table."""
    lost_batches_max: int = 0
    """How many batches those can have been."""


class _Source(NamedTuple):
    """One journal file that is to be read."""

    number: int
    path: str
    file: File
    table: Table | None
    is_copy_damaged: bool


class JournalReader:
    """Reads the journal's files. Use `close` when `restore` has taken what it needs."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._journal_id = context.journal_id
        self._sources: list[_Source] = []
        self.newest_used = 0
        """The highest number of a file that was read."""
        self.free_below = 0
        """Files below this one are needed by no table that could be the newest on the disk. See `_open_sources`."""
        self._is_base_doubtful = False
        self._last: tuple[_Source, RoundHead] | None = None
        """The last round that was read, and where."""

    def close(self) -> None:
        """Close the files that were read."""
        for source in self._sources:
            source.file.close()

    def replay(self) -> Replay:
        """R1 and R2: the state that the journal's rounds add up to. Raises JournalLost, and OSError."""
        self._open_sources()
        replay: Replay | None = None
        for number, source in enumerate(self._sources):
            following = self._sources[number + 1 :]
            if replay is None:
                assert source.table is not None
                replay = Replay({}, 0, source.table.last_round, source.table.last_digest)
                replay.groups = {row.group: Replayed.from_row(row) for row in source.table.rows}
            elif source.table is not None:
                self._adopt_table(replay, source.table)
            if source.table is not None:
                replay.newest_table = source.number
            before = replay.last_round
            self._replay_file(replay, source, following)
            if source.is_copy_damaged:
                if replay.last_round > before:
                    self._context.report(DamagedTable(source.path, source.number, is_lost=False))
                else:
                    # No round depends on it: it may never have been synced.
                    self._context.report(TornTail(source.path, 0, "a copy of the table is torn"))
        assert replay is not None
        for group in replay.groups.values():
            group.is_base_doubtful = self._is_base_doubtful
        return replay

    def make_last_round_durable(self) -> None:
        """Write the last round again, the same bytes at its place, and sync it.

        A process that was killed, or whose fsync failed, may have left it in memory alone. What it replaces is about to
        be overwritten in segments, and that must not outlive it. Every round before it is durable, for it was written
        only then; so this is the one thing that recovery writes to a file that it reads, and it may be cut anywhere:
        each sector has these bytes already, or belongs to a round that was never promised. Raises OSError.
        """
        if self._last is None or not self._last[1].entries:
            return
        source, head = self._last
        data = source.file.pread(head.length, head.position)
        try:
            is_same = read_head(source.file, self._journal_id, source.number, head.position).digest == head.digest
            is_same = is_same and data[: head.head_bytes + DIGEST_BYTES].endswith(head.digest)
        except Unreadable:
            is_same = False
        batches = [entry for entry in head.entries if isinstance(entry, BatchEntry)]
        at = head.batches_position - head.position
        for entry in batches:
            whole = memoryview(data)[at : at + entry.place.length]
            is_same = is_same and _verified(whole, entry.index, entry.chain) is not None
            at += entry.place.length
        file = self._context.files.open(source.path)
        try:
            if is_same:  # else it is damaged, which no memory that was just written is
                file.pwritev([data], head.position)
            file.sync()
        finally:
            file.close()

    def _open_sources(self) -> None:
        """Find the newest table, and open the files from its first needed one on."""
        context, files = self._context, self._context.files
        found: list[_Source] = []
        for number in journal_numbers(files.listdir(context.layout.journal)):
            path = context.layout.journal_file(number)
            file = files.open(path, writable=False)
            tables = read_table(file, self._journal_id, number)
            found.append(_Source(number, path, file, tables.table, bool(tables.damaged_copies)))
        newest = max((source.number for source in found if source.table is not None), default=None)
        if newest is None:
            for source in found:
                source.file.close()
            raise JournalLost(f"no journal file in {context.layout.journal} has a table that verifies")
        table = next(source.table for source in found if source.number == newest)
        assert table is not None
        # The newest table may be in memory alone, if its sync failed; the one before it is on the disk.
        older = [source.table for source in found if source.table is not None and source.number < newest]
        self.free_below = older[-1].first_needed if older else 0
        for source in found:
            is_needed = source.number >= table.first_needed
            if is_needed and source.table is None and not self._has_rounds(source):
                # The spare, or a file that was being opened.
                is_needed = source.number < newest
            if is_needed:
                self._sources.append(source)
                self.newest_used = source.number
                if source.table is None:
                    context.report(DamagedTable(source.path, source.number, is_lost=True))
            else:
                source.file.close()
        self._drop_unreachable(table.first_needed, newest)

    def _drop_unreachable(self, first_needed: int, newest: int) -> None:
        """Report needed files that are missing; begin at a file whose table verifies."""
        present = {source.number for source in self._sources}
        for number in range(first_needed, newest):
            if number not in present:
                self._context.report(MissingJournalFile(self._context.layout.journal_file(number), number))
                self._is_base_doubtful = True
        while self._sources[0].table is None:
            self._sources.pop(0).file.close()

    def _has_rounds(self, source: _Source) -> bool:
        return next(find_heads(source.file, self._journal_id, source.number, 0), None) is not None

    def _adopt_table(self, replay: Replay, table: Table) -> None:
        rows = {row.group: row for row in table.rows}
        for group in list(replay.groups):
            if group not in rows:
                del replay.groups[group]
        for group, row in rows.items():
            known = replay.groups.get(group)
            if known is None:
                replay.groups[group] = Replayed.from_row(row)
            else:
                known.adopt(row)
        replay.has_lost_rounds, replay.lost_batches_max = False, 0
        replay.last_round, replay.last_digest = table.last_round, table.last_digest

    def _replay_file(self, replay: Replay, source: _Source, following: list[_Source]) -> None:
        position = source.table.rounds_position if source.table is not None else 0
        while True:
            head, problem = self._next_head(replay, source, position, following)
            if head is None:
                return
            batches = list(self._read_batches(source, head))
            is_whole = all(header is not None for _, header in batches)
            problem = problem or ("" if is_whole else "a batch does not verify")
            if problem:
                was_durable = any(self._durable_before(later) >= head.round_number for later in following)
                if was_durable or self._is_later_known(source, head.end_position, head.round_number + 1, following):
                    self._context.report(
                        DamagedRound(
                            source.path, head.position, head.round_number, is_directory_readable=True, reason=problem
                        )
                    )
                else:
                    # Nothing shows that it was durable once. It is taken if it is whole in spite of the problem.
                    reason = f"round {head.round_number} is torn: {problem}"
                    self._context.report(TornTail(source.path, head.position, reason))
                    if not is_whole:
                        return
            self._apply(replay, source, head, batches)
            self._last = source, head
            replay.last_round, replay.last_digest = head.round_number, head.digest
            position = head.end_position

    def _next_head(
        self, replay: Replay, source: _Source, position: int, following: list[_Source]
    ) -> tuple[RoundHead | None, str]:
        """The head of the next round, and what is wrong with it; None at the end of what was promised in this file."""
        expected = replay.last_round + 1
        reason = ""
        if position:
            try:
                head = read_head(source.file, self._journal_id, source.number, position)
                if head.round_number == expected and head.previous_digest == replay.last_digest:
                    return head, ""
                reason = f"round {head.round_number} where {expected} must be"
            except Unreadable as error:
                reason = str(error)
        if following and 0 <= self._durable_before(following[0]) < expected:
            # The next file follows from the round before this one.
            self._report_torn(source, position)
            return None, ""
        # Does anything show that this round was durable once?
        for head in find_heads(source.file, self._journal_id, source.number, position):
            if head.round_number < expected:
                continue
            if head.round_number == expected and (not position or head.position == position):
                # Its second copy serves; or the table is lost, and with it where the first round starts.
                return head, reason
            self._lose_rounds(replay, source, position, head.position, expected, reason)
            return head, ""
        if self._is_later_known(source, source.file.size(), expected, following):
            self._lose_rounds(replay, source, position, source.file.size(), expected, reason)
        else:
            self._report_torn(source, position)
        return None, ""

    def _report_torn(self, source: _Source, position: int) -> None:
        """Say so if a round was begun at `position`, and not merely never written."""
        data = source.file.pread(HEADER_BYTES, position)
        try:
            if data[: len(ROUND_MAGIC)] == ROUND_MAGIC:
                read_head(source.file, self._journal_id, source.number, position)
        except Unreadable as error:
            if "stale" not in str(error):
                self._context.report(TornTail(source.path, position, f"a round is torn: {error}"))

    def _is_later_known(self, source: _Source, position: int, round_number: int, following: list[_Source]) -> bool:
        """Whether a round of this number or a higher one verifies anywhere later, or a later file follows from one."""
        for head in find_heads(source.file, self._journal_id, source.number, position):
            if head.round_number >= round_number:
                return True
        return any(self._durable_before(later) >= round_number for later in following)

    def _durable_before(self, source: _Source) -> int:
        """The number of the last round before a file, as the file itself says; -1 if it says nothing."""
        if source.table is not None:
            return source.table.last_round
        first = next(find_heads(source.file, self._journal_id, source.number, 0), None)
        return first.round_number - 1 if first is not None else -1

    def _lose_rounds(
        self, replay: Replay, source: _Source, position: int, end_position: int, expected: int, reason: str
    ) -> None:
        """Rounds of which not even the directory can be read: they may have held entries of any group."""
        self._context.report(DamagedRound(source.path, position, expected, is_directory_readable=False, reason=reason))
        batches_max = (end_position - position) // _JOURNALED_BATCH_BYTES_MIN
        replay.has_lost_rounds = True
        replay.lost_batches_max += batches_max
        for group in replay.groups.values():
            group.may_be_overwritten = True
            group.lost_batches_max = batches_max + (group.lost_batches_max if group.is_end_uncertain else 0)
            # An older hard state may be older than a vote that was given: better none (R5).
            group.hard_state = None
            group.is_end_uncertain = True

    def _read_batches(self, source: _Source, head: RoundHead) -> Iterator[tuple[int, BatchHeader | None]]:
        """For each batch of a round, its position in the file, and its header if it verifies."""
        position = head.batches_position
        entries = [entry for entry in head.entries if isinstance(entry, BatchEntry)]
        whole = source.file.pread(sum(entry.place.length for entry in entries), position)
        view = memoryview(whole)
        at = 0
        for entry in entries:
            length = entry.place.length
            yield position + at, _verified(view[at : at + length], entry.index, entry.chain)
            at += length

    def _apply(
        self, replay: Replay, source: _Source, head: RoundHead, batches: list[tuple[int, BatchHeader | None]]
    ) -> None:
        """R2: the entries of a round, in order."""
        remaining = iter(batches)
        for entry in head.entries:
            if isinstance(entry, BatchEntry):
                position, header = next(remaining)
                group = replay.groups.get(entry.group) or self._find_lost(replay, entry.group)
                if group is not None:
                    group.append(
                        Placement(entry.index, entry.term, entry.chain, entry.place, source.file, position, header)
                    )
            else:
                self._apply_other(replay, entry)

    def _apply_other(self, replay: Replay, entry: Entry) -> None:
        group = replay.groups.get(entry.group)
        if isinstance(entry, StartEntry):
            if group is None:
                replay.groups[entry.group] = _started(entry)
            else:
                group.apply_start(entry)
            return
        if isinstance(entry, RemoveEntry):
            replay.groups.pop(entry.group, None)
            return
        group = group or self._find_lost(replay, entry.group)
        if group is None:
            return
        if isinstance(entry, HardStateEntry):
            group.hard_state = entry.hard_state
            group.known_term = max(group.known_term, entry.hard_state.term)
            group.commit = max(group.commit, entry.hard_state.commit)
        elif isinstance(entry, EndEntry):
            group.apply_end(entry)

    def _find_lost(self, replay: Replay, number: int) -> Replayed | None:
        """A group whose `start` was in a round that is lost: its start file may still tell."""
        context = self._context
        if replay.has_lost_rounds and context.files.exists(context.layout.group(number)):
            for name in reversed(context.files.listdir(context.layout.group(number))):
                index = parse_number(name, START_SUFFIX)
                if index is None:
                    continue
                try:
                    start, digest = load_start(context, number, index)
                except Unreadable:
                    continue
                end = start.end
                group = Replayed(
                    number,
                    start.topic_id,
                    start.partition,
                    end,
                    digest,
                    None,
                    end,
                    NOWHERE,
                    (end.index, end.term, end.chain),
                    None,
                    end.term,
                    is_end_uncertain=True,
                    lost_batches_max=replay.lost_batches_max,
                )
                replay.groups[number] = group
                return group
        context.report(UnknownGroup(context.layout.group(number), number))
        return None

    def find_lost_groups(self, replay: Replay) -> None:
        """After lost rounds: groups that may have been started in them."""
        if not replay.has_lost_rounds:
            return
        for name in self._context.files.listdir(self._context.layout.groups):
            number = parse_number(name)
            if number is not None and number not in replay.groups:
                self._find_lost(replay, number)


def _started(entry: StartEntry) -> Replayed:
    end = entry.end
    return Replayed(
        entry.group,
        entry.topic_id,
        entry.partition,
        end,
        entry.digest,
        None if entry.is_unadmitted else INITIAL_HARD_STATE,
        end,
        NOWHERE,
        (end.index, end.term, end.chain),
        None,
        end.term,
        is_fresh=True,
    )


def _verified(data: Buffer, index: int, chain: bytes) -> BatchHeader | None:
    """The header of a batch that is valid alone and is the promised one."""
    try:
        header = check_alone(data)
    except CorruptBatch:
        return None
    if header.index != index or header.chain != chain or header.batch_bytes != len(data):
        return None
    return header


def load_start(context: Context, group: int, index: int) -> tuple[Start, bytes]:
    """A start file and its digest. Raises Unreadable, also when it is not there, and OSError."""
    path = context.layout.start(group, index)
    try:
        file = context.files.open(path, writable=False)
    except FileNotFoundError as error:
        raise Unreadable("the start file is missing") from error
    try:
        return decode_start(file.pread(file.size(), 0), context.cluster_id, group)
    finally:
        file.close()


# --- R3 to R5: making the segments say it -----------------------------------------------------------------------------


@dataclass(slots=True)
class _Good:
    """A batch that is to stand in its segment."""

    header: BatchHeader
    place: Place
    placement: Placement | None
    """Where to take the bytes from; None: from its own place, to be written there again."""


@dataclass(slots=True)
class _Hole:
    """A batch that was promised and is nowhere readable."""

    index: int
    place: Place | None


@dataclass(slots=True)
class _Searched:
    """The rest of a segment, in which indexes up to `last_index` were searched for in vain."""

    segment: int
    begin: int
    position: int
    """Where `data` stands in the file."""
    data: bytes
    last_index: int


class Restorer:
    """Brings one group's directory to what the journal says."""

    def __init__(self, context: Context, replayed: Replayed) -> None:
        self._context = context
        self._replayed = replayed
        self._group = replayed.group
        self._directory = context.layout.group(replayed.group)
        self._files: dict[int, File] = {}
        self._present: list[int] = []
        self._stale: list[int] = []
        """Segments that are there, and were replaced before the rounds that were read."""
        self._names: list[str] = []
        self._created = False
        self._changed: set[int] = set()
        self._good: dict[int, _Good] = {}
        self._holes: list[_Hole] = []
        self._searched: _Searched | None = None

    def restore(self) -> Log:
        """R3: write, verify, cut, sync. Raises OSError; then nothing may be promised, and it can be repeated."""
        try:
            return self._restore()
        finally:
            for file in self._files.values():
                file.close()

    def _restore(self) -> Log:
        context, replayed = self._context, self._replayed
        log = self._load_log()
        self._list()
        anchor, anchor_place = self._anchor()
        self._collect(anchor, anchor_place)
        self._check_promised()
        end, end_place = self._end(anchor, anchor_place)
        touched = self._write(anchor, anchor_place, end)
        self._cut(log, anchor_place, end, touched)
        self._finish(log, touched, end, end_place)
        self._judge(log, anchor)
        if log.hard_state is None:
            context.report(HardStateLost(self._directory, self._group))
        log.known_term = max(replayed.known_term, log.end.term)
        log.changed()
        return log

    def _load_log(self) -> Log:
        replayed, context = self._replayed, self._context
        before = replayed.start
        try:
            start, digest = load_start(context, self._group, before.index)
            if digest != replayed.start_digest:
                raise Unreadable("the start file is not the one that the journal names")
            return Log(context, self._group, start, digest, replayed.hard_state)
        except Unreadable as error:
            path = context.layout.start(self._group, before.index)
            context.report(DamagedStart(path, self._group, before.index, str(error)))
            start = Start(
                before.index,
                before.term,
                before.next_offset,
                before.chain,
                before.append_timestamp,
                replayed.topic_id,
                replayed.partition,
                b"",
                b"",
            )
            return Log(context, self._group, start, replayed.start_digest, replayed.hard_state, is_start_readable=False)

    def _list(self) -> None:
        files = self._context.files
        if not files.exists(self._directory):
            files.mkdir(self._directory)
            files.sync_directory(self._context.layout.groups)
        self._names = files.listdir(self._directory)
        self._present = [number for name in self._names if (number := parse_number(name, SEGMENT_SUFFIX)) is not None]
        place = self._replayed.base_place
        if place != NOWHERE:
            # The batch of that place is not in a segment that begins later.
            self._stale = [first for first in self._present if place.segment < first <= self._replayed.base.index]
            self._present = [first for first in self._present if first not in self._stale]

    def _path(self, segment: int) -> str:
        return self._context.layout.segment(self._group, segment)

    def _file(self, segment: int) -> File | None:
        """A segment's file, if it is there."""
        file = self._files.get(segment)
        if file is None and segment in self._present:
            file = self._files[segment] = self._context.files.open(self._path(segment))
        return file

    def _segment_of(self, index: int) -> int | None:
        """The segment that would hold an index."""
        return max((first for first in self._present if first <= index), default=None)

    # Reading what is there.

    def _anchor(self) -> tuple[LogEnd, Place]:
        """The last batch that was in its segment, synced, before the rounds that were read; from there on, verify."""
        replayed = self._replayed
        start = replayed.start
        index = min(replayed.base.index, replayed.promised[0])
        if replayed.floor is not None:
            # It was damaged before: what was not intact is looked at again.
            index = min(index, replayed.floor.intact)
        if replayed.may_be_overwritten:
            # The promised end may stand there and follow from what is there no more: look at all that can be so.
            index = min(index, replayed.commit)
        if replayed.is_base_doubtful:
            # How far back the missing file reached, nothing tells; more than a segment is not looked at again.
            index = min(index, (self._segment_of(index) or 1) - 1)
        if index <= start.index:
            return start, NOWHERE
        # What the last batch must be, if anything tells.
        chain = replayed.promised[2] if index == replayed.promised[0] else b""
        if index == replayed.base.index and replayed.base_place != NOWHERE:
            chain = chain or replayed.base.chain
            header = self._header_at(replayed.base_place)
            if header is not None and header.chain == replayed.base.chain == chain and header.index == index:
                return replayed.base, replayed.base_place
        found, place = self._locate(index)
        if chain and found.index == index and found.chain != chain:
            # One that was replaced since. What is below may be as old, but then it is what the floor is for.
            return self._locate(index - 1)
        return found, place

    def _header_at(self, place: Place) -> BatchHeader | None:
        file = self._file(place.segment)
        if file is None:
            return None
        data = file.pread(HEADER_BYTES, place.position)
        if len(data) < HEADER_BYTES or not header_chain_holds(data):
            return None
        return decode_header(data)

    def _locate(self, index: int) -> tuple[LogEnd, Place]:
        """The batch of `index` in its segment, or the last readable one before it."""
        start = self._replayed.start
        while index > start.index:
            first = self._segment_of(index)
            if first is None:
                break
            file = self._file(first)
            assert file is not None
            walk = walk_headers(file, first, *self._walk_start(first, file, index), stop_index=index + 1)
            last = max(walk, key=lambda walked: walked.header.index, default=None)
            if last is not None and last.header.index > start.index:
                return last.end, last.place
            index = first - 1
        return start, NOWHERE

    def _walk_start(self, first: int, file: File, index: int) -> tuple[int, int, int]:
        """Where a walk to `index` may start: position, limit, index. By the index file if that is current."""
        segment = Segment(self._group, first, self._path(first), file.size(), file.size())
        if first <= self._replayed.start.index:
            segment.start = self._replayed.start
        entries, _ = load_entries(file, self._context, segment, file.size(), index + 1)
        position, at = SEGMENT_HEADER_BYTES, first
        for number, known in enumerate(entries.indexes):
            if known > index:
                break
            position, at = entries.positions[number], known
        return position, file.size(), at

    # Collecting what must be there.

    def _collect(self, anchor: LogEnd, anchor_place: Place) -> None:
        """Every batch from the anchor to the promised end, from the journal, or from its segment, or a hole."""
        replayed = self._replayed
        placements = {placement.index: placement for placement in replayed.placements}
        before: LogEnd | None = anchor
        cursor: Place | None = anchor_place
        index = anchor.index + 1
        while index <= replayed.promised[0] or replayed.is_end_uncertain:
            placement = placements.get(index)
            good = (
                self._from_placement(placement) if placement is not None else self._from_cursor(index, cursor, before)
            )
            if good is None and placement is None and index <= replayed.promised[0]:
                good = self._resync(index, cursor)
            if good is None and index > replayed.promised[0]:
                # Beyond what is known to be promised, where a lost round may have promised more: not there.
                return
            if good is None:
                self._holes.append(_Hole(index, placement.place if placement is not None else None))
                before = None
                cursor = placement.place if placement is not None else cursor
            else:
                if good.header.index != index:
                    # Found again further on: all between is lost.
                    self._holes += [_Hole(lost, None) for lost in range(index, good.header.index)]
                    index = good.header.index
                elif before is not None and not _follows(good.header, before):
                    # The promised one is right; what stands before it is not what it followed.
                    self._doubt(index - 1)
                self._good[index] = good
                before, cursor = _end_of(good.header), good.place
            index += 1

    def _from_placement(self, placement: Placement) -> _Good | None:
        if placement.header is not None:
            return _Good(placement.header, placement.place, placement)
        # The journal's copy is damaged: the segment may have it.
        file = self._file(placement.place.segment)
        if file is None:
            return None
        header = _verified(
            file.pread(placement.place.length, placement.place.position), placement.index, placement.chain
        )
        return _Good(header, placement.place, None) if header is not None else None

    def _from_cursor(self, index: int, cursor: Place | None, before: LogEnd | None) -> _Good | None:
        """A batch that only its segment can tell: right behind the one before, or at the beginning of its own."""
        candidates = []
        if index in self._present:
            candidates.append((index, SEGMENT_HEADER_BYTES))
        elif cursor is not None and cursor != NOWHERE:
            candidates.append((cursor.segment, cursor.end_position))
        else:
            first = self._segment_of(index)
            if first is not None and before is not None:
                _, place = self._locate(index)
                if place != NOWHERE:
                    candidates.append((place.segment, place.position))
        for segment, position in candidates:
            good = self._read_batch(segment, position, index)
            if good is not None and (before is None or _follows(good.header, before)):
                return good
        return None

    def _read_batch(self, segment: int, position: int, index: int) -> _Good | None:
        file = self._file(segment)
        if file is None:
            return None
        data = file.pread(HEADER_BYTES, position)
        if len(data) < HEADER_BYTES or not header_chain_holds(data):
            return None
        header = decode_header(data)
        if header.index != index:
            return None
        if _verified(file.pread(header.batch_bytes, position), index, header.chain) is None:
            return None
        return _Good(header, Place(segment, position, header.batch_bytes), None)

    def _resync(self, index: int, cursor: Place | None) -> _Good | None:
        """Behind a header that cannot be read: the next batch that can, by searching for its index."""
        first = self._segment_of(index)
        if first is None:
            return None
        file = self._file(first)
        assert file is not None
        begin = cursor.end_position if cursor is not None and cursor.segment == first else SEGMENT_HEADER_BYTES
        searched = self._searched
        if searched is None or (searched.segment, searched.begin) != (first, begin):
            # Space that was allocated and never written is zeros: not worth a search, and often all there is.
            whole = file.pread(file.size() - begin, begin)
            data = whole.lstrip(b"\0")
            position = begin + len(whole) - len(data)
            searched = self._searched = _Searched(first, begin, position, data.rstrip(b"\0"), index - 1)
        data = searched.data
        last = min(index + RESYNC_INDEXES_MAX, self._replayed.promised[0])
        # Each index is searched for once: a segment without a single readable batch costs its size for each, not more.
        for wanted in range(max(index, searched.last_index + 1), last + 1):
            searched.last_index = wanted
            pattern = INDEX_FIELD.pack(wanted)
            at = data.find(pattern)
            while at >= 0:
                position = searched.position + at - INDEX_FIELD_POSITION
                good = self._read_batch(first, position, wanted) if position >= begin else None
                if good is not None:
                    return good
                at = data.find(pattern, at + 1)
        return None

    def _doubt(self, index: int) -> None:
        """The batch of `index` is not the one that the next was promised to follow: it is stale, like those below."""
        good = self._good.pop(index, None)
        self._holes.append(_Hole(index, good.place if good is not None else None))
        while good is not None and good.placement is None:
            index -= 1
            below = self._good.get(index)
            if below is None or below.placement is not None:
                return
            good = self._good.pop(index)
            self._holes.append(_Hole(index, good.place))

    def _check_promised(self) -> None:
        """The last promised batch must be the promised one."""
        index, _, chain = self._replayed.promised
        good = self._good.get(index)
        if good is not None and good.header.chain != chain:
            self._doubt(index)

    def _end(self, anchor: LogEnd, anchor_place: Place) -> tuple[LogEnd, Place]:
        """The end of what is readable: behind it, holes are a lost end; before it, they are holes."""
        if not self._good:
            return anchor, anchor_place
        last = self._good[max(self._good)]
        return _end_of(last.header), last.place

    # Writing.

    def _write(self, anchor: LogEnd, anchor_place: Place, end: LogEnd) -> dict[int, int]:
        """Write every batch at its place; returns the end position of each segment that was touched.

        *Even if the bytes there look equal*: after a failed fsync the page cache shows what the disk lacks.
        """
        touched = self._touch_holes(anchor_place, end)
        run: list[Buffer] = []
        run_place = NOWHERE
        run_bytes = 0
        for index in sorted(self._good):
            good = self._good[index]
            place = good.place
            if run and (
                place.segment != run_place.segment
                or place.position != run_place.position + run_bytes
                or run_bytes >= WRITE_BYTES
            ):
                self._write_run(run_place, run)
                run, run_bytes = [], 0
            if not run:
                run_place = place
            if place.position == SEGMENT_HEADER_BYTES or place.segment not in self._present:
                self._write_header(place.segment, index, anchor)
            run.append(self._bytes_of(good))
            run_bytes += place.length
            touched[place.segment] = max(touched.get(place.segment, 0), place.end_position)
        if run:
            self._write_run(run_place, run)
        for placement in self._replayed.below:
            # A segment that begins before the log does is walked from its beginning.
            if placement.place.segment in touched and placement.header is not None:
                data = placement.file.pread(placement.place.length, placement.journal_position)
                self._write_run(placement.place, [data])
        return touched

    def _touch_holes(self, anchor_place: Place, end: LogEnd) -> dict[int, int]:
        """The segments that lead up to what is written, or that holes are to be filled in, and where they end."""
        touched: dict[int, int] = {}
        if anchor_place != NOWHERE:
            touched[anchor_place.segment] = anchor_place.end_position
        for hole in self._holes:
            if hole.index > end.index:
                continue
            if hole.place is not None and hole.place.segment in self._present:
                touched[hole.place.segment] = max(touched.get(hole.place.segment, 0), hole.place.end_position)
            elif (known := self._segment_of(hole.index)) is not None:
                # Where nothing else is left of a segment, it is still the one to fill the hole in.
                touched.setdefault(known, SEGMENT_HEADER_BYTES)
        first = self._replayed.start.index + 1
        if self._good and min(self._present + [good.place.segment for good in self._good.values()]) > first:
            # The log begins with a hole that lost its very file.
            self._create(first)
            self._write_block(first, self._replayed.start)
            touched[first] = SEGMENT_HEADER_BYTES
        return touched

    def _bytes_of(self, good: _Good) -> bytes:
        """A batch that was found whole, read again and looked at again: a disk may say something else each time."""
        file, position = self._file(good.place.segment), good.place.position
        if good.placement is not None:
            file, position = good.placement.file, good.placement.journal_position
        assert file is not None
        data = file.pread(good.place.length, position)
        if _verified(data, good.header.index, good.header.chain) is None:
            raise OSError(
                errno.EIO, f"index {good.header.index} was whole, and is not when it is read again", file.path
            )
        return data

    def _write_run(self, place: Place, buffers: list[Buffer]) -> None:
        file = self._file(place.segment)
        assert file is not None
        file.pwritev(buffers, place.position)
        self._changed.add(place.segment)

    def _write_header(self, first: int, index: int, anchor: LogEnd) -> None:
        """The header block of a segment whose first batch is written: it may be missing or torn."""
        if first not in self._present:
            self._create(first)
        if index != first:
            return
        header = self._good[index].header
        known = self._good.get(index - 1)
        if known is not None:
            term, timestamp = known.header.term, known.header.append_timestamp
        elif anchor.index == index - 1:
            term, timestamp = anchor.term, anchor.append_timestamp
        else:
            term, timestamp = header.term, header.append_timestamp
        self._write_block(first, LogEnd(index - 1, term, header.base_offset, timestamp, header.previous_chain))

    def _create(self, first: int) -> None:
        """Make a segment's file anew."""
        self._files[first] = self._context.files.open(self._path(first), create=True)
        self._present.append(first)
        self._present.sort()
        self._created = True

    def _write_block(self, first: int, before: LogEnd) -> None:
        """Write the header block of a segment that follows `before`."""
        replayed = self._replayed
        block = encode_segment_header(
            SegmentHeader(self._group, self._context.cluster_id, replayed.topic_id, replayed.partition, first, before)
        )
        file = self._files.get(first) or self._file(first)
        assert file is not None
        file.pwritev([block], 0)
        self._changed.add(first)

    def _cut(self, log: Log, anchor_place: Place, end: LogEnd, touched: dict[int, int]) -> None:
        """Cut what lies beyond the end, highest first; sync what was written."""
        files = self._context.files
        start = log.start
        if end.index == start.index:
            keep: set[int] = set()
        else:
            lowest = self._segment_of(start.index + 1)
            oldest = anchor_place.segment if anchor_place != NOWHERE else 0
            keep = {first for first in self._present if (lowest or 0) <= first <= oldest} | set(touched)
        is_cut = self._replayed.has_voided
        for first in sorted(self._present + self._stale, reverse=True):
            if first in keep:
                continue
            if first <= start.index and first not in self._stale:
                continue  # below the start: unlinked once the new table is durable
            if first > end.index + 1 or self._has_batches(first):
                self._context.report(TornTail(self._path(first), 0, "a segment beyond the promised end"))
            self._close(first)
            files.unlink(self._path(first))
            is_cut = True
        for first, end_position in sorted(touched.items()):
            file = self._file(first)
            assert file is not None
            if file.size() > end_position:
                if any(file.pread(HEADER_BYTES, end_position)):
                    self._context.report(TornTail(self._path(first), end_position, "bytes beyond the promised end"))
                file.truncate(end_position)
                self._changed.add(first)
            if first in self._changed:
                file.sync()
        if is_cut or self._created:
            files.sync_directory(self._directory)
        self._present = [first for first in self._present if first in keep or first <= start.index]

    def _has_batches(self, first: int) -> bool:
        file = self._file(first)
        return file is not None and any(file.pread(HEADER_BYTES, SEGMENT_HEADER_BYTES))

    def _close(self, first: int) -> None:
        file = self._files.pop(first, None)
        if file is not None:
            file.close()

    # Saying what is there now.

    def _finish(self, log: Log, touched: dict[int, int], end: LogEnd, end_place: Place) -> None:
        """The log's state, and what is to be unlinked once the new table is durable."""
        context = self._context
        garbage: list[str] = []
        kept = []
        lowest = self._segment_of(log.start.index + 1) or 0
        for first in self._present:
            if end.index == log.start.index or first < lowest:
                garbage.append(self._path(first))
            else:
                kept.append(first)
        segments = []
        for first in kept:
            end_position = touched.get(first)
            if end_position is None:
                file = context.files.open(self._path(first), writable=False)
                end_position = max(file.size(), SEGMENT_HEADER_BYTES)
                file.close()
            segment = Segment(self._group, first, self._path(first), end_position, end_position)
            segments.append(segment)
        if segments and segments[0].first_index <= log.start.index:
            segments[0].start = log.start.end
        for segment, following in pairwise(segments):
            segment.is_sealed = True
            known = self._good.get(following.first_index - 1)
            if segment.first_index in touched and known is not None:
                segment.last, segment.last_place = _end_of(known.header), known.place
            else:
                segment.is_finished = True
        log.segments = tuple(segments)
        log.tail = log.end = log.written = end
        log.tail_place = log.end_place = log.written_place = end_place
        self._index_holes(segments, end)
        live = {number_name(number) + INDEX_SUFFIX for number in kept}
        for name in self._names:
            is_start = parse_number(name, START_SUFFIX) not in (None, log.start.index)
            is_known = name.endswith((SEGMENT_SUFFIX, START_SUFFIX)) or name in live
            if is_start or not is_known:
                garbage.append(f"{self._directory}/{name}")
        context.garbage.add(garbage)

    def _index_holes(self, segments: list[Segment], end: LogEnd) -> None:
        """Behind a hole no walk gets further, so the batch behind it needs an entry of its own."""
        behind = {hole.index + 1 for hole in self._holes if hole.index < end.index}
        if not behind:
            return
        by_first = {segment.first_index: segment for segment in segments}
        for index in sorted(self._good):
            good = self._good[index]
            segment = by_first[good.place.segment]
            if segment.entries is None:
                source = self._file(segment.first_index)
                assert source is not None
                segment.entries, _ = load_entries(source, self._context, segment, segment.end_position, None)
            known = segment.entries.positions
            if good.place.position > (known[-1] if known else 0) and (index in behind or not known):
                header = good.header
                append_entry(segment.entries, good.place.position, header.base_offset, index, header.append_timestamp)

    def _judge(self, log: Log, anchor: LogEnd) -> None:
        """R4: what was promised and is not there."""
        replayed = self._replayed
        index, term, chain = replayed.promised
        end = log.end
        damages = [self._damage(hole, anchor) for hole in sorted(self._holes, key=lambda hole: hole.index)]
        log.damage = tuple(_merge(damage for damage in damages if damage.first_index < end.index))
        for damage in _merge(damages):
            self._context.report(
                Corruption(
                    self._path(damage.segment),
                    self._group,
                    damage.position,
                    damage.first_index,
                    damage.next_index,
                    "promised, and readable neither in the journal nor in its segment",
                )
            )
        if replayed.is_end_uncertain:
            # A round that may have promised more cannot be read. A floor that is too high lasts longer than need be;
            # one that is too low would let a promise be broken.
            index = max(index + max(replayed.lost_batches_max, 1), end.index + 1)
            term, chain = replayed.known_term, BLANK_DIGEST
        if log.damage or end.index < index:
            log.floor = Floor(index, term, chain, log.intact_index)
        known = replayed.floor
        is_damaged = log.floor is not None or (known is not None and not known.is_reached_by(end))
        if (
            known is not None
            and is_damaged
            and (log.floor is None or (known.term, known.index) > (log.floor.term, log.floor.index))
        ):
            log.floor = known._replace(intact=log.intact_index)

    def _damage(self, hole: _Hole, anchor: LogEnd) -> Damage:
        # Within a longer hole offsets are only known at its two ends; `_merge` puts them together.
        before = self._good.get(hole.index - 1)
        after = self._good.get(hole.index + 1)
        base_offset = before.header.next_offset if before is not None else anchor.next_offset
        next_offset = after.header.base_offset if after is not None else base_offset
        if hole.place is not None:
            segment, position = hole.place.segment, hole.place.position
        else:
            segment = self._segment_of(hole.index) or hole.index
            position = before.place.end_position if before is not None and before.place.segment == segment else 0
        return Damage(hole.index, hole.index + 1, base_offset, next_offset, segment, position)


def _end_of(header: BatchHeader) -> LogEnd:
    return LogEnd(header.index, header.term, header.next_offset, header.append_timestamp, header.chain)


def _follows(header: BatchHeader, before: LogEnd) -> bool:
    return header.previous_chain == before.chain and header.base_offset == before.next_offset


def _merge(damages: Iterable[Damage]) -> list[Damage]:
    """Neighbouring holes as one range."""
    merged: list[Damage] = []
    for damage in damages:
        last = merged[-1] if merged else None
        if last is not None and last.next_index == damage.first_index:
            merged[-1] = Damage(
                last.first_index,
                damage.next_index,
                last.base_offset,
                damage.next_offset,
                last.segment,
                last.position,
            )
        else:
            merged.append(damage)
    return merged
