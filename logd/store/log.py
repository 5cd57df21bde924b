"""One group's log: where it starts, where it ends, which segments it consists of, and how room for more is made.

For: the store, which moves logs by rounds, and the owner, who reads their state. Must not know: how a round becomes
durable. The one idea: a log has three ends. `tail` is where the next batch goes (a round is being written), `end` is
what was promised, `written` is what readers may see; `tail >= end >= written`, except while a suffix is being
replaced.

All of it belongs to the owner's thread; what touches the disk is a job.
"""

import errno
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from logd.store.context import Context
from logd.store.errors import ReadOutdated, Unreadable, WrongEntry
from logd.store.files import File
from logd.store.format import (
    NOWHERE,
    SEGMENT_HEADER_BYTES,
    Floor,
    HardState,
    IndexEntries,
    LogEnd,
    Place,
    SegmentHeader,
    Start,
    TableRow,
    blank_entries,
    encode_row,
    encode_start,
)
from logd.store.index import cut_entries, floor_by_index, index_path, is_current, load_entries, read_index_file
from logd.store.jobs import Barrier, Job, sync, sync_directory
from logd.store.read import Read, ReadByIndex, ReadByOffset, ReadByTime, SegmentSource, batch_headers
from logd.store.retention import retention_boundary
from logd.store.segment import Segment, create_segment_file, walk_headers
from wire.errors import OffsetOutOfRange
from wire.record import BatchHeader


@dataclass(frozen=True, slots=True)
class Damage:
    """Indexes `[first_index, next_index)`, and so offsets `[base_offset, next_offset)`, that cannot be read."""

    first_index: int
    next_index: int
    base_offset: int
    next_offset: int
    segment: int
    position: int


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a suffix that is about to be replaced begins."""

    index: int
    segment: Segment
    """The segment that the new batch of `index` goes into."""
    position: int
    before: LogEnd
    before_place: Place
    entries: IndexEntries


class Placed:
    """Batches of one round and one log that are in the journal but perhaps not yet in their segments."""

    __slots__ = ("end", "end_place", "is_durable", "items")

    def __init__(self, end: LogEnd, end_place: Place, items: list[tuple[BatchHeader, Segment, int]]) -> None:
        self.items = items
        self.is_durable = False
        # What `written` becomes once they are; lower than the last of `items` if a later round replaces some of them.
        self.end = end
        self.end_place = end_place


class Log:
    """One group's log on this node."""

    def __init__(
        self,
        context: Context,
        group: int,
        start: Start,
        start_digest: bytes,
        hard_state: HardState | None,
        *,
        is_start_readable: bool = True,
    ) -> None:
        self.context = context
        self.group = group
        self.directory = context.layout.group(group)
        self.start = start
        self.start_digest = start_digest
        self.is_start_readable = is_start_readable
        """False: the start file is damaged; `start` is what the journal knows, without membership and producers."""
        self.hard_state = hard_state
        """What the last durable round says. None: lost; the replica is a wiped voter."""
        self.known_term = hard_state.term if hard_state is not None else start.term
        """No term above this one was ever seen here, as far as anything readable tells."""
        self.floor: Floor | None = None
        """The promised end that the log no longer reaches, or below which it has holes."""
        self.damage: tuple[Damage, ...] = ()
        """What cannot be read, in order. Invariant: empty if `floor` is None."""
        # Invariant: where no suffix is being replaced, start.index <= written.index <= end.index <= tail.index.
        self.tail = self.end = self.written = start.end
        self.tail_place = self.end_place = self.written_place = NOWHERE
        self.segments: tuple[Segment, ...] = ()
        """In order. Replaced as a whole, so that a plan may keep the one it has seen."""
        self.unwritten: deque[Placed] = deque()
        self.voids_unwritten = 0
        """Rounds under way that will unlink segments: no segment is created before they did, for the names may meet."""
        self.cut: Cut | None = None
        self.cuts_made = 0
        """How often a suffix or the whole log was replaced: a cut that was found before is of no use after."""
        self.checkpointed: LogEnd | None = None
        """The tail that the last checkpoint of the active segment's index covers."""
        self.prepared_starts: dict[int, tuple[Start, bytes]] = {}
        """Starts whose files are written and that no durable round has named, by index.

        Invariant: above `start`, or at it to replace one that is not readable.
        """
        self.is_removed = False
        self._space_job: SpaceJob | None = None
        self._row: bytes | None = None

    def __repr__(self) -> str:
        return f"<Log {self.group}: {self.start.index} to {self.end.index}>"

    # --- State ------------------------------------------------------------------------------------------------------

    @property
    def log_start_offset(self) -> int:
        return self.start.offset

    @property
    def log_end_offset(self) -> int:
        """One past the last promised record."""
        return self.end.next_offset

    @property
    def written_next_offset(self) -> int:
        """Readers see `min(high watermark, this)`."""
        return self.written.next_offset

    @property
    def written_index(self) -> int:
        return self.written.index

    @property
    def intact_index(self) -> int:
        """The last index of the prefix that has no hole: what a damaged replica may acknowledge."""
        return self.damage[0].first_index - 1 if self.damage else self.end.index

    @property
    def retained_bytes(self) -> int:
        """Bytes of the retained segments."""
        return sum(segment.end_position for segment in self.segments)

    @property
    def active(self) -> Segment | None:
        """The segment that is appended to."""
        return self.segments[-1] if self.segments and not self.segments[-1].is_sealed else None

    def row(self) -> bytes:
        """This group's row of a table, as of the last durable round."""
        if self._row is None:
            self._row = encode_row(
                TableRow(
                    self.group,
                    self.start.topic_id,
                    self.start.partition,
                    self.start.end,
                    self.start_digest,
                    self.hard_state,
                    self.end,
                    self.end_place,
                    self.floor,
                )
            )
        return self._row

    def changed(self) -> None:
        """Forget what was derived from `start`, `hard_state`, `end` or `floor`."""
        self._row = None

    # --- Room -------------------------------------------------------------------------------------------------------

    def space_for(
        self, batch_bytes: int, *, index: int | None = None, control: bool = False
    ) -> "SpaceJob | Barrier | None":
        """Make sure that batches of this group fit into the next round.

        Arguments: `batch_bytes`, of *all* batches of this group that wait for the next round, headers included;
        `index`, of the first of them if it replaces a suffix (`index <= end.index`); `control`, for control batches
        alone, which may use the disk's reserve.

        Returns None if the room is there. Otherwise a job: run it on the housekeeping thread, apply it, ask again; a
        `Barrier` waits for what is under way, which may be the settling of a round. `prepare_round` raises NoRoom
        where the room was lost again, because housekeeping began to finish the segment that a suffix is replaced in.
        `run` raises OSError(ENOSPC) when there is no room, or less than `disk_reserve_bytes` would be left; nothing has
        changed then, and the batches are refused with DiskFull. Any other OSError is final for the process.
        """
        if self._space_job is not None and not self._space_job.is_over:
            return Barrier()
        job: SpaceJob | Barrier | None
        if index is not None and index <= self.tail.index:
            if self.cut is not None and self.cut.segment.busy:
                return Barrier()
            job = self._space_for_replacing(index, batch_bytes, control=control)
        else:
            job = self._space_for_appending(batch_bytes, control=control)
        if isinstance(job, SpaceJob):
            self._space_job = job
        return job

    def _space_for_appending(self, batch_bytes: int, *, control: bool) -> "SpaceJob | Barrier | None":
        segment = self.active
        if segment is None:
            # A log that was replaced while segments of the old one are still to be unlinked: the names may be the same.
            return Barrier() if self.voids_unwritten else RollJob(self, batch_bytes, control=control)
        end = segment.end_position + batch_bytes
        # While a suffix is being replaced the segment may grow beyond its bound, by a round at most.
        if end > self.context.options.segment_bytes_max and not segment.is_empty and not self.voids_unwritten:
            return RollJob(self, batch_bytes, control=control)
        return None if end <= segment.allocated else ExtendJob(self, segment, end, control=control)

    def _space_for_replacing(self, index: int, batch_bytes: int, *, control: bool) -> "SpaceJob | None":
        if index <= self.start.index:
            raise WrongEntry(f"group {self.group}: index {index} is not after the start {self.start.index}")
        cut = self.cut
        if cut is None or cut.index != index:
            return CutJob(self, index)
        end = cut.position + batch_bytes
        return None if end <= cut.segment.allocated else ExtendJob(self, cut.segment, end, control=control)

    def wants_room(self) -> bool:
        """Whether it is time to reserve more of the active segment, before a batch has to wait for it."""
        segment = self.active
        if segment is None or (self._space_job is not None and not self._space_job.is_over):
            return False
        options = self.context.options
        used = segment.end_position - SEGMENT_HEADER_BYTES
        left = segment.allocated - segment.end_position
        return segment.allocated < options.segment_bytes_max and used > left and not segment.is_empty

    def room_ahead(self) -> "SpaceJob":
        """The job for `wants_room`; one that finds no space is no error: the next `space_for` will say so."""
        segment = self.active
        assert segment is not None
        self._space_job = RoomAheadJob(self, segment, segment.allocated + 1, control=False)
        return self._space_job

    def seal(self) -> None:
        """Never append to the active segment again, if there is one."""
        segment = self.active
        if segment is None:
            return
        segment.is_sealed = True
        segment.last = self.tail
        segment.last_place = self.tail_place
        segment.producers = self.context.producers_of(self.group)
        # Its file is to be cut to its end, and its index written, before the journal forgets what is in it.
        self.context.mark_dirty(segment)

    def find_unwritten(self, index: int) -> tuple[LogEnd, Place] | None:
        """A batch that may not be in its segment yet."""
        for placed in reversed(self.unwritten):
            for header, segment, position in reversed(placed.items):
                if header.index == index:
                    end = LogEnd(index, header.term, header.next_offset, header.append_timestamp, header.chain)
                    return end, Place(segment.first_index, position, header.batch_bytes)
        return None

    def note_damage(self, first_index: int, next_index: int, base_offset: int, next_offset: int) -> bool:
        """See `Store.note_damage`; says whether that is news."""
        if not self.start.index < first_index < next_index <= self.end.index + 1:
            raise WrongEntry(f"group {self.group}: no indexes {first_index} to {next_index} between start and end")
        if any(damage.first_index <= first_index and next_index <= damage.next_index for damage in self.damage):
            return False
        segment = max((s.first_index for s in self.segments if s.first_index <= first_index), default=first_index)
        noted = Damage(first_index, next_index, base_offset, next_offset, segment, 0)
        kept = [d for d in self.damage if d.next_index <= first_index or next_index <= d.first_index]
        self.damage = tuple(sorted([*kept, noted], key=lambda damage: damage.first_index))
        floor = self.floor or Floor(self.end.index, self.end.term, self.end.chain, 0)
        self.floor = floor._replace(intact=self.intact_index)
        self.changed()
        return True

    # --- Steps of rounds ---------------------------------------------------------------------------------------------

    def settle_floor(self) -> None:
        """The floor is gone once the log reaches it again without a hole below."""
        if self.floor is not None and not self.damage and self.floor.is_reached_by(self.end):
            self.floor = None

    def move_start(self, start: Start, digest: bytes, *, keeps_suffix: bool) -> None:
        """A `start` is durable: drop what lies before it, or everything."""
        garbage = self.context.garbage
        if start.index != self.start.index:
            garbage.add([self.context.layout.start(self.group, self.start.index)])
        self.start, self.start_digest, self.is_start_readable = start, digest, True
        self.cut = None
        self.cuts_made += 1
        self.prepared_starts = {index: known for index, known in self.prepared_starts.items() if index > start.index}
        if keeps_suffix:
            # A segment is wholly below the start if the next one begins at or before the first retained index.
            keep = 0
            while keep + 1 < len(self.segments) and self.segments[keep + 1].first_index <= start.index + 1:
                keep += 1
            dropped, self.segments = self.segments[:keep], self.segments[keep:]
            if self.segments and self.segments[0].first_index <= start.index:
                self.segments[0].start = start.end
            if self.written.index < start.index:
                self.written, self.written_place = start.end, NOWHERE
            self.damage = tuple(damage for damage in self.damage if damage.next_index > start.index + 1)
        else:
            dropped, self.segments = self.segments, ()
            self.tail = self.end = self.written = start.end
            self.tail_place = self.end_place = self.written_place = NOWHERE
            self.unwritten.clear()
            self.damage = ()
        self.retire(dropped)

    def retire(self, segments: tuple[Segment, ...]) -> None:
        """Give segments up: nobody opens them any more, and housekeeping unlinks them, lowest first."""
        for segment in segments:
            segment.is_retired = True
            segment.unpin()
            self.context.garbage.add([segment.path, index_path(segment)])
            self.context.open_files.forget(segment)

    # --- Starting anew ----------------------------------------------------------------------------------------------

    def prepare_start(self, start: Start) -> Job:
        """Write a new start file, for retention or a snapshot; then put `SetStart` into a round.

        Raises WrongEntry if the start lies at or below the present one (at it, while that is not readable, it takes
        its place), or if another of its index was prepared.
        """
        if not self.can_start_at(start.index):
            raise WrongEntry(f"group {self.group}: start {start.index} is not above {self.start.index}")
        known = self.prepared_starts.get(start.index)
        if known is not None and known[0] != start:
            # A round may name the other one already, and there is one file for both.
            raise WrongEntry(f"group {self.group}: another start of index {start.index} was prepared")
        return StartJob(self, start)

    def can_start_at(self, index: int) -> bool:
        """Whether the log's start may move there."""
        return index > self.start.index or (index == self.start.index and not self.is_start_readable)

    # --- Reading ----------------------------------------------------------------------------------------------------

    def plan_read(self, offset: int, end_offset: int, bytes_max: int) -> Read:
        """A read of whole contiguous batches from the one that holds `offset`, below `end_offset`.

        Arguments: `end_offset`, `min(high watermark, written_next_offset)`; `bytes_max`, exceeded if the first batch
        alone does. Control batches between are included.
        Returns a plan that can run on any thread; see `Read.run`. Raises OffsetOutOfRange below `log_start_offset`.
        """
        if offset < self.start.offset:
            raise OffsetOutOfRange(
                f"offset {offset} is below {self.start.offset}",
                {"log_start_offset": self.start.offset, "offset": offset},
            )
        return ReadByOffset(self, offset, min(end_offset, self.written.next_offset), bytes_max)

    def plan_read_index(self, index: int, end_index: int, bytes_max: int) -> Read:
        """A read of whole batches with indexes in `[index, end_index)`, at least one if there is any.

        Raises OffsetOutOfRange at or below the start.
        """
        if index <= self.start.index:
            raise OffsetOutOfRange(f"index {index} is not after the start {self.start.index}", {"index": index})
        return ReadByIndex(self, index, min(end_index, self.written.index + 1), bytes_max)

    def offset_at(self, timestamp_ms: int) -> ReadByTime:
        """A plan whose `run` gives the first offset whose batch was appended at or after a time (ms since 1970).

        It gives `written_next_offset` if there is none. Bound it by the high watermark.
        """
        return ReadByTime(self, timestamp_ms)

    def headers_from(self, index: int, next_index: int | None = None) -> Iterator[BatchHeader]:
        """The headers of the batches `[index, next_index)`, by default to the end.

        Reads on the calling thread, for start-up. A damaged log is read up to `intact_index + 1`. Raises CorruptBatch
        where one does not verify, and OSError.
        """
        return batch_headers(self, index, next_index)

    def retention_boundary(
        self, now_ms: int, retention_bytes: int | None = None, retention_ms: int | None = None
    ) -> LogEnd | None:
        """The highest end of a segment up to which a limit lets the log be given up; None if there is none.

        Arguments: `now_ms`, ms since 1970; `retention_bytes`, the retained bytes to keep at least; `retention_ms`, how
        old by `append_timestamp` a segment's last batch must be. None for no limit of that kind. The active segment is
        never given up. The caller adds membership and producer table to make a `Start` of it. Reads at most one block
        of each segment that is given up, once; raises OSError.
        """
        return retention_boundary(self, now_ms, retention_bytes, retention_ms)

    def producers_checkpoint(self, index_max: int | None = None) -> tuple[int, bytes]:
        """The newest usable producer table up to `index_max` (default: the end) and the index up to which it is true.

        From an index file, whose batch must still be there, or from the start. The headers after it follow in
        `headers_from(index + 1)`. Reads on the calling thread. Raises OSError.
        """
        limit = self.end.index if index_max is None else index_max
        for segment in reversed(self.segments):
            if segment.first_index > limit:
                continue
            try:
                found = self._producers_of(segment)
            except (Unreadable, ReadOutdated, OSError):
                continue
            if found is not None and self.start.index <= found[0] <= limit:
                return found
        return self.start.index, self.start.producers

    def _producers_of(self, segment: Segment) -> tuple[int, bytes] | None:
        index = read_index_file(self.context.files, index_path(segment), self.group, segment.first_index)
        if index is None or index.producers is None or not is_current(SegmentSource(self.context, segment), index):
            return None
        # What was true up to an index below the segment is vouched for by the chain of the batch that was checked.
        return index.producers if index.producers[0] <= index.covered.index else None


# --- Jobs -----------------------------------------------------------------------------------------------------------


class SpaceJob:
    """Makes room in a log. One at a time for each log."""

    def __init__(self, log: Log, *, control: bool) -> None:
        self.log = log
        self._context = log.context
        self._control = control
        # Set when it was applied or has failed: the log may ask for another. A plain attribute, written once by
        # whichever thread gets there.
        self.is_over = False

    def run(self) -> None:
        """See `Log.space_for`."""
        try:
            self._run()
        except BaseException:
            self.is_over = True
            raise

    def apply(self) -> None:
        """Make the room known."""
        self.is_over = True
        if not self.log.is_removed:
            self._apply()

    def _run(self) -> None:
        raise NotImplementedError

    def _apply(self) -> None:
        raise NotImplementedError

    def _affordable(self, wanted: int, needed: int) -> int:
        """How much to allocate: what is wanted if the disk can afford it, else what is needed, else OSError(ENOSPC)."""
        reserve = self._context.options.disk_reserve_bytes
        free = self._context.files.free_bytes(self._context.layout.directory)
        for length in (wanted, needed):
            if free - length >= reserve:
                return length
        if self._control and free >= needed:
            return needed
        raise OSError(errno.ENOSPC, f"{free} bytes are free and {reserve} are kept in reserve", self.log.directory)

    def _chunk(self, allocated: int, end_position: int) -> int:
        """How much is wanted beyond `allocated`: as much again, within bounds, and not past the segment's bound."""
        options = self._context.options
        chunk = min(max(allocated, options.allocation_bytes_min), options.allocation_bytes_max)
        return max(end_position - allocated, min(chunk, options.segment_bytes_max - allocated))


class ExtendJob(SpaceJob):
    """Reserves more of a segment."""

    def __init__(self, log: Log, segment: Segment, end_position: int, *, control: bool) -> None:
        super().__init__(log, control=control)
        self._segment = segment
        self._from = segment.allocated
        self._needed = end_position - segment.allocated
        self._wanted = self._chunk(segment.allocated, end_position)
        self._allocated = 0

    def _run(self) -> None:
        length = self._affordable(self._wanted, self._needed)
        try:
            borrowed = self._context.open_files.borrow(self._segment)
        except ReadOutdated:
            return  # the segment was given up meanwhile: the next `space_for` will ask for another
        assert borrowed is not None
        with borrowed as file:
            file.allocate(self._from, length)
            # A reservation that a power cut could take back is none.
            sync(file)
        self._allocated = self._from + length

    def _apply(self) -> None:
        self._segment.allocated = max(self._segment.allocated, self._allocated)


class RoomAheadJob(ExtendJob):
    """Reserves more of a segment before anybody waits for it."""

    def _run(self) -> None:
        try:
            super()._run()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self._allocated = 0  # whoever needs the room will ask for it, and hear the same


class RollJob(SpaceJob):
    """Seals the active segment and makes the next one, which starts after the log's tail."""

    def __init__(self, log: Log, batch_bytes: int, *, control: bool) -> None:
        super().__init__(log, control=control)
        self._before = log.tail
        self._first_index = log.tail.index + 1
        self._path = self._context.layout.segment(log.group, self._first_index)
        self._header = SegmentHeader(
            log.group,
            self._context.cluster_id,
            log.start.topic_id,
            log.start.partition,
            self._first_index,
            log.tail,
        )
        # A leftover of this name would be replaced by `run`; a later unlink would take the new file.
        self._context.garbage.spare(self._path)
        self._needed = SEGMENT_HEADER_BYTES + batch_bytes
        self._wanted = self._chunk(0, self._needed)
        self._file: File | None = None
        self._allocated = 0

    def _run(self) -> None:
        self._allocated = self._affordable(self._wanted, self._needed)
        self._file = create_segment_file(self._context, self._path, self._header, self._allocated)
        sync_directory(self._context.files, self.log.directory)

    def _apply(self) -> None:
        log = self.log
        assert self._file is not None
        if log.tail != self._before:
            # The log was replaced while its next segment was being made.
            self._file.close()
            self._context.garbage.add([self._path])
            return
        log.seal()
        segment = Segment(log.group, self._first_index, self._path, SEGMENT_HEADER_BYTES, self._allocated)
        segment.before = self._before
        segment.entries = blank_entries()
        self._context.open_files.adopt(segment, self._file)
        log.segments = (*log.segments, segment)


class Missing(OSError):
    """A batch that must be in a segment is not found there: nothing can be put behind it."""


class CutJob(SpaceJob):
    """Finds where a suffix begins that is about to be replaced."""

    def __init__(self, log: Log, index: int) -> None:
        super().__init__(log, control=False)
        self._index = index
        self._segments = log.segments
        self._start = log.start
        self._cuts_made = log.cuts_made
        self._known = log.find_unwritten(index - 1)
        self._cut: Cut | None = None

    def _run(self) -> None:
        index = self._index
        segment = next(segment for segment in reversed(self._segments) if segment.first_index <= index)
        entries = segment.entries
        if entries is None:
            source = SegmentSource(self._context, segment)
            entries, _ = load_entries(source, self._context, segment, segment.end_position, index + 1)
        if index - 1 == self._start.index:
            before, place = self._start.end, NOWHERE
            position = self._position_of_first(segment, entries)
        else:
            before, place = self._known if self._known is not None else self._locate(index - 1)
            # A batch that begins a segment goes to its beginning, any other behind the one before it.
            position = SEGMENT_HEADER_BYTES if segment.first_index == index else place.end_position
        self._cut = Cut(index, segment, position, before, place, cut_entries(entries, index))

    def _position_of_first(self, segment: Segment, entries: IndexEntries) -> int:
        """Where the first retained batch stands, or is to stand."""
        if segment.first_index == self._index:
            return SEGMENT_HEADER_BYTES
        if self._known is not None:
            return self._known[1].end_position
        # The log begins in the middle of a segment.
        entry = floor_by_index(entries, self._index)
        if entry >= 0 and entries.indexes[entry] == self._index:
            return entries.positions[entry]
        try:
            return self._locate(self._index - 1)[1].end_position
        except Missing:
            # Nothing that was before it can be read, nor needs to be.
            return SEGMENT_HEADER_BYTES

    def _locate(self, index: int) -> tuple[LogEnd, Place]:
        segment = next(segment for segment in reversed(self._segments) if segment.first_index <= index)
        source = SegmentSource(self._context, segment)
        entries = segment.entries
        if entries is None:
            entries, _ = load_entries(source, self._context, segment, segment.end_position, index + 1)
        entry = floor_by_index(entries, index)
        position, first = SEGMENT_HEADER_BYTES, segment.first_index
        if entry >= 0:
            position, first = entries.positions[entry], entries.indexes[entry]
        for walked in walk_headers(source, segment.first_index, position, segment.end_position, first, index + 1):
            if walked.header.index == index:
                return walked.end, walked.place
        raise Missing(errno.EIO, f"index {index} cannot be found in its segment: it is damaged", segment.path)

    def _apply(self) -> None:
        assert self._cut is not None
        if self.log.cuts_made == self._cuts_made and self.log.segments[: len(self._segments)] == self._segments:
            self.log.cut = self._cut


class StartJob:
    """Writes a start file, synced with its name."""

    def __init__(self, log: Log, start: Start) -> None:
        self._log = log
        self._start = start
        self._path = log.context.layout.start(log.group, start.index)
        self._content, self._digest = encode_start(log.context.cluster_id, log.group, start)

    def run(self) -> None:
        """Write the file. ENOSPC leaves nothing behind and is not final."""
        write_start_file(self._log.context, self._log.directory, self._path, self._content)

    def apply(self) -> None:
        """Allow `SetStart` with this start."""
        if self._log.can_start_at(self._start.index):
            self._log.prepared_starts[self._start.index] = (self._start, self._digest)


def write_start_file(context: Context, directory: str, path: str, content: bytes) -> None:
    """A start file as a whole, synced with its name.

    A leftover of the same name is replaced: no journal names it. If it has the same content a round may name it, so it
    is not taken away for a moment; its bytes are written again all the same, for a sync of them may have failed.
    """
    files = context.files
    is_same = False
    if files.exists(path):
        old = files.open(path, writable=False)
        is_same = old.size() == len(content) and old.pread(len(content), 0) == content
        old.close()
        if not is_same:
            files.unlink(path)
    file = files.open(path, create=not is_same, exclusive=not is_same)
    try:
        try:
            file.pwritev([content], 0)
        except OSError:
            if not is_same:
                files.unlink(path)
            raise
        sync(file)
    finally:
        file.close()
    sync_directory(files, directory)
