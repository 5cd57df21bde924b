"""What is given up: where a log may begin anew, and the files that nothing needs any more.

For: the leader that decides on retention, and housekeeping. Must not know: clocks, or whether a limit is policy. The
one idea: retention moves a log's start to a segment's boundary and nothing else; files disappear only afterwards,
lowest first, so that what a crash leaves is always contiguous.
"""

from itertools import pairwise
from typing import TYPE_CHECKING, Final

from logd.store.context import Context
from logd.store.errors import Unreadable
from logd.store.files import FileSystem
from logd.store.format import LogEnd
from logd.store.read import SegmentSource
from logd.store.segment import load_before

if TYPE_CHECKING:
    from logd.store.log import Log

# One job unlinks so many files: it shares its thread with jobs that somebody waits for.
UNLINKS_PER_JOB_MAX: Final = 64


class Garbage:
    """Files and directories to be unlinked by housekeeping. Owner's thread."""

    def __init__(self) -> None:
        self._paths: list[str] = []
        self._directories: list[str] = []

    def __len__(self) -> int:
        return len(self._paths) + len(self._directories)

    def add(self, paths: list[str]) -> None:
        """Unlink these files, in this order, after all that was added before."""
        self._paths += paths

    def add_directory(self, path: str) -> None:
        """Remove this directory and the files in it."""
        self._directories.append(path)

    def spare(self, path: str) -> None:
        """A file or directory of this name is about to be made anew, by a job that replaces what is there.

        With a directory goes all that is in it: the same names will mean other files.
        """
        below = f"{path}/"
        self._paths = [kept for kept in self._paths if kept != path and not kept.startswith(below)]
        self._directories = [kept for kept in self._directories if kept != path]

    def take_job(self, context: Context) -> "GarbageJob | None":
        """The next portion, or None."""
        if not self._paths and not self._directories:
            return None
        paths, self._paths = self._paths[:UNLINKS_PER_JOB_MAX], self._paths[UNLINKS_PER_JOB_MAX:]
        directories, self._directories = self._directories[:1], self._directories[1:]
        return GarbageJob(context, paths, directories)


class GarbageJob:
    """Unlinks what was given up."""

    def __init__(self, context: Context, paths: list[str], directories: list[str]) -> None:
        self._context = context
        self._paths = paths
        self._directories = directories

    def run(self) -> None:
        """Unlink, in order. What is not there any more is none of its business."""
        files = self._context.files
        for path in self._paths:
            if files.exists(path):
                files.unlink(path)
        for directory in self._directories:
            remove_directory(files, directory)
            files.sync_directory(self._context.layout.groups)

    def apply(self) -> None:
        """Nothing: the names were forgotten before."""


def remove_directory(files: FileSystem, directory: str) -> None:
    """Remove a directory with the files in it; the removal is durable after a sync of the one that holds it."""
    if not files.exists(directory):
        return
    for name in files.listdir(directory):
        files.unlink(f"{directory}/{name}")
    files.rmdir(directory)


def retention_boundary(log: "Log", now_ms: int, retention_bytes: int | None, retention_ms: int | None) -> LogEnd | None:
    """See `Log.retention_boundary`."""
    surplus = log.retained_bytes - retention_bytes if retention_bytes is not None else 0
    boundary: LogEnd | None = None
    for segment, following in pairwise(log.segments):
        before = following.before
        if before is None:
            try:
                before = load_before(SegmentSource(log.context, following), log.context, following)
            except Unreadable:
                break
        is_surplus = retention_bytes is not None and surplus >= segment.end_position
        is_old = retention_ms is not None and before.append_timestamp < now_ms - retention_ms
        if not is_surplus and not is_old:
            break
        # A start may only stand where everything was promised, and was read back as far as readers know.
        if before.index > min(log.end.index, log.written.index):
            break
        surplus -= segment.end_position
        if before.index > log.start.index:
            boundary = before
    return boundary
