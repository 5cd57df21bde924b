"""A segment: one file of consecutive batches behind a header block, and what memory knows of it.

For: the log that consists of segments, and their readers. Must not know: the journal, or which batches are promised.
The one idea: a segment's name says its first index and every batch says its own, so position, offset and index of
anything in the file follow from walking headers; what memory and the header block hold only makes the walk short.
"""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from logd.store.context import Context
from logd.store.errors import Unreadable
from logd.store.files import File
from logd.store.format import (
    SEGMENT_HEADER_BYTES,
    IndexEntries,
    LogEnd,
    Place,
    SegmentHeader,
    decode_segment_header,
    encode_segment_header,
)
from logd.store.jobs import sync
from logd.store.open_files import Borrowed
from wire.record import HEADER_BYTES, LENGTH_FIELD_BYTES, BatchHeader, decode_header, header_chain_holds

# length, record_count, base_offset and index of a batch header: what a walk needs, in one call. It is a view on
# `wire.record`'s header, checked against it in tests/store/test_segment.py.
WALK: Final = struct.Struct(">I4xI68xQQ")

# Where a batch header says its index.
INDEX_FIELD: Final = struct.Struct(">Q")
INDEX_FIELD_POSITION: Final = 88

# How much one read of a walk brings in. Batches are small (a few in one read) or large (only their header matters).
SCAN_BYTES: Final = 64 << 10


class Segment:
    """One file of a group's log.

    Everything here belongs to the owner's thread, except that `entries` and `before` may be filled in by any reader:
    they are derived from bytes that do not change, and are published by one assignment.
    """

    __slots__ = (
        "allocated",
        "before",
        "busy",
        "end_position",
        "entries",
        "first_index",
        "group",
        "is_finished",
        "is_retired",
        "is_sealed",
        "last",
        "last_place",
        "path",
        "pin",
        "producers",
        "start",
    )

    def __init__(self, group: int, first_index: int, path: str, end_position: int, allocated: int) -> None:
        self.group = group
        self.first_index = first_index
        self.path = path
        # Where the next batch goes. Invariant: SEGMENT_HEADER_BYTES <= end_position <= allocated.
        self.end_position = end_position
        # How far the file's space is reserved, so that a write cannot fail for want of it.
        self.allocated = allocated
        self.is_sealed = False
        """Never appended to again, unless a suffix is replaced that begins here."""
        self.is_finished = False
        """Sealed, cut to its end, synced and indexed: nothing is left to do. Invariant: implies `is_sealed`."""
        self.is_retired = False
        """No longer part of its log; its file is unlinked or will be. Never goes back."""
        self.busy = 0
        """How many jobs under way may cut the file: while it is not 0, no suffix may be replaced here."""
        self.entries: IndexEntries | None = None
        """The sparse index; None if it must be loaded first."""
        self.before: LogEnd | None = None
        """The end of the log just before the first batch; None if it must be read first."""
        self.start: LogEnd | None = None
        """What the log begins behind, if that is within this segment: what is damaged before it is not the log's."""
        # The last batch, once the segment is sealed: what its index file will end with.
        self.last: LogEnd | None = None
        self.last_place: Place | None = None
        # The producer table as of sealing, for the index file.
        self.producers: tuple[int, bytes] | None = None
        self.pin: Borrowed | None = None
        """Keeps the file open while it has unsynced bytes: a descriptor that closes could take an error with it."""

    def __repr__(self) -> str:
        return f"<Segment {self.path} to {self.end_position}>"

    def unpin(self) -> None:
        """Nothing unsynced is left, or nobody needs it: the file may be closed. Owner's thread."""
        if self.pin is not None:
            self.pin.release()
            self.pin = None

    @property
    def is_empty(self) -> bool:
        return self.end_position == SEGMENT_HEADER_BYTES


class Source(Protocol):
    """Where bytes of a segment come from: `pread` of a `File`, or of a cache of open files."""

    def pread(self, length: int, position: int) -> bytes: ...  # as File.pread


def create_segment_file(context: Context, path: str, header: SegmentHeader, allocated: int) -> File:
    """Make the file with its header block and space up to `allocated`, synced; its name is not yet.

    A leftover of the same name is replaced: whoever creates a segment knows that no live one has this name. Raises
    OSError, and then has removed what it made.
    """
    files = context.files
    if files.exists(path):
        files.unlink(path)
    file = files.open(path, create=True, exclusive=True)
    try:
        file.pwritev([encode_segment_header(header)], 0)
        if allocated > SEGMENT_HEADER_BYTES:
            file.allocate(0, allocated)
        sync(file)
    except OSError:
        file.close()
        files.unlink(path)
        raise
    return file


class Walked(NamedTuple):
    """One batch of a walk."""

    place: Place
    header: BatchHeader

    @property
    def end(self) -> LogEnd:
        header = self.header
        return LogEnd(header.index, header.term, header.next_offset, header.append_timestamp, header.chain)


def walk_headers(
    source: Source, segment: int, position: int, limit: int, index: int, stop_index: int | None = None
) -> Iterator[Walked]:
    """The batches from `position` on, of which the first must have `index`, by their headers alone.

    It ends before `stop_index`, before a batch that reaches past position `limit`, and at the first header that does
    not follow the one before it or does not match its chain digest: whether that is the end of the log or damage, only
    the caller can tell. Payloads are not looked at.
    """
    data = b""
    data_position = position
    chain = b""
    while (stop_index is None or index < stop_index) and position + HEADER_BYTES <= limit:
        at = position - data_position
        if at + HEADER_BYTES > len(data):
            data = source.pread(min(SCAN_BYTES, limit - position), position)
            data_position, at = position, 0
            if len(data) < HEADER_BYTES:
                return
        header = decode_header(data, at)
        length = header.length + LENGTH_FIELD_BYTES
        if header.index != index or length < HEADER_BYTES or position + length > limit:
            return
        if not header_chain_holds(data, at) or (chain and header.previous_chain != chain):
            return
        chain = header.chain
        yield Walked(Place(segment, position, length), header)
        position += length
        index += 1


def find_first_batch(source: Source, segment: Segment, limit: int) -> int | None:
    """The position of the batch that follows `segment.start`, where no walk leads to it; None if it is not there.

    It is searched for by its index, and known by its chain and that of the batch before it.
    """
    start = segment.start
    assert start is not None
    pattern = INDEX_FIELD.pack(start.index + 1)
    data = source.pread(limit - SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES)
    at = data.find(pattern)
    while at >= 0:
        begin = at - INDEX_FIELD_POSITION
        if begin >= 0 and begin + HEADER_BYTES <= len(data) and header_chain_holds(data, begin):
            header = decode_header(data, begin)
            if header.index == start.index + 1 and header.previous_chain == start.chain:
                return SEGMENT_HEADER_BYTES + begin
        at = data.find(pattern, at + 1)
    return None


def read_header(source: Source) -> SegmentHeader:
    """The header block. Raises Unreadable, and OSError from reading."""
    return decode_segment_header(source.pread(SEGMENT_HEADER_BYTES, 0))


def _before_from_first_batch(source: Source, segment: Segment) -> LogEnd:
    """What the header block would say, from the segment's first batch.

    Term and time of the batch before are not in there: those of the first batch stand in for them, which are no older.
    Raises Unreadable if that batch does not verify either.
    """
    data = source.pread(HEADER_BYTES, SEGMENT_HEADER_BYTES)
    if len(data) < HEADER_BYTES or not header_chain_holds(data):
        raise Unreadable(f"neither the header block nor the first batch of {segment.path} verifies")
    first = decode_header(data)
    if first.index != segment.first_index:
        raise Unreadable(f"{segment.path} starts with index {first.index}")
    return LogEnd(first.index - 1, first.term, first.base_offset, first.append_timestamp, first.previous_chain)


def load_before(source: Source, context: Context, segment: Segment) -> LogEnd:
    """The end of the log just before the segment; raises Unreadable, and OSError from reading."""
    try:
        header = read_header(source)
        if (header.group, header.cluster_id, header.first_index) != (
            segment.group,
            context.cluster_id,
            segment.first_index,
        ):
            raise Unreadable(f"{segment.path} holds another segment's header block")
        before = header.before
    except Unreadable:
        before = _before_from_first_batch(source, segment)
    segment.before = before
    return before
