"""Records, and the batch that carries them: one encoding from the producer's memory to the consumer's.

For: encoding, checking, stamping and decoding batches. Must not know: sockets, files, or who calls. The one idea: a
batch is 176 bytes of header and an opaque payload. The producer fills the first 80 bytes, the leader stamps the other
96 without touching the first, and from then on nobody changes a byte: what is stored, replicated and served is what
was sent.

The drawing of the header stands in `docs/storage-format.md`; its golden bytes in `tests/golden/`.
"""

import gc
import hashlib
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from itertools import repeat
from typing import Any, Final, NamedTuple

import msgpack

from wire.errors import BatchTooLarge, CorruptBatch, InvalidBatch, UndecodableBatch
from wire.types import Codec, Record

Buffer = bytes | bytearray | memoryview

BATCH_FORMAT: Final = 1
HEADER_BYTES: Final = 176
CHAIN_BYTES: Final = 32
# What the producer fills, what the leader fills, and where the two meet.
PRODUCER_PART: Final = struct.Struct(">IBBHIIQQqq32s")
LEADER_PART: Final = struct.Struct(">QQQq32s32s")
_WHOLE: Final = struct.Struct(PRODUCER_PART.format + LEADER_PART.format[1:])
_LENGTH: Final = struct.Struct(">I")
_STAMP: Final = struct.Struct(">QQQq32s")
LENGTH_FIELD_BYTES: Final = 4
CHAINED_BYTES: Final = HEADER_BYTES - CHAIN_BYTES
_BLANK_LEADER_PART: Final = bytes(LEADER_PART.size)

CODEC_MASK: Final = 0b0000_0111
CONTROL_FLAG: Final = 0b0000_1000
_CODECS: Final = frozenset(int(codec) for codec in Codec)

# A batch is one element of a frame (8 MiB) and of a round (8 MiB); 1 MiB keeps several in flight and one fsync short.
BATCH_BYTES_MAX_DEFAULT: Final = 1 << 20
# What a compressed payload may grow to in a client: a bomb of a 1 MiB batch stops here.
PAYLOAD_DECOMPRESSED_BYTES_MAX: Final = 64 << 20
# A zstd frame may ask its reader for any window; 8 MiB is what RFC 8878 recommends every decoder to support.
_ZSTD_WINDOW_BYTES_MAX: Final = 8 << 20

assert PRODUCER_PART.size + LEADER_PART.size == _WHOLE.size == HEADER_BYTES


class ControlKind(IntEnum):
    """What a control batch says: the first element of its payload's array."""

    NO_OP = 1
    """A new leader's first entry: commits all before it (Raft thesis, 3.6.2)."""
    MEMBERSHIP = 2
    RETENTION = 3
    """`[3, index, offset]`: everything below this index, and so below this offset, is given up."""


class BatchHeader(NamedTuple):
    """The 176 bytes in front of a payload, as numbers. Field by field as in `docs/storage-format.md`.

    ```python
    async for batch in consumer.batches():
        print(batch.header.base_offset, batch.header.record_count, batch.header.chain.hex())
    ```
    """

    length: int
    format: int
    flags: int
    producer_epoch: int
    record_count: int
    reserved: int
    producer_id: int
    base_sequence: int
    base_timestamp: int
    max_timestamp: int
    payload_digest: bytes
    base_offset: int
    index: int  # type: ignore[assignment]  # the glossary's word wins over `tuple.index`, which nobody needs here
    term: int
    append_timestamp: int
    previous_chain: bytes
    chain: bytes

    @property
    def batch_bytes(self) -> int:
        """The size of the whole batch: header and payload."""
        return self.length + LENGTH_FIELD_BYTES

    @property
    def payload_bytes(self) -> int:
        return self.batch_bytes - HEADER_BYTES

    @property
    def next_offset(self) -> int:
        """One past the offset of the last record."""
        return self.base_offset + self.record_count

    @property
    def is_control(self) -> bool:
        return bool(self.flags & CONTROL_FLAG)

    @property
    def codec(self) -> Codec:
        """Raises ValueError for a codec that this version does not know."""
        return Codec(self.flags & CODEC_MASK)


class Stamp(NamedTuple):
    """What the leader adds to a batch: its place in one log."""

    base_offset: int
    index: int  # type: ignore[assignment]  # see BatchHeader
    term: int
    append_timestamp: int
    previous_chain: bytes


class StampedBatch(NamedTuple):
    """A batch in its place: the complete header as bytes and as numbers, and the untouched payload.

    Invariant: `header_bytes` encodes `header`, and `payload` is what `header.payload_digest` covers.
    """

    header: BatchHeader
    header_bytes: bytes
    payload: Buffer

    @property
    def batch_bytes(self) -> int:
        return HEADER_BYTES + len(self.payload)

    def to_bytes(self) -> bytes:
        """The batch as it is stored and served (copies the payload)."""
        return b"".join((self.header_bytes, self.payload))


def first_chain(cluster_id: bytes, topic_id: bytes, partition: int) -> bytes:
    """The chain before index 1: it binds every batch to one log of one cluster, so none can be moved to another."""
    return hashlib.sha256(b"logd1" + cluster_id + topic_id + struct.pack(">I", partition)).digest()


# --- Encoding: the producer's side ----------------------------------------------------------------------------------


class PayloadBuilder:
    """Collects records into one payload. Knows its size at every moment, so that a batch can be closed in time."""

    __slots__ = ("_base_timestamp", "_max_timestamp", "_packer", "_rows", "_rows_bytes")

    # An array header of a payload takes at most five bytes.
    ARRAY_HEADER_BYTES_MAX: Final = 5

    def __init__(self) -> None:
        # One packer, reused: half of the cost of a small record is making the packer.
        self._packer = msgpack.Packer(use_bin_type=True)
        self._rows: list[bytes] = []
        self._rows_bytes = 0
        self._base_timestamp = 0
        self._max_timestamp = 0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def payload_bytes_max(self) -> int:
        """An upper bound of the payload's size before compression, in bytes."""
        return self._rows_bytes + self.ARRAY_HEADER_BYTES_MAX

    def encode_row(
        self, value: bytes | None, key: bytes | None, timestamp_ms: int, headers: Mapping[str, bytes] | None
    ) -> bytes:
        """One record as it will stand in this payload; `add` takes it. The first row's time is the batch's base."""
        delta = timestamp_ms - self._base_timestamp if self._rows else 0
        return self._packer.pack((key, value, delta, headers))

    def add(self, row: bytes, timestamp_ms: int) -> None:
        """Append a row of `encode_row`, made since the last `add`."""
        if not self._rows:
            self._base_timestamp = self._max_timestamp = timestamp_ms
        elif timestamp_ms > self._max_timestamp:
            self._max_timestamp = timestamp_ms
        self._rows.append(row)
        self._rows_bytes += len(row)

    def build(
        self,
        *,
        codec: Codec = Codec.NONE,
        producer_id: int = 0,
        producer_epoch: int = 0,
        base_sequence: int = 0,
    ) -> bytes:
        """The batch, with the leader's part blank. The builder is empty afterwards.

        Raises ValueError when there is no record: an empty batch is a control batch, which only a leader makes.
        """
        count = len(self._rows)
        if not count:
            raise ValueError("a batch holds at least one record")
        payload = b"".join((self._packer.pack_array_header(count), *self._rows))
        self._rows = []
        self._rows_bytes = 0
        return produced_batch(
            payload,
            count,
            codec=codec,
            producer_id=producer_id,
            producer_epoch=producer_epoch,
            base_sequence=base_sequence,
            base_timestamp=self._base_timestamp,
            max_timestamp=self._max_timestamp,
        )


def produced_batch(
    payload: bytes,
    record_count: int,
    *,
    codec: Codec = Codec.NONE,
    producer_id: int = 0,
    producer_epoch: int = 0,
    base_sequence: int = 0,
    base_timestamp: int = 0,
    max_timestamp: int = 0,
) -> bytes:
    """A batch around an uncompressed payload, compressed as `codec` says, with the leader's part blank."""
    flags = int(codec)
    if codec is Codec.ZSTD:
        payload = _zstd().compress(payload)
    head = _producer_part(
        payload, flags, record_count, producer_id, producer_epoch, base_sequence, base_timestamp, max_timestamp
    )
    return b"".join((head, _BLANK_LEADER_PART, payload))


def encode_batch(
    records: Sequence[tuple[bytes | None, bytes | None, int, Mapping[str, bytes] | None]],
    *,
    codec: Codec = Codec.NONE,
    producer_id: int = 0,
    producer_epoch: int = 0,
    base_sequence: int = 0,
) -> bytes:
    """A batch of `(value, key, timestamp_ms, headers)` tuples, with the leader's part blank.

    ```python
    batch = wire.encode_batch([(b"third", b"anna", 1_700_000_000_000, {"trace": b"7"})])
    assert (await client.produce("events", 0, batch)).base_offset == 2
    ```
    """
    builder = PayloadBuilder()
    for value, key, timestamp_ms, headers in records:
        builder.add(builder.encode_row(value, key, timestamp_ms, headers), timestamp_ms)
    return builder.build(
        codec=codec, producer_id=producer_id, producer_epoch=producer_epoch, base_sequence=base_sequence
    )


def control_batch(kind: ControlKind, *fields: int | bytes | str | list[Any], timestamp_ms: int) -> bytes:
    """A batch of zero records that a leader adds to its own log; the leader's part is blank until it is stamped."""
    payload: bytes = msgpack.packb([int(kind), *fields])
    head = _producer_part(payload, CONTROL_FLAG, 0, 0, 0, 0, timestamp_ms, timestamp_ms)
    return b"".join((head, _BLANK_LEADER_PART, payload))


def _producer_part(
    payload: bytes,
    flags: int,
    record_count: int,
    producer_id: int,
    producer_epoch: int,
    base_sequence: int,
    base_timestamp: int,
    max_timestamp: int,
) -> bytes:
    return PRODUCER_PART.pack(
        HEADER_BYTES - LENGTH_FIELD_BYTES + len(payload),
        BATCH_FORMAT,
        flags,
        producer_epoch,
        record_count,
        0,
        producer_id,
        base_sequence,
        base_timestamp,
        max_timestamp,
        hashlib.sha256(payload).digest(),
    )


# --- Checking and stamping: the leader's side -----------------------------------------------------------------------


def check_produced(batch: bytes, batch_bytes_max: int = BATCH_BYTES_MAX_DEFAULT) -> BatchHeader:
    """Refuse a produced batch that breaks a rule; return its header (the leader's part is zero).

    It does not decode records; of a compressed payload it decompresses no more than the array's header.
    Raises BatchTooLarge, InvalidBatch (the message names the field) or CorruptBatch (the digest does not match).
    """
    if len(batch) > batch_bytes_max:
        raise BatchTooLarge(
            f"a batch of {len(batch)} bytes is above the limit of {batch_bytes_max}",
            {"batch_bytes": len(batch), "batch_bytes_max": batch_bytes_max},
        )
    if len(batch) < HEADER_BYTES:
        raise InvalidBatch(f"a batch has at least {HEADER_BYTES} bytes, got {len(batch)}")
    header = decode_header(batch)
    problem = _producer_fields_problem(header, len(batch))
    if problem is None and batch[PRODUCER_PART.size : HEADER_BYTES] != _BLANK_LEADER_PART:
        problem = "the leader's fields are not zero"
    if problem is not None:
        raise InvalidBatch(problem)
    payload = memoryview(batch)[HEADER_BYTES:]
    if hashlib.sha256(payload).digest() != header.payload_digest:
        raise CorruptBatch("the payload does not match its digest: damaged on the way, or by the producer")
    count = _array_length(_payload_prefix(header, payload))
    if count != header.record_count:
        raise InvalidBatch(
            f"record_count says {header.record_count}, the payload "
            + ("is not an array" if count is None else f"holds {count}")
        )
    return header


def _producer_fields_problem(header: BatchHeader, batch_bytes: int) -> str | None:
    if header.batch_bytes != batch_bytes:
        return f"length says {header.batch_bytes} bytes in all, got {batch_bytes}"
    if header.format != BATCH_FORMAT:
        return f"format {header.format} is unknown"
    if header.flags & CONTROL_FLAG:
        return "control batches come from leaders, never from producers"
    if header.flags & ~(CODEC_MASK | CONTROL_FLAG) or (header.flags & CODEC_MASK) not in _CODECS:
        return f"flags {header.flags:#04x} are unknown"
    if header.reserved:
        return "the reserved field is not zero"
    if header.record_count == 0:
        return "record_count is 0: only control batches are empty"
    return None


def stamp(batch: Buffer, place: Stamp) -> StampedBatch:
    """Give a batch its place: fill in the leader's part and close the chain. The payload is not copied.

    `batch` has passed `check_produced`, or is a leader's own `control_batch`.
    """
    view = memoryview(batch)
    body = bytes(view[: PRODUCER_PART.size]) + _STAMP.pack(*place)
    header_bytes = body + hashlib.sha256(body).digest()
    return StampedBatch(BatchHeader._make(_WHOLE.unpack(header_bytes)), header_bytes, view[HEADER_BYTES:])


# --- Reading ---------------------------------------------------------------------------------------------------------


def decode_header(buffer: Buffer, position: int = 0) -> BatchHeader:
    """The header at `position`, unverified. Raises struct.error when fewer than `HEADER_BYTES` are there."""
    return BatchHeader._make(_WHOLE.unpack_from(buffer, position))


def peek_batch_bytes(buffer: Buffer, position: int = 0) -> int:
    """The size in bytes that the batch at `position` claims to have, from its first field alone."""
    length: int = _LENGTH.unpack_from(buffer, position)[0]
    return length + LENGTH_FIELD_BYTES


def header_chain_holds(header_bytes: Buffer, position: int = 0) -> bool:
    """Whether the 176 bytes at `position` carry the digest of their own first 144."""
    view = memoryview(header_bytes)
    end = position + HEADER_BYTES
    return hashlib.sha256(view[position : position + CHAINED_BYTES]).digest() == view[end - CHAIN_BYTES : end]


def check_alone(buffer: Buffer, position: int = 0) -> BatchHeader:
    """Verify that the batch at `position` is valid alone: whole, of this format, and both digests match.

    Returns its header. Raises CorruptBatch, whose message says which of these failed.
    """
    view = memoryview(buffer)[position:]
    if len(view) < HEADER_BYTES:
        raise CorruptBatch(f"only {len(view)} bytes of a header of {HEADER_BYTES}")
    header = decode_header(view)
    if header.length < HEADER_BYTES - LENGTH_FIELD_BYTES or header.batch_bytes > len(view):
        raise CorruptBatch(f"length says {header.batch_bytes} bytes, {len(view)} are there")
    if header.format != BATCH_FORMAT:
        raise CorruptBatch(f"format {header.format} is unknown")
    if not header_chain_holds(view):
        raise CorruptBatch("the header does not match its chain digest")
    if hashlib.sha256(view[HEADER_BYTES : header.batch_bytes]).digest() != header.payload_digest:
        raise CorruptBatch("the payload does not match its digest")
    return header


def check_in_place(header: BatchHeader, previous: BatchHeader) -> None:
    """Verify that `header` follows `previous` in one log: chain, index and offset.

    Raises CorruptBatch, whose message says which of these failed.
    """
    if header.index != previous.index + 1:
        raise CorruptBatch(f"index {header.index} does not follow {previous.index}")
    if header.base_offset != previous.next_offset:
        raise CorruptBatch(f"base_offset {header.base_offset} does not follow {previous.next_offset}")
    if header.previous_chain != previous.chain:
        raise CorruptBatch(f"the chain breaks between index {previous.index} and {header.index}")


def split_batches(buffer: Buffer) -> Iterator[memoryview]:
    """The whole batches that stand one after the other in `buffer`; a cut one at the end raises CorruptBatch.

    ```python
    fetched = await client.fetch("events", 0, 0)
    print([len(batch) for batch in wire.split_batches(fetched.batches)])
    ```
    """
    view = memoryview(buffer)
    position = 0
    while position < len(view):
        size = peek_batch_bytes(view, position) if len(view) - position >= HEADER_BYTES else 0
        if size < HEADER_BYTES or position + size > len(view):
            raise CorruptBatch(f"a batch is cut at byte {position} of {len(view)}")
        yield view[position : position + size]
        position += size


def payload_of(header: BatchHeader, batch: Buffer) -> Buffer:
    """The payload of a batch, decompressed within bounds.

    Raises UndecodableBatch (details: base_offset, next_offset) for an unknown codec, a bomb, or bytes that are not
    what the codec says.
    """
    payload = memoryview(batch)[HEADER_BYTES : header.batch_bytes]
    codec_number = header.flags & CODEC_MASK
    if codec_number == Codec.NONE:
        return payload
    if codec_number == Codec.ZSTD:
        try:
            return _zstd().decompress(payload)
        except ValueError as error:
            raise _undecodable(header, str(error)) from error
    raise _undecodable(header, f"codec {codec_number} is unknown")


def decode_records(header: BatchHeader, batch: Buffer, partition: int) -> list[Record]:
    """The records of a batch that was found valid, with their offsets.

    Raises UndecodableBatch (details: base_offset, next_offset) when the payload is not an array of `record_count`
    records. A control batch has none.

    ```python
    from wire.record import check_produced

    batch = wire.encode_batch([(b"hello", None, 0, None)])
    (record,) = wire.decode_records(check_produced(batch), batch, partition=0)
    assert record.value == b"hello"
    ```
    """
    if header.is_control:
        return []
    payload = payload_of(header, batch)
    # The collector would run several times for each batch, over objects that cannot be in a cycle, and take half of the
    # time. It rests for the fraction of a millisecond that a batch takes.
    is_collecting = gc.isenabled()
    gc.disable()
    try:
        return _records_of(header, payload, partition)
    finally:
        if is_collecting:
            gc.enable()


def _records_of(header: BatchHeader, payload: Buffer, partition: int) -> list[Record]:
    try:
        rows = msgpack.unpackb(payload, raw=False, use_list=False, max_ext_len=0)
        # By columns: one pass in C for each, instead of a Python frame for each record.
        keys, values, deltas, headers = zip(*rows, strict=True)
        base = header.base_timestamp
        times = [base + delta for delta in deltas]
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise _undecodable(header, f"the payload is not an array of records: {error}") from error
    if len(rows) != header.record_count:
        raise _undecodable(header, f"{len(rows)} records where {header.record_count} were promised")
    if not (
        _BYTES_OR_NIL.issuperset(map(type, keys))
        and _BYTES_OR_NIL.issuperset(map(type, values))
        and _INT_ONLY.issuperset(map(type, deltas))
        and _DICT_OR_NIL.issuperset(map(type, headers))
        and (not any(headers) or all(_are_header_fields(item) for item in headers if item is not None))
    ):
        raise _undecodable(header, "a record is not [key bin, value bin, timestamp_delta int, headers map]")
    offsets = range(header.base_offset, header.next_offset)
    columns = zip(values, keys, headers, times, offsets, repeat(partition), strict=False)
    return list(map(tuple.__new__, repeat(Record), columns))


_BYTES_OR_NIL: Final = frozenset((bytes, type(None)))
_DICT_OR_NIL: Final = frozenset((dict, type(None)))
_INT_ONLY: Final = frozenset((int,))
_STR_ONLY: Final = frozenset((str,))
_BYTES_ONLY: Final = frozenset((bytes,))


def _are_header_fields(headers: dict[Any, Any]) -> bool:
    return _STR_ONLY.issuperset(map(type, headers)) and _BYTES_ONLY.issuperset(map(type, headers.values()))


def decode_control(header: BatchHeader, batch: Buffer) -> tuple[ControlKind, list[Any]]:
    """What a control batch says: its kind and the fields behind it. Raises UndecodableBatch."""
    try:
        kind, *fields = msgpack.unpackb(memoryview(batch)[HEADER_BYTES : header.batch_bytes], max_ext_len=0)
        return ControlKind(kind), fields
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise _undecodable(header, f"not a control payload: {error}") from error


def _undecodable(header: BatchHeader, why: str) -> UndecodableBatch:
    return UndecodableBatch(
        f"the batch at offset {header.base_offset} cannot be decoded: {why}",
        {"base_offset": header.base_offset, "next_offset": header.next_offset},
    )


# --- Compression -----------------------------------------------------------------------------------------------------


class _Zstd(threading.local):
    """One compressor and decompressor a thread: sharing them between threads crashes the interpreter.

    The package is loaded at the first use, so that whoever never compresses never pays for it.
    """

    def __init__(self) -> None:
        import zstandard  # noqa: PLC0415  # see above

        self._error = zstandard.ZstdError
        self._content_size = zstandard.frame_content_size
        # Level 1: 640 MB/s against 405 of level 3, for a few per cent of size.
        self._compressor = zstandard.ZstdCompressor(level=1)
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES_MAX)

    def compress(self, payload: bytes) -> bytes:
        return self._compressor.compress(payload)

    def decompress(self, payload: Buffer) -> bytes:
        """Raises ValueError for anything that is not one zstd frame within the bounds."""
        try:
            size = self._content_size(payload)
            # The package ignores `max_output_size` when the frame itself states a size, so look first.
            if size > PAYLOAD_DECOMPRESSED_BYTES_MAX:
                raise ValueError(f"{size} bytes decompressed are above the limit of {PAYLOAD_DECOMPRESSED_BYTES_MAX}")
            return self._decompressor.decompress(payload, max_output_size=PAYLOAD_DECOMPRESSED_BYTES_MAX)
        except (self._error, MemoryError) as error:
            raise ValueError(f"not a zstd frame within the bounds: {error}") from error

    def prefix(self, payload: Buffer, length_bytes: int) -> bytes:
        """The first bytes of the decompressed payload, with no more work than they need. Raises ValueError."""
        try:
            with self._decompressor.stream_reader(payload, read_size=1 << 10) as reader:
                return reader.read(length_bytes)
        except (self._error, MemoryError) as error:
            raise ValueError(f"not a zstd frame within the bounds: {error}") from error


_zstd_of_thread: _Zstd | None = None


def _zstd() -> _Zstd:
    global _zstd_of_thread  # noqa: PLW0603  # a lazily made constant: making it twice is harmless
    if _zstd_of_thread is None:
        _zstd_of_thread = _Zstd()
    return _zstd_of_thread


def _payload_prefix(header: BatchHeader, payload: memoryview) -> bytes:
    if header.flags & CODEC_MASK == Codec.NONE:
        return bytes(payload[: PayloadBuilder.ARRAY_HEADER_BYTES_MAX])
    try:
        return _zstd().prefix(payload, PayloadBuilder.ARRAY_HEADER_BYTES_MAX)
    except ValueError as error:
        raise InvalidBatch(str(error)) from error


def _array_length(prefix: bytes) -> int | None:
    """The number of elements that a msgpack array header announces; None if there is no such header."""
    match prefix[:1]:
        case b"\xdc" if len(prefix) >= 3:  # array 16: tag and two bytes
            return int.from_bytes(prefix[1:3], "big")
        case b"\xdd" if len(prefix) >= 5:  # array 32: tag and four bytes
            return int.from_bytes(prefix[1:5], "big")
        case tag if tag and tag[0] & 0xF0 == 0x90:  # fixarray: the count is in the tag
            return tag[0] & 0x0F
    return None


# --- Partitioning -----------------------------------------------------------------------------------------------------


def partition_for_key(key: bytes, partition_count: int) -> int:
    """Which partition a key belongs to: CRC-32 (IEEE 802.3, as in zlib) of the key, modulo the number of partitions.

    Every client of logd, in any language, uses this function: `tests/golden/partition_for_key.json` fixes it.
    CRC-32 is in every standard library, and spreads real keys evenly (ADR 4 has the measurement).

    ```python
    assert wire.partition_for_key(b"customer-7", 3) == 2
    ```
    """
    return zlib.crc32(key) % partition_count
