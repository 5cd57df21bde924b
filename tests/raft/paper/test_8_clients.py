"""Section 8, "Client interaction": the no-op, and linearizable reads (thesis 6.4)."""

from typing import Any

import pytest

from logd.raft.group import Group
from logd.raft.types import (
    ChangeKind,
    ChangeStep,
    ConfigurationChange,
    EntryKind,
    Message,
    MessageType,
    ProposalDropped,
    ReadMode,
    ReadState,
    Role,
)
from tests.raft.network import Network
from tests.raft.support import Done, acknowledge, lead, replica, settle

M = MessageType
PLAIN: dict[str, Any] = {"pre_vote": False, "check_quorum": False}


def leader(voters: str = "abc", **options: Any) -> Group:
    """A leader that has committed in its term: entry 1."""
    group = lead(replica("a", voters, **{**PLAIN, **options}), *voters[1 : len(voters) // 2 + 1])
    for name in voters[1:]:
        acknowledge(group, name, 1)
    return group


def confirm(group: Group, sender: str, context: bytes) -> Done:
    group.step(Message(M.HEARTBEAT_RESPONSE, group.node, sender, group.term, context=context))
    return settle(group)


# --- The no-op --------------------------------------------------------------------------------------------------------


def test_a_leader_begins_its_term_with_a_blank_entry() -> None:
    """Section 8: "each leader commit[s] a blank no-op entry into the log at the start of its term"."""
    group = lead(replica(terms=(1, 1), **PLAIN), "b")
    assert (group.last, group.log.entries[-1].kind, group.log.entries[-1].data) == ((3, 2), EntryKind.NO_OP, None)


def test_the_blank_entry_is_taken_however_much_is_not_committed() -> None:
    """Section 8: without it the leader would never know what is committed."""
    group = lead(replica(uncommitted_bytes_max=1, **PLAIN), "b")
    assert group.last.index == 1


# --- Reads confirmed by a majority ------------------------------------------------------------------------------------


def test_a_read_is_answered_with_the_commit_when_a_majority_has_confirmed_the_leader() -> None:
    """Thesis 6.4, steps 2 and 3: saves the commit as readIndex, then "a new round of heartbeats" to a majority."""
    group = leader("abcde")
    group.read_index(b"read")
    beats = settle(group).of(M.HEARTBEAT)
    one = confirm(group, "b", beats[0].context).read_states
    two = confirm(group, "c", beats[0].context).read_states
    assert {beat.to for beat in beats} == set("bcde")
    assert (one, two) == ([], [ReadState(1, b"read")])


def test_a_heartbeat_of_before_the_read_confirms_nothing() -> None:
    """Thesis 6.4, step 3: the heartbeats must be new, else a leader deposed meanwhile would serve stale data."""
    group = leader()
    group.read_index(b"one")
    old = settle(group).of(M.HEARTBEAT)[0].context
    confirm(group, "b", old)
    group.read_index(b"two")
    new = settle(group).of(M.HEARTBEAT)[0].context
    assert confirm(group, "b", old).read_states == []
    assert confirm(group, "c", b"").read_states == []
    assert confirm(group, "c", b"nonsense that is long").read_states == []
    assert confirm(group, "b", new).read_states == [ReadState(1, b"two")]


def test_one_round_of_heartbeats_confirms_all_reads_before_it() -> None:
    """Thesis 6.4: "amortize this cost": one round for "any number of read-only queries that it has accumulated"."""
    group = leader()
    group.read_index(b"one")
    settle(group)
    group.propose("x")
    settle(group)
    acknowledge(group, "b", 2)
    group.read_index(b"two")
    context = settle(group).of(M.HEARTBEAT)[-1].context
    assert confirm(group, "b", context).read_states == [ReadState(1, b"one"), ReadState(2, b"two")]
    assert confirm(group, "c", context).read_states == []
    assert (len(group.reads), group.reads.is_waiting) == (0, False)


def test_a_later_heartbeat_carries_the_reads_that_wait() -> None:
    """Thesis 6.4: a confirmation that is lost is asked for again with the next heartbeat."""
    group = leader()
    group.read_index(b"read")
    settle(group)
    group.tick()
    context = settle(group).of(M.HEARTBEAT)[0].context
    assert confirm(group, "c", context).read_states == [ReadState(1, b"read")]


def test_the_same_request_twice_is_answered_twice() -> None:
    """Thesis 6.4; a context is the caller's: it need not be unique for the answers to be right."""
    group = leader()
    group.read_index(b"read")
    group.read_index(b"read")
    context = settle(group).of(M.HEARTBEAT)[-1].context
    assert confirm(group, "b", context).read_states == [ReadState(1, b"read")] * 2


@pytest.mark.parametrize("mode", [ReadMode.QUORUM, ReadMode.LEASE])
def test_a_new_leader_answers_no_read_before_it_has_committed_in_its_term(mode: ReadMode) -> None:
    """Thesis 6.4, step 1: "if the leader has not yet marked an entry from its current term committed, it waits"."""
    group = lead(replica(terms=(1,), commit=1, read_mode=mode, **PLAIN), "b")
    group.read_index(b"read")
    early = settle(group)
    done = acknowledge(group, "b", 2)
    if mode is ReadMode.QUORUM:
        done = confirm(group, "b", done.of(M.HEARTBEAT)[0].context)
    assert (early.read_states, early.of(M.HEARTBEAT)) == ([], [])
    assert done.read_states == [ReadState(2, b"read")]


def test_a_sole_voter_waits_for_its_first_commit_too() -> None:
    """Thesis 6.4, step 1: its hard state may know less than what was answered before a restart."""
    group = replica(voters="a", terms=(1, 1), commit=1, **PLAIN)
    group.campaign()
    vote, *_ = group.take_ready().responses
    group.step(vote)
    group.read_index(b"early")
    before = group.read_states.copy()
    after = settle(group).read_states
    group.read_index(b"later")
    assert group.role is Role.LEADER
    assert (before, after) == ([], [ReadState(3, b"early")])
    assert settle(group).read_states == [ReadState(3, b"later")]


def test_reads_that_wait_when_the_others_go_are_answered() -> None:
    """Thesis 6.4 with 4.1: the majority is that of the configuration in force."""
    group = leader("ab")
    group.propose_change(ConfigurationChange((ChangeStep(ChangeKind.REMOVE, "b"),)))
    group.read_index(b"read")
    settle(group)
    done = acknowledge(group, "b", 2)
    assert (done.read_states, group.reads.is_waiting) == ([ReadState(1, b"read")], False)


def test_a_follower_asks_its_leader_and_gets_the_answer() -> None:
    """Thesis 6.4: "followers can also help …: the follower could issue a request to the leader … for a readIndex"."""
    network = Network()
    network.elect("a")
    network["b"].read_index(b"read")
    network.settle()
    assert network.read_states["b"] == [ReadState(1, b"read")]
    assert network.read_states["a"] == []


def test_a_learner_asks_too() -> None:
    """Thesis 6.4: whoever holds a copy may serve reads from it."""
    network = Network("ab", learners="c")
    network.elect("a")
    network["c"].read_index(b"read")
    network.settle()
    assert network.read_states["c"] == [ReadState(1, b"read")]


def test_without_a_leader_a_read_is_dropped() -> None:
    """Thesis 6.4: nobody can tell what is committed; the caller asks again after a time."""
    for group in (replica(**PLAIN), replica(**PLAIN)):
        group.read_index(b"read")
        assert settle(group).messages == []
        group.campaign()
        settle(group)
        group.read_index(b"read")
        assert settle(group).messages == []


def test_a_deposed_leader_answers_no_read() -> None:
    """Thesis 6.4: "a leader that was deposed … could return stale results"."""
    network = Network(**PLAIN)
    network.elect("a")
    network.isolate("a")
    network.elect("b")
    network.propose("b")
    network["a"].read_index(b"stale")
    network.settle()
    still_leads = network["a"].role
    network.heal()
    network.tick("b", "a", times=2)
    assert (still_leads, network.read_states["a"]) == (Role.LEADER, [])


def test_reads_of_an_earlier_leadership_are_forgotten() -> None:
    """Thesis 6.4: they were noted with the commit of another time, and their numbers begin anew."""
    group = leader()
    group.read_index(b"old")
    old = settle(group).of(M.HEARTBEAT)[0].context
    group.become_follower(group.term + 1, "")
    lead(group, "b")
    acknowledge(group, "b", 2)
    assert confirm(group, "b", old).read_states == []


def test_reads_are_bounded() -> None:
    """Everything has a bound; the caller is told."""
    group = leader(read_requests_max=2)
    group.read_index(b"one")
    group.read_index(b"two")
    with pytest.raises(ProposalDropped, match="too many reads"):
        group.read_index(b"three")
    assert len(group.reads) == 2


def test_in_a_joint_configuration_both_majorities_confirm() -> None:
    """Thesis 6.4 with 4.3: another leader needs both, so either that refuses him confirms this one; both are asked."""
    steps = (ChangeStep(ChangeKind.ADD_VOTER, "d"), ChangeStep(ChangeKind.ADD_VOTER, "e"))
    group = leader("abc")
    group.propose_change(ConfigurationChange(steps))
    settle(group)
    group.step(Message(M.TRANSFER_LEADER, sender="c"))  # keeps the joint configuration from being left
    acknowledge(group, "b", 2)
    group.read_index(b"read")
    context = settle(group).of(M.HEARTBEAT)[-1].context
    by_three = [confirm(group, name, context).read_states for name in "de"]
    assert group.configuration.is_joint
    assert by_three == [[], []]
    assert confirm(group, "b", context).read_states == [ReadState(2, b"read")]


# --- Reads by lease ---------------------------------------------------------------------------------------------------


def test_under_a_lease_reads_are_answered_at_once() -> None:
    """Thesis 6.4.1: the leader relies on the clock instead of a round of messages."""
    group = leader(check_quorum=True, read_mode=ReadMode.LEASE)
    group.read_index(b"read")
    group.step(Message(M.READ_INDEX, "a", "b", context=b"other"))
    done = settle(group)
    assert (done.read_states, done.of(M.HEARTBEAT)) == ([ReadState(1, b"read")], [])
    assert [(answer.to, answer.index, answer.context) for answer in done.of(M.READ_INDEX_RESPONSE)] == [
        ("b", 1, b"other")
    ]


def test_under_a_lease_heartbeats_confirm_nothing() -> None:
    """Thesis 6.4.1: nobody waits for them."""
    group = leader(check_quorum=True, read_mode=ReadMode.LEASE)
    assert confirm(group, "b", b"12345678").read_states == []
