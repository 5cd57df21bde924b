"""A replica among several on a bad disk: what it lost it says, what it holds is right, and it is repaired.

The model is the leader: it has everything that was promised. The replica's disk is damaged at random, at rest and
while it is written, and the power goes; then the replica is repaired as a shell would do it. Not damaged is what can
hide a loss from any log: the last round of the journal, behind which nothing shows that it was ever durable.
"""

import contextlib
import random
from itertools import pairwise

import pytest

from logd.store.errors import JournalFull, NoRoom, WrongEntry
from logd.store.format import HardState, LogEnd, Start
from logd.store.log import Log
from logd.store.round import Append, RoundEntry, SetHardState, SetStart
from tests.store.support import NODE, add_group, do, end_of, finish, housekeep, make_batches, make_room, open_store
from tests.support.fake_files import PAGE_BYTES, DiskFaults, FakeFileSystem, SimulatedCrash
from wire.errors import CorruptBatch
from wire.record import BatchHeader, StampedBatch, check_alone, split_batches

GROUPS = (1, 2, 3)


class Leader:
    """What one group promised: everything that the replica has to hold again in the end."""

    def __init__(self, start: Start, batches: list[StampedBatch], hard_state: HardState) -> None:
        self.start = start
        self.batches = batches
        self.hard_state = hard_state

    @property
    def end(self) -> tuple[int, int]:
        end = end_of(self.batches[-1]) if self.batches else self.start.end
        return end.term, end.index

    def from_index(self, index: int) -> list[StampedBatch]:
        return [batch for batch in self.batches if batch.header.index >= index]


def is_newer(log: Log, leader: Leader, maybe: Leader) -> bool:
    """Whether the round of which nobody was told is there."""
    if maybe.start != leader.start:
        return log.start.index == maybe.start.index
    if maybe.hard_state != leader.hard_state:
        return log.hard_state == maybe.hard_state
    return log.end == end_of(maybe.batches[-1])


class Replica:
    """One store on a bad disk, driven at random."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.files = FakeFileSystem(keeps_calls=False)
        self.store = open_store(self.files)
        self.leaders: dict[int, Leader] = {}
        for group in GROUPS:
            log = add_group(self.store, group)
            assert log.hard_state is not None
            self.leaders[group] = Leader(log.start, [], log.hard_state)
        self.was_damaged = 0
        self.maybe: tuple[int, Leader] | None = None
        """What one group may have promised as well: a round that holds it failed."""
        self.faults = DiskFaults(self.chance, path_prefix="/data/groups/")

    def round(self, entries: list[RoundEntry]) -> None:
        """A round that is certainly made."""
        for _ in range(20):
            try:
                made = self.store.prepare_round(entries)
            except JournalFull:
                housekeep(self.store)
                continue
            except NoRoom:
                # Housekeeping has finished the segment in which a suffix is to be replaced.
                self.make_room(entries)
                continue
            finish(made)
            return
        raise AssertionError("the journal is full for ever")

    def make_room(self, entries: list[RoundEntry]) -> None:
        batches = [entry.batch for entry in entries if isinstance(entry, Append)]
        make_room(self.store.groups[entries[-1].group], batches)

    # --- What a healthy replica is asked to do ------------------------------------------------------------------------

    def step(self) -> None:
        chance = self.chance
        group = chance.choice(GROUPS)
        leader, log = self.leaders[group], self.store.groups[group]
        action = chance.choice(["append", "append", "append", "replace", "vote", "retain", "snapshot", "housekeep"])
        if action == "append":
            before = end_of(leader.batches[-1]) if leader.batches else leader.start.end
            self.append(group, make_batches(before, chance.randint(1, 5), **self.shape(before.term)))
        elif action == "replace" and leader.batches:
            kept = chance.randrange(len(leader.batches))
            before = end_of(leader.batches[kept - 1]) if kept else leader.start.end
            # A leader of a later term; what it replaces can never come back.
            shape = self.shape(leader.hard_state.term + 1)
            batches = make_batches(before, chance.randint(1, 4), salt=chance.randrange(256), **shape)
            self.append(group, batches)
        elif action == "vote":
            old = leader.hard_state
            after = Leader(
                leader.start, leader.batches, HardState(old.term + chance.randrange(2), old.vote, old.commit + 1)
            )
            self.promise(group, after, [SetHardState(group, after.hard_state)])
        elif action == "retain" and leader.batches and chance.random() < 0.5:
            self.move_start(group, end_of(chance.choice(leader.batches)), keeps_suffix=True)
        elif action == "snapshot" and chance.random() < 0.2:
            batches = make_batches(log.end, 3, term=leader.hard_state.term)
            self.move_start(group, end_of(batches[-1]), keeps_suffix=False)
        elif action == "housekeep":
            job = self.store.next_housekeeping()
            if job is not None:
                do(job)

    def shape(self, term: int) -> dict[str, int]:
        return {"term": max(term, 1), "value_bytes": self.chance.choice([10, 200, 200, 3_000])}

    def append(self, group: int, batches: list[StampedBatch]) -> None:
        leader = self.leaders[group]
        term, first = batches[-1].header.term, batches[0].header.index
        hard_state = leader.hard_state
        if hard_state.term < term:
            hard_state = HardState(term, NODE, hard_state.commit)
        kept = [batch for batch in leader.batches if batch.header.index < first]
        make_room(self.store.groups[group], batches)
        entries: list[RoundEntry] = [SetHardState(group, hard_state), *(Append(group, batch) for batch in batches)]
        self.promise(group, Leader(leader.start, kept + batches, hard_state), entries)

    def promise(self, group: int, after: Leader, entries: list[RoundEntry]) -> None:
        self.maybe = group, after
        self.round(entries)
        self.leaders[group], self.maybe = after, None

    def move_start(self, group: int, end: LogEnd, *, keeps_suffix: bool) -> None:
        leader, log = self.leaders[group], self.store.groups[group]
        if end.index <= log.start.index:
            return
        start = leader.start._replace(
            index=end.index,
            term=end.term,
            offset=end.next_offset,
            append_timestamp=end.append_timestamp,
            chain=end.chain,
        )
        do(log.prepare_start(start))
        kept = leader.from_index(end.index + 1) if keeps_suffix else []
        self.promise(group, Leader(start, kept, leader.hard_state), [SetStart(group, start, keeps_suffix)])

    # --- The disk -----------------------------------------------------------------------------------------------------

    def damage_and_crash(self) -> None:
        """Damage anything but the last round, and lose the power; what was promised by then must be told as lost."""
        chance, files = self.chance, self.files
        self.round([])
        current, position = self.store.journal.current, self.store.journal.position
        last = files.contents(current.file.path)[position - PAGE_BYTES : position]
        table = files.contents(current.file.path)[: 2 * PAGE_BYTES]
        for _ in range(chance.randint(0, 3)):
            if chance.random() < 0.5:
                files.flip_bits(chance, chance.randint(1, 3), chance.choice(["/data/", "/data/groups/"]))
            else:
                paths = [path for path, size in files.tree("/data").items() if size and "/LOCK" not in path]
                path = chance.choice(paths)
                size = files.tree("/data")[path]
                assert size is not None
                begin = chance.randrange(size)
                files.zero_range(path, begin, min(chance.choice([1, 300, 5_000]), size - begin))
        # Of the newest journal file, the table and the last round are spared: without them nobody knows anything.
        files.overwrite(current.file.path, position - PAGE_BYTES, last)
        files.overwrite(current.file.path, 0, table)
        node = "/data/node.json"
        files.overwrite(node, 0, self.node_file)
        kind = chance.randrange(3)
        self.files = files.kill() if kind == 2 else files.crash(chance if kind else None)
        self.files.keeps_calls = False

    def run(self, steps: int) -> None:
        self.node_file = self.files.contents("/data/node.json")
        for _ in range(steps):
            try:
                self.draw_faults()
                for _ in range(self.chance.randint(1, 25)):
                    self.step()
                self.files.heal()
                self.damage_and_crash()
            except (OSError, CorruptBatch, WrongEntry, SimulatedCrash):
                # WrongEntry: a place that was read wrongly, from another log with the same indexes.
                # The process ends; in some of the cases so does the machine.
                self.files = self.files.crash(self.chance) if self.chance.random() < 0.7 else self.files.kill()
            self.open()
            self.check()
            self.repair()

    def draw_faults(self) -> None:
        """Each kind is absent half of the time."""
        for name in ("read_error", "write_error", "sync_error", "misdirected_read", "misdirected_write"):
            setattr(self.faults, name, self.chance.choice([0.0, 0.03]))
        self.files.inject(self.faults)
        if self.chance.random() < 0.5:
            # Any call may be the last one.
            number = self.files.call_count + self.chance.randint(1, 60)
            self.files.crash_at(number, torn=self.chance if self.chance.random() < 0.5 else None)

    def open(self) -> None:
        """Start the process, until the disk lets it; a machine whose file system is read-only is started anew."""
        for attempt in range(20):
            self.files.heal()
            if attempt < 3 and self.chance.random() < 0.5:
                self.draw_faults()
            try:
                self.store = open_store(self.files)
            except (OSError, SimulatedCrash):
                self.files = self.files.crash(self.chance) if self.chance.random() < 0.5 else self.files.kill()
            else:
                self.files.heal()
                return
        raise AssertionError("a disk without faults is not opened")

    # --- What is left, and its repair ---------------------------------------------------------------------------------

    def check(self) -> None:
        """Every loss is told, unless it is latent in what recovery does not read."""
        for group, leader in self.leaders.items():
            log = self.store.groups.get(group)
            if log is None:
                continue  # told by an event; the shell asks for a snapshot
            # What it says it holds hangs together, whoever it is from; unless a synced page of it was never written.
            headers = self.readable(log)
            assert self.faults.done["misdirected_write"] or all(
                header.previous_chain == before.chain for before, header in pairwise(headers)
            )
            if self.maybe is not None and self.maybe[0] == group and is_newer(log, leader, self.maybe[1]):
                leader = self.leaders[group] = self.maybe[1]
            if log.hard_state is not None:
                assert log.hard_state == leader.hard_state
            if log.floor is not None:
                self.was_damaged += 1
                floor = log.floor
                assert (floor.term, floor.index) >= leader.end or log.hard_state is None, (floor, leader.end)
            else:
                assert (log.end.term, log.end.index) == leader.end

        self.maybe = None

    def repair(self) -> None:
        for group, leader in self.leaders.items():
            log = self.store.groups.get(group)
            if log is None:
                do(self.store.create_group(group, leader.start))
                self.round([SetStart(group, leader.start), SetHardState(group, leader.hard_state)])
                log = self.store.groups[group]
            if log.hard_state is None:
                self.round([SetHardState(group, leader.hard_state)])
            if log.start.index < leader.start.index or not log.is_start_readable:
                keeps_suffix = log.start.index == leader.start.index
                do(log.prepare_start(leader.start))
                self.round([SetStart(group, leader.start, keeps_suffix)])
            for _ in range(200):
                held = self.held(log, leader)
                if held == len(leader.batches):
                    break
                following = leader.batches[held : held + 4]
                make_room(log, following)
                self.round([Append(group, batch) for batch in following])
                if self.chance.random() < 0.1:
                    self.files = self.files.crash(self.chance)
                    self.open()
                    log = self.store.groups[group]
                    assert log.floor is not None or log.end.index == leader.end[1]
            if log.floor is not None:
                # A promise that nothing tells any more, but that there may have been; a later leader's entry will do.
                before = end_of(leader.batches[-1]) if leader.batches else leader.start.end
                self.append(group, make_batches(before, 1, term=max(log.floor.term, leader.hard_state.term) + 1))
            leader = self.leaders[group]
            assert log.floor is None, (log.floor, log.end, leader.end, log.damage)
            assert log.damage == ()
            assert (log.end.term, log.end.index) == leader.end

    def readable(self, log: Log) -> list[BatchHeader]:
        """The headers of what a log holds, up to the first that cannot be read."""
        found: list[BatchHeader] = []
        with contextlib.suppress(CorruptBatch):
            found.extend(log.headers_from(log.start.index + 1, log.intact_index + 1))
        return found

    def held(self, log: Log, leader: Leader) -> int:
        """How many of the leader's batches the replica holds from its start on; damage that this finds is noted."""
        index = log.start.index + 1
        count = 0
        while index <= log.intact_index:
            try:
                result = log.plan_read_index(index, log.intact_index + 1, 4_000).run()
                assert result is not None
                for data in split_batches(result.batches):
                    header = check_alone(data)
                    if count == len(leader.batches) or header.chain != leader.batches[count].header.chain:
                        return count
                    assert bytes(data) == leader.batches[count].to_bytes()
                    index, count = header.index + 1, count + 1
            except CorruptBatch as error:
                details = error.details
                at = details.get("index", index)
                self.store.note_damage(log.group, at, at + 1)
        return count


@pytest.mark.parametrize("seed", range(40))
def test_what_a_bad_disk_takes_is_told_and_comes_back(seed: int) -> None:
    replica = Replica(seed)

    replica.run(6)

    assert replica.leaders
