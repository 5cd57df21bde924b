"""What the pages say of the project is there: links, tests, commands, settings, codes."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from logd.cli.exits import EXITS
from logd.config import settings_table
from tests.docs.pages import (
    DOCS,
    REPOSITORY,
    anchors,
    links,
    machine,
    named_tests,
    pages,
    prose_of,
    tables,
    text_of,
)
from wire.errors import SERVER_ERRORS
from wire.messages import MESSAGES

README = REPOSITORY / "README.md"
CONSISTENCY = DOCS / "consistency.md"
OPERATIONS = DOCS / "operations.md"


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    wrong = []
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            wrong.append(link)
    assert not wrong


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_test_that_is_named_is_there(page: Path) -> None:
    assert [test for test in named_tests(page) if not tables().is_test(test)] == []


def test_a_test_that_is_not_there_is_found_out() -> None:
    assert tables().is_test("tests/docs/test_pages.py::test_a_test_that_is_not_there_is_found_out")
    assert not tables().is_test("tests/docs/test_pages.py::test_nothing")
    assert not tables().is_test("tests/docs/no_such_file.py")
    assert not tables().is_test("docs/conf.py")


def promises(page: Path) -> list[list[str]]:
    """The rows of the page's tables whose last column is headed `tested by`."""
    rows = []
    is_promises = False
    for line in text_of(page).splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            is_promises = False
        elif cells[-1] == "tested by":
            is_promises = True
        elif is_promises and not set(cells[-1]) <= set("-: "):
            rows.append(cells)
    return rows


@pytest.mark.parametrize("page", [README, CONSISTENCY], ids=name_of)
def test_every_promise_names_its_test(page: Path) -> None:
    rows = promises(page)

    assert rows
    assert [row[0] for row in rows if "tests/" not in row[-1]] == []


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", text_of(REPOSITORY / "Makefile"), re.MULTILINE))


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_make_command_that_is_named_exists(page: Path) -> None:
    # At the beginning of a line of code, or of code within a line.
    named = set(re.findall(r"(?:^|`|\$ )make ([a-z][a-z-]*)", text_of(page), re.MULTILINE))

    assert named <= make_targets()


def test_every_target_of_the_makefile_is_explained() -> None:
    explained = set(re.findall(r"^([a-z][a-z-]*):.*?## .+$", text_of(REPOSITORY / "Makefile"), re.MULTILINE))

    assert make_targets() == explained


def test_every_target_that_runs_the_projects_python_installs_it_first() -> None:
    rules = re.findall(r"^([a-z][a-z-]*):([^#\n]*).*\n((?:\t.*\n?)*)", text_of(REPOSITORY / "Makefile"), re.MULTILINE)

    assert [name for name, needs, recipe in rules if "$(BIN)" in recipe and "$(INSTALLED)" not in needs] == []


def test_every_table_that_is_made_stands_on_a_page() -> None:
    used = {name for page in pages() for name in re.findall(r"```\{table-of\} ([\w-]+)", text_of(page))}

    assert used == {*tables().TABLES, *machine().TABLES}


def test_every_setting_has_its_default_and_unit_on_the_page() -> None:
    made = tables().settings()

    for setting in settings_table():
        row = next(line for line in made.splitlines() if line.startswith(f"| `{setting.key}` |"))
        assert ("required" if setting.required else f"`{setting.default_text}`") in row
        assert setting.unit in row


def test_every_code_stands_in_its_table() -> None:
    exits, errors, messages = tables().exits(), tables().server_error_codes(), tables().messages()

    assert [row.exit for row in EXITS if f"| {int(row.exit)} |" not in exits] == []
    assert [code for code in SERVER_ERRORS if code != "Unknown" and f"| `{code}` |" not in errors] == []
    assert [row.number for row in MESSAGES if f"| {row.number} | `{row.kind.__name__}` |" not in messages] == []


def test_what_an_operator_may_be_woken_by_is_explained() -> None:
    """Every event of the levels warning and error, the daemon's and the store's, has a line of what to do."""
    explained = set(re.findall(r"`(\w+)`", prose_of(OPERATIONS).partition("## At three in the morning")[2]))
    logged = {event.name for event in tables().log_events() if event.level in ("warning", "error", "critical")}

    assert logged - explained == set()


def test_the_glossary_has_no_two_meanings() -> None:
    terms = re.findall(r"^\| ([^|]+) \|", text_of(DOCS / "terminology.md"), re.MULTILINE)

    assert len(terms) == len(set(terms))


def test_decisions_are_numbered_without_a_gap_and_say_what_was_measured() -> None:
    decisions = sorted((DOCS / "adr").glob("0*.md"))

    assert [int(page.name[:4]) for page in decisions] == list(range(1, len(decisions) + 1))
    for page in decisions:
        headings = re.findall(r"^## (.*)$", text_of(page), re.MULTILINE)
        assert {"Context", "Decision", "Consequences", "What was measured"} == set(headings), page.name


def test_nothing_that_belongs_to_somebodys_machine_is_kept() -> None:
    git = shutil.which("git")
    if git is None or not (REPOSITORY / ".git").exists():
        pytest.skip("not a checkout of git")
    kept = subprocess.run([git, "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split()

    assert [name for name in kept if re.search(r"(^|/)(\.venv|\.logd|__pycache__|_build)/|\.pyc$", name)] == []
