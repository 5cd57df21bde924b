"""Reads of a log: planned on the owner's thread, run on any.

For: consumers (by offset), replication and replay (by index), and `ListOffsets` (by time). Must not know: watermarks,
or who asks. The one idea: a plan captures the log's list of segments and its bounds; running it touches only files and
the published, unchanging parts of a segment. It walks the headers of what it read, so that every batch it returns
follows from the one before it by index and offset, and a damaged header is an error with a range, never the end of the
log.
"""

from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from logd.store.context import Context
from logd.store.errors import Unreadable
from logd.store.format import SEGMENT_HEADER_BYTES, IndexEntries, LogEnd
from logd.store.index import floor_by_index, floor_by_offset, load_entries
from logd.store.segment import WALK, Segment, Source, load_before, walk_headers
from wire.errors import CorruptBatch
from wire.record import HEADER_BYTES, LENGTH_FIELD_BYTES, BatchHeader

if TYPE_CHECKING:
    from logd.store.log import Log

# A batch's header says its length; a damaged one may say anything. No batch is longer than a frame of a peer (8 MiB),
# and a reader allocates what the header says, so there has to be a bound that every configuration respects.
BATCH_BYTES_SANE_MAX: Final = 64 << 20


class WouldBlock(Exception):  # a signal between a source and `run`, never seen outside
    """What a read needs is not in memory."""


class SegmentSource:
    """A segment's bytes by way of the open files; may wait for the disk."""

    __slots__ = ("_context", "_segment")

    def __init__(self, context: Context, segment: Segment) -> None:
        self._context = context
        self._segment = segment

    def pread(self, length: int, position: int) -> bytes:
        """As `File.pread`."""
        return self._context.open_files.pread(self._segment, length, position)


class _NowaitSource:
    """A segment's bytes as far as they are in memory; raises WouldBlock otherwise."""

    __slots__ = ("_context", "_segment")

    def __init__(self, context: Context, segment: Segment) -> None:
        self._context = context
        self._segment = segment

    def pread(self, length: int, position: int) -> bytes:
        """As `File.pread`."""
        data = self._context.open_files.pread_nowait(self._segment, length, position)
        if data is None:
            raise WouldBlock
        return data


class ReadResult(NamedTuple):
    """Whole batches, contiguous, as they are stored. Empty if there is nothing below the end that was asked for."""

    batches: memoryview
    first_offset: int
    """The first batch's base offset: at or below the offset that was asked for."""
    next_offset: int
    first_index: int
    next_index: int


class Read(Protocol):
    """A planned read."""

    def run(self, nowait: bool = False) -> ReadResult | None:  # noqa: FBT001, FBT002  # threads pass no keywords
        """Read, on any thread. With `nowait` from memory alone: None if that would block.

        Raises CorruptBatch (details: `base_offset` and `next_offset` of what cannot be read) when a batch that must
        be there does not follow from the one before; ReadOutdated when its segment was given up since; OSError.
        """


class _Finder:
    """Finds segments and entries for one run of a plan, waiting for the disk or not."""

    __slots__ = ("_nowait", "context", "segments")

    def __init__(self, context: Context, segments: tuple[Segment, ...], *, nowait: bool) -> None:
        self.context = context
        self.segments = segments
        self._nowait = nowait

    def source(self, segment: Segment) -> Source:
        return (_NowaitSource if self._nowait else SegmentSource)(self.context, segment)

    def before(self, segment: Segment) -> LogEnd:
        """The end of the log before a segment. Raises WouldBlock, Unreadable, OSError."""
        return segment.before or load_before(self.source(segment), self.context, segment)

    def base_offset(self, number: int) -> int:
        """The base offset of a segment, or of the next one if this one's beginning is damaged."""
        while True:
            try:
                return self.before(self.segments[number]).next_offset
            except Unreadable:
                number += 1
                if number == len(self.segments):
                    raise

    def entries(self, number: int) -> IndexEntries:
        """The sparse index of a segment. Raises WouldBlock, OSError."""
        segment = self.segments[number]
        entries = segment.entries
        if entries is None:
            if self._nowait:
                raise WouldBlock
            stop_index = self.stop_index(number)
            source = self.source(segment)
            entries, _ = load_entries(source, self.context, segment, segment.end_position, stop_index)
            segment.entries = entries
        if segment.is_finished:
            self.context.index_cache.used(segment, entries)
        return entries

    def stop_index(self, number: int) -> int | None:
        """The first index that is not in a segment; None for the last one."""
        return self.segments[number + 1].first_index if number + 1 < len(self.segments) else None

    def by_index(self, index: int) -> int:
        """The number of the segment that an index is in."""
        low, high = 0, len(self.segments)
        while low < high:
            middle = (low + high) // 2
            if self.segments[middle].first_index <= index:
                low = middle + 1
            else:
                high = middle
        return low - 1

    def by_offset(self, offset: int) -> int:
        """The number of the last segment that begins at or before an offset."""
        low, high = 0, len(self.segments)
        while low < high:
            middle = (low + high) // 2
            if self.base_offset(middle) <= offset:
                low = middle + 1
            else:
                high = middle
        return low - 1


class _Range:
    """The walk that the reads by offset and by index have in common."""

    __slots__ = ("_bytes_max", "_context", "_end", "_log_damage", "_segments", "_start", "_wanted")

    def __init__(self, log: "Log", wanted: int, end: int, bytes_max: int) -> None:
        self._context = log.context
        self._segments = log.segments
        self._log_damage = log.damage
        self._start = log.start
        self._wanted = wanted
        self._end = end
        self._bytes_max = bytes_max

    def _walk(  # noqa: C901  # one loop over headers: taking it apart would cost a call for each batch
        self, finder: _Finder, number: int, wanted_index: int, end_index: int, wanted_offset: int, end_offset: int
    ) -> ReadResult:
        """Batches of one segment from the one that holds what is wanted."""
        segment = finder.segments[number]
        stop_index = finder.stop_index(number)
        if stop_index is not None:
            end_index = min(end_index, stop_index)
        entries = finder.entries(number)
        entry = floor_by_index(entries, wanted_index) if wanted_index else floor_by_offset(entries, wanted_offset)
        if entry < 0:
            # The segment's first batch always has an entry, so its header is damaged.
            before = finder.before(segment)
            position, offset, index = SEGMENT_HEADER_BYTES, before.next_offset, segment.first_index
        else:
            position, offset, index = entries.positions[entry], entries.offsets[entry], entries.indexes[entry]
        limit = segment.end_position
        source = finder.source(segment)
        bytes_max = self._bytes_max
        data = source.pread(
            max(HEADER_BYTES, min(limit - position, bytes_max + self._context.options.index_interval_bytes)), position
        )
        at = 0
        first = -1
        first_offset = first_index = 0
        unpack = WALK.unpack_from
        while index < end_index and offset < end_offset:
            if at + HEADER_BYTES > len(data):
                if first >= 0:
                    break
                position, at = position + at, 0
                data = source.pread(max(HEADER_BYTES, min(limit - position, bytes_max)), position)
                if len(data) < HEADER_BYTES:
                    raise self._corrupt(finder, number, position, offset, index)
            length, count, base_offset, header_index = unpack(data, at)
            length += LENGTH_FIELD_BYTES
            if base_offset != offset or header_index != index or not HEADER_BYTES <= length <= BATCH_BYTES_SANE_MAX:
                if first >= 0:
                    break
                raise self._corrupt(finder, number, position + at, offset, index)
            end = at + length
            if first < 0:
                if index < wanted_index or offset + count <= wanted_offset:
                    # Before what is wanted.
                    at = end
                    offset += count
                    index += 1
                    continue
                if end > len(data):
                    # The wanted batch alone is more than was read.
                    position, at, end = position + at, 0, length
                    data = source.pread(length, position)
                    if len(data) < length:
                        raise self._corrupt(finder, number, position, offset, index)
                first, first_offset, first_index = at, offset, index
            elif end - first > bytes_max or end > len(data):
                break
            at = end
            offset += count
            index += 1
        if first < 0:
            return ReadResult(memoryview(b""), offset, offset, index, index)
        return ReadResult(memoryview(data)[first:at], first_offset, offset, first_index, index)

    def _corrupt(self, finder: _Finder, number: int, position: int, offset: int, index: int) -> CorruptBatch:
        """The error for a header that is not what must stand there; the range ends at the next batch that is known."""
        segment = finder.segments[number]
        entries = finder.entries(number)
        after = bisect_right(entries.positions, position)
        if after < len(entries.offsets):
            next_offset, next_index = entries.offsets[after], entries.indexes[after]
        elif number + 1 < len(finder.segments):
            next_offset, next_index = finder.base_offset(number + 1), finder.segments[number + 1].first_index
        else:
            next_offset, next_index = max(self._end, offset), index + 1
        if index <= self._start.index:
            # What is damaged lies before the log's start: what is lost is what it hides.
            index, offset = self._start.index + 1, self._start.offset
            next_index, next_offset = max(next_index, index + 1), max(next_offset, offset)
        return CorruptBatch(
            f"no readable batch of index {index} at byte {position} of {segment.path}",
            {
                "base_offset": offset,
                "next_offset": next_offset,
                "index": index,
                "next_index": next_index,
                "path": segment.path,
                "position": position,
            },
        )


class ReadByOffset(_Range):
    """Batches from the one that holds an offset, below another offset."""

    __slots__ = ()

    def run(self, nowait: bool = False) -> ReadResult | None:  # noqa: FBT001, FBT002  # threads pass no keywords
        """See `Read.run`."""
        offset, end = self._wanted, self._end
        if offset >= end:
            return ReadResult(memoryview(b""), offset, offset, 0, 0)
        for damage in self._log_damage:
            if damage.base_offset <= offset < damage.next_offset:
                raise CorruptBatch(
                    f"offsets {damage.base_offset} to {damage.next_offset} are damaged here",
                    {"base_offset": damage.base_offset, "next_offset": damage.next_offset},
                )
            if offset < damage.base_offset < end:
                end = damage.base_offset
                break
        finder = _Finder(self._context, self._segments, nowait=nowait)
        try:
            return self._walk(finder, max(finder.by_offset(offset), 0), 0, 1 << 64, offset, end)
        except WouldBlock:
            return None
        except Unreadable as error:
            raise CorruptBatch(str(error), {"base_offset": offset, "next_offset": end}) from error


class ReadByIndex(_Range):
    """Batches with indexes in a range."""

    __slots__ = ()

    def run(self, nowait: bool = False) -> ReadResult | None:  # noqa: FBT001, FBT002  # threads pass no keywords
        """See `Read.run`."""
        index, end = self._wanted, self._end
        if index >= end:
            return ReadResult(memoryview(b""), 0, 0, index, index)
        for damage in self._log_damage:
            if damage.first_index <= index < damage.next_index:
                raise CorruptBatch(
                    f"indexes {damage.first_index} to {damage.next_index} are damaged here",
                    {
                        "base_offset": damage.base_offset,
                        "next_offset": damage.next_offset,
                        "index": damage.first_index,
                        "next_index": damage.next_index,
                    },
                )
            if index < damage.first_index < end:
                end = damage.first_index
                break
        finder = _Finder(self._context, self._segments, nowait=nowait)
        try:
            return self._walk(finder, finder.by_index(index), index, end, -1, 1 << 64)
        except WouldBlock:
            return None
        except Unreadable as error:
            raise CorruptBatch(str(error), {"index": index, "next_index": end}) from error


class ReadByTime:
    """The first offset whose batch was appended at or after a time. Times never go back within a log."""

    __slots__ = ("_context", "_end", "_segments", "_start", "_timestamp")

    def __init__(self, log: "Log", timestamp_ms: int) -> None:
        self._context = log.context
        self._segments = log.segments
        self._start = log.start
        self._end = log.written
        self._timestamp = timestamp_ms

    def run(self, nowait: bool = False) -> int | None:  # noqa: FBT001, FBT002  # threads pass no keywords
        """The offset; the log's written end if there is none; None if `nowait` and it would block.

        Raises as `Read.run` does.
        """
        if self._timestamp > self._end.append_timestamp or self._end.index == self._start.index:
            return self._end.next_offset
        finder = _Finder(self._context, self._segments, nowait=nowait)
        try:
            return self._find(finder)
        except WouldBlock:
            return None
        except Unreadable as error:
            raise CorruptBatch(str(error)) from error

    def _find(self, finder: _Finder) -> int:
        # The last segment before whose beginning no batch is that young: the batch is in it, or the next one's first.
        low, high = 0, len(self._segments)
        while low < high:
            middle = (low + high) // 2
            if finder.before(self._segments[middle]).append_timestamp < self._timestamp:
                low = middle + 1
            else:
                high = middle
        number = max(low - 1, 0)
        segment = self._segments[number]
        entries = finder.entries(number)
        # The last entry that is too old; what follows it within one interval is walked.
        low, high = 0, len(entries.offsets)
        while low < high:
            middle = (low + high) // 2
            if entries.timestamps[middle] < self._timestamp:
                low = middle + 1
            else:
                high = middle
        entry = max(low - 1, 0)
        if not entries.offsets:
            return self._end.next_offset if number + 1 == len(self._segments) else finder.base_offset(number + 1)
        walk = walk_headers(
            finder.source(segment),
            segment.first_index,
            entries.positions[entry],
            segment.end_position,
            entries.indexes[entry],
            finder.stop_index(number) or self._end.index + 1,
        )
        for walked in walk:
            if walked.header.append_timestamp >= self._timestamp:
                return min(walked.header.base_offset, self._end.next_offset)
        return self._end.next_offset if number + 1 == len(self._segments) else finder.base_offset(number + 1)


def batch_headers(log: "Log", index: int, next_index: int | None) -> Iterator[BatchHeader]:
    """The headers of `[index, next_index)`; see `Log.headers_from`."""
    finder = _Finder(log.context, log.segments, nowait=False)
    end_index = log.written.index + 1
    if next_index is not None:
        end_index = min(end_index, next_index)
    while index < end_index:
        number = finder.by_index(index)
        segment = finder.segments[number]
        entries = finder.entries(number)
        entry = floor_by_index(entries, index)
        position, at_index = SEGMENT_HEADER_BYTES, segment.first_index
        if entry >= 0:
            position, at_index = entries.positions[entry], entries.indexes[entry]
        stop = min(finder.stop_index(number) or end_index, end_index)
        for walked in walk_headers(
            finder.source(segment), segment.first_index, position, segment.end_position, at_index, stop
        ):
            at_index = walked.header.index + 1
            if walked.header.index >= index:
                yield walked.header
        if at_index < stop:
            raise CorruptBatch(
                f"no readable header of index {at_index} in {segment.path}",
                {"index": at_index, "path": segment.path},
            )
        index = stop
