"""The command line of `python -m tests.mutants`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.mutants.mutant import Mutant, Source
from tests.mutants.runner import Report, run_mutants
from tests.mutants.simulator import Kill, read_kills, run_by_simulator
from tests.mutants.table import MUTANTS, find_mutant

OUTPUT_CHARACTERS_MAX: Final = 2_000
"""Of a run that went wrong, its end."""


def say(text: str) -> None:
    """A line for whoever waits."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str]) -> int:
    """Returns 0 if everything that was asked for is as it should be, 1 if not, 2 for a wrong name."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Do the tests notice known bugs?")
    parser.add_argument("names", nargs="*", help="only these mutants (default: all)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--run", action="store_true", help="run each against the tests that are to kill it")
    what.add_argument("--by-simulator", action="store_true", help="run each against seeds of the simulator")
    what.add_argument("--table", action="store_true", help="print the list as a Markdown table")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes at once")
    parser.add_argument("--json", metavar="FILE", help="with --run: keep the reports")
    parser.add_argument("--first-seed", type=int, default=1, help="with --by-simulator: where to begin")
    parser.add_argument("--seeds", type=int, default=100, help="with --by-simulator: give a mutant up after so many")
    parser.add_argument("--seconds", type=float, default=60.0, help="with --by-simulator: simulated, of each seed")
    options = parser.parse_args(arguments)
    try:
        mutants = [find_mutant(name) for name in options.names] or list(MUTANTS)
    except LookupError as error:
        parser.error(str(error.args[0]))
    if options.table:
        say(markdown_table(mutants, read_kills()))
        return 0
    if options.run:
        return _run(mutants, options.jobs, options.json)
    if options.by_simulator:
        return run_by_simulator(mutants, options.first_seed, options.seeds, options.seconds, say)
    kills = read_kills()
    for mutant in mutants:
        by = f"seed {kills[mutant.name].seed}" if mutant.name in kills else ""
        say(f"{mutant.name:44} {mutant.modules[0]:24} {by:12} {mutant.bug}")
    return 0


def _run(mutants: Sequence[Mutant], jobs: int, path: str | None) -> int:
    reports: list[Report] = []
    for report in run_mutants(mutants, jobs=jobs):
        reports.append(report)
        name = report.name or "(no mutant)"
        say(f"{name:44} {report.outcome.value:10} {report.seconds:6.2f} s  {report.detail}")
        if report.output:
            say(report.output[-OUTPUT_CHARACTERS_MAX:])
    if path is not None:
        Path(path).write_text(json.dumps([report.as_json() for report in reports]))
    bad = [report for report in reports if not report.is_good]
    say(f"{len(reports) - len(bad)} as they should be, {len(bad)} not")
    return 1 if bad else 0


def markdown_table(mutants: Sequence[Mutant], kills: dict[str, Kill]) -> str:
    """The documentation's table."""
    lines = ["| # | bug | rule that keeps it away | in | test that notices | simulator |", "|---|---|---|---|---|---|"]
    for mutant in mutants:
        number = f"{mutant.number}" if mutant.source is Source.BUG else f"J{mutant.number}"
        modules = "<br>".join(f"`{module}`" for module in mutant.modules)
        tests = "<br>".join(f"`{test.partition('::')[2]}`" for test in mutant.tests)
        kill = kills.get(mutant.name)
        by = f"seed {kill.seed}, after {kill.simulated_seconds:g} s" if kill is not None else ""
        lines.append(f"| {number} | {mutant.bug} | {mutant.rule} | {modules} | {tests} | {by} |")
    return "\n".join(lines)
