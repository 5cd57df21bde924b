"""The clients of a simulated cluster, and what they remember of what they were told.

For: the cluster, which gives them nodes to talk to. Must not know: which faults are on. The one idea: every batch is
sent until somebody says that it is on a majority, whoever has to be asked and how often; whatever was said then must
be true for ever, and the invariants hold it against the nodes.

Three kinds: idempotent producers with a window of batches, appenders that name the offset they expect, and readers
that ask for a read index first and must then see all that was acknowledged before they asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from logd.replica.types import ReadAt
from tests.sim.clock import MILLISECOND, SECOND
from tests.sim.invariants import Invariants, Place, Violation
from tests.sim.node import WALL_MS, Life, Machine, World
from tests.sim.reachable import reachable
from wire.errors import (
    CorruptBatch,
    DuplicateSequence,
    LogdError,
    OffsetMismatch,
    OffsetOutOfRange,
    UnknownProducer,
)
from wire.messages import Produced
from wire.record import BatchHeader, check_alone, check_produced, encode_batch, split_batches

WINDOW_MAX: Final = 4
PRODUCERS_PER_GROUP: Final = 3
TIMEOUT_US: Final = 700 * MILLISECOND
SWEEP_US: Final = 50 * MILLISECOND
BACKOFF_US_MAX: Final = 150 * MILLISECOND
CLIENT_DELAY_US_MIN: Final = 100
CLIENT_DELAY_US_MAX: Final = 1 * MILLISECOND
READ_BYTES_MAX: Final = 2_048
# A group is left alone for up to some seconds, every ten seconds or so.
TURNS_PER_REST: Final = 300
REST_US_MAX: Final = 6 * SECOND
TIMES_FORGOTTEN_MAX: Final = 50


@dataclass(slots=True)
class ClientConditions:
    """What happens between clients and nodes; the default is nothing."""

    loss: float = 0.0


@dataclass(slots=True, eq=False)
class Pending:
    """A batch that is not acknowledged yet."""

    group: int
    batch: bytes
    header: BatchHeader
    expected_offset: int | None = None
    attempt: int = 0
    try_at_us: int = 0
    """When it is sent again if nothing was heard."""
    is_answered: bool = False
    """The last attempt was: it waits for the next."""
    is_done: bool = False


@dataclass(slots=True, eq=False)
class Producer:
    """An idempotent producer of one group."""

    group: int
    producer_id: int
    epoch: int = 0
    sequence: int = 0
    window: list[Pending] = field(default_factory=list)
    """In the order of sequences."""
    times_forgotten: int = 0
    """How often in a row a node did not know it."""


class _Reply:
    """Where a node answers; made for one attempt at one node."""

    __slots__ = ("attempt", "node", "pending", "workload")

    def __init__(self, workload: "Workload", pending: Pending, node: str) -> None:
        self.workload = workload
        self.pending = pending
        self.node = node
        self.attempt = pending.attempt

    def __call__(self, outcome: Any) -> None:
        self.workload.on_answer(self, outcome)


class _ReadReply:
    """Where a node answers a read index."""

    __slots__ = ("floor", "group", "life", "workload")

    def __init__(self, workload: "Workload", life: Life, group: int, floor: int) -> None:
        self.workload = workload
        self.life = life
        self.group = group
        self.floor = floor

    def __call__(self, outcome: Any) -> None:
        self.workload.on_read_index(self, outcome)


class Workload:
    """All clients of one run.

    Arguments: `batches_per_second`, of all producers together.
    """

    def __init__(
        self,
        world: World,
        machines: Sequence[Machine],
        chance: Random,
        batches_per_second: float,
        read_share: float = 0.1,
    ) -> None:
        self.world = world
        self.invariants: Invariants = world.invariants
        self.machines = {machine.name: machine for machine in machines}
        self.conditions = ClientConditions()
        self.is_stopped = False
        self.acknowledged = 0
        self.unknown = 0
        self.reads = 0
        self.stale_ok = 0
        self.is_hurried = False
        """No group is left alone: set when all of them have to show that they live."""
        self.may_forget_producers = False
        """Set where damage may have taken producer tables away."""
        self._names = [machine.name for machine in machines]
        self._chance = chance
        self._interval_us = int(SECOND / batches_per_second)
        self._read_share = read_share
        self._groups = sorted(world.placements)
        self._quiet_until = dict.fromkeys(self._groups, 0)
        self._leaders = {group: world.placements[group].voters[0] for group in self._groups}
        self._producers = {
            group: [Producer(group, group * 100 + number + 1) for number in range(PRODUCERS_PER_GROUP)]
            for group in self._groups
        }
        self._conditional: dict[int, Pending | None] = dict.fromkeys(self._groups)
        self._expected: dict[int, int] = dict.fromkeys(self._groups, 0)

    def start(self) -> None:
        """Begin to produce and to read."""
        clock = self.world.clock
        clock.after(self._interval_us, self._on_turn)
        clock.after(SWEEP_US, self._sweep)

    def stop(self) -> None:
        """Nothing new; what is pending is tried on."""
        self.is_stopped = True

    @property
    def is_idle(self) -> bool:
        """Whether everything was acknowledged."""
        return not any(producer.window for group in self._groups for producer in self._producers[group])

    # --- What clients do by themselves --------------------------------------------------------------------------------

    def _on_turn(self) -> None:
        if self.is_stopped:
            return
        chance = self._chance
        self.world.clock.after(int(chance.expovariate(1.0) * self._interval_us), self._on_turn)
        group = self._groups[chance.randrange(len(self._groups))]
        if chance.random() < 1 / TURNS_PER_REST:
            # Long enough for a group to come to rest.
            self._quiet_until[group] = self.world.clock.now + chance.randrange(REST_US_MAX)
        if self._quiet_until[group] > self.world.clock.now and not self.is_hurried:
            return
        draw = chance.random()
        if draw < self._read_share:
            self._read(group)
        elif draw < self._read_share * 1.5:
            self._append_conditionally(group)
        producers = self._producers[group]
        producer = producers[chance.randrange(len(producers))]
        if len(producer.window) >= WINDOW_MAX:
            return
        records = 1 + chance.randrange(3)
        value = b"%d/%d/%d" % (group, producer.producer_id, producer.sequence)
        batch = encode_batch(
            [(value, None, WALL_MS, None)] * records,
            producer_id=producer.producer_id,
            producer_epoch=producer.epoch,
            base_sequence=producer.sequence,
        )
        producer.sequence += records
        pending = Pending(group, batch, check_produced(batch))
        producer.window.append(pending)
        self._send(pending)

    def _append_conditionally(self, group: int) -> None:
        if self._conditional[group] is not None:
            return
        value = b"%d/conditional/%d" % (group, self._chance.randrange(1 << 62))
        batch = encode_batch([(value, None, WALL_MS, None)])
        pending = Pending(group, batch, check_produced(batch), self._expected[group])
        self._conditional[group] = pending
        self._send(pending)

    def _sweep(self) -> None:
        """Send again what was not answered in time."""
        if not (self.is_stopped and self.is_idle):
            self.world.clock.after(SWEEP_US, self._sweep)
        now = self.world.clock.now
        for group in self._groups:
            for producer in self._producers[group]:
                for pending in producer.window:
                    if pending.try_at_us <= now:
                        if not pending.is_answered:
                            self._try_another(group)
                        self._send(pending)
            conditional = self._conditional[group]
            if conditional is not None and conditional.try_at_us <= now:
                # It may have been appended or not, and sending it again would not tell.
                self.unknown += 1
                conditional.is_done = True
                self._conditional[group] = None
                self._try_another(group)

    # --- To the nodes -------------------------------------------------------------------------------------------------

    def _delay_us(self) -> int:
        return CLIENT_DELAY_US_MIN + int(self._chance.random() * (CLIENT_DELAY_US_MAX - CLIENT_DELAY_US_MIN))

    def _is_lost(self) -> bool:
        return bool(self.conditions.loss) and self._chance.random() < self.conditions.loss

    def _try_another(self, group: int) -> None:
        voters = self.world.placements[group].voters
        names = voters if self._chance.random() < 0.9 else self._names
        self._leaders[group] = names[self._chance.randrange(len(names))]

    def _send(self, pending: Pending) -> None:
        pending.attempt += 1
        pending.is_answered = False
        pending.try_at_us = self.world.clock.now + TIMEOUT_US
        if self._is_lost():
            return
        machine = self.machines[self._leaders[pending.group]]
        self.world.clock.after(self._delay_us(), self._arrive, machine, pending, pending.attempt)

    def _arrive(self, machine: Machine, pending: Pending, attempt: int) -> None:
        life = machine.life
        if pending.is_done or attempt != pending.attempt:
            return
        if life is None:
            self._refused(pending)
            return
        self.world.trace.line(
            f"{self.world.clock.now} {machine.name} propose {pending.group} {pending.header.base_sequence}"
        )
        reply = _Reply(self, pending, machine.name)
        life.enter(life.propose, pending.group, pending.batch, pending.header, pending.expected_offset, reply)

    def _refused(self, pending: Pending) -> None:
        self._try_another(pending.group)
        self._back_off(pending)

    def _back_off(self, pending: Pending) -> None:
        pending.is_answered = True
        pending.try_at_us = self.world.clock.now + self._chance.randrange(BACKOFF_US_MAX)

    # --- What the nodes answer ----------------------------------------------------------------------------------------

    def on_answer(self, reply: _Reply, outcome: Any) -> None:
        """A node has given its answer: from here on it must be true, whether it arrives or not."""
        pending = reply.pending
        name = type(outcome).__name__
        self.world.trace.line(f"{self.world.clock.now} {reply.node} answer {pending.group} {name}")
        if isinstance(outcome, Produced):
            self._check(reply.node, pending, outcome)
        if not self._is_lost():
            self.world.clock.after(self._delay_us(), self._on_outcome, pending, reply.attempt, reply.node, outcome)

    def _check(self, node: str, pending: Pending, produced: Produced) -> None:
        self.invariants.on_acknowledged(node, pending.group, produced)
        truth = self.invariants.groups[pending.group]
        header = truth.headers[truth.committed[produced.index - 1].chain]
        if header.payload_digest != pending.header.payload_digest or header.producer_id != pending.header.producer_id:
            raise Violation(
                f"group {pending.group}: {node} acknowledges index {produced.index}, which is another batch"
            )
        if pending.expected_offset is not None and produced.base_offset != pending.expected_offset:
            raise Violation(
                f"group {pending.group}: {node} appended at {produced.base_offset}, "
                f"the condition was {pending.expected_offset}"
            )

    def _on_outcome(self, pending: Pending, attempt: int, node: str, outcome: Any) -> None:
        if pending.is_done:
            return
        if isinstance(outcome, LogdError) and attempt != pending.attempt:
            return
        if isinstance(outcome, Produced):
            self._leaders[pending.group] = node
            self._expected[pending.group] = outcome.base_offset + pending.header.record_count
            self._done(pending)
            self.acknowledged += 1
        elif isinstance(outcome, DuplicateSequence):
            self._check_old(pending)
            self._done(pending)
        elif isinstance(outcome, UnknownProducer):
            self._on_forgotten(pending)
        elif pending.expected_offset is not None:
            if isinstance(outcome, OffsetMismatch):
                reachable("a conditional append finds another offset")
                self._expected[pending.group] = outcome.details["next_offset"]
            self._done(pending)
        else:
            self._try_again(pending, outcome)

    def _try_again(self, pending: Pending, outcome: LogdError) -> None:
        self._back_off(pending)
        if outcome.code == "NotLeader":
            leader = outcome.details.get("leader")
            if leader in self.machines and self._chance.random() < 0.8:
                self._leaders[pending.group] = leader
            else:
                self._try_another(pending.group)
        elif outcome.code == "SequenceGap":
            # One ahead of it was lost on the way: that one first, and now.
            pending.try_at_us = self.world.clock.now + TIMEOUT_US
            first = self._producer_of(pending).window[0]
            first.try_at_us = min(first.try_at_us, self.world.clock.now + BACKOFF_US_MAX)
        elif outcome.code != "Overloaded":
            self._try_another(pending.group)

    def _producer_of(self, pending: Pending) -> Producer:
        producer_id = pending.header.producer_id
        return next(known for known in self._producers[pending.group] if known.producer_id == producer_id)

    def _check_old(self, pending: Pending) -> None:
        """It was said to be appended so long ago that its place is forgotten: then it is committed."""
        header = pending.header
        truth = self.invariants.groups[pending.group]
        if (
            truth.sequences.get((header.producer_id, header.producer_epoch), 0)
            < header.base_sequence + header.record_count
        ):
            raise Violation(f"group {pending.group}: sequence {header.base_sequence} is no duplicate: it is not there")
        reachable("a repeat whose place is forgotten")

    def _on_forgotten(self, pending: Pending) -> None:
        """The group does not know this producer, which wrote to it before or is not first in its window."""
        header = pending.header
        producer = self._producer_of(pending)
        self._back_off(pending)
        self._try_another(pending.group)
        if producer.window[0] is not pending:
            # The first of its batches has not arrived: this one came too early.
            return
        # A leader that was deposed and does not know it may say so, for it lacks what was written since: only if all
        # keep saying so, it is true.
        producer.times_forgotten += 1
        if producer.times_forgotten < TIMES_FORGOTTEN_MAX:
            return
        if not self.may_forget_producers:
            raise Violation(f"group {pending.group}: producer {header.producer_id} is forgotten")
        reachable("a forgotten producer begins a new epoch")
        for old in producer.window:
            old.is_done = True
            self.unknown += 1
        producer.window.clear()
        producer.times_forgotten = 0
        producer.epoch += 1
        producer.sequence = 0

    def _done(self, pending: Pending) -> None:
        pending.is_done = True
        if pending.expected_offset is not None:
            self._conditional[pending.group] = None
            return
        producer = self._producer_of(pending)
        producer.times_forgotten = 0
        producer.window = [known for known in producer.window if known is not pending]

    # --- Reads --------------------------------------------------------------------------------------------------------

    def _read(self, group: int) -> None:
        floor = self.invariants.groups[group].acknowledged_next_offset
        leader = self._leaders[group]
        voters = self.world.placements[group].voters
        name = leader if self._chance.random() < 0.7 else voters[self._chance.randrange(len(voters))]
        self.world.clock.after(self._delay_us(), self._read_arrives, self.machines[name], group, floor)

    def _read_arrives(self, machine: Machine, group: int, floor: int) -> None:
        life = machine.life
        if life is not None:
            life.enter(life.read_index, group, _ReadReply(self, life, group, floor))

    def on_read_index(self, reply: _ReadReply, outcome: Any) -> None:
        """A node says up to where to read: at least to what was acknowledged before it was asked."""
        name, group = reply.life.machine.name, reply.group
        self.world.trace.line(f"{self.world.clock.now} {name} read {group} {_short(outcome)}")
        if not isinstance(outcome, ReadAt):
            return
        high_watermark = outcome.high_watermark
        self.reads += 1
        if high_watermark < reply.floor:
            raise Violation(
                f"group {group}: {name} reads up to {high_watermark}, acknowledged before was {reply.floor}"
            )
        truth = self.invariants.groups[group]
        if high_watermark > truth.next_offset:
            raise Violation(f"group {group}: {name} reads up to {high_watermark}, committed is {truth.next_offset}")
        log = reply.life.store.groups.get(group)
        if log is None or reply.life.is_over:
            return
        end = min(high_watermark, log.written_next_offset)
        if end <= log.log_start_offset or self._chance.random() < 0.5:
            return
        offset = self._chance.randrange(log.log_start_offset, end)
        try:
            result = log.plan_read(offset, end, READ_BYTES_MAX).run()
            assert result is not None
            for raw in split_batches(result.batches):
                header = check_alone(raw)
                if truth.committed[header.index - 1] != Place(header.term, header.chain):
                    raise Violation(f"group {group}: {name} serves another batch {header.index} than the committed one")
        except (CorruptBatch, OffsetOutOfRange, OSError):
            reachable("a read that says that it cannot")


def _short(outcome: Any) -> str:
    return str(outcome.high_watermark) if isinstance(outcome, ReadAt) else type(outcome).__name__
