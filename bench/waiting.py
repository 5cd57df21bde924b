"""What it costs to wake a task: Trio's own event replaced each time, beside trio-util's RepeatedEvent and AsyncValue.

`python -m bench.waiting`. For: ADR 5, which says where trio-util serves. The one idea: the daemon waits in two ways,
for "something changed" (a queue was filled) and for "a number passed this one" (a watermark), and each way is timed
with nobody, one and many waiting, since most changes on a busy node happen while nobody waits. No bar.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio
import trio.testing
import trio_util

CHANGES = 2_000
WAITERS = 200
RUNS = 7


class Signal(Protocol):
    """A number that goes up, and a way to wait until it has passed another."""

    def set(self, value: int) -> None:
        """Change it."""

    async def wait_beyond(self, value: int) -> None:
        """Return once it is above `value`."""


class ReplacedEvent:
    """A plain `trio.Event`, replaced when it is set: what the daemon does."""

    def __init__(self) -> None:
        self._value = 0
        self._event: trio.Event | None = None

    def set(self, value: int) -> None:
        self._value = value
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait_beyond(self, value: int) -> None:
        while self._value <= value:
            if self._event is None:
                self._event = trio.Event()
            await self._event.wait()


class Repeated:
    """`trio_util.RepeatedEvent`, and the number beside it."""

    def __init__(self) -> None:
        self._value = 0
        self._event = trio_util.RepeatedEvent()

    def set(self, value: int) -> None:
        self._value = value
        self._event.set()

    async def wait_beyond(self, value: int) -> None:
        while self._value <= value:
            await self._event.wait()


class Value:
    """`trio_util.AsyncValue`: the number itself, and a predicate for each waiter."""

    def __init__(self) -> None:
        self._value = trio_util.AsyncValue(0)

    def set(self, value: int) -> None:
        self._value.value = value

    async def wait_beyond(self, value: int) -> None:
        await self._value.wait_value(lambda now: now > value)


async def nobody_waits(signal: Signal) -> float:
    """Microseconds for a change that nobody waits for."""
    begin = time.perf_counter()
    for number in range(CHANGES * 10):
        signal.set(number)
    return (time.perf_counter() - begin) / (CHANGES * 10) * 1e6


async def one_waits(signal: Signal) -> float:
    """Microseconds from a change until the one waiter has seen it and waits again, and the changer has its turn."""
    begin = 0.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_follow, signal)
        await trio.testing.wait_all_tasks_blocked()
        begin = time.perf_counter()
        for number in range(1, CHANGES + 1):
            signal.set(number)
            await trio.lowlevel.checkpoint()
    return (time.perf_counter() - begin) / CHANGES * 1e6


async def _follow(signal: Signal) -> None:
    for number in range(CHANGES):
        await signal.wait_beyond(number)


async def many_wait_for_others(signal: Signal) -> float:
    """Microseconds for a change that is far below what each of many waiters waits for (long polls elsewhere)."""
    begin = end = 0.0
    async with trio.open_nursery() as nursery:
        for _ in range(WAITERS):
            nursery.start_soon(signal.wait_beyond, CHANGES)
        await trio.testing.wait_all_tasks_blocked()
        begin = time.perf_counter()
        for number in range(1, CHANGES // 10 + 1):
            signal.set(number)
            await trio.lowlevel.checkpoint()
        end = time.perf_counter()
        signal.set(CHANGES + 1)
    return (end - begin) / (CHANGES // 10) * 1e6


QUESTIONS: tuple[tuple[str, Callable[[Signal], Awaitable[float]]], ...] = (
    ("nobody waits", nobody_waits),
    ("one waits", one_waits),
    (f"{WAITERS} wait for later", many_wait_for_others),
)
WAYS: tuple[tuple[str, Callable[[], Signal]], ...] = (
    ("trio.Event, replaced (today)", ReplacedEvent),
    ("trio_util.RepeatedEvent", Repeated),
    ("trio_util.AsyncValue", Value),
)


async def measure() -> None:
    """Print the table."""
    print(f"{'us for each change, medians of ' + str(RUNS):32}" + "".join(f"{name:>22}" for name, _ in QUESTIONS))
    figures: dict[tuple[str, str], list[float]] = {}
    for _ in range(RUNS):
        for way, make in WAYS:
            for question, ask in QUESTIONS:
                figures.setdefault((way, question), []).append(await ask(make()))
    for way, _ in WAYS:
        cells = (statistics.median(figures[way, question]) for question, _ in QUESTIONS)
        print(f"{way:32}" + "".join(f"{cell:>22.2f}" for cell in cells))


def main() -> int:
    """Measure; return the exit code."""
    trio.run(measure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
