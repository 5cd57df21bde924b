"""Records and batches: every byte is checked by whoever trusts it, and damage is always a typed error."""

import contextlib
import itertools
import struct
from typing import Any

import msgpack
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire import examples
from wire.errors import BatchTooLarge, CorruptBatch, InvalidBatch, LogdError, UndecodableBatch
from wire.record import (
    BATCH_BYTES_MAX_DEFAULT,
    HEADER_BYTES,
    PAYLOAD_DECOMPRESSED_BYTES_MAX,
    BatchHeader,
    ControlKind,
    PayloadBuilder,
    Stamp,
    check_alone,
    check_in_place,
    check_produced,
    control_batch,
    decode_control,
    decode_header,
    decode_records,
    encode_batch,
    first_chain,
    header_chain_holds,
    peek_batch_bytes,
    produced_batch,
    split_batches,
    stamp,
)
from wire.types import Codec, Record

PLACE = Stamp(0, 1, 1, 0, bytes(32))

keys = st.none() | st.binary(max_size=20)
headers = st.none() | st.dictionaries(st.text(max_size=5), st.binary(max_size=5), max_size=3)
times = st.integers(-(2**62), 2**62)
records = st.lists(st.tuples(keys, keys, times, headers), min_size=1, max_size=20)


def stamped(batch: bytes, place: Stamp = PLACE) -> bytes:
    return stamp(batch, place).to_bytes()


def flip(batch: bytes, position: int, bit: int) -> bytes:
    changed = bytearray(batch)
    changed[position] ^= 1 << bit
    return bytes(changed)


# --- there and back ---


@given(records=records, codec=st.sampled_from(Codec), offset=st.integers(0, 2**62))
def test_what_is_encoded_is_decoded(
    records: list[tuple[bytes | None, bytes | None, int, dict[str, bytes] | None]], codec: Codec, offset: int
) -> None:
    batch = encode_batch(records, codec=codec, producer_id=7, producer_epoch=3, base_sequence=11)
    produced = check_produced(batch)
    whole = stamped(batch, PLACE._replace(base_offset=offset))
    header = check_alone(whole)
    assert decode_records(header, whole, 5) == [
        Record(value, key, headers, time, offset + number, 5)
        for number, (value, key, time, headers) in enumerate(records)
    ]
    assert header.codec is codec
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (7, 3, 11)
    assert header.next_offset == offset + len(records)
    assert header.base_timestamp == records[0][2]
    assert header.max_timestamp == max(time for _, _, time, _ in records)
    assert produced.payload_digest == header.payload_digest


def test_a_builder_bounds_its_payload_and_is_empty_afterwards() -> None:
    builder = PayloadBuilder()
    for number in range(100_000):
        builder.add(builder.encode_row(b"x", None, number, None), number)
    bound = builder.payload_bytes_max
    assert len(builder) == 100_000
    batch = builder.build()
    assert bound - 4 <= len(batch) - HEADER_BYTES <= bound
    assert len(builder) == 0
    with pytest.raises(ValueError, match="at least one record"):
        builder.build()


def test_batches_are_split_where_they_end() -> None:
    batches = [stamped(encode_batch([(b"%d" % number, None, 0, None)])) for number in range(5)]
    assert [bytes(view) for view in split_batches(b"".join(batches))] == batches
    assert list(split_batches(b"")) == []
    assert peek_batch_bytes(batches[0]) == len(batches[0])


# --- damage ---


@pytest.mark.parametrize("codec", list(Codec))
def test_every_flipped_bit_of_a_stored_batch_is_found(codec: Codec) -> None:
    whole = stamped(encode_batch(examples.RECORDS, codec=codec))
    for position in range(len(whole)):
        for bit in range(8):
            with pytest.raises(CorruptBatch):
                check_alone(flip(whole, position, bit))


def test_every_cut_of_a_stored_batch_is_found() -> None:
    whole = stamped(encode_batch(examples.RECORDS))
    for length in range(len(whole)):
        with pytest.raises(CorruptBatch):
            check_alone(whole[:length])
        if length:
            with pytest.raises(CorruptBatch):
                list(split_batches(whole + whole[:length]))


def test_a_batch_verifies_in_the_middle_of_a_buffer() -> None:
    whole = stamped(encode_batch(examples.RECORDS))
    assert check_alone(b"before" + whole + b"behind", 6) == decode_header(whole)
    assert header_chain_holds(b"before" + whole, 6)
    assert not header_chain_holds(b"before" + flip(whole, 100, 0), 6)


@pytest.mark.parametrize("codec", list(Codec))
def test_every_flipped_bit_of_a_produced_batch_that_matters_is_refused(codec: Codec) -> None:
    batch = encode_batch(examples.RECORDS, codec=codec)
    # The digest covers the payload; epoch, ids, sequence and times are the producer's own word.
    unchecked = {6, 7, *range(16, 48)}
    for position in range(len(batch)):
        if position not in unchecked:
            for bit in range(8):
                with pytest.raises((CorruptBatch, InvalidBatch)):
                    check_produced(flip(batch, position, bit))


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("format", 2, "format 2 is unknown"),
        ("flags", 0b1000, "control batches come from leaders"),
        ("flags", 0b0010, "flags 0x02 are unknown"),
        ("flags", 0b1_0000, "flags 0x10 are unknown"),
        ("reserved", 1, "the reserved field is not zero"),
        ("record_count", 0, "record_count is 0"),
        ("record_count", 4, "record_count says 4, the payload holds 3"),
        ("length", 7, "length says 11 bytes"),
        ("base_offset", 1, "the leader's fields are not zero"),
        ("chain", b"\x01" * 32, "the leader's fields are not zero"),
    ],
)
def test_a_produced_batch_that_breaks_a_rule_is_refused_by_its_name(field: str, value: Any, problem: str) -> None:
    whole = examples.produced_batch()
    header = decode_header(whole)._replace(**{field: value})
    changed = struct.pack(">IBBHIIQQQq32sQQQq32s32s", *header) + whole[HEADER_BYTES:]
    with pytest.raises(InvalidBatch) as caught:
        check_produced(changed)
    assert problem in str(caught.value)


def test_a_produced_batch_above_the_limit_is_refused_before_it_is_looked_at() -> None:
    with pytest.raises(BatchTooLarge) as caught:
        check_produced(bytes(1001), batch_bytes_max=1000)
    assert caught.value.details == {"batch_bytes": 1001, "batch_bytes_max": 1000}
    assert len(examples.produced_batch()) < BATCH_BYTES_MAX_DEFAULT


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_with_a_typed_error(data: bytes) -> None:
    for check in (check_produced, check_alone):
        with pytest.raises(LogdError):
            check(data)
    with contextlib.suppress(CorruptBatch):
        assert sum(map(len, split_batches(data))) == len(data)


@given(payload=st.binary(max_size=100), count=st.integers(1, 2**32 - 1), codec=st.sampled_from(Codec))
def test_any_payload_is_records_or_undecodable(payload: bytes, count: int, codec: Codec) -> None:
    whole = stamped(produced_batch(payload, count, codec=codec))
    header = check_alone(whole)
    try:
        assert len(decode_records(header, whole, 0)) == count
    except UndecodableBatch as error:
        assert error.details == {"base_offset": 0, "next_offset": count}  # noqa: PT017  # whether it raises is the input's matter


rows = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.binary(max_size=5)
    | st.text(max_size=5)
    | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=20,
)


@given(st.lists(rows, min_size=1, max_size=5))
def test_any_msgpack_is_records_or_undecodable(content: list[Any]) -> None:
    whole = stamped(produced_batch(msgpack.packb(content), len(content)))
    try:
        decoded = decode_records(check_alone(whole), whole, 0)
    except UndecodableBatch:
        return
    for record, row in zip(decoded, content, strict=True):
        assert [record.key, record.value, record.timestamp_ms, record.headers] == list(row)
        assert type(record.key) in (bytes, type(None))
        assert type(record.value) in (bytes, type(None))
        assert type(record.timestamp_ms) is int


@pytest.mark.parametrize(
    "row",
    [
        [b"k", b"v", 0],
        [b"k", b"v", 0, None, 1],
        ["k", b"v", 0, None],
        [b"k", "v", 0, None],
        [b"k", b"v", True, None],
        [b"k", b"v", 1.0, None],
        [b"k", b"v", None, None],
        [b"k", b"v", 0, []],
        [b"k", b"v", 0, {"name": "text"}],
        [b"k", b"v", 0, {b"name": b""}],
        [b"k", b"v", 0, {1: b""}],
        {"k": b"v", "a": 1, "b": 2, "c": 3},
        "text",
        b"four",
        4,
        None,
    ],
    ids=repr,
)
def test_a_row_that_is_no_record_makes_its_batch_undecodable(row: Any) -> None:
    good = [b"k", b"v", 0, None]
    whole = stamped(produced_batch(msgpack.packb([good, row, good]), 3))
    with pytest.raises(UndecodableBatch):
        decode_records(check_alone(whole), whole, 0)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x90",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\x91" + b"\x81\xa1a" * 3000 + b"\xc0",
        b"\xc1",
        b"\x91\xc7\x05\x01abcde",
        b"\x91\x94\xc0\xc0\x00\xc0\xc0",
        b"\x91\x94\xc0\xc0\x00\x81\xa1\xff\xc4\x00",
    ],
    ids=[
        "nothing",
        "empty",
        "array of 4 G",
        "map of 4 G",
        "deep",
        "deep maps",
        "reserved",
        "ext",
        "trailing",
        "not UTF-8",
    ],
)
def test_a_hostile_payload_is_undecodable(payload: bytes) -> None:
    whole = stamped(produced_batch(payload, 1))
    with pytest.raises(UndecodableBatch):
        decode_records(check_alone(whole), whole, 0)


def _zstd_batch(payload: bytes, count: int = 1) -> bytes:
    plain = produced_batch(payload, count)
    return plain[:5] + b"\x01" + plain[6:]


def test_a_bomb_stops_at_its_bound() -> None:
    for zeros in (zstandard.compress(bytes(PAYLOAD_DECOMPRESSED_BYTES_MAX + 1)), _without_size(256 << 20)):
        assert len(zeros) < 100_000
        whole = stamped(_zstd_batch(zeros))
        with pytest.raises(UndecodableBatch):
            decode_records(check_alone(whole), whole, 0)
        with pytest.raises(InvalidBatch):
            check_produced(_zstd_batch(zeros))


def _without_size(size: int) -> bytes:
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return b"".join(compressor.compress(bytes(1 << 20)) for _ in range(size >> 20)) + compressor.flush()


@pytest.mark.parametrize("payload", [b"", b"garbage", zstandard.compress(b"\x91")[:-1], b"\x28\xb5\x2f\xfd" * 3])
def test_what_is_no_zstd_frame_is_refused_and_undecodable(payload: bytes) -> None:
    whole = stamped(_zstd_batch(payload))
    with pytest.raises(UndecodableBatch):
        decode_records(check_alone(whole), whole, 0)


def test_a_produced_zstd_batch_is_counted_without_decompressing_all_of_it() -> None:
    payload = msgpack.packb([[None, bytes(1000), 0, None]] * 1000)
    batch = _zstd_batch(zstandard.compress(payload), 1000)
    assert check_produced(batch).record_count == 1000
    with pytest.raises(InvalidBatch, match="holds 1000"):
        check_produced(_zstd_batch(zstandard.compress(payload), 999))


def test_an_unknown_codec_is_undecodable_and_says_where() -> None:
    whole = bytearray(examples.produced_batch())
    whole[5] = 5
    batch = stamped(bytes(whole), PLACE._replace(base_offset=10))
    header = check_alone(batch)
    with pytest.raises(UndecodableBatch) as caught:
        decode_records(header, batch, 0)
    assert caught.value.details == {"base_offset": 10, "next_offset": 13}
    with pytest.raises(ValueError, match="5"):
        _ = header.codec


# --- places and control batches ---


def _chain(count: int) -> list[BatchHeader]:
    chain = first_chain(bytes(16), bytes(16), 0)
    found = []
    offset = 0
    for index in range(1, count + 1):
        batch = (
            control_batch(ControlKind.NO_OP, timestamp_ms=0)
            if index % 3 == 0
            else encode_batch([(b"x", None, 0, None)] * index)
        )
        header = stamp(batch, Stamp(offset, index, 1, 0, chain)).header
        found.append(header)
        chain, offset = header.chain, header.next_offset
    return found


def test_a_chain_holds_from_batch_to_batch() -> None:
    chain = _chain(10)
    for previous, header in itertools.pairwise(chain):
        check_in_place(header, previous)
    for other in (0, 1, 2, 4, 5):
        with pytest.raises(CorruptBatch):
            check_in_place(chain[other], chain[2])


@pytest.mark.parametrize("field", ["index", "base_offset", "previous_chain"])
def test_a_batch_out_of_place_says_in_which_respect(field: str) -> None:
    first, second = _chain(2)
    wrong: dict[str, Any] = {"index": 3, "base_offset": 5, "previous_chain": bytes(32)}
    word = {"index": "index 3", "base_offset": "base_offset 5", "previous_chain": "chain breaks"}[field]
    with pytest.raises(CorruptBatch, match=word):
        check_in_place(second._replace(**{field: wrong[field]}), first)


def test_the_first_chain_binds_a_log_to_its_cluster_topic_and_partition() -> None:
    chains = {
        first_chain(cluster * 16, topic * 16, partition)
        for cluster in (b"a", b"b")
        for topic in (b"a", b"b")
        for partition in (0, 1)
    }
    assert len(chains) == 8


def test_control_batches_hold_no_records_and_say_their_kind() -> None:
    batch = stamped(control_batch(ControlKind.RETENTION, 7, 41, timestamp_ms=5))
    header = check_alone(batch)
    assert header.is_control
    assert header.next_offset == header.base_offset
    assert decode_records(header, batch, 0) == []
    assert decode_control(header, batch) == (ControlKind.RETENTION, [7, 41])
    with pytest.raises(InvalidBatch, match="never from producers"):
        check_produced(control_batch(ControlKind.NO_OP, timestamp_ms=0))


@settings(max_examples=50)
@given(st.binary(max_size=30))
def test_any_control_payload_is_understood_or_undecodable(payload: bytes) -> None:
    plain = control_batch(ControlKind.NO_OP, timestamp_ms=0)
    batch = plain[:HEADER_BYTES] + payload
    batch = (len(batch) - 4).to_bytes(4, "big") + batch[4:]
    try:
        kind, _ = decode_control(decode_header(batch), batch)
    except UndecodableBatch:
        return
    assert isinstance(kind, ControlKind)
