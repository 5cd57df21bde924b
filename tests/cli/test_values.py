"""Sizes, durations, pairs and places are read as people write them, and refused with an example."""

import click
import pytest

from logd.cli.values import (
    PAIR,
    PLACE,
    AtOffset,
    AtTime,
    LastRecords,
    Place,
    duration,
    parse_duration,
    parse_place,
    parse_size,
    size,
    whole_number,
)
from wire.types import Anchor

NOW_MS = 1_700_000_000_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("4096", 4096),
        ("64KiB", 65536),
        ("64k", 65536),
        ("1MiB", 1 << 20),
        ("1 MB", 1_000_000),
        ("2GiB", 2 << 30),
    ],
)
def test_a_size_is_read(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "x", "1x", "-1", "1.5MiB", "1e3", "٣", "1KiBs", "9" * 40])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="like 4096"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("0", 0), ("0.5", 0.5), ("5ms", 0.005), ("30s", 30), ("1h30m", 5400), ("7d", 604800)]
)
def test_a_duration_is_read(text: str, expected: float) -> None:
    assert parse_duration(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "s", "5 ms", "-5s", "1h30", "5x", "1e9", "nan", "inf", "1s-"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="like 5ms"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("start", Anchor.START),
        ("end", Anchor.END),
        ("0", AtOffset(0)),
        ("42", AtOffset(42)),
        ("-10", LastRecords(10)),
        ("-1h", AtTime(NOW_MS - 3_600_000)),
        ("-30s", AtTime(NOW_MS - 30_000)),
        ("+30s", AtTime(NOW_MS + 30_000)),
        ("@1700000000123", AtTime(1_700_000_000_123)),
        ("2023-11-14T22:13:20Z", AtTime(NOW_MS)),
        ("2023-11-14T23:13:20+01:00", AtTime(NOW_MS)),
        ("2023-11-14T22:13:20.250Z", AtTime(NOW_MS + 250)),
    ],
)
def test_a_place_is_read(text: str, expected: Place) -> None:
    assert parse_place(text, NOW_MS) == expected


def test_a_time_without_a_zone_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "UTC-2")
    time.tzset()
    try:
        assert parse_place("2023-11-15T00:13:20", NOW_MS) == AtTime(NOW_MS)
        assert parse_place("2023-11-15", NOW_MS) == AtTime(NOW_MS - 800_000)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    "text",
    ["", "middle", "1.5", "-", "@", "@x", "-1y", "2023-13-01", "9" * 30, "@" + "9" * 400, "-" + "9" * 12 + "d" * 2],
)
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected start|at most 19"):
        parse_place(text, NOW_MS)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (size(1, 1024), "2KiB", "not between 1 and 1,024 bytes"),
        (size(1, 1024), "x", "expected a size"),
        (duration(60), "2h", "more than 60 seconds"),
        (duration(60), "x", "expected a duration"),
        (duration(60, minimum=0.001), "0", "less than 0.001 seconds"),
        (whole_number(1, 9), "10", "expected a number from 1 to 9"),
        (whole_number(1, 9), "-1", "expected a number from 1 to 9"),
        (whole_number(0, 9), "x", "expected a number from 0 to 9"),
        (PAIR, "novalue", "expected name=value"),
        (PAIR, "=x", "expected name=value"),
        (PLACE, "x", "expected start"),
    ],
)
def test_a_wrong_option_says_what_is_right(kind: "click.ParamType[object]", text: str, message: str) -> None:
    with pytest.raises(click.BadParameter, match=message):
        kind.convert(text, None, None)


def test_a_pair_is_cut_at_the_first_equals_sign() -> None:
    assert PAIR.convert("a=b=c", None, None) == ("a", "b=c")
    assert PAIR.convert("a=", None, None) == ("a", "")
