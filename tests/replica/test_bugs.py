"""The bugs of others that would live in the driver: each has one test here that notices it.

The numbers are those of the table in `tests.mutants.table`, whose rows put each bug into this code and name the test.
"""

import random

from logd.meta.state import MetaState
from logd.raft.types import ChangeKind, ChangeStep, Configuration, ConfigurationChange, HardState
from logd.replica.clock import AppendClock, ClockReading
from logd.replica.driver import Driver
from logd.replica.membership import change_fields, encode_membership
from logd.replica.producers import ProducerTable
from logd.replica.restore import recover, state_of_start
from logd.replica.room import Admission
from logd.replica.types import DriverOptions
from logd.store.format import HardState as StoredHardState
from logd.store.round import SetHardState, SetStart
from tests.store.support import append, commit, do, make_batch, new_start, open_store
from tests.support.fake_files import FakeFileSystem
from wire.record import ControlKind, Stamp, control_batch, stamp

GROUP = 1
NODES = ("node-1", "node-2", "node-3")
THREE = Configuration(frozenset(NODES))
TICKS_PER_SECOND = 10


def test_bug_14_a_change_in_the_last_entry_is_in_force_after_a_restart() -> None:
    files = FakeFileSystem()
    store = open_store(files)
    start = new_start(GROUP)._replace(membership=encode_membership(THREE))
    do(store.create_group(GROUP, start))
    commit(store, [SetStart(GROUP, start), SetHardState(GROUP, StoredHardState(1, "node-1", 0))])
    log = store.groups[GROUP]
    append(store, GROUP, [make_batch(log.end)])
    change = ConfigurationChange((ChangeStep(ChangeKind.ADD_VOTER, "node-4"),))
    raw = control_batch(ControlKind.MEMBERSHIP, *change_fields(change), timestamp_ms=1)
    end = log.end
    append(
        store,
        GROUP,
        [stamp(raw, Stamp(end.next_offset, end.index + 1, 1, end.append_timestamp, end.chain))],
    )
    commit(store, [SetHardState(GROUP, StoredHardState(1, "node-1", 2))])

    again = open_store(files.crash(None)).groups[GROUP]
    state = recover(again, "node-1", ProducerTable(10, 1_000), b"")

    assert state.recovered.applied == 2
    assert state.recovered.configuration == Configuration(frozenset({*NODES, "node-4"}))


class Endless:
    """A disk with room for everything."""

    def admit(self, group: int, batch_bytes: int, *, control: bool, index: int) -> Admission:
        return Admission.TAKEN

    def admit_entry(self) -> bool:
        return True


class Cluster:
    """Three drivers with one group, a network that loses nothing, and disks that are durable at once unless they hang.

    What is durable is nowhere kept: nobody crashes here.
    """

    def __init__(self) -> None:
        self.time_ms = 0
        self.hanging: set[str] = set()
        self.under_way: set[str] = set()
        self.drivers: dict[str, Driver] = {}
        for number, name in enumerate(NODES):
            clock = AppendClock.started(self.reading)
            driver = Driver(name, DriverOptions(), clock, MetaState(), random.Random(number))
            driver.adopt(GROUP)
            start = new_start(GROUP)._replace(membership=encode_membership(THREE))
            driver.open_group(state_of_start(GROUP, start, driver.new_producer_table(), HardState(0, "", 0)))
            self.drivers[name] = driver

    @property
    def reading(self) -> ClockReading:
        return ClockReading(1_700_000_000_000 + self.time_ms, self.time_ms)

    def write(self, name: str) -> None:
        """Let a node's disk do what it can."""
        driver = self.drivers[name]
        while name not in self.under_way and driver.take_round(Endless(), self.reading):
            if name in self.hanging:
                self.under_way.add(name)
            else:
                driver.on_durable()

    def settle(self) -> None:
        for _ in range(100):
            frames = []
            for name, driver in self.drivers.items():
                self.write(name)
                frames += [(name, peer, data) for peer, data in driver.take_frames()]
            if not frames:
                return
            for sender, receiver, data in frames:
                self.drivers[receiver].on_frame(sender, data)
        raise AssertionError("no rest")

    def tick(self) -> None:
        self.time_ms += 1_000 // TICKS_PER_SECOND
        for driver in self.drivers.values():
            driver.tick(self.reading)
        self.settle()

    def leaders(self) -> list[str]:
        """Who leads, the one of the highest term first."""
        leading = [name for name, driver in self.drivers.items() if driver.is_leader(GROUP)]
        return sorted(leading, key=lambda name: -self.drivers[name].term(GROUP))

    def wait_leader(self, seconds: int, *others: str) -> str:
        """Who leads, and has committed in its term, within so many seconds, besides `others`."""
        for _ in range(seconds * TICKS_PER_SECOND):
            self.tick()
            for name in self.leaders():
                if name not in others and self.drivers[name].core(GROUP).has_committed_in_term:
                    return name
        raise AssertionError(f"nobody leads after {seconds} s")


def test_bug_25_a_leader_whose_disk_hangs_is_replaced() -> None:
    cluster = Cluster()
    first = cluster.wait_leader(10)
    cluster.hanging.add(first)
    proposed = cluster.drivers[first].change_membership(
        GROUP, ConfigurationChange((ChangeStep(ChangeKind.UPDATE, first),)), None
    )
    assert proposed is None
    cluster.settle()
    assert first in cluster.under_way

    second = cluster.wait_leader(10, first)

    assert second != first
    assert cluster.drivers[second].term(GROUP) > 1
