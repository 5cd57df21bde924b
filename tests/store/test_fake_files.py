"""What the fake takes away in a crash, and what it must leave: the store's crash tests are worth as much as this."""

import errno
import random
from collections.abc import Callable

import pytest

from logd.store.files import File
from tests.support.fake_files import (
    PAGE_BYTES,
    SECTOR_BYTES,
    Call,
    DiskFaults,
    DiskWork,
    FakeFileSystem,
    SimulatedCrash,
)


def new_file_system() -> FakeFileSystem:
    """One directory, /d, that is durable."""
    fs = FakeFileSystem()
    fs.mkdir("/d")
    fs.sync_directory("/")
    return fs


def durable(fs: FakeFileSystem, path: str, content: bytes = b"") -> File:
    """A file whose content and name are durable."""
    file = fs.open(path, create=True)
    file.pwritev([content], 0)
    file.sync()
    fs.sync_directory(path.rpartition("/")[0] or "/")
    return file


def endings(fs: FakeFileSystem, count: int = 200) -> list[FakeFileSystem]:
    """What many power cuts at this moment leave."""
    return [fs.crash(random.Random(seed)) for seed in range(count)]


def trees(fs: FakeFileSystem, count: int = 200) -> set[tuple[str, ...]]:
    """The names that power cuts at this moment may leave."""
    return {tuple(after.tree("/d")) for after in endings(fs, count)}


# -- bytes


def test_an_unsynced_write_is_lost() -> None:
    fs = new_file_system()
    file = durable(fs, "/d/a", b"before")

    file.pwritev([b"AFTER!, and longer"], 0)

    assert fs.contents("/d/a") == b"AFTER!, and longer"
    assert fs.crash(None).contents("/d/a") == b"before"


def test_a_synced_write_is_kept_whatever_happens() -> None:
    fs = new_file_system()
    content = random.Random(1).randbytes(3 * PAGE_BYTES + 7)
    durable(fs, "/d/a", content)

    assert fs.is_durable()
    assert {after.contents("/d/a") for after in [fs.crash(None), *endings(fs, 20)]} == {content}


def test_syncing_one_file_leaves_the_others_unsynced() -> None:
    fs = new_file_system()
    one, other = durable(fs, "/d/a"), durable(fs, "/d/b")
    one.pwritev([b"one"], 0)
    other.pwritev([b"other"], 0)

    one.sync()

    after = fs.crash(None)
    assert (after.contents("/d/a"), after.contents("/d/b")) == (b"one", b"")


def test_unsynced_truncation_and_allocation_are_undone() -> None:
    fs = new_file_system()
    cut, grown = durable(fs, "/d/a", b"x" * 10_000), durable(fs, "/d/b", b"abc")
    cut.truncate(5)
    grown.allocate(0, 10_000)

    after = fs.crash(None)
    assert (after.contents("/d/a"), after.contents("/d/b")) == (b"x" * 10_000, b"abc")

    cut.sync()
    grown.sync()
    after = fs.crash(None)
    assert (after.contents("/d/a"), after.contents("/d/b")) == (b"xxxxx", b"abc" + bytes(9_997))


def test_writes_tear_at_sectors_and_nowhere_else() -> None:
    fs = new_file_system()
    sectors = 40
    file = durable(fs, "/d/a", b"-" * sectors * SECTOR_BYTES)
    file.pwritev([b"+" * (sectors * SECTOR_BYTES - 200)], 100)

    old, new = b"-" * SECTOR_BYTES, b"+" * SECTOR_BYTES
    first, last = b"-" * 100 + b"+" * 412, b"+" * 412 + b"-" * 100
    seen = set()
    for after in endings(fs):
        content = after.contents("/d/a")
        pieces = [content[start : start + SECTOR_BYTES] for start in range(0, len(content), SECTOR_BYTES)]
        assert pieces[0] in (old, first)
        assert pieces[-1] in (old, last)
        assert set(pieces[1:-1]) <= {old, new}
        seen.add(tuple(pieces))

    # Lost whole, kept whole, and many ways in between; also with a later sector that arrived before an earlier one.
    assert (old,) * sectors in seen
    assert (first, *(new,) * (sectors - 2), last) in seen
    assert len(seen) > 20
    assert any(pieces[0] == old and new in pieces for pieces in seen)


def test_a_sector_is_as_it_was_at_some_moment_since_the_sync() -> None:
    fs = new_file_system()
    file = durable(fs, "/d/a", b"." * 30)

    file.pwritev([b"A" * 10], 0)
    file.pwritev([b"B" * 10], 10)

    # The second write's sector holds the first one's bytes too: what is impossible must not make a test fail.
    contents = {after.contents("/d/a") for after in endings(fs)}
    assert contents == {b"." * 30, b"A" * 10 + b"." * 20, b"A" * 10 + b"B" * 10 + b"." * 10}


def test_unsynced_writes_arrive_in_any_order() -> None:
    fs = new_file_system()
    file = durable(fs, "/d/a", bytes(3 * PAGE_BYTES))
    for page in range(3):
        file.pwritev([b"x"], page * PAGE_BYTES)

    arrived = {tuple(after.contents("/d/a")[::PAGE_BYTES]) for after in endings(fs)}

    x = ord("x")
    assert arrived == {(a, b, c) for a in (0, x) for b in (0, x) for c in (0, x)}


def test_a_file_may_have_grown_over_bytes_that_never_arrived() -> None:
    fs = new_file_system()
    file = durable(fs, "/d/a")
    file.pwritev([b"x" * PAGE_BYTES], 0)

    contents = {after.contents("/d/a") for after in endings(fs)}

    assert {b"", bytes(PAGE_BYTES), b"x" * PAGE_BYTES} <= contents
    assert all(len(content) in (0, PAGE_BYTES) for content in contents)


def test_what_was_cut_is_there_or_is_not_but_never_grows_back_behind_new_bytes() -> None:
    fs = new_file_system()
    file = durable(fs, "/d/a", b"x" * 4 * PAGE_BYTES)

    file.truncate(PAGE_BYTES)
    file.pwritev([b"y" * PAGE_BYTES], 3 * PAGE_BYTES)

    for after in endings(fs):
        content = after.contents("/d/a")
        if len(content) == PAGE_BYTES:
            assert content == b"x" * PAGE_BYTES
        elif b"y" in content or bytes(PAGE_BYTES) in content:
            # The cut came through, so none of what stood behind it can be there.
            assert content[PAGE_BYTES : 3 * PAGE_BYTES] == bytes(2 * PAGE_BYTES)
            assert b"x" not in content[3 * PAGE_BYTES :]
        else:
            assert content == b"x" * 4 * PAGE_BYTES


def test_sizes_change_in_order() -> None:
    fs = new_file_system()
    file = durable(fs, "/d/a", bytes(10))
    for length in (700, 300, 5_000, 20):
        file.truncate(length)

    assert {len(after.contents("/d/a")) for after in endings(fs)} == {10, 700, 300, 5_000, 20}


def test_a_crash_is_the_same_for_the_same_seed_and_leaves_the_history_alone() -> None:
    fs = new_file_system()
    for name in "abc":
        file = fs.open(f"/d/{name}", create=True)
        file.pwritev([random.Random(name).randbytes(20_000)], 0)
    before = {name: fs.contents(f"/d/{name}") for name in "abc"}

    def picture(after: FakeFileSystem) -> dict[str, bytes]:
        return {path: after.contents(path) for path in after.tree("/d")}

    pictures = [picture(fs.crash(random.Random(seed))) for seed in range(50)]
    again = [picture(fs.crash(random.Random(seed))) for seed in range(50)]

    assert pictures == again
    assert {name: fs.contents(f"/d/{name}") for name in "abc"} == before
    assert any(one != other for one in pictures for other in pictures)


def test_what_happens_after_a_crash_is_not_seen_by_the_other_endings() -> None:
    fs = new_file_system()
    durable(fs, "/d/a", b"x" * 10_000)
    one, other = fs.crash(None), fs.crash(None)

    file = one.open("/d/a")
    file.pwritev([b"CHANGED"], 5_000)
    file.sync()
    one.unlink("/d/a")
    other.flip_bit("/d/a", 0)

    assert fs.contents("/d/a") == b"x" * 10_000
    assert other.contents("/d/a") == b"y" + b"x" * 9_999
    assert fs.crash(None).contents("/d/a") == b"x" * 10_000


def test_what_happens_after_a_crash_was_asked_for_does_not_reach_its_answer() -> None:
    fs = new_file_system()
    file = durable(fs, "/d/a", b"before")
    after = fs.crash(None)

    file.pwritev([b"AFTER!"], 0)
    file.sync()
    fs.flip_bit("/d/a", 0)

    assert after.contents("/d/a") == b"before"


def test_bytes_behind_a_size_that_did_not_come_through_are_gone_for_good() -> None:
    fs = new_file_system()
    file = durable(fs, "/d/a")
    file.pwritev([b"x" * PAGE_BYTES], 0)

    shorter = [after for after in endings(fs) if not after.contents("/d/a")]

    assert shorter
    for after in shorter:
        after.open("/d/a").truncate(PAGE_BYTES)
        assert after.contents("/d/a") == bytes(PAGE_BYTES)


def test_a_second_crash_keeps_what_was_synced_after_the_first() -> None:
    fs = new_file_system()
    durable(fs, "/d/a", b"first").pwritev([b"lost!"], 0)

    second = fs.crash(None)
    file = second.open("/d/a")
    file.pwritev([b" second"], 5)
    file.sync()
    file.pwritev([b" lost"], 12)

    assert second.crash(None).contents("/d/a") == b"first second"


# -- names


def test_a_new_file_is_lost_until_its_directory_is_synced() -> None:
    fs = new_file_system()
    file = fs.open("/d/a", create=True)
    file.pwritev([b"abc"], 0)
    file.sync()

    assert not fs.crash(None).exists("/d/a")
    assert trees(fs) == {(), ("/d/a",)}

    fs.sync_directory("/d")
    assert fs.crash(None).contents("/d/a") == b"abc"
    assert trees(fs) == {("/d/a",)}


def test_a_durable_name_says_nothing_about_the_bytes() -> None:
    fs = new_file_system()
    file = fs.open("/d/a", create=True)
    file.pwritev([b"abc"], 0)

    fs.sync_directory("/d")

    assert fs.crash(None).contents("/d/a") == b""


def test_a_directory_that_is_not_durable_takes_all_below_with_it() -> None:
    fs = new_file_system()
    fs.mkdir("/d/e")
    durable(fs, "/d/e/a", b"abc")

    assert list(fs.crash(None).tree("/d")) == []

    fs.sync_directory("/d")
    assert fs.crash(None).tree("/d") == {"/d/e": None, "/d/e/a": 3}


def test_an_unsynced_removal_may_come_back() -> None:
    fs = new_file_system()
    durable(fs, "/d/a", b"abc").close()
    fs.mkdir("/d/e")
    fs.sync_directory("/d")

    fs.unlink("/d/a")
    fs.rmdir("/d/e")

    assert fs.crash(None).contents("/d/a") == b"abc"
    assert trees(fs) == {("/d/a", "/d/e"), ("/d/a",), ("/d/e",), ()}

    fs.sync_directory("/d")
    assert trees(fs) == {()}


def test_a_rename_is_there_whole_or_not_at_all() -> None:
    fs = new_file_system()
    durable(fs, "/d/new", b"replaced")
    durable(fs, "/d/old", b"moved")

    fs.rename("/d/old", "/d/new")

    def picture(after: FakeFileSystem) -> tuple[tuple[str, bytes], ...]:
        return tuple((path, after.contents(path)) for path in after.tree("/d"))

    before, after = (("/d/new", b"replaced"), ("/d/old", b"moved")), (("/d/new", b"moved"),)
    assert picture(fs.crash(None)) == before
    assert {picture(ending) for ending in endings(fs)} == {before, after}

    fs.sync_directory("/d")
    assert picture(fs.crash(None)) == after


def test_a_rename_over_a_durable_file_before_the_new_one_is_synced_loses_both() -> None:
    fs = new_file_system()
    durable(fs, "/d/state", b"old")
    file = fs.open("/d/state.new", create=True)
    file.pwritev([b"new"], 0)

    fs.rename("/d/state.new", "/d/state")
    fs.sync_directory("/d")

    assert fs.crash(None).contents("/d/state") == b""


def test_operations_on_one_name_keep_their_order() -> None:
    fs = new_file_system()
    durable(fs, "/d/a", b"first")

    fs.rename("/d/a", "/d/b")
    second = fs.open("/d/a", create=True)
    second.pwritev([b"2nd"], 0)
    second.sync()

    # The second /d/a cannot be there unless the first one went to /d/b.
    assert trees(fs) == {("/d/a",), ("/d/b",), ("/d/a", "/d/b")}
    for after in endings(fs):
        assert b"first" in {after.contents(path) for path in after.tree("/d")}


def test_a_file_moved_to_another_directory_is_always_in_one_of_them() -> None:
    fs = new_file_system()
    durable(fs, "/d/a", b"abc")
    fs.mkdir("/d/e")
    fs.rename("/d/a", "/d/e/a")
    assert trees(fs) == {("/d/a",), ("/d/a", "/d/e"), ("/d/e", "/d/e/a")}

    fs.sync_directory("/d/e")
    assert fs.crash(None).tree("/d") == {"/d/e": None, "/d/e/a": 3}

    fs.rename("/d/e/a", "/d/a")
    fs.rmdir("/d/e")
    assert trees(fs) == {("/d/e", "/d/e/a"), ("/d/a", "/d/e"), ("/d/a",)}


def test_a_sync_of_one_directory_leaves_the_names_in_others_unsynced() -> None:
    fs = new_file_system()
    fs.mkdir("/other")
    fs.sync_directory("/")
    fs.open("/d/a", create=True)
    fs.open("/other/b", create=True)

    fs.sync_directory("/other")

    assert fs.crash(None).tree() == {"/d": None, "/other": None, "/other/b": 0}


def test_a_locks_file_needs_its_name_synced_too() -> None:
    fs = new_file_system()
    fs.lock("/d/LOCK")

    assert not fs.crash(None).exists("/d/LOCK")


# -- the end of the process


def test_a_kill_keeps_all_that_was_written_but_no_lock() -> None:
    fs = new_file_system()
    fs.lock("/d/LOCK")
    file = fs.open("/d/a", create=True)
    file.pwritev([b"abc"], 0)

    after = fs.kill()

    assert after.contents("/d/a") == b"abc"
    after.lock("/d/LOCK").release()
    assert not after.crash(None).exists("/d/a")
    after.open("/d/a").sync()
    after.sync_directory("/d")
    assert after.crash(None).contents("/d/a") == b"abc"
    assert not fs.crash(None).exists("/d/a")


def test_a_kill_frees_the_space_of_files_that_were_only_open() -> None:
    fs = new_file_system()
    file = fs.open("/d/a", create=True)
    file.pwritev([b"abc"], 0)
    fs.unlink("/d/a")

    assert fs.used_bytes() == PAGE_BYTES
    assert fs.kill().used_bytes() == 0


def test_crash_at_stops_in_place_of_the_call_and_of_every_one_after_it() -> None:
    fs = new_file_system()
    file = durable(fs, "/d/a", b"before")
    fs.crash_at(len(fs.calls) + 2)

    file.pwritev([b"first "], 0)
    with pytest.raises(SimulatedCrash):
        file.pwritev([b"second"], 0)

    uses: list[Callable[[], object]] = [
        lambda: file.pread(1, 0),
        file.size,
        file.sync,
        lambda: fs.exists("/d/a"),
        lambda: fs.open("/d/a"),
        lambda: fs.unlink("/d/a"),
    ]
    for use in uses:
        with pytest.raises(SimulatedCrash):
            use()
    file.close()
    assert fs.kill().contents("/d/a") == b"first "
    assert fs.crash(None).contents("/d/a") == b"before"


def test_no_handler_of_ordinary_errors_survives_a_crash() -> None:
    assert not issubclass(SimulatedCrash, Exception)


def every_mutating_call(fs: FakeFileSystem) -> None:
    fs.mkdir("/d")
    file = fs.open("/d/a", create=True)
    file.allocate(0, 1_000)
    file.pwritev([b"abc"], 0)
    file.truncate(3)
    file.sync()
    file.pread(3, 0)
    fs.open("/d/a", create=True)
    fs.rename("/d/a", "/d/b")
    fs.sync_directory("/d")
    fs.lock("/d/LOCK").release()
    fs.lock("/d/LOCK").release()
    fs.unlink("/d/b")
    fs.mkdir("/d/e")
    fs.rmdir("/d/e")


def test_every_call_that_changes_something_is_counted_and_no_other() -> None:
    fs = FakeFileSystem()

    every_mutating_call(fs)

    assert [call.operation for call in fs.calls] == [
        *("mkdir", "open", "allocate", "pwritev", "truncate", "sync", "rename", "sync_directory"),
        *("lock", "unlink", "mkdir", "rmdir"),
    ]
    assert fs.calls[3] == Call(number=4, operation="pwritev", path="/d/a", position=0, length=3)


def test_a_workload_can_be_crashed_at_every_boundary() -> None:
    complete = FakeFileSystem()
    every_mutating_call(complete)

    for number in range(1, len(complete.calls) + 1):
        fs = FakeFileSystem()
        fs.crash_at(number)
        with pytest.raises(SimulatedCrash):
            every_mutating_call(fs)
        assert fs.calls == complete.calls[:number]
        reached = fs.kill()
        assert len(reached.calls) == 0
        assert reached.exists("/d") == (number > 1)

    fs = FakeFileSystem()
    fs.crash_at(len(complete.calls) + 1)
    every_mutating_call(fs)
    assert fs.calls == complete.calls


def test_a_write_that_dies_has_written_up_to_a_boundary_of_sectors() -> None:
    lengths = set()
    for seed in range(100):
        fs = new_file_system()
        file = durable(fs, "/d/a", b"-" * 3_000)
        fs.crash_at(len(fs.calls) + 1, torn=random.Random(seed))
        with pytest.raises(SimulatedCrash):
            file.pwritev([b"+" * 1_000, b"+" * 1_000], 700)
        content = fs.kill().contents("/d/a")
        written = content.count(b"+")
        assert content == b"-" * 700 + b"+" * written + b"-" * (2_300 - written)
        assert fs.crash(None).contents("/d/a") == b"-" * 3_000
        lengths.add(written)

    assert lengths == {0, 1_024 - 700, 1_536 - 700, 2_048 - 700, 2_560 - 700}


def test_a_call_that_is_over_cannot_be_crashed() -> None:
    fs = new_file_system()

    with pytest.raises(ValueError, match="call 2 is over"):
        fs.crash_at(2)


# -- failures


def test_a_failure_hits_the_nth_call_that_matches() -> None:
    fs = new_file_system()
    a, b = durable(fs, "/d/a.segment"), durable(fs, "/d/b.journal")
    failure = fs.fail("pwritev", "*.segment", 2, errno.EIO)

    a.pwritev([b"1"], 0)
    b.pwritev([b"1"], 0)
    with pytest.raises(OSError, match="segment") as caught:
        a.pwritev([b"2"], 0)
    a.pwritev([b"3"], 1)

    assert caught.value.errno == errno.EIO
    assert failure.raised == 1
    assert fs.contents("/d/a.segment") == b"13"


def test_a_failure_may_last_until_it_is_healed() -> None:
    fs = new_file_system()
    failure = fs.fail("mkdir", "*", 1, errno.EROFS, times=None)

    for name in "abc":
        with pytest.raises(OSError, match="Read-only"):
            fs.mkdir(f"/d/{name}")
    fs.heal()
    fs.mkdir("/d/a")

    assert failure.raised == 3
    assert fs.listdir("/d") == ["a"]


@pytest.mark.parametrize(
    ("operation", "action"),
    [
        ("pread", lambda fs, file: file.pread(1, 0)),
        ("pread_nowait", lambda fs, file: file.pread_nowait(1, 0)),
        ("size", lambda fs, file: file.size()),
        ("allocate", lambda fs, file: file.allocate(0, 100)),
        ("truncate", lambda fs, file: file.truncate(0)),
        ("open", lambda fs, file: fs.open("/d/b", create=True)),
        ("exists", lambda fs, file: fs.exists("/d/a")),
        ("listdir", lambda fs, file: fs.listdir("/d")),
        ("rmdir", lambda fs, file: fs.rmdir("/d/e")),
        ("unlink", lambda fs, file: fs.unlink("/d/a")),
        ("rename", lambda fs, file: fs.rename("/d/a", "/d/c")),
        ("lock", lambda fs, file: fs.lock("/d/LOCK")),
        ("free_bytes", lambda fs, file: fs.free_bytes("/d")),
    ],
)
def test_a_call_that_fails_changes_nothing(operation: str, action: Callable[[FakeFileSystem, File], object]) -> None:
    fs = new_file_system()
    fs.mkdir("/d/e")
    file = durable(fs, "/d/a", b"abc")
    before = fs.tree(), fs.contents("/d/a"), fs.used_bytes()
    fs.fail(operation, "/d*", 1, errno.EIO)

    with pytest.raises(OSError, match="/d") as caught:
        action(fs, file)

    assert caught.value.errno == errno.EIO
    assert (fs.tree(), fs.contents("/d/a"), fs.used_bytes()) == before
    action(fs, file)


def test_a_failure_of_something_unknown_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="fsync"):
        FakeFileSystem().fail("fsync", "*", 1, errno.EIO)


def test_a_failing_write_may_have_written_a_part() -> None:
    fs = new_file_system()
    file = durable(fs, "/d/a", b"------")
    fs.fail("pwritev", "*", 1, errno.EIO, bytes_done=2)

    with pytest.raises(OSError, match="Input/output"):
        file.pwritev([b"+++", b"+++"], 1)

    assert fs.contents("/d/a") == b"-++---"


def test_after_a_failed_sync_reads_show_what_the_disk_lacks() -> None:
    fs = new_file_system()
    file = durable(fs, "/d/a", b"before")
    file.pwritev([b"AFTER!"], 0)
    fs.fail("sync", "*", 1, errno.EIO)

    with pytest.raises(OSError, match="Input/output"):
        file.sync()

    assert file.pread(6, 0) == b"AFTER!"
    assert fs.kill().contents("/d/a") == b"AFTER!"
    assert fs.crash(None).contents("/d/a") == b"before"
    assert not fs.is_durable()


def test_a_sync_after_a_failed_one_succeeds_and_saves_nothing_of_it() -> None:
    fs = new_file_system()
    file = durable(fs, "/d/a", b"before" + bytes(PAGE_BYTES))
    file.pwritev([b"AFTER!"], 0)
    fs.fail("sync", "*", 1, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        file.sync()

    # Another descriptor knows nothing of the error, which is why a failed sync must end the process.
    other = fs.open("/d/a")
    other.pwritev([b"later"], PAGE_BYTES)
    other.sync()

    assert other.pread(6, 0) == b"AFTER!"
    after = fs.crash(None)
    assert after.contents("/d/a")[:6] == b"before"
    assert after.contents("/d/a")[PAGE_BYTES : PAGE_BYTES + 5] == b"later"
    fs.evict("/d/a")
    assert other.pread(6, 0) == b"before"


def test_bytes_written_again_after_a_failed_sync_become_durable() -> None:
    fs = new_file_system()
    file = durable(fs, "/d/a", b"before")
    file.pwritev([b"AFTER!"], 0)
    fs.fail("sync", "*", 1, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        file.sync()

    restarted = fs.kill()
    again = restarted.open("/d/a")
    again.pwritev([b"AFTER!"], 0)
    again.sync()

    assert restarted.crash(None).contents("/d/a") == b"AFTER!"


def test_a_failed_sync_may_have_brought_some_bytes_to_the_disk() -> None:
    fs = new_file_system()
    file = durable(fs, "/d/a", b"before")
    file.pwritev([b"AFTER!"], 0)
    fs.fail("sync", "*", 1, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        file.sync()

    assert {after.contents("/d/a") for after in endings(fs)} == {b"before", b"AFTER!"}


def test_a_directory_whose_sync_failed_never_becomes_more_durable() -> None:
    fs = new_file_system()
    durable(fs, "/d/a")
    fs.open("/d/b", create=True)
    fs.fail("sync_directory", "/d", 1, errno.EIO)

    with pytest.raises(OSError, match="/d"):
        fs.sync_directory("/d")
    fs.sync_directory("/d")

    assert fs.listdir("/d") == ["a", "b"]
    assert list(fs.crash(None).tree("/d")) == ["/d/a"]


# -- a bad disk, by chance


def pages(*letters: bytes) -> bytes:
    return b"".join(letter * PAGE_BYTES for letter in letters)


def outcomes(action: Callable[[], object], count: int = 200) -> list[bool]:
    """Whether each of many calls succeeded."""
    succeeded = []
    for _ in range(count):
        try:
            action()
        except OSError:
            succeeded.append(False)
        else:
            succeeded.append(True)
    return succeeded


def test_reads_fail_as_often_as_ordered_and_change_nothing() -> None:
    fs = new_file_system()
    file, other = durable(fs, "/d/a", b"abc"), durable(fs, "/other", b"abc")
    faults = DiskFaults(random.Random(1), read_error=0.2, path_prefix="/d/")
    fs.inject(faults)

    failed = outcomes(lambda: file.pread(3, 0)).count(False)

    assert 20 < failed < 60
    assert faults.done == {"read_error": failed}
    assert all(outcomes(lambda: file.pread_nowait(3, 0)))
    assert all(outcomes(lambda: other.pread(3, 0)))
    fs.heal()
    assert all(outcomes(lambda: file.pread(3, 0)))


def test_a_write_that_fails_by_chance_has_written_any_part() -> None:
    fs = new_file_system()
    fs.inject(DiskFaults(random.Random(1), write_error=1.0))
    written = set()
    for number in range(50):
        file = fs.open(f"/d/{number}", create=True)
        with pytest.raises(OSError, match="Input/output"):
            file.pwritev([b"abc"], 0)
        written.add(fs.contents(f"/d/{number}"))

    assert written == {b"", b"a", b"ab", b"abc"}


def test_a_sync_that_fails_by_chance_is_a_failed_sync() -> None:
    fs = new_file_system()
    file = durable(fs, "/d/a", b"before")
    fs.inject(DiskFaults(random.Random(1), sync_error=1.0))
    file.pwritev([b"AFTER!"], 0)
    with pytest.raises(OSError, match="Input/output"):
        file.sync()
    fs.heal()
    with pytest.raises(OSError, match="an earlier sync failed"):
        file.sync()
    fs.open("/d/a").sync()

    assert file.pread(6, 0) == b"AFTER!"
    assert fs.crash(None).contents("/d/a") == b"before"


def test_after_a_directory_could_not_be_synced_nothing_is_written_until_the_power_is_cut() -> None:
    fs = new_file_system()
    file = durable(fs, "/d/a", b"abc")
    fs.open("/d/b", create=True)
    fs.inject(DiskFaults(random.Random(1), sync_error=1.0, path_prefix="/d/"))
    with pytest.raises(OSError, match="Input/output"):
        fs.sync_directory("/d")
    fs.heal()

    for disk in (fs, fs.kill()):
        with pytest.raises(OSError, match="Read-only"):
            disk.sync_directory("/d")
        with pytest.raises(OSError, match="Read-only"):
            disk.open("/d/a").pwritev([b"x"], 0)
    assert file.pread(3, 0) == b"abc"
    after = fs.kill().crash(None)
    assert after.listdir("/d") == ["a"]
    after.open("/d/a").pwritev([b"x"], 0)


def test_a_misdirected_write_is_noticed_at_both_places_once_the_pages_are_read_from_the_disk() -> None:
    fs = new_file_system()
    a, b = durable(fs, "/d/a", pages(b"1", b"2")), durable(fs, "/d/b", pages(b"3", b"4"))
    faults = DiskFaults(random.Random(7), misdirected_write=1.0)
    fs.inject(faults)
    a.pwritev([pages(b"N")], 0)
    a.sync()

    assert faults.done == {"misdirected_write": 1}
    for disk in (fs, fs.kill()):
        assert disk.contents("/d/a") == pages(b"N", b"2")
        assert disk.contents("/d/b") == pages(b"3", b"4")
    fs.heal()
    a.sync()
    b.sync()
    after = fs.crash(None)
    content = after.contents("/d/a") + after.contents("/d/b")
    assert content[:PAGE_BYTES] == pages(b"1"), "it is not where it should be"
    assert content.count(pages(b"N")) == 1, "it is elsewhere"
    fs.evict_all()
    assert fs.contents("/d/a") + fs.contents("/d/b") == content


def test_a_misdirected_write_lands_in_the_same_file_or_in_any_other_below_the_prefix() -> None:
    hit = set()
    for seed in range(60):
        fs = new_file_system()
        for path in ("/d/a", "/d/b", "/other"):
            durable(fs, path, pages(b".", b".", b"."))
        fs.inject(DiskFaults(random.Random(seed), misdirected_write=1.0, path_prefix="/d/"))
        for path in ("/d/a", "/other"):
            file = fs.open(path)
            file.pwritev([pages(b"N")], PAGE_BYTES)
            file.sync()
        after = fs.crash(None)
        assert after.contents("/other") == pages(b".", b"N", b".")
        hit.add((after.contents("/d/a"), after.contents("/d/b")))

    rest, first, last = pages(b".", b".", b"."), pages(b"N", b".", b"."), pages(b".", b".", b"N")
    assert hit >= {(first, rest), (last, rest), (rest, first), (rest, last)}
    assert all(a[PAGE_BYTES : 2 * PAGE_BYTES] == pages(b".") for a, _ in hit)


def test_a_page_that_was_misdirected_and_is_written_again_is_durable() -> None:
    fs = new_file_system()
    file = durable(fs, "/d/a", pages(b"1", b"2"))
    fs.inject(DiskFaults(random.Random(1), misdirected_write=1.0))
    file.pwritev([b"N"], 0)
    file.sync()
    fs.heal()

    file.pwritev([b"M"], 1)
    file.sync()

    assert fs.crash(None).contents("/d/a")[:3] == b"NM1"


def test_a_misdirected_read_is_of_one_page_and_right_the_next_time() -> None:
    fs = new_file_system()
    content = pages(b"1", b"2", b"3")
    file = durable(fs, "/d/a", content)
    durable(fs, "/d/b", pages(b"4", b"5"))
    faults = DiskFaults(random.Random(3), misdirected_read=0.5)
    fs.inject(faults)
    seen = [file.pread(2 * PAGE_BYTES, PAGE_BYTES // 2) for _ in range(100)]
    fs.heal()

    right = content[PAGE_BYTES // 2 : PAGE_BYTES // 2 + 2 * PAGE_BYTES]
    assert file.pread(2 * PAGE_BYTES, PAGE_BYTES // 2) == right
    wrong = [data for data in seen if data != right]
    assert 0 < len(wrong) <= faults.done["misdirected_read"]
    assert {len(data) for data in seen} == {len(right)}
    assert {byte for data in wrong for byte in data} == set(b"12345")
    for data in wrong:
        halves = range(0, len(data), PAGE_BYTES // 2)
        different = [start for start in halves if data[start] != right[start]]
        assert len({(start + PAGE_BYTES // 2) // PAGE_BYTES for start in different}) == 1


def test_what_is_not_on_the_disk_yet_is_never_read_from_elsewhere() -> None:
    fs = new_file_system()
    file = durable(fs, "/d/a", pages(b"1", b"2"))
    file.pwritev([b"N"], 0)
    fs.inject(DiskFaults(random.Random(3), misdirected_read=1.0))

    assert {file.pread(1, 0) for _ in range(50)} == {b"N"}


def test_the_same_chance_makes_the_same_faults() -> None:
    def run(seed: int) -> tuple[bytes, list[bool]]:
        fs = new_file_system()
        file = durable(fs, "/d/a", pages(b"1", b"2", b"3", b"4"))
        chance = random.Random(seed)
        fs.inject(DiskFaults(chance, read_error=0.1, misdirected_read=0.1, misdirected_write=0.5))
        results = outcomes(lambda: file.pread(10, 0), 30)
        for number in range(4):
            file.pwritev([b"N"], number * PAGE_BYTES)
            file.sync()
        return fs.crash(chance).contents("/d/a"), results

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_bits_flip_at_rest_in_chosen_files_alone() -> None:
    fs = new_file_system()
    file = durable(fs, "/d/a", pages(b"1", b"2") + bytes(5 * PAGE_BYTES))
    durable(fs, "/other", pages(b"3"))
    file.pwritev([b"dirty"], PAGE_BYTES)
    before, other = fs.contents("/d/a"), fs.contents("/other")

    flipped = fs.flip_bits(random.Random(1), 10, "/d/")

    assert len(flipped) == 10
    assert {path for path, _ in flipped} == {"/d/a"}
    after = fs.contents("/d/a")
    changed = {place for place in range(len(before)) if before[place] != after[place]}
    assert 0 < len(changed) <= len({position for _, position in flipped})
    assert changed <= set(range(PAGE_BYTES)), "neither what is unsynced nor zeros"
    assert all((before[place] ^ after[place]).bit_count() == 1 for place in changed)
    assert fs.contents("/other") == other
    assert fs.crash(None).contents("/d/a")[:PAGE_BYTES] == after[:PAGE_BYTES]


def test_no_bits_flip_where_nothing_is_at_rest() -> None:
    fs = new_file_system()
    fs.open("/d/a", create=True).pwritev([b"abc"], 0)

    assert fs.flip_bits(random.Random(1), 3) == []


def test_the_work_of_the_disk_is_counted() -> None:
    fs = new_file_system()
    file = durable(fs, "/d/a", pages(b"1", b"2"))
    fs.take_work()

    file.pwritev([b"abc"], 0)
    file.pwritev([b"abc"], 2)
    file.sync()
    file.pread(10, 0)

    assert fs.take_work() == DiskWork(calls=4, written_bytes=6, syncs=1, synced_bytes=PAGE_BYTES)
    fs.evict_all("/d/a")
    file.pread(10, PAGE_BYTES - 1)
    file.pread(10, 0)
    assert fs.take_work() == DiskWork(calls=2, fetched_bytes=2 * PAGE_BYTES)
    assert fs.take_work() == DiskWork()


def test_calls_can_be_counted_without_being_kept() -> None:
    fs = FakeFileSystem(keeps_calls=False)
    fs.mkdir("/d")
    fs.crash_at(fs.call_count + 2)
    fs.mkdir("/e")

    with pytest.raises(SimulatedCrash, match="number=3"):
        fs.mkdir("/f")

    assert fs.calls == []


# -- space


def test_space_runs_out_and_is_given_back() -> None:
    fs = FakeFileSystem(capacity_bytes=4 * PAGE_BYTES)
    a, b = fs.open("/a", create=True), fs.open("/b", create=True)
    a.allocate(0, 3 * PAGE_BYTES)

    with pytest.raises(OSError, match="No space") as caught:
        b.allocate(0, 2 * PAGE_BYTES)
    assert caught.value.errno == errno.ENOSPC
    assert (b.size(), fs.free_bytes("/")) == (0, PAGE_BYTES)

    a.truncate(PAGE_BYTES + 1)
    assert fs.free_bytes("/") == 2 * PAGE_BYTES
    b.allocate(0, 2 * PAGE_BYTES)
    assert fs.free_bytes("/") == 0


def test_allocated_space_takes_writes_on_a_full_disk() -> None:
    fs = FakeFileSystem(capacity_bytes=2 * PAGE_BYTES)
    file = fs.open("/a", create=True)
    file.allocate(0, 2 * PAGE_BYTES)

    file.pwritev([b"x" * 2 * PAGE_BYTES], 0)

    assert fs.free_bytes("/") == 0
    with pytest.raises(OSError, match="No space"):
        file.pwritev([b"x"], 2 * PAGE_BYTES)


def test_a_write_fills_the_disk_before_it_fails() -> None:
    fs = FakeFileSystem(capacity_bytes=2 * PAGE_BYTES)
    file = fs.open("/a", create=True)

    with pytest.raises(OSError, match="No space"):
        file.pwritev([b"x" * 3 * PAGE_BYTES], 100)

    assert file.size() == 2 * PAGE_BYTES
    assert fs.free_bytes("/") == 0


def test_an_open_file_keeps_its_space_after_it_lost_its_name() -> None:
    fs = FakeFileSystem(capacity_bytes=2 * PAGE_BYTES)
    file = fs.open("/a", create=True)
    file.pwritev([b"x"], 0)
    other = fs.open("/b", create=True)
    other.pwritev([b"x"], 0)
    other.close()

    fs.unlink("/a")
    assert fs.free_bytes("/") == 0
    file.close()
    assert fs.free_bytes("/") == PAGE_BYTES
    fs.open("/c", create=True).close()
    fs.rename("/c", "/b")
    assert fs.free_bytes("/") == 2 * PAGE_BYTES


def test_a_crash_gives_back_the_space_of_what_is_lost() -> None:
    fs = new_file_system()
    durable(fs, "/d/a", b"x")
    fs.open("/d/a").allocate(0, 10 * PAGE_BYTES)
    fs.open("/d/b", create=True).allocate(0, 10 * PAGE_BYTES)

    assert fs.used_bytes() == 20 * PAGE_BYTES
    assert fs.crash(None).used_bytes() == PAGE_BYTES
    assert {after.used_bytes() // PAGE_BYTES for after in endings(fs)} == {1, 10, 11, 20}


def test_space_that_was_cut_off_is_back_if_the_cut_came_through() -> None:
    fs = new_file_system()
    durable(fs, "/d/a", b"x" * 10 * PAGE_BYTES).truncate(PAGE_BYTES)

    assert {(after.tree()["/d/a"], after.used_bytes()) for after in endings(fs)} == {
        (PAGE_BYTES, PAGE_BYTES),
        (10 * PAGE_BYTES, 10 * PAGE_BYTES),
    }


def test_a_file_whose_removal_was_lost_can_be_removed_again() -> None:
    fs = new_file_system()
    durable(fs, "/d/a", b"x").close()
    fs.unlink("/d/a")

    after = fs.crash(None)
    assert after.used_bytes() == PAGE_BYTES
    after.unlink("/d/a")
    assert after.used_bytes() == 0


# -- other faults of disks


def test_a_flipped_bit_is_seen_at_once_and_stays() -> None:
    fs = new_file_system()
    file = durable(fs, "/d/a", b"abc")

    fs.flip_bit("/d/a", 1, bit=2)
    assert file.pread(3, 0) == b"afc"
    assert fs.crash(None).contents("/d/a") == b"afc"

    fs.flip_bit("/d/a", 1, bit=2)
    assert file.pread(3, 0) == b"abc"


def test_a_zeroed_range_is_seen_at_once_and_makes_nothing_else_durable() -> None:
    fs = new_file_system()
    file = durable(fs, "/d/a", b"x" * 10_000)
    file.pwritev([b"new"], 9_000)

    fs.zero_range("/d/a", 4_000, 200)

    assert file.pread(10_000, 0) == b"x" * 4_000 + bytes(200) + b"x" * 4_800 + b"new" + b"x" * 997
    assert fs.crash(None).contents("/d/a") == b"x" * 4_000 + bytes(200) + b"x" * 5_800
    fs.evict("/d/a")
    assert fs.contents("/d/a")[9_000:9_003] == b"new"


def test_damage_beside_an_unsynced_write_does_not_undo_it() -> None:
    fs = new_file_system()
    file = durable(fs, "/d/a", b"-" * 100)
    file.pwritev([b"new"], 10)

    fs.zero_range("/d/a", 50, 1)

    assert file.pread(100, 0) == b"-" * 10 + b"new" + b"-" * 37 + b"\0" + b"-" * 49
    assert fs.crash(None).contents("/d/a") == b"-" * 50 + b"\0" + b"-" * 49
    file.sync()
    assert fs.crash(None).contents("/d/a") == b"-" * 10 + b"new" + b"-" * 37 + b"\0" + b"-" * 49


def test_only_bytes_that_are_there_can_be_damaged() -> None:
    fs = new_file_system()
    durable(fs, "/d/a", b"abc")

    with pytest.raises(ValueError, match="ends at 3"):
        fs.zero_range("/d/a", 2, 2)
    assert fs.contents("/d/a") == b"abc"


def test_after_a_power_cut_nothing_is_in_memory() -> None:
    fs = new_file_system()
    file = durable(fs, "/d/a", b"x" * 3 * PAGE_BYTES)
    assert file.pread_nowait(10, 0) == b"x" * 10

    file = fs.crash(None).open("/d/a")

    assert file.pread_nowait(10, 0) is None
    assert file.pread(10, 0) == b"x" * 10
    assert file.pread_nowait(10, 100) == b"x" * 10
    assert file.pread_nowait(10, PAGE_BYTES - 5) is None
    file.pwritev([b"y"], PAGE_BYTES)
    assert file.pread_nowait(10, PAGE_BYTES - 5) == b"x" * 5 + b"y" + b"x" * 4
    assert file.pread_nowait(10, 3 * PAGE_BYTES) == b""


def test_evicted_pages_have_to_be_fetched_and_unsynced_ones_stay() -> None:
    fs = new_file_system()
    file = durable(fs, "/d/a", b"x" * 2 * PAGE_BYTES)
    file.pwritev([b"y"], PAGE_BYTES)

    fs.evict("/d/a")

    assert file.pread_nowait(1, 0) is None
    assert file.pread_nowait(1, PAGE_BYTES) == b"y"
    assert file.pread(1, 0) == b"x"


def test_a_file_system_without_nowait_answers_none() -> None:
    fs = new_file_system()
    file = durable(fs, "/d/a", b"abc")

    fs.nowait_supported = False

    assert file.pread_nowait(3, 0) is None
    assert file.pread(3, 0) == b"abc"


def test_a_hook_sees_every_call_before_it_happens() -> None:
    fs = new_file_system()
    seen: list[tuple[str, str, bool]] = []
    fs.before_call = lambda operation, path: seen.append((operation, path, "/d/a" in fs.tree()))

    file = fs.open("/d/a", create=True)
    file.pread(1, 0)

    assert seen == [("open", "/d/a", False), ("pread", "/d/a", True)]


# -- the same against a model, and the cost


def test_sparse_files_are_cheap() -> None:
    length = 64 * 1024 * 1024
    zeros = bytes(1024 * 1024)
    fs = new_file_system()
    file = fs.open("/d/a", create=True)
    file.allocate(0, length)
    for position in range(0, length, len(zeros)):
        file.pwritev([zeros], position)
    file.sync()
    fs.sync_directory("/d")
    file.pwritev([b"x"], length // 2)
    node = fs._regular("/d/a")

    after = fs.crash(None)

    assert after.open("/d/a").size() == length
    assert fs.used_bytes() == length
    # Counted, not timed: one page that is not zeros, one unsynced write, nothing for the rest.
    assert (len(node.disk), len(node.view.own), len(node.operations)) == (0, 1, 1)
    assert node.disk is after._regular("/d/a").disk


@pytest.mark.parametrize("seed", range(30))
def test_whatever_is_done_a_strict_crash_shows_the_last_synced_state(seed: int) -> None:
    chance = random.Random(seed)
    fs = new_file_system()
    file = durable(fs, "/d/a")
    current = bytearray()
    synced = b""
    for _ in range(60):
        kind = chance.choice(("write", "write", "write", "truncate", "allocate", "sync", "crash"))
        position, length = chance.randrange(12_000), chance.randrange(1, 6_000)
        if kind == "write":
            data = chance.choice((bytes(length), chance.randbytes(length)))
            current.extend(bytes(max(0, position + length - len(current))))
            current[position : position + length] = data
            file.pwritev([data], position)
        elif kind == "truncate":
            current.extend(bytes(max(0, position - len(current))))
            del current[position:]
            file.truncate(position)
        elif kind == "allocate":
            current.extend(bytes(max(0, position + length - len(current))))
            file.allocate(position, length)
        elif kind == "sync":
            file.sync()
            synced = bytes(current)
        else:
            fs = fs.crash(None)
            file = fs.open("/d/a")
            current = bytearray(synced)

        assert fs.contents("/d/a") == current
        assert fs.crash(None).contents("/d/a") == synced
        assert fs.kill().contents("/d/a") == current
