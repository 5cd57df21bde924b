"""Reading the input and writing the output of `produce` and `consume` without holding up the event loop.

For: commands that move records. Must not know: records. The one idea: a pipe or terminal is waited for, a regular file
is just read or written, and either moves in pieces of up to a megabyte, so the cost per record is nothing.
"""

import contextlib
import errno
import fcntl
import os
import select
import stat
from collections.abc import AsyncGenerator, Iterator

from logd.cli.errors import FileFailed, OutputClosed, file_error

# Large enough that the cost of a step vanishes, small enough that acknowledgements are seen between two.
READ_BYTES = 256 << 10
# Of a write that the system may hold up: large enough that its cost vanishes, small enough to be counted soon.
WRITE_BYTES = 256 << 10
# What Linux lets an unprivileged process make of a pipe.
_PIPE_BYTES = 1 << 20


@contextlib.contextmanager
def opened(path: str) -> Iterator[int]:
    """A descriptor to read from; `-` is standard input. Raises FileNotFound or FileFailed."""
    if path == "-":
        yield 0
        return
    try:
        # Not to wait here for the other end of a FIFO; on a regular file it changes nothing.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise file_error(error, path) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def check_readable(path: str) -> int | None:
    """Refuse a path that cannot be read, before anything is done; the size in bytes where it is known."""
    with opened(path) as descriptor:
        try:
            status = os.fstat(descriptor)
        except OSError as error:
            raise file_error(error, path) from error
    if stat.S_ISDIR(status.st_mode):
        raise FileFailed(f"{path}: is a directory", {"path": path})
    return status.st_size if stat.S_ISREG(status.st_mode) else None


async def chunks(descriptor: int, path: str) -> AsyncGenerator[bytes, None]:
    """What can be read, until the end. Raises FileFailed."""
    import anyio  # noqa: PLC0415
    import anyio.lowlevel  # noqa: PLC0415

    waits = _must_wait(descriptor)
    while True:
        if waits:
            try:
                await anyio.wait_readable(descriptor)
            except PermissionError:
                # Not everything that is no regular file can be waited for: /dev/zero is always ready.
                waits = False
        else:
            await anyio.lowlevel.checkpoint()
        try:
            chunk = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            continue
        except OSError as error:
            raise file_error(error, path) from error
        if not chunk:
            return
        yield chunk


def _must_wait(descriptor: int) -> bool:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(mode):
        # Fewer and larger steps; where it is not allowed the pipe stays as it is.
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return not stat.S_ISREG(mode) and not stat.S_ISBLK(mode)


class Sink:
    """A descriptor, such as standard output, for bytes. Nothing is kept back: when `write` returns, the system has it.

    `bytes_written` is what the system has at any time, also while a write is under way, and after one was cancelled.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        mode = os.fstat(self._descriptor).st_mode
        # A regular file takes what it is given at once; a pipe's reader may take its time.
        self._is_file = stat.S_ISREG(mode)
        self._pipe: int | None = None
        if stat.S_ISFIFO(mode):
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            # The pipe under a description of our own: others that print to it must not find it non-blocking. It cannot
            # be had without /proc, in another user's pipe, or when the reader is gone.
            with contextlib.suppress(OSError):
                self._pipe = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self.bytes_written = 0

    def close(self) -> None:
        """Give back what was opened; the descriptor itself stays."""
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    async def write(self, data: bytes) -> None:
        """Write all of it. Raises OutputClosed or FileFailed; when cancelled, some of it may be written."""
        import anyio.to_thread  # noqa: PLC0415

        view = memoryview(data)
        if self._is_file:
            self._write_blocking(view)
        elif self._pipe is None:
            # Abandoned, the thread may stay in its write until the process ends: nobody reads the rest.
            await anyio.to_thread.run_sync(self._write_blocking, view, abandon_on_cancel=True)
        else:
            while view := self._written(self._pipe, view):
                await anyio.wait_writable(self._pipe)

    def _write_blocking(self, view: memoryview) -> None:
        for at in range(0, len(view), WRITE_BYTES):
            piece = view[at : at + WRITE_BYTES]
            while piece := self._written(self._descriptor, piece):
                # Somebody made it non-blocking, or a signal cut the write short.
                select.select((), (self._descriptor,), ())

    def _written(self, descriptor: int, view: memoryview) -> memoryview:
        """Write what goes in now; returns the rest."""
        try:
            count = os.write(descriptor, view)
        except BlockingIOError:
            return view
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.ECONNRESET):
                raise OutputClosed from error
            raise FileFailed(f"standard output: {error.strerror}") from error
        self.bytes_written += count
        return view[count:]
