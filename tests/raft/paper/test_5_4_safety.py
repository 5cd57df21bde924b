"""Section 5.4, "Safety"."""

from typing import Any

import pytest

from logd.raft.types import Message, MessageType, Role, SafetyViolation
from tests.raft.network import Network
from tests.raft.support import acknowledge, entries, lead, replica, settle

M = MessageType
PLAIN: dict[str, Any] = {"pre_vote": False, "check_quorum": False}


# --- 5.4.1, Election restriction --------------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [(1,), (1, 2), (1, 1, 3)])
def test_a_vote_request_says_how_far_the_candidates_log_goes(terms: tuple[int, ...]) -> None:
    """5.4.1: "the RPC includes information about the candidate's log"."""
    group = replica(terms=terms, **PLAIN)
    group.campaign()
    requests = settle(group).of(M.VOTE_REQUEST)
    assert [(request.to, request.term, request.index, request.log_term) for request in requests] == [
        ("b", terms[-1] + 1, len(terms), terms[-1]),
        ("c", terms[-1] + 1, len(terms), terms[-1]),
    ]


@pytest.mark.parametrize("request_type", [M.VOTE_REQUEST, M.PRE_VOTE_REQUEST])
@pytest.mark.parametrize(
    ("terms", "log_term", "index", "is_rejected"),
    [
        # The same last term: the longer log is more up-to-date.
        ((1,), 1, 1, False),
        ((1,), 1, 2, False),
        ((1, 1), 1, 1, True),
        # The candidate's last term is later: its length does not matter.
        ((1,), 2, 1, False),
        ((1,), 2, 2, False),
        ((1, 1), 2, 1, False),
        # The voter's is.
        ((2,), 1, 1, True),
        ((2,), 1, 2, True),
        ((2, 1), 1, 1, True),
    ],
)
def test_a_voter_denies_its_vote_to_a_log_less_up_to_date_than_its_own(
    terms: tuple[int, ...], log_term: int, index: int, is_rejected: bool, request_type: MessageType
) -> None:
    """5.4.1: "denies its vote if its own log is more up-to-date than that of the candidate"."""
    group = replica(terms=terms, term=2, **PLAIN)
    group.step(Message(request_type, "a", "b", 3, index=index, log_term=log_term))
    (answer,) = settle(group).messages
    assert answer.reject is is_rejected


def test_a_candidate_that_lacks_a_committed_entry_does_not_win() -> None:
    """5.4.1: "a candidate must contact a majority …, which means that every committed entry must be present" in one."""
    network = Network(**PLAIN)
    network.elect("a")
    network.isolate("c")
    network.propose("a")
    network.heal()
    network.isolate("a")
    network.elect("c")
    has_won = network["c"].role is Role.LEADER
    network.elect("b")
    assert (has_won, network["b"].role) == (False, Role.LEADER)
    assert network["c"].last == network["b"].last


# --- 5.4.2, Committing entries from previous terms --------------------------------------------------------------------


@pytest.mark.parametrize(("index", "commit"), [(1, 0), (2, 0), (3, 3)])
def test_only_entries_of_the_own_term_are_committed_by_counting(index: int, commit: int) -> None:
    """5.4.2: "only log entries from the leader's current term are committed by counting replicas"."""
    group = lead(replica(terms=(1, 2), term=2, **PLAIN), "b")
    acknowledge(group, "b", index)
    assert (group.term, group.commit_index) == (3, commit)


def test_an_entry_of_an_earlier_term_can_be_lost_although_a_majority_holds_it_figure_8() -> None:
    """5.4.2, figure 8 (c) and (d): such an entry is not committed, and a later leader may overwrite it."""
    network = Network("abcde", logs={"a": (1, 2), "b": (1, 2), "c": (1,), "d": (1,), "e": (1, 3)}, **PLAIN)
    for group in network:
        group.become_follower(3, "")
    # (c): a leads term 4 and brings its entry of term 2 to c, but no entry of term 4.
    network.cut = {("a", "d"), ("a", "e")}
    network["a"].become_candidate()
    network["a"].become_leader()
    append = Message(M.APPEND, "c", "a", 4, index=1, log_term=1, entries=entries(2, first_index=2), commit=1)
    network["c"].step(append)
    settle(network["c"])
    acknowledge(network["a"], "b", 2)
    acknowledge(network["a"], "c", 2)
    held_by_three = [network[name].log.term_at(2) for name in "abc"]
    assert (held_by_three, network["a"].commit_index) == ([2, 2, 2], 0)
    # (d): e leads with the votes of b, c and d (a is away) and overwrites it.
    network.heal()
    network.isolate("a")
    network.pool.clear()
    for name in "bcd":
        network[name].become_follower(4, "")
    network["e"].become_follower(4, "")
    network.elect("e")
    assert network["e"].role is Role.LEADER
    assert [network[name].log.term_at(2) for name in "bcde"] == [3, 3, 3, 3]


def test_an_entry_of_an_earlier_term_is_safe_once_one_of_the_own_term_is_behind_it_figure_8() -> None:
    """5.4.2, figure 8 (e): "if a replicates an entry from its current term on a majority", e cannot win any more."""
    network = Network("abcde", logs={"a": (1, 2), "b": (1, 2), "c": (1,), "d": (1,), "e": (1, 3)}, **PLAIN)
    for group in network:
        group.become_follower(3, "")
    network.cut = {("a", "e"), ("e", "a")}
    network.elect("a")
    assert network["a"].role is Role.LEADER
    network.heal()
    network.isolate("a")
    network.elect("e")
    assert network["a"].commit_index == 3
    assert network["e"].role is Role.FOLLOWER
    assert network["b"].log.term_at(2) == 2


def test_a_new_leader_commits_what_it_inherited_by_an_entry_of_its_own() -> None:
    """5.4.2 and 8: "each leader commit[s] a blank no-op entry into the log at the start of its term"."""
    network = Network(logs={"a": (1, 1), "b": (1, 1), "c": ()})
    network.elect("a")
    assert {group.commit_index for group in network} == {3}


# --- 5.4.3 and figure 3: what may never be ----------------------------------------------------------------------------


def test_a_committed_entry_is_never_replaced() -> None:
    """Figure 3, state machine safety: whoever asks for it breaks a promise, and this replica stops."""
    group = replica(terms=(1, 1), commit=2, **PLAIN)
    group.log.commit = 2
    with pytest.raises(SafetyViolation, match="would replace a committed one"):
        group.log.append(entries(2, first_index=2))


def test_a_second_leader_of_a_term_is_a_violation() -> None:
    """Figure 3, election safety: "at most one leader can be elected in a given term"."""
    for type_ in (M.APPEND, M.HEARTBEAT, M.SNAPSHOT):
        group = lead(replica(**PLAIN), "b")
        with pytest.raises(SafetyViolation, match="c leads term 1, which a leads"):
            group.step(Message(type_, "a", "c", 1))


def test_equal_identities_with_unequal_chains_are_a_violation() -> None:
    """Figure 3, log matching: entries of the same index and term are the same, and so is all before them."""
    log = entries(1, 1)
    log[0].chain, log[1].chain = b"one", b"two"
    held, sent = replica(**PLAIN), entries(1, 1)
    held.step(Message(M.APPEND, "a", "b", 1, entries=log))
    sent[0].chain, sent[1].chain = b"one", b"other"
    with pytest.raises(SafetyViolation, match="entry 2 of term 1"):
        held.step(Message(M.APPEND, "a", "b", 1, entries=sent))
    with pytest.raises(SafetyViolation, match="entry 1 of term 1"):
        held.step(Message(M.APPEND, "a", "b", 1, index=1, log_term=1, chain=b"other"))


def test_a_chain_that_one_side_does_not_know_is_not_compared() -> None:
    """Figure 3, log matching: nothing is known that contradicts it."""
    log = entries(1)
    log[0].chain = b"one"
    group = replica(**PLAIN)
    group.step(Message(M.APPEND, "a", "b", 1, entries=log))
    group.step(Message(M.APPEND, "a", "b", 1, entries=entries(1)))
    group.step(Message(M.APPEND, "a", "b", 1, index=1, log_term=1, chain=b"one", entries=entries(1, first_index=2)))
    assert group.last.index == 2


def test_a_commit_beyond_the_log_is_a_violation() -> None:
    """Figure 2, AppendEntries: a leader names only what this replica is known to hold; so it was lost."""
    group = replica(terms=(1,), **PLAIN)
    with pytest.raises(SafetyViolation, match="was it lost"):
        group.step(Message(M.HEARTBEAT, "a", "b", 1, commit=2))
    with pytest.raises(SafetyViolation, match="was it lost"):
        replica(terms=(1,), commit=2)


def test_an_acknowledgement_beyond_the_leaders_log_is_a_violation() -> None:
    """Figure 3, leader append-only: nobody holds more of this leader's term than it does itself."""
    group = lead(replica(**PLAIN), "b")
    with pytest.raises(SafetyViolation, match="b holds entry 9"):
        acknowledge(group, "b", 9)


def test_entries_are_applied_in_order_and_only_what_is_committed() -> None:
    """5.4.3: "servers to apply entries in log index order"."""
    group = replica(terms=(1, 1, 1), commit=2, **PLAIN)
    committed = group.take_ready().committed
    assert [entry.index for entry in committed] == [1, 2]
    with pytest.raises(SafetyViolation, match="was applied"):
        group.on_applied(3)
