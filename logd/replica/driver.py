"""The driver: all of a node's groups, turned into one disk round and the answers that become true with it.

For: the node's Raft actor, which feeds it and carries out what it returns; and the simulator, which does the same on
a simulated disk. Must not know: disks, sockets, clocks, tasks. The one idea: inputs queue up while the disk is busy,
and `take_round` turns everything that waits into one round; `on_durable` says what may be promised once it is there.

The order of calls is `take_round`, `on_durable`, `take_round`, …: one round is under way at a time, so that a round is
never written before the one ahead of it is durable.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final, NamedTuple, Protocol

from logd.meta.commands import Command, decode_command, encode_command
from logd.meta.state import META_GROUP, MetaState, Outcome, TopicChanged, TopicRemoved
from logd.raft.single import EntryId, Group, Role
from logd.raft.single import HardState as RaftHardState
from logd.replica.clock import AppendClock, ClockReading
from logd.replica.producers import Duplicate, ProducerTable
from logd.store.format import HardState, Start
from logd.store.round import Append, Remove, RoundEntry, SetHardState, SetStart
from wire.errors import (
    CorruptBatch,
    LogdError,
    NotLeader,
    OffsetMismatch,
    Overloaded,
    TopicNotFound,
)
from wire.messages import Produced
from wire.record import (
    BatchHeader,
    ControlKind,
    Stamp,
    StampedBatch,
    control_batch,
    decode_control,
    decode_header,
    decode_records,
    encode_batch,
    stamp,
)
from wire.types import Acks, Durability

# A sole voter that lost its hard state cannot know in which terms it voted; this many it will not have missed.
TERMS_SKIPPED_WITHOUT_HARD_STATE: Final = 1000
# What group 0 may hold beyond its last snapshot before the next is due: it bounds the replay at a start.
META_BATCHES_PER_SNAPSHOT: Final = 1000
# Group 0 is partition 0 of no topic.
META_TOPIC_ID: Final = bytes(16)


class Admission(Enum):
    """What the disk says to one more batch in the round that is being put together."""

    TAKEN = auto()
    """There is room, and it is counted."""
    ROUND_FULL = auto()
    """Not in this round; the next one is as good."""
    NO_SPACE = auto()
    """Space must be allocated to the group first; its batches wait for `on_space`."""


class Room(Protocol):
    """The disk's room for one round, asked batch by batch while it is put together."""

    def admit(self, group: int, batch_bytes: int, *, control: bool) -> Admission:
        """Whether a batch fits; TAKEN takes the room."""
        ...

    def admit_entry(self) -> bool:
        """Whether an entry without payload fits; True takes the room."""
        ...


@dataclass(frozen=True, slots=True)
class DriverOptions:
    """The bounds of the driver. Where the numbers come from stands beside the settings of the same names."""

    waiting_bytes_max: int = 64 << 20
    producers_max: int = 10_000
    producer_expiry_ms: int = 7 * 24 * 3600 * 1000


# --- What goes in -----------------------------------------------------------------------------------------------------


class Proposal(NamedTuple):
    """A produced batch that passed `check_produced`, and who is to be answered.

    `reply` is handed back with the answer and means nothing here.
    """

    batch: bytes
    header: BatchHeader
    acks: Acks
    expected_offset: int | None
    reply: Any


class LogState(NamedTuple):
    """What the store recovered of one group's log. `hard_state` is None where it is lost."""

    group: int
    last: EntryId
    next_offset: int
    chain: bytes
    append_timestamp: int
    start_index: int
    hard_state: HardState | None
    lost: str
    """Why the log's promised end is lost; empty when it is not. Such a group answers nothing but this."""
    known_term: int = 0
    """No term above this one was ever seen here, as far as anything readable tells."""


# --- What comes out ---------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What one proposal came to."""

    reply: Any
    outcome: Produced | Outcome


class CreateGroup(NamedTuple):
    """Effect: make the directory of a group that meta wants here, then `install` it."""

    group: int
    topic_id: bytes
    partition: int


class MoveStart(NamedTuple):
    """Effect: everything below `index` is given up, by the group's own committed decision."""

    group: int
    index: int  # type: ignore[assignment]  # the glossary's word wins over `tuple.index`


class SnapshotMeta(NamedTuple):
    """Effect: keep the state of group 0 as of the batch `header`, so that what is below need not be replayed."""

    header: BatchHeader
    state: bytes


Effect = CreateGroup | MoveStart | SnapshotMeta


class _Pending(NamedTuple):
    """An appended batch whose commit somebody waits for."""

    batch: StampedBatch
    acks: Acks
    reply: Any


@dataclass(slots=True)
class _Replica:
    """This node's copy of one group, as far as it is in memory."""

    group: int
    raft: Group
    producers: ProducerTable
    # The end of the log, appended whether durable or not. Invariant: what the next batch is stamped with.
    next_offset: int
    chain: bytes
    append_timestamp: int
    start_index: int
    lost: str = ""
    # One past the last committed record; unknown (None) until a commit in the current term.
    high_watermark: int | None = None
    # Batches that are not in a round yet, in the order in which they came.
    waiting: deque[Proposal] = field(default_factory=deque)
    # Space was asked for; nothing is taken from `waiting` until it is there.
    awaits_space: bool = False
    # Appended and not committed, in the order of the log.
    pending: deque[_Pending] = field(default_factory=deque)
    # Who asked again for a batch that is not committed yet, by its index.
    duplicates: dict[int, list[tuple[Any, Produced]]] = field(default_factory=dict)
    # What the round under way makes durable.
    in_round: EntryId | None = None
    term_in_round: int = 0


class Driver:
    """The replicas of one node.

    Arguments: `node`, its name; `options`; `clock`, what stamps batches; `meta`, the state of group 0 as restored.
    """

    def __init__(self, node: str, options: DriverOptions, clock: AppendClock, meta: MetaState) -> None:
        self.node = node
        self.options = options
        self.clock = clock
        self.meta = meta
        self.waiting_bytes = 0
        self._replicas: dict[int, _Replica] = {}
        # Groups with something to do, in the order in which they got it: fair, and no cost for the idle ones.
        self._active: dict[int, None] = {}
        # Groups of the round under way.
        self._in_round: list[_Replica] = []
        self._is_round_under_way = False
        # Starts that go into the next round; with the group's state if the group is new.
        self._starts: deque[tuple[SetStart, LogState | None]] = deque()
        self._removals: deque[int] = deque()
        # New groups whose start is in the round under way.
        self._installs_in_round: list[LogState] = []
        self._effects: list[Effect] = []
        # Invariant: every group in it is wanted by meta. A new group that is not in it any more when its start is
        # durable was deleted meanwhile, and is removed again.
        self._creating: set[int] = set()
        # Groups whose control batches found no space: nobody can be refused for these, so they are tried again.
        self._short: set[int] = set()
        self._answers: list[Answer] = []
        self._nodes = (node,)

    # --- Groups -------------------------------------------------------------------------------------------------------

    def open_group(self, state: LogState) -> ProducerTable:
        """Take over a group that the store recovered or just made, and campaign for it.

        Returns its empty producer table, for the caller to restore.
        """
        hard_state = state.hard_state
        known = hard_state or HardState(state.known_term, "", 0)
        raft = Group(
            self.node,
            frozenset(self._nodes),
            state.last,
            RaftHardState(max(known.term, state.last.term), known.vote, min(known.commit, state.last.index)),
        )
        producers = self.new_producer_table()
        replica = self._replicas[state.group] = _Replica(
            state.group,
            raft,
            producers,
            state.next_offset,
            state.chain,
            state.append_timestamp,
            state.start_index,
            state.lost,
        )
        self._creating.discard(state.group)
        if not state.lost:
            # A sole voter takes a new term at every start: nothing that an earlier life may have sent is confused
            # with what this one sends.
            raft.campaign(skip_terms=0 if hard_state else TERMS_SKIPPED_WITHOUT_HARD_STATE)
            self._active[replica.group] = None
        return producers

    def new_producer_table(self) -> ProducerTable:
        """An empty table with this node's bounds."""
        return ProducerTable(self.options.producers_max, self.options.producer_expiry_ms)

    def reconcile(self) -> None:
        """Compare the groups that meta wants with those that are here; the difference becomes effects."""
        wanted = self.meta.groups()
        if META_GROUP not in self._replicas and META_GROUP not in self._creating:
            # A new node: nothing is decided before there is a group that decides.
            self._creating.add(META_GROUP)
            self._effects.append(CreateGroup(META_GROUP, META_TOPIC_ID, 0))
        for group, (topic, partition) in wanted.items():
            if group not in self._replicas and group not in self._creating:
                self._creating.add(group)
                self._effects.append(CreateGroup(group, topic.topic_id, partition))
        self._creating -= {group for group in self._creating if group not in wanted and group != META_GROUP}
        unwanted = [group for group in self._replicas if group not in wanted and group != META_GROUP]
        for group in unwanted:
            self._remove(group)
        if unwanted and self._starts:
            # A start that came after the removal would bring the group back.
            gone = frozenset(unwanted)
            self._starts = deque(start for start in self._starts if start[0].group not in gone)

    def install(self, group: int, start: Start, state: LogState | None) -> None:
        """Put a start whose file is synced into the next round: of a new group (with its state), or of a known one.

        If a new group's topic was deleted while its directory was made, the group is started all the same and removed
        in the round after: so there is one way in which a directory goes.
        """
        if state is None and group not in self._replicas:
            return  # The group was removed while its new start was written, and must not come back by it.
        self._starts.append((SetStart(group, start), state))

    def abandon(self, group: int) -> None:
        """A group's directory could not be made: the next `reconcile` tries again."""
        self._creating.discard(group)

    def _remove(self, group: int) -> None:
        replica = self._replicas.pop(group)
        self._active.pop(group, None)
        gone = TopicNotFound("the topic was deleted", {"group": group})
        for proposal in replica.waiting:
            self.waiting_bytes -= len(proposal.batch)
            if proposal.reply is not None:
                self._answers.append(Answer(proposal.reply, gone))
        for pending in replica.pending:
            if pending.reply is not None and pending.acks is not Acks.NONE:
                self._answers.append(Answer(pending.reply, gone))
        for repeated in replica.duplicates.values():
            self._answers += [Answer(reply, gone) for reply, _ in repeated]
        self._removals.append(group)

    def producers_of(self, group: int) -> tuple[int, bytes] | None:
        """The producer table of a group, encoded, and the index up to which it is true."""
        replica = self._replicas.get(group)
        return (replica.raft.last.index, replica.producers.encode()) if replica else None

    # --- Inputs -------------------------------------------------------------------------------------------------------

    def propose(self, group: int, proposal: Proposal) -> LogdError | None:
        """Queue a batch for appending; its answer comes out of `take_answers`. An error says that it was not taken."""
        replica = self._replicas.get(group)
        if replica is None:
            return NotLeader("this partition is being set up here", {"group": group})
        if replica.lost:
            return CorruptBatch(replica.lost, {"group": group})
        if self.waiting_bytes + len(proposal.batch) > self.options.waiting_bytes_max and self.waiting_bytes:
            return Overloaded(
                f"{self.waiting_bytes} bytes wait for the disk already",
                # About one round of the largest size on a slow disk.
                {"delay_seconds": 0.1},
            )
        self._queue(replica, proposal)
        return None

    def propose_command(self, command: Command, reading: ClockReading, reply: Any) -> LogdError | None:
        """Queue a command for group 0; the answer is its outcome, once it is committed and applied."""
        batch = encode_batch([(encode_command(command), None, self.clock.now_ms(reading), None)])
        return self.propose(META_GROUP, Proposal(batch, decode_header(batch), Acks.QUORUM, None, reply))

    def propose_retention(self, group: int, index: int, offset: int, reading: ClockReading) -> bool:
        """Let a group decide that everything below `index`, and so below `offset`, is given up.

        False if it was not taken: the group is gone or lost, or a decision waits already.
        """
        replica = self._replicas.get(group)
        if replica is None or replica.lost or any(waiting.header.is_control for waiting in replica.waiting):
            return False
        batch = control_batch(ControlKind.RETENTION, index, offset, timestamp_ms=self.clock.now_ms(reading))
        self._queue(replica, Proposal(batch, decode_header(batch), Acks.QUORUM, None, None))
        return True

    def _queue(self, replica: _Replica, proposal: Proposal) -> None:
        replica.waiting.append(proposal)
        self.waiting_bytes += len(proposal.batch)
        self._active[replica.group] = None

    def on_space(self, group: int, error: LogdError | None) -> None:
        """Space was allocated to a group, or could not be: then all that waits for it is refused."""
        replica = self._replicas.get(group)
        if replica is None:
            return
        replica.awaits_space = False
        if error is None:
            self._active[group] = None
            return
        kept: deque[Proposal] = deque()
        for proposal in replica.waiting:
            if proposal.header.is_control:
                kept.append(proposal)
                continue
            self.waiting_bytes -= len(proposal.batch)
            self._answers.append(Answer(proposal.reply, error))
        replica.waiting = kept
        if kept:
            self._short.add(group)

    @property
    def is_short(self) -> bool:
        """Whether control batches wait for space that could not be had: see `retry_space`."""
        return bool(self._short)

    def retry_space(self) -> None:
        """Let what could not be refused ask for space again; to be called now and then while `is_short`."""
        for group in self._short & self._replicas.keys():
            self._active[group] = None
        self._short.clear()

    # --- Rounds -------------------------------------------------------------------------------------------------------

    def take_round(self, room: Room, reading: ClockReading) -> list[RoundEntry]:
        """Everything that can be made durable now, as one round; empty when there is nothing.

        A non-empty round is under way until `on_durable`.
        """
        assert not self._is_round_under_way, "the round before is not durable yet"
        entries: list[RoundEntry] = []
        self._take_starts(room, entries)
        if self._active:
            now_ms = self.clock.now_ms(reading)
            # What moves a log's start, or removes it, is alone of its group in a round.
            alone = {entry.group for entry in entries}
            for group in list(self._active):
                if group in alone:
                    continue
                if not self._take_group(self._replicas[group], room, now_ms, entries):
                    break
        self._is_round_under_way = bool(entries)
        return entries

    def _take_starts(self, room: Room, entries: list[RoundEntry]) -> None:
        while self._removals and room.admit_entry():
            entries.append(Remove(self._removals.popleft()))
        taken: set[int] = set()
        while self._starts and self._starts[0][0].group not in taken and room.admit_entry():
            entry, state = self._starts.popleft()
            taken.add(entry.group)
            entries.append(entry)
            if state is not None:
                self._installs_in_round.append(state)

    def _take_group(self, replica: _Replica, room: Room, now_ms: int, entries: list[RoundEntry]) -> bool:
        """One group's part of the round. False when the round is full; the group stays active then.

        A group that fills the round goes behind the others, so that a busy one cannot keep them out for ever.
        """
        raft = replica.raft
        if raft.has_ready:
            if not room.admit_entry():
                return False
            ready = raft.take_ready()
            if ready.hard_state is not None:
                entries.append(SetHardState(replica.group, HardState(*ready.hard_state)))
                replica.term_in_round = raft.term
            if ready.became_leader:
                no_op = control_batch(ControlKind.NO_OP, timestamp_ms=now_ms)
                replica.waiting.appendleft(Proposal(no_op, decode_header(no_op), Acks.QUORUM, None, None))
                self.waiting_bytes += len(no_op)
        full = False
        if raft.role is Role.LEADER and not replica.awaits_space:
            full = self._take_batches(replica, room, now_ms, entries)
            appended = raft.take_ready().append
            if appended:
                replica.in_round = appended[-1]
        if replica.in_round is not None or replica.term_in_round:
            self._in_round.append(replica)
        if not full or replica.in_round is not None:
            del self._active[replica.group]
        if full:
            # In its old place if it got nothing yet, behind all others if it did.
            self._active.setdefault(replica.group)
        return not full

    def _take_batches(self, replica: _Replica, room: Room, now_ms: int, entries: list[RoundEntry]) -> bool:
        waiting = replica.waiting
        while waiting:
            proposal = waiting[0]
            answer = self._check(replica, proposal, now_ms)
            if answer is None:
                # Group 0 may use the reserve as well: deleting a topic is one of the ways out of a full disk.
                control = proposal.header.is_control or replica.group == META_GROUP
                admission = room.admit(replica.group, len(proposal.batch), control=control)
                if admission is Admission.ROUND_FULL:
                    return True
                if admission is Admission.NO_SPACE:
                    replica.awaits_space = True
                    return False
                entries.append(Append(replica.group, self._append(replica, proposal, now_ms)))
            elif answer.outcome is not _LATER:
                self._answers.append(answer)
            waiting.popleft()
            self.waiting_bytes -= len(proposal.batch)
        return False

    def _check(self, replica: _Replica, proposal: Proposal, now_ms: int) -> Answer | None:
        """None to append, or what the proposal is answered without appending it."""
        verdict = replica.producers.check(proposal.header, max(now_ms, replica.append_timestamp))
        if isinstance(verdict, LogdError):
            return Answer(proposal.reply, verdict)
        if verdict is not None:
            return self._answer_duplicate(replica, proposal, verdict)
        if proposal.expected_offset is not None and proposal.expected_offset != replica.next_offset:
            return Answer(
                proposal.reply,
                OffsetMismatch(
                    f"the next offset is {replica.next_offset}, expected was {proposal.expected_offset}",
                    {"next_offset": replica.next_offset},
                ),
            )
        return None

    def _answer_duplicate(self, replica: _Replica, proposal: Proposal, verdict: Duplicate) -> Answer:
        original = verdict.original
        produced = Produced(
            original.base_offset, original.index, 0, b"", Durability.QUORUM_FSYNC, self._nodes, duplicate=True
        )
        if original.index <= replica.raft.commit_index or proposal.acks is Acks.NONE:
            return Answer(proposal.reply, produced)
        replica.duplicates.setdefault(original.index, []).append((proposal.reply, produced))
        return Answer(proposal.reply, _LATER)

    def _append(self, replica: _Replica, proposal: Proposal, now_ms: int) -> StampedBatch:
        entry = replica.raft.propose()
        replica.append_timestamp = max(now_ms, replica.append_timestamp)
        place = Stamp(replica.next_offset, entry.index, entry.term, replica.append_timestamp, replica.chain)
        batch = stamp(proposal.batch, place)
        header = batch.header
        replica.next_offset = header.next_offset
        replica.chain = header.chain
        replica.producers.append(header)
        replica.pending.append(_Pending(batch, proposal.acks, proposal.reply))
        if proposal.acks is Acks.NONE and proposal.reply is not None:
            self._answers.append(Answer(proposal.reply, Produced(0, 0, 0, b"", Durability.NONE, ())))
        return batch

    def on_durable(self) -> list[int]:
        """The round under way is durable. Returns the groups whose commit moved."""
        self._is_round_under_way = False
        moved = []
        for replica in self._in_round:
            if self._replicas.get(replica.group) is not replica:
                continue  # removed while the round was under way
            last = replica.in_round or replica.raft.last
            if replica.raft.on_persisted(last, replica.term_in_round or replica.raft.term):
                moved.append(replica.group)
                self._commit(replica)
            replica.in_round = None
            replica.term_in_round = 0
            if replica.raft.has_ready or (replica.waiting and not replica.awaits_space):
                self._active[replica.group] = None
        self._in_round = []
        for state in self._installs_in_round:
            if state.group in self._creating:
                self.open_group(state)
            else:
                self._removals.append(state.group)  # deleted while its start was on the way to the disk
        self._installs_in_round = []
        return moved

    def _commit(self, replica: _Replica) -> None:
        commit_index = replica.raft.commit_index
        pending = replica.pending
        while pending and pending[0].batch.header.index <= commit_index:
            batch, acks, reply = pending.popleft()
            header = batch.header
            replica.high_watermark = header.next_offset
            outcome: Produced | Outcome | None = None
            if header.is_control:
                self._on_control(replica, batch)
            elif replica.group == META_GROUP:
                outcome = self._apply(batch)
            else:
                replica.producers.commit(header, commit_index)
            if reply is not None and acks is not Acks.NONE:
                self._answers.append(Answer(reply, outcome or self._produced(header)))
            for waiting_reply, produced in replica.duplicates.pop(header.index, ()):
                self._answers.append(Answer(waiting_reply, produced))

    def _produced(self, header: BatchHeader) -> Produced:
        # One voter: what the leader has fsynced, a majority has.
        return Produced(
            header.base_offset, header.index, header.term, header.chain, Durability.QUORUM_FSYNC, self._nodes
        )

    def _on_control(self, replica: _Replica, batch: StampedBatch) -> None:
        kind, fields = decode_control(batch.header, batch.to_bytes())
        if kind is ControlKind.RETENTION:
            self._effects.append(MoveStart(replica.group, fields[0]))

    def _apply(self, batch: StampedBatch) -> Outcome:
        outcome = apply_batch(self.meta, batch.header, batch.to_bytes())
        if isinstance(outcome, TopicChanged | TopicRemoved):
            self.reconcile()
        replica = self._replicas[META_GROUP]
        if batch.header.index - replica.start_index >= META_BATCHES_PER_SNAPSHOT:
            replica.start_index = batch.header.index
            self._effects.append(SnapshotMeta(batch.header, self.meta.snapshot()))
        return outcome

    # --- Outputs ------------------------------------------------------------------------------------------------------

    def take_answers(self) -> list[Answer]:
        """What became true or was refused since the last time."""
        answers, self._answers = self._answers, []
        return answers

    def take_effects(self) -> list[Effect]:
        """What the node has to do to its files since the last time."""
        effects, self._effects = self._effects, []
        return effects

    @property
    def has_output(self) -> bool:
        """Whether there are answers or effects to take."""
        return bool(self._answers or self._effects)

    @property
    def has_work(self) -> bool:
        """Whether `take_round` could give something."""
        return bool(self._active or self._starts or self._removals)

    # --- What others may ask ------------------------------------------------------------------------------------------

    def knows(self, group: int) -> bool:
        """Whether this node holds a replica of the group."""
        return group in self._replicas

    def high_watermark(self, group: int) -> int | None:
        """One past the last committed record; None while it is not known: no commit in the current term yet."""
        replica = self._replicas.get(group)
        return replica.high_watermark if replica else None

    def lost(self, group: int) -> str:
        """Why a group's promised end is lost; empty when it is not."""
        replica = self._replicas.get(group)
        return replica.lost if replica else ""

    def term(self, group: int) -> int:
        return self._replicas[group].raft.term

    def commit_index(self, group: int) -> int:
        return self._replicas[group].raft.commit_index

    def groups(self) -> Sequence[int]:
        return tuple(self._replicas)


_LATER: Final = Produced(0, 0, 0, b"", Durability.NONE, ())
"""Marks an answer that is not due yet; compared by identity, and never sent."""


def apply_batch(meta: MetaState, header: BatchHeader, batch: bytes | memoryview) -> Outcome:
    """Apply a committed batch of group 0; the outcome of its (only) command.

    Raises UndecodableBatch or ValueError when it cannot be read: the node must not go on without it.
    """
    outcomes = [meta.apply(decode_command(record.value or b"")) for record in decode_records(header, batch, 0)]
    return outcomes[-1]


def replay(meta: MetaState, batches: Iterator[tuple[BatchHeader, memoryview]]) -> None:
    """Bring a restored state of group 0 up to the end of its log."""
    for header, batch in batches:
        if not header.is_control:
            apply_batch(meta, header, batch)
