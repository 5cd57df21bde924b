"""What a replica asks of its disk, and what it makes of the answers: Ready after Ready, or one at a time."""

from typing import Any

import pytest

from logd.raft.group import Group
from logd.raft.types import (
    NOBODY,
    ChangeKind,
    ChangeStep,
    ConfigurationChange,
    EntryId,
    HardState,
    Message,
    MessageType,
    Ready,
    Role,
    SafetyViolation,
    Snapshot,
    SoftState,
    Transition,
)
from tests.raft.network import Network
from tests.raft.support import acknowledge, entries, lead, members, replica, settle

M = MessageType
PLAIN: dict[str, Any] = {"pre_vote": False, "check_quorum": False}


def append(term: int, index: int, log_term: int, *terms: int, sender: str = "b", commit: int = 0) -> Message:
    log = entries(*terms, first_index=index + 1)
    return Message(M.APPEND, "a", sender, term, index=index, log_term=log_term, entries=log, commit=commit)


def disk_answers(group: Group, ready: Ready) -> None:
    for message in ready.responses:
        if message.to == group.node:
            group.step(message)


# --- Ready ------------------------------------------------------------------------------------------------------------


def test_a_replica_with_nothing_to_do_says_nothing() -> None:
    group = replica(terms=(1,))
    assert not group.has_ready
    assert group.take_ready() == Ready()


def test_a_ready_says_things_once() -> None:
    group = replica(term=1)
    group.step(append(1, 0, 0, 1))
    first, second = group.take_ready(), group.take_ready()
    assert first.soft_state == SoftState("b", Role.FOLLOWER)
    assert (len(first.append), len(first.responses)) == (1, 2)
    assert second == Ready()
    assert not group.has_ready


def test_a_commit_alone_needs_no_sync() -> None:
    group = replica(terms=(1, 1))
    group.step(Message(M.HEARTBEAT, "a", "b", 1, commit=2))
    ready = group.take_ready()
    assert (ready.hard_state, ready.must_sync) == (HardState(1, NOBODY, 2), False)


def test_only_what_the_disk_has_is_applied() -> None:
    group = replica(term=1)
    group.step(append(1, 0, 0, 1, 1, commit=2))
    ready = group.take_ready()
    before = ready.committed
    disk_answers(group, ready)
    assert (before, [entry.index for entry in group.take_ready().committed]) == ((), [1, 2])


def test_ready_after_ready_may_be_taken_before_the_disk_answers() -> None:
    group = replica(term=1)
    group.step(append(1, 0, 0, 1))
    first = group.take_ready()
    group.step(append(1, 1, 1, 1, commit=2))
    second = group.take_ready()
    disk_answers(group, first)
    after_first = [entry.index for entry in group.take_ready().committed]
    disk_answers(group, second)
    after_second = [entry.index for entry in group.take_ready().committed]
    assert [entry.index for entry in first.append + second.append] == [1, 2]
    assert (after_first, after_second) == ([1], [2])


def test_a_replaced_suffix_is_told_from_where_it_was_handed_out() -> None:
    group = replica(terms=(1, 1, 1))
    group.step(append(2, 2, 1, 2))
    group.step(append(3, 1, 1, 3, sender="c"))
    ready = group.take_ready()
    assert (ready.truncate_from, [entry.id for entry in ready.append]) == (2, [EntryId(2, 3)])


def test_what_was_never_handed_out_is_replaced_without_a_word() -> None:
    group = replica(term=1)
    group.step(append(1, 0, 0, 1, 1))
    group.step(append(2, 1, 1, 2, sender="c"))
    ready = group.take_ready()
    assert (ready.truncate_from, [entry.id for entry in ready.append]) == (None, [EntryId(1, 1), EntryId(2, 2)])


# --- An answer for what was replaced ----------------------------------------------------------------------------------


def test_an_answer_for_a_replaced_entry_is_recognized_by_its_term() -> None:
    group = replica(term=1)
    group.step(append(1, 0, 0, 1, 1))
    old = group.take_ready()
    group.step(append(2, 0, 0, 2, sender="c", commit=1))
    new = group.take_ready()
    disk_answers(group, old)
    after_old = (group.log.stable, group.take_ready().committed)
    disk_answers(group, new)
    assert (after_old, group.log.stable) == ((0, ()), 1)


def test_an_answer_for_an_entry_that_was_replaced_and_came_back_says_nothing() -> None:
    """A-B-A: index and term are right again, and the disk would still write B, and then A, after this answer."""
    group = replica(term=1)
    group.step(append(1, 0, 0, 1))
    first = group.take_ready()
    group.step(append(2, 0, 0, 2, sender="c"))
    second = group.take_ready()
    group.step(append(3, 0, 0, 1, sender="b", commit=1))
    third = group.take_ready()
    stables = []
    for ready in (first, second, third):
        disk_answers(group, ready)
        stables.append(group.log.stable)
    assert stables == [0, 0, 1]


def test_an_answer_of_an_earlier_term_is_asked_for_again_in_the_next() -> None:
    group = replica(term=1)
    group.step(append(1, 0, 0, 1))
    first = group.take_ready()
    group.step(Message(M.HEARTBEAT, "a", "c", 2))
    second = group.take_ready()
    disk_answers(group, first)
    before = group.log.stable
    disk_answers(group, second)
    assert (before, group.log.stable, second.append) == (0, 1, ())


def test_a_ready_that_gives_the_disk_nothing_asks_it_for_nothing() -> None:
    group = lead(replica(**PLAIN), "b")
    group.propose("x")
    group.take_ready()
    group.tick()
    ready = group.take_ready()
    assert [message.type for message in ready.messages] == [M.HEARTBEAT, M.HEARTBEAT]
    assert ready.responses == ()


def test_an_old_acknowledgement_of_the_own_log_counts_for_nothing_in_a_later_term() -> None:
    group = lead(replica(**PLAIN), "b")
    group.propose("x")
    late = group.take_ready()
    group.step(append(2, 0, 0, 2, 2, sender="c"))
    settle(group)
    lead(group, "b")
    disk_answers(group, late)
    assert (group.term, group.commit_index, group.progress["a"].match_index) == (3, 0, 3)


# --- One at a time ----------------------------------------------------------------------------------------------------

ONE: dict[str, Any] = {"asynchronous_storage": False}


def test_synchronously_a_sole_voter_elects_and_commits_ready_by_ready() -> None:
    group = replica(voters="a", **ONE)
    group.campaign()
    done = settle(group)
    place = group.propose("x")
    done = settle(group)
    assert (group.role, place.index, group.commit_index) == (Role.LEADER, 2, 2)
    assert [entry.data for entry in done.committed] == ["x"]


def test_synchronously_what_is_committed_may_be_applied_with_the_write_that_makes_it_durable() -> None:
    group = replica(term=1, **ONE)
    group.step(append(1, 0, 0, 1, 1, commit=2))
    ready = group.take_ready()
    assert [entry.index for entry in ready.committed] == [1, 2]
    assert [message.to for message in ready.responses] == ["b"]
    group.advance()
    assert (group.log.stable, group.applied) == (2, 2)


def test_synchronously_each_ready_is_advanced_before_the_next() -> None:
    group = replica(term=1, **ONE)
    group.step(append(1, 0, 0, 1))
    group.take_ready()
    with pytest.raises(AssertionError, match="was not advanced"):
        group.take_ready()


def test_asynchronously_nothing_is_advanced() -> None:
    with pytest.raises(AssertionError, match="answers come by step"):
        replica().advance()


def test_synchronously_a_change_takes_effect_and_a_joint_one_is_left() -> None:
    group = replica(voters="a", **ONE)
    group.campaign()
    settle(group)
    steps = (ChangeStep(ChangeKind.ADD_VOTER, "b"), ChangeStep(ChangeKind.ADD_LEARNER, "c"))
    group.propose_change(ConfigurationChange(steps))
    settle(group)
    joint = group.configuration.is_joint
    acknowledge(group, "b", 3)
    assert (joint, group.configuration) == (True, members("ab", "c"))


# --- How it stands ----------------------------------------------------------------------------------------------------


def test_the_status_says_how_a_replica_stands() -> None:
    group = lead(replica(**PLAIN), "b")
    acknowledge(group, "b", 1)
    status, other = group.status(), replica("b", terms=(1,)).status()
    assert (status.node, status.role, status.leader, status.hard_state) == ("a", Role.LEADER, "a", HardState(1, "a", 1))
    assert (status.applied, status.last, status.configuration) == (1, EntryId(1, 1), members())
    assert status.progress["b"].match_index == 1
    assert status.progress["c"].state == "probe"
    assert (other.progress, other.last) == ({}, EntryId(1, 1))
    assert repr(group) == "<leader a of term 1, log to EntryId(index=1, term=1), commit 1>"


def test_a_leader_is_at_rest_when_everybody_holds_everything_and_knows_it() -> None:
    network = Network("ab", learners="c")
    network.elect("a")
    before = network["a"].is_at_rest
    network["a"].propose("x")
    unsettled = network["a"].is_at_rest
    network.settle()
    assert (before, unsettled, network["a"].is_at_rest) == (True, False, True)
    assert not network["b"].is_at_rest
    network["b"].read_index(b"read")
    network.settle()
    assert network["a"].is_at_rest


def test_a_leader_is_not_at_rest_while_a_member_does_not_know_the_commit() -> None:
    group = lead(replica(**PLAIN), "b")
    acknowledge(group, "b", 1)
    acknowledge(group, "c", 1)
    unknown = group.is_at_rest
    for name in "bc":
        group.step(Message(M.HEARTBEAT_RESPONSE, "a", name, 1, commit=1))
    settle(group)
    assert (unknown, group.is_at_rest) == (False, True)
    group.progress["c"].admission = b"word"
    wiped = group.is_at_rest
    group.progress["c"].admission = b""
    group.read_index(b"read")
    assert (wiped, group.is_at_rest) == (False, False)


def test_a_leader_is_not_at_rest_before_it_has_applied_everything() -> None:
    group = lead(replica(**PLAIN), "b")
    for name in "bc":
        group.step(Message(M.APPEND_RESPONSE, "a", name, 1, index=1, commit=1))
    committed = group.take_ready().committed
    before = group.is_at_rest
    group.on_applied(committed[-1].index)
    assert (before, group.is_at_rest) == (False, True)


def test_a_leader_is_not_at_rest_in_a_joint_configuration() -> None:
    network = Network("abc", learners="d")
    network.elect("a")
    steps = (ChangeStep(ChangeKind.ADD_VOTER, "d"), ChangeStep(ChangeKind.REMOVE, "c"))
    network["a"].propose_change(ConfigurationChange(steps, Transition.EXPLICIT))
    network.settle()
    network.tick("a", times=2)
    joint = network["a"].is_at_rest
    network["a"].propose_change(ConfigurationChange())
    network.settle()
    network.tick("a", times=2)
    assert (joint, network["a"].is_at_rest) == (False, True)


def test_a_leader_is_not_at_rest_during_a_transfer() -> None:
    network = Network()
    network.elect("a")
    network["a"].transfer_leader("b")
    assert not network["a"].is_at_rest


def test_a_replica_applies_what_its_hard_state_says_is_committed_and_nothing_that_it_had_applied() -> None:
    state = {"terms": (1, 1, 1), "commit": 3}
    group = replica(**state)  # type: ignore[arg-type]  # each of its own type
    again = replica(
        recovered=lambda recovered: recovered.__class__(
            entries=recovered.entries, hard_state=HardState(1, "", 1), configuration=members(), applied=2
        ),
        terms=(1, 1, 1),
    )
    assert [entry.index for entry in group.take_ready().committed] == [1, 2, 3]
    assert (again.commit_index, again.applied, again.take_ready().committed) == (2, 2, ())


def test_a_shell_that_applies_too_much_is_stopped() -> None:
    group = replica(terms=(1, 1), commit=1)
    group.take_ready()
    with pytest.raises(SafetyViolation, match="2 was applied"):
        group.on_applied(2)


def test_a_snapshot_waits_for_the_disk_before_anything_is_applied() -> None:
    group = replica(term=1)
    group.step(Message(M.SNAPSHOT, "a", "b", 1, snapshot=Snapshot(5, 1, members())))
    group.step(append(1, 5, 1, 1, commit=6))
    ready = group.take_ready()
    early = ready.committed
    disk_answers(group, ready)
    assert (ready.snapshot, early) == (Snapshot(5, 1, members()), ())
    assert [entry.index for entry in group.take_ready().committed] == [6]


def test_a_snapshot_that_a_newer_one_replaced_is_not_applied_when_the_disk_has_it() -> None:
    group = replica(term=1)
    group.step(Message(M.SNAPSHOT, "a", "b", 1, snapshot=Snapshot(5, 1, members("ab"))))
    first = group.take_ready()
    group.step(Message(M.SNAPSHOT, "a", "b", 1, snapshot=Snapshot(9, 1, members())))
    second = group.take_ready()

    disk_answers(group, first)
    between = (group.applied, group.configuration)
    disk_answers(group, second)

    assert between == (0, members())
    assert (group.applied, group.configuration) == (9, members())
