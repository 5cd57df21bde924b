"""Input is read to its end whatever it is, and what cannot be read or written is told by its name."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from logd.cli.errors import FileFailed, FileNotFound, OutputClosed
from logd.cli.files import READ_BYTES, Sink, check_readable, chunks, opened


async def read_all(path: str) -> list[bytes]:
    with opened(path) as descriptor:
        async with contextlib.aclosing(chunks(descriptor, path)) as stream:
            return [chunk async for chunk in stream]


async def test_a_regular_file_comes_in_large_pieces(tmp_path: Path) -> None:
    data = os.urandom(2 * READ_BYTES + 1)
    (tmp_path / "file").write_bytes(data)
    found = await read_all(str(tmp_path / "file"))
    assert b"".join(found) == data
    assert list(map(len, found)) == [READ_BYTES, READ_BYTES, 1]


async def test_a_pipe_is_waited_for_without_holding_up_the_loop(tmp_path: Path) -> None:
    path = str(tmp_path / "fifo")
    os.mkfifo(path)

    def write() -> None:
        with open(path, "wb") as file:
            file.write(b"one")

    found: list[bytes] = []
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def read() -> None:
            found.extend(await read_all(path))

        # Nobody writes yet, and the loop still turns.
        await trio.testing.wait_all_tasks_blocked()
        writer = threading.Thread(target=write)
        writer.start()
    writer.join()
    assert b"".join(found) == b"one"


async def test_what_cannot_be_waited_for_is_just_read() -> None:
    assert await read_all(os.devnull) == []


def test_sizes_are_known_of_regular_files_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert check_readable(str(tmp_path / "file")) == 3
    assert check_readable(os.devnull) is None


def test_what_cannot_be_read_is_told_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFound, match=r"gone\.txt: no such file"):
        check_readable(str(tmp_path / "gone.txt"))
    with pytest.raises(FileFailed, match="is a directory"):
        check_readable(str(tmp_path))


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The reading and the writing end."""
    reading, writing = os.pipe()
    with open(reading, "rb", closefd=True), open(writing, "wb", closefd=True):
        yield reading, writing


async def test_a_cancelled_write_is_counted_to_the_byte(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    data = os.urandom(4 << 20)
    with contextlib.closing(Sink(writing)) as sink:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sink.write, data)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        written = sink.bytes_written
        assert 0 < written < len(data)
        assert read_exactly(reading, written) == data[:written]
        # Nothing more comes after.
        os.set_blocking(reading, False)
        with pytest.raises(BlockingIOError):
            os.read(reading, 1)


async def test_whoever_shares_the_pipe_does_not_find_it_changed(pipe: tuple[int, int]) -> None:
    _reading, writing = pipe
    with contextlib.closing(Sink(writing)) as sink:
        await sink.write(b"x")
        assert os.get_blocking(writing)


async def test_a_reader_that_went_away_is_told() -> None:
    reading, writing = os.pipe()
    before = Sink(writing)
    os.close(reading)
    for sink in (before, Sink(writing)):
        with pytest.raises(OutputClosed):
            await sink.write(b"x")
        assert sink.bytes_written == 0
        sink.close()
    os.close(writing)


async def test_what_is_no_pipe_is_waited_for_as_well() -> None:
    ours, theirs = socket.socketpair()
    data = os.urandom(4 << 20)
    with ours, theirs:
        # Somebody may have made it so.
        ours.setblocking(False)
        sink = Sink(ours.fileno())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sink.write, data)
            found = await trio.to_thread.run_sync(read_exactly, theirs.fileno(), len(data))
    assert (found == data, sink.bytes_written) == (True, len(data))


def read_exactly(descriptor: int, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        found += os.read(descriptor, count - len(found))
    return bytes(found)
