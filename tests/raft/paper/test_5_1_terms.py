"""Section 5.1, "Raft basics": roles and terms."""

from typing import Any

import pytest

from logd.raft.types import NOBODY, Entry, Message, MessageType, ProposalDropped, Role
from tests.raft.support import lead, replica, settle

M = MessageType
PLAIN: dict[str, Any] = {"pre_vote": False, "check_quorum": False}

FROM_A_LATER_TERM = [
    Message(M.APPEND, "a", "b", 9),
    Message(M.APPEND_RESPONSE, "a", "b", 9),
    Message(M.HEARTBEAT, "a", "b", 9),
    Message(M.HEARTBEAT_RESPONSE, "a", "b", 9),
    Message(M.VOTE_REQUEST, "a", "b", 9, index=9, log_term=8),
    Message(M.VOTE_RESPONSE, "a", "b", 9, reject=True),
]


@pytest.mark.parametrize("message", FROM_A_LATER_TERM, ids=lambda message: message.type.value)
def test_a_follower_that_sees_a_larger_term_takes_it(message: Message) -> None:
    """5.1: "if one server's current term is smaller than the other's, then it updates"."""
    group = replica(term=2, **PLAIN)
    group.step(message)
    assert (group.term, group.role) == (9, Role.FOLLOWER)


@pytest.mark.parametrize("message", FROM_A_LATER_TERM, ids=lambda message: message.type.value)
def test_a_candidate_that_sees_a_larger_term_follows(message: Message) -> None:
    """5.1: "if a candidate or leader discovers that its term is out of date, it immediately reverts to follower"."""
    group = replica(term=2, **PLAIN)
    group.campaign()
    assert group.role is Role.CANDIDATE
    group.step(message)
    assert (group.term, group.role) == (9, Role.FOLLOWER)


@pytest.mark.parametrize("message", FROM_A_LATER_TERM, ids=lambda message: message.type.value)
def test_a_leader_that_sees_a_larger_term_follows(message: Message) -> None:
    """5.1: "if a candidate or leader discovers that its term is out of date, it immediately reverts to follower"."""
    group = lead(replica(term=2, **PLAIN), "b")
    assert group.role is Role.LEADER
    group.step(message)
    assert (group.term, group.role) == (9, Role.FOLLOWER)


@pytest.mark.parametrize("type_", [M.APPEND, M.HEARTBEAT, M.SNAPSHOT])
def test_only_what_a_leader_alone_sends_names_the_leader_of_a_larger_term(type_: MessageType) -> None:
    """Figure 2, all servers: a larger term makes a follower; of whom, only the leader's own messages say."""
    group, other = replica(term=2, **PLAIN), replica(term=2, **PLAIN)
    group.step(Message(type_, "a", "b", 9, snapshot=group.log.snapshot))
    other.step(Message(M.VOTE_REQUEST, "a", "b", 9))
    assert (group.leader, other.leader) == ("b", NOBODY)


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE, Role.LEADER])
@pytest.mark.parametrize("type_", [M.APPEND, M.HEARTBEAT, M.SNAPSHOT, M.VOTE_REQUEST, M.VOTE_RESPONSE, M.TIMEOUT_NOW])
def test_a_request_with_a_stale_term_is_rejected(type_: MessageType, role: Role) -> None:
    """5.1: "if a server receives a request with a stale term number, it rejects the request"."""
    group = replica(term=5, **PLAIN)
    if role is Role.CANDIDATE:
        group.campaign()
    elif role is Role.LEADER:
        lead(group, "b")
    settle(group)
    before = (group.term, group.role, group.leader, group.vote, group.last)
    group.step(Message(type_, "a", "c", 4, index=9, log_term=4, entries=(Entry(1, 4),), snapshot=group.log.snapshot))
    assert (group.term, group.role, group.leader, group.vote, group.last) == before
    assert settle(group).messages == []


@pytest.mark.parametrize("options", [{"check_quorum": True}, {"pre_vote": True}])
@pytest.mark.parametrize("type_", [M.APPEND, M.HEARTBEAT])
def test_a_leader_of_the_past_is_told_the_term_where_nothing_else_would_depose_it(
    type_: MessageType, options: dict[str, bool]
) -> None:
    """Figure 2, AppendEntries RPC: the reply carries "currentTerm, for leader to update itself"."""
    group = replica(term=5, **{**PLAIN, **options})
    group.step(Message(type_, "a", "c", 4))
    (answer,) = settle(group).messages
    assert (answer.type, answer.to, answer.term, answer.index) == (M.APPEND_RESPONSE, "c", 5, 0)


def test_a_pre_candidate_of_the_past_is_told_the_term() -> None:
    """Figure 2, RequestVote RPC: the reply carries "currentTerm, for candidate to update itself" (thesis 9.6)."""
    group = replica(term=5)
    group.step(Message(M.PRE_VOTE_REQUEST, "a", "c", 4))
    (answer,) = settle(group).messages
    assert (answer.type, answer.to, answer.term, answer.reject) == (M.PRE_VOTE_RESPONSE, "c", 5, True)


def test_the_term_is_durable_before_any_answer_in_it() -> None:
    """Figure 2, state: "updated on stable storage before responding to RPCs"."""
    group = replica(term=2, **PLAIN)
    group.step(Message(M.VOTE_REQUEST, "a", "b", 3))
    ready = group.take_ready()
    assert ready.messages == ()
    assert ready.hard_state is not None
    assert ready.hard_state[:2] == (3, "b")
    assert ready.must_sync
    assert [answer.type for answer in ready.responses] == [M.VOTE_RESPONSE]


def test_terms_only_grow_within_a_replica() -> None:
    """5.1: "each server stores a current term number, which increases monotonically"."""
    group = replica(term=5, **PLAIN)
    with pytest.raises(AssertionError, match="never goes down"):
        group.become_follower(4, NOBODY)


def test_a_follower_is_passive_and_passes_nothing_on_unless_asked_to() -> None:
    """5.1: "followers are passive: they issue no requests on their own"."""
    group = replica(term=2)
    group.step(Message(M.HEARTBEAT, "a", "b", 2))
    settle(group)
    for type_ in (M.BEAT, M.CHECK_QUORUM):
        group.step(Message(type_, sender="a"))
    with pytest.raises(ProposalDropped, match="does not lead"):
        group.propose("x")
    assert not group.has_ready


def test_a_follower_can_be_asked_to_redirect_to_its_leader() -> None:
    """5.1: "if a client contacts a follower, the follower redirects it to the leader"."""
    group = replica(term=2, forwards_proposals=True)
    group.step(Message(M.HEARTBEAT, "a", "b", 2))
    settle(group)
    group.propose("x")
    (forwarded,) = settle(group).messages
    assert (forwarded.type, forwarded.to, forwarded.sender, forwarded.term) == (M.PROPOSE, "b", "a", 0)
    assert forwarded.entries[0].data == "x"
