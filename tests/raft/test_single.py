"""Claims about one group's consensus. Sections are those of the Raft paper, extended version."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logd.raft.single import EntryId, Group, HardState, NotLeading, Role

NODE = "node-1"
NEW = HardState(0, "", 0)
NO_ENTRY = EntryId(0, 0)


def group(*, last: EntryId = NO_ENTRY, hard_state: HardState = NEW) -> Group:
    return Group(NODE, frozenset({NODE}), last, hard_state)


def leader(*, last: EntryId = NO_ENTRY, hard_state: HardState = NEW) -> Group:
    """A group whose vote is durable, and whose Ready as a new leader is taken."""
    raft = group(last=last, hard_state=hard_state)
    raft.campaign()
    raft.take_ready()
    raft.on_persisted(raft.last, raft.term)
    raft.take_ready()
    return raft


def test_a_new_replica_follows_and_has_nothing_to_do() -> None:
    raft = group()
    assert raft.role is Role.FOLLOWER
    assert not raft.has_ready
    assert raft.take_ready() == (None, (), False)


def test_a_group_of_several_voters_is_refused_until_there_are_peers() -> None:
    with pytest.raises(ValueError, match="several voters"):
        Group(NODE, frozenset({NODE, "node-2"}), EntryId(0, 0), NEW)


def test_each_campaign_takes_a_term_that_was_never_used() -> None:
    raft = group(hard_state=HardState(7, "", 0))
    terms = []
    for _ in range(3):
        raft.campaign()
        terms.append(raft.take_ready().hard_state)
    assert terms == [HardState(8, NODE, 0), HardState(9, NODE, 0), HardState(10, NODE, 0)]


def test_a_campaign_may_leave_out_terms_in_which_a_vote_may_have_been_forgotten() -> None:
    raft = group(hard_state=HardState(7, "", 0))
    raft.campaign(skip_terms=1000)
    assert raft.term == 1008


def test_a_candidate_does_not_lead_before_its_vote_is_durable_5_2() -> None:
    raft = group()
    raft.campaign()
    ready = raft.take_ready()
    assert ready.hard_state == HardState(1, NODE, 0)
    assert not ready.became_leader
    assert raft.role is Role.CANDIDATE
    with pytest.raises(NotLeading):
        raft.propose()


def test_the_vote_of_an_earlier_term_does_not_elect() -> None:
    raft = group()
    raft.campaign()
    raft.campaign()
    raft.on_persisted(raft.last, 1)
    after_the_first = raft.role
    raft.on_persisted(raft.last, 2)
    assert (after_the_first, raft.role) == (Role.CANDIDATE, Role.LEADER)


def test_becoming_leader_is_told_once_and_before_any_entry() -> None:
    raft = group()
    raft.campaign()
    raft.take_ready()
    assert not raft.on_persisted(raft.last, raft.term)
    assert raft.has_ready
    assert raft.take_ready() == (None, (), True)
    assert not raft.has_ready


def test_a_proposal_to_a_follower_changes_nothing() -> None:
    raft = group(last=EntryId(3, 1), hard_state=HardState(1, NODE, 3))
    with pytest.raises(NotLeading):
        raft.propose()
    assert raft.last == EntryId(3, 1)
    assert not raft.has_ready


def test_indexes_are_dense_and_carry_the_leaders_term() -> None:
    raft = leader(last=EntryId(5, 2), hard_state=HardState(2, NODE, 5))
    assert [raft.propose(), raft.propose()] == [EntryId(6, 3), EntryId(7, 3)]
    assert raft.take_ready().append == (EntryId(6, 3), EntryId(7, 3))
    assert raft.take_ready().append == ()


def test_an_entry_commits_when_it_is_durable_and_not_before() -> None:
    raft = leader()
    first, second = raft.propose(), raft.propose()
    raft.take_ready()
    assert raft.commit_index == 0
    assert raft.on_persisted(first, raft.term)
    assert raft.commit_index == 1
    assert not raft.on_persisted(first, raft.term)
    assert raft.on_persisted(second, raft.term)
    assert raft.commit_index == 2


def test_entries_of_earlier_terms_commit_only_with_one_of_the_own_5_4_2() -> None:
    # They are durable here, but counting them alone would be figure 8's mistake.
    raft = leader(last=EntryId(9, 4), hard_state=HardState(4, NODE, 5))
    assert raft.commit_index == 5
    assert not raft.has_committed_in_term
    no_op = raft.propose()
    assert not raft.on_persisted(EntryId(9, 4), raft.term)
    assert raft.commit_index == 5
    assert raft.on_persisted(no_op, raft.term)
    assert raft.commit_index == 10
    assert raft.has_committed_in_term


def test_a_late_completion_does_not_take_durability_back() -> None:
    raft = leader()
    first, second = raft.propose(), raft.propose()
    raft.on_persisted(second, raft.term)
    assert not raft.on_persisted(first, raft.term)
    assert raft.commit_index == 2


def test_what_was_never_appended_cannot_be_durable() -> None:
    raft = leader()
    with pytest.raises(AssertionError):
        raft.on_persisted(EntryId(1, 1), raft.term)


@given(
    st.lists(st.sampled_from(["campaign", "propose", "persist", "take"]), max_size=60),
    st.integers(0, 5),
    st.integers(0, 5),
)
def test_whatever_happens_terms_votes_and_commits_only_go_up(steps: list[str], index: int, term: int) -> None:
    """Persisting is what was taken, in order, as a disk would."""
    raft = group(last=EntryId(index, term), hard_state=HardState(term, NODE if term else "", 0))
    promised = raft.hard_state
    taken = raft.last
    taken_term = 0
    for step in steps:
        before = raft.hard_state
        match step:
            case "campaign" if raft.role is Role.FOLLOWER:
                raft.campaign()
            case "propose" if raft.role is Role.LEADER:
                raft.propose()
            case "take":
                ready = raft.take_ready()
                promised = ready.hard_state or promised
                taken = ready.append[-1] if ready.append else taken
                taken_term = raft.term
            case "persist":
                raft.on_persisted(taken, taken_term)
            case _:
                continue
        assert raft.term >= before.term
        assert raft.vote == before.vote or raft.term > before.term
        assert before.commit <= raft.commit_index <= taken.index <= raft.last.index
        # Nobody leads in a term in which it is not known on the disk that it voted for itself.
        assert raft.role is not Role.LEADER or (promised.term, promised.vote) == (raft.term, NODE)
