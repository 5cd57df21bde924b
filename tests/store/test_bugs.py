"""The bugs of others that would live in the store: each has one test here that notices it.

The numbers are those of the table in `tests.mutants.table`, whose rows put each bug into this code and name the test.
"""

import errno
import random
from dataclasses import replace

import pytest

from logd.store.context import StoreOptions
from logd.store.events import Corruption
from logd.store.format import HardState, RoundHead
from logd.store.inspect import inspect
from logd.store.journal import find_heads
from logd.store.round import Append, SetHardState, SetStart
from tests.store.model import Bench, observed_model, observed_store, unexpected
from tests.store.support import (
    CLUSTER_ID,
    DIRECTORY,
    JOURNAL_ID,
    NODE,
    SMALL,
    TOPIC_ID,
    add_group,
    append,
    commit,
    do,
    housekeep,
    make_batch,
    make_batches,
    new_start,
    open_store,
    stored,
)
from tests.support.fake_files import PAGE_BYTES, FakeFileSystem
from wire.record import first_chain

GROUP = f"{DIRECTORY}/groups/{1:020d}"
SEGMENT = f"{GROUP}/{1:020d}.log"
JOURNAL = f"{DIRECTORY}/journal/{1:020d}"


def with_batches(count: int, options: StoreOptions = SMALL) -> Bench:
    """One group with `count` batches, each in a round of its own, and an empty round behind them."""
    bench = Bench(FakeFileSystem(), options)
    bench.create(1)
    for _ in range(count):
        bench.append(1, 1, value_bytes=100)
    bench.round([], bench.copy())
    return bench


def promised_after_a_power_cut(bench: Bench) -> bool:
    """Whether a power cut in the strictest form leaves exactly what was promised."""
    store = open_store(bench.files.crash(None))
    return observed_store(store) == observed_model(bench.durable) and not unexpected(store.events)


def test_bug_04_a_vote_survives_a_power_cut_right_after_it_was_given() -> None:
    bench = with_batches(2)

    bench.set_hard_state(1, 5, vote="node-2")

    again = open_store(bench.files.crash(None))
    assert again.groups[1].hard_state == HardState(5, "node-2", 0)


def test_bug_16_a_producer_table_is_as_old_as_it_says() -> None:
    files = FakeFileSystem()
    store = open_store(files)
    log = add_group(store, 1)
    # Two batches are appended already whose producers are in the table only once they are committed.
    store.context.producers_of = lambda _: (log.tail.index - 2, b"table of %d" % (log.tail.index - 2))
    for batch in make_batches(log.end, 10):
        append(store, 1, [batch])
        housekeep(store)
    store.close()

    again = open_store(files).groups[1]

    assert again.producers_checkpoint() == (8, b"table of 8")


def test_bug_17_what_was_acknowledged_survives_a_power_cut_at_any_time() -> None:
    bench = with_batches(1)

    for _ in range(5):
        bench.append(1, 1)

        assert promised_after_a_power_cut(bench)


def heads(files: FakeFileSystem) -> list[RoundHead]:
    """The rounds of the first journal file, in order."""
    file = files.open(JOURNAL, writable=False)
    found = {head.position: head for head in find_heads(file, JOURNAL_ID, 1, 0)}
    file.close()
    return [found[position] for position in sorted(found)]


def test_bug_18_a_flipped_bit_in_the_middle_is_a_hole_and_not_the_end_of_the_log() -> None:
    bench = with_batches(6)
    end = bench.log(1).end
    (fact,) = [fact for fact in inspect(bench.files, SEGMENT) if fact.kind == "batch" and fact.values["index"] == 4]
    (head,) = [head for head in heads(bench.files) if any(getattr(entry, "index", 0) == 4 for entry in head.entries)]
    batch_bytes = bench.durable[1].batches[3].batch_bytes

    for at in range(0, batch_bytes, 23):
        files = bench.files.kill()
        files.flip_bit(JOURNAL, head.batches_position + at)
        files.flip_bit(SEGMENT, fact.values["position"] + at)
        store = open_store(files)

        log = store.groups[1]
        assert log.end == end
        assert [(damage.first_index, damage.next_index) for damage in log.damage] == [(4, 5)]
        assert log.floor is not None
        assert log.floor.intact == 3
        assert [event.first_index for event in store.events if isinstance(event, Corruption)] == [4]


def test_bug_19_what_is_appended_after_a_torn_tail_is_read_back() -> None:
    # A segment with space left behind its end, so that the next batch goes there and not into another.
    options = replace(SMALL, segment_bytes_max=64 << 10)
    bench = with_batches(3, options)
    torn = make_batch(bench.log(1).end, salt=99).to_bytes()
    end_position = bench.log(1).end_place.end_position

    for length in range(1, len(torn), 29):
        left = bench.files.kill()
        left.overwrite(SEGMENT, end_position, torn[:length])
        store = open_store(left, options)
        before = stored(store.groups[1])
        batch = make_batch(store.groups[1].end, salt=length)
        append(store, 1, [batch])
        assert stored(store.groups[1]) == before + batch.to_bytes()
        again = open_store(left.kill(), options)
        assert stored(again.groups[1]) == before + batch.to_bytes()
        assert not unexpected(again.events)


def test_bug_20_a_failed_fsync_is_final() -> None:
    bench = with_batches(3)
    promised = observed_model(bench.durable)
    bench.files.fail("sync", "*/journal/*", 1, errno.EIO)
    made = bench.begin(*bench.append_entries(1, 1))
    before = len(bench.files.calls)

    with pytest.raises(OSError, match="Input/output"):
        made.write()

    calls = [call.operation for call in bench.files.calls[before:]]
    assert calls == ["pwritev", "sync"]
    assert observed_store(open_store(bench.files.crash(None))) == promised


def test_bug_21_a_disk_that_is_full_in_the_middle_of_a_batch_refuses_it_before_it_is_promised() -> None:
    files = FakeFileSystem()
    store = open_store(files, replace(SMALL, segment_bytes_max=64 << 10))
    logs = [add_group(store, group) for group in (1, 2)]
    for log in logs:
        append(store, log.group, make_batches(log.end, 1))
    batches = [make_batch(log.end, value_bytes=3_000) for log in logs]
    # Either batch would fit, but not both: the room of the first must be its own before the second asks.
    files.capacity_bytes = files.used_bytes() + 2 * PAGE_BYTES
    do(logs[0].space_for(batches[0].batch_bytes))
    refused = logs[1].space_for(batches[1].batch_bytes)
    assert refused is not None

    with pytest.raises(OSError, match="free and") as caught:
        refused.run()

    assert caught.value.errno == errno.ENOSPC
    commit(store, [Append(1, batches[0])])
    files.capacity_bytes = None
    append(store, 2, batches[1:])
    again = open_store(files.crash(None))
    assert [
        stored(again.groups[log.group])[-batch.batch_bytes :] for log, batch in zip(logs, batches, strict=True)
    ] == [batch.to_bytes() for batch in batches]
    assert not unexpected(again.events)


def segments_on_disk(files: FakeFileSystem) -> list[str]:
    return [path for path in files.tree(GROUP) if path.endswith(".log")]


def test_bug_22_a_crash_at_any_point_of_a_truncation_leaves_contiguous_segments() -> None:
    bench = with_batches(0)
    for _ in range(60):
        bench.append(1, 1)
        bench.housekeep()
    segments = bench.log(1).segments
    index = segments[-4].first_index + 2
    paths = segments_on_disk(bench.files)
    entries, after = bench.append_entries(1, 1, index=index)
    crashes: list[FakeFileSystem] = []

    def before_call(operation: str, path: str) -> None:
        if operation in ("unlink", "truncate", "pwritev", "sync"):
            crashes.append(bench.files.kill())

    bench.files.before_call = before_call
    bench.round(entries, after)
    bench.files.before_call = None

    left = [segments_on_disk(files) for files in crashes]
    assert {len(names) for names in left} >= {len(paths) - unlinked for unlinked in range(4)}
    for files, names in zip(crashes, left, strict=True):
        assert names == paths[: len(names)]
        log = open_store(files).groups[1]
        assert [header.index for header in log.headers_from(1)] == list(range(1, log.end.index + 1))
        assert log.end.index in (60, index)


def test_bug_23_batches_beyond_4_gib_and_offsets_beyond_32_bits_are_found() -> None:
    files = FakeFileSystem()
    store = open_store(files)
    offset = (1 << 32) - 4
    start = new_start()._replace(index=offset, term=1, offset=offset, chain=first_chain(CLUSTER_ID, TOPIC_ID, 1))
    do(store.create_group(1, start))
    commit(store, [SetStart(1, start), SetHardState(1, HardState(1, NODE, 0))])
    log = store.groups[1]
    batches = make_batches(log.end, 4)
    append(store, 1, batches[:1])
    # The segment goes on beyond 4 GiB, as if it were full of batches up to there.
    segment = log.active
    assert segment is not None
    for number, batch in enumerate(batches[1:]):
        segment.end_position = (1 << 32) - 1_000 + 4_000 * number
        segment.allocated = segment.end_position + 4_000
        commit(store, [Append(1, batch)])

    for number, batch in enumerate(batches):
        for result in (
            log.plan_read(offset + 2 * number, log.written_next_offset, 1).run(),
            log.plan_read_index(offset + 1 + number, log.written_index + 1, 1).run(),
        ):
            assert result is not None
            assert bytes(result.batches) == batch.to_bytes()
            assert (result.first_offset, result.first_index) == (offset + 2 * number, offset + 1 + number)
    assert log.end_place.position > 1 << 32
    assert open_store(files.crash(None)).groups[1].end == log.end


def test_bug_24_a_new_journal_file_and_a_new_segment_survive_a_power_cut() -> None:
    bench = with_batches(1)
    numbers = set()

    for _ in range(60):
        bench.append(1, 1, value_bytes=3_000)
        bench.housekeep()
        if bench.store.journal.current.number not in numbers:
            numbers.add(bench.store.journal.current.number)
            assert promised_after_a_power_cut(bench)

    assert bench.store.journal.current.number > bench.store.journal.file_count, "journal files were recycled"
    assert len(bench.log(1).segments) > 20


def test_a_round_that_failed_leaves_the_suffix_that_it_was_to_replace() -> None:
    bench = with_batches(6)
    bench.store.close()
    # Opened again, the journal holds no batch any more: the segment alone does.
    bench.reopen(bench.files)
    made = bench.begin(*bench.append_entries(1, 2, index=4))
    bench.files.fail("pwritev", "*/journal/*", 1, errno.EIO)

    with pytest.raises(OSError, match="Input/output"):
        made.write()

    for left in (bench.files.kill(), bench.files.crash(None), bench.files.crash(random.Random(1))):
        store = open_store(left)
        assert observed_store(store) == observed_model(bench.durable)
        assert store.groups[1].floor is None
