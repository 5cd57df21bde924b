"""What a replica among several needs of its log: suffixes and logs replaced, damage repaired, snapshots, restarts.

Most tests run a script and crash it ahead of each call that changes something, in three endings: the strictest power
cut, a random one, and a kill.
"""

import random
from collections.abc import Callable, Iterator

import pytest

from logd.store.errors import JournalFull, WrongEntry
from logd.store.events import DamagedStart
from logd.store.format import INITIAL_HARD_STATE, BatchEntry, Floor, HardState, LogEnd, Start
from logd.store.jobs import Barrier
from logd.store.log import CutJob, Log
from logd.store.round import Append, RoundEntry, SetHardState, SetStart
from logd.store.store import Store
from tests.store.model import Bench, ModelLog, Observed, check_recovered, observed_store
from tests.store.support import (
    NODE,
    SMALL,
    add_group,
    append,
    commit,
    do,
    end_of,
    housekeep,
    joined,
    make_batch,
    make_batches,
    make_room,
    new_start,
    open_store,
    stored,
)
from tests.store.test_recovery import damage_both, heads, journal
from tests.support.fake_files import MUTATING, FakeFileSystem
from tests.support.store_scan import DurableEntry, durable_entries
from wire.errors import CorruptBatch
from wire.record import StampedBatch, split_batches

GROUP = "/data/groups/00000000000000000001"


def crashes(files: FakeFileSystem, script: Callable[[], None]) -> Iterator[tuple[str, FakeFileSystem]]:
    """Run a script, and give what each crash ahead of each of its mutating calls would leave, as it goes."""
    left: list[tuple[str, FakeFileSystem]] = []

    def before_call(operation: str, path: str) -> None:
        if operation in MUTATING:
            number = len(left)
            name = f"ahead of {operation} {path}"
            left.append((f"strict, {name}", files.crash(None)))
            left.append((f"seed {number}, {name}", files.crash(random.Random(number))))
            left.append((f"kill, {name}", files.kill()))

    files.before_call = before_call
    script()
    files.before_call = None
    assert left
    return iter(left)


def crash_everywhere(bench: Bench, script: Callable[[], None]) -> None:
    """Whatever the moment of the crash, what comes back is what was promised, and it goes on."""
    allowed: list[list[Observed]] = []
    files = bench.files

    def noted() -> None:
        inner = files.before_call

        def before_call(operation: str, path: str) -> None:
            if operation in MUTATING:
                allowed.extend([bench.snapshot()] * 3)
            assert inner is not None
            inner(operation, path)

        files.before_call = before_call
        script()

    for (name, ending), promised in zip(crashes(files, noted), allowed, strict=True):
        try:
            check_recovered(ending, promised)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


# --- (a) A suffix that is replaced ------------------------------------------------------------------------------------


def test_a_suffix_over_several_segments_is_replaced_by_a_lower_term_while_rounds_are_unsettled() -> None:
    bench = Bench(FakeFileSystem())
    bench.create(1)
    bench.set_hard_state(1, 7)
    bench.append(1, 4, term=2)
    for _ in range(4):
        bench.append(1, 8, value_bytes=200, term=5)
        bench.housekeep()
    assert len(bench.log(1).segments) > 3

    def script() -> None:
        before = bench.begin(*bench.append_entries(1, 2, term=5))
        bench.write(before)
        replacing = bench.begin(*bench.append_entries(1, 3, index=6, term=3, value_bytes=300))
        bench.write(replacing)
        following = bench.begin(*bench.append_entries(1, 1, term=7))
        bench.write(following)
        for made in (before, replacing, following):
            bench.settle(made)
        bench.append(1, 8, value_bytes=200)
        bench.housekeep()

    crash_everywhere(bench, script)
    bench.check()
    assert bench.durable[1].end.index == 17


def test_a_suffix_is_replaced_again_before_the_first_replacement_is_settled() -> None:
    bench = Bench(FakeFileSystem())
    bench.create(1)
    bench.set_hard_state(1, 9)
    for _ in range(4):
        bench.append(1, 8, value_bytes=200, term=5)
        bench.housekeep()

    def script() -> None:
        first = bench.begin(*bench.append_entries(1, 10, index=20, term=6, value_bytes=200))
        bench.write(first)
        second = bench.begin(*bench.append_entries(1, 2, index=5, term=8))
        bench.write(second)
        bench.settle(first)
        bench.settle(second)
        bench.append(1, 2)

    crash_everywhere(bench, script)
    bench.check()


def test_a_place_that_was_found_before_another_replacement_is_not_used() -> None:
    store = open_store(FakeFileSystem())
    log = add_group(store, 1)
    batches = make_batches(log.end, 9)
    append(store, 1, batches)
    lower = make_batches(end_of(batches[2]), 4, salt=1)
    make_room(log, lower)
    stale = log.space_for(100, index=6)
    assert isinstance(stale, CutJob)
    stale.run()
    commit(store, [Append(1, batch) for batch in lower])
    stale.apply()

    replacing = make_batches(end_of(lower[1]), 2, salt=2)
    append(store, 1, replacing)

    assert stored(log) == joined([*batches[:3], *lower[:2], *replacing])


# --- (b) A damaged log ------------------------------------------------------------------------------------------------


COUNT = 40


def damaged(*indexes: int, without: str = "") -> tuple[FakeFileSystem, list[StampedBatch]]:
    """A log of several segments that has lost some batches, in the journal and in its segments.

    `without`: a file that is missing besides.
    """
    files = FakeFileSystem()
    store = open_store(files)
    log = add_group(store, 1, term=5)
    batches = make_batches(log.end, COUNT, term=4, value_bytes=200)
    for first in range(0, COUNT, 8):
        append(store, 1, batches[first : first + 8])
    commit(store, [])
    files = files.kill()
    for head in heads(files, 1):
        position = head.batches_position
        for entry in head.entries:
            if isinstance(entry, BatchEntry):
                if entry.index in indexes:
                    files.flip_bit(journal(1), position + 200)
                    files.flip_bit(f"{GROUP}/{entry.place.segment:020d}.log", entry.place.position + 200)
                position += entry.place.length
    if without:
        files.unlink(f"{GROUP}/{without}")
    return files, batches


def is_damaged(log: Log) -> bool:
    assert log.floor is not None or log.damage == ()
    return log.floor is not None


def refill(store: Store, batches: list[StampedBatch], step: int = 8) -> None:
    """Append what a leader sends to a log whose last intact index is told."""
    log = store.groups[1]
    while log.intact_index < batches[-1].header.index:
        following = [batch for batch in batches if batch.header.index > log.intact_index][:step]
        append(store, 1, following)


def check_intact(log: Log, batches: list[StampedBatch]) -> None:
    """What a damaged log holds below its first hole is right, byte by byte."""
    found = []
    index = log.start.index + 1
    while index <= log.intact_index:
        result = log.plan_read_index(index, log.intact_index + 1, 1 << 20).run()
        assert result is not None
        found.append(bytes(result.batches))
        index = result.next_index
    assert b"".join(found) == joined(batches[: log.intact_index])


@pytest.mark.parametrize("indexes", [(12,), (1,), (30, 9, 10), (COUNT,), (COUNT - 1, COUNT)])
def test_a_damaged_log_is_refilled_with_the_same_bytes_and_then_undamaged(indexes: tuple[int, ...]) -> None:
    files, batches = damaged(*indexes)
    store = open_store(files)
    log = store.groups[1]
    assert log.intact_index == min(indexes) - 1
    assert log.floor is not None
    assert (log.floor.index, log.floor.term) == (COUNT, 4)

    refill(store, batches)

    assert not is_damaged(log)
    assert stored(log) == joined(batches)
    again = open_store(files.crash(None)).groups[1]
    assert (again.floor, stored(again)) == (None, joined(batches))


def test_a_crash_while_a_log_is_refilled_keeps_its_floor_until_it_is_reached() -> None:
    files, batches = damaged(12, 30)
    store = open_store(files)
    log = store.groups[1]
    other = add_group(store, 2)
    durable: list[int] = []
    intact = log.intact_index

    def script() -> None:
        nonlocal intact
        inner = files.before_call

        def before_call(operation: str, path: str) -> None:
            if operation in MUTATING:
                durable.extend([intact] * 3)
            assert inner is not None
            inner(operation, path)

        files.before_call = before_call
        while log.intact_index < COUNT:
            following = batches[log.intact_index :][:6]
            make_room(log, following)
            made = store.prepare_round([Append(1, batch) for batch in following])
            made.write()
            intact = following[-1].header.index
            made.apply_durable()
            # Other groups go on meanwhile, and the journal rolls.
            append(store, 2, make_batches(other.end, 1, value_bytes=5_000))
            made.settle()
            made.apply_written()
            housekeep(store)

    floors = set()
    for (name, ending), least in zip(crashes(files, script), durable, strict=True):
        again = open_store(ending).groups[1]
        check_intact(again, batches)
        assert again.intact_index >= least, name
        assert (again.floor is None) == (again.intact_index == COUNT), name
        if again.floor is not None:
            assert (again.floor.index, again.floor.term, again.floor.chain) == (COUNT, 4, batches[-1].header.chain)
            assert again.floor.intact <= again.intact_index
        floors.add(again.floor is None)
        refill(open_store(ending.kill()), batches)
    assert floors == {True, False}


def test_another_suffix_below_the_floor_settles_it_with_an_entry_of_a_later_term() -> None:
    files, batches = damaged(12)
    store = open_store(files)
    log = store.groups[1]
    commit(store, [SetHardState(1, HardState(6, "", 0))])
    conflicting = make_batches(end_of(batches[9]), 2, term=3 + 1, salt=1)

    append(store, 1, conflicting)

    assert log.intact_index == log.end.index == 12
    assert log.floor is not None
    again = open_store(files.crash(None)).groups[1]
    assert again.floor is not None
    assert again.floor.index == COUNT
    assert stored(again) == joined([*batches[:10], *conflicting])

    own = make_batch(log.end, term=6)
    append(store, 1, [own])

    assert not is_damaged(log)
    assert open_store(files.crash(None)).groups[1].floor is None


def test_an_entry_of_a_lower_term_does_not_reach_the_floor_wherever_it_stands() -> None:
    floor = Floor(20, 5, bytes(32), 3)

    reached = [
        floor.is_reached_by(LogEnd(index, term, 0, 0, b"")) for index, term in [(25, 4), (19, 5), (20, 5), (4, 6)]
    ]

    assert reached == [False, False, True, True]


def test_a_hole_that_lost_its_very_file_is_refilled() -> None:
    for first in (1, 9):
        files, batches = damaged(*range(first, first + 8), without=f"{first:020d}.log")
        store = open_store(files)
        log = store.groups[1]
        assert log.intact_index == first - 1
        result = log.plan_read_index(first + 8, first + 9, 1).run()
        assert result is not None
        assert bytes(result.batches) == batches[first + 7].to_bytes()
        again = open_store(files.crash(None)).groups[1]
        assert (again.intact_index, again.floor) == (first - 1, log.floor)

        refill(store, batches)

        assert stored(log) == joined(batches)
        assert log.floor is None


@pytest.mark.parametrize("first", [1, 9, 33])
def test_a_segment_of_which_nothing_is_left_takes_no_other_with_it(first: int) -> None:
    files, batches = damaged(*range(first, first + 8))
    path = f"{GROUP}/{first:020d}.log"
    files.zero_range(path, 0, files.tree(GROUP)[path] or 0)
    for _ in range(3):
        store = open_store(files)
        housekeep(store)
        files = files.crash(None)
        check_intact(store.groups[1], batches)
    store = open_store(files)
    log = store.groups[1]
    assert log.intact_index == first - 1
    if first < 33:
        result = log.plan_read_index(first + 8, COUNT + 1, 1 << 20).run()
        assert result is not None
        assert bytes(result.batches) == joined(batches[first + 7 : first + 15])

    refill(store, batches)

    assert (log.damage, stored(log)) == ((), joined(batches))


def test_damage_that_a_reader_finds_is_repaired_like_damage_that_recovery_found() -> None:
    files, batches = damaged()
    open_store(files).close()
    store = open_store(files)
    log = store.groups[1]
    position = log.segments[1].path, 4096 + 88
    files.flip_bit(*position)
    with pytest.raises(CorruptBatch) as caught:
        log.plan_read_index(9, 12, 1 << 20).run()
    details = caught.value.details

    store.note_damage(1, details["index"], details["next_index"], details["base_offset"], details["next_offset"])

    assert log.floor == Floor(COUNT, 4, batches[-1].header.chain, 8)
    assert log.intact_index == 8
    check_intact(log, batches)
    with pytest.raises(CorruptBatch, match="are damaged here"):
        log.plan_read(details["base_offset"], 1 << 20, 1).run()
    # The next round makes it durable; before it, the next reader would find it again.
    assert open_store(files.crash(None)).groups[1].floor is None
    assert not store.can_write_round()
    with pytest.raises(JournalFull):
        commit(store, [])
    housekeep(store)
    commit(store, [])
    again = open_store(files.crash(None)).groups[1]
    assert again.floor == log.floor
    assert again.intact_index == 8

    refill(store, batches)

    assert not is_damaged(log)
    assert stored(log) == joined(batches)
    assert stored(open_store(files.crash(None)).groups[1]) == joined(batches)


def test_damage_that_is_found_twice_or_in_two_places_is_one_floor() -> None:
    files, batches = damaged()
    store = open_store(files)
    log = store.groups[1]

    for index in (20, 9, 20):
        store.note_damage(1, index, index + 1)

    assert [(damage.first_index, damage.next_index) for damage in log.damage] == [(9, 10), (20, 21)]
    assert log.floor == Floor(COUNT, 4, batches[-1].header.chain, 8)
    for index in (0, COUNT + 1):
        with pytest.raises(WrongEntry):
            store.note_damage(1, index, index + 1)
    housekeep(store)
    append(store, 1, batches[8:15])
    assert (log.damage, log.intact_index) == ((), 15)


# --- (c) A hard state that is lost ------------------------------------------------------------------------------------


def without_hard_state() -> FakeFileSystem:
    """Two groups, of which nobody knows any more what they voted."""
    bench = Bench(FakeFileSystem())
    bench.create(1)
    bench.append(1, 3)
    bench.create(2)
    bench.set_hard_state(1, 9)
    lost = heads(bench.files, 1)[-1]
    bench.append(1, 1, term=9)
    files = bench.files.kill()
    damage_both(files, 1, lost)
    return files


def test_a_lost_hard_state_stays_lost_whatever_else_is_written() -> None:
    files = without_hard_state()
    store = open_store(files)
    log = store.groups[1]
    assert log.hard_state is None
    assert log.known_term == 9

    def check(group: int = 1) -> None:
        for ending in (files.crash(None), files.kill(), files.crash(random.Random(1))):
            assert open_store(ending).groups[group].hard_state is None

    batches = make_batches(log.end, 3, term=12)
    append(store, 1, batches)
    check()
    append(store, 1, make_batches(end_of(batches[0]), 1, term=11))
    check()
    start = log.start._replace(
        index=log.end.index, term=log.end.term, offset=log.end.next_offset, chain=log.end.chain, membership=b"later"
    )
    do(log.prepare_start(start))
    commit(store, [SetStart(1, start)])
    check()
    beyond = start._replace(index=100, term=14, offset=1_000, chain=bytes(32))
    do(log.prepare_start(beyond))
    commit(store, [SetStart(1, beyond, keeps_suffix=False)])
    check()
    # The journal rolls: its table says so too.
    number = store.journal.current.number
    while store.journal.current.number == number:
        append(store, 1, make_batches(log.end, 1, term=14, value_bytes=3_000))
        housekeep(store)
    check()
    check(2)

    commit(store, [SetHardState(1, HardState(15, "", 100))])

    assert open_store(files.crash(None)).groups[1].hard_state == HardState(15, "", 100)
    check(2)


# --- (d) A snapshot that replaces the log -----------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [5, -20])
def test_a_snapshot_replaces_a_log_whole_or_not_at_all(ahead: int) -> None:
    bench = Bench(FakeFileSystem())
    bench.create(1)
    for _ in range(4):
        bench.append(1, 8, value_bytes=200)
        bench.housekeep()

    def script() -> None:
        unsettled = bench.begin(*bench.append_entries(1, 4))
        bench.write(unsettled)
        bench.install_snapshot(1, ahead)
        bench.settle(unsettled)
        bench.append(1, 10, value_bytes=300)
        bench.append(1, 10, value_bytes=300)
        bench.housekeep()

    crash_everywhere(bench, script)
    bench.check()


def beyond(log: Log, end: LogEnd) -> Start:
    return log.start._replace(
        index=end.index, term=end.term, offset=end.next_offset, chain=end.chain, append_timestamp=end.append_timestamp
    )


def replace_damaged(store: Store, start: Start) -> None:
    log = store.groups[1]
    do(log.prepare_start(start))
    hard_state = HardState(start.term, "", start.index) if start.term > 5 else HardState(5, NODE, start.index)
    commit(store, [SetHardState(1, hard_state), SetStart(1, start, keeps_suffix=False)])


@pytest.mark.parametrize(
    ("end", "is_settled"),
    [
        (LogEnd(COUNT + 20, 4, 500, 0, bytes(32)), True),
        (LogEnd(COUNT, 4, 80, 0, bytes(32)), True),
        (LogEnd(20, 6, 40, 0, bytes(32)), True),
        (LogEnd(20, 4, 40, 0, bytes(32)), False),
    ],
)
def test_a_snapshot_repairs_a_damaged_log_if_it_reaches_the_floor(end: LogEnd, is_settled: bool) -> None:
    files, _ = damaged(12, 30)
    store = open_store(files)
    log = store.groups[1]
    start = beyond(log, end)

    endings = list(crashes(files, lambda: replace_damaged(store, start)))
    housekeep(store)

    assert log.damage == ()
    assert (log.start, log.end, log.floor is None) == (start, end, is_settled)
    again = open_store(files.crash(None)).groups[1]
    assert (again.start, again.end, again.floor is None) == (start, end, is_settled)
    starts = set()
    for name, ending in endings:
        recovered = open_store(ending)
        at = recovered.groups[1]
        starts.add(at.start.index)
        if at.start == start:
            assert (at.end, at.floor is None) == (end, is_settled), name
        else:
            assert (at.intact_index, at.floor is not None) == (11, True), name
        append(recovered, 1, make_batches(at.end, 2, term=at.known_term))
        assert open_store(ending.crash(None)).groups[1].end == at.end
    assert starts == {0, end.index}


def test_a_start_that_cannot_be_read_is_written_again_at_its_index() -> None:
    files, batches = damaged()
    files.flip_bit(f"{GROUP}/{0:020d}.start", 70)
    store = open_store(files)
    log = store.groups[1]
    assert not log.is_start_readable
    whole = new_start()._replace(membership=b"of the leader")

    def script() -> None:
        do(log.prepare_start(whole))
        commit(store, [SetStart(1, whole)])
        housekeep(store)

    for name, ending in crashes(files, script):
        again = open_store(ending).groups[1]
        assert again.start.index == 0, name
        assert stored(again) == joined(batches), name
        assert again.start == whole or not again.is_start_readable, name
    store = open_store(files.crash(None))
    assert store.groups[1].start == whole
    assert not [event for event in store.events if isinstance(event, DamagedStart)]
    with pytest.raises(WrongEntry):
        store.groups[1].prepare_start(whole)


# --- (e) A new replica ------------------------------------------------------------------------------------------------


def test_a_new_replica_begins_behind_a_snapshot() -> None:
    bench = Bench(FakeFileSystem())
    bench.create(1)
    start = new_start(2)._replace(index=50, term=3, offset=777, chain=bytes(range(32)), append_timestamp=9_000)

    def script() -> None:
        do(bench.store.create_group(2, start))
        after = bench.copy()
        after[2] = ModelLog(start, INITIAL_HARD_STATE)
        bench.round([SetStart(2, start)], after)
        bench.set_hard_state(2, 4, vote="")
        bench.append(2, 20, value_bytes=300)
        bench.append(2, 20, value_bytes=300)
        bench.append(2, 3, index=60, term=3)
        bench.housekeep()

    crash_everywhere(bench, script)
    bench.check()
    log = bench.log(2)
    assert log.end.index == 62
    assert log.plan_read(777, log.written_next_offset, 1).run() is not None
    with pytest.raises(WrongEntry, match="before the hard state"):
        bench.store.prepare_round([Append(2, make_batch(log.end, term=5))])


# --- (f), (g) What a round may hold -----------------------------------------------------------------------------------


def test_a_run_of_many_batches_for_many_groups_is_one_round() -> None:
    files = FakeFileSystem()
    store = open_store(files)
    logs = [add_group(store, group) for group in (1, 2, 3)]
    runs = [make_batches(log.end, 20, value_bytes=10) for log in logs]
    for log, run in zip(logs, runs, strict=True):
        make_room(log, run)
    entries: list[RoundEntry] = [Append(log.group, batch) for log, run in zip(logs, runs, strict=True) for batch in run]
    syncs = files.take_work().syncs

    made = store.prepare_round(entries)
    made.write()

    assert files.take_work().syncs == 1
    assert syncs
    for ending in (files.crash(None), files.kill()):
        assert [stored(log) for log in open_store(ending).groups.values()] == [joined(run) for run in runs]


def test_a_commit_advances_in_a_round_of_its_own() -> None:
    files = FakeFileSystem()
    store = open_store(files)
    log = add_group(store, 1)
    append(store, 1, make_batches(log.end, 3))
    end = log.end

    commit(store, [SetHardState(1, HardState(1, NODE, 3))])

    assert (log.hard_state, log.end) == (HardState(1, NODE, 3), end)
    again = open_store(files.crash(None)).groups[1]
    assert (again.hard_state, again.end) == (HardState(1, NODE, 3), end)


# --- (h), (i) What a restart reads, and what a check sees -------------------------------------------------------------


def test_a_restart_reads_the_tail_behind_the_commit_and_no_more() -> None:
    files = FakeFileSystem()
    store = open_store(files)
    log = add_group(store, 1)
    batches = make_batches(log.end, 60, value_bytes=200)
    for batch in batches:
        append(store, 1, [batch])
        housekeep(store)
    commit(store, [SetHardState(1, HardState(1, NODE, 55))])
    store.close()
    files.evict_all()
    log = open_store(files).groups[1]
    assert log.hard_state is not None
    files.evict_all()
    files.take_work()

    result = log.plan_read_index(log.hard_state.commit + 1, log.intact_index + 1, 1 << 20).run()

    assert result is not None
    assert [bytes(batch) for batch in split_batches(result.batches)] == [batch.to_bytes() for batch in batches[55:]]
    assert files.take_work().fetched_bytes <= SMALL.segment_bytes_max + 8192


def test_headers_are_told_up_to_where_a_log_is_intact() -> None:
    files, batches = damaged(12)
    log = open_store(files).groups[1]

    headers = list(log.headers_from(3, log.intact_index + 1))

    assert headers == [batch.header for batch in batches[2:11]]


def entries_of(batches: list[StampedBatch]) -> list[DurableEntry]:
    return [DurableEntry(b.header.index, b.header.term, b.header.chain, b.header.base_offset) for b in batches]


def test_durable_entries_are_seen_at_every_step_of_a_round_without_a_call() -> None:
    files = FakeFileSystem()
    store = open_store(files)
    log = add_group(store, 1)
    batches = make_batches(log.end, 40, value_bytes=200)
    for number in range(0, 40, 5):
        append(store, 1, batches[number : number + 5])
        housekeep(store)
    files.take_work()

    def seen(index: int | None = None) -> list[DurableEntry]:
        found = list(durable_entries(files, log, index))
        assert files.take_work().calls == 0
        return found

    assert seen() == entries_of(batches)
    assert seen(17) == entries_of(batches[16:])
    assert seen(41) == []
    more = make_batches(log.end, 3)
    make_room(log, more)
    first = store.prepare_round([Append(1, batch) for batch in more])
    files.take_work()
    assert seen(39) == entries_of(batches[38:])
    first.write()
    files.take_work()
    assert seen(39) == entries_of(batches[38:])
    first.apply_durable()
    assert seen(39) == entries_of([*batches[38:], *more])
    replacing = make_batches(end_of(batches[19]), 2, salt=1)
    make_room(log, replacing)
    second = store.prepare_round([Append(1, batch) for batch in replacing])
    files.take_work()
    assert seen() == entries_of(batches[:20]), "what the round under way leaves of it"
    second.write()
    second.apply_durable()
    files.take_work()
    assert seen() == entries_of([*batches[:20], *replacing])
    for made in (first, second):
        made.settle()
        made.apply_written()
    files.take_work()
    assert seen() == entries_of([*batches[:20], *replacing])
    assert [entry.index for entry in seen(15)] == list(range(15, 23))


def test_durable_entries_of_a_damaged_log_end_before_its_hole() -> None:
    files, batches = damaged(12)

    log = open_store(files).groups[1]

    assert list(durable_entries(files, log)) == entries_of(batches[:11])


# --- Rounds that are settled late -------------------------------------------------------------------------------------


def test_a_log_that_was_replaced_gets_no_segment_while_one_of_the_old_is_still_to_be_unlinked() -> None:
    files = FakeFileSystem()
    store = open_store(files)
    log = add_group(store, 1)
    batches = make_batches(log.end, 40, value_bytes=200)
    for first in range(0, 40, 5):
        append(store, 1, batches[first : first + 5])
        housekeep(store)
    voided = log.segments[2].first_index
    replacing = make_batches(end_of(batches[1]), 1, salt=1)
    make_room(log, replacing)
    unsettled = store.prepare_round([Append(1, replacing[0])])
    unsettled.write()
    unsettled.apply_durable()
    # The snapshot's first segment will have the name of one that is to be unlinked.
    end = end_of(batches[voided - 2])
    start = beyond(log, end)
    do(log.prepare_start(start))
    finish_later = store.prepare_round([SetStart(1, start, keeps_suffix=False)])
    finish_later.write()
    finish_later.apply_durable()

    batch = make_batch(log.end)
    assert isinstance(log.space_for(batch.batch_bytes), Barrier)
    for made in (unsettled, finish_later):
        made.settle()
        made.apply_written()
    append(store, 1, [batch])
    housekeep(store)

    assert stored(log) == batch.to_bytes()
    assert observed_store(open_store(files.crash(None)))[1][2] == batch.to_bytes()


def test_a_full_disk_without_a_spare_is_opened_with_a_file_that_nothing_needs() -> None:
    files = FakeFileSystem()
    store = open_store(files)
    log = add_group(store, 1)
    batches = make_batches(log.end, 5)
    append(store, 1, batches)
    # Starts that are cut before their housekeeping: each takes the next file, and none makes a spare.
    for _ in range(2):
        files = files.kill()
        open_store(files)
    for _ in range(6):
        files = files.kill()
        files.capacity_bytes = files.used_bytes()
        open_store(files)
    names = [int(name) for name in files.listdir("/data/journal")]

    assert len(names) == 3
    assert max(names) == 9
    for ending in (files.crash(None), files.kill(), files.crash(random.Random(1))):
        assert stored(open_store(ending).groups[1]) == joined(batches)
