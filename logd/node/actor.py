"""The Raft actor: the one task that drives all of this node's groups.

For: the node, which runs it, and the partitions, which put proposals into it. Must not know: connections or requests.
The one idea: everything that happens rings one doorbell; the actor then takes what the disk has finished, lets the
driver put everything that waits into the next round, and only then deals out answers, so that the disk is never idle
while there is work.
"""

import errno
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from logd.meta.commands import Command
from logd.meta.state import META_GROUP, Outcome, TopicRemoved
from logd.node.disk import Completion, Disk, Doorbell, Stage
from logd.observability.logs import LimitedLogger
from logd.raft.types import INITIAL_HARD_STATE, Configuration
from logd.replica.clock import ClockReading
from logd.replica.driver import Driver
from logd.replica.membership import encode_membership
from logd.replica.restore import state_of_start
from logd.replica.room import Shortage, StoreRoom
from logd.replica.types import CreateGroup, Effect, MoveStart, Proposal, SnapshotMeta
from logd.store.errors import JournalFull
from logd.store.format import Start
from logd.store.round import Append, Round, RoundEntry
from logd.store.store import Store
from wire.errors import DiskFull, StorageFailed
from wire.record import first_chain

# After the disk was full, or a file could not be made: how long until it is tried again.
RETRY_SECONDS: Final = 0.25


class DiskFailed(StorageFailed):
    """A write or an fsync of the journal or a segment failed: the node promises nothing more, and ends."""

    def __init__(self, error: OSError) -> None:
        where = f"{error.filename}: " if error.filename else ""
        super().__init__(f"the disk failed, nothing more is promised: {where}{error.strerror or error}")


@dataclass(slots=True)
class _Work:
    """A job of the housekeeper, and what to do when it ran (or failed)."""

    run: Callable[[], None]
    done: Callable[[OSError | None], None]


@dataclass(slots=True)
class _Reply:
    """Where the outcome of a command is waited for."""

    happened: trio.Event = field(default_factory=trio.Event)
    outcome: Outcome | None = None

    def __call__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.happened.set()


def _check_is_full(error: OSError) -> None:
    """A job may find the disk full; any other failure of the disk ends the node."""
    if error.errno != errno.ENOSPC:
        raise DiskFailed(error) from error


class RaftActor:
    """Drives the groups of one node.

    Arguments: `read_clock`, reads both clocks at once; `log`, for what an operator should know; `after_answers`,
    called when all answers of a step were given, so that they can leave together.
    """

    # Invariant: `_round` is the round that was handed to the writer and is not durable yet.

    def __init__(
        self,
        store: Store,
        driver: Driver,
        disk: Disk,
        doorbell: Doorbell,
        read_clock: Callable[[], ClockReading],
        log: LimitedLogger,
        after_answers: Callable[[], None],
    ) -> None:
        self.store = store
        self.driver = driver
        self._disk = disk
        self._doorbell = doorbell
        self._read_clock = read_clock
        self._log = log
        self._after_answers = after_answers
        self._round: Round | None = None
        # Durable rounds that are to be brought to their segments once the answers have left: empty between two steps.
        self._settling: deque[Round] = deque()
        # The groups of each round that is not written to its segments yet, in order.
        self._groups_of_rounds: deque[set[int]] = deque()
        self._stuck: Sequence[RoundEntry] | None = None
        self._abandoned = False
        self._short: dict[int, Shortage] = {}
        self._full_until: dict[int, float] = {}
        self._tidying = False
        self._starts: dict[tuple[int, int], Start] = {}
        # The index that a group's start is on its way to.
        self._moving: dict[int, int] = {}
        self._jumps = 0
        self._is_confirmed = True
        self._rounds_started = 0
        self._stopping = False
        self._quiet = trio.Event()
        self._arrivals: dict[int, trio.lowlevel.ParkingLot] = {}
        self._changes = trio.lowlevel.ParkingLot()

    # --- The task -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Drive until `stop` has made everything durable. Raises DiskFailed."""
        self._step()
        while not self._quiet.is_set():
            await self._doorbell.wait()
            self._step()

    def stop(self) -> None:
        """Write what waits and one empty round behind it, then end `run`."""
        self._stopping = True
        self._doorbell.ring()

    @property
    def is_quiet(self) -> bool:
        """Whether `run` ended because everything was durable and in its segments."""
        return self._quiet.is_set()

    def start_waiting(self) -> None:
        """Start a round with what waits, if none is under way: called when a session has handled all that arrived.

        It saves the way over the doorbell, 30 to 100 µs of a lone produce (`bench/README.md`). Answers that fall
        due by it are left to the task: nobody is called back from within a call.
        """
        if self._round is not None or not self.driver.has_work:
            return
        if not self._start_round() or self.driver.has_output:
            self._doorbell.ring()

    def _step(self) -> None:
        for completion in self._disk.take_completions():
            self._on_completion(completion)
        self._start_round()
        self._carry_out(self.driver.take_effects())
        answers = self.driver.take_answers()
        for answer in answers:
            if type(answer.outcome) is TopicRemoved:
                self._dismiss(answer.outcome.topic.groups)
            answer.reply(answer.outcome)
        if answers:
            self._after_answers()
        while self._settling:
            self._disk.submit_settling(self._settling.popleft())
        self._tidy()
        # A round that is stuck is not to be overtaken by the empty one: its batches would be lost, and answered for.
        is_idle = self._round is None and self._stuck is None and not self._groups_of_rounds
        if self._stopping and is_idle and not self.driver.has_work:
            self._finish()

    def _finish(self) -> None:
        if self._is_confirmed and not self._tidying:
            self._quiet.set()
        elif not self._is_confirmed:
            self._confirm()

    # --- Rounds -------------------------------------------------------------------------------------------------------

    def _start_round(self) -> bool:
        """Put everything that waits into a round; false if nothing was handed to the writer."""
        if self._round is not None or self._stuck is not None or not self.driver.has_work:
            return False
        room = StoreRoom(self.store, self.store.context.options.round_bytes_max)
        reading = self._read_clock()
        entries = self.driver.take_round(room, reading)
        self._short.update(room.short)
        self._report_jumps(reading)
        if entries:
            self._is_confirmed = False
            self._submit(entries)
        else:
            self._ask_for_space()
        return bool(entries)

    def _submit(self, entries: Sequence[RoundEntry]) -> None:
        try:
            self._round = self.store.prepare_round(entries)
        except JournalFull:
            # Segments are not synced fast enough: the round waits for housekeeping, and all that come after it wait.
            self._stuck = entries
            return
        self._stuck = None
        self._groups_of_rounds.append({entry.group for entry in entries if type(entry) is Append})
        self._rounds_started += 1
        self._disk.submit_round(self._round)

    def _confirm(self) -> None:
        """One empty round, so that the last one is known not to be torn."""
        self._is_confirmed = True
        self._submit(())

    async def confirm_when_quiet(self, seconds: float) -> None:
        """After `seconds` without a round, confirm the last one."""
        while True:
            before = self._rounds_started
            await trio.sleep(seconds)
            is_quiet = self._round is None and self._stuck is None
            if self._rounds_started == before and not self._is_confirmed and is_quiet:
                self._confirm()

    async def retry_when_full(self) -> None:
        """Try again, now and then, what found the disk full: groups that could not be made, a journal with no file."""
        while True:
            await trio.sleep(RETRY_SECONDS)
            if self._stuck is not None or self._abandoned or self.driver.is_short:
                self._abandoned = False
                self.driver.retry_space()
                self.driver.reconcile()
                if self._stuck is not None:
                    self._submit(self._stuck)
                self._doorbell.ring()

    def _on_completion(self, completion: Completion) -> None:
        if completion.error is not None and completion.stage is not Stage.DONE:
            raise DiskFailed(completion.error) from completion.error
        subject: Any = completion.subject
        match completion.stage:
            case Stage.DURABLE:
                subject.apply_durable()
                self._round = None
                self._settling.append(subject)
                if self.driver.on_durable():
                    self._changes.unpark_all()
                self._ask_for_space()
            case Stage.WRITTEN:
                subject.apply_written()
                for group in self._groups_of_rounds.popleft():
                    if group in self._arrivals:
                        self._arrivals[group].unpark_all()
            case Stage.DONE:
                subject.done(completion.error)
                if self._stuck is not None:
                    self._submit(self._stuck)

    def _report_jumps(self, reading: ClockReading) -> None:
        if self.driver.clock.jumps != self._jumps:
            self._jumps = self.driver.clock.jumps
            self._log.warning("clock_jumped", wall_ms=reading.wall_ms, stamped_ms=self.driver.clock.now_ms(reading))

    # --- Space --------------------------------------------------------------------------------------------------------

    def _ask_for_space(self) -> None:
        """Have space allocated to the groups that are short of it; between rounds, for a roll needs to know the end."""
        short, self._short = self._short, {}
        for group, (batch_bytes, control, index) in short.items():
            log = self.store.groups.get(group)
            if log is None:
                continue
            if not control and self._full_until.get(group, 0.0) > trio.current_time():
                self._on_space(group, OSError(errno.ENOSPC, "no space a moment ago"))
                continue
            job = log.space_for(batch_bytes, index=index, control=control)
            if job is None:
                self.driver.on_space(group, None)
                continue
            self._disk.submit_job(_Work(job.run, self._space_done(group, job.apply)))

    def _space_done(self, group: int, apply: Callable[[], None]) -> Callable[[OSError | None], None]:
        def done(error: OSError | None) -> None:
            if error is None:
                apply()
                self._full_until.pop(group, None)
            else:
                _check_is_full(error)
                self._full_until[group] = trio.current_time() + RETRY_SECONDS
            self._on_space(group, error)

        return done

    def _on_space(self, group: int, error: OSError | None) -> None:
        if error is None:
            self.driver.on_space(group, None)
            return
        self._log.warning("disk_full", group=group, problem=str(error))
        refusal = DiskFull("the node has no space for this batch", {"delay_seconds": RETRY_SECONDS})
        self.driver.on_space(group, refusal)

    # --- Effects and housekeeping -------------------------------------------------------------------------------------

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case CreateGroup(group, topic_id, partition):
                    self._create_group(group, topic_id, partition)
                case MoveStart(group, index):
                    start = self._starts.pop((group, index), None)
                    if start is not None:
                        self._move_start(group, start)
                case SnapshotMeta(header, state, membership):
                    log = self.store.groups[META_GROUP]
                    start = log.start._replace(
                        index=header.index,
                        term=header.term,
                        offset=header.next_offset,
                        chain=header.chain,
                        append_timestamp=header.append_timestamp,
                        membership=membership,
                        state=state,
                    )
                    self._move_start(META_GROUP, start)

    def _create_group(self, group: int, topic_id: bytes, partition: int) -> None:
        start = Start(
            index=0,
            term=0,
            offset=0,
            chain=first_chain(self.store.cluster_id, topic_id, partition),
            append_timestamp=0,
            topic_id=topic_id,
            partition=partition,
            membership=encode_membership(Configuration(frozenset((self.driver.node,)))),
            producers=b"",
        )
        job = self.store.create_group(group, start)

        def done(error: OSError | None) -> None:
            if error is not None:
                _check_is_full(error)
                self._log.error("group_not_created", group=group, problem=str(error))
                self.driver.abandon(group)
                self._abandoned = True
                return
            job.apply()
            producers = self.driver.new_producer_table()
            self.driver.install(group, start, state_of_start(group, start, producers, INITIAL_HARD_STATE))

        self._disk.submit_job(_Work(job.run, done))

    def _move_start(self, group: int, start: Start) -> None:
        log = self.store.groups.get(group)
        if log is None:
            self._moving.pop(group, None)
            return
        if start.index <= max(log.start.index, self._moving.get(group, 0)):
            # Retention looks again before its last decision is durable, and then decides the same once more.
            return
        self._moving[group] = start.index
        job = log.prepare_start(start)

        def done(error: OSError | None) -> None:
            if error is not None:
                self._moving.pop(group, None)
                _check_is_full(error)
                self._log.warning("start_not_written", group=group, problem=str(error))
            elif group in self.store.groups:
                job.apply()
                self.driver.install(group, start, None)

        self._disk.submit_job(_Work(job.run, done))

    def _tidy(self) -> None:
        """Hand the next piece of housekeeping over, one at a time."""
        if self._tidying:
            return
        job = self.store.next_housekeeping()
        if job is None:
            return
        self._tidying = True

        def done(error: OSError | None) -> None:
            self._tidying = False
            if error is not None:
                raise DiskFailed(error) from error
            job.apply()

        self._disk.submit_job(_Work(job.run, done))

    # --- For the partitions and the cluster ---------------------------------------------------------------------------

    def propose(self, group: int, proposal: Proposal) -> None:
        """Queue a batch; its reply is called with the outcome, now or later."""
        error = self.driver.propose(group, proposal)
        if error is not None:
            proposal.reply(error)

    async def command(self, command: Command) -> Outcome:
        """Have group 0 decide; returns when the command is committed and applied."""
        reply = _Reply()
        error = self.driver.propose_command(command, self._read_clock(), reply)
        if error is not None:
            return error
        self._doorbell.ring()
        await reply.happened.wait()
        assert reply.outcome is not None
        return reply.outcome

    def _dismiss(self, groups: Sequence[int]) -> None:
        """Nothing more arrives in these groups: whoever waits looks again, and learns that they are gone."""
        for group in groups:
            if group in self._arrivals:
                self._arrivals.pop(group).unpark_all()

    def propose_retention(self, group: int, start: Start) -> None:
        """Let a group decide that its log begins at `start` from now on."""
        if self.driver.propose_retention(group, start.index, start.offset, self._read_clock()):
            self._starts[group, start.index] = start
            self._doorbell.ring()

    def report_unreadable(self, group: int, error: OSError) -> None:
        """Tell the operator that a stored file cannot be read."""
        self._log.error("read_failed", group=group, file=error.filename, problem=error.strerror or str(error))

    async def wait_arrival(self, group: int) -> None:
        """Wait until something new of a group may be readable, or it left this node."""
        lot = self._arrivals.setdefault(group, trio.lowlevel.ParkingLot())
        await lot.park()

    async def wait_change(self) -> None:
        """Wait until some group's commit moved: a group may have become ready."""
        await self._changes.park()
