"""Input is read to its end whatever it is, and what cannot be read or written is told by its name."""

import contextlib
import os
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from logd.cli.errors import FileFailed, FileNotFound
from logd.cli.files import READ_BYTES, check_readable, chunks, opened


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
