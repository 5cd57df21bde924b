"""Everything a user can type, typed, against a real node, and compared with what came back before.

The chapters are transcripts under `tests/golden/walkthrough/`. After a wanted change of what is printed:

    LOGD_REWRITE=1 python -m pytest tests/e2e/test_walkthrough.py

plays them again and writes down what comes back; the difference is then read in review.
"""

import difflib
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from logd.cli.logctl import command as logctl
from logd.cli.logd import command as logd
from tests.e2e.transcript import ROOT, Player, commands, parse, render

CHAPTERS = sorted((ROOT / "tests" / "golden" / "walkthrough").glob("*.txt"))
OPERATORS = {"|", "||", "&&", ";", "&", "(", ")", "<", ">", ">>", "<(", ">(", "|&"}


# Dozens of processes one after the other: seconds on an idle machine, minutes on a busy one.
@pytest.mark.timeout(600)
@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_the_walkthrough_comes_back_as_it_is_written(chapter: Path, tmp_path: Path) -> None:
    written = chapter.read_text()
    with Player(tmp_path) as player:
        played = render(player.play(parse(written)))
    if os.environ.get("LOGD_REWRITE"):
        chapter.write_text(played)
        return
    difference = difflib.unified_diff(written.splitlines(), played.splitlines(), "written", "played", lineterm="")
    assert played == written, "\n".join(difference)


# --- nothing is left out ----------------------------------------------------------------------------------------------


def words_typed() -> Iterator[list[str]]:
    """Every call of one of our programs in the walkthrough, as words."""
    for chapter in CHAPTERS:
        for line in commands(chapter.read_text()):
            # What another command fills in is one word of this one.
            lexer = shlex.shlex(re.sub(r"\$\([^()]*\)", "VALUE", line), posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            call: list[str] = []
            for word in [*lexer, ";"]:
                if word in OPERATORS or set(word) <= set("|&;()<>"):
                    if call:
                        yield call
                    call = []
                elif call or word in ("logctl", "logd"):
                    call.append(word)


def what_can_be_typed(
    command: click.Command, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Every command with every option of it, by all its names; a command itself with no names."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from what_can_be_typed(child, (*path, name))
        return
    yield path, ()
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            yield path, tuple(parameter.opts)


CALLS = list(words_typed())


@pytest.mark.parametrize(
    ("path", "names"),
    [*what_can_be_typed(logctl, ("logctl",)), *what_can_be_typed(logd, ("logd",))],
    ids=" ".join,
)
def test_the_walkthrough_leaves_nothing_out(path: tuple[str, ...], names: tuple[str, ...]) -> None:
    calls = [call for call in CALLS if tuple(call[: len(path)]) == path]
    if not names:
        assert calls
        return
    typed = {word.partition("=")[0] for call in calls for word in call[len(path) :]}
    assert typed & set(names), f"the walkthrough never types {' '.join(path)} {names[0]}"


def test_every_help_is_in_the_walkthrough() -> None:
    groups = {path[:length] for path, _ in what_can_be_typed(logctl, ("logctl",)) for length in range(1, len(path) + 1)}
    shown = {tuple(call[:-1]) for call in CALLS if call[-1] == "--help"}
    assert groups | {("logd",)} <= shown
