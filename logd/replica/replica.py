"""One replica of one group on this node: its core, the end of its log, and who waits for what.

For: the driver, which owns all of a node's replicas. Must not know: other groups, disks, frames. The one idea: the core
decides and leaves a Ready behind; `pump` turns that into what has to become durable, in order (`unwritten`), and into
messages, answers and effects (`node`); `drain` moves what is to become durable into a round.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from logd.meta.state import META_GROUP, Outcome
from logd.raft.group import Group
from logd.raft.progress import ProgressState
from logd.raft.types import (
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageType,
    ProposalDropped,
    Ready,
    Role,
    Snapshot,
    SoftState,
)
from logd.replica.membership import change_fields
from logd.replica.producers import Duplicate, ProducerTable
from logd.replica.room import Admission, Room
from logd.replica.types import (
    Answer,
    DriverOptions,
    Effect,
    InstallStart,
    MoveStart,
    Proposal,
    ReadAt,
    ReadRange,
    Reconfigured,
)
from logd.store.format import HardState as StoredHardState
from logd.store.format import Start
from logd.store.round import Append, RoundEntry, SetHardState, SetStart
from wire.errors import (
    LogdError,
    NotLeader,
    OffsetMismatch,
    OutcomeUnknown,
    Overloaded,
)
from wire.messages import Produced
from wire.record import (
    BatchHeader,
    ControlKind,
    Stamp,
    StampedBatch,
    control_batch,
    decode_control,
    stamp,
)
from wire.types import Acks, Durability


@dataclass(slots=True)
class NodeState:
    """What the replicas of a node share: what they leave behind for the driver, and what it tells them."""

    name: str
    life: int
    options: DriverOptions
    now_ms: int = 0
    """What batches are stamped with, as last read."""
    ticks: int = 0
    waiting_bytes: int = 0
    """Of all proposals that are in no log yet."""
    answers: list[Answer] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    outbox: dict[str, list[tuple[int, Message]]] = field(default_factory=dict)
    """What may leave, by peer."""
    active: dict[int, None] = field(default_factory=dict)
    """Groups with something to do, in the order in which they got it: fair, and no cost for the idle ones."""
    moved: dict[int, None] = field(default_factory=dict)
    """Groups whose commit moved."""
    starts_in_round: list[SetStart] = field(default_factory=list)
    tokens: int = 0
    ranges: dict[int, "Range"] = field(default_factory=dict)
    """Messages that wait for batches to be read, by token."""
    ranges_of: dict[tuple[int, str], int] = field(default_factory=dict)
    """The token of what is being read for a follower, by group and peer: one at a time."""


class Pending(NamedTuple):
    """An appended batch whose commit somebody waits for."""

    term: int
    acks: Acks
    reply: Any


class Read(NamedTuple):
    """A read that waits for its index, or for that index to be applied here."""

    reply: Any
    asked_ticks: int
    """When, in ticks of this driver."""
    refusal: LogdError | None = None
    """What is answered then instead of where to read."""


class Range(NamedTuple):
    """A message to a lagging follower that waits for batches to be read."""

    group: int
    message: Message
    has_previous: bool
    """The first batch read is the one before those to be sent: the message lacks its term."""


@dataclass(slots=True)
class Replica:
    """This node's copy of one group, as far as it is in memory."""

    group: int
    node: NodeState
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
    pending: dict[int, Pending] = field(default_factory=dict)
    # Indexes whose proposers want to hear when this node alone has them.
    awaiting_leader: deque[int] = field(default_factory=deque)
    # Who asked again for a batch that is not committed yet, by its index.
    duplicates: dict[int, list[tuple[Any, Produced]]] = field(default_factory=dict)
    # Reads that wait for their index, by the context they were asked with; and those that know it.
    # Invariant: together at most `GroupOptions.read_requests_max`; `reads` is in the order in which they were asked.
    reads: dict[bytes, Read] = field(default_factory=dict)
    reads_due: list[tuple[int, Read]] = field(default_factory=list)
    # When a snapshot was sent to whom, until that is settled.
    snapshots_sent_ticks: dict[str, int] = field(default_factory=dict)
    # Group 0: what a committed batch of records comes to.
    apply_data: "Callable[[Replica, StampedBatch], Outcome] | None" = None
    # Who should vote, if somebody said so.
    wanted: frozenset[str] | None = None

    # --- What is asked of it ------------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether a round could take something of a group. What waits for space is not tried before it is there."""
        waits = self.waiting or self.unwritten
        return bool((waits and not self.awaits_space) or self.raft.has_ready)

    def not_leader(self) -> NotLeader:
        leader = self.raft.leader
        where = f"{leader} leads it" if leader else "no leader is known"
        return NotLeader(f"this node does not lead group {self.group}: {where}", {"leader": leader})

    def give_reads_up(self) -> None:
        """Whoever asked so long ago is to ask again: the question to the leader, or its answer, was lost.

        Or the answer came, and nobody tells this replica what it has to apply: it may not even be a member any more.
        """
        asked_ticks = self.node.ticks - 2 * self.node.options.raft.election_ticks
        late = [known for known in self.reads_due if known[1].asked_ticks <= asked_ticks]
        if late:
            self.reads_due = [known for known in self.reads_due if known[1].asked_ticks > asked_ticks]
        replies = [read.reply for _, read in late]
        while self.reads:
            context, read = next(iter(self.reads.items()))
            if read.asked_ticks > asked_ticks:
                break
            replies.append(self.reads.pop(context).reply)
        if replies:
            refused = self.not_leader()
            self.node.answers += [Answer(reply, refused) for reply in replies]

    def settle_snapshots(self) -> None:
        """Whoever did not take a snapshot for so long is probed, and sent another: it may have been lost.

        That is harmless where it was not: a replica takes no snapshot that brings it nothing.
        """
        raft = self.raft
        for name, sent_ticks in list(self.snapshots_sent_ticks.items()):
            progress = raft.progress.get(name)
            if progress is None or progress.state is not ProgressState.SNAPSHOT:
                del self.snapshots_sent_ticks[name]
            elif self.node.ticks - sent_ticks > self.node.options.raft.election_ticks:
                del self.snapshots_sent_ticks[name]
                # reachable: a snapshot that was lost is sent again
                raft.report_snapshot(name, delivered=False)

    # --- Rounds -------------------------------------------------------------------------------------------------------

    def drain(self, room: Room, entries: list[RoundEntry]) -> bool:
        """Move what has to become durable into the round, in order. True when the round is full."""
        unwritten = self.unwritten
        while unwritten:
            item = unwritten[0]
            if type(item) is Entry:
                if self.awaits_space and item.index > self.admitted_index:
                    return False
                admission = self._admit(item, room)
                if admission is Admission.ROUND_FULL:
                    return True
                if admission is Admission.NO_SPACE:
                    # reachable: a follower's entries find no space
                    self.awaits_space = True
                    return False
                entries.append(Append(self.group, item.data))
                self.is_in_round = True
            elif type(item) is HardState:
                if not room.admit_entry():
                    return True
                entries.append(SetHardState(self.group, StoredHardState(*item)))
                self.is_in_round = True
            elif type(item) is Start:
                # It is alone of its group in a round, and its file comes first.
                if self.written_start != item.index or self.is_in_round:
                    return False
                if not room.admit_entry():
                    return True
                entry = SetStart(self.group, item, keeps_suffix=False)
                entries.append(entry)
                self.node.starts_in_round.append(entry)
                self.is_in_round = True
                unwritten.popleft()
                return False
            elif self.is_in_round:
                self.releases.append(item)  # type: ignore[arg-type]  # nothing else is left
            else:
                # Nothing stands before it that is not durable.
                unwritten.popleft()
                self.deliver(item)  # type: ignore[arg-type]
                self.pump()
                continue
            unwritten.popleft()
        return False

    def _admit(self, entry: Entry, room: Room) -> Admission:
        if entry.index <= self.admitted_index:
            return Admission.TAKEN
        header: BatchHeader = entry.data.header
        # Group 0 may use the reserve as well: deleting a topic is one of the ways out of a full disk.
        control = header.is_control or self.group == META_GROUP
        return room.admit(self.group, header.batch_bytes, control=control, index=entry.index)

    def take_batches(self, room: Room) -> bool:
        """Put what waits into the log, as far as there is room for it. True when the round is full."""
        raft, waiting = self.raft, self.waiting
        if not waiting or raft.role is not Role.LEADER or raft.transfer_to or self.lost:
            return False
        entries: list[Entry] = []
        size_bytes, full = raft.uncommitted_bytes, False
        while waiting:
            proposal = waiting[0]
            answer = self._check(proposal)
            if answer is None:
                batch_bytes = len(proposal.batch)
                if size_bytes and size_bytes + batch_bytes > raft.options.uncommitted_bytes_max:
                    break  # until some of it is committed
                control = proposal.header.is_control or self.group == META_GROUP
                index = raft.last.index + len(entries) + 1
                admission = room.admit(self.group, batch_bytes, control=control, index=index)
                if admission is Admission.ROUND_FULL:
                    full = True
                    break
                if admission is Admission.NO_SPACE:
                    # reachable: a leader's proposals find no space
                    self.awaits_space = True
                    break
                size_bytes += batch_bytes
                entries.append(self._stamped(proposal, index))
            elif isinstance(answer.outcome, LogdError):
                self._refuse(answer.reply, answer.outcome)
            elif answer.outcome is not _LATER:
                self.node.answers.append(answer)
            waiting.popleft()
            self.node.waiting_bytes -= len(proposal.batch)
        if entries:
            self.admitted_index = entries[-1].index
            raft.step(Message(MessageType.PROPOSE, sender=self.node.name, entries=tuple(entries)))
        return full

    def _check(self, proposal: Proposal) -> Answer | None:
        """None to append, or what the proposal is answered without appending it."""
        verdict = self.producers.check(proposal.header, max(self.node.now_ms, self.append_timestamp))
        if isinstance(verdict, LogdError):
            return Answer(proposal.reply, verdict)
        if verdict is not None:
            # reachable: a repeated batch is answered with its place
            return self._answer_duplicate(proposal, verdict)
        if proposal.expected_offset is not None and proposal.expected_offset != self.next_offset:
            return Answer(
                proposal.reply,
                OffsetMismatch(
                    f"the next offset is {self.next_offset}, expected was {proposal.expected_offset}",
                    {"next_offset": self.next_offset},
                ),
            )
        return None

    def _answer_duplicate(self, proposal: Proposal, verdict: Duplicate) -> Answer:
        original = verdict.original
        produced = Produced(
            original.base_offset, original.index, 0, b"", Durability.QUORUM_FSYNC, (self.node.name,), duplicate=True
        )
        if original.index <= self.raft.applied or proposal.acks is Acks.NONE:
            return Answer(proposal.reply, produced)
        self.duplicates.setdefault(original.index, []).append((proposal.reply, produced))
        return Answer(proposal.reply, _LATER)

    def _stamped(self, proposal: Proposal, index: int) -> Entry:
        """A proposal as the entry that it becomes, with its waiter noted."""
        batch = self._stamp(proposal.batch, index, self.raft.term)
        header = batch.header
        self.producers.append(header)
        self.noted_index = index
        if proposal.reply is not None:
            if proposal.acks is Acks.NONE:
                self.node.answers.append(Answer(proposal.reply, Produced(0, 0, 0, b"", Durability.NONE, ())))
            else:
                self.pending[index] = Pending(header.term, proposal.acks, proposal.reply)
                if proposal.acks is Acks.LEADER:
                    self.awaiting_leader.append(index)
        size_bytes = 0 if header.is_control else len(proposal.batch)
        return Entry(index, header.term, EntryKind.DATA, batch, size_bytes, header.chain)

    def _stamp(self, batch: bytes, index: int, term: int) -> StampedBatch:
        """Give a batch its place at the end of the log."""
        self.append_timestamp = max(self.node.now_ms, self.append_timestamp)
        place = Stamp(self.next_offset, index, term, self.append_timestamp, self.chain)
        stamped = stamp(batch, place)
        self.next_offset = stamped.header.next_offset
        self.chain = stamped.header.chain
        return stamped

    def answer_leader_acks(self) -> None:
        """Proposers that asked for no more hear that this node has their batches durable."""
        awaiting, stable = self.awaiting_leader, self.raft.log.stable
        while awaiting and awaiting[0] <= stable:
            index = awaiting.popleft()
            pending = self.pending.pop(index, None)
            if pending is None:
                continue  # committed already, and answered with more than was asked for
            header = self._header_at(index)
            produced = Produced(
                header.base_offset, index, header.term, header.chain, Durability.LEADER_FSYNC, (self.node.name,)
            )
            self.node.answers.append(Answer(pending.reply, produced))

    def _header_at(self, index: int) -> BatchHeader:
        log = self.raft.log
        header: BatchHeader = log.entries[index - log.base.index - 1].data.header
        return header

    def begin_anew(self, start: Start) -> None:
        """A start that replaces the log is durable."""
        self.producers.restore(start.producers)
        for entry in self.raft.log.entries:
            # What came in behind the start while that was on its way to the disk.
            if entry.index <= self.noted_index and type(entry.data) is StampedBatch:
                self.producers.append(entry.data.header)
        self.committed_offset = start.offset
        self.snapshot_index = start.index
        self.node.moved[self.group] = None

    # --- What the core left behind ------------------------------------------------------------------------------------

    def pump(self) -> None:
        while self.raft.has_ready:
            self._handle(self.raft.take_ready())

    def _handle(self, ready: Ready) -> None:
        if ready.soft_state is not None:
            self._on_role(ready.soft_state)
        if ready.truncate_from is not None:
            # reachable: entries give way to those of another leader
            self._truncate(ready.truncate_from)
        if ready.snapshot is not None:
            # reachable: a start replaces the log
            self._begin_install(ready.snapshot)
        self._save(ready)
        for entry in ready.append:
            self._take_entry(entry)
        if ready.responses:
            self._say_later(ready.responses)
        for message in ready.messages:
            if message.term < self.raft.term and any(entry.data is None for entry in message.entries):
                continue  # of a leader that was replaced before it was asked for its first Ready: nothing is stamped
            self.route(message)
        if ready.committed:
            self._apply(ready.committed)
        for state in ready.read_states:
            read = self.reads.pop(state.context, None)
            if read is not None:
                self.reads_due.append((state.index, read))
        if self.reads_due:
            self._answer_reads()

    def _say_later(self, responses: tuple[Message, ...]) -> None:
        """Let answers wait for the disk. However long it takes, what waits for the same thing does not pile up."""
        if self.unwritten and type(self.unwritten[-1]) is tuple:
            responses = _merged(self.unwritten.pop(), responses)  # type: ignore[arg-type]  # see the condition
        self.unwritten.append(responses)

    def _save(self, ready: Ready) -> None:
        """Remember the hard state: at once if a promise depends on it, else with the next batches.

        A commit may run ahead of what is durable here; what is written down never does, else a crash between the two
        would look like a loss.
        """
        hard_state = ready.hard_state
        if hard_state is not None:
            commit = max(self.saved_commit, min(hard_state.commit, self.raft.log.stable))
            hard_state = hard_state._replace(commit=commit)
            if hard_state[:2] != self.saved or ready.snapshot is not None:
                self.put_hard_state(hard_state)
                return
            # A sole voter's log is committed as far as it goes; nothing is gained by writing down how far.
            if not self.raft.is_singleton and commit > self.saved_commit:
                # reachable: a commit waits to be written down
                self.unsaved_commit = hard_state
        if self.unsaved_commit is not None and ready.append:
            self.put_hard_state(self.unsaved_commit)

    def _save_before_change(self, index: int) -> None:
        """A change of membership goes to the disk behind a hard state that knows the one before it to be committed.

        Nobody proposes a change before the last one is applied, so whoever is sent one is told that, or was before. A
        restart that finds both in the log, and knows neither to be committed, would count by a configuration that need
        not have a node in common with a majority of the one in force.
        """
        raft = self.raft
        commit = min(raft.commit_index, index - 1)
        if commit > self.saved_commit and self.saved == raft.hard_state[:2] and not raft.admission:
            self.put_hard_state(HardState(*self.saved, commit))

    def put_hard_state(self, hard_state: HardState) -> None:
        self.saved, self.saved_commit = hard_state[:2], hard_state.commit
        self.unsaved_commit = None
        self.unwritten.append(hard_state)

    def _take_entry(self, entry: Entry) -> None:
        if type(entry.data) is not StampedBatch:
            # Made by the core, or a change of membership: this replica leads.
            entry.data = self._stamp(self._control_batch(entry), entry.index, entry.term)
            entry.chain = entry.data.header.chain
        if entry.change is not None:
            self._save_before_change(entry.index)
        header: BatchHeader = entry.data.header
        if entry.index > self.noted_index:
            self.producers.append(header)
            self.noted_index = entry.index
        self.next_offset = header.next_offset
        self.chain = header.chain
        self.append_timestamp = header.append_timestamp
        self.unwritten.append(entry)

    def _control_batch(self, entry: Entry) -> bytes:
        if entry.change is not None:
            fields = change_fields(entry.change)
            return control_batch(ControlKind.MEMBERSHIP, *fields, timestamp_ms=self.node.now_ms)
        return control_batch(ControlKind.NO_OP, timestamp_ms=self.node.now_ms)

    def _truncate(self, first_index: int) -> None:
        """Entries from `first_index` on are replaced by those of another leader."""
        unwritten, self.unwritten = self.unwritten, deque()
        is_void = False
        for item in unwritten:
            if type(item) is Entry and item.index >= first_index:
                is_void = True
            elif type(item) is tuple and is_void:
                self.unwritten.append(_still_true(item, first_index))
            else:
                self.unwritten.append(item)
        self.producers.truncate(first_index)
        self.noted_index = first_index - 1
        self.admitted_index = min(self.admitted_index, first_index - 1)
        lost = NotLeader("another leader's batches took the place of this one", {"leader": self.raft.leader})
        for index in [index for index in reversed(self.pending) if index >= first_index]:
            pending = self.pending.pop(index)
            self.node.answers.append(Answer(pending.reply, lost))
        for index in [index for index in self.duplicates if index >= first_index]:
            self.node.answers += [Answer(reply, lost) for reply, _ in self.duplicates.pop(index)]

    def _begin_install(self, snapshot: Snapshot) -> None:
        """A leader's start replaces this log: what it held is given up once that is durable."""
        start: Start = snapshot.data
        self.unwritten = self._without_log()
        self.unwritten.append(start)
        self.written_start = -1
        self.producers.truncate(0)
        self.noted_index = start.index
        self.admitted_index = 0
        self.next_offset, self.chain = start.offset, start.chain
        self.append_timestamp = start.append_timestamp
        self._fail_pending(OutcomeUnknown("a snapshot took the place of this batch"))
        self.node.effects.append(InstallStart(self.group, start))

    def _without_log(self) -> "deque[Entry | HardState | Start | tuple[Message, ...]]":
        """What is to be written, without entries and without an earlier start: a new one replaces them all.

        A hard state behind them knew them to be committed, and must not say so before the log is there. What was
        promised of them is not said at all.
        """
        if not any(type(item) is Start for item in self.unwritten):
            self.commit_before_start = self.saved_commit
        kept: deque[Entry | HardState | Start | tuple[Message, ...]] = deque()
        first_index: int | None = None
        for item in self.unwritten:
            if type(item) is Entry:
                if first_index is None:
                    first_index = item.index
                    self.commit_before_start = min(self.commit_before_start, first_index - 1)
            elif type(item) is Start:
                first_index = 0
            elif type(item) is HardState:
                kept.append(item._replace(commit=min(item.commit, self.commit_before_start)))
            else:
                kept.append(_still_true(item, first_index))  # type: ignore[arg-type]  # nothing else is left
        return kept

    def _fail_pending(self, error: LogdError) -> None:
        self.node.answers += [Answer(pending.reply, error) for pending in self.pending.values()]
        for repeated in self.duplicates.values():
            self.node.answers += [Answer(reply, error) for reply, _ in repeated]
        self.pending.clear()
        self.duplicates.clear()
        self.awaiting_leader.clear()

    def _on_role(self, soft_state: SoftState) -> None:
        """Who leads has changed: reads begin anew, and proposals that are not in the log go elsewhere."""
        self.is_current = self.raft.has_committed_in_term and bool(soft_state.leader)
        refused = self.not_leader()
        reads, self.reads = self.reads, {}
        self.node.answers += [Answer(read.reply, refused) for read in reads.values()]
        self.node.moved[self.group] = None
        if soft_state.role is Role.LEADER or self.raft.is_singleton:
            return
        self.awaiting_leader.clear()
        while self.pending:
            # What was replaced before the core handed it out is not truncated either.
            index, pending = next(reversed(self.pending.items()))
            if pending.term == (self.raft.log.term_at(index) or 0):
                break
            del self.pending[index]
            self.node.answers.append(Answer(pending.reply, refused))
        waiting, self.waiting = self.waiting, deque()
        for proposal in waiting:
            self.node.waiting_bytes -= len(proposal.batch)
            if proposal.reply is not None:
                self.node.answers.append(Answer(proposal.reply, refused))

    def deliver(self, messages: tuple[Message, ...]) -> None:
        """What waited for the disk is true now."""
        for message in messages:
            if message.to == self.node.name:
                self.raft.step(message)
            else:
                self.route(message)
        if self.reads_due:
            # A start that replaced the log may have brought what they wait for.
            self._answer_reads()

    def release(self) -> None:
        """Let go what waits for nothing: no part of the group is on its way to the disk before it."""
        unwritten = self.unwritten
        while unwritten and type(unwritten[0]) is tuple:
            self.deliver(unwritten.popleft())  # type: ignore[arg-type]  # see the condition
            self.pump()

    def route(self, message: Message) -> None:
        wanted = message.range
        if message.type is MessageType.SNAPSHOT:
            self.snapshots_sent_ticks[message.to] = self.node.ticks
        if wanted is None:
            self.node.outbox.setdefault(message.to, []).append((self.group, message))
            return
        if (self.group, message.to) in self.node.ranges_of:
            return  # it is being read already
        log = self.raft.log
        has_previous = not message.log_term and message.index > log.snapshot.index
        self.node.tokens += 1
        self.node.ranges[self.node.tokens] = Range(self.group, message, has_previous)
        self.node.ranges_of[self.group, message.to] = self.node.tokens
        first_index = wanted.first_index - has_previous
        effect = ReadRange(self.group, first_index, wanted.last_index + 1, wanted.bytes_max, self.node.tokens)
        self.node.effects.append(effect)

    # --- What is committed --------------------------------------------------------------------------------------------

    def _apply(self, entries: Sequence[Entry]) -> None:
        raft = self.raft
        for entry in entries:
            batch: StampedBatch = entry.data
            header = batch.header
            index = header.index
            outcome: Produced | Outcome | Reconfigured | None = None
            self.committed_offset = header.next_offset
            self.producers.commit(header)
            if header.is_control:
                outcome = self._on_control(entry, batch)
            elif self.apply_data is not None:
                outcome = self.apply_data(self, batch)
            pending = self.pending.pop(index, None)
            if pending is not None:
                self.node.answers.append(Answer(pending.reply, outcome or self._produced(header)))
            for reply, produced in self.duplicates.pop(index, ()):
                self.node.answers.append(Answer(reply, produced))
        last = entries[-1]
        if last.term == raft.term:
            self.is_current = True
        self.node.moved[self.group] = None
        raft.on_applied(last.index)
        if self.has_work:
            self.node.active[self.group] = None
        if self.reads_due:
            self._answer_reads()

    def _produced(self, header: BatchHeader) -> Produced:
        progress = self.raft.progress
        if self.raft.role is Role.LEADER:
            nodes = tuple(name for name, known in progress.items() if known.match_index >= header.index)
        else:
            nodes = ()  # the new leader knows
        return Produced(header.base_offset, header.index, header.term, header.chain, Durability.QUORUM_FSYNC, nodes)

    def _on_control(self, entry: Entry, batch: StampedBatch) -> Reconfigured | None:
        if entry.change is not None:
            raft = self.raft
            configuration = raft.apply_change(entry.change)
            if entry.index > self.saved_commit and self.saved == raft.hard_state[:2] and not raft.admission:
                # Whoever was needed to commit it may be gone for ever once it is known to be: a restart must not ask
                # them again.
                self.put_hard_state(HardState(*self.saved, entry.index))
            return Reconfigured(configuration)
        kind, fields = decode_control(batch.header, batch.to_bytes())
        if kind is ControlKind.RETENTION:
            # reachable: the group gives up what retention allows
            self.node.effects.append(MoveStart(self.group, fields[0]))
        return None

    def _answer_reads(self) -> None:
        due = [known for known in self.reads_due if known[0] <= self.raft.applied]
        if due:
            self.reads_due = [known for known in self.reads_due if known[0] > self.raft.applied]
            self.node.answers += [
                Answer(read.reply, read.refusal or ReadAt(index, self.committed_offset)) for index, read in due
            ]

    def ask(self, read: Read) -> LogdError | None:
        """Let a majority confirm that this replica leads, or that the one that it asks does. An error: not taken."""
        node = self.node
        if len(self.reads) + len(self.reads_due) >= node.options.raft.read_requests_max:
            return Overloaded("too many reads wait for confirmation", {"delay_seconds": 0.1})
        node.tokens += 1
        # A late answer to a question of an earlier life of this node must answer none of this one.
        context = b"%s/%d/%d" % (node.name.encode(), node.life, node.tokens)
        self.reads[context] = read
        try:
            self.raft.read_index(context)
        except ProposalDropped as error:
            del self.reads[context]
            return Overloaded(error.reason, {"delay_seconds": 0.1})
        return None

    def _refuse(self, reply: Any, refusal: LogdError) -> None:
        """What this log says against a proposal is true if this replica leads: which a majority has to confirm.

        A leader that was deposed and does not know it lacks what was written since: it would call a producer unknown,
        or an offset wrong, and nobody would ask again.
        """
        if not self.raft.is_singleton:
            # reachable: a refusal is confirmed before it is told
            not_taken = self.ask(Read(reply, self.node.ticks, refusal))
            if not_taken is None:
                return
            refusal = not_taken
        self.node.answers.append(Answer(reply, refusal))


def _still_true(messages: tuple[Message, ...], first_index: int | None) -> tuple[Message, ...]:
    """Answers that wait for the disk, without what they promise of entries from `first_index` on.

    These will not be written: something else takes their place. With 0 that is also true of a start before them.
    """
    if first_index is None:
        return messages
    kept = []
    for message in messages:
        if message.type is MessageType.STORAGE_APPEND_RESPONSE:
            if message.snapshot is not None and first_index:
                kept.append(message._replace(index=0, log_term=0))
            elif message.index < first_index:
                kept.append(message)
        elif message.type is not MessageType.APPEND_RESPONSE or message.reject or message.index < first_index:
            kept.append(message)
    return tuple(kept)


def _merged(older: tuple[Message, ...], newer: tuple[Message, ...]) -> tuple[Message, ...]:
    """Answers that wait for the same thing, without those of which the newer ones say as much."""
    said = {(message.type, message.to): message for message in newer}
    return (*(message for message in older if not _is_said(message, said.get((message.type, message.to)))), *newer)


def _is_said(message: Message, newer: Message | None) -> bool:
    if newer is None or message.type not in _REPEATED or message.term != newer.term or message.snapshot is not None:
        return False
    if message.reject or newer.reject:
        return message.reject == newer.reject and message.index == newer.index
    return message.index <= newer.index


# What is said again and again, each time with all that was said before.
_REPEATED: Final = {MessageType.APPEND_RESPONSE, MessageType.STORAGE_APPEND_RESPONSE}

_LATER: Final = Produced(0, 0, 0, b"", Durability.NONE, ())
"""Marks an answer that is not due yet; compared by identity, and never sent."""
