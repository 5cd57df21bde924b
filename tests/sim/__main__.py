"""Runs the simulator: `python -m tests.sim --seed N`, or many seeds at once.

For: people with a seed, `make sim`, and CI. Must not know: what is simulated. The one idea: a failure is one line, and
that line is the command that shows it again.
"""

import argparse
import itertools
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from tests.sim import ledger, reachable
from tests.sim.cluster import CLASSES, Options, Result, simulate
from tests.sim.shrink import shrink

SECONDS_DEFAULT = 60.0
FAILURES_SHRUNK_MAX = 3
MARKED = (Path(__file__).parent,)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 if no run failed."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.seeds is None and options.count is None and options.for_seconds is None and options.seed is not None:
        return _one(parser, options)
    return _many(parser, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description="Simulate clusters under faults.")
    parser.add_argument("--seed", type=int, help="one run")
    parser.add_argument("--seeds", metavar="A..B", help="runs of all seeds from A to B, both included")
    parser.add_argument("--count", type=int, help="so many runs that are not vacuous")
    parser.add_argument("--from", dest="first", type=int, help="the first seed for --count (default: a random one)")
    parser.add_argument("--for", dest="for_seconds", type=float, metavar="SECONDS", help="runs for so long")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS_DEFAULT, help="simulated seconds with faults, each run"
    )
    parser.add_argument("--nodes", type=int, help="instead of what the seed draws")
    parser.add_argument("--groups", type=int, help="instead of what the seed draws")
    parser.add_argument(
        "--faults", help="classes of faults, with commas, `none` or `all`, instead of what the seed draws"
    )
    parser.add_argument("--steps", type=int, help="end after so many events")
    parser.add_argument("--trace", action="store_true", help="print every event")
    parser.add_argument("--shrink", action="store_true", help="reduce a failing run to the smallest that still fails")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--ledger", type=Path, help="append what came out to this file")
    parser.add_argument("--marks", action="store_true", help="say which reachable() marks were not reached")
    return parser


def _options(parser: argparse.ArgumentParser, options: argparse.Namespace, seed: int) -> Options:
    classes: tuple[str, ...] | None = None
    if options.faults is not None:
        classes = {"none": (), "all": CLASSES}.get(options.faults) or ()
        if options.faults not in ("none", "all"):
            classes = tuple(options.faults.split(","))
        for name in classes:
            if name not in CLASSES:
                parser.error(f"no class of faults {name!r}: there are {', '.join(CLASSES)}")
    return Options(seed, options.seconds, options.nodes, options.groups, classes, options.steps)


def _say(line: str, out: TextIO | None = None) -> None:
    out = out or sys.stdout
    out.write(f"{line}\n")
    out.flush()


def _one(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    options = _options(parser, arguments, arguments.seed)
    begin = time.process_time()
    result = simulate(options, sys.stdout if arguments.trace else None)
    spent = time.process_time() - begin
    if result.failure and arguments.shrink:
        smallest = shrink(result, lambda attempt: _say(f"smaller: {attempt.command()}", sys.stderr))
        result = simulate(smallest)
    if result.failure:
        _say(result.where, sys.stderr)
        _say_failure(result)
        return 1
    _say_success(result, spent)
    return 0


def _say_success(result: Result, spent: float) -> None:
    simulated = result.simulated_us / 1e6
    faults = " ".join(f"{name}:{count}" for name, count in result.faults.items())
    _say(
        f"seed {result.options.seed}: {simulated:.0f} s simulated in {spent:.2f} s ({simulated / spent:.0f} to 1), "
        f"{result.events} events, {result.elections} elections, {result.commits} commits, "
        f"{result.acknowledged} acknowledged, {result.reads} reads; {faults or 'no faults'}; trace {result.digest[:16]}"
        + ("" if result.is_complete else "; ended early, not judged")
        + (f"; vacuous: no {', no '.join(result.vacuous)}" if result.vacuous else "")
    )


def _say_failure(result: Result) -> None:
    _say(f"FAILED {result.failure}", sys.stderr)
    # One line, to be pasted.
    _say(result.options.command())


def _seeds(options: argparse.Namespace) -> Iterator[int]:
    if options.seeds is not None:
        first, _, last = options.seeds.partition("..")
        yield from range(int(first), int(last or first) + 1)
        return
    first = options.first if options.first is not None else secrets.randbelow(1 << 48)
    yield from itertools.count(first)


def _run(options: Options) -> tuple[Result, Counter[str], float]:
    """In a process of the pool."""
    reachable.counts.clear()
    begin = time.process_time()
    result = simulate(options)
    return result, Counter(reachable.counts), time.process_time() - begin


@dataclass(slots=True)
class _Sum:
    """What many runs came to."""

    runs: int = 0
    vacuous: int = 0
    simulated_us: int = 0
    spent_seconds: float = 0.0
    failures: list[Result] = field(default_factory=list)
    marks: Counter[str] = field(default_factory=Counter)

    @property
    def counted(self) -> int:
        return self.runs - self.vacuous

    def add(self, result: Result, marks: Counter[str], spent_seconds: float) -> None:
        self.runs += 1
        self.simulated_us += result.simulated_us
        self.spent_seconds += spent_seconds
        self.marks += marks
        if result.failure:
            self.failures.append(result)
            _say_failure(result)
        elif result.vacuous:
            self.vacuous += 1


def _many(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    first_seed, seeds = _peek(_seeds(arguments))
    total = _Sum()
    end = None if arguments.for_seconds is None else time.monotonic() + arguments.for_seconds
    jobs = max(1, arguments.jobs)
    waiting: set[Future[tuple[Result, Counter[str], float]]] = set()
    with ProcessPoolExecutor(max_workers=jobs) as pool:
        while True:
            # Two for each process, so that none waits for this one.
            is_over = end is not None and time.monotonic() >= end
            if arguments.count is not None:
                # What is under way may turn out vacuous, and then others take its place: within reason.
                is_over = total.counted + len(waiting) >= arguments.count or total.runs >= 4 * arguments.count
            for seed in () if is_over else itertools.islice(seeds, 2 * jobs - len(waiting)):
                waiting.add(pool.submit(_run, _options(parser, arguments, seed)))
            if not waiting:
                break
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                result, marks, spent_seconds = future.result()
                total.add(result, marks, spent_seconds)
                if arguments.ledger is not None:
                    ledger.append(arguments.ledger, result, spent_seconds)
    _say(
        f"{total.counted} runs from seed {first_seed}: {total.simulated_us / 3.6e9:.2f} simulated hours, "
        f"{total.simulated_us / 1e6 / max(total.spent_seconds, 1e-9):.0f} simulated seconds for one of the processor, "
        f"{total.vacuous} more vacuous, {len(total.failures)} failed"
    )
    if arguments.marks:
        for name in reachable.not_reached(reachable.marks_in(MARKED), total.marks):
            _say(f"not reached: {name}")
    if arguments.shrink:
        for failure in total.failures[:FAILURES_SHRUNK_MAX]:
            _say(f"smallest: {shrink(failure).command()}")
    return 1 if total.failures else 0


def _peek(seeds: Iterator[int]) -> tuple[int | None, Iterator[int]]:
    first = next(seeds, None)
    return first, (seeds if first is None else itertools.chain((first,), seeds))


if __name__ == "__main__":
    sys.exit(main())
