"""etcd's interaction scripts say how a Raft core of etcd's shape behaves, message by message: ours does as they say.

Nine are etcd 3.4's. Those of the newest etcd-io/raft (a copy of its `testdata`) are run if LOGD_RAFT_SCRIPTS names
their directory. What is compared, and what is not, `interaction` says.
"""

import os
from pathlib import Path
from typing import Final

import pytest

from tests.raft.datadriven import Case, UnknownDirective, parse
from tests.raft.etcd.files import INTERACTION_FILES, Directories
from tests.raft.etcd.interaction import FACTS_ONLY, Interaction, comparable, comparable_of_3_4, facts

NEWEST: Final = os.environ.get("LOGD_RAFT_SCRIPTS", "")


def cases_of(path: Path) -> list[Case]:
    return list(parse(path.read_text(encoding="utf-8"), path.name))


@pytest.mark.parametrize("name", INTERACTION_FILES)
def test_a_script_of_etcd_3_4_is_answered_to_the_letter(directories: Directories, name: str) -> None:
    interaction = Interaction(is_of_3_4=True)
    for case in cases_of(directories.interaction / name):
        answer = interaction.handle(case)
        if case.position in FACTS_ONLY:
            assert comparable_of_3_4(answer) != comparable_of_3_4(case.expected), "the exception is not needed"
            assert facts(answer) == facts(case.expected), case.position
        else:
            assert comparable_of_3_4(answer) == comparable_of_3_4(case.expected), case.position


def test_all_scripts_of_etcd_3_4_are_run(directories: Directories) -> None:
    there = {path.name for path in directories.interaction.iterdir()}

    assert there == set(INTERACTION_FILES)
    assert len(INTERACTION_FILES) == 9
    assert {position.partition(":")[0] for position in FACTS_ONLY} <= there


@pytest.mark.skipif(not NEWEST, reason="LOGD_RAFT_SCRIPTS does not name a directory with etcd-io/raft's testdata")
@pytest.mark.parametrize("path", sorted(Path(NEWEST).glob("*.txt")) if NEWEST else [], ids=lambda path: path.stem)
def test_a_script_of_the_newest_is_answered_to_the_letter(path: Path) -> None:
    interaction = Interaction()
    for case in cases_of(path):
        assert comparable(interaction.handle(case)) == comparable(case.expected), case.position


@pytest.mark.parametrize("text", ["vanish 1\n----\n", "add-nodes 1 colour=red\n----\n"])
def test_an_unknown_directive_is_not_skipped(text: str) -> None:
    (case,) = parse(text)

    with pytest.raises(UnknownDirective):
        Interaction().handle(case)
