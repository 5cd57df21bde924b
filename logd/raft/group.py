"""One replica of one group: its state, the ways between its roles, and what it asks of its shell.

For: the driver of a node's groups, and tests. Must not know: disks, sockets, clocks, or what an entry holds. The one
idea: an input changes the state and leaves behind what has to be done; `take_ready` hands that out. What each role does
with each message stands in the table (`logd.raft.table`), the rules in `election`, `replication` and `reads`.

Raft: Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm (Extended Version)" ("section"), and
Ongaro's thesis, "Consensus: Bridging Theory and Practice" ("thesis"). `docs/raft.md` lists every deviation.
"""

from typing import Any, Final, Protocol

from logd.raft import election, reads, replication
from logd.raft.configuration import change_of, reconcile_progress
from logd.raft.log import RaftLog
from logd.raft.progress import Inflights, Progress, ProgressState
from logd.raft.quorum import joint_committed_index
from logd.raft.reads import ReadQueue
from logd.raft.table import HANDLERS
from logd.raft.types import (
    NOBODY,
    Configuration,
    ConfigurationChange,
    Entry,
    EntryId,
    EntryKind,
    GroupOptions,
    HardState,
    Message,
    MessageType,
    ProposalDropped,
    ReadState,
    Ready,
    Recovered,
    Role,
    SafetyViolation,
    Snapshot,
    SoftState,
    Status,
)

_PROMISES: Final = {MessageType.APPEND_RESPONSE, MessageType.VOTE_RESPONSE, MessageType.PRE_VOTE_RESPONSE}
"""These wait for the disk: they say something about what is durable here."""

_OWN_TERM: Final = {
    MessageType.VOTE_REQUEST,
    MessageType.VOTE_RESPONSE,
    MessageType.PRE_VOTE_REQUEST,
    MessageType.PRE_VOTE_RESPONSE,
}
"""The term of these is not always the sender's; whoever makes them sets it."""

_TERMLESS: Final = {MessageType.PROPOSE, MessageType.READ_INDEX}
"""These are passed on to a leader of whatever term."""


# What is heard late is of this term, and was sent by one of the lives that were lost in it: there are not so many.
ADMISSIONS_REMEMBERED: Final = 64


class Chance(Protocol):
    """Where randomness comes from; a `random.Random` is one."""

    def randrange(self, stop: int, /) -> int:
        """A number in [0, stop)."""
        ...


class Group:
    """One replica of one group.

    Arguments: `node`, this node's name; `options`; `recovered`, what the replica comes back with; `chance`, for the
    election timeouts.

    Every input may raise SafetyViolation: then nothing more may be asked of this replica, nor done for it.
    """

    def __init__(self, node: str, options: GroupOptions, recovered: Recovered, chance: Chance) -> None:
        self.node = node
        self.options = options
        self._chance = chance
        # Invariant: the term never goes down, and within a term the vote never changes once given (section 5.2).
        self.term = 0
        self.vote = NOBODY
        self.leader = NOBODY
        self.role = Role.FOLLOWER
        self.log = RaftLog(recovered, options.committed_bytes_max, options.window_bytes_max)
        self.configuration = recovered.configuration or recovered.snapshot.configuration
        """As of the last applied entry."""
        self.floor = recovered.floor
        """The last entry that this replica promised and does not hold any more. See `is_damaged`."""
        self.admission = recovered.admission
        """Not empty: the hard state was lost; this replica counts for nothing until a committed change carries this
        word, and a new hard state is durable."""
        self.admitted: dict[bytes, None] = {}
        """The last words by which somebody was admitted: who asks with one of them again was heard late."""
        self.is_admitted = False
        """The word is committed, and `admission` is forgotten once the hard state is durable."""
        self._saved_commit = 0
        self._saved = HardState(0, NOBODY, 0)
        if recovered.hard_state is not None:
            self.term, self.vote, commit = recovered.hard_state
            # What is committed may be beyond what a damaged log still holds.
            if commit > self.log.last_index and self.floor is None and not self.admission:
                raise SafetyViolation(f"{commit} is committed, this log ends at {self.log.last_index}: was it lost?")
            self.log.commit_to(min(commit, self.log.last_index))
            self._saved_commit = commit
            self._saved = recovered.hard_state
        else:
            # It was in the term of its last entry at least: a leader of before that must not take entries away.
            self.term = self.log.last.term
        self.log.commit_to(min(self.log.applied, self.log.last_index))

        # --- Of every role
        self.votes: dict[str, bool] = {}
        """What was answered in the election of this (pre-)candidate."""
        self.campaign_number = 0
        """Of the last campaign of this life."""
        self.election_elapsed_ticks = 0
        """Since the leader was heard, or the campaign began; of a leader: since it last made sure of a quorum."""
        self.heartbeat_elapsed_ticks = 0
        self.randomized_election_ticks = 0
        """Drawn anew with every change of role: [election_ticks, 2 * election_ticks) (section 5.2)."""
        self.progress: dict[str, Progress] = {}
        """What a leader knows of every member, itself included, by name and in the order of names."""
        self.reads = ReadQueue()

        # --- Of a leader
        self.transfer_to = NOBODY
        self.pending_change_index = 0
        """No change of membership is proposed before the entry of this index is applied (section 6)."""
        self.uncommitted_bytes = 0

        # --- What goes out
        self._messages: list[Message] = []
        self._responses: list[Message] = []
        self.read_states: list[ReadState] = []
        self._told = SoftState(NOBODY, Role.FOLLOWER)
        self._to_step: list[Message] = []
        self._track(self.configuration)
        self.become_follower(self.term, NOBODY)

    def __repr__(self) -> str:
        return f"<{self.role.value} {self.node} of term {self.term}, log to {self.log.last}, commit {self.log.commit}>"

    # --- Looking ------------------------------------------------------------------------------------------------------

    @property
    def last(self) -> EntryId:
        return self.log.last

    @property
    def commit_index(self) -> int:
        return self.log.commit

    @property
    def applied(self) -> int:
        return self.log.applied

    @property
    def hard_state(self) -> HardState:
        # A damaged replica does not forget how far it knew the log to be committed.
        return HardState(self.term, self.vote, max(self.log.commit, self._saved_commit))

    @property
    def is_damaged(self) -> bool:
        """Whether the log lost entries that this replica acknowledged: it must not help to lose them elsewhere."""
        return self.floor is not None

    @property
    def is_promotable(self) -> bool:
        """Whether this replica may campaign."""
        return (self.node in self.configuration.voters or self.node in self.configuration.voters_outgoing) and not (
            self.log.pending_snapshot is not None or self.is_damaged or self.admission
        )

    @property
    def has_committed_in_term(self) -> bool:
        """Whether an entry of the leader's own term is committed: only then does it know the commit (section 8)."""
        return self.log.term_at(self.log.commit) == self.term

    @property
    def is_singleton(self) -> bool:
        """Whether this replica decides alone."""
        return self.configuration.voters == {self.node} and not self.configuration.is_joint

    @property
    def is_at_rest(self) -> bool:
        """Whether a leader has nothing to tell anybody: every member holds the whole log and knows its commit."""
        last = self.log.last_index
        return (
            self.role is Role.LEADER
            and self.log.commit == self.log.applied == self.log.stable == last
            and not self.transfer_to
            and not self.reads.is_waiting
            and not self.configuration.is_joint
            and self.has_committed_in_term
            and all(
                progress.match_index == last
                and progress.acknowledged_commit == last
                and progress.state is ProgressState.REPLICATE
                and not progress.admission
                for name, progress in self.progress.items()
                if name != self.node
            )
        )

    def status(self) -> Status:
        """How this replica stands."""
        is_leader = self.role is Role.LEADER
        return Status(
            node=self.node,
            role=self.role,
            leader=self.leader,
            hard_state=HardState(self.term, self.vote, self.log.commit),
            applied=self.log.applied,
            last=self.log.last,
            configuration=self.configuration,
            transfer_to=self.transfer_to,
            progress={name: progress.status() for name, progress in self.progress.items()} if is_leader else {},
        )

    # --- Inputs -------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Let one tick of time pass."""
        self.election_elapsed_ticks += 1
        if self.role is Role.LEADER:
            self._tick_leader()
        elif self.election_elapsed_ticks >= self.randomized_election_ticks and self.is_promotable:
            self.election_elapsed_ticks = 0
            self.step(Message(MessageType.CAMPAIGN, sender=self.node))

    def _tick_leader(self) -> None:
        self.heartbeat_elapsed_ticks += 1
        if self.election_elapsed_ticks >= self.options.election_ticks:
            self.election_elapsed_ticks = 0
            if self.options.check_quorum:
                self.step(Message(MessageType.CHECK_QUORUM, sender=self.node))
            # A transfer that took an election timeout is given up (thesis 3.10).
            if self.transfer_to:
                self.transfer_to = NOBODY
                replication.maybe_leave_joint(self)
        if self.role is Role.LEADER and self.heartbeat_elapsed_ticks >= self.options.heartbeat_ticks:
            self.heartbeat_elapsed_ticks = 0
            self.step(Message(MessageType.BEAT, sender=self.node))

    def step(self, message: Message) -> None:
        """Take one message. Raises ProposalDropped for a proposal that is not taken, and SafetyViolation."""
        if election.accept_term(self, message):
            HANDLERS[self.role, message.type](self, message)

    def campaign(self) -> None:
        """Start an election now, by way of a pre-vote if there is one."""
        self.step(Message(MessageType.CAMPAIGN, sender=self.node))

    def propose(self, data: Any, size_bytes: int = 0) -> EntryId:
        """Append `data` in this term. Returns its place if this replica leads; raises ProposalDropped.

        A follower that passes proposals on returns the place where its own log ends.
        """
        self.step(self._proposal(Entry(0, 0, EntryKind.DATA, data, size_bytes)))
        return self.log.last

    def propose_change(self, change: ConfigurationChange) -> EntryId:
        """Propose a change of membership; it takes effect when it is applied. Raises ProposalDropped.

        What Raft does not allow now (see `replication.why_not`) is dropped, or, without `checks_changes`, taken.
        """
        if self.role is Role.LEADER and self.options.checks_changes:
            problem = replication.why_not(self, is_leaving=not change.steps)
            if problem:
                raise ProposalDropped(problem)
        self.step(self._proposal(Entry(0, 0, EntryKind.CONFIGURATION, None, 0, change=change)))
        return self.log.last

    def _proposal(self, entry: Entry) -> Message:
        return Message(MessageType.PROPOSE, sender=self.node, entries=(entry,))

    def transfer_leader(self, to: str) -> None:
        """Hand leadership over to a voter, as soon as it holds the whole log (thesis 3.10)."""
        self.step(Message(MessageType.TRANSFER_LEADER, sender=to))

    def read_index(self, context: bytes) -> None:
        """Ask for the index up to which a linearizable read must have applied (thesis 6.4).

        The answer is a ReadState with this context. There is none if leadership is lost, or no leader is known: the
        caller asks again after a time. Raises ProposalDropped if too many wait.
        """
        self.step(Message(MessageType.READ_INDEX, context=context))

    def forget_leader(self) -> None:
        """Let a follower vote for another at once: its leader is known to be dead. Does nothing under leases."""
        self.step(Message(MessageType.FORGET_LEADER, sender=self.node))

    def report_unreachable(self, node: str) -> None:
        """The last message to `node` was probably lost."""
        self.step(Message(MessageType.UNREACHABLE, sender=node))

    def report_snapshot(self, node: str, *, delivered: bool) -> None:
        """The snapshot for `node` arrived, or will not."""
        self.step(Message(MessageType.SNAPSHOT_STATUS, sender=node, reject=not delivered))

    def apply_change(self, change: ConfigurationChange) -> Configuration:
        """A committed change of membership is applied: it takes effect here and now (section 6).

        Raises InvalidChange for a change that cannot be made; nothing is changed then.
        """
        configuration = change_of(self.configuration, change)
        if change.admission and change.admission == self.admission:
            # reachable: a replica without hard state is admitted
            # A majority has agreed, after the loss, to what this replica is from now on.
            # It is not said before the hard state is on disk: until then, a crash makes it a stranger again.
            self.is_admitted = True
        if change.admission:
            self.admitted[change.admission] = None
            if len(self.admitted) > ADMISSIONS_REMEMBERED:
                del self.admitted[next(iter(self.admitted))]
        self._switch(configuration)
        return configuration

    def compact(self, snapshot: Snapshot) -> None:
        """The log now begins behind `snapshot`, which is applied here."""
        self.log.compact(snapshot)

    def offer_snapshot(self, snapshot: Snapshot) -> None:
        """What a follower gets from now on that needs what this log does not retain."""
        self.log.offered = snapshot

    def on_applied(self, index: int) -> None:
        """Everything up to `index` was applied."""
        entries = tuple(self.log.entries[max(self.log.applied - self.log.base.index, 0) : index - self.log.base.index])
        self.step(Message(MessageType.STORAGE_APPLY_RESPONSE, to=self.node, index=index, entries=entries))

    # --- Outputs ------------------------------------------------------------------------------------------------------

    @property
    def _applies_unstable(self) -> bool:
        # Without asynchronous storage, the caller makes a Ready durable before it applies it.
        return not self.options.asynchronous_storage

    @property
    def has_ready(self) -> bool:
        """Whether `take_ready` has something to say."""
        # Asked several times for each input, so it looks at fields and makes no values.
        log, saved = self.log, self._saved
        return bool(
            self._messages
            or self._responses
            or log.has_next_unstable
            or (log.applying < log.commit and log.has_next_committed(includes_unstable=self._applies_unstable))
            or log.next_snapshot is not None
            or self.read_states
            or self._told.role is not self.role
            or self._told.leader != self.leader
            or (
                (saved.term != self.term or saved.vote != self.vote or saved.commit < log.commit)
                and (not self.admission or self.is_admitted)
            )
        )

    def take_ready(self) -> Ready:
        """What must be done since the last time. Taking it twice gives nothing the second time."""
        log, ready = self.log, Ready()
        if self._told != (self.leader, self.role):
            ready.soft_state = self._told = SoftState(self.leader, self.role)
        hard_state = self.hard_state
        # Whoever lost its hard state must not come back looking as if it had one.
        if self._saved != hard_state and (not self.admission or self.is_admitted):
            ready.must_sync = self._saved[:2] != hard_state[:2]
            ready.hard_state = self._saved = hard_state
        ready.append = log.next_unstable()
        ready.snapshot = log.next_snapshot
        ready.truncate_from = log.truncated_from
        ready.must_sync = ready.must_sync or bool(ready.append) or ready.snapshot is not None
        ready.messages, self._messages = tuple(self._messages), []
        ready.read_states, self.read_states = tuple(self.read_states), []
        responses, self._responses = self._responses, []
        # Whoever asks the disk for nothing waits for the answers that are on their way.
        is_disk_asked = bool(ready.append or ready.hard_state or responses)
        if ready.snapshot is not None or (is_disk_asked and log.has_unstable):
            responses.append(self._storage_response(ready.snapshot))
        if self.is_admitted and ready.hard_state is not None:
            # Of no term: whatever came between, the hard state is durable then.
            stored = MessageType.STORAGE_APPEND_RESPONSE
            responses.append(Message(stored, to=self.node, admission=self.admission))
        includes_unstable = self._applies_unstable
        committed = log.next_committed(includes_unstable=includes_unstable)
        log.accept_unstable()
        if committed:
            log.accept_applying(committed, includes_unstable=includes_unstable)
            ready.committed = tuple(committed)
        if self.options.asynchronous_storage:
            ready.responses = tuple(responses)
        else:
            assert not self._to_step, "the last Ready was not advanced"
            ready.responses = tuple(message for message in responses if message.to != self.node)
            self._to_step = [message for message in responses if message.to == self.node]
            if committed:
                applied = MessageType.STORAGE_APPLY_RESPONSE
                self._to_step.append(Message(applied, self.node, index=committed[-1].index, entries=ready.committed))
        return ready

    def _storage_response(self, snapshot: Snapshot | None) -> Message:
        """What the disk answers when it has all that was handed out.

        It names the end of the log by index *and term*, and the term in which it was asked: an answer of an earlier
        term says nothing, for what it speaks of may have been replaced, and even have come back since, without yet
        being on the disk again.
        """
        index, log_term = self.log.last if self.log.has_unstable else (0, 0)
        return Message(
            MessageType.STORAGE_APPEND_RESPONSE,
            to=self.node,
            term=self.term,
            index=index,
            log_term=log_term,
            snapshot=snapshot,
        )

    def advance(self) -> None:
        """Everything in the last Ready is done. Only without asynchronous storage."""
        assert not self.options.asynchronous_storage, "the disk's answers come by step"
        messages, self._to_step = self._to_step, []
        for message in messages:
            self.step(message)

    def send(self, message: Message) -> None:
        """Let a message leave: at once, or once what it promises is durable."""
        sender = message.sender or self.node
        if message.type not in _OWN_TERM and message.type not in _TERMLESS:
            message = message._replace(sender=sender, term=self.term)
        elif sender != message.sender:
            message = message._replace(sender=sender)
        if message.type in _PROMISES:
            self._responses.append(message)
        else:
            assert message.to != self.node, "nobody sends to itself what does not wait for the disk"
            self._messages.append(message)

    # --- Roles: nobody else writes `role` -----------------------------------------------------------------------------

    def _reset(self, term: int) -> None:
        if self.term != term:
            assert term > self.term, "a term never goes down"
            self.term = term
            self.vote = NOBODY
        self.leader = NOBODY
        self.election_elapsed_ticks = 0
        self.heartbeat_elapsed_ticks = 0
        self.randomized_election_ticks = self.options.election_ticks + self._chance.randrange(
            self.options.election_ticks
        )
        self.transfer_to = NOBODY
        self.votes = {}
        self.pending_change_index = 0
        self.uncommitted_bytes = 0
        self.reads = ReadQueue()

    def _new_progress(self, next_index: int) -> Progress:
        inflights = Inflights(self.options.inflight_messages_max, self.options.inflight_bytes_max)
        return Progress(inflights, next_index=next_index)

    def _track(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.progress = reconcile_progress(self.progress, configuration, self.log.last_index, self._new_progress)

    def become_follower(self, term: int, leader: str) -> None:
        """Follow `leader`, or wait for one."""
        self._reset(term)
        self.leader = leader
        self.role = Role.FOLLOWER

    def become_pre_candidate(self) -> None:
        """Ask whether an election could be won; neither term nor vote change (thesis 9.6)."""
        assert self.role is not Role.LEADER
        self.votes = {}
        self.leader = NOBODY
        self.role = Role.PRE_CANDIDATE
        self._number_campaign()

    def become_candidate(self) -> None:
        """Begin an election in the next term, with this replica's own vote (section 5.2)."""
        assert self.role is not Role.LEADER
        self._reset(self.term + 1)
        self.vote = self.node
        self.role = Role.CANDIDATE
        self._number_campaign()

    def _number_campaign(self) -> None:
        # Drawn, not counted: a number that an earlier life of this replica used must not come again.
        self.campaign_number = 1 + self._chance.randrange(1 << 48)

    def become_leader(self) -> None:
        """Lead this term, beginning with an entry of its own (sections 5.3 and 8)."""
        assert self.role is not Role.FOLLOWER
        self._reset(self.term)
        self.leader = self.node
        self.role = Role.LEADER
        self.progress = reconcile_progress({}, self.configuration, self.log.last_index, self._new_progress)
        for progress in self.progress.values():
            progress.next_index = self.log.last_index + 1
            progress.is_recently_active = False
        own = self.progress[self.node]
        own.become_replicate()
        own.is_recently_active = True
        own.match_index = self.log.last_index
        own.next_index = self.log.last_index + 1
        # There may be a change among what is not applied yet; nothing else is known to rule it out.
        self.pending_change_index = self.log.last_index
        taken = replication.append(self, [Entry(0, 0, EntryKind.NO_OP)])
        assert taken, "an entry without payload is always taken"

    # --- Membership ---------------------------------------------------------------------------------------------------

    def _switch(self, configuration: Configuration) -> None:
        """The configuration is a new one: who is counted, and whether this replica may go on as it is."""
        self._track(configuration)
        if self.role is not Role.LEADER:
            return
        if self.node not in configuration.members or self.node in configuration.learners:
            # A leader that was removed steps down once the change is committed (section 6).
            if self.options.steps_down_on_removal:
                self.become_follower(self.term, NOBODY)
            return
        if self.maybe_commit():
            replication.send_appends(self)
        else:
            for name in self.progress:
                if name != self.node:
                    replication.maybe_send_append(self, name, if_empty=False)
        reads.answer_confirmed(self)
        if self.transfer_to not in configuration.voters | configuration.voters_outgoing:
            self.transfer_to = NOBODY

    def install_configuration(self, configuration: Configuration) -> None:
        """The configuration of a snapshot that replaced the log."""
        self.progress = {}
        self._track(configuration)

    def maybe_commit(self) -> bool:
        """Advance the commit to what majorities hold, if that is of the leader's own term (section 5.4.2, figure 8)."""
        index = joint_committed_index(self.configuration, self._match_index)
        if index > self.log.commit and self.log.term_at(index) == self.term:
            self.log.commit_to(index)
            return True
        return False

    def _match_index(self, name: str) -> int | None:
        progress = self.progress.get(name)
        # Whoever lost its hard state may have promised otherwise to another leader: it counts for nothing.
        return None if progress is None or progress.admission else progress.match_index

    def settle_floor(self) -> None:
        """The log grew: if it reaches again what was promised, this replica is whole.

        It is enough that the log's end is as up-to-date as the floor: where it ends in an entry of a later term, it is
        the log of that term's leader, who holds everything that was ever committed (section 5.4.3).
        """
        if self.floor is not None and (self.last.term, self.last.index) >= (self.floor.term, self.floor.index):
            # reachable: a damaged replica is whole again
            self.floor = None
