"""A line on standard error that moves while records do.

For: `produce` and `consume` on a terminal. Must not know: how records move. The one idea: it looks, a few times a
second, at numbers that are counted anyway; where nobody looks it does not exist.
"""

import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final, NamedTuple

import anyio

from logd.cli.output import bytes_text

# Often enough to seem alive, seldom enough to cost nothing.
REFRESH_SECONDS: Final = 0.25
# Rates are over the last few seconds: what happens now, without a flicker.
_RATE_SAMPLES: Final = 12


class Sample(NamedTuple):
    """The numbers at one moment, counted from the beginning."""

    records: int
    moved_bytes: int
    # Records that were sent and not acknowledged, or that the log holds and were not read; None where it is not known.
    lag_records: int | None
    # Of `total_bytes`; for an input whose size is known.
    done_bytes: int = 0


class Rates:
    """Rates over a sliding window."""

    def __init__(self) -> None:
        # Invariant: oldest first, at most `_RATE_SAMPLES` and the one before.
        self._samples: deque[tuple[float, Sample]] = deque(maxlen=_RATE_SAMPLES + 1)

    def add(self, now: float, sample: Sample) -> tuple[float, float]:
        """Records and bytes per second, with this sample."""
        self._samples.append((now, sample))
        begin, first = self._samples[0]
        seconds = now - begin
        if seconds <= 0:
            return 0.0, 0.0
        return (sample.records - first.records) / seconds, (sample.moved_bytes - first.moved_bytes) / seconds


def line(sample: Sample, records_per_second: float, bytes_per_second: float) -> str:
    """What is shown of a sample."""
    parts = [
        f"{sample.records:,} records",
        f"{records_per_second:,.0f} records/s",
        f"{bytes_text(bytes_per_second)}/s",
    ]
    if sample.lag_records is not None:
        parts.append(f"lag {sample.lag_records:,}")
    if sample.lag_records and not records_per_second:
        parts.append("waiting for the node")
    return "  ".join(parts)


@contextlib.asynccontextmanager
async def shown(verb: str, take: Callable[[], Sample], total_bytes: int | None) -> AsyncIterator[None]:
    """Show samples beside a block; when it is left, the line is gone."""
    async with anyio.create_task_group() as group:
        group.start_soon(show, verb, take, total_bytes)
        try:
            yield
        finally:
            group.cancel_scope.cancel()


async def show(verb: str, take: Callable[[], Sample], total_bytes: int | None) -> None:
    """Show samples until cancelled, then leave no trace."""
    from rich.console import Console  # noqa: PLC0415  # 35 ms that only a terminal pays for
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    known = (BarColumn(bar_width=24), TaskProgressColumn(), TimeRemainingColumn()) if total_bytes else ()
    # Markup would take brackets in a topic's name for a style.
    columns = (SpinnerColumn("line"), TextColumn("{task.description}", markup=False), *known)
    rates = Rates()
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as progress:
        task = progress.add_task(verb, total=total_bytes)
        while True:
            sample = take()
            text = line(sample, *rates.add(time.monotonic(), sample))
            progress.update(task, description=f"{verb}  {text}", completed=sample.done_bytes)
            progress.refresh()
            await anyio.sleep(REFRESH_SECONDS)
