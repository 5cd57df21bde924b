"""Claims about a group of one voter: it goes the way of every group, with nobody to wait for but its disk."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logd.raft.group import Group
from logd.raft.types import HardState, Message, MessageType, ProposalDropped, Ready, Role
from tests.raft.support import apply, lead, replica, settle


def alone(*, terms: tuple[int, ...] = (), term: int | None = None, vote: str = "", commit: int = 0) -> Group:
    return replica("a", "a", terms=terms, term=term, vote=vote, commit=commit)


def write(group: Group, ready: Ready) -> None:
    """What a Ready asked for is durable."""
    for message in ready.responses:
        group.step(message)


def vote(group: Group) -> Ready:
    """Campaign up to the Ready that asks for the vote to be made durable: the pre-vote depends on nothing."""
    group.campaign()
    ready = group.take_ready()
    assert not ready.must_sync
    write(group, ready)
    return group.take_ready()


def test_a_new_replica_follows_and_has_nothing_to_do() -> None:
    group = alone()
    assert group.role is Role.FOLLOWER
    assert not group.has_ready
    assert group.take_ready() == Ready()


def test_a_campaign_takes_the_next_term_and_its_vote_is_to_be_durable() -> None:
    group = alone(term=7)
    ready = vote(group)
    assert ready.hard_state == HardState(8, "a", 0)
    assert ready.must_sync


def test_a_sole_voter_does_not_lead_before_its_vote_is_durable_5_2() -> None:
    group = alone()
    ready = vote(group)
    role_before = group.role
    with pytest.raises(ProposalDropped):
        group.propose("x")
    write(group, ready)
    assert (role_before, group.role) == (Role.CANDIDATE, Role.LEADER)


def test_the_vote_of_an_earlier_term_does_not_elect() -> None:
    group = alone()
    first = vote(group)
    second = vote(group)
    write(group, first)
    assert group.role is Role.CANDIDATE
    write(group, second)
    assert (group.role, group.term) == (Role.LEADER, 2)


def test_a_proposal_to_a_follower_changes_nothing() -> None:
    group = alone(terms=(1, 1, 1), vote="a", commit=3)
    settle(group)
    with pytest.raises(ProposalDropped):
        group.propose("x")
    assert group.last == (3, 1)
    assert not group.has_ready


def test_indexes_are_dense_and_carry_the_leaders_term() -> None:
    group = lead(alone(terms=(1, 1, 2, 2, 2), commit=5))
    assert [group.propose("x"), group.propose("y")] == [(7, 3), (8, 3)]
    assert [entry.id for entry in group.take_ready().append] == [(7, 3), (8, 3)]
    assert group.take_ready().append == ()


def test_an_entry_commits_when_it_is_durable_and_not_before() -> None:
    group = lead(alone())
    group.propose("x")
    first = group.take_ready()
    group.propose("y")
    second = group.take_ready()
    assert group.commit_index == 1
    write(group, first)
    assert group.commit_index == 2
    write(group, first)
    assert group.commit_index == 2
    write(group, second)
    assert group.commit_index == 3


def test_a_late_completion_does_not_take_durability_back() -> None:
    group = lead(alone())
    group.propose("x")
    first = group.take_ready()
    group.propose("y")
    write(group, group.take_ready())
    write(group, first)
    assert (group.commit_index, group.log.stable) == (3, 3)


def test_what_was_never_appended_cannot_be_durable() -> None:
    group = lead(alone())
    group.step(Message(MessageType.STORAGE_APPEND_RESPONSE, "a", "a", group.term, index=2, log_term=group.term))
    assert (group.commit_index, group.log.stable) == (1, 1)


def test_entries_of_earlier_terms_commit_only_with_one_of_the_own_5_4_2() -> None:
    # They are durable here, but counting them alone would be figure 8's mistake.
    group = alone(terms=(1, 4, 4), commit=1)
    write(group, vote(group))
    assert (group.role, group.commit_index, group.has_committed_in_term) == (Role.LEADER, 1, False)
    settle(group)
    assert (group.commit_index, group.has_committed_in_term) == (4, True)


@given(
    st.lists(st.sampled_from(["campaign", "propose", "write", "take"]), max_size=60),
    st.lists(st.integers(1, 5), max_size=4).map(sorted),
)
def test_whatever_happens_terms_votes_and_commits_only_go_up(steps: list[str], terms: list[int]) -> None:
    """Each Ready is taken once and written in order, as a disk would."""
    group = alone(terms=tuple(terms))
    waiting: list[Ready] = []
    durable_vote, durable_index = (group.term, ""), len(terms)
    for step in steps:
        before = group.hard_state
        match step:
            case "campaign" if group.role is not Role.LEADER:
                group.campaign()
            case "propose" if group.role is Role.LEADER:
                group.propose("x")
            case "take":
                waiting.append(group.take_ready())
                apply(group, waiting[-1].committed)
            case "write" if waiting:
                ready = waiting.pop(0)
                if ready.hard_state is not None:
                    durable_vote = ready.hard_state[:2]
                if ready.append:
                    durable_index = ready.append[-1].index
                write(group, ready)
        assert group.term >= before.term
        assert group.vote == before.vote or group.term > before.term
        assert before.commit <= group.commit_index <= durable_index <= group.last.index
        # Nobody leads in a term in which it is not known on the disk that it voted for itself.
        assert group.role is not Role.LEADER or durable_vote == (group.term, "a")
