"""Log lines: one an event, whatever is in it, and not without number."""

import datetime as dt
import enum
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
import trio

from logd.observability import logs
from logd.observability.logs import LimitedLogger, LineLimiter, configure, get_logger

NOON = dt.datetime(2026, 5, 1, 12, 0, 0, 123_456, dt.UTC)
STAMP = "2026-05-01T12:00:00.123456Z"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def written(
    act: Callable[[], object],
    format_name: logs.Format = "text",
    level: logs.Level = "info",
) -> str:
    """Return what `act` wrote."""
    stream = io.StringIO()
    configure(level, format_name, stream, now=lambda: NOON)
    act()
    return stream.getvalue()


def written_json(act: Callable[[], object], level: logs.Level = "info") -> dict[str, Any]:
    text = written(act, "json", level)
    assert text.count("\n") == 1
    line: dict[str, Any] = json.loads(text)
    return line


log = get_logger("server")


# The shape of a line.


def test_a_line_of_text_is_time_level_room_event_and_values() -> None:
    text = written(lambda: log.info("client connected", peer="127.0.0.1:5000", user="spiffe://logd/user/ada", count=3))

    assert text == f"{STAMP} info server client connected peer=127.0.0.1:5000 user=spiffe://logd/user/ada count=3\n"


def test_a_line_of_json_is_one_object_with_the_same_first_fields() -> None:
    text = written(lambda: log.warning("client refused", peer="é", count=3, ratio=0.5, known=False, name=None), "json")

    assert text == (
        f'{{"timestamp":"{STAMP}","level":"warning","room":"server","event":"client refused",'
        '"peer":"é","count":3,"ratio":0.5,"known":false,"name":null}\n'
    )


def test_times_are_told_in_utc() -> None:
    stream = io.StringIO()
    zone = dt.timezone(dt.timedelta(hours=5, minutes=30))
    configure("info", "text", stream, now=lambda: NOON.astimezone(zone))

    log.info("started")

    assert stream.getvalue() == f"{STAMP} info server started\n"


def test_the_time_is_now_unless_told() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    before = dt.datetime.now(dt.UTC)

    log.info("started")

    stamp = dt.datetime.fromisoformat(json.loads(stream.getvalue())["timestamp"])
    assert before <= stamp <= dt.datetime.now(dt.UTC)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_auto_is_text_on_a_terminal_and_json_elsewhere() -> None:
    terminal, file = Terminal(), io.StringIO()

    configure("info", "auto", terminal, now=lambda: NOON)
    log.info("started")
    configure("info", "auto", file, now=lambda: NOON)
    log.info("stopped")

    assert terminal.getvalue() == f"{STAMP} info server started\n"
    assert json.loads(file.getvalue())["event"] == "stopped"


def test_lines_go_to_standard_error_unless_told(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "text", now=lambda: NOON)

    log.info("started")

    assert capsys.readouterr() == ("", f"{STAMP} info server started\n")


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["debug", "info", "warning", "error", "critical"]),
        ("info", ["info", "warning", "error", "critical"]),
        ("warning", ["warning", "error", "critical"]),
        ("error", ["error", "critical"]),
    ],
)
def test_only_the_level_and_what_is_above_it_is_written(level: logs.Level, expected: list[str]) -> None:
    def act() -> None:
        for name in ("debug", "info", "warning", "error", "critical"):
            getattr(log, name)("event")

    assert [line.split()[1] for line in written(act, level=level).splitlines()] == expected


def test_a_logger_made_and_used_before_follows_a_later_configuration() -> None:
    early = get_logger("store")
    first = written(lambda: early.info("one"), level="error")
    second = written(lambda: early.info("two"))

    assert (first, second) == ("", f"{STAMP} info store two\n")


@pytest.mark.parametrize(("level", "format_name"), [("loud", "text"), ("info", "xml")])
def test_an_unknown_level_or_format_is_refused_and_changes_nothing(level: Any, format_name: Any) -> None:
    def act() -> None:
        with pytest.raises(logs.UnknownLogSettingError):
            configure(level, format_name, io.StringIO())
        log.info("still here")

    assert written(act) == f"{STAMP} info server still here\n"


async def test_what_a_task_is_bound_to_is_in_its_lines_and_its_childrens_and_in_no_others() -> None:
    stream = io.StringIO()
    configure("info", "json", stream, now=lambda: NOON)

    async def session(peer: str, started: trio.Event, go_on: trio.Event) -> None:
        structlog.contextvars.bind_contextvars(peer=peer)
        started.set()
        await go_on.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(request)

    async def request() -> None:
        await trio.lowlevel.checkpoint()
        log.info("asked")

    first, second, go_on = trio.Event(), trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session, "a", first, go_on)
        nursery.start_soon(session, "b", second, go_on)
        await first.wait()
        await second.wait()
        log.info("bystander")
        go_on.set()

    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert lines[0].get("peer") is None
    assert sorted(line["peer"] for line in lines[1:]) == ["a", "b"]


# Hostile values.

HOSTILE = [
    "two\nlines",
    "two\r\nlines",
    "\x1b[2J\x1b]0;title\x07",
    "nul\0",
    "separators \u2028 \u2029 \x85 \x0b \x0c",
    "right to left \u202e",
    "lone \udcff \ud800",
    'quotes " and \\ and =',
    "",
    "null",
]


@pytest.mark.parametrize("value", HOSTILE, ids=ascii)
@pytest.mark.parametrize("place", ["event", "value", "key", "map", "list", "bytes", "exception"])
@pytest.mark.parametrize("format_name", ["text", "json"])
def test_nothing_in_an_event_makes_a_second_line_or_moves_the_cursor(
    value: str, place: str, format_name: logs.Format
) -> None:
    acts: dict[str, Callable[[], object]] = {
        "event": lambda: log.info(value),
        "value": lambda: log.info("event", value=value),
        "key": lambda: log.info("event", **{value: 1}),
        "map": lambda: log.info("event", value={value: value}),
        "list": lambda: log.info("event", value=[value, (value,)]),
        "bytes": lambda: log.info("event", value=value.encode("utf-8", "surrogatepass")),
        "exception": lambda: log.error("event", exc_info=ValueError(value)),
    }

    text = written(acts[place], format_name)

    assert text[-1] == "\n"
    assert text[:-1].isprintable()
    assert text.encode()
    if format_name == "json":
        assert json.loads(text)["timestamp"] == STAMP


class Color(enum.IntEnum):
    RED = 1


class Kind(enum.StrEnum):
    NODE = "node"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ("", '""'),
        ("null", '"null"'),
        (None, "null"),
        (True, "true"),
        (-7, "-7"),
        (2**200, '"an integer of 201 bits"'),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (1.5, "1.5"),
        (b"\x00\xff", "00ff"),
        (bytearray(b""), '""'),
        (memoryview(b"abcd")[::2], '"<memoryview that cannot be shown: TypeError>"'),
        ([1, "two", [3]], '[1, "two", "[3]"]'),
        ({"a": 1, 2: {"b": 3}}, '{"a": 1, "2": "{\'b\': 3}"}'),
        (Color.RED, "1"),
        (Kind.NODE, "node"),
        (ValueError("wrong"), '"ValueError: wrong"'),
        (KeyError(), "KeyError"),
    ],
    ids=ascii,
)
def test_every_value_has_its_way_into_a_line(value: object, text: str) -> None:
    assert written(lambda: log.info("event", value=value)) == f"{STAMP} info server event value={text}\n"
    assert written_json(lambda: log.info("event", value=value))["event"] == "event"


class Malicious:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_a_value_that_cannot_be_shown_does_not_stop_the_line() -> None:
    assert 'value="<Malicious that cannot be shown: RuntimeError>"' in written(
        lambda: log.info("event", value=Malicious())
    )


@pytest.mark.parametrize(
    "value",
    ["x" * 10_000_000, b"x" * 10_000_000, ["x" * 50] * 100_000, {str(n): "x" for n in range(100_000)}],
    ids=["text", "bytes", "list", "map"],
)
@pytest.mark.parametrize("format_name", ["text", "json"])
def test_a_line_has_a_bounded_length_and_says_what_it_leaves_out(value: object, format_name: logs.Format) -> None:
    text = written(lambda: log.info("event", value=value), format_name)

    assert len(text) < 4_000
    assert "…" in text


@pytest.mark.parametrize("name", ["timestamp", "level"])
def test_a_value_cannot_pose_as_the_time_or_the_level(name: str) -> None:
    line = written_json(lambda: log.info("event", **{name: "forged"}))

    assert (line["timestamp"], line["level"]) == (STAMP, "info")


# Exceptions.


def _raise_and_log(reason: str = "the reason\nof it") -> None:
    # Two that call each other: Python tells repeated frames of one function in a single line.
    def deep(depth: int) -> None:
        if depth:
            deeper(depth - 1)
        raise ValueError(reason)

    def deeper(depth: int) -> None:
        deep(depth)

    try:
        deep(100)
    except ValueError:
        log.exception("request failed", peer="p")


def test_an_exception_is_one_line_saying_what_and_where() -> None:
    text = written(_raise_and_log)

    assert text.count("\n") == 1
    assert text.startswith(f'{STAMP} error server request failed peer=p exception="ValueError: the reason')
    assert f"raised_at={__name__}:" in text
    assert "Traceback" not in text


def test_an_exception_in_json_has_no_traceback_either() -> None:
    line = written_json(_raise_and_log)

    assert line["exception"].startswith("ValueError: the reason")
    assert "traceback" not in line


def test_at_level_debug_the_traceback_follows_indented_and_bounded() -> None:
    first, *rest = written(_raise_and_log, level="debug").splitlines()

    assert first.startswith(f"{STAMP} error server request failed")
    assert rest[0] == "  | Traceback (most recent call last):"
    assert all(line.startswith("  | ") for line in rest)
    assert len(rest) < 4 * logs.TRACEBACK_FRAMES_MAX


def test_at_level_debug_a_long_reason_is_bounded_too() -> None:
    text = written(lambda: _raise_and_log("x" * 1_000_000), level="debug")

    assert len(text) < 2 * logs.TRACEBACK_CHARACTERS_MAX


def test_at_level_debug_json_stays_one_line() -> None:
    assert "Traceback" in written_json(_raise_and_log, "debug")["traceback"]


def test_a_group_is_told_by_its_leaves() -> None:
    leaves = [OSError(1000 + number, "reason") for number in range(5)]
    group = BaseExceptionGroup("nursery", [BaseExceptionGroup("inner", leaves[:2]), *leaves[2:]])

    line = written_json(lambda: log.error("failed", exc_info=group))

    assert line["exception"] == "; ".join(f"OSError: [Errno {1000 + number}] reason" for number in range(3))
    assert line["exceptions"] == 5


def test_exception_without_one_is_a_plain_line() -> None:
    # What it does outside a handler is the claim.
    text = written(lambda: log.exception("failed"))  # noqa: LOG004

    assert text == f"{STAMP} error server failed\n"


# A stream that fails.


class Failing(io.StringIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error: Exception | None = error

    def write(self, text: str) -> int:
        if self.error is not None:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize("error", [BrokenPipeError(32, "pipe"), OSError(28, "full"), ValueError("closed")], ids=repr)
def test_a_line_that_cannot_be_written_is_lost_and_nothing_else(error: Exception) -> None:
    stream = Failing(error)
    configure("info", "text", stream, now=lambda: NOON)

    log.info("lost")
    stream.error = None
    log.info("kept")

    assert stream.getvalue() == f"{STAMP} info server kept\n"


def test_a_stream_of_a_narrow_encoding_gets_what_it_can_hold() -> None:
    raw = io.BytesIO()
    configure("info", "text", io.TextIOWrapper(raw, "ascii"), now=lambda: NOON)

    log.info("event", value="é")

    assert raw.getvalue() == f'{STAMP} info server event value="\\xe9"\n'.encode()


# The limiter.


def test_a_kind_is_written_at_most_so_often_in_any_one_second() -> None:
    limiter = LineLimiter(10)
    # A flood of a thousand per second, for five seconds.
    times = [number / 1_000 for number in range(5_000)]

    admitted = [now for now in times if limiter.admit("refused", now) is not None]

    assert len(admitted) == 50
    assert all(later - earlier >= 1.0 for earlier, later in zip(admitted, admitted[10:], strict=False))


def test_the_number_held_back_is_told_once_by_the_next_line() -> None:
    limiter = LineLimiter(2)

    outcomes = [limiter.admit("refused", now) for now in (0.0, 0.1, 0.2, 0.3, 0.4, 1.0, 1.05, 1.1, 1.1)]

    assert outcomes == [0, 0, None, None, None, 3, None, 1, None]


def test_kinds_do_not_share_their_allowance() -> None:
    limiter = LineLimiter(1)

    assert [limiter.admit(kind, 0.0) for kind in ("a", "a", "b", "b")] == [0, None, 0, None]


def test_kinds_beyond_the_bound_share_one_allowance() -> None:
    limiter = LineLimiter(1, kinds_max=2)

    assert [limiter.admit(kind, 0.0) for kind in ("a", "b", "c", "d", "e", "a")] == [0, 0, 0, None, None, None]
    assert len(limiter._admitted) == 3
    assert sorted(limiter.take_suppressed(1.0), key=str) == [("a", 1), (None, 2)]


def test_what_was_held_back_can_be_asked_for_when_a_line_may_be_written_again() -> None:
    limiter = LineLimiter(1)
    for _ in range(4):
        limiter.admit("refused", 0.0)

    assert limiter.take_suppressed(0.5) == []
    assert limiter.take_suppressed(1.0) == [("refused", 3)]
    assert limiter.take_suppressed(2.0) == []
    assert limiter.admit("refused", 1.5) is None


@pytest.mark.parametrize(("lines", "kinds"), [(0, 1), (1, 0), (-1, 1)])
def test_a_limiter_that_admits_nothing_is_refused(lines: int, kinds: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        LineLimiter(lines, kinds)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_limited_logger_writes_what_is_admitted_and_says_what_was_not() -> None:
    clock = Clock()
    limited = LimitedLogger(log, LineLimiter(2), clock)

    def act() -> None:
        for _ in range(5):
            limited.warning("refused", peer="p")
        limited.info("other")
        clock.now = 1.0
        limited.warning("refused", peer="p")

    assert written(act).splitlines() == [
        f"{STAMP} warning server refused peer=p",
        f"{STAMP} warning server refused peer=p",
        f"{STAMP} info server other",
        f"{STAMP} warning server refused peer=p suppressed=3",
    ]


def test_a_limited_logger_reports_after_the_flood_and_only_once() -> None:
    clock = Clock()
    limited = LimitedLogger(log, LineLimiter(1), clock)

    def act() -> None:
        for _ in range(5):
            limited.error("refused")
        limited.report()
        clock.now = 1.0
        limited.report()
        limited.report()

    assert written(act).splitlines() == [
        f"{STAMP} error server refused",
        f"{STAMP} warning server lines suppressed kind=refused suppressed=4",
    ]


def test_what_the_level_keeps_out_takes_nothing_from_the_allowance() -> None:
    limiter = LineLimiter(1)
    limited = LimitedLogger(log, limiter, Clock())

    def act() -> None:
        for _ in range(5):
            limited.debug("refused")
        limited.info("refused")
        limited.report()

    assert written(act) == f"{STAMP} info server refused\n"
    assert limiter.take_suppressed(9.0) == []
