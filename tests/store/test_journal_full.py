"""A journal whose files are all needed still: rounds wait, and go on."""

from dataclasses import replace

import pytest

from logd.store.errors import JournalFull
from logd.store.store import Store
from tests.store.support import SMALL, add_group, append, do, housekeep, make_batch, open_store, stored
from tests.support.fake_files import FakeFileSystem


def fill_the_journal(store: Store) -> None:
    """Append without syncing a single segment, as if the disk were too slow for it, until no round can be made."""
    log = store.groups[1]

    def append_for_ever() -> None:
        while True:
            do(store.journal.spare_job())
            append(store, 1, [make_batch(log.end, value_bytes=8 << 10)])

    with pytest.raises(JournalFull):
        append_for_ever()


def test_a_journal_that_filled_up_goes_on_once_its_oldest_file_is_clean() -> None:
    store = open_store(FakeFileSystem(), replace(SMALL, journal_files_max=3, segment_bytes_max=1 << 20))
    log = add_group(store, 1)

    for _ in range(5):
        fill_the_journal(store)
        promised = log.end.index
        housekeep(store)
        append(store, 1, [make_batch(log.end)])
        assert log.end.index == promised + 1

    assert store.journal.file_count == 3
    assert stored(log)


def test_no_round_goes_into_the_last_file_while_all_others_are_needed() -> None:
    store = open_store(FakeFileSystem(), replace(SMALL, journal_files_max=3, segment_bytes_max=1 << 20))
    add_group(store, 1)

    fill_the_journal(store)

    assert store.journal.spare is not None, "the table that frees a file has a place to go"
