"""One run: a cluster made from a seed, its life under faults, and what must be true of it at the end.

For: the command line, the shrinker and the tests. Must not know: how a run is reported. The one idea: a run is a
function of its options; whatever happens in it follows from the seed and from what is left out, so that its options
are all that is needed to see it again.
"""

import gc
import traceback
from dataclasses import dataclass, field, replace
from typing import Final, TextIO

from logd.raft.types import GroupOptions
from logd.replica.types import DriverOptions
from tests.sim.chance import chance_of
from tests.sim.clock import SECOND, Clock
from tests.sim.faults import CLASSES, Faults, drawn_classes
from tests.sim.invariants import Invariants, Violation
from tests.sim.network import Network
from tests.sim.node import KIB, Life, Machine, Placement, World, read_log
from tests.sim.reachable import reachable
from tests.sim.trace import Trace
from tests.sim.workload import Workload
from wire.errors import CorruptBatch

ELECTION_TIMEOUT_US: Final = 1 * SECOND
# "Faults off on a quorum: must commit a new record within 10 election timeouts and converge": C.12.
LIVENESS_US: Final = 10 * ELECTION_TIMEOUT_US
# What comes on top: restarts take up to 2 s, and a replica that lost its log gets it again batch by batch.
REPAIR_US: Final = 20 * ELECTION_TIMEOUT_US
CONVERGENCE_US: Final = 30 * ELECTION_TIMEOUT_US
POLL_US: Final = SECOND // 4
BATCHES_PER_SECOND: Final = 30.0
GARBAGE_EVERY_US: Final = 20 * SECOND


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is made from. None: drawn from the seed."""

    seed: int
    seconds: float = 60.0
    """Simulated, with faults; healing comes on top."""
    nodes: int | None = None
    groups: int | None = None
    classes: tuple[str, ...] | None = None
    """The classes of faults that are on."""
    steps: int | None = None
    """How many events may happen; then the run ends there, unjudged."""

    def drawn(self) -> "Options":
        """The same with everything that the seed decides."""
        chance = chance_of(self.seed, "shape")
        nodes, groups = chance.choice((3, 3, 3, 4, 5, 5, 7)), 1 + chance.randrange(4)
        classes = drawn_classes(self.seed) if self.classes is None else self.classes
        return replace(self, nodes=self.nodes or nodes, groups=self.groups or groups, classes=classes)

    def command(self) -> str:
        """The one line that replays it."""
        words = [f"python -m tests.sim --seed {self.seed}"]
        if self.seconds != 60.0:
            words.append(f"--seconds {self.seconds:g}")
        if self.nodes is not None:
            words.append(f"--nodes {self.nodes}")
        if self.groups is not None:
            words.append(f"--groups {self.groups}")
        if self.classes is not None:
            words.append(f"--faults {','.join(self.classes) or 'none'}")
        if self.steps is not None:
            words.append(f"--steps {self.steps}")
        return " ".join(words)


@dataclass(slots=True)
class Result:
    """What a run came to."""

    options: Options
    digest: str = ""
    simulated_us: int = 0
    events: int = 0
    commits: int = 0
    elections: int = 0
    acknowledged: int = 0
    reads: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    failure: str = ""
    """Why it failed, in one line; empty if it did not."""
    where: str = ""
    """The traceback and the last lines of the trace."""
    is_complete: bool = False
    """False: it ended after `steps` events, unjudged."""

    @property
    def vacuous(self) -> list[str]:
        """What a run must have seen to count, and this one has not."""
        missing = [name for name, count in (("commit", self.commits), ("election", self.elections)) if not count]
        return missing + [name for name, count in self.faults.items() if not count]


class Cluster:
    """The parts of one run, put together."""

    def __init__(self, options: Options, out: TextIO | None = None) -> None:
        self.options = options = options.drawn()
        seed = options.seed
        assert options.nodes is not None
        assert options.groups is not None
        assert options.classes is not None
        self.clock = Clock()
        self.trace = Trace(out)
        names = [f"n{number + 1}" for number in range(options.nodes)]
        self.placements = self._place(names, options.groups)
        self.invariants = Invariants({group: place.voters for group, place in self.placements.items()}, names)
        self.network = Network(self.clock, chance_of(seed, "network"), self.trace)
        retention_bytes = chance_of(seed, "retention").choice((None, 24 * KIB, 64 * KIB))
        # Often so little memory that a follower a little behind has to be served from the disk.
        window_bytes = chance_of(seed, "window").choice((4 * KIB, 32 * KIB, 4096 * KIB))
        driver_options = DriverOptions(raft=GroupOptions(window_bytes_max=window_bytes))
        self.world = World(
            self.clock, self.network, self.trace, self.invariants, self.placements, retention_bytes, driver_options
        )
        self.world.gathers_frames = chance_of(seed, "gather").random() < 0.5
        self.world.wanted = {group: frozenset(place.voters) for group, place in self.placements.items()}
        self.machines = [self._machine(name) for name in names]
        self.world.machines = {machine.name: machine for machine in self.machines}
        self.workload = Workload(self.world, self.machines, chance_of(seed, "workload"), BATCHES_PER_SECOND)
        self.faults = Faults(seed, self.world, self.machines, self.workload, options.classes)
        self.trace.line(f"nodes {options.nodes} groups {options.groups} faults {','.join(options.classes)}")

    def _place(self, names: list[str], groups: int) -> dict[int, Placement]:
        chance = chance_of(self.options.seed, "placement")
        placements = {}
        for group in range(1, groups + 1):
            members = list(names)
            chance.shuffle(members)
            replicas = min(len(names), chance.choice((3, 3, 5)))
            placements[group] = Placement(group, tuple(sorted(members[:replicas])))
        return placements

    def _machine(self, name: str) -> Machine:
        seed = self.options.seed
        machine = Machine(
            name,
            self.world,
            chance_of(seed, f"disk {name}"),
            chance_of(seed, f"crash {name}"),
            lambda life: chance_of(seed, f"driver {name} {life}"),
        )
        self.network.attach(name, machine.on_frame)
        return machine

    # --- The run ------------------------------------------------------------------------------------------------------

    def run(self) -> Result:
        """From the first start to the verdict. A failure is in the result."""
        result = Result(self.options)
        try:
            result.is_complete = self._run()
        except Exception as error:  # noqa: BLE001  # whatever escapes is what the simulator is looking for
            result.failure = f"{type(error).__name__}: {error}".split("\n")[0]
            recent = "\n".join(self.trace.recent)
            result.where = f"{traceback.format_exc()}\nThe last events:\n{recent}"
        result.digest = self.trace.digest()
        result.simulated_us = self.clock.now
        result.events = self.clock.events
        result.commits = self.invariants.commits
        result.elections = self.invariants.elections
        result.acknowledged = self.workload.acknowledged
        result.reads = self.workload.reads
        result.faults = self.faults.counts()
        return result

    def _run(self) -> bool:
        for machine in self.machines:
            machine.bootstrap([place for _, place in sorted(self.placements.items()) if machine.name in place.voters])
        for machine in self.machines:
            machine.start()
        self.workload.start()
        self.faults.start()
        if not self._advance(int(self.options.seconds * SECOND)):
            return False
        return self._finish()

    def _advance(self, duration_us: int) -> bool:
        """Let time pass; false if the events are used up. The collector is not let in by itself: it costs a tenth."""
        end = self.clock.now + duration_us
        while self.clock.now < end:
            if not self.clock.run_until(min(end, self.clock.now + GARBAGE_EVERY_US), self.options.steps):
                return False
            gc.collect(1)
        return True

    def _finish(self) -> bool:
        """Heal: every group must commit something new, and all its replicas become equal."""
        self.trace.line(f"{self.clock.now} heal")
        self.faults.stop()
        self.workload.is_hurried = True
        marks = {group: truth.next_offset for group, truth in self.invariants.groups.items()}
        deadline = self.clock.now + LIVENESS_US + REPAIR_US
        while waiting := [group for group, mark in marks.items() if self.invariants.groups[group].next_offset <= mark]:
            if self.clock.now >= deadline:
                raise Violation(f"groups {waiting} commit nothing new after everything was healed: {self._states()}")
            if not self._advance(POLL_US):
                return False
        self.workload.stop()
        deadline = self.clock.now + CONVERGENCE_US
        while problem := self._difference():
            if self.clock.now >= deadline:
                raise Violation(f"no convergence after everything was healed: {problem}: {self._states()}")
            if not self._advance(POLL_US):
                return False
        self._compare_bytes()
        return True

    def _states(self) -> str:
        return " ".join(f"{machine.name}:{'up' if machine.life else 'down'}" for machine in self.machines)

    def _lives(self, group: int) -> list[Life]:
        names = self.invariants.voters(group, self.placements[group].voters)
        return [machine.life for machine in self.machines if machine.name in names and machine.life is not None]

    def _difference(self) -> str:
        """What keeps the replicas of some group from being equal; empty if nothing does."""
        if not self.workload.is_idle:
            return "a batch is not acknowledged"
        for group, truth in self.invariants.groups.items():
            names = self.invariants.voters(group, self.placements[group].voters)
            lives = self._lives(group)
            if len(lives) < len(names):
                return f"group {group}: only {[life.machine.name for life in lives]} of {names} are up"
            committed = len(truth.committed)
            for life in lives:
                log, replica = life.store.groups.get(group), life.driver._replicas.get(group)
                if log is None or replica is None:
                    return f"group {group} is not on {life.machine.name}"
                if log.written.index != committed or log.end.index != committed:
                    return f"group {group} on {life.machine.name} ends at {log.end.index}, committed is {committed}"
                if replica.raft.commit_index != committed:
                    return f"group {group} on {life.machine.name}: commit {replica.raft.commit_index} of {committed}"
                if replica.raft.applied != committed:
                    return f"group {group} on {life.machine.name}: applied {replica.raft.applied} of {committed}"
                if log.end.chain != truth.committed[-1].chain:
                    raise Violation(f"group {group} on {life.machine.name} ends with another batch than committed")
        return ""

    def _compare_bytes(self) -> None:
        """Every replica serves the same bytes for the same indexes, and remembers the same producers."""
        for group in self.invariants.groups:
            lives = self._lives(group)
            first = max(life.store.groups[group].start.index for life in lives) + 1
            digests = {life.machine.name: self._digest_of(life, group, first) for life in lives}
            known = {digest for digest in digests.values() if digest}
            if len(known) > 1:
                raise Violation(f"group {group}: the replicas hold different bytes: {digests}")
            tables = [life.driver.producers_of(group) for life in lives]
            if any(table != tables[0] for table in tables):
                raise Violation(f"group {group}: the replicas remember different producers")

    def _digest_of(self, life: Life, group: int, first: int) -> str:
        """The SHA-256 of a replica's bytes; empty where it says that it cannot read what was damaged."""
        try:
            return read_log(life.store.groups[group], first).hex()
        except CorruptBatch:
            if not life.machine.had_damage:
                raise
            reachable("latent damage is found at the end")
            return ""


def simulate(options: Options, out: TextIO | None = None) -> Result:
    """One run, from its options to its result."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return Cluster(options, out).run()
    finally:
        gc.collect()
        if was_enabled:
            gc.enable()


__all__ = ["CLASSES", "Cluster", "Options", "Result", "simulate"]
