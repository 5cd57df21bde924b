"""Claims about a few drivers that talk: what they agree on, what each of them answers, and who may rest or lead."""

import itertools
from typing import Any

import pytest

from logd.meta.commands import CreateTopic, DeleteTopic, InitProducer
from logd.meta.state import META_GROUP, ProducerGranted, TopicRemoved
from logd.raft.types import (
    ChangeKind,
    ChangeStep,
    Configuration,
    ConfigurationChange,
    EntryId,
    GroupOptions,
    Role,
    Transition,
)
from logd.replica.driver import META_BATCHES_PER_SNAPSHOT
from logd.replica.reconcile import next_change
from logd.replica.types import DriverOptions, InstallStart, MoveStart, ReadAt, ReadRange, Reconfigured
from logd.store.round import Append, SetHardState, SetStart
from tests.replica.cluster import GROUP, NAMES, Cluster, Node, members
from tests.replica.harness import TOPIC_ID, FakeRoom, batch_of, proposal
from wire.errors import (
    DuplicateSequence,
    InvalidRequest,
    NotLeader,
    OffsetMismatch,
    OutcomeUnknown,
    Overloaded,
    UnknownProducer,
)
from wire.types import Acks, Durability


def numbered(sequence: int, *, records: int = 1, producer_id: int = 7) -> bytes:
    return batch_of(records, producer_id=producer_id, base_sequence=sequence)


def led(names: tuple[str, ...] = NAMES, **how: Any) -> tuple[Cluster, Node]:
    """A cluster that its first node leads."""
    cluster = Cluster(names, **how)
    return cluster, cluster.elect(names[0])


def others(cluster: Cluster, node: Node) -> list[Node]:
    return [other for other in cluster.nodes.values() if other is not node]


# --- Producing --------------------------------------------------------------------------------------------------------


def test_a_batch_is_answered_when_a_majority_has_it_and_reaches_every_log() -> None:
    cluster, leader = led()
    assert leader.produce("a", batch_of(2)) is None
    cluster.tick(2)
    produced = leader.produced("a")
    assert (produced.base_offset, produced.durability) == (0, Durability.QUORUM_FSYNC)
    assert leader.name in produced.nodes
    assert len(produced.nodes) >= 2
    assert [node.driver.high_watermark(GROUP) for node in cluster.nodes.values()] == [2, 2, 2]
    cluster.check_equal()


def test_who_does_not_lead_says_who_does() -> None:
    cluster, leader = led()
    error = cluster["n2"].produce("a", batch_of())
    assert isinstance(error, NotLeader)
    assert error.details == {"leader": leader.name}


def test_a_leader_that_is_alone_promises_its_own_disk_and_nothing_more() -> None:
    cluster, leader = led()
    cluster.isolate("n1")
    leader.produce("none", batch_of(), acks=Acks.NONE)
    leader.produce("leader", batch_of(), acks=Acks.LEADER)
    leader.produce("quorum", batch_of())
    assert leader.produced("none").durability is Durability.NONE
    assert leader.produced("leader").durability is Durability.LEADER_FSYNC
    assert leader.produced("leader").nodes == ("n1",)
    assert "quorum" not in leader.answers
    assert leader.driver.high_watermark(GROUP) == 0
    cluster.heal()
    cluster.tick(3)
    assert leader.produced("quorum").base_offset == 2
    assert leader.driver.high_watermark(GROUP) == 3
    cluster.check_equal()


def test_what_waits_for_acks_of_the_leader_is_not_answered_before_its_round_is_durable() -> None:
    cluster, leader = led()
    leader.hangs = True
    leader.produce("leader", batch_of(), acks=Acks.LEADER)
    assert "leader" not in leader.answers
    leader.hangs = False
    cluster.settle()
    # The others had it on their disks meanwhile, or not: either way it is the leader's own that is promised.
    assert leader.produced("leader").durability in (Durability.LEADER_FSYNC, Durability.QUORUM_FSYNC)


def test_the_others_write_while_the_leader_writes() -> None:
    cluster, leader = led()
    leader.hangs = True
    leader.produce("a", batch_of())
    assert [node.disk[GROUP].end.index for node in cluster.nodes.values()] == [1, 2, 2]
    # Both others have it: that is a majority without the leader's own disk.
    assert leader.driver.commit_index(GROUP) == 2
    leader.hangs = False
    cluster.settle()
    assert leader.produced("a").base_offset == 0


def test_a_condition_is_compared_with_what_is_appended_and_holds_over_a_change_of_leader() -> None:
    cluster, leader = led()
    leader.produce("a", batch_of(3), expected=0)
    leader.produce("late", batch_of(), expected=0)
    assert leader.outcome("late").details == {"next_offset": 3}
    follower = cluster["n2"]
    assert leader.driver.transfer(GROUP, "n2")
    cluster.settle()
    assert follower.leads()
    follower.produce("wrong", batch_of(), expected=0)
    follower.produce("right", batch_of(), expected=3)
    assert isinstance(follower.outcome("wrong"), OffsetMismatch)
    assert follower.produced("right").base_offset == 3


def test_stamps_do_not_go_back_where_the_next_leaders_clock_is_behind() -> None:
    cluster, leader = led()
    cluster.now_ms += 5_000
    leader.produce("a", batch_of())
    cluster.now_ms -= 5_000
    leader.driver.transfer(GROUP, "n2")
    cluster.settle()
    cluster["n2"].produce("b", batch_of())
    stamps = [batch.header.append_timestamp for batch in leader.disk[GROUP].batches]
    assert stamps == sorted(stamps)
    assert stamps[-1] - stamps[0] > 4_000


# --- A leader that is replaced ----------------------------------------------------------------------------------------


def deposed(acks: Acks = Acks.QUORUM) -> tuple[Cluster, Node, Node]:
    """An old leader with a batch that nobody else has, cut off, and its successor."""
    cluster, old = led()
    old.produce("first", numbered(0))
    cluster.isolate("n1")
    old.produce("lost", numbered(1), acks=acks)
    new = cluster.elect("n2")
    return cluster, old, new


def test_a_batch_that_another_leader_replaced_is_answered_with_not_leader() -> None:
    cluster, old, new = deposed()
    assert "lost" not in old.answers
    new.produce("new", batch_of())
    cluster.heal()
    cluster.tick(3)
    assert isinstance(old.outcome("lost"), NotLeader)
    assert old.outcome("lost").details == {"leader": "n2"}
    cluster.check_equal()


def test_what_was_taken_back_is_not_remembered_of_its_producer() -> None:
    cluster, old, new = deposed()
    cluster.heal()
    cluster.tick(3)
    # Nothing of sequence 1 is anywhere: it is new to everybody, and to the old leader too when it leads again.
    assert new.driver.transfer(GROUP, "n1")
    cluster.settle()
    old.produce("again", numbered(1))
    assert not old.produced("again").duplicate
    assert old.produced("again").base_offset == 1
    cluster.tick(3)
    cluster.check_equal()


def test_a_repeat_that_waits_for_a_batch_that_is_taken_back_is_told_too() -> None:
    cluster, old, _ = deposed()
    old.produce("repeat", numbered(1))
    assert "repeat" not in old.answers
    cluster.heal()
    cluster.tick(3)
    assert isinstance(old.outcome("repeat"), NotLeader)
    assert isinstance(old.outcome("lost"), NotLeader)


def test_a_promise_of_the_leader_alone_may_be_taken_back_and_is_answered_once() -> None:
    cluster, old, _ = deposed(Acks.LEADER)
    assert old.produced("lost").durability is Durability.LEADER_FSYNC
    cluster.heal()
    cluster.tick(3)
    assert len(old.answers["lost"]) == 1
    cluster.check_equal()


def test_a_batch_that_survives_its_leader_is_answered_by_it_when_it_learns_so() -> None:
    cluster, old = led()
    cluster.cut = {("n2", "n1"), ("n3", "n1")}  # the old leader is heard, and hears nothing
    old.produce("a", batch_of())
    assert "a" not in old.answers
    cluster.isolate("n1")
    cluster.elect("n2")
    cluster.heal()
    cluster.tick(3)
    assert old.driver.core(GROUP).role is Role.FOLLOWER
    produced = old.produced("a")
    assert (produced.base_offset, produced.nodes) == (0, ())
    cluster.check_equal()


def test_a_repeat_to_the_next_leader_gets_the_place_of_the_original() -> None:
    cluster, old = led()
    for sequence in range(7):
        old.produce(sequence, numbered(sequence))
    original = old.produced(6)
    old.driver.transfer(GROUP, "n3")
    cluster.settle()
    new = cluster["n3"]
    new.produce("again", numbered(6))
    new.produce("forgotten", numbered(0))
    new.produce("next", numbered(7))
    assert new.produced("again").duplicate
    assert new.produced("again").base_offset == original.base_offset
    assert new.produced("again").index == original.index
    assert isinstance(new.outcome("forgotten"), DuplicateSequence)
    assert new.produced("next").base_offset == 7


def test_a_repeat_of_a_batch_that_the_next_leader_has_uncommitted_waits_for_it() -> None:
    cluster, old = led(("n1", "n2", "n3", "n4", "n5"))
    cluster.isolate("n1", "n2")
    old.produce("a", numbered(0))  # on n1 and n2, which are no majority
    cluster.cut.clear()
    cluster.isolate("n1")
    new = cluster.elect("n2")
    # It is committed with the new leader's first entry.
    new.produce("again", numbered(0))
    assert new.produced("again").duplicate
    assert new.produced("again").base_offset == 0
    assert sum(batch.header.record_count for batch in new.disk[GROUP].batches) == 1


def test_proposals_that_are_in_no_log_yet_go_elsewhere_when_the_leader_steps_down() -> None:
    cluster, old = led()
    cluster.isolate("n1")
    old.make_room = lambda: FakeRoom(without_reserve={GROUP})
    old.produce("waits", batch_of())
    # A leader that hears nobody for an election timeout is none any more.
    cluster.tick(25, "n1")
    assert not old.leads()
    assert isinstance(old.outcome("waits"), NotLeader)
    assert old.driver.waiting_bytes == 0


def test_a_transfer_refuses_nothing_that_was_taken_before() -> None:
    cluster, old = led()
    for reply in range(5):
        old.produce(reply, batch_of())
    assert old.driver.transfer(GROUP, "n2")
    cluster.settle()
    assert cluster["n2"].leads()
    assert [old.produced(reply).base_offset for reply in range(5)] == [0, 1, 2, 3, 4]
    assert not old.driver.transfer(GROUP, "n3")
    assert isinstance(old.produce("late", batch_of()), NotLeader)


def test_what_comes_while_leadership_is_on_its_way_is_taken_when_the_transfer_fails() -> None:
    cluster, leader = led()
    cluster.cut = {("n1", "n2")}
    assert leader.driver.transfer(GROUP, "n2")
    leader.produce("waits", batch_of())
    assert "waits" not in leader.answers
    cluster.tick(12)
    assert leader.leads()
    assert leader.produced("waits").base_offset == 0


# --- Reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["n1", "n3"])
def test_a_read_index_is_the_commit_that_a_majority_confirms(name: str) -> None:
    cluster, leader = led()
    leader.produce("a", batch_of(4))
    assert cluster[name].driver.read_index(GROUP, "read") is None
    cluster.settle()
    assert cluster[name].outcome("read") == ReadAt(leader.driver.commit_index(GROUP), 4)


def test_a_leader_that_is_cut_off_confirms_no_read() -> None:
    cluster, old = led()
    cluster.isolate("n1")
    assert old.driver.read_index(GROUP, "read") is None
    new = cluster.elect("n2")
    new.produce("a", batch_of())
    assert "read" not in old.answers
    cluster.heal()
    cluster.tick(3)
    assert isinstance(old.outcome("read"), NotLeader)


def test_without_a_leader_a_read_is_refused_at_once() -> None:
    cluster = Cluster()
    assert isinstance(cluster["n1"].driver.read_index(GROUP, "read"), NotLeader)
    assert isinstance(cluster["n1"].driver.read_index(99, "read"), NotLeader)


def test_a_read_on_a_follower_waits_until_it_has_applied_what_it_must_have_seen() -> None:
    cluster, leader = led()
    slow = cluster["n3"]
    slow.hangs = True
    leader.produce("a", batch_of(4))
    slow.driver.read_index(GROUP, "read")
    cluster.settle()
    cluster.tick(2)
    assert "read" not in slow.answers
    slow.hangs = False
    cluster.settle()
    cluster.tick(2)
    assert slow.outcome("read").high_watermark == 4


def test_a_read_whose_answer_is_lost_is_given_up_after_a_time() -> None:
    cluster, _ = led()
    follower = cluster["n3"]
    cluster.cut = {("n3", "n1")}
    for reply in range(3):
        assert follower.driver.read_index(GROUP, reply) is None
        cluster.settle()
    cluster.tick(60)
    assert all(len(follower.answers[reply]) == 1 for reply in range(3))
    assert all(isinstance(follower.outcome(reply), NotLeader | Overloaded) for reply in range(3))


# --- Members ----------------------------------------------------------------------------------------------------------


def change(kind: ChangeKind, *names: str, transition: Transition = Transition.AUTO) -> ConfigurationChange:
    return ConfigurationChange(tuple(ChangeStep(kind, name) for name in names), transition)


def test_a_change_of_membership_is_answered_when_it_is_in_force() -> None:
    cluster, leader = led(("n1", "n2", "n3", "n4"), voters=NAMES)
    assert leader.driver.change_membership(GROUP, change(ChangeKind.ADD_LEARNER, "n4"), "add") is None
    cluster.settle()
    assert leader.outcome("add") == Reconfigured(members(*NAMES, learners=["n4"]))
    cluster.tick(3)
    cluster.check_equal()
    assert all(
        node.driver.core(GROUP).configuration == members(*NAMES, learners=["n4"]) for node in cluster.followers()
    )


def test_a_change_that_cannot_be_made_is_refused_and_a_second_one_waits_for_the_first() -> None:
    cluster, leader = led(("n1", "n2", "n3", "n4"), voters=NAMES)
    impossible = change(ChangeKind.REMOVE, *NAMES)
    assert isinstance(leader.driver.change_membership(GROUP, impossible, "no"), InvalidRequest)
    cluster.isolate("n1")
    assert leader.driver.change_membership(GROUP, change(ChangeKind.ADD_LEARNER, "n4"), "one") is None
    cluster.settle()
    error = leader.driver.change_membership(GROUP, change(ChangeKind.REMOVE, "n3"), "two")
    assert isinstance(error, Overloaded)
    assert isinstance(cluster["n2"].driver.change_membership(GROUP, impossible, "no"), NotLeader)


def test_a_change_that_another_leader_replaced_is_answered_with_not_leader() -> None:
    cluster, old = led(("n1", "n2", "n3", "n4"), voters=NAMES)
    cluster.isolate("n1")
    old.driver.change_membership(GROUP, change(ChangeKind.ADD_LEARNER, "n4"), "add")
    cluster.settle()
    cluster.elect("n2")
    cluster.heal()
    cluster.tick(3)
    assert isinstance(old.outcome("add"), NotLeader)
    assert old.driver.core(GROUP).configuration == members(*NAMES)


def test_a_joint_change_is_left_by_the_leader_itself() -> None:
    cluster, leader = led(("n1", "n2", "n3", "n4", "n5"), voters=NAMES)
    leader.produce("a", batch_of())
    steps = (ChangeStep(ChangeKind.ADD_VOTER, "n4"), ChangeStep(ChangeKind.REMOVE, "n3"))
    refused = leader.driver.change_membership(GROUP, ConfigurationChange(steps), "too early")
    assert isinstance(refused, InvalidRequest), "n4 is not even a learner"
    assert leader.driver.change_membership(GROUP, change(ChangeKind.ADD_LEARNER, "n4"), "learn") is None
    cluster.tick(3)
    assert leader.driver.change_membership(GROUP, ConfigurationChange(steps), "joint") is None
    cluster.tick(3)
    assert leader.outcome("joint").configuration.is_joint
    assert leader.driver.core(GROUP).configuration == members("n1", "n2", "n4")
    assert cluster["n4"].driver.high_watermark(GROUP) == 1


def test_the_voters_that_are_wanted_come_by_way_of_learners_and_the_others_go() -> None:
    cluster, leader = led(("n1", "n2", "n3", "n4", "n5", "n6"), voters=NAMES)
    leader.produce("a", batch_of())
    wanted = frozenset(("n4", "n5", "n6"))
    seen: list[Configuration] = []
    for node in cluster.nodes.values():
        node.driver.want_voters(GROUP, wanted)
    for _ in range(80):
        cluster.tick()
        configuration = cluster.leader().driver.core(GROUP).configuration
        if not seen or seen[-1] != configuration:
            seen.append(configuration)
    final = cluster.leader()
    assert final.driver.core(GROUP).configuration == members(*wanted)
    assert final.name in wanted
    for before, after in itertools.pairwise(seen):
        # One node at a time, and nobody votes who was not a learner before.
        assert len(before.voters ^ after.voters) <= 1
        assert after.voters - before.voters <= before.learners
    assert final.produce("b", batch_of()) is None
    assert final.produced("b").base_offset == 1


def test_a_learner_that_lags_is_not_made_a_voter() -> None:
    options = DriverOptions(promotion_lag_max=0)
    cluster, leader = led(("n1", "n2", "n3", "n4"), voters=NAMES, options=options)
    cluster.isolate("n4")
    leader.driver.want_voters(GROUP, frozenset(cluster.nodes))
    cluster.tick(20)
    assert leader.driver.core(GROUP).configuration == members(*NAMES, learners=["n4"])
    cluster.heal()
    cluster.tick(20)
    assert leader.driver.core(GROUP).configuration == members(*cluster.nodes)


def test_a_removed_leader_steps_down_and_answers_before() -> None:
    cluster, leader = led()
    assert leader.driver.change_membership(GROUP, change(ChangeKind.REMOVE, "n1"), "remove") is None
    cluster.settle()
    assert leader.outcome("remove") == Reconfigured(members("n2", "n3"))
    assert not leader.leads()
    assert cluster.leader().name in ("n2", "n3")


def test_a_change_that_makes_one_voter_of_two_is_known_to_be_committed_after_a_crash() -> None:
    """The other one may be gone for ever once the change is answered for."""
    cluster, leader = led(("n1", "n2"))
    assert leader.driver.change_membership(GROUP, change(ChangeKind.REMOVE, "n2"), "remove") is None
    cluster.settle()
    assert leader.outcome("remove") == Reconfigured(members("n1"))
    cluster.isolate("n1")
    leader.restart()
    cluster.settle()
    assert leader.leads()
    leader.produce("a", batch_of())
    assert leader.produced("a").base_offset == 0


# --- Replicas that lost something -------------------------------------------------------------------------------------


def test_a_wiped_replica_counts_for_nothing_until_its_word_is_committed_and_then_votes_again() -> None:
    cluster, leader = led()
    for node in cluster.nodes.values():
        node.driver.want_voters(GROUP, frozenset(NAMES))
    leader.produce("a", batch_of())
    wiped = cluster["n3"]
    wiped.wipe(b"word")
    wiped.driver.want_voters(GROUP, frozenset(NAMES))
    cluster.isolate("n1", "n3")
    cluster.tick(5)
    leader.produce("b", batch_of())
    # What it has again does not make a majority with the leader: nobody knows what else it may have promised.
    assert "b" not in leader.answers
    assert wiped.disk[GROUP].hard_state is None
    cluster.heal()
    cluster.tick(30)
    leader = cluster.leader()
    assert leader.driver.core(GROUP).configuration == members(*NAMES)
    assert wiped.disk[GROUP].hard_state is not None
    cluster.tick(3)
    cluster.check_equal()
    cluster.isolate("n2")
    leader = cluster.leader()
    leader.produce("c", batch_of())
    assert leader.produced("c").base_offset == 2


def test_a_wiped_replica_gives_no_vote_and_wants_none() -> None:
    cluster, leader = led()
    wiped = cluster["n3"]
    wiped.wipe(b"word")
    cluster.isolate("n1")
    cluster.tick(60, "n2", "n3")
    assert not wiped.leads()
    assert not cluster["n2"].leads()
    assert wiped.disk[GROUP].hard_state is None
    assert leader.name == "n1"


def test_a_word_is_not_good_for_a_second_loss() -> None:
    cluster, leader = led()
    wiped = cluster["n3"]
    wiped.wipe(b"first")
    cluster.tick(10)
    assert wiped.disk[GROUP].hard_state is not None
    wiped.wipe(b"second")
    cluster.cut = {("n3", "n1")}
    cluster.tick(5)
    # The first word is in the log that it gets again; only its second counts.
    assert wiped.disk[GROUP].hard_state is None
    cluster.heal()
    cluster.tick(10)
    assert wiped.disk[GROUP].hard_state is not None
    cluster.check_equal()
    assert leader.leads()


def damaged(lost: int) -> tuple[Cluster, Node, Node]:
    """A follower that lost the last `lost` batches of what it had promised, and knows it."""
    cluster, leader = led()
    for reply in range(6):
        leader.produce(reply, batch_of())
    cluster.tick(2)
    broken = cluster["n3"]
    end = broken.disk[GROUP].end
    del broken.disk[GROUP].batches[-lost:]
    hard_state = broken.disk[GROUP].hard_state
    assert hard_state is not None
    broken.restart(floor=EntryId(end.index, end.term))
    return cluster, leader, broken


def test_a_damaged_replica_is_refilled_and_whole_again() -> None:
    cluster, leader, broken = damaged(4)
    assert broken.driver.core(GROUP).is_damaged
    cluster.tick(5)
    assert not broken.driver.core(GROUP).is_damaged
    cluster.check_equal()
    assert leader.leads()


def test_a_damaged_replica_neither_leads_nor_elects_somebody_who_lacks_what_it_lost() -> None:
    cluster, leader, broken = damaged(4)
    del cluster["n2"].disk[GROUP].batches[-1:]
    hard_state = cluster["n2"].disk[GROUP].hard_state
    assert hard_state is not None
    end = leader.disk[GROUP].end
    cluster["n2"].restart(floor=EntryId(end.index, end.term))
    cluster.isolate("n1")
    cluster.tick(60, "n2", "n3")
    assert not broken.leads()
    assert not cluster["n2"].leads()
    cluster.heal()
    cluster.tick(30)
    cluster.check_equal()
    assert cluster.leader().driver.high_watermark(GROUP) == 6


def test_what_a_damaged_replica_held_does_not_count_any_more() -> None:
    cluster, leader = led()
    cluster.isolate("n1", "n3")
    leader.produce("a", batch_of())  # held by n1 and n3
    broken = cluster["n3"]
    end = broken.disk[GROUP].end
    del broken.disk[GROUP].batches[-1:]
    broken.restart(floor=EntryId(end.index, end.term))
    cluster.cut |= {("n1", "n3")}  # it speaks, and hears nothing that could refill it
    cluster.tick(3)
    assert broken.driver.core(GROUP).is_damaged
    cluster.heal()
    cluster.tick(5)
    cluster.check_equal()


# --- Logs that begin later --------------------------------------------------------------------------------------------


def retained(count: int = 8, upto: int = 5) -> tuple[Cluster, Node, Node]:
    """A leader whose log begins behind the entry that a follower, cut off, needs next."""
    cluster, leader = led()
    lagging = cluster["n3"]
    cluster.isolate("n3")
    for sequence in range(count):
        leader.produce(sequence, numbered(sequence))
    assert leader.driver.propose_retention(GROUP, upto, upto - 1, cluster.reading)
    cluster.tick(2)
    assert leader.disk[GROUP].start.index == upto
    assert any(isinstance(effect, MoveStart) for effect in cluster["n2"].effects)
    return cluster, leader, lagging


def test_retention_moves_the_start_of_every_replica_by_one_decision() -> None:
    cluster, leader, _ = retained()
    assert cluster["n2"].disk[GROUP].start == leader.disk[GROUP].start
    assert cluster["n2"].driver.core(GROUP).log.snapshot.index == 5


def test_a_follower_that_needs_what_is_given_up_begins_anew_with_the_leaders_start() -> None:
    cluster, leader, lagging = retained()
    cluster.heal()
    cluster.tick(5)
    (install,) = [effect for effect in lagging.effects if isinstance(effect, InstallStart)]
    assert install.start == leader.disk[GROUP].start
    assert lagging.disk[GROUP].start == leader.disk[GROUP].start
    cluster.check_equal()
    assert lagging.driver.high_watermark(GROUP) == 8
    # It remembers the producers, of whose batches it has only the last ones.
    leader.driver.transfer(GROUP, "n3")
    cluster.settle()
    lagging.produce("again", numbered(7))
    lagging.produce("older", numbered(3))
    lagging.produce("next", numbered(8))
    assert lagging.produced("again").duplicate
    assert lagging.produced("older").duplicate
    assert lagging.produced("next").base_offset == 8


def test_a_start_that_replaces_a_log_is_alone_in_its_round_and_ahead_of_all_that_follows() -> None:
    cluster, _, lagging = retained()
    lagging.rounds.clear()
    cluster.heal()
    cluster.tick(5)
    (number,) = [
        number for number, entries in enumerate(lagging.rounds) if any(isinstance(entry, SetStart) for entry in entries)
    ]
    (entry,) = lagging.rounds[number]
    assert isinstance(entry, SetStart)
    assert not entry.keeps_suffix
    assert isinstance(lagging.rounds[number + 1][0], SetHardState)
    assert any(isinstance(entry, Append) for entries in lagging.rounds[number + 1 :] for entry in entries)


def test_nothing_is_promised_of_a_start_before_it_is_durable() -> None:
    cluster, leader, lagging = retained()
    lagging.writes_starts = False
    cluster.heal()
    cluster.tick(5)
    assert leader.driver.status(GROUP).progress["n3"].match_index < 5
    assert lagging.disk[GROUP].start.index == 0
    (install,) = [effect for effect in lagging.effects if isinstance(effect, InstallStart)]
    lagging.driver.abandon_start(GROUP, install.start)
    lagging.writes_starts = True
    cluster.settle()
    cluster.tick(5)
    assert lagging.disk[GROUP].start.index == 5
    cluster.check_equal()


@pytest.mark.parametrize("moment", ["before it is written", "when it is durable"])
def test_a_crash_around_a_start_that_replaces_a_log_leaves_one_or_the_other(moment: str) -> None:
    cluster, _, lagging = retained()
    lagging.writes_starts = moment == "when it is durable"
    cluster.heal()
    for _ in range(30):
        cluster.now_ms += 100
        for node in cluster.nodes.values():
            node.driver.tick(cluster.reading)
        while cluster.step():
            if moment == "when it is durable" and lagging.disk[GROUP].start.index:
                break
        if any(isinstance(effect, InstallStart) for effect in lagging.effects):
            break
    lagging.writes_starts = True
    lagging.restart()
    # The leader does not hear what became of its snapshot, and asks after an election timeout.
    cluster.tick(20)
    cluster.check_equal()


def test_what_a_new_leader_appends_behind_a_start_that_is_not_durable_yet_is_remembered_of_its_producer() -> None:
    cluster, leader, lagging = retained()
    cluster.heal()
    lagging.hangs = True
    cluster.tick(3)
    assert any(isinstance(effect, InstallStart) for effect in lagging.effects)
    leader.driver.transfer(GROUP, "n2")
    cluster.settle()
    cluster["n2"].produce("a", numbered(8))
    cluster.tick(8)
    lagging.hangs = False
    cluster.settle()
    # Not committed as far as it knows: it is in the overlay, and a repeat is no new batch.
    core = lagging.driver.core(GROUP)
    known = core.last.index
    lagging.driver.core(GROUP)
    cluster.tick(5)
    cluster.check_equal()
    cluster["n2"].driver.transfer(GROUP, "n3")
    cluster.settle()
    lagging.produce("again", numbered(8))
    assert lagging.produced("again").duplicate
    assert known >= 5


def test_whoever_waits_for_a_batch_that_a_snapshot_took_the_place_of_does_not_know_its_outcome() -> None:
    cluster, old = led()
    cluster.isolate("n1")
    old.produce("unknown", batch_of())
    new = cluster.elect("n2")
    for reply in range(8):
        new.produce(reply, batch_of())
    new.driver.propose_retention(GROUP, 6, 4, cluster.reading)
    cluster.tick(2)
    cluster.heal()
    cluster.tick(5)
    assert isinstance(old.outcome("unknown"), OutcomeUnknown)
    cluster.check_equal()


# --- What left memory -------------------------------------------------------------------------------------------------

SMALL_WINDOW = DriverOptions(raft=GroupOptions(window_bytes_max=2_000, message_bytes_max=500))


def behind(count: int = 60) -> tuple[Cluster, Node, Node]:
    """A follower, cut off, that needs what left the leader's memory."""
    cluster, leader = led(options=SMALL_WINDOW)
    lagging = cluster["n3"]
    cluster.isolate("n3")
    for reply in range(count):
        leader.produce(reply, batch_of())
    assert leader.driver.core(GROUP).log.base.index > 10
    return cluster, leader, lagging


def test_a_follower_far_behind_is_sent_what_is_read_from_the_disk() -> None:
    cluster, leader, lagging = behind()
    cluster.heal()
    cluster.tick(10)
    ranges = [effect for effect in leader.effects if isinstance(effect, ReadRange)]
    assert ranges
    assert ranges[-1].next_index > ranges[0].next_index - 1
    cluster.check_equal()
    assert lagging.driver.high_watermark(GROUP) == 60


def test_one_range_is_read_at_a_time_for_a_follower_and_a_failed_read_is_tried_again() -> None:
    cluster, leader, lagging = behind()
    leader.reads_ranges = False
    cluster.heal()
    cluster.tick(5)
    (asked,) = leader.ranges
    leader.ranges.clear()
    leader.driver.on_range(asked.token, None)
    cluster.tick(3)
    (again,) = leader.ranges
    assert again[:3] == asked[:3]
    leader.reads_ranges = True
    cluster.tick(10)
    cluster.check_equal()
    assert lagging.driver.high_watermark(GROUP) == 60


def test_a_leader_whose_disk_lost_what_a_follower_needs_hands_over_to_one_that_has_it() -> None:
    cluster, leader, lagging = behind()
    leader.reads_ranges = False
    cluster.heal()
    cluster.tick(5)
    (asked,) = leader.ranges
    leader.ranges.clear()
    leader.driver.on_range(asked.token, None, is_damaged=True)
    cluster.tick(20)

    assert not leader.leads()
    assert not lagging.leads()
    cluster.check_equal()
    assert lagging.driver.high_watermark(GROUP) == 60


def test_a_range_that_is_read_too_late_is_not_sent() -> None:
    cluster, leader, _ = behind()
    leader.reads_ranges = False
    cluster.heal()
    cluster.tick(3)
    leader.driver.transfer(GROUP, "n2")
    cluster.settle()
    assert not leader.leads()
    before = cluster.frames_sent
    leader.read_ranges()
    cluster.settle()
    assert cluster.frames_sent == before
    cluster.tick(10)
    cluster.check_equal()


# --- The disk ---------------------------------------------------------------------------------------------------------


def test_a_leader_whose_disk_hangs_falls_silent_and_another_one_leads() -> None:
    cluster, old = led()
    old.hangs = True
    old.produce("a", batch_of())
    cluster.tick(80)
    new = cluster.leader()
    assert new is not old
    new.produce("b", batch_of())
    assert new.produced("b").base_offset == 1
    old.hangs = False
    cluster.tick(5)
    cluster.check_equal()


def test_reads_do_not_keep_a_leader_whose_disk_hangs_in_office() -> None:
    cluster, old = led()
    old.hangs = True
    old.produce("a", batch_of())
    for number in range(80):
        for node in cluster.nodes.values():
            node.driver.read_index(GROUP, (node.name, number))
        cluster.tick()
    assert cluster.leader() is not old


def test_groups_at_rest_on_a_node_whose_disk_hangs_wake_and_are_led_by_others() -> None:
    cluster = Cluster(groups=(1, 2))
    old = cluster.elect("n1", 1)
    old = cluster.elect("n1", 2)
    cluster.tick(10)
    assert all(node.driver.is_resting(2) for node in cluster.nodes.values())
    old.hangs = True
    old.produce("a", batch_of(), group=1)
    cluster.tick(100)
    assert cluster.leader(2) is not old


def test_a_follower_without_space_takes_nothing_and_catches_up_when_there_is_some() -> None:
    cluster, leader = led()
    full = cluster["n3"]
    full.make_room = lambda: FakeRoom(without_reserve={GROUP})
    leader.produce("a", batch_of())
    cluster.tick(2)
    assert leader.produced("a").base_offset == 0
    assert full.disk[GROUP].end.index == 1
    full.make_room = FakeRoom
    full.driver.on_space(GROUP, None)
    cluster.tick(3)
    cluster.check_equal()


def test_a_commit_is_not_durable_ahead_of_the_batches_that_it_speaks_of() -> None:
    """A crash between two rounds leaves no commit beyond the end of the log."""
    cluster, leader = led()
    lagging = cluster["n3"]
    cluster.isolate("n3")
    for reply in range(6):
        leader.produce(reply, batch_of())
    lagging.make_room = lambda: FakeRoom(batch_bytes_max=400)
    cluster.heal()
    log = lagging.disk[GROUP]
    seen = []
    for _ in range(4):
        cluster.now_ms += 100
        for node in cluster.nodes.values():
            node.driver.tick(cluster.reading)
        while cluster.step():
            assert log.hard_state is not None
            assert log.hard_state.commit <= log.end.index
            seen.append(log.end.index)
    assert len(set(seen)) > 3
    lagging.restart()
    cluster.tick(3)
    cluster.check_equal()


def test_batches_that_found_room_and_not_their_place_ask_again_in_the_next_round() -> None:
    cluster, leader = led()
    leader.produce("a", batch_of())
    cluster.tick(2)
    batch = batch_of(value=b"x" * 100)
    for reply in range(4):
        leader.driver.propose(GROUP, proposal(reply, batch))
    # The commit of before goes ahead of them, and has no room.
    rooms = [FakeRoom(entries_max=0), FakeRoom(batch_bytes_max=2 * len(batch)), FakeRoom()]
    leader.make_room = lambda: rooms.pop(0) if rooms else FakeRoom()
    assert not leader.take_round()
    assert leader.take_round()
    assert [type(entry).__name__ for entry in leader.under_way] == ["SetHardState", "Append", "Append"]
    cluster.settle()
    assert [leader.produced(reply).base_offset for reply in range(4)] == [1, 2, 3, 4]
    cluster.tick(2)
    cluster.check_equal()


@pytest.mark.parametrize("name", NAMES)
def test_a_restart_keeps_what_was_promised(name: str) -> None:
    cluster, leader = led()
    for sequence in range(4):
        leader.produce(sequence, numbered(sequence))
    cluster[name].restart()
    cluster.tick(40)
    leader = cluster.leader()
    leader.produce("again", numbered(3))
    leader.produce("next", numbered(4))
    assert leader.produced("again").duplicate
    assert leader.produced("next").base_offset == 4
    cluster.tick(3)
    cluster.check_equal()


def test_all_may_be_restarted_at_once() -> None:
    cluster, leader = led()
    for sequence in range(4):
        leader.produce(sequence, numbered(sequence))
    for node in cluster.nodes.values():
        node.restart()
    leader = cluster.leader()
    leader.produce("again", numbered(3))
    assert leader.produced("again").duplicate
    assert leader.driver.high_watermark(GROUP) == 4


# --- Rest -------------------------------------------------------------------------------------------------------------


def test_groups_in_which_nothing_happens_rest_and_cost_one_frame_a_tick_and_pair() -> None:
    cluster = Cluster(groups=range(1, 31))
    for group in range(1, 31):
        cluster.elect("n1", group)
    cluster.tick(10)
    assert all(node.driver.is_resting(group) for node in cluster.nodes.values() for group in range(1, 31))
    before = cluster.frames_sent
    cluster.tick(10)
    assert cluster.frames_sent - before == 10 * 2 * 2


def test_a_group_at_rest_takes_a_batch_at_once_and_rests_again() -> None:
    cluster, leader = led()
    cluster.tick(10)
    assert leader.driver.is_resting(GROUP)
    leader.produce("a", batch_of())
    assert leader.produced("a").base_offset == 0
    assert not any(node.driver.is_resting(GROUP) for node in cluster.nodes.values())
    cluster.tick(10)
    assert all(node.driver.is_resting(GROUP) for node in cluster.nodes.values())
    cluster.check_equal()


def test_a_group_at_rest_notices_that_its_leader_is_gone() -> None:
    cluster, _ = led()
    cluster.tick(10)
    cluster.isolate("n1")
    cluster.tick(40, "n2", "n3")
    assert any(node.leads() for node in (cluster["n2"], cluster["n3"]))


@pytest.mark.parametrize("name", NAMES)
def test_a_group_at_rest_outlives_the_restart_of_a_member(name: str) -> None:
    cluster, _ = led()
    cluster.tick(10)
    cluster[name].restart()
    cluster.tick(60)
    leader = cluster.leader()
    leader.produce("a", batch_of())
    cluster.tick(10)
    assert leader.produced("a").base_offset == 0
    assert all(node.driver.is_resting(GROUP) for node in cluster.nodes.values())
    cluster.check_equal()


def test_a_read_wakes_a_group_at_rest() -> None:
    cluster, leader = led()
    leader.produce("a", batch_of())
    cluster.tick(10)
    assert cluster["n3"].driver.is_resting(GROUP)
    cluster["n3"].driver.read_index(GROUP, "read")
    cluster.settle()
    assert cluster["n3"].outcome("read").high_watermark == 1


def test_a_group_with_a_member_of_an_older_feature_level_does_not_rest() -> None:
    older = DriverOptions(feature_level=1)
    cluster = Cluster(groups=(1,), n3=older)
    leader = cluster.elect("n1")
    cluster.tick(20)
    assert not any(node.driver.is_resting(GROUP) for node in cluster.nodes.values())
    leader.produce("a", batch_of())
    cluster.tick(2)
    cluster.check_equal()


def test_a_group_with_a_silent_member_does_not_rest() -> None:
    cluster, leader = led()
    cluster.isolate("n3")
    cluster.tick(20)
    assert leader.leads()
    assert not leader.driver.is_resting(GROUP)


def test_two_leaders_of_two_groups_may_rest_on_each_other() -> None:
    cluster = Cluster(groups=(1, 2))
    cluster.elect("n1", 1)
    cluster.elect("n2", 2)
    cluster.tick(10)
    assert all(node.driver.is_resting(group) for node in cluster.nodes.values() for group in (1, 2))
    assert cluster["n2"].produce("b", batch_of(), group=2) is None
    assert not cluster["n1"].driver.is_resting(2)
    assert cluster["n1"].driver.is_resting(1)


# --- Group 0 ----------------------------------------------------------------------------------------------------------


def governed() -> tuple[Cluster, Node]:
    """A cluster whose group 0 is led by its first node, with a topic of two groups."""
    cluster = Cluster(groups=(META_GROUP,))
    leader = cluster.elect("n1", META_GROUP)
    assert leader.command("create", CreateTopic("orders", TOPIC_ID, 2, {})) is None
    cluster.tick(3)
    return cluster, leader


def test_a_topic_becomes_groups_on_every_node() -> None:
    cluster, _ = governed()
    assert all(set(node.disk) == {META_GROUP, 1, 2} for node in cluster.nodes.values())
    leader = cluster.leader(2)
    leader.produce("a", batch_of(), group=2)
    cluster.tick(3)
    assert leader.produced("a").base_offset == 0
    cluster.check_equal(2)
    assert len({node.driver.meta.digest() for node in cluster.nodes.values()}) == 1


def test_a_deleted_topic_goes_everywhere_also_where_its_groups_have_work_in_the_same_round() -> None:
    cluster, leader = governed()
    cluster.leader(1)
    cluster.leader(2)
    for node in cluster.nodes.values():
        for group in (1, 2):
            node.driver.propose(group, proposal((node.name, group), batch_of(), acks=Acks.LEADER))
    assert leader.command("delete", DeleteTopic("orders")) is None
    cluster.tick(3)
    assert isinstance(leader.outcome("delete"), TopicRemoved)
    assert all(set(node.disk) == {META_GROUP} for node in cluster.nodes.values())
    assert all(len(outcomes) == 1 for node in cluster.nodes.values() for outcomes in node.answers.values())


@pytest.mark.parametrize("taking", ["a round", "frames"])
def test_groups_may_be_deleted_while_a_round_or_frames_are_put_together(taking: str) -> None:
    cluster, leader = governed()
    cluster.leader(1)
    leader.driver.propose_command(DeleteTopic("orders"), cluster.reading, "delete")
    # The others have the command on their disks, and nobody has looked at their answers yet.
    leader.take_round()
    cluster.send(leader)
    leader.durable()
    for _ in range(4):
        queue, cluster.queue = cluster.queue, []
        for sender, to, frame in queue:
            cluster.deliver(sender, to, frame)
        for node in others(cluster, leader):
            node.take_round()
            cluster.send(node)
            node.durable()
            cluster.send(node)
    for group in (1, 2):
        leader.driver.transfer(group, "n2")
        leader.driver.read_index(group, group)
    if taking == "a round":
        leader.take_round()
    else:
        cluster.send(leader)
    assert leader.driver.groups() == (META_GROUP,)
    cluster.settle()
    cluster.tick(3)
    assert set(leader.disk) == {META_GROUP}


def test_a_node_that_missed_much_of_group_0_begins_anew_with_its_state() -> None:
    cluster, leader = governed()
    cluster.isolate("n3")
    for reply in range(META_BATCHES_PER_SNAPSHOT):
        leader.command(reply, InitProducer(None))
    assert leader.command("delete", DeleteTopic("orders")) is None
    assert leader.disk[META_GROUP].start.index >= META_BATCHES_PER_SNAPSHOT
    cluster.heal()
    cluster.tick(15)
    missed = cluster["n3"]
    assert missed.driver.meta.digest() == leader.driver.meta.digest()
    assert set(missed.disk) == {META_GROUP}
    cluster.check_equal(META_GROUP)
    leader.driver.transfer(META_GROUP, "n3")
    cluster.settle()
    missed.command("next", InitProducer(None))
    assert missed.outcome("next") == ProducerGranted(META_BATCHES_PER_SNAPSHOT + 1, 0)


# --- Groups that are not everywhere -----------------------------------------------------------------------------------


def test_a_message_for_a_group_that_is_not_here_is_ignored() -> None:
    cluster, leader = led()
    cluster["n3"].driver.remove_group(GROUP)
    leader.produce("a", batch_of())
    cluster.tick(3)
    assert leader.produced("a").base_offset == 0
    assert GROUP not in cluster["n3"].disk


def others_are(cluster: Cluster, node: Node, role: Role) -> bool:
    return all(other.driver.core(GROUP).role is role for other in others(cluster, node))


def test_an_election_leaves_one_leader_whom_all_others_follow() -> None:
    cluster = Cluster(("n1", "n2", "n3", "n4", "n5"))
    leader = cluster.leader()
    assert others_are(cluster, leader, Role.FOLLOWER)
    assert {node.driver.core(GROUP).leader for node in cluster.nodes.values()} == {leader.name}


def test_a_leader_that_was_deposed_and_does_not_know_it_calls_no_producer_unknown() -> None:
    """It lacks what was written since, and its refusal would be final: it is told only once a majority agrees."""
    cluster, old = led(NAMES)
    cluster.isolate(old.name)
    new = cluster.elect("n2")
    new.produce("first", batch_of(producer_id=7))
    cluster.settle()
    assert new.produced("first").base_offset == 0

    old.produce("second", batch_of(producer_id=7, base_sequence=1))
    cluster.settle()
    assert "second" not in old.answers
    cluster.heal()
    cluster.tick(3)

    assert isinstance(old.outcome("second"), NotLeader)


def test_a_refusal_is_told_once_a_majority_agrees_that_this_node_leads() -> None:
    cluster, leader = led(NAMES)
    leader.produce("unknown", batch_of(producer_id=7, base_sequence=3))
    cluster.settle()

    assert isinstance(leader.outcome("unknown"), UnknownProducer)


def test_a_word_of_admission_that_is_heard_again_is_not_proposed_again() -> None:
    """Late answers of lives that were lost, and admitted since, would take a voter from the group for nothing."""
    _, leader = led(NAMES)
    core = leader.driver.core(GROUP)
    core.admitted |= {b"first": None, b"second": None}

    core.progress["n3"].admission = b"first"
    again = next_change(core, None, 100)
    core.progress["n3"].admission = b"third"
    anew = next_change(core, None, 100)

    assert again is None
    assert anew is not None
    assert anew.admission == b"third"


def test_a_learner_that_was_never_heard_is_made_no_voter_however_short_the_log_is() -> None:
    cluster, leader = led(("n1", "n2", "n3", "n4"), voters=NAMES)
    cluster.isolate("n4")
    assert leader.driver.change_membership(GROUP, change(ChangeKind.ADD_LEARNER, "n4"), "learn") is None
    cluster.settle()
    refused = leader.driver.change_membership(GROUP, change(ChangeKind.ADD_VOTER, "n4"), "vote")
    cluster.heal()
    cluster.tick(3)
    taken = leader.driver.change_membership(GROUP, change(ChangeKind.ADD_VOTER, "n4"), "vote")

    assert isinstance(refused, InvalidRequest)
    assert taken is None
