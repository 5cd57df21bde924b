"""One flipped bit at every byte that means something, in every kind of file.

Whatever is hit: what the store says is what it promised, or it says that something is missing. It never serves other
bytes as right, and never takes damage for the end of a log.
"""

import itertools
from collections.abc import Callable, Iterator

import pytest

from logd.store.errors import JournalLost, StoreRefused
from logd.store.journal import find_heads
from logd.store.store import Store
from tests.store.model import Bench, ModelLog, Observed, observed_model
from tests.store.support import DIRECTORY, JOURNAL_ID, end_of, open_store
from tests.support.fake_files import FakeFileSystem
from wire.errors import CorruptBatch
from wire.record import check_alone, check_in_place, split_batches

GROUP = f"{DIRECTORY}/groups/{1:020d}"
SEGMENT = f"{GROUP}/{1:020d}.log"
JOURNAL = f"{DIRECTORY}/journal/{1:020d}"


def lived() -> Bench:
    """Two groups, a vote, a replaced suffix, a moved start, all in one journal file, confirmed by an empty round."""
    bench = Bench(FakeFileSystem())
    bench.create(1)
    bench.append(1, 3, value_bytes=30)
    bench.set_hard_state(1, 3)
    bench.append(1, 2, index=3, value_bytes=20)
    bench.create(2)
    bench.append(2, 1)
    bench.remove(2)
    bench.move_start(1, end_of(bench.durable[1].batches[0]), keeps_suffix=True)
    bench.append(1, 1)
    bench.round([], bench.copy())
    return bench


def read_verified(store: Store, group: int) -> bytes:
    """All of a log as a client reads it: every batch verified alone and in its place. Raises CorruptBatch."""
    log = store.groups[group]
    parts = []
    index = log.start.index + 1
    previous = None
    while index <= log.end.index:
        result = log.plan_read_index(index, log.end.index + 1, 1 << 20).run()
        assert result is not None
        for batch in split_batches(result.batches):
            header = check_alone(batch)
            if previous is not None:
                check_in_place(header, previous)
            previous = header
            parts.append(bytes(batch))
        index = result.next_index
    if previous is not None and previous.chain != log.end.chain:
        raise CorruptBatch("the last batch is not the promised one")
    return b"".join(parts)


def flips(data: bytes, ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """A position and a bit for each byte of some ranges; the bit goes round."""
    bits = itertools.cycle(range(8))
    for begin, end in ranges:
        for position in range(begin, min(end, len(data))):
            yield position, next(bits)


def check_flips(
    made: FakeFileSystem, path: str, ranges: list[tuple[int, int]], check: Callable[[FakeFileSystem, int], None]
) -> None:
    count = 0
    for position, bit in flips(made.contents(path), ranges):
        files = made.kill()
        files.flip_bit(path, position, bit)
        try:
            check(files, position)
        except AssertionError as error:
            raise AssertionError(f"bit {bit} of byte {position} of {path}: {error}") from error
        count += 1
    assert count > 100


def says_what_was_promised_or_what_is_missing(files: FakeFileSystem, promised: Observed) -> None:
    try:
        store = open_store(files)
    except (JournalLost, StoreRefused):
        return
    for group, (start, hard_state, data) in promised.items():
        assert group in store.groups, "a group is gone"
        log = store.groups[group]
        if log.hard_state is not None:
            assert log.hard_state == hard_state, "an older hard state"
        if log.is_start_readable:
            assert log.start == start
        try:
            found = read_verified(store, group)
        except CorruptBatch:
            found = b""
            assert log.floor is not None or log.damage or log.written.index == log.end.index
            continue
        if log.floor is None:
            assert found == data, "another log, and no word of it"
        else:
            assert data.startswith(found), "bytes that were never promised"
    assert set(store.groups) == set(promised) or any(log.hard_state is None for log in store.groups.values())


def test_a_flipped_bit_in_the_journal() -> None:
    bench = lived()
    promised = observed_model(bench.durable)
    files = bench.files.crash(None)
    reader = files.open(JOURNAL, writable=False)
    heads = {head.position: head for head in find_heads(reader, JOURNAL_ID, 1, 0)}
    ranges = [(0, 200), (4096, 4296)]
    for head in list(heads.values())[::2]:
        used = head.batches_position + sum(getattr(entry, "place", (0, 0, 0))[2] for entry in head.entries)
        ranges += [(head.position, used), (head.end_position - head.head_bytes - 60, head.end_position)]

    check_flips(files, JOURNAL, ranges, lambda after, _: says_what_was_promised_or_what_is_missing(after, promised))


def clean() -> tuple[FakeFileSystem, ModelLog]:
    """The same, but the journal holds no batch any more: only the segment does."""
    bench = lived()
    bench.housekeep()
    bench.store.close()
    bench.reopen(bench.files)
    bench.store.close()
    return bench.files, bench.durable[1]


def test_a_flipped_bit_in_a_segment_is_never_served_as_right() -> None:
    files, model = clean()
    data = b"".join(batch.to_bytes() for batch in model.batches)
    first = files.contents(SEGMENT).index(data)

    def check(after: FakeFileSystem, position: int) -> None:
        store = open_store(after)
        log = store.groups[1]
        try:
            found = read_verified(store, 1)
        except CorruptBatch:
            return
        if log.floor is None:
            raise AssertionError("the damage went unnoticed")
        assert data.startswith(found)
        assert log.floor.index == model.end.index

    check_flips(files, SEGMENT, [(first, first + len(data))], check)


@pytest.mark.parametrize("suffix", ["log", "index"])
def test_a_flipped_bit_in_a_hint_is_harmless(suffix: str) -> None:
    files, model = clean()
    data = b"".join(batch.to_bytes() for batch in model.batches)
    path = f"{GROUP}/{1:020d}.{suffix}"

    def check(after: FakeFileSystem, position: int) -> None:
        store = open_store(after)
        assert read_verified(store, 1) == data
        log = store.groups[1]
        result = log.plan_read(log.log_start_offset, log.written_next_offset, 1 << 20).run()
        assert result is not None
        assert bytes(result.batches) == data

    check_flips(files, path, [(0, 184 if suffix == "log" else 1 << 20)], check)


def test_a_flipped_bit_in_a_start_file_is_reported() -> None:
    files, model = clean()
    path = f"{GROUP}/{model.start.index:020d}.start"

    def check(after: FakeFileSystem, position: int) -> None:
        store = open_store(after)
        assert not store.groups[1].is_start_readable
        assert read_verified(store, 1) == b"".join(batch.to_bytes() for batch in model.batches)

    check_flips(files, path, [(0, 1 << 20)], check)


def test_a_flipped_bit_in_the_node_file_refuses_the_directory() -> None:
    files, _ = clean()

    def check(after: FakeFileSystem, position: int) -> None:
        with pytest.raises(StoreRefused):
            open_store(after)

    check_flips(files, f"{DIRECTORY}/node.json", [(0, 1 << 20)], check)


def test_swapped_and_stale_blocks_are_noticed() -> None:
    bench = Bench(FakeFileSystem())
    bench.create(1)
    bench.append(1, 10, value_bytes=800)
    bench.round([], bench.copy())
    data = observed_model(bench.durable)[1][2]
    for first, second in ((4096, 8192), (8192, 4096)):
        after = bench.files.kill()
        block = after.contents(SEGMENT)[second : second + 4096]
        after.overwrite(SEGMENT, first, block)
        # The journal still has all of it.
        store = open_store(after)
        assert read_verified(store, 1) == data
    bench.store.close()
    bench.reopen(bench.files)
    bench.store.close()
    after = bench.files.kill()
    block = after.contents(SEGMENT)[8192 : 8192 + 2048]
    after.overwrite(SEGMENT, 4096, block)
    store = open_store(after)
    with pytest.raises(CorruptBatch):
        read_verified(store, 1)
