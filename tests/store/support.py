"""What the store's tests share: batches, a store driven by hand, and small options."""

from collections.abc import Iterable

from logd.store.context import StoreOptions
from logd.store.files import FileSystem
from logd.store.format import HardState, LogEnd, Start
from logd.store.jobs import Job
from logd.store.log import Log
from logd.store.round import Append, Round, RoundEntry, SetHardState, SetStart
from logd.store.store import Store
from wire.record import Stamp, StampedBatch, encode_batch, first_chain, stamp

CLUSTER_ID = bytes(range(16))
JOURNAL_ID = bytes(range(100, 116))
TOPIC_ID = bytes(range(50, 66))
NODE = "node-1"
DIRECTORY = "/data"
KIB = 1 << 10

SMALL = StoreOptions(
    segment_bytes_max=8 * KIB,
    index_interval_bytes=512,
    journal_file_bytes=64 * KIB,
    journal_files_max=6,
    round_bytes_max=32 * KIB,
    disk_reserve_bytes=0,
    open_files_max=8,
    allocation_bytes_min=4 * KIB,
    allocation_bytes_max=16 * KIB,
)

# What a simulated minute of a few batches a second fills, several times over: journal files roll and are recycled,
# segments are sealed, indexed and given up.
SIMULATED = StoreOptions(
    segment_bytes_max=64 * KIB,
    index_interval_bytes=4 * KIB,
    journal_file_bytes=256 * KIB,
    journal_files_max=6,
    round_bytes_max=128 * KIB,
    disk_reserve_bytes=64 * KIB,
    open_files_max=64,
    allocation_bytes_min=16 * KIB,
    allocation_bytes_max=64 * KIB,
)


def open_store(files: FileSystem, options: StoreOptions = SMALL, node: str = NODE) -> Store:
    return Store.open(
        files, DIRECTORY, node_name=node, options=options, new_cluster_id=CLUSTER_ID, new_journal_id=JOURNAL_ID
    )


def new_start(group: int = 1) -> Start:
    return Start(0, 0, 0, first_chain(CLUSTER_ID, TOPIC_ID, group), 0, TOPIC_ID, group, b"voters", b"")


def make_batch(
    before: LogEnd, *, term: int = 1, records: int = 2, value_bytes: int = 40, salt: int = 0
) -> StampedBatch:
    """A batch that follows `before`."""
    value = bytes([salt % 256]) * value_bytes
    raw = encode_batch([(value, b"k%d" % number, 1_000 + number, None) for number in range(records)])
    timestamp = before.append_timestamp + 10
    return stamp(raw, Stamp(before.next_offset, before.index + 1, term, timestamp, before.chain))


def end_of(batch: StampedBatch) -> LogEnd:
    header = batch.header
    return LogEnd(header.index, header.term, header.next_offset, header.append_timestamp, header.chain)


def make_batches(before: LogEnd, count: int, **how: int) -> list[StampedBatch]:
    batches = []
    for _ in range(count):
        batches.append(make_batch(before, **how))
        before = end_of(batches[-1])
    return batches


def do(job: Job | None) -> None:
    if job is not None:
        job.run()
        job.apply()


def housekeep(store: Store) -> None:
    while (job := store.next_housekeeping()) is not None:
        do(job)


def finish(made: Round) -> None:
    made.write()
    made.apply_durable()
    made.settle()
    made.apply_written()


def commit(store: Store, entries: Iterable[RoundEntry]) -> None:
    finish(store.prepare_round(list(entries)))


def make_room(log: Log, batches: list[StampedBatch]) -> None:
    total = sum(batch.batch_bytes for batch in batches)
    index = batches[0].header.index
    for _ in range(5):
        job = log.space_for(total, index=index)
        if job is None:
            return
        do(job)
    raise AssertionError("no room after five jobs")


def append(store: Store, group: int, batches: list[StampedBatch]) -> None:
    make_room(store.groups[group], batches)
    commit(store, [Append(group, batch) for batch in batches])


def add_group(store: Store, group: int, term: int = 1) -> Log:
    start = new_start(group)
    do(store.create_group(group, start))
    commit(store, [SetStart(group, start), SetHardState(group, HardState(term, NODE, 0))])
    return store.groups[group]


def stored(log: Log) -> bytes:
    """All the bytes of a log, as readers get them."""
    parts = []
    index = log.start.index + 1
    while index <= log.written.index:
        result = log.plan_read_index(index, log.written.index + 1, 1 << 20).run()
        assert result is not None
        assert result.first_index == index
        parts.append(bytes(result.batches))
        index = result.next_index
    return b"".join(parts)


def joined(batches: Iterable[StampedBatch]) -> bytes:
    return b"".join(batch.to_bytes() for batch in batches)
