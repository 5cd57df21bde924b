"""Claims about the driver: what goes into a round, what is answered when, and what becomes of groups."""

from typing import Any

import pytest

from logd.meta.commands import AlterTopic, CreateTopic, DeleteTopic, InitProducer
from logd.meta.state import META_GROUP, MetaState, ProducerGranted, TopicChanged, TopicRemoved
from logd.raft.types import HardState
from logd.replica.driver import META_BATCHES_PER_SNAPSHOT
from logd.replica.room import Admission
from logd.replica.types import CreateGroup, DriverOptions, MoveStart, SnapshotMeta
from logd.store.format import HardState as StoredHardState
from logd.store.format import LogEnd
from logd.store.round import Append, Remove, SetHardState, SetStart
from tests.replica.harness import (
    FIRST_CHAIN,
    NODE,
    TOPIC_ID,
    WALL_MS,
    FakeRoom,
    Harness,
    appended,
    batch_of,
    check_log,
    empty_log,
    kinds,
    ready,
    recovered_log,
    replay,
    start_after,
)
from wire.errors import (
    CorruptBatch,
    DiskFull,
    DuplicateSequence,
    Fenced,
    InvalidBatch,
    NotLeader,
    OffsetMismatch,
    Overloaded,
    SequenceGap,
    TopicExists,
    TopicNotFound,
    UnknownProducer,
)
from wire.messages import Produced
from wire.record import ControlKind, decode_control
from wire.types import Acks, Durability

# --- Leading ----------------------------------------------------------------------------------------------------------


def test_a_group_votes_durably_before_it_leads_and_begins_with_a_no_op() -> None:
    node = Harness()
    node.driver.open_group(empty_log(5))
    assert node.round() == [SetHardState(5, StoredHardState(1, NODE, 0))]
    assert node.driver.high_watermark(5) is None
    (entry,) = node.take_round()
    assert isinstance(entry, Append)
    assert decode_control(entry.batch.header, entry.batch.to_bytes()) == (ControlKind.NO_OP, [])
    assert node.driver.high_watermark(5) is None
    assert node.durable() == [5]
    assert node.driver.high_watermark(5) == 0
    assert not node.driver.has_work


def test_batches_that_come_before_a_group_leads_stand_behind_its_no_op() -> None:
    node = Harness()
    node.driver.open_group(empty_log(5))
    node.produce(5, "early", batch_of())
    assert kinds(node.round()) == [(SetHardState, 5)]
    entries = node.round()
    assert [batch.header.is_control for batch in appended(entries, 5)] == [True, False]
    assert node.produced("early").base_offset == 0
    check_log(node.logs[5])


def test_what_was_recovered_is_readable_once_the_own_term_commits() -> None:
    node = Harness()
    node.driver.open_group(recovered_log(5, LogEnd(9, 4, 70, 8, FIRST_CHAIN), HardState(4, NODE, 9)))
    assert node.round() == [SetHardState(5, StoredHardState(5, NODE, 9))]
    assert node.driver.high_watermark(5) is None
    node.round()
    assert node.driver.high_watermark(5) == 70
    assert node.driver.commit_index(5) == 10
    assert node.driver.term(5) == 5


def test_what_is_appended_first_is_stamped_behind_what_was_recovered() -> None:
    node = Harness()
    end = LogEnd(9, 4, 70, WALL_MS + 5, b"\x09" * 32)
    node.driver.open_group(recovered_log(5, end, HardState(4, NODE, 9)))
    node.produce(5, "a", batch_of())
    node.settle()
    no_op, batch = appended(node.entries, 5)
    assert (no_op.header.index, no_op.header.base_offset, no_op.header.previous_chain) == (10, 70, end.chain)
    assert no_op.header.append_timestamp == batch.header.append_timestamp == WALL_MS + 5
    assert node.produced("a").base_offset == 70


def test_a_lost_end_answers_nothing_else_and_disturbs_nobody() -> None:
    node, (group,) = ready()
    end = LogEnd(3, 1, 3, WALL_MS, FIRST_CHAIN)
    lost = "the log ends before index 7, which was promised"
    node.driver.open_group(recovered_log(50, end, HardState(1, NODE, 3), lost=lost))
    error = node.produce(50, "a", batch_of())
    assert isinstance(error, CorruptBatch)
    assert "index 7" in str(error)
    node.driver.propose_retention(50, 3, 3, node.reading)
    assert node.produce(group, "b", batch_of()) is None
    assert {group for _, group in kinds(node.round())} == {group}
    assert node.produced("b").base_offset == 0
    assert node.driver.lost(50)
    assert not node.driver.lost(group)
    assert node.driver.high_watermark(50) is None


# --- Appending --------------------------------------------------------------------------------------------------------


def test_batches_are_stamped_in_the_order_in_which_they_came() -> None:
    node, (group,) = ready()
    for reply in range(3):
        node.produce(group, reply, batch_of(reply + 1))
    assert len(node.round()) == 3
    node.produce(group, 3, batch_of(4))
    node.settle()
    assert [node.produced(reply).base_offset for reply in range(4)] == [0, 1, 3, 6]
    assert node.answered == [0, 1, 2, 3]
    assert node.driver.high_watermark(group) == 10
    check_log(node.logs[group])


def test_an_answer_names_the_place_and_what_was_achieved() -> None:
    node, (group,) = ready()
    node.produce(group, "a", batch_of())
    ((header, _, _),) = appended(node.round(), group)
    assert node.produced("a") == Produced(
        0, header.index, header.term, header.chain, Durability.QUORUM_FSYNC, (NODE,), duplicate=False
    )


def test_nothing_is_promised_before_the_round_is_durable() -> None:
    node, (group,) = ready()
    for acks in (Acks.LEADER, Acks.QUORUM):
        node.produce(group, acks, batch_of(), acks=acks)
    node.take_round()
    assert not node.answered
    assert node.driver.high_watermark(group) == 0
    node.durable()
    assert node.answered == [Acks.LEADER, Acks.QUORUM]
    assert node.driver.high_watermark(group) == 2


def test_without_acks_the_answer_comes_at_once_and_promises_nothing() -> None:
    node, (group,) = ready()
    node.produce(group, "a", batch_of(), acks=Acks.NONE)
    node.take_round()
    assert node.produced("a") == Produced(0, 0, 0, b"", Durability.NONE, ())
    node.durable()
    assert node.answered == ["a"]
    assert node.driver.high_watermark(group) == 1


def test_one_round_is_under_way_at_a_time() -> None:
    node, (group,) = ready()
    node.produce(group, "a", batch_of())
    node.take_round()
    node.produce(group, "b", batch_of())
    with pytest.raises(AssertionError, match="not durable yet"):
        node.take_round()
    node.durable()
    assert node.answered == ["a"]
    node.round()
    assert node.answered == ["a", "b"]


def test_a_round_of_removals_alone_is_under_way_too() -> None:
    node, (group,) = ready()
    node.command("delete", DeleteTopic("orders"))
    node.round()
    assert kinds(node.take_round()) == [(Remove, group)]
    with pytest.raises(AssertionError, match="not durable yet"):
        node.take_round()


def test_no_work_gives_no_round() -> None:
    node, _ = ready()
    assert not node.driver.has_work
    assert node.take_round() == []
    assert node.take_round() == []


def test_a_round_holds_what_waits_in_all_groups() -> None:
    node, groups = ready(partitions=3)
    for group in groups:
        node.produce(group, group, batch_of())
    assert kinds(node.round()) == [(Append, group) for group in groups]
    assert node.answered == list(groups)


def test_append_timestamps_follow_the_clock_and_never_go_down() -> None:
    node, (group,) = ready()
    times = []
    for step_ms in (0, 5_000, -3_000, 1_000):
        node.wall_ms += step_ms
        node.produce(group, object(), batch_of())
        ((header, _, _),) = appended(node.round(), group)
        times.append(header.append_timestamp - WALL_MS)
    assert times == [0, 5_000, 5_000, 5_000]


def test_a_clock_that_jumps_is_not_stamped() -> None:
    node, (group,) = ready()
    node.pass_ms(1_000)
    node.wall_ms += 3_600_000
    node.produce(group, "a", batch_of())
    ((header, _, _),) = appended(node.round(), group)
    assert header.append_timestamp == WALL_MS + 1_000
    assert node.driver.clock.jumps == 1


def test_an_expected_offset_is_compared_with_what_is_appended_not_what_is_committed() -> None:
    node, (group,) = ready()
    node.produce(group, "a", batch_of(2), expected_offset=0)
    node.produce(group, "b", batch_of(1), expected_offset=0)
    node.produce(group, "c", batch_of(1), expected_offset=2)
    node.round()
    assert node.produced("a").base_offset == 0
    assert isinstance(node.error("b"), OffsetMismatch)
    assert node.error("b").details == {"next_offset": 2}
    assert node.produced("c").base_offset == 2


def test_a_group_that_is_not_here_is_not_led() -> None:
    node, _ = ready()
    assert isinstance(node.produce(99, "a", batch_of()), NotLeader)
    node.driver.propose_retention(99, 1, 1, node.reading)
    node.driver.on_space(99, None)
    assert not node.driver.has_work
    assert node.driver.high_watermark(99) is None
    assert node.driver.producers_of(99) is None


# --- Idempotence ------------------------------------------------------------------------------------------------------


def send(
    node: Harness, group: int, reply: Any, sequence: int, *, epoch: int = 0, records: int = 1, acks: Acks = Acks.QUORUM
) -> None:
    batch = batch_of(records, producer_id=7, producer_epoch=epoch, base_sequence=sequence)
    assert node.produce(group, reply, batch, acks=acks) is None


def test_a_repeat_of_a_committed_batch_gets_the_original_place_at_once() -> None:
    node, (group,) = ready()
    send(node, group, "a", 0)
    node.round()
    send(node, group, "again", 0)
    assert node.take_round() == []
    original = node.produced("a")
    assert node.produced("again") == Produced(
        original.base_offset, original.index, 0, b"", Durability.QUORUM_FSYNC, (NODE,), duplicate=True
    )


@pytest.mark.parametrize("acks", [Acks.QUORUM, Acks.LEADER])
def test_a_repeat_of_an_uncommitted_batch_is_answered_when_the_original_commits(acks: Acks) -> None:
    node, (group,) = ready()
    send(node, group, "a", 0, acks=acks)
    send(node, group, "again", 0, acks=acks)
    node.take_round()
    assert not node.answered
    send(node, group, "and again", 0, acks=acks)
    node.durable()
    assert node.answered == ["a", "again"]
    node.settle()
    assert node.produced("again").duplicate
    assert node.produced("and again").duplicate
    assert len(node.logs[group]) == 2


def test_a_repeat_without_acks_does_not_wait() -> None:
    node, (group,) = ready()
    send(node, group, "a", 0, acks=Acks.NONE)
    send(node, group, "again", 0, acks=Acks.NONE)
    node.take_round()
    assert node.answered == ["a", "again"]
    node.durable()
    assert node.answered == ["a", "again"]


def test_five_batches_are_remembered_and_an_older_one_is_known_to_be_there() -> None:
    node, (group,) = ready()
    for sequence in range(7):
        send(node, group, sequence, sequence)
    node.round()
    for sequence in range(7):
        send(node, group, ("again", sequence), sequence)
    assert node.take_round() == []
    assert isinstance(node.error(("again", 0)), DuplicateSequence)
    assert isinstance(node.error(("again", 1)), DuplicateSequence)
    assert [node.produced(("again", sequence)).base_offset for sequence in range(2, 7)] == [2, 3, 4, 5, 6]


def test_a_gap_a_strange_batch_and_an_unknown_producer_are_refused_without_an_entry() -> None:
    node, (group,) = ready()
    send(node, group, "unknown", 5)
    send(node, group, "a", 0, records=2)
    send(node, group, "gap", 3)
    send(node, group, "strange", 1, records=4)
    send(node, group, "b", 2)
    assert len(node.round()) == 2
    assert isinstance(node.error("unknown"), UnknownProducer)
    assert isinstance(node.error("gap"), SequenceGap)
    assert isinstance(node.error("strange"), InvalidBatch)
    assert node.produced("b").base_offset == 2


def test_a_newer_epoch_fences_the_older_from_its_first_batch_on() -> None:
    node, (group,) = ready()
    send(node, group, "old", 0)
    send(node, group, "new", 0, epoch=1)
    send(node, group, "fenced", 1)
    node.round()
    assert node.produced("new").base_offset == 1
    assert isinstance(node.error("fenced"), Fenced)


def test_a_full_table_refuses_and_expiry_makes_room() -> None:
    node, (group,) = ready(DriverOptions(producers_max=1, producer_expiry_ms=1_000))
    send(node, group, "a", 0)
    node.settle()
    other = batch_of(producer_id=8)
    node.produce(group, "full", other)
    node.settle()
    assert isinstance(node.error("full"), Overloaded)
    node.pass_ms(1_001)
    node.produce(group, "room", other)
    node.settle()
    assert node.produced("room").base_offset == 1
    send(node, group, "forgotten", 1)
    node.settle()
    assert isinstance(node.error("forgotten"), Overloaded)


def test_a_refused_batch_leaves_no_trace_in_the_producers() -> None:
    node, (group,) = ready()
    before = node.driver.producers_of(group)
    send(node, group, "a", 3)
    node.produce(group, "b", batch_of(producer_id=7), expected_offset=9)
    node.settle()
    assert node.driver.producers_of(group) == before


# --- Room in the round, and on the disk -------------------------------------------------------------------------------


def test_what_does_not_fit_goes_into_the_next_round_in_order() -> None:
    node, (group,) = ready()
    batch = batch_of(value=b"x" * 100)
    for reply in range(5):
        node.produce(group, reply, batch)
    node.make_room = lambda: FakeRoom(batch_bytes_max=2 * len(batch))
    assert [len(node.round()) for _ in range(3)] == [2, 2, 1]
    assert [node.produced(reply).base_offset for reply in range(5)] == [0, 1, 2, 3, 4]
    assert not node.driver.has_work
    check_log(node.logs[group])


def test_a_group_that_always_has_more_than_a_round_keeps_nobody_out() -> None:
    node, (busy, calm) = ready(partitions=2)
    batch = batch_of(value=b"x" * 100)
    node.make_room = lambda: FakeRoom(batch_bytes_max=3 * len(batch))
    for reply in range(10):
        node.produce(busy, reply, batch)
    node.produce(calm, "calm", batch)
    for reply in range(10, 20):
        node.round()
        node.produce(busy, reply, batch)
        if "calm" in node.answered:
            break
    assert node.answered == [0, 1, 2, "calm", 3, 4]


def test_a_group_that_got_nothing_of_a_full_round_is_not_sent_behind_the_others() -> None:
    node, (first, second, third) = ready(partitions=3)
    batch = batch_of(value=b"x" * 100)
    node.make_room = lambda: FakeRoom(batch_bytes_max=len(batch))
    for group in (first, second, third):
        node.produce(group, group, batch)
    for _ in range(3):
        node.round()
    assert node.answered == [first, second, third]


def test_a_round_without_room_for_entries_leaves_them_for_the_next() -> None:
    node = Harness()
    for group in (1, 2, 3):
        node.driver.open_group(empty_log(group))
    node.make_room = lambda: FakeRoom(entries_max=2)
    assert kinds(node.round()) == [(SetHardState, 1), (SetHardState, 2)]
    node.settle()
    assert [node.driver.high_watermark(group) for group in (1, 2, 3)] == [0, 0, 0]


def test_batches_wait_for_space_and_others_do_not_wait_for_them() -> None:
    node, (short, other) = ready(partitions=2)
    room = FakeRoom(without_space={short})
    node.produce(short, "a", batch_of())
    node.produce(other, "b", batch_of())
    assert kinds(node.round(room)) == [(Append, other)]
    node.produce(short, "c", batch_of())
    assert node.take_round(room) == []
    assert not node.driver.has_work
    node.driver.on_space(short, None)
    assert kinds(node.round()) == [(Append, short), (Append, short)]
    assert node.answered == ["b", "a", "c"]


def test_what_was_appended_before_space_ran_out_is_answered() -> None:
    node, (group,) = ready()

    class OneBatch(FakeRoom):
        def admit(self, group: int, batch_bytes: int, *, control: bool, index: int) -> Admission:
            self.without_space = {group} if self.batch_bytes else set()
            return super().admit(group, batch_bytes, control=control, index=index)

    node.produce(group, "a", batch_of())
    node.produce(group, "b", batch_of())
    assert len(node.round(OneBatch())) == 1
    assert node.answered == ["a"]
    assert not node.driver.has_work


def test_without_space_all_that_waits_for_it_is_refused_and_writing_goes_on_later() -> None:
    node, (group,) = ready()
    room = FakeRoom(without_space={group})
    node.produce(group, "a", batch_of())
    node.round(room)
    node.produce(group, "b", batch_of(), acks=Acks.NONE)
    node.driver.on_space(group, DiskFull("no space"))
    node.collect()
    assert isinstance(node.error("a"), DiskFull)
    assert isinstance(node.error("b"), DiskFull)
    assert node.driver.waiting_bytes == 0
    node.produce(group, "c", batch_of())
    node.settle()
    assert node.produced("c").base_offset == 0


def test_control_batches_outlive_a_full_disk() -> None:
    node = Harness()
    node.driver.open_group(empty_log(5))
    node.round()
    node.produce(5, "a", batch_of())
    assert node.round(FakeRoom(without_reserve={5})) == []
    node.driver.on_space(5, DiskFull("no space"))
    node.collect()
    assert isinstance(node.error("a"), DiskFull)
    node.driver.on_space(5, None)
    node.settle()
    assert node.driver.high_watermark(5) == 0
    assert node.driver.waiting_bytes == 0
    assert len(node.logs[5]) == 1


def test_commands_are_carried_out_out_of_the_reserve() -> None:
    node, (group,) = ready()
    node.make_room = lambda: FakeRoom(without_space={META_GROUP, group})
    assert node.command("delete", DeleteTopic("orders")) is None
    node.settle()
    assert isinstance(node.outcome("delete"), TopicRemoved)


def test_the_bytes_that_wait_are_bounded() -> None:
    batch = batch_of(value=b"x" * 1_000)
    node, (group,) = ready(DriverOptions(waiting_bytes_max=2 * len(batch)))
    assert node.produce(group, "a", batch) is None
    assert node.produce(group, "b", batch) is None
    error = node.produce(group, "c", batch_of())
    assert isinstance(error, Overloaded)
    assert error.retriable
    assert error.details["delay_seconds"] > 0
    assert node.driver.waiting_bytes == 2 * len(batch)
    node.take_round()
    # What is in the round is the disk's: there is room for as much again.
    assert node.driver.waiting_bytes == 0
    assert node.produce(group, "d", batch) is None
    node.durable()
    node.settle()
    assert node.answered == ["a", "b", "d"]


def test_a_batch_above_the_bound_is_taken_when_nothing_else_waits() -> None:
    node, (group,) = ready(DriverOptions(waiting_bytes_max=10))
    assert node.produce(group, "a", batch_of()) is None
    assert isinstance(node.produce(group, "b", batch_of()), Overloaded)
    node.settle()
    assert node.answered == ["a"]


# --- Group 0 ----------------------------------------------------------------------------------------------------------


def test_a_new_node_makes_group_0_first() -> None:
    node = Harness()
    node.driver.reconcile()
    node.driver.reconcile()
    (effect,) = node.driver.take_effects()
    assert isinstance(effect, CreateGroup)
    assert effect.group == META_GROUP
    node.install(META_GROUP)
    node.settle()
    assert node.driver.high_watermark(META_GROUP) == 0


def test_a_command_is_answered_with_its_outcome_when_it_is_durable() -> None:
    node, _ = ready()
    assert node.command("a", InitProducer(None)) is None
    assert node.command("b", CreateTopic("orders", TOPIC_ID, 1, {})) is None
    node.take_round()
    assert not node.answered
    node.durable()
    assert node.outcome("a") == ProducerGranted(1, 0)
    assert isinstance(node.error("b"), TopicExists)


def test_commands_of_one_round_are_applied_in_order() -> None:
    node, _ = ready()
    node.command("a", CreateTopic("audit", TOPIC_ID, 1, {}))
    node.command("b", DeleteTopic("audit"))
    node.command("c", DeleteTopic("audit"))
    node.round()
    assert isinstance(node.outcome("a"), TopicChanged)
    assert isinstance(node.outcome("b"), TopicRemoved)
    assert isinstance(node.error("c"), TopicNotFound)


def test_group_0_is_snapshotted_before_its_replay_gets_long() -> None:
    node, _ = ready()
    while node.driver.commit_index(META_GROUP) < 3 * META_BATCHES_PER_SNAPSHOT - 1:
        node.command(object(), InitProducer("billing"))
        node.round()
    indexes = [effect.header.index for effect in node.effects if isinstance(effect, SnapshotMeta)]
    assert indexes == [META_BATCHES_PER_SNAPSHOT, 2 * META_BATCHES_PER_SNAPSHOT]


def test_a_snapshot_and_the_log_behind_it_give_the_state() -> None:
    node = Harness()
    node.start_meta()
    for reply in range(META_BATCHES_PER_SNAPSHOT):
        node.command(reply, InitProducer("billing"))
    node.command("topic", CreateTopic("orders", TOPIC_ID, 2, {}))
    node.round()
    (snapshot,) = [effect for effect in node.effects if isinstance(effect, SnapshotMeta)]
    assert snapshot.header.index == META_BATCHES_PER_SNAPSHOT
    meta = MetaState.restore(snapshot.state)
    assert meta.digest() != node.driver.meta.digest()
    replay(meta, node.logs[META_GROUP][snapshot.header.index :])
    assert meta.digest() == node.driver.meta.digest()


def test_the_whole_log_of_group_0_gives_the_state() -> None:
    node, _ = ready()
    node.command("a", AlterTopic("orders", 3, {"x": "y"}))
    node.command("b", InitProducer("billing"))
    node.settle()
    meta = MetaState()
    replay(meta, node.logs[META_GROUP])
    assert meta.digest() == node.driver.meta.digest()


def test_a_command_that_this_software_cannot_read_stops_the_node() -> None:
    node, _ = ready()
    node.produce(META_GROUP, "newer", batch_of(value=b"\x92\x02\x01"))
    node.take_round()
    with pytest.raises(ValueError, match="version 2"):
        node.durable()


# --- Groups come and go -----------------------------------------------------------------------------------------------


def test_a_topic_becomes_groups_and_their_directories_come_first() -> None:
    node, _ = ready()
    node.command("a", CreateTopic("audit", TOPIC_ID, 2, {}))
    node.round()
    assert node.take_effects() == [CreateGroup(2, TOPIC_ID, 0), CreateGroup(3, TOPIC_ID, 1)]
    assert not node.driver.knows(2)
    assert isinstance(node.produce(2, "early", batch_of()), NotLeader)
    node.install(2)
    assert kinds(node.take_round()) == [(SetStart, 2)]
    assert not node.driver.knows(2)
    node.durable()
    assert node.driver.knows(2)
    node.settle()
    assert node.driver.high_watermark(2) == 0
    assert not node.driver.knows(3)


def test_a_directory_that_cannot_be_made_is_tried_again() -> None:
    node, _ = ready()
    node.command("a", CreateTopic("audit", TOPIC_ID, 1, {}))
    node.round()
    assert node.take_effects() == [CreateGroup(2, TOPIC_ID, 0)]
    node.driver.reconcile()
    assert node.driver.take_effects() == []
    node.driver.abandon(2)
    node.driver.reconcile()
    assert node.driver.take_effects() == [CreateGroup(2, TOPIC_ID, 0)]


def test_whoever_waits_in_a_deleted_topic_is_told() -> None:
    node, (group,) = ready()
    node.command("delete", DeleteTopic("orders"))
    node.take_round()
    for reply, acks in (("a", Acks.QUORUM), ("b", Acks.NONE)):
        node.produce(group, reply, batch_of(), acks=acks)
    node.driver.propose_retention(group, 1, 0, node.reading)
    node.durable()
    assert isinstance(node.error("a"), TopicNotFound)
    assert isinstance(node.error("b"), TopicNotFound)
    # Nobody waits for a control batch, so nobody is answered for it.
    assert node.answered == ["a", "b", "delete"]
    assert node.driver.waiting_bytes == 0
    assert kinds(node.round()) == [(Remove, group)]
    assert not node.driver.has_work


def test_whoever_is_in_the_round_of_the_deletion_is_told_once() -> None:
    node, (group,) = ready()
    send(node, group, "quorum", 0)
    send(node, group, "repeat", 0)
    node.produce(group, "none", batch_of(), acks=Acks.NONE)
    node.command("delete", DeleteTopic("orders"))
    # Group 0 is behind the partition in this round, so the batches commit first.
    node.round()
    assert node.produced("quorum").base_offset == 0
    assert node.produced("repeat").duplicate
    assert len(node.answered) == len(set(node.answered)) == 4


def test_a_deletion_ahead_of_a_batch_in_the_same_round_takes_it_along() -> None:
    node, (group,) = ready()
    node.command("delete", DeleteTopic("orders"))
    send(node, group, "quorum", 0)
    send(node, group, "repeat", 0)
    node.produce(group, "none", batch_of(), acks=Acks.NONE)
    node.round()
    assert isinstance(node.error("quorum"), TopicNotFound)
    assert isinstance(node.error("repeat"), TopicNotFound)
    assert node.produced("none").durability is Durability.NONE
    assert len(node.answered) == 4
    assert kinds(node.round()) == [(Remove, group)]
    assert isinstance(node.produce(group, "late", batch_of()), NotLeader)


def test_a_group_that_waits_for_space_can_be_removed() -> None:
    node, (group,) = ready()
    node.produce(group, "a", batch_of())
    node.round(FakeRoom(without_space={group}))
    node.command("delete", DeleteTopic("orders"))
    node.settle()
    assert isinstance(node.error("a"), TopicNotFound)
    node.driver.on_space(group, None)
    node.driver.on_space(group, DiskFull("no space"))
    node.collect()
    assert len(node.answers["a"]) == 1
    assert not node.driver.has_work


def delete_during_creation(node: Harness) -> int:
    """A topic that is created and deleted before its group's directory is made; returns the group."""
    node.command("create", CreateTopic("audit", TOPIC_ID, 1, {}))
    node.round()
    (effect,) = node.take_effects()
    assert isinstance(effect, CreateGroup)
    return effect.group


@pytest.mark.parametrize("stage", ["making", "installed", "in the round"])
def test_a_topic_deleted_while_its_group_is_made_leaves_nothing(stage: str) -> None:
    node, _ = ready()
    group = delete_during_creation(node)
    if stage == "making":
        node.command("delete", DeleteTopic("audit"))
        node.round()
        node.install(group)
    elif stage == "installed":
        node.command("delete", DeleteTopic("audit"))
        node.take_round()
        node.install(group)
        node.durable()
    else:
        node.install(group)
        node.command("delete", DeleteTopic("audit"))
    node.entries.clear()
    node.settle()
    assert not node.driver.knows(group)
    assert [entry for entry in kinds(node.entries) if entry[1] == group] == [(SetStart, group), (Remove, group)]
    assert not node.effects


def test_a_topic_created_and_deleted_in_one_round_leaves_nothing() -> None:
    node, _ = ready()
    node.command("create", CreateTopic("audit", TOPIC_ID, 1, {}))
    node.command("delete", DeleteTopic("audit"))
    node.entries.clear()
    node.settle()
    assert not node.driver.knows(2)
    assert kinds(node.entries)[-2:] == [(SetStart, 2), (Remove, 2)]


def test_a_topic_of_the_same_name_gets_another_group() -> None:
    node, (group,) = ready()
    node.command("delete", DeleteTopic("orders"))
    node.command("create", CreateTopic("orders", TOPIC_ID, 1, {}))
    node.settle()
    (other,) = node.driver.meta.topics["orders"].groups
    assert other != group
    assert not node.driver.knows(group)
    assert node.driver.high_watermark(other) == 0


# --- Retention --------------------------------------------------------------------------------------------------------


def test_retention_is_a_committed_decision_and_then_an_effect() -> None:
    node, (group,) = ready()
    node.produce(group, "a", batch_of(3))
    node.round()
    node.driver.propose_retention(group, 2, 3, node.reading)
    ((header, *_rest),) = appended(node.take_round(), group)
    assert header.is_control
    assert header.base_offset == header.next_offset == 3
    assert decode_control(header, node.logs[group][-1].to_bytes()) == (ControlKind.RETENTION, [2, 3])
    assert node.effects == []
    node.durable()
    assert node.effects == [MoveStart(group, 2)]
    assert node.answered == ["a"]
    assert node.driver.high_watermark(group) == 3


def test_a_new_start_goes_into_the_next_round_and_makes_no_new_replica() -> None:
    node, (group,) = ready()
    node.produce(group, "a", batch_of())
    node.round()
    start = start_after(node.logs[group][-1].header)
    node.driver.install(group, start, None)
    node.produce(group, "b", batch_of())
    # A start is alone of its group in a round.
    assert kinds(node.round()) == [(SetStart, group)]
    assert kinds(node.round()) == [(Append, group)]
    assert node.produced("b").base_offset == 1


def test_two_starts_of_one_group_go_into_two_rounds() -> None:
    node, (group,) = ready()
    for reply in range(2):
        node.produce(group, reply, batch_of())
    node.round()
    starts = [start_after(batch.header) for batch in node.logs[group][1:]]
    for start in starts:
        node.driver.install(group, start, None)
    assert node.round() == [SetStart(group, starts[0])]
    assert node.round() == [SetStart(group, starts[1])]


def test_a_start_does_not_bring_a_removed_group_back() -> None:
    node, (group, other) = ready(partitions=2)
    start = start_after(node.logs[group][-1].header)
    node.command("delete", DeleteTopic("orders"))
    node.take_round()
    node.driver.install(group, start, None)
    node.durable()
    node.driver.install(other, start, None)
    assert kinds(node.round()) == [(Remove, group), (Remove, other)]
    assert not node.driver.has_work


def test_a_decision_that_found_no_space_is_tried_again_and_no_second_one_waits_beside_it() -> None:
    node, (group,) = ready()
    node.make_room = lambda: FakeRoom(without_reserve={group})
    assert node.driver.propose_retention(group, 1, 0, node.reading)
    assert not node.driver.propose_retention(group, 1, 0, node.reading), "one waits already"
    assert node.take_round() == []
    node.driver.on_space(group, DiskFull("not even the reserve"))
    assert not node.driver.has_work, "it is not tried at once: the disk is as full as before"
    assert node.driver.is_short

    node.make_room = FakeRoom
    node.driver.retry_space()

    assert kinds(node.take_round()) == [(Append, group)]
    assert not node.driver.is_short
