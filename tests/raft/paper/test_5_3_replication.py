"""Section 5.3, "Log replication", and figure 2, "AppendEntries RPC"."""

from typing import Any

import pytest

from logd.raft.types import EntryId, EntryKind, Message, MessageType, Role
from tests.raft.network import Network
from tests.raft.support import acknowledge, entries, lead, replica, settle

M = MessageType
PLAIN: dict[str, Any] = {"pre_vote": False, "check_quorum": False}


def append(group_term: int, index: int, log_term: int, *terms: int, commit: int = 0) -> Message:
    """What leader `b` of `group_term` sends: entries of these terms behind (index, log_term)."""
    log = entries(*terms, first_index=index + 1)
    return Message(M.APPEND, "a", "b", group_term, index=index, log_term=log_term, entries=log, commit=commit)


def terms_of(network: Network, name: str) -> list[int]:
    return [entry.term for entry in network[name].log.entries]


# --- The leader -------------------------------------------------------------------------------------------------------


def test_a_leader_appends_a_command_and_sends_it_to_all_in_parallel() -> None:
    """5.3: "appends the command to its log as a new entry, then issues AppendEntries RPCs in parallel"."""
    group = lead(replica(**PLAIN), "b")
    acknowledge(group, "b", 1)
    acknowledge(group, "c", 1)
    assert group.propose("x", size_bytes=7) == EntryId(2, 1)
    ready = group.take_ready()
    assert [(entry.id, entry.kind, entry.data, entry.size_bytes) for entry in ready.append] == [
        (EntryId(2, 1), EntryKind.DATA, "x", 7)
    ]
    assert ready.must_sync
    assert [
        (message.to, message.index, message.log_term, message.commit, message.entries) for message in ready.messages
    ] == [("b", 1, 1, 1, ready.append), ("c", 1, 1, 1, ready.append)]


@pytest.mark.parametrize(
    ("size", "acknowledging", "is_committed"),
    [
        (1, "", True),
        (3, "", False),
        (3, "b", True),
        (3, "bc", True),
        (5, "b", False),
        (5, "bc", True),
        (5, "bcd", True),
    ],
)
def test_an_entry_is_committed_once_a_majority_holds_it(size: int, acknowledging: str, is_committed: bool) -> None:
    """5.3: "committed once the leader that created the entry has replicated it on a majority of the servers"."""
    group = lead(replica(voters="abcde"[:size], **PLAIN), *"bc"[: size // 2])
    for name in "bcde"[: size - 1]:
        acknowledge(group, name, 1)
    group.propose("x")
    settle(group)
    for name in acknowledging:
        acknowledge(group, name, 2)
    assert (group.commit_index == 2) is is_committed


def test_a_leaders_own_copy_counts_only_once_it_is_durable() -> None:
    """5.3: "safely replicated"; thesis 10.2.1: the leader may write in parallel, and counts itself when it has."""
    group = lead(replica(**PLAIN), "b")
    acknowledge(group, "b", 1)
    group.propose("x")
    ready = group.take_ready()
    group.step(Message(M.APPEND_RESPONSE, "a", "b", 1, index=2))
    assert group.commit_index == 1
    for message in ready.responses:
        group.step(message)
    assert group.commit_index == 2


def test_a_commit_includes_all_preceding_entries_also_of_earlier_leaders() -> None:
    """5.3: "this also commits all preceding entries … including entries created by previous leaders"."""
    group = lead(replica(terms=(1, 1, 2), term=2, **PLAIN), "b")
    done = acknowledge(group, "b", 4)
    assert group.commit_index == 4
    assert [entry.id for entry in done.committed] == [EntryId(1, 1), EntryId(2, 1), EntryId(3, 2), EntryId(4, 3)]


def test_a_leader_includes_its_commit_in_future_messages() -> None:
    """5.3: "it includes that index in future AppendEntries RPCs (including heartbeats)"."""
    group = lead(replica(**PLAIN), "b")
    done = acknowledge(group, "b", 1)
    assert {message.commit for message in done.of(M.APPEND)} == {1}
    group.tick()
    assert [(beat.to, beat.commit) for beat in settle(group).of(M.HEARTBEAT)] == [("b", 1), ("c", 0)]


def test_a_heartbeat_never_names_a_commit_beyond_what_the_follower_holds() -> None:
    """Figure 2, AppendEntries 5: "min(leaderCommit, index of last new entry)": a heartbeat has no entry to compare."""
    group = lead(replica(voters="abcde", **PLAIN), "b", "c")
    for name in "bc":
        acknowledge(group, name, 1)
    group.step(Message(M.BEAT, sender="a"))
    beats = settle(group).of(M.HEARTBEAT)
    assert group.commit_index == 1
    assert {beat.to: beat.commit for beat in beats} == {"b": 1, "c": 1, "d": 0, "e": 0}


def test_a_leader_retries_until_every_follower_has_every_entry() -> None:
    """5.3: it "retries AppendEntries RPCs indefinitely … until all followers … store all log entries"."""
    network = Network()
    network.elect("a")
    network.isolate("c")
    for _ in range(3):
        network.propose("a")
    network.heal()
    network.tick("a", times=2)
    assert terms_of(network, "c") == [1, 1, 1, 1]


def test_a_leader_never_overwrites_its_own_log() -> None:
    """Figure 3, leader append-only: "a leader never overwrites or deletes entries in its log"."""
    network = Network(logs={"a": (1, 1), "b": (1, 1, 1), "c": (1, 1)})
    network["b"].log.entries.pop()  # b's third entry never was: a wins
    network.elect("a")
    before = list(network["a"].log.entries)
    network.propose("a")
    assert network["a"].log.entries[: len(before)] == before


# --- The follower -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("commit", [0, 1, 2, 3])
def test_a_follower_applies_what_it_learns_to_be_committed_in_log_order(commit: int) -> None:
    """5.3: "once a follower learns that a log entry is committed, it applies the entry … (in log order)"."""
    group = replica(term=1, **PLAIN)
    group.step(append(1, 0, 0, 1, 1, 1, commit=commit))
    committed = settle(group).committed
    assert [entry.index for entry in committed] == list(range(1, commit + 1))


def test_a_follower_commits_no_further_than_what_it_was_sent() -> None:
    """Figure 2, AppendEntries 5: "set commitIndex = min(leaderCommit, index of last new entry)"."""
    group = replica(terms=(1, 1, 1), **PLAIN)
    group.step(append(2, 1, 1, 2, commit=3))
    assert (group.commit_index, group.last) == (2, EntryId(2, 2))


def test_the_commit_never_goes_back() -> None:
    """Figure 2, volatile state: commitIndex "increases monotonically"."""
    group = replica(terms=(1, 1), commit=2, **PLAIN)
    group.step(append(1, 2, 1, 1, commit=1))
    group.step(Message(M.HEARTBEAT, "a", "b", 1, commit=1))
    assert group.commit_index == 2


@pytest.mark.parametrize(
    ("index", "log_term", "accepted", "rejected", "hint", "hint_term"),
    [
        (1, 1, 2, None, 0, 0),  # it follows on an entry at the commit
        (0, 0, 1, None, 0, 0),  # below the commit: what is committed is known to agree
        (2, 2, 2, None, 0, 0),
        (2, 1, None, 2, 1, 1),  # another term there
        (3, 3, None, 3, 2, 2),  # nothing there
        (9, 2, None, 9, 2, 2),
    ],
)
def test_a_follower_refuses_what_does_not_follow_on_its_log(
    index: int, log_term: int, accepted: int | None, rejected: int | None, hint: int, hint_term: int
) -> None:
    """5.3, the consistency check: "if the follower does not find an entry … it refuses the new entries"."""
    group = replica(terms=(1, 2), commit=1, **PLAIN)
    group.step(append(3, index, log_term))
    (answer,) = settle(group).messages
    assert (answer.type, answer.to, answer.term, answer.reject) == (M.APPEND_RESPONSE, "b", 3, rejected is not None)
    if rejected is None:
        assert answer.index in (accepted, index)
    else:
        assert (answer.index, answer.reject_hint, answer.log_term) == (rejected, hint, hint_term)


@pytest.mark.parametrize(
    ("index", "log_term", "terms", "log", "handed_out", "truncated_from"),
    [
        (2, 2, (3,), (1, 2, 3), (3,), None),
        (1, 1, (3, 4), (1, 3, 4), (3, 4), 2),
        (0, 0, (1,), (1, 2), (), None),
        (0, 0, (3,), (3,), (3,), 1),
    ],
)
def test_a_follower_deletes_a_conflicting_entry_and_all_that_follow_it(
    index: int,
    log_term: int,
    terms: tuple[int, ...],
    log: tuple[int, ...],
    handed_out: tuple[int, ...],
    truncated_from: int | None,
) -> None:
    """Figure 2, AppendEntries 3 and 4: "delete the existing entry and all that follow it", append what is new."""
    group = replica(terms=(1, 2), **PLAIN)
    group.step(append(4, index, log_term, *terms))
    ready = group.take_ready()
    assert tuple(entry.term for entry in group.log.entries) == log
    assert tuple(entry.term for entry in ready.append) == handed_out
    assert ready.truncate_from == truncated_from


def test_an_old_message_does_not_cut_what_came_after_it() -> None:
    """Figure 2, AppendEntries 3: only "if an existing entry conflicts" is anything deleted."""
    group = replica(term=1, **PLAIN)
    group.step(append(1, 0, 0, 1, 1, 1))
    group.step(append(1, 0, 0, 1))
    assert group.last.index == 3


def test_an_acknowledgement_leaves_only_once_the_entries_are_durable() -> None:
    """Figure 2, state: "updated on stable storage before responding to RPCs"."""
    group = replica(term=1, **PLAIN)
    group.step(append(1, 0, 0, 1))
    ready = group.take_ready()
    assert ready.messages == ()
    assert ready.must_sync
    assert [(answer.type, answer.index) for answer in ready.responses if answer.to == "b"] == [(M.APPEND_RESPONSE, 1)]


def test_repeated_messages_change_nothing() -> None:
    """5.5: "Raft RPCs are idempotent, so this causes no harm"."""
    group = replica(term=1, **PLAIN)
    message = append(1, 0, 0, 1, 1, commit=1)
    group.step(message)
    first = settle(group)
    group.step(message)
    second = settle(group)
    assert [(answer.reject, answer.index) for answer in first.messages + second.messages] == [(False, 2), (False, 1)]
    assert (second.committed, group.last, group.commit_index) == ([], EntryId(2, 1), 1)


# --- Where they differ ------------------------------------------------------------------------------------------------

FIGURE_7 = (1, 1, 1, 4, 4, 5, 5, 6, 6, 6)


@pytest.mark.parametrize(
    "follower",
    [
        (1, 1, 1, 4, 4, 5, 5, 6, 6),
        (1, 1, 1, 4),
        (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6),
        (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7),
        (1, 1, 1, 4, 4, 4, 4),
        (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3),
    ],
    ids="abcdef",
)
def test_a_leader_forces_every_log_of_figure_7_to_duplicate_its_own(follower: tuple[int, ...]) -> None:
    """5.3, figure 7: "conflicting entries in follower logs will be overwritten with entries from the leader's log"."""
    network = Network(logs={"a": FIGURE_7, "b": follower, "c": ()}, **PLAIN)
    for name in "abc":
        network[name].become_follower(7, "")
    network.elect("a")
    network.propose("a")
    assert network["a"].role is Role.LEADER
    assert terms_of(network, "b") == terms_of(network, "c") == [*FIGURE_7, 8, 8]


def test_back_off_skips_a_whole_term_a_message() -> None:
    """5.3: "one AppendEntries RPC will be required for each term with conflicting entries"."""
    network = Network(logs={"a": (1,) + (5,) * 40, "b": (1,) + (2,) * 20 + (3,) * 20, "c": ()}, **PLAIN)
    network.isolate("b")
    network.elect("a")
    network.heal()
    refusals = 0
    network["a"].tick()
    for _ in range(40):
        for name in "abc":
            while network[name].has_ready:
                network.take(name)
                network.write(name)
        pool, network.pool = network.pool, []
        refusals += sum(message.type is M.APPEND_RESPONSE and message.reject for message in pool)
        for message in pool:
            network[message.to].step(message)
    assert terms_of(network, "b") == terms_of(network, "a")
    assert 1 <= refusals <= 3


@pytest.mark.parametrize(
    ("leader", "follower", "refusal", "next_probe"),
    [
        # What the follower answers to the leader's first probe, (its last index, its last term), and the next probe.
        ((1, 3, 3, 3, 5, 5, 5), (1, 1, 1, 1, 2, 2), (6, 2), (1, 1)),
        ((1, 3, 3, 3, 5, 5, 5), (1, 3, 3, 3, 3, 3, 3), (7, 3), (4, 3)),
        ((1, 1, 1, 3), (1, 1, 1, 2, 2, 2), (4, 2), (3, 1)),
        ((1, 1, 1, 1, 1), (1, 1), (2, 1), (2, 1)),
        ((5, 5), (4, 4), (2, 4), (0, 0)),
        ((1, 5, 5, 5, 5), (1, 1, 1), (3, 1), (1, 1)),
    ],
)
def test_a_refusal_says_where_the_logs_may_meet_and_the_leader_goes_there(
    leader: tuple[int, ...], follower: tuple[int, ...], refusal: tuple[int, int], next_probe: tuple[int, int]
) -> None:
    """5.3: "the follower can include the term of the conflicting entry and the first index it stores for that term"."""
    group = lead(replica(terms=leader, term=8, **PLAIN), "b")
    lagging = replica("b", terms=follower, term=8, **PLAIN)
    lagging.step(Message(M.APPEND, "b", "a", 9, index=len(leader), log_term=leader[-1]))
    (answer,) = settle(lagging).messages
    group.step(answer)
    (probe,) = settle(group).messages
    assert answer.reject
    assert (answer.reject_hint, answer.log_term) == refusal
    assert (probe.index, probe.log_term) == next_probe


def test_logs_that_agree_in_one_entry_agree_in_all_before_it() -> None:
    """5.3, log matching: two entries of "the same index and term": all "preceding entries" are identical."""
    network = Network("abcde", logs={"a": (1, 2, 3), "b": (1, 1), "c": (1, 2, 2, 2), "d": (), "e": (1,)})
    for group in network:
        group.become_follower(3, "")
    network.elect("a")
    network.propose("a")
    assert {tuple(terms_of(network, name)) for name in "abcde"} == {(1, 2, 3, 4, 4)}
