"""The thesis: pre-vote (9.6), check-quorum (6.2), leadership transfer (3.10)."""

from dataclasses import replace
from typing import Any

import pytest

from logd.raft.group import Group
from logd.raft.types import (
    CAMPAIGN_TRANSFER,
    NOBODY,
    ChangeKind,
    ChangeStep,
    ConfigurationChange,
    Message,
    MessageType,
    ProposalDropped,
    ReadMode,
    Role,
)
from tests.raft.network import Network
from tests.raft.support import Fixed, acknowledge, lead, replica, settle

M = MessageType
PRE: dict[str, Any] = {"pre_vote": True, "check_quorum": False}
PLAIN: dict[str, Any] = {"pre_vote": False, "check_quorum": False}


def tick(group: Group, times: int) -> None:
    for _ in range(times):
        group.tick()


# --- Pre-vote (9.6) ---------------------------------------------------------------------------------------------------


def test_a_pre_candidate_changes_neither_its_term_nor_its_vote() -> None:
    """9.6: "a candidate only increments its term if it first learns from a majority … that they would be willing"."""
    group = replica(terms=(1, 2), vote="c", **PRE)
    tick(group, 10)
    ready = group.take_ready()
    assert (group.role, group.term, group.vote, group.leader) == (Role.PRE_CANDIDATE, 2, "c", NOBODY)
    assert ready.hard_state is None
    assert [
        (message.type, message.to, message.term, message.index, message.log_term) for message in ready.messages
    ] == [
        (M.PRE_VOTE_REQUEST, "b", 3, 2, 2),
        (M.PRE_VOTE_REQUEST, "c", 3, 2, 2),
    ]


@pytest.mark.parametrize(
    ("granted", "refused", "role", "term"),
    [
        ("b", "", Role.CANDIDATE, 2),
        ("", "b", Role.PRE_CANDIDATE, 1),
        ("", "bc", Role.FOLLOWER, 1),
        ("", "", Role.PRE_CANDIDATE, 1),
    ],
)
def test_a_pre_candidate_campaigns_when_a_majority_would_vote_for_it(
    granted: str, refused: str, role: Role, term: int
) -> None:
    """9.6: the election begins only with a majority that "would be willing to grant … their votes"."""
    group = replica(term=1, **PRE)
    group.campaign()
    settle(group)
    for sender in granted:
        group.step(Message(M.PRE_VOTE_RESPONSE, "a", sender, 2))
    for sender in refused:
        group.step(Message(M.PRE_VOTE_RESPONSE, "a", sender, 1, reject=True))
    assert (group.role, group.term) == (role, term)


def test_a_pre_vote_binds_nobody() -> None:
    """9.6: "would be willing" promises nothing: neither term nor vote nor timeout change."""
    group = replica(term=1, **PRE)
    tick(group, 5)
    for sender in "bc":
        group.step(Message(M.PRE_VOTE_REQUEST, "a", sender, 4))
    answers = settle(group).messages
    assert [(answer.to, answer.term, answer.reject) for answer in answers] == [("b", 4, False), ("c", 4, False)]
    assert (group.term, group.vote, group.election_elapsed_ticks) == (1, NOBODY, 5)


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE, Role.LEADER])
@pytest.mark.parametrize("type_", [M.VOTE_REQUEST, M.PRE_VOTE_REQUEST])
def test_votes_of_a_later_term_are_given_in_every_role(type_: MessageType, role: Role) -> None:
    """5.1 and 9.6: whatever this replica is in an earlier term; only a vote makes it follow."""
    group = replica(term=1, **PLAIN)
    if role is Role.LEADER:
        lead(group, "b")
    elif role is Role.PRE_CANDIDATE:
        group.become_pre_candidate()
    elif role is Role.CANDIDATE:
        group.become_candidate()
    settle(group)
    term = group.term
    group.step(Message(type_, "a", "c", 9, index=9, log_term=8))
    (answer,) = settle(group).messages
    assert (answer.to, answer.term, answer.reject) == ("c", 9, False)
    expected = (Role.FOLLOWER, 9, "c") if type_ is M.VOTE_REQUEST else (role, term, group.vote)
    assert (group.role, group.term, group.vote) == expected


def test_a_server_that_was_away_disturbs_nobody_when_it_comes_back() -> None:
    """9.6: "a server that rejoins … will not be able to disrupt the cluster": its term did not grow."""
    network = Network(**PRE)
    network.elect("a")
    network.isolate("c")
    network.propose("a")
    network.tick("c", times=60)
    network.heal()
    network.tick("c", times=20)
    network.tick("a", times=2)
    assert (network["a"].role, {group.term for group in network}) == (Role.LEADER, {1})
    assert network["c"].leader == "a"


def test_a_refusal_of_a_later_term_tells_the_pre_candidate_that_term() -> None:
    """9.6 with 5.1: it was away, and learns what it missed."""
    group = replica(term=1, **PRE)
    group.campaign()
    settle(group)
    group.step(Message(M.PRE_VOTE_RESPONSE, "a", "b", 7, reject=True))
    assert (group.role, group.term) == (Role.FOLLOWER, 7)


def test_a_replica_of_a_smaller_term_can_still_win() -> None:
    """9.6: it asks for a term that is new to itself, and hears of the others' in the answers."""
    network = Network(logs={"a": (1,), "b": (1,), "c": (1,)}, **PRE)
    for name in "bc":
        network[name].become_follower(3, NOBODY)
    network.elect("a")
    first = (network["a"].role, network["a"].term)
    network.elect("a")
    assert (first, network["a"].role, network["a"].term) == ((Role.FOLLOWER, 3), Role.LEADER, 4)


def test_two_pre_candidates_do_not_raise_the_term_beyond_one() -> None:
    """9.6 with 5.2: both are told that they would win; one vote a term decides."""
    network = Network(**PRE)
    network["a"].campaign()
    network["b"].campaign()
    network.settle()
    assert sorted(group.role.value for group in network) == ["follower", "follower", "leader"]
    assert {group.term for group in network} == {1}


def test_a_candidate_does_not_count_its_own_late_pre_vote() -> None:
    """9.6: the two ballots are separate, also where the disk is slow."""
    group = replica(**PRE)
    group.campaign()
    (own,) = group.take_ready().responses
    for sender in "bc":
        group.step(Message(M.PRE_VOTE_RESPONSE, "a", sender, 1))
    assert (group.role, group.term) == (Role.CANDIDATE, 1)
    group.step(own)
    assert group.votes == {}


def test_an_own_vote_that_is_durable_too_late_elects_nobody() -> None:
    """5.2: the election that it was given in is over."""
    for options in (PLAIN, PRE):
        group = replica(voters="a", **options)
        group.campaign()
        responses = group.take_ready().responses
        group.step(Message(M.HEARTBEAT, "a", "b", 1))
        for message in responses:
            group.step(message)
        assert (group.role, group.leader) == (Role.FOLLOWER, "b")


def test_a_stuck_candidate_of_a_later_term_is_freed() -> None:
    """9.6: with pre-vote nothing else would bring the leader up to its term (etcd's deviation, and ours)."""
    network = Network(pre_vote=False, check_quorum=True)
    network.elect("a")
    network.isolate("c")
    network.tick("c", times=25)
    assert network["c"].term > network["a"].term
    network.heal()
    network.tick("a", times=2)
    assert (network["a"].role, network["a"].term) == (Role.FOLLOWER, network["c"].term)


def mixed(*with_pre_vote: str) -> Network:
    """A cluster in which only these were restarted with the option."""
    network = Network(**PLAIN)
    for name in with_pre_vote:
        network[name].options = replace(network[name].options, pre_vote=True)
    return network


def test_a_cluster_in_which_not_all_ask_for_pre_votes_can_elect() -> None:
    """9.6 is switched on node by node: one of a later term must not stand in the way for ever."""
    network = mixed("a", "b")
    network.elect("a")
    network.isolate("c")
    network.propose("a")
    network["c"].campaign()
    network["c"].campaign()
    network.settle()
    network.heal()
    network.isolate("a")
    for _ in range(3):
        network.elect("c")
        network.elect("b")
    assert (network["b"].role, network["c"].role) == (Role.LEADER, Role.FOLLOWER)


def test_a_pre_candidate_of_a_later_term_is_freed_where_others_know_no_pre_vote() -> None:
    """9.6: the leader of the past hears of the later term from it."""
    network = mixed("a", "b")
    network.elect("a")
    network.isolate("c")
    network.propose("a")
    network["c"].campaign()
    network["c"].campaign()
    network.settle()
    network["c"].options = replace(network["c"].options, pre_vote=True)
    network.heal()
    network.elect("c")
    network.tick("a", times=2)
    freed = (network["a"].role, network["a"].term)
    network.elect("a")
    assert (freed, network["a"].role) == ((Role.FOLLOWER, 3), Role.LEADER)


# --- Check-quorum (6.2) -----------------------------------------------------------------------------------------------


def test_a_leader_that_hears_no_majority_steps_down() -> None:
    """6.2: "a leader steps down if an election timeout elapses without a successful round of heartbeats"."""
    group = lead(replica(voters="abcde"), "b", "c")
    for _ in range(3):
        for sender in "bc":
            group.step(Message(M.HEARTBEAT_RESPONSE, "a", sender, 1))
        tick(group, group.options.election_ticks)
    while_heard = group.role
    group.step(Message(M.HEARTBEAT_RESPONSE, "a", "b", 1))
    tick(group, group.options.election_ticks)
    settle(group)
    assert (while_heard, group.role, group.term, group.leader) == (Role.LEADER, Role.FOLLOWER, 1, NOBODY)


def test_the_time_that_a_candidate_waited_is_not_held_against_the_leader_that_it_became() -> None:
    """6.2: the election timeout is one of its leadership."""
    group = replica(pre_vote=False, chance=Fixed(5))
    group.campaign()
    settle(group)
    tick(group, group.options.election_ticks - 1)
    group.step(Message(M.VOTE_RESPONSE, "a", "b", 1))
    tick(group, group.options.election_ticks - 1)
    before = group.role
    tick(group, 1)
    assert (before, group.role) == (Role.LEADER, Role.FOLLOWER)


def test_without_check_quorum_a_leader_stays() -> None:
    """6.2 is an option of the paper's algorithm."""
    group = lead(replica(**PLAIN), "b")
    tick(group, 5 * group.options.election_ticks)
    assert group.role is Role.LEADER


def test_learners_do_not_keep_a_leader_in_office() -> None:
    """6.2: a majority is one of voters."""
    group = lead(replica(voters="abc", learners="de"), "b")
    for sender in "de":
        group.step(Message(M.HEARTBEAT_RESPONSE, "a", sender, 1))
    tick(group, group.options.election_ticks)
    assert group.role is Role.FOLLOWER


@pytest.mark.parametrize("pre_vote", [False, True])
def test_a_leader_is_superseded_once_it_is_not_heard(pre_vote: bool) -> None:
    """6.2 and 4.2.3: the refusal to vote lasts for an election timeout, not for ever."""
    network = Network(pre_vote=pre_vote)
    network.elect("a")
    network.elect("c")
    refused = network["c"].role
    network.isolate("a")
    network.chance["b"] = Fixed(9)
    network["b"].randomized_election_ticks = 19
    network.tick("b", times=10)
    network.elect("c")
    campaigning = Role.PRE_CANDIDATE if pre_vote else Role.CANDIDATE
    assert (refused, network["c"].role, network["a"].role) == (campaigning, Role.LEADER, Role.LEADER)


def test_a_leader_believes_in_itself() -> None:
    """4.2.3: it hears its leader, for it is the leader."""
    group = lead(replica(), "b")
    group.step(Message(M.VOTE_REQUEST, "a", "c", 9, index=9, log_term=8))
    assert (group.role, group.term, settle(group).messages) == (Role.LEADER, 1, [])


# --- Forgetting a leader ----------------------------------------------------------------------------------------------


def test_a_follower_told_that_its_leader_is_dead_votes_at_once() -> None:
    """4.2.3: the refusal to vote protects a leader that is alive; the shell may know better (etcd's forget-leader)."""
    group = replica(term=1)
    group.step(Message(M.HEARTBEAT, "a", "b", 1))
    group.forget_leader()
    group.step(Message(M.PRE_VOTE_REQUEST, "a", "c", 2))
    group.step(Message(M.VOTE_REQUEST, "a", "c", 2))
    answers = [message for message in settle(group).messages if message.to == "c"]
    assert [(answer.type, answer.reject) for answer in answers] == [
        (M.PRE_VOTE_RESPONSE, False),
        (M.VOTE_RESPONSE, False),
    ]


def test_a_forgotten_leader_that_is_heard_again_is_the_leader_again() -> None:
    """5.2: whoever sends what only a leader sends, in this term, leads it."""
    group = replica(term=1)
    group.step(Message(M.HEARTBEAT, "a", "b", 1))
    group.forget_leader()
    forgotten = group.leader
    group.step(Message(M.HEARTBEAT, "a", "b", 1))
    assert (forgotten, group.leader) == (NOBODY, "b")


def test_under_leases_no_leader_is_forgotten() -> None:
    """6.4.1: the old leader may still answer reads on the strength of this replica's belief in it."""
    group = replica(term=1, read_mode=ReadMode.LEASE)
    group.step(Message(M.HEARTBEAT, "a", "b", 1))
    group.forget_leader()
    assert group.leader == "b"


@pytest.mark.parametrize("role", [Role.PRE_CANDIDATE, Role.CANDIDATE, Role.LEADER])
def test_only_followers_forget(role: Role) -> None:
    """Nobody else has a leader to forget, and a leader does not forget itself."""
    group = replica(**PLAIN)
    if role is Role.LEADER:
        lead(group, "b")
    elif role is Role.PRE_CANDIDATE:
        group.become_pre_candidate()
    else:
        group.become_candidate()
    before = (group.role, group.leader)
    group.forget_leader()
    assert (group.role, group.leader) == before


# --- Leadership transfer (3.10) ---------------------------------------------------------------------------------------


def test_a_target_that_holds_the_whole_log_is_told_to_campaign_at_once() -> None:
    """3.10, step 3: "sends a TimeoutNow request to the target server"."""
    group = lead(replica(), "b")
    acknowledge(group, "b", 1)
    group.transfer_leader("b")
    assert [(message.type, message.to, message.term) for message in settle(group).messages] == [(M.TIMEOUT_NOW, "b", 1)]


def test_a_target_that_lacks_entries_gets_them_first() -> None:
    """3.10, step 2: the leader "fully updates the target server's log to match its own"."""
    group = lead(replica(), "b")
    acknowledge(group, "b", 1)
    group.propose("x")
    settle(group)
    group.transfer_leader("b")
    before = settle(group).of(M.TIMEOUT_NOW)
    after = acknowledge(group, "b", 2).of(M.TIMEOUT_NOW)
    assert (before, [message.to for message in after]) == ([], ["b"])


def test_the_target_campaigns_without_a_pre_vote_and_past_what_protects_the_leader() -> None:
    """3.10, step 3: "as if its election timer had elapsed"; 4.2.3: such a request may "disrupt" the leader."""
    group, voter = replica("b", term=1), replica("c", term=1)
    for each in (group, voter):
        each.step(Message(M.HEARTBEAT, each.node, "a", 1))
        settle(each)
    group.step(Message(M.TIMEOUT_NOW, "b", "a", 1))
    requests = settle(group).of(M.VOTE_REQUEST)
    voter.step(requests[1])
    (answer,) = settle(voter).messages
    assert [(request.to, request.context) for request in requests] == [
        ("a", CAMPAIGN_TRANSFER),
        ("c", CAMPAIGN_TRANSFER),
    ]
    assert (group.role, answer.to, answer.reject) == (Role.CANDIDATE, "b", False)


@pytest.mark.parametrize("asked", ["a", "b", "c"])
def test_leadership_is_transferred_whoever_is_asked(asked: str) -> None:
    """3.10 as a whole; a follower passes the wish on."""
    network = Network()
    network.elect("a")
    network.propose("a")
    network[asked].transfer_leader("b")
    network.settle()
    network.propose("b")
    assert [group.role for group in network] == [Role.FOLLOWER, Role.LEADER, Role.FOLLOWER]
    assert {(group.term, group.commit_index) for group in network} == {(2, 4)}


def test_no_proposal_is_taken_during_a_transfer() -> None:
    """3.10, step 1: "the prior leader stops accepting new client requests"."""
    group = lead(replica(), "b")
    acknowledge(group, "b", 1)
    group.transfer_leader("b")
    with pytest.raises(ProposalDropped, match="on its way to b"):
        group.propose("x")
    assert (group.last.index, group.status().transfer_to) == (1, "b")


def test_a_transfer_is_given_up_after_an_election_timeout() -> None:
    """3.10: "if leadership transfer does not complete after about an election timeout, the prior leader aborts"."""
    group = lead(replica(check_quorum=False), "b")
    acknowledge(group, "b", 1)
    tick(group, 5)
    group.transfer_leader("b")
    tick(group, group.options.election_ticks - 1)
    before = group.transfer_to
    tick(group, 1)
    assert (before, group.transfer_to, group.propose("x").index) == ("b", NOBODY, 2)


@pytest.mark.parametrize("to", ["a", "d", "z"])
def test_leadership_goes_to_no_learner_no_stranger_and_not_to_oneself(to: str) -> None:
    """3.10: the target is another voter."""
    group = lead(replica(learners="d"), "b")
    for name in "bcd":
        acknowledge(group, name, 1)
    group.transfer_leader(to)
    assert (group.role, group.transfer_to, settle(group).messages) == (Role.LEADER, NOBODY, [])


def test_asking_for_the_same_transfer_again_changes_nothing() -> None:
    """3.10: its time began with the first request."""
    group = lead(replica(check_quorum=False), "b")
    acknowledge(group, "b", 1)
    group.transfer_leader("b")
    settle(group)
    tick(group, 6)
    group.transfer_leader("b")
    again = settle(group).of(M.TIMEOUT_NOW)
    tick(group, 4)
    assert (again, group.transfer_to) == ([], NOBODY)


def test_a_transfer_to_another_replaces_the_first() -> None:
    """3.10: the last wish counts."""
    group = lead(replica(), "b")
    acknowledge(group, "c", 1)
    group.transfer_leader("b")
    settle(group)
    group.transfer_leader("c")
    assert (group.transfer_to, [message.to for message in settle(group).of(M.TIMEOUT_NOW)]) == ("c", ["c"])


def test_a_transfer_to_the_leader_itself_gives_up_the_first() -> None:
    """3.10: leadership is asked to stay."""
    group = lead(replica(), "c")
    acknowledge(group, "c", 1)
    group.transfer_leader("b")
    group.transfer_leader("a")
    assert (group.role, group.transfer_to, group.propose("x").index) == (Role.LEADER, NOBODY, 2)


def test_a_transfer_ends_with_the_term() -> None:
    """3.10: whoever leads next has its own."""
    group = lead(replica(**PLAIN), "b")
    group.transfer_leader("b")
    group.step(Message(M.VOTE_REQUEST, "a", "c", 9, index=9, log_term=8))
    assert (group.role, group.transfer_to) == (Role.FOLLOWER, NOBODY)


@pytest.mark.parametrize("kind", [ChangeKind.REMOVE, ChangeKind.ADD_LEARNER])
def test_a_transfer_ends_when_its_target_is_no_voter_any_more(kind: ChangeKind) -> None:
    """3.10 with 4.1: it could not lead."""
    group = lead(replica(**PLAIN), "b")
    acknowledge(group, "b", 1)
    group.propose_change(ConfigurationChange((ChangeStep(kind, "c"),)))
    settle(group)
    group.transfer_leader("c")
    during = group.transfer_to
    acknowledge(group, "b", 2)
    assert (during, group.transfer_to) == ("c", NOBODY)


def test_a_transfer_waits_for_a_snapshot() -> None:
    """3.10, step 2, with section 7: the target may need what the log does not retain."""
    network = Network()
    network.elect("a")
    network.isolate("c")
    for _ in range(4):
        network.propose("a")
    network.compact("a", 4)
    network.heal()
    network["a"].transfer_leader("c")
    network.settle()
    network.tick("a", times=2)
    assert network["c"].role is Role.LEADER


def test_whoever_was_told_to_campaign_and_is_not_a_voter_does_not() -> None:
    """3.10: the message may come when it was removed already."""
    group = replica("d", "abc", term=1)
    group.step(Message(M.TIMEOUT_NOW, "d", "a", 1))
    assert (group.role, group.term) == (Role.FOLLOWER, 1)


def test_without_a_leader_nobody_can_be_asked_to_transfer() -> None:
    """3.10 begins with a leader."""
    group = replica(term=1)
    group.transfer_leader("b")
    assert settle(group).messages == []
