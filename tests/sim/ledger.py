"""The record of long runs, and the page that shows it.

For: `make sim`, and `docs/simulation.md`. Must not know: how runs are made. The one idea: every run is a line in a file
that is not under version control, and the page is rendered from the sums of it, so that nobody keeps numbers by hand.
What a bug was is not in the file: people write that, with its seed, below the table.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.sim.cluster import Result

BEGIN = "<!-- ledger: begin (python -m tests.sim.ledger) -->"
END = "<!-- ledger: end -->"


def append(path: Path, result: Result, cpu_seconds: float) -> None:
    """Add one run."""
    options = result.options
    row = {
        "seed": options.seed,
        "command": options.command(),
        "simulated_seconds": round(result.simulated_us / 1e6, 1),
        "cpu_seconds": round(cpu_seconds, 2),
        "commits": result.commits,
        "elections": result.elections,
        "acknowledged": result.acknowledged,
        "vacuous": result.vacuous,
        "failure": result.failure,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def summary(rows: Iterable[dict[str, Any]]) -> str:
    """The table of the page."""
    counted = vacuous = failed = commits = elections = acknowledged = 0
    simulated = cpu = 0.0
    for row in rows:
        simulated += row["simulated_seconds"]
        cpu += row["cpu_seconds"]
        commits += row["commits"]
        elections += row["elections"]
        acknowledged += row["acknowledged"]
        failed += bool(row["failure"])
        if row["vacuous"] and not row["failure"]:
            vacuous += 1
        else:
            counted += 1
    lines = [
        ("seeds that count", f"{counted:,}"),
        ("vacuous seeds", f"{vacuous:,}"),
        ("seeds that failed", f"{failed:,}"),
        ("simulated hours", f"{simulated / 3600:,.1f}"),
        ("simulated seconds for one of the processor", f"{simulated / cpu if cpu else 0:.0f}"),
        ("elections", f"{elections:,}"),
        ("commits", f"{commits:,}"),
        ("acknowledged batches", f"{acknowledged:,}"),
    ]
    return "\n".join(["| what | how much |", "|---|---:|", *(f"| {name} | {value} |" for name, value in lines)])


def render(page: str, table: str) -> str:
    """The page with its table replaced. Raises ValueError without the two marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def main() -> int:
    """Render the page from a ledger."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.ledger")
    parser.add_argument("ledger", type=Path)
    parser.add_argument("--page", type=Path, default=Path("docs/simulation.md"))
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.ledger.read_text("utf-8").splitlines()]
    options.page.write_text(render(options.page.read_text("utf-8"), summary(rows)), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
