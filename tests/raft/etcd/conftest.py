"""What the tests that run etcd's data files share."""

import pytest

from tests.raft.etcd.files import Directories, Unavailable
from tests.raft.etcd.files import directories as fetch_directories


@pytest.fixture(scope="session")
def directories() -> Directories:
    """Where etcd's files are. The tests that need them are skipped only if apt cannot be reached."""
    try:
        return fetch_directories()
    except Unavailable as reason:
        pytest.skip(str(reason))
