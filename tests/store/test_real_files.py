"""The store on the kernel's own files, with a writer, a housekeeper and readers in threads, as in a node."""

import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from logd.store.errors import StoreLocked
from logd.store.files import OsFileSystem
from logd.store.format import HardState
from logd.store.jobs import Job
from logd.store.round import Append, RoundEntry, SetHardState, SetStart
from logd.store.store import Store
from tests.store.support import (
    CLUSTER_ID,
    JOURNAL_ID,
    NODE,
    SMALL,
    add_group,
    commit,
    do,
    housekeep,
    joined,
    make_batch,
    make_batches,
    new_start,
    stored,
)
from wire.record import StampedBatch


def open_in(directory: Path) -> Store:
    return Store.open(
        OsFileSystem(),
        str(directory / "data"),
        node_name=NODE,
        options=SMALL,
        new_cluster_id=CLUSTER_ID,
        new_journal_id=JOURNAL_ID,
    )


class Housekeeper:
    """One thread that runs jobs in order; the owner applies what has run."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        self.under_way = 0

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
            self._done.put(job)

    def submit(self, job: Job) -> None:
        self.under_way += 1
        self._jobs.put(job)

    def apply(self, *, wait: bool) -> None:
        while self.under_way and (wait or not self._done.empty()):
            self._done.get().apply()
            self.under_way -= 1

    def stop(self) -> None:
        self.apply(wait=True)
        self._jobs.put(None)
        self._thread.join()


def read_all(store: Store, group: int) -> bytes:
    return stored(store.groups[group])


def test_rounds_jobs_and_reads_go_on_at_once(tmp_path: Path) -> None:
    store = open_in(tmp_path)
    logs = [add_group(store, group) for group in (1, 2, 3)]
    housekeeper = Housekeeper()
    written: dict[int, list[StampedBatch]] = {log.group: [] for log in logs}
    with ThreadPoolExecutor(1) as writer, ThreadPoolExecutor(2) as readers:
        reads = []
        for number in range(150):
            entries: list[RoundEntry] = []
            for log in logs:
                batch = make_batch(log.end, value_bytes=50 + 13 * (number % 40))
                while (space := log.space_for(batch.batch_bytes)) is not None:
                    housekeeper.submit(space)
                    housekeeper.apply(wait=True)
                entries.append(Append(log.group, batch))
                written[log.group].append(batch)
            while not store.can_write_round():
                job = store.next_housekeeping()
                assert job is not None
                housekeeper.submit(job)
                housekeeper.apply(wait=True)
            made = store.prepare_round(entries)
            writer.submit(made.write).result()
            made.apply_durable()
            writer.submit(made.settle).result()
            made.apply_written()
            housekeeper.apply(wait=False)
            if not housekeeper.under_way and (job := store.next_housekeeping()) is not None:
                housekeeper.submit(job)
            plan = logs[0].plan_read(0, logs[0].written_next_offset, 1 << 20)
            reads.append(readers.submit(plan.run))
        for read in reads:
            result = read.result()
            assert result is not None
            assert result.first_offset == 0
    housekeeper.stop()
    commit(store, [])
    for log in logs:
        assert read_all(store, log.group) == joined(written[log.group])
    store.close()

    again = open_in(tmp_path)

    for group, batches in written.items():
        assert read_all(again, group) == joined(batches)
    again.close()


def test_a_directory_that_is_open_is_locked(tmp_path: Path) -> None:
    store = open_in(tmp_path)
    with pytest.raises(StoreLocked):
        open_in(tmp_path)
    store.close()
    open_in(tmp_path).close()


def test_restarts_do_not_pile_up_files(tmp_path: Path) -> None:
    store = open_in(tmp_path)
    add_group(store, 1)
    for _ in range(12):
        log = store.groups[1]
        for batch in make_batches(log.end, 3):
            while (job := log.space_for(batch.batch_bytes)) is not None:
                do(job)
            commit(store, [Append(1, batch)])
        housekeep(store)
        # As after a kill: nothing is closed, and the lock is gone with the process.
        store.journal.close()
        store.context.open_files.close()
        store._lock.release()
        store = open_in(tmp_path)

    assert len(list((tmp_path / "data" / "journal").iterdir())) <= SMALL.journal_files_max
    assert store.groups[1].end.index == 36
    store.close()


def test_three_hundred_groups_come_back(tmp_path: Path) -> None:
    store = Store.open(
        OsFileSystem(), str(tmp_path / "data"), node_name=NODE, new_cluster_id=CLUSTER_ID, new_journal_id=JOURNAL_ID
    )
    entries: list[RoundEntry] = []
    for group in range(300):
        start = new_start(group)
        do(store.create_group(group, start))
        entries += [SetStart(group, start), SetHardState(group, HardState(group + 1, NODE, 0))]
    commit(store, entries)
    store.close()

    again = Store.open(
        OsFileSystem(), str(tmp_path / "data"), node_name=NODE, new_cluster_id=CLUSTER_ID, new_journal_id=JOURNAL_ID
    )

    assert {group: log.hard_state for group, log in again.groups.items()} == {
        group: HardState(group + 1, NODE, 0) for group in range(300)
    }
    again.close()
