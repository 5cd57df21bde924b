"""The disk's threads, and the doorbell by which they call the event loop.

For: the Raft actor, which hands over rounds and jobs. Must not know: what is in them. The one idea: one writer thread
runs rounds in order, one housekeeper runs everything that no promise waits for, and both answer by putting a
completion into a queue and writing to an eventfd; the loop never waits for a disk, and a round never waits for a task
switch (140 µs against 255 µs through `trio.to_thread` (ADR 6); `bench/disk_round.py` measures it again).
"""

import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple, Protocol

import trio


class Stage(Enum):
    """What became true."""

    DURABLE = auto()
    """A round is durable: its promises may leave."""
    WRITTEN = auto()
    """A round is in its segments: it can be read."""
    DONE = auto()
    """A job ran."""


class Completion(NamedTuple):
    """One word of the disk: what became true of which round or job, or how it failed."""

    stage: Stage
    subject: object
    error: OSError | None = None


class RoundWork(Protocol):
    """What the writer thread does with a round."""

    def write(self) -> None: ...
    def settle(self) -> None: ...


class JobWork(Protocol):
    """What the housekeeper does with a job."""

    def run(self) -> None: ...


class Doorbell:
    """An eventfd: whoever has something for the loop rings, from any thread; one task waits."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def ring(self) -> None:
        """Wake the waiting task; rings that nobody has answered yet are one."""
        os.eventfd_write(self._fd, 1)

    async def wait(self) -> None:
        """Wait for a ring. Rings before the call count."""
        await trio.lowlevel.wait_readable(self._fd)
        os.eventfd_read(self._fd)

    def close(self) -> None:
        os.close(self._fd)


class Disk:
    """The two threads.

    Arguments: `doorbell`, rung after each completion.
    """

    def __init__(self, doorbell: Doorbell) -> None:
        self._doorbell = doorbell
        self._completions: deque[Completion] = deque()
        self._rounds: queue.SimpleQueue[tuple[Stage, RoundWork] | None] = queue.SimpleQueue()
        self._jobs: queue.SimpleQueue[JobWork | None] = queue.SimpleQueue()
        self._threads = (
            threading.Thread(target=self._write_rounds, name="logd-writer", daemon=True),
            threading.Thread(target=self._run_jobs, name="logd-housekeeper", daemon=True),
        )

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def submit_round(self, work: RoundWork) -> None:
        """Have a round written; a completion DURABLE follows."""
        self._rounds.put((Stage.DURABLE, work))

    def submit_settling(self, work: RoundWork) -> None:
        """Have a durable round brought to its segments, rounds in order; a completion WRITTEN follows.

        It is asked for when the answers have left, and behind the next round if there is one: no promise waits for the
        segments, and at the moment of the answers the interpreter is wanted elsewhere. Letting the writer do it by
        itself after a while was no faster, and on a busy machine slower: the while ends when the next request comes.
        """
        self._rounds.put((Stage.WRITTEN, work))

    def submit_job(self, work: JobWork) -> None:
        """Have a job run; a completion DONE follows."""
        self._jobs.put(work)

    def take_completions(self) -> list[Completion]:
        """What became true since the last time, in order."""
        taken = []
        while self._completions:
            taken.append(self._completions.popleft())
        return taken

    async def stop(self, seconds: float) -> bool:
        """Let both threads finish what they have, and end them; false if the disk keeps them longer than `seconds`."""
        self._rounds.put(None)
        self._jobs.put(None)
        with trio.CancelScope(shield=True):
            for thread in self._threads:
                await trio.to_thread.run_sync(thread.join, seconds)
        return not any(thread.is_alive() for thread in self._threads)

    def _write_rounds(self) -> None:
        while (item := self._rounds.get()) is not None:
            stage, work = item
            # After a failure nothing may be written any more; what is still asked for is left.
            if not self._attempt(stage, work, work.write if stage is Stage.DURABLE else work.settle):
                return

    def _run_jobs(self) -> None:
        while (work := self._jobs.get()) is not None:
            self._attempt(Stage.DONE, work, work.run)

    def _attempt(self, stage: Stage, subject: object, act: Callable[[], None]) -> bool:
        error = None
        try:
            act()
        except OSError as caught:
            error = caught
        except Exception as defect:  # noqa: BLE001  # a thread that dies in silence would leave everybody waiting
            error = OSError(f"a defect: {type(defect).__name__}: {defect}")
            error.__cause__ = defect
        self._completions.append(Completion(stage, subject, error))
        self._doorbell.ring()
        return error is None
