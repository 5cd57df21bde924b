"""A file system in memory that knows what a power cut takes away.

What it is for: running the store's promises against every crash that a disk allows, thousands of times a second and
the same way each time. It passes the contract test of `logd.store.files` (tests/store/test_files_contract.py).

What it must not know: the store's formats. Nothing here depends on what the bytes mean.

Its one idea: two states side by side. What programs see (the page cache: `names`, `view`) changes at once; what the
disk holds (`disk_names`, `disk`) changes only by `sync` and `sync_directory`. Between the two lies an ordered list of
pending operations, and a crash decides for each of them whether it came through.

    fs = FakeFileSystem()
    fs.crash_at(17)                  # SimulatedCrash in place of the 17th call that changes something
    ...                              # the workload
    after = fs.crash(None)           # power cut, the strictest: nothing unsynced survived
    after = fs.crash(Random(3))      # power cut: any part of what is unsynced survived, torn at sectors
    after = fs.kill()                # kill -9: all that was written is there
    fs.fail("sync", "*.segment", nth=2, error_number=errno.EIO)
    fs.inject(DiskFaults(Random(4), read_error=0.01, path_prefix="/data/groups/"))
    fs.flip_bits(Random(5), 1, "/data/groups/")
    fs.capacity_bytes = fs.used_bytes() + 4096   # a full disk; None: as much as you like again
    fs.heal()                        # no more `fail` and `inject`; what they did stays done
    fs.take_work()                   # what the disk had to do since the last time, for whoever makes it slow

`crash` and `kill` leave this object as it is and return an independent one, so that several endings of one history
can be tried. Costs: a write is O(its pages), a crash O(files + unsynced pages); a page of zeros occupies nothing, so
pre-zeroed files of any length are cheap. Unsynced history is kept whole: a file that is written for ever without a sync
occupies memory for ever.

Which crashes are possible (and no others, so that a failing test is never the fake's invention):

* Bytes: the disk writes sectors of 512 bytes, each whole or not at all, in any order; a sector that came through has
  the content of the page cache at some moment since the last sync. Sizes come through in order, but independently of
  the bytes: a file may have grown over bytes that never arrived, which read as zeros or as what was there before.
* Names: a creation, removal or rename comes through whole or not at all, each independently, except that operations
  on the same name keep their order, that a directory is gone only with all that was moved out of it, and that a rename
  to another directory brings that directory along. No name is made durable by the sync of the file itself.
* Failed syncs: the pages count as clean afterwards. Reads show them, the disk lacks them, and a later sync succeeds
  without them, unless they are written again. A directory whose sync failed never becomes more durable; if it was
  `DiskFaults` that failed it, the whole file system is read-only until a power cut, as one is that lost its journal.
* Misdirected writes: a page that a sync should have made durable lands elsewhere. Like after a failed sync, memory
  shows what the disk lacks, at both places, until the pages are evicted or the power is cut; but nobody was told.
* After a power cut nothing is in memory: `pread_nowait` answers None until `pread` has fetched the pages.
"""

import collections
import contextlib
import dataclasses
import errno
import fnmatch
import os
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from logd.store.files import Buffer, File, FileSystem, Lock

PAGE_BYTES = 4096  # The unit of the page cache on the machines that logd runs on, and of this file's bookkeeping.
SECTOR_BYTES = 512  # The unit that disks write whole; 4,096 on most of today's, but only 512 is promised by all.
NAME_BYTES_MAX = 255  # NAME_MAX of Linux file systems.
FREE_BYTES_UNLIMITED = 1 << 40  # What a file system without a capacity says is free when it is empty.

ZERO_PAGE = bytes(PAGE_BYTES)


@dataclasses.dataclass
class DiskFaults:
    """What a bad disk does by chance, to the files whose path begins with `path_prefix`; see `FakeFileSystem.inject`.

    Each number is the probability that a call which could suffer does. Nothing is drawn for a probability of 0, so
    that adding one fault does not change the others' luck.
    """

    chance: random.Random
    read_error: float = 0.0
    """`pread` raises EIO. (`pread_nowait` never asks the disk.)"""
    write_error: float = 0.0
    """`pwritev` raises EIO, with some of its bytes written."""
    sync_error: float = 0.0
    """`sync` and `sync_directory` raise EIO; the top of this file says what that means."""
    misdirected_read: float = 0.0
    """One page of a `pread` is another page of the same or another of these files. Reading again helps."""
    misdirected_write: float = 0.0
    """A `sync` succeeds, but one page of it landed on another page of the same or another of these files."""
    path_prefix: str = ""
    done: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """How often each of them happened, by its name here."""

    def strikes(self, name: str, path: str) -> bool:
        """Whether it happens to this call; counts it."""
        probability: float = getattr(self, name)
        if not probability or not path.startswith(self.path_prefix) or self.chance.random() >= probability:
            return False
        self.done[name] += 1
        return True


@dataclasses.dataclass(slots=True)
class DiskWork:
    """What a disk had to do: whoever simulates a slow one makes a time of it."""

    calls: int = 0
    """All calls of the port, also those that memory answers."""
    fetched_bytes: int = 0
    """Read by `pread` and not in memory."""
    written_bytes: int = 0
    """Handed to `pwritev`: work for memory."""
    syncs: int = 0
    """`sync` and `sync_directory`."""
    synced_bytes: int = 0
    """Whole pages that syncs had to bring to the disk."""


class SimulatedCrash(BaseException):
    """The process ended here. Not an `Exception`: no handler of ordinary errors may survive it."""

    def __init__(self, text: str, torn: random.Random | None = None) -> None:
        super().__init__(text)
        self.torn = torn  # Set on the very call that died, if a part of it is to be done.


class Call(NamedTuple):
    """A call that changes something, numbered from 1 in the order of calls on its file system."""

    number: int
    operation: str
    path: str
    position: int = 0  # of pwritev and allocate; the length for truncate
    length: int = 0  # bytes of pwritev and allocate


@dataclasses.dataclass
class Failure:
    """An error to inject, and how often it was."""

    operation: str
    path_pattern: str
    skip: int  # Matching calls that still succeed.
    times: int | None  # Matching calls that then fail; None: all of them.
    error_number: int
    bytes_done: int  # How many bytes a pwritev writes before it fails.
    raised: int = 0

    def claims(self, operation: str, paths: Iterable[str]) -> bool:
        """Whether this call is to fail; counts it."""
        if operation != self.operation or not any(fnmatch.fnmatchcase(path, self.path_pattern) for path in paths):
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None and self.raised >= self.times:
            return False
        self.raised += 1
        return True


def _error(error_number: int, path: str, other_path: str | None = None) -> OSError:
    """The OSError (of the matching subclass) that the kernel's refusal of a path becomes in Python."""
    if other_path is None:
        return OSError(error_number, os.strerror(error_number), path)
    return OSError(error_number, os.strerror(error_number), path, None, other_path)


# -- bytes


class _Pages:
    """The content of a file: changes of its own over a base that is shared and never changed through it."""

    __slots__ = ("base", "own")

    def __init__(self, base: dict[int, bytes]) -> None:
        self.base = base  # Invariant: holds no page of zeros.
        self.own: dict[int, bytes] = {}

    def page(self, number: int) -> bytes:
        content = self.own.get(number)
        return self.base.get(number, ZERO_PAGE) if content is None else content

    def put(self, number: int, content: bytes) -> None:
        if content is ZERO_PAGE and number not in self.base:
            self.own.pop(number, None)
        else:
            self.own[number] = content

    def read(self, position: int, length: int) -> bytes:
        if length <= 0:
            return b""
        first, last = position // PAGE_BYTES, (position + length - 1) // PAGE_BYTES
        start = position - first * PAGE_BYTES
        if first == last:
            return self.page(first)[start : start + length]
        return b"".join([self.page(number) for number in range(first, last + 1)])[start : start + length]

    def write(self, position: int, data: bytes) -> list[tuple[int, bytes]]:
        """Replace bytes; returns the numbers and the new content of the pages that hold them."""
        pages = []
        done = 0
        while done < len(data):
            number, start = divmod(position + done, PAGE_BYTES)
            count = min(PAGE_BYTES - start, len(data) - done)
            content = data[done : done + count]
            if count < PAGE_BYTES:
                before = self.page(number)
                content = before[:start] + content + before[start + count :]
            if content == ZERO_PAGE:
                content = ZERO_PAGE
            self.put(number, content)
            pages.append((number, content))
            done += count
        return pages

    def cut(self, length: int) -> list[int]:
        """Let all bytes from `length` on be zeros; returns the pages that changed."""
        first, start = divmod(length, PAGE_BYTES)
        changed = []
        if start:
            before = self.page(first)
            if before is not ZERO_PAGE:
                self.put(first, before[:start] + bytes(PAGE_BYTES - start))
                changed.append(first)
            first += 1
        beyond = {number for number in (*self.own, *self.base) if number >= first}
        for number in beyond:
            self.put(number, ZERO_PAGE)
        return [*changed, *beyond]


class _Extents:
    """Which pages of a file have space on the disk."""

    __slots__ = ("ranges",)

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self.ranges = list(ranges)  # Invariant: ascending, half-open, neither overlapping nor touching.

    def page_count(self) -> int:
        return sum([end - start for start, end in self.ranges])

    def missing(self, start: int, end: int) -> int:
        """How many pages of the range have no space yet."""
        return end - start - sum([max(0, min(end, e) - max(start, s)) for s, e in self.ranges])

    def add(self, start: int, end: int) -> None:
        if start >= end or not self.missing(start, end):
            return
        apart = [(s, e) for s, e in self.ranges if e < start or s > end]
        touching = [(s, e) for s, e in self.ranges if not (e < start or s > end)]
        merged = (min([start, *(s for s, _ in touching)]), max([end, *(e for _, e in touching)]))
        self.ranges = sorted([*apart, merged])

    def cut(self, end: int) -> None:
        self.ranges = [(s, min(e, end)) for s, e in self.ranges if s < end]


def _pages_up_to(length: int) -> int:
    return -(-length // PAGE_BYTES)


class _Write(NamedTuple):
    """A pending write: the pages it touched as they were after it."""

    start: int
    end: int
    pages: list[tuple[int, bytes]]


class _Truncate(NamedTuple):
    length: int


class _Allocate(NamedTuple):
    start: int
    end: int


class _Regular:
    """A regular file without its name."""

    __slots__ = (
        "dirty",
        "disk",
        "disk_extents",
        "disk_is_shared",
        "disk_size",
        "extents",
        "in_memory",
        "is_linked",
        "is_locked",
        "open_count",
        "operations",
        "size",
        "view",
    )

    def __init__(self) -> None:
        self.disk: dict[int, bytes] = {}
        self.disk_is_shared = False  # With the file system that this one is an ending of: copied before it changes.
        self.disk_size = 0
        self.disk_extents = _Extents()
        self.view = _Pages(self.disk)
        self.size = 0
        self.extents = _Extents()
        # Invariant: a page of `view.own` that is not here is one that a failed sync lost.
        self.dirty: set[int] = set()
        self.operations: list[_Write | _Truncate | _Allocate] = []
        self.in_memory: set[int] | None = None  # Pages that pread_nowait can read; None: all.
        self.open_count = 0
        self.is_linked = True
        self.is_locked = False

    def copy(self) -> "_Regular":
        """The same file for another file system: unlocked, not open, and with a name, or it will not be found."""
        self.disk_is_shared = True
        other = _Regular()
        other.disk = self.disk
        other.disk_is_shared = True
        other.disk_size = self.disk_size
        other.disk_extents = _Extents(self.disk_extents.ranges)
        other.view = _Pages(self.disk)
        other.view.own = dict(self.view.own)
        other.size = self.size
        other.extents = _Extents(self.extents.ranges)
        other.dirty = set(self.dirty)
        other.operations = list(self.operations)
        other.in_memory = None if self.in_memory is None else set(self.in_memory)
        return other

    # Changes of what programs see.

    def write(self, position: int, data: bytes) -> None:
        pages = self.view.write(position, data)
        self.operations.append(_Write(position, position + len(data), pages))
        numbers = [number for number, _ in pages]
        self.dirty.update(numbers)
        if self.in_memory is not None:
            self.in_memory.update(numbers)
        self.size = max(self.size, position + len(data))
        self.extents.add(position // PAGE_BYTES, _pages_up_to(position + len(data)))

    def truncate(self, length: int) -> None:
        if length < self.size:
            self.dirty.update(self.view.cut(length))
            self.extents.cut(_pages_up_to(length))
        self.operations.append(_Truncate(length))
        self.size = length

    def allocate(self, position: int, length: int) -> None:
        end = position + length
        self.operations.append(_Allocate(position, end))
        self.size = max(self.size, end)
        self.extents.add(position // PAGE_BYTES, _pages_up_to(end))

    # Changes of what the disk holds.

    def own_the_disk(self) -> None:
        """Make sure that changes of `disk` are not seen by another file system."""
        if self.disk_is_shared:
            self.disk = dict(self.disk)
            self.disk_is_shared = False

    def sync(self) -> None:
        if self.dirty:
            self.own_the_disk()
        for number in self.dirty:
            content = self.view.own.pop(number, None)
            if content is ZERO_PAGE:
                self.disk.pop(number, None)
            elif content is not None:
                self.disk[number] = content
        self.view.base = self.disk
        self.disk_size = self.size
        self.disk_extents = _Extents(self.extents.ranges)
        self.dirty.clear()
        self.operations.clear()

    def lose_dirty(self) -> None:
        """The kernel's side of a failed sync: the pages are clean from now on, whatever the disk got."""
        self.dirty.clear()

    def lose_dirty_page(self, number: int) -> None:
        """A page was written elsewhere, and nobody knows: memory has what the disk lacks."""
        # The view may show it through its base, where the disk has the same page by coincidence.
        self.view.own.setdefault(number, self.view.page(number))
        self.dirty.discard(number)
        # What was pending of it is not pending any more: it went elsewhere.
        self.operations = [
            operation._replace(pages=[page for page in operation.pages if page[0] != number])
            if isinstance(operation, _Write)
            else operation
            for operation in self.operations
        ]

    def land(self, number: int, content: bytes) -> None:
        """A page of somebody else's lands here, on the disk: memory goes on showing what it had."""
        self.view.own.setdefault(number, self.view.page(number))
        self.own_the_disk()
        if content is ZERO_PAGE:
            self.disk.pop(number, None)
        else:
            self.disk[number] = content
        self.view.base = self.disk

    def pages_at_rest(self) -> list[int]:
        """The synced pages that are not all zeros and that nobody has changed since."""
        return sorted(number for number in self.disk if number not in self.view.own)

    def evict(self) -> None:
        """Drop the clean pages from memory; those that a failed sync lost show the disk's content from now on."""
        self.view.own = {number: content for number, content in self.view.own.items() if number in self.dirty}
        self.in_memory = set(self.dirty)

    def lose_power(self, chance: random.Random | None, share: float) -> None:
        """Become what the disk holds, with `share` of the pending operations on it."""
        image = _Pages(self.disk)
        size, extents = self.disk_size, self.disk_extents
        if chance is not None and self.operations:
            size = self._come_through(image, extents, chance, share)
        self.view, self.size, self.extents = image, size, _Extents(extents.ranges)
        self.dirty = set(image.own)
        self.sync()
        self.in_memory = set()

    def _come_through(self, image: _Pages, extents: _Extents, chance: random.Random, share: float) -> int:
        """Apply a random part of the pending operations to image and extents; returns the size."""
        size = self.disk_size
        # Changes of the size and the map of blocks reach the disk in order (a journal holds them): the first so many.
        everything = chance.random() < share
        in_order = len(self.operations) if everything else chance.randint(0, len(self.operations))
        # Pages from here on were cut off and written anew, but the cut did not come through: nothing leads to the new.
        unreachable_from = float("inf")
        for number, operation in enumerate(self.operations):
            if isinstance(operation, _Write) and chance.random() < share:
                _write_back(image, operation, unreachable_from, chance)
            if number >= in_order:
                if isinstance(operation, _Truncate):
                    unreachable_from = min(unreachable_from, operation.length)
            elif isinstance(operation, _Truncate):
                if operation.length < size:
                    image.cut(operation.length)
                    extents.cut(_pages_up_to(operation.length))
                size = operation.length
            else:
                size = max(size, operation.end)
                extents.add(operation.start // PAGE_BYTES, _pages_up_to(operation.end))
        image.cut(size)
        return size

    def overwrite_everywhere(self, position: int, data: bytes) -> None:
        """Change bytes behind everybody's back, on the disk and in memory."""
        self.own_the_disk()
        medium = _Pages(self.disk)
        for number, content in medium.write(position, data):
            if content is ZERO_PAGE:
                self.disk.pop(number, None)
            else:
                self.disk[number] = content
        self.view.base = self.disk
        own_before = set(self.view.own)
        for number, _ in self.view.write(position, data):
            # A page that nobody had changed is the disk's, in memory as well: it must not count as a change.
            if number not in own_before:
                self.view.own.pop(number, None)


def _write_back(image: _Pages, operation: _Write, unreachable_from: float, chance: random.Random) -> None:
    """Put a pending write on the disk, in two of three cases whole, else some of its pages and a part of one."""
    pages = [(number, content) for number, content in operation.pages if number * PAGE_BYTES < unreachable_from]
    if not pages:
        return
    if chance.random() < 2 / 3:
        for number, content in pages:
            image.put(number, content)
        return
    torn = chance.randrange(len(pages))
    share = chance.random()
    for place, (number, content) in enumerate(pages):
        if place == torn:
            before = image.page(number)
            sectors = [
                (content if chance.random() < 0.5 else before)[start : start + SECTOR_BYTES]
                for start in range(0, PAGE_BYTES, SECTOR_BYTES)
            ]
            merged = b"".join(sectors)
            image.put(number, ZERO_PAGE if merged == ZERO_PAGE else merged)
        elif chance.random() < share:
            image.put(number, content)


# -- names


class _Directory:
    __slots__ = ("disk_names", "names", "sync_has_failed")

    def __init__(self) -> None:
        self.names: dict[str, _Node] = {}
        self.disk_names: dict[str, _Node] = {}
        self.sync_has_failed = False

    def everything_below(self) -> "Iterator[_Node]":
        for child in self.names.values():
            yield child
            if isinstance(child, _Directory):
                yield from child.everything_below()

    def become_what_the_disk_holds(self, chance: random.Random | None, share: float) -> None:
        self.names = dict(self.disk_names)
        self.sync_has_failed = False
        for child in self.names.values():
            if isinstance(child, _Directory):
                child.become_what_the_disk_holds(chance, share)
            else:
                child.lose_power(chance, share)


_Node = _Regular | _Directory


class _NameOperation(NamedTuple):
    """A pending change of names, which comes through whole or not at all."""

    removed: tuple[_Directory, str] | None
    added: tuple[_Directory, str, _Node] | None
    vanished: _Directory | None = None  # The directory that this removes.

    def names(self) -> list[tuple[_Directory, str]]:
        names = [self.removed] if self.removed else []
        return [*names, self.added[:2]] if self.added else names

    def moves_between_directories(self) -> bool:
        return self.removed is not None and self.added is not None and self.removed[0] is not self.added[0]

    def apply_to_disk(self) -> None:
        if self.removed:
            directory, name = self.removed
            directory.disk_names.pop(name, None)
        if self.added:
            directory, name, node = self.added
            directory.disk_names[name] = node


def _come_through(operations: list[_NameOperation], wanted: Callable[[_NameOperation], bool]) -> list[_NameOperation]:
    """Apply the wanted operations, and those that they rest on, to the disk; returns the ones still pending."""
    names: set[tuple[_Directory, str]] = set()
    vanished: set[_Directory] = set()
    brought_along: set[_Node] = set()
    chosen, pending = [], []
    for operation in reversed(operations):
        own_names = operation.names()
        if (
            wanted(operation)
            or any(name in names for name in own_names)
            or any(directory in vanished for directory, _ in own_names)
            or (operation.added is not None and operation.added[2] in brought_along)
        ):
            chosen.append(operation)
            names.update(own_names)
            if operation.vanished:
                vanished.add(operation.vanished)
            if operation.added and (operation.moves_between_directories() or operation.added[2] in brought_along):
                brought_along.add(operation.added[0])
        else:
            pending.append(operation)
    for operation in reversed(chosen):
        operation.apply_to_disk()
    pending.reverse()
    return pending


# -- the port


class FakeFile:
    """A `File` of a `FakeFileSystem`; made by its `open`."""

    __slots__ = ("_file_system", "_is_open", "_is_writable", "_node", "_sync_error_number", "path")

    def __init__(self, file_system: "FakeFileSystem", node: _Regular, path: str, *, is_writable: bool) -> None:
        self.path = path
        self._file_system = file_system
        self._node = node
        self._is_writable = is_writable
        self._is_open = True
        self._sync_error_number = 0

    def pread(self, length: int, position: int) -> bytes:
        with self._file_system.call("pread", self.path, length=length) as failure:
            _raise_if(failure, self.path)
            data = self._read(length, position)
            for faults in self._file_system.faults:
                if faults.misdirected_read and data and faults.strikes("misdirected_read", self.path):
                    data = self._file_system.misdirect_read(self._node, data, position, faults)
            return data

    def pread_nowait(self, length: int, position: int) -> bytes | None:
        with self._file_system.call("pread_nowait", self.path) as failure:
            _raise_if(failure, self.path)
            self._check_open()
            if position < 0:
                raise _error(errno.EINVAL, self.path)
            in_memory = self._node.in_memory
            if not self._file_system.nowait_supported:
                return None
            if in_memory is not None:
                end = min(position + length, self._node.size)
                if not in_memory.issuperset(range(position // PAGE_BYTES, _pages_up_to(end))):
                    return None
            return self._read(length, position)

    def pwritev(self, buffers: Sequence[Buffer], position: int) -> None:
        self._check_sync_never_failed()
        data = bytes(buffers[0]) if len(buffers) == 1 else b"".join(buffers)
        try:
            with self._file_system.call("pwritev", self.path, position=position, length=len(data)) as failure:
                self._check_open(to_write=errno.EBADF)
                if position < 0:
                    raise _error(errno.EINVAL, self.path)
                if failure is not None:
                    self._write(data[: failure.bytes_done], position)
                    raise _error(failure.error_number, self.path)
                self._write(data, position)
        except SimulatedCrash as crash:
            if crash.torn is not None and self._is_open and self._is_writable and position >= 0:
                # A process dies in the middle of a write: the kernel had copied the bytes up to a boundary of sectors
                # on the disk. What of them reached the disk is for `FakeFileSystem.crash` to decide.
                boundaries = (position + len(data)) // SECTOR_BYTES - position // SECTOR_BYTES
                end = (position // SECTOR_BYTES + crash.torn.randint(0, boundaries)) * SECTOR_BYTES
                with contextlib.suppress(OSError):
                    self._write(data[: max(0, end - position)], position)
            raise

    def sync(self) -> None:
        self._check_sync_never_failed()
        file_system, node = self._file_system, self._node
        with file_system.call("sync", self.path) as failure:
            self._check_open()
            file_system.work.syncs += 1
            if failure is not None:
                node.lose_dirty()
                self._sync_error_number = failure.error_number
                raise _error(failure.error_number, self.path)
            file_system.work.synced_bytes += len(node.dirty) * PAGE_BYTES
            for faults in file_system.faults:
                if faults.misdirected_write and node.dirty and faults.strikes("misdirected_write", self.path):
                    file_system.misdirect_write(node, faults)
            node.sync()

    def allocate(self, position: int, length: int) -> None:
        file_system = self._file_system
        with file_system.call("allocate", self.path, position=position, length=length) as failure:
            _raise_if(failure, self.path)
            self._check_open(to_write=errno.EBADF)
            if position < 0 or length <= 0:
                raise _error(errno.EINVAL, self.path)
            first, end = position // PAGE_BYTES, _pages_up_to(position + length)
            if not file_system.take_pages(self._node.extents.missing(first, end)):
                raise _error(errno.ENOSPC, self.path)
            self._node.allocate(position, length)

    def truncate(self, length: int) -> None:
        file_system = self._file_system
        with file_system.call("truncate", self.path, position=length) as failure:
            _raise_if(failure, self.path)
            self._check_open(to_write=errno.EINVAL)
            if length < 0:
                raise _error(errno.EINVAL, self.path)
            before = self._node.extents.page_count()
            self._node.truncate(length)
            file_system.give_pages(before - self._node.extents.page_count())

    def size(self) -> int:
        with self._file_system.call("size", self.path) as failure:
            _raise_if(failure, self.path)
            self._check_open()
            return self._node.size

    def close(self) -> None:
        self._file_system.close(self)

    def give_up(self) -> _Regular | None:
        """The file this was a handle of, and from now on is not; None if it is closed already."""
        if not self._is_open:
            return None
        self._is_open = False
        return self._node

    def _check_open(self, *, to_write: int = 0) -> None:
        """Raise EBADF if closed, and `to_write` if that is set and this is open for reading only."""
        if not self._is_open:
            raise _error(errno.EBADF, self.path)
        if to_write and not self._is_writable:
            raise _error(to_write, self.path)

    def _check_sync_never_failed(self) -> None:
        if self._sync_error_number:
            text = f"{os.strerror(self._sync_error_number)} (an earlier sync failed)"
            raise OSError(self._sync_error_number, text, self.path)

    def _read(self, length: int, position: int) -> bytes:
        self._check_open()
        if position < 0:
            raise _error(errno.EINVAL, self.path)
        node = self._node
        length = min(length, node.size - position)
        if node.in_memory is not None and length > 0:
            before = len(node.in_memory)
            node.in_memory.update(range(position // PAGE_BYTES, _pages_up_to(position + length)))
            self._file_system.work.fetched_bytes += (len(node.in_memory) - before) * PAGE_BYTES
        return node.view.read(position, length)

    def _write(self, data: bytes, position: int) -> None:
        """Write what there is room for; ENOSPC if that is not all."""
        if not data:
            return
        node = self._node
        self._file_system.work.written_bytes += len(data)
        first, end = position // PAGE_BYTES, _pages_up_to(position + len(data))
        missing = node.extents.missing(first, end)
        if self._file_system.take_pages(missing):
            node.write(position, data)
            return
        room = self._file_system.free_pages()
        while node.extents.missing(first, end) > room:
            end -= 1
        self._file_system.take_pages(node.extents.missing(first, end))
        fitting = max(0, end * PAGE_BYTES - position)
        if fitting:
            node.write(position, data[:fitting])
        raise _error(errno.ENOSPC, self.path)


class FakeLock:
    """A `Lock` of a `FakeFileSystem`."""

    def __init__(self, node: _Regular) -> None:
        self._node: _Regular | None = node

    def release(self) -> None:
        if self._node is not None:
            self._node.is_locked = False
            self._node = None


def _raise_if(failure: Failure | None, path: str, other_path: str | None = None) -> None:
    if failure is not None:
        raise _error(failure.error_number, path, other_path)


class _Turn:
    """What surrounds a call; one object for all of a file system's, which take turns anyway."""

    __slots__ = ("_lock", "failure")

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self.failure: Failure | None = None

    def __enter__(self) -> Failure | None:
        return self.failure

    def __exit__(self, *_: object) -> None:
        self._lock.release()


# Which probability of `DiskFaults` is for which call.
_ERRORS_BY_CHANCE = {
    "pread": "read_error",
    "pwritev": "write_error",
    "sync": "sync_error",
    "sync_directory": "sync_error",
}

# What the calls are named in `crash_at`, `calls` and `fail`. `open` and `lock` change something only when they create.
MUTATING = frozenset(
    {"pwritev", "sync", "allocate", "truncate", "mkdir", "rmdir", "unlink", "rename", "sync_directory"},
)
READING = frozenset({"pread", "pread_nowait", "size", "open", "exists", "listdir", "lock", "free_bytes"})


class FakeFileSystem(FileSystem):
    """A file system in memory that can crash, fail and fill up; see the top of this file.

    `capacity_bytes`: what fits into it, counted in whole pages; None: as much as you like. It may be changed at any
    time. `keeps_calls`: whether to remember every call in `calls`, for as long as this lives. Several threads may use
    it; each call is done whole before the next, but `before_call` runs outside of that.
    """

    def __init__(self, *, capacity_bytes: int | None = None, keeps_calls: bool = True) -> None:
        self.capacity_bytes = capacity_bytes
        self.nowait_supported = True  # False: pread_nowait always answers None, as on file systems without it.
        # Called with operation and path ahead of each call, also those that change nothing: to wait in (a slow disk),
        # to look around in, or to raise from.
        self.before_call: Callable[[str, str], None] | None = None
        self.keeps_calls = keeps_calls
        self.calls: list[Call] = []  # All that was begun; a call that fails is one too.
        self.call_count = 0  # Invariant: the number of the last one, kept or not.
        self.work = DiskWork()  # Since `take_work`.
        self.faults: list[DiskFaults] = []
        self._is_read_only = False  # A directory's sync failed by `DiskFaults`.
        self._root = _Directory()
        self._name_operations: list[_NameOperation] = []
        self._pages_used = 0
        self._failures: list[Failure] = []
        self._crash_number: int | None = None
        self._torn: random.Random | None = None
        self._is_dead = False
        self._lock = threading.RLock()
        self._turn = _Turn(self._lock)

    # -- faults

    def crash_at(self, call_number: int, *, torn: random.Random | None = None) -> None:
        """Raise `SimulatedCrash` in place of that call, counted like `calls` from 1, and of every call after it.

        With `torn`, a pwritev that dies has written its bytes up to a random boundary of sectors.
        """
        if call_number <= self.call_count:
            raise ValueError(f"call {call_number} is over: {self.call_count} were made")
        self._crash_number = call_number
        self._torn = torn

    def crash(self, chance: random.Random | None) -> "FakeFileSystem":
        """What a power cut at this moment leaves; this object stays as it is.

        `chance` None: nothing that was not synced. Else a random part of it, which differs from call to call.
        """
        with self._lock:
            after = self._copy()
        after._is_read_only = False
        share = 0.0 if chance is None else chance.choice((0.1, 0.5, 0.9, 1.0))
        if chance is not None:
            _come_through(after._name_operations, lambda _: chance.random() < share)
        after._name_operations = []
        after._root.become_what_the_disk_holds(chance, share)
        after._count_pages()
        return after

    def kill(self) -> "FakeFileSystem":
        """What a kill of the process at this moment leaves: all that was written, no locks, no open files.

        This object stays as it is. What was unsynced still is, so the answer may `crash`.
        """
        with self._lock:
            after = self._copy()
        after._count_pages()
        return after

    def fail(
        self,
        operation: str,
        path_pattern: str,
        nth: int,
        error_number: int,
        *,
        times: int | None = 1,
        bytes_done: int = 0,
    ) -> Failure:
        """Let the nth such call from now on (1: the next) raise an OSError, and the `times - 1` after it (None: all).

        `operation` is one of MUTATING or READING; the pattern is fnmatch's, and its `*` matches slashes too. A pwritev
        writes `bytes_done` bytes first. A failed sync has the consequences that are told at the top of this file; any
        other call changes nothing. The answer counts in `raised` how often it happened.
        """
        if operation not in MUTATING | READING:
            raise ValueError(f"no operation {operation!r}")
        failure = Failure(operation, path_pattern, nth - 1, times, error_number, bytes_done)
        self._failures.append(failure)
        return failure

    def inject(self, faults: DiskFaults) -> None:
        """Let the disk be bad by chance from now on, beside what was injected before. Endings do not inherit it."""
        self.faults.append(faults)

    def heal(self) -> None:
        """Take back all that `fail`, `inject` and `crash_at` have ordered; what has happened stays."""
        self._crash_number = None
        self._failures.clear()
        self.faults.clear()

    def take_work(self) -> DiskWork:
        """What the disk had to do since this was asked last."""
        work, self.work = self.work, DiskWork()
        return work

    def flip_bits(self, chance: random.Random, count: int, path_prefix: str = "") -> list[tuple[str, int]]:
        """Flip bits of files at rest: of synced pages that are not all zeros, below a prefix of the path.

        Returns the path and position of each flip; fewer than `count` if there is no such page.
        """
        flipped = []
        for _ in range(count):
            pages = [
                (path, node, number) for path, node in self._files_below(path_prefix) for number in node.pages_at_rest()
            ]
            if not pages:
                break
            path, node, number = chance.choice(pages)
            start = number * PAGE_BYTES
            # Bytes that are not zero are as good as none on a page that holds one short batch: half of the flips go
            # to what is there, half anywhere.
            content = node.view.read(start, min(PAGE_BYTES, node.size - start))
            places = [place for place, byte in enumerate(content) if byte] or range(len(content))
            place = chance.choice(places) if chance.random() < 0.5 else chance.randrange(len(content))
            position = start + place
            node.overwrite_everywhere(position, bytes([content[place] ^ 1 << chance.randrange(8)]))
            flipped.append((path, position))
        return flipped

    def overwrite(self, path: str, position: int, data: bytes) -> None:
        """Change bytes of a file on the disk and in memory, past all that is pending: what a bad disk does."""
        node = self._regular(path)
        if position < 0 or position + len(data) > node.size:
            raise ValueError(f"{path} ends at {node.size}, before {position + len(data)}")
        node.overwrite_everywhere(position, data)

    def flip_bit(self, path: str, position: int, bit: int = 0) -> None:
        """Flip one bit of the byte at a position."""
        before = self.contents(path)[position]
        self.overwrite(path, position, bytes([before ^ 1 << bit]))

    def zero_range(self, path: str, position: int, length: int) -> None:
        """Replace bytes by zeros."""
        self.overwrite(path, position, bytes(length))

    def evict(self, path: str) -> None:
        """Drop a file's clean pages from memory: reads come from the disk again, and show what it really holds."""
        self._regular(path).evict()

    def evict_all(self, path_prefix: str = "") -> None:
        """Like `evict`, for every file below a prefix of the path."""
        for _, node in self._files_below(path_prefix):
            node.evict()

    # -- looking from outside: no calls, no faults, also after the crash

    def contents(self, path: str) -> bytes:
        """All bytes of a file, as programs see them."""
        node = self._regular(path)
        return node.view.read(0, node.size)

    def peek(self, path: str, length: int, position: int) -> bytes:
        """What a `pread` would return, if nothing went wrong."""
        node = self._regular(path)
        return node.view.read(position, min(length, node.size - position))

    def tree(self, path: str = "/") -> dict[str, int | None]:
        """The path of everything below a directory with its size in bytes, None for directories, in order."""
        found: dict[str, int | None] = {}
        node = self._find(path)
        if isinstance(node, _Directory):
            for name, child in sorted(node.names.items()):
                child_path = f"{path.rstrip('/')}/{name}"
                found[child_path] = child.size if isinstance(child, _Regular) else None
                if isinstance(child, _Directory):
                    found.update(self.tree(child_path))
        return found

    def is_durable(self) -> bool:
        """Whether nothing is pending: a power cut now would change nothing."""
        files = [node for node in self._root.everything_below() if isinstance(node, _Regular)]
        return not self._name_operations and not any(file.operations or file.view.own for file in files)

    def used_bytes(self) -> int:
        """The space that files occupy, in whole pages."""
        return self._pages_used * PAGE_BYTES

    # -- the port

    def open(self, path: str, *, create: bool = False, exclusive: bool = False, writable: bool = True) -> File:
        if exclusive and not create:
            raise ValueError("exclusive says that the file must be created, so it needs create")
        if create and not writable:
            raise ValueError("a file that is created empty and never written is of no use")
        with self.call("open", path, mutates=lambda: create and self._is_free(path)) as failure:
            _raise_if(failure, path)
            node = self._open_node(path, create=create, exclusive=exclusive)
            node.open_count += 1
            return FakeFile(self, node, path, is_writable=writable)

    def exists(self, path: str) -> bool:
        with self.call("exists", path) as failure:
            _raise_if(failure, path)
            try:
                self._find(path)
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True

    def listdir(self, path: str) -> list[str]:
        with self.call("listdir", path) as failure:
            _raise_if(failure, path)
            return sorted(self._directory(path).names)

    def mkdir(self, path: str) -> None:
        with self.call("mkdir", path) as failure:
            _raise_if(failure, path)
            directory, name = self._parent(path, errno.EEXIST)
            if name in directory.names:
                raise _error(errno.EEXIST, path)
            self._apply(_NameOperation(None, (directory, name, _Directory())))

    def rmdir(self, path: str) -> None:
        with self.call("rmdir", path) as failure:
            _raise_if(failure, path)
            parent, name = self._parent(path, errno.EBUSY)
            directory = self._directory(path)
            if directory.names:
                raise _error(errno.ENOTEMPTY, path)
            self._apply(_NameOperation((parent, name), None, directory))

    def unlink(self, path: str) -> None:
        with self.call("unlink", path) as failure:
            _raise_if(failure, path)
            directory, name = self._parent(path, errno.EISDIR)
            node = self._regular(path)
            self._apply(_NameOperation((directory, name), None))
            self._lose_name(node)

    def rename(self, old: str, new: str) -> None:
        with self.call("rename", old, new) as failure:
            _raise_if(failure, old, new)
            try:
                old_directory, old_name = self._parent(old, errno.EBUSY)
                new_directory, new_name = self._parent(new, errno.EBUSY)
            except OSError as error:
                raise _error(error.errno or errno.EIO, old, new) from None
            node = old_directory.names.get(old_name)
            if node is None:
                raise _error(errno.ENOENT, old, new)
            replaced = new_directory.names.get(new_name)
            if replaced is node:
                return
            _check_rename(node, new_directory, replaced, old, new)
            vanished = replaced if isinstance(replaced, _Directory) else None
            self._apply(_NameOperation((old_directory, old_name), (new_directory, new_name, node), vanished))
            if isinstance(replaced, _Regular):
                self._lose_name(replaced)

    def sync_directory(self, path: str) -> None:
        with self.call("sync_directory", path) as failure:
            directory = self._directory(path)
            self.work.syncs += 1
            if failure is not None:
                directory.sync_has_failed = True
                raise _error(failure.error_number, path)
            if not directory.sync_has_failed:
                self._name_operations = _come_through(
                    self._name_operations,
                    lambda operation: any(where is directory for where, _ in operation.names()),
                )

    def lock(self, path: str) -> Lock:
        with self.call("lock", path, mutates=lambda: self._is_free(path)) as failure:
            _raise_if(failure, path)
            node = self._open_node(path, create=True, exclusive=False)
            if node.is_locked:
                raise _error(errno.EWOULDBLOCK, path)
            node.is_locked = True
            return FakeLock(node)

    def free_bytes(self, path: str) -> int:
        with self.call("free_bytes", path) as failure:
            _raise_if(failure, path)
            self._find(path)
            return self.free_pages() * PAGE_BYTES

    # -- what the files need

    def call(
        self,
        operation: str,
        path: str,
        other_path: str | None = None,
        *,
        mutates: Callable[[], bool] | None = None,
        position: int = 0,
        length: int = 0,
    ) -> "_Turn":
        """Surround one call: nobody else's is done meanwhile. Dies if it is time; hands over the failure to raise."""
        if self.before_call is not None:
            self.before_call(operation, path)
        self._lock.acquire()
        try:
            self._turn.failure = self._begin(operation, path, other_path, mutates, position, length)
        except BaseException:
            self._lock.release()
            raise
        return self._turn

    def _begin(
        self,
        operation: str,
        path: str,
        other_path: str | None,
        mutates: Callable[[], bool] | None,
        position: int,
        length: int,
    ) -> Failure | None:
        if self._is_dead:
            raise SimulatedCrash(f"{operation} {path}: the process is dead")
        self.work.calls += 1
        if operation in MUTATING if mutates is None else mutates():
            self.call_count += 1
            if self.keeps_calls:
                self.calls.append(Call(self.call_count, operation, path, position, length))
            if self.call_count == self._crash_number:
                self._is_dead = True
                call = Call(self.call_count, operation, path, position, length)
                raise SimulatedCrash(f"crash in place of {call}", self._torn)
            if self._is_read_only:
                raise _error(errno.EROFS, path, other_path)
        if self._failures:
            paths = [path] if other_path is None else [path, other_path]
            failures = [failure for failure in self._failures if failure.claims(operation, paths)]
            if failures:
                return failures[0]
        return self._fail_by_chance(operation, path, length) if self.faults else None

    def _fail_by_chance(self, operation: str, path: str, length: int) -> Failure | None:
        name = _ERRORS_BY_CHANCE.get(operation)
        if name is None:
            return None
        where = f"{path}/" if operation == "sync_directory" else path
        for faults in self.faults:
            if faults.strikes(name, where):
                self._is_read_only = self._is_read_only or operation == "sync_directory"
                bytes_done = faults.chance.randint(0, length) if operation == "pwritev" else 0
                return Failure(operation, path, 0, None, errno.EIO, bytes_done)
        return None

    def misdirect_write(self, node: _Regular, faults: DiskFaults) -> None:
        """One of the dirty pages lands elsewhere, and counts as clean."""
        chance = faults.chance
        number = chance.choice(sorted(node.dirty))
        content = node.view.page(number)
        found = self._random_page(node, number, faults)
        node.lose_dirty_page(number)
        if found is not None:
            other, other_number = found
            other.land(other_number, content)

    def misdirect_read(self, node: _Regular, data: bytes, position: int, faults: DiskFaults) -> bytes:
        """The data with one page, if one of it is clean, replaced by another."""
        first, last = position // PAGE_BYTES, (position + len(data) - 1) // PAGE_BYTES
        number = faults.chance.randint(first, last)
        found = self._random_page(node, number, faults)
        if found is None or number in node.dirty:
            return data
        other, other_number = found
        content = other.disk.get(other_number, ZERO_PAGE)
        start = number * PAGE_BYTES - position
        begin, end = max(start, 0), min(start + PAGE_BYTES, len(data))
        return data[:begin] + content[begin - start : end - start] + data[end:]

    def _random_page(self, node: _Regular, number: int, faults: DiskFaults) -> tuple[_Regular, int] | None:
        """Another page of the disk: in half of the cases of the same file, else of any that these faults reach."""
        chance = faults.chance
        others = [other for _, other in self._files_below(faults.path_prefix) if other.disk_size and other is not node]
        own_pages = _pages_up_to(node.disk_size)
        if others and (own_pages <= 1 or chance.random() < 0.5):
            other = chance.choice(others)
            return other, chance.randrange(_pages_up_to(other.disk_size))
        if own_pages <= 1:
            return None
        other_number = chance.randrange(own_pages - 1)
        return node, other_number + (other_number >= number)

    def _files_below(self, path_prefix: str) -> Iterator[tuple[str, _Regular]]:
        """The files whose path begins so, in the order of their paths."""

        def below(directory: _Directory, path: str) -> Iterator[tuple[str, _Regular]]:
            for name, child in sorted(directory.names.items()):
                child_path = f"{path}/{name}"
                if isinstance(child, _Directory):
                    yield from below(child, child_path)
                elif child_path.startswith(path_prefix):
                    yield child_path, child

        return below(self._root, "")

    def free_pages(self) -> int:
        """How many more pages there is room for."""
        capacity = FREE_BYTES_UNLIMITED if self.capacity_bytes is None else self.capacity_bytes
        return max(0, capacity // PAGE_BYTES - self._pages_used)

    def take_pages(self, count: int) -> bool:
        """Occupy space; False, and nothing done, if there is not so much."""
        if count > self.free_pages():
            return False
        self._pages_used += count
        return True

    def give_pages(self, count: int) -> None:
        """Give space back."""
        self._pages_used -= count

    def close(self, file: FakeFile) -> None:
        """Take back a handle. The dead may do it too: it is the kernel that closes their files."""
        with self._lock:
            node = file.give_up()
            if node is not None:
                node.open_count -= 1
                self._free_if_unused(node)

    # -- inside

    def _copy(self) -> "FakeFileSystem":
        """An independent file system in the same state, without locks, open files and faults."""
        copies: dict[_Node, _Node] = {}

        def directory_copy(directory: _Directory) -> _Directory:
            copied = node_copy(directory)
            assert isinstance(copied, _Directory)
            return copied

        def node_copy(node: _Node) -> _Node:
            if node not in copies:
                if isinstance(node, _Regular):
                    copies[node] = node.copy()
                else:
                    copied = copies[node] = _Directory()
                    copied.names = {name: node_copy(child) for name, child in node.names.items()}
                    copied.disk_names = {name: node_copy(child) for name, child in node.disk_names.items()}
                    copied.sync_has_failed = node.sync_has_failed
            return copies[node]

        other = FakeFileSystem(capacity_bytes=self.capacity_bytes, keeps_calls=self.keeps_calls)
        other.nowait_supported = self.nowait_supported
        other._is_read_only = self._is_read_only
        other._root = directory_copy(self._root)
        other._name_operations = [
            _NameOperation(
                operation.removed and (directory_copy(operation.removed[0]), operation.removed[1]),
                operation.added
                and (directory_copy(operation.added[0]), operation.added[1], node_copy(operation.added[2])),
                operation.vanished and directory_copy(operation.vanished),
            )
            for operation in self._name_operations
        ]
        return other

    def _count_pages(self) -> None:
        files = [node for node in self._root.everything_below() if isinstance(node, _Regular)]
        self._pages_used = sum([file.extents.page_count() for file in files])

    def _apply(self, operation: _NameOperation) -> None:
        if operation.removed:
            directory, name = operation.removed
            del directory.names[name]
        if operation.added:
            directory, name, node = operation.added
            directory.names[name] = node
        self._name_operations.append(operation)

    def _lose_name(self, node: _Regular) -> None:
        node.is_linked = False
        self._free_if_unused(node)

    def _free_if_unused(self, node: _Regular) -> None:
        if not node.is_linked and not node.open_count:
            self.give_pages(node.extents.page_count())

    def _open_node(self, path: str, *, create: bool, exclusive: bool) -> _Regular:
        """The regular file of that path, created if that is wanted."""
        if create:
            directory, name = self._parent(path, errno.EEXIST if exclusive else errno.EISDIR)
            if name not in directory.names:
                self._apply(_NameOperation(None, (directory, name, _Regular())))
            elif exclusive:
                raise _error(errno.EEXIST, path)
        return self._regular(path)

    def _is_free(self, path: str) -> bool:
        """Whether a file could be created under that name."""
        try:
            directory, name = self._parent(path, errno.EISDIR)
        except OSError:
            return False
        return name not in directory.names

    def _parent(self, path: str, root_error_number: int) -> tuple[_Directory, str]:
        """The directory that holds, or would hold, the last name of the path, and that name."""
        names = _names_of(path)
        if not names:
            raise _error(root_error_number, path)
        node: _Node = self._root
        for name in names[:-1]:
            if isinstance(node, _Regular):
                raise _error(errno.ENOTDIR, path)
            child = node.names.get(name)
            if child is None:
                raise _error(errno.ENOENT, path)
            node = child
        if isinstance(node, _Regular):
            raise _error(errno.ENOTDIR, path)
        return node, names[-1]

    def _find(self, path: str) -> _Node:
        if not _names_of(path):
            return self._root
        directory, name = self._parent(path, errno.EINVAL)
        node = directory.names.get(name)
        if node is None:
            raise _error(errno.ENOENT, path)
        return node

    def _regular(self, path: str) -> _Regular:
        node = self._find(path)
        if isinstance(node, _Directory):
            raise _error(errno.EISDIR, path)
        return node

    def _directory(self, path: str) -> _Directory:
        node = self._find(path)
        if isinstance(node, _Regular):
            raise _error(errno.ENOTDIR, path)
        return node


def _names_of(path: str) -> list[str]:
    """The names that a path consists of; relative paths start at the root too."""
    if not path:
        raise _error(errno.ENOENT, path)
    names = [name for name in path.split("/") if name not in ("", ".")]
    if ".." in names:
        raise ValueError(f"{path!r}: the fake knows no '..'")
    if any(len(os.fsencode(name)) > NAME_BYTES_MAX for name in names):
        raise _error(errno.ENAMETOOLONG, path)
    return names


def _check_rename(node: _Node, new_directory: _Directory, replaced: _Node | None, old: str, new: str) -> None:
    """Raise what rename(2) says of a pair that does not fit."""
    if isinstance(node, _Directory):
        if new_directory is node or new_directory in node.everything_below():
            raise _error(errno.EINVAL, old, new)
        if isinstance(replaced, _Regular):
            raise _error(errno.ENOTDIR, old, new)
        if replaced is not None and replaced.names:
            raise _error(errno.ENOTEMPTY, old, new)
    elif isinstance(replaced, _Directory):
        raise _error(errno.EISDIR, old, new)
