"""Which of etcd's files there are, and what happens where they cannot be had."""

from pathlib import Path

import pytest

from tests.raft.datadriven import parse
from tests.raft.etcd.files import (
    CONFIGURATION_FILES,
    INTERACTION_FILES,
    PACKAGE,
    QUORUM_FILES,
    ROOT_IN_PACKAGE,
    Directories,
    Unavailable,
)
from tests.raft.etcd.files import directories as fetch_directories


def test_there_are_22_files_and_each_of_them_is_run(directories: Directories) -> None:
    there = [sorted(path.name for path in directory.iterdir()) for directory in directories]
    run = [list(QUORUM_FILES), list(CONFIGURATION_FILES), list(INTERACTION_FILES)]
    assert there == run
    assert sum(len(names) for names in there) == 4 + 9 + 9 == 22


def test_etcd_has_its_data_files_nowhere_else(directories: Directories) -> None:
    root = directories.interaction.parent
    assert {path.parent for path in root.rglob("testdata/*")} == set(directories)


def test_every_file_holds_cases(directories: Directories) -> None:
    counts = [
        len(list(parse(path.read_text(), path.name))) for directory in directories for path in directory.iterdir()
    ]
    assert min(counts) > 0
    assert sum(counts) == 275


def test_without_apt_the_reason_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="there is no no-such-apt here"):
        fetch_directories(tmp_path, "no-such-apt")
    assert [path.name for path in tmp_path.iterdir()] == [".gitignore"]


def test_what_apt_says_when_it_cannot_reach_anything_is_the_reason(tmp_path: Path) -> None:
    apt = tmp_path / "apt"
    apt.write_text("#!/bin/sh\necho 'W: hm' >&2\necho 'E: no route to anywhere' >&2\nexit 100\n")
    apt.chmod(0o755)
    with pytest.raises(Unavailable, match="failed: E: no route to anywhere"):
        fetch_directories(tmp_path / "cache", str(apt))
    assert not (tmp_path / "cache" / PACKAGE).exists()


def test_what_is_in_the_cache_is_not_fetched_again(tmp_path: Path) -> None:
    (tmp_path / PACKAGE).mkdir()
    found = fetch_directories(tmp_path, "no-such-apt")
    assert found.interaction == tmp_path / PACKAGE / ROOT_IN_PACKAGE / "testdata"
