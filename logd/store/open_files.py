"""The segments' open files: a bounded number of them, shared by all threads.

For: readers, the writer and housekeeping, which all need a segment's file for the time of one call. Must not know: what
is read or written. The one idea: a file is borrowed, and closed only when nobody holds it: evicting, sealing or
unlinking a segment never pulls a file away from a reader.

This is one of the two places in the store with a lock (the other counts loaded indexes): files are opened and closed by
whichever thread needs them, and the alternative, one table for each thread, would multiply the descriptors.
"""

import threading
from collections import OrderedDict
from typing import Protocol

from logd.store.errors import ReadOutdated
from logd.store.files import Buffer, File, FileSystem


class Openable(Protocol):
    """What an open file belongs to."""

    path: str
    is_retired: bool


class _Open:
    __slots__ = ("file", "is_forgotten", "users")

    def __init__(self, file: File) -> None:
        self.file = file
        self.users = 0
        self.is_forgotten = False


class OpenFiles:
    """At most `files_max` files that nobody uses stay open, the most recently used ones."""

    def __init__(self, files: FileSystem, files_max: int) -> None:
        self.files = files
        self._files_max = files_max
        self._lock = threading.Lock()
        # Invariant: least recently used first; holds every open file that is not forgotten.
        self._open: OrderedDict[Openable, _Open] = OrderedDict()

    def borrow(self, owner: Openable, *, only_if_open: bool = False) -> "Borrowed | None":
        """The file of `owner`, until `Borrowed.release`. None if it is not open and `only_if_open`.

        Raises ReadOutdated if the owner was given up, and OSError from opening.
        """
        with self._lock:
            held = self._open.get(owner)
            if held is None:
                if owner.is_retired:
                    raise ReadOutdated(f"{owner.path} was given up")
                if only_if_open:
                    return None
                try:
                    held = self._open[owner] = _Open(self.files.open(owner.path))
                except FileNotFoundError as error:
                    if owner.is_retired:
                        raise ReadOutdated(f"{owner.path} was given up") from error
                    raise
                held.users += 1
                self._evict()
            else:
                held.users += 1
                self._open.move_to_end(owner)
            return Borrowed(self, held)

    def borrow_open(self, owner: Openable) -> "Borrowed":
        """The file of `owner`, opened if need be. Raises as `borrow` does."""
        borrowed = self.borrow(owner)
        assert borrowed is not None
        return borrowed

    def adopt(self, owner: Openable, file: File) -> None:
        """Take over a file that was opened elsewhere."""
        with self._lock:
            if owner in self._open or owner.is_retired:
                file.close()
            else:
                self._open[owner] = _Open(file)
                self._evict()

    def forget(self, owner: Openable) -> None:
        """The owner is gone: close its file as soon as nobody uses it."""
        with self._lock:
            held = self._open.pop(owner, None)
            if held is not None:
                held.is_forgotten = True
                if not held.users:
                    held.file.close()

    def close(self) -> None:
        """Close everything that nobody uses, and the rest when it is given back."""
        with self._lock:
            owners = list(self._open)
        for owner in owners:
            self.forget(owner)

    def _evict(self) -> None:
        """Close the least recently used files above the bound. The lock is held."""
        surplus = len(self._open) - self._files_max
        if surplus <= 0:
            return
        for owner, held in list(self._open.items()):
            if not held.users:
                del self._open[owner]
                held.file.close()
                surplus -= 1
                if not surplus:
                    return

    def release(self, held: _Open) -> None:
        """Give back what `borrow` gave; `Borrowed` calls this."""
        with self._lock:
            held.users -= 1
            if held.is_forgotten and not held.users:
                held.file.close()

    def pread(self, owner: Openable, length: int, position: int) -> bytes:
        """Read from the owner's file; may wait for the disk."""
        with self.borrow_open(owner) as file:
            return file.pread(length, position)

    def pread_nowait(self, owner: Openable, length: int, position: int) -> bytes | None:
        """Read from memory alone; None if that would block."""
        borrowed = self.borrow(owner, only_if_open=True)
        if borrowed is None:
            return None
        try:
            return borrowed.file.pread_nowait(length, position)
        finally:
            borrowed.release()

    def pwritev(self, owner: Openable, buffers: list[Buffer], position: int) -> None:
        """Write into the owner's file, through the page cache."""
        with self.borrow_open(owner) as file:
            file.pwritev(buffers, position)


class Borrowed:
    """A file that stays open until `release`."""

    __slots__ = ("_files", "_held", "file")

    def __init__(self, files: OpenFiles, held: _Open) -> None:
        self.file = held.file
        self._files = files
        self._held = held

    def release(self) -> None:
        """Give the file back. Once."""
        self._files.release(self._held)

    def __enter__(self) -> File:
        return self.file

    def __exit__(self, *_: object) -> None:
        self.release()
