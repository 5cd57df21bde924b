"""Claims about the driver that hold whatever happens in whatever order.

One run is a node's life: topics come and go, batches of every sort arrive, rounds are small or stay short of space,
directories cannot be made, clocks jump, and the node is killed and started again from what its disk holds.
"""

from collections import defaultdict
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from logd.meta.commands import AlterTopic, Command, CreateTopic, DeleteTopic, InitProducer
from logd.meta.state import META_GROUP, MetaState
from logd.raft.types import INITIAL_HARD_STATE, HardState
from logd.replica.producers import ProducerTable
from logd.replica.restore import decode_checkpoint
from logd.replica.types import CreateGroup, DriverOptions
from logd.store.round import Append, Remove, RoundEntry, SetHardState, SetStart
from tests.replica.harness import (
    ALONE,
    TOPIC_ID,
    FakeRoom,
    Harness,
    batch_of,
    check_log,
    empty_log,
    recovered_log,
    replay,
    start_after,
)
from wire.errors import DiskFull, LogdError
from wire.messages import Produced
from wire.record import BatchHeader, StampedBatch
from wire.types import Acks, Durability

OPTIONS = DriverOptions(waiting_bytes_max=3_000, producers_max=3, producer_expiry_ms=5_000)
TOPICS = st.sampled_from(["a", "b"])
# Choices below this are groups that are here.
CHOICES = 6
CHOICE = st.integers(0, CHOICES)


class Disk:
    """What a disk holds after the rounds so far."""

    def __init__(self) -> None:
        self.logs: dict[int, list[StampedBatch]] = {}
        self.hard_states: dict[int, HardState] = {}

    def write(self, entries: list[RoundEntry]) -> None:
        moved = [entry.group for entry in entries if isinstance(entry, SetStart | Remove)]
        others = [entry.group for entry in entries if not isinstance(entry, SetStart | Remove)]
        assert len(moved) == len(set(moved))
        assert not set(moved).intersection(others), "what moves a start or removes a log is alone of its group"
        for entry in entries:
            match entry:
                case SetStart(group, start) if start.index == 0:
                    assert group not in self.logs, "a group is made once"
                    self.logs[group] = []
                    self.hard_states[group] = INITIAL_HARD_STATE
                case SetStart(group):
                    assert group in self.logs, "a start does not bring a removed group back"
                case Append(group, batch):
                    assert batch.header.term == self.hard_states[group].term, "the vote is there before the entries"
                    self.logs[group].append(batch)
                case SetHardState(group, hard_state):
                    assert hard_state.term > self.hard_states[group].term
                    self.hard_states[group] = HardState(hard_state.term, hard_state.vote, hard_state.commit)
                case Remove(group):
                    del self.logs[group]
                    del self.hard_states[group]
                case _:
                    raise AssertionError(entry)


class DriverMachine(RuleBasedStateMachine):
    """The driver, a disk, and everybody who waits for an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = Disk()
        self.under_way: list[RoundEntry] = []
        self.replies = 0
        # Proposals that were taken in this life, by reply, with group, batch and acks.
        self.taken: dict[int, tuple[int, bytes, Acks]] = {}
        # Answers of QUORUM_FSYNC: they must be on the disk for ever, or their topic deleted.
        self.promised: dict[int, dict[int, bytes]] = defaultdict(dict)
        self.high_watermarks: dict[int, int] = {}
        # What each producer would send next, by group and id: epoch and sequence.
        self.sequences: dict[tuple[int, int], tuple[int, int]] = {}
        self.seen = 0
        self.node = Harness(OPTIONS)

    # --- A life -------------------------------------------------------------------------------------------------------

    @initialize()
    def start(self) -> None:
        self.node.driver.reconcile()
        self.finish()
        self.decide(CreateTopic("a", TOPIC_ID, 2, {}))
        self.finish()

    @rule(with_round=st.booleans())
    def kill_and_start(self, with_round: bool) -> None:
        """The round under way is whole on the disk, or not there at all."""
        if with_round:
            self.disk.write(self.under_way)
        self.under_way = []
        clock = self.node
        meta = MetaState()
        meta_log = self.disk.logs.get(META_GROUP, [])
        replay(meta, meta_log)
        self.node = Harness(OPTIONS, meta)
        self.node.wall_ms, self.node.monotonic_ms = clock.wall_ms, clock.monotonic_ms
        self.taken = {}
        self.seen = 0
        for group, log in self.disk.logs.items():
            producers = self.node.driver.new_producer_table()
            fill(producers, [batch.header for batch in log])
            hard_state = self.disk.hard_states[group]
            if hard_state.term:
                end = start_after(log[-1].header if log else None).end
                state = recovered_log(group, end, hard_state._replace(commit=end.index), producers)
            else:
                state = empty_log(group, producers)
            self.node.logs[group] = list(log)
            self.node.driver.open_group(state)
        self.node.driver.reconcile()

    def finish(self) -> None:
        """Everything that can still happen happens."""
        if self.under_way:
            self.durable()
        for group in self.node.driver.groups():
            self.node.driver.on_space(group, None)
        self.node.driver.reconcile()
        self.node.collect()
        while self.node.driver.has_work or self.creations():
            while self.creations():
                self.make_directory()
            self.take(FakeRoom())
            if self.under_way:
                self.durable()

    def creations(self) -> list[CreateGroup]:
        self.node.collect()
        return [effect for effect in self.node.effects if isinstance(effect, CreateGroup)]

    # --- What arrives -------------------------------------------------------------------------------------------------

    def propose(self, group: int, batch: bytes, acks: Acks, expected_offset: int | None = None) -> None:
        self.replies += 1
        error = self.node.produce(group, self.replies, batch, acks=acks, expected_offset=expected_offset)
        if error is None:
            self.taken[self.replies] = (group, batch, acks)

    def group(self, choice: int) -> int:
        """A group that is here, or now and then one that is not."""
        groups = [group for group in self.node.driver.groups() if group != META_GROUP]
        return groups[choice % len(groups)] if groups and choice < CHOICES else 1 + choice

    @rule(
        choice=CHOICE,
        records=st.integers(1, 3),
        producer_id=st.integers(0, 4),
        acks=st.sampled_from(Acks),
        again=st.integers(0, 2),
    )
    def produce_by_the_rules(self, choice: int, records: int, producer_id: int, acks: Acks, again: int) -> None:
        """The next batch of a producer, and perhaps a repeat of it right away."""
        group = self.group(choice)
        epoch, sequence = self.sequences.get((group, producer_id), (0, 0))
        batch = batch_of(records, producer_id=producer_id, producer_epoch=epoch, base_sequence=sequence)
        if producer_id:
            self.sequences[group, producer_id] = (epoch, sequence + records)
        for _ in range(1 + again * bool(producer_id)):
            self.propose(group, batch, acks)

    @rule(choice=CHOICE, producer_id=st.integers(1, 4))
    def begin_a_new_epoch(self, choice: int, producer_id: int) -> None:
        group = self.group(choice)
        epoch, _ = self.sequences.get((group, producer_id), (0, 0))
        self.sequences[group, producer_id] = (epoch + 1, 0)

    @rule(
        choice=CHOICE,
        producer_id=st.integers(1, 4),
        epoch=st.integers(0, 2),
        sequence=st.integers(0, 9),
        records=st.integers(1, 3),
    )
    def produce_anything(self, choice: int, producer_id: int, epoch: int, sequence: int, records: int) -> None:
        batch = batch_of(records, producer_id=producer_id, producer_epoch=epoch, base_sequence=sequence)
        self.propose(self.group(choice), batch, Acks.QUORUM)

    @rule(choice=CHOICE, records=st.integers(1, 3), error=st.sampled_from([0, 0, 1]))
    def produce_on_condition(self, choice: int, records: int, error: int) -> None:
        group = self.group(choice)
        log = self.node.logs[group]
        expected = (log[-1].header.next_offset if log else 0) + error
        self.propose(group, batch_of(records), Acks.QUORUM, expected)

    @precondition(lambda self: self.taken)
    @rule(back=st.integers(0, 12))
    def repeat_an_earlier_batch(self, back: int) -> None:
        group, batch, acks = list(self.taken.values())[-1 - min(back, len(self.taken) - 1)]
        if group != META_GROUP:
            self.propose(group, batch, acks)

    @rule(
        command=st.one_of(
            st.builds(CreateTopic, TOPICS, st.just(TOPIC_ID), st.integers(1, 3), st.just({})),
            st.builds(AlterTopic, TOPICS, st.integers(1, 3), st.just({})),
            st.builds(DeleteTopic, TOPICS),
            st.builds(InitProducer, st.sampled_from([None, "p"])),
        )
    )
    def decide(self, command: Command) -> None:
        self.replies += 1
        if self.node.command(self.replies, command) is None:
            self.taken[self.replies] = (META_GROUP, b"", Acks.QUORUM)

    @rule(choice=CHOICE, index=st.integers(1, 5))
    def retain(self, choice: int, index: int) -> None:
        self.node.driver.propose_retention(self.group(choice), index, 0, self.node.reading)

    @rule(milliseconds=st.integers(0, 4_000), jump_ms=st.sampled_from([0, 0, 0, -10_000_000, 10_000_000, -5_000]))
    def time_passes(self, milliseconds: int, jump_ms: int) -> None:
        self.node.pass_ms(milliseconds)
        self.node.wall_ms += jump_ms

    # --- What the disk does -------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.under_way)
    @rule(
        batch_bytes_max=st.sampled_from([200, 600, 1 << 20]),
        entries_max=st.integers(0, 4),
        short=st.sets(st.integers(0, 6), max_size=3),
        reserve=st.booleans(),
    )
    def take_a_small_round(self, batch_bytes_max: int, entries_max: int, short: set[int], reserve: bool) -> None:
        self.take(FakeRoom(batch_bytes_max, entries_max, short, set() if reserve else short))

    @precondition(lambda self: not self.under_way)
    @rule()
    def take_round(self) -> None:
        self.take(FakeRoom())

    @rule()
    def everything_settles(self) -> None:
        self.finish()

    def take(self, room: FakeRoom) -> None:
        self.under_way = self.node.take_round(room)

    @precondition(lambda self: self.under_way)
    @rule()
    def durable(self) -> None:
        self.disk.write(self.under_way)
        self.under_way = []
        self.node.durable()

    @rule(group=st.integers(0, 6), full=st.booleans())
    def space(self, group: int, full: bool) -> None:
        self.node.driver.on_space(group, DiskFull("no space") if full else None)

    @precondition(lambda self: self.creations())
    @rule()
    def make_directory(self) -> None:
        effect = self.creations()[0]
        self.node.effects.remove(effect)
        self.node.install(effect.group)

    @precondition(lambda self: self.creations())
    @rule()
    def fail_to_make_a_directory(self) -> None:
        effect = self.creations()[0]
        self.node.effects.remove(effect)
        self.node.driver.abandon(effect.group)
        self.node.driver.reconcile()

    @rule(choice=CHOICE)
    def move_a_start(self, choice: int) -> None:
        group = self.group(choice)
        if self.disk.logs.get(group):
            self.node.driver.install(group, start_after(self.disk.logs[group][-1].header), None)

    # --- What holds ---------------------------------------------------------------------------------------------------

    @invariant()
    def nobody_is_answered_twice_nor_before_it_is_true(self) -> None:
        self.node.collect()
        for reply in self.node.answered[self.seen :]:
            assert reply in self.taken, "only who was taken is answered, and nobody is answered for a control batch"
            group, batch, acks = self.taken[reply]
            (outcome,) = self.node.answers[reply]
            if isinstance(outcome, Produced):
                self.check_produced(group, batch, acks, outcome)
        self.seen = len(self.node.answered)

    def check_produced(self, group: int, batch: bytes, acks: Acks, outcome: Produced) -> None:
        if outcome.durability is Durability.NONE:
            assert acks is Acks.NONE
            return
        if acks is Acks.NONE:
            # A repeat is answered at once and with its place; like every answer without acks, it is no promise.
            assert outcome.duplicate
            return
        # The group may be deleted by the very round that made the answer true; its log is in the harness still.
        stored = self.node.logs[group][outcome.index - 1]
        if group in self.disk.logs:
            assert self.disk.logs[group][outcome.index - 1] == stored
            self.promised[group][outcome.index] = stored.header.chain
        assert stored.header.base_offset == outcome.base_offset
        # The producer's part, which holds the payload's digest, is what was sent.
        assert stored.header_bytes[:80] == batch[:80]

    @invariant()
    def what_was_promised_is_on_the_disk(self) -> None:
        for group, promised in self.promised.items():
            log = self.disk.logs.get(group)
            for index, chain in promised.items():
                assert log is None or log[index - 1].header.chain == chain

    @invariant()
    def logs_are_whole_and_chained(self) -> None:
        for log in self.disk.logs.values():
            check_log(log)

    @invariant()
    def only_what_is_durable_is_readable(self) -> None:
        for group in self.node.driver.groups():
            high_watermark = self.node.driver.high_watermark(group)
            if high_watermark is None:
                continue
            log = self.disk.logs[group]
            assert high_watermark <= (log[-1].header.next_offset if log else 0)
            assert high_watermark >= self.high_watermarks.get(group, 0)
            self.high_watermarks[group] = high_watermark

    @invariant()
    def waiting_bytes_are_bounded_and_counted(self) -> None:
        # Control batches come on top; there is at most one no-op a group, and one batch may be alone above the bound.
        replicas: Any = self.node.driver._replicas
        waiting = sum(len(item.batch) for replica in replicas.values() for item in replica.waiting)
        assert self.node.driver.waiting_bytes == waiting

    @invariant()
    def the_state_is_what_the_log_says(self) -> None:
        if self.under_way:
            return
        meta = MetaState()
        log = self.disk.logs.get(META_GROUP, [])
        replay(meta, log)
        assert meta.digest() == self.node.driver.meta.digest()
        for group in self.node.driver.groups():
            live = self.node.driver.new_producer_table()
            index, checkpoint = self.node.driver.producers_of(group) or (0, b"")
            table, configuration = decode_checkpoint(checkpoint)
            assert configuration == ALONE
            live.restore(table)
            assert index == len(self.disk.logs[group])
            rebuilt = self.node.driver.new_producer_table()
            fill(rebuilt, [batch.header for batch in self.disk.logs[group]])
            assert live.encode() == rebuilt.encode()

    def teardown(self) -> None:
        """At the end of every run, everybody was answered, once, and the node holds what the cluster wants."""
        self.finish()
        self.nobody_is_answered_twice_nor_before_it_is_true()
        assert {reply: len(self.node.answers[reply]) for reply in self.taken} == dict.fromkeys(self.taken, 1)
        driver = self.node.driver
        assert set(driver.groups()) == {META_GROUP, *driver.meta.groups()} == set(self.disk.logs)
        assert all(driver.high_watermark(group) is not None for group in driver.groups())
        assert driver.waiting_bytes == 0
        for reply in self.taken:
            (outcome,) = self.node.answers[reply]
            assert isinstance(outcome, LogdError) or outcome is not None


def fill(table: ProducerTable, headers: list[BatchHeader]) -> None:
    """As the node fills a table at its start."""
    for header in headers:
        table.append(header)
        table.commit(header)


TestDriverMachine = DriverMachine.TestCase
TestDriverMachine.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
