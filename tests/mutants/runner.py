"""Runs mutants: each in a process of its own, against the tests that are to kill it.

For: `python -m tests.mutants` and tests/mutants/test_mutants.py. Must not know: what the mutants are. The one idea:
importing pytest and its plugins takes longer than a killing test, so this process imports them once, nothing of logd,
and forks for every mutant; the child installs nothing itself: tests/conftest.py does, as for everybody.
"""

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import pytest

from tests.mutants import hook
from tests.mutants.mutant import ROOT, Mutant, StaleMutant

SECONDS_MAX: Final = 60.0
"""For one mutant: a bug may well make a test run for ever."""

REWRITE_WARNING: Final = "ignore::pytest.PytestAssertRewriteWarning"
"""The plugins were imported before pytest could rewrite their assertions; nobody misses that here."""

VERDICTS: Final = ("AssertionError", "Failed", "SafetyViolation")
"""What counts as a test's verdict: an assertion, `pytest.raises` that saw nothing, the core's own alarm."""


class Outcome(Enum):
    """What became of one run."""

    KILLED = "killed"
    PASSED = "passed"
    """The run without a mutant."""
    SURVIVED = "survived"
    WRONG = "failed for another reason"
    """A test did fail, but neither by an assertion nor by a violation: the mutant is broken, not buggy."""
    STALE = "stale"
    ENDLESS = "ran too long"


@dataclass
class Report:
    """One mutant's run, or the run of all killing tests without one."""

    name: str
    outcome: Outcome
    seconds: float = 0.0
    detail: str = ""
    output: str = ""

    @property
    def is_good(self) -> bool:
        return self.outcome in (Outcome.KILLED, Outcome.PASSED)

    def as_json(self) -> dict[str, Any]:
        """For `--json`, and back by `from_json`."""
        return {**asdict(self), "outcome": self.outcome.name}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Report":
        return cls(**{**data, "outcome": Outcome[data["outcome"]]})


@dataclass(eq=False)
class _Seen:
    """What a test session saw; a pytest plugin in the child."""

    failures: dict[str, list[str]] = field(default_factory=dict)
    """By test: the names of the exceptions that ended it."""
    passed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    """What could not even be collected."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report = yield
        test = item.nodeid.partition("[")[0]
        if report.failed and call.excinfo is not None:
            self.failures.setdefault(test, []).extend(_names(call.excinfo.value))
        elif report.passed and call.when == "call":
            self.passed.append(test)
        return report

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.errors.append(f"{report.nodeid}: {report.longreprtext.strip().splitlines()[-1]}")


def _names(error: BaseException) -> Iterator[str]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _names(inner)
    else:
        yield type(error).__name__


def import_plugins() -> None:
    """Import what every test session needs, and nothing of logd."""
    for name in ("hypothesis", "hypothesis.stateful", "trio.testing", "pytest_trio.plugin", "anyio.pytest_plugin"):
        __import__(name)
    present = [name for name in sys.modules if name.partition(".")[0] in ("logd", "wire")]
    assert not present, f"{present[0]} was imported before any mutant"


def _child(name: str, tests: Sequence[str], directory: str) -> None:
    """Run some tests in this process, and leave what was seen in a file."""
    output = os.open(f"{directory}/output", os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    os.chdir(ROOT)
    os.environ[hook.VARIABLE] = name
    seen = _Seen()
    arguments = ["-p", "no:cacheprovider", "-q", "--tb=short", "-m", "", "-W", REWRITE_WARNING, *tests]
    code = pytest.main(arguments, plugins=[seen])
    finder = hook.installed()
    found = {
        "code": int(code),
        "failures": seen.failures,
        "passed": seen.passed,
        "errors": seen.errors,
        "is_applied": finder is not None and finder.is_applied,
    }
    Path(directory, "seen").write_text(json.dumps(found))


def _judge(mutant: Mutant | None, tests: Sequence[str], found: dict[str, Any]) -> tuple[Outcome, str]:
    if found["errors"]:
        return Outcome.WRONG, found["errors"][0]
    failures: dict[str, list[str]] = found["failures"]
    missing = [test for test in tests if test not in failures and test not in found["passed"]]
    if missing:
        return Outcome.WRONG, f"{missing[0]} did not run"
    if mutant is None:
        if failures:
            return Outcome.WRONG, f"without a mutant: {next(iter(failures))}"
        return Outcome.PASSED, f"{len(tests)} tests"
    if not found["is_applied"]:
        return Outcome.WRONG, "no test imported the module that it changes"
    for test in tests:
        if test not in failures:
            return Outcome.SURVIVED, f"{test} passes"
        strange = [name for name in failures[test] if name not in (*VERDICTS, *mutant.violations)]
        if strange:
            return Outcome.WRONG, f"{test} ended with {strange[0]}"
    return Outcome.KILLED, f"{len(tests)} of {len(tests)}"


@dataclass
class _Run:
    mutant: Mutant | None
    tests: tuple[str, ...]
    process: BaseProcess
    directory: tempfile.TemporaryDirectory[str]
    begin: float

    def finish(self, *, is_over: bool) -> Report:
        name = self.mutant.name if self.mutant is not None else ""
        seconds = time.monotonic() - self.begin
        output = Path(self.directory.name, "output")
        text = output.read_text(errors="replace") if output.exists() else ""
        seen = Path(self.directory.name, "seen")
        if not is_over:
            outcome, detail = Outcome.ENDLESS, f"more than {SECONDS_MAX:.0f} s"
        elif not seen.exists():
            outcome, detail = Outcome.WRONG, f"the process ended with {self.process.exitcode}"
        else:
            outcome, detail = _judge(self.mutant, self.tests, json.loads(seen.read_text()))
        self.directory.cleanup()
        return Report(name, outcome, seconds, detail, "" if outcome in (Outcome.KILLED, Outcome.PASSED) else text)


def _start(mutant: Mutant | None, tests: tuple[str, ...]) -> _Run:
    directory = tempfile.TemporaryDirectory(prefix="logd-mutant-")
    context = multiprocessing.get_context("fork")
    name = mutant.name if mutant is not None else ""
    process = context.Process(target=_child, args=(name, tests, directory.name))
    process.start()
    return _Run(mutant, tests, process, directory, time.monotonic())


def _wait_one(runs: list[_Run]) -> Report:
    """Wait until one of some runs is over, or has taken too long, and take it off the list."""
    deadline = min(run.begin for run in runs) + SECONDS_MAX
    ready = wait([run.process.sentinel for run in runs], max(0.0, deadline - time.monotonic()))
    run = next((run for run in runs if run.process.sentinel in ready), runs[0])
    runs.remove(run)
    if not ready:
        run.process.kill()
    run.process.join()
    return run.finish(is_over=bool(ready))


def run_mutants(mutants: Sequence[Mutant], *, jobs: int = 1) -> Iterator[Report]:
    """First all killing tests without a mutant, then every mutant against its own; in the order in which they end."""
    import_plugins()
    tests = tuple(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    waiting: list[tuple[Mutant | None, tuple[str, ...]]] = [(None, tests)]
    for mutant in mutants:
        try:
            mutant.check()
        except StaleMutant as error:
            yield Report(mutant.name, Outcome.STALE, detail=str(error))
        else:
            waiting.append((mutant, mutant.tests))
    runs: list[_Run] = []
    while waiting or runs:
        while waiting and len(runs) < jobs:
            runs.append(_start(*waiting.pop(0)))
        yield _wait_one(runs)
