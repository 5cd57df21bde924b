"""Mutants against the simulator alone: which seed notices, and after how many simulated seconds.

For: `python -m tests.mutants --by-simulator`. Must not know: what the simulator checks. The one idea: a seed is a
process (`python -m tests.sim --seed N` with LOGD_MUTANT set), and what it finds is kept in `kills.json`, so that a
later run begins with the seed that killed before.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tests.mutants.hook import VARIABLE
from tests.mutants.mutant import ROOT, Mutant

KILLS: Final = Path(__file__).with_name("kills.json")
"""By mutant: the seed that kills it."""

REAL_SECONDS_MAX: Final = 600.0
"""For one seed: a bug may well make a cluster spin."""

PASSES: Final = 0
FINDS: Final = 1


@dataclass(frozen=True, slots=True)
class Kill:
    """A seed that kills a mutant."""

    seed: int
    simulated_seconds: float
    finding: str
    """The simulator's first line about it."""


def read_kills() -> dict[str, Kill]:
    """What is known; empty if nothing was recorded."""
    if not KILLS.exists():
        return {}
    return {name: Kill(**fields) for name, fields in json.loads(KILLS.read_text()).items()}


def write_kills(kills: dict[str, Kill]) -> None:
    """Keep it, in the order of names, so that differences can be read."""
    fields = {name: asdict(kill) for name, kill in sorted(kills.items())}
    KILLS.write_text(json.dumps(fields, indent=2) + "\n")


class SimulatorBroken(Exception):
    """The simulator ended in a way that is no verdict."""


def run_seed(mutant: str, seed: int, seconds: int) -> Kill | None:
    """One seed with a mutant ("" for none); None if the simulator found nothing. Raises SimulatorBroken."""
    command = [sys.executable, "-m", "tests.sim", "--seed", str(seed), "--seconds", str(seconds)]
    environment = {**os.environ, VARIABLE: mutant}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=REAL_SECONDS_MAX, check=False
        )
    except subprocess.TimeoutExpired:
        return Kill(seed, 0.0, f"no end after {REAL_SECONDS_MAX:.0f} s")
    if done.returncode == PASSES:
        return None
    text = done.stdout + done.stderr
    if done.returncode != FINDS or not text.strip():
        raise SimulatorBroken(f"{' '.join(command)} ended with {done.returncode}:\n{text}")
    return Kill(seed, _simulated_seconds(text), _finding(text))


def _simulated_seconds(text: str) -> float:
    found = re.search(r"\bat (\d+(?:\.\d+)?) (?:simulated )?s\b", text)
    return float(found[1]) if found else 0.0


def _finding(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200]


def _seeds(known: Kill | None, first_seed: int, seeds: int) -> Iterator[int]:
    if known is not None:
        yield known.seed
    for seed in range(first_seed, first_seed + seeds):
        if known is None or seed != known.seed:
            yield seed


def run_by_simulator(
    mutants: Sequence[Mutant], first_seed: int, seeds: int, seconds: int, say: Callable[[str], None]
) -> int:
    """Try seeds until one kills, for every mutant; the table is written after each. Returns the exit code."""
    kills = read_kills()
    survivors = 0
    for mutant in mutants:
        mutant.check()
        tried = 0
        found = None
        for seed in _seeds(kills.get(mutant.name), first_seed, seeds):
            tried += 1
            found = run_seed(mutant.name, seed, seconds)
            if found is not None:
                break
        if found is None:
            survivors += 1
            kills.pop(mutant.name, None)
            say(f"{mutant.name:44} survived {tried} seeds")
        else:
            kills[mutant.name] = found
            say(f"{mutant.name:44} seed {found.seed} ({tried} tried): {found.finding}")
        write_kills(kills)
    say(f"{len(mutants) - survivors} of {len(mutants)} killed by the simulator alone")
    return 1 if survivors else 0
