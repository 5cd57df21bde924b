"""What goes wrong in a run, drawn from its seed.

For: the cluster, which starts it with the run and stops it before the end. Must not know: what the nodes do about it.
The one idea: each class of faults is off in half of the seeds and draws from a generator of its own, so that runs
differ in which faults meet, and a class can be left out of a failing run with the others as they were.

Damage to what a disk has promised is only done to a minority of each group: no log survives more.
"""

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from random import Random
from typing import Any, Final

from logd.raft.configuration import InvalidChange, change_of
from logd.raft.types import ChangeKind, ChangeStep, ConfigurationChange, Transition
from logd.store.journal import find_heads, is_begun, journal_numbers
from tests.sim.chance import chance_of
from tests.sim.clock import MILLISECOND, SECOND
from tests.sim.network import Conditions
from tests.sim.node import DIRECTORY, Life, Machine, World, read_log
from tests.sim.reachable import reachable
from tests.sim.workload import Workload
from tests.support.fake_files import SECTOR_BYTES, FakeFileSystem
from wire.errors import CorruptBatch

CLASSES: Final = (
    "loss",
    "duplication",
    "replay",
    "delay",
    "reordering",
    "partition",
    "crash",
    "torn-write",
    "bit-flip",
    "misdirection",
    "read-error",
    "write-error",
    "disk-full",
    "slow-disk",
    "clock-drift",
    "clock-jump",
    "pause",
    "wipe",
    "membership",
    "transfer",
    "upgrade",
)
"""All classes of faults there are."""

LOSS_MAX: Final = 0.3
REPEAT_MAX: Final = 0.5
DRIFT_MAX: Final = 0.1
# Of the seeds in which clocks jump: the others hold idempotence to its word.
FAR_JUMPS_SHARE: Final = 0.25
OLD_LEVEL: Final = 1
NEW_LEVEL: Final = 2
REPAIR_CHECK_US: Final = 2 * SECOND
STORM_US_MIN: Final = 8 * SECOND
STORM_US_MAX: Final = 25 * SECOND
CALM_US_MIN: Final = 2 * SECOND
CALM_US_MAX: Final = 6 * SECOND
FIRST_US_MIN: Final = SECOND // 2
FIRST_US_MAX: Final = 8 * SECOND
RETRY_US: Final = SECOND


def drawn_classes(seed: int) -> tuple[str, ...]:
    """The classes that are on for a seed: each in half of them."""
    return tuple(name for name in CLASSES if chance_of(seed, f"class {name}").random() < 0.5)


class Faults:
    """The faults of one run.

    Arguments: `classes`, those that are on; `fired` counts what each of them did.
    """

    def __init__(
        self, seed: int, world: World, machines: Sequence[Machine], workload: Workload, classes: Iterable[str]
    ) -> None:
        self.world = world
        self.machines = list(machines)
        self.workload = workload
        self.classes = tuple(classes)
        self.fired: dict[str, int] = dict.fromkeys(self.classes, 0)
        self.is_over = False
        self.is_calm = False
        self._stormy = world.network.conditions
        self._weather = chance_of(seed, "weather")
        self._has_far_jumps = chance_of(seed, "far jumps").random() < FAR_JUMPS_SHARE
        # Insertion keeps the order; values mean nothing.
        self.members_ever: dict[int, dict[str, None]] = {
            group: dict.fromkeys(place.voters) for group, place in sorted(world.placements.items())
        }
        self._chances = {name: chance_of(seed, f"fault {name}") for name in self.classes}
        self._partitions: list[list[tuple[str, str]]] = []
        self._starters: dict[str, Callable[[Random], None]] = {
            "loss": self._start_loss,
            "duplication": self._start_duplication,
            "replay": self._start_replay,
            "delay": self._start_delay,
            "reordering": self._start_reordering,
            "clock-drift": self._start_drift,
            "upgrade": self._start_upgrade,
        }
        # What happens again and again, and how long it is between two of them on average.
        self._events: dict[str, tuple[Callable[[Random], bool], int]] = {
            "partition": (self._partition, 8 * SECOND),
            "crash": (self._crash, 7 * SECOND),
            "torn-write": (self._crash_in_a_call, 7 * SECOND),
            "bit-flip": (self._flip, 12 * SECOND),
            "misdirection": (self._misdirect, 15 * SECOND),
            "read-error": (self._read_error, 8 * SECOND),
            "write-error": (self._write_error, 12 * SECOND),
            "disk-full": (self._fill, 15 * SECOND),
            "slow-disk": (self._slow, 10 * SECOND),
            "clock-jump": (self._jump, 10 * SECOND),
            "pause": (self._pause, 7 * SECOND),
            "wipe": (self._wipe, 20 * SECOND),
            "membership": (self._change_membership, 6 * SECOND),
            "transfer": (self._transfer, 6 * SECOND),
            "upgrade": (self._upgrade, 5 * SECOND),
        }

    def start(self) -> None:
        """Begin with everything that is on."""
        self.world.clock.after(REPAIR_CHECK_US, self._look_for_repairs)
        self.world.clock.after(self._weather.randrange(STORM_US_MIN, STORM_US_MAX), self._calm_down)
        for name in self.classes:
            chance = self._chances[name]
            if name in self._starters:
                self._starters[name](chance)
            if name in self._events:
                self._schedule(name, chance.randrange(FIRST_US_MIN, FIRST_US_MAX))

    def stop(self) -> None:
        """Take everything back: whole network, free and quick disks, true clocks, every machine up."""
        self.is_over = True
        self.world.network.heal()
        self.workload.conditions.loss = 0.0
        for machine in self.machines:
            machine.files.heal()
            machine.files.capacity_bytes = None
            machine.disk_conditions.slow_us = 0
            machine.clock_conditions.rate = 1.0
            machine.is_held = False
            machine.resume()
            if machine.life is None:
                machine.start_later()

    def counts(self) -> dict[str, int]:
        """How often each class did something."""
        network = self.world.network
        of_network = {
            "loss": network.lost,
            "duplication": network.duplicated,
            "replay": network.replayed,
            "delay": network.slowed,
            "reordering": network.reordered,
        }
        return {name: of_network.get(name, count) for name, count in self.fired.items()}

    def _calm_down(self) -> None:
        """A while without new faults, so that there is progress for the next ones to attack."""
        if self.is_over:
            return
        self.is_calm = True
        network = self.world.network
        self._stormy, network.conditions = network.conditions, Conditions()
        self.world.clock.after(self._weather.randrange(CALM_US_MIN, CALM_US_MAX), self._begin_storm)

    def _begin_storm(self) -> None:
        if self.is_over:
            return
        self.is_calm = False
        self.world.network.conditions = self._stormy
        self.world.clock.after(self._weather.randrange(STORM_US_MIN, STORM_US_MAX), self._calm_down)

    def _schedule(self, name: str, delay_us: int) -> None:
        self.world.clock.after(delay_us, self._happen, name)

    def _happen(self, name: str) -> None:
        if self.is_over:
            return
        if self.is_calm:
            self._schedule(name, RETRY_US)
            return
        chance = self._chances[name]
        action, interval_us = self._events[name]
        self.world.trace.line(f"{self.world.clock.now} fault {name}")
        if action(chance):
            self.fired[name] += 1
            self._schedule(name, int(chance.expovariate(1.0) * interval_us) + FIRST_US_MIN)
        else:
            # It may not happen now, as when a minority is damaged already.
            self._schedule(name, RETRY_US)

    def _any(self, chance: Random) -> Machine:
        return self.machines[chance.randrange(len(self.machines))]

    def _up(self, chance: Random) -> Machine | None:
        up = [machine for machine in self.machines if machine.life is not None and not machine.is_paused]
        return up[chance.randrange(len(up))] if up else None

    # --- The network --------------------------------------------------------------------------------------------------

    def _start_loss(self, chance: Random) -> None:
        self.world.network.conditions.loss = chance.random() * LOSS_MAX
        self.workload.conditions.loss = self.world.network.conditions.loss / 2

    def _start_duplication(self, chance: Random) -> None:
        self.world.network.conditions.duplication = chance.random() * REPEAT_MAX

    def _start_replay(self, chance: Random) -> None:
        self.world.network.conditions.replay = chance.random() * REPEAT_MAX

    def _start_delay(self, chance: Random) -> None:
        conditions = self.world.network.conditions
        conditions.slow = chance.random() * 0.3
        conditions.slow_us_max = chance.randrange(10 * MILLISECOND, 500 * MILLISECOND)

    def _start_reordering(self, chance: Random) -> None:
        self.world.network.conditions.reordering = chance.random() * REPEAT_MAX

    def _partition(self, chance: Random) -> bool:
        """Cut the cluster in some way for some time: one node, halves, a bridge, one way, and so on."""
        names = [machine.name for machine in self.machines]
        chance.shuffle(names)
        shape = chance.choice(("isolate", "halves", "one-way in", "one-way out", "bridge", "link", "one-way link"))
        first = names[0]
        others = names[1:]
        pairs: list[tuple[str, str]] = []
        if shape in ("isolate", "one-way in"):
            pairs += [(other, first) for other in others]
        if shape in ("isolate", "one-way out"):
            pairs += [(first, other) for other in others]
        if shape == "halves":
            cut = 1 + chance.randrange(len(names) - 1)
            pairs = [pair for a in names[:cut] for b in names[cut:] for pair in ((a, b), (b, a))]
        if shape == "bridge":
            # Everybody sees the first one; the rest is in two parts.
            cut = 1 + chance.randrange(max(1, len(others) - 1))
            pairs = [pair for a in others[:cut] for b in others[cut:] for pair in ((a, b), (b, a))]
        if shape in ("link", "one-way link") and others:
            pairs = [(first, others[0])] + ([(others[0], first)] if shape == "link" else [])
        if not pairs:
            return False
        self.world.trace.line(f"{self.world.clock.now} partition {shape}")
        self.world.network.block(pairs)
        self.world.clock.after(chance.randrange(200 * MILLISECOND, 10 * SECOND), self._heal_partition, pairs)
        return True

    def _heal_partition(self, pairs: list[tuple[str, str]]) -> None:
        if not self.is_over:
            self.world.network.unblock(pairs)

    # --- Processes ----------------------------------------------------------------------------------------------------

    def _crash(self, chance: Random) -> bool:
        """Power cuts and kills, of one, some or all machines at once."""
        count = chance.choice((1, 1, 1, 1, 2, len(self.machines)))
        victims = list(self.machines)
        chance.shuffle(victims)
        done = False
        for machine in victims[:count]:
            if machine.life is None:
                continue
            if chance.random() < 0.6:
                machine.power_cut()
            else:
                machine.kill()
            done = True
        return done

    def _crash_in_a_call(self, chance: Random) -> bool:
        """Let the power go in place of one of the next system calls, perhaps in the middle of a write."""
        machine = self._any(chance)
        calls = len(machine.files.calls)
        machine.files.crash_at(calls + 1 + chance.randrange(60), torn=chance if chance.random() < 0.7 else None)
        return True

    def _pause(self, chance: Random) -> bool:
        machine = self._up(chance)
        if machine is None:
            return False
        machine.pause()
        self.world.clock.after(int(chance.expovariate(1.0) * 2 * SECOND), self._resume, machine, machine.lives)
        return True

    def _resume(self, machine: Machine, life: int) -> None:
        if machine.lives == life:
            machine.resume()

    # --- Clocks -------------------------------------------------------------------------------------------------------

    def _start_drift(self, chance: Random) -> None:
        for machine in self.machines:
            machine.clock_conditions.rate = 1.0 + (chance.random() * 2 - 1) * DRIFT_MAX
        self.fired["clock-drift"] = 1

    def _jump(self, chance: Random) -> bool:
        hours = chance.choice((-24, -1, 1, 12))
        if self._has_far_jumps and chance.random() < 0.3:
            # A process that starts with such a clock believes it. Where two clocks are further apart than producers are
            # remembered, whoever is ahead forgets producers that it takes for old: what they send again is then new, if
            # it is their first batch.
            reachable("clocks that are further apart than producers are remembered")
            self.workload.may_forget_producers = self.world.invariants.may_forget_producers = True
            hours = chance.choice((-30 * 24, 400 * 24))
        self._any(chance).clock_conditions.wall_jump_ms += hours * 3600 * 1000
        return True

    # --- Disks --------------------------------------------------------------------------------------------------------

    def _slow(self, chance: Random) -> bool:
        machine = self._any(chance)
        machine.disk_conditions.slow_us = chance.choice((20, 100, 500, 2000, 8000)) * MILLISECOND
        self.world.clock.after(chance.randrange(SECOND, 8 * SECOND), self._make_quick, machine)
        return True

    def _make_quick(self, machine: Machine) -> None:
        machine.disk_conditions.slow_us = 0

    def _fill(self, chance: Random) -> bool:
        """Leave little or no space for some time."""
        machine = self._any(chance)
        files = machine.files
        files.capacity_bytes = files.used_bytes() + chance.choice((0, 0, 4096, 16384, 65536, 100_000))
        self.world.clock.after(chance.randrange(SECOND, 8 * SECOND), self._make_room, machine)
        return True

    def _make_room(self, machine: Machine) -> None:
        machine.files.capacity_bytes = None

    def _read_error(self, chance: Random) -> bool:
        machine = self._any(chance)
        pattern = chance.choice(("*.log", "*.index", "*.start", "*/journal/*"))
        machine.files.fail("pread", pattern, 1 + chance.randrange(10), errno.EIO, times=1 + chance.randrange(3))
        return True

    def _write_error(self, chance: Random) -> bool:
        machine = self._any(chance)
        operation = chance.choice(("pwritev", "sync", "sync", "sync_directory", "unlink", "allocate"))
        pattern = chance.choice(("*.log", "*/journal/*", "*.start", "*"))
        failure = machine.files.fail(operation, pattern, 1 + chance.randrange(10), errno.EIO)
        if operation == "sync_directory":
            machine.directory_failures.append(failure)
        return True

    # --- What takes promises away -------------------------------------------------------------------------------------

    def _may_damage(self, machine: Machine) -> bool:
        """Whether what this machine promised may be lost: only on a minority of each group's voters."""
        invariants = self.world.invariants
        if "membership" in self.classes and any(other.life is None for other in self.machines if other is not machine):
            # Who is down may hold a change that nobody else knows of, and that it takes a majority of others to end.
            return False
        is_member = False
        for group in sorted(self.world.placements):
            for names in self._majorities(group):
                if machine.name not in names:
                    continue
                is_member = True
                impaired = {name for name in names if not invariants.is_counting(name, group)} | {machine.name}
                if len(impaired) > (len(names) - 1) // 2:
                    return False
        return is_member

    def _majorities(self, group: int) -> Iterator[frozenset[str]]:
        """Of whom a majority is needed: now, and once what is in some log, and applied nowhere, is applied."""
        known = self.world.invariants.groups[group].configuration
        yield known.voters if known is not None else frozenset(self.world.placements[group].voters)
        if known is not None and known.voters_outgoing:
            yield known.voters_outgoing
        for machine in self.machines:
            if machine.life is None or not machine.life.driver.knows(group):
                continue
            core = machine.life.driver.core(group)
            configuration = core.configuration
            if self.world.invariants.is_counting(machine.name, group):
                # It may not have heard that a change is committed, and asks those that it knows.
                yield configuration.voters
                if configuration.voters_outgoing:
                    yield configuration.voters_outgoing
            for entry in core.log.entries[core.applied - core.log.base.index :]:
                if entry.change is not None:
                    try:
                        configuration = change_of(configuration, entry.change)
                    except InvalidChange:
                        break  # of a log that is not the group's
                    yield configuration.voters
                    if configuration.voters_outgoing:
                        yield configuration.voters_outgoing

    def _look_for_repairs(self) -> None:
        """Find out which damaged replicas are whole again, so that others may be damaged."""
        self.world.clock.after(REPAIR_CHECK_US, self._look_for_repairs)
        replicas = self.world.invariants.replicas
        for machine in self.machines:
            life = machine.life
            if life is None or machine.is_paused:
                continue
            for group, replica in replicas[machine.name].items():
                if replica.is_impaired and self._is_whole(life, group, replica.impaired_until):
                    self.world.invariants.on_repaired(machine.name, group)
                    self.world.trace.line(f"{self.world.clock.now} {machine.name} repaired {group}")

    def _is_whole(self, life: Life, group: int, index: int) -> bool:
        log = life.store.groups.get(group)
        if log is None or not life.driver.knows(group):
            # Nothing is here, and nothing was promised for nothing.
            return log is None and not index
        core = life.driver.core(group)
        is_known = log.floor is None and not log.damage and log.is_start_readable and log.hard_state is not None
        if not is_known or core.admission or core.is_damaged or log.written.index < index:
            return False
        try:
            read_log(log, log.start.index + 1)
        except (CorruptBatch, OSError):
            return False
        return True

    def _damage(self, chance: Random) -> tuple[Machine, str, int] | None:
        """A machine and a place on its disk that may be damaged; the process is down, and starts on it."""
        machine = self._any(chance)
        if machine.life is None or not self._may_damage(machine):
            return None
        sizes = machine.files.tree(DIRECTORY)
        kinds = chance.choice((("/journal/",), (".log",), (".start", ".index"), ("/journal/", ".log")))
        paths = [path for path, size in sizes.items() if size and any(kind in path for kind in kinds)]
        if not paths:
            return None
        journal_id = machine.life.store.journal_id
        machine.stop()
        machine.power_cut(restarts=False)
        path = paths[chance.randrange(len(paths))]
        size = machine.files.tree(DIRECTORY).get(path)
        if "/journal/" in path:
            size = min(size or 0, _detectable_bytes(machine.files, path, journal_id))
        machine.start_later()
        if not size:
            return None
        machine.had_damage = True
        self.world.invariants.on_damaged(machine.name)
        return machine, path, size

    def _flip(self, chance: Random) -> bool:
        """A bit that rots while the machine is down."""
        found = self._damage(chance)
        if found is None:
            return False
        machine, path, size = found
        # What is written stands at the front of pre-zeroed files.
        position = chance.randrange(size) if chance.random() < 0.3 else chance.randrange(min(size, 32_768))
        machine.files.flip_bit(path, position, chance.randrange(8))
        machine.trace(f"flip {path} {position}")
        reachable("a bit is flipped")
        return True

    def _misdirect(self, chance: Random) -> bool:
        """A write that went to the wrong place: some sectors hold what belongs into others."""
        found = self._damage(chance)
        if found is None:
            return False
        machine, path, size = found
        sectors = size // SECTOR_BYTES
        if sectors < 2:
            return True
        source, target = chance.randrange(min(sectors, 64)), chance.randrange(min(sectors, 64))
        content = machine.files.contents(path)
        length = min(SECTOR_BYTES * (1 + chance.randrange(8)), size - max(source, target) * SECTOR_BYTES)
        machine.files.overwrite(
            path, target * SECTOR_BYTES, content[source * SECTOR_BYTES : source * SECTOR_BYTES + length]
        )
        machine.trace(f"misdirect {path} {source} {target} {length}")
        reachable("a write went to the wrong place")
        return True

    def _wipe(self, chance: Random) -> bool:
        """A machine comes back with an empty disk."""
        machine = self._any(chance)
        if machine.life is None or not self._may_damage(machine):
            return False
        machine.stop()
        machine.wipe()
        machine.start_later()
        return True

    # --- What operators do --------------------------------------------------------------------------------------------

    def _start_upgrade(self, _: Random) -> None:
        """Every machine begins with software that speaks less."""
        for machine in self.machines:
            machine.feature_level = OLD_LEVEL

    def _upgrade(self, chance: Random) -> bool:
        """Start a machine anew with newer software; sometimes with older, as when a roll is taken back."""
        machine = self._up(chance)
        if machine is None:
            return False
        machine.feature_level = NEW_LEVEL if machine.feature_level == OLD_LEVEL or chance.random() < 0.8 else OLD_LEVEL
        machine.trace(f"level {machine.feature_level}")
        machine.kill()
        return True

    def _change_membership(self, chance: Random) -> bool:
        """Want other voters, and let leaders see to it; or change them in one joint step, or back and forth."""
        group = chance.choice(sorted(self.world.placements))
        names = [machine.name for machine in self.machines]
        wanted = sorted(self.world.wanted[group])
        outside = [name for name in names if name not in wanted]
        shapes = (["replace", "grow"] if outside else []) + (["shrink"] if len(wanted) > 3 else [])
        if not shapes:
            return False
        shape = chance.choice(shapes)
        if shape in ("replace", "shrink"):
            wanted.remove(chance.choice(wanted))
        if shape in ("replace", "grow"):
            wanted.append(chance.choice(outside))
        before, self.world.wanted[group] = self.world.wanted[group], frozenset(wanted)
        self.world.trace.line(f"{self.world.clock.now} want {group} {','.join(sorted(wanted))}")
        for machine in self.machines:
            if machine.life is None:
                continue
            life = machine.life
            if machine.name in wanted:
                life.enter(partial(life.create_group, was_here=machine.name in self.members_ever[group]), group)
            life.enter(life.want_voters, group, frozenset(wanted))
        self.members_ever[group].update(dict.fromkeys(wanted))
        if chance.random() < 0.5:
            # New nodes are to be learners first, which takes the leader a tick or more.
            delay = chance.randrange(100 * MILLISECOND, SECOND)
            self.world.clock.after(delay, self._change_at_once, group, before, frozenset(wanted), chance)
        return True

    def _change_at_once(self, group: int, before: frozenset[str], wanted: frozenset[str], chance: Random) -> None:
        """Ask whoever leads for one change, joint if it has several steps. A configuration that stays joint is left."""
        steps = [ChangeStep(ChangeKind.ADD_VOTER, name) for name in sorted(wanted - before)]
        steps += [ChangeStep(ChangeKind.REMOVE, name) for name in sorted(before - wanted)]
        transition = chance.choice((Transition.AUTO, Transition.IMPLICIT, Transition.EXPLICIT))
        change = ConfigurationChange(tuple(steps), transition)
        self._ask_leaders(group, change)
        if transition is Transition.EXPLICIT:
            self.world.clock.after(chance.randrange(SECOND, 5 * SECOND), self._leave_joint, group)

    def _leave_joint(self, group: int) -> None:
        """Again and again, until somebody has left it: an operator would as well."""
        configuration = self.world.invariants.groups[group].configuration
        if configuration is not None and configuration.is_joint:
            reachable("an explicit joint configuration is left")
            self._ask_leaders(group, ConfigurationChange())
            self.world.clock.after(SECOND, self._leave_joint, group)

    def _ask_leaders(self, group: int, change: ConfigurationChange) -> None:
        for machine in self.machines:
            life = machine.life
            if life is not None and life.driver.is_leader(group):
                life.enter(life.change_membership, group, change, _ignore)

    def _transfer(self, chance: Random) -> bool:
        """Ask a leader to hand over to some other voter."""
        group = chance.choice(sorted(self.world.placements))
        for machine in self.machines:
            life = machine.life
            if life is None or machine.is_paused or not life.driver.is_leader(group):
                continue
            voters = self.world.invariants.voters(group, self.world.placements[group].voters)
            life.enter(life.transfer, group, chance.choice(voters))
            return True
        return False


def _ignore(_: Any) -> None:
    """An operator who does not wait for the answer."""


def _detectable_bytes(files: FakeFileSystem, path: str, journal_id: bytes) -> int:
    """How much of a journal file may be damaged so that recovery can tell: all of it if a later one is begun.

    The last round of all looks torn when it is damaged, and nothing behind it says otherwise: what it promised is lost
    without a word. No log that ends somewhere can do better, so this is not asked of it.
    """
    directory, _, name = path.rpartition("/")
    for number in reversed(journal_numbers(files.listdir(directory))):
        later = files.open(f"{directory}/{number:020}", writable=False)
        try:
            if number > int(name) and is_begun(later, journal_id, number):
                return later.size()
            if number == int(name):
                return max((head.position for head in find_heads(later, journal_id, number, 0)), default=0)
        finally:
            later.close()
    return 0
