"""A node's simulated disk: when its work is done, and what becomes of it.

For: the shell of a node, which hands over rounds and jobs. Must not know: what is in them. The one idea: as in
production there is one writer and one housekeeper, each serial; the system calls of a piece of work happen at one
moment, at the beginning or at the end of the time that it takes, so that a crash meanwhile finds it done but unknown,
or not done, and `FakeFileSystem.crash_at` cuts it in the middle.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from tests.sim.clock import MILLISECOND, Action, Clock

Run = Callable[[], None]
Done = Callable[[OSError | None], None]

# A virtio disk writes and syncs 4 KiB in 0.15 ms when nobody else is there (ADR 6); cloud disks take ten
# times as long.
WRITE_US_MIN: Final = 200
WRITE_US_MAX: Final = 3 * MILLISECOND
SETTLE_US: Final = 60
JOB_US_MIN: Final = 200
JOB_US_MAX: Final = 4 * MILLISECOND


@dataclass(slots=True)
class DiskConditions:
    """How the disk of one node does. The default is a good disk."""

    slow_us: int = 0
    """What every write takes in addition, at most."""
    is_hanging: bool = False
    """Nothing ends until this is taken back."""


class Lane:
    """Serial work of one kind: the writer's, or the housekeeper's.

    Arguments: `enter(function, *arguments)` calls the function unless the process is over, as what happens in it.
    """

    __slots__ = ("_clock", "_enter", "_is_busy", "_queue", "is_stopped", "oldest_us")

    def __init__(self, clock: Clock, enter: Action) -> None:
        self._clock = clock
        self._enter = enter
        self._queue: deque[tuple[int, bool, Run, Done]] = deque()
        self._is_busy = False
        self.is_stopped = False
        self.oldest_us: int | None = None
        """When the work under way began; None while there is none."""

    def submit(self, duration_us: int, is_early: bool, run: Run, done: Done) -> None:
        """Have `run` run, and `done` called when `duration_us` is over; `is_early` runs it when it begins."""
        self._queue.append((duration_us, is_early, run, done))
        if not self._is_busy:
            self._begin()

    def stop(self) -> None:
        """The process is gone: nothing that was not begun is done, and nobody hears of what was."""
        self.is_stopped = True
        self._queue.clear()

    def _begin(self) -> None:
        duration_us, is_early, run, done = self._queue.popleft()
        self._is_busy = True
        self.oldest_us = self._clock.now
        error: OSError | None = None
        if is_early:
            error = _try(run)
        self._clock.after(duration_us, self._enter, self._end, None if is_early else run, done, error)

    def _end(self, run: Run | None, done: Done, error: OSError | None) -> None:
        if run is not None:
            error = _try(run)
        self._is_busy = False
        self.oldest_us = None
        if not self.is_stopped:
            done(error)
        # `done` may have stopped the lane, or begun the next piece.
        if self._queue and not self._is_busy and not self.is_stopped:
            self._begin()


def _try(run: Run) -> OSError | None:
    try:
        run()
    except OSError as error:
        return error
    return None


class Disk:
    """The writer and the housekeeper of one life of a node."""

    def __init__(self, clock: Clock, chance: Random, conditions: DiskConditions, enter: Action) -> None:
        self._chance = chance
        self._conditions = conditions
        self.writer = Lane(clock, enter)
        self.housekeeper = Lane(clock, enter)

    def submit_round(self, run: Run, done: Done) -> None:
        """Write a round."""
        self.writer.submit(self._duration(WRITE_US_MIN, WRITE_US_MAX), self._chance.random() < 0.5, run, done)

    def submit_settling(self, run: Run, done: Done) -> None:
        """Bring a round to its segments."""
        self.writer.submit(SETTLE_US + self._extra(), False, run, done)

    def submit_job(self, run: Run, done: Done) -> None:
        """Run a job."""
        self.housekeeper.submit(self._duration(JOB_US_MIN, JOB_US_MAX), self._chance.random() < 0.5, run, done)

    def stop(self) -> None:
        """The process is gone."""
        self.writer.stop()
        self.housekeeper.stop()

    def _duration(self, low: int, high: int) -> int:
        return low + int(self._chance.random() * (high - low)) + self._extra()

    def _extra(self) -> int:
        slow_us = self._conditions.slow_us
        return self._chance.randrange(slow_us) if slow_us else 0
