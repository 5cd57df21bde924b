"""Work on the disk that happens on another thread than the one that owns the memory.

For: whoever hands jobs to threads. Must not know: threads. The one idea: `run` makes system calls on what was captured
when the job was made and touches no shared memory; `apply`, on the owner's thread after `run` returned, makes the
result known. Between the two the owner may go on.
"""

import contextlib
import errno
from collections.abc import Iterator
from typing import Protocol

from logd.store.files import File, FileSystem


class Job(Protocol):
    """One piece of work. Jobs of one kind of thread run one at a time, in the order in which they were made."""

    def run(self) -> None:
        """Make the system calls, on any thread. Raises OSError; then `apply` must not be called.

        Unless the job says otherwise, an error means that the process must promise nothing more and exit.
        """

    def apply(self) -> None:
        """Make the result known, on the owner's thread."""


class Barrier:
    """A job that does nothing: whoever waits for it has waited for all that was handed in before."""

    def run(self) -> None:
        """Nothing."""

    def apply(self) -> None:
        """Nothing."""


@contextlib.contextmanager
def _never_a_full_disk() -> Iterator[None]:
    """A failed sync is final: where ENOSPC has a meaning of its own (`SpaceJob`), it must not look like that."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(errno.EIO, "a sync failed for want of space", error.filename) from error


def sync(file: File) -> None:
    """Sync a file; a failure is never ENOSPC."""
    with _never_a_full_disk():
        file.sync()


def sync_directory(files: FileSystem, path: str) -> None:
    """Sync a directory; a failure is never ENOSPC."""
    with _never_a_full_disk():
        files.sync_directory(path)
