"""What a majority has decided: the index it holds, and the outcome of a vote.

For: the core. Must not know: who the nodes are, or what is decided about. The one idea: a joint configuration decides
what both of its majorities decide, so it is the lesser of two answers, and an empty half never stands in the way
(Raft paper, section 6; Ongaro's thesis, section 4.3).
"""

from collections.abc import Callable, Collection, Mapping
from enum import Enum
from typing import Final

from logd.raft.types import Configuration

UNBOUNDED: Final = (1 << 64) - 1
"""What no voters at all have committed: everything, so that the other half of a joint configuration decides alone.
Larger than any index; the number is etcd's."""


class VoteResult(Enum):
    """How a vote stands."""

    PENDING = "pending"
    """It depends on voters that did not answer yet."""
    LOST = "lost"
    WON = "won"


def committed_index(voters: Collection[str], match: Callable[[str], int | None]) -> int:
    """The highest index that a majority holds (figure 2, "a majority of matchIndex[i] >= N").

    Arguments: `voters`, each once; `match`, what a voter holds, None if that is not known (then it counts as nothing).
    For a mapping, pass its `get`.
    Returns: the index; UNBOUNDED without voters.
    """
    if not voters:
        return UNBOUNDED
    held = sorted([match(voter) or 0 for voter in voters])
    # Everything from this place on holds at least as much, and that is the smallest majority.
    return held[(len(held) - 1) // 2]


def joint_committed_index(configuration: Configuration, match: Callable[[str], int | None]) -> int:
    """The highest index that both majorities of a configuration hold: see `committed_index`."""
    index = committed_index(configuration.voters, match)
    if not configuration.voters_outgoing:
        return index
    return min(index, committed_index(configuration.voters_outgoing, match))


def vote_result(voters: Collection[str], votes: Mapping[str, bool]) -> VoteResult:
    """How a vote among `voters` stands (section 5.2).

    Arguments: `voters`, each once; `votes`, who was granted and who refused; others may be in it, and do not count.
    Returns: WON without voters, which leaves the decision to the other half of a joint configuration.
    """
    if not voters:
        return VoteResult.WON
    granted = missing = 0
    for voter in voters:
        vote = votes.get(voter)
        if vote is None:
            missing += 1
        elif vote:
            granted += 1
    majority = len(voters) // 2 + 1
    if granted >= majority:
        return VoteResult.WON
    return VoteResult.PENDING if granted + missing >= majority else VoteResult.LOST


def joint_vote_result(configuration: Configuration, votes: Mapping[str, bool]) -> VoteResult:
    """How a vote stands that needs both majorities of a configuration: lost as soon as either is lost."""
    results = (vote_result(configuration.voters, votes), vote_result(configuration.voters_outgoing, votes))
    if VoteResult.LOST in results:
        return VoteResult.LOST
    return VoteResult.PENDING if VoteResult.PENDING in results else VoteResult.WON
