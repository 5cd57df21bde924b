"""Claims about the room of a round: what was admitted can be written, and what was not says what it lacks."""

from hypothesis import given, settings
from hypothesis import strategies as st

from logd.replica.room import Admission, Shortage, StoreRoom
from logd.store.format import HardState, LogEnd
from logd.store.log import Log
from logd.store.round import Append, RoundEntry, SetHardState
from logd.store.store import Store
from tests.store.support import (
    KIB,
    NODE,
    SMALL,
    add_group,
    append,
    commit,
    do,
    end_of,
    housekeep,
    make_batch,
    open_store,
    stored,
)
from tests.support.fake_files import FakeFileSystem
from wire.record import StampedBatch

TAKEN, ROUND_FULL, NO_SPACE = Admission.TAKEN, Admission.ROUND_FULL, Admission.NO_SPACE


def opened(*groups: int) -> Store:
    """A store whose groups hold three batches each."""
    store = open_store(FakeFileSystem())
    for group in groups:
        log = add_group(store, group)
        for _ in range(3):
            append(store, group, [make_batch(log.end)])
    return store


def room_of(store: Store, round_bytes_max: int = SMALL.round_bytes_max) -> StoreRoom:
    return StoreRoom(store, round_bytes_max)


def provide(store: Store, room: StoreRoom) -> None:
    """Have the space allocated that groups were short of."""
    for group, (batch_bytes, control, index) in room.short.items():
        for _ in range(5):
            job = store.groups[group].space_for(batch_bytes, index=index, control=control)
            if job is None:
                break
            do(job)


def ask(room: StoreRoom, group: int, batch: StampedBatch, *, control: bool = False) -> Admission:
    return room.admit(group, batch.batch_bytes, control=control, index=batch.header.index)


def test_a_new_log_has_no_space_until_a_segment_is_made() -> None:
    store = open_store(FakeFileSystem())
    log = add_group(store, 1)
    batch = make_batch(log.end)
    room = room_of(store)
    assert ask(room, 1, batch) is NO_SPACE
    assert room.short == {1: Shortage(batch.batch_bytes, False, None)}
    provide(store, room)
    room = room_of(store)
    assert ask(room, 1, batch) is TAKEN
    assert room.short == {}
    commit(store, [Append(1, batch)])
    assert stored(log) == batch.to_bytes()


def test_what_a_group_took_counts_for_what_it_asks_next() -> None:
    store = opened(1)
    log = store.groups[1]
    room = room_of(store)
    batches: list[StampedBatch] = []
    end = log.end
    while True:
        batch = make_batch(end, value_bytes=400)
        if ask(room, 1, batch) is not TAKEN:
            break
        batches.append(batch)
        end = end_of(batch)
    # The segment was not grown for them: they fill what was allocated, and no more.
    assert room.short == {1: Shortage(batch.batch_bytes, False, None)}
    assert len(batches) > 2
    commit(store, [Append(1, taken) for taken in batches])
    assert log.end == end


def test_one_group_without_space_keeps_no_other_out() -> None:
    store = opened(1)
    log = add_group(store, 2)
    room = room_of(store)
    assert ask(room, 2, make_batch(log.end), control=True) is NO_SPACE
    assert ask(room, 1, make_batch(store.groups[1].end)) is TAKEN
    assert room.short[2].control


def test_a_full_round_takes_nothing_and_asks_for_no_space() -> None:
    store = opened(1)
    batch = make_batch(store.groups[1].end, value_bytes=800)
    room = room_of(store, 4 * KIB)
    taken = 0
    while ask(room, 1, batch) is TAKEN:
        taken += 1
    assert taken > 0
    assert ask(room, 1, batch) is ROUND_FULL
    assert room.short == {}
    # Something smaller may still find its place.
    assert ask(room, 1, make_batch(store.groups[1].end, value_bytes=1)) is TAKEN


def test_entries_without_payload_fill_a_round_too() -> None:
    store = opened(1)
    room = room_of(store, 4 * KIB)
    count = 0
    while room.admit_entry():
        count += 1
    assert 0 < count < 100
    assert ask(room, 1, make_batch(store.groups[1].end)) is ROUND_FULL


def test_a_batch_that_takes_the_place_of_others_needs_their_place_cut() -> None:
    store = opened(1)
    log = store.groups[1]
    commit(store, [SetHardState(1, HardState(2, NODE, 1))])
    (first,) = log.headers_from(1, 2)
    before = LogEnd(first.index, first.term, first.next_offset, first.append_timestamp, first.chain)
    batch = make_batch(before, term=2)
    following = make_batch(end_of(batch), term=2)
    room = room_of(store)
    assert ask(room, 1, batch) is NO_SPACE
    assert room.short == {1: Shortage(batch.batch_bytes, False, 2)}
    provide(store, room)
    room = room_of(store)
    assert ask(room, 1, batch) is TAKEN
    # What follows in the same round stands behind it, not behind what it replaces.
    assert ask(room, 1, following) is TAKEN
    commit(store, [Append(1, batch), Append(1, following)])
    assert log.end == end_of(following)


def test_a_place_that_was_cut_for_one_index_is_none_for_another() -> None:
    store = opened(1)
    log = store.groups[1]
    provided = room_of(store)
    assert provided.admit(1, 300, control=False, index=3) is NO_SPACE
    provide(store, provided)
    room = room_of(store)
    assert room.admit(1, 300, control=False, index=2) is NO_SPACE
    assert room.short[1].index == 2
    assert room_of(store).admit(1, 300, control=False, index=3) is TAKEN
    assert log.end.index == 3


SIZES = st.lists(st.tuples(st.integers(1, 2), st.integers(0, 900), st.integers(0, 3)), min_size=1, max_size=30)


@given(st.lists(SIZES, min_size=1, max_size=5), st.sampled_from([8 * KIB, 16 * KIB, 32 * KIB]))
@settings(max_examples=40, deadline=None)
def test_whatever_was_admitted_can_be_written(rounds: list[list[tuple[int, int, int]]], round_bytes_max: int) -> None:
    store = opened(1, 2)
    for wanted in rounds:
        room = room_of(store, round_bytes_max)
        ends: dict[int, LogEnd] = {}
        entries: list[RoundEntry] = []
        short: set[int] = set()
        for group, value_bytes, back in wanted:
            log: Log = store.groups[group]
            if value_bytes == 0 and room.admit_entry() and group not in ends:
                hard_state = log.hard_state
                assert hard_state is not None
                entries.append(SetHardState(group, hard_state))
                continue
            if group in short:
                continue
            end = ends.get(group, log.end)
            if group not in ends and back and log.end.index - back > log.start.index:
                (header,) = log.headers_from(log.end.index - back, log.end.index - back + 1)
                end = LogEnd(header.index, header.term, header.next_offset, header.append_timestamp, header.chain)
            batch = make_batch(end, value_bytes=value_bytes)
            match ask(room, group, batch):
                case Admission.TAKEN:
                    entries.append(Append(group, batch))
                    ends[group] = end_of(batch)
                case Admission.NO_SPACE:
                    short.add(group)
                case Admission.ROUND_FULL:
                    break
        entries.sort(key=lambda entry: isinstance(entry, Append))
        commit(store, entries)
        for group, end in ends.items():
            assert store.groups[group].end == end
        # The journal has a file for the next round.
        housekeep(store)
        provide(store, room)
