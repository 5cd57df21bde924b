"""What happened, line by line, as one hash.

For: telling whether two runs were the same run, and reading a failing one. Must not know: what the lines say. The one
idea: every line goes into one running SHA-256, whether it is printed or not, so that looking at a run never changes it.
"""

import hashlib
from collections import deque
from typing import Final, TextIO

LINES_REMEMBERED: Final = 40


class Trace:
    """The lines of one run. With `out` they are printed as they come."""

    __slots__ = ("_digest", "_out", "lines", "recent")

    def __init__(self, out: TextIO | None = None) -> None:
        self._digest = hashlib.sha256()
        self._out = out
        self.lines = 0
        self.recent: deque[str] = deque(maxlen=LINES_REMEMBERED)
        """The last lines, for the report of a failure."""

    def line(self, text: str) -> None:
        """Note one event."""
        self._digest.update(text.encode())
        self._digest.update(b"\n")
        self.lines += 1
        self.recent.append(text)
        if self._out is not None:
            self._out.write(f"{text}\n")

    def digest(self) -> str:
        """The hash of all lines so far."""
        return self._digest.hexdigest()
