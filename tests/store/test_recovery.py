"""The six points of recovery, each by name: what is torn, what is damaged, and what follows from it."""

import errno
from collections.abc import Callable

import pytest

from logd.store.errors import JournalLost, StoreRefused
from logd.store.events import (
    Corruption,
    DamagedRound,
    DamagedStart,
    DamagedTable,
    Event,
    HardStateLost,
    MissingJournalFile,
    TornTail,
)
from logd.store.format import HardState, RoundHead
from logd.store.inspect import inspect
from logd.store.journal import find_heads
from logd.store.log import Log
from logd.store.round import AcceptEnd, Append, SetHardState
from logd.store.store import Store
from tests.store.model import Bench, observed_model, observed_store, unexpected
from tests.store.support import (
    DIRECTORY,
    JOURNAL_ID,
    NODE,
    append,
    commit,
    do,
    end_of,
    make_batch,
    make_room,
    open_store,
    stored,
)
from tests.support.fake_files import FakeFileSystem, SimulatedCrash
from wire.errors import CorruptBatch

GROUP = "/data/groups/00000000000000000001"
SEGMENT = f"{GROUP}/00000000000000000001.log"


def journal(number: int) -> str:
    return f"{DIRECTORY}/journal/{number:020d}"


def heads(files: FakeFileSystem, number: int) -> list[RoundHead]:
    """The rounds of a journal file, in order."""
    file = files.open(journal(number), writable=False)
    found = {head.position: head for head in find_heads(file, JOURNAL_ID, number, 0)}
    file.close()
    return [found[position] for position in sorted(found)]


def damage_head(files: FakeFileSystem, number: int, head: RoundHead) -> None:
    files.flip_bit(journal(number), head.position + 30)


def damage_copy(files: FakeFileSystem, number: int, head: RoundHead) -> None:
    files.flip_bit(journal(number), head.end_position - 20)


def damage_both(files: FakeFileSystem, number: int, head: RoundHead) -> None:
    damage_head(files, number, head)
    damage_copy(files, number, head)


def events_of(store: Store, kind: type[Event]) -> list[Event]:
    return [event for event in store.events if isinstance(event, kind)]


def with_batches(count: int = 6) -> Bench:
    """One group with `count` batches, one in a round, and an empty round behind them."""
    bench = Bench(FakeFileSystem())
    bench.create(1)
    for _ in range(count):
        bench.append(1, 1, value_bytes=100)
    bench.round([], bench.copy())
    return bench


def batch_position(files: FakeFileSystem, index: int) -> int:
    """Where a batch stands in the first segment."""
    found = [f for f in inspect(files, SEGMENT) if f.kind == "batch" and f.values["index"] == index]
    position: int = found[0].values["position"]
    return position


# --- R1: torn and damaged ---------------------------------------------------------------------------------------------


def test_a_torn_round_is_dropped_whole() -> None:
    bench = with_batches()
    before = observed_model(bench.durable)
    entries, after = bench.append_entries(1, 3)
    bench.begin(entries, after).write()
    last = heads(bench.files, 1)[-1]
    # The last of three batches did not reach the disk.
    bench.files.zero_range(journal(1), last.batches_position + 700, 50)

    store = open_store(bench.files.crash(None))

    assert observed_store(store) == before
    assert events_of(store, TornTail)
    assert not unexpected(store.events)


def test_a_round_whose_first_head_is_damaged_is_read_by_its_second() -> None:
    bench = with_batches()
    for head in heads(bench.files, 1)[2:5]:
        damage_head(bench.files, 1, head)

    store = open_store(bench.files.kill())

    assert observed_store(store) == observed_model(bench.durable)
    assert [event.is_directory_readable for event in events_of(store, DamagedRound)] == [True] * 3  # type: ignore[attr-defined]


def test_the_last_round_survives_damage_to_one_of_its_heads() -> None:
    bench = with_batches()
    bench.append(1, 1)
    damage_head(bench.files, 1, heads(bench.files, 1)[-1])

    store = open_store(bench.files.kill())

    assert observed_store(store) == observed_model(bench.durable)


def test_a_damaged_batch_of_a_round_is_taken_from_its_segment() -> None:
    bench = with_batches()
    head = heads(bench.files, 1)[3]
    bench.files.flip_bit(journal(1), head.batches_position + 200)

    store = open_store(bench.files.kill())

    assert observed_store(store) == observed_model(bench.durable)
    (event,) = events_of(store, DamagedRound)
    assert isinstance(event, DamagedRound)
    assert (event.path, event.position, event.round_number) == (journal(1), head.position, head.round_number)


def test_a_lost_round_is_made_up_for_by_the_next_table() -> None:
    bench = with_batches()
    bench.set_hard_state(1, 7)
    bench.housekeep()
    lost = heads(bench.files, 1)[-1]
    # Batches of the round that opens the next file, and nothing synced: both files are needed.
    while bench.store.journal.current.number == 1:
        bench.append(1, 1, value_bytes=3_000)
    damage_both(bench.files, 1, lost)

    store = open_store(bench.files.kill())

    assert store.groups[1].hard_state == HardState(7, NODE, 0)
    assert observed_store(store) == observed_model(bench.durable)
    assert len(events_of(store, DamagedRound)) == 1


def test_a_damaged_table_is_read_by_its_second_copy() -> None:
    bench = with_batches()
    bench.files.flip_bit(journal(1), 60)

    store = open_store(bench.files.kill())

    assert observed_store(store) == observed_model(bench.durable)
    assert [event.is_lost for event in events_of(store, DamagedTable)] == [False]  # type: ignore[attr-defined]


def test_a_lost_table_is_made_up_for_by_the_file_before() -> None:
    bench = with_batches()
    bench.housekeep()
    while bench.store.journal.current.number == 1:
        bench.append(1, 1, value_bytes=3_000)
    bench.append(1, 2)
    for position in (60, 4096 + 60):
        bench.files.flip_bit(journal(2), position)

    store = open_store(bench.files.kill())

    assert observed_store(store) == observed_model(bench.durable)
    assert [event.is_lost for event in events_of(store, DamagedTable)] == [True]  # type: ignore[attr-defined]


def test_without_any_table_the_directory_is_refused_and_untouched() -> None:
    bench = with_batches()
    files = bench.files.kill()
    for position in (60, 4096 + 60):
        files.flip_bit(journal(1), position)
    before = {path: files.contents(path) for path, size in files.tree(DIRECTORY).items() if size is not None}

    with pytest.raises(JournalLost):
        open_store(files)

    assert {path: files.contents(path) for path, size in files.tree(DIRECTORY).items() if size is not None} == before


# --- R2: order --------------------------------------------------------------------------------------------------------


def test_a_lower_term_replaces_a_higher_one() -> None:
    bench = with_batches()
    bench.set_hard_state(1, 5)
    bench.append(1, 2, term=5)
    bench.append(1, 1, index=7, term=3)

    store = open_store(bench.files.crash(None))

    assert observed_store(store) == observed_model(bench.durable)
    assert (store.groups[1].end.index, store.groups[1].end.term) == (7, 3)


def test_a_group_that_was_removed_and_started_again_holds_only_what_came_after() -> None:
    bench = with_batches()
    bench.remove(1)
    bench.create(1)
    bench.append(1, 1)

    store = open_store(bench.files.crash(None))

    assert observed_store(store) == observed_model(bench.durable)
    assert store.groups[1].end.index == 1


def test_a_group_that_was_removed_does_not_come_back() -> None:
    bench = with_batches()
    bench.remove(1)

    store = open_store(bench.files.crash(None))

    assert store.groups == {}


def test_entries_below_a_later_start_are_skipped() -> None:
    bench = with_batches()
    end = end_of(bench.durable[1].batches[2])
    bench.move_start(1, end, keeps_suffix=True)

    store = open_store(bench.files.crash(None))

    assert observed_store(store) == observed_model(bench.durable)
    assert store.groups[1].start.index == 3
    assert store.groups[1].log_start_offset == end.next_offset


# --- R3: writing again ------------------------------------------------------------------------------------------------


def test_bytes_that_only_the_page_cache_has_are_written_again() -> None:
    bench = with_batches()
    bench.housekeep()
    # The file is left behind: its segments are to be synced, and the sync fails. The kernel calls the pages clean.
    while bench.store.journal.current.number == 1:
        bench.append(1, 1, value_bytes=3_000)
    bench.files.fail("sync", "*.log", 1, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        bench.housekeep()

    restarted = bench.files.kill()
    open_store(restarted)
    store = open_store(restarted.crash(None))

    assert observed_store(store) == observed_model(bench.durable)
    assert not unexpected(store.events)


def test_a_round_whose_fsync_failed_is_there_or_not_but_never_half() -> None:
    bench = with_batches()
    made = bench.begin(*bench.append_entries(1, 3))
    bench.files.fail("sync", "*/journal/*", 1, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        made.write()

    restarted = bench.files.kill()
    first = observed_store(open_store(restarted))
    store = open_store(restarted.crash(None))

    assert first in bench.allowed()
    assert observed_store(store) == first


def test_a_segment_that_lost_its_name_is_made_again() -> None:
    bench = with_batches()
    files = bench.files.kill()
    files.unlink(SEGMENT)

    store = open_store(files)

    assert observed_store(store) == observed_model(bench.durable)


# --- R4: what is missing ----------------------------------------------------------------------------------------------


def settled(count: int = 8) -> Bench:
    """Batches that no journal file holds any more, because the store was opened again."""
    bench = with_batches(count)
    bench.store.close()
    bench.reopen(bench.files)
    return bench


def test_a_promised_end_that_is_damaged_is_corruption_and_not_the_end_of_the_log() -> None:
    bench = settled()
    files = bench.files.kill()
    files.flip_bit(SEGMENT, batch_position(files, 8) + 100)

    store = open_store(files)

    log = store.groups[1]
    (event,) = events_of(store, Corruption)
    assert isinstance(event, Corruption)
    assert (event.path, event.first_index, event.next_index) == (SEGMENT, 8, 9)
    assert log.end.index == 7
    assert log.floor is not None
    assert (log.floor.index, log.intact_index) == (8, 7)


def test_the_promised_end_is_remembered_when_its_journal_file_is_recycled() -> None:
    bench = with_batches(8)
    bench.create(2)
    for _ in range(60):
        bench.append(2, 1, value_bytes=3_000)
        bench.housekeep()
    assert min(int(path[-20:]) for path in bench.files.tree(f"{DIRECTORY}/journal")) > 1
    files = bench.files.kill()
    files.zero_range(SEGMENT, batch_position(files, 8), 300)

    log = open_store(files).groups[1]

    assert log.floor is not None
    assert log.floor.index == 8


def is_damaged(log: Log) -> bool:
    return log.floor is not None


def lose_the_end() -> FakeFileSystem:
    bench = settled()
    files = bench.files.kill()
    files.flip_bit(SEGMENT, batch_position(files, 8) + 100)
    return files


def test_a_floor_outlives_restarts_and_is_gone_when_the_log_reaches_it_again() -> None:
    files = lose_the_end()
    open_store(files)
    files = files.crash(None)
    store = open_store(files)
    log = store.groups[1]
    assert is_damaged(log)

    append(store, 1, [make_batch(log.end)])

    assert not is_damaged(log)
    assert open_store(files.crash(None)).groups[1].floor is None


def test_an_accepted_loss_is_the_end_of_the_log_for_good() -> None:
    files = lose_the_end()
    store = open_store(files)
    log = store.groups[1]
    commit(store, [AcceptEnd(1, log.end.index)])
    assert log.floor is None

    again = open_store(files.crash(None))

    assert again.groups[1].floor is None
    assert again.groups[1].end == log.end


def test_a_loss_that_is_accepted_below_the_end_gives_up_what_is_above() -> None:
    bench = with_batches()
    log = bench.log(1)
    kept = end_of(bench.durable[1].batches[2])
    do(log.space_for(0, index=4))
    commit(bench.store, [AcceptEnd(1, kept.index)])
    assert log.end == kept

    files = bench.files.crash(None)
    store = open_store(files)

    assert store.groups[1].end == kept
    append(store, 1, [make_batch(kept, salt=5)])
    assert open_store(files.crash(None)).groups[1].end.index == 4


def test_a_missing_journal_file_is_reported_and_the_segments_are_looked_at() -> None:
    bench = with_batches()
    bench.create(2)
    bench.housekeep()
    while bench.store.journal.current.number == 1:
        bench.append(2, 1, value_bytes=3_000)
    files = bench.files.kill()
    files.unlink(journal(1))

    store = open_store(files)

    assert len(events_of(store, MissingJournalFile)) == 1
    assert stored(store.groups[1]) == observed_model(bench.durable)[1][2]
    lost = bench.files.kill()
    lost.unlink(journal(1))
    lost.flip_bit(SEGMENT, batch_position(lost, 3) + 100)
    damaged = open_store(lost).groups[1]
    assert damaged.floor is not None
    assert [damage.first_index for damage in damaged.damage] == [3]


def hole(index: int = 4) -> FakeFileSystem:
    """Batch `index` is damaged in the journal and in its segment; its neighbours hold."""
    bench = with_batches()
    files = bench.files.kill()
    for head in heads(files, 1):
        if any(getattr(entry, "index", 0) == index for entry in head.entries):
            files.flip_bit(journal(1), head.batches_position + 200)
    files.flip_bit(SEGMENT, batch_position(files, index) + 200)
    return files


def check_around_a_hole(log: Log, index: int = 4) -> None:
    assert [(damage.first_index, damage.next_index) for damage in log.damage] == [(index, index + 1)]
    (damage,) = log.damage
    assert (damage.base_offset, damage.next_offset) == (2 * index - 2, 2 * index)
    assert log.intact_index == index - 1
    assert log.end.index == 6
    before = log.plan_read(0, 12, 1 << 20).run()
    assert before is not None
    assert (before.first_offset, before.next_offset) == (0, damage.base_offset)
    behind = log.plan_read(damage.next_offset, 12, 1 << 20).run()
    assert behind is not None
    assert (behind.first_offset, behind.next_offset) == (damage.next_offset, 12)
    for offset in range(damage.base_offset, damage.next_offset):
        with pytest.raises(CorruptBatch) as caught:
            log.plan_read(offset, 12, 1 << 20).run()
        assert caught.value.details["base_offset"] == damage.base_offset
        assert caught.value.details["next_offset"] == damage.next_offset


def test_a_hole_whose_neighbours_hold_is_read_around() -> None:
    store = open_store(hole())

    check_around_a_hole(store.groups[1])
    assert store.groups[1].floor is not None


def test_a_hole_is_found_again_after_a_restart() -> None:
    files = hole()
    open_store(files)

    check_around_a_hole(open_store(files.crash(None)).groups[1])


def test_a_hole_with_a_lost_header_is_found_again_after_a_restart() -> None:
    files = hole()
    files.zero_range(SEGMENT, batch_position(files, 4), 176)
    open_store(files)

    check_around_a_hole(open_store(files.crash(None)).groups[1])


def test_a_log_with_a_hole_goes_on() -> None:
    files = hole()
    store = open_store(files)
    log = store.groups[1]
    batch = make_batch(log.end)

    append(store, 1, [batch])

    result = log.plan_read_index(7, 8, 1).run()
    assert result is not None
    assert bytes(result.batches) == batch.to_bytes()
    assert log.floor is not None


# --- R5: hard states --------------------------------------------------------------------------------------------------


def test_a_hard_state_that_may_be_older_than_a_lost_vote_is_not_taken() -> None:
    bench = with_batches()
    bench.create(2)
    bench.set_hard_state(1, 9)
    lost = heads(bench.files, 1)[-1]
    bench.append(1, 1)
    files = bench.files.kill()
    damage_both(files, 1, lost)

    store = open_store(files)

    assert store.groups[1].hard_state is None
    assert store.groups[2].hard_state is None
    assert {event.group for event in events_of(store, HardStateLost)} == {1, 2}  # type: ignore[attr-defined]
    assert observed_model(bench.durable)[1][2] == stored(store.groups[1])
    # Still lost after a restart; known again once it is written.
    again = open_store(files.crash(None))
    assert again.groups[1].hard_state is None
    commit(again, [SetHardState(1, HardState(1_009, NODE, 0))])
    assert open_store(files.crash(None)).groups[2].hard_state is None


def test_a_later_hard_state_makes_up_for_a_lost_round() -> None:
    bench = with_batches()
    bench.set_hard_state(1, 9)
    lost = heads(bench.files, 1)[-1]
    bench.set_hard_state(1, 10)
    bench.append(1, 1)
    files = bench.files.kill()
    damage_both(files, 1, lost)

    store = open_store(files)

    assert observed_store(store) == observed_model(bench.durable)
    assert store.groups[1].floor is None


def test_batches_of_a_lost_round_are_found_in_their_segment() -> None:
    bench = with_batches()
    lost = heads(bench.files, 1)[4]
    files = bench.files.kill()
    damage_both(files, 1, lost)

    store = open_store(files)

    assert stored(store.groups[1]) == observed_model(bench.durable)[1][2]


def test_an_end_that_a_lost_round_may_have_moved_is_not_trusted() -> None:
    bench = with_batches()
    lost = heads(bench.files, 1)[-2]
    files = bench.files.kill()
    damage_both(files, 1, lost)

    log = open_store(files).groups[1]

    # The segment still has the batch; whether it was the last one, nothing tells.
    assert log.end.index == 6
    assert log.floor is not None
    assert log.floor.index > 6


def test_a_lost_round_may_have_promised_as_many_batches_as_it_had_room_for() -> None:
    bench = with_batches(5)
    bench.append(1, 6, value_bytes=1)
    lost = heads(bench.files, 1)[-1]
    # The vote is known from a later round, so the replica has a say: it must not have forgotten what it promised.
    bench.set_hard_state(1, 4)
    files = bench.files.kill()
    damage_both(files, 1, lost)
    begin = batch_position(files, 6)
    files.zero_range(SEGMENT, begin, len(files.contents(SEGMENT)) - begin)

    log = open_store(files).groups[1]

    assert log.hard_state == HardState(4, NODE, 0)
    assert log.end.index == 5
    assert log.floor is not None
    assert (log.floor.term, log.floor.index) >= (1, 11)
    again = open_store(files.crash(None)).groups[1]
    assert again.floor is not None
    assert again.floor.index == log.floor.index


# --- Other files ------------------------------------------------------------------------------------------------------


def test_a_damaged_start_is_reported_and_the_log_is_there() -> None:
    bench = with_batches()
    files = bench.files.kill()
    files.flip_bit(f"{GROUP}/{0:020d}.start", 50)

    store = open_store(files)

    assert stored(store.groups[1]) == observed_model(bench.durable)[1][2]
    assert not store.groups[1].is_start_readable
    assert len(events_of(store, DamagedStart)) == 1


def test_an_interrupted_creation_is_begun_again() -> None:
    whole = FakeFileSystem()
    open_store(whole)
    for number in range(1, len(whole.calls) + 1):
        files = FakeFileSystem()
        files.crash_at(number)
        with pytest.raises(SimulatedCrash):
            open_store(files)
        for after in (files.crash(None), files.kill()):
            assert open_store(after).groups == {}


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["notes.txt"], "foreign"),
        (["journal/00000000000000000002"], "half"),
        (["groups/00000000000000000001"], "half"),
    ],
)
def test_a_directory_that_is_not_a_nodes_is_refused_and_untouched(names: list[str], reason: str) -> None:
    files = FakeFileSystem()
    for path in (DIRECTORY, f"{DIRECTORY}/journal", f"{DIRECTORY}/groups"):
        files.mkdir(path)
    for name in names:
        files.open(f"{DIRECTORY}/{name}", create=True).close()
    before = files.tree(DIRECTORY)

    with pytest.raises(StoreRefused) as caught:
        open_store(files)

    assert caught.value.details["reason"] == reason
    assert files.tree(DIRECTORY) == before


def test_another_nodes_directory_is_refused_and_untouched() -> None:
    bench = with_batches()
    bench.store.close()
    before = {
        path: bench.files.contents(path) for path, size in bench.files.tree(DIRECTORY).items() if size is not None
    }

    with pytest.raises(StoreRefused) as caught:
        open_store(bench.files, node="node-2")

    assert caught.value.details["reason"] == "node_name"
    after = {path: bench.files.contents(path) for path, size in bench.files.tree(DIRECTORY).items() if size is not None}
    assert after == before


def test_a_snapshot_that_replaces_the_log_survives() -> None:
    bench = with_batches()
    bench.install_snapshot(1, 4)
    bench.append(1, 2)
    store = open_store(bench.files.crash(None))

    assert observed_store(store) == observed_model(bench.durable)
    assert store.groups[1].start.producers == b"producers of 10"


def test_a_snapshot_that_replaces_a_longer_log_voids_all_of_it() -> None:
    bench = with_batches()
    bench.install_snapshot(1, -3)
    assert bench.durable[1].end.index == 4

    files = bench.files.crash(None)
    store = open_store(files)

    assert observed_store(store) == observed_model(bench.durable)
    append(store, 1, [make_batch(store.groups[1].end)])
    assert open_store(files.crash(None)).groups[1].end.index == 5


def test_a_journal_file_is_needed_until_what_it_covers_is_synced() -> None:
    bench = Bench(FakeFileSystem())
    bench.create(1)
    # Three files of rounds, and not one segment synced.
    while bench.store.journal.current.number < 4:
        do(bench.store.journal.spare_job())
        bench.append(1, 1, value_bytes=3_000)

    store = open_store(bench.files.crash(None))

    assert observed_store(store) == observed_model(bench.durable)


def test_segments_that_were_replaced_stay_away_when_their_journal_file_is_recycled() -> None:
    bench = with_batches(1)
    for _ in range(12):
        bench.append(1, 3, value_bytes=400)
        bench.housekeep()
    bench.append(1, 1, index=4)
    bench.create(2)
    number = bench.store.journal.current.number
    while bench.store.journal.first_needed_after_roll() <= number + 1:
        bench.append(2, 1, value_bytes=3_000)
        bench.housekeep()

    store = open_store(bench.files.crash(None))

    assert observed_store(store) == observed_model(bench.durable)
    assert [event.path for event in events_of(store, TornTail) if event.path != SEGMENT] == []


def test_a_torn_tail_is_cut() -> None:
    bench = with_batches()
    files = bench.files.kill()
    end = bench.log(1).end_place.end_position
    files.overwrite(SEGMENT, end, b"torn" * 100)

    store = open_store(files)

    assert files.tree(GROUP)[SEGMENT] == end
    (event,) = events_of(store, TornTail)
    assert isinstance(event, TornTail)
    assert (event.path, event.position) == (SEGMENT, end)


def test_a_batch_in_flight_is_found_when_the_next_round_replaces_it() -> None:
    bench = with_batches()
    first = bench.begin(*bench.append_entries(1, 3))
    bench.write(first)
    log = bench.log(1)
    # Not settled yet, and replaced from its second batch on.
    entries, after = bench.append_entries(1, 1, index=8)
    second = bench.begin(entries, after)
    bench.write(second)
    bench.settle(first)
    assert log.written.index == 7
    bench.settle(second)

    bench.check()
    assert observed_store(open_store(bench.files.crash(None))) == observed_model(bench.durable)


def test_a_table_is_synced_before_the_first_round_of_its_file() -> None:
    bench = with_batches()
    bench.housekeep()
    while bench.store.journal.current.number == 1:
        bench.append(1, 1, value_bytes=3_000)

    calls = [call.operation for call in bench.files.calls if call.path == journal(2)]

    # Made of zeros by housekeeping, then the table, then the round.
    assert calls[-4:] == ["pwritev", "sync", "pwritev", "sync"]


def test_rounds_are_written_one_after_the_other() -> None:
    bench = with_batches()
    made = bench.begin([], bench.copy())

    with pytest.raises(AssertionError, match="not durable yet"):
        bench.store.prepare_round([])

    made.write()
    with pytest.raises(AssertionError, match="round before is not durable"):
        made.write()


def test_nothing_of_a_segment_is_overwritten_before_the_replacing_round_is_durable() -> None:
    bench = with_batches()
    before = bench.files.contents(SEGMENT)
    log = bench.log(1)
    batch = make_batch(end_of(bench.durable[1].batches[1]), salt=99)
    make_room(log, [batch])
    made = bench.store.prepare_round([Append(1, batch)])
    assert bench.files.contents(SEGMENT) == before
    made.write()
    assert bench.files.contents(SEGMENT) == before
    made.apply_durable()
    made.settle()
    made.apply_written()
    do(bench.store.next_housekeeping())

    assert bench.files.contents(SEGMENT) != before
    assert log.end.index == 3


def test_the_last_round_of_a_file_is_known_to_be_durable_by_the_next_table() -> None:
    bench = with_batches(2)
    bench.set_hard_state(1, 2)
    bench.append(1, 2, index=1, term=2)
    last = heads(bench.files, 1)[-1]
    bench.housekeep()
    bench.store.journal.must_roll = True
    bench.round([], bench.copy())
    files = bench.files.kill()
    second = last.batches_position + bench.durable[1].batches[0].batch_bytes
    files.flip_bit(journal(1), second + 200)
    files.flip_bit(SEGMENT, batch_position(files, 2) + 200)

    store = open_store(files)

    # It is damaged and not torn: dropped, it would have left the batches that it replaced, and no word of a loss.
    log = store.groups[1]
    promised = bench.durable[1].end
    assert log.floor is not None
    assert (log.floor.index, log.floor.term, log.floor.chain) == (promised.index, promised.term, promised.chain)
    assert events_of(store, DamagedRound)
    assert stored(log) == bench.durable[1].batches[0].to_bytes()


def test_what_a_lost_round_replaced_is_not_taken_for_what_was_promised() -> None:
    bench = with_batches(4)
    bench.set_hard_state(1, 2)
    bench.housekeep()
    old = {path: bench.files.contents(path) for path in [SEGMENT]}
    bench.append(1, 3, index=2, term=2)
    lost = heads(bench.files, 1)[-1]
    bench.store.journal.must_roll = True
    bench.round([], bench.copy())
    files = bench.files.kill()
    damage_both(files, 1, lost)
    # The batches that were replaced, as if the new ones had not come to the segment yet.
    files.overwrite(SEGMENT, 0, old[SEGMENT])

    store = open_store(files)

    log = store.groups[1]
    assert log.floor is not None
    assert (log.floor.index, log.floor.term) == (4, 2)
    assert log.intact_index < 4


def test_segments_that_were_unlinked_before_a_kill_do_not_come_back_after_it() -> None:
    bench = Bench(FakeFileSystem())
    bench.create(1)
    for _ in range(4):
        bench.append(1, 8, value_bytes=200)
        bench.housekeep()
    segments = [segment.path for segment in bench.log(1).segments]
    assert len(segments) > 3
    bench.append(1, 2, index=3)
    files = bench.files.kill()
    assert not any(files.exists(path) for path in segments[1:])
    assert all(files.crash(None).exists(path) for path in segments[1:]), "the unlinking is in memory alone"

    store = open_store(files)

    after = files.crash(None)
    assert not any(after.exists(path) for path in segments[1:])
    assert observed_store(store) == observed_store(open_store(after)) == observed_model(bench.durable)


def test_a_round_that_only_memory_has_replaces_nothing_before_it_is_durable() -> None:
    bench = Bench(FakeFileSystem())
    bench.create(1)
    for _ in range(3):
        bench.append(1, 8, value_bytes=200)
        bench.housekeep()
    # No file that recovery reads has the batches: their place in the segment is all there is.
    for _ in range(2):
        bench.store.journal.must_roll = True
        bench.round([], bench.copy())
        bench.housekeep()
    made = bench.begin(*bench.append_entries(1, 3, index=5, value_bytes=200))
    files = bench.files
    current = bench.store.journal.current

    def killed_ahead_of(operation: str, path: str) -> Callable[[str, str], None]:
        def before_call(called: str, at: str) -> None:
            if (called, at) == (operation, path):
                raise SimulatedCrash("killed")

        return before_call

    # The process is killed ahead of the fsync; the next one reads the round in memory, and is cut ahead of its table.
    files.before_call = killed_ahead_of("sync", current.file.path)
    with pytest.raises(SimulatedCrash):
        made.write()
    files = files.kill()
    files.before_call = killed_ahead_of("pwritev", journal(current.number + 1))
    with pytest.raises(SimulatedCrash):
        open_store(files)

    after = files.crash(None)

    # What the round replaced is whole, or the round is there.
    store = open_store(after)
    assert observed_store(store) in bench.allowed()
    assert not unexpected(store.events)
    assert store.groups[1].floor is None
