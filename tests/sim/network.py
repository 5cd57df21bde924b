"""The simulated network: frames as bytes, on links that do to them what the run's faults say.

For: nodes, which send frames to each other, and clients, which send requests. Must not know: what a frame says. The
one idea: a link is a direction between two nodes; it is blocked or not, and every frame on it is lost, doubled,
delayed or remembered for a later replay by chance, so that partitions of any shape are sets of blocked links.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Final
from zlib import crc32

from tests.sim.clock import MILLISECOND, Clock
from tests.sim.reachable import reachable
from tests.sim.trace import Trace

# What a link remembers for replays: some seconds of frames of a busy pair.
FRAMES_REMEMBERED: Final = 64
# A peer's queue in production is bounded, and drops what is beyond.
FRAMES_IN_FLIGHT_MAX: Final = 512
DELAY_US_MIN: Final = 100
DELAY_US_MAX: Final = 600

Deliver = Callable[[str, bytes], None]


@dataclass(slots=True)
class Conditions:
    """What the network does to frames. Shares are of 1; the default is a good network."""

    loss: float = 0.0
    duplication: float = 0.0
    replay: float = 0.0
    slow: float = 0.0
    """The share of frames that take up to `slow_us_max`."""
    slow_us_max: int = 0
    reordering: float = 0.0
    """The share of frames that may overtake the ones before them."""


@dataclass(slots=True)
class _Link:
    """One direction between two nodes."""

    last_arrival: int = 0
    in_flight: int = 0
    blocks: int = 0
    """How many partitions block it; it is open at 0."""


class Network:
    """All links between the nodes of one cluster.

    Arguments: `deliver` of each node is called with the sender's name and the frame.
    """

    def __init__(self, clock: Clock, chance: Random, trace: Trace) -> None:
        self._clock = clock
        self._chance = chance
        self._trace = trace
        self.conditions = Conditions()
        self.lost = self.duplicated = self.replayed = self.slowed = self.reordered = self.blocked = 0
        self.delivered = 0
        self._deliver: dict[str, Deliver] = {}
        self._links: dict[tuple[str, str], _Link] = {}
        self._remembered: dict[tuple[str, str], deque[bytes]] = {}

    def attach(self, node: str, deliver: Deliver) -> None:
        """Let a node receive frames."""
        for other in self._deliver:
            for pair in ((node, other), (other, node)):
                self._links[pair] = _Link()
                self._remembered[pair] = deque(maxlen=FRAMES_REMEMBERED)
        self._deliver[node] = deliver

    # --- Partitions ---------------------------------------------------------------------------------------------------

    def block(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Let nothing through in these directions until `unblock`."""
        for pair in pairs:
            self._links[pair].blocks += 1

    def unblock(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Take one `block` back."""
        for pair in pairs:
            self._links[pair].blocks = max(0, self._links[pair].blocks - 1)

    def heal(self) -> None:
        """A good network from now on; what is under way still arrives."""
        self.conditions = Conditions()
        for link in self._links.values():
            link.blocks = 0

    def is_open(self, source: str, target: str) -> bool:
        """Whether frames pass in this direction."""
        return not self._links[source, target].blocks

    # --- Frames -------------------------------------------------------------------------------------------------------

    def send(self, source: str, target: str, frame: bytes) -> None:
        """Put a frame on its way; whether it arrives is chance."""
        pair = (source, target)
        link = self._links.get(pair)
        if link is None:
            raise AssertionError(f"{source} sends to {target}, which does not exist")
        conditions, chance = self.conditions, self._chance
        if link.blocks or link.in_flight >= FRAMES_IN_FLIGHT_MAX:
            self.blocked += 1
            return
        if conditions.replay:
            remembered = self._remembered[pair]
            if remembered and chance.random() < conditions.replay:
                self.replayed += 1
                self._start(pair, link, remembered[chance.randrange(len(remembered))])
            remembered.append(frame)
        if conditions.loss and chance.random() < conditions.loss:
            self.lost += 1
            return
        self._start(pair, link, frame)
        if conditions.duplication and chance.random() < conditions.duplication:
            self.duplicated += 1
            self._start(pair, link, frame)

    def _start(self, pair: tuple[str, str], link: _Link, frame: bytes) -> None:
        conditions, chance = self.conditions, self._chance
        delay = DELAY_US_MIN + int(chance.random() * (DELAY_US_MAX - DELAY_US_MIN))
        if conditions.slow and chance.random() < conditions.slow:
            self.slowed += 1
            delay += chance.randrange(conditions.slow_us_max)
        arrival = self._clock.now + delay
        if conditions.reordering and chance.random() < conditions.reordering:
            self.reordered += 1
            arrival += chance.randrange(20 * MILLISECOND)
        else:
            # One connection, one order.
            arrival = link.last_arrival = max(arrival, link.last_arrival)
        link.in_flight += 1
        self._clock.after(arrival - self._clock.now, self._arrive, pair, link, frame)

    def _arrive(self, pair: tuple[str, str], link: _Link, frame: bytes) -> None:
        link.in_flight -= 1
        if link.blocks:
            reachable("frame cut off on its way")
            self.blocked += 1
            return
        self.delivered += 1
        source, target = pair
        self._trace.line(f"{self._clock.now} {source}>{target} {len(frame)} {crc32(frame):08x}")
        self._deliver[target](source, frame)
