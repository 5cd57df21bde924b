"""What makes a round of writes durable at the least cost: the question behind one fsync per round.

It must not know the store: it writes plain files as the candidates would. The one idea: **a round is what arrives
while the disk is busy**, so what counts is the time until everything of a round, for however many groups, is durable
and the event loop knows it. Two tables:

1. one batch for each of 1, 10 and 100 groups, made durable in every way that was considered;
2. how the event loop hands such a round to the disk and hears of its end.

Every way runs once in each round of measurements, so that a slow moment of the disk does not fall on one of them, and
in an order drawn anew each time, because what ran just before leaves its mark (a file that grew leaves the file system
a commit to finish: in a fixed order that made a way look 20 µs slower than the same way with more to do). Figures are
medians. There is no peer and no bar here: it decides between ways of our own (`python -m bench.disk_round`).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import random
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from bench.harness import parse_options, prepare_data_directory, print_machine, sync_disks

GROUPS = (1, 10, 100)
BATCH_BYTES = 4096
# Rounds start on this boundary (formats: a journal's round), which is also what O_DIRECT asks for.
BLOCK_BYTES = 4096
JOURNAL_BYTES = 64 << 20
SEGMENT_BYTES = 4 << 20
SYNC_THREADS = 8
# The way with one fdatasync per group takes tens of milliseconds for a hundred groups: few rounds say enough.
ROUNDS_MIN = 5
# The same orders in every run, so that two runs differ by the machine alone.
SEED = 1

Round = Callable[[], None]


@dataclass(slots=True)
class Appender:
    """A file that is written from front to back, and from the front again when it is full."""

    descriptor: int
    size_bytes: int
    position: int = 0

    def next_position(self, length: int) -> int:
        """Where the next write of `length` bytes goes, on a block boundary."""
        taken = -(-length // BLOCK_BYTES) * BLOCK_BYTES
        if self.position + taken > self.size_bytes:
            self.position = 0
        position, self.position = self.position, self.position + taken
        return position


def open_appender(path: Path, size_bytes: int, *, zeroed: bool, flags: int = 0) -> Appender:
    """Make a file to append to; `zeroed`: its bytes are written and synced beforehand, so that only data is synced."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if zeroed:
        piece = bytes(min(size_bytes, 1 << 20))
        for position in range(0, size_bytes, len(piece)):
            os.pwrite(descriptor, piece, position)
        os.fsync(descriptor)
    if flags:
        os.close(descriptor)
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags)
    return Appender(descriptor, size_bytes)


class Candidates:
    """All ways to make one round durable for `groups` groups, each as a callable that returns when it is durable."""

    def __init__(self, directory: Path, groups: int, stack: ExitStack, *, journal_bytes: int = JOURNAL_BYTES) -> None:
        self.groups = groups
        self.journal_bytes = journal_bytes
        self.batches = [os.urandom(BATCH_BYTES) for _ in range(groups)]
        self._stack = stack
        self._directory = directory
        self._pool = stack.enter_context(ThreadPoolExecutor(SYNC_THREADS))
        # Growing files: a segment that has never been written beyond its end, as segments are without allocation.
        self._segments = [self._open(f"segment-{number}", 1 << 40, zeroed=False) for number in range(groups)]
        self._pages = [self._open(f"page-cache-{number}", SEGMENT_BYTES, zeroed=False) for number in range(groups)]
        self._growing = self._open("journal-growing", 1 << 40, zeroed=False)
        self._zeroed = self._open("journal-zeroed", journal_bytes, zeroed=True)
        self._direct = self._open_direct()
        # O_DIRECT takes memory on a block boundary; an anonymous map is.
        self._aligned = mmap.mmap(-1, groups * BATCH_BYTES)
        stack.callback(self._aligned.close)
        # The first touch of a file pays for its name and inode; that is not what is asked.
        for appender in (*self._segments, *self._pages):
            os.pwrite(appender.descriptor, self.batches[0], appender.next_position(BATCH_BYTES))
        os.sync()

    def _open(self, name: str, size_bytes: int, *, zeroed: bool, flags: int = 0) -> Appender:
        appender = open_appender(self._directory / name, size_bytes, zeroed=zeroed, flags=flags)
        self._stack.callback(os.close, appender.descriptor)
        return appender

    def _open_direct(self) -> Appender | None:
        try:
            return self._open("journal-direct", self.journal_bytes, zeroed=True, flags=os.O_DIRECT | os.O_DSYNC)
        except OSError:
            return None  # Not every file system has O_DIRECT; the row is left out there.

    def ways(self) -> dict[str, Round]:
        """Every way by its name in the table."""
        ways: dict[str, Round] = {
            "fdatasync of each segment": self.each_segment,
            f"the same in {SYNC_THREADS} threads": self.each_segment_in_threads,
            "one journal, growing, fdatasync": self.journal_growing,
            "one journal, pre-zeroed, fdatasync": self.journal_zeroed,
            "one journal, pre-zeroed, RWF_DSYNC": self.journal_dsync,
            "… fdatasync, then segments by page cache": self.journal_then_segments,
        }
        if self._direct is not None:
            ways["one journal, pre-zeroed, O_DIRECT O_DSYNC"] = self.journal_direct
        return ways

    def each_segment(self) -> None:
        """Write each group's batch to its segment, and sync one segment after another."""
        for segment, batch in zip(self._segments, self.batches, strict=True):
            os.pwrite(segment.descriptor, batch, segment.next_position(BATCH_BYTES))
            os.fdatasync(segment.descriptor)

    def each_segment_in_threads(self) -> None:
        """The same, with the syncs spread over threads."""

        def one(number: int) -> None:
            segment = self._segments[number]
            os.pwrite(segment.descriptor, self.batches[number], segment.next_position(BATCH_BYTES))
            os.fdatasync(segment.descriptor)

        # list() waits for all of them and lets an error out.
        list(self._pool.map(one, range(self.groups)))

    def journal_growing(self) -> None:
        """All batches to the end of one file that grows, and one sync (which must write the new size too)."""
        self._append(self._growing)
        os.fdatasync(self._growing.descriptor)

    def journal_zeroed(self) -> None:
        """All batches to one file whose bytes were written before, and one sync."""
        self._append(self._zeroed)
        os.fdatasync(self._zeroed.descriptor)

    def journal_dsync(self) -> None:
        """The same in one system call: a write that returns when it is durable."""
        position = self._zeroed.next_position(self.groups * BATCH_BYTES)
        os.pwritev(self._zeroed.descriptor, self.batches, position, os.RWF_DSYNC)

    def journal_direct(self) -> None:
        """The same past the page cache; the copy into aligned memory is part of the price."""
        if self._direct is None:
            raise OSError("O_DIRECT is not available here")
        self._aligned.seek(0)
        for batch in self.batches:
            self._aligned.write(batch)
        os.pwritev(self._direct.descriptor, [self._aligned], self._direct.next_position(self.groups * BATCH_BYTES))

    def journal_then_segments(self) -> None:
        """The journal, one sync, and then every batch to its segment through the page cache: the whole of a round."""
        self.journal_zeroed()
        for segment, batch in zip(self._pages, self.batches, strict=True):
            os.pwrite(segment.descriptor, batch, segment.next_position(BATCH_BYTES))

    def _append(self, journal: Appender) -> None:
        os.pwritev(journal.descriptor, self.batches, journal.next_position(self.groups * BATCH_BYTES))


@contextmanager
def scratch(data_directory: Path) -> Iterator[Path]:
    """A directory of this run's own, removed at the end."""
    directory = Path(tempfile.mkdtemp(prefix="disk-round-", dir=data_directory))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def drawn_order(names: Sequence[str], chance: random.Random) -> list[str]:
    """All names once, in an order of their own for this round: no way always follows the same other."""
    return chance.sample(names, len(names))


def measure_in_turn(ways: dict[str, Round], seconds: float) -> dict[str, list[float]]:
    """Run all ways in turn for `seconds` each on average, at least `ROUNDS_MIN` times; return durations in seconds."""
    durations: dict[str, list[float]] = {name: [] for name in ways}
    deadline = time.perf_counter() + seconds * len(ways)
    chance = random.Random(SEED)
    rounds = 0
    while rounds < ROUNDS_MIN or time.perf_counter() < deadline:
        for name in drawn_order(list(ways), chance):
            start = time.perf_counter()
            ways[name]()
            durations[name].append(time.perf_counter() - start)
        rounds += 1
    return durations


# --------------------------------------------------------------------------- handing a round over


class WriterThread:
    """One thread that runs jobs in order and tells the event loop of their end through an eventfd."""

    def __init__(self) -> None:
        self.event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._jobs: queue.SimpleQueue[Round | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="writer")
        self._thread.start()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            os.eventfd_write(self.event, 1)

    def submit(self, job: Round) -> None:
        """Hand a job over; never blocks."""
        self._jobs.put(job)

    def close(self) -> None:
        """Let the thread finish what it has, and join it."""
        self._jobs.put(None)
        self._thread.join()
        os.close(self.event)


async def measure_hand_over(job: Round, seconds: float) -> dict[str, list[float]]:
    """Time one round, from the event loop back to the event loop, by each way of handing it over."""
    writer = WriterThread()

    async def in_loop() -> None:
        job()
        await trio.lowlevel.checkpoint()

    async def by_writer_thread() -> None:
        writer.submit(job)
        await trio.lowlevel.wait_readable(writer.event)
        # A spurious wake-up would be measured as a short round; there is one job, so one event.
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(writer.event)

    async def by_to_thread() -> None:
        await trio.to_thread.run_sync(job)

    ways = {
        "in the loop (blocks it)": in_loop,
        "writer thread, answer by eventfd": by_writer_thread,
        "trio.to_thread": by_to_thread,
    }
    durations: dict[str, list[float]] = {name: [] for name in ways}
    try:
        deadline = time.perf_counter() + seconds * len(ways)
        chance = random.Random(SEED)
        while time.perf_counter() < deadline:
            for name in drawn_order(list(ways), chance):
                start = time.perf_counter()
                await ways[name]()
                durations[name].append(time.perf_counter() - start)
    finally:
        writer.close()
    return durations


# --------------------------------------------------------------------------- tables


def median_milliseconds(durations: Sequence[float]) -> float:
    """The median of durations in seconds, in milliseconds."""
    return statistics.median(durations) * 1000


def ninety_ninth_milliseconds(durations: Sequence[float]) -> float:
    """The 99th percentile of durations in seconds, in milliseconds."""
    return sorted(durations)[min(len(durations) - 1, int(len(durations) * 0.99))] * 1000


def print_rounds_table(data_directory: Path, seconds: float) -> None:
    """Measure and print the first table."""
    columns: dict[int, dict[str, list[float]]] = {}
    for groups in GROUPS:
        with scratch(data_directory) as directory, ExitStack() as stack:
            candidates = Candidates(directory, groups, stack)
            sync_disks()
            columns[groups] = measure_in_turn(candidates.ways(), seconds)
    print(f"\n{BATCH_BYTES} B for each group of a round, until all of it is durable: median (p99) in ms")
    print(f"  {'':42}" + "".join(f"{f'{groups} groups':>20}" for groups in GROUPS))
    for name in columns[GROUPS[0]]:
        cells = []
        for groups in GROUPS:
            taken = columns[groups][name]
            cells.append(f"{f'{median_milliseconds(taken):.3f} ({ninety_ninth_milliseconds(taken):.2f})':>20}")
        print(f"  {name:42}" + "".join(cells))


def print_hand_over_table(data_directory: Path, seconds: float) -> None:
    """Measure and print the second table."""
    with scratch(data_directory) as directory, ExitStack() as stack:
        candidates = Candidates(directory, 1, stack)
        sync_disks()
        durations = trio.run(measure_hand_over, candidates.journal_zeroed, seconds)
        nothing = trio.run(measure_hand_over, lambda: None, min(seconds, 0.5))
    print(f"\nhanding over a round of {BATCH_BYTES} B (pre-zeroed journal, fdatasync) and hearing of its end, in ms")
    print(f"  {'':42}{'median (p99)':>20}{'with no disk in it':>20}")
    for name, taken in durations.items():
        cell = f"{median_milliseconds(taken):.3f} ({ninety_ninth_milliseconds(taken):.2f})"
        print(f"  {name:42}{cell:>20}{median_milliseconds(nothing[name]):>20.3f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables."""
    options = parse_options(__doc__ or "", arguments, seconds=1.0)
    data_directory = prepare_data_directory(options.data_directory)
    print_machine(data_directory)
    print_rounds_table(data_directory, options.seconds)
    print_hand_over_table(data_directory, options.seconds)


if __name__ == "__main__":
    main()
