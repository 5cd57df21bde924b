"""What the driver puts into a round, in its own words.

For: the driver, which makes these, and the store, which gives each its bytes. Must not know: positions or files. The
one idea: the order of the entries is the order in which they become true.
"""

from typing import NamedTuple

from logd.store.format import HardState, Start
from wire.record import StampedBatch

__all__ = ["AcceptEnd", "Append", "HardState", "Remove", "RoundEntry", "SetHardState", "SetStart", "Start"]


class Append(NamedTuple):
    """A batch at the end of a group's log, or in place of a conflicting suffix: it voids its index and all above."""

    group: int
    batch: StampedBatch


class SetHardState(NamedTuple):
    """A group's term, vote and commit."""

    group: int
    hard_state: HardState


class SetStart(NamedTuple):
    """A group begins here: made, installed, or moved by retention. Its file is already synced."""

    group: int
    start: Start


class Remove(NamedTuple):
    """A group leaves this node."""

    group: int


class AcceptEnd(NamedTuple):
    """An operator accepts that a group's log ends here."""

    group: int
    index: int  # type: ignore[assignment]  # the glossary's word wins over `tuple.index`
    term: int
    chain: bytes


RoundEntry = Append | SetHardState | SetStart | Remove | AcceptEnd
