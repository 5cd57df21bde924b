"""Mutants against the simulator alone: which seed notices, and after how many simulated seconds.

For: `python -m tests.mutants --by-simulator`. Must not know: what the simulator checks. The one idea: a seed kills a
mutant if it fails with it and passes without; the first such seed is kept in `kills.json`, and a later run begins with
it, so that a simulator that became blind is noticed at once.
"""

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, NamedTuple

from tests.mutants.hook import VARIABLE, install_from_environment
from tests.mutants.mutant import ROOT, Mutant, StaleMutant

KILLS: Final = Path(__file__).with_name("kills.json")
"""By mutant: the seed that kills it."""

REAL_SECONDS_MAX: Final = 300.0
"""For one seed: a bug may well make a cluster spin."""

NICENESS: Final = 10
"""This takes long, and nobody waits for it."""

VERDICTS: Final = (
    "Violation",
    "AssertionError",
    # The code's own alarms.
    "SafetyViolation",
    "WrongEntry",
    "InvalidChange",
    "CorruptBatch",
    "JournalLost",
)
"""How a run ends that has noticed something. A `TypeError` notices a broken mutant."""


@dataclass(frozen=True, slots=True)
class Kill:
    """A seed that kills a mutant."""

    seed: int
    simulated_seconds: float
    """Of the run, until it failed."""
    seeds_tried: int
    """How many it took when it was found."""
    finding: str
    """The simulator's line about it."""


def read_kills() -> dict[str, Kill]:
    """What is known; empty if nothing was recorded."""
    if not KILLS.exists():
        return {}
    return {name: Kill(**fields) for name, fields in json.loads(KILLS.read_text()).items()}


def write_kills(kills: dict[str, Kill]) -> None:
    """Keep it, in the order of names, so that differences can be read."""
    fields = {name: asdict(kill) for name, kill in sorted(kills.items())}
    KILLS.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n")


class Seen(NamedTuple):
    """What became of one seed."""

    seed: int
    failure: str
    """Empty if it passed."""
    simulated_seconds: float

    @property
    def is_verdict(self) -> bool:
        return self.failure.partition(":")[0] in VERDICTS


def _child(name: str, seeds: Sequence[int], seconds: float, answers: Connection) -> None:
    """Run seeds in this process, which has imported nothing of logd yet, up to the first that fails."""
    os.nice(NICENESS)
    os.chdir(ROOT)
    os.environ[VARIABLE] = name
    finder = install_from_environment()
    from tests.sim.cluster import Options, simulate

    assert finder is None or finder.is_applied, "the simulator does not import what the mutant changes"
    for seed in seeds:
        result = simulate(Options(seed, seconds))
        answers.send(Seen(seed, result.failure, result.simulated_us / 1e6))
        if result.failure:
            return


def run_seeds(name: str, seeds: Sequence[int], seconds: float) -> Iterator[Seen]:
    """Seeds with a mutant ("" for none), one after the other, up to the first that fails. In a process of their own."""
    present = [module for module in sys.modules if module.partition(".")[0] == "logd"]
    assert not present, f"{present[0]} was imported before any mutant"
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(name, seeds, seconds, there))
    process.start()
    there.close()
    try:
        for seed in seeds:
            try:
                if not here.poll(REAL_SECONDS_MAX):
                    yield Seen(seed, f"Violation: no end after {REAL_SECONDS_MAX:.0f} s", 0.0)
                    return
                seen: Seen = here.recv()
            except EOFError:
                yield Seen(seed, "the process of the simulator died", 0.0)
                return
            yield seen
            if seen.failure:
                return
    finally:
        process.kill()
        process.join()
        here.close()


class SimulatorBroken(Exception):
    """Runs end in ways that are no verdict: nothing can be said about any mutant."""


class Search:
    """Looks for seeds that kill. Remembers which seeds fail without any mutant: those prove nothing."""

    def __init__(self, seconds: float, say: Callable[[str], None]) -> None:
        self._seconds = seconds
        self._say = say
        self._without: dict[int, str] = {}

    def failure_without(self, seed: int) -> str:
        """How a seed fails without a mutant; empty if it passes."""
        if seed not in self._without:
            (seen,) = run_seeds("", [seed], self._seconds)
            self._without[seed] = seen.failure
            if seen.failure:
                self._say(f"  seed {seed} fails without a mutant: {seen.failure[:160]}")
        return self._without[seed]

    def find(self, mutant: Mutant, seeds: Sequence[int]) -> Kill | None:
        """The first seed that kills a mutant; None if none does. Raises SimulatorBroken."""
        left = list(seeds)
        tried = 0
        while left:
            for seen in run_seeds(mutant.name, left, self._seconds):
                tried += 1
                left.remove(seen.seed)
            if not seen.failure:
                break
            if not seen.is_verdict:
                if self.failure_without(seen.seed) == seen.failure:
                    raise SimulatorBroken(f"seed {seen.seed} ends with {seen.failure}, with or without a mutant")
                self._say(f"  seed {seen.seed} ends with {seen.failure[:160]}")
            elif not self.failure_without(seen.seed):
                return Kill(seen.seed, seen.simulated_seconds, tried, seen.failure[:200])
        return None


def run_by_simulator(
    mutants: Sequence[Mutant], first_seed: int, seeds: int, seconds: float, say: Callable[[str], None]
) -> int:
    """Try seeds until one kills, for every mutant; the file is written after each. Returns the exit code."""
    search = Search(seconds, say)
    survivors = 0
    for mutant in mutants:
        try:
            mutant.check()
        except StaleMutant as error:
            survivors += 1
            say(f"{mutant.name:44} stale: {error}")
            continue
        known = read_kills().get(mutant.name)
        wanted = list(range(first_seed, first_seed + seeds))
        if known is not None:
            wanted = [known.seed, *(seed for seed in wanted if seed != known.seed)]
        found = search.find(mutant, wanted)
        # Read again: other runs may write it too.
        kills = read_kills()
        if found is None:
            survivors += 1
            kills.pop(mutant.name, None)
            say(f"{mutant.name:44} survives {len(wanted)} seeds")
        else:
            if known is not None and known.seed == found.seed:
                found = replace(found, seeds_tried=known.seeds_tried)
            kills[mutant.name] = found
            say(f"{mutant.name:44} seed {found.seed} after {found.simulated_seconds:.1f} s: {found.finding[:120]}")
        write_kills(kills)
    say(f"{len(mutants) - survivors} of {len(mutants)} killed by the simulator alone")
    return 1 if survivors else 0
