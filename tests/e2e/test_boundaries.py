"""kill -9 exactly before a system call: some of the boundaries that `python -m tests.e2e.boundaries --all` visits."""

from pathlib import Path

import pytest
import trio

from tests.e2e.boundaries import SETTINGS, Boundary, Killed, visit
from tests.support.daemon import has_strace

pytestmark = pytest.mark.skipif(bool(has_strace()), reason=has_strace())

# One for each thing that the node does to the disk, in the middle of the script.
RUNNING = (
    "writer:pwritev2:41",  # a round into the journal
    "writer:fdatasync:42",  # after it, before the promise
    "writer:pwritev2:44",  # batches into their segments
    "housekeeper:fallocate:9",  # a segment's space
    "housekeeper:ftruncate:1",  # a sealed segment cut to its end
    "housekeeper:unlink:2",  # what retention gave up, or a deleted topic's files
)
OPENING = ("opening:mkdir:4", "opening:rename:7")
RECOVERY = ("recovery:pwritev2:1", "recovery:fdatasync:2")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    return trio.run(Killed.prepare, tmp_path_factory.mktemp("killed"))


@pytest.mark.parametrize("boundary", [*OPENING, *RECOVERY, *RUNNING])
async def test_a_node_killed_before_a_call_keeps_what_it_acknowledged(
    boundary: str, tmp_path: Path, killed: Killed
) -> None:
    assert await visit(tmp_path, Boundary.parse(boundary), killed), f"{SETTINGS} no longer lead to {boundary}"
