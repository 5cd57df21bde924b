"""How values are written on the command line: sizes, durations, pairs, places in a log, formats.

For: the commands' options. Must not know: what a value is used for. The one idea: a value is parsed once, into a type,
and a wrong one is refused with an example of a right one.
"""

import datetime as dt
import math
import re
import time
from dataclasses import dataclass
from typing import Any, Final

import click

from wire.types import Anchor

_SIZE_FACTORS: Final = {
    "": 1,
    "b": 1,
    "k": 1 << 10,
    "kib": 1 << 10,
    "m": 1 << 20,
    "mib": 1 << 20,
    "g": 1 << 30,
    "gib": 1 << 30,
    "kb": 1_000,
    "mb": 1_000_000,
    "gb": 1_000_000_000,
}
_DURATION_FACTORS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3_600.0, "d": 86_400.0}
_SIZE: Final = re.compile(r"([0-9]{1,15})\s*([A-Za-z]*)")
_DURATION_PART: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)(ms|min|s|m|h|d)")
_NUMBER: Final = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?")
# What a signed 64-bit integer on the wire holds.
_I64_MAX: Final = 2**63 - 1


def parse_size(text: str) -> int:
    """Bytes from `4096`, `64KiB`, `1MiB` (binary) or `1MB` (decimal). Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2].lower() not in _SIZE_FACTORS:
        raise ValueError("expected a size like 4096, 64KiB or 1MiB")
    return int(match[1]) * _SIZE_FACTORS[match[2].lower()]


def parse_duration(text: str) -> float:
    """Seconds from `0.5`, `5ms`, `30s`, `1h30m`, `7d`. Raises ValueError."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    position, seconds = 0, 0.0
    for match in _DURATION_PART.finditer(text):
        if match.start() != position:
            break
        seconds += float(match[1]) * _DURATION_FACTORS[match[2]]
        position = match.end()
    if not text or position != len(text):
        raise ValueError("expected a duration like 5ms, 30s, 1h30m or 7d")
    return seconds


class _SizeType(click.ParamType):  # type: ignore[type-arg]  # generic only from click 8.4 on, also at run time
    name = "size"

    def __init__(self, minimum: int, maximum: int) -> None:
        self.minimum = minimum
        self.maximum = maximum

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            size = parse_size(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)
        if not self.minimum <= size <= self.maximum:
            self.fail(f"{value!r} is not between {self.minimum:,} and {self.maximum:,} bytes", param, ctx)
        return size


class _DurationType(click.ParamType):  # type: ignore[type-arg]  # as above
    name = "duration"

    def __init__(self, minimum: float, maximum: float) -> None:
        self.minimum = minimum
        self.maximum = maximum

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)
        if seconds < self.minimum:
            self.fail(f"{value!r} is less than {self.minimum:g} seconds", param, ctx)
        if seconds > self.maximum:
            self.fail(f"{value!r} is more than {self.maximum:g} seconds", param, ctx)
        return seconds


class _CountType(click.ParamType):  # type: ignore[type-arg]  # as above
    name = "count"

    def __init__(self, minimum: int, maximum: int) -> None:
        self.minimum = minimum
        self.maximum = maximum

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).strip().replace("_", "")
        if not (text.isascii() and text.isdigit()) or not self.minimum <= int(text[:20]) <= self.maximum:
            self.fail(f"{value!r}: expected a number from {self.minimum} to {self.maximum}", param, ctx)
        return int(text)


class _PairType(click.ParamType):  # type: ignore[type-arg]  # as above
    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, rest = str(value).partition("=")
        # Bytes that are no text arrive as lone surrogates; a value may hold them, a name may not.
        if not equals or not name or (not name.isascii() and name != name.encode(errors="ignore").decode()):
            self.fail(f"{value!r}: expected name=value", param, ctx)
        return name, rest


def size(minimum: int, maximum: int) -> "click.ParamType[int]":
    """An option's type: a size in bytes within the bounds."""
    return _SizeType(minimum, maximum)


def whole_number(minimum: int, maximum: int) -> "click.ParamType[int]":
    """An option's type: a whole number within the bounds."""
    return _CountType(minimum, maximum)


def duration(maximum: float, *, minimum: float = 0.0) -> "click.ParamType[float]":
    """An option's type: a duration in seconds within the bounds."""
    return _DurationType(minimum, maximum)


PAIR: Final = _PairType()


# --- Places in a log --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AtOffset:
    """An offset, the same in every partition."""

    offset: int


@dataclass(frozen=True, slots=True)
class AtTime:
    """A time in ms since 1970 UTC, by the clock of the node that appended."""

    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class LastRecords:
    """So many records before the end of each partition."""

    count: int


Place = Anchor | AtOffset | AtTime | LastRecords

_PLACE_EXAMPLES: Final = (
    "expected start, end, an offset like 42, the last records like -10, or a time like -1h, 2026-01-31T12:00Z or "
    "@1769860800000"
)


def parse_place(text: str, now_ms: int) -> Place:
    """A place in a log as a user writes it; times relative to `now_ms`. Raises ValueError with examples."""
    text = text.strip()
    if text in (Anchor.START, Anchor.END):
        return Anchor(text)
    if text.isascii() and text.removeprefix("-").isdigit():
        return _numbered_place(text)
    if text[:1] == "@" and text[1:].isascii() and text[1:].isdigit():
        return _at_time(float(text[1:]))
    try:
        if text[:1] in ("-", "+"):
            shift_ms = parse_duration(text[1:]) * 1000
            return _at_time(now_ms - shift_ms if text[0] == "-" else now_ms + shift_ms)
        # Without a zone it is the user's own clock, as with `journalctl --since`.
        return _at_time(dt.datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise ValueError(_PLACE_EXAMPLES) from None


def _numbered_place(text: str) -> Place:
    number = int(text)
    if abs(number) > _I64_MAX:
        raise ValueError("an offset has at most 19 digits")
    return AtOffset(number) if number >= 0 and text[0] != "-" else LastRecords(-number)


def _at_time(timestamp_ms: float) -> AtTime:
    if not math.isfinite(timestamp_ms) or abs(timestamp_ms) > _I64_MAX:
        raise ValueError(_PLACE_EXAMPLES)
    return AtTime(round(timestamp_ms))


class _PlaceType(click.ParamType):  # type: ignore[type-arg]  # as above
    name = "place"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        if isinstance(value, Anchor | AtOffset | AtTime | LastRecords):
            return value
        try:
            return parse_place(str(value), time.time_ns() // 1_000_000)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


PLACE: Final = _PlaceType()
