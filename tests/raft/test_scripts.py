"""The conversations of `testdata`: what replicas say to each other, step by step (`conversation` lists the commands).

`pytest tests/raft/test_scripts.py --rewrite` writes the answers into the scripts; read the difference before it is
committed.
"""

from pathlib import Path
from typing import Final

import pytest

from tests.raft.conversation import Conversation
from tests.raft.datadriven import MalformedScript, UnknownDirective, parse, run_script

SCRIPTS: Final = sorted((Path(__file__).parent / "testdata").glob("*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_conversation_goes_as_written(path: Path, rewrite: bool) -> None:
    assert run_script(path, Conversation().handle, rewrite=rewrite) > 0


def test_an_unknown_command_is_not_skipped() -> None:
    (case,) = parse("vanish 1\n----\n")

    with pytest.raises(UnknownDirective):
        Conversation().handle(case)


def test_an_unknown_argument_is_not_skipped() -> None:
    (case,) = parse("stabilize colour=red\n----\n")

    with pytest.raises(MalformedScript, match="stabilize knows no colour"):
        Conversation().handle(case)
