"""Claims about majorities: an index is committed, and a vote decided, exactly when no one left out could change it.

The definitions here go through all subsets of the voters; the code sorts and counts. Sections are the Raft paper's.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations, product

from hypothesis import given
from hypothesis import strategies as st

from logd.raft.quorum import (
    UNBOUNDED,
    VoteResult,
    committed_index,
    joint_committed_index,
    joint_vote_result,
    vote_result,
)
from logd.raft.types import Configuration

NAMES = tuple(f"node-{number}" for number in range(1, 10))
INDEXES = st.none() | st.integers(0, 5) | st.integers(1, UNBOUNDED - 1)


def majorities(voters: frozenset[str]) -> Iterator[frozenset[str]]:
    """All sets of voters that are more than half of them."""
    for count in range(len(voters) + 1):
        if 2 * count > len(voters):
            yield from map(frozenset, combinations(sorted(voters), count))


def held_by_a_majority(voters: frozenset[str], held: Mapping[str, int | None]) -> int:
    """The definition: the best that the worst of some majority holds."""
    return max(min(held.get(voter) or 0 for voter in majority) for majority in majorities(voters))


def outcomes(configuration: Configuration, votes: Mapping[str, bool]) -> set[bool]:
    """The definition: whether the vote is won, for every way in which those who are missing may still vote."""
    halves = [half for half in (configuration.voters, configuration.voters_outgoing) if half]
    missing = sorted(configuration.voters.union(*halves) - votes.keys())
    won = set()
    for answers in product((False, True), repeat=len(missing)):
        full = {**votes, **dict(zip(missing, answers, strict=True))}
        granted = {voter for voter, vote in full.items() if vote}
        won.add(all(2 * len(half & granted) > len(half) for half in halves))
    return won


VERDICTS = {
    frozenset({True}): VoteResult.WON,
    frozenset({False}): VoteResult.LOST,
    frozenset({True, False}): VoteResult.PENDING,
}


@st.composite
def voters_of(draw: st.DrawFn, *, count_min: int = 1, count_max: int = 9) -> frozenset[str]:
    return frozenset(draw(st.permutations(NAMES))[: draw(st.integers(count_min, count_max))])


@given(voters_of(), st.fixed_dictionaries(dict.fromkeys(NAMES, INDEXES)))
def test_the_committed_index_is_the_best_that_a_majority_holds_5_3(
    voters: frozenset[str], held: dict[str, int | None]
) -> None:
    assert committed_index(voters, held.get) == held_by_a_majority(voters, held)


@given(voters_of(), voters_of(count_min=0), st.fixed_dictionaries(dict.fromkeys(NAMES, INDEXES)))
def test_a_joint_index_is_committed_when_both_majorities_hold_it_6(
    voters: frozenset[str], outgoing: frozenset[str], held: dict[str, int | None]
) -> None:
    index = joint_committed_index(Configuration(voters, outgoing), held.get)
    halves = [half for half in (voters, outgoing) if half]
    assert index == min(held_by_a_majority(half, held) for half in halves)
    assert index == min(committed_index(half, held.get) for half in halves)


def test_every_number_of_voters_tolerates_the_loss_of_less_than_half() -> None:
    for count in range(1, 10):
        voters = frozenset(NAMES[:count])
        silent_max = (count - 1) // 2
        for silent in range(count + 1):
            held = dict.fromkeys(NAMES[silent:count], 7)
            assert committed_index(voters, held.get) == (7 if silent <= silent_max else 0), (count, silent)


def test_what_is_not_known_counts_for_nothing() -> None:
    voters = NAMES[:3]
    assert committed_index(voters, {"node-1": 5}.get) == 0
    assert committed_index(voters, {"node-1": 5, "node-2": 4}.get) == 4


def test_who_is_no_voter_does_not_count() -> None:
    held = {"node-1": 5, "node-2": 0, "node-3": 0, "learner": 5, "stranger": 5}
    assert committed_index(NAMES[:3], held.get) == 0
    assert vote_result(NAMES[:3], {"node-1": True, "learner": True, "stranger": True}) is VoteResult.PENDING


def test_an_empty_half_never_stands_in_the_way_6() -> None:
    nothing = dict[str, int]()
    assert UNBOUNDED == 2**64 - 1
    assert committed_index((), nothing.get) == UNBOUNDED
    assert joint_committed_index(Configuration(), nothing.get) == UNBOUNDED
    assert joint_committed_index(Configuration(frozenset({"node-1"})), {"node-1": 3}.get) == 3
    assert vote_result((), {}) is VoteResult.WON
    assert joint_vote_result(Configuration(frozenset({"node-1"})), {}) is VoteResult.PENDING


def test_a_vote_is_decided_exactly_when_no_missing_answer_can_change_it_5_2() -> None:
    for count in range(1, 7):
        voters = NAMES[:count]
        configuration = Configuration(frozenset(voters))
        for answers in product((None, False, True), repeat=count):
            votes = {voter: answer for voter, answer in zip(voters, answers, strict=True) if answer is not None}
            expected = VERDICTS[frozenset(outcomes(configuration, votes))]
            assert vote_result(voters, votes) is expected
            assert joint_vote_result(configuration, votes) is expected


VOTES = st.dictionaries(st.sampled_from(NAMES), st.booleans())


@given(voters_of(count_min=7), VOTES)
def test_a_large_vote_is_decided_exactly_when_no_missing_answer_can_change_it_5_2(
    voters: frozenset[str], votes: dict[str, bool]
) -> None:
    assert vote_result(voters, votes) is VERDICTS[frozenset(outcomes(Configuration(voters), votes))]


@given(voters_of(count_max=4), voters_of(count_max=4), VOTES)
def test_a_joint_vote_needs_both_majorities_6(
    voters: frozenset[str], outgoing: frozenset[str], votes: dict[str, bool]
) -> None:
    result = joint_vote_result(Configuration(voters, outgoing), votes)
    assert result is VERDICTS[frozenset(outcomes(Configuration(voters, outgoing), votes))]
    assert result is joint_vote_result(Configuration(outgoing, voters), votes)
