"""The arithmetic and the shapes that every benchmark result goes through."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import harness
from bench.harness import Bar, BenchmarkError, Question, alternate, parse_options, summarize

THROUGHPUT = Question("produce", "records/s", "a peer", Bar(">=", 4), "by hand")
LATENCY = Question("one produce", "ms", "a peer", Bar("<=", 1.5), "by hand")
ABSOLUTE = Question("send_nowait", "records/s", "a peer", Bar(">=", 150_000, of="ours", unit="records/s"), "by hand")


def test_a_result_compares_medians_and_not_means() -> None:
    result = summarize(THROUGHPUT, [400, 401, 402, 403, 90_000], [100, 100, 100, 1, 1])
    assert (result.ours, result.peer, result.ratio) == (402, 100, 4.02)


def test_a_throughput_bar_is_met_at_and_above_its_limit() -> None:
    assert summarize(THROUGHPUT, [400.0] * 5, [100.0] * 5).met
    assert not summarize(THROUGHPUT, [399.0] * 5, [100.0] * 5).met


def test_a_latency_bar_is_met_at_and_below_its_limit() -> None:
    assert summarize(LATENCY, [1.5] * 5, [1.0] * 5).met
    assert not summarize(LATENCY, [1.51] * 5, [1.0] * 5).met


def test_an_absolute_bar_looks_at_ours_and_not_at_the_ratio() -> None:
    assert summarize(ABSOLUTE, [150_000.0] * 5, [1e9] * 5).met
    assert not summarize(ABSOLUTE, [149_999.0] * 5, [1.0] * 5).met


@pytest.mark.parametrize(
    ("bar", "text"),
    [
        (Bar(">=", 4), ">= 4"),
        (Bar("<=", 1.5), "<= 1.5"),
        (Bar(">=", 0.9), ">= 0.9"),
        (Bar(">=", 150_000, of="ours", unit="records/s"), ">= 150000 records/s"),
    ],
)
def test_a_bar_says_its_direction(bar: Bar, text: str) -> None:
    assert str(bar) == text


def test_a_result_is_one_json_object_on_one_line_with_exactly_the_agreed_keys() -> None:
    line = summarize(THROUGHPUT, [400.0] * 5, [100.0] * 5).as_json()
    assert "\n" not in line
    assert json.loads(line) == {
        "question": "produce",
        "ours": 400.0,
        "peer": 100.0,
        "peer_name": "a peer",
        "ratio": 4.0,
        "unit": "records/s",
        "runs": 5,
        "bar": ">= 4",
        "met": True,
    }
    assert tuple(json.loads(line)) == harness.RESULT_KEYS


@pytest.mark.parametrize(
    ("ours", "peer"),
    [
        ([1.0] * 4, [1.0] * 4),
        ([1.0] * 5, [1.0] * 6),
        ([1.0] * 4 + [0.0], [1.0] * 5),
        ([1.0] * 5, [1.0] * 4 + [float("nan")]),
        ([1.0] * 5, [1.0] * 4 + [float("inf")]),
    ],
    ids=["too few runs", "one side ran more often", "nothing achieved", "not a number", "infinite"],
)
def test_figures_that_prove_nothing_are_refused(ours: list[float], peer: list[float]) -> None:
    with pytest.raises(BenchmarkError):
        summarize(THROUGHPUT, ours, peer)


def test_the_sides_take_turns_and_the_machine_settles_before_each() -> None:
    trace: list[str] = []

    def side(name: str, figure: float) -> harness.Side:
        def run() -> float:
            trace.append(name)
            return figure

        return run

    figures = alternate((side("A", 1.0), side("B", 2.0)), 3, settle=lambda: trace.append("settle"))
    assert figures == [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]
    assert trace == ["settle", "A", "settle", "B"] * 3


def test_a_warm_up_round_goes_first_and_does_not_count() -> None:
    ours, peer = iter([9.0, 1.0, 2.0]), iter([8.0, 3.0, 4.0])
    assert alternate((lambda: next(ours), lambda: next(peer)), 2, warm_up=True) == [[1.0, 2.0], [3.0, 4.0]]


def test_an_answer_appends_its_line_to_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = harness.Options(runs=5, seconds=1.0, json_path=tmp_path / "results.jsonl", data_directory=tmp_path)
    harness.answer(LATENCY, ours=lambda: 1.0, peer=lambda: 1.0, options=options)
    harness.answer(THROUGHPUT, ours=lambda: 1.0, peer=lambda: 1.0, options=options)
    lines = (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["question"] for line in lines] == ["one produce", "produce"]
    assert [json.loads(line)["met"] for line in lines] == [True, False]
    assert "NOT MET" in capsys.readouterr().out


def test_too_few_runs_are_refused_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_information:
        parse_options("a benchmark", ["--runs", "4"])
    assert exit_information.value.code == 2
    assert "a median needs at least 5" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "-1", "601", "nan"])
def test_a_run_has_a_bounded_positive_length(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options("a benchmark", ["--seconds", seconds])
    assert "--seconds" in capsys.readouterr().err


def test_the_options_default_to_the_least_runs_and_the_checkouts_disk() -> None:
    options = parse_options("a benchmark", [], seconds=0.5)
    assert (options.runs, options.seconds, options.json_path) == (5, 0.5, None)
    assert options.data_directory == Path(harness.__file__).resolve().parent.parent / ".bench"


def test_the_data_directory_hides_itself_from_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "file_system_of", lambda _path: ("ext4", "/dev/vda"))
    directory = harness.prepare_data_directory(tmp_path / "data")
    assert (directory / ".gitignore").read_text(encoding="utf-8") == "*\n"


def test_a_file_system_in_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "file_system_of", lambda _path: ("tmpfs", "tmpfs"))
    with pytest.raises(BenchmarkError, match="fsync is free"):
        harness.prepare_data_directory(tmp_path / "data")


def test_the_innermost_mount_says_the_file_system() -> None:
    assert harness.file_system_of(Path("/proc/self"))[0] == "proc"


def test_the_machine_is_described_in_full(tmp_path: Path) -> None:
    facts = harness.machine(tmp_path)
    assert set(facts) == {"cpu", "cores", "load", "kernel", "python", "disk", "network", "packages"}
    assert all(facts.values())


@pytest.mark.parametrize(
    ("figure", "text"),
    [(0, "0"), (0.1234, "0.123"), (12.345, "12.3"), (999.9, "1,000"), (1234.5, "1,234"), (2e6, "2,000,000")],
)
def test_a_figure_is_printed_without_false_digits(figure: float, text: str) -> None:
    assert harness.figure_text(figure) == text


def test_what_the_servers_of_a_benchmark_use_is_its_own_and_not_others() -> None:
    own_before, busy_before = harness.own_cpu_seconds(), harness.busy_cpu_seconds()
    assert 0 < own_before <= busy_before
    assert harness.own_cpu_seconds() >= own_before


def test_a_run_tells_how_much_others_used_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, own = iter([10.0, 17.0]), iter([4.0, 6.0])
    monkeypatch.setattr(harness, "busy_cpu_seconds", lambda: next(busy))
    monkeypatch.setattr(harness, "own_cpu_seconds", lambda: next(own))
    clock = iter([100.0, 110.0])
    monkeypatch.setattr(harness, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    others: list[float] = []
    assert harness.beside_others(lambda: 3.0, others)() == 3.0
    assert others == [0.5]


def test_a_run_waits_for_quiet_and_goes_on_when_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    # Others use a whole core for two moments, and nothing in the third; time passes only while somebody sleeps.
    now = 0.0
    busy = iter([0.0, 0.3, 0.3, 0.6, 0.6, 0.6])

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(harness, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    monkeypatch.setattr(harness, "own_cpu_seconds", lambda: 0.0)
    monkeypatch.setattr(harness, "busy_cpu_seconds", lambda: next(busy))
    harness.wait_until_quiet(10.0)
    assert now == pytest.approx(3 * harness.QUIET_SECONDS)
    monkeypatch.setattr(harness, "busy_cpu_seconds", lambda: 2 * now)
    harness.wait_until_quiet(9.5 * harness.QUIET_SECONDS)
    assert now == pytest.approx(13 * harness.QUIET_SECONDS)
