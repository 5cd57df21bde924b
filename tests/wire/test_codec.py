"""The codec: what is decoded is typed and in bounds, and everything else is one of two errors."""

import dataclasses
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire import examples
from wire.codec import REQUEST_ID_MAX, MessageFault, decode, encode
from wire.errors import InvalidRequest, ProtocolError, Unsupported
from wire.messages import MESSAGES, Fetch, ListOffsets, Message, Metadata, Ping, Produce, Produced
from wire.types import Acks, Anchor, Durability

NUMBERS = {row.kind: row.number for row in MESSAGES}


def body(*values: Any) -> bytes:
    return bytes(msgpack.packb(values))


def fault(data: bytes) -> MessageFault:
    with pytest.raises(MessageFault) as caught:
        decode(data)
    return caught.value


@given(
    topic=st.text(max_size=20),
    partition=st.integers(0, 2**32 - 1),
    acks=st.sampled_from(Acks),
    batch=st.binary(max_size=50),
    expected=st.none() | st.integers(0, 2**64 - 1),
    request_id=st.integers(0, REQUEST_ID_MAX),
    headers=st.dictionaries(st.text(max_size=5), st.integers(0, 9), max_size=2),
)
def test_a_message_survives_the_way(
    topic: str, partition: int, acks: Acks, batch: bytes, expected: int | None, request_id: int, headers: dict[str, int]
) -> None:
    message = Produce(topic, partition, acks, batch, expected)
    assert decode(encode(message, request_id, headers)[4:]) == (request_id, headers, message)


@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=40),
    st.sampled_from(Durability),
    st.lists(st.text(max_size=9), max_size=4),
    st.booleans(),
)
def test_an_answer_survives_the_way(
    offset: int, index: int, chain: bytes, durability: Durability, nodes: list[str], duplicate: bool
) -> None:
    message = Produced(offset, index, 1, chain, durability, tuple(nodes), duplicate)
    assert decode(encode(message, 1)[4:]).message == message


@pytest.mark.parametrize("at", [Anchor.START, Anchor.END, 0, -(2**63), 2**63 - 1])
def test_a_place_is_an_anchor_or_a_time(at: Anchor | int) -> None:
    message = ListOffsets("t", 0, at)
    decoded = decode(encode(message, 1)[4:]).message
    assert decoded == message
    assert isinstance(decoded, ListOffsets)
    assert type(decoded.at) is type(at)


@pytest.mark.parametrize("message", examples.MESSAGES, ids=lambda message: type(message).__name__)
def test_unknown_trailing_fields_are_ignored(message: Message) -> None:
    values = msgpack.unpackb(encode(message, 9)[4:])
    assert decode(body(*values, "from", {"the": "future"})).message == message


@pytest.mark.parametrize("message", examples.MESSAGES, ids=lambda message: type(message).__name__)
def test_missing_fields_have_their_default_or_are_named(message: Message) -> None:
    values = msgpack.unpackb(encode(message, 9)[4:])
    fields = dataclasses.fields(message)  # type: ignore[arg-type]  # every message is a dataclass
    for count in range(len(fields)):
        cut = body(*values[: 3 + count])
        missing = [
            field.name
            for field in fields[count:]
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        ]
        if not missing:
            assert type(decode(cut).message) is type(message)
            continue
        found = fault(cut)
        assert found.request_id == 9
        assert isinstance(found.error, InvalidRequest)
        assert str(found.error) == f"{type(message).__name__}.{', '.join(missing)}: missing"


@pytest.mark.parametrize("wrong", [None, True, -1, 2**63, 1.5, "text", b"bytes", [], [None], {}, {"a": 1}, {"a": b"b"}])
@pytest.mark.parametrize("message", examples.MESSAGES, ids=lambda message: type(message).__name__)
def test_a_field_of_a_wrong_type_is_named_or_right(message: Message, wrong: Any) -> None:
    values = msgpack.unpackb(encode(message, 9)[4:])
    for position, field in enumerate(dataclasses.fields(message)):  # type: ignore[arg-type]  # as above
        changed = [*values]
        changed[3 + position] = wrong
        try:
            decoded = decode(body(*changed)).message
        except MessageFault as found:
            assert isinstance(found.error, InvalidRequest)  # noqa: PT017  # whether it raises is the input's matter
            assert str(found.error).startswith(f"{type(message).__name__}.{field.name}: ")  # noqa: PT017  # whether it raises is the input's matter
        else:
            # What passes is what it claims to be: it goes out again, and comes back the same.
            assert decode(encode(decoded, 9)[4:]).message == decoded


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ((1, 0, None, ["one"], "c"), "Hello.versions: expected an integer, got text"),
        ((10, 1, None, "t", 0, "all", b""), "Produce.acks: expected one of none, leader, quorum, got text"),
        ((10, 1, None, "t", 2**32, "none", b""), "Produce.partition: 4294967296 is not in 0…4294967295"),
        ((10, 1, None, "t", 0, "none", "text"), "Produce.batch: expected bytes, got text"),
        ((20, 1, None, "t", 0, "middle"), "ListOffsets.at: expected an integer, got text"),
        ((41, 1, None, [["n", "h", 70_000]], []), "ClusterMetadata.nodes: port: 70000 is not in 0…65535"),
    ],
)
def test_a_refusal_says_what_is_wrong_where(values: tuple[Any, ...], problem: str) -> None:
    assert str(fault(body(*values)).error) == problem


@pytest.mark.parametrize("number", [-1, 5, 9, 50, 64, 95, 2**63])
def test_an_unknown_type_is_unsupported_and_keeps_its_request(number: int) -> None:
    found = fault(body(number, 77, None))
    assert found.request_id == 77
    assert isinstance(found.error, Unsupported)
    assert found.error.details == {"type": number}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\xc1\x00\x00\x00",
        body(),
        body(3),
        body(3, 1),
        body("3", 1, None),
        body(3, "1", None),
        body(3, -1, None),
        body(3, 2**32, None),
        body(True, 1, None),
        body(3, False, None),
        body(3, 1, []),
        body(3, 1, "headers"),
        body(3, 1, {1: 2}),
        msgpack.packb({"type": 3}),
        body(3, 1, None) + b"\x00",
        b"\x93\x03\x01",
        b"\xdd\xff\xff\xff\xff\x03\x01\xc0",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\x91" * 5000,
        b"\x93\x03\x01" + b"\x81\xa1a" * 5000,
        b"\x93\x03\x01\xc7\x04\x01abcd",
        b"\x93\x03\x01\xd6\xff\x00\x00\x00\x00",
        b"\x93\x03\x01\xa2\xff\xfe",
        b"\x94\x03\x01\xc0\xa2\xff\xfe",
    ],
    ids=lambda data: data[:12].hex() or "nothing",
)
def test_what_is_no_envelope_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data)


def test_repeated_keys_floats_and_large_numbers_harm_nothing() -> None:
    repeated = b"\x93\x03\x01\x82\xa1a\x01\xa1a\x02"
    assert decode(repeated).headers == {"a": 2}
    assert decode(body(3, 1, {"nan": float("nan"), "large": 2**64 - 1})).message == Ping()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_one_of_two_errors(data: bytes) -> None:
    try:
        assert isinstance(decode(data).message, Message)
    except (ProtocolError, MessageFault) as error:
        assert str(error)  # noqa: PT017  # whether it raises is the input's matter


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=9)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(number=st.sampled_from(sorted(NUMBERS.values())), values=st.lists(anything, max_size=8))
def test_any_fields_are_a_message_or_a_named_fault(number: int, values: list[Any]) -> None:
    try:
        message = decode(body(number, 1, None, *values)).message
    except MessageFault as found:
        assert isinstance(found.error, InvalidRequest)  # noqa: PT017  # whether it raises is the input's matter
    else:
        assert NUMBERS[type(message)] == number


def test_optional_fields_may_be_nil() -> None:
    assert decode(body(40, 1, None, None)).message == Metadata(None)
    assert decode(body(12, 1, None, "t", 0, 0, 1)).message == Fetch("t", 0, 0, 1, 0, linearizable=False)
