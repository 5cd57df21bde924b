"""What is printed in a format is read back from it, whatever the chunks; what is wrong is told with its place."""

import base64
import json
from collections.abc import Sequence

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logd.cli.errors import InvalidInput
from logd.cli.formats import (
    Cutter,
    Given,
    JsonCutter,
    LinesCutter,
    MsgpackCutter,
    RawCutter,
    compile_format,
    cutter,
    unescape,
    writer,
)
from wire.errors import LogdError, RecordTooLarge
from wire.types import Record

DETERMINISTIC = settings(derandomize=True, deadline=None, max_examples=100)
BYTES_MAX = 1000


def cut(cutter: Cutter, data: bytes, chunk_bytes: int = 1 << 20) -> list[Given]:
    records: list[Given] = []
    for at in range(0, len(data), chunk_bytes):
        records += cutter.feed(data[at : at + chunk_bytes])
        if cutter.problem is not None:
            break
    else:
        records += cutter.finish()
    if cutter.problem is not None:
        raise cutter.problem
    return records


def values(records: Sequence[Given]) -> list[bytes | None]:
    return [record.value for record in records]


def record(
    value: bytes | None = b"v", key: bytes | None = None, headers: dict[str, bytes] | None = None, offset: int = 7
) -> Record:
    return Record(value, key, headers, 1_700_000_000_123, offset, 2)


# --- lines ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"a", [b"a"]),
        (b"a\n", [b"a"]),
        (b"a\nb", [b"a", b"b"]),
        (b"a\r\n\n\nb\r\n", [b"a\r", b"", b"", b"b\r"]),
        (b"\x00\xff\n", [b"\x00\xff"]),
    ],
)
def test_a_line_is_a_record(data: bytes, expected: list[bytes], chunk_bytes: int) -> None:
    assert values(cut(LinesCutter(BYTES_MAX), data, chunk_bytes)) == expected


@DETERMINISTIC
@given(data=st.binary(max_size=200), chunk_bytes=st.integers(1, 50))
def test_lines_do_not_depend_on_the_chunks(data: bytes, chunk_bytes: int) -> None:
    data = data.replace(b"\x01", b"\n")
    expected = data.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    assert values(cut(LinesCutter(BYTES_MAX), data, chunk_bytes)) == expected


@pytest.mark.parametrize("chunk_bytes", [1, 7, 10_000])
def test_a_line_above_the_limit_is_told_with_its_number(chunk_bytes: int) -> None:
    with pytest.raises(RecordTooLarge) as caught:
        cut(LinesCutter(10), b"short\n" * 3 + b"x" * 11 + b"\nshort\n", chunk_bytes)
    assert caught.value.details["place"] == "line 4"


def test_a_line_of_just_the_limit_passes() -> None:
    assert values(cut(LinesCutter(10), b"x" * 10 + b"\n" + b"y" * 10, 3)) == [b"x" * 10, b"y" * 10]


def test_a_line_without_end_is_not_collected() -> None:
    cutter = LinesCutter(10)
    assert [cutter.feed(b"x") for _ in range(10)] == [[]] * 10
    assert cutter.feed(b"x") == []
    assert isinstance(cutter.problem, RecordTooLarge)


@pytest.mark.parametrize("chunk_bytes", [1, 100])
def test_a_separator_cuts_off_the_key(chunk_bytes: int) -> None:
    records = cut(LinesCutter(BYTES_MAX, b"::"), b"k::v\n::w\nl::\nm::x::y", chunk_bytes)
    assert [(each.key, each.value) for each in records] == [(b"k", b"v"), (b"", b"w"), (b"l", b""), (b"m", b"x::y")]


def test_a_line_without_its_separator_is_told_with_its_number() -> None:
    with pytest.raises(InvalidInput, match=r"line 3: there is no key separator ':'"):
        cut(LinesCutter(BYTES_MAX, b":"), b"a:b\nc:d\noops\n")


# --- raw --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_bytes", [1, 3, 4, 100])
@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"", []), (b"abc", [b"abc"]), (b"abcd", [b"abcd"]), (b"abcdefghi", [b"abcd", b"efgh", b"i"])],
)
def test_an_input_is_cut_into_pieces_of_one_length(data: bytes, expected: list[bytes], chunk_bytes: int) -> None:
    assert values(cut(RawCutter(4), data, chunk_bytes)) == expected


# --- json -------------------------------------------------------------------------------------------------------------


def test_json_fields_are_read() -> None:
    line = (
        b'{"value": "v\\u00fc", "key": {"base64": "/w=="}, "headers": {"h": "x", "b": {"base64": "AA=="}}, '
        b'"timestamp_ms": -5, "partition": 3, "offset": 9, "topic": "t"}\n'
    )
    assert cut(JsonCutter(BYTES_MAX), line) == [Given("vü".encode(), b"\xff", {"h": b"x", "b": b"\x00"}, -5, 3)]


def test_json_needs_only_a_value_and_skips_empty_lines() -> None:
    assert cut(JsonCutter(BYTES_MAX), b'\n{"value": null}\n  \r\n{"value": ""}') == [Given(None), Given(b"")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "not a JSON object"),
        (b"[" * 100_000, "not a JSON object|longer than"),
        (b"\xff", "not a JSON object"),
        (b"5", "not an object with a `value`"),
        (b"[]", "not an object with a `value`"),
        (b"{}", "there is no `value`"),
        (b'{"value": 5}', "value: expected text"),
        (b'{"value": {"base64": 5}}', "value: expected text"),
        (b'{"value": {"base64": "x"}}', "value: not Base64"),
        (b'{"value": {"base64": "", "x": 1}}', "value: expected text"),
        (b'{"value": "\\ud800"}', "value: .*surrogates"),
        (b'{"value": "", "key": 5}', "key: expected text"),
        (b'{"value": "", "headers": []}', "headers: expected a map"),
        (b'{"value": "", "headers": {"a": null}}', "headers: expected a map"),
        (b'{"value": "", "headers": {"a": 5}}', "headers: expected text"),
        (b'{"value": "", "timestamp_ms": "5"}', "timestamp_ms: expected an integer"),
        (b'{"value": "", "timestamp_ms": 9223372036854775808}', "timestamp_ms: expected an integer"),
        (b'{"value": "", "timestamp_ms": 1.5}', "timestamp_ms: expected an integer"),
        (b'{"value": "", "partition": -1}', "partition: expected an integer"),
        (b'{"value": "", "partition": true}', "partition: expected an integer"),
        (b'{"value": "", "timestamp": 5}', "unknown field 'timestamp'; did you mean 'timestamp_ms'"),
        (b'{"value": "", "' + b"9" * 5000 + b'": 1}', "unknown field"),
        (b'{"value": ' + b"9" * 5000 + b"}", "not a JSON object|expected text"),
    ],
)
def test_wrong_json_is_told_with_its_line(line: bytes, problem: str) -> None:
    with pytest.raises((InvalidInput, RecordTooLarge), match=f"line 2: .*({problem})"):
        cut(JsonCutter(BYTES_MAX), b'{"value": "fine"}\n' + line + b"\n")


# --- msgpack ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_bytes", [1, 5, 1000])
def test_msgpack_maps_are_read(chunk_bytes: int) -> None:
    data = msgpack.packb({"value": b"\xff", "key": "k", "headers": {"h": b"x"}, "timestamp_ms": 5, "partition": 1})
    data += msgpack.packb({"value": None})
    assert cut(MsgpackCutter(BYTES_MAX), data, chunk_bytes) == [Given(b"\xff", b"k", {"h": b"x"}, 5, 1), Given(None)]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\xc1", "not msgpack"),
        (b"\x05", "not an object"),
        (msgpack.packb({}), "there is no `value`"),
        (msgpack.packb({"value": 5}), "value: expected bin"),
        (msgpack.packb({"value": b"", "x": 1}), "unknown field 'x'"),
        (msgpack.packb({b"value": b""}), "unknown field"),
        (msgpack.packb({1: b""}), "not msgpack"),
        (msgpack.packb({"value": b"abc"})[:-1], "ends in the middle"),
        (msgpack.packb({"value": msgpack.ExtType(1, b"x")}), "not msgpack"),
        (b"\xdb\xff\xff\xff\xff", "not msgpack|ends in the middle"),
        (b"\x91" * 100_000, "not msgpack"),
    ],
)
def test_wrong_msgpack_is_told_with_its_number(data: bytes, problem: str) -> None:
    with pytest.raises(InvalidInput, match=f"object 2: .*({problem})"):
        cut(MsgpackCutter(BYTES_MAX), msgpack.packb({"value": b"fine"}) + data, 10)


@DETERMINISTIC
@given(
    data=st.binary(max_size=300),
    chunk_bytes=st.integers(1, 300),
    name=st.sampled_from(["json", "msgpack", "lines", "raw"]),
)
def test_no_bytes_raise_anything_but_typed_errors(data: bytes, chunk_bytes: int, name: str) -> None:
    try:
        records = cut(cutter(name, 100, 100, b":"), data, chunk_bytes)
    except LogdError:
        return
    assert all(isinstance(each, Given) for each in records)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("lines", b"k:1\nk:2\noops\nk:4\n"),
        ("lines", b"k:1\nk:2\n" + b"k" * 2000 + b"\nk:4\n"),
        ("json", b'{"value": "1"}\n{"value": "2"}\n{"val": "3"}\n{"value": "4"}\n'),
        (
            "msgpack",
            msgpack.packb({"value": "1"}) + msgpack.packb({"value": "2"}) + b"\xc1" + msgpack.packb({"value": "4"}),
        ),
        ("msgpack", msgpack.packb({"value": "1"}) + msgpack.packb({"value": "2"}) + msgpack.packb(5)),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [1, 13, 10_000])
def test_what_stands_before_something_wrong_is_not_lost(name: str, data: bytes, chunk_bytes: int) -> None:
    cut_by = cutter(name, BYTES_MAX, BYTES_MAX, b":")
    records: list[Given] = []
    for at in range(0, len(data), chunk_bytes):
        records += cut_by.feed(data[at : at + chunk_bytes])
        if cut_by.problem is not None:
            break
    assert values(records) == [b"1", b"2"]
    assert cut_by.problem is not None


# --- round trips ------------------------------------------------------------------------------------------------------

some_bytes = st.one_of(st.binary(max_size=20), st.text(max_size=20).map(lambda text: text.encode()))
some_records = st.lists(
    st.builds(
        Record,
        value=st.none() | some_bytes,
        key=st.none() | some_bytes,
        headers=st.none() | st.dictionaries(st.text(max_size=5), some_bytes, max_size=3),
        timestamp_ms=st.integers(-(2**63), 2**63 - 1),
        offset=st.integers(0, 2**63),
        partition=st.integers(0, 2**32 - 1),
    ),
    max_size=5,
)


@DETERMINISTIC
@given(records=some_records, chunk_bytes=st.integers(1, 100), name=st.sampled_from(["json", "msgpack"]))
def test_what_consume_prints_can_be_produced(records: list[Record], chunk_bytes: int, name: str) -> None:
    data = writer(name, "topic")(records)
    found = cut(cutter(name, BYTES_MAX, BYTES_MAX, None), data, chunk_bytes)
    assert found == [Given(each.value, each.key, each.headers, each.timestamp_ms, each.partition) for each in records]


@DETERMINISTIC
@given(records=some_records)
def test_every_line_of_json_is_json(records: list[Record]) -> None:
    lines = writer("json", "t")(records).splitlines()
    assert [json.loads(line)["offset"] for line in lines] == [each.offset for each in records]


@pytest.mark.parametrize("name", ["lines", "raw"])
def test_values_pass_through_unchanged(name: str) -> None:
    data = b"a\r\n\n\xff\x00\nlast\n"
    records = [record(each.value) for each in cut(cutter(name, BYTES_MAX, 4, None), data)]
    assert writer(name, "t")(records) == data


# --- writing ----------------------------------------------------------------------------------------------------------


def test_a_tombstone_prints_nothing_and_an_empty_line() -> None:
    assert writer("raw", "t")([record(None), record(b"x")]) == b"x"
    assert writer("lines", "t")([record(None), record(b"x")]) == b"\nx\n"


def test_json_is_stable() -> None:
    printed = writer("json", "t")([record(b"v", b"\xff", {"h": b"x"})])
    assert printed == (
        b'{"partition":2,"offset":7,"timestamp_ms":1700000000123,"key":{"base64":"'
        + base64.b64encode(b"\xff")
        + b'"},"value":"v","headers":{"h":"x"}}\n'
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("%v", b"value\n"),
        ("%k=%v", b"key=value\n"),
        ("%t/%p@%o", b"topic/2@7\n"),
        ("%T %D", b"1700000000123 2023-11-14T22:13:20.123Z\n"),
        ("%h", b"a=1,b=2\n"),
        ("%K %V", b"3 5\n"),
        ("100%%", b"100%\n"),
        ("%v\\c", b"value"),
        ("%v\\n\\c", b"value\n"),
        ("%v\\t\\r\\0\\x41\\\\", b"value\t\r\0A\\\n"),
        ("ü %v", "ü value\n".encode()),
        ("\\%v", None),
        ("%v\\", None),
        ("%", None),
        ("%x", None),
        ("\\q%v", None),
        ("%v\\c more", None),
        ("%v\\c%k", None),
    ],
)
def test_a_format_of_ones_own(text: str, expected: bytes | None) -> None:
    shown = record(b"value", b"key", {"a": b"1", "b": b"2"})
    if expected is None:
        with pytest.raises(ValueError, match=r"unknown|at the end"):
            compile_format(text, "topic")
    else:
        assert writer(text, "topic")([shown]) == expected


def test_what_a_record_does_not_have_prints_nothing() -> None:
    assert writer("[%k|%v|%h|%K|%V]", "t")([record(None)]) == b"[|||-1|-1]\n"


def test_a_time_beyond_the_calendar_is_printed_as_a_number() -> None:
    odd = Record(b"", None, None, 2**62, 0, 0)
    assert writer("%D", "t")([odd]) == b"%d\n" % 2**62


@pytest.mark.parametrize(("name", "message"), [("jsn", "did you mean json"), ("xml", "there are raw, lines")])
def test_an_unknown_format_is_told_with_those_there_are(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        writer(name, "t")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("=", b"="),
        ("\\t", b"\t"),
        ("\t", b"\t"),
        ("\\x1F", b"\x1f"),
        ("\\\\t", b"\\t"),
        ("%\\t%v", b"%\t%v"),
        (" | ", b" | "),
        ("é", "é".encode()),
        ("\udcff\\0", b"\xff\0"),
    ],
)
def test_escapes_stand_for_what_a_shell_makes_hard_to_type(text: str, expected: bytes) -> None:
    assert unescape(text) == expected


@pytest.mark.parametrize("text", ["\\q", "\\", "\\c", "\\x1"])
def test_what_is_no_escape_is_told_with_those_there_are(text: str) -> None:
    with pytest.raises(ValueError, match=r" is unknown; there are \\n \\t \\r \\0 \\\\ \\xHH$"):
        unescape(text)
