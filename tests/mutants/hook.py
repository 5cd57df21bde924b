"""The import hook: with LOGD_MUTANT=<name> in the environment, modules are imported with that bug in them.

For: tests/conftest.py and `python -m tests.sim`, which install it before anything of logd is imported. Must not know:
tests. The one idea: the finder answers for the mutated modules alone, and their loader compiles rewritten source;
files, byte-code caches and all other modules stay as they are.
"""

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Final

from tests.mutants.mutant import Mutant
from tests.mutants.table import find_mutant

VARIABLE: Final = "LOGD_MUTANT"


class MutantTooLate(Exception):
    """A module that a mutant rewrites was imported before the hook was there."""


class _MutantLoader(SourceFileLoader):
    """Loads a module with a mutant in it; neither reads nor writes byte-code caches."""

    def __init__(self, mutant: Mutant, finder: "MutantFinder", name: str, path: str) -> None:
        super().__init__(name, path)
        self._mutant = mutant
        self._finder = finder

    def get_code(self, fullname: str) -> CodeType:
        """The code of the rewritten source. Raises StaleMutant."""
        source = self.get_source(fullname)
        assert source is not None
        code = compile(self._mutant.rewrite(fullname, source), self.path, "exec", dont_inherit=True)
        self._finder.applied.add(fullname)
        return code


class MutantFinder(MetaPathFinder):
    """Finds the modules of one mutant."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        self.applied: set[str] = set()
        """The modules that were imported with the bug in them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module of the mutant's; None for every other."""
        if fullname not in self.mutant.modules:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None:
            return None
        spec.loader = _MutantLoader(self.mutant, self, fullname, spec.origin)
        return spec

    @property
    def is_applied(self) -> bool:
        """Whether the whole bug is in this process."""
        return self.applied == set(self.mutant.modules)


def install(mutant: Mutant) -> MutantFinder:
    """Have the mutant's modules imported with the bug. Raises MutantTooLate, StaleMutant."""
    mutant.check()
    late = [module for module in mutant.modules if module in sys.modules]
    if late:
        raise MutantTooLate(f"mutant {mutant.name}: {late[0]} is imported already")
    finder = MutantFinder(mutant)
    sys.meta_path.insert(0, finder)
    return finder


def installed() -> MutantFinder | None:
    """The hook of this process, if there is one."""
    return next((finder for finder in sys.meta_path if isinstance(finder, MutantFinder)), None)


def install_from_environment() -> MutantFinder | None:
    """Install the mutant that LOGD_MUTANT names; None, and nothing done, if it names none, or again.

    Raises LookupError for an unknown name, MutantTooLate, StaleMutant.
    """
    name = os.environ.get(VARIABLE, "")
    if not name:
        return None
    present = installed()
    if present is not None and present.mutant.name == name:
        return present
    return install(find_mutant(name))
