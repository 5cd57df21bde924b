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
from typing import Any, Final

from logd.meta.commands import Command, decode_command, encode_command
from logd.meta.state import META_GROUP, MetaState, Outcome, TopicChanged, TopicRemoved
from logd.raft.configuration import InvalidChange, change_of
from logd.raft.group import Chance, Group
from logd.raft.types import (
    NOBODY,
    ConfigurationChange,
    Entry,
    Message,
    MessageType,
    ProposalDropped,
    Role,
    Status,
)
from logd.replica.clock import AppendClock, ClockReading
from logd.replica.frames import PeerFrame, decode_frame, encode_frame, entry_of_stamped, snapshot_of
from logd.replica.membership import encode_membership
from logd.replica.producers import ProducerTable
from logd.replica.reconcile import hand_over, next_change, what_endangers
from logd.replica.replica import NodeState, Pending, Read, Replica
from logd.replica.rest import Rest
from logd.replica.restore import LogState, encode_checkpoint
from logd.replica.room import Room
from logd.replica.types import (
    Answer,
    CreateGroup,
    DriverOptions,
    Effect,
    InstallStart,
    Proposal,
    SnapshotMeta,
)
from logd.store.format import Start
from logd.store.round import Remove, RoundEntry, SetStart
from wire.errors import (
    CorruptBatch,
    InvalidRequest,
    LogdError,
    NotLeader,
    Overloaded,
    TopicNotFound,
)
from wire.record import (
    BatchHeader,
    ControlKind,
    StampedBatch,
    check_alone,
    check_in_place,
    control_batch,
    decode_header,
    decode_records,
    encode_batch,
)
from wire.types import Acks

# What group 0 may hold beyond its last snapshot before the next is due: it bounds the replay at a start.
META_BATCHES_PER_SNAPSHOT: Final = 1000
_ECHOES: Final = {MessageType.APPEND_RESPONSE, MessageType.HEARTBEAT_RESPONSE}
# Group 0 is partition 0 of no topic.
META_TOPIC_ID: Final = bytes(16)


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
        self._chance = chance
        self._state = NodeState(node, life, options)
        self._replicas: dict[int, Replica] = {}
        # Groups of the round under way.
        self._in_round: list[Replica] = []
        self._is_round_under_way = False
        self._round_ticks = 0
        # Whether the round under way has been for longer than a leader may be silent.
        self._hangs = False
        # Starts that go into the next round; with the group's state if the group is new.
        self._starts: deque[tuple[SetStart, LogState | None]] = deque()
        self._removals: deque[int] = deque()
        # New groups whose start is in the round under way.
        self._installs_in_round: list[LogState] = []
        # Invariant: every group in it is wanted by meta. A new group that is not in it any more when its start is
        # durable was deleted meanwhile, and is removed again.
        self._creating: set[int] = set()
        # Groups whose batches found no space, though nobody can be refused for them: they are tried again.
        self._short: set[int] = set()
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
        replica = self._replicas[state.group] = Replica(
            group=state.group,
            node=self._state,
            raft=raft,
            producers=state.producers,
            next_offset=end.next_offset,
            chain=end.chain,
            append_timestamp=end.append_timestamp,
            committed_offset=state.committed_offset,
            lost=state.lost,
            noted_index=end.index,
            snapshot_index=recovered.snapshot.index,
            apply_data=self._apply_meta if state.group == META_GROUP else None,
        )
        if recovered.hard_state is not None:
            replica.saved, replica.saved_commit = recovered.hard_state[:2], recovered.hard_state.commit
        self._creating.discard(state.group)
        if not state.lost and raft.is_singleton:
            raft.campaign()
        elif recovered.hard_state is not None and state.saved is not None and state.saved[:2] != replica.saved:
            # The log ends in a later term than the disk's hard state knows.
            replica.put_hard_state(recovered.hard_state)
        self._state.active[state.group] = None

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
            self._state.effects.append(CreateGroup(META_GROUP, META_TOPIC_ID, 0))
        for group, (topic, partition) in wanted.items():
            if group not in self._replicas and group not in self._creating:
                self._creating.add(group)
                self._state.effects.append(CreateGroup(group, topic.topic_id, partition))
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
            self._state.active[group] = None
        elif start.index > replica.raft.log.snapshot.index and start.index <= replica.raft.applied:
            self._starts.append((SetStart(group, start), None))

    def abandon(self, group: int) -> None:
        """A group's directory could not be made: the next `reconcile` tries again."""
        self._creating.discard(group)

    def abandon_start(self, group: int, start: Start) -> None:
        """The file of an `InstallStart` could not be written, as the disk is full: it is tried again."""
        replica = self._replicas.get(group)
        if replica is not None and any(item is start for item in replica.unwritten):
            self._state.effects.append(InstallStart(group, start))

    def remove_group(self, group: int) -> None:
        """This node gives its copy of a group up."""
        replica = self._replicas.pop(group)
        self._state.active.pop(group, None)
        self._adopted.discard(group)
        self._rest.rouse(group)
        gone = TopicNotFound("the topic was deleted", {"group": group})
        for proposal in replica.waiting:
            self._state.waiting_bytes -= len(proposal.batch)
            if proposal.reply is not None:
                self._state.answers.append(Answer(proposal.reply, gone))
        for pending in replica.pending.values():
            if pending.reply is not None and pending.acks is not Acks.NONE:
                self._state.answers.append(Answer(pending.reply, gone))
        for repeated in replica.duplicates.values():
            self._state.answers += [Answer(reply, gone) for reply, _ in repeated]
        self._state.answers += [
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
        if replica is None or replica.raft.log.pending_snapshot is not None:
            # With a start on its way to the disk, the membership is that of the start already.
            return None
        return replica.raft.applied, encode_checkpoint(replica.producers.encode(), replica.raft.configuration)

    @property
    def waiting_bytes(self) -> int:
        """How much is proposed and in no log yet."""
        return self._state.waiting_bytes

    # --- Inputs: what users want --------------------------------------------------------------------------------------

    def propose(self, group: int, proposal: Proposal) -> LogdError | None:
        """Queue a batch for appending; its answer comes out of `take_answers`. An error says that it was not taken."""
        replica = self._replicas.get(group)
        if replica is None:
            return NotLeader("this partition is being set up here", {"group": group})
        if replica.lost:
            return CorruptBatch(replica.lost, {"group": group})
        if replica.raft.role is not Role.LEADER and not replica.raft.is_singleton:
            return replica.not_leader()
        if (
            self._state.waiting_bytes + len(proposal.batch) > self.options.waiting_bytes_max
            and self._state.waiting_bytes
        ):
            return Overloaded(
                f"{self._state.waiting_bytes} bytes wait for the disk already",
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

    def _queue(self, replica: Replica, proposal: Proposal) -> None:
        replica.waiting.append(proposal)
        self._state.waiting_bytes += len(proposal.batch)
        self._wake(replica)

    def read_index(self, group: int, reply: Any) -> LogdError | None:
        """Ask what a linearizable read of a group must have seen; the answer is a ReadAt, or NotLeader."""
        replica = self._replicas.get(group)
        if replica is None or replica.lost:
            return NotLeader("this node has no replica to read from", {"group": group})
        if replica.raft.role is not Role.LEADER and replica.raft.leader == NOBODY:
            return replica.not_leader()
        if self._hangs and replica.raft.role is Role.LEADER:
            # The heartbeats that confirm reads would keep others from leading, as any other would.
            # reachable: a read while the disk hangs
            return Overloaded("the disk of this node does not answer", {"delay_seconds": 1.0})
        refused = replica.ask(Read(reply, self._state.ticks))
        self._wake(replica)
        return refused

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
            problem = what_endangers(raft, change_of(raft.configuration, change), self.options.promotion_lag_max)
            if problem and not change.admission and not change.leaves_joint:
                return InvalidRequest(f"the change would endanger the quorum: {problem}")
            raft.propose_change(change)
        except InvalidChange as error:
            return InvalidRequest(f"the membership cannot be changed so: {error}")
        except ProposalDropped as error:
            return Overloaded(error.reason, {"delay_seconds": 0.1})
        if reply is not None:
            replica.pending[raft.last.index] = Pending(raft.term, Acks.QUORUM, reply)
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
            self._state.now_ms = self.clock.now_ms(reading)
        self._state.ticks += 1
        self._round_ticks += self._is_round_under_way
        hangs = self._hangs = self._round_ticks > self.options.disk_ticks_max
        for group in self._rest.tick(hangs=hangs):
            replica = self._replicas.get(group)
            if replica is not None:
                self._wake(replica)
        for replica in self._replicas.values():
            raft = replica.raft
            if replica.reads or replica.reads_due:
                replica.give_reads_up()
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
                self._state.active[replica.group] = None

    def _lead(self, replica: Replica) -> None:
        """What a leader does now and then: see that its members are what they should be, or let the group rest."""
        raft = replica.raft
        if replica.snapshots_sent_ticks:
            replica.settle_snapshots()
        if raft.pending_change_index <= raft.applied and not raft.transfer_to:
            change = next_change(raft, replica.wanted, self.options.promotion_lag_max)
            if change is not None:
                self.change_membership(replica.group, change, None)
                return
        if raft.is_at_rest and not replica.waiting and not replica.unwritten and not raft.is_singleton:
            others = raft.configuration.members - {self.node}
            self._rest.lay(replica.group, raft.term, raft.last.index, others)

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

    def _step(self, replica: Replica, message: Message) -> None:
        if self._hangs and message.type is MessageType.READ_INDEX:
            return  # see `read_index`
        try:
            replica.raft.step(message)
        except ProposalDropped:
            # A read that was passed on to this node, which has too many: the asker asks again.
            return
        self._state.active[replica.group] = None
        if self._rest.is_resting(replica.group) and not self._still_rests(replica, message):
            self._rest.rouse(replica.group)

    def _still_rests(self, replica: Replica, message: Message) -> bool:
        """Whether a message changed nothing for a group at rest: it was on its way when the group came to rest."""
        raft = replica.raft
        if raft.role is Role.LEADER:
            return raft.is_at_rest and message.type in _ECHOES
        return self._can_rest(raft.leader, replica.group, raft.term, raft.last.index)

    def _wake(self, replica: Replica) -> None:
        self._state.active[replica.group] = None
        self._rest.rouse(replica.group)

    def on_range(self, token: int, batches: Sequence[StampedBatch] | None, *, is_damaged: bool = False) -> None:
        """The batches of a `ReadRange` were read; None if they could not be, `is_damaged` if they never can."""
        waiting = self._state.ranges.pop(token)
        message = waiting.message
        del self._state.ranges_of[waiting.group, message.to]
        replica = self._replicas.get(waiting.group)
        if replica is None or replica.raft.role is not Role.LEADER or replica.raft.term != message.term:
            return
        # What came from a disk may be damaged: a peer would refuse it, and with it all groups' messages of that frame.
        whole = _whole(batches or ())
        entries = [entry_of_stamped(batch) for batch in whole]
        previous = entries.pop(0) if waiting.has_previous and entries else None
        if not entries or not _follows(entries[0], message, previous):
            if is_damaged or len(whole) < len(batches or ()):
                # reachable: a leader that cannot feed a follower hands over
                # Somebody whose disk is whole can feed the follower, and whoever else needs what is lost here.
                hand_over(replica.raft)
                self._wake(replica)
            return
        if previous is not None:
            message = message._replace(log_term=previous.term, chain=previous.chain)
        replica.route(message._replace(range=None, entries=tuple(entries)))

    def on_space(self, group: int, error: LogdError | None) -> None:
        """Space was allocated to a group, or could not be: then all proposals that wait for it are refused."""
        replica = self._replicas.get(group)
        if replica is None:
            return
        replica.awaits_space = False
        if error is None:
            self._state.active[group] = None
            return
        kept: deque[Proposal] = deque()
        for proposal in replica.waiting:
            if proposal.header.is_control:
                kept.append(proposal)
                continue
            self._state.waiting_bytes -= len(proposal.batch)
            self._state.answers.append(Answer(proposal.reply, error))
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
            self._state.active[group] = None
        self._short.clear()

    # --- Rounds -------------------------------------------------------------------------------------------------------

    def take_round(self, room: Room, reading: ClockReading) -> list[RoundEntry]:
        """Everything that can be made durable now, as one round; empty when there is nothing.

        A non-empty round is under way until `on_durable`.
        """
        assert not self._is_round_under_way, "the round before is not durable yet"
        entries: list[RoundEntry] = []
        self._state.now_ms = self.clock.now_ms(reading)
        self._take_starts(room, entries)
        if self._state.active:
            # What moves a log's start, or removes it, is alone of its group in a round.
            alone = {entry.group for entry in entries}
            for group in list(self._state.active):
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
            replica = self._replicas.get(entry.group)
            if replica is not None and entry.start.index <= replica.raft.log.snapshot.index:
                continue  # one that replaces the log, from a leader, went ahead of it or will
            taken.add(entry.group)
            entries.append(entry)
            if state is not None:
                self._installs_in_round.append(state)
            else:
                self._state.starts_in_round.append(entry)

    def _take_group(self, replica: Replica, room: Room, entries: list[RoundEntry]) -> bool:
        """One group's part of the round. False when the round is full; the group stays active then.

        A group that fills the round goes behind the others, so that a busy one cannot keep them out for ever.
        """
        replica.pump()
        full = replica.drain(room, entries)
        if not full and not replica.unwritten and not replica.awaits_space:
            full = replica.take_batches(room)
            replica.pump()
            full = replica.drain(room, entries) or full
        # Whatever found no place in this round asks for room in the next.
        replica.admitted_index = 0
        if replica.is_in_round:
            self._in_round.append(replica)
        if not full or replica.is_in_round:
            self._state.active.pop(replica.group, None)
        if full:
            # In its old place if it got nothing yet, behind all others if it did.
            self._state.active.setdefault(replica.group)
        return not full

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
                replica.deliver(messages)
            replica.pump()
            replica.answer_leader_acks()
            if replica.has_work:
                self._state.active[replica.group] = None
        for state in self._installs_in_round:
            if state.group in self._creating:
                self.open_group(state)
            else:
                self._removals.append(state.group)  # deleted while its start was on the way to the disk
        self._installs_in_round = []
        moved, self._state.moved = list(self._state.moved), {}
        return moved

    def _on_starts_durable(self) -> None:
        starts, self._state.starts_in_round = self._state.starts_in_round, []
        for entry in starts:
            replica = self._replicas.get(entry.group)
            if replica is None:
                continue
            if entry.keeps_suffix:
                replica.raft.compact(snapshot_of(entry.start))
            else:
                replica.begin_anew(entry.start)
                if replica.group == META_GROUP:
                    self.meta = MetaState.restore(entry.start.state)
                    self.reconcile()

    # --- What is committed --------------------------------------------------------------------------------------------

    def _apply_meta(self, replica: Replica, batch: StampedBatch) -> Outcome:
        outcome = apply_batch(self.meta, batch.header, batch.to_bytes())
        if isinstance(outcome, TopicChanged | TopicRemoved):
            self.reconcile()
        if batch.header.index - replica.snapshot_index >= META_BATCHES_PER_SNAPSHOT:
            replica.snapshot_index = batch.header.index
            membership = encode_membership(replica.raft.configuration)
            self._state.effects.append(SnapshotMeta(batch.header, self.meta.snapshot(), membership))
        return outcome

    # --- Outputs ------------------------------------------------------------------------------------------------------

    def take_frames(self) -> list[tuple[str, bytes]]:
        """What may leave now: frames, each with its peer. What a peer's queue has no room for may be dropped."""
        for group in list(self._state.active):
            replica = self._replicas.get(group)
            if replica is None:
                continue  # group 0 just decided so
            replica.pump()
            if not replica.is_in_round:
                replica.release()
            if not replica.has_work:
                self._state.active.pop(group, None)
        frames = []
        outbox, self._state.outbox = self._state.outbox, {}
        beats = self._rest.take_beats()
        for peer in sorted(outbox.keys() | beats.keys()):
            frame = PeerFrame(self.options.feature_level, beats.get(peer))
            size_bytes = 0
            for group, message in outbox.get(peer, ()):
                message_bytes = _size_bytes(message)
                if size_bytes and size_bytes + message_bytes > self.options.frame_bytes_max:
                    frames.append((peer, encode_frame(frame)))
                    frame, size_bytes = PeerFrame(self.options.feature_level), 0
                frame.messages.append((group, message))
                size_bytes += message_bytes
            frames.append((peer, encode_frame(frame)))
        return frames

    def take_answers(self) -> list[Answer]:
        """What became true or was refused since the last time."""
        answers, self._state.answers = self._state.answers, []
        return answers

    def take_effects(self) -> list[Effect]:
        """What the node has to do to its files since the last time."""
        effects, self._state.effects = self._state.effects, []
        return effects

    @property
    def has_output(self) -> bool:
        """Whether there are answers or effects to take."""
        return bool(self._state.answers or self._state.effects)

    @property
    def has_work(self) -> bool:
        """Whether `take_round` could give something."""
        return bool(self._state.active or self._starts or self._removals)

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


def _size_bytes(message: Message) -> int:
    """About what a message takes of a frame: what may be large in it."""
    if message.snapshot is not None:
        start: Start = message.snapshot.data
        return len(start.producers) + len(start.state)
    return sum(entry.data.batch_bytes for entry in message.entries)


def _whole(batches: Sequence[StampedBatch]) -> list[StampedBatch]:
    """The first of these, as far as each is whole and follows the one before it."""
    whole: list[StampedBatch] = []
    for batch in batches:
        try:
            header = check_alone(batch.to_bytes())
            if whole:
                check_in_place(header, whole[-1].header)
        except CorruptBatch:
            break
        whole.append(batch)
    return whole


def _follows(entry: Entry, message: Message, previous: Entry | None) -> bool:
    """Whether an entry is the one that a message to a follower goes on with."""
    chain = message.chain if previous is None else previous.chain
    if previous is not None and previous.index != message.index:
        return False
    return entry.index == message.index + 1 and (not chain or entry.data.header.previous_chain == chain)


def apply_batch(meta: MetaState, header: BatchHeader, batch: bytes | memoryview) -> Outcome:
    """Apply a committed batch of group 0; the outcome of its (only) command.

    Raises UndecodableBatch or ValueError when it cannot be read: the node must not go on without it.
    """
    outcomes = [meta.apply(decode_command(record.value or b"")) for record in decode_records(header, batch, 0)]
    return outcomes[-1]
