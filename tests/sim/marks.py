"""Which marked branches of the production code do simulated runs reach? `python -m tests.sim.marks --count 16`.

For: CI, which prints what was not reached, and whoever adds a branch. Must not know: what a branch is for. The one
idea: production code holds no hooks; a branch is marked by a comment, `# reachable: what it is`, above its first line,
and coverage, which is run for a few seeds only as it costs two thirds of the speed, says whether that line ran.
"""

import argparse
import re
import secrets
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import coverage

ROOT = Path(__file__).parents[2]
ROOMS = ("logd/raft", "logd/replica", "logd/store")
_MARK = re.compile(r"^\s*# reachable: (?P<name>.+)$")


class Mark(NamedTuple):
    """A marked branch."""

    path: str
    line: int
    """The first line of code below the mark."""
    name: str


def marks_in(rooms: Iterable[str] = ROOMS) -> Iterator[Mark]:
    """Every mark in the sources of these rooms, in their order."""
    for room in rooms:
        for path in sorted((ROOT / room).rglob("*.py")):
            lines = path.read_text("utf-8").splitlines()
            for number, text in enumerate(lines):
                if found := _MARK.match(text):
                    code = next(
                        below for below in range(number + 1, len(lines)) if not lines[below].lstrip().startswith("#")
                    )
                    yield Mark(str(path), code + 1, found["name"])


def run(seeds: Iterable[int], seconds: float) -> tuple[list[Mark], int]:
    """Simulate, and return the marks that were not reached, and how many runs failed."""
    measured = coverage.Coverage(data_file=None, config_file=False, source=[str(ROOT / room) for room in ROOMS])
    measured.start()
    # Imported only now, so that what runs while importing is seen too.
    from tests.sim.cluster import Options, simulate

    failures = 0
    try:
        for seed in seeds:
            result = simulate(Options(seed, seconds))
            if result.failure:
                failures += 1
                sys.stdout.write(f"{result.options.command()}\n")
    finally:
        measured.stop()
    data = measured.get_data()
    reached = {path: set(data.lines(path) or ()) for path in data.measured_files()}
    return [mark for mark in marks_in() if mark.line not in reached.get(mark.path, ())], failures


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 if no run failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.marks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=16, help="so many runs")
    parser.add_argument("--from", dest="first", type=int, help="the first seed (default: a random one)")
    parser.add_argument("--seconds", type=float, default=60.0, help="simulated seconds of each run")
    options = parser.parse_args(arguments)
    first = options.first if options.first is not None else secrets.randbelow(1 << 48)
    missed, failures = run(range(first, first + options.count), options.seconds)
    total = sum(1 for _ in marks_in())
    sys.stdout.write(
        f"{options.count} runs from seed {first}: {total - len(missed)} of {total} marked branches of "
        f"{', '.join(ROOMS)} reached, {failures} failed\n"
    )
    for mark in missed:
        sys.stdout.write(f"not reached: {mark.name} ({Path(mark.path).relative_to(ROOT)}:{mark.line})\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
