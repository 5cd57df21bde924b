"""Replicas that lost something: some of a log (a floor is left), or their hard state (they must be admitted again).

Protocol-aware recovery: Alagappan and others, "Protocol-Aware Recovery for Consensus-Based Storage" (FAST 2018).
"""

from dataclasses import replace

import pytest

from logd.raft.group import Group
from logd.raft.progress import ProgressState
from logd.raft.types import (
    NOBODY,
    ChangeKind,
    ChangeStep,
    Configuration,
    ConfigurationChange,
    Entry,
    EntryId,
    EntryKind,
    GroupOptions,
    HardState,
    Message,
    MessageType,
    Recovered,
    Role,
    Snapshot,
)
from tests.raft.network import Network
from tests.raft.support import Fixed, acknowledge, entries, lead, members, replica, settle

M = MessageType


FLOOR = EntryId(5, 2)


def damaged(*, intact: int = 2, applied: int = 0, commit: int = 4) -> Group:
    """A replica of term 2 whose log of terms (1, 1, 1, 2, 2) is readable only up to `intact`."""
    state = Recovered(
        entries=entries(1, 1, 1, 2, 2)[:intact],
        hard_state=HardState(2, NOBODY, commit),
        configuration=members(),
        floor=FLOOR,
        applied=applied,
    )
    return replica(recovered=lambda _: state)


def wiped(**changes: object) -> Group:
    state = Recovered(hard_state=None, admission=b"word", configuration=members())
    return replica(recovered=lambda _: replace(state, **changes))  # type: ignore[arg-type]  # of any field


# --- Damaged: part of the log is lost ---------------------------------------------------------------------------------


def test_a_damaged_replica_never_campaigns() -> None:
    group = damaged()
    for _ in range(50):
        group.tick()
    group.campaign()
    group.step(Message(M.TIMEOUT_NOW, "a", "b", 2))
    assert (group.role, group.term, group.is_promotable, group.is_damaged) == (Role.FOLLOWER, 2, False, True)


@pytest.mark.parametrize("request_type", [M.VOTE_REQUEST, M.PRE_VOTE_REQUEST])
@pytest.mark.parametrize(
    ("index", "log_term", "is_rejected"), [(3, 1, True), (4, 2, True), (5, 2, False), (4, 3, False)]
)
def test_a_damaged_replica_votes_as_if_it_held_what_it_promised(
    index: int, log_term: int, is_rejected: bool, request_type: MessageType
) -> None:
    group = damaged()
    group.step(Message(request_type, "a", "b", 3, index=index, log_term=log_term))
    assert [answer.reject for answer in settle(group).messages] == [is_rejected]


def test_a_replica_with_a_hole_votes_with_the_end_of_its_log_if_that_is_beyond_the_promise() -> None:
    state = Recovered(entries=entries(1, 2, 2), hard_state=HardState(2, NOBODY, 0), configuration=members())
    group = replica(recovered=lambda _: replace(state, floor=EntryId(2, 2)))
    group.step(Message(M.VOTE_REQUEST, "a", "b", 3, index=2, log_term=2))
    assert [answer.reject for answer in settle(group).messages] == [True]


def test_a_damaged_replica_comes_back_with_its_commit_but_applies_only_what_it_holds() -> None:
    group = damaged()
    done = settle(group)
    assert ([entry.index for entry in done.committed], group.commit_index) == ([1, 2], 2)
    assert group.hard_state == HardState(2, NOBODY, 4)
    assert done.messages == []


def test_a_damaged_replica_acknowledges_only_its_intact_prefix_and_says_that_it_is_damaged() -> None:
    group = damaged()
    group.step(Message(M.APPEND, "a", "b", 2, index=5, log_term=2))
    group.step(Message(M.HEARTBEAT, "a", "b", 2, commit=4))
    heartbeat, refusal = settle(group).messages
    assert (refusal.reject, refusal.reject_hint, refusal.is_damaged, refusal.last_index) == (True, 2, True, 2)
    assert (heartbeat.is_damaged, heartbeat.last_index, heartbeat.commit) == (True, 2, 2)


def test_only_the_report_of_damage_lowers_a_leaders_match() -> None:
    group = lead(replica(terms=(1, 1, 1)), "b")
    acknowledge(group, "b", 4)
    acknowledge(group, "b", 2)
    without = group.progress["b"].match_index
    done = acknowledge(group, "b", 4, reject=True, reject_hint=2, log_term=1, is_damaged=True, last_index=2)
    progress = group.progress["b"]
    assert (without, progress.match_index, progress.state, group.commit_index) == (4, 2, ProgressState.PROBE, 4)
    assert [(message.to, message.index, len(message.entries)) for message in done.of(M.APPEND)] == [("b", 2, 2)]


def test_a_heartbeats_answer_reports_damage_too() -> None:
    group = lead(replica(terms=(1, 1, 1)), "b")
    acknowledge(group, "b", 4)
    group.step(Message(M.HEARTBEAT_RESPONSE, "a", "b", group.term, is_damaged=True, last_index=1))
    assert [(message.to, message.index) for message in settle(group).of(M.APPEND)] == [("b", 1)]
    assert group.progress["b"].match_index == 1


def test_a_damaged_replica_does_not_leave_the_snapshot_that_it_is_sent() -> None:
    group = lead(replica(terms=(1, 1, 1)), "b")
    acknowledge(group, "b", 4)
    group.progress["b"].become_snapshot(3)
    group.step(Message(M.HEARTBEAT_RESPONSE, "a", "b", group.term, is_damaged=True, last_index=0))
    assert (group.progress["b"].state, group.progress["b"].match_index) == (ProgressState.SNAPSHOT, 0)


def test_what_a_damaged_replica_lost_does_not_count_towards_new_commits() -> None:
    group = lead(replica(voters="abcde", terms=(1, 1)), "b", "c")
    acknowledge(group, "b", 3)
    acknowledge(group, "b", 3, is_damaged=True, last_index=1, reject=True)
    acknowledge(group, "c", 3)
    before = group.commit_index
    acknowledge(group, "d", 3)
    assert (before, group.commit_index) == (0, 3)


@pytest.mark.parametrize(
    ("terms", "first_index", "is_whole"),
    [
        ((1, 2), 3, False),  # below the floor
        ((1, 2, 2), 3, True),  # the floor itself
        ((3,), 3, True),  # the log of a later leader, who holds all that was ever committed
    ],
)
def test_a_damaged_replica_is_whole_again_when_its_log_is_as_up_to_date_as_its_promise(
    terms: tuple[int, ...], first_index: int, is_whole: bool
) -> None:
    group = damaged()
    log = entries(*terms, first_index=first_index)
    group.step(Message(M.APPEND, "a", "b", 3, index=2, log_term=1, entries=log, commit=2))
    (answer,) = settle(group).messages
    assert (group.is_damaged, answer.is_damaged, group.is_promotable) == (not is_whole, not is_whole, is_whole)


def test_a_replica_that_is_refilled_applies_what_it_had_applied_no_second_time() -> None:
    group = damaged(intact=1, applied=4)
    first = settle(group).committed
    group.step(
        Message(M.APPEND, "a", "b", 2, index=1, log_term=1, entries=entries(1, 1, 2, 2, first_index=2), commit=5)
    )
    assert (first, [entry.index for entry in settle(group).committed]) == ([], [5])
    assert (group.applied, group.is_damaged) == (5, False)


@pytest.mark.parametrize(("index", "is_whole"), [(3, False), (5, True)])
def test_a_damaged_replica_may_begin_anew_behind_a_start_below_what_it_had_applied(index: int, is_whole: bool) -> None:
    group = damaged(intact=1, applied=4)
    start = Snapshot(index, 1 if index == 3 else 2, members())
    group.step(Message(M.SNAPSHOT, "a", "b", 2, snapshot=start))
    settle(group)
    assert (group.last, group.applied, group.is_damaged) == (start.id, max(index, 4), not is_whole)
    log = entries(2, 2, 2, first_index=index + 1)
    group.step(Message(M.APPEND, "a", "b", 2, index=index, log_term=start.term, entries=log, commit=index + 3))
    done = settle(group)
    assert [entry.index for entry in done.committed] == list(range(max(index, 4) + 1, index + 4))


def test_a_cluster_refills_a_damaged_replica() -> None:
    network = Network(message_bytes_max=20)
    network.elect("a")
    for _ in range(6):
        network.propose("a", size_bytes=10)
    network.crash("c")
    floor = network.disks["c"].entries[-1].id
    network.recover("c", lambda recovered: replace(recovered, entries=recovered.entries[:2], floor=floor))
    before = network["c"].is_damaged
    network.tick("a", times=3)
    assert (before, network["c"].is_damaged, network["c"].last) == (True, False, network["a"].last)
    assert network["a"].is_at_rest


def test_a_cluster_with_a_damaged_replica_elects_nobody_who_lacks_what_it_promised() -> None:
    network = Network()
    network.elect("a")
    network.isolate("b")
    network.propose("a")  # committed by a and c
    network.crash("c")
    floor = network.disks["c"].entries[-1].id
    network.recover("c", lambda recovered: replace(recovered, entries=recovered.entries[:1], floor=floor))
    network.heal()
    network.isolate("a")
    network["b"].forget_leader()
    network.elect("b")
    network.elect("c")
    assert [network[name].role for name in "bc"] == [Role.PRE_CANDIDATE, Role.FOLLOWER]


# --- Wiped: the hard state is lost ------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_type", [M.VOTE_REQUEST, M.PRE_VOTE_REQUEST])
def test_a_wiped_replica_does_not_vote(request_type: MessageType) -> None:
    group = wiped()
    group.step(Message(request_type, "a", "b", 3, index=9, log_term=2))
    assert (settle(group).messages, group.vote) == ([], NOBODY)


def test_a_wiped_replica_does_not_campaign() -> None:
    group = wiped()
    for _ in range(50):
        group.tick()
    group.campaign()
    assert (group.role, group.is_promotable) == (Role.FOLLOWER, False)


def test_a_wiped_replica_hands_out_no_hard_state() -> None:
    group = wiped()
    group.step(Message(M.HEARTBEAT, "a", "b", 3))
    group.step(Message(M.APPEND, "a", "b", 3, entries=entries(1, 1), commit=1))
    ready = group.take_ready()
    settle(group)
    assert (ready.hard_state, ready.must_sync, len(ready.append)) == (None, True, 2)
    assert not group.has_ready


def test_what_a_wiped_replica_answers_carries_its_word() -> None:
    group = wiped()
    group.step(Message(M.APPEND, "a", "b", 3, entries=entries(1, 1)))
    group.step(Message(M.APPEND, "a", "b", 3, index=9, log_term=1))
    group.step(Message(M.HEARTBEAT, "a", "b", 3, commit=9))
    group.step(Message(M.APPEND, "a", "c", 2))
    answers = settle(group).messages
    assert {answer.admission for answer in answers} == {b"word"}
    assert sorted((answer.type.value, answer.reject) for answer in answers) == [
        ("append response", False),
        ("append response", False),
        ("append response", True),
        ("heartbeat response", False),
    ]


def test_a_wiped_replica_counts_neither_for_commits_nor_for_reads_nor_for_the_quorum() -> None:
    group = lead(replica(check_quorum=True), "b")
    acknowledge(group, "c", 1, admission=b"word", last_index=1)
    after_append = group.commit_index
    acknowledge(group, "b", 1)
    group.read_index(b"read")
    context = settle(group).of(M.HEARTBEAT)[-1].context
    answer = Message(M.HEARTBEAT_RESPONSE, "a", "c", 1, context=context, admission=b"word", last_index=1)
    group.step(answer)
    reads = settle(group).read_states
    for _ in range(group.options.election_ticks):
        group.tick()
    still_leads = group.role
    group.step(answer)
    for _ in range(group.options.election_ticks):
        group.tick()
    assert (after_append, reads) == (0, [])
    assert (still_leads, group.role) == (Role.LEADER, Role.FOLLOWER)


def test_leadership_is_not_transferred_to_a_wiped_replica() -> None:
    group = lead(replica(), "b")
    acknowledge(group, "c", 1, admission=b"word", last_index=1)
    group.transfer_leader("c")
    assert (group.transfer_to, settle(group).of(M.TIMEOUT_NOW)) == (NOBODY, [])


def test_the_match_of_a_wiped_replica_is_what_it_says_that_it_holds() -> None:
    group = lead(replica(terms=(1, 1)), "b")
    acknowledge(group, "c", 3)
    done = acknowledge(group, "c", 3, reject=True, admission=b"word", last_index=0)
    assert (group.progress["c"].match_index, group.progress["c"].admission) == (0, b"word")
    assert [(message.to, message.index) for message in done.of(M.APPEND)] == [("c", 0)]


def readmit(node: str, word: bytes) -> ConfigurationChange:
    return ConfigurationChange((ChangeStep(ChangeKind.UPDATE, node),), admission=word)


def test_a_wiped_replica_is_admitted_by_a_committed_change_with_its_word_and_no_other() -> None:
    network = Network()
    network.elect("a")
    network.propose("a")
    network.crash("c")
    network.recover("c", lambda recovered: Recovered(hard_state=None, admission=b"new", configuration=members()))
    network.tick("a", times=3)
    seen = network["a"].progress["c"].admission
    network["a"].propose_change(readmit("c", b"old"))
    network.settle()
    after_old = (network["c"].admission, network.disks["c"].hard_state)
    network["a"].propose_change(readmit("c", seen))
    network.settle()
    network.tick("a", times=2)
    assert (seen, after_old) == (b"new", (b"new", None))
    assert (network["c"].admission, network["a"].progress["c"].admission, network["c"].last) == (
        b"",
        b"",
        network["a"].last,
    )
    assert network.disks["c"].hard_state == HardState(1, NOBODY, network["a"].commit_index)


def test_after_its_admission_a_replica_takes_part_again() -> None:
    network = Network()
    network.elect("a")
    network.crash("c")
    network.recover("c", lambda recovered: Recovered(hard_state=None, admission=b"word", configuration=members()))
    network.tick("a", times=2)
    at_rest = network["a"].is_at_rest
    network["a"].propose_change(readmit("c", b"word"))
    network.settle()
    network.isolate("b")
    network.propose("a")
    assert (at_rest, network["a"].commit_index) == (False, network["a"].last.index)
    network["a"].transfer_leader("c")
    network.settle()
    assert network["c"].role is Role.LEADER


def test_two_of_three_do_not_admit_the_third_without_a_majority_of_others() -> None:
    network = Network()
    network.elect("a")
    network.crash("c")
    network.recover("c", lambda recovered: Recovered(hard_state=None, admission=b"word", configuration=members()))
    network.isolate("b")
    network["a"].propose_change(readmit("c", b"word"))
    network.settle()
    assert (network["a"].commit_index, network["c"].admission) == (1, b"word")


def test_a_change_that_cannot_be_made_admits_nobody() -> None:
    group = wiped(configuration=Configuration(frozenset("a")))
    with pytest.raises(ValueError, match="removed all voters"):
        group.apply_change(ConfigurationChange((ChangeStep(ChangeKind.REMOVE, "a"),), admission=b"word"))
    assert group.admission == b"word"


def test_an_admitted_replica_is_a_stranger_until_its_hard_state_is_durable() -> None:
    """Else a crash in between leaves a voter that counts for nothing, though its leader relied on it."""
    recovered = Recovered(configuration=members("abc"), hard_state=None, admission=b"word")
    group = Group("c", GroupOptions(), recovered, Fixed())
    change = ConfigurationChange((ChangeStep(ChangeKind.ADD_LEARNER, "c"),), admission=b"word")
    entry = Entry(1, 1, EntryKind.CONFIGURATION, change=change)
    group.step(Message(MessageType.APPEND, "c", "a", term=1, entries=(entry,), commit=1))
    for message in group.take_ready().responses:
        if message.to == "c":
            group.step(message)
    (committed,) = group.take_ready().committed
    assert committed.change is not None

    group.apply_change(committed.change)
    ready = group.take_ready()

    assert ready.hard_state is not None
    assert group.admission == b"word"
    group.step(Message(MessageType.HEARTBEAT, "c", "a", term=1, commit=1))
    (answer,) = group.take_ready().messages
    assert answer.admission == b"word"

    for message in ready.responses:
        group.step(message)

    assert group.admission == b""
    group.step(Message(MessageType.HEARTBEAT, "c", "a", term=1, commit=1))
    (answer,) = group.take_ready().messages
    assert answer.admission == b""


def test_a_replica_without_hard_state_obeys_no_leader_of_before_its_last_entry() -> None:
    recovered = Recovered(configuration=members("abc"), entries=entries(1, 5), hard_state=None, admission=b"word")
    group = Group("c", GroupOptions(), recovered, Fixed())

    group.step(Message(MessageType.APPEND, "c", "a", term=3, index=1, log_term=1, entries=entries(3, first_index=2)))

    assert group.last == EntryId(2, 5)
    assert group.term == 5
