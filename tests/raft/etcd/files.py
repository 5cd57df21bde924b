"""etcd's own data files, from Debian's package of etcd 3.4, to run this core on.

They are fetched when tests run, and kept in `.cache` beside the checkout's other files; nothing of them is committed.
"""

import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

PACKAGE: Final = "golang-etcd-server-dev"
CACHE: Final = Path(__file__).resolve().parents[3] / ".cache"
ROOT_IN_PACKAGE: Final = Path("usr/share/gocode/src/go.etcd.io/etcd/raft")

QUORUM_FILES: Final = ("joint_commit.txt", "joint_vote.txt", "majority_commit.txt", "majority_vote.txt")
CONFIGURATION_FILES: Final = (
    "joint_autoleave.txt",
    "joint_idempotency.txt",
    "joint_learners_next.txt",
    "joint_safety.txt",
    "simple_idempotency.txt",
    "simple_promote_demote.txt",
    "simple_safety.txt",
    "update.txt",
    "zero.txt",
)
INTERACTION_FILES: Final = (
    "campaign.txt",
    "campaign_learner_must_vote.txt",
    "confchange_v1_add_single.txt",
    "confchange_v1_remove_leader.txt",
    "confchange_v2_add_double_auto.txt",
    "confchange_v2_add_double_implicit.txt",
    "confchange_v2_add_single_auto.txt",
    "confchange_v2_add_single_explicit.txt",
    "snapshot_succeed_via_app_resp.txt",
)

# Together less than what pytest grants a test, so that a network that swallows everything is a reason and not a hang.
DOWNLOAD_SECONDS_MAX: Final = 25.0
UPDATE_SECONDS_MAX: Final = 50.0


class Unavailable(Exception):
    """apt cannot be reached, or does not have the package: the reason is its own words."""


class Directories(NamedTuple):
    """Where the files are, once they are there."""

    quorum: Path
    configuration: Path
    interaction: Path


def directories(cache: Path = CACHE, apt_get: str = "apt-get") -> Directories:
    """The three directories, fetched unless they are in the cache.

    Raises: Unavailable. Whatever else goes wrong (a package that cannot be unpacked, a full disk) is an error.
    """
    package = cache / PACKAGE
    if not package.is_dir():
        _fetch(cache, package, apt_get)
    root = package / ROOT_IN_PACKAGE
    return Directories(root / "quorum/testdata", root / "confchange/testdata", root / "testdata")


def _fetch(cache: Path, package: Path, apt_get: str) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    # Whatever the checkout's list says, nothing in here is ever committed.
    (cache / ".gitignore").write_text("*\n", encoding="utf-8")
    with tempfile.TemporaryDirectory(dir=cache) as name:
        temporary = Path(name)
        _download(temporary, apt_get)
        (archive,) = temporary.glob(f"{PACKAGE}_*.deb")
        unpacked = temporary / "unpacked"
        subprocess.run(["dpkg", "-x", str(archive), str(unpacked)], check=True)
        try:
            # Whole or not at all, also when several test runs do this at once.
            unpacked.rename(package)
        except OSError:
            if not package.is_dir():
                raise


def _download(directory: Path, apt_get: str) -> None:
    """Leave the package in `directory`, if need be after fetching apt's lists, into `directory` too: no root needed."""
    for program in (apt_get, "dpkg"):
        if shutil.which(program) is None:
            raise Unavailable(f"etcd's data files: there is no {program} here")
    try:
        _apt(directory, DOWNLOAD_SECONDS_MAX, [apt_get], "download", PACKAGE)
    except Unavailable:
        lists = directory / "lists"
        (lists / "partial").mkdir(parents=True)
        # Without the mode, an update that reached nobody is a success.
        own = [apt_get, "-o", f"Dir::State::lists={lists}", "-o", "APT::Update::Error-Mode=any"]
        try:
            _apt(directory, UPDATE_SECONDS_MAX, own, "update")
        except Unavailable as reason:
            # One source out of reach need not be the one that has the package.
            with suppress(Unavailable):
                return _apt(directory, DOWNLOAD_SECONDS_MAX, own, "download", PACKAGE)
            raise reason from None
        _apt(directory, DOWNLOAD_SECONDS_MAX, own, "download", PACKAGE)


def _apt(directory: Path, seconds_max: float, program: list[str], *command: str) -> None:
    bounded = [*program, "-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10", *command]
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    what = f"etcd's data files: {Path(program[0]).name} {' '.join(command)}"
    try:
        done = subprocess.run(
            bounded, cwd=directory, env=environment, capture_output=True, text=True, timeout=seconds_max, check=False
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{what} took more than {seconds_max:g} s") from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()[-1:]
        raise Unavailable(f"{what} failed: {' '.join(said[:2])}")
