"""Which of etcd's files there are, and what happens where they cannot be had."""

import shutil
import subprocess
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


def apt(directory: Path, script: str) -> str:
    """A program in the place of apt: what it says, and what it leaves where it is run."""
    program = directory / "apt"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def test_what_apt_says_when_it_cannot_reach_anything_is_the_reason(tmp_path: Path) -> None:
    program = apt(tmp_path, "echo 'W: hm' >&2; echo 'E: no route to anywhere' >&2; exit 100")
    with pytest.raises(Unavailable, match="apt update failed: E: no route to anywhere"):
        fetch_directories(tmp_path / "cache", program)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".gitignore"]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A package as small as one can be."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("there is no dpkg-deb here")
    content = tmp_path / "content"
    (content / "DEBIAN").mkdir(parents=True)
    (content / "DEBIAN/control").write_text(
        f"Package: {PACKAGE}\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\n"
        "Description: none\n"
    )
    (content / ROOT_IN_PACKAGE / "testdata").mkdir(parents=True)
    (content / ROOT_IN_PACKAGE / "testdata/one.txt").write_text("go\n----\n")
    archive = tmp_path / f"{PACKAGE}_1_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", content, archive], check=True, capture_output=True)
    return archive


def test_a_package_is_fetched_and_unpacked_and_nothing_else_is_left(tmp_path: Path, archive: Path) -> None:
    found = fetch_directories(tmp_path / "cache", apt(tmp_path, f"cp {archive} ."))
    assert (found.interaction / "one.txt").read_text() == "go\n----\n"
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [".gitignore", PACKAGE]


@pytest.mark.parametrize("update", ["touch updated", "touch updated; echo 'E: one source is gone' >&2; exit 100"])
def test_where_apt_knows_no_packages_yet_it_is_brought_up_to_date_in_a_place_of_its_own(
    tmp_path: Path, archive: Path, update: str
) -> None:
    download = f"test -e updated && cp {archive} ."
    script = f'case "$*" in *lists=*update) {update};; *lists=*download*) {download};; *) exit 1;; esac'
    assert fetch_directories(tmp_path / "cache", apt(tmp_path, script)).interaction.is_dir()
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [".gitignore", PACKAGE]


def test_what_is_in_the_cache_is_not_fetched_again(tmp_path: Path) -> None:
    (tmp_path / PACKAGE).mkdir()
    found = fetch_directories(tmp_path, "no-such-apt")
    assert found.interaction == tmp_path / PACKAGE / ROOT_IN_PACKAGE / "testdata"
