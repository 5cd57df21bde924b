"""The sparse index of a segment: one entry for every few KiB, so that a read starts next to what it wants.

For: readers, and recovery. Must not know: what is promised. The one idea: it is a hint. An index file is used only if
it matches its digest *and* the batch it ends with still has the chain it remembers, which proves everything before; if
not it is built again by walking headers. A reader checks every header it meets: a wrong hint costs time, never truth.
"""

import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from logd.store.context import Context
from logd.store.errors import Unreadable
from logd.store.events import IndexRebuilt
from logd.store.files import FileSystem
from logd.store.format import (
    SEGMENT_HEADER_BYTES,
    IndexEntries,
    IndexFile,
    LogEnd,
    Place,
    blank_entries,
    decode_index,
    encode_index,
)
from logd.store.jobs import sync
from logd.store.layout import INDEX_SUFFIX, NEW_SUFFIX, SEGMENT_SUFFIX
from logd.store.segment import Segment, Source, Walked, find_first_batch, walk_headers
from wire.record import HEADER_BYTES, decode_header, header_chain_holds

ENTRY_BYTES: Final = 32


class IndexCache:
    """Which finished segments have their index in memory, bounded by the bytes of all of them."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._lock = threading.Lock()
        self._loaded: OrderedDict[Segment, int] = OrderedDict()

    def used(self, segment: Segment, entries: IndexEntries) -> None:
        """A reader used the index of a finished segment; the least recently used ones beyond the bound are dropped."""
        with self._lock:
            known = self._loaded.pop(segment, None)
            size = len(entries.offsets) * ENTRY_BYTES
            self._loaded[segment] = size
            self._bytes += size - (known or 0)
            while self._bytes > self._bytes_max and len(self._loaded) > 1:
                oldest, oldest_bytes = self._loaded.popitem(last=False)
                self._bytes -= oldest_bytes
                if oldest.is_finished:
                    oldest.entries = None


def add_entry(entries: IndexEntries, interval_bytes: int, position: int, offset: int, index: int, time: int) -> None:
    """Note a batch if it is the first, or far enough from the last that was noted."""
    positions = entries.positions
    if positions and position - positions[-1] < interval_bytes:
        return
    append_entry(entries, position, offset, index, time)


def append_entry(entries: IndexEntries, position: int, offset: int, index: int, time: int) -> None:
    """Note a batch. `offsets` grows last: a reader that sees an entry there sees all of it."""
    entries.positions.append(position)
    entries.indexes.append(index)
    entries.timestamps.append(time)
    entries.offsets.append(offset)


def add_walked(entries: IndexEntries, interval_bytes: int, walked: Iterable[Walked]) -> Walked | None:
    """Note the batches of a walk; returns the last one."""
    last = None
    for last in walked:
        header = last.header
        add_entry(
            entries, interval_bytes, last.place.position, header.base_offset, header.index, header.append_timestamp
        )
    return last


def cut_entries(entries: IndexEntries, index: int) -> IndexEntries:
    """A copy with the entries below `index` alone; whoever reads the old one is not disturbed."""
    count = bisect_left(entries.indexes, index)
    return IndexEntries(*(column[:count] for column in entries))


def floor_by_offset(entries: IndexEntries, offset: int) -> int:
    """The number of the last entry at or before an offset; -1 if there is none."""
    return bisect_right(entries.offsets, offset) - 1


def floor_by_index(entries: IndexEntries, index: int) -> int:
    """The number of the last entry at or before an index; -1 if there is none."""
    return bisect_right(entries.indexes, index, 0, len(entries.offsets)) - 1


def index_path(segment: Segment) -> str:
    """The index file beside a segment."""
    return segment.path.removesuffix(SEGMENT_SUFFIX) + INDEX_SUFFIX


def write_index_file(files: FileSystem, path: str, content: bytes, *, is_synced: bool) -> None:
    """Replace an index file as a whole, by rename; the name is left to the next sync of its directory.

    `is_synced` is for what is worth a sync: a torn one is noticed and costs a walk. Raises OSError; the old file, if
    any, is untouched then. A failed sync raises EIO, never ENOSPC.
    """
    new = path + NEW_SUFFIX
    if files.exists(new):
        files.unlink(new)
    file = files.open(new, create=True, exclusive=True)
    try:
        file.pwritev([content], 0)
        if is_synced:
            sync(file)
    finally:
        file.close()
    files.rename(new, path)


def read_index_file(files: FileSystem, path: str, group: int, first_index: int) -> IndexFile | None:
    """An index file, or None if there is none. Raises Unreadable, and OSError from reading."""
    if not files.exists(path):
        return None
    file = files.open(path, writable=False)
    try:
        return decode_index(file.pread(file.size(), 0), group, first_index)
    finally:
        file.close()


def is_current(source: Source, index: IndexFile) -> bool:
    """Whether the batch that an index ends with is still there: then all that it says is still so."""
    if not index.entries.offsets:
        return False
    data = source.pread(HEADER_BYTES, index.place.position)
    if len(data) < HEADER_BYTES or not header_chain_holds(data):
        return False
    header = decode_header(data)
    return header.chain == index.covered.chain and header.index == index.covered.index


def load_entries(
    source: Source, context: Context, segment: Segment, limit: int, stop_index: int | None
) -> tuple[IndexEntries, IndexFile | None]:
    """The sparse index of a segment up to position `limit` and before `stop_index`; and the file, where it was usable.

    What the file does not cover is walked. Raises OSError from reading the segment; a bad index file is never an error.
    """
    interval = context.options.index_interval_bytes
    reason = "missing"
    index: IndexFile | None = None
    try:
        index = read_index_file(context.files, index_path(segment), segment.group, segment.first_index)
        if index is not None and (index.place.end_position > limit or not is_current(source, index)):
            index, reason = None, "stale"
    except (Unreadable, OSError) as error:
        # Also an OSError: the hint's own bytes may be on a bad sector, and the segment's are not.
        index, reason = None, str(error)
    if index is None:
        if limit > SEGMENT_HEADER_BYTES:
            context.report(IndexRebuilt(index_path(segment), segment.group, segment.first_index, reason))
        entries, position, next_index = blank_entries(), SEGMENT_HEADER_BYTES, segment.first_index
    else:
        entries, position, next_index = index.entries, index.place.end_position, index.covered.index + 1
    last = add_walked(
        entries, interval, walk_headers(source, segment.first_index, position, limit, next_index, stop_index)
    )
    start = segment.start
    if start is not None and (last.header.index if last is not None else next_index - 1) <= start.index:
        # No walk gets over damage before the log's start, which is none of the log's.
        found = find_first_batch(source, segment, limit)
        if found is not None:
            walk = walk_headers(source, segment.first_index, found, limit, start.index + 1, stop_index)
            for walked in walk:
                header = walked.header
                append_entry(entries, walked.place.position, header.base_offset, header.index, header.append_timestamp)
                break
            add_walked(entries, interval, walk)
    return entries, index


def encode_index_of(
    segment: Segment, entries: IndexEntries, covered: LogEnd, place: Place, producers: tuple[int, bytes] | None
) -> bytes:
    """The content of an index file that covers a segment up to and with the batch at `place`."""
    kept = cut_entries(entries, covered.index + 1)
    return encode_index(
        IndexFile(segment.group, segment.first_index, segment.is_sealed, covered, place, kept, producers)
    )
