"""The file-system port: every system call that the store makes, and nothing else.

What it is for: the store promises what survives a power cut, and such a promise can only be tested if each call that
reaches the disk goes through one narrow door that a fake can stand in. `FileSystem`, `File` and `Lock` are that door;
`OsFileSystem` is the Linux kernel behind it.

What it must not know: formats, groups, batches, threads. It keeps no buffer and no state about contents.

Its one idea: a call either did all it says or raised `OSError`. Short reads and writes are finished here, nothing is
swallowed, and a sync that failed once fails for ever: the kernel has marked the pages clean by then, so a second sync
would answer "durable" about bytes that the disk never got.

Every `OSError` from here carries the path in `filename`. Interrupted calls (EINTR) are repeated by Python (PEP 475).
All methods of one `File` may be called from several threads at once, except that nobody may use a file that another
thread closes: the descriptor's number may belong to another file by then.
"""

import contextlib
import errno
import fcntl
import io
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from typing import Protocol

Buffer = bytes | bytearray | memoryview

# How many buffers one pwritev takes. 1,024 on Linux (UIO_MAXIOV in include/uapi/linux/uio.h), the same for all of its
# file systems; sysconf asks rather than trusts, and says -1 where there is no limit.
BUFFERS_PER_CALL_MAX = os.sysconf("SC_IOV_MAX") if os.sysconf("SC_IOV_MAX") > 0 else 1024

# Only the user that runs the node may read what its clients wrote.
FILE_MODE = 0o600
DIRECTORY_MODE = 0o700


class File(Protocol):
    """One open regular file. Positions and lengths are bytes from the start of the file."""

    @property
    def path(self) -> str:
        """The path it was opened by; a later rename does not change it."""

    def pread(self, length: int, position: int) -> bytes:
        """The bytes in `[position, position + length)`; fewer only where the file ends. May wait for the disk.

        Raises OSError; nothing has changed.
        """

    def pread_nowait(self, length: int, position: int) -> bytes | None:
        """Like `pread`, from memory alone: None if any of it would have to come from the disk.

        None also means that the file system cannot answer without waiting; `pread` always can.
        Raises OSError; nothing has changed.
        """

    def pwritev(self, buffers: Sequence[Buffer], position: int) -> None:
        """Write the buffers one after the other from `position` on: all of them, or OSError.

        The bytes are in the page cache afterwards, not on the disk. They are never copied, so the buffers must not
        change until this returns. An error leaves any part of the range written. After a failed `sync` every call
        raises that error.
        """

    def sync(self) -> None:
        """Make the file's bytes and its size durable (fdatasync); its *name* takes `FileSystem.sync_directory`.

        An error leaves unknown which of the bytes since the last sync are durable, and is final: each later `sync` and
        `pwritev` raises it again without asking the kernel.
        """

    def allocate(self, position: int, length: int) -> None:
        """Reserve disk space for the range, so that writing there cannot raise ENOSPC; the file grows to hold it.

        Existing bytes stay, new ones read as zeros. Raises OSError, ENOSPC where there is no room: a part of the
        range may be reserved then, but the size has not changed.
        """

    def truncate(self, length: int) -> None:
        """Cut the file to `length` bytes, or extend it with zeros that occupy no space."""

    def size(self) -> int:
        """The file's length in bytes."""

    def close(self) -> None:
        """Give the descriptor back; syncs nothing. Closing again does nothing, any other use raises EBADF."""


class Lock(Protocol):
    """An exclusive lock that this process holds until `release`, or until it dies in whatever way."""

    def release(self) -> None:
        """Give the lock up; the file stays. Releasing again does nothing."""


class FileSystem(Protocol):
    """The names: directories and the files in them. Every method raises OSError and then has changed nothing."""

    def open(self, path: str, *, create: bool = False, exclusive: bool = False, writable: bool = True) -> File:
        """Open a regular file, for reading and, if `writable`, writing.

        `create` makes it if there is none (readable by this user only), `exclusive` insists on that: FileExistsError
        if the name is taken. Raises FileNotFoundError without `create`, IsADirectoryError for a directory.
        Its name is durable after `sync_directory` of the directory that holds it.
        """

    def exists(self, path: str) -> bool:
        """Whether a file or directory of that name is there; raises OSError if that cannot be told."""

    def listdir(self, path: str) -> list[str]:
        """The names in a directory, sorted."""

    def mkdir(self, path: str) -> None:
        """Make a directory that only this user may enter; FileExistsError if the name is taken."""

    def rmdir(self, path: str) -> None:
        """Remove an empty directory; ENOTEMPTY if it is not empty."""

    def unlink(self, path: str) -> None:
        """Remove a file's name; those who have it open keep reading it. IsADirectoryError for a directory."""

    def rename(self, old: str, new: str) -> None:
        """Give a file or directory another name, atomically replacing a file that has it."""

    def sync_directory(self, path: str) -> None:
        """Make the names in the directory durable: what was created, renamed, unlinked there.

        Like `File.sync` never to be repeated after an error; as nothing stays open here, that is the caller's to keep.
        """

    def lock(self, path: str) -> Lock:
        """Take the exclusive lock on a file, created if missing; BlockingIOError if somebody holds it, also we."""

    def free_bytes(self, path: str) -> int:
        """Bytes that an ordinary user may still allocate on the file system that holds `path`."""


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Put the path on an OSError from a call that knows only a descriptor: an operator has to read it."""
    try:
        yield
    except OSError as error:
        error.filename = path
        raise


def _byte_count(buffers: Sequence[Buffer]) -> int:
    """The bytes in all buffers; a memoryview's `len` may count wider items."""
    return sum([buffer.nbytes if isinstance(buffer, memoryview) else len(buffer) for buffer in buffers])


class OsFile:
    """A `File` of the kernel's."""

    __slots__ = ("_descriptor", "_sync_error_number", "_sync_lock", "path")

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        # Invariant: -1 once closed, which the kernel itself answers with EBADF.
        self._descriptor = descriptor
        # Invariant: once it is not 0, this object makes no further fdatasync nor pwritev.
        self._sync_error_number = 0
        # The kernel reports a writeback error once per descriptor. Were two threads to sync at once, one would get the
        # error and the other a success that means nothing; so they take turns, and the second sees the first's error.
        self._sync_lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<OsFile {self.path!r} {'closed' if self._descriptor < 0 else self._descriptor}>"

    def pread(self, length: int, position: int) -> bytes:
        try:
            first = os.pread(self._descriptor, length, position)
            if len(first) == length or not first:
                return first
            # A short read is the end of the file, or one of the kernel's choosing (it moves at most 2 GiB at once);
            # only an empty one tells.
            parts = [first]
            count = len(first)
            while count < length:
                part = os.pread(self._descriptor, length - count, position + count)
                if not part:
                    break
                parts.append(part)
                count += len(part)
        except OSError as error:
            error.filename = self.path
            raise
        return b"".join(parts)

    def pread_nowait(self, length: int, position: int) -> bytes | None:
        self._check_position(position)
        # preadv fills a buffer, and the answer is bytes: a BytesIO hands out the very bytes object that its buffer was,
        # where `bytes(bytearray)` would copy every byte that a consumer reads.
        holder = io.BytesIO(bytes(length))
        try:
            with holder.getbuffer() as buffer:
                count = os.preadv(self._descriptor, [buffer], position, os.RWF_NOWAIT)
            if count < length:
                # Short: the file ends here, or the rest is not in memory.
                if position + count < os.fstat(self._descriptor).st_size:
                    return None
                holder.truncate(count)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                return None
            error.filename = self.path
            raise
        return holder.getvalue()

    def pwritev(self, buffers: Sequence[Buffer], position: int) -> None:
        self._check_sync_never_failed()
        self._check_position(position)
        try:
            remaining = _byte_count(buffers)
            if len(buffers) <= BUFFERS_PER_CALL_MAX:
                written = os.pwritev(self._descriptor, buffers, position)
                if written == remaining:
                    return
            else:
                written = 0
            self._pwritev_rest(buffers, position, written)
        except OSError as error:
            error.filename = self.path
            raise

    def _pwritev_rest(self, buffers: Sequence[Buffer], position: int, written: int) -> None:
        """Write what is left of the buffers after their first `written` bytes, in as many calls as it takes."""
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        first = 0  # Invariant: the views before this one are written whole.
        skip = written  # Bytes of what starts at `first` that are written.
        position += written
        while True:
            while first < len(views) and skip >= len(views[first]):
                skip -= len(views[first])
                first += 1
            if first == len(views):
                return
            views[first] = views[first][skip:]
            skip = os.pwritev(self._descriptor, views[first : first + BUFFERS_PER_CALL_MAX], position)
            if skip == 0:
                # The kernel takes at least one byte or says why not; without this line a broken driver would hang us.
                raise OSError(errno.EIO, "pwritev wrote nothing and gave no reason")
            position += skip

    def sync(self) -> None:
        with self._sync_lock:
            self._check_sync_never_failed()
            if self._descriptor < 0:
                # Python's fdatasync answers -1 with a ValueError before the kernel can say EBADF.
                raise OSError(errno.EBADF, os.strerror(errno.EBADF), self.path)
            try:
                os.fdatasync(self._descriptor)
            except OSError as error:
                error.filename = self.path
                self._sync_error_number = error.errno or errno.EIO
                raise

    def _check_position(self, position: int) -> None:
        # For preadv2 and pwritev2, which Python calls, -1 means "wherever the file's own offset stands".
        if position < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), self.path)

    def _check_sync_never_failed(self) -> None:
        if self._sync_error_number:
            text = f"{os.strerror(self._sync_error_number)} (an earlier sync failed)"
            raise OSError(self._sync_error_number, text, self.path)

    def allocate(self, position: int, length: int) -> None:
        with _naming(self.path):
            os.posix_fallocate(self._descriptor, position, length)

    def truncate(self, length: int) -> None:
        with _naming(self.path):
            os.ftruncate(self._descriptor, length)

    def size(self) -> int:
        with _naming(self.path):
            return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with _naming(self.path):
                # Linux frees the descriptor even when it reports an error, so this is never tried again.
                os.close(descriptor)


class OsLock:
    """A `Lock` of the kernel's: flock on a descriptor of its own, which dies with the process."""

    __slots__ = ("_descriptor", "path")

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def release(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with _naming(self.path):
                os.close(descriptor)


class OsFileSystem(FileSystem):
    """The `FileSystem` of the kernel. It holds nothing, so one object serves everybody."""

    __slots__ = ()

    def open(self, path: str, *, create: bool = False, exclusive: bool = False, writable: bool = True) -> File:
        flags = _open_flags(create=create, exclusive=exclusive, writable=writable)
        descriptor = os.open(path, flags, FILE_MODE)
        try:
            # A directory opens for reading like a file; whoever asked for a file is to hear of it here.
            is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        except BaseException:
            os.close(descriptor)
            raise
        if is_directory:
            os.close(descriptor)
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        return OsFile(path, descriptor)

    def exists(self, path: str) -> bool:
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def mkdir(self, path: str) -> None:
        os.mkdir(path, DIRECTORY_MODE)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def sync_directory(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with _naming(path):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def lock(self, path: str) -> Lock:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            with _naming(path):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(descriptor)
            raise
        return OsLock(path, descriptor)

    def free_bytes(self, path: str) -> int:
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize


def _open_flags(*, create: bool, exclusive: bool, writable: bool) -> int:
    """The flags of open(2); ValueError for combinations that mean nothing."""
    if exclusive and not create:
        raise ValueError("exclusive says that the file must be created, so it needs create")
    if create and not writable:
        raise ValueError("a file that is created empty and never written is of no use")
    flags = os.O_CLOEXEC | (os.O_RDWR if writable else os.O_RDONLY)
    if create:
        flags |= os.O_CREAT
    if exclusive:
        flags |= os.O_EXCL
    return flags
