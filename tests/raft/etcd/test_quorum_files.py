"""etcd's files about quorums, to the letter: commit indexes and votes, of one majority and of two.

What etcd's own harness cross-checks on every case is checked here too: the halves of a joint configuration may be
interchanged, an empty half changes nothing, nor does the same half twice.
"""

from itertools import pairwise

import pytest

from logd.raft.quorum import (
    UNBOUNDED,
    VoteResult,
    committed_index,
    joint_committed_index,
    joint_vote_result,
    vote_result,
)
from logd.raft.types import Configuration
from tests.raft.datadriven import Case, UnknownDirective, run_script
from tests.raft.etcd.files import QUORUM_FILES, Directories

VOTE_RESULTS = {VoteResult.PENDING: "VotePending", VoteResult.LOST: "VoteLost", VoteResult.WON: "VoteWon"}


@pytest.mark.parametrize("name", QUORUM_FILES)
def test_the_files_are_met_to_the_letter(directories: Directories, name: str) -> None:
    assert run_script(directories.quorum / name, answer) > 0


def answer(case: Case) -> str:
    assert not case.positional
    assert case.keys <= {"cfg", "cfgj", "idx", "votes"}
    voters = frozenset(case.values("cfg") or ())
    second = case.values("cfgj")
    outgoing = None if second is None else frozenset(() if second == ("zero",) else second)
    match case.directive:
        case "committed":
            return committed(voters, outgoing, known(case, "idx"))
        case "vote":
            return vote(voters, outgoing, known(case, "votes"))
        case _:
            raise UnknownDirective(case)


def known(case: Case, key: str) -> dict[str, str]:
    """What is known of whom: values are given in the order in which nodes first appear, `_` for nothing."""
    second = case.values("cfgj") or ()
    nodes = dict.fromkeys([*(case.values("cfg") or ()), *(node for node in second if node != "zero")])
    return {node: value for node, value in zip(nodes, case.values(key) or (), strict=True) if value != "_"}


def committed(voters: frozenset[str], outgoing: frozenset[str] | None, texts: dict[str, str]) -> str:
    held = {node: int(text) for node, text in texts.items()}
    if outgoing is None:
        index = committed_index(voters, held.get)
        for other in (frozenset(), voters):
            assert joint_committed_index(Configuration(voters, other), held.get) == index
        assert lowered(voters, held, index) == {index}
    else:
        index = joint_committed_index(Configuration(voters, outgoing), held.get)
        assert joint_committed_index(Configuration(outgoing, voters), held.get) == index
    drawing = draw(voters | (outgoing or frozenset()), held)
    return f"{drawing}{'∞' if index == UNBOUNDED else index}\n"


def lowered(voters: frozenset[str], held: dict[str, int], index: int) -> set[int]:
    """The commit indexes that result if somebody below the commit index holds still less: all the same."""
    changed = [{**held, node: less} for node, holds in held.items() if holds < index for less in (holds - 1, 0)]
    return {committed_index(voters, variant.get) for variant in [held, *changed]}


def draw(voters: frozenset[str], held: dict[str, int]) -> str:
    """etcd's picture of who holds how much: the bar's length is the rank, and of equals only the first has one."""
    if not voters:
        return "<empty majority quorum>"
    ranked = sorted(voters, key=lambda node: (held.get(node, 0), int(node)))
    bars = dict.fromkeys(ranked, 0)
    for rank, (before, node) in enumerate(pairwise(ranked), start=1):
        if held.get(before, 0) < held.get(node, 0):
            bars[node] = rank
    width = len(voters)
    lines = [f"{' ' * width}    idx"]
    for node in sorted(voters, key=int):
        bar = f"{'x' * bars[node]}>" if node in held else "?"
        lines.append(f"{bar:<{width + 1}} {held.get(node, 0):>5}    (id={node})")
    return "".join(f"{line}\n" for line in lines)


def vote(voters: frozenset[str], outgoing: frozenset[str] | None, texts: dict[str, str]) -> str:
    votes = {node: {"y": True, "n": False}[text] for node, text in texts.items()}
    if outgoing is None:
        result = vote_result(voters, votes)
        assert joint_vote_result(Configuration(voters), votes) is result
    else:
        result = joint_vote_result(Configuration(voters, outgoing), votes)
        assert joint_vote_result(Configuration(outgoing, voters), votes) is result
    return f"{VOTE_RESULTS[result]}\n"
