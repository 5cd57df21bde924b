"""Where the daemon's time goes, room by room, while it answers questions 1, 2 and 3.

`python -m bench.profile_rooms [--seconds S] [--py-spy PROGRAM]` prints two tables in Markdown: what each thread does,
by samples of py-spy (`pip install py-spy`; any environment will do), and where the time of one synchronous produce
goes, step by step. No bar. The one idea: a sample belongs to the innermost function of ours on the stack, since what
the standard library and the kernel do, they do for it; and a step is what lies between two places that every produce
passes in one order.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import wire
from bench import timed_logd
from bench.harness import (
    RUNS_MIN,
    BenchmarkError,
    alternate,
    default_data_directory,
    prepare_data_directory,
    print_machine,
    sync_disks,
)
from bench.logd_client import with_client
from bench.logd_node import TOPIC, BatchPlan, LogdNode, fresh_topic, produce_raw
from bench.produce_large import OURS as LARGE
from bench.produce_small import OURS as SMALL
from wire.record import encode_batch

SAMPLES_PER_SECOND = 500
# py-spy takes a moment until it has found the threads.
ATTACH_SECONDS = 0.5

WAITING = "(waits)"
THREADS = ("main", "writer", "housekeeper")
# Where a thread stands while it has nothing to do; py-spy takes part of it for work.
WAITING_LEAVES = ("EpollIOManager.get_events", "Disk._write_rounds", "Disk._run_jobs")
# Modules whose parts are worth telling apart.
SPLIT = {
    "wire.stream": "wire: TLS and the socket",
    "wire.record": "wire: batches (digests, stamps)",
    "wire.frame": "wire: frames and messages",
    "wire.codec": "wire: frames and messages",
    "wire.connection": "wire: frames and messages",
    "wire.messages": "wire: frames and messages",
    "logd.store.files": "store: system calls (write, sync)",
    "logd.node.disk": "node: threads and the doorbell",
    "logd.node.actor": "node: the actor",
}


# --------------------------------------------------------------------------- samples, by room


def module_of(frame: str) -> str:
    """The module of a frame as py-spy writes it, `name (path/to/module.py:12)`; empty if it is not one of ours."""
    # py-spy writes paths from the entry of sys.path on, so a checkout that is called logd misleads nobody.
    path = frame.rpartition("(")[2].partition(".py")[0]
    return path.replace("/", ".") if path.startswith(("logd/", "wire/")) else ""


def room_of(frames: Sequence[str]) -> str:
    """The room that a stack (outermost frame first) belongs to."""
    if any(frames[-1].startswith(leaf) for leaf in WAITING_LEAVES):
        return WAITING
    for frame in reversed(frames):
        module = module_of(frame)
        if module and not module.startswith(("logd.cli", "logd.__main__")):
            parts = module.split(".")
            room = f"{parts[0]}: {parts[1]}" if parts[0] == "wire" else parts[1]
            return SPLIT.get(module, room)
    return "trio"


def thread_of(frames: Sequence[str]) -> str:
    """Which of the daemon's threads a stack is of, by the frame that py-spy puts first."""
    for name in THREADS[1:]:
        if f"logd-{name}" in frames[0]:
            return name
    return "main" if "MainThread" in frames[0] else "other"


def count_rooms(lines: Iterable[str]) -> dict[str, Counter[str]]:
    """Samples by thread and room, from py-spy's raw format: one stack a line, and how often it was seen."""
    counted: dict[str, Counter[str]] = {}
    for line in lines:
        stack, _, count = line.rstrip("\n").rpartition(" ")
        frames = stack.split(";")
        counted.setdefault(thread_of(frames), Counter())[room_of(frames)] += int(count)
    return counted


@dataclass(frozen=True, slots=True)
class Profile:
    """What each thread did during one workload, and how fast that went meanwhile."""

    label: str
    achieved: str
    counted: Mapping[str, Counter[str]]
    samples: int

    def share(self, thread: str, room: str) -> float:
        """The share of the wall clock's time that a thread spent in a room."""
        return self.counted.get(thread, Counter())[room] / self.samples

    def busy(self, thread: str) -> float:
        """The share of the wall clock's time that a thread did not wait for something to do."""
        return self.counted.get(thread, Counter()).total() / self.samples - self.share(thread, WAITING)


def sample(py_spy: str, node: LogdNode, seconds: float, work: Callable[[], str], label: str) -> Profile:
    """Run a workload of `seconds` beside py-spy."""
    with tempfile.NamedTemporaryFile(prefix="py-spy-", suffix=".txt") as stacks:
        command = [py_spy, "record", "--rate", str(SAMPLES_PER_SECOND), "--threads", "--format", "raw"]
        command += ["--duration", str(max(1, round(seconds))), "--output", stacks.name, "--pid", str(node.process_id)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        time.sleep(ATTACH_SECONDS)
        achieved = work()
        _, problem = process.communicate()
        if process.returncode:
            raise BenchmarkError(f"py-spy failed: {problem.strip()[-500:]}")
        with open(stacks.name, encoding="utf-8") as file:
            counted = count_rooms(file)
    return Profile(label, achieved, counted, max(1, round(seconds)) * SAMPLES_PER_SECOND)


def rooms_table(profiles: Sequence[Profile]) -> list[str]:
    """A Markdown table: percent of the wall clock's time, for each thread and room above half a percent."""
    lines = ["| thread | room | " + " | ".join(profile.label for profile in profiles) + " |"]
    lines.append("|---|---|" + "---|" * len(profiles))
    for thread in THREADS:
        rooms = {room for profile in profiles for room in profile.counted.get(thread, ())} - {WAITING}
        for room in sorted(rooms, key=lambda room: -sum(profile.share(thread, room) for profile in profiles)):
            if sum(profile.share(thread, room) for profile in profiles) >= 0.005 * len(profiles):
                shares = " | ".join(f"{100 * profile.share(thread, room):.1f}" for profile in profiles)
                lines.append(f"| {thread} | {room} | {shares} |")
        busy = " | ".join(f"**{100 * profile.busy(thread):.0f}**" for profile in profiles)
        lines.append(f"| {thread} | **all** | {busy} |")
    lines.append("| | achieved meanwhile | " + " | ".join(profile.achieved for profile in profiles) + " |")
    return lines


# --------------------------------------------------------------------------- one produce, step by step

# Places in the order in which one produce passes them, and what lies before each.
STEPS: Mapping[str, str] = {
    "client sent": "client: encode the batch and the request, TLS, send",
    "server received": "the daemon wakes and receives",
    "server decrypted": "daemon: TLS",
    "request dispatched": "daemon: frame, message, session",
    "round wanted": "daemon: check the batch, propose it",
    "round submitted": "daemon: stamp, prepare the round, hand it over",
    "write started": "the writer thread wakes",
    "write durable": "write and fdatasync",
    "actor woken": "the actor wakes",
    "server sent": "daemon: commit, answer, TLS, send",
    "client received": "the client wakes and receives",
    "end": "client: TLS, message, wake the task",
}
# What may have been noted earlier for another reason counts from this place on only.
AFTER = {"round wanted": "request dispatched", "actor woken": "write durable", "server sent": "actor woken"}


def steps_of(times: Iterable[tuple[float, str]]) -> list[dict[str, float]]:
    """For each produce that passed all places in order: the seconds of each step."""
    found: list[dict[str, float]] = []
    passed: dict[str, float] = {}
    for moment, place in sorted(times):
        if place == "begin":
            passed = {place: moment}
        elif passed and place in STEPS and place not in passed and AFTER.get(place, "begin") in passed:
            passed[place] = moment
            if place == "end":
                order = ["begin", *STEPS]
                moments = [passed.get(name, 0.0) for name in order]
                if moments == sorted(moments) and moments[0]:
                    found.append(
                        {name: passed[name] - passed[before] for before, name in zip(order, STEPS, strict=False)}
                    )
                passed = {}
    return found


def steps_table(found: Sequence[Mapping[str, float]]) -> list[str]:
    """A Markdown table: median and the tenth percentile of each step, in microseconds."""
    lines = ["| step of one synchronous produce | p50 µs | p10 µs |", "|---|---|---|"]
    for place, text in STEPS.items():
        durations = sorted(one[place] for one in found)
        tenth = durations[len(durations) // 10]
        lines.append(f"| {text} | {1e6 * statistics.median(durations):.0f} | {1e6 * tenth:.0f} |")
    sums = sorted(sum(one.values()) for one in found)
    lines.append(f"| **all** | **{1e6 * statistics.median(sums):.0f}** | **{1e6 * sums[len(sums) // 10]:.0f}** |")
    return lines


async def produce_noted(client: wire.Client, seconds: float) -> float:
    """Synchronous produces of 100 B, noting when each begins and ends; the median time of one, in seconds."""
    value, durations = b"x" * 100, []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        timed_logd.times.append((start, "begin"))
        batch = encode_batch([(value, None, time.time_ns() // 1_000_000, None)])
        await client.produce(TOPIC, 0, batch)
        durations.append(time.perf_counter() - start)
        timed_logd.times.append((start + durations[-1], "end"))
    return statistics.median(durations)


def measure_steps(data_directory: Path, seconds: float, *, by_doorbell: bool = False) -> list[dict[str, float]]:
    """One synchronous produce after another against a daemon that notes the time.

    `by_doorbell`: the daemon's rounds are started as they would be without `RaftActor.start_waiting`.
    """
    timed_logd.times.clear()
    with tempfile.NamedTemporaryFile(prefix="times-", suffix=".json") as file:
        environment = {timed_logd.TIMES_VARIABLE: file.name}
        if by_doorbell:
            environment[timed_logd.DOORBELL_VARIABLE] = "1"
        with LogdNode(data_directory, module="bench.timed_logd", environment=environment) as node, fresh_topic(node):
            with_client(node, lambda client: produce_noted(client, seconds))
        theirs = [(moment, place) for moment, place in json.load(file)]
    found = steps_of([*theirs, *timed_logd.times])
    if not found:
        raise BenchmarkError("no produce passed all places: the daemon works in another order than this script knows")
    return found


def print_doorbell(data_directory: Path, seconds: float) -> None:
    """Print what it costs a lone produce if the session only rings the doorbell, in runs that take turns."""
    runs = alternate(
        [
            lambda: median_of_all(measure_steps(data_directory, seconds / 2)),
            lambda: median_of_all(measure_steps(data_directory, seconds / 2, by_doorbell=True)),
        ],
        RUNS_MIN,
    )
    direct, by_doorbell = map(statistics.median, runs)
    print(f"\na lone produce, p50: {direct:.0f} µs, and {by_doorbell:.0f} µs if the doorbell starts its round")


def median_of_all(found: Sequence[Mapping[str, float]]) -> float:
    """The median time of a whole produce, in microseconds."""
    return 1e6 * statistics.median(sum(one.values()) for one in found)


# --------------------------------------------------------------------------- the command line


Workload = Callable[[LogdNode, float], str]


def _produced(plan: BatchPlan) -> Workload:
    return lambda node, seconds: f"{produce_raw(node, plan, seconds).rate:,.0f}/s"


def _synchronous(node: LogdNode, seconds: float) -> str:
    with fresh_topic(node):
        return f"{1000 * with_client(node, lambda client: produce_noted(client, seconds)):.3f} ms"


# The questions, by their names in the table.
WORKLOADS: Mapping[str, Workload] = {
    "1: 1,000 x 100 B": _produced(SMALL),
    "2: 100 x 1 KiB": _produced(LARGE),
    "3: one at a time": _synchronous,
}


def measure_rooms(data_directory: Path, py_spy: str, seconds: float) -> list[Profile]:
    """All workloads, each against a node of its own, warmed for a moment: journal files are made once."""
    profiles = []
    for label, work in WORKLOADS.items():
        with LogdNode(data_directory) as node:
            work(node, 1.0)
            sync_disks()
            profiles.append(sample(py_spy, node, seconds, partial(work, node, seconds + ATTACH_SECONDS), label))
    return profiles


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each workload")
    parser.add_argument("--py-spy", default=shutil.which("py-spy") or "", help="the program, if it is not on PATH")
    parser.add_argument("--data-dir", type=Path, default=default_data_directory(), help="where data goes; a real disk")
    given = parser.parse_args(arguments)
    try:
        data_directory = prepare_data_directory(given.data_dir)
        print_machine(data_directory)
        print()
        timed_logd.note_stream("client received", "client decrypted", "client sent")
        print("\n".join(steps_table(measure_steps(data_directory, given.seconds))))
        print_doorbell(data_directory, given.seconds)
        if not given.py_spy:
            raise BenchmarkError("the table by room needs py-spy: pip install py-spy, and --py-spy where it lies")
        profiles = measure_rooms(data_directory, given.py_spy, given.seconds)
        print(f"\nPercent of the wall clock's time, {SAMPLES_PER_SECOND} samples a second:\n")
        print("\n".join(rooms_table(profiles)))
    except BenchmarkError as error:
        sys.exit(f"no answer: {error}")


if __name__ == "__main__":
    main()
