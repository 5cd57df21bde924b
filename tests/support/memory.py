"""How much memory a command had resident at most, without what its parent had.

The kernel's maximum of a process begins with that of the image it was forked from: below a pytest of 350 MB every
child seems to have had as much. A small process in between keeps pytest's memory out of it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

_LAUNCHER = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024))
sys.exit(code)
"""


def measured(command: Sequence[str], report: Path) -> list[str]:
    """The command as one that writes its maximum to `report`, and ends as it does."""
    return [sys.executable, "-c", _LAUNCHER, str(report), *command]


def resident_bytes(report: Path) -> int:
    """What a measured command that has ended wrote."""
    return int(report.read_text())
