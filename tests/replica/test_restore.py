"""Claims about what a replica comes back with: read from a real store's log, on a disk that was cut off or damaged.

The log is written by hand, so that each test says exactly what was durable and what was known to be committed.
"""

from collections.abc import Sequence
from typing import Any

import pytest

from logd.meta.commands import Command, CreateTopic, InitProducer, encode_command
from logd.meta.state import META_GROUP, MetaState
from logd.raft.types import ChangeKind, ChangeStep, Configuration, ConfigurationChange, EntryId, HardState, Transition
from logd.replica.driver import apply_batch
from logd.replica.membership import change_fields, encode_membership
from logd.replica.producers import ProducerTable
from logd.replica.restore import (
    CHECKPOINT_VERSION,
    TERMS_SKIPPED_WITHOUT_HARD_STATE,
    LogState,
    decode_checkpoint,
    encode_checkpoint,
    recover,
    start_at,
    state_of_start,
)
from logd.replica.types import DriverOptions
from logd.store.context import StoreOptions
from logd.store.format import HardState as StoredHardState
from logd.store.format import LogEnd, Start
from logd.store.log import Log
from logd.store.round import Append, SetHardState, SetStart
from logd.store.store import Store
from tests.replica.harness import TOPIC_ID, batch_of
from tests.store.support import CLUSTER_ID, DIRECTORY, JOURNAL_ID, NODE, SMALL, commit, do, end_of, housekeep, make_room
from tests.store.test_recovery import SEGMENT, batch_position, damage_both, heads
from tests.support.fake_files import FakeFileSystem
from wire.errors import CorruptBatch, UnknownProducer
from wire.record import ControlKind, Stamp, StampedBatch, control_batch, encode_batch, first_chain, stamp

ADMISSION = b"word"
OTHERS = frozenset(("node-2", "node-3"))
THREE = Configuration(OTHERS | {NODE})
ALONE = Configuration(frozenset((NODE,)))


def new_table() -> ProducerTable:
    options = DriverOptions()
    return ProducerTable(options.producers_max, options.producer_expiry_ms)


def change(kind: ChangeKind, *names: str, transition: Transition = Transition.AUTO) -> bytes:
    steps = tuple(ChangeStep(kind, name) for name in names)
    return control_batch(ControlKind.MEMBERSHIP, *change_fields(ConfigurationChange(steps, transition)), timestamp_ms=1)


def numbered(sequence: int, *, value_bytes: int = 10) -> bytes:
    return batch_of(producer_id=7, base_sequence=sequence, value=b"v" * value_bytes)


class Replica:
    """One group on a store, which is written by hand and may be opened again after a crash."""

    def __init__(
        self, configuration: Configuration = THREE, *, group: int = 1, options: StoreOptions = SMALL, term: int = 1
    ) -> None:
        self.files = FakeFileSystem()
        self.group = group
        self.options = options
        self.checkpoint: tuple[int, bytes] | None = None
        self.term = term
        self.batches: list[StampedBatch] = []
        self.store = self._open()
        chain = first_chain(CLUSTER_ID, TOPIC_ID, group)
        start = Start(0, 0, 0, chain, 0, TOPIC_ID, 0, encode_membership(configuration), b"")
        do(self.store.create_group(group, start))
        commit(self.store, [SetStart(group, start), SetHardState(group, StoredHardState(term, "", 0))])

    def _open(self) -> Store:
        return Store.open(
            self.files,
            DIRECTORY,
            node_name=NODE,
            options=self.options,
            new_cluster_id=CLUSTER_ID,
            new_journal_id=JOURNAL_ID,
            producers_of=lambda _: self.checkpoint,
        )

    @property
    def log(self) -> Log:
        return self.store.groups[self.group]

    @property
    def end(self) -> LogEnd:
        return end_of(self.batches[-1]) if self.batches else self.log.start.end

    def append(self, *batches: bytes, term: int | None = None) -> list[StampedBatch]:
        """Each in a round of its own."""
        for batch in batches:
            end = self.end
            place = Stamp(end.next_offset, end.index + 1, term or self.term, end.append_timestamp + 10, end.chain)
            stamped = stamp(batch, place)
            make_room(self.log, [stamped])
            commit(self.store, [Append(self.group, stamped)])
            self.batches.append(stamped)
        return self.batches[-len(batches) :]

    def hard_state(self, commit_index: int, *, term: int | None = None, vote: str = "") -> None:
        self.term = term or self.term
        commit(self.store, [SetHardState(self.group, StoredHardState(self.term, vote, commit_index))])

    def note_checkpoint(self, index: int, configuration: Configuration) -> None:
        """What a driver would say of its committed batches from now on."""
        table = new_table()
        fill(table, self.batches[:index])
        self.checkpoint = index, encode_checkpoint(table.encode(), configuration)

    def move_start(self, index: int) -> None:
        start = start_at(self.log, index, new_table())
        do(self.log.prepare_start(start))
        commit(self.store, [SetStart(self.group, start)])

    def crash(self, damage: Any = None) -> None:
        """Only what is durable is left; `damage` does something to it."""
        commit(self.store, [])
        # What is damaged must have come to the platter.
        self.files = self.files.crash(None) if damage is None else self.files.kill()
        if damage is not None:
            damage(self.files)
        self.store = self._open()

    def recover(self, **how: Any) -> LogState:
        return recover(self.log, NODE, new_table(), ADMISSION, **how)


def fill(table: ProducerTable, batches: Sequence[StampedBatch]) -> None:
    for batch in batches:
        table.append(batch.header)
        table.commit(batch.header)


def remembered(state: LogState) -> bytes:
    return state.producers.encode()


def table_of(batches: Sequence[StampedBatch]) -> bytes:
    table = new_table()
    fill(table, batches)
    return table.encode()


# --- Among several voters ---------------------------------------------------------------------------------------------


def test_what_is_known_to_be_committed_is_applied_and_the_rest_is_held_ready() -> None:
    replica = Replica()
    replica.append(*(numbered(sequence) for sequence in range(5)))
    replica.hard_state(3, term=2, vote="node-2")
    replica.crash()
    state = replica.recover()
    recovered = state.recovered
    assert recovered.hard_state == HardState(2, "node-2", 3)
    assert recovered.base == (3, 1)
    assert recovered.base_chain == replica.batches[2].header.chain
    assert [(entry.id, entry.data.to_bytes()) for entry in recovered.entries] == [
        ((index, 1), replica.batches[index - 1].to_bytes()) for index in (4, 5)
    ]
    assert recovered.applied == 3
    assert recovered.configuration == THREE
    assert (state.committed_offset, state.end) == (3, replica.end)
    assert (recovered.floor, recovered.admission, state.lost) == (None, b"", "")


def test_an_uncommitted_tail_is_remembered_of_its_producer_as_long_as_it_stands() -> None:
    replica = Replica()
    replica.append(*(numbered(sequence) for sequence in range(5)))
    replica.hard_state(3)
    replica.crash()
    state = replica.recover()
    assert remembered(state) == table_of(replica.batches[:3])
    now = replica.end.append_timestamp
    header = replica.batches[4].header
    assert state.producers.check(header, now) is not None
    state.producers.truncate(4)
    assert isinstance(state.producers.check(header, now), Exception)
    assert state.producers.check(replica.batches[3].header, now) is None


def test_a_replica_that_holds_nothing_begins_at_its_start() -> None:
    replica = Replica()
    replica.crash()
    state = replica.recover()
    assert (state.recovered.applied, state.recovered.base, list(state.recovered.entries)) == (0, (0, 0), [])
    assert state.end == replica.log.start.end


def test_a_change_of_membership_that_is_committed_is_in_force() -> None:
    replica = Replica()
    replica.append(numbered(0), change(ChangeKind.ADD_LEARNER, "node-4"))
    replica.hard_state(2)
    replica.crash()
    assert replica.recover().recovered.configuration == Configuration(THREE.voters, learners=frozenset(("node-4",)))


def test_a_change_in_the_last_entry_that_may_not_be_committed_is_not_in_force() -> None:
    replica = Replica()
    replica.append(numbered(0), change(ChangeKind.REMOVE, "node-3"))
    replica.hard_state(1)
    replica.crash()
    recovered = replica.recover().recovered
    assert recovered.configuration == THREE
    assert recovered.entries[-1].change is not None


def test_a_joint_configuration_outlives_a_restart() -> None:
    replica = Replica()
    replica.append(change(ChangeKind.REMOVE, "node-2", "node-3", transition=Transition.EXPLICIT))
    replica.hard_state(1)
    replica.crash()
    state = replica.recover()
    assert state.recovered.configuration == Configuration(frozenset((NODE,)), THREE.voters)
    replica.append(numbered(0))
    replica.crash()
    # It does not decide alone yet: what it holds behind the change is not committed by that.
    assert replica.recover().recovered.applied == 1


@pytest.mark.parametrize("commit_index", [9, 40, 60])
def test_a_change_ahead_of_the_last_checkpoint_is_in_force_without_being_read(commit_index: int) -> None:
    replica = Replica()
    configuration = Configuration(THREE.voters, learners=frozenset(("node-4",)))
    replica.append(change(ChangeKind.ADD_LEARNER, "node-4"))
    for sequence in range(59):
        replica.append(numbered(sequence, value_bytes=400))
        replica.note_checkpoint(max(len(replica.batches) - 2, 0), configuration)
        housekeep(replica.store)
    assert len(replica.log.segments) > 2
    replica.hard_state(commit_index)
    # The first segment is damaged: nobody needs it, for the checkpoint says what is in it.
    replica.crash()
    assert replica.log.producers_checkpoint()[0] > 1
    state = replica.recover()
    assert state.recovered.configuration == configuration
    applied = state.recovered.applied
    # What a checkpoint covers was committed, whatever the hard state came to say.
    assert applied >= commit_index
    assert remembered(state) == table_of(replica.batches[:applied])
    assert [entry.index for entry in state.recovered.entries] == list(range(applied + 1, 61))


def test_a_change_ahead_of_the_start_is_in_the_start() -> None:
    replica = Replica()
    configuration = Configuration(THREE.voters, learners=frozenset(("node-4",)))
    replica.append(change(ChangeKind.ADD_LEARNER, "node-4"), *(numbered(sequence) for sequence in range(6)))
    replica.hard_state(7)
    replica.move_start(4)
    replica.crash()
    state = replica.recover()
    assert replica.log.start.index == 4
    assert state.recovered.snapshot.configuration == configuration
    assert state.recovered.snapshot.data == replica.log.start
    assert state.recovered.configuration == configuration
    assert remembered(state) == table_of(replica.batches)


def test_every_replica_makes_the_same_start_of_its_log() -> None:
    one, other = Replica(), Replica()
    for replica in (one, other):
        replica.append(change(ChangeKind.ADD_LEARNER, "node-4"), *(numbered(sequence) for sequence in range(6)))
    other.move_start(2)
    other.crash()
    start = start_at(one.log, 5, new_table())
    assert start == start_at(other.log, 5, new_table())
    assert start.end == end_of(one.batches[4])
    assert start.producers == table_of(one.batches[:5])
    assert start.membership == encode_membership(Configuration(THREE.voters, learners=frozenset(("node-4",))))


def test_the_end_of_a_log_may_be_of_a_later_term_than_the_hard_state() -> None:
    replica = Replica()
    replica.hard_state(0, term=2, vote="node-3")
    # A start that was taken from a leader, whose hard state did not become durable any more.
    start = replica.log.start._replace(index=9, term=4, offset=9, append_timestamp=5)
    do(replica.log.prepare_start(start))
    commit(replica.store, [SetStart(1, start, keeps_suffix=False)])
    replica.crash()
    state = replica.recover()
    # Nobody was voted for in the later term, as far as is known; and the disk is to be told of it.
    assert state.recovered.hard_state == HardState(4, "", 9)
    assert state.saved == HardState(2, "node-3", 0)


# --- What is lost -----------------------------------------------------------------------------------------------------


def lose_hard_state(replica: Replica) -> None:
    """A round that may have held a vote is damaged, both copies of it."""
    replica.hard_state(0, term=replica.term + 1)
    lost = heads(replica.files, 1)[-1]
    commit(replica.store, [])
    commit(replica.store, [])

    def damage(files: FakeFileSystem) -> None:
        damage_both(files, 1, lost)

    replica.crash(damage)
    assert replica.log.hard_state is None


def test_a_voter_among_others_that_lost_its_hard_state_asks_to_be_admitted() -> None:
    replica = Replica()
    replica.append(numbered(0), numbered(1))
    lose_hard_state(replica)
    state = replica.recover()
    assert state.recovered.hard_state is None
    assert state.recovered.admission == ADMISSION
    assert state.recovered.applied == 0
    assert [entry.index for entry in state.recovered.entries] == [1, 2]


def test_a_lost_hard_state_costs_a_thousand_terms() -> None:
    """A sole voter that cannot know in which terms it voted leaves out more than it can have missed."""
    replica = Replica(ALONE, term=4)
    replica.append(numbered(0), numbered(1))
    lose_hard_state(replica)
    state = replica.recover()
    assert TERMS_SKIPPED_WITHOUT_HARD_STATE == 1000
    assert state.recovered.hard_state == HardState(replica.log.known_term + 1000, "", 2)
    assert replica.log.known_term >= 4
    assert state.recovered.admission == b""


def test_a_replica_made_anew_where_one_may_have_been_has_to_be_admitted() -> None:
    replica = Replica()
    start = replica.log.start
    state = state_of_start(1, start, new_table(), None, ADMISSION)
    assert (state.recovered.hard_state, state.recovered.admission) == (None, ADMISSION)
    assert state.recovered.configuration is None
    assert state.recovered.snapshot.configuration == THREE


def damaged(configuration: Configuration, index: int, count: int = 8) -> Replica:
    """A replica of `count` batches, all committed, of which one cannot be read: neither of its two copies."""
    replica = Replica(configuration)
    replica.append(*(numbered(sequence) for sequence in range(count)))
    replica.hard_state(count)

    def damage(files: FakeFileSystem) -> None:
        for head in heads(files, 1):
            if any(getattr(entry, "index", 0) == index for entry in head.entries):
                files.flip_bit(f"{DIRECTORY}/journal/{1:020}", head.batches_position + 100)
        files.flip_bit(SEGMENT, batch_position(files, index) + 100)

    replica.crash(damage)
    return replica


def test_a_replica_among_others_that_lost_its_end_knows_what_it_promised() -> None:
    replica = damaged(THREE, 8)
    state = replica.recover()
    assert state.end == end_of(replica.batches[6])
    assert state.recovered.floor == EntryId(8, 1)
    assert state.recovered.hard_state == HardState(1, "", 8)
    assert state.recovered.applied == 7
    assert state.lost == ""


def test_a_replica_among_others_with_a_hole_ends_in_front_of_it() -> None:
    replica = damaged(THREE, 5)
    assert [known.first_index for known in replica.log.damage] == [5]
    state = replica.recover()
    assert state.end == end_of(replica.batches[3])
    assert state.recovered.floor == EntryId(8, 1)
    assert state.recovered.applied == 4
    assert remembered(state) == table_of(replica.batches[:4])


def test_a_sole_voter_that_lost_its_end_says_what_is_lost() -> None:
    state = damaged(ALONE, 8).recover()
    assert "above index 7, up to 8" in state.lost
    assert "accept-loss" in state.lost
    assert state.recovered.floor == EntryId(8, 1)


def test_a_sole_voter_leads_over_a_hole_and_does_not_remember_what_is_behind_it() -> None:
    replica = damaged(ALONE, 5)
    state = replica.recover()
    assert (state.lost, state.recovered.floor) == ("", None)
    assert state.end == replica.end
    assert state.recovered.base == EntryId(8, 1)
    assert state.committed_offset == 8
    assert "5" in state.incomplete
    # A retry of what it forgot is refused, and not taken for new.
    following = encode_batch([(b"x", None, 1, None)], producer_id=7, base_sequence=8)
    place = Stamp(8, 9, 1, replica.end.append_timestamp, replica.end.chain)
    assert state.producers.check(stamp(following, place).header, 0) is not None


def test_a_damaged_start_leaves_a_replica_that_has_to_be_admitted_unless_it_can_only_be_alone() -> None:
    replica = Replica()
    replica.append(numbered(0))
    start = replica.log.start
    path = f"{replica.log.directory}/{start.index:020}.start"
    replica.crash(lambda files: files.flip_bit(path, 90))
    assert not replica.log.is_start_readable
    state = replica.recover()
    assert (state.recovered.hard_state, state.recovered.admission) == (None, ADMISSION)
    alone = replica.recover(unknown=ALONE)
    assert alone.recovered.hard_state is not None
    assert alone.recovered.configuration == ALONE


# --- A sole voter -----------------------------------------------------------------------------------------------------


def test_all_that_the_only_voter_holds_is_committed() -> None:
    replica = Replica(ALONE)
    replica.append(*(numbered(sequence) for sequence in range(5)))
    replica.crash()
    state = replica.recover()
    assert state.recovered.applied == 5
    assert state.recovered.hard_state == HardState(1, "", 5)
    assert list(state.recovered.entries) == []
    assert remembered(state) == table_of(replica.batches)


def test_what_stands_behind_the_change_that_ended_the_only_voters_reign_is_not_committed_by_it() -> None:
    replica = Replica(ALONE)
    replica.append(numbered(0), change(ChangeKind.ADD_VOTER, "node-2"), numbered(1), numbered(2))
    replica.crash()
    recovered = replica.recover().recovered
    assert recovered.configuration == Configuration(frozenset((NODE, "node-2")))
    assert recovered.applied == 2
    assert [entry.index for entry in recovered.entries] == [3, 4]


def test_what_stands_behind_the_change_that_began_it_is() -> None:
    replica = Replica(Configuration(frozenset((NODE, "node-2"))))
    replica.append(numbered(0), change(ChangeKind.REMOVE, "node-2"))
    replica.hard_state(2)
    replica.append(numbered(1), numbered(2))
    replica.crash()
    recovered = replica.recover().recovered
    assert recovered.configuration == ALONE
    assert recovered.applied == 4


def test_a_sole_voter_reads_from_its_newest_checkpoint_on() -> None:
    """It never writes down how far it committed; what it reads at a start must not grow with its log."""
    replica = Replica(ALONE)
    for sequence in range(100):
        replica.append(numbered(sequence, value_bytes=400))
        replica.note_checkpoint(len(replica.batches), ALONE)
        housekeep(replica.store)
    replica.crash()
    first = replica.log.producers_checkpoint()[0]
    assert first > 50
    replica.files.flip_bit(SEGMENT, batch_position(replica.files, 2) + 100)
    state = replica.recover()
    assert state.incomplete == ""
    assert remembered(state) == table_of(replica.batches)
    assert state.recovered.applied == 100


# --- Group 0 ----------------------------------------------------------------------------------------------------------


def test_group_0_is_told_what_is_committed_and_nothing_else() -> None:
    replica = Replica(group=META_GROUP)
    commands: list[Command] = [CreateTopic("orders", TOPIC_ID, 2, {}), InitProducer("billing"), InitProducer("audit")]
    replica.append(control_batch(ControlKind.NO_OP, timestamp_ms=1))
    replica.append(*(encode_batch([(encode_command(command), None, 1, None)]) for command in commands))
    replica.hard_state(3)
    replica.crash()
    meta, expected = MetaState(), MetaState()
    state = replica.recover(apply=lambda header, batch: apply_batch(meta, header, batch))
    for batch in replica.batches[1:3]:
        apply_batch(expected, batch.header, batch.to_bytes())
    assert meta.digest() == expected.digest()
    assert [entry.index for entry in state.recovered.entries] == [4]


# --- Checkpoints ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_producers_and_membership_and_older_ones_are_read() -> None:
    table = table_of(Replica(ALONE).append(numbered(0)))
    assert decode_checkpoint(encode_checkpoint(table, THREE)) == (table, THREE)
    assert decode_checkpoint(b"") == (b"", None)
    # The first version was the table alone.
    assert decode_checkpoint(table) == (table, None)
    assert encode_checkpoint(table, THREE)[1] == CHECKPOINT_VERSION


def test_what_is_not_known_of_a_producer_is_refused_and_not_appended_twice() -> None:
    state = Replica(ALONE).recover()
    header = stamp(numbered(5), Stamp(0, 1, 1, 1, bytes(32))).header
    assert isinstance(state.producers.check(header, 1), UnknownProducer)


@pytest.mark.parametrize(("commit_index", "applied"), [(6, 2), (1, 1)])
@pytest.mark.parametrize("place", [10, 100, 180])
def test_damage_that_the_store_did_not_know_of_is_where_a_replica_among_others_ends(
    commit_index: int, applied: int, place: int
) -> None:
    replica = Replica()
    replica.append(numbered(0), numbered(1), change(ChangeKind.ADD_LEARNER, "node-4"), *map(numbered, range(2, 5)))
    replica.hard_state(commit_index)
    replica.crash()
    replica.crash()
    replica.files.flip_bit(SEGMENT, batch_position(replica.files, 3) + place)
    with pytest.raises(CorruptBatch):
        replica.recover()

    def on_damage(first_index: int, next_index: int) -> None:
        replica.store.note_damage(1, first_index, next_index)

    state = replica.recover(on_damage=on_damage)
    assert [(known.first_index, known.next_index) for known in replica.log.damage] == [(3, 4)]
    assert state.end == end_of(replica.batches[1])
    assert state.recovered.floor == EntryId(6, 1)
    assert state.recovered.applied == applied
    assert [entry.index for entry in state.recovered.entries] == list(range(applied + 1, 3))
    assert state.recovered.configuration == THREE
    assert remembered(state) == table_of(replica.batches[:applied])
