"""What the store costs over the fake file system: the budget of whoever simulates whole clusters on it.

It must not know the simulator: it drives one store by hand, as a shell does. The one idea: the simulator has to get
through 20 simulated seconds in one CPU second, so of each simulated second (60 to 90 rounds over three stores) the
store and the fake may take half: 25 ms, about 300 µs for each round with its housekeeping.

`python -m bench.profile_store_fake [--rounds N] [--profile]` prints µs per round, per recovery and per crash, by
thread time; `--profile` adds where they go. No bar: the machine decides. The fake is a test's: it needs the checkout.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import random
import sys
import time

from logd.store.format import HardState, LogEnd
from logd.store.round import Append, RoundEntry, SetHardState, SetStart
from logd.store.store import Store
from tests.store.support import (
    DIRECTORY,
    NODE,
    SIMULATED,
    add_group,
    do,
    end_of,
    make_batch,
    make_room,
    open_store,
)
from tests.support.fake_files import FakeFileSystem
from wire.record import StampedBatch

GROUPS = 3
VALUE_BYTES = 100
# What a simulated minute would retain: enough that segments are given up all the time.
RETAINED_BYTES = 256 << 10
WARM_UP_ROUNDS = 200


class Load:
    """One store that takes a batch for one of its groups in each round, and does its housekeeping."""

    def __init__(self, files: FakeFileSystem) -> None:
        self.files = files
        self.store = open_store(files, SIMULATED)
        self.spent: dict[str, float] = {}
        self.rounds = 0

    def timed(self, name: str, since: float) -> float:
        now = time.thread_time()
        self.spent[name] = self.spent.get(name, 0.0) + now - since
        return now

    def batch(self, before: LogEnd) -> StampedBatch:
        return make_batch(before, records=1, value_bytes=VALUE_BYTES, salt=self.rounds)

    def round(self) -> None:
        """One round as a shell drives it; every fourth also says what is committed, every 64th retains."""
        store = self.store
        group = self.rounds % GROUPS + 1
        log = store.groups[group]
        batch = self.batch(log.end)
        self.rounds += 1
        now = time.thread_time()
        make_room(log, [batch])
        now = self.timed("space_for", now)
        entries: list[RoundEntry] = [Append(group, batch)]
        if self.rounds % 4 == 0:
            entries.insert(0, SetHardState(group, HardState(1, NODE, log.end.index)))
        made = store.prepare_round(entries)
        now = self.timed("prepare_round", now)
        made.write()
        now = self.timed("write", now)
        made.apply_durable()
        now = self.timed("apply_durable", now)
        made.settle()
        made.apply_written()
        now = self.timed("settle, apply_written", now)
        while (job := store.next_housekeeping()) is not None:
            do(job)
        now = self.timed("housekeeping", now)
        if self.rounds % 64 < GROUPS:
            self.retain(group)
            self.timed("retention", now)
        assert log.written == end_of(batch)

    def retain(self, group: int) -> None:
        log = self.store.groups[group]
        boundary = log.retention_boundary(0, RETAINED_BYTES)
        if boundary is None:
            return
        start = log.start._replace(
            index=boundary.index, term=boundary.term, offset=boundary.next_offset, chain=boundary.chain
        )
        do(log.prepare_start(start))
        made = self.store.prepare_round([SetStart(group, start)])
        made.write()
        made.apply_durable()
        made.settle()
        made.apply_written()


def main(arguments: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.profile_store_fake", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3_000)
    parser.add_argument("--profile", action="store_true", help="also print where the time goes")
    options = parser.parse_args(arguments)
    load = Load(FakeFileSystem(keeps_calls=False))
    for group in range(1, GROUPS + 1):
        add_group(load.store, group)
    for _ in range(WARM_UP_ROUNDS):
        load.round()
    load.spent.clear()
    profile = cProfile.Profile() if options.profile else None
    if profile is not None:
        profile.enable()
    for _ in range(options.rounds):
        load.round()
    if profile is not None:
        profile.disable()
    print(f"{options.rounds} rounds, {len(load.files.tree(DIRECTORY))} names, {load.files.used_bytes() >> 10} KiB\n")
    print("| step | µs per round |\n|---|---|")
    for name, seconds in load.spent.items():
        print(f"| {name} | {seconds / options.rounds * 1e6:.0f} |")
    print(f"| all | {sum(load.spent.values()) / options.rounds * 1e6:.0f} |")
    measure_crashes(load, profile)
    if profile is not None:
        pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(35)


def measure_crashes(load: Load, profile: cProfile.Profile | None) -> None:
    """Crash and recover at different distances from the last table."""
    spent = {"crash": 0.0, "recovery": 0.0}
    count = 20
    for number in range(count):
        for _ in range(17):
            load.round()
        if profile is not None:
            profile.enable()
        now = time.thread_time()
        files = load.files.crash(random.Random(number))
        spent["crash"] += time.thread_time() - now
        now = time.thread_time()
        store: Store = open_store(files, SIMULATED)
        spent["recovery"] += time.thread_time() - now
        if profile is not None:
            profile.disable()
        assert store.groups.keys() == load.store.groups.keys()
        load.files, load.store = files, store
    print(f"\ncrash {spent['crash'] / count * 1e3:.2f} ms, recovery {spent['recovery'] / count * 1e3:.2f} ms")


if __name__ == "__main__":
    main(sys.argv[1:])
