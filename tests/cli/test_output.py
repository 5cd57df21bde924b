"""The answer goes to standard output in one of two shapes; nothing in it can act upon a terminal."""

import json

import pytest

from logd.cli import output


def test_a_table_is_aligned_and_numbers_stand_to_the_right() -> None:
    rows = [{"topic": "a", "records": 5}, {"topic": "longer", "records": 12345}]
    assert output.aligned(("Topic", "Records"), rows) == [
        "TOPIC   RECORDS",
        "a             5",
        "longer    12345",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ("", "-"),
        ([], "-"),
        (0, "0"),
        (True, "yes"),
        (["a", "b"], "a, b"),
        ({"k": 1}, "k=1"),
        ("\x1b[1m", "\\x1b[1m"),
        ("a\tb", "a\\tb"),
    ],
)
def test_a_cell_is_one_printable_text(value: object, text: str) -> None:
    assert output.cell_text(value) == text


def test_json_holds_bytes_as_hexadecimal_and_survives_what_is_no_text() -> None:
    assert json.loads(output.json_line({"id": b"\xff\x00", "name": "ü"})) == {"id": "ff00", "name": "ü"}
    assert "\\udcff" in output.json_line({"path": "\udcff"})


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ([], False),
        (["--output", "json"], True),
        (["-o", "json"], True),
        (["--output=json"], True),
        (["--output"], False),
        (["--output", "table"], False),
        (["--", "--output", "json"], False),
        (["-o", "json", "-o", "table"], False),
    ],
)
def test_whether_json_is_asked_is_told_without_parsing(
    words: list[str], asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOGCTL_OUTPUT", raising=False)
    assert output.is_json_asked(words) is asked


def test_the_environment_asks_for_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGCTL_OUTPUT", "json")
    assert output.is_json_asked([])


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1_500, "1.5 kB"), (2_000_000, "2.0 MB"), (3.2e9, "3.2 GB")]
)
def test_bytes_are_told_as_people_read_them(count: float, text: str) -> None:
    assert output.bytes_text(count) == text


def test_one_is_singular() -> None:
    assert output.count_text(1, "record") == "1 record"
    assert output.count_text(2000, "record") == "2,000 records"
