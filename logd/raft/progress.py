"""What a leader knows of each replica, and how fast it may send to it.

For: the core, while it leads. Must not know: what is sent, or when. The one idea: a replica is probed until the logs
are known to meet, is then sent entries without waiting for answers, within bounds, and is sent nothing while it takes
in a snapshot. The rules are those of etcd-io/raft's tracker, which other people's test suites expect; ours are
`admission`, `acknowledged_commit` and `lower_match`.
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum

from logd.raft.types import ProgressStatus


class ProgressState(Enum):
    """How a leader deals with a replica."""

    PROBE = "probe"
    """Where the logs meet is not known: one message at a time, and the next only after an answer or a heartbeat's."""
    REPLICATE = "replicate"
    """The logs meet at `match_index`: entries are sent without waiting for answers."""
    SNAPSHOT = "snapshot"
    """It was sent a snapshot, and gets nothing else until that is settled."""


class Inflights:
    """The messages with entries that a replica did not answer yet, bounded by number and by bytes.

    Arguments: `messages_max`, how many; `bytes_max`, how much they may hold together, 0 for no such bound. The bound
    by bytes is soft: the message that reaches it is still taken.
    """

    # Invariant: count <= messages_max; bytes is the sum over the deque; the indexes never go down.

    __slots__ = ("_messages", "bytes", "bytes_max", "messages_max")

    def __init__(self, messages_max: int, bytes_max: int = 0) -> None:
        self.messages_max = messages_max
        self.bytes_max = bytes_max
        self.bytes = 0
        # Grows on demand: a node has thousands of groups, and few of their replicas are ever far behind.
        self._messages: deque[tuple[int, int]] = deque()

    @property
    def count(self) -> int:
        """How many messages are not answered."""
        return len(self._messages)

    @property
    def is_full(self) -> bool:
        """Whether no further message may be sent."""
        return len(self._messages) >= self.messages_max or (0 < self.bytes_max <= self.bytes)

    def add(self, index: int, size_bytes: int) -> None:
        """A message leaves whose last entry is `index`, and whose entries hold `size_bytes`. It must not be full."""
        assert not self.is_full, "a message is sent beyond the bound"
        self._messages.append((index, size_bytes))
        self.bytes += size_bytes

    def free_up_to(self, index: int) -> None:
        """All messages are answered whose last entry is at or below `index`."""
        messages = self._messages
        while messages and messages[0][0] <= index:
            self.bytes -= messages.popleft()[1]

    def reset(self) -> None:
        """No answer is expected any more."""
        self._messages.clear()
        self.bytes = 0


@dataclass(slots=True, eq=False)
class Progress:
    """One replica in the eyes of its leader, which has one for itself too."""

    # Invariant: 0 <= match_index < next_index; only in SNAPSHOT is there a pending snapshot, only in REPLICATE are
    # there inflights.

    inflights: Inflights
    match_index: int = 0
    """Up to here the replica is known to hold, durably, what the leader holds."""
    next_index: int = 1
    """The next entry to send. What lies between is on its way."""
    sent_commit: int = 0
    """The highest commit index on its way. It goes down when what carried it is taken for lost."""
    state: ProgressState = ProgressState.PROBE
    pending_snapshot: int = 0
    """In SNAPSHOT, the index of the snapshot that was sent, 0 once it is known to be lost; else 0."""
    is_recently_active: bool = False
    """Whether the replica was heard since check-quorum last asked. Always true for the leader itself."""
    is_append_paused: bool = False
    """Whether entries wait for an answer: set by a probe and by full inflights, cleared by a heartbeat's answer, so
    that one message leaves now and then even if every answer was lost."""
    is_learner: bool = False
    admission: bytes = b""
    """While not empty, the replica lost its hard state, says so by this word, and counts for nothing."""
    acknowledged_commit: int = 0
    """The highest commit index that the replica is known to have heard of."""

    @property
    def is_paused(self) -> bool:
        """Whether no entries may be sent now."""
        return self.is_append_paused or self.state is ProgressState.SNAPSHOT

    # --- Transitions --------------------------------------------------------------------------------------------------

    def become_probe(self) -> None:
        """Where the logs meet has to be found out; if a snapshot was sent, it is taken to have arrived."""
        self.next_index = max(self.match_index, self.pending_snapshot) + 1
        self._reset(ProgressState.PROBE)
        self.sent_commit = min(self.sent_commit, self.next_index - 1)

    def become_replicate(self) -> None:
        """The logs meet at `match_index`: entries may be sent without waiting."""
        self._reset(ProgressState.REPLICATE)
        self.next_index = self.match_index + 1

    def become_snapshot(self, index: int) -> None:
        """The replica is sent the snapshot at `index`, because what it needs is not retained."""
        self._reset(ProgressState.SNAPSHOT)
        self.pending_snapshot = index
        self.next_index = index + 1
        self.sent_commit = index

    def _reset(self, state: ProgressState) -> None:
        self.is_append_paused = False
        self.pending_snapshot = 0
        self.state = state
        self.inflights.reset()

    # --- What was sent ------------------------------------------------------------------------------------------------

    def sent_entries(self, count: int, size_bytes: int) -> None:
        """A message with `count` entries from `next_index` on, which hold `size_bytes`, left. Not in SNAPSHOT."""
        assert self.state is not ProgressState.SNAPSHOT, "entries are sent to a replica that waits for a snapshot"
        if self.state is ProgressState.PROBE:
            # A message without entries answers no question, so it is not waited for.
            self.is_append_paused = self.is_append_paused or count > 0
            return
        if count > 0:
            self.next_index += count
            self.inflights.add(self.next_index - 1, size_bytes)
        # What fills the inflights is a probe: the next message waits for an answer, or for a heartbeat's.
        self.is_append_paused = self.inflights.is_full

    def can_bump_commit(self, index: int) -> bool:
        """Whether telling the replica the commit index `index` may raise what it knows to be committed."""
        return self.sent_commit < index and self.sent_commit < self.next_index - 1

    def sent_commit_index(self, index: int) -> None:
        """A message with the commit index `index` left."""
        self.sent_commit = index

    # --- What was answered --------------------------------------------------------------------------------------------

    def maybe_update(self, index: int) -> bool:
        """The replica holds everything up to `index`. Returns whether that is news."""
        if index <= self.match_index:
            return False
        self.match_index = index
        self.next_index = max(self.next_index, index + 1)
        self.is_append_paused = False
        return True

    def maybe_decrease(self, rejected: int, hint: int) -> bool:
        """The replica refused a message that followed on `rejected`, and guesses that the logs meet at `hint`.

        Returns whether to send anew, from `next_index`: not if the refusal is old, for what it refuses was taken since
        or was not sent last.
        """
        if self.state is ProgressState.REPLICATE:
            if rejected <= self.match_index:
                return False
            # A message was lost on the way: everything behind the match goes out again.
            self.next_index = self.match_index + 1
            self.sent_commit = min(self.sent_commit, self.match_index)
            return True
        # There is one probe at a time, so an answer to another one is old.
        if rejected != self.next_index - 1:
            return False
        self.next_index = max(min(rejected, hint + 1), self.match_index + 1)
        self.sent_commit = min(self.sent_commit, self.next_index - 1)
        self.is_append_paused = False
        return True

    def lower_match(self, index: int) -> bool:
        """The replica lost what it had acknowledged above `index`: the one thing that lowers what it is known to hold.

        It is probed from there, unless a snapshot is on its way, which replaces what is left. What it knows to be
        committed stays: that is in its hard state. Returns whether the match was lowered.
        """
        if index >= self.match_index:
            return False
        self.match_index = index
        if self.state is not ProgressState.SNAPSHOT:
            self.become_probe()
        return True

    # --- Looking ------------------------------------------------------------------------------------------------------

    def status(self) -> ProgressStatus:
        """How the replica stands, as a value."""
        return ProgressStatus(
            state=self.state.value,
            match_index=self.match_index,
            next_index=self.next_index,
            is_learner=self.is_learner,
            is_paused=self.is_paused,
            is_recently_active=self.is_recently_active,
            pending_snapshot=self.pending_snapshot,
            inflight_messages=self.inflights.count,
        )
