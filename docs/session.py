"""`python docs/session.py`: put a real session of `make demo` into the README, in place of the one that is there.

For: whoever changed what the demonstration shows (a test compares its steps with the README's), or wants figures of a
machine that does nothing else. The one idea: what the README shows was seen.
"""

import subprocess
import sys
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parent.parent
README: Final = REPOSITORY / "README.md"
BEGIN: Final = "<!-- The output of `make demo`, as it was. -->\n```text\n"
END: Final = "```\n"


def with_session(page: str, session: str) -> str:
    """The page with another session in it; raises ValueError if it has no place for one."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no block that begins with {BEGIN!r}")
    return before + begin + session.strip("\n") + "\n" + end + after


def main() -> int:
    """Run the demonstration; a failed one changes nothing."""
    demo = Path(__file__).with_name("demo.py")
    done = subprocess.run([sys.executable, demo], stdout=subprocess.PIPE, text=True, check=False)
    sys.stdout.write(done.stdout)
    if done.returncode == 0:
        README.write_text(with_session(README.read_text(encoding="utf-8"), done.stdout), encoding="utf-8")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
