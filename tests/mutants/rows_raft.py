"""The bugs of others that would live in the core, its driver or the node here."""

from typing import Final

from tests.mutants.mutant import Mutant

RAFT: Final[tuple[Mutant, ...]] = ()
