"""The node killed before every single system call of a scripted life that changes something on the disk.

For: `tests/e2e/test_boundaries.py`, which visits some boundaries, and whoever wants all of them:

    python -m tests.e2e.boundaries --all [--every N]
    python -m tests.e2e.boundaries writer:pwritev:17        # one, again

Must not know: what the node does with its files. The one idea: strace delivers SIGKILL to one thread at the entry of
its n-th call of one kind, so the disk holds what the calls before it did; then the node starts again, and a ledger
says what must be there. A *boundary* is `thread:call:n`. The threads are taken one by one, because strace counts in
each by itself: the `writer` (rounds), the `housekeeper` (everything that no promise waits for), `opening` (the main
thread making a new directory) and `recovery` (the main thread opening the directory of a node that was killed).
"""

import argparse
import contextlib
import copy
import re
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import trio

import wire
from tests.e2e.ledger import Ledger, batch_of, verify_directory
from tests.support.daemon import SMALL, LogdProcess, Strace, has_strace
from wire.errors import ClientError

# What changes something on the disk, or makes it durable.
CALLS: Final = (
    # What Python calls for `os.pwritev`.
    "pwritev2",
    "pwrite64",
    "fdatasync",
    "fsync",
    "fallocate",
    "ftruncate",
    "rename",
    "unlink",
    "rmdir",
    "mkdir",
)
# In the main thread most opened files are Python's own.
CALLS_OF_THREAD: Final = {
    "writer": (*CALLS, "openat"),
    "housekeeper": (*CALLS, "openat"),
    "opening": CALLS,
    "recovery": CALLS,
}
VISIT_SECONDS_MAX: Final = 60.0
SETTINGS: Final = {
    **SMALL,
    # Retention is looked at during the script, and the last round confirmed.
    "topics.retention_check_seconds": "0.1",
    "journal.confirm_seconds": "0.05",
}


class Boundary(NamedTuple):
    """Before which call the node is killed."""

    thread: str
    call: str
    number: int

    def __str__(self) -> str:
        return f"{self.thread}:{self.call}:{self.number}"

    @classmethod
    def parse(cls, text: str) -> "Boundary":
        thread, call, number = text.split(":")
        return cls(thread, call, int(number))


async def script(client: wire.Client, ledger: Ledger) -> None:
    """A short life with everything in it: topics made, grown and deleted, segments and journal files rolled, retention.

    It ends early, by ClientError, when the node dies.
    """
    await ledger.create(client, "steady", 2)
    await ledger.create(client, "brief", 1)
    await ledger.create(client, "kept", 1, retention_bytes="1MiB")
    for number in range(36):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ledger.produce, client, "steady", number % 2, batch_of("steady", number, 60_000))
            nursery.start_soon(ledger.produce, client, "kept", 0, batch_of("kept", number, 100_000))
            if number < 6:
                nursery.start_soon(ledger.produce, client, "brief", 0, batch_of("brief", number))
        if number == 8:
            await ledger.delete(client, "brief")
        if number == 10:
            await ledger.create(client, "brief", 1)
            await client.init_producer("somebody")
        if number > 10:
            await ledger.produce(client, "brief", 0, batch_of("again", number, 300))


async def live(node: LogdProcess, ledger: Ledger) -> bool:
    """Run the script until its end, or until the node dies: false then."""
    finished = False
    try:
        async with node.client() as client:
            await script(client, ledger)
            finished = True
    except* ClientError:
        # One connection carries it all, so that every request in flight ends by the same loss.
        finished = False
    return finished


async def check(node: LogdProcess, ledger: Ledger) -> None:
    """The node starts again, holds what it acknowledged, and takes more."""
    await trio.to_thread.run_sync(node.start)
    async with node.client() as client:
        await ledger.check(client)
        for topic in ledger.topics:
            await ledger.produce(client, topic, 0, batch_of("later", 0))
        await ledger.check(client)
    await trio.to_thread.run_sync(node.stop)
    node.check_log()
    verify_directory(node.data)


# --- One boundary -----------------------------------------------------------------------------------------------------


def traced_at_start(trace: Path, words: Sequence[str]) -> list[str]:
    """A prefix that has the main thread traced from its first call on. The program stays our child (`-D`)."""
    return ["strace", "-D", "-o", str(trace), *words]


async def visit_running(node: LogdProcess, ledger: Ledger, boundary: Boundary) -> bool:
    """Let the script run until the boundary; whether it was reached."""
    node.start()
    _, writer, housekeeper, *_ = node.threads()
    thread = {"writer": writer, "housekeeper": housekeeper}[boundary.thread]
    with Strace(node.directory, [thread], f"{boundary.call}:signal=KILL:when={boundary.number}"):
        if await live(node, ledger):
            node.kill()
            return False
        assert node.wait() == -signal.SIGKILL
    return True


def visit_opening(node: LogdProcess, boundary: Boundary) -> bool:
    """Let the node open its directory until the boundary; whether it was reached."""
    injection = f"inject={boundary.call}:signal=KILL:when={boundary.number}"
    node.prefix = traced_at_start(node.directory / "trace.txt", ["-e", f"trace={boundary.call}", "-e", injection])
    node.spawn()
    line = node.read_line()
    node.kill()
    node.prefix = []
    return not line


class Killed(NamedTuple):
    """The directory of a node that was killed at the end of the script, and what it must hold: for recoveries."""

    directory: Path
    ledger: Ledger

    @classmethod
    async def prepare(cls, directory: Path) -> "Killed":
        ledger = Ledger()
        with LogdProcess(directory, SETTINGS) as node:
            assert await live(node.start(), ledger), node.log_text()
        return cls(directory, ledger)

    def copy(self, directory: Path) -> tuple[LogdProcess, Ledger]:
        """The same killed node in another place, and a ledger of its own."""
        shutil.copytree(self.directory / "data", directory / "data")
        return LogdProcess(directory, SETTINGS), copy.deepcopy(self.ledger)


async def visit(directory: Path, boundary: Boundary, killed: Killed) -> bool:
    """Kill a node at a boundary and check what is left; whether the boundary was reached."""
    if boundary.thread == "recovery":
        node, ledger = killed.copy(directory)
    else:
        node, ledger = LogdProcess(directory, SETTINGS), Ledger()
    with node:
        if boundary.thread in ("opening", "recovery"):
            reached = visit_opening(node, boundary)
        else:
            reached = await visit_running(node, ledger, boundary)
        await check(node, ledger)
    return reached


# --- All of them ------------------------------------------------------------------------------------------------------


def count(trace: str) -> Counter[str]:
    """How often each call was made."""
    return Counter(re.findall(r"^(?:\d+\.\d+ )?(\w+)\(", trace, re.MULTILINE))


async def count_calls(directory: Path, killed: Killed) -> dict[str, Counter[str]]:
    """Let everything happen undisturbed once, and count the calls of each thread."""
    counts: dict[str, Counter[str]] = {}
    for thread, node in {
        "opening": LogdProcess(directory / "opening", SETTINGS),
        "recovery": killed.copy(directory / "recovery")[0],
    }.items():
        trace = directory / f"{thread}.txt"
        with node:
            node.prefix = traced_at_start(trace, ["-e", "trace=" + ",".join(CALLS_OF_THREAD[thread])])
            node.start()
            counts[thread] = count(trace.read_text())
    with LogdProcess(directory / "running", SETTINGS) as node:
        node.start()
        _, writer, housekeeper, *_ = node.threads()
        with contextlib.ExitStack() as stack:
            straces = {
                thread: stack.enter_context(Strace(directory, [number], None, *CALLS_OF_THREAD[thread]))
                for thread, number in {"writer": writer, "housekeeper": housekeeper}.items()
            }
            assert await live(node, Ledger()), node.log_text()
            for thread, strace in straces.items():
                counts[thread] = count(strace.detach())
    return counts


def all_boundaries(counts: dict[str, Counter[str]]) -> Iterator[Boundary]:
    """Every boundary, and one behind the last of each call."""
    for thread, calls in counts.items():
        for call, number in sorted(calls.items()):
            yield from (Boundary(thread, call, n) for n in range(1, number + 1))


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def visit_all(directory: Path, wanted: Sequence[Boundary], every: int = 1) -> list[str]:
    """Visit the boundaries, or every so-many-th of all if none is named; what went wrong, a line each that names it."""
    killed = await Killed.prepare(directory / "killed")
    counts = await count_calls(directory, killed)
    for thread, calls in counts.items():
        say(f"{thread}: " + ", ".join(f"{number} {call}" for call, number in sorted(calls.items())))
    failures: list[str] = []
    visited = Counter[bool]()
    for boundary in wanted or list(all_boundaries(counts))[::every]:
        place = directory / "visit"
        try:
            with trio.fail_after(VISIT_SECONDS_MAX):
                reached = await visit(place, boundary, killed)
            visited[reached] += 1
            if wanted or not reached:
                say(f"{boundary}: {'kept everything' if reached else 'not reached'}")
        except (Exception, ExceptionGroup) as error:  # noqa: BLE001  # whatever it is, the others are visited too
            kept = directory / f"failed-{len(failures)}"
            place.rename(kept)
            (kept / "why.txt").write_text(traceback.format_exc())
            failures.append(f"{boundary}: {type(error).__name__}: {error} (see {kept})")
            say(failures[-1])
        shutil.rmtree(place, ignore_errors=True)
    say(f"{visited[True]} boundaries reached, {visited[False]} not reached, {len(failures)} failures")
    return failures


def main() -> int:
    """Visit the boundaries named on the command line, or all."""
    parser = argparse.ArgumentParser(description="Kill a node before its system calls and check what is left.")
    parser.add_argument("boundaries", nargs="*", type=Boundary.parse, metavar="THREAD:CALL:N")
    parser.add_argument("--all", action="store_true", help="every boundary: half an hour and more")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="with --all, only every N-th")
    arguments = parser.parse_args()
    if not arguments.boundaries and not arguments.all:
        parser.error("name boundaries, or say --all")
    if problem := has_strace():
        parser.error(problem)
    directory = Path(tempfile.mkdtemp(prefix="logd-boundaries-"))
    failures = trio.run(visit_all, directory, arguments.boundaries, arguments.every)
    if not failures:
        shutil.rmtree(directory)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
