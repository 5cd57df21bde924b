"""The node's own log lines: one line an event, whatever is in it.

Its one idea: nothing that a peer sends can make a second line, a line without end, or lines without number. Values are
cleaned and cut where they are written; a traceback is one line saying what and where, except at level debug; and events
that a peer can cause go through a limiter that counts what it holds back. It must not know what the events mean.
"""

import collections
import datetime as dt
import itertools
import json
import logging
import math
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Final, Literal, Protocol, TextIO, cast

import structlog
from structlog.typing import EventDict, ExcInfo, FilteringBoundLogger, Processor, WrappedLogger

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "text", "json"]
# A value as it may stand in a line.
Scalar = str | int | float | bool | None

# A value longer than this was not meant for a log; ten of them still make a line that a terminal shows.
VALUE_CHARACTERS_MAX: Final = 1_000
# Entries of a list or a map that are shown; the rest is counted.
ENTRIES_MAX: Final = 32
# At level debug: enough of a traceback to find the place, even from deep recursion.
TRACEBACK_FRAMES_MAX: Final = 30
TRACEBACK_CHARACTERS_MAX: Final = 20_000
# Of an exception group, the leaves that are named on the one line.
LEAVES_MAX: Final = 3
# What a hostile peer may cause per kind of event: enough to see it, too little to fill a disk.
LINES_PER_SECOND_MAX: Final = 10
# Kinds are names in our code; this many there are not. Beyond it they share one allowance.
KINDS_MAX: Final = 256

_LEVELS: Final[dict[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class UnknownLogSettingError(ValueError):
    """A level or a format that does not exist; nothing was changed."""


def utc_now() -> dt.datetime:
    """Return the time of day in UTC."""
    return dt.datetime.now(dt.UTC)


def configure(
    level: Level = "info",
    format: Format = "auto",  # noqa: A002 - it is the setting's name
    stream: TextIO | None = None,
    *,
    now: Callable[[], dt.datetime] = utc_now,
) -> None:
    """Set up what every logger of the process writes from now on, those included that exist already.

    `stream` is where lines go, standard error by default; `format` "auto" is text on a terminal and else JSON. A line
    that cannot be written (a closed pipe, a full disk) is lost: a node does not stop for its log.
    Raises `UnknownLogSettingError` for a level or a format that does not exist.
    """
    if level not in _LEVELS or format not in ("auto", "text", "json"):
        raise UnknownLogSettingError(f"no such level or format: {level!r}, {format!r}")
    stream = stream or sys.stderr
    if format == "auto":
        format = "text" if stream.isatty() else "json"  # noqa: A001 - as above
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _Stamp(now),
        _Exceptions(with_traceback=level == "debug"),
        _as_text if format == "text" else _as_json,
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=_Lines(stream),
        # Loggers are made when modules are imported, before this is called, and must follow it.
        cache_logger_on_first_use=False,
    )


def get_logger(room: str) -> FilteringBoundLogger:
    """Return the logger of a room: `log.info("listening", address=…)`. It follows every later `configure`."""
    return cast("FilteringBoundLogger", structlog.get_logger(room=room))


class LineLimiter:
    """Decides which lines are written: of each kind, at most so many in any one second.

    It has no clock: `now` is in seconds and never goes back, as `time.monotonic()`.
    """

    def __init__(self, lines_per_second_max: int = LINES_PER_SECOND_MAX, kinds_max: int = KINDS_MAX) -> None:
        if lines_per_second_max < 1 or kinds_max < 1:
            raise ValueError("a limiter admits at least one line and one kind")
        self._lines_per_second_max = lines_per_second_max
        self._kinds_max = kinds_max
        # Invariant: at most `kinds_max` kinds and the shared one (None); each holds its last admissions, at most
        # `lines_per_second_max`, oldest first.
        self._admitted: dict[str | None, collections.deque[float]] = {}
        # Invariant: only kinds of which something was held back since the last admission.
        self._suppressed: dict[str | None, int] = {}

    def admit(self, kind: str, now: float) -> int | None:
        """Return None if a line of this kind is to be held back, else how many were since the last one admitted."""
        return self._admit(self._known(kind), now)

    def take_suppressed(self, now: float) -> list[tuple[str | None, int]]:
        """Return the kinds that may be written again and of which lines were held back, with their numbers.

        Each counts as a line of its kind, so whoever calls this writes one. None stands for the kinds beyond the bound.
        """
        due = []
        for kind in list(self._suppressed):
            count = self._admit(kind, now, ours=True)
            if count is not None:
                due.append((kind, count))
        return due

    def _known(self, kind: str) -> str | None:
        if kind in self._admitted or len(self._admitted) - (None in self._admitted) < self._kinds_max:
            return kind
        return None

    def _admit(self, kind: str | None, now: float, *, ours: bool = False) -> int | None:
        admitted = self._admitted.get(kind)
        if admitted is None:
            admitted = self._admitted[kind] = collections.deque(maxlen=self._lines_per_second_max)
        if len(admitted) == self._lines_per_second_max and now - admitted[0] < 1.0:
            if not ours:
                self._suppressed[kind] = self._suppressed.get(kind, 0) + 1
            return None
        # A full deque drops its oldest entry here.
        admitted.append(now)
        return self._suppressed.pop(kind, 0)


class LimitedLogger:
    """A logger for events that a peer can cause; the name of the event is the kind that is limited.

    A line after some were held back says how many (`suppressed=…`); call `report` now and then, and at the end, so
    that the number is told even if no such event follows.
    """

    def __init__(
        self, logger: FilteringBoundLogger, limiter: LineLimiter, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._limiter = limiter
        self._clock = clock

    def debug(self, event: str, **values: object) -> None:
        """Write the line, or count it."""
        self._log(logging.DEBUG, event, values)

    def info(self, event: str, **values: object) -> None:
        """Write the line, or count it."""
        self._log(logging.INFO, event, values)

    def warning(self, event: str, **values: object) -> None:
        """Write the line, or count it."""
        self._log(logging.WARNING, event, values)

    def error(self, event: str, **values: object) -> None:
        """Write the line, or count it."""
        self._log(logging.ERROR, event, values)

    def report(self) -> None:
        """Write a line for each kind of which some were held back, if one may be written now."""
        for kind, count in self._limiter.take_suppressed(self._clock()):
            self._logger.warning("lines suppressed", kind=kind or "other", suppressed=count)

    def _log(self, level: int, event: str, values: dict[str, object]) -> None:
        # What would not be written anyway takes nothing from the allowance.
        if not self._logger.is_enabled_for(level):
            return
        suppressed = self._limiter.admit(event, self._clock())
        if suppressed is None:
            return
        if suppressed:
            values["suppressed"] = suppressed
        self._logger.log(level, event, **values)


class _HasWrite(Protocol):
    def write(self, text: str, /) -> int: ...

    def flush(self) -> None: ...


class _Lines:
    """The end of the chain, and the factory of itself: writes each line in one piece."""

    def __init__(self, stream: _HasWrite) -> None:
        self._stream = stream

    def __call__(self, *_args: object) -> "_Lines":
        return self

    def msg(self, line: str) -> None:
        try:
            try:
                self._stream.write(line + "\n")
            except UnicodeEncodeError:
                self._stream.write(line.encode("ascii", "backslashreplace").decode() + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            # There is nowhere to say so: the stream is broken, full, or closed, which is a `ValueError`.
            pass

    debug = info = warning = error = critical = msg


class _Stamp:
    """Adds the time of day, UTC, to the microsecond."""

    def __init__(self, now: Callable[[], dt.datetime]) -> None:
        self._now = now

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["timestamp"] = self._now().astimezone(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        return event


class _Exceptions:
    """Turns `exc_info` into what was raised and where; with the whole traceback only for who asked for it."""

    def __init__(self, *, with_traceback: bool) -> None:
        self._with_traceback = with_traceback

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        exception = _exception_of(event.pop("exc_info", None))
        event.pop("stack_info", None)
        if exception is None:
            return event
        leaves = list(_leaves(exception))
        event["exception"] = "; ".join(_exception_text(leaf) for leaf in leaves[:LEAVES_MAX])
        if len(leaves) > LEAVES_MAX:
            event["exceptions"] = len(leaves)
        if place := _place(leaves[0]):
            event["raised_at"] = place
        if self._with_traceback:
            lines = traceback.format_exception(exception, limit=-TRACEBACK_FRAMES_MAX)
            event["traceback"] = "".join(lines)[-TRACEBACK_CHARACTERS_MAX:].rstrip("\n")
        return event


def _exception_of(exc_info: object) -> BaseException | None:
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        return cast("ExcInfo", exc_info)[1]
    return sys.exc_info()[1] if exc_info else None


def _leaves(exception: BaseException) -> Iterable[BaseException]:
    # A nursery wraps in groups of groups; what matters is at the bottom. Iterative, for depth is not ours to choose.
    waiting = [exception]
    while waiting:
        current = waiting.pop()
        if isinstance(current, BaseExceptionGroup):
            waiting.extend(reversed(current.exceptions))
        else:
            yield current


def _exception_text(exception: BaseException) -> str:
    text = _repeatable(exception, str)
    return f"{type(exception).__name__}: {text}" if text else type(exception).__name__


def _place(exception: BaseException) -> str:
    frame = exception.__traceback__
    if frame is None:
        return ""
    while frame.tb_next is not None:
        frame = frame.tb_next
    return f"{frame.tb_frame.f_globals.get('__name__', '?')}:{frame.tb_lineno}"


# How values become parts of a line.

_UNQUOTED = re.compile(r"[A-Za-z0-9_.,:;/@+*%#~\[\]()<>!?&^$|{}-]+")
# What a bare word would be mistaken for.
_RESERVED = frozenset({"null", "true", "false", ""})
# Integers beyond this are digits without meaning, and take long to write.
_INTEGER_BITS_MAX = 128
_FIRST = ("timestamp", "level", "room", "event")


def _as_text(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    details = event.pop("traceback", None)
    # The first four come without their names and always; the event stands as it is written in the code.
    words = [_clean(event.pop(name, "-"), str) for name in _FIRST]
    words += [f"{_key(name)}={_text(_plain(value))}" for name, value in event.items()]
    line = " ".join(words)
    return line if details is None else f"{line}\n{_clean_lines(details)}"


def _as_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    ordered = {name: _plain(event.pop(name, None)) for name in _FIRST}
    details = event.pop("traceback", None)
    ordered.update((_key(name), _plain(value)) for name, value in event.items())
    if details is not None:
        ordered["traceback"] = _encodable(details)
    return json.dumps(ordered, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _key(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:64]


def _text(value: object) -> str:
    """Return a plain value as it stands after the `=`: bare if it is one word, else in the quotes of JSON."""
    if isinstance(value, str) and value not in _RESERVED and _UNQUOTED.fullmatch(value):
        return value
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _plain(value: object) -> Scalar | list[Scalar] | dict[str, Scalar]:
    """Return what JSON can hold, at a bounded size: one level of lists and maps, and scalars."""
    if isinstance(value, dict):
        shown = {_clean(name, str): _scalar(part) for name, part in itertools.islice(value.items(), ENTRIES_MAX)}
        return shown if len(value) <= ENTRIES_MAX else {**shown, "…": len(value) - ENTRIES_MAX}
    if isinstance(value, list | tuple | set | frozenset):
        parts = [_scalar(part) for part in itertools.islice(value, ENTRIES_MAX)]
        return parts if len(value) <= ENTRIES_MAX else [*parts, f"… {len(value) - ENTRIES_MAX} more"]
    return _scalar(value)


def _scalar(value: object) -> Scalar:
    if value is None or isinstance(value, bool):
        return value
    # Of subclasses such as enumerations only the value counts.
    if isinstance(value, int):
        return int(value) if value.bit_length() <= _INTEGER_BITS_MAX else f"an integer of {value.bit_length()} bits"
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, str):
        return _clean(value, str)
    if isinstance(value, BaseException):
        return _clean(_exception_text(value), str)
    if isinstance(value, bytes | bytearray | memoryview):
        return _clean(value, _hexadecimal)
    return _clean(value, repr)


def _hexadecimal(value: object) -> str:
    # Only what will be shown is copied.
    view = memoryview(cast("bytes", value)).cast("B")
    shown = view[: VALUE_CHARACTERS_MAX // 2].hex()
    return shown if 2 * view.nbytes <= VALUE_CHARACTERS_MAX else f"{shown[:-20]}… ({view.nbytes} bytes)"


def _clean(value: object, text_of: Callable[[object], str]) -> str:
    """Return the text without anything that ends a line or moves a terminal's cursor, and not too long."""
    text = _repeatable(value, text_of)
    cut = text[:VALUE_CHARACTERS_MAX]
    if not cut.isprintable():
        cut = "".join(c if c.isprintable() else _escape(c) for c in cut)
    return cut if len(text) <= VALUE_CHARACTERS_MAX else f"{cut}… ({len(text) - VALUE_CHARACTERS_MAX} more)"


def _clean_lines(text: str) -> str:
    # Indented, so that no line of a traceback can pose as one of the log.
    return "\n".join("  | " + "".join(c if c.isprintable() else _escape(c) for c in line) for line in text.split("\n"))


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _repeatable(value: object, text_of: Callable[[object], str]) -> str:
    try:
        return text_of(value)
    except Exception as error:  # noqa: BLE001 - whatever an object's own `__str__` raises, the line is written
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"
