"""Every mutant is killed by the tests that its row names; and the machinery that says so is honest."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.mutants.hook import MutantFinder, MutantTooLate, install
from tests.mutants.mutant import BUGS_COUNT, JOURNAL_RULES_COUNT, ROOT, Edit, Mutant, Source, StaleMutant
from tests.mutants.runner import Outcome, Report
from tests.mutants.simulator import read_kills
from tests.mutants.table import MUTANTS, find_mutant


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    """All mutants, run once."""
    path = tmp_path_factory.mktemp("mutants") / "reports.json"
    # In a process of its own: in this one the modules are imported already.
    command = [sys.executable, "-m", "tests.mutants", "--run", "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert path.exists(), done.stdout + done.stderr
    reports = [Report.from_json(fields) for fields in json.loads(path.read_text())]
    return {report.name: report for report in reports}


def test_all_killing_tests_pass_without_a_mutant(reports: dict[str, Report]) -> None:
    report = reports[""]

    assert report.outcome is Outcome.PASSED, f"{report.detail}\n{report.output}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_known_bug_is_noticed(mutant: Mutant, reports: dict[str, Report]) -> None:
    report = reports[mutant.name]

    assert report.outcome is Outcome.KILLED, f"{report.detail}\n{report.output}"


def test_the_table_is_complete_and_its_names_are_unique() -> None:
    names = [mutant.name for mutant in MUTANTS]
    numbers = {source: {mutant.number for mutant in MUTANTS if mutant.source is source} for source in Source}

    assert len(set(names)) == len(names)
    assert numbers[Source.BUG] == set(range(1, BUGS_COUNT + 1))
    assert numbers[Source.JOURNAL] == set(range(1, JOURNAL_RULES_COUNT + 1))
    for mutant in MUTANTS:
        prefix = f"bug-{mutant.number:02d}" if mutant.source is Source.BUG else f"journal-{mutant.number}"
        assert mutant.name.startswith(f"{prefix}-")


def test_each_bug_has_a_test_of_its_number() -> None:
    for mutant in MUTANTS:
        if mutant.source is Source.BUG:
            assert f"::test_bug_{mutant.number:02d}_" in mutant.tests[0]


def test_the_simulator_alone_is_known_to_kill_fifteen_bugs() -> None:
    kills = read_kills()

    assert set(kills) <= {mutant.name for mutant in MUTANTS}
    assert len({mutant.number for mutant in MUTANTS if mutant.source is Source.BUG and mutant.name in kills}) >= 15
    assert all(kill.seeds_tried > 0 and kill.finding for kill in kills.values())


def mutant_of(*edits: Edit) -> Mutant:
    return Mutant(Source.BUG, 1, "bug-01-for-this-test", "a bug", "a rule", edits, ())


@pytest.mark.parametrize("old", ["this text stands nowhere", "def "])
def test_a_text_that_is_not_there_exactly_once_is_an_error_that_names_the_mutant(old: str) -> None:
    with pytest.raises(StaleMutant, match="bug-01-for-this-test"):
        mutant_of(Edit("wire.frame", old, "another")).check()


def test_a_mutant_that_changes_nothing_or_cannot_be_compiled_is_an_error() -> None:
    edit = find_mutant("bug-17-lazy-fsync").edits[0]

    with pytest.raises(StaleMutant, match="changes nothing"):
        mutant_of(Edit(edit.module, edit.old, edit.old)).check()
    with pytest.raises(StaleMutant, match="unreadable"):
        mutant_of(Edit(edit.module, edit.old, "(")).check()


def test_a_mutant_that_comes_too_late_is_an_error() -> None:
    import logd.store.round  # noqa: F401  # as it is

    with pytest.raises(MutantTooLate):
        install(find_mutant("bug-17-lazy-fsync"))


def test_a_module_is_imported_with_its_bug_and_the_file_stays_as_it_is(tmp_path: Path) -> None:
    program = """
import json, sys
from tests.mutants.hook import install_from_environment
finder = install_from_environment()
import logd.store.round as rewritten, logd.store.journal as untouched
loader = untouched.__spec__.loader.__class__.__name__
print(json.dumps([finder.is_applied, rewritten.Round.write.__code__.co_consts, loader]))
"""

    def run(name: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={"LOGD_MUTANT": name, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        return json.loads(done.stdout) if done.returncode == 0 else done.stderr

    before = (ROOT / "logd/store/round.py").read_bytes()
    is_applied, constants, other = run("bug-17-lazy-fsync")

    assert is_applied
    assert 4 in constants, "the lazy fsync's every fourth round"
    assert other == "SourceFileLoader"
    assert (ROOT / "logd/store/round.py").read_bytes() == before
    assert "there is no mutant" in run("bug-99-unknown")


def test_the_hook_answers_for_its_own_modules_alone() -> None:
    finder = MutantFinder(find_mutant("bug-17-lazy-fsync"))

    assert finder.find_spec("logd.store.journal", None) is None
    assert not finder.is_applied
