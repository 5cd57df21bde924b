"""One group's consensus, as a function: inputs change the state, `take_ready` says what must be done.

For: the driver of a node's groups. Must not know: disks, sockets, clocks, chance, or what an entry holds. The one
idea: Raft (Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm", extended version) decides
indexes, terms and commits; whoever drives it makes things durable and says so. The shape is that of etcd's RawNode.

Today a group has one voter, this node: it campaigns, wins by its own vote once that vote is durable, and commits
what it has persisted. Every rule is written for a majority of `voters`, so that peers are an addition, not a change.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple


class Role(Enum):
    """What this replica is to its group."""

    FOLLOWER = auto()
    CANDIDATE = auto()
    LEADER = auto()


class HardState(NamedTuple):
    """What must be durable before any message that depends on it (Figure 2, "persistent state")."""

    term: int
    vote: str
    """Whom this replica voted for in `term`; empty for nobody."""
    commit: int


class EntryId(NamedTuple):
    """An entry by reference: its bytes stay with the driver."""

    index: int  # type: ignore[assignment]  # the glossary's word wins over `tuple.index`
    term: int


class Ready(NamedTuple):
    """What must be done, in this order: make `hard_state` and `append` durable together, then tell `on_persisted`."""

    hard_state: HardState | None
    append: tuple[EntryId, ...]
    became_leader: bool
    """This is the first Ready as leader: the driver proposes the term's no-op before anything else (section 8)."""


class NotLeading(Exception):  # a state, which the driver answers for
    """A proposal to a replica that does not lead. Nothing was changed."""


@dataclass(slots=True)
class _Voter:
    """Progress of one voter, this node included."""

    # Invariant: what this voter has made durable never goes down while its log is undamaged.
    match_index: int = 0
    granted: bool = False


class Group:
    """One replica of one group.

    Arguments: `node`, this node's name; `voters`, all voters' names; `last`, the last entry of the log; `hard_state`,
    as it was recovered.
    """

    # Invariants: commit_index <= last.index; term never goes down; at most one vote a term;
    # persisted_index <= last.index.

    def __init__(self, node: str, voters: frozenset[str], last: EntryId, hard_state: HardState) -> None:
        if voters != {node}:
            raise ValueError("a group of several voters needs peers, which this version does not have")
        self.node = node
        self.role = Role.FOLLOWER
        self.term = hard_state.term
        self.vote = hard_state.vote
        self.commit_index = hard_state.commit
        self.last = last
        # What was recovered is durable by definition; it is not yet known to be committed.
        self._voters = {name: _Voter() for name in voters}
        self._voters[node].match_index = last.index
        self._ready_hard_state: HardState | None = None
        self._ready_append: list[EntryId] = []
        self._became_leader = False
        # The index of the term's no-op: nothing below it commits by counting. Meaningful while leading.
        self._first_of_term = 0

    @property
    def hard_state(self) -> HardState:
        return HardState(self.term, self.vote, self.commit_index)

    def campaign(self, *, skip_terms: int = 0) -> None:
        """Become a candidate of a new term and vote for this node (section 5.2).

        `skip_terms`: how many terms to leave out, for a replica that lost its hard state and so cannot know in which
        terms it voted.
        """
        self._become_candidate(self.term + 1 + skip_terms)

    def _become_candidate(self, term: int) -> None:
        assert term > self.term, "a term never goes down"
        self.role = Role.CANDIDATE
        self.term = term
        self.vote = self.node
        for voter in self._voters.values():
            voter.granted = False
        self._ready_hard_state = self.hard_state

    def _become_leader(self) -> None:
        self.role = Role.LEADER
        self._first_of_term = self.last.index + 1
        self._became_leader = True

    def propose(self) -> EntryId:
        """Assign the next index, in this term. Raises NotLeading."""
        if self.role is not Role.LEADER:
            raise NotLeading
        self.last = EntryId(self.last.index + 1, self.term)
        self._ready_append.append(self.last)
        return self.last

    @property
    def has_ready(self) -> bool:
        return bool(self._ready_append or self._ready_hard_state or self._became_leader)

    def take_ready(self) -> Ready:
        """What must be done since the last time. Taking it twice gives nothing the second time."""
        ready = Ready(self._ready_hard_state, tuple(self._ready_append), self._became_leader)
        self._ready_hard_state = None
        self._ready_append = []
        self._became_leader = False
        return ready

    def on_persisted(self, last: EntryId, term: int) -> bool:
        """This node has made its log durable up to `last`, and its vote in `term`; true when the commit moved.

        The only voter's entries are never overwritten, so that its completions are always for its log as it is.
        """
        assert last.index <= self.last.index, "nothing is durable that was never appended"
        own = self._voters[self.node]
        own.match_index = max(own.match_index, last.index)
        if self.role is Role.CANDIDATE and term == self.term:
            own.granted = True
            if sum(voter.granted for voter in self._voters.values()) >= self._quorum:
                self._become_leader()
        return self._maybe_commit()

    @property
    def _quorum(self) -> int:
        return len(self._voters) // 2 + 1

    def _maybe_commit(self) -> bool:
        """Advance the commit to what a majority has, if that is of the own term (section 5.4.2, figure 8)."""
        if self.role is not Role.LEADER:
            return False
        matches = sorted((voter.match_index for voter in self._voters.values()), reverse=True)
        index = matches[self._quorum - 1]
        if index <= self.commit_index or index < self._first_of_term:
            return False
        self.commit_index = index
        return True

    @property
    def has_committed_in_term(self) -> bool:
        """Whether reads are known to be current: an entry of the own term is committed (section 8)."""
        return self.role is Role.LEADER and self.commit_index >= self._first_of_term
