"""Section 5.2, "Leader election", and figure 2, "rules for servers"."""

import random
from typing import Any

import pytest

from logd.raft.group import Group
from logd.raft.types import NOBODY, EntryKind, HardState, Message, MessageType, Role
from tests.raft.network import Network
from tests.raft.support import Fixed, entries, lead, replica, settle

M = MessageType
PLAIN: dict[str, Any] = {"pre_vote": False, "check_quorum": False}


def tick(group: Group, times: int) -> None:
    for _ in range(times):
        group.tick()


def test_servers_begin_as_followers() -> None:
    """5.2: "when servers start up, they begin as followers"."""
    group = replica(terms=(1, 2), vote="b")
    assert (group.role, group.leader, group.term, group.vote) == (Role.FOLLOWER, NOBODY, 2, "b")


@pytest.mark.parametrize("type_", [M.APPEND, M.HEARTBEAT])
def test_a_server_remains_a_follower_while_it_hears_its_leader(type_: MessageType) -> None:
    """5.2: "remains in follower state as long as it receives valid RPCs from a leader or candidate"."""
    group = replica(term=1, **PLAIN)
    for _ in range(5):
        tick(group, group.options.election_ticks - 1)
        group.step(Message(type_, "a", "b", 1))
    assert (group.role, group.leader) == (Role.FOLLOWER, "b")


def test_a_granted_vote_puts_off_the_own_campaign_and_a_refused_one_does_not() -> None:
    """Figure 2, followers: "without … granting vote to candidate: convert to candidate"."""
    granted, refused = replica(term=1, **PLAIN), replica(terms=(1, 1), **PLAIN)
    for group in (granted, refused):
        tick(group, 9)
        group.step(Message(M.VOTE_REQUEST, "a", "b", 1, index=0, log_term=0))
        group.tick()
    assert (granted.vote, granted.role) == ("b", Role.FOLLOWER)
    assert (refused.vote, refused.role) == ("a", Role.CANDIDATE)


def test_a_leader_sends_heartbeats_to_all_followers() -> None:
    """5.2: "leaders send periodic heartbeats (AppendEntries RPCs that carry no log entries) to all followers"."""
    group = lead(replica(heartbeat_ticks=3, **PLAIN), "b")
    tick(group, 2)
    assert settle(group).messages == []
    group.tick()
    beats = settle(group).of(M.HEARTBEAT)
    assert [(beat.to, beat.term, beat.index, beat.log_term, beat.entries) for beat in beats] == [
        ("b", 1, 0, 0, ()),
        ("c", 1, 0, 0, ()),
    ]


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE])
def test_without_a_leader_a_server_begins_an_election(role: Role) -> None:
    """5.2: "increments its current term and … votes for itself and issues RequestVote RPCs"."""
    group = replica(term=1, **PLAIN)
    if role is Role.CANDIDATE:
        group.campaign()
        settle(group)
    term = group.term
    tick(group, group.randomized_election_ticks)
    ready = group.take_ready()
    assert (group.role, group.term, group.vote) == (Role.CANDIDATE, term + 1, "a")
    assert ready.hard_state == HardState(term + 1, "a", 0)
    assert [(message.type, message.to, message.term) for message in ready.messages] == [
        (M.VOTE_REQUEST, "b", term + 1),
        (M.VOTE_REQUEST, "c", term + 1),
    ]


def test_votes_are_asked_for_with_what_is_durable_and_with_nothing_else() -> None:
    """5.4.1: the claim decides who wins, so it must outlive a crash."""
    group = replica(terms=(1,), **PLAIN)
    group.step(Message(M.APPEND, "a", "b", 1, index=1, log_term=1, entries=entries(1, first_index=2)))
    group.campaign()
    requests = [
        (message.to, message.index) for message in group.take_ready().messages if message.type is M.VOTE_REQUEST
    ]
    assert (requests, group.last.index) == ([("b", 1), ("c", 1)], 2)


@pytest.mark.parametrize(
    ("size", "granted", "refused", "role"),
    [
        # It wins.
        (1, "", "", Role.LEADER),
        (3, "b", "", Role.LEADER),
        (3, "bc", "", Role.LEADER),
        (5, "bc", "", Role.LEADER),
        (5, "bcd", "e", Role.LEADER),
        (5, "bc", "de", Role.LEADER),
        # Another may have won: it follows when a majority refused.
        (3, "", "bc", Role.FOLLOWER),
        (5, "", "bcde", Role.FOLLOWER),
        (5, "b", "cde", Role.FOLLOWER),
        # Nobody has won yet.
        (3, "", "", Role.CANDIDATE),
        (5, "", "bc", Role.CANDIDATE),
        (5, "b", "", Role.CANDIDATE),
        (5, "", "", Role.CANDIDATE),
    ],
)
def test_a_candidate_wins_with_votes_from_a_majority_of_the_full_cluster(
    size: int, granted: str, refused: str, role: Role
) -> None:
    """5.2: "wins an election if it receives votes from a majority of the servers in the full cluster"."""
    group = replica(voters="abcde"[:size], **PLAIN)
    group.campaign()
    settle(group)
    for sender in granted:
        group.step(Message(M.VOTE_RESPONSE, "a", sender, 1))
    for sender in refused:
        group.step(Message(M.VOTE_RESPONSE, "a", sender, 1, reject=True))
    assert (group.role, group.term) == (role, 1)


def test_the_own_vote_counts_only_once_it_is_durable() -> None:
    """Figure 2, candidates: "vote for self"; and "votedFor" is persistent state."""
    group = replica(voters="a", **PLAIN)
    group.campaign()
    (vote,) = group.take_ready().responses
    before = group.role
    group.step(vote)
    assert (before, group.role) == (Role.CANDIDATE, Role.LEADER)


def test_a_majority_of_others_elects_nobody_whose_own_vote_is_not_durable() -> None:
    """Figure 2, persistent state: else a crash would let the same replica lead the same term twice, with two logs."""
    group = replica(**PLAIN)
    group.campaign()
    ready = group.take_ready()
    for sender in "bc":
        group.step(Message(M.VOTE_RESPONSE, "a", sender, 1))
    before = group.role
    for message in ready.responses:
        group.step(message)
    assert (before, group.role) == (Role.CANDIDATE, Role.LEADER)


@pytest.mark.parametrize(
    ("vote", "sender", "is_rejected"),
    [("", "b", False), ("", "c", False), ("b", "b", False), ("b", "c", True), ("c", "b", True)],
)
def test_each_server_votes_for_at_most_one_candidate_in_a_term(vote: str, sender: str, is_rejected: bool) -> None:
    """5.2: "will vote for at most one candidate in a given term, on a first-come-first-served basis"."""
    group = replica(term=1, vote=vote, **PLAIN)
    group.step(Message(M.VOTE_REQUEST, "a", sender, 1))
    (answer,) = settle(group).messages
    assert (answer.type, answer.to, answer.term, answer.reject) == (M.VOTE_RESPONSE, sender, 1, is_rejected)


def test_the_vote_of_one_term_does_not_bind_the_next() -> None:
    """5.2: one vote "in a given term"; figure 2: votedFor is of the "current term"."""
    group = replica(term=1, vote="b", **PLAIN)
    group.step(Message(M.VOTE_REQUEST, "a", "c", 2))
    (answer,) = settle(group).messages
    assert (group.vote, answer.reject) == ("c", False)


def test_a_vote_outlives_a_crash() -> None:
    """Figure 2, persistent state: "candidateId that received vote in current term"."""
    network = Network(**PLAIN)
    network["c"].step(Message(M.VOTE_REQUEST, "c", "a", 1))
    network.take("c")
    network.write("c")
    network.crash("c")
    network.recover("c")
    network["c"].step(Message(M.VOTE_REQUEST, "c", "b", 1))
    (answer,) = settle(network["c"]).messages
    assert (network["c"].vote, answer.reject) == ("a", True)


def test_an_answer_that_is_repeated_counts_once_and_a_voter_does_not_change_its_mind() -> None:
    """5.2: the majority is one of servers, not of answers."""
    group = replica(voters="abcde", **PLAIN)
    group.campaign()
    settle(group)
    for _ in range(3):
        group.step(Message(M.VOTE_RESPONSE, "a", "b", 1))
    assert group.role is Role.CANDIDATE
    group.step(Message(M.VOTE_RESPONSE, "a", "c", 1, reject=True))
    group.step(Message(M.VOTE_RESPONSE, "a", "c", 1))
    assert group.role is Role.CANDIDATE


@pytest.mark.parametrize("voter", ["c", "z"])
def test_the_vote_of_an_earlier_term_or_of_a_stranger_does_not_elect(voter: str) -> None:
    """5.2: votes "for the same term", of the cluster's servers."""
    group = replica(voters="abc", **PLAIN)
    group.campaign()
    settle(group)
    group.campaign()
    settle(group)
    group.step(Message(M.VOTE_RESPONSE, "a", voter, 1 if voter == "c" else 2))
    assert (group.role, group.term) == (Role.CANDIDATE, 2)


def test_a_new_leader_tells_everybody_at_once() -> None:
    """5.2: "it then sends heartbeat messages to all of the other servers to establish its authority"."""
    group = replica(**PLAIN)
    group.campaign()
    settle(group)
    group.step(Message(M.VOTE_RESPONSE, "a", "b", 1))
    appends = settle(group).of(M.APPEND)
    assert [(message.to, message.term) for message in appends] == [("b", 1), ("c", 1)]
    assert [entry.kind for entry in appends[0].entries] == [EntryKind.NO_OP]


@pytest.mark.parametrize("term", [1, 2])
@pytest.mark.parametrize("type_", [M.APPEND, M.HEARTBEAT])
def test_a_candidate_recognizes_a_leader_of_its_term_or_a_later_one(type_: MessageType, term: int) -> None:
    """5.2: "at least as large as the candidate's current term": it "returns to follower state"."""
    group = replica(**PLAIN)
    group.campaign()
    settle(group)
    group.step(Message(type_, "a", "b", term))
    assert (group.role, group.term, group.leader) == (Role.FOLLOWER, term, "b")


@pytest.mark.parametrize("type_", [M.APPEND, M.HEARTBEAT])
def test_a_candidate_rejects_a_leader_of_an_earlier_term_and_continues(type_: MessageType) -> None:
    """5.2: "if the term in the RPC is smaller … the candidate rejects the RPC and continues in candidate state"."""
    group = replica(term=1, **PLAIN)
    group.campaign()
    settle(group)
    group.step(Message(type_, "a", "b", 1))
    assert (group.role, group.term) == (Role.CANDIDATE, 2)


def test_a_split_vote_is_followed_by_another_election() -> None:
    """5.2: "each candidate will time out and start a new election by incrementing its term"."""
    network = Network("abcd", **PLAIN)
    network["a"].campaign()
    network["b"].campaign()
    network.cut = {("a", "d"), ("b", "c")}
    network.settle()
    assert [group.role for group in network][:2] == [Role.CANDIDATE, Role.CANDIDATE]
    network.heal()
    network.elect("a")
    assert (network["a"].role, network["a"].term) == (Role.LEADER, 2)


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE])
def test_election_timeouts_are_drawn_from_a_fixed_interval(role: Role) -> None:
    """5.2: "election timeouts are chosen randomly from a fixed interval (e.g., 150-300ms)"."""
    group = replica(chance=random.Random(1), **PLAIN)
    seen = set()
    for _ in range(300):
        if role is Role.CANDIDATE:
            group.become_candidate()
        else:
            group.become_follower(group.term + 1, "b")
        waited = 0
        while group.election_elapsed_ticks or not waited:
            group.tick()
            waited += 1
        seen.add(waited)
    assert seen == set(range(10, 20))


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE])
def test_in_most_cases_only_a_single_server_times_out(role: Role) -> None:
    """5.2: "this spreads out the servers so that in most cases only a single server will time out"."""
    chance = random.Random(7)
    groups = [replica(node, "abcde", chance=chance, **PLAIN) for node in "abcde"]
    conflicts = 0
    for _ in range(400):
        for group in groups:
            if role is Role.CANDIDATE:
                group.become_candidate()
            else:
                group.become_follower(group.term + 1, NOBODY)
        timeouts = sorted(group.randomized_election_ticks for group in groups)
        conflicts += timeouts[0] == timeouts[1]
    assert conflicts / 400 < 0.5


def test_each_candidate_restarts_its_timeout_when_an_election_begins() -> None:
    """5.2: "each candidate restarts its randomized election timeout at the start of an election"."""
    chance = Fixed(3)
    group = replica(chance=chance, **PLAIN)
    assert group.randomized_election_ticks == 13
    chance.number = 7
    tick(group, 13)
    assert (group.role, group.election_elapsed_ticks, group.randomized_election_ticks) == (Role.CANDIDATE, 0, 17)


@pytest.mark.parametrize("pre_vote", [False, True])
def test_every_server_can_lead_in_turn(pre_vote: bool) -> None:
    """5.2: whoever campaigns with a log like the others' wins, and the others follow it."""
    network = Network(check_quorum=False, pre_vote=pre_vote)
    for term, name in enumerate("abcabc", start=1):
        network.elect(name)
        assert {(group.leader, group.term) for group in network} == {(name, term)}


def test_an_election_needs_a_majority_that_can_talk() -> None:
    """5.2: the majority rule "ensures that at most one candidate can win the election for a particular term"."""
    network = Network("abcde", **PLAIN)
    network.cut = {(one, other) for one in "ab" for other in "cde"} | {(one, other) for one in "cde" for other in "ab"}
    network.elect("a")
    network.elect("c")
    assert [network[name].role for name in "ac"] == [Role.CANDIDATE, Role.LEADER]


def test_a_candidate_that_forgot_its_campaign_in_a_crash_wins_only_by_what_it_still_holds() -> None:
    """5.4.3: whoever wins holds what its voters held; so what it claims must outlive a crash."""
    network = Network(logs={"a": (1, 1), "b": (1, 1), "c": (1,)}, **PLAIN)
    network.isolate("a")
    network["c"].step(Message(M.APPEND, "c", "a", 1, index=1, log_term=1, entries=entries(1, first_index=2)))
    network["c"].campaign()
    network.take("c")  # c asks for votes; neither its term nor its second entry is durable
    (request,) = network.pool
    network["b"].step(request)
    network.take("b")
    network.write("b")
    network.crash("c")
    network.recover("c")
    network["c"].campaign()
    network.settle()  # and now b's answer to the first campaign arrives, in the term of the second
    assert (network["c"].term, network["c"].last.index) == (2, 1)
    assert network["c"].role is not Role.LEADER


def test_a_replica_that_led_does_not_lead_the_same_term_again_after_a_crash() -> None:
    """Figure 3, election safety: "at most one leader", and one is of one log, too."""
    network = Network(**PLAIN)
    network.elect("a")
    network["a"].propose("lost")
    network.take("a")
    network.pool.clear()
    network.crash("a")
    network.recover("a")
    network.elect("a")
    assert (network["a"].role, network["a"].term) == (Role.LEADER, 2)
