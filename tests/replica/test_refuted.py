"""Claims that were once found to be false: each is a history that an adversarial reader came up with."""

from typing import Any

from logd.raft.types import (
    ChangeKind,
    ChangeStep,
    ConfigurationChange,
    GroupOptions,
    Message,
    MessageType,
    Role,
    Transition,
)
from logd.replica.frames import PeerFrame, decode_frame, encode_frame, entry_of_stamped
from logd.replica.types import DriverOptions, InstallStart, ReadAt
from tests.replica.cluster import GROUP, NAMES, Cluster, Node
from tests.replica.harness import WALL_MS, batch_of
from wire.errors import NotLeader
from wire.record import HEADER_BYTES, ControlKind, Stamp, StampedBatch, control_batch, stamp


def led(names: tuple[str, ...] = NAMES, **how: Any) -> tuple[Cluster, Node]:
    """A cluster that its first node leads."""
    cluster = Cluster(names, **how)
    return cluster, cluster.elect(names[0])


def change(kind: ChangeKind, *names: str, transition: Transition = Transition.AUTO) -> ConfigurationChange:
    return ConfigurationChange(tuple(ChangeStep(kind, name) for name in names), transition)


def to_driver(node: Node, sender: str, *messages: Message) -> None:
    """Let a peer's messages arrive in one frame."""
    level = node.options.feature_level
    node.driver.on_frame(sender, encode_frame(PeerFrame(level, None, [(GROUP, message) for message in messages])))


# --- What a change of membership leaves on disk -----------------------------------------------------------------------


def slow_follower(*, transition: Transition | None) -> tuple[Cluster, Node]:
    """n3's disk got two changes of n1's in one round, before it knew of either that it is committed.

    With a transition, the two are the entry into a joint configuration and the way out of it.
    """
    names = ("n1", "n2", "n3", "n4", "n5")
    cluster, leader = led(names, voters=NAMES)
    for name in ("n4", "n5"):
        leader.driver.change_membership(GROUP, change(ChangeKind.ADD_LEARNER, name), name)
        cluster.tick(3)
    slow = cluster["n3"]
    slow.hangs = True
    leader.produce("busy", batch_of())
    if transition is None:
        leader.driver.change_membership(GROUP, change(ChangeKind.ADD_VOTER, "n4"), "first")
        cluster.tick(2)
        leader.driver.change_membership(GROUP, change(ChangeKind.ADD_VOTER, "n5"), "second")
        cluster.settle()
    else:
        steps = (
            ChangeStep(ChangeKind.REMOVE, "n2"),
            ChangeStep(ChangeKind.REMOVE, "n3"),
            ChangeStep(ChangeKind.ADD_VOTER, "n4"),
            ChangeStep(ChangeKind.ADD_VOTER, "n5"),
        )
        leader.driver.change_membership(GROUP, ConfigurationChange(steps, transition), "first")
        cluster.tick(2)
    slow.hangs = False
    for _ in range(2):
        slow.take_round()
        slow.durable()
    return cluster, slow


def test_no_second_change_is_durable_where_the_first_is_not_known_to_be_committed() -> None:
    """Whoever finds both in its log and applied neither would count by a configuration of two changes ago."""
    cluster, slow = slow_follower(transition=None)
    log = slow.disk[GROUP]
    changes = [batch.header.index for batch in log.batches if batch.header.is_control][3:]
    assert len(changes) == 2, "both changes are on the disk"
    slow.restart()
    assert log.hard_state is not None
    assert log.hard_state.commit >= changes[0]
    assert slow.driver.core(GROUP).configuration.voters >= {"n1", "n2", "n3", "n4"}
    # Two of the three voters of old elect nobody, for others may decide without them.
    cluster.isolate("n2", "n3")
    cluster.tick(60, "n3", "n2")
    assert not slow.leads()


def test_no_way_out_of_a_joint_configuration_is_durable_where_the_way_in_is_not_known_to_be_committed() -> None:
    cluster, slow = slow_follower(transition=Transition.IMPLICIT)
    slow.restart()
    log = slow.disk[GROUP]
    assert len([batch for batch in log.batches if batch.header.is_control]) == 5, "both changes are on the disk"
    assert slow.driver.core(GROUP).configuration.is_joint
    assert cluster["n1"].driver.core(GROUP).configuration.voters == {"n1", "n4", "n5"}


# --- What was promised of what is not written any more ----------------------------------------------------------------


def overtaken() -> tuple[Cluster, Node, Node]:
    """n3 had entries of its leader in its queue when that sent it a start in their place, whose file is not written."""
    cluster, leader = led()
    lagging = cluster["n3"]
    cluster.tick(2)
    lagging.hangs = True
    lagging.writes_starts = False
    leader.produce("under way", batch_of())
    for reply in range(3):
        leader.produce(reply, batch_of())
    # It hears no more, and what it needs next is given up.
    cluster.isolate("n3")
    for reply in range(10, 20):
        leader.produce(reply, batch_of())
    assert leader.driver.propose_retention(GROUP, 12, 11, cluster.reading)
    cluster.tick(2)
    assert leader.disk[GROUP].start.index == 12
    leader.driver.core(GROUP).report_unreachable("n3")
    cluster.heal()
    cluster.tick(3)
    assert any(isinstance(effect, InstallStart) for effect in lagging.effects)
    return cluster, leader, lagging


def test_nothing_is_promised_of_entries_that_a_start_took_the_place_of_before_they_were_written() -> None:
    cluster, leader, lagging = overtaken()
    lagging.hangs = False
    cluster.settle()
    held = lagging.disk[GROUP].end.index
    assert leader.driver.status(GROUP).progress["n3"].match_index <= held
    # A crash is not a loss, then: nobody tells it of a commit that it does not hold.
    lagging.restart()
    lagging.writes_starts = True
    cluster.tick(30)
    cluster.check_equal()


def test_nothing_is_promised_of_entries_that_another_leader_replaced_before_they_were_written() -> None:
    cluster, leader = led()
    lagging = cluster["n3"]
    cluster.tick(2)
    cluster.isolate("n2")
    lagging.hangs = True
    leader.produce("under way", batch_of())
    cluster.cut |= {("n3", "n1")}
    for reply in range(3):
        leader.produce(reply, batch_of())
    core = lagging.driver.core(GROUP)
    index, term = core.last.index, core.term
    first = index - 2
    to_driver(lagging, "n2", append_of(lagging, first, term + 1))
    assert core.last == (first, term + 1)
    lagging.driver.take_frames()
    lagging.hangs = False
    lagging.durable()
    sent = [message for _, frame in lagging.driver.take_frames() for _, message in messages_of(frame)]
    assert sent, "what is durable is said"
    assert [message for message in sent if message.index >= first and message.term == term] == []


# --- Inputs between which nothing was taken out -----------------------------------------------------------------------


def append_of(node: Node, index: int, term: int) -> Message:
    """What a leader of `term` sends to replace all from `index` on by its no-op."""
    log = node.driver.core(GROUP).log
    previous = index - 1
    batch = control_batch(ControlKind.NO_OP, timestamp_ms=WALL_MS)
    entry = entry_of_stamped(stamp(batch, Stamp(0, index, term, WALL_MS, log.chain_at(previous))))
    return Message(
        MessageType.APPEND, term=term, index=previous, log_term=log.term_at(previous) or 0, commit=0, entries=(entry,)
    )


def messages_of(frame: bytes) -> list[tuple[int, Message]]:
    return decode_frame(frame, "x", "y").messages


def test_a_leader_that_is_replaced_before_anything_of_it_was_sent_sends_nothing() -> None:
    """Both elections' messages may wait for a process that was stopped."""
    cluster = Cluster()
    node = cluster["n1"]
    core = node.driver.core(GROUP)
    cluster.isolate("n1")
    while node.driver.status(GROUP).role is not Role.PRE_CANDIDATE:
        cluster.tick(1, "n1")
    to_driver(node, "n2", Message(MessageType.PRE_VOTE_RESPONSE, term=core.term + 1))
    cluster.settle()
    term = core.term
    to_driver(node, "n2", Message(MessageType.VOTE_RESPONSE, term=term))
    assert node.leads()
    to_driver(node, "n3", append_of(node, 1, term + 1))
    assert not node.leads()
    frames = node.driver.take_frames()
    assert {message.term for _, frame in frames for _, message in messages_of(frame)} <= {term + 1}
    cluster.settle()
    assert node.disk[GROUP].end.term == term + 1


def test_a_change_of_membership_that_was_replaced_at_once_is_not_answered_as_made() -> None:
    cluster, leader = led(("n1", "n2", "n3", "n4"), voters=NAMES)
    leader.driver.change_membership(GROUP, change(ChangeKind.ADD_LEARNER, "n4"), "learner")
    cluster.tick(3)
    core = leader.driver.core(GROUP)
    index, term = core.last.index + 1, core.term
    cluster.isolate("n1")
    assert leader.driver.change_membership(GROUP, change(ChangeKind.ADD_VOTER, "n4"), "change") is None
    to_driver(leader, "n2", append_of(leader, index, term + 1)._replace(commit=index))
    cluster.settle()
    assert core.applied == index
    assert isinstance(leader.outcome("change"), NotLeader)


# --- Reads ------------------------------------------------------------------------------------------------------------


def test_the_answer_to_a_read_of_an_earlier_life_answers_none_of_this_one() -> None:
    cluster, leader = led()
    follower = cluster["n3"]
    cluster.tick(2)
    term = leader.driver.term(GROUP)
    follower.driver.read_index(GROUP, "before")
    (asked,) = [message for _, frame in follower.driver.take_frames() for _, message in messages_of(frame)]
    index = leader.driver.commit_index(GROUP)
    late = Message(MessageType.READ_INDEX_RESPONSE, term=term, index=index, context=asked.context)
    follower.restart()
    cluster.tick(2)
    cluster.isolate("n3")
    assert leader.produce("news", batch_of()) is None
    follower.driver.read_index(GROUP, "after")
    to_driver(follower, "n1", late)
    cluster.settle()
    assert not [outcome for outcome in follower.answers.get("after", []) if isinstance(outcome, ReadAt)]


def test_a_read_that_waits_is_answered_when_a_start_brings_what_it_waits_for() -> None:
    cluster, leader = led()
    lagging = cluster["n3"]
    cluster.isolate("n3")
    for reply in range(5):
        leader.produce(reply, batch_of())
    upto = leader.driver.commit_index(GROUP)
    # The decision itself stands behind the start, and does not come through.
    assert leader.driver.propose_retention(GROUP, upto, 5, cluster.reading)
    cluster.tick(2)
    lagging.hangs = True
    cluster.heal()
    cluster.tick(3)
    assert lagging.driver.core(GROUP).log.snapshot.index == upto
    core = lagging.driver.core(GROUP)
    lagging.driver.read_index(GROUP, "read")
    lagging.driver.take_frames()
    (context,) = lagging.driver._replicas[GROUP].reads
    cluster.isolate("n3")
    to_driver(lagging, "n1", Message(MessageType.READ_INDEX_RESPONSE, term=core.term, index=upto, context=context))
    lagging.hangs = False
    cluster.settle()
    assert core.applied == upto
    assert lagging.outcome("read") == ReadAt(upto, 5)


# --- Voters that are wanted -------------------------------------------------------------------------------------------


def test_a_leader_that_is_not_wanted_goes_on_while_nobody_who_is_wanted_can_take_over() -> None:
    cluster, _ = led(("n1", "n2", "n3", "n4", "n5"))
    cluster.tick(2)
    cluster.isolate("n2")
    for node in cluster.nodes.values():
        node.driver.want_voters(GROUP, frozenset(("n2", "n3", "n4", "n5")))
    cluster.tick(15)
    for node in cluster.nodes.values():
        if node.name != "n2":
            assert node.driver.core(GROUP).leader != "n1"
    new = cluster.leader()
    new.produce("a", batch_of())
    cluster.tick(2)
    assert new.produced("a").base_offset == 0


def test_a_node_that_is_wanted_and_does_not_come_keeps_no_other_from_coming() -> None:
    cluster, leader = led(("n1", "n2", "n3", "n4", "n5"), voters=NAMES)
    cluster.isolate("n4")
    for node in cluster.nodes.values():
        node.driver.want_voters(GROUP, frozenset(("n1", "n2", "n4", "n5")))
    cluster.tick(20)
    configuration = leader.driver.core(GROUP).configuration
    assert "n5" in configuration.voters
    assert "n4" in configuration.learners
    # Nobody goes before all are there who are to come.
    assert "n3" in configuration.voters


# --- Bounds -----------------------------------------------------------------------------------------------------------


def test_what_is_to_be_said_while_the_disk_hangs_does_not_pile_up() -> None:
    cluster, leader = led()
    cluster.tick(2)
    hung = cluster["n3"]
    hung.hangs = True
    leader.produce("a", batch_of())
    leader.produce("b", batch_of())
    cluster.tick(10)
    before = len(waiting_messages(hung))
    cluster.tick(100)
    assert len(waiting_messages(hung)) <= before + 10
    hung.hangs = False
    cluster.tick(3)
    cluster.check_equal()


def waiting_messages(node: Node) -> list[Message]:
    return [message for item in node.driver._replicas[GROUP].unwritten if type(item) is tuple for message in item]


def test_the_starts_of_many_groups_are_not_sent_in_one_frame() -> None:
    """Each holds a table of producers: together they would be more than a frame may have, whenever they are sent."""
    options = DriverOptions(frame_bytes_max=400)
    groups = (1, 2, 3, 4, 5, 6)
    cluster = Cluster(groups=groups, options=options)
    lagging = cluster["n3"]
    cluster.isolate("n3")
    for group in groups:
        leader = cluster.elect("n1", group)
        for producer_id in range(1, 12):
            leader.produce((group, producer_id), batch_of(producer_id=producer_id), group)
        assert leader.driver.propose_retention(group, 11, 10, cluster.reading)
    cluster.tick(2)
    sizes: list[int] = []
    deliver = cluster.deliver

    def recording(sender: str, to: str, frame: bytes) -> None:
        sizes.append(len(frame))
        deliver(sender, to, frame)

    cluster.deliver = recording  # type: ignore[method-assign]  # that is where frames come by
    cluster.heal()
    cluster.tick(5)
    starts = [len(cluster["n1"].disk[group].start.producers) for group in groups]
    assert sum(starts) > 2 * 400
    # Two starts at most, and what else there is of a message.
    assert max(sizes) < 900
    for group in groups:
        cluster.check_equal(group)
    assert lagging.disk[6].start.index == 11


# --- Damage -----------------------------------------------------------------------------------------------------------


def test_what_is_damaged_on_the_leaders_disk_is_not_sent_and_holds_up_no_other_group() -> None:
    options = DriverOptions(raft=GroupOptions(window_bytes_max=2_000, message_bytes_max=500))
    cluster, leader = led(options=options, groups=(1, 2))
    cluster.elect("n1", 2)
    lagging = cluster["n3"]
    cluster.isolate("n3")
    for reply in range(60):
        leader.produce(reply, batch_of())
    leader.produce("other", batch_of(), 2)
    log = leader.disk[GROUP]
    damaged = log.batches[20]
    payload = bytearray(damaged.payload)
    payload[-1] ^= 1
    log.batches[20] = StampedBatch(damaged.header, damaged.to_bytes()[:HEADER_BYTES], memoryview(payload))
    cluster.heal()
    cluster.tick(10)
    assert lagging.driver.high_watermark(2) == 1
    # Somebody else, whose disk is whole, feeds it.
    assert cluster["n2"].leads()
    assert lagging.disk[GROUP].end.index > 60
    log.batches[20] = damaged
    cluster.tick(10)
    cluster.check_equal()


def test_a_start_that_retention_moved_does_not_come_after_one_that_replaced_the_log() -> None:
    cluster, leader = led(groups=(1, 2))
    cluster.elect("n1", 2)
    lagging = cluster["n3"]
    for reply in range(10):
        for group in (1, 2):
            leader.produce((group, reply), batch_of(), group)
    cluster.tick(2)
    lagging.hangs = True
    leader.produce("under way", batch_of())
    for group, index in ((1, 3), (1, 5), (2, 4)):
        lagging.driver.install(group, lagging.disk[group].start_at(lagging, index), None)
    cluster.isolate("n3")
    for reply in range(20):
        leader.produce(("more", reply), batch_of(), 2)
    assert leader.driver.propose_retention(2, 20, 19, cluster.reading)
    cluster.tick(2)
    cluster.heal()
    cluster.tick(3)
    assert lagging.driver.core(2).log.snapshot.index == 20
    lagging.hangs = False
    cluster.tick(5)
    assert (lagging.disk[1].start.index, lagging.disk[2].start.index) == (5, 20)
    cluster.check_equal(2)


def test_no_checkpoint_is_made_of_a_log_with_the_membership_of_the_start_that_is_to_replace_it() -> None:
    """It would be believed where the process ends before the start is durable."""
    cluster, leader = led(("n1", "n2", "n3", "n4"), voters=NAMES)
    lagging = cluster["n3"]
    leader.produce("a", batch_of())
    cluster.tick(2)
    before = lagging.driver.producers_of(GROUP)
    assert before is not None
    cluster.isolate("n3")
    leader.driver.change_membership(GROUP, change(ChangeKind.ADD_LEARNER, "n4"), "learner")
    for reply in range(5):
        leader.produce(reply, batch_of())
    assert leader.driver.propose_retention(GROUP, 6, 4, cluster.reading)
    cluster.tick(2)
    lagging.writes_starts = False
    cluster.heal()
    cluster.tick(3)
    assert lagging.driver.core(GROUP).log.snapshot.index == 6
    assert lagging.driver.producers_of(GROUP) in (None, before)


def test_a_read_whose_index_is_never_applied_here_is_given_up_after_a_time() -> None:
    cluster, leader = led()
    follower = cluster["n3"]
    cluster.tick(2)
    follower.hangs = True
    leader.produce("a", batch_of())
    assert follower.driver.read_index(GROUP, "read") is None
    cluster.settle()
    cluster.tick(60)
    assert isinstance(follower.outcome("read"), NotLeader)
    follower.hangs = False
    cluster.tick(2)
    assert len(follower.answers["read"]) == 1
