"""The vocabulary of one group's consensus: what goes into the core, and what comes out.

For: the core, whoever drives it, and the tests that talk to it. Must not know: what an entry holds, how a message
travels. The one idea: everything is a value; only `Entry` has fields that are filled in later, by the driver, which
stamps a leader's entries before anybody is sent them.

The shape is that of etcd's RawNode (etcd-io/raft), so that test suites written for that shape can be run on this core;
the rules are those of the Raft paper (Ongaro and Ousterhout, extended version) and of Ongaro's thesis.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, NamedTuple

NOBODY: Final = ""
"""No node: the leader while none is known, the vote while none is given."""


class Role(Enum):
    """What a replica is to its group."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class HardState(NamedTuple):
    """What must be durable before any message that depends on it (figure 2, "persistent state")."""

    term: int
    vote: str
    """Whom this replica voted for in `term`; NOBODY for nobody."""
    commit: int


INITIAL_HARD_STATE: Final = HardState(0, NOBODY, 0)


class EntryId(NamedTuple):
    """An entry's identity: by the log matching property, equal identities are equal entries (section 5.3)."""

    index: int  # type: ignore[assignment]  # the glossary's word wins over `tuple.index`
    term: int


class EntryKind(Enum):
    """What an entry means to the core. What it means to users is in its data, which the core never looks at."""

    DATA = "data"
    NO_OP = "no-op"
    """A new leader's first entry (section 8)."""
    CONFIGURATION = "configuration"
    """A change of membership: `Entry.change` holds it."""


@dataclass(slots=True, eq=False)
class Entry:
    """An entry by reference: what consensus needs of a batch, and whatever the driver hangs on it.

    The core makes a leader's entries with `data` as proposed; the driver replaces `data` by the stamped batch and sets
    `chain` and `size_bytes` while it handles the Ready that first shows the entry. Everything that holds the entry
    sees it.
    """

    index: int
    term: int
    kind: EntryKind = EntryKind.DATA
    data: Any = None
    size_bytes: int = 0
    """What the entry counts for, in the limits by bytes: its payload."""
    chain: bytes = b""
    """The digest of the log up to here; empty where nobody chains. Unequal for equal identities: a violation."""
    change: "ConfigurationChange | None" = None

    @property
    def id(self) -> EntryId:
        return EntryId(self.index, self.term)


# --- Membership -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Configuration:
    """Who belongs to a group (section 6). During a joint change, decisions need both majorities."""

    voters: frozenset[str] = frozenset()
    """The (incoming) voters."""
    voters_outgoing: frozenset[str] = frozenset()
    """The voters of the configuration that is being left; empty unless joint."""
    learners: frozenset[str] = frozenset()
    # Invariant: learners and voters have no node in common; learners_next are voters_outgoing.
    learners_next: frozenset[str] = frozenset()
    """Outgoing voters that become learners when the joint configuration is left."""
    auto_leave: bool = False
    """The leader leaves the joint configuration by itself once it is applied."""

    @property
    def is_joint(self) -> bool:
        return bool(self.voters_outgoing)

    @property
    def members(self) -> frozenset[str]:
        return self.voters | self.voters_outgoing | self.learners


class ChangeKind(Enum):
    """What one step of a membership change does to a node."""

    ADD_VOTER = "add-voter"
    ADD_LEARNER = "add-learner"
    """Also turns a voter into a learner."""
    REMOVE = "remove"
    UPDATE = "update"
    """Changes nothing in the configuration."""


class ChangeStep(NamedTuple):
    """One step of a membership change."""

    kind: ChangeKind
    node: str


class Transition(Enum):
    """How a change is made."""

    AUTO = "auto"
    """One at a time if it is one step, else joint, left by the leader itself."""
    IMPLICIT = "implicit"
    """Joint, left by the leader itself as soon as it is applied."""
    EXPLICIT = "explicit"
    """Joint, left by a change without steps."""


@dataclass(frozen=True, slots=True)
class ConfigurationChange:
    """A change of membership. Without steps and context, it leaves a joint configuration."""

    steps: tuple[ChangeStep, ...] = ()
    transition: Transition = Transition.AUTO
    admission: bytes = b""
    """Re-admits the replica that reports this word: see `Message.admission`."""
    data: Any = None
    """The proposer's; the core does not look at it."""
    is_simple_form: bool = False
    """It was made in etcd's older form of one step, which some of etcd's files tell apart."""

    @property
    def leaves_joint(self) -> bool:
        return not self.steps and self.transition is Transition.AUTO


# --- Messages ---------------------------------------------------------------------------------------------------------


class MessageType(Enum):
    """Everything that can be stepped into the core."""

    # Between replicas.
    PRE_VOTE_REQUEST = "pre-vote request"
    PRE_VOTE_RESPONSE = "pre-vote response"
    VOTE_REQUEST = "vote request"
    VOTE_RESPONSE = "vote response"
    APPEND = "append"
    APPEND_RESPONSE = "append response"
    HEARTBEAT = "heartbeat"
    HEARTBEAT_RESPONSE = "heartbeat response"
    SNAPSHOT = "snapshot"
    TIMEOUT_NOW = "timeout now"
    READ_INDEX = "read index"
    READ_INDEX_RESPONSE = "read index response"
    TRANSFER_LEADER = "transfer leader"
    PROPOSE = "propose"
    FORGET_LEADER = "forget leader"
    # From the shell of the same replica.
    CAMPAIGN = "campaign"
    """Start an election now (etcd: hup)."""
    BEAT = "beat"
    CHECK_QUORUM = "check quorum"
    UNREACHABLE = "unreachable"
    """The last message to `sender` was probably lost."""
    SNAPSHOT_STATUS = "snapshot status"
    """The snapshot for `sender` arrived, or `reject`: did not."""
    STORAGE_APPEND = "storage append"
    """To the disk: what `Ready` says, as a message, for shells that are made of messages."""
    STORAGE_APPEND_RESPONSE = "storage append response"
    """From the disk: the log up to (index, log_term), the hard state of `term`, and `snapshot` if set, are durable."""
    STORAGE_APPLY = "storage apply"
    STORAGE_APPLY_RESPONSE = "storage apply response"
    """`entries` are applied."""


class Snapshot(NamedTuple):
    """What stands just before a log's first entry: for a data group, its `start`."""

    index: int  # type: ignore[assignment]  # see EntryId
    term: int
    configuration: Configuration
    chain: bytes = b""
    data: Any = None

    @property
    def id(self) -> EntryId:
        return EntryId(self.index, self.term)


class EntryRange(NamedTuple):
    """Entries that are no longer in memory: the shell reads them, from `first_index`, and fills in the message."""

    first_index: int
    last_index: int
    """Inclusive; fewer may be sent, at least one must."""
    bytes_max: int


class Message(NamedTuple):
    """One message. Which fields count depends on the type; the rest is as it is by default."""

    type: MessageType
    to: str = NOBODY
    sender: str = NOBODY
    term: int = 0
    """The sender's term; 0 for what comes from the replica's own shell."""
    index: int = 0  # type: ignore[assignment]  # see EntryId
    """APPEND: the entry before `entries`. APPEND_RESPONSE: the last entry that is durable here, or the rejected one."""
    log_term: int = 0
    """The term of the entry at `index`; 0 for a rejection without a hint. With `range`, 0: the shell fills it in."""
    commit: int = 0
    entries: tuple[Entry, ...] = ()
    range: EntryRange | None = None
    """Instead of `entries`: what the shell has to read before it sends the message."""
    snapshot: Snapshot | None = None
    reject: bool = False
    reject_hint: int = 0
    """APPEND_RESPONSE: where the sender of the rejection guesses that the logs may meet; with `log_term` its term."""
    context: bytes = b""
    """READ_INDEX, HEARTBEAT: which read; VOTE_REQUEST: CAMPAIGN_TRANSFER."""
    vote: str = NOBODY
    """STORAGE_APPEND: the hard state's."""
    chain: bytes = b""
    """APPEND: the chain at `index`; empty if the sender does not know it (any more)."""
    last_index: int = 0
    """APPEND_RESPONSE, HEARTBEAT_RESPONSE of a damaged replica: see `is_damaged`."""
    is_damaged: bool = False
    """APPEND_RESPONSE, HEARTBEAT_RESPONSE: the log of the sender lost entries that it had acknowledged; it holds
    nothing above `last_index`. The one thing that lowers a leader's match."""
    admission: bytes = b""
    """APPEND_RESPONSE, HEARTBEAT_RESPONSE: the sender lost its hard state, and counts for nothing until a committed
    change of membership carries this word."""
    campaign: int = 0
    """(Pre-)vote requests and responses: which campaign of the asker; 0 where nobody numbers them."""
    responses: "tuple[Message, ...]" = ()
    """STORAGE_APPEND, STORAGE_APPLY: what to deliver, also to the replica itself, once it is done."""


CAMPAIGN_TRANSFER: Final = b"transfer"
"""The context of a vote request in a leadership transfer: it may disrupt a leader that is alive (thesis 3.10)."""


class ReadState(NamedTuple):
    """A linearizable read may be served once `index` is applied (thesis 6.4)."""

    index: int  # type: ignore[assignment]  # see EntryId
    context: bytes


class SoftState(NamedTuple):
    """What changes without being remembered."""

    leader: str
    role: Role


@dataclass(slots=True)
class Ready:
    """What must be done since the last one.

    `snapshot`, `truncate_from`, `append` and `hard_state` are made durable together; `messages` may leave at once;
    `responses` leave (or are stepped, if they are to the replica itself) only when all of that is durable; `committed`
    may be applied at once: it holds nothing that is not durable on a majority.
    """

    soft_state: SoftState | None = None
    """Set if it changed."""
    hard_state: HardState | None = None
    """Set if it changed."""
    snapshot: Snapshot | None = None
    truncate_from: int | None = None
    """The first index of what was handed out before that `append` replaces; None if nothing is replaced."""
    append: tuple[Entry, ...] = ()
    messages: tuple[Message, ...] = ()
    responses: tuple[Message, ...] = ()
    committed: tuple[Entry, ...] = ()
    read_states: tuple[ReadState, ...] = ()
    must_sync: bool = False
    """Whether anything may only be promised after an fsync: a new term or vote, entries, a snapshot."""


# --- Errors -----------------------------------------------------------------------------------------------------------


class ProposalDropped(Exception):
    """A proposal was not taken, and will not be. Nothing was changed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SafetyViolation(Exception):
    """Something happened that Raft rules out: this replica must stop, loudly, with everything left as it is."""


# --- Options and status -----------------------------------------------------------------------------------------------


class ReadMode(Enum):
    """How linearizable reads are confirmed."""

    QUORUM = "quorum"
    """By a round of heartbeats (thesis 6.4)."""
    LEASE = "lease"
    """By the clock (thesis 6.4.1). The daemon never uses it: a paused process cannot know that its lease ran out."""


@dataclass(frozen=True, slots=True)
class GroupOptions:
    """How a replica behaves. The defaults are the daemon's."""

    election_ticks: int = 10
    """Without a sign of a leader for this long (up to twice it, drawn anew each time), a follower campaigns."""
    heartbeat_ticks: int = 1
    message_bytes_max: int = 1 << 20
    """Entries of one APPEND; one entry may be larger."""
    committed_bytes_max: int = 16 << 20
    """Entries of one `Ready.committed`; one entry may be larger."""
    uncommitted_bytes_max: int = 64 << 20
    """What a leader takes beyond its commit; above it, proposals are dropped. One is always taken."""
    inflight_messages_max: int = 256
    inflight_bytes_max: int = 8 << 20
    """APPENDs to one follower that are not answered; 0: unlimited bytes."""
    read_requests_max: int = 1024
    """Reads that wait for confirmation; the next is dropped."""
    window_bytes_max: int = 4 << 20
    """Durable, applied entries that stay in memory, for followers a little behind. What is older is read by range."""
    check_quorum: bool = True
    pre_vote: bool = True
    read_mode: ReadMode = ReadMode.QUORUM
    forwards_proposals: bool = False
    """Whether a follower passes proposals on to its leader. Clients find the leader themselves."""
    checks_changes: bool = True
    """Whether a membership change that Raft does not allow now is refused when proposed (it becomes an empty entry)."""
    changes_wait_for_own_commit: bool = True
    """Whether a membership change waits for the first commit of the leader's own term. False, as in etcd: only until
    everything from before the term is applied, which is enough where a change takes effect when it is applied."""
    steps_down_on_removal: bool = True
    snapshot_is_start: bool = True
    """A snapshot is where the leader's log starts: of a time when the receiver may not have been a member. False: it is
    of the leader's last applied entry, and one whose configuration lacks the receiver is not for it."""
    asynchronous_storage: bool = True
    """True: `Ready` after `Ready` may be taken, the disk's answers come by `step`, in order. False: `advance` is called
    after each Ready, when everything in it is done, and entries are applied only after they are durable here."""


class ProgressStatus(NamedTuple):
    """What a leader knows of a follower."""

    state: str
    match_index: int
    next_index: int
    is_learner: bool
    is_paused: bool
    is_recently_active: bool
    pending_snapshot: int
    inflight_messages: int


@dataclass(frozen=True, slots=True)
class Status:
    """How a replica stands."""

    node: str
    role: Role
    leader: str
    hard_state: HardState
    applied: int
    last: EntryId
    configuration: Configuration
    transfer_to: str = NOBODY
    progress: dict[str, ProgressStatus] = field(default_factory=dict)
    """Empty unless this replica leads."""


EMPTY_LOG: Final = Snapshot(0, 0, Configuration())
"""What stands before the first entry of a log that never was."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a replica comes back with. The default is a log that never was."""

    snapshot: Snapshot = EMPTY_LOG
    """What stands before the first retained entry."""
    base: EntryId | None = None
    """The entry before `entries`, if the retained ones below are left on disk; by default `snapshot`."""
    base_chain: bytes = b""
    entries: Sequence[Entry] = ()
    """The end of the log. Invariant: from an index at or below the commit + 1."""
    hard_state: HardState | None = INITIAL_HARD_STATE
    """None: it is lost; the replica counts for nothing until it is re-admitted."""
    configuration: Configuration | None = None
    """As of `applied`; by default the snapshot's."""
    applied: int = 0
    """The last entry that was applied; at least the snapshot's."""
    floor: EntryId | None = None
    """The last entry that this replica promised, if its log does not reach it any more (it ends where it is intact)."""
    admission: bytes = b""
    """Drawn anew by the shell if `hard_state` is None: the word by which it is re-admitted."""
