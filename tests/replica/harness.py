"""A driver with a disk that is a list, a clock that is set by hand, and replies that are names.

The disk's room keeps the contract of `logd.replica.room.Room`: TAKEN takes, the other two take nothing, and an empty
round has room for a batch of any legal size.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from logd.meta.commands import Command, CreateTopic
from logd.meta.state import META_GROUP, MetaState, Outcome
from logd.raft.types import INITIAL_HARD_STATE, Configuration, EntryId, HardState, Recovered
from logd.replica.clock import AppendClock, ClockReading
from logd.replica.driver import Driver, apply_batch
from logd.replica.frames import snapshot_of
from logd.replica.membership import encode_membership
from logd.replica.producers import ProducerTable
from logd.replica.restore import LogState, state_of_start
from logd.replica.room import Admission
from logd.replica.types import CreateGroup, DriverOptions, Effect, Proposal
from logd.store.format import LogEnd, Start
from logd.store.round import Append, RoundEntry
from wire.errors import LogdError
from wire.messages import Produced
from wire.record import BatchHeader, StampedBatch, check_alone, check_produced, encode_batch
from wire.types import Acks

NODE = "node-1"
TOPIC_ID = bytes(range(16))
WALL_MS = 1_700_000_000_000
ALONE = Configuration(frozenset((NODE,)))
FIRST_CHAIN = b"\x01" * 32


def batch_of(
    records: int = 1, *, value: bytes = b"x", producer_id: int = 0, producer_epoch: int = 0, base_sequence: int = 0
) -> bytes:
    """A batch as a client sends it."""
    return encode_batch(
        [(value, None, WALL_MS, None)] * records,
        producer_id=producer_id,
        producer_epoch=producer_epoch,
        base_sequence=base_sequence,
    )


def proposal(reply: Any, batch: bytes, *, acks: Acks = Acks.QUORUM, expected_offset: int | None = None) -> Proposal:
    return Proposal(batch, check_produced(batch), acks, expected_offset, reply)


def new_table() -> ProducerTable:
    """An empty table with the bounds of `DriverOptions`."""
    options = DriverOptions()
    return ProducerTable(options.producers_max, options.producer_expiry_ms)


def empty_log(group: int, producers: ProducerTable | None = None, configuration: Configuration = ALONE) -> LogState:
    """What is known of a group that was just made."""
    producers = new_table() if producers is None else producers
    return state_of_start(group, start_after(None, configuration), producers, INITIAL_HARD_STATE)


def recovered_log(
    group: int, end: LogEnd, hard_state: HardState, producers: ProducerTable | None = None, *, lost: str = ""
) -> LogState:
    """What is known of a group of one voter whose log ends at `end`: all of it is committed."""
    recovered = Recovered(
        snapshot=snapshot_of(start_after(None)),
        base=EntryId(end.index, end.term),
        base_chain=end.chain,
        hard_state=hard_state,
        configuration=ALONE,
        applied=end.index,
    )
    producers = new_table() if producers is None else producers
    return LogState(group, recovered, end, end.next_offset, producers, lost)


def start_after(header: BatchHeader | None, configuration: Configuration = ALONE) -> Start:
    """A start just behind a batch; None, before all."""
    membership = encode_membership(configuration)
    if header is None:
        return Start(0, 0, 0, FIRST_CHAIN, 0, TOPIC_ID, 0, membership, b"")
    place = (header.index, header.term, header.next_offset, header.chain, header.append_timestamp)
    return Start(*place, TOPIC_ID, 0, membership, b"")


@dataclass
class FakeRoom:
    """Room for so many bytes and entries; groups named in `without_space` have none for data."""

    batch_bytes_max: int = 1 << 30
    entries_max: int = 1 << 30
    without_space: set[int] = field(default_factory=set)
    # Groups that have none even for control batches.
    without_reserve: set[int] = field(default_factory=set)
    batch_bytes: int = 0
    entries: int = 0

    def admit(self, group: int, batch_bytes: int, *, control: bool, index: int) -> Admission:
        if self.batch_bytes + batch_bytes > self.batch_bytes_max and self.batch_bytes:
            return Admission.ROUND_FULL
        if group in self.without_reserve or (group in self.without_space and not control):
            return Admission.NO_SPACE
        self.batch_bytes += batch_bytes
        return Admission.TAKEN

    def admit_entry(self) -> bool:
        if self.entries >= self.entries_max:
            return False
        self.entries += 1
        return True

    def check(self, entries: Sequence[RoundEntry]) -> None:
        """Nothing is in the round that was not asked for."""
        batches = [entry.batch.batch_bytes for entry in entries if isinstance(entry, Append)]
        assert sum(batches) <= self.batch_bytes
        assert len(entries) - len(batches) <= self.entries


class Harness:
    """A node's driver. `logs` is what its disk holds, `promised` how much of it is durable."""

    def __init__(self, options: DriverOptions | None = None, meta: MetaState | None = None) -> None:
        self.wall_ms = WALL_MS
        self.monotonic_ms = 0
        clock = AppendClock.started(self.reading)
        self.driver = Driver(NODE, options or DriverOptions(), clock, meta or MetaState(), random.Random(0))
        self.make_room: Callable[[], FakeRoom] = FakeRoom
        self.logs: dict[int, list[StampedBatch]] = defaultdict(list)
        self.answers: dict[Any, list[Any]] = defaultdict(list)
        # The replies of `answers`, in the order in which they came.
        self.answered: list[Any] = []
        self.effects: list[Effect] = []
        self.entries: list[RoundEntry] = []

    @property
    def reading(self) -> ClockReading:
        return ClockReading(self.wall_ms, self.monotonic_ms)

    def pass_ms(self, milliseconds: int) -> None:
        self.wall_ms += milliseconds
        self.monotonic_ms += milliseconds

    # --- Steps --------------------------------------------------------------------------------------------------------

    def take_round(self, room: FakeRoom | None = None) -> list[RoundEntry]:
        room = room or self.make_room()
        entries = self.driver.take_round(room, self.reading)
        room.check(entries)
        for entry in entries:
            if isinstance(entry, Append):
                self.logs[entry.group].append(entry.batch)
        self.entries += entries
        self.collect()
        return entries

    def durable(self) -> list[int]:
        moved = self.driver.on_durable()
        self.collect()
        return moved

    def collect(self) -> None:
        for answer in self.driver.take_answers():
            self.answers[answer.reply].append(answer.outcome)
            self.answered.append(answer.reply)
        self.effects += self.driver.take_effects()

    def round(self, room: FakeRoom | None = None) -> list[RoundEntry]:
        """One round, taken and durable."""
        entries = self.take_round(room)
        if entries:
            self.durable()
        return entries

    def settle(self) -> None:
        """Rounds and directories until there is nothing to do."""
        self.collect()
        while self.driver.has_work or self.effects:
            for effect in self.take_effects():
                if isinstance(effect, CreateGroup):
                    self.install(effect.group)
            self.round()

    def take_effects(self) -> list[Effect]:
        effects, self.effects = self.effects, []
        return effects

    def install(self, group: int) -> None:
        self.driver.install(group, start_after(None), empty_log(group, self.driver.new_producer_table()))

    # --- What a test asks for -----------------------------------------------------------------------------------------

    def start_meta(self) -> None:
        self.driver.open_group(empty_log(META_GROUP, self.driver.new_producer_table()))
        self.settle()

    def command(self, reply: Any, command: Command) -> LogdError | None:
        return self.driver.propose_command(command, self.reading, reply)

    def create_topic(self, name: str = "orders", partitions: int = 1) -> tuple[int, ...]:
        """A topic whose groups are ready; returns them."""
        assert self.command(("create", name), CreateTopic(name, TOPIC_ID, partitions, {})) is None
        self.settle()
        return self.driver.meta.topics[name].groups

    def produce(
        self, group: int, reply: Any, batch: bytes, *, acks: Acks = Acks.QUORUM, expected_offset: int | None = None
    ) -> LogdError | None:
        return self.driver.propose(group, proposal(reply, batch, acks=acks, expected_offset=expected_offset))

    def outcome(self, reply: Any) -> Produced | Outcome:
        outcome: Produced | Outcome
        (outcome,) = self.answers[reply]
        return outcome

    def produced(self, reply: Any) -> Produced:
        outcome = self.outcome(reply)
        assert isinstance(outcome, Produced), outcome
        return outcome

    def error(self, reply: Any) -> LogdError:
        outcome = self.outcome(reply)
        assert isinstance(outcome, LogdError), outcome
        return outcome


def ready(options: DriverOptions | None = None, partitions: int = 1) -> tuple[Harness, tuple[int, ...]]:
    """A node with one topic, ready to be written to; returns its groups too."""
    node = Harness(options)
    node.start_meta()
    groups = node.create_topic(partitions=partitions)
    node.entries.clear()
    node.answered.clear()
    return node, groups


def appended(entries: Sequence[RoundEntry], group: int) -> list[StampedBatch]:
    return [entry.batch for entry in entries if isinstance(entry, Append) and entry.group == group]


def kinds(entries: Sequence[RoundEntry]) -> list[tuple[type, int]]:
    return [(type(entry), entry.group) for entry in entries]


def check_log(batches: Sequence[StampedBatch], chain: bytes = FIRST_CHAIN) -> None:
    """Every batch is valid alone and in its place: indexes and offsets dense, chain unbroken, times not going down."""
    index, offset, append_timestamp = 0, 0, 0
    for batch in batches:
        header = check_alone(batch.to_bytes())
        assert header == batch.header
        assert (header.index, header.base_offset, header.previous_chain) == (index + 1, offset, chain)
        assert header.append_timestamp >= append_timestamp
        index, offset, chain = header.index, header.next_offset, header.chain
        append_timestamp = header.append_timestamp


def replay(meta: MetaState, batches: Sequence[StampedBatch]) -> None:
    """Apply a committed log of group 0, as a start does."""
    for batch in batches:
        if not batch.header.is_control:
            apply_batch(meta, batch.header, batch.to_bytes())
