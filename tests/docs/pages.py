"""The pages of the project as text: where they are, what they link to, what they name."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"


def pages() -> list[Path]:
    """Every page that a reader may open: at the top, in docs/, and beside the benchmarks."""
    found = [REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", REPOSITORY / "bench" / "README.md"]
    found += (page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts)
    return found


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


_FENCE = re.compile(r"^(```+|:::+).*?^\1\s*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+\s+(.*)$", re.MULTILINE)
_TEST = re.compile(r"tests/[\w/]+\.py(?:::\w+)*")


def prose_of(page: Path) -> str:
    """The page without its blocks of code."""
    return _FENCE.sub("", text_of(page))


def links(page: Path) -> Iterator[str]:
    """Every target of a link or an image."""
    for link, image in _LINK.findall(prose_of(page)):
        yield link or image


def anchors(page: Path) -> set[str]:
    """What can stand behind `#` in a link to this page."""
    found = set()
    for heading in _HEADING.findall(prose_of(page)):
        plain = re.sub(r"[`*]", "", heading).strip().lower()
        found.add(re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", plain)))
    return found


def named_tests(page: Path) -> list[str]:
    """Every test that the page refers to, as `tests/….py::name`."""
    return _TEST.findall(text_of(page))


def tables() -> ModuleType:
    """The module that makes the documentation's tables."""
    return _extension("tables")


def machine() -> ModuleType:
    """The module that makes the tables and the drawing of the consensus core."""
    _extension("tables")  # which it imports
    return _extension("machine")


def _extension(name: str) -> ModuleType:
    known = sys.modules.get(name)
    if known is not None:
        return known
    specification = importlib.util.spec_from_file_location(name, DOCS / "_ext" / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module
