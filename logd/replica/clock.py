"""The time that a leader stamps on batches.

For: the driver. Must not know: where readings come from. The one idea: a wall clock that jumps against the monotonic
one is not believed, because retention acts on these stamps; a clock that drifts or is slewed is followed.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

# Above any slewing and leap-second smearing, and far below what retention by age would notice.
JUMP_MS_MAX: Final = 10 * 60 * 1000


class ClockReading(NamedTuple):
    """Both clocks, read at one moment, in milliseconds."""

    wall_ms: int
    monotonic_ms: int


@dataclass(slots=True)
class AppendClock:
    """Turns readings into stamps.

    `jumps` counts the readings at which the wall clock was first found to have jumped, for the operator.
    """

    # Wall minus monotonic, as last believed.
    _difference_ms: int
    jumps: int = 0
    _in_jump: bool = False

    @classmethod
    def started(cls, reading: ClockReading) -> "AppendClock":
        """A clock that believes its first reading, having nothing to compare it with."""
        return cls(reading.wall_ms - reading.monotonic_ms)

    def now_ms(self, reading: ClockReading) -> int:
        """Milliseconds since 1970 UTC; after a jump, as if the wall clock had gone on steadily."""
        difference = reading.wall_ms - reading.monotonic_ms
        if abs(difference - self._difference_ms) <= JUMP_MS_MAX:
            self._difference_ms = difference
            self._in_jump = False
        elif not self._in_jump:
            self._in_jump = True
            self.jumps += 1
        return reading.monotonic_ms + self._difference_ms
