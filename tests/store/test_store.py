"""The store as its owner sees it: opening, rounds, reading back, opening again."""

from logd.store.events import IndexRebuilt
from tests.store.support import add_group, append, housekeep, joined, make_batches, open_store, stored
from tests.support.fake_files import FakeFileSystem


def test_what_was_appended_is_read_back_after_a_clean_stop() -> None:
    files = FakeFileSystem()
    store = open_store(files)
    log = add_group(store, 1)
    batches = make_batches(log.end, 10)
    append(store, 1, batches)
    assert stored(log) == joined(batches)
    housekeep(store)
    store.close()

    again = open_store(files)

    assert stored(again.groups[1]) == joined(batches)
    assert again.groups[1].end == log.end
    assert again.groups[1].hard_state == log.hard_state
    assert again.events == []


def test_what_was_promised_survives_a_power_cut() -> None:
    files = FakeFileSystem()
    store = open_store(files)
    log = add_group(store, 1)
    batches = make_batches(log.end, 100)
    for batch in batches:
        append(store, 1, [batch])
        housekeep(store)

    again = open_store(files.crash(None))

    assert stored(again.groups[1]) == joined(batches)
    # The index of the active segment is a hint, and nobody syncs its name.
    assert [event for event in again.events if not isinstance(event, IndexRebuilt)] == []
