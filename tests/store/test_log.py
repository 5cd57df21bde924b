"""One log: room, rolling, replacing, retention, and reading by offset, by index and by time."""

import errno
from collections.abc import Iterator
from dataclasses import replace

import pytest

from logd.store.errors import NoRoom, ReadOutdated, RoundTooLarge, WrongEntry
from logd.store.format import HardState, LogEnd
from logd.store.jobs import Barrier
from logd.store.log import ExtendJob, Log, RollJob, RoomAheadJob
from logd.store.read import ReadResult
from logd.store.round import (
    ROUND_OVERHEAD_BYTES,
    Append,
    Remove,
    RoundEntry,
    SetHardState,
    SetStart,
    entry_bytes,
)
from logd.store.store import Store
from tests.store.support import (
    NODE,
    SMALL,
    add_group,
    append,
    commit,
    do,
    end_of,
    finish,
    housekeep,
    joined,
    make_batch,
    make_batches,
    make_room,
    new_start,
    open_store,
    stored,
)
from tests.support.fake_files import FakeFileSystem
from wire.errors import CorruptBatch, OffsetOutOfRange
from wire.record import ControlKind, Stamp, StampedBatch, control_batch, split_batches, stamp

GROUP = "/data/groups/00000000000000000001"


@pytest.fixture
def files() -> FakeFileSystem:
    return FakeFileSystem()


@pytest.fixture
def store(files: FakeFileSystem) -> Iterator[Store]:
    opened = open_store(files)
    add_group(opened, 1)
    yield opened
    opened.close()


@pytest.fixture
def log(store: Store) -> Log:
    return store.groups[1]


def fill(store: Store, count: int, *, value_bytes: int = 100, group: int = 1) -> list[StampedBatch]:
    """Append batches one by one, with housekeeping between."""
    batches = make_batches(store.groups[group].end, count, value_bytes=value_bytes)
    for batch in batches:
        append(store, group, [batch])
        housekeep(store)
    return batches


def read(log: Log, offset: int, bytes_max: int = 1 << 20, end: int | None = None) -> ReadResult:
    result = log.plan_read(offset, log.written_next_offset if end is None else end, bytes_max).run()
    assert result is not None
    return result


# --- Room -----------------------------------------------------------------------------------------------------------


def test_a_batch_without_room_is_refused_and_nothing_has_changed(store: Store, log: Log) -> None:
    batch = make_batch(log.end)
    position = store.journal.position

    with pytest.raises(NoRoom):
        store.prepare_round([Append(1, batch)])

    assert store.journal.position == position
    assert log.tail == log.end
    append(store, 1, [batch])
    assert log.end == end_of(batch)


def test_room_counts_all_batches_that_wait(store: Store, log: Log) -> None:
    append(store, 1, make_batches(log.end, 1))
    segment = log.active
    assert segment is not None
    left = segment.allocated - segment.end_position
    assert log.space_for(left) is None
    job = log.space_for(left + 1)
    assert isinstance(job, ExtendJob)
    # Another one has to wait for the first.
    assert isinstance(log.space_for(1), Barrier)
    do(job)
    assert log.space_for(left + 1) is None


def test_a_batch_that_does_not_fit_the_segment_rolls_it(store: Store, log: Log, files: FakeFileSystem) -> None:
    batches = make_batches(log.end, 2, value_bytes=2_500)
    append(store, 1, batches[:1])
    job = log.space_for(batches[1].batch_bytes)
    assert isinstance(job, RollJob)
    do(job)
    append(store, 1, batches[1:])

    assert [segment.first_index for segment in log.segments] == [1, 2]
    assert stored(log) == joined(batches)


def test_a_batch_larger_than_a_segment_gets_one_of_its_own(store: Store, log: Log) -> None:
    batches = [*make_batches(log.end, 1)]
    batches.append(make_batch(end_of(batches[-1]), value_bytes=6_000))
    batches.append(make_batch(end_of(batches[-1])))
    for batch in batches:
        append(store, 1, [batch])

    assert [segment.first_index for segment in log.segments] == [1, 2, 3]
    assert stored(log) == joined(batches)


def test_a_sealed_segment_is_cut_to_its_end(store: Store, log: Log, files: FakeFileSystem) -> None:
    fill(store, 60)
    while store.journal.to_sync() is None and store.journal.first_needed_after_roll() < store.journal.current.number:
        housekeep(store)
    finished = [segment for segment in log.segments if segment.is_finished]

    assert finished
    for segment in finished:
        assert files.tree(GROUP)[segment.path] == segment.end_position


def test_a_full_disk_refuses_the_batch_and_takes_it_once_there_is_space(
    store: Store, log: Log, files: FakeFileSystem
) -> None:
    append(store, 1, make_batches(log.end, 2))
    before = files.tree(GROUP)
    files.capacity_bytes = files.used_bytes()
    batch = make_batch(log.end, value_bytes=3_000)
    job = log.space_for(batch.batch_bytes)
    assert job is not None

    with pytest.raises(OSError, match="free and") as caught:
        job.run()

    assert caught.value.errno == errno.ENOSPC
    assert files.tree(GROUP) == before
    assert len(read(log, 0).batches)
    files.capacity_bytes = None
    append(store, 1, [batch])
    assert log.end == end_of(batch)


def test_the_reserve_serves_control_batches_alone(files: FakeFileSystem) -> None:
    store = open_store(files, replace(SMALL, disk_reserve_bytes=100_000))
    log = add_group(store, 1)
    files.capacity_bytes = files.used_bytes() + 90_000

    refused = log.space_for(300)
    assert refused is not None
    with pytest.raises(OSError, match="in reserve"):
        refused.run()
    allowed = log.space_for(300, control=True)
    do(allowed)

    assert log.space_for(300, control=True) is None


def test_a_failed_sync_never_passes_for_a_full_disk(store: Store, log: Log, files: FakeFileSystem) -> None:
    files.fail("sync", "*.log", 1, errno.ENOSPC)
    job = log.space_for(300)
    assert job is not None

    with pytest.raises(OSError, match="for want of space") as caught:
        job.run()

    assert caught.value.errno == errno.EIO


def test_room_is_made_before_anybody_waits_for_it(store: Store, log: Log) -> None:
    append(store, 1, make_batches(log.end, 1))
    segment = log.active
    assert segment is not None
    before = segment.allocated
    while segment.end_position - 4096 <= segment.allocated - segment.end_position:
        append(store, 1, make_batches(log.end, 1))

    housekeep(store)

    assert segment.allocated > before


@pytest.mark.parametrize(
    "wrong", [{"journal_files_max": 2}, {"journal_file_bytes": 33_000}, {"round_bytes_max": 64 << 10}]
)
def test_options_that_the_journal_could_never_work_with_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="journal"):
        replace(SMALL, **wrong)


# --- Rounds ---------------------------------------------------------------------------------------------------------


def test_a_round_over_its_limit_is_refused_and_nothing_has_changed(store: Store, log: Log) -> None:
    batches = make_batches(log.end, 20, value_bytes=1_000)
    make_room(log, batches)
    entries: list[RoundEntry] = [Append(1, batch) for batch in batches]
    assert ROUND_OVERHEAD_BYTES + sum(map(entry_bytes, entries)) > SMALL.round_bytes_max

    with pytest.raises(RoundTooLarge):
        store.prepare_round(entries)

    assert log.tail == log.end
    append(store, 1, batches[:2])


def test_entries_that_fit_by_their_count_of_bytes_fit(store: Store, log: Log) -> None:
    batches = make_batches(log.end, 20, value_bytes=1_000)
    fitting: list[StampedBatch] = []
    total = ROUND_OVERHEAD_BYTES
    for batch in batches:
        total += entry_bytes(Append(1, batch))
        if total > SMALL.round_bytes_max:
            break
        fitting.append(batch)

    append(store, 1, fitting)

    assert stored(log) == joined(fitting)


def contradictions(log: Log) -> list[RoundEntry]:
    elsewhere = LogEnd(log.end.index, 1, log.end.next_offset, 0, bytes(32))
    ahead = LogEnd(log.end.index + 3, 1, log.end.next_offset, 0, log.end.chain)
    return [
        Append(1, make_batch(elsewhere)),
        Append(1, make_batch(ahead)),
        Append(1, make_batch(log.end, term=5)),
        Append(9, make_batch(log.end)),
        SetHardState(1, HardState(0, "", 0)),
        SetHardState(1, HardState(1, "another", 0)),
        SetHardState(9, HardState(1, "", 0)),
        SetStart(1, new_start()._replace(index=1)),
        Remove(9),
    ]


@pytest.mark.parametrize("number", range(9))
def test_an_entry_that_contradicts_the_log_is_refused_and_nothing_has_changed(
    store: Store, log: Log, number: int
) -> None:
    append(store, 1, make_batches(log.end, 2))
    entry = contradictions(log)[number]
    end, position = log.end, store.journal.position

    with pytest.raises(WrongEntry):
        store.prepare_round([entry])

    assert (log.tail, log.end, store.journal.position) == (end, end, position)
    append(store, 1, make_batches(log.end, 1))


def test_ends_move_with_the_steps_of_a_round(store: Store, log: Log) -> None:
    batch = make_batch(log.end)
    make_room(log, [batch])
    start = log.end

    made = store.prepare_round([Append(1, batch)])
    assert (log.tail, log.end, log.written) == (end_of(batch), start, start)
    made.write()
    made.apply_durable()
    assert (log.end, log.written) == (end_of(batch), start)
    assert not len(read(log, 0).batches)
    made.settle()
    made.apply_written()

    assert log.written == end_of(batch)
    assert bytes(read(log, 0).batches) == batch.to_bytes()


def test_one_round_holds_batches_of_many_groups(store: Store, log: Log) -> None:
    other = add_group(store, 2)
    mine, theirs = make_batches(log.end, 3), make_batches(other.end, 3)
    make_room(log, mine)
    make_room(other, theirs)

    commit(store, [Append(g, b) for pair in zip(mine, theirs, strict=True) for g, b in zip((1, 2), pair, strict=True)])

    assert stored(log) == joined(mine)
    assert stored(other) == joined(theirs)


def test_a_suffix_over_three_segments_is_replaced_and_its_segments_unlinked(
    store: Store, log: Log, files: FakeFileSystem
) -> None:
    batches = fill(store, 60)
    assert len(log.segments) > 4
    index = log.segments[-3].first_index - 2
    before = end_of(batches[index - 2])
    replacing = make_batches(before, 2, salt=7)
    append(store, 1, replacing)

    kept = batches[: index - 1]
    assert stored(log) == joined([*kept, *replacing])
    on_disk = [path for path in files.tree(GROUP) if path.endswith(".log")]
    assert on_disk == [segment.path for segment in log.segments]
    more = fill(store, 30)
    assert stored(log) == joined([*kept, *replacing, *more])


# --- Starts ---------------------------------------------------------------------------------------------------------


def test_retention_gives_up_whole_segments_by_bytes_and_never_the_active_one(
    store: Store, log: Log, files: FakeFileSystem
) -> None:
    batches = fill(store, 60)
    count = len(log.segments)
    assert log.retention_boundary(0, log.retained_bytes) is None
    boundary = log.retention_boundary(0, log.retained_bytes - log.segments[0].end_position)
    assert boundary is not None
    assert boundary.index == log.segments[1].first_index - 1
    everything = log.retention_boundary(0, 0)
    assert everything is not None
    assert everything.index == log.segments[-1].first_index - 1

    start = log.start._replace(
        index=boundary.index,
        term=boundary.term,
        offset=boundary.next_offset,
        chain=boundary.chain,
        append_timestamp=boundary.append_timestamp,
    )
    do(log.prepare_start(start))
    commit(store, [SetStart(1, start)])
    housekeep(store)

    assert len(log.segments) == count - 1
    assert log.log_start_offset == boundary.next_offset
    assert stored(log) == joined(batches[boundary.index :])
    assert sum(path.endswith(".start") for path in files.tree(GROUP)) == 1
    assert sum(path.endswith(".log") for path in files.tree(GROUP)) == len(log.segments)
    with pytest.raises(OffsetOutOfRange):
        log.plan_read(boundary.next_offset - 1, log.written_next_offset, 100)


def test_retention_by_age_looks_at_append_timestamps(store: Store, log: Log) -> None:
    batches = fill(store, 60)
    second = log.segments[1].first_index
    last_of_first = end_of(batches[second - 2])

    assert log.retention_boundary(last_of_first.append_timestamp + 100, None, 100) is None
    boundary = log.retention_boundary(last_of_first.append_timestamp + 101, None, 100)

    assert boundary == last_of_first


def test_a_read_that_was_planned_before_its_segment_was_given_up_says_so(store: Store, log: Log) -> None:
    fill(store, 60)
    plan = log.plan_read(0, log.written_next_offset, 100)
    boundary = log.retention_boundary(0, 0)
    assert boundary is not None
    start = log.start._replace(index=boundary.index, offset=boundary.next_offset, chain=boundary.chain)
    do(log.prepare_start(start))
    commit(store, [SetStart(1, start)])
    housekeep(store)

    with pytest.raises(ReadOutdated):
        plan.run()


def test_starts_that_were_prepared_together_become_true_in_order(store: Store, log: Log, files: FakeFileSystem) -> None:
    batches = fill(store, 4)
    starts = []
    for batch in batches[:2]:
        end = end_of(batch)
        starts.append(log.start._replace(index=end.index, term=end.term, offset=end.next_offset, chain=end.chain))
        do(log.prepare_start(starts[-1]))
    # Asked for twice, as by a leader that looks again before its first decision is durable.
    do(log.prepare_start(starts[0]))
    with pytest.raises(WrongEntry):
        log.prepare_start(starts[0]._replace(producers=b"another table"))
    for start in starts:
        commit(store, [SetStart(1, start)])
        assert open_store(files.crash(None)).groups[1].start == start
    housekeep(store)

    assert sum(path.endswith(".start") for path in files.tree(GROUP)) == 1


def test_a_start_at_or_below_the_present_one_is_refused(log: Log) -> None:
    with pytest.raises(WrongEntry):
        log.prepare_start(new_start())


def test_a_removed_groups_directory_goes_and_the_group_may_come_again(
    store: Store, log: Log, files: FakeFileSystem
) -> None:
    fill(store, 3)
    commit(store, [Remove(1)])
    assert 1 not in store.groups
    housekeep(store)
    assert GROUP not in files.tree("/data/groups")

    again = add_group(store, 1)
    batches = fill(store, 3)

    assert again is not log
    assert stored(again) == joined(batches)


def test_what_a_removed_group_gave_up_is_not_taken_from_the_one_that_follows(
    store: Store, log: Log, files: FakeFileSystem
) -> None:
    batches = fill(store, 3)
    end = end_of(batches[1])
    start = log.start._replace(index=end.index, term=end.term, offset=end.next_offset, chain=end.chain)
    do(log.prepare_start(start))
    commit(store, [SetStart(1, start)])
    # The old start file waits to be unlinked, and has the name of the new group's.
    commit(store, [Remove(1)])
    add_group(store, 1)
    housekeep(store)

    again = open_store(files.crash(None)).groups[1]

    assert again.is_start_readable
    assert again.start == new_start()


# --- Reading --------------------------------------------------------------------------------------------------------


def test_every_offset_is_found_and_its_batch_comes_first(store: Store, log: Log) -> None:
    batches = fill(store, 60)
    for offset in range(log.written_next_offset):
        result = read(log, offset, 1)
        (only,) = split_batches(result.batches)
        assert bytes(only) == batches[offset // 2].to_bytes()
        assert (result.first_offset, result.next_offset) == (offset // 2 * 2, offset // 2 * 2 + 2)
        assert (result.first_index, result.next_index) == (offset // 2 + 1, offset // 2 + 2)


def test_a_read_stays_within_its_bytes_unless_one_batch_alone_is_more(store: Store, log: Log) -> None:
    batches = fill(store, 20)
    size = batches[0].batch_bytes
    assert len(read(log, 0, size * 3).batches) == size * 3
    assert len(read(log, 0, size * 3 - 1).batches) == size * 2
    assert len(read(log, 0, 1).batches) == size


def test_a_read_never_goes_past_its_end(store: Store, log: Log) -> None:
    fill(store, 20)
    assert read(log, 0, end=10).next_offset == 10
    assert not len(read(log, 10, end=10).batches)
    assert read(log, 8, end=1_000_000).next_offset <= log.written_next_offset


def test_control_batches_within_a_read_are_served_and_at_its_end_are_not(store: Store, log: Log) -> None:
    def control() -> StampedBatch:
        raw = control_batch(ControlKind.NO_OP, timestamp_ms=1)
        return stamp(raw, Stamp(log.end.next_offset, log.end.index + 1, 1, log.end.append_timestamp, log.end.chain))

    first = control()
    append(store, 1, [first])
    data = fill(store, 1)
    second = control()
    append(store, 1, [second])
    more = fill(store, 1)
    last = control()
    append(store, 1, [last])

    assert bytes(read(log, 0).batches) == joined([*data, second, *more])
    assert stored(log) == joined([first, *data, second, *more, last])


def test_reads_from_memory_alone_say_when_they_would_block(files: FakeFileSystem) -> None:
    store = open_store(files)
    batches = []
    log = add_group(store, 1)
    for _ in range(30):
        batches += fill(store, 1)
    store.close()
    restarted = files.crash(None)
    log = open_store(restarted).groups[1]
    plan = log.plan_read(0, log.written_next_offset, 1 << 20)

    assert plan.run(nowait=True) is None
    found = plan.run()
    assert found is not None
    again = plan.run(nowait=True)
    assert again is not None
    assert again.batches == found.batches


def test_a_damaged_header_is_an_error_with_a_range_and_reading_goes_on_behind_it(
    store: Store, log: Log, files: FakeFileSystem
) -> None:
    batches = fill(store, 30)
    position = 4096 + sum(batch.batch_bytes for batch in batches[:3])
    files.zero_range(log.segments[0].path, position, 100)

    assert read(log, 0).next_offset == 6
    with pytest.raises(CorruptBatch) as caught:
        read(log, 6)
    details = caught.value.details
    assert details["base_offset"] == 6
    assert 8 <= details["next_offset"] <= 12
    behind = read(log, details["next_offset"])
    assert behind.first_offset == details["next_offset"]


def test_a_time_is_found_as_the_first_offset_at_or_after_it(store: Store, log: Log) -> None:
    batches = fill(store, 60)
    for number, batch in enumerate(batches):
        time = batch.header.append_timestamp
        assert log.offset_at(time).run() == number * 2
        assert log.offset_at(time - 9).run() == number * 2
    assert log.offset_at(-1).run() == 0
    assert log.offset_at(batches[-1].header.append_timestamp + 1).run() == 120


def test_headers_are_told_from_any_index(store: Store, log: Log) -> None:
    batches = fill(store, 40)
    for index in (1, 2, 17, 40, 41):
        assert [header.index for header in log.headers_from(index)] == list(range(index, 41))
    assert list(log.headers_from(17)) == [batch.header for batch in batches[16:]]


def test_open_files_and_loaded_indexes_are_bounded(files: FakeFileSystem) -> None:
    options = replace(SMALL, open_files_max=2, index_cache_bytes_max=200)
    store = open_store(files, options)
    log = add_group(store, 1)
    batches = fill(store, 80)
    store.close()
    store = open_store(files, options)
    log = store.groups[1]
    assert len(log.segments) > 6

    assert stored(log) == joined(batches)

    assert len(store.context.open_files._open) <= 2
    assert sum(segment.entries is not None for segment in log.segments if segment.is_finished) <= 3


# --- Producer tables ------------------------------------------------------------------------------------------------


def test_the_newest_producer_table_is_found_after_a_restart(files: FakeFileSystem) -> None:
    store = open_store(files)
    log = add_group(store, 1)
    store.context.producers_of = lambda group: (store.groups[group].tail.index, b"table of %d" % log.tail.index)
    fill(store, 40)
    store.close()

    log = open_store(files).groups[1]

    assert log.producers_checkpoint() == (40, b"table of 40")
    boundary = log.segments[1].first_index - 1
    assert log.producers_checkpoint(boundary) == (boundary, b"table of %d" % boundary)
    assert log.producers_checkpoint(1) == (0, b"")


def test_a_checkpoint_of_a_suffix_that_was_replaced_is_not_used(files: FakeFileSystem) -> None:
    store = open_store(files)
    log = add_group(store, 1)
    store.context.producers_of = lambda group: (store.groups[group].tail.index, b"table of %d" % log.tail.index)
    batches = fill(store, 4)
    store.want_checkpoint(1)
    housekeep(store)
    replacing = make_batches(end_of(batches[1]), 2, salt=9)
    append(store, 1, replacing)

    log = open_store(files.kill()).groups[1]

    assert log.producers_checkpoint() == (0, b"")
    assert stored(log) == joined([*batches[:2], *replacing])


def test_rounds_go_on_while_jobs_of_every_kind_are_under_way(store: Store, log: Log) -> None:
    """Jobs are applied late, as by a slow thread."""
    under_way = None
    batches: list[StampedBatch] = []
    for _ in range(80):
        if under_way is not None:
            under_way.apply()
        under_way = store.next_housekeeping()
        if under_way is not None:
            under_way.run()
        batch = make_batch(log.end, value_bytes=150)
        if isinstance(under_way, RoomAheadJob):
            under_way.apply()
            under_way = None
        make_room(log, [batch])
        finish(store.prepare_round([SetHardState(1, HardState(1, NODE, log.end.index)), Append(1, batch)]))
        batches.append(batch)

    assert stored(log) == joined(batches)


def test_no_file_stays_open_for_segments_that_were_given_up(files: FakeFileSystem) -> None:
    opened = open_store(files)
    log = add_group(opened, 1)
    batches = fill(opened, 40)
    append(opened, 1, make_batches(log.end, 3, value_bytes=1_000))
    append(opened, 1, make_batches(end_of(batches[20]), 1))
    boundary = log.retention_boundary(0, 0)
    assert boundary is not None
    start = log.start._replace(index=boundary.index, offset=boundary.next_offset, chain=boundary.chain)
    do(log.prepare_start(start))
    commit(opened, [SetStart(1, start)])
    commit(opened, [Remove(1)])
    housekeep(opened)

    assert not opened.context.open_files._open
    opened.close()
