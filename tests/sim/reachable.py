"""Marks on the branches that a simulation is made to reach.

For: the simulator, which counts them, and CI, which says which were never reached. Must not know: what they mark. The
one idea: a mark is a call with a literal name, so that the names that exist can be read from the sources, and those
that were reached from the counts; the difference is what the simulator does not test.
"""

import ast
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

counts: Counter[str] = Counter()
"""How often each mark was reached in this process."""


def reachable(name: str) -> None:
    """Note that this place was reached."""
    counts[name] += 1


def marks_in(directories: Iterable[Path]) -> list[str]:
    """Every name that some source below these directories marks, sorted."""
    found = set()
    for directory in directories:
        for path in sorted(directory.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Name)
                    and node.func.id == "reachable"
                    and node.args
                    and isinstance(node.args[0], ast.Constant)
                    and isinstance(node.args[0].value, str)
                ):
                    found.add(node.args[0].value)
    return sorted(found)


def not_reached(names: Iterable[str], reached: Counter[str]) -> list[str]:
    """Those of the names that were never reached, in order."""
    return [name for name in names if not reached[name]]
