"""An operator accepts a loss, while no node runs."""

import pytest

from logd.store.errors import StoreLocked, StoreRefused
from logd.store.offline import accept_loss
from tests.store.support import DIRECTORY, append, make_batch, open_store
from tests.store.test_recovery import lose_the_end
from tests.support.fake_files import FakeFileSystem


def test_a_lost_end_is_accepted_once_and_the_log_goes_on_from_there() -> None:
    files = lose_the_end()
    before = open_store(files.kill()).groups[1]
    assert before.floor is not None

    loss = accept_loss(files, DIRECTORY, 1)

    assert loss is not None
    assert (loss.first_index, loss.next_index) == (before.end.index + 1, before.floor.index + 1)
    assert loss.next_offset == before.end.next_offset
    assert accept_loss(files, DIRECTORY, 1) is None, "nothing is lost any more"
    store = open_store(files.crash(None))
    assert store.groups[1].floor is None
    append(store, 1, [make_batch(store.groups[1].end, salt=9)])
    assert open_store(files.crash(None)).groups[1].end.index == before.end.index


def test_a_loss_is_not_accepted_under_a_running_node() -> None:
    files = lose_the_end()
    running = open_store(files)

    with pytest.raises(StoreLocked):
        accept_loss(files, DIRECTORY, 1)

    assert running.groups[1].floor is not None


@pytest.mark.parametrize(("directory", "group"), [(DIRECTORY, 77), ("/elsewhere", 1)])
def test_what_is_not_there_is_refused_by_name(directory: str, group: int) -> None:
    files: FakeFileSystem = lose_the_end()

    with pytest.raises(StoreRefused, match=r"77|elsewhere"):
        accept_loss(files, directory, group)
