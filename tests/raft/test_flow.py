"""How fast a leader sends, how much it holds, and what it does for followers whose entries left memory."""

from typing import Any

import pytest

from logd.raft.group import Group
from logd.raft.log import ENTRY_OVERHEAD_BYTES
from logd.raft.progress import ProgressState
from logd.raft.types import (
    ConfigurationChange,
    Entry,
    EntryId,
    EntryKind,
    EntryRange,
    HardState,
    Message,
    MessageType,
    ProposalDropped,
    Recovered,
    Snapshot,
)
from tests.raft.network import Network
from tests.raft.support import Done, acknowledge, entries, lead, members, replica, settle

M = MessageType
PLAIN: dict[str, Any] = {"pre_vote": False, "check_quorum": False}


def leader(voters: str = "abc", **options: Any) -> Group:
    """A leader whose members all hold entry 1, its first."""
    group = lead(replica("a", voters, **{**PLAIN, **options}), *voters[1 : len(voters) // 2 + 1])
    for name in voters[1:]:
        acknowledge(group, name, 1)
    return group


def heartbeat_answer(group: Group, sender: str) -> Done:
    group.step(Message(M.HEARTBEAT_RESPONSE, "a", sender, group.term))
    return settle(group)


def propose(group: Group, count: int, size_bytes: int = 10) -> Done:
    messages = []
    for _ in range(count):
        group.propose("x", size_bytes=size_bytes)
        messages += settle(group).messages
    return Done(messages, [], [])


def sent_to(done: Done, name: str) -> list[tuple[int, int]]:
    """(the index before, how many entries) of what was sent."""
    return [(message.index, len(message.entries)) for message in done.of(M.APPEND, name)]


# --- Probing, streaming -----------------------------------------------------------------------------------------------


def test_a_probe_is_sent_once_until_it_is_answered() -> None:
    group = lead(replica(**PLAIN), "b")
    first = propose(group, 3)
    assert sent_to(first, "c") == []
    assert sent_to(acknowledge(group, "c", 1), "c") == [(1, 3)]


def test_a_probe_may_be_lost_so_a_heartbeats_answer_lets_another_go() -> None:
    group = lead(replica(**PLAIN), "b")
    propose(group, 2)
    assert sent_to(heartbeat_answer(group, "c"), "c") == [(0, 3)]
    assert sent_to(heartbeat_answer(group, "c"), "c") == [(0, 3)]


def test_a_heartbeats_answer_of_a_member_that_holds_everything_is_answered_by_nothing() -> None:
    assert heartbeat_answer(leader(), "c").messages == []


def test_what_is_streamed_is_not_waited_for() -> None:
    assert sent_to(propose(leader(), 3), "c") == [(1, 1), (2, 1), (3, 1)]


def test_what_was_streamed_and_lost_is_sent_again_after_a_refusal() -> None:
    group = leader()
    propose(group, 3)
    done = acknowledge(group, "c", 3, reject=True, reject_hint=1, log_term=1)
    assert sent_to(done, "c") == [(1, 3)]
    assert sent_to(acknowledge(group, "c", 3, reject=True, reject_hint=1, log_term=1), "c") == []


def test_an_unreachable_member_is_probed() -> None:
    group = leader()
    propose(group, 2)
    group.report_unreachable("c")
    group.report_unreachable("z")
    state = group.progress["c"].state
    group.report_unreachable("c")
    assert (state, group.progress["c"].next_index) == (ProgressState.PROBE, 2)
    assert sent_to(heartbeat_answer(group, "c"), "c") == [(1, 2)]


def test_a_reordered_answer_changes_nothing() -> None:
    group = leader()
    propose(group, 3)
    acknowledge(group, "c", 4)
    assert acknowledge(group, "c", 2).messages == []
    assert (group.progress["c"].match_index, group.progress["c"].next_index) == (4, 5)


def test_a_follower_that_does_not_know_the_commit_is_told_it() -> None:
    group = leader()
    propose(group, 1)
    done = acknowledge(group, "b", 2)
    assert [(message.to, message.commit, message.entries) for message in done.of(M.APPEND)] == [
        ("b", 2, ()),
        ("c", 2, ()),
    ]


def test_a_message_holds_no_more_bytes_than_allowed_but_always_one_entry() -> None:
    group = lead(replica(message_bytes_max=25, **PLAIN), "b")
    for size_bytes in (10, 10, 10, 100):
        propose(group, 1, size_bytes)
    assert sent_to(acknowledge(group, "c", 1), "c") == [(1, 2), (3, 1), (4, 1)]


# --- In flight --------------------------------------------------------------------------------------------------------


def test_no_more_messages_are_in_flight_than_allowed() -> None:
    group = leader(inflight_messages_max=2)
    assert sent_to(propose(group, 4), "c") == [(1, 1), (2, 1)]
    assert (group.progress["c"].is_paused, group.status().progress["c"].inflight_messages) == (True, 2)
    assert sent_to(acknowledge(group, "c", 2), "c") == [(3, 2)]


def test_no_more_bytes_are_in_flight_than_allowed() -> None:
    group = leader(inflight_bytes_max=15)
    assert sent_to(propose(group, 4), "c") == [(1, 1), (2, 1)]
    assert sent_to(acknowledge(group, "c", 3), "c") == [(3, 2)]


def test_without_a_bound_by_bytes_only_messages_count() -> None:
    group = leader(inflight_bytes_max=0, inflight_messages_max=3)
    assert len(sent_to(propose(group, 5, 1000), "c")) == 3


def test_a_full_window_lets_one_empty_message_go_with_each_heartbeats_answer() -> None:
    group = leader(inflight_messages_max=1)
    propose(group, 3)
    assert sent_to(heartbeat_answer(group, "c"), "c") == [(2, 0)]
    assert group.progress["c"].is_paused


# --- What is not committed --------------------------------------------------------------------------------------------


def test_a_leader_takes_no_more_than_a_bound_beyond_its_commit() -> None:
    group = leader(uncommitted_bytes_max=25)
    propose(group, 2)
    with pytest.raises(ProposalDropped, match="too much waits"):
        group.propose("x", size_bytes=10)
    assert group.last.index == 3


def test_one_proposal_is_always_taken_and_so_is_what_has_no_payload() -> None:
    group = leader(uncommitted_bytes_max=5)
    propose(group, 1, 1000)
    group.propose("", size_bytes=0)
    with pytest.raises(ProposalDropped):
        group.propose("x", size_bytes=1)
    assert group.last.index == 3


def test_what_is_applied_makes_room() -> None:
    group = leader(uncommitted_bytes_max=25)
    propose(group, 2)
    acknowledge(group, "b", 3)
    assert group.uncommitted_bytes == 0
    propose(group, 2)
    assert group.last.index == 5


def test_a_new_leader_does_not_count_what_it_inherited() -> None:
    log = entries(1, 1, size_bytes=1000)
    state = Recovered(entries=log, hard_state=HardState(1, "", 0), configuration=members())
    group = lead(replica(recovered=lambda _: state, uncommitted_bytes_max=25, **PLAIN), "b")
    propose(group, 2)
    acknowledge(group, "b", 5)
    assert (group.uncommitted_bytes, group.commit_index) == (0, 5)


# --- What is applied --------------------------------------------------------------------------------------------------


def test_committed_entries_come_in_bounded_portions_after_each_is_applied() -> None:
    log = entries(1, 1, 1, 1, 1, size_bytes=10)
    state = Recovered(entries=log, hard_state=HardState(1, "", 5), configuration=members())
    group = replica(recovered=lambda _: state, committed_bytes_max=25)
    portions = []
    while group.has_ready:
        committed = group.take_ready().committed
        portions.append([entry.index for entry in committed])
        assert group.take_ready().committed == ()
        group.on_applied(committed[-1].index)
    assert portions == [[1, 2], [3, 4], [5]]


def test_one_committed_entry_may_be_larger_than_a_portion() -> None:
    log = entries(1, 1, size_bytes=1000)
    state = Recovered(entries=log, hard_state=HardState(1, "", 2), configuration=members())
    group = replica(recovered=lambda _: state, committed_bytes_max=25)
    assert [entry.index for entry in group.take_ready().committed] == [1]


def test_a_portion_that_is_applied_in_parts_holds_back_the_next() -> None:
    log = entries(1, 1, 1, size_bytes=10)
    state = Recovered(entries=log, hard_state=HardState(1, "", 3), configuration=members())
    group = replica(recovered=lambda _: state, committed_bytes_max=20)
    group.take_ready()
    group.on_applied(1)
    rest = group.take_ready().committed
    assert ([entry.index for entry in rest], group.applied) == ([3], 1)


def test_nothing_is_applied_twice_when_an_answer_is_empty() -> None:
    group = replica(terms=(1,), commit=1)
    group.take_ready()
    group.step(Message(M.STORAGE_APPLY_RESPONSE, "a", "a"))
    assert (group.applied, group.take_ready().committed) == (0, ())


# --- What left memory -------------------------------------------------------------------------------------------------

FEW: dict[str, Any] = {**PLAIN, "window_bytes_max": 4 * ENTRY_OVERHEAD_BYTES}


def long_leader(count: int = 12, **options: Any) -> Group:
    """A leader with 1 + `count` entries, of which `b` holds all and `c` the first; few are in memory."""
    group = leader(**{**FEW, **options})
    for index in range(2, count + 2):
        propose(group, 1, 0)
        acknowledge(group, "b", index)
    return group


def test_what_is_durable_and_applied_leaves_memory_beyond_the_window() -> None:
    group = long_leader()
    log = group.log
    assert (group.last.index, log.first_index, log.snapshot.index) == (13, 1, 0)
    assert 0 < len(log.entries) <= 4
    assert log.base.index + len(log.entries) == 13
    assert log.term_at(log.base.index) == 1
    assert log.term_at(log.base.index - 1) is None
    assert log.chain_at(1) == b""
    with pytest.raises(AssertionError, match="left memory"):
        log.entries_from(1, 2, 100)


def test_what_is_not_applied_stays_in_memory_however_small_the_window() -> None:
    group = leader(window_bytes_max=1)
    propose(group, 5)
    acknowledge(group, "b", 1)
    group.log.applied_to(1, 0)
    assert [entry.index for entry in group.log.entries] == [2, 3, 4, 5, 6]


def test_what_left_memory_is_sent_as_a_range_for_the_shell_to_read() -> None:
    group = long_leader()
    group.report_unreachable("c")
    (message,) = heartbeat_answer(group, "c").messages
    assert (message.type, message.to, message.index, message.log_term) == (M.APPEND, "c", 1, 0)
    assert message.range == EntryRange(2, group.log.base.index, group.options.message_bytes_max)
    assert (message.entries, message.commit) == ((), 13)


def test_one_range_at_a_time() -> None:
    group = long_leader()
    group.report_unreachable("c")
    heartbeat_answer(group, "c")
    base = group.log.base.index
    assert propose(group, 1).of(M.APPEND, "c") == []
    done = acknowledge(group, "c", 4)
    assert [message.range for message in done.of(M.APPEND, "c")] == [EntryRange(5, base, 1 << 20)]
    (message, *_) = acknowledge(group, "c", base).of(M.APPEND, "c")
    assert (message.range, message.index, len(message.entries)) == (None, base, group.last.index - base)
    assert group.progress["c"].state is ProgressState.REPLICATE


def test_a_follower_that_is_streamed_to_and_overtaken_by_the_window_goes_on_by_range() -> None:
    group = long_leader(inflight_messages_max=2)
    assert group.progress["c"].state is ProgressState.REPLICATE
    done = acknowledge(group, "c", 2)
    (message,) = done.of(M.APPEND, "c")
    assert message.range is not None
    assert (message.range.first_index, group.progress["c"].state) == (3, ProgressState.PROBE)


def test_where_the_log_begins_a_range_begins_too() -> None:
    group = long_leader()
    group.compact(Snapshot(3, 1, members()))
    acknowledge(group, "c", 3)
    group.report_unreachable("c")
    (message,) = heartbeat_answer(group, "c").messages
    assert (message.type, message.index, message.log_term, message.range is None) == (M.APPEND, 3, 1, False)


def test_a_follower_catches_up_by_ranges() -> None:
    network = Network(window_bytes_max=6 * ENTRY_OVERHEAD_BYTES, message_bytes_max=25)
    network.elect("a")
    network.isolate("c")
    for _ in range(30):
        network.propose("a", size_bytes=10)
    assert network["a"].log.base.index > 20
    network.heal()
    network.tick("a", times=4)
    assert [entry.id for entry in network.disks["c"].entries] == [entry.id for entry in network.disks["a"].entries]
    assert network["a"].is_at_rest


def test_a_refusal_that_points_to_what_left_memory_is_followed_without_knowing_the_term_there() -> None:
    group = long_leader()
    group.become_follower(group.term, "")
    lead(group, "b")
    done = acknowledge(group, "c", 13, reject=True, reject_hint=3, log_term=1)
    (message,) = done.of(M.APPEND, "c")
    assert (message.index, message.log_term, message.range) == (3, 0, EntryRange(4, group.log.base.index, 1 << 20))


def test_a_replica_may_come_back_with_only_the_end_of_its_log() -> None:
    base = EntryId(7, 2)
    end = entries(2, 3, first_index=8)
    state = Recovered(
        Snapshot(3, 1, members(), b"start"),
        base,
        b"base",
        end,
        HardState(3, "", 7),
        applied=7,
    )
    group = replica(recovered=lambda _: state)
    log = group.log
    assert [log.term_at(index) for index in (2, 3, 4, 7, 8, 9, 10)] == [None, 1, None, 2, 2, 3, None]
    assert [log.chain_at(index) for index in (3, 4, 7)] == [b"start", b"", b"base"]
    assert (log.first_index, group.last, group.applied, group.has_ready) == (4, EntryId(9, 3), 7, False)


def test_compaction_beyond_what_is_in_memory_and_within() -> None:
    group = long_leader()
    base = group.log.base
    group.compact(Snapshot(base.index - 1, 1, members()))
    untouched = group.log.base
    group.compact(Snapshot(base.index + 1, 1, members()))
    assert (untouched, group.log.base, group.log.first_index) == (base, EntryId(base.index + 1, 1), base.index + 2)
    assert group.log._window_bytes == len(group.log.entries) * ENTRY_OVERHEAD_BYTES


def test_the_window_is_counted_right_through_replacement_and_snapshots() -> None:
    group = replica(**PLAIN)
    group.step(Message(M.APPEND, "a", "b", 1, entries=entries(1, 1, 1, size_bytes=10)))
    group.step(Message(M.APPEND, "a", "b", 2, index=1, log_term=1, entries=entries(2, first_index=2, size_bytes=5)))
    replaced = group.log._window_bytes
    group.step(Message(M.SNAPSHOT, "a", "b", 2, snapshot=Snapshot(9, 2, members())))
    assert (replaced, group.log._window_bytes) == (2 * ENTRY_OVERHEAD_BYTES + 15, 0)


def test_an_entry_knows_its_identity_and_kind() -> None:
    entry = Entry(3, 2, EntryKind.CONFIGURATION, change=ConfigurationChange())
    assert (entry.id, entry.change is not None and entry.change.leaves_joint) == (EntryId(3, 2), True)
