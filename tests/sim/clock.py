"""Simulated time: a heap of events, and the moment that is now.

For: everything that happens in a simulated cluster. Must not know: what an event does. The one idea: time is an integer
of microseconds that moves only from event to event, and events of one moment keep the order in which they were asked
for, so that a run is the same run wherever and however often it is made.
"""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Final

MILLISECOND: Final = 1_000
SECOND: Final = 1_000_000

Action = Callable[..., None]


class Clock:
    """The event queue. `now` is in microseconds since the run began."""

    __slots__ = ("_heap", "_sequence", "events", "now")

    def __init__(self) -> None:
        self.now = 0
        self.events = 0
        """How many events have happened."""
        self._heap: list[tuple[int, int, Action, tuple[Any, ...]]] = []
        self._sequence = 0

    def after(self, delay_us: int, action: Action, *arguments: Any) -> None:
        """Let `action(*arguments)` happen `delay_us` from now, behind what was asked for that moment before."""
        self._sequence += 1
        heappush(self._heap, (self.now + delay_us, self._sequence, action, arguments))

    def run_until(self, end_us: int, events_max: int | None = None) -> bool:
        """Let everything happen that is due before `end_us`; false if `events_max` events were reached first."""
        heap = self._heap
        while heap and heap[0][0] < end_us:
            if events_max is not None and self.events >= events_max:
                return False
            self.now, _, action, arguments = heappop(heap)
            self.events += 1
            action(*arguments)
        self.now = max(self.now, end_us)
        return True
