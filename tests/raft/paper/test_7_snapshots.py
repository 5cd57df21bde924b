"""Section 7, "Log compaction"."""

from typing import Any

import pytest

from logd.raft.progress import ProgressState
from logd.raft.types import Configuration, EntryId, HardState, Message, MessageType, Recovered, Role, Snapshot
from tests.raft.network import Network
from tests.raft.support import acknowledge, entries, lead, replica, settle

M = MessageType
PLAIN: dict[str, Any] = {"pre_vote": False, "check_quorum": False}
MEMBERS = Configuration(frozenset("abc"), learners=frozenset("d"))


def snapshot(index: int, term: int = 1, configuration: Configuration = MEMBERS) -> Snapshot:
    return Snapshot(index, term, configuration)


def install(what: Snapshot, term: int = 2) -> Message:
    return Message(M.SNAPSHOT, "a", "b", term, snapshot=what)


def leader_behind_a_snapshot(match_index: int = 0, **options: Any) -> Any:
    """The leader `a`, whose log begins behind entry 5; `c` is known to hold up to `match_index`."""
    state = Recovered(snapshot(5), entries=entries(1, 1, first_index=6), hard_state=HardState(1, "", 7))
    group = lead(replica(recovered=lambda _: state, **{**PLAIN, **options}), "b")
    acknowledge(group, "b", 8)
    group.progress["c"].is_recently_active = True
    if match_index:
        acknowledge(group, "c", match_index)
    return group


def refuse(group: Any, sender: str, index: int, hint: int) -> list[Message]:
    message = Message(M.APPEND_RESPONSE, "a", sender, group.term, index=index, reject=True, reject_hint=hint)
    group.step(message)
    return settle(group).messages


# --- Giving ----------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_sent_when_the_next_entry_was_discarded() -> None:
    """Section 7: "when the leader has already discarded the next log entry that it needs to send to a follower"."""
    group = leader_behind_a_snapshot()
    messages = refuse(group, "c", 7, 3)
    assert [(message.type, message.to, message.snapshot) for message in messages] == [(M.SNAPSHOT, "c", snapshot(5))]
    assert group.progress["c"].state is ProgressState.SNAPSHOT


def test_the_log_is_used_where_it_reaches() -> None:
    """Section 7: only what was discarded needs a snapshot; "this situation is unlikely"."""
    group = leader_behind_a_snapshot()
    messages = refuse(group, "c", 7, 5)
    assert [(message.type, message.index, len(message.entries)) for message in messages] == [(M.APPEND, 5, 3)]


def test_nothing_is_sent_behind_a_snapshot_until_it_is_settled() -> None:
    """Section 7: the follower is busy; everything else would be refused."""
    group = leader_behind_a_snapshot()
    refuse(group, "c", 7, 3)
    group.propose("x")
    group.step(Message(M.HEARTBEAT_RESPONSE, "a", "c", group.term))
    assert [message.to for message in settle(group).of(M.APPEND)] == ["b"]


def test_a_snapshot_is_not_sent_to_somebody_who_is_silent() -> None:
    """Section 7 costs: a snapshot for a server that is away would be sent for nothing."""
    group = leader_behind_a_snapshot()
    progress = group.progress["c"]
    progress.is_recently_active, progress.is_append_paused, progress.next_index = False, False, 2
    group.propose("x")
    silent = settle(group).of(M.SNAPSHOT)
    progress.is_recently_active = True
    group.propose("x")
    assert (silent, [message.to for message in settle(group).of(M.SNAPSHOT)]) == ([], ["c"])


def test_after_a_snapshot_entries_follow() -> None:
    """Section 7: afterwards the follower is an ordinary one."""
    group = leader_behind_a_snapshot()
    refuse(group, "c", 7, 3)
    done = acknowledge(group, "c", 5)
    assert group.progress["c"].state is ProgressState.REPLICATE
    assert [(message.to, message.index, len(message.entries)) for message in done.of(M.APPEND)] == [("c", 5, 3)]


def test_an_answer_from_before_a_snapshot_does_not_end_it() -> None:
    """Section 7: what the follower says that it holds ends below where the log begins."""
    group = leader_behind_a_snapshot()
    refuse(group, "c", 7, 3)
    done = acknowledge(group, "c", 3)
    assert (group.progress["c"].state, done.of(M.APPEND, "c")) == (ProgressState.SNAPSHOT, [])


@pytest.mark.parametrize(("is_delivered", "next_index"), [(True, 6), (False, 1)])
def test_the_shell_can_say_what_became_of_a_snapshot(is_delivered: bool, next_index: int) -> None:
    """Section 7 in messages that can be lost: it is sent again, or what follows on it is probed."""
    group = leader_behind_a_snapshot()
    refuse(group, "c", 7, 3)
    group.report_snapshot("c", delivered=is_delivered)
    progress = group.progress["c"]
    assert (progress.state, progress.next_index, progress.is_paused) == (ProgressState.PROBE, next_index, True)
    group.step(Message(M.HEARTBEAT_RESPONSE, "a", "c", group.term))
    assert [message.type for message in settle(group).messages] == [M.APPEND if is_delivered else M.SNAPSHOT]


def test_a_report_of_a_snapshot_that_nobody_was_sent_means_nothing() -> None:
    """Section 7: it is too late, or of somebody who was removed."""
    group = leader_behind_a_snapshot(match_index=8)
    for name in "cz":
        group.report_snapshot(name, delivered=False)
    assert group.progress["c"].state is ProgressState.REPLICATE


def test_what_is_offered_may_be_newer_than_where_the_log_begins() -> None:
    """Section 7: a snapshot of the state machine stands at what is applied."""
    group = leader_behind_a_snapshot()
    group.offer_snapshot(snapshot(7))
    group.compact(snapshot(6))
    (message,) = refuse(group, "c", 7, 3)
    assert message.snapshot == snapshot(7)


def test_each_server_compacts_its_log_by_itself() -> None:
    """Section 7: "each server takes snapshots independently, covering just the committed entries in its log"."""
    network = Network(**PLAIN)
    network.elect("a")
    for _ in range(4):
        network.propose("a")
    network.compact("b", 3)
    group = network["b"]
    group.compact(snapshot(2))  # older than what was given up already
    assert (group.log.first_index, group.log.term_at(3), group.log.term_at(2)) == (4, 1, None)
    with pytest.raises(AssertionError, match="only what is applied"):
        group.compact(snapshot(9))


# --- Taking -----------------------------------------------------------------------------------------------------------


def test_a_snapshot_replaces_a_log_that_it_reaches_beyond() -> None:
    """Section 7: "the follower discards its entire log; it is all superseded by the snapshot"."""
    group = replica(terms=(1, 1), term=1, **PLAIN)
    group.step(install(snapshot(9, 2)))
    ready = group.take_ready()
    assert (ready.snapshot, ready.append, ready.must_sync) == (snapshot(9, 2), (), True)
    assert (group.last, group.commit_index, group.applied) == (EntryId(9, 2), 9, 0)
    assert group.configuration == MEMBERS
    for message in ready.responses:
        if message.to == "a":
            group.step(message)
    assert (group.applied, [message.index for message in ready.responses if message.to == "b"]) == (9, [9])


def test_a_snapshot_of_what_is_in_the_log_keeps_what_follows_it() -> None:
    """Section 7: "entries following the snapshot are still valid and must be retained"."""
    group = replica(terms=(1, 1, 1), **PLAIN)
    group.step(install(snapshot(2)))
    done = settle(group)
    assert (group.last, group.commit_index) == (EntryId(3, 1), 2)
    assert [(answer.type, answer.index) for answer in done.messages] == [(M.APPEND_RESPONSE, 2)]


def test_an_old_snapshot_changes_nothing() -> None:
    """Section 7: "receives a snapshot that describes a prefix of its log (due to retransmission …)"."""
    group = replica(terms=(1, 1, 1), commit=3, **PLAIN)
    group.step(install(snapshot(2)))
    done = settle(group)
    assert (group.last, group.commit_index, [answer.index for answer in done.messages]) == (EntryId(3, 1), 3, [3])


@pytest.mark.parametrize(("is_start", "last_index"), [(True, 9), (False, 0)])
def test_a_snapshot_of_a_time_when_the_receiver_was_no_member_is_only_taken_as_a_start(
    is_start: bool, last_index: int
) -> None:
    """Section 7, "latest configuration in the log as of last included index"."""
    group = replica(snapshot_is_start=is_start, **PLAIN)
    group.step(install(snapshot(9, 2, Configuration(frozenset("bc")))))
    assert group.last.index == last_index


@pytest.mark.parametrize(
    "configuration",
    [
        Configuration(frozenset("abc")),
        Configuration(frozenset("bc"), learners=frozenset("a")),
        Configuration(frozenset("bcd"), frozenset("abc")),
        Configuration(frozenset("bcd"), frozenset("abc"), learners_next=frozenset("a")),
    ],
)
def test_a_snapshot_brings_its_configuration(configuration: Configuration) -> None:
    """Section 7: "the snapshot also includes … the latest configuration"."""
    group = replica(snapshot_is_start=False, **PLAIN)
    group.step(install(snapshot(9, 2, configuration)))
    settle(group)
    assert group.configuration == configuration
    assert group.is_promotable is ("a" in configuration.voters | configuration.voters_outgoing)


def test_nobody_campaigns_while_a_snapshot_is_not_durable() -> None:
    """Section 7: until then the replica holds neither the old log nor the new one."""
    group = replica(term=1, **PLAIN)
    group.step(install(snapshot(9, 2)))
    group.campaign()
    before = group.role
    settle(group)
    group.campaign()
    assert (before, group.role) == (Role.FOLLOWER, Role.CANDIDATE)


def test_a_snapshot_that_became_durable_after_the_term_changed_counts() -> None:
    """Section 7: it holds only what is committed, which no later leader changes."""
    group = replica(term=1, **PLAIN)
    group.step(install(snapshot(9, 2)))
    ready = group.take_ready()
    group.step(Message(M.HEARTBEAT, "a", "c", 5))
    for message in ready.responses:
        if message.to == "a":
            group.step(message)
    assert (group.term, group.applied, group.log.pending_snapshot) == (5, 9, None)


def test_a_second_snapshot_may_overtake_the_first_on_its_way_to_the_disk() -> None:
    """Section 7: the later one supersedes everything before it, also a snapshot."""
    group = replica(term=1, **PLAIN)
    group.step(install(snapshot(9, 2)))
    first = group.take_ready()
    group.step(install(snapshot(12, 2)))
    second = group.take_ready()
    pending = []
    for message in (*first.responses, *second.responses):
        if message.to == "a":
            group.step(message)
            pending.append(group.log.pending_snapshot)
    assert pending == [snapshot(12, 2), None]
    assert (second.snapshot, second.must_sync, group.applied) == (snapshot(12, 2), True, 12)


def test_a_snapshot_that_replaces_what_was_being_applied_is_not_confused_by_it() -> None:
    """Section 7: what was handed out to be applied is still answered, and is behind the snapshot."""
    group = replica(terms=(1, 1, 1), commit=2, **PLAIN)
    handed_out = group.take_ready().committed
    group.step(install(snapshot(9, 2)))
    ready = group.take_ready()
    group.on_applied(handed_out[-1].index)
    for message in ready.responses:
        if message.to == "a":
            group.step(message)
    assert (len(handed_out), ready.committed, group.applied) == (2, (), 9)


def test_a_follower_far_behind_catches_up_by_snapshot_and_log() -> None:
    """Section 7 as a whole."""
    network = Network()
    network.elect("a")
    network.isolate("c")
    for _ in range(6):
        network.propose("a")
    network.compact("a", 4)
    network.heal()
    network.tick("a", times=3)
    assert network["c"].last == network["a"].last
    assert network["c"].log.first_index == 5
    assert network.disks["c"].snapshot.index == 4
    assert network["a"].is_at_rest


def test_a_new_member_whose_snapshot_was_made_before_it_joined_is_a_member_after_it() -> None:
    """Section 7; the configuration that admits it follows in the log."""
    network = Network("ab", learners="c")
    network.elect("a")
    network.propose("a")
    network.isolate("c")
    network.compact("a", 2)
    network.heal()
    network.tick("a", times=3)
    assert network["c"].last == network["a"].last
