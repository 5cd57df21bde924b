"""One long scripted life of a store, crashed ahead of every call that changes something.

The script appends, rolls segments, replaces a suffix over three segments, moves starts, installs a snapshot, creates
and removes groups, and rolls and recycles journal files. Each crash is tried as a power cut in the strictest form, as
power cuts that let a random part through, and as a kill.
"""

import random

import pytest

from tests.store.model import Bench, Observed, check_recovered
from tests.store.support import open_store
from tests.support.fake_files import MUTATING, FakeFileSystem


def script(bench: Bench) -> None:
    bench.create(1)
    bench.append(1, 3)
    bench.housekeep()
    bench.create(2)
    bench.set_hard_state(1, 2)
    # Several segments of group 1, a batch that needs one of its own, both groups in one round.
    for _ in range(6):
        bench.append(1, 8, value_bytes=200)
    bench.append(1, 1, value_bytes=6_000)
    entries, after = bench.append_entries(2, 2)
    bench.round(entries, after)
    bench.housekeep()
    # A conflicting suffix over three segments, at first with a lower term above it, as in figure 8 of the Raft paper.
    bench.set_hard_state(1, 4)
    bench.append(1, 4, term=4)
    bench.append(1, 2, index=20, value_bytes=300, term=3)
    bench.append(1, 8, value_bytes=200)
    bench.housekeep()
    # Rounds whose batches are not in their segments yet when housekeeping runs.
    made = bench.begin(*bench.append_entries(1, 4))
    bench.write(made)
    bench.housekeep()
    bench.settle(made)
    # Retention, twice; a snapshot that replaces the log; life after it.
    assert bench.retain(1, 9_000)
    bench.housekeep()
    bench.append(1, 10, value_bytes=200)
    assert bench.retain(1, 1)
    bench.install_snapshot(2, 5)
    bench.append(2, 3)
    bench.housekeep()
    # Removal, and the same group again.
    bench.create(3)
    bench.append(3, 2)
    bench.remove(3)
    bench.create(3)
    bench.append(3, 1)
    bench.remove(2)
    bench.housekeep()
    # Enough rounds to roll and recycle journal files.
    for _ in range(3):
        for _ in range(10):
            bench.append(1, 1, value_bytes=100)
        bench.append(1, 3, value_bytes=3_000)
        bench.housekeep()
    made = bench.begin([], bench.copy())
    bench.write(made)
    bench.settle(made)


def test_the_script_ends_with_what_it_promised_and_uses_every_kind_of_call() -> None:
    files = FakeFileSystem()
    bench = Bench(files)

    script(bench)

    bench.check()
    assert {call.operation for call in files.calls} >= MUTATING - {"rmdir"}
    numbers = {int(name.rsplit("/", 1)[1]) for name in files.tree("/data/journal")}
    assert min(numbers) > 2, "journal files were recycled"


def endings(files: FakeFileSystem, seed: int) -> list[FakeFileSystem]:
    return [files.crash(None), files.crash(random.Random(seed)), files.kill()]


def collect() -> list[tuple[int, list[FakeFileSystem], list[Observed]]]:
    """Run the script once; ahead of each call that changes something, note what a crash would leave."""
    files = FakeFileSystem()
    bench: Bench | None = None
    crashes: list[tuple[int, list[FakeFileSystem], list[Observed]]] = []

    def before_call(operation: str, path: str) -> None:
        if operation in MUTATING and bench is not None:
            number = len(crashes)
            crashes.append((number, endings(files, number), bench.snapshot()))

    bench = Bench(files)
    files.before_call = before_call
    script(bench)
    return crashes


@pytest.fixture(scope="module")
def crashes() -> list[tuple[int, list[FakeFileSystem], list[Observed]]]:
    return collect()


PARTS = 4


@pytest.mark.parametrize("part", range(PARTS))
def test_a_crash_ahead_of_any_call_loses_nothing_that_was_promised(
    crashes: list[tuple[int, list[FakeFileSystem], list[Observed]]], part: int
) -> None:
    assert len(crashes) > 200
    for number, after, allowed in crashes[part::PARTS]:
        for kind, ending in enumerate(after):
            try:
                check_recovered(ending.kill(), allowed)
            except AssertionError as error:
                raise AssertionError(f"crash {number}, ending {kind}: {error}") from error


@pytest.mark.parametrize("part", range(PARTS))
def test_a_recovery_that_is_cut_anywhere_is_repeated(
    crashes: list[tuple[int, list[FakeFileSystem], list[Observed]]], part: int
) -> None:
    # A few crashes, and each of their endings once; in each, recovery is cut ahead of each of its own calls.
    chosen = crashes[5 + 29 * part :: 120]
    assert len(chosen) >= 1
    for number, after, allowed in chosen:
        for kind, ending in enumerate(after):
            for cut, files in enumerate(cut_recoveries(ending, number)):
                try:
                    check_recovered(files, allowed)
                except AssertionError as error:
                    raise AssertionError(f"crash {number}, ending {kind}, cut {cut}: {error}") from error


def cut_recoveries(files: FakeFileSystem, seed: int) -> list[FakeFileSystem]:
    """What is left if recovery itself is cut: ahead of every call, in every ending."""
    files = files.kill()
    left: list[FakeFileSystem] = []

    def before_call(operation: str, path: str) -> None:
        if operation in MUTATING:
            left.extend(endings(files, seed + len(left)))

    files.before_call = before_call
    open_store(files)
    return left
