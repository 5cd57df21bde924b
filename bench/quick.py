"""All questions, each answered with the fewest runs that make a median, in under three minutes.

`python -m bench.quick [--json FILE]`; `bench.full` asks the same at length. A question that cannot be answered does
not keep the others from being asked. The exit code says whether all were answered; whether a bar is met is part of an
answer, since a busy machine must not fail anybody's build.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from bench.harness import (
    BenchmarkError,
    Options,
    Result,
    figure_text,
    parse_options,
    prepare_data_directory,
    print_machine,
)

# In the order of a record's life. Each module has a `run`.
QUESTIONS = ("produce_small", "produce_large", "produce_latency", "send_nowait", "catch_up", "partitions")

Run = Callable[[Options], Result]


def load_questions() -> dict[str, Run]:
    """Every question's `run`, by the name of its module."""
    return {name: importlib.import_module(f"bench.{name}").run for name in QUESTIONS}


def ask_all(questions: Mapping[str, Run], options: Options) -> tuple[list[Result], list[str]]:
    """Ask one question after another; return the answers, and one line for each that could not be answered."""
    results, failures = [], []
    for name, run in questions.items():
        try:
            results.append(run(options))
        except BenchmarkError as error:
            failures.append(f"{name}: {error}")
            print(f"  no answer: {error}")
    return results, failures


def print_summary(results: Sequence[Result], failures: Sequence[str], seconds: float) -> None:
    """All answers in one table."""
    print(f"\n{'question':36}{'ours':>12}{'peer':>12}{'ratio':>8}   bar")
    for result in results:
        print(
            f"{result.question:36}{figure_text(result.ours):>12}{figure_text(result.peer):>12}{result.ratio:>8.2f}   "
            f"{result.bar} {'met' if result.met else 'NOT MET'}   ({result.unit}; peer: {result.peer_name})"
        )
    for failure in failures:
        print(f"no answer: {failure.splitlines()[0]}")
    print(f"{len(results)} answers in {seconds:.0f} s")


def run_suite(description: str, arguments: Sequence[str] | None, *, seconds: float) -> int:
    """Ask everything; return the exit code. A JSON file is begun anew: it holds the answers of one suite."""
    options = parse_options(description, arguments, seconds=seconds)
    start = time.perf_counter()
    try:
        options = replace(options, data_directory=prepare_data_directory(options.data_directory))
    except BenchmarkError as error:
        print(f"no answer: {error}", file=sys.stderr)
        return 1
    if options.json_path is not None:
        options.json_path.write_text("", encoding="utf-8")
    print_machine(options.data_directory)
    results, failures = ask_all(load_questions(), options)
    print_summary(results, failures, time.perf_counter() - start)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(run_suite(__doc__ or "", None, seconds=1.0))
