"""A node of the simulated cluster: a machine with a disk, and the lives of the process on it.

For: the cluster, which feeds it frames and requests, and the faults, which crash, pause and wipe it. Must not know:
what is checked about it, or why it is crashed. The one idea: `Life` is to a simulated node what `logd.node.actor` and
`logd.node.node` are to a real one, in the same order of steps around the same driver and the same store; only threads,
sockets and clocks are events here.
"""

import errno
import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any, Final, Protocol

from logd.meta.state import META_GROUP, MetaState
from logd.raft.types import INITIAL_HARD_STATE, Configuration, ConfigurationChange
from logd.replica.clock import AppendClock, ClockReading
from logd.replica.driver import Driver
from logd.replica.membership import encode_membership
from logd.replica.restore import recover, start_at, state_of_start
from logd.replica.room import Shortage, StoreRoom
from logd.replica.types import DriverOptions, Effect, InstallStart, MoveStart, Proposal, ReadRange
from logd.store.context import StoreOptions
from logd.store.errors import JournalFull, JournalLost, ReadOutdated, StoreRefused
from logd.store.events import Event
from logd.store.format import Start
from logd.store.jobs import Job
from logd.store.log import Log
from logd.store.round import Round, RoundEntry, SetStart
from logd.store.store import Store
from tests.sim.clock import MILLISECOND, SECOND, Clock
from tests.sim.disk import Disk, DiskConditions
from tests.sim.invariants import Invariants
from tests.sim.network import Network
from tests.sim.reachable import reachable
from tests.sim.trace import Trace
from tests.support.fake_files import Failure, FakeFileSystem, SimulatedCrash
from wire.errors import CorruptBatch, DiskFull, OffsetOutOfRange
from wire.record import HEADER_BYTES, BatchHeader, StampedBatch, check_alone, decode_header, first_chain, split_batches
from wire.types import Acks

KIB: Final = 1 << 10
TICK_US: Final = 100 * MILLISECOND
WALL_MS: Final = 1_700_000_000_000
CLUSTER_ID: Final = bytes(range(16))
TOPIC_ID: Final = bytes(range(50, 66))
DIRECTORY: Final = "/data"
# What a process that is stopped finds in its sockets when it goes on: more is lost.
DEFERRED_MAX: Final = 2_000
# Of the daemon: one empty round after this long without one, a look at retention, another try after a full disk.
TICKS_PER_CONFIRM: Final = 5
TICKS_PER_RETRY: Final = 2
TICKS_PER_RETENTION: Final = 20
# Small, so that segments roll and journal files are recycled every few seconds.
STORE_OPTIONS: Final = StoreOptions(
    segment_bytes_max=16 * KIB,
    index_interval_bytes=1 * KIB,
    journal_file_bytes=256 * KIB,
    journal_files_max=6,
    round_bytes_max=64 * KIB,
    disk_reserve_bytes=64 * KIB,
    open_files_max=32,
    allocation_bytes_min=4 * KIB,
    allocation_bytes_max=16 * KIB,
)
RETRY_SECONDS: Final = 0.25
# As long as a busy actor's step may take.
GATHER_US: Final = 2 * MILLISECOND
READ_BYTES: Final = 64 * KIB
BATCHES_PER_RANGE_MIN: Final = 2
RANGE_US_MIN: Final = 100
RANGE_US_MAX: Final = 2 * MILLISECOND


class DiskFailed(Exception):
    """A write or a sync failed: the process promises nothing more, and ends."""


def _check_is_full(error: OSError) -> None:
    """A job may find the disk full; any other failure of the disk ends the process."""
    if error.errno != errno.ENOSPC:
        raise DiskFailed(str(error)) from error


class Replier(Protocol):
    """Whoever waits for an answer of a node."""

    def __call__(self, outcome: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class Placement:
    """A group as it is bootstrapped."""

    group: int
    voters: tuple[str, ...]

    def start(self) -> Start:
        """What stands before its first batch."""
        return Start(
            index=0,
            term=0,
            offset=0,
            chain=first_chain(CLUSTER_ID, TOPIC_ID, self.group),
            append_timestamp=0,
            topic_id=TOPIC_ID,
            partition=self.group,
            membership=encode_membership(Configuration(frozenset(self.voters))),
            producers=b"",
        )


@dataclass(slots=True)
class World:
    """What all nodes of a run share."""

    clock: Clock
    network: Network
    trace: Trace
    invariants: Invariants
    placements: dict[int, Placement]
    retention_bytes: int | None = None
    driver_options: DriverOptions = field(default_factory=DriverOptions)
    machines: dict[str, "Machine"] = field(default_factory=dict)
    gathers_frames: bool = False
    """Whether a process takes what arrives within a moment before it acts, as a busy one does."""
    wanted: dict[int, frozenset[str]] = field(default_factory=dict)
    """Who should vote in each group, as an operator says."""


@dataclass(slots=True)
class _ClockConditions:
    """How a machine's clocks go. The default is a perfect clock."""

    rate: float = 1.0
    """How fast its time passes: 1.1 is 10 % too fast."""
    wall_jump_ms: int = 0


class Machine:
    """A machine: a name, a disk, clocks, and perhaps a process.

    Arguments: `chances`, for what the shell draws and for what a crash leaves, and `driver_chance(life)`, a new
    generator for each life of the process.
    """

    def __init__(
        self,
        name: str,
        world: World,
        disk_chance: Random,
        crash_chance: Random,
        driver_chance: Callable[[int], Random],
    ) -> None:
        self.name = name
        self.world = world
        self.files = FakeFileSystem()
        self.disk_conditions = DiskConditions()
        self.clock_conditions = _ClockConditions()
        self.crash_chance = crash_chance
        self.disk_chance = disk_chance
        self.life: Life | None = None
        self.lives = 0
        self.feature_level = world.driver_options.feature_level
        """Of the software that is started."""
        self.is_paused = False
        self.is_held = False
        """The faults keep it down: nobody else may start it."""
        self.deferred: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self.is_wiped = False
        """It lost its data directory, and has not been started since."""
        self.had_damage = False
        """Something on its disk was changed behind its back, or the disk was lost."""
        self.events: list[Event] = []
        self.directory_failures: list[Failure] = []
        self._driver_chance = driver_chance
        self._starts = 0

    def __repr__(self) -> str:
        return f"<Machine {self.name}>"

    def trace(self, text: str) -> None:
        self.world.trace.line(f"{self.world.clock.now} {self.name} {text}")

    # --- Time ---------------------------------------------------------------------------------------------------------

    def reading(self) -> ClockReading:
        """Both clocks of this machine."""
        conditions = self.clock_conditions
        monotonic_ms = int(self.world.clock.now * conditions.rate) // MILLISECOND
        return ClockReading(WALL_MS + monotonic_ms + conditions.wall_jump_ms, monotonic_ms)

    # --- Up and down --------------------------------------------------------------------------------------------------

    def bootstrap(self, placements: Sequence[Placement]) -> None:
        """Make the data directory, with these groups, empty, as their members find them."""
        store = self.open_store(lambda _: None)
        for placement in placements:
            start = placement.start()
            job = store.create_group(placement.group, start)
            job.run()
            job.apply()
            made = store.prepare_round([SetStart(placement.group, start)])
            made.write()
            made.apply_durable()
            made.settle()
            made.apply_written()
        made = store.empty_round()
        made.write()
        made.apply_durable()
        made.settle()
        made.apply_written()
        store.close()

    def open_store(self, producers_of: Callable[[int], tuple[int, bytes] | None]) -> Store:
        """Open, or make, the data directory."""
        identity = f"{self.name}/{self.lives}".encode().ljust(16, b".")[:16]
        return Store.open(
            self.files,
            DIRECTORY,
            node_name=self.name,
            options=STORE_OPTIONS,
            new_cluster_id=CLUSTER_ID,
            new_journal_id=identity,
            producers_of=producers_of,
        )

    def start(self) -> None:
        """Start the process, if it is down and may be up."""
        if self.life is not None or self.is_held:
            return
        self.lives += 1
        self._starts += 1
        self.is_paused = False
        self.deferred.clear()
        life = Life(self, self._driver_chance(self.lives))
        self.trace(f"start {self.lives}")
        self.life = life
        try:
            life.begin()
        except SimulatedCrash:
            reachable("crash while recovering")
            self.power_cut()
        except (StoreRefused, JournalLost, CorruptBatch) as error:
            # What an operator does about it: the replicas come back from the others.
            self.trace(f"refused {error.code}")
            reachable("a data directory beyond recovery is wiped")
            self.stop()
            self.wipe()
            self.start_later()
        except OSError as error:
            self.trace(f"start failed {error.errno}")
            reachable("an opening that failed is tried again")
            self.exit()

    def start_later(self, delay_us: int | None = None) -> None:
        """What a supervisor does."""
        delay_us = self.crash_chance.randrange(200 * MILLISECOND, 2 * SECOND) if delay_us is None else delay_us
        self.world.clock.after(delay_us, self.start)

    def stop(self) -> None:
        """The process is gone, whatever it was doing."""
        life, self.life = self.life, None
        self.is_paused = False
        self.deferred.clear()
        if life is not None:
            life.end()
            self.world.invariants.on_down(self.name)

    def power_cut(self, *, restarts: bool = True) -> None:
        """The machine loses its power, and with it what was not synced, or a part of that."""
        self.trace("power cut")
        self.stop()
        chance = self.crash_chance
        self._replace_files(self.files.crash(None if chance.random() < 0.2 else chance))
        if restarts:
            self.start_later()

    def kill(self, *, restarts: bool = True) -> None:
        """The process is killed: what it wrote is still in the page cache."""
        self.trace("kill")
        self.stop()
        self._replace_files(self.files.kill())
        if restarts:
            self.start_later()

    def exit(self) -> None:
        """The process ends by itself, as after a failed write, and is started again."""
        if any(failure.raised for failure in self.directory_failures):
            # A journaling file system that cannot write its names goes read-only until the machine is booted anew.
            reachable("a directory could not be synced")
            self.directory_failures.clear()
            self.power_cut()
            return
        self.trace("exit")
        self.stop()
        self._replace_files(self.files.kill())
        self.start_later()

    def wipe(self) -> None:
        """The data directory is gone. The process is down."""
        assert self.life is None
        self.trace("wipe")
        capacity = self.files.capacity_bytes
        self._replace_files(FakeFileSystem(capacity_bytes=capacity))
        self.is_wiped = True
        self.had_damage = True
        self.world.invariants.on_wiped(self.name)

    def _replace_files(self, files: FakeFileSystem) -> None:
        files.nowait_supported = self.files.nowait_supported
        self.files = files

    def pause(self) -> None:
        """Stop the process as SIGSTOP does: what comes waits."""
        if self.life is not None:
            self.is_paused = True
            self.trace("pause")

    def resume(self) -> None:
        """Let it go on, with all that came meanwhile."""
        if not self.is_paused:
            return
        self.is_paused = False
        self.trace("resume")
        deferred, self.deferred = self.deferred, deque()
        life = self.life
        for function, arguments in deferred:
            if life is not None and self.life is life:
                life.enter(function, *arguments)

    # --- What arrives -------------------------------------------------------------------------------------------------

    def on_frame(self, peer: str, frame: bytes) -> None:
        """A frame arrived; without a process nobody reads it."""
        if self.life is not None:
            self.life.enter(self.life.on_frame, peer, frame)


@dataclass(slots=True)
class _Moving:
    """What is under way for one group's start."""

    starts: dict[int, Start] = field(default_factory=dict)
    index: int = 0


class Life:
    """One life of the process: from recovery to whatever ends it. The counterpart of `RaftActor` and `Node`."""

    # Invariant: `_round` is the round that was handed to the writer and is not durable yet.

    def __init__(self, machine: Machine, driver_chance: Random) -> None:
        self.machine = machine
        self.world = machine.world
        self.is_over = False
        self._is_gathering = False
        self.disk = Disk(self.world.clock, machine.disk_chance, machine.disk_conditions, self.enter)
        self.store: Store
        self.driver: Driver
        self._driver_chance = driver_chance
        self._round: Round | None = None
        self._round_entries: Sequence[RoundEntry] = ()
        self._settling: deque[Round] = deque()
        self._stuck: Sequence[RoundEntry] | None = None
        self._abandoned: list[tuple[int, Start]] = []
        # Groups whose directories, or the rounds that begin them, are on their way.
        self._making: dict[int, None] = {}
        self._missing: list[tuple[int, bool]] = []
        self._short: dict[int, Shortage] = {}
        self._full_until: dict[int, int] = {}
        self._tidying = False
        self._starts: dict[tuple[int, int], Start] = {}
        self._moving: dict[int, int] = {}
        self._is_confirmed = True
        self._rounds_started = 0
        self._rounds_at_confirm = 0
        self._ticks = 0
        self._retention_chance = machine.disk_chance

    # --- Being called -------------------------------------------------------------------------------------------------

    def enter(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function of this life, if it still lives; if it is paused, when it goes on."""
        if self.is_over:
            return
        machine = self.machine
        if machine.is_paused:
            if len(machine.deferred) < DEFERRED_MAX or function != self.on_frame:
                machine.deferred.append((function, arguments))
            return
        try:
            function(*arguments)
        except SimulatedCrash:
            reachable("crash in the middle of a system call")
            machine.power_cut()
        except DiskFailed as error:
            reachable("a process that ends because its disk failed")
            machine.trace(f"disk failed {error}")
            machine.exit()

    def begin(self) -> None:
        """Recover, make the driver, and start the ticker."""
        machine = self.machine
        self.store = store = machine.open_store(self._producers_of)
        machine.events += store.events
        events, store.context.events[:] = list(store.events), []
        for event in events:
            machine.trace(f"event {type(event).__name__}")

        self.driver = driver = self._make_driver(store)
        machine.is_wiped = False
        self.world.invariants.on_open(machine.name, store, driver, events)
        for group, placement in sorted(self.world.placements.items()):
            wanted = self.world.wanted.get(group, frozenset(placement.voters))
            if machine.name in wanted and group not in store.groups:
                self.create_group(group, was_here=True)
        self.world.clock.after(self._tick_us(), self.enter_tick)
        self.step()

    def _make_driver(self, store: Store) -> Driver:
        meta = MetaState()
        clock = AppendClock.started(self.machine.reading())
        options = replace(self.world.driver_options, feature_level=self.machine.feature_level)
        driver = Driver(self.machine.name, options, clock, meta, self._driver_chance, self.machine.lives)
        for group, log in sorted(store.groups.items()):
            driver.adopt(group)
            if not log.is_start_readable:
                reachable("a log whose start is lost")
                driver.discard(group)
                self._missing.append((group, True))
                continue
            producers = driver.new_producer_table()
            on_damage = partial(store.note_damage, group)
            driver.open_group(recover(log, self.machine.name, producers, self._admission(), on_damage=on_damage))
            if group in self.world.wanted:
                driver.want_voters(group, self.world.wanted[group])
        return driver

    def _admission(self) -> bytes:
        """A word that nobody drew before."""
        return self._driver_chance.randbytes(8)

    def _producers_of(self, group: int) -> tuple[int, bytes] | None:
        driver: Driver | None = getattr(self, "driver", None)
        return driver.producers_of(group) if driver is not None else None

    def end(self) -> None:
        """Nothing of this life is done any more."""
        self.is_over = True
        self.disk.stop()

    # --- The ticker ---------------------------------------------------------------------------------------------------

    def _tick_us(self) -> int:
        return int(TICK_US / self.machine.clock_conditions.rate)

    def enter_tick(self) -> None:
        """The ticker is a task of the process: it ticks once after a pause, however long."""
        if self.is_over:
            return
        self.world.clock.after(self._tick_us(), self.enter_tick)
        if not self.machine.is_paused:
            self.enter(self.on_tick)

    def on_tick(self) -> None:
        """Time passed."""
        self._ticks += 1
        driver = self.driver
        driver.tick(self.machine.reading())
        if self._ticks % TICKS_PER_CONFIRM == 0:
            self._confirm_when_quiet()
        if self._ticks % TICKS_PER_RETRY == 0:
            self._retry_when_full()
        if self._ticks % TICKS_PER_RETENTION == 0 and self.world.retention_bytes is not None:
            self._retain()
        self.step()
        self.world.invariants.on_tick(self.machine.name, driver)

    # --- A step of the actor ------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Everything that can be done now, in the actor's order."""
        driver, world, name = self.driver, self.world, self.machine.name
        self._start_round()
        frames = driver.take_frames()
        if self._round is None and self._stuck is None and driver.has_work:
            self._start_round()
            frames += driver.take_frames()
        # What became true is known to the checks before anybody else hears of it.
        world.invariants.observe(name, driver)
        if driver.has_output:
            self._carry_out(driver.take_effects())
            for answer in driver.take_answers():
                answer.reply(answer.outcome)
        for peer, frame in frames:
            world.network.send(name, peer, frame)
        while self._settling:
            made = self._settling.popleft()
            self.disk.submit_settling(made.settle, self._when_written(made))
        self._tidy()

    def on_frame(self, peer: str, frame: bytes) -> None:
        """A frame of a peer arrived."""
        try:
            self.driver.on_frame(peer, frame)
        except CorruptBatch:
            # What a node with a damaged disk sends; the connection would be closed.
            reachable("a damaged batch is refused by a peer")
            self.machine.trace(f"corrupt frame of {peer}")
            if not self.world.machines[peer].had_damage:
                raise
        if not self.world.gathers_frames:
            self.step()
        elif not self._is_gathering:
            self._is_gathering = True
            self.world.clock.after(GATHER_US, self.enter, self._end_gathering)

    def _end_gathering(self) -> None:
        reachable("several frames are taken at once")
        self._is_gathering = False
        self.step()

    # --- Rounds -------------------------------------------------------------------------------------------------------

    def _start_round(self) -> None:
        if self._round is not None or self._stuck is not None or not self.driver.has_work:
            return
        room = StoreRoom(self.store, STORE_OPTIONS.round_bytes_max)
        entries = self.driver.take_round(room, self.machine.reading())
        self._short.update(room.short)
        if entries:
            self._is_confirmed = False
            self.world.invariants.on_round_taken(self.machine.name, entries)
            self._submit(entries)
        else:
            self._ask_for_space()

    def _submit(self, entries: Sequence[RoundEntry]) -> None:
        try:
            made = self._round = self.store.prepare_round(entries)
        except JournalFull:
            reachable("a round waits for a journal file")
            self._stuck = entries
            return
        self._stuck = None
        self._round_entries = entries
        self._rounds_started += 1
        self.disk.submit_round(self._writing(made, entries), self._on_durable)

    def _writing(self, made: Round, entries: Sequence[RoundEntry]) -> Callable[[], None]:
        def write() -> None:
            made.write()
            self.world.invariants.on_round_durable(self.machine.name, entries)

        return write

    def _on_durable(self, error: OSError | None) -> None:
        if error is not None:
            raise DiskFailed(str(error)) from error
        made = self._round
        assert made is not None
        made.apply_durable()
        for entry in self._round_entries:
            if type(entry) is SetStart:
                self._making.pop(entry.group, None)
        self._round = None
        self._settling.append(made)
        self.driver.on_durable()
        self._ask_for_space()
        self.step()

    def _when_written(self, made: Round) -> Callable[[OSError | None], None]:
        def done(error: OSError | None) -> None:
            if error is not None:
                raise DiskFailed(str(error)) from error
            made.apply_written()
            self._tidy()

        return done

    def _confirm_when_quiet(self) -> None:
        is_quiet = self._round is None and self._stuck is None
        if self._rounds_started == self._rounds_at_confirm and not self._is_confirmed and is_quiet:
            self._is_confirmed = True
            self._submit(())
        self._rounds_at_confirm = self._rounds_started

    def _retry_when_full(self) -> None:
        if self.driver.is_short:
            self.driver.retry_space()
        abandoned, self._abandoned = self._abandoned, []
        for group, start in abandoned:
            self.driver.abandon_start(group, start)
        missing, self._missing = self._missing, []
        for group, was_here in missing:
            if group in self.store.groups and not self.driver.knows(group):
                self._missing.append((group, was_here))  # it is on its way out
            else:
                self.create_group(group, was_here=was_here)
        self._retry_stuck()

    # --- Space --------------------------------------------------------------------------------------------------------

    def _ask_for_space(self) -> None:
        if not self._short:
            return
        short, self._short = self._short, {}
        for group, (batch_bytes, control, index) in short.items():
            log = self.store.groups.get(group)
            if log is None:
                continue
            if not control and self._full_until.get(group, 0) > self.world.clock.now:
                self._on_space(group, OSError(errno.ENOSPC, "no space a moment ago"))
                continue
            job = log.space_for(batch_bytes, index=index, control=control)
            if job is None:
                self.driver.on_space(group, None)
                continue
            self.disk.submit_job(job.run, self._space_done(group, job.apply))

    def _space_done(self, group: int, apply: Callable[[], None]) -> Callable[[OSError | None], None]:
        def done(error: OSError | None) -> None:
            if error is None:
                apply()
                self._full_until.pop(group, None)
            else:
                _check_is_full(error)
                reachable("no space for a batch")
                self._full_until[group] = self.world.clock.now + int(RETRY_SECONDS * SECOND)
            self._on_space(group, error)
            self._retry_stuck()
            self.step()

        return done

    def _on_space(self, group: int, error: OSError | None) -> None:
        if error is None:
            self.driver.on_space(group, None)
            return
        self.machine.trace(f"full {group}")
        refusal = DiskFull("the node has no space for this batch", {"delay_seconds": RETRY_SECONDS})
        self.driver.on_space(group, refusal)

    def _retry_stuck(self) -> None:
        if self._stuck is not None:
            self._submit(self._stuck)

    # --- Effects and housekeeping -------------------------------------------------------------------------------------

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case MoveStart(group, index):
                    start = self._starts.pop((group, index), None) or self._start_at(group, index)
                    if start is not None:
                        self._move_start(group, start)
                case InstallStart(group, start):
                    self._install_start(group, start)
                case ReadRange():
                    self._read_range(effect)
                case _:
                    raise AssertionError(f"an effect that only group 0 has: {effect}")

    def create_group(self, group: int, *, was_here: bool) -> None:
        """Make an empty replica of a group, as an operator's (or meta's) word wants it here.

        `was_here`: the node may have had one before, which promised what this one does not know.
        """
        if group in self.store.groups or self.driver.knows(group) or group in self._making:
            return
        self._making[group] = None
        # With the membership that the group was founded with: what changed it since is in the log.
        start = self.world.placements[group].start()
        job = self.store.create_group(group, start)
        self.driver.adopt(group)

        def done(error: OSError | None) -> None:
            if error is not None:
                del self._making[group]
                _check_is_full(error)
                self._missing.append((group, was_here))
                return
            job.apply()
            producers = self.driver.new_producer_table()
            hard_state = None if was_here else INITIAL_HARD_STATE
            admission = self._admission() if was_here else b""
            self.driver.install(group, start, state_of_start(group, start, producers, hard_state, admission))
            self._retry_stuck()
            self.step()

        self.disk.submit_job(job.run, done)

    def _install_start(self, group: int, start: Start) -> None:
        """Write a start file of a leader's, which replaces the log."""
        reachable("a start replaces a log")
        log = self.store.groups[group]
        if start.index <= log.start.index:
            raise AssertionError(f"group {group}: a start at {start.index} for a log that begins at {log.start.index}")
        job = log.prepare_start(start)

        def done(error: OSError | None) -> None:
            if error is not None:
                _check_is_full(error)
                self._abandoned.append((group, start))
            else:
                job.apply()
                self.driver.install(group, start, None)
            self._retry_stuck()
            self.step()

        self.disk.submit_job(job.run, done)

    def _move_start(self, group: int, start: Start) -> None:
        log = self.store.groups.get(group)
        if log is None:
            self._moving.pop(group, None)
            return
        if start.index <= max(log.start.index, self._moving.get(group, 0)):
            return
        self._moving[group] = start.index
        job = log.prepare_start(start)

        def done(error: OSError | None) -> None:
            if error is not None:
                self._moving.pop(group, None)
                _check_is_full(error)
            elif group in self.store.groups:
                reachable("retention moves a start")
                job.apply()
                self.driver.install(group, start, None)
            self._retry_stuck()
            self.step()

        self.disk.submit_job(job.run, done)

    def _read_range(self, effect: ReadRange) -> None:
        """Batches that a follower needs and memory does not hold any more."""
        driver = self.driver
        log = self.store.groups.get(effect.group)
        if log is None:
            driver.on_range(effect.token, None)
            return

        def run() -> None:
            batches: list[StampedBatch] = []
            index = effect.first_index
            is_damaged = False
            try:
                # A read ends with its segment; two batches are asked for at least.
                while index < effect.next_index and len(batches) < BATCHES_PER_RANGE_MIN:
                    result = log.plan_read_index(index, effect.next_index, effect.bytes_max).run()
                    assert result is not None
                    if result.next_index == index:
                        break
                    batches += [_stamped(raw) for raw in split_batches(result.batches)]
                    index = result.next_index
            except OffsetOutOfRange:
                reachable("a range below the start")
            except CorruptBatch:
                reachable("a range that is damaged")
                is_damaged = True
            except (ReadOutdated, OSError):
                reachable("a range that cannot be read")
            reachable("a range is read")
            driver.on_range(effect.token, batches or None, is_damaged=is_damaged)
            self.step()

        delay = RANGE_US_MIN + self.machine.disk_chance.randrange(RANGE_US_MAX - RANGE_US_MIN)
        self.world.clock.after(delay, self.enter, run)

    def _tidy(self) -> None:
        if self._tidying:
            return
        job = self.store.next_housekeeping()
        if job is None:
            return
        self._tidying = True
        self.disk.submit_job(job.run, self._when_tidied(job))

    def _when_tidied(self, job: Job) -> Callable[[OSError | None], None]:
        def done(error: OSError | None) -> None:
            self._tidying = False
            if error is not None:
                raise DiskFailed(str(error)) from error
            job.apply()
            self._retry_stuck()
            self._tidy()
            if self.driver.has_work:
                self.step()

        return done

    # --- Retention ----------------------------------------------------------------------------------------------------

    def _retain(self) -> None:
        driver = self.driver
        now_ms = driver.clock.now_ms(self.machine.reading())
        for group, log in self.store.groups.items():
            if group == META_GROUP or driver.high_watermark(group) is None:
                continue
            try:
                boundary = log.retention_boundary(now_ms, self.world.retention_bytes, None)
                if boundary is None:
                    continue
                start = start_at(log, boundary.index, driver.new_producer_table())
            except (CorruptBatch, OSError, ReadOutdated):
                reachable("retention finds what it cannot read")
                continue
            if driver.propose_retention(group, start.index, start.offset, self.machine.reading()):
                self._starts[group, start.index] = start

    def _start_at(self, group: int, index: int) -> Start | None:
        """The start that a decision of another node means; None if what is before it is not readable (yet)."""
        log = self.store.groups.get(group)
        if log is None or not log.start.index < index <= log.written_index:
            reachable("a start that is decided before it can be made here")
            return None
        try:
            start = start_at(log, index, self.driver.new_producer_table())
        except (CorruptBatch, OSError, ReadOutdated):
            reachable("retention finds what it cannot read")
            return None
        return start

    # --- For clients --------------------------------------------------------------------------------------------------

    def propose(
        self, group: int, batch: bytes, header: BatchHeader, expected_offset: int | None, reply: Replier
    ) -> None:
        """Queue a batch; its reply is called with the outcome, now or later."""
        error = self.driver.propose(group, Proposal(batch, header, Acks.QUORUM, expected_offset, reply))
        if error is not None:
            reply(error)
        self.step()

    def read_index(self, group: int, reply: Replier) -> None:
        """Ask up to where a linearizable read has to read."""
        error = self.driver.read_index(group, reply)
        if error is not None:
            reply(error)
        self.step()

    def change_membership(self, group: int, change: ConfigurationChange, reply: Replier) -> None:
        """Ask for a change of who votes."""
        error = self.driver.change_membership(group, change, reply)
        if error is not None:
            reply(error)
        self.step()

    def want_voters(self, group: int, voters: frozenset[str]) -> None:
        """Say who should vote."""
        self.driver.want_voters(group, voters)
        self.step()

    def transfer(self, group: int, to: str) -> None:
        """Ask the leader, if this is it, to hand its leadership over."""
        self.driver.transfer(group, to)
        self.step()


def read_log(log: Log, first_index: int) -> bytes:
    """The SHA-256 of a replica's bytes from an index on. Raises CorruptBatch, OSError."""
    digest = hashlib.sha256()
    index = first_index
    while index <= log.written.index:
        result = log.plan_read_index(index, log.written.index + 1, READ_BYTES).run()
        assert result is not None
        for raw in split_batches(result.batches):
            check_alone(raw)
        digest.update(result.batches)
        index = result.next_index
    return digest.digest()


def _stamped(raw: memoryview) -> StampedBatch:
    return StampedBatch(decode_header(raw), bytes(raw[:HEADER_BYTES]), raw[HEADER_BYTES:])
