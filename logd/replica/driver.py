"""The driver: all of a node's groups, turned into one disk round, one frame per peer, and the answers that become true.

For: the node's Raft actor, which feeds it and carries out what it returns; and the simulator, which does the same on
a simulated disk and network. Must not know: disks, sockets, clocks, tasks. The one idea: inputs change the cores, which
leave behind messages, and things to be made durable; messages leave at once, the rest queues up while the disk is busy,
and `take_round` turns everything that waits into one round; `on_durable` lets go what was waiting for it.

The order of calls is `take_round`, `on_durable`, `take_round`, …: one round is under way at a time, so that a round is
never written before the one ahead of it is durable. Inputs may come at any time, and `take_frames` after each of them.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from logd.meta.commands import Command, decode_command, encode_command
from logd.meta.state import META_GROUP, MetaState, Outcome, TopicChanged, TopicRemoved
from logd.raft.configuration import InvalidChange, change_of
from logd.raft.group import Chance, Group
from logd.raft.progress import ProgressState
from logd.raft.types import (
    NOBODY,
    ChangeKind,
    ChangeStep,
    Configuration,
    ConfigurationChange,
    Entry,
    EntryKind,
    GroupOptions,
    HardState,
    Message,
    MessageType,
    ProposalDropped,
    Ready,
    Role,
    Snapshot,
    SoftState,
    Status,
)
from logd.replica.clock import AppendClock, ClockReading
from logd.replica.frames import PeerFrame, decode_frame, encode_frame, entry_of_stamped, snapshot_of
from logd.replica.membership import change_fields, encode_membership
from logd.replica.producers import Duplicate, ProducerTable
from logd.replica.rest import Rest
from logd.replica.restore import LogState, encode_checkpoint
from logd.replica.room import Admission, Room
from logd.store.format import HardState as StoredHardState
from logd.store.format import Start
from logd.store.round import Append, Remove, RoundEntry, SetHardState, SetStart
from wire.errors import (
    CorruptBatch,
    InvalidRequest,
    LogdError,
    NotLeader,
    OffsetMismatch,
    OutcomeUnknown,
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

# What group 0 may hold beyond its last snapshot before the next is due: it bounds the replay at a start.
META_BATCHES_PER_SNAPSHOT: Final = 1000
_ECHOES: Final = {MessageType.APPEND_RESPONSE, MessageType.HEARTBEAT_RESPONSE}
# Group 0 is partition 0 of no topic.
META_TOPIC_ID: Final = bytes(16)


@dataclass(frozen=True, slots=True)
class DriverOptions:
    """The bounds of the driver. Where the numbers come from stands beside the settings of the same names."""

    waiting_bytes_max: int = 64 << 20
    producers_max: int = 10_000
    producer_expiry_ms: int = 7 * 24 * 3600 * 1000
    raft: GroupOptions = field(default_factory=GroupOptions)
    frame_bytes_max: int = 4 << 20
    """Entries of one frame to a peer: half of what a frame may have, as one message may exceed it by a batch."""
    disk_ticks_max: int = 30
    """Heartbeats stop when the disk's oldest round is older: 3 s of ticks of 100 ms (D5). A leader whose disk hangs
    must not keep others from leading."""
    promotion_lag_max: int = 100
    """How many entries a learner may lack to be made a voter: what is committed within an election timeout or so."""
    feature_level: int = 2
    """What this software speaks. Level 2 lets groups rest; a group rests only if all its members speak it."""


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


# --- What comes out ---------------------------------------------------------------------------------------------------


class ReadAt(NamedTuple):
    """The outcome of `read_index`: a linearizable read of this group may be served here, up to `high_watermark`."""

    index: int  # type: ignore[assignment]  # the glossary's word wins over `tuple.index`
    high_watermark: int


class Reconfigured(NamedTuple):
    """The outcome of `change_membership`: it is committed, and in force here."""

    configuration: Configuration


class Answer(NamedTuple):
    """What one proposal came to."""

    reply: Any
    outcome: Produced | Outcome | ReadAt | Reconfigured


class CreateGroup(NamedTuple):
    """Effect: make the directory of a group that meta wants here, then `install` it."""

    group: int
    topic_id: bytes
    partition: int


class MoveStart(NamedTuple):
    """Effect: everything up to and including `index` is given up, by the group's own committed decision."""

    group: int
    index: int  # type: ignore[assignment]  # the glossary's word wins over `tuple.index`


class SnapshotMeta(NamedTuple):
    """Effect: keep the state of group 0 as of the batch `header`, so that what is below need not be replayed."""

    header: BatchHeader
    state: bytes
    membership: bytes


class InstallStart(NamedTuple):
    """Effect: write the file of a start that a leader sent, which replaces the log; then `install` it."""

    group: int
    start: Start


class ReadRange(NamedTuple):
    """Effect: read whole batches `[first_index, next_index)`, up to `bytes_max`, at least two; then `on_range`."""

    group: int
    first_index: int
    next_index: int
    bytes_max: int
    token: int


Effect = CreateGroup | MoveStart | SnapshotMeta | InstallStart | ReadRange


class _Pending(NamedTuple):
    """An appended batch whose commit somebody waits for."""

    term: int
    acks: Acks
    reply: Any


class _Read(NamedTuple):
    """A read that waits for its index, or for that index to be applied here."""

    reply: Any
    asked_ticks: int
    """When, in ticks of this driver."""


class _Range(NamedTuple):
    """A message to a lagging follower that waits for batches to be read."""

    group: int
    message: Message
    has_previous: bool
    """The first batch read is the one before those to be sent: the message lacks its term."""


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
    # One past the last record known to be committed.
    committed_offset: int
    lost: str = ""
    # Whether an entry of the current term is committed: only then is `committed_offset` the high watermark.
    is_current: bool = False
    # The last index that `producers` has seen.
    noted_index: int = 0
    # Group 0: the index of its last snapshot, or of the one that is on its way.
    snapshot_index: int = 0
    # Proposals that are not in the log yet, in the order in which they came.
    waiting: deque[Proposal] = field(default_factory=deque)
    # Space was asked for; no batch asks for room in a round until it is there.
    awaits_space: bool = False
    # What has to become durable, in order: entries, hard states, a start; and what may be let go once all that stands
    # before it is durable.
    unwritten: "deque[Entry | HardState | Start | tuple[Message, ...]]" = field(default_factory=deque)
    # Entries up to here have their room in the round that is being put together; 0 between rounds.
    admitted_index: int = 0
    # The term and vote as they were last put into `unwritten`, and a commit that nobody waits for.
    saved: tuple[int, str] = (0, "")
    saved_commit: int = 0
    # `saved_commit` as it was before the start that is in `unwritten`, if there is one.
    commit_before_start: int = 0
    unsaved_commit: HardState | None = None
    # The index of a start whose file is written.
    written_start: int = -1
    # Something of this group is in the round under way.
    is_in_round: bool = False
    releases: list[tuple[Message, ...]] = field(default_factory=list)
    # Who waits for what was appended here, by index, in the order of the log.
    pending: dict[int, _Pending] = field(default_factory=dict)
    # Indexes whose proposers want to hear when this node alone has them.
    awaiting_leader: deque[int] = field(default_factory=deque)
    # Who asked again for a batch that is not committed yet, by its index.
    duplicates: dict[int, list[tuple[Any, Produced]]] = field(default_factory=dict)
    # Reads that wait for their index, by the context they were asked with; and those that know it.
    # Invariant: together at most `GroupOptions.read_requests_max`; `reads` is in the order in which they were asked.
    reads: dict[bytes, _Read] = field(default_factory=dict)
    reads_due: list[tuple[int, _Read]] = field(default_factory=list)
    # When a snapshot was sent to whom, until that is settled.
    snapshots_sent_ticks: dict[str, int] = field(default_factory=dict)
    # Who should vote, if somebody said so.
    wanted: frozenset[str] | None = None


class Driver:
    """The replicas of one node.

    Arguments: `node`, its name; `options`; `clock`, what stamps batches; `meta`, the state of group 0 as restored;
    `chance`, for election timeouts; `life`, a number that no earlier start of this node had, for its heartbeats.

    Any input may raise SafetyViolation: the node stops then, with everything left as it is.
    """

    def __init__(
        self, node: str, options: DriverOptions, clock: AppendClock, meta: MetaState, chance: Chance, life: int = 1
    ) -> None:
        self.node = node
        self.options = options
        self.clock = clock
        self.meta = meta
        self.waiting_bytes = 0
        self._chance = chance
        self._replicas: dict[int, _Replica] = {}
        # Groups with something to do, in the order in which they got it: fair, and no cost for the idle ones.
        self._active: dict[int, None] = {}
        # Groups of the round under way.
        self._in_round: list[_Replica] = []
        self._is_round_under_way = False
        self._round_ticks = 0
        # Whether the round under way has been for longer than a leader may be silent.
        self._hangs = False
        self._ticks = 0
        # Starts that go into the next round; with the group's state if the group is new.
        self._starts: deque[tuple[SetStart, LogState | None]] = deque()
        self._starts_in_round: list[SetStart] = []
        self._removals: deque[int] = deque()
        # New groups whose start is in the round under way.
        self._installs_in_round: list[LogState] = []
        self._effects: list[Effect] = []
        # Invariant: every group in it is wanted by meta. A new group that is not in it any more when its start is
        # durable was deleted meanwhile, and is removed again.
        self._creating: set[int] = set()
        # Groups whose batches found no space, though nobody can be refused for them: they are tried again.
        self._short: set[int] = set()
        self._answers: list[Answer] = []
        self._outbox: dict[str, list[tuple[int, Message]]] = {}
        self._ranges: dict[int, _Range] = {}
        self._ranges_of: dict[tuple[int, str], int] = {}
        self._tokens = 0
        self._moved: dict[int, None] = {}
        self._now_ms = 0
        self._adopted: set[int] = set()
        self._rest = Rest(life, options.feature_level)

    # --- Groups -------------------------------------------------------------------------------------------------------

    def open_group(self, state: LogState) -> None:
        """Take over a group that the store recovered or just made.

        A sole voter campaigns for it at once, and so takes a new term at every start: nothing that an earlier life may
        have sent is confused with what this one sends.
        """
        end, recovered = state.end, state.recovered
        raft = Group(self.node, self.options.raft, recovered, self._chance)
        replica = self._replicas[state.group] = _Replica(
            group=state.group,
            raft=raft,
            producers=state.producers,
            next_offset=end.next_offset,
            chain=end.chain,
            append_timestamp=end.append_timestamp,
            committed_offset=state.committed_offset,
            lost=state.lost,
            noted_index=end.index,
            snapshot_index=recovered.snapshot.index,
        )
        if recovered.hard_state is not None:
            replica.saved, replica.saved_commit = recovered.hard_state[:2], recovered.hard_state.commit
        self._creating.discard(state.group)
        if not state.lost and raft.is_singleton:
            raft.campaign()
        elif recovered.hard_state is not None and state.saved is not None and state.saved[:2] != replica.saved:
            # The log ends in a later term than the disk's hard state knows.
            self._put_hard_state(replica, recovered.hard_state)
        self._active[state.group] = None

    def new_producer_table(self) -> ProducerTable:
        """An empty table with this node's bounds."""
        return ProducerTable(self.options.producers_max, self.options.producer_expiry_ms)

    def reconcile(self) -> None:
        """Compare the groups that meta wants with those that are here; the difference becomes effects."""
        wanted = self.meta.groups()
        kept = self._adopted | {META_GROUP}
        if META_GROUP not in self._replicas and META_GROUP not in self._creating:
            # A new node: nothing is decided before there is a group that decides.
            self._creating.add(META_GROUP)
            self._effects.append(CreateGroup(META_GROUP, META_TOPIC_ID, 0))
        for group, (topic, partition) in wanted.items():
            if group not in self._replicas and group not in self._creating:
                self._creating.add(group)
                self._effects.append(CreateGroup(group, topic.topic_id, partition))
        self._creating -= {group for group in self._creating if group not in wanted and group not in kept}
        unwanted = [group for group in self._replicas if group not in wanted and group not in kept]
        for group in unwanted:
            self.remove_group(group)

    def adopt(self, group: int) -> None:
        """This group is here by somebody's word, not by meta's: it is created and kept without it."""
        self._adopted.add(group)
        if group not in self._replicas:
            self._creating.add(group)

    def install(self, group: int, start: Start, state: LogState | None) -> None:
        """Put a start whose file is synced into the next round: of a new group (with its state), or of a known one.

        If a new group's topic was deleted while its directory was made, the group is started all the same and removed
        in the round after: so there is one way in which a directory goes.
        """
        if state is not None:
            is_unadmitted = state.recovered.hard_state is None
            self._starts.append((SetStart(group, start, is_unadmitted=is_unadmitted), state))
            return
        replica = self._replicas.get(group)
        if replica is None:
            return  # The group was removed while its new start was written, and must not come back by it.
        if any(item is start for item in replica.unwritten):
            # It replaces the log, and has its place among what is written.
            replica.written_start = start.index
            self._active[group] = None
        elif start.index > replica.raft.log.snapshot.index and start.index <= replica.raft.applied:
            self._starts.append((SetStart(group, start), None))

    def abandon(self, group: int) -> None:
        """A group's directory could not be made: the next `reconcile` tries again."""
        self._creating.discard(group)

    def abandon_start(self, group: int, start: Start) -> None:
        """The file of an `InstallStart` could not be written, as the disk is full: it is tried again."""
        replica = self._replicas.get(group)
        if replica is not None and any(item is start for item in replica.unwritten):
            self._effects.append(InstallStart(group, start))

    def remove_group(self, group: int) -> None:
        """This node gives its copy of a group up."""
        replica = self._replicas.pop(group)
        self._active.pop(group, None)
        self._adopted.discard(group)
        self._rest.rouse(group)
        gone = TopicNotFound("the topic was deleted", {"group": group})
        for proposal in replica.waiting:
            self.waiting_bytes -= len(proposal.batch)
            if proposal.reply is not None:
                self._answers.append(Answer(proposal.reply, gone))
        for pending in replica.pending.values():
            if pending.reply is not None and pending.acks is not Acks.NONE:
                self._answers.append(Answer(pending.reply, gone))
        for repeated in replica.duplicates.values():
            self._answers += [Answer(reply, gone) for reply, _ in repeated]
        self._answers += [
            Answer(read.reply, gone) for read in (*replica.reads.values(), *(due[1] for due in replica.reads_due))
        ]
        # A start that came after the removal would bring the group back.
        self._starts = deque(start for start in self._starts if start[0].group != group)
        self._removals.append(group)

    def discard(self, group: int) -> None:
        """Give up a log that the store recovered and that cannot be used.

        Its start is lost, and with it who belongs to the group, which is created anew once it is gone, as one that has
        to be admitted.
        """
        assert group not in self._replicas
        self._removals.append(group)

    def producers_of(self, group: int) -> tuple[int, bytes] | None:
        """What a replica remembers of its committed batches, encoded, and the index up to which it is true."""
        replica = self._replicas.get(group)
        if replica is None:
            return None
        return replica.raft.applied, encode_checkpoint(replica.producers.encode(), replica.raft.configuration)

    # --- Inputs: what users want --------------------------------------------------------------------------------------

    def propose(self, group: int, proposal: Proposal) -> LogdError | None:
        """Queue a batch for appending; its answer comes out of `take_answers`. An error says that it was not taken."""
        replica = self._replicas.get(group)
        if replica is None:
            return NotLeader("this partition is being set up here", {"group": group})
        if replica.lost:
            return CorruptBatch(replica.lost, {"group": group})
        if replica.raft.role is not Role.LEADER and not replica.raft.is_singleton:
            return self._not_leader(replica)
        if self.waiting_bytes + len(proposal.batch) > self.options.waiting_bytes_max and self.waiting_bytes:
            return Overloaded(
                f"{self.waiting_bytes} bytes wait for the disk already",
                # About one round of the largest size on a slow disk.
                {"delay_seconds": 0.1},
            )
        self._queue(replica, proposal)
        return None

    def _not_leader(self, replica: _Replica) -> NotLeader:
        leader = replica.raft.leader
        where = f"{leader} leads it" if leader else "no leader is known"
        return NotLeader(f"this node does not lead group {replica.group}: {where}", {"leader": leader})

    def propose_command(self, command: Command, reading: ClockReading, reply: Any) -> LogdError | None:
        """Queue a command for group 0; the answer is its outcome, once it is committed and applied."""
        batch = encode_batch([(encode_command(command), None, self.clock.now_ms(reading), None)])
        return self.propose(META_GROUP, Proposal(batch, decode_header(batch), Acks.QUORUM, None, reply))

    def propose_retention(self, group: int, index: int, offset: int, reading: ClockReading) -> bool:
        """Let a group decide that everything up to `index`, and so below `offset`, is given up.

        False if it was not taken: the group is gone, lost or led elsewhere, or a decision waits already.
        """
        replica = self._replicas.get(group)
        if replica is None or replica.lost or any(waiting.header.is_control for waiting in replica.waiting):
            return False
        if replica.raft.role is not Role.LEADER:
            return False
        batch = control_batch(ControlKind.RETENTION, index, offset, timestamp_ms=self.clock.now_ms(reading))
        self._queue(replica, Proposal(batch, decode_header(batch), Acks.QUORUM, None, None))
        return True

    def _queue(self, replica: _Replica, proposal: Proposal) -> None:
        replica.waiting.append(proposal)
        self.waiting_bytes += len(proposal.batch)
        self._wake(replica)

    def read_index(self, group: int, reply: Any) -> LogdError | None:
        """Ask what a linearizable read of a group must have seen; the answer is a ReadAt, or NotLeader."""
        replica = self._replicas.get(group)
        if replica is None or replica.lost:
            return NotLeader("this node has no replica to read from", {"group": group})
        if replica.raft.role is not Role.LEADER and replica.raft.leader == NOBODY:
            return self._not_leader(replica)
        if self._hangs and replica.raft.role is Role.LEADER:
            # The heartbeats that confirm reads would keep others from leading, as any other would.
            return Overloaded("the disk of this node does not answer", {"delay_seconds": 1.0})
        if len(replica.reads) + len(replica.reads_due) >= self.options.raft.read_requests_max:
            return Overloaded("too many reads wait for confirmation", {"delay_seconds": 0.1})
        self._tokens += 1
        context = b"%s/%d" % (self.node.encode(), self._tokens)
        replica.reads[context] = _Read(reply, self._ticks)
        try:
            replica.raft.read_index(context)
        except ProposalDropped as error:
            del replica.reads[context]
            return Overloaded(error.reason, {"delay_seconds": 0.1})
        self._wake(replica)
        return None

    def change_membership(self, group: int, change: ConfigurationChange, reply: Any) -> LogdError | None:
        """Change who votes in a group that this node leads; the answer is Reconfigured, or NotLeader.

        Refused with InvalidRequest where it would leave too few voters that are known to count: a node becomes a voter
        when it holds nearly the whole log as a learner, and one that has to be admitted is no voter to rely on.
        """
        replica = self._replicas.get(group)
        if replica is None or replica.raft.role is not Role.LEADER:
            return NotLeader("this node does not lead the group", {"group": group})
        raft = replica.raft
        try:
            problem = _what_endangers(raft, change_of(raft.configuration, change), self.options.promotion_lag_max)
            if problem and not change.admission and not change.leaves_joint:
                return InvalidRequest(f"the change would endanger the quorum: {problem}")
            raft.propose_change(change)
        except InvalidChange as error:
            return InvalidRequest(f"the membership cannot be changed so: {error}")
        except ProposalDropped as error:
            return Overloaded(error.reason, {"delay_seconds": 0.1})
        if reply is not None:
            replica.pending[raft.last.index] = _Pending(raft.term, Acks.QUORUM, reply)
        self._wake(replica)
        return None

    def want_voters(self, group: int, voters: frozenset[str]) -> None:
        """Who should vote in a group. Whoever leads it brings that about, one node at a time, through learners."""
        replica = self._replicas.get(group)
        if replica is not None and replica.wanted != voters:
            replica.wanted = voters
            # Nothing is brought about in a group at rest.
            self._wake(replica)

    def transfer(self, group: int, to: str) -> bool:
        """Hand leadership of a group over. False if this node does not lead it."""
        replica = self._replicas.get(group)
        if replica is None or replica.raft.role is not Role.LEADER:
            return False
        replica.raft.transfer_leader(to)
        self._wake(replica)
        return True

    # --- Inputs: time, peers, the disk --------------------------------------------------------------------------------

    def tick(self, reading: ClockReading | None = None) -> None:
        """Let one tick (100 ms) pass for every group that is awake."""
        if reading is not None:
            self._now_ms = self.clock.now_ms(reading)
        self._ticks += 1
        self._round_ticks += self._is_round_under_way
        hangs = self._hangs = self._round_ticks > self.options.disk_ticks_max
        for group in self._rest.tick(hangs=hangs):
            replica = self._replicas.get(group)
            if replica is not None:
                self._wake(replica)
        for replica in self._replicas.values():
            raft = replica.raft
            if replica.reads:
                self._give_reads_up(replica)
            if self._rest.is_resting(replica.group):
                continue
            if raft.role is Role.LEADER:
                if hangs:
                    # What is sent on behalf of a disk that does not answer would keep others from leading.
                    continue
                raft.tick()
                if raft.role is Role.LEADER:
                    self._lead(replica)
            else:
                raft.tick()
            # What waits may have waited for the end of a transfer.
            if raft.has_ready or (replica.waiting and not replica.awaits_space):
                self._active[replica.group] = None

    def _give_reads_up(self, replica: _Replica) -> None:
        """Whoever asked so long ago is to ask again: the question to the leader, or its answer, was lost."""
        asked_ticks = self._ticks - 2 * self.options.raft.election_ticks
        refused: NotLeader | None = None
        while replica.reads:
            context, read = next(iter(replica.reads.items()))
            if read.asked_ticks > asked_ticks:
                return
            refused = refused or self._not_leader(replica)
            self._answers.append(Answer(replica.reads.pop(context).reply, refused))

    def _lead(self, replica: _Replica) -> None:
        """What a leader does now and then: see that its members are what they should be, or let the group rest."""
        raft = replica.raft
        if replica.snapshots_sent_ticks:
            self._settle_snapshots(replica)
        if raft.pending_change_index <= raft.applied and not raft.transfer_to:
            change = _next_change(raft, replica.wanted, self.options.promotion_lag_max)
            if change is not None:
                self.change_membership(replica.group, change, None)
                return
        if raft.is_at_rest and not replica.waiting and not replica.unwritten and not raft.is_singleton:
            others = raft.configuration.members - {self.node}
            self._rest.lay(replica.group, raft.term, raft.last.index, others)

    def _settle_snapshots(self, replica: _Replica) -> None:
        """Whoever did not take a snapshot for so long is probed, and sent another: it may have been lost.

        That is harmless where it was not: a replica takes no snapshot that brings it nothing.
        """
        raft = replica.raft
        for name, sent_ticks in list(replica.snapshots_sent_ticks.items()):
            progress = raft.progress.get(name)
            if progress is None or progress.state is not ProgressState.SNAPSHOT:
                del replica.snapshots_sent_ticks[name]
            elif self._ticks - sent_ticks > self.options.raft.election_ticks:
                del replica.snapshots_sent_ticks[name]
                raft.report_snapshot(name, delivered=False)

    def on_frame(self, peer: str, data: bytes) -> None:
        """A frame of a peer arrived. Raises ValueError for what is no frame, CorruptBatch for a damaged batch in it."""
        frame = decode_frame(data, peer, self.node)
        self._rest.note_level(peer, frame.level)
        if frame.beat is not None:
            for group in self._rest.on_beat(peer, frame.beat, self._can_rest):
                replica = self._replicas.get(group)
                if replica is not None:
                    self._wake(replica)
        for group, message in frame.messages:
            replica = self._replicas.get(group)
            if replica is None:
                continue
            self._step(replica, message)

    def _can_rest(self, peer: str, group: int, term: int, index: int) -> bool:
        """Whether this replica is where the leader believes it to be when it lets the group rest."""
        replica = self._replicas.get(group)
        if replica is None:
            return False
        raft = replica.raft
        return (raft.leader, raft.term, raft.log.stable, raft.commit_index, raft.last.index) == (
            peer,
            term,
            index,
            index,
            index,
        )

    def _step(self, replica: _Replica, message: Message) -> None:
        if self._hangs and message.type is MessageType.READ_INDEX:
            return  # see `read_index`
        try:
            replica.raft.step(message)
        except ProposalDropped:
            # A read that was passed on to this node, which has too many: the asker asks again.
            return
        self._active[replica.group] = None
        if self._rest.is_resting(replica.group) and not self._still_rests(replica, message):
            self._rest.rouse(replica.group)

    def _still_rests(self, replica: _Replica, message: Message) -> bool:
        """Whether a message changed nothing for a group at rest: it was on its way when the group came to rest."""
        raft = replica.raft
        if raft.role is Role.LEADER:
            return raft.is_at_rest and message.type in _ECHOES
        return self._can_rest(raft.leader, replica.group, raft.term, raft.last.index)

    def _wake(self, replica: _Replica) -> None:
        self._active[replica.group] = None
        self._rest.rouse(replica.group)

    def on_range(self, token: int, batches: Sequence[StampedBatch] | None) -> None:
        """The batches of a `ReadRange` were read; None if they could not be."""
        waiting = self._ranges.pop(token)
        message = waiting.message
        del self._ranges_of[waiting.group, message.to]
        replica = self._replicas.get(waiting.group)
        if replica is None or replica.raft.role is not Role.LEADER or replica.raft.term != message.term:
            return
        entries = [entry_of_stamped(batch) for batch in batches or ()]
        previous = entries.pop(0) if waiting.has_previous and entries else None
        if not entries:
            return
        if previous is not None:
            message = message._replace(log_term=previous.term, chain=previous.chain)
        self._route(replica.group, message._replace(range=None, entries=tuple(entries)))

    def on_space(self, group: int, error: LogdError | None) -> None:
        """Space was allocated to a group, or could not be: then all proposals that wait for it are refused."""
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
        if kept or replica.unwritten:
            self._short.add(group)

    @property
    def is_short(self) -> bool:
        """Whether something waits for space that could not be had: see `retry_space`."""
        return bool(self._short)

    def retry_space(self) -> None:
        """Let what could not be refused ask for space again; to be called now and then while `is_short`."""
        for group in sorted(self._short & self._replicas.keys()):
            self._active[group] = None
        self._short.clear()

    # --- Rounds -------------------------------------------------------------------------------------------------------

    def take_round(self, room: Room, reading: ClockReading) -> list[RoundEntry]:
        """Everything that can be made durable now, as one round; empty when there is nothing.

        A non-empty round is under way until `on_durable`.
        """
        assert not self._is_round_under_way, "the round before is not durable yet"
        entries: list[RoundEntry] = []
        self._now_ms = self.clock.now_ms(reading)
        self._take_starts(room, entries)
        if self._active:
            # What moves a log's start, or removes it, is alone of its group in a round.
            alone = {entry.group for entry in entries}
            for group in list(self._active):
                # What group 0 decides meanwhile may remove others.
                replica = self._replicas.get(group)
                if group in alone or replica is None:
                    continue
                if not self._take_group(replica, room, entries):
                    break
        self._is_round_under_way = bool(entries)
        self._round_ticks = 0
        return entries

    def _take_starts(self, room: Room, entries: list[RoundEntry]) -> None:
        taken: set[int] = set()
        while self._removals and room.admit_entry():
            group = self._removals.popleft()
            taken.add(group)
            entries.append(Remove(group))
        while self._starts and self._starts[0][0].group not in taken and room.admit_entry():
            entry, state = self._starts.popleft()
            taken.add(entry.group)
            entries.append(entry)
            if state is not None:
                self._installs_in_round.append(state)
            else:
                self._starts_in_round.append(entry)

    def _take_group(self, replica: _Replica, room: Room, entries: list[RoundEntry]) -> bool:
        """One group's part of the round. False when the round is full; the group stays active then.

        A group that fills the round goes behind the others, so that a busy one cannot keep them out for ever.
        """
        self._pump(replica)
        full = self._drain(replica, room, entries)
        if not full and not replica.unwritten and not replica.awaits_space:
            full = self._take_batches(replica, room)
            self._pump(replica)
            full = self._drain(replica, room, entries) or full
        # Whatever found no place in this round asks for room in the next.
        replica.admitted_index = 0
        if replica.is_in_round:
            self._in_round.append(replica)
        if not full or replica.is_in_round:
            self._active.pop(replica.group, None)
        if full:
            # In its old place if it got nothing yet, behind all others if it did.
            self._active.setdefault(replica.group)
        return not full

    def _drain(self, replica: _Replica, room: Room, entries: list[RoundEntry]) -> bool:
        """Move what has to become durable into the round, in order. True when the round is full."""
        unwritten = replica.unwritten
        while unwritten:
            item = unwritten[0]
            if type(item) is Entry:
                if replica.awaits_space and item.index > replica.admitted_index:
                    return False
                admission = self._admit(replica, item, room)
                if admission is Admission.ROUND_FULL:
                    return True
                if admission is Admission.NO_SPACE:
                    replica.awaits_space = True
                    return False
                entries.append(Append(replica.group, item.data))
                replica.is_in_round = True
            elif type(item) is HardState:
                if not room.admit_entry():
                    return True
                entries.append(SetHardState(replica.group, StoredHardState(*item)))
                replica.is_in_round = True
            elif type(item) is Start:
                # It is alone of its group in a round, and its file comes first.
                if replica.written_start != item.index or replica.is_in_round:
                    return False
                if not room.admit_entry():
                    return True
                entry = SetStart(replica.group, item, keeps_suffix=False)
                entries.append(entry)
                self._starts_in_round.append(entry)
                replica.is_in_round = True
                unwritten.popleft()
                return False
            elif replica.is_in_round:
                replica.releases.append(item)  # type: ignore[arg-type]  # nothing else is left
            else:
                # Nothing stands before it that is not durable.
                unwritten.popleft()
                self._deliver(replica, item)  # type: ignore[arg-type]
                self._pump(replica)
                continue
            unwritten.popleft()
        return False

    def _admit(self, replica: _Replica, entry: Entry, room: Room) -> Admission:
        if entry.index <= replica.admitted_index:
            return Admission.TAKEN
        header: BatchHeader = entry.data.header
        # Group 0 may use the reserve as well: deleting a topic is one of the ways out of a full disk.
        control = header.is_control or replica.group == META_GROUP
        return room.admit(replica.group, header.batch_bytes, control=control, index=entry.index)

    def _take_batches(self, replica: _Replica, room: Room) -> bool:
        """Put what waits into the log, as far as there is room for it. True when the round is full."""
        raft, waiting = replica.raft, replica.waiting
        if not waiting or raft.role is not Role.LEADER or raft.transfer_to or replica.lost:
            return False
        entries: list[Entry] = []
        size_bytes, full = raft.uncommitted_bytes, False
        while waiting:
            proposal = waiting[0]
            answer = self._check(replica, proposal)
            if answer is None:
                batch_bytes = len(proposal.batch)
                if size_bytes and size_bytes + batch_bytes > raft.options.uncommitted_bytes_max:
                    break  # until some of it is committed
                control = proposal.header.is_control or replica.group == META_GROUP
                index = raft.last.index + len(entries) + 1
                admission = room.admit(replica.group, batch_bytes, control=control, index=index)
                if admission is Admission.ROUND_FULL:
                    full = True
                    break
                if admission is Admission.NO_SPACE:
                    replica.awaits_space = True
                    break
                size_bytes += batch_bytes
                entries.append(self._stamped(replica, proposal, index))
            elif answer.outcome is not _LATER:
                self._answers.append(answer)
            waiting.popleft()
            self.waiting_bytes -= len(proposal.batch)
        if entries:
            replica.admitted_index = entries[-1].index
            raft.step(Message(MessageType.PROPOSE, sender=self.node, entries=tuple(entries)))
        return full

    def _check(self, replica: _Replica, proposal: Proposal) -> Answer | None:
        """None to append, or what the proposal is answered without appending it."""
        verdict = replica.producers.check(proposal.header, max(self._now_ms, replica.append_timestamp))
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
            original.base_offset, original.index, 0, b"", Durability.QUORUM_FSYNC, (self.node,), duplicate=True
        )
        if original.index <= replica.raft.applied or proposal.acks is Acks.NONE:
            return Answer(proposal.reply, produced)
        replica.duplicates.setdefault(original.index, []).append((proposal.reply, produced))
        return Answer(proposal.reply, _LATER)

    def _stamped(self, replica: _Replica, proposal: Proposal, index: int) -> Entry:
        """A proposal as the entry that it becomes, with its waiter noted."""
        batch = self._stamp(replica, proposal.batch, index, replica.raft.term)
        header = batch.header
        replica.producers.append(header)
        replica.noted_index = index
        if proposal.reply is not None:
            if proposal.acks is Acks.NONE:
                self._answers.append(Answer(proposal.reply, Produced(0, 0, 0, b"", Durability.NONE, ())))
            else:
                replica.pending[index] = _Pending(header.term, proposal.acks, proposal.reply)
                if proposal.acks is Acks.LEADER:
                    replica.awaiting_leader.append(index)
        size_bytes = 0 if header.is_control else len(proposal.batch)
        return Entry(index, header.term, EntryKind.DATA, batch, size_bytes, header.chain)

    def _stamp(self, replica: _Replica, batch: bytes, index: int, term: int) -> StampedBatch:
        """Give a batch its place at the end of the log."""
        replica.append_timestamp = max(self._now_ms, replica.append_timestamp)
        place = Stamp(replica.next_offset, index, term, replica.append_timestamp, replica.chain)
        stamped = stamp(batch, place)
        replica.next_offset = stamped.header.next_offset
        replica.chain = stamped.header.chain
        return stamped

    def on_durable(self) -> list[int]:
        """The round under way is durable. Returns the groups whose commit moved since the last time."""
        self._is_round_under_way = self._hangs = False
        in_round, self._in_round = self._in_round, []
        self._on_starts_durable()
        for replica in in_round:
            replica.is_in_round = False
            releases, replica.releases = replica.releases, []
            if self._replicas.get(replica.group) is not replica:
                continue  # removed while the round was under way
            for messages in releases:
                self._deliver(replica, messages)
            self._pump(replica)
            self._answer_leader_acks(replica)
            if _has_work(replica):
                self._active[replica.group] = None
        for state in self._installs_in_round:
            if state.group in self._creating:
                self.open_group(state)
            else:
                self._removals.append(state.group)  # deleted while its start was on the way to the disk
        self._installs_in_round = []
        moved, self._moved = list(self._moved), {}
        return moved

    def _on_starts_durable(self) -> None:
        starts, self._starts_in_round = self._starts_in_round, []
        for entry in starts:
            replica = self._replicas.get(entry.group)
            if replica is None:
                continue
            if entry.keeps_suffix:
                replica.raft.compact(snapshot_of(entry.start))
            else:
                self._begin_anew(replica, entry.start)

    def _begin_anew(self, replica: _Replica, start: Start) -> None:
        """A start that replaces the log is durable."""
        replica.producers.restore(start.producers)
        for entry in replica.raft.log.entries:
            # What came in behind the start while that was on its way to the disk.
            if entry.index <= replica.noted_index and type(entry.data) is StampedBatch:
                replica.producers.append(entry.data.header)
        replica.committed_offset = start.offset
        replica.snapshot_index = start.index
        if replica.group == META_GROUP:
            self.meta = MetaState.restore(start.state)
            self.reconcile()
        self._moved[replica.group] = None

    # --- What a core left behind --------------------------------------------------------------------------------------

    def _pump(self, replica: _Replica) -> None:
        while replica.raft.has_ready:
            self._handle(replica, replica.raft.take_ready())

    def _handle(self, replica: _Replica, ready: Ready) -> None:
        if ready.soft_state is not None:
            self._on_role(replica, ready.soft_state)
        if ready.truncate_from is not None:
            self._truncate(replica, ready.truncate_from)
        if ready.snapshot is not None:
            self._begin_install(replica, ready.snapshot)
        self._save(replica, ready)
        for entry in ready.append:
            self._take_entry(replica, entry)
        if ready.responses:
            replica.unwritten.append(ready.responses)
        for message in ready.messages:
            self._route(replica.group, message)
        if ready.committed:
            self._apply(replica, ready.committed)
        for state in ready.read_states:
            read = replica.reads.pop(state.context, None)
            if read is not None:
                replica.reads_due.append((state.index, read))
        if replica.reads_due:
            self._answer_reads(replica)

    def _save(self, replica: _Replica, ready: Ready) -> None:
        """Remember the hard state: at once if a promise depends on it, else with the next batches.

        A commit may run ahead of what is durable here; what is written down never does, else a crash between the two
        would look like a loss.
        """
        hard_state = ready.hard_state
        if hard_state is not None:
            commit = max(replica.saved_commit, min(hard_state.commit, replica.raft.log.stable))
            hard_state = hard_state._replace(commit=commit)
            if hard_state[:2] != replica.saved or ready.snapshot is not None:
                self._put_hard_state(replica, hard_state)
                return
            # A sole voter's log is committed as far as it goes; nothing is gained by writing down how far.
            if not replica.raft.is_singleton and commit > replica.saved_commit:
                replica.unsaved_commit = hard_state
        if replica.unsaved_commit is not None and ready.append:
            self._put_hard_state(replica, replica.unsaved_commit)

    def _put_hard_state(self, replica: _Replica, hard_state: HardState) -> None:
        replica.saved, replica.saved_commit = hard_state[:2], hard_state.commit
        replica.unsaved_commit = None
        replica.unwritten.append(hard_state)

    def _take_entry(self, replica: _Replica, entry: Entry) -> None:
        if type(entry.data) is not StampedBatch:
            # Made by the core, or a change of membership: this replica leads.
            entry.data = self._stamp(replica, self._control_batch(entry), entry.index, entry.term)
            entry.chain = entry.data.header.chain
        header: BatchHeader = entry.data.header
        if entry.index > replica.noted_index:
            replica.producers.append(header)
            replica.noted_index = entry.index
        replica.next_offset = header.next_offset
        replica.chain = header.chain
        replica.append_timestamp = header.append_timestamp
        replica.unwritten.append(entry)

    def _control_batch(self, entry: Entry) -> bytes:
        if entry.change is not None:
            fields = change_fields(entry.change)
            return control_batch(ControlKind.MEMBERSHIP, *fields, timestamp_ms=self._now_ms)
        return control_batch(ControlKind.NO_OP, timestamp_ms=self._now_ms)

    def _truncate(self, replica: _Replica, first_index: int) -> None:
        """Entries from `first_index` on are replaced by those of another leader."""
        replica.unwritten = deque(
            item for item in replica.unwritten if type(item) is not Entry or item.index < first_index
        )
        replica.producers.truncate(first_index)
        replica.noted_index = first_index - 1
        replica.admitted_index = min(replica.admitted_index, first_index - 1)
        lost = NotLeader("another leader's batches took the place of this one", {"leader": replica.raft.leader})
        for index in [index for index in reversed(replica.pending) if index >= first_index]:
            pending = replica.pending.pop(index)
            self._answers.append(Answer(pending.reply, lost))
        for index in [index for index in replica.duplicates if index >= first_index]:
            self._answers += [Answer(reply, lost) for reply, _ in replica.duplicates.pop(index)]

    def _begin_install(self, replica: _Replica, snapshot: Snapshot) -> None:
        """A leader's start replaces this log: what it held is given up once that is durable."""
        start: Start = snapshot.data
        replica.unwritten = self._without_log(replica)
        replica.unwritten.append(start)
        replica.written_start = -1
        replica.producers.truncate(0)
        replica.noted_index = start.index
        replica.admitted_index = 0
        replica.next_offset, replica.chain = start.offset, start.chain
        replica.append_timestamp = start.append_timestamp
        self._fail_pending(replica, OutcomeUnknown("a snapshot took the place of this batch"))
        self._effects.append(InstallStart(replica.group, start))

    def _without_log(self, replica: _Replica) -> "deque[Entry | HardState | Start | tuple[Message, ...]]":
        """What is to be written, without entries and without an earlier start: a new one replaces them all.

        A hard state behind the earlier start knew that to be committed, and must not say so before the log is there.
        """
        if not any(type(item) is Start for item in replica.unwritten):
            replica.commit_before_start = replica.saved_commit
        kept: deque[Entry | HardState | Start | tuple[Message, ...]] = deque()
        for item in replica.unwritten:
            if type(item) is HardState:
                kept.append(item._replace(commit=min(item.commit, replica.commit_before_start)))
            elif type(item) is tuple:
                kept.append(item)
        return kept

    def _fail_pending(self, replica: _Replica, error: LogdError) -> None:
        self._answers += [Answer(pending.reply, error) for pending in replica.pending.values()]
        for repeated in replica.duplicates.values():
            self._answers += [Answer(reply, error) for reply, _ in repeated]
        replica.pending.clear()
        replica.duplicates.clear()
        replica.awaiting_leader.clear()

    def _on_role(self, replica: _Replica, soft_state: SoftState) -> None:
        """Who leads has changed: reads begin anew, and proposals that are not in the log go elsewhere."""
        replica.is_current = replica.raft.has_committed_in_term and bool(soft_state.leader)
        refused = self._not_leader(replica)
        reads, replica.reads = replica.reads, {}
        self._answers += [Answer(read.reply, refused) for read in reads.values()]
        self._moved[replica.group] = None
        if soft_state.role is Role.LEADER or replica.raft.is_singleton:
            return
        replica.awaiting_leader.clear()
        waiting, replica.waiting = replica.waiting, deque()
        for proposal in waiting:
            self.waiting_bytes -= len(proposal.batch)
            if proposal.reply is not None:
                self._answers.append(Answer(proposal.reply, refused))

    def _deliver(self, replica: _Replica, messages: tuple[Message, ...]) -> None:
        """What waited for the disk is true now."""
        for message in messages:
            if message.to == self.node:
                replica.raft.step(message)
            else:
                self._route(replica.group, message)

    def _route(self, group: int, message: Message) -> None:
        wanted = message.range
        if message.type is MessageType.SNAPSHOT:
            self._replicas[group].snapshots_sent_ticks[message.to] = self._ticks
        if wanted is None:
            self._outbox.setdefault(message.to, []).append((group, message))
            return
        if (group, message.to) in self._ranges_of:
            return  # it is being read already
        log = self._replicas[group].raft.log
        has_previous = not message.log_term and message.index > log.snapshot.index
        self._tokens += 1
        self._ranges[self._tokens] = _Range(group, message, has_previous)
        self._ranges_of[group, message.to] = self._tokens
        first_index = wanted.first_index - has_previous
        self._effects.append(ReadRange(group, first_index, wanted.last_index + 1, wanted.bytes_max, self._tokens))

    # --- What is committed --------------------------------------------------------------------------------------------

    def _apply(self, replica: _Replica, entries: Sequence[Entry]) -> None:
        raft = replica.raft
        for entry in entries:
            batch: StampedBatch = entry.data
            header = batch.header
            index = header.index
            outcome: Produced | Outcome | Reconfigured | None = None
            replica.committed_offset = header.next_offset
            replica.producers.commit(header, index)
            if header.is_control:
                outcome = self._on_control(replica, entry, batch)
            elif replica.group == META_GROUP:
                outcome = self._apply_meta(replica, batch)
            pending = replica.pending.pop(index, None)
            if pending is not None:
                self._answers.append(Answer(pending.reply, outcome or self._produced(replica, header)))
            for reply, produced in replica.duplicates.pop(index, ()):
                self._answers.append(Answer(reply, produced))
        last = entries[-1]
        if last.term == raft.term:
            replica.is_current = True
        self._moved[replica.group] = None
        raft.on_applied(last.index)
        if _has_work(replica):
            self._active[replica.group] = None
        if replica.reads_due:
            self._answer_reads(replica)

    def _produced(self, replica: _Replica, header: BatchHeader) -> Produced:
        progress = replica.raft.progress
        if replica.raft.role is Role.LEADER:
            nodes = tuple(name for name, known in progress.items() if known.match_index >= header.index)
        else:
            nodes = ()  # the new leader knows
        return Produced(header.base_offset, header.index, header.term, header.chain, Durability.QUORUM_FSYNC, nodes)

    def _answer_leader_acks(self, replica: _Replica) -> None:
        """Proposers that asked for no more hear that this node has their batches durable."""
        awaiting, stable = replica.awaiting_leader, replica.raft.log.stable
        while awaiting and awaiting[0] <= stable:
            index = awaiting.popleft()
            pending = replica.pending.pop(index, None)
            if pending is None:
                continue  # committed already, and answered with more than was asked for
            header = self._header_at(replica, index)
            produced = Produced(
                header.base_offset, index, header.term, header.chain, Durability.LEADER_FSYNC, (self.node,)
            )
            self._answers.append(Answer(pending.reply, produced))

    def _header_at(self, replica: _Replica, index: int) -> BatchHeader:
        log = replica.raft.log
        header: BatchHeader = log.entries[index - log.base.index - 1].data.header
        return header

    def _on_control(self, replica: _Replica, entry: Entry, batch: StampedBatch) -> Reconfigured | None:
        if entry.change is not None:
            raft = replica.raft
            configuration = raft.apply_change(entry.change)
            if entry.index > replica.saved_commit and replica.saved == raft.hard_state[:2] and not raft.admission:
                # Whoever was needed to commit it may be gone for ever once it is known to be: a restart must not ask
                # them again.
                self._put_hard_state(replica, HardState(*replica.saved, entry.index))
            return Reconfigured(configuration)
        kind, fields = decode_control(batch.header, batch.to_bytes())
        if kind is ControlKind.RETENTION:
            self._effects.append(MoveStart(replica.group, fields[0]))
        return None

    def _apply_meta(self, replica: _Replica, batch: StampedBatch) -> Outcome:
        outcome = apply_batch(self.meta, batch.header, batch.to_bytes())
        if isinstance(outcome, TopicChanged | TopicRemoved):
            self.reconcile()
        if batch.header.index - replica.snapshot_index >= META_BATCHES_PER_SNAPSHOT:
            replica.snapshot_index = batch.header.index
            membership = encode_membership(replica.raft.configuration)
            self._effects.append(SnapshotMeta(batch.header, self.meta.snapshot(), membership))
        return outcome

    def _answer_reads(self, replica: _Replica) -> None:
        due = [known for known in replica.reads_due if known[0] <= replica.raft.applied]
        if due:
            replica.reads_due = [known for known in replica.reads_due if known[0] > replica.raft.applied]
            self._answers += [Answer(read.reply, ReadAt(index, replica.committed_offset)) for index, read in due]

    # --- Outputs ------------------------------------------------------------------------------------------------------

    def take_frames(self) -> list[tuple[str, bytes]]:
        """What may leave now: frames, each with its peer. What a peer's queue has no room for may be dropped."""
        for group in list(self._active):
            replica = self._replicas.get(group)
            if replica is None:
                continue  # group 0 just decided so
            self._pump(replica)
            if not replica.is_in_round:
                self._release(replica)
            if not _has_work(replica):
                self._active.pop(group, None)
        frames = []
        outbox, self._outbox = self._outbox, {}
        beats = self._rest.take_beats()
        for peer in sorted(outbox.keys() | beats.keys()):
            frame = PeerFrame(self.options.feature_level, beats.get(peer))
            size_bytes = 0
            for group, message in outbox.get(peer, ()):
                message_bytes = sum(entry.data.batch_bytes for entry in message.entries)
                if size_bytes and size_bytes + message_bytes > self.options.frame_bytes_max:
                    frames.append((peer, encode_frame(frame)))
                    frame, size_bytes = PeerFrame(self.options.feature_level), 0
                frame.messages.append((group, message))
                size_bytes += message_bytes
            frames.append((peer, encode_frame(frame)))
        return frames

    def _release(self, replica: _Replica) -> None:
        """Let go what waits for nothing: no part of the group is on its way to the disk before it."""
        unwritten = replica.unwritten
        while unwritten and type(unwritten[0]) is tuple:
            self._deliver(replica, unwritten.popleft())  # type: ignore[arg-type]  # see the condition
            self._pump(replica)

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
        return replica.committed_offset if replica is not None and replica.is_current else None

    def lost(self, group: int) -> str:
        """Why a group's promised end is lost; empty when it is not."""
        replica = self._replicas.get(group)
        return replica.lost if replica else ""

    def is_leader(self, group: int) -> bool:
        """Whether this node leads the group."""
        replica = self._replicas.get(group)
        return replica is not None and replica.raft.role is Role.LEADER

    def is_resting(self, group: int) -> bool:
        """Whether nothing is sent for the group, as there is nothing to say."""
        return self._rest.is_resting(group)

    def status(self, group: int) -> Status:
        """How this node's replica of a group stands."""
        return self._replicas[group].raft.status()

    def core(self, group: int) -> Group:
        """The core of a replica, to look at."""
        return self._replicas[group].raft

    def term(self, group: int) -> int:
        return self._replicas[group].raft.term

    def commit_index(self, group: int) -> int:
        return self._replicas[group].raft.commit_index

    def groups(self) -> Sequence[int]:
        return tuple(self._replicas)


_LATER: Final = Produced(0, 0, 0, b"", Durability.NONE, ())
"""Marks an answer that is not due yet; compared by identity, and never sent."""


def _has_work(replica: _Replica) -> bool:
    """Whether a round could take something of a group. What waits for space is not tried before it is there."""
    waits = replica.waiting or replica.unwritten
    return bool((waits and not replica.awaits_space) or replica.raft.has_ready)


def _what_endangers(raft: Group, configuration: Configuration, lag_max: int) -> str:
    """Why a configuration could not be relied on to decide anything; empty if it can."""
    known = raft.configuration.voters | raft.configuration.voters_outgoing
    for voters in (configuration.voters, configuration.voters_outgoing):
        doubtful = []
        for name in sorted(voters):
            progress = raft.progress.get(name)
            if progress is None:
                doubtful.append(f"{name} is not even a learner")
            elif progress.admission:
                doubtful.append(f"{name} has to be admitted")
            elif name not in known and raft.last.index - progress.match_index > lag_max:
                doubtful.append(f"{name} lacks {raft.last.index - progress.match_index} entries")
        if doubtful and 2 * (len(voters) - len(doubtful)) <= len(voters):
            return ", ".join(doubtful)
        strangers = sorted(voters - raft.configuration.members)
        if strangers:
            return f"{', '.join(strangers)}: to be a learner comes first"
    return ""


def _next_change(raft: Group, wanted: frozenset[str] | None, lag_max: int) -> ConfigurationChange | None:
    """The next step towards the wanted voters, one at a time; None if all is as it should be, or nothing can be done.

    A replica that lost its hard state is made a learner first, by an entry that carries its word: from then on it
    counts for what it holds. A learner votes as soon as it holds nearly the whole log.
    """
    configuration = raft.configuration
    if configuration.is_joint or not raft.has_committed_in_term:
        return None
    for name, progress in raft.progress.items():
        if progress.admission:
            if name in configuration.voters and len(configuration.voters) == 1:
                continue
            step = ChangeStep(ChangeKind.ADD_LEARNER, name)
            return ConfigurationChange((step,), admission=progress.admission)
    if wanted is None:
        return None
    for name in sorted(wanted - configuration.voters):
        if name not in configuration.learners:
            return ConfigurationChange((ChangeStep(ChangeKind.ADD_LEARNER, name),))
        progress = raft.progress[name]
        if progress.is_recently_active and raft.last.index - progress.match_index <= lag_max:
            return ConfigurationChange((ChangeStep(ChangeKind.ADD_VOTER, name),))
        return None
    for name in sorted(configuration.members - wanted):
        if name == raft.node and len(configuration.voters) > 1:
            heirs = [known for known in sorted(wanted & configuration.voters) if not raft.progress[known].admission]
            if heirs:
                raft.transfer_leader(heirs[0])
            return None
        return ConfigurationChange((ChangeStep(ChangeKind.REMOVE, name),))
    return None


def apply_batch(meta: MetaState, header: BatchHeader, batch: bytes | memoryview) -> Outcome:
    """Apply a committed batch of group 0; the outcome of its (only) command.

    Raises UndecodableBatch or ValueError when it cannot be read: the node must not go on without it.
    """
    outcomes = [meta.apply(decode_command(record.value or b"")) for record in decode_records(header, batch, 0)]
    return outcomes[-1]
