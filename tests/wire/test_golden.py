"""Bytes that every version reads and writes alike. A change here is a change of format, never a repair of a test."""

import hashlib
import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest

from tests.wire import examples
from wire.codec import decode, encode
from wire.messages import MESSAGES, Message
from wire.record import (
    BatchHeader,
    check_alone,
    check_produced,
    decode_header,
    decode_records,
    partition_for_key,
)
from wire.types import Record

GOLDEN = Path(__file__).parent.parent / "golden"


def golden_batch() -> tuple[dict[str, bytes], bytes]:
    """The fields by name, and all bytes."""
    fields = {}
    for line in (GOLDEN / "batch_1.hex").read_text().splitlines():
        content, _, name = line.partition("#")
        if content:
            fields[name.strip()] = bytes.fromhex(content)
    return fields, b"".join(fields.values())


def test_a_batch_is_written_as_the_golden_one() -> None:
    assert examples.stamped_batch() == golden_batch()[1]


def test_the_golden_batch_is_read_as_it_was_written() -> None:
    _, batch = golden_batch()
    header = check_alone(batch)
    assert decode_records(header, batch, partition=2) == [
        Record(value, key, headers, timestamp_ms, examples.PLACE.base_offset + number, 2)
        for number, (value, key, timestamp_ms, headers) in enumerate(examples.RECORDS)
    ]


def test_each_field_of_a_header_stands_where_the_golden_batch_has_it() -> None:
    fields, batch = golden_batch()
    payload = fields.pop("payload")
    header = decode_header(batch)
    assert list(fields) == list(BatchHeader._fields)
    assert sum(map(len, fields.values())) == 176
    for name, content in fields.items():
        value = getattr(header, name)
        assert value == (content if isinstance(value, bytes) else int.from_bytes(content, "big", signed=True)), name
    assert header.batch_bytes == len(batch)
    assert header.payload_bytes == len(payload)


def test_the_golden_digests_can_be_had_with_nothing_but_sha256() -> None:
    fields, batch = golden_batch()
    assert hashlib.sha256(batch[176:]).digest() == fields["payload_digest"]
    assert hashlib.sha256(batch[:144]).digest() == fields["chain"]


def test_the_golden_payload_is_plain_msgpack() -> None:
    fields, _ = golden_batch()
    rows = msgpack.unpackb(fields["payload"])
    assert rows == [
        [b"key", b"value", 0, {"trace": b"\x01\x02"}],
        [b"tombstone", None, 250, None],
        [None, b"", -1, {}],
    ]


def test_what_the_producer_fills_is_untouched_by_the_stamp() -> None:
    _, batch = golden_batch()
    produced = batch[:80] + bytes(96) + batch[176:]
    assert examples.produced_batch() == produced
    assert check_produced(produced).record_count == 3


def test_every_message_has_a_golden_frame() -> None:
    golden = json.loads((GOLDEN / "frames.json").read_text())
    assert [type(message) for message in examples.MESSAGES] == [row.kind for row in MESSAGES]
    assert list(golden) == [row.kind.__name__ for row in MESSAGES]


@pytest.mark.parametrize("message", examples.MESSAGES, ids=lambda message: type(message).__name__)
def test_a_frame_is_written_and_read_as_the_golden_one(message: Message) -> None:
    frame = bytes.fromhex(json.loads((GOLDEN / "frames.json").read_text())[type(message).__name__])
    headers = {"timeout_ms": 1500} if type(message).__name__ == "Produce" else {}
    assert encode(message, examples.REQUEST_ID, headers) == frame
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    assert decode(frame[4:]) == (examples.REQUEST_ID, headers, message)


def test_a_key_belongs_to_its_golden_partition() -> None:
    rows = json.loads((GOLDEN / "partition_for_key.json").read_text())
    for row in rows:
        key = bytes.fromhex(row["key"])
        assert partition_for_key(key, row["partitions"]) == row["partition"] == zlib.crc32(key) % row["partitions"]
    assert len(rows) > 50


@pytest.mark.parametrize("kind", ["numbers", "padded", "names", "random", "uuids"])
@pytest.mark.parametrize("partitions", [2, 3, 8, 12, 100])
def test_real_keys_are_spread_evenly(kind: str, partitions: int) -> None:
    chance = random.Random(1)
    makers: dict[str, Callable[[int], bytes]] = {
        "numbers": lambda number: b"%d" % number,
        "padded": lambda number: b"%012d" % number,
        "names": lambda number: b"customer/%d/orders" % number,
        "random": lambda _number: chance.randbytes(8),
        "uuids": lambda _number: chance.randbytes(16).hex().encode(),
    }
    make = makers[kind]
    count = 20_000
    counts = [0] * partitions
    for number in range(count):
        counts[partition_for_key(make(number), partitions)] += 1
    expected = count / partitions
    chi_squared = sum((found - expected) ** 2 / expected for found in counts)
    # Its mean is `partitions - 1`, its variance twice that; five deviations above it chance does not come.
    freedom = partitions - 1
    assert chi_squared < freedom + 5 * (2 * freedom) ** 0.5 + 5
