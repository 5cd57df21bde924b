"""Every byte that the store writes: one definition for each structure, encoded and decoded here and nowhere else.

For: the rest of the store, and whoever reads a data directory offline. Must not know: files, positions that were not
handed in, or what the structures are used for. The one idea: each structure carries magic, version, its identity (whose
it is and where it stands) and a SHA-256 over all of it, so that bytes which are damaged, stale, or in the wrong place
never pass for what they are not. What does not verify raises `Unreadable`, and nothing else.

All integers are big-endian. The drawings stand in `docs/storage-format.md`, the golden bytes in `tests/golden/`. A
change of layout is a new version number, never an edit. Batches are `wire.record`'s.
"""

import hashlib
import json
import struct
import sys
from array import array
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from logd.store.errors import Unreadable

Buffer = bytes | bytearray | memoryview

FORMAT_VERSION: Final = 1
DIGEST_BYTES: Final = 32
IDENTITY_BYTES: Final = 16
BLANK_DIGEST: Final = bytes(DIGEST_BYTES)
# Rounds and tables start on this boundary: the page of the machine and the sector of most disks, so that a write of
# one never rewrites a part of another.
BLOCK_BYTES: Final = 4096
NODE_NAME_BYTES_MAX: Final = 64
"""A vote names a node; 64 bytes keep the entry of fixed size."""

TABLE_MAGIC: Final = b"logdTABL"
ROUND_MAGIC: Final = b"logdROND"
TRAILER_MAGIC: Final = b"logdREND"
SEGMENT_MAGIC: Final = b"logdSEGM"
START_MAGIC: Final = b"logdSTRT"
INDEX_MAGIC: Final = b"logdINDX"


def digest_of(*parts: Buffer) -> bytes:
    """SHA-256 of the parts, one after the other."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.digest()


def align(length: int) -> int:
    """The next block boundary at or after `length`."""
    return -(-length // BLOCK_BYTES) * BLOCK_BYTES


# --- The values that structures are made of ---------------------------------------------------------------------------


class HardState(NamedTuple):
    """What a replica must remember to keep its word: Raft paper, figure 2, and how far it knew to be committed."""

    term: int
    vote: str
    """The name of the node that got this replica's vote in `term`; empty if none did."""
    commit: int


INITIAL_HARD_STATE: Final = HardState(0, "", 0)


class LogEnd(NamedTuple):
    """Where a log ends (or what stands just before a place in it): the last batch's identity, in five numbers."""

    index: int  # type: ignore[assignment]  # the glossary's word wins over `tuple.index`, which nobody needs here
    term: int
    next_offset: int
    append_timestamp: int
    chain: bytes


class Place(NamedTuple):
    """Where a batch stands: the segment by its first index, the position and length in bytes."""

    segment: int
    position: int
    length: int

    @property
    def end_position(self) -> int:
        return self.position + self.length


NOWHERE: Final = Place(0, 0, 0)
"""The place of the last batch of a log that holds none."""


class Floor(NamedTuple):
    """The promised end of a replica whose log no longer reaches it, or has holes below it."""

    index: int  # type: ignore[assignment]  # see LogEnd
    term: int
    chain: bytes
    intact: int
    """The last index of the prefix without a hole."""

    def is_reached_by(self, end: LogEnd) -> bool:
        """Whether a log without holes that ends there is as up-to-date as this (Raft paper, section 5.4.1).

        A last entry of a later term shows that what was promised here is there too, or was never to be kept.
        """
        return (end.term, end.index) >= (self.term, self.index)


class Start(NamedTuple):
    """What stands just before the first retained batch. The last three are the caller's bytes."""

    index: int  # type: ignore[assignment]  # see LogEnd
    term: int
    offset: int
    chain: bytes
    append_timestamp: int
    topic_id: bytes
    partition: int
    membership: bytes
    producers: bytes
    state: bytes = b""
    """Group 0 only: the state of the cluster itself."""

    @property
    def end(self) -> LogEnd:
        """The end of a log that holds nothing after this start."""
        return LogEnd(self.index, self.term, self.offset, self.append_timestamp, self.chain)


# --- Entries of a round's directory -----------------------------------------------------------------------------------
# Each begins with kind, flags and group, and has a fixed size by its kind.

KIND_BATCH: Final = 1
KIND_HARD_STATE: Final = 2
KIND_START: Final = 3
KIND_REMOVE: Final = 4
KIND_END: Final = 5

START_KEEPS_SUFFIX: Final = 1
"""The flag of a `start` that moves the beginning of a log and leaves what comes after it."""

START_IS_UNADMITTED: Final = 2
"""The flag of a `start` that makes a replica without a hard state: see `StartEntry`."""

_PREFIX: Final = struct.Struct(">BB6xQ")
#                                kind flags group | index term segment position length chain
BATCH_ENTRY: Final = struct.Struct(">BB6xQ QQQQQ32s")
#                                     | term commit vote_length vote
HARD_STATE_ENTRY: Final = struct.Struct(">BB6xQ QQB7x64s")
#                                     | index term offset append_timestamp partition topic_id chain digest of the file
START_ENTRY: Final = struct.Struct(">BB6xQ QQQqI4x16s32s32s")
REMOVE_ENTRY: Final = _PREFIX
#                                     | index term chain
END_ENTRY: Final = struct.Struct(">BB6xQ QQ32s")


class BatchEntry(NamedTuple):
    """A batch that the round promises, and where in its segment it will stand."""

    group: int
    index: int  # type: ignore[assignment]  # see LogEnd
    term: int
    place: Place
    chain: bytes


class HardStateEntry(NamedTuple):
    """A replica's hard state."""

    group: int
    hard_state: HardState


class StartEntry(NamedTuple):
    """A log begins after `end` from now on: created, replaced by a snapshot, or shortened by retention."""

    group: int
    end: LogEnd
    topic_id: bytes
    partition: int
    digest: bytes
    keeps_suffix: bool
    is_unadmitted: bool = False
    """A new replica that may have been here before: it has no hard state until one is written."""


class RemoveEntry(NamedTuple):
    """The replica left this node."""

    group: int


class EndEntry(NamedTuple):
    """An operator accepted that the log ends here."""

    group: int
    index: int  # type: ignore[assignment]  # see LogEnd
    term: int
    chain: bytes


Entry = BatchEntry | HardStateEntry | StartEntry | RemoveEntry | EndEntry


def encode_entry(entry: Entry) -> bytes:
    """One entry of a directory; `Store.prepare_round` packs the hot one, `BATCH_ENTRY`, by itself."""
    match entry:
        case BatchEntry(group, index, term, place, chain):
            return BATCH_ENTRY.pack(KIND_BATCH, 0, group, index, term, *place, chain)
        case HardStateEntry(group, hard_state):
            return HARD_STATE_ENTRY.pack(KIND_HARD_STATE, 0, group, *_hard_state_fields(hard_state))
        case StartEntry(group, end, topic_id, partition, digest, keeps_suffix, is_unadmitted):
            flags = START_KEEPS_SUFFIX * keeps_suffix | START_IS_UNADMITTED * is_unadmitted
            return START_ENTRY.pack(
                KIND_START,
                flags,
                group,
                end.index,
                end.term,
                end.next_offset,
                end.append_timestamp,
                partition,
                topic_id,
                end.chain,
                digest,
            )
        case RemoveEntry(group):
            return REMOVE_ENTRY.pack(KIND_REMOVE, 0, group)
        case EndEntry(group, index, term, chain):
            return END_ENTRY.pack(KIND_END, 0, group, index, term, chain)


def _hard_state_fields(hard_state: HardState) -> tuple[int, int, int, bytes]:
    vote = hard_state.vote.encode()
    if len(vote) > NODE_NAME_BYTES_MAX:
        raise ValueError(f"a node's name has at most {NODE_NAME_BYTES_MAX} bytes, got {len(vote)}")
    return hard_state.term, hard_state.commit, len(vote), vote


def _hard_state(term: int, commit: int, vote_bytes: int, vote: bytes) -> HardState:
    if vote_bytes > NODE_NAME_BYTES_MAX:
        raise Unreadable(f"a vote of {vote_bytes} bytes")
    try:
        return HardState(term, vote[:vote_bytes].decode(), commit)
    except UnicodeDecodeError as error:
        raise Unreadable("a vote that is not UTF-8") from error


def _decode_entries(data: Buffer, position: int, end: int, count: int) -> list[Entry]:
    """The directory. Its digest was verified, so anything odd here is a format from the future or a defect."""
    entries: list[Entry] = []
    try:
        for _ in range(count):
            kind = data[position]
            decode, size = _DECODERS[kind]
            entries.append(decode(data, position))
            position += size
    except (KeyError, IndexError, struct.error) as error:
        raise Unreadable(f"the directory is not one of version {FORMAT_VERSION}: {error!r}") from error
    if position != end:
        raise Unreadable(f"the directory ends at byte {position}, its head says {end}")
    return entries


def _decode_batch_entry(data: Buffer, position: int) -> Entry:
    _, _, group, index, term, segment, at, length, chain = BATCH_ENTRY.unpack_from(data, position)
    return BatchEntry(group, index, term, Place(segment, at, length), chain)


def _decode_hard_state_entry(data: Buffer, position: int) -> Entry:
    _, _, group, *fields = HARD_STATE_ENTRY.unpack_from(data, position)
    return HardStateEntry(group, _hard_state(*fields))


def _decode_start_entry(data: Buffer, position: int) -> Entry:
    fields = START_ENTRY.unpack_from(data, position)
    _, flags, group, index, term, offset, timestamp, partition, topic_id, chain, digest = fields
    end = LogEnd(index, term, offset, timestamp, chain)
    keeps_suffix, is_unadmitted = bool(flags & START_KEEPS_SUFFIX), bool(flags & START_IS_UNADMITTED)
    return StartEntry(group, end, topic_id, partition, digest, keeps_suffix, is_unadmitted)


def _decode_remove_entry(data: Buffer, position: int) -> Entry:
    return RemoveEntry(REMOVE_ENTRY.unpack_from(data, position)[2])


def _decode_end_entry(data: Buffer, position: int) -> Entry:
    _, _, group, index, term, chain = END_ENTRY.unpack_from(data, position)
    return EndEntry(group, index, term, chain)


_DECODERS: Final = {
    KIND_BATCH: (_decode_batch_entry, BATCH_ENTRY.size),
    KIND_HARD_STATE: (_decode_hard_state_entry, HARD_STATE_ENTRY.size),
    KIND_START: (_decode_start_entry, START_ENTRY.size),
    KIND_REMOVE: (_decode_remove_entry, REMOVE_ENTRY.size),
    KIND_END: (_decode_end_entry, END_ENTRY.size),
}


# --- The round --------------------------------------------------------------------------------------------------------
# head | digest of the head | batches | zeros | head again | trailer, which ends on a block boundary

#                          magic version entry_count journal_id | file position round length head_length previous digest
ROUND_HEAD: Final = struct.Struct(">8sHxxI16sQQQQQ32s")
#                          magic, length of the round, length of the head, digest of the head
TRAILER: Final = struct.Struct(">8sQQ32s")


class RoundHead(NamedTuple):
    """The head of a round that verified, from its beginning or from the copy at its end."""

    file_number: int
    position: int
    round_number: int
    length: int
    head_bytes: int
    previous_digest: bytes
    digest: bytes
    entries: list[Entry]

    @property
    def end_position(self) -> int:
        return self.position + self.length

    @property
    def batches_position(self) -> int:
        return self.position + self.head_bytes + DIGEST_BYTES


def round_bytes(directory_bytes: int, batch_bytes: int) -> int:
    """The length of a round with so many bytes of entries and of batches."""
    head = ROUND_HEAD.size + directory_bytes
    return align(head + DIGEST_BYTES + batch_bytes + head + TRAILER.size)


def encode_round_head(
    journal_id: bytes,
    file_number: int,
    position: int,
    round_number: int,
    length: int,
    previous_digest: bytes,
    directory: Sequence[bytes],
) -> tuple[bytes, bytes]:
    """A head and its digest. `length` is what `round_bytes` said."""
    entries = b"".join(directory)
    head = (
        ROUND_HEAD.pack(
            ROUND_MAGIC,
            FORMAT_VERSION,
            len(directory),
            journal_id,
            file_number,
            position,
            round_number,
            length,
            ROUND_HEAD.size + len(entries),
            previous_digest,
        )
        + entries
    )
    return head, hashlib.sha256(head).digest()


def encode_trailer(length: int, head: bytes, digest: bytes) -> bytes:
    """What ends a round, so that the second copy of its head can be found from there."""
    return TRAILER.pack(TRAILER_MAGIC, length, len(head), digest)


def decode_round_head(data: Buffer, journal_id: bytes, file_number: int, position: int) -> RoundHead:
    """The head at the beginning of `data`, which was read at `position` of journal file `file_number`.

    `data` reaches at least to the end of the head; see `peek_head_bytes`. Raises Unreadable.
    """
    head = _verified_head(data, peek_head_bytes(data), journal_id, file_number)
    if head.position != position:
        raise Unreadable(f"a round of position {head.position} at {position}")
    return head


def peek_head_bytes(data: Buffer) -> int:
    """How many bytes of head and digest stand at the beginning of `data`, as they claim. Raises Unreadable."""
    if len(data) < ROUND_HEAD.size or data[:8] != ROUND_MAGIC:
        raise Unreadable("no round starts here")
    head_bytes: int = ROUND_HEAD.unpack_from(data)[8]
    return head_bytes + DIGEST_BYTES


def peek_trailer(data: Buffer, end: int) -> tuple[int, int, bytes] | None:
    """The length of the round, of its head and the head's digest as a trailer that ends at `end` claims; or None."""
    begin = end - TRAILER.size
    if begin < 0 or data[begin : begin + 8] != TRAILER_MAGIC:
        return None
    _, length, head_bytes, digest = TRAILER.unpack_from(data, begin)
    return length, head_bytes, digest


def decode_round_copy(copy: Buffer, digest: bytes, journal_id: bytes, file_number: int, end_position: int) -> RoundHead:
    """The head from its second copy; `digest` is the trailer's, and the round ends at `end_position`.

    Raises Unreadable.
    """
    head = _verified_head(b"".join((copy, digest)), len(copy) + DIGEST_BYTES, journal_id, file_number)
    if head.end_position != end_position:
        raise Unreadable(f"a round that ends at {head.end_position} ends at {end_position}")
    return head


def _verified_head(data: Buffer, whole_bytes: int, journal_id: bytes, file_number: int) -> RoundHead:
    if whole_bytes > len(data) or whole_bytes < ROUND_HEAD.size + DIGEST_BYTES:
        raise Unreadable(f"a head of {whole_bytes} bytes in {len(data)}")
    fields = ROUND_HEAD.unpack_from(data)
    magic, version, count, journal, number, position, round_number, length, head_bytes, previous = fields
    if magic != ROUND_MAGIC or version != FORMAT_VERSION:
        raise Unreadable("no round of this version")
    if journal != journal_id or number != file_number:
        raise Unreadable("a round of another journal or file: stale")
    digest = bytes(data[head_bytes : head_bytes + DIGEST_BYTES])
    if head_bytes + DIGEST_BYTES != whole_bytes or hashlib.sha256(data[:head_bytes]).digest() != digest:
        raise Unreadable("the head does not match its digest")
    entries = _decode_entries(data, ROUND_HEAD.size, head_bytes, count)
    return RoundHead(number, position, round_number, length, head_bytes, previous, digest, entries)


# --- The table --------------------------------------------------------------------------------------------------------
# Twice at the start of each journal file, each copy on a block boundary. Either one is enough.

#            magic version copy journal_id | file position length rounds_position first_needed last_round digest of its
#            head | group count
TABLE_HEAD: Final = struct.Struct(">8sHBxI16sQQQQQQ32s")
# group flags partition topic_id | start: index term offset timestamp chain digest | hard state: term commit vote |
# promised end: index term offset timestamp chain segment position length | floor: index term intact chain
TABLE_ROW: Final = struct.Struct(">QII16s QQQq32s32s QQB7x64s QQQq32sQQQ QQQ32s")
_ROW_HARD_STATE: Final = 1
_ROW_FLOOR: Final = 2
TABLE_COPIES: Final = 2


class TableRow(NamedTuple):
    """What the journal knows of one group at the moment a file is opened."""

    group: int
    topic_id: bytes
    partition: int
    start: LogEnd
    start_digest: bytes
    hard_state: HardState | None
    """None: lost. The replica neither votes nor acknowledges until it is re-admitted."""
    end: LogEnd
    """The promised end."""
    place: Place
    """Where the last promised batch stands; `NOWHERE` if none is retained."""
    floor: Floor | None
    """Set while the replica is damaged."""


class Table(NamedTuple):
    """What opens a journal file: the state of every group after all rounds of the files before it."""

    file_number: int
    rounds_position: int
    """Where this file's first round starts."""
    first_needed: int
    """The first journal file that recovery still has to read."""
    last_round: int
    last_digest: bytes
    """The digest of the last round's head: the next round names it."""
    rows: list[TableRow]


_BLANK_FLOOR: Final = Floor(0, 0, BLANK_DIGEST, 0)


def encode_row(row: TableRow) -> bytes:
    """One group of a table."""
    flags = (_ROW_HARD_STATE if row.hard_state is not None else 0) | (_ROW_FLOOR if row.floor is not None else 0)
    floor = row.floor or _BLANK_FLOOR
    return TABLE_ROW.pack(
        row.group,
        flags,
        row.partition,
        row.topic_id,
        *row.start,
        row.start_digest,
        *_hard_state_fields(row.hard_state or INITIAL_HARD_STATE),
        *row.end,
        *row.place,
        floor.index,
        floor.term,
        floor.intact,
        floor.chain,
    )


def _decode_row(data: Buffer, position: int) -> TableRow:
    fields = TABLE_ROW.unpack_from(data, position)
    group, flags, partition, topic_id = fields[:4]
    floor_index, floor_term, intact, floor_chain = fields[22:26]
    return TableRow(
        group,
        topic_id,
        partition,
        LogEnd._make(fields[4:9]),
        fields[9],
        _hard_state(*fields[10:14]) if flags & _ROW_HARD_STATE else None,
        LogEnd._make(fields[14:19]),
        Place._make(fields[19:22]),
        Floor(floor_index, floor_term, floor_chain, intact) if flags & _ROW_FLOOR else None,
    )


def table_bytes(group_count: int) -> int:
    """The bytes of both copies of a table of so many groups: where the first round may start."""
    return TABLE_COPIES * align(TABLE_HEAD.size + group_count * TABLE_ROW.size + DIGEST_BYTES)


def encode_table(
    journal_id: bytes, file_number: int, first_needed: int, last_round: int, last_digest: bytes, rows: Sequence[bytes]
) -> bytes:
    """Both copies, as they stand at the beginning of the file. `rows` are `encode_row`'s."""
    body = b"".join(rows)
    length = TABLE_HEAD.size + len(body) + DIGEST_BYTES
    stride = align(length)
    parts = []
    for copy in range(TABLE_COPIES):
        head = TABLE_HEAD.pack(
            TABLE_MAGIC,
            FORMAT_VERSION,
            copy,
            len(rows),
            journal_id,
            file_number,
            copy * stride,
            length,
            TABLE_COPIES * stride,
            first_needed,
            last_round,
            last_digest,
        )
        parts += [head, body, digest_of(head, body), bytes(stride - length)]
    return b"".join(parts)


def peek_table_bytes(data: Buffer) -> int:
    """The length of the copy of a table that starts `data`, as it claims. Raises Unreadable."""
    if len(data) < TABLE_HEAD.size or data[:8] != TABLE_MAGIC:
        raise Unreadable("no table starts here")
    length: int = TABLE_HEAD.unpack_from(data)[7]
    return length


def decode_table(data: Buffer, journal_id: bytes, file_number: int, position: int) -> Table:
    """One copy of a table, which was read at `position` of journal file `file_number`. Raises Unreadable."""
    length = peek_table_bytes(data)
    if length > len(data) or length < TABLE_HEAD.size + DIGEST_BYTES:
        raise Unreadable(f"a table of {length} bytes in {len(data)}")
    view = memoryview(data)
    if digest_of(view[: length - DIGEST_BYTES]) != view[length - DIGEST_BYTES : length]:
        raise Unreadable("the table does not match its digest")
    fields = TABLE_HEAD.unpack_from(data)
    _, version, _, count, journal, number, at, _, rounds_position, first_needed, last_round, last_digest = fields
    if version != FORMAT_VERSION:
        raise Unreadable(f"a table of version {version}")
    if (journal, number, at) != (journal_id, file_number, position):
        raise Unreadable("a table of another journal, file or position: stale")
    if TABLE_HEAD.size + count * TABLE_ROW.size + DIGEST_BYTES != length:
        raise Unreadable(f"a table of {length} bytes with {count} groups")
    rows = [_decode_row(data, TABLE_HEAD.size + number * TABLE_ROW.size) for number in range(count)]
    return Table(file_number, rounds_position, first_needed, last_round, last_digest, rows)


def claims_file(data: Buffer, magic: bytes, journal_id: bytes, file_number: int) -> bool:
    """Whether what starts with `magic` says that it is of this journal file; nothing is verified."""
    shape = TABLE_HEAD if magic == TABLE_MAGIC else ROUND_HEAD
    if len(data) < shape.size:
        return False
    fields = shape.unpack_from(data)
    # In a table: magic version copy count journal number; in a head: magic version count journal number.
    return (journal_id, file_number) == (fields[4:6] if magic == TABLE_MAGIC else fields[3:5])


# --- The segment's header block ---------------------------------------------------------------------------------------

#            magic version group cluster_id topic_id partition | first_index base_offset | before: term timestamp chain
_SEGMENT: Final = struct.Struct(">8sH2xI Q16s16s QQ Qq32s")
SEGMENT_HEADER_BYTES: Final = BLOCK_BYTES


class SegmentHeader(NamedTuple):
    """The block before a segment's batches: whose they are, and what stands just before the first. A hint."""

    group: int
    cluster_id: bytes
    topic_id: bytes
    partition: int
    first_index: int
    before: LogEnd
    """The end of the log just before the segment's first batch."""


def encode_segment_header(header: SegmentHeader) -> bytes:
    """The whole block of 4 KiB."""
    before = header.before
    packed = _SEGMENT.pack(
        SEGMENT_MAGIC,
        FORMAT_VERSION,
        header.partition,
        header.group,
        header.cluster_id,
        header.topic_id,
        header.first_index,
        before.next_offset,
        before.term,
        before.append_timestamp,
        before.chain,
    )
    return b"".join((packed, digest_of(packed), bytes(SEGMENT_HEADER_BYTES - len(packed) - DIGEST_BYTES)))


def decode_segment_header(data: Buffer) -> SegmentHeader:
    """Raises Unreadable."""
    if len(data) < _SEGMENT.size + DIGEST_BYTES or data[:8] != SEGMENT_MAGIC:
        raise Unreadable("no segment header")
    if digest_of(data[: _SEGMENT.size]) != data[_SEGMENT.size : _SEGMENT.size + DIGEST_BYTES]:
        raise Unreadable("the segment's header does not match its digest")
    fields = _SEGMENT.unpack_from(data)
    _, version, partition, group, cluster_id, topic_id, first_index, base_offset, term, timestamp, chain = fields
    if version != FORMAT_VERSION:
        raise Unreadable(f"a segment of version {version}")
    before = LogEnd(first_index - 1, term, base_offset, timestamp, chain)
    return SegmentHeader(group, cluster_id, topic_id, partition, first_index, before)


# --- The start file ---------------------------------------------------------------------------------------------------

#            magic version partition group cluster_id topic_id | index term offset timestamp chain | three lengths
_START: Final = struct.Struct(">8sH2xI Q16s16s QQQq32s QQQ")


def encode_start(cluster_id: bytes, group: int, start: Start) -> tuple[bytes, bytes]:
    """The whole file, and the digest by which the journal names it."""
    head = _START.pack(
        START_MAGIC,
        FORMAT_VERSION,
        start.partition,
        group,
        cluster_id,
        start.topic_id,
        *start.end,
        len(start.membership),
        len(start.producers),
        len(start.state),
    )
    body = b"".join((head, start.membership, start.producers, start.state))
    digest = digest_of(body)
    return body + digest, digest


def decode_start(data: Buffer, cluster_id: bytes, group: int) -> tuple[Start, bytes]:
    """The start and its digest. Raises Unreadable."""
    if len(data) < _START.size + DIGEST_BYTES or data[:8] != START_MAGIC:
        raise Unreadable("no start file")
    digest = bytes(data[-DIGEST_BYTES:])
    if digest_of(memoryview(data)[:-DIGEST_BYTES]) != digest:
        raise Unreadable("the start file does not match its digest")
    fields = _START.unpack_from(data)
    _, version, partition, of_group, cluster, topic_id, index, term, offset, timestamp, chain, *lengths = fields
    if version != FORMAT_VERSION:
        raise Unreadable(f"a start file of version {version}")
    if cluster != cluster_id or of_group != group:
        raise Unreadable("a start file of another cluster or group")
    if _START.size + sum(lengths) + DIGEST_BYTES != len(data):
        raise Unreadable("a start file whose lengths do not add up")
    parts = []
    position = _START.size
    for length in lengths:
        parts.append(bytes(data[position : position + length]))
        position += length
    return Start(index, term, offset, chain, timestamp, topic_id, partition, *parts), digest


# --- The sparse index -------------------------------------------------------------------------------------------------

#            magic version flags entry_count | group first_index | covered: index term offset timestamp chain, position,
#            length | producers: index, length
_INDEX: Final = struct.Struct(">8sHHI QQ QQQq32s QQ QQ")
_INDEX_SEALED: Final = 1
_INDEX_PRODUCERS: Final = 2


class IndexEntries(NamedTuple):
    """The sparse index: entry `n` says where the batch stands that begins at `offsets[n]`. All of equal length."""

    offsets: "array[int]"
    indexes: "array[int]"
    positions: "array[int]"
    timestamps: "array[int]"


INDEX_TYPECODES: Final = "QQQq"


def blank_entries() -> IndexEntries:
    """No entries."""
    return IndexEntries(*(array(code) for code in INDEX_TYPECODES))


class IndexFile(NamedTuple):
    """What an index file holds. A hint: it is used only if the batch at `place` still has the chain in `covered`."""

    group: int
    first_index: int
    is_sealed: bool
    covered: LogEnd
    """The last batch that the entries know of."""
    place: Place
    entries: IndexEntries
    producers: tuple[int, bytes] | None
    """The producer table of the log up to an index."""


def _column_bytes(column: "array[int]") -> bytes:
    if sys.byteorder == "little":
        column = column[:]
        column.byteswap()
    return column.tobytes()


def encode_index(index: IndexFile) -> bytes:
    """The whole file."""
    flags = (_INDEX_SEALED if index.is_sealed else 0) | (_INDEX_PRODUCERS if index.producers is not None else 0)
    as_of, producers = index.producers or (0, b"")
    head = _INDEX.pack(
        INDEX_MAGIC,
        FORMAT_VERSION,
        flags,
        len(index.entries.offsets),
        index.group,
        index.first_index,
        *index.covered,
        index.place.position,
        index.place.length,
        as_of,
        len(producers),
    )
    body = b"".join((head, *map(_column_bytes, index.entries), producers))
    return body + digest_of(body)


def decode_index(data: Buffer, group: int, first_index: int) -> IndexFile:
    """Raises Unreadable."""
    if len(data) < _INDEX.size + DIGEST_BYTES or data[:8] != INDEX_MAGIC:
        raise Unreadable("no index")
    view = memoryview(data)
    if digest_of(view[:-DIGEST_BYTES]) != view[-DIGEST_BYTES:]:
        raise Unreadable("the index does not match its digest")
    fields = _INDEX.unpack_from(data)
    _, version, flags, count, of_group, of_segment = fields[:6]
    position, length, as_of, producers_bytes = fields[11:15]
    if version != FORMAT_VERSION:
        raise Unreadable(f"an index of version {version}")
    if (of_group, of_segment) != (group, first_index):
        raise Unreadable("an index of another segment")
    if _INDEX.size + count * 8 * len(INDEX_TYPECODES) + producers_bytes + DIGEST_BYTES != len(data):
        raise Unreadable("an index whose lengths do not add up")
    columns = []
    at = _INDEX.size
    for code in INDEX_TYPECODES:
        column: array[int] = array(code)
        column.frombytes(view[at : at + count * 8])
        if sys.byteorder == "little":
            column.byteswap()
        columns.append(column)
        at += count * 8
    return IndexFile(
        group,
        first_index,
        bool(flags & _INDEX_SEALED),
        LogEnd._make(fields[6:11]),
        Place(first_index, position, length),
        IndexEntries(*columns),
        (as_of, bytes(view[at : at + producers_bytes])) if flags & _INDEX_PRODUCERS else None,
    )


# --- node.json --------------------------------------------------------------------------------------------------------


class NodeFile(NamedTuple):
    """Whose directory this is. Written once."""

    node_name: str
    cluster_id: bytes
    journal_id: bytes
    format_version: int = FORMAT_VERSION


_NODE_KIND: Final = "logd data directory"


def encode_node(node: NodeFile) -> bytes:
    """JSON for people, with a digest that makes a damaged or edited one visible."""
    fields: dict[str, Any] = {
        "kind": _NODE_KIND,
        "format_version": node.format_version,
        "node_name": node.node_name,
        "cluster_id": node.cluster_id.hex(),
        "journal_id": node.journal_id.hex(),
    }
    fields["digest"] = _node_digest(fields)
    return (json.dumps(fields, indent=2) + "\n").encode()


def _node_digest(fields: dict[str, Any]) -> str:
    return digest_of(json.dumps(fields, sort_keys=True).encode()).hex()


def decode_node(data: bytes) -> NodeFile:
    """Raises Unreadable. A newer `format_version` is returned as it is: the caller refuses it by name."""
    try:
        fields = json.loads(data)
        digest = fields.pop("digest")
        if fields["kind"] != _NODE_KIND or digest != _node_digest(fields):
            raise Unreadable("node.json does not match its digest")
        node = NodeFile(
            str(fields["node_name"]),
            bytes.fromhex(fields["cluster_id"]),
            bytes.fromhex(fields["journal_id"]),
            int(fields["format_version"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(f"node.json is not what this store wrote: {error}") from error
    if len(node.cluster_id) != IDENTITY_BYTES or len(node.journal_id) != IDENTITY_BYTES:
        raise Unreadable("node.json holds an identity of the wrong length")
    return node
