"""What C through cffi would bring: two system calls that Python lacks, and a scan of batches outside the interpreter.

`python -m bench.native_code [--data-dir DIR]`. For: ADR 5, which says where cffi serves. The one idea: each candidate
is measured in the place where it would stand, beside the Python that stands there now, in alternation, and has to bring
more than what a compiler in every installation costs. No bar: the decision is a person's.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cffi  # type: ignore[import-untyped]  # only this script uses it

from bench.harness import default_data_directory, prepare_data_directory, print_machine
from wire.record import Stamp, check_alone, check_in_place, encode_batch, stamp

KIB, MIB = 1 << 10, 1 << 20
RUNS = 5

ROUND_BYTES = 64 * KIB
ROUNDS = 2_000
JOURNAL_BYTES = 32 * MIB
SYNC_EVERY_BYTES = 16 * MIB
FLUSH_EVERY_BYTES = MIB

SYNC_FILE_RANGE_WRITE = 2
FALLOC_FL_KEEP_SIZE = 1

libc_interface = cffi.FFI()
libc_interface.cdef(
    "int sync_file_range(int fd, int64_t offset, int64_t count, unsigned int flags);"
    "int fallocate(int fd, int mode, int64_t offset, int64_t length);"
)


def alternate(ways: Mapping[str, Callable[[], dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Run every way `RUNS` times in an order that is drawn anew each time; the median of each figure."""
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    chance = random.Random(1)
    for _ in range(RUNS):
        for name in chance.sample(sorted(ways), len(ways)):
            os.sync()
            figures[name].append(ways[name]())
    return {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in figures.items()
    }


def print_figures(title: str, results: Mapping[str, Mapping[str, float]], unit: str) -> None:
    """One line for each way."""
    print(f"\n{title} ({unit}, medians of {RUNS})")
    for name, figures in results.items():
        print(f"  {name:44}" + "   ".join(f"{key} {figure:8.3f}" for key, figure in figures.items()))


# --------------------------------------------------------------------------- sync_file_range


def write_rounds(directory: Path, flush: Callable[[int, int, int], None] | None) -> dict[str, float]:
    """Rounds to a journal, their batches to a segment, which another thread syncs now and then; times in ms.

    `flush(fd, position, length)` is called by that thread for each MiB of the segment, where given.
    """
    block = os.urandom(ROUND_BYTES)
    with tempfile.TemporaryDirectory(dir=directory) as where:
        journal = os.open(f"{where}/journal", os.O_RDWR | os.O_CREAT)
        segment = os.open(f"{where}/segment", os.O_RDWR | os.O_CREAT)
        try:
            for position in range(0, JOURNAL_BYTES, MIB):
                os.pwrite(journal, bytes(MIB), position)
            os.fdatasync(journal)
            os.posix_fallocate(segment, 0, ROUNDS * ROUND_BYTES)
            os.fdatasync(segment)
            housekeeper = Housekeeper(segment, flush)
            times = []
            for number in range(ROUNDS):
                begin = time.perf_counter()
                os.pwrite(journal, block, number * ROUND_BYTES % JOURNAL_BYTES)
                os.fdatasync(journal)
                times.append((time.perf_counter() - begin) * 1e3)
                os.pwrite(segment, block, number * ROUND_BYTES)
                housekeeper.written((number + 1) * ROUND_BYTES)
            syncs = housekeeper.stop()
        finally:
            os.close(journal)
            os.close(segment)
    times.sort()
    return {
        "round p50": times[len(times) // 2],
        "p99": times[len(times) * 99 // 100],
        "worst": times[-1],
        "segment sync": statistics.median(syncs),
    }


class Housekeeper:
    """The thread that syncs a segment in the background."""

    def __init__(self, segment: int, flush: Callable[[int, int, int], None] | None) -> None:
        self._segment = segment
        self._flush = flush
        self._end = self._flushed = self._synced = 0
        self._stopping = False
        self._changed = threading.Condition()
        self._syncs: list[float] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def written(self, end: int) -> None:
        """The segment is written up to `end`."""
        with self._changed:
            self._end = end
            if end - self._flushed >= FLUSH_EVERY_BYTES:
                self._changed.notify()

    def stop(self) -> list[float]:
        """Sync the rest; return how long each sync took, in ms."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()
        return self._syncs

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._stopping and self._end - self._flushed < FLUSH_EVERY_BYTES:
                    self._changed.wait()
                end, stopping = self._end, self._stopping
            if self._flush is not None:
                self._flush(self._segment, self._flushed, end - self._flushed)
            self._flushed = end
            if stopping or end - self._synced >= SYNC_EVERY_BYTES:
                begin = time.perf_counter()
                os.fdatasync(self._segment)
                self._syncs.append((time.perf_counter() - begin) * 1e3)
                self._synced = end
            if stopping:
                return


def measure_sync_file_range(directory: Path, libc: Any) -> None:
    """Starting the write-back of a segment early, so that its sync disturbs the journal less."""

    def flush(descriptor: int, position: int, length: int) -> None:
        if libc.sync_file_range(descriptor, position, length, SYNC_FILE_RANGE_WRITE):
            raise OSError(libc_interface.errno, "sync_file_range")

    ways = {
        "fdatasync of a segment each 16 MiB (today)": lambda: write_rounds(directory, None),
        "and sync_file_range each MiB": lambda: write_rounds(directory, flush),
        "and fdatasync each MiB": lambda: write_rounds(directory, lambda descriptor, _at, _n: os.fdatasync(descriptor)),
    }
    print_figures("rounds of 64 KiB while a segment is synced", alternate(ways), "ms")


# --------------------------------------------------------------------------- fallocate


def allocate_and_write(directory: Path, allocate: Callable[[int, int, int], None]) -> dict[str, float]:
    """Allocate chunks of 8 MiB and write them; times in ms per chunk."""
    block = bytes(256 * KIB)
    allocating, writing = [], []
    with tempfile.NamedTemporaryFile(dir=directory) as file:
        descriptor = file.fileno()
        for chunk in range(8):
            begin = time.perf_counter()
            allocate(descriptor, chunk * 8 * MIB, 8 * MIB)
            middle = time.perf_counter()
            for position in range(0, 8 * MIB, len(block)):
                os.pwrite(descriptor, block, chunk * 8 * MIB + position)
            os.fdatasync(descriptor)
            allocating.append((middle - begin) * 1e3)
            writing.append((time.perf_counter() - middle) * 1e3)
    return {"allocate": statistics.median(allocating), "write and sync": statistics.median(writing)}


def measure_fallocate(directory: Path, libc: Any) -> None:
    """Reserving space without changing a file's length."""

    def keep_size(descriptor: int, position: int, length: int) -> None:
        if libc.fallocate(descriptor, FALLOC_FL_KEEP_SIZE, position, length):
            raise OSError(libc_interface.errno, "fallocate")

    ways = {
        "os.posix_fallocate (today)": lambda: allocate_and_write(directory, os.posix_fallocate),
        "fallocate(FALLOC_FL_KEEP_SIZE)": lambda: allocate_and_write(directory, keep_size),
    }
    print_figures("8 MiB of a segment", alternate(ways), "ms")


# --------------------------------------------------------------------------- scanning batches

SCAN_SOURCE = """
#include <stdint.h>
#include <string.h>
#include <openssl/sha.h>

static uint64_t u64(const uint8_t *at) {
    uint64_t value = 0;
    for (int i = 0; i < 8; i++) value = value << 8 | at[i];
    return value;
}

/* Verify every batch alone and in its place; return how many hold. */
static int64_t scan(const uint8_t *data, int64_t length) {
    int64_t position = 0, count = 0;
    const uint8_t *before = 0;
    uint8_t digest[32];
    while (length - position >= 176) {
        const uint8_t *at = data + position;
        uint32_t rest = (uint32_t)at[0] << 24 | at[1] << 16 | at[2] << 8 | at[3];
        int64_t size = (int64_t)rest + 4;
        if (size < 176 || size > length - position || at[4] != 1) return count;
        SHA256(at, 144, digest);
        if (memcmp(digest, at + 144, 32)) return count;
        SHA256(at + 176, size - 176, digest);
        if (memcmp(digest, at + 48, 32)) return count;
        if (before && (u64(at + 88) != u64(before + 88) + 1 || memcmp(at + 112, before + 144, 32))) return count;
        before = at;
        position += size;
        count++;
    }
    return count;
}
"""


def compile_scan(directory: Path) -> Any:
    """The scan in C, or None where there is no compiler or no OpenSSL header."""
    builder = cffi.FFI()
    builder.cdef("static int64_t scan(const uint8_t *data, int64_t length);")
    builder.set_source("_logd_scan", SCAN_SOURCE, libraries=["crypto"], extra_compile_args=["-O2", "-w"])
    try:
        builder.compile(tmpdir=str(directory))
    except (cffi.VerificationError, OSError):
        return None
    sys.path.insert(0, str(directory))
    import _logd_scan  # type: ignore[import-not-found]  # made a moment ago

    return _logd_scan


def chained(batch_bytes: int, total_bytes: int) -> tuple[bytes, int]:
    """Batches of about `batch_bytes`, chained, one after the other; and how many."""
    value = os.urandom(batch_bytes - 176 - 16)
    raw = encode_batch([(value, None, 0, None)])
    parts = []
    chain, count = bytes(32), max(2, total_bytes // len(raw))
    for number in range(count):
        stamped = stamp(raw, Stamp(number, number + 1, 1, 0, chain))
        chain = stamped.header.chain
        parts += [stamped.header_bytes, stamped.payload]
    return b"".join(parts), count


def scan_in_python(data: bytes) -> int:
    """What recovery and the scrubber do today."""
    view = memoryview(data)
    position = count = 0
    before = None
    while position < len(view):
        header = check_alone(view[position:])
        if before is not None:
            check_in_place(header, before)
        before = header
        position += header.batch_bytes
        count += 1
    return count


def only_hash(data: bytes, count: int) -> int:
    """The hashing alone, as Python does it: no scan of any kind can be faster than its digests."""
    size = len(data) // count
    view = memoryview(data)
    for number in range(count):
        at = number * size
        hashlib.sha256(view[at : at + 144]).digest()
        hashlib.sha256(view[at + 176 : at + size]).digest()
    return count


def timed(work: Callable[[], int], count: int) -> dict[str, float]:
    """Microseconds for each batch, the best of five: how fast it can be is asked."""
    best = min(_seconds(work, count) for _ in range(5))
    return {"each batch": best / count * 1e6}


def _seconds(work: Callable[[], int], count: int) -> float:
    begin = time.perf_counter()
    found = work()
    elapsed = time.perf_counter() - begin
    assert found == count
    return elapsed


def measure_scan(directory: Path) -> None:
    """Verifying the chain of a segment."""
    module = compile_scan(directory)
    if module is None:
        print("\nno C compiler or no OpenSSL headers here: the scan is not measured")
    for batch_bytes in (512, 8 * KIB, 256 * KIB):
        data, count = chained(batch_bytes, 16 * MIB)
        ways: dict[str, Callable[[], dict[str, float]]] = {
            "in Python (today)": lambda data=data, count=count: timed(lambda: scan_in_python(data), count),  # type: ignore[misc]  # bound here
            "the digests alone, from Python": lambda data=data, count=count: timed(  # type: ignore[misc]
                lambda: only_hash(data, count), count
            ),
        }
        if module is not None:
            buffer = module.ffi.from_buffer("uint8_t[]", data)
            ways["in C, digests included"] = lambda buffer=buffer, data=data, count=count: timed(  # type: ignore[misc]
                lambda: module.lib.scan(buffer, len(data)), count
            )
        print_figures(f"{count:,} batches of {batch_bytes:,} B", alternate(ways), "us")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all three; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=default_data_directory(), help="where to write")
    options = parser.parse_args(arguments)
    parent = prepare_data_directory(options.data_dir)
    print_machine(parent)
    directory = Path(tempfile.mkdtemp(prefix="native-", dir=parent))
    try:
        libc = libc_interface.dlopen(None)
        measure_sync_file_range(directory, libc)
        measure_fallocate(directory, libc)
        measure_scan(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
