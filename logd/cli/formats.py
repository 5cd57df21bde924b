"""Records to bytes and back, in the shapes that `logctl` reads and writes.

For: `produce` (cutters: chunks of bytes in, records out) and `consume` (writers: records in, bytes out). Must not know:
files, the network, or progress. The one idea: a cutter is fed whole chunks and gives whole lists, a writer is given
whole batches and gives one piece of bytes, so that the cost per record is a few steps in C.

What `consume --format F` writes, `produce --format F` reads back: `json` and `msgpack` with keys, headers, times and
partitions, `lines` and `raw` the values alone.
"""

import base64
import binascii
import datetime as dt
import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from json.encoder import encode_basestring
from typing import Any, Final, NamedTuple, Protocol

from logd.cli.errors import InvalidInput
from wire.errors import LogdError, RecordTooLarge
from wire.types import Record

FORMATS: Final = ("raw", "lines", "json", "msgpack")


class Given(NamedTuple):
    """A record as the input gave it; None is "not said", and for the value a tombstone."""

    value: bytes | None
    key: bytes | None = None
    headers: Mapping[str, bytes] | None = None
    timestamp_ms: int | None = None
    partition: int | None = None


class Cutter(Protocol):
    """Cuts a stream of bytes into records.

    When something in it is wrong, what stood before that is still returned, and `problem` says what: InvalidInput or
    RecordTooLarge, with the `place` in its details. Nothing may be fed afterwards.
    """

    problem: LogdError | None

    def feed(self, chunk: bytes) -> Sequence[Given]:
        """The records that this chunk completes."""

    def finish(self) -> Sequence[Given]:
        """The records that the end of the input completes."""


# --- Reading ----------------------------------------------------------------------------------------------------------


class RawCutter:
    """Records of exactly `record_bytes`, and one of what is left: an input that fits is one record."""

    problem: LogdError | None = None

    def __init__(self, record_bytes: int) -> None:
        self._record_bytes = record_bytes
        self._pending: list[bytes] = []
        self._pending_bytes = 0

    def feed(self, chunk: bytes) -> Sequence[Given]:
        self._pending.append(chunk)
        self._pending_bytes += len(chunk)
        if self._pending_bytes < self._record_bytes:
            return ()
        whole = b"".join(self._pending)
        end = len(whole) - len(whole) % self._record_bytes
        rest = whole[end:]
        self._pending = [rest] if rest else []
        self._pending_bytes = len(rest)
        return [Given(whole[at : at + self._record_bytes]) for at in range(0, end, self._record_bytes)]

    def finish(self) -> Sequence[Given]:
        rest = b"".join(self._pending)
        self._pending = []
        self._pending_bytes = 0
        return [Given(rest)] if rest else ()


class _LineSplitter:
    """Whole lines, without their line feeds; the last one needs none. No line is longer than the bound."""

    def __init__(self, line_bytes_max: int) -> None:
        self._line_bytes_max = line_bytes_max
        self._pending: list[bytes] = []
        # Invariant: the sum of the lengths of `_pending`, at most `line_bytes_max`.
        self._pending_bytes = 0
        self.lines = 0
        self.problem: LogdError | None = None

    def feed(self, chunk: bytes) -> list[bytes]:
        first, newline, rest = chunk.partition(b"\n")
        self._pending.append(first)
        self._pending_bytes += len(first)
        if self._pending_bytes > self._line_bytes_max:
            self.problem = _too_large(self._line_bytes_max, f"line {self.lines + 1}")
            return []
        if not newline:
            return []
        lines = rest.split(b"\n")
        lines.insert(0, b"".join(self._pending))
        last = lines.pop()
        self._pending = [last]
        self._pending_bytes = len(last)
        # One comparison in C for the common case, where no line is near the bound.
        if len(chunk) > self._line_bytes_max and max(map(len, lines)) > self._line_bytes_max:
            at = next(number for number, line in enumerate(lines) if len(line) > self._line_bytes_max)
            self.problem = _too_large(self._line_bytes_max, f"line {self.lines + at + 1}")
            del lines[at:]
        self.lines += len(lines)
        return lines

    def finish(self) -> list[bytes]:
        rest = b"".join(self._pending)
        self._pending = []
        self._pending_bytes = 0
        if not rest or self.problem is not None:
            return []
        self.lines += 1
        return [rest]


def _too_large(bytes_max: int, place: str) -> RecordTooLarge:
    # How long it is nobody knows: its end was not read.
    return RecordTooLarge(
        f"{place}: longer than the {bytes_max:,} bytes that fit into a batch",
        {"record_bytes_max": bytes_max, "place": place},
    )


def _invalid(place: str, problem: str) -> InvalidInput:
    return InvalidInput(f"{place}: {problem}", {"place": place, "problem": problem})


class _LineCutter:
    """A record a line, however it is written."""

    def __init__(self, line_bytes_max: int) -> None:
        self._splitter = _LineSplitter(line_bytes_max)
        self.problem: LogdError | None = None

    def feed(self, chunk: bytes) -> Sequence[Given]:
        return self._taken(self._splitter.feed(chunk))

    def finish(self) -> Sequence[Given]:
        return self._taken(self._splitter.finish())

    def _taken(self, lines: list[bytes]) -> Sequence[Given]:
        records: list[Given] = []
        try:
            self._records(lines, records)
        except InvalidInput as error:
            self.problem = error
        # A line that is too long stands behind those that could be split off.
        self.problem = self.problem or self._splitter.problem
        return records

    def _records(self, lines: list[bytes], records: list[Given]) -> None:
        """Add the records of these lines. Raises InvalidInput, after those before it were added."""
        raise NotImplementedError


class LinesCutter(_LineCutter):
    """A record a line; with a separator, what stands before its first occurrence is the key. Carriage returns stay."""

    def __init__(self, record_bytes_max: int, key_separator: bytes | None = None) -> None:
        super().__init__(record_bytes_max)
        self._separator = key_separator

    def _records(self, lines: list[bytes], records: list[Given]) -> None:
        if self._separator is None:
            records.extend(map(Given, lines))
            return
        for number, line in enumerate(lines, self._splitter.lines - len(lines) + 1):
            key, found, value = line.partition(self._separator)
            if not found:
                raise _invalid(
                    f"line {number}", f"there is no key separator {self._separator.decode(errors='replace')!r}"
                )
            records.append(Given(value, key))


class JsonCutter(_LineCutter):
    """A record a line, as a JSON object; empty lines are skipped."""

    def __init__(self, record_bytes_max: int) -> None:
        # Escapes and Base64 make a record longer than it is, sixfold at most (`\u0000` for one byte).
        super().__init__(6 * record_bytes_max + 4096)

    def _records(self, lines: list[bytes], records: list[Given]) -> None:
        for number, line in enumerate(lines, self._splitter.lines - len(lines) + 1):
            if line and not line.isspace():
                records.append(_given_of_json(line, f"line {number}"))


def _given_of_json(line: bytes, place: str) -> Given:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _invalid(place, f"not a JSON object: {error}") from None
    return _given(document, place, _bytes_of_json)


def _bytes_of_json(value: object) -> bytes | None:
    """Bytes from text or `{"base64": …}`. Raises ValueError."""
    if value is None:
        return None
    if isinstance(value, str):
        # A lone surrogate is no text.
        return value.encode()
    if isinstance(value, dict) and list(value) == ["base64"] and isinstance(value["base64"], str):
        try:
            return base64.b64decode(value["base64"], validate=True)
        except binascii.Error as error:
            raise ValueError(f"not Base64: {error}") from None
    raise ValueError('expected text, {"base64": "…"} or null')


def _bytes_of_msgpack(value: object) -> bytes | None:
    """Bytes from bin or str. Raises ValueError."""
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    raise ValueError("expected bin, str or nil")


_FIELDS: Final = frozenset(("value", "key", "headers", "timestamp_ms", "partition"))
# What `consume` adds for people and other programs; a record gets its own when it is produced.
_IGNORED: Final = frozenset(("offset", "topic"))
_I64: Final = range(-(2**63), 2**63)
_PARTITIONS: Final = range(2**32)


def _given(document: object, place: str, to_bytes: Callable[[object], bytes | None]) -> Given:
    if not isinstance(document, dict):
        raise _invalid(place, "not an object with a `value`")
    unknown = document.keys() - _FIELDS - _IGNORED
    if unknown:
        name = str(min(unknown, key=str))
        near = difflib.get_close_matches(name, _FIELDS, n=1)
        raise _invalid(place, f"unknown field {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    if "value" not in document:
        raise _invalid(place, "there is no `value` (null makes a tombstone)")
    name = "value"
    try:
        value = to_bytes(document["value"])
        name = "key"
        key = to_bytes(document.get("key"))
        name = "headers"
        headers = _headers(document.get("headers"), to_bytes)
    except ValueError as error:
        raise _invalid(place, f"{name}: {error}") from None
    return Given(
        value,
        key,
        headers,
        _integer(document, "timestamp_ms", _I64, place),
        _integer(document, "partition", _PARTITIONS, place),
    )


def _headers(value: object, to_bytes: Callable[[object], bytes | None]) -> dict[str, bytes] | None:
    if value is None:
        return None
    headers = {}
    if not isinstance(value, dict):
        raise ValueError("expected a map of names to values")  # noqa: TRY004  # the input is wrong, not the program
    for name, item in value.items():
        content = to_bytes(item)
        if not isinstance(name, str) or content is None:
            raise ValueError("expected a map of names to values")
        headers[name] = content
    return headers


def _integer(document: Mapping[Any, Any], name: str, bounds: range, place: str) -> int | None:
    value = document.get(name)
    if value is None:
        return None
    # A bool is no number here.
    if type(value) is not int or value not in bounds:
        raise _invalid(place, f"{name}: expected an integer from {bounds.start} to {bounds.stop - 1}")
    return value


class MsgpackCutter:
    """A record an object of a stream of msgpack maps."""

    def __init__(self, record_bytes_max: int) -> None:
        import msgpack  # noqa: PLC0415  # only who asks for the format pays for it

        self.problem: LogdError | None = None
        self._errors = (ValueError, msgpack.UnpackException, msgpack.BufferFull)
        # Room for one record that may just fit, and for the chunk that brings it to its end.
        self._unpacker = msgpack.Unpacker(
            raw=False, max_buffer_size=2 * record_bytes_max + (4 << 20), max_ext_len=0, strict_map_key=True
        )
        self._objects = 0
        # In bytes: what was given, and where the last whole object ended in it.
        self._fed = 0
        self._position = 0

    def feed(self, chunk: bytes) -> Sequence[Given]:
        self._fed += len(chunk)
        records: list[Given] = []
        try:
            self._unpacker.feed(chunk)
            for document in self._unpacker:
                self._objects += 1
                records.append(_given(document, f"object {self._objects}", _bytes_of_msgpack))
                self._position = self._unpacker.tell()
        except InvalidInput as error:
            self.problem = error
        except self._errors as error:
            why = str(error) or type(error).__name__
            self.problem = _invalid(f"object {self._objects + 1}", f"not msgpack: {why}")
        return records

    def finish(self) -> Sequence[Given]:
        if self.problem is None and self._position != self._fed:
            self.problem = _invalid(f"object {self._objects + 1}", "the input ends in the middle of it")
        return ()


def cutter(name: str, record_bytes_max: int, record_bytes: int, key_separator: bytes | None) -> Cutter:
    """The cutter for a format of `FORMATS`."""
    if name == "raw":
        return RawCutter(min(record_bytes, record_bytes_max))
    if name == "lines":
        return LinesCutter(record_bytes_max, key_separator)
    return JsonCutter(record_bytes_max) if name == "json" else MsgpackCutter(record_bytes_max)


# --- Writing ----------------------------------------------------------------------------------------------------------

Writer = Callable[[Sequence[Record]], bytes]
"""Turns the records of one batch into the bytes to print."""


def write_raw(records: Sequence[Record]) -> bytes:
    """The values, back to back."""
    return b"".join([record[0] or b"" for record in records])


def write_lines(records: Sequence[Record]) -> bytes:
    """A line per value. A value that holds a line feed makes several; a tombstone makes an empty one."""
    values = [record[0] or b"" for record in records]
    values.append(b"")
    return b"\n".join(values)


def write_json(records: Sequence[Record]) -> bytes:
    """A JSON object a line, which `produce --format json` reads back."""
    return "".join(
        [
            f'{{"partition":{partition},"offset":{offset},"timestamp_ms":{time},'
            f'"key":{_json_text(key)},"value":{_json_text(value)},"headers":{_json_headers(headers)}}}\n'
            for value, key, headers, time, offset, partition in records
        ]
    ).encode()


def _json_text(data: bytes | None) -> str:
    if data is None:
        return "null"
    try:
        return encode_basestring(data.decode())
    except UnicodeDecodeError:
        return f'{{"base64":"{base64.b64encode(data).decode()}"}}'


def _json_headers(headers: Mapping[str, bytes] | None) -> str:
    if headers is None:
        return "null"
    return "{" + ",".join([f"{encode_basestring(name)}:{_json_text(value)}" for name, value in headers.items()]) + "}"


class MsgpackWriter:
    """A stream of msgpack maps, which `produce --format msgpack` reads back."""

    def __init__(self) -> None:
        import msgpack  # noqa: PLC0415  # only who asks for the format pays for it

        self._packer: msgpack.Packer = msgpack.Packer(use_bin_type=True)

    def __call__(self, records: Sequence[Record]) -> bytes:
        pack = self._packer.pack
        return b"".join(
            [
                pack(
                    {
                        "partition": partition,
                        "offset": offset,
                        "timestamp_ms": time,
                        "key": key,
                        "value": value,
                        "headers": headers,
                    }
                )
                for value, key, headers, time, offset, partition in records
            ]
        )


# --- A format of one's own --------------------------------------------------------------------------------------------

_ESCAPES: Final = {"n": b"\n", "t": b"\t", "r": b"\r", "0": b"\0", "\\": b"\\"}
_ESCAPE: Final = re.compile(r"\\x(?P<byte>[0-9A-Fa-f]{2})|\\(?P<escape>.?)", re.DOTALL)
_TOKEN: Final = re.compile(r"%(?P<field>.?)|" + _ESCAPE.pattern, re.DOTALL)


def _header_pairs(record: Record) -> bytes:
    return b",".join([name.encode() + b"=" + value for name, value in (record.headers or {}).items()])


def _date(record: Record) -> bytes:
    try:
        moment = dt.datetime.fromtimestamp(record.timestamp_ms / 1000, dt.UTC)
    except (ValueError, OverflowError, OSError):
        # A producer's clock may say anything.
        return str(record.timestamp_ms).encode()
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z").encode()


def _length(data: bytes | None) -> bytes:
    return b"-1" if data is None else b"%d" % len(data)


FIELDS: Final[Mapping[str, tuple[str, Callable[[Record], bytes]]]] = {
    "k": ("key", lambda record: record.key or b""),
    "v": ("value", lambda record: record.value or b""),
    "o": ("offset", lambda record: b"%d" % record.offset),
    "p": ("partition", lambda record: b"%d" % record.partition),
    "T": ("timestamp in ms since 1970 UTC", lambda record: b"%d" % record.timestamp_ms),
    "D": ("timestamp as a date, ISO 8601 in UTC", _date),
    "h": ("headers as name=value,…", _header_pairs),
    "K": ("length of the key in bytes, -1 for none", lambda record: _length(record.key)),
    "V": ("length of the value in bytes, -1 for a tombstone", lambda record: _length(record.value)),
}
"""What stands for what in a format of one's own; `%t` is the topic and `%%` a percent sign."""


def compile_format(text: str, topic: str) -> Writer:
    """A writer for a format like `%o %k=%v`. A line's end follows each, unless it ends in backslash and c.

    Raises ValueError, which says what is wrong.
    """
    parts: list[bytes | Callable[[Record], bytes]] = []
    ends_line = True
    position = 0
    for match in _TOKEN.finditer(text):
        if not ends_line:
            break
        parts.append(text[position : match.start()].encode(errors="surrogateescape"))
        position = match.end()
        if match["field"] is not None:
            parts.append(_field_part(match["field"], topic))
        elif match["byte"] is not None:
            parts.append(bytes.fromhex(match["byte"]))
        elif match["escape"] == "c":
            ends_line = False
        else:
            parts.append(_escape_part(match["escape"], " and, at the end, \\c"))
    if not ends_line and position != len(text):
        raise ValueError("\\c stands at the end of a format")
    parts.append(text[position:].encode(errors="surrogateescape") + (b"\n" if ends_line else b""))
    return _record_writer(_merged(parts))


def unescape(text: str) -> bytes:
    """The bytes of a text in which escapes (`_ESCAPES`, and xHH) may stand. Raises ValueError: what is wrong."""
    parts: list[bytes] = []
    position = 0
    for match in _ESCAPE.finditer(text):
        parts.append(text[position : match.start()].encode(errors="surrogateescape"))
        position = match.end()
        parts.append(bytes.fromhex(match["byte"]) if match["byte"] is not None else _escape_part(match["escape"]))
    parts.append(text[position:].encode(errors="surrogateescape"))
    return b"".join(parts)


def _field_part(letter: str, topic: str) -> bytes | Callable[[Record], bytes]:
    if letter == "%":
        return b"%"
    if letter == "t":
        return topic.encode()
    if letter not in FIELDS:
        known = " ".join(f"%{name}" for name in (*FIELDS, "t", "%"))
        raise ValueError(f"%{letter} is unknown; there are {known}")
    return FIELDS[letter][1]


def _escape_part(letter: str, others: str = "") -> bytes:
    if letter not in _ESCAPES:
        raise ValueError(f"\\{letter} is unknown; there are \\n \\t \\r \\0 \\\\ \\xHH{others}")
    return _ESCAPES[letter]


def _merged(parts: Sequence[bytes | Callable[[Record], bytes]]) -> list[bytes | Callable[[Record], bytes]]:
    merged: list[bytes | Callable[[Record], bytes]] = []
    for part in parts:
        if isinstance(part, bytes) and merged and isinstance(merged[-1], bytes):
            merged[-1] += part
        elif part != b"":
            merged.append(part)
    return merged


def _record_writer(parts: Sequence[bytes | Callable[[Record], bytes]]) -> Writer:
    def write(records: Sequence[Record]) -> bytes:
        return b"".join([part if isinstance(part, bytes) else part(record) for record in records for part in parts])

    return write


def writer(name: str, topic: str) -> Writer:
    """The writer for a format of `FORMATS`, or for one with `%` in it. Raises ValueError."""
    if "%" in name or "\\" in name:
        return compile_format(name, topic)
    if name == "msgpack":
        return MsgpackWriter()
    named: dict[str, Writer] = {"raw": write_raw, "lines": write_lines, "json": write_json}
    if name not in named:
        near = difflib.get_close_matches(name, FORMATS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(FORMATS)}, or a text with %v, %k, …"
        raise ValueError(f"no format {name!r}; {hint}")
    return named[name]
