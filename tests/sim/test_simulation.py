"""Claims about the simulator itself, and the runs that every check makes.

`LOGD_SIM_SEEDS` says how many new seeds are run (default 60), `LOGD_SIM_FIRST_SEED` where they begin (default: drawn,
and printed in the test's name).
"""

import os
import re
import secrets
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.sim import reachable
from tests.sim.chance import chance_of
from tests.sim.clock import Clock
from tests.sim.cluster import Options, Result, simulate
from tests.sim.faults import CLASSES, drawn_classes
from tests.sim.ledger import BEGIN, END, render, summary
from tests.sim.marks import marks_in
from tests.sim.seeds import FOUND
from tests.sim.shrink import shrink

ROOT = Path(__file__).parents[2]
PYTHONS = [sys.executable] + [
    path for path in os.environ.get("LOGD_SIM_PYTHONS", "").split(os.pathsep) if path and Path(path).exists()
]


def _failure(result: Result) -> str:
    return f"{result.where}\n{result.failure}\n{result.options.command()}"


def test_events_of_one_moment_happen_in_the_order_in_which_they_were_asked_for() -> None:
    clock = Clock()
    seen: list[str] = []
    clock.after(5, seen.append, "b")
    clock.after(1, seen.append, "a")
    clock.after(5, seen.append, "c")

    clock.run_until(10)

    assert seen == ["a", "b", "c"]
    assert clock.now == 10


def test_each_concern_draws_from_a_generator_of_its_own() -> None:
    one, other = chance_of(1, "network"), chance_of(1, "disk")

    assert one.random() == chance_of(1, "network").random()
    assert one.random() != other.random()


def test_each_class_of_faults_is_off_in_about_half_of_the_seeds() -> None:
    drawn = [drawn_classes(seed) for seed in range(200)]
    on = {name: sum(name in classes for classes in drawn) for name in CLASSES}

    assert all(65 < count < 135 for count in on.values()), on


def test_a_run_is_the_same_run_twice() -> None:
    first, second = simulate(Options(4, 10.0)), simulate(Options(4, 10.0))

    assert not first.failure, _failure(first)
    assert first.digest == second.digest
    assert first.events == second.events


@pytest.mark.parametrize("python", PYTHONS)
def test_a_run_is_the_same_run_in_another_process_with_other_hashes(python: str) -> None:
    here = simulate(Options(5, 10.0))
    environment = os.environ | {"PYTHONHASHSEED": "77", "PYTHONPATH": str(ROOT)}
    command = [python, "-m", "tests.sim", "--seed", "5", "--seconds", "10"]

    there = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    assert here.digest[:16] in there.stdout, there.stdout + there.stderr


def test_looking_at_a_run_does_not_change_it(tmp_path: Path) -> None:
    quiet = simulate(Options(6, 5.0))
    with (tmp_path / "trace").open("w") as out:
        watched = simulate(Options(6, 5.0), out)

    assert watched.digest == quiet.digest


def test_without_faults_everything_is_acknowledged_and_nothing_is_vacuous() -> None:
    result = simulate(Options(1, 20.0, 3, 3, ()))

    assert not result.failure, _failure(result)
    assert not result.vacuous
    assert result.acknowledged > 300
    assert result.elections == 3


def test_a_run_that_ends_after_so_many_events_is_not_judged() -> None:
    result = simulate(Options(1, 20.0, 3, 1, (), steps=500))

    assert not result.is_complete
    assert result.events == 500


def test_the_command_of_a_run_makes_the_same_run() -> None:
    result = simulate(Options(9, 3.0))

    words = result.options.command().split()

    assert words[:5] == ["python", "-m", "tests.sim", "--seed", "9"]
    assert "--nodes" in words
    assert "--faults" in words
    assert simulate(result.options).digest == result.digest


def test_a_failure_is_made_smaller_and_still_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_with_loss(options: Options) -> Result:
        drawn = options.drawn()
        assert drawn.classes is not None
        return Result(drawn, simulated_us=5_000_000, failure="x" if "loss" in drawn.classes else "")

    monkeypatch.setattr("tests.sim.shrink.simulate", fails_with_loss)

    smallest = shrink(fails_with_loss(Options(1, 60.0, 7, 4, CLASSES)))

    assert (smallest.classes, smallest.groups, smallest.nodes) == (("loss",), 1, 3)
    assert smallest.seconds <= 5.0


def test_a_mark_that_was_not_reached_is_named(tmp_path: Path) -> None:
    (tmp_path / "source.py").write_text('reachable("here")\nreachable("there")\n')

    marks = reachable.marks_in([tmp_path])

    assert marks == ["here", "there"]
    assert reachable.not_reached(marks, Counter({"here": 2})) == ["there"]


def test_the_page_shows_the_sums_of_the_ledger() -> None:
    row = {
        "simulated_seconds": 3600.0,
        "cpu_seconds": 100.0,
        "commits": 5,
        "elections": 2,
        "acknowledged": 7,
        "vacuous": [],
        "failure": "",
    }

    page = render(f"above\n{BEGIN}\nold\n{END}\nbelow\n", summary([row, {**row, "vacuous": ["crash"]}]))

    assert "| simulated hours | 2.0 |" in page
    assert "| vacuous seeds | 1 |" in page
    assert "old" not in page
    assert page.endswith("\nbelow\n")


@pytest.mark.parametrize("options", FOUND, ids=lambda options: f"seed-{options.seed}")
def test_what_was_found_once_is_not_found_again(options: Options) -> None:
    result = simulate(options)

    assert not result.failure, _failure(result)


SEEDS = int(os.environ.get("LOGD_SIM_SEEDS", "60"))
FIRST_SEED = int(os.environ.get("LOGD_SIM_FIRST_SEED") or secrets.randbelow(1 << 48))


@pytest.mark.timeout(1800)  # three minutes of one core; a busy machine takes longer
def test_new_seeds_find_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "tests.sim", "--count", str(SEEDS), "--from", str(FIRST_SEED), "--jobs", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1500)

    with capsys.disabled():
        sys.stdout.write(f"\n{done.stdout}")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_marked_branch_of_the_production_code_has_a_name_of_its_own() -> None:
    names = [mark.name for mark in marks_in()]

    assert len(names) > 30
    assert len(names) == len(set(names))


def test_a_marked_branch_that_runs_is_reached_and_another_is_not() -> None:
    command = [sys.executable, "-m", "tests.sim.marks", "--count", "1", "--from", "1", "--seconds", "5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "not reached: a read while the disk hangs" in done.stdout
    assert "not reached: a promise waits for nothing" not in done.stdout
    reached, total = map(int, re.findall(r": (\d+) of (\d+) marked", done.stdout)[0])
    assert 0 < reached < total
