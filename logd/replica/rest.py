"""Groups at rest: one heartbeat between two nodes for all groups in which nothing happens.

For: the driver. Must not know: cores, disks, frames. The one idea: a leader tells each peer which of its groups are at
rest, as a list with a generation; as long as the peer hears of that generation it need not hear of the groups. Who
does not find a group on the list, or does not hear the node, lets that group's own time run again.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from logd.replica.frames import Beat

RESTING_LEVEL: Final = 2
"""The feature level from which a node understands the list."""

# Ticks without a beat after which what rests on it wakes: one or two that are lost are no reason.
SILENT_TICKS_MAX: Final = 3


@dataclass(slots=True)
class _Told:
    """What this node tells one peer."""

    generation: int = 1
    resting: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Term and last index of each group of the list."""
    acknowledged: int = 0
    """The generation that the peer is known to have; 0 for none, and then it is told everything."""
    complete_from: int = 1
    # Invariant: every change above `complete_from` is in it, oldest first; `acknowledged` is 0 or at least that.
    changes: deque[tuple[int, int]] = field(default_factory=deque)
    """Generation, group."""

    def change(self, group: int, place: tuple[int, int] | None) -> None:
        if place is None:
            del self.resting[group]
        else:
            self.resting[group] = place
        self.generation += 1
        self.changes.append((self.generation, group))
        if len(self.changes) > 2 * len(self.resting) + 64:
            # All of it is shorter by now.
            self.changes.clear()
            self.complete_from = self.generation
            self.acknowledged = 0

    def acknowledge(self, generation: int) -> None:
        if generation < self.complete_from:
            # What changed since is not known any more, or nothing is known there.
            self.acknowledged = 0
            return
        self.acknowledged = self.complete_from = generation
        while self.changes and self.changes[0][0] <= generation:
            self.changes.popleft()


@dataclass(slots=True)
class _Heard:
    """What a peer told this node."""

    life: int = 0
    generation: int = 0
    resting: dict[int, tuple[int, int]] = field(default_factory=dict)
    accepted: set[int] = field(default_factory=set)
    """Groups of the list that rest here too; the others tick for themselves."""
    silent_ticks: int = 0


class Rest:
    """Which groups rest on this node, as leader or as follower.

    Arguments: `life`, a number that no earlier start of this node had; `level`, what this node speaks.
    """

    # Invariant: a group rests as led by this node, or on the word of one peer, not both.

    def __init__(self, life: int, level: int) -> None:
        self.life = life
        self.level = level
        self._levels: dict[str, int] = {}
        self._told: dict[str, _Told] = {}
        self._heard: dict[str, _Heard] = {}
        self._laid: dict[int, frozenset[str]] = {}
        """Groups that this node leads and lets rest, with the other members."""
        self._resting_by: dict[int, str] = {}
        """Groups that rest here on a peer's word."""
        self._due: set[str] = set()

    def is_resting(self, group: int) -> bool:
        """Whether the group's own time stands still here."""
        return group in self._laid or group in self._resting_by

    def note_level(self, peer: str, level: int) -> None:
        """What a peer speaks."""
        self._levels[peer] = level

    def lay(self, group: int, term: int, index: int, others: Iterable[str]) -> None:
        """Let a group that this node leads rest, if all other members understand it and are heard."""
        others = frozenset(others)
        if self.level < RESTING_LEVEL or group in self._laid:
            return
        for peer in others:
            heard = self._heard.get(peer)
            if self._levels.get(peer, 1) < RESTING_LEVEL:
                return
            if heard is not None and heard.silent_ticks > SILENT_TICKS_MAX:
                return
        self._laid[group] = others
        for peer in others:
            self._told.setdefault(peer, _Told()).change(group, (term, index))
            self._heard.setdefault(peer, _Heard())

    def rouse(self, group: int) -> None:
        """Something happens in a group, or it is gone: it does not rest any more."""
        peer = self._resting_by.pop(group, None)
        if peer is not None:
            self._heard[peer].accepted.discard(group)
        for name in self._laid.pop(group, ()):
            self._told[name].change(group, None)

    def tick(self, *, hangs: bool) -> list[int]:
        """One tick. Returns the groups that wake, as a node that they rest on is silent.

        `hangs`: this node's disk does not answer, so it gives no sign of life for what it leads.
        """
        woken: set[int] = set()
        for peer, heard in self._heard.items():
            heard.silent_ticks += 1
            if heard.silent_ticks > SILENT_TICKS_MAX:
                # reachable: a node that rested on another finds it silent
                woken |= heard.accepted
                woken.update(group for group, others in self._laid.items() if peer in others)
        if hangs:
            # reachable: a hanging disk wakes what rests
            woken |= self._laid.keys()
        else:
            self._due |= self._told.keys() | self._heard.keys()
        return sorted(woken)

    def take_beats(self) -> dict[str, Beat]:
        """What is to be told to whom, once a tick."""
        due, self._due = self._due, set()
        return {peer: self._beat(peer) for peer in due}

    def _beat(self, peer: str) -> Beat:
        told = self._told.setdefault(peer, _Told())
        heard = self._heard.get(peer) or _Heard()
        groups = sorted({group for _, group in told.changes} if told.acknowledged else told.resting)
        return Beat(
            life=self.life,
            generation=told.generation,
            base=told.acknowledged,
            resting=[(group, *told.resting[group]) for group in groups if group in told.resting],
            awake=[group for group in groups if group not in told.resting],
            known_life=heard.life,
            known_generation=heard.generation,
        )

    def on_beat(self, peer: str, beat: Beat, can_rest: Callable[[str, int, int, int], bool]) -> list[int]:
        """A peer's sign of life. Returns the groups that wake.

        `can_rest` (peer, group, term, index) says whether this node's replica is where the leader believes it to be.
        """
        told = self._told.setdefault(peer, _Told())
        # A peer that started anew, or never knew this life, is told everything.
        told.acknowledge(beat.known_generation if beat.known_life == self.life else 0)
        heard = self._heard.setdefault(peer, _Heard())
        heard.silent_ticks = 0
        woken: set[int] = set()
        if beat.life != heard.life:
            woken |= heard.accepted
            # It knows no leader any more, and may have lost what it had: nobody but the leader can find out.
            woken.update(group for group, others in self._laid.items() if peer in others)
            heard.life, heard.generation, heard.resting, heard.accepted = beat.life, 0, {}, set()
        if not (beat.base <= heard.generation <= beat.generation):
            # reachable: a beat is overtaken
            return sorted(woken)  # overtaken on the way, or a piece is missing: what follows will do
        # What changed since `base` travels as it is now, so it does not matter how much of it was known.
        resting = dict(heard.resting) if beat.base else {}
        for group in beat.awake:
            resting.pop(group, None)
        resting.update((group, (term, index)) for group, term, index in beat.resting)
        heard.generation = beat.generation
        heard.resting = resting
        woken |= heard.accepted - resting.keys()
        for group, place in resting.items():
            if group not in heard.accepted and group not in self._laid and can_rest(peer, group, *place):
                # reachable: a group rests on its leader's word
                self._resting_by[group] = peer
                heard.accepted.add(group)
        return sorted(woken)
