"""What a mutant is. Imports nothing of logd: it is loaded before anything of it may be.

The one idea: a rule of production code is quoted word for word. When the code changes so that the quotation no longer
stands there exactly once, the mutant is *stale*: an error that names it, so that no mutant ever passes unapplied.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
"""The checkout."""

BUGS_COUNT: Final = 25
JOURNAL_RULES_COUNT: Final = 7


class StaleMutant(Exception):
    """The text that a mutant replaces is not in its module exactly once: the row has to follow the code."""


class Source(Enum):
    """Where a mutant's bug comes from."""

    BUG = "bug"
    """One of the 25 that others shipped."""
    JOURNAL = "journal"
    """One of the seven rules of the journal."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One replacement. `old` occurs exactly once in the source of `module`."""

    module: str
    old: str
    new: str

    @property
    def path(self) -> Path:
        return ROOT.joinpath(*self.module.split(".")).with_suffix(".py")

    def apply(self, source: str, mutant: str) -> str:
        """The module's source with the bug. Raises StaleMutant."""
        count = source.count(self.old)
        if count != 1:
            first_line = self.old.strip().splitlines()[0]
            raise StaleMutant(f"mutant {mutant}: {first_line!r}… stands in {self.module} {count} times, not once")
        return source.replace(self.old, self.new)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One row of the table."""

    source: Source
    number: int
    """Of the bug, 1 to 25, or of the journal's rule, 1 to 7."""
    name: str
    """The value of LOGD_MUTANT. Invariant: unique, and begins with its kind and number."""
    bug: str
    """The bug it stands for, and who shipped it."""
    rule: str
    """The production rule that it reverts."""
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]
    """Each of them fails with the mutant, by one of `verdicts`, and passes without."""
    violations: tuple[str, ...] = ()
    """Exceptions that count as a verdict besides a failed assertion: the code's own word that something is wrong."""

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(edit.module for edit in self.edits))

    def rewrite(self, module: str, source: str) -> str:
        """The source of `module` with the bug. Raises StaleMutant."""
        for edit in self.edits:
            if edit.module == module:
                source = edit.apply(source, self.name)
        return source

    def check(self) -> None:
        """Raise StaleMutant unless every edit finds its text, and changes what the module says."""
        for module in self.modules:
            path = next(edit.path for edit in self.edits if edit.module == module)
            source = path.read_text(encoding="utf-8")
            rewritten = self.rewrite(module, source)
            if rewritten == source:
                raise StaleMutant(f"mutant {self.name} changes nothing in {module}")
            try:
                compile(rewritten, str(path), "exec", dont_inherit=True)
            except SyntaxError as error:
                raise StaleMutant(f"mutant {self.name} makes {module} unreadable: {error}") from error
