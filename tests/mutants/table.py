"""All mutants: the 25 bugs of others, then the seven rules of the journal.

For: the hook, the runner and the documentation. Must not know: logd (it is loaded before anything of it is imported).
"""

from typing import Final

from tests.mutants.mutant import Mutant, Source
from tests.mutants.rows_journal import JOURNAL
from tests.mutants.rows_raft import RAFT
from tests.mutants.rows_store import STORE


def _order(mutant: Mutant) -> tuple[bool, int, str]:
    return mutant.source is Source.JOURNAL, mutant.number, mutant.name


MUTANTS: Final[tuple[Mutant, ...]] = tuple(sorted((*STORE, *RAFT, *JOURNAL), key=_order))


def find_mutant(name: str) -> Mutant:
    """The mutant of a name. Raises LookupError."""
    for mutant in MUTANTS:
        if mutant.name == name:
            return mutant
    raise LookupError(f"there is no mutant {name!r}; python -m tests.mutants lists them")
