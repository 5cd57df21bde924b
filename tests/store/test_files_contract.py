"""What the store may rely on: one set of claims, held against the kernel and against the fake that stands in for it."""

import errno
import os
import random
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from logd.store.files import BUFFERS_PER_CALL_MAX, File, FileSystem, OsFileSystem
from tests.support.fake_files import FakeFileSystem

SHARED_MEMORY = "/dev/shm"


class World:
    """A file system with an empty directory to work in, and ways to bring about what cannot be asked for."""

    def __init__(self, files: FileSystem, directory: str) -> None:
        self.files = files
        self.directory = directory

    def path(self, *names: str) -> str:
        return "/".join([self.directory, *names])

    def new(self, name: str = "file", content: bytes = b"") -> File:
        file = self.files.open(self.path(name), create=True)
        file.pwritev([content], 0)
        return file

    def content(self, name: str) -> bytes:
        file = self.files.open(self.path(name), writable=False)
        try:
            return file.pread(file.size() + 1, 0)
        finally:
            file.close()

    def file_whose_sync_fails(self) -> tuple[File, int]:
        """A file and the errno that its sync will raise."""
        raise NotImplementedError

    def full_file(self) -> File:
        """A file that has no room for another byte."""
        raise NotImplementedError

    def forget(self, file: File) -> None:
        """Drop what is in memory of a synced file, as far as that can be asked for."""
        raise NotImplementedError


class OsWorld(World):
    # The only file that refuses writes and syncs to everybody, and says so like a disk would.
    FULL = "/dev/full"

    def __init__(self, directory: str) -> None:
        super().__init__(OsFileSystem(), directory)

    def file_whose_sync_fails(self) -> tuple[File, int]:
        return self.files.open(self.FULL), errno.EINVAL

    def full_file(self) -> File:
        return self.files.open(self.FULL)

    def forget(self, file: File) -> None:
        descriptor = os.open(file.path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


class FakeWorld(World):
    def __init__(self) -> None:
        self.fake = FakeFileSystem()
        self.fake.mkdir("/data")
        super().__init__(self.fake, "/data")

    def file_whose_sync_fails(self) -> tuple[File, int]:
        self.fake.fail("sync", "*/bad", 1, errno.EINVAL)
        return self.new("bad"), errno.EINVAL

    def full_file(self) -> File:
        file = self.new("full")
        self.fake.capacity_bytes = 0
        return file

    def forget(self, file: File) -> None:
        self.fake.evict(file.path)


@pytest.fixture(params=["disk", "memory", "fake"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    if request.param == "fake":
        yield FakeWorld()
    elif request.param == "disk":
        yield OsWorld(str(tmp_path))
    else:
        # tmpfs: another file system of the kernel's, that may know no RWF_NOWAIT.
        if not os.access(SHARED_MEMORY, os.W_OK):
            pytest.skip("no /dev/shm here")
        directory = Path(SHARED_MEMORY) / f"logd-test-{os.getpid()}-{tmp_path.name}"
        directory.mkdir()
        try:
            yield OsWorld(str(directory))
        finally:
            for path in sorted(directory.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            directory.rmdir()


def refusal(action: Callable[[], object]) -> OSError:
    """The OSError that an action raises."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 -- what it says is for the caller to check
        action()
    return caught.value


# -- bytes


def test_what_was_written_is_read(world: World) -> None:
    file = world.new()
    file.pwritev([b"one ", bytearray(b"two "), memoryview(b"three")], 0)

    assert file.pread(13, 0) == b"one two three"
    assert file.pread(3, 4) == b"two"
    assert file.size() == 13


def test_a_write_replaces_what_is_there_and_nothing_else(world: World) -> None:
    file = world.new(content=b"0123456789")

    file.pwritev([b"AB", b"C"], 3)

    assert file.pread(100, 0) == b"012ABC6789"


def test_a_write_across_pages_and_sectors_is_read_as_written(world: World) -> None:
    chance = random.Random(1)
    file = world.new()
    expected = bytearray()
    for _ in range(60):
        position, data = chance.randrange(20_000), chance.randbytes(chance.randrange(9_000))
        expected.extend(bytes(max(0, position + len(data) - len(expected)) if data else 0))
        expected[position : position + len(data)] = data
        file.pwritev([data[:100], b"", data[100:]], position)

    assert file.size() == len(expected)
    assert file.pread(len(expected), 0) == expected
    for _ in range(60):
        position, length = chance.randrange(30_000), chance.randrange(9_000)
        assert file.pread(length, position) == expected[position : position + length]


def test_more_buffers_than_one_call_takes_are_written_whole(world: World) -> None:
    file = world.new()
    buffers = [b"%07d," % number for number in range(2 * BUFFERS_PER_CALL_MAX + 3)]

    file.pwritev(buffers, 5)

    assert file.pread(len(buffers) * 8 + 5, 0) == bytes(5) + b"".join(buffers)


def test_buffers_without_bytes_write_nothing(world: World) -> None:
    file = world.new(content=b"abc")

    file.pwritev([], 10)
    file.pwritev([b"", bytearray(), memoryview(b"")], 10)

    assert file.size() == 3


def test_a_memoryview_of_wide_items_is_written_by_its_bytes(world: World) -> None:
    file = world.new()
    wide = memoryview(bytes(range(16))).cast("Q")

    file.pwritev([wide, b"end"], 0)

    assert file.pread(100, 0) == bytes(range(16)) + b"end"


def test_a_buffer_may_change_after_the_write(world: World) -> None:
    file = world.new()
    buffer = bytearray(b"before")

    file.pwritev([buffer], 0)
    buffer[:] = b"after!"

    assert file.pread(6, 0) == b"before"


def test_reading_past_the_end_gives_what_there_is(world: World) -> None:
    file = world.new(content=b"abc")

    assert file.pread(10, 1) == b"bc"
    assert file.pread(10, 3) == b""
    assert file.pread(10, 1_000_000) == b""
    assert file.pread(0, 0) == b""


def test_holes_read_as_zeros(world: World) -> None:
    file = world.new()

    file.pwritev([b"end"], 100_000)

    assert file.size() == 100_003
    assert file.pread(100_003, 0) == bytes(100_000) + b"end"


def test_a_read_that_does_not_wait_gives_the_same_bytes_or_none(world: World) -> None:
    file = world.new(content=random.Random(2).randbytes(50_000))
    file.sync()

    for forgotten in (False, True):
        for length, position in ((50_000, 0), (10, 0), (5_000, 4_000), (100, 49_990), (10, 50_000), (10, 60_000)):
            if forgotten:
                world.forget(file)
            assert file.pread_nowait(length, position) in (None, file.pread(length, position))


def test_a_negative_position_is_refused(world: World) -> None:
    file = world.new()

    for action in (
        lambda: file.pread(1, -1),
        lambda: file.pread_nowait(1, -1),
        lambda: file.pwritev([b"a"], -1),
        lambda: file.allocate(-1, 10),
        lambda: file.truncate(-1),
    ):
        error = refusal(action)
        assert error.errno == errno.EINVAL
        assert error.filename == file.path
    assert file.size() == 0


def test_sync_keeps_the_bytes(world: World) -> None:
    file = world.new(content=b"abc")

    file.sync()
    file.sync()
    world.forget(file)

    assert file.pread(10, 0) == b"abc"


# -- lengths


def test_truncate_cuts_and_extends_with_zeros(world: World) -> None:
    file = world.new(content=b"x" * 10_000)

    file.truncate(5_000)
    assert file.size() == 5_000
    assert file.pread(10_000, 0) == b"x" * 5_000

    file.truncate(9_000)
    assert file.size() == 9_000
    assert file.pread(10_000, 0) == b"x" * 5_000 + bytes(4_000)


def test_what_was_cut_does_not_come_back_with_a_later_write(world: World) -> None:
    file = world.new(content=b"x" * 10_000)
    file.sync()

    file.truncate(100)
    file.sync()
    file.pwritev([b"y"], 9_000)
    file.sync()
    world.forget(file)

    assert file.pread(10_000, 0) == b"x" * 100 + bytes(8_900) + b"y"


def test_allocate_grows_with_zeros_and_keeps_what_is_there(world: World) -> None:
    file = world.new(content=b"abc")

    file.allocate(0, 100_000)
    assert file.size() == 100_000
    assert file.pread(200_000, 0) == b"abc" + bytes(99_997)

    file.allocate(10, 20)
    assert file.size() == 100_000


def test_allocating_nothing_is_refused(world: World) -> None:
    file = world.new()

    assert refusal(lambda: file.allocate(0, 0)).errno == errno.EINVAL
    assert refusal(lambda: file.allocate(0, -1)).errno == errno.EINVAL


def test_a_full_disk_refuses_the_write_by_name(world: World) -> None:
    file = world.full_file()

    error = refusal(lambda: file.pwritev([b"a"], 0))

    assert error.errno == errno.ENOSPC
    assert error.filename == file.path


def test_free_bytes_are_positive_and_asked_of_what_exists(world: World) -> None:
    assert world.files.free_bytes(world.directory) > 0
    assert world.files.free_bytes(world.new().path) > 0
    assert refusal(lambda: world.files.free_bytes(world.path("missing"))).errno == errno.ENOENT


# -- failed syncs


def test_a_failed_sync_is_never_repeated(world: World) -> None:
    file, error_number = world.file_whose_sync_fails()

    first = refusal(file.sync)
    second = refusal(file.sync)
    write = refusal(lambda: file.pwritev([b"a"], 0))

    assert [first.errno, second.errno, write.errno] == [error_number] * 3
    assert [first.filename, second.filename, write.filename] == [file.path] * 3
    assert "an earlier sync failed" not in str(first)
    assert "an earlier sync failed" in str(second)
    assert "an earlier sync failed" in str(write)


def test_a_failed_sync_does_not_keep_a_file_from_closing(world: World) -> None:
    file, _ = world.file_whose_sync_fails()
    refusal(file.sync)

    file.close()

    assert refusal(file.size).errno == errno.EBADF


# -- open files


def every_use(file: File) -> list[Callable[[], object]]:
    return [
        lambda: file.pread(1, 0),
        lambda: file.pread_nowait(1, 0),
        lambda: file.pwritev([b"a"], 0),
        lambda: file.allocate(0, 10),
        lambda: file.truncate(0),
        file.size,
        file.sync,
    ]


def test_a_closed_file_refuses_every_use(world: World) -> None:
    file = world.new(content=b"abc")

    file.close()
    file.close()

    for use in every_use(file):
        error = refusal(use)
        assert error.errno == errno.EBADF
        assert error.filename == file.path
    assert world.content("file") == b"abc"


def test_a_file_opened_for_reading_refuses_every_change(world: World) -> None:
    world.new(content=b"abc").close()
    file = world.files.open(world.path("file"), writable=False)

    assert refusal(lambda: file.pwritev([b"x"], 0)).errno == errno.EBADF
    assert refusal(lambda: file.allocate(0, 10)).errno == errno.EBADF
    assert refusal(lambda: file.truncate(0)).errno == errno.EINVAL
    file.sync()
    assert file.pread(10, 0) == b"abc"


def test_two_handles_see_one_file(world: World) -> None:
    one = world.new(content=b"abc")
    other = world.files.open(world.path("file"))

    other.pwritev([b"XYZ"], 2)
    one.close()

    assert other.pread(10, 0) == b"abXYZ"
    assert other.size() == 5


def test_a_file_that_lost_its_name_stays_readable_while_it_is_open(world: World) -> None:
    file = world.new(content=b"abc")

    world.files.unlink(file.path)
    file.pwritev([b"d"], 3)
    file.sync()

    assert not world.files.exists(file.path)
    assert file.pread(10, 0) == b"abcd"
    assert file.size() == 4


def test_a_name_used_again_is_another_file(world: World) -> None:
    old = world.new(content=b"old")
    world.files.unlink(old.path)

    new = world.new(content=b"new")

    assert old.pread(10, 0) == b"old"
    assert new.pread(10, 0) == b"new"


def test_a_renamed_file_stays_open_and_keeps_the_path_it_was_opened_by(world: World) -> None:
    file = world.new("old", b"abc")

    world.files.rename(world.path("old"), world.path("new"))
    file.pwritev([b"X"], 0)

    assert file.path == world.path("old")
    assert world.content("new") == b"Xbc"


# -- names


def test_open_creates_only_when_asked(world: World) -> None:
    path = world.path("file")

    error = refusal(lambda: world.files.open(path))
    assert isinstance(error, FileNotFoundError)
    assert error.filename == path
    assert not world.files.exists(path)

    world.files.open(path, create=True).close()
    assert world.files.exists(path)


def test_open_with_create_keeps_what_is_there(world: World) -> None:
    world.new(content=b"abc")

    assert world.files.open(world.path("file"), create=True).pread(10, 0) == b"abc"


def test_exclusive_creation_wants_a_free_name(world: World) -> None:
    world.files.open(world.path("file"), create=True, exclusive=True)
    world.files.mkdir(world.path("directory"))

    for name in ("file", "directory"):
        error = refusal(lambda name=name: world.files.open(world.path(name), create=True, exclusive=True))  # type: ignore[misc]  # mypy infers no lambda with defaults
        assert isinstance(error, FileExistsError)
        assert error.filename == world.path(name)


def test_opening_in_ways_that_mean_nothing_is_a_mistake_of_the_caller(world: World) -> None:
    with pytest.raises(ValueError, match="exclusive"):
        world.files.open(world.path("file"), exclusive=True)
    with pytest.raises(ValueError, match="never written"):
        world.files.open(world.path("file"), create=True, writable=False)
    assert world.files.listdir(world.directory) == []


def test_a_directory_is_not_opened_as_a_file(world: World) -> None:
    world.files.mkdir(world.path("directory"))

    for action in (
        lambda: world.files.open(world.path("directory")),
        lambda: world.files.open(world.path("directory"), writable=False),
        lambda: world.files.open(world.path("directory"), create=True),
        lambda: world.files.lock(world.path("directory")),
    ):
        assert isinstance(refusal(action), IsADirectoryError)


def test_names_are_listed_in_order(world: World) -> None:
    for name in ("b", "a10", "a9", "ü"):
        world.new(name)
    world.files.mkdir(world.path("c"))

    assert world.files.listdir(world.directory) == ["a10", "a9", "b", "c", "ü"]


def test_exists_is_true_of_files_and_directories(world: World) -> None:
    world.new("file")

    assert world.files.exists(world.directory)
    assert world.files.exists(world.path("file"))
    assert not world.files.exists(world.path("missing"))
    assert not world.files.exists(world.path("missing", "file"))
    assert not world.files.exists(world.path("file", "below"))


def test_mkdir_wants_a_free_name_in_a_directory(world: World) -> None:
    world.files.mkdir(world.path("directory"))
    world.new("file")

    assert world.files.listdir(world.path("directory")) == []
    assert isinstance(refusal(lambda: world.files.mkdir(world.path("directory"))), FileExistsError)
    assert isinstance(refusal(lambda: world.files.mkdir(world.path("file"))), FileExistsError)
    assert isinstance(refusal(lambda: world.files.mkdir(world.path("a", "b"))), FileNotFoundError)
    assert isinstance(refusal(lambda: world.files.mkdir(world.path("file", "b"))), NotADirectoryError)


def test_rmdir_removes_only_empty_directories(world: World) -> None:
    world.files.mkdir(world.path("directory"))
    world.new("file").close()
    world.files.open(world.path("directory", "file"), create=True).close()

    assert refusal(lambda: world.files.rmdir(world.path("directory"))).errno == errno.ENOTEMPTY
    assert isinstance(refusal(lambda: world.files.rmdir(world.path("file"))), NotADirectoryError)
    assert isinstance(refusal(lambda: world.files.rmdir(world.path("missing"))), FileNotFoundError)

    world.files.unlink(world.path("directory", "file"))
    world.files.rmdir(world.path("directory"))
    assert world.files.listdir(world.directory) == ["file"]


def test_unlink_removes_only_files(world: World) -> None:
    world.files.mkdir(world.path("directory"))

    assert isinstance(refusal(lambda: world.files.unlink(world.path("directory"))), IsADirectoryError)
    assert isinstance(refusal(lambda: world.files.unlink(world.path("missing"))), FileNotFoundError)
    assert world.files.exists(world.path("directory"))


def test_rename_replaces_a_file(world: World) -> None:
    world.new("old", b"old").close()
    replaced = world.new("new", b"new")

    world.files.rename(world.path("old"), world.path("new"))

    assert world.files.listdir(world.directory) == ["new"]
    assert world.content("new") == b"old"
    assert replaced.pread(10, 0) == b"new"


def test_rename_moves_between_directories(world: World) -> None:
    world.files.mkdir(world.path("directory"))
    world.new("file", b"abc").close()

    world.files.rename(world.path("file"), world.path("directory", "moved"))
    assert world.files.listdir(world.directory) == ["directory"]
    assert world.content("directory/moved") == b"abc"

    world.files.rename(world.path("directory"), world.path("other"))
    assert world.files.listdir(world.directory) == ["other"]
    assert world.content("other/moved") == b"abc"


def test_renaming_a_file_to_itself_changes_nothing(world: World) -> None:
    world.new("file", b"abc").close()

    world.files.rename(world.path("file"), world.path("file"))

    assert world.content("file") == b"abc"


def test_rename_refuses_what_does_not_fit(world: World) -> None:
    world.new("file").close()
    world.files.mkdir(world.path("empty"))
    world.files.mkdir(world.path("full"))
    world.files.mkdir(world.path("full", "below"))
    before = world.files.listdir(world.directory)

    for old, new, error_number in (
        ("missing", "new", errno.ENOENT),
        ("file", "missing/new", errno.ENOENT),
        ("file", "empty", errno.EISDIR),
        ("empty", "file", errno.ENOTDIR),
        ("empty", "full", errno.ENOTEMPTY),
        ("file", "file/below", errno.ENOTDIR),
        ("full", "full/below/again", errno.EINVAL),
    ):
        error = refusal(lambda old=old, new=new: world.files.rename(world.path(old), world.path(new)))  # type: ignore[misc]  # mypy infers no lambda with defaults
        assert error.errno == error_number, (old, new)
        assert (error.filename, error.filename2) == (world.path(old), world.path(new))
    assert world.files.listdir(world.directory) == before


def test_a_directory_replaces_an_empty_one(world: World) -> None:
    world.files.mkdir(world.path("old"))
    world.files.mkdir(world.path("old", "below"))
    world.files.mkdir(world.path("new"))

    world.files.rename(world.path("old"), world.path("new"))

    assert world.files.listdir(world.directory) == ["new"]
    assert world.files.listdir(world.path("new")) == ["below"]


def test_directories_only_are_listed_and_synced(world: World) -> None:
    world.new("file").close()
    world.files.sync_directory(world.directory)

    for method in (world.files.listdir, world.files.sync_directory):
        for name, kind in (("file", NotADirectoryError), ("missing", FileNotFoundError)):
            error = refusal(lambda method=method, name=name: method(world.path(name)))  # type: ignore[misc]  # mypy infers no lambda with defaults
            assert isinstance(error, kind)
            assert error.filename == world.path(name)


def test_a_name_that_is_too_long_or_empty_is_refused(world: World) -> None:
    assert refusal(lambda: world.new("n" * 256)).errno == errno.ENAMETOOLONG
    assert refusal(lambda: world.files.mkdir(world.path("ü" * 128))).errno == errno.ENAMETOOLONG
    assert refusal(lambda: world.files.open("")).errno == errno.ENOENT
    world.new("n" * 255)


# -- locks


def test_a_lock_is_held_by_one(world: World) -> None:
    path = world.path("LOCK")
    held = world.files.lock(path)

    error = refusal(lambda: world.files.lock(path))
    assert isinstance(error, BlockingIOError)
    assert error.filename == path

    held.release()
    held.release()
    world.files.lock(path).release()
    assert world.files.listdir(world.directory) == ["LOCK"]


def test_a_lock_given_up_twice_does_not_take_it_from_the_next(world: World) -> None:
    first = world.files.lock(world.path("LOCK"))
    first.release()
    second = world.files.lock(world.path("LOCK"))

    first.release()

    assert isinstance(refusal(lambda: world.files.lock(world.path("LOCK"))), BlockingIOError)
    second.release()


def test_a_lock_needs_its_directory(world: World) -> None:
    assert isinstance(refusal(lambda: world.files.lock(world.path("missing", "LOCK"))), FileNotFoundError)


def test_a_lock_does_not_keep_the_file_from_being_used(world: World) -> None:
    lock = world.files.lock(world.path("LOCK"))
    file = world.files.open(world.path("LOCK"))

    file.pwritev([b"1"], 0)

    assert file.pread(10, 0) == b"1"
    lock.release()


# -- what only the kernel can show


def test_files_and_directories_are_for_this_user_only(tmp_path: Path) -> None:
    files = OsFileSystem()
    files.mkdir(f"{tmp_path}/directory")
    files.open(f"{tmp_path}/file", create=True).close()
    files.lock(f"{tmp_path}/LOCK").release()

    assert stat.S_IMODE((tmp_path / "directory").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "LOCK").stat().st_mode) == 0o600


def test_a_short_write_goes_on_where_it_stopped_and_says_why_it_ends(tmp_path: Path) -> None:
    file = OsFileSystem().open(f"{tmp_path}/file", create=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        # The kernel takes the first 10,000 bytes and tells by a short count; only the next call says why.
        error = refusal(lambda: file.pwritev([b"x" * 7_000, b"y" * 7_000], 0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert error.errno == errno.EFBIG
    assert error.filename == file.path
    assert file.pread(20_000, 0) == b"x" * 7_000 + b"y" * 3_000


def test_a_lock_dies_with_the_process_that_holds_it(tmp_path: Path) -> None:
    # It holds the lock until its standard input ends, which also happens if this test fails before it kills it.
    program = (
        "import sys; from logd.store.files import OsFileSystem;"
        "lock = OsFileSystem().lock(sys.argv[1]); print(flush=True); sys.stdin.read()"
    )
    path = f"{tmp_path}/LOCK"
    command = [sys.executable, "-c", program, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        held = refusal(lambda: OsFileSystem().lock(path))
        holder.kill()
        holder.wait()

    assert isinstance(held, BlockingIOError)
    OsFileSystem().lock(path).release()


def test_of_two_threads_that_sync_at_once_none_is_told_a_success_after_a_failure() -> None:
    file = OsFileSystem().open("/dev/full")
    errors: list[OSError] = []
    together = threading.Barrier(4)

    def sync() -> None:
        together.wait()
        errors.append(refusal(file.sync))

    threads = [threading.Thread(target=sync) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(errors) == 4
    assert sum("an earlier sync failed" in str(error) for error in errors) == 3
