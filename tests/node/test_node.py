"""The node in the test's own loop: real TLS, a real directory, and a disk that does what the test wants."""

import shutil
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

import wire
from logd.config import development_flags, load
from logd.node.actor import DiskFailed
from logd.node.node import Node, Ready
from logd.replica.driver import META_BATCHES_PER_SNAPSHOT
from logd.security.ca import DevelopmentCertificates, ensure_development_certificates
from logd.security.tls import SecurityError
from logd.store.files import Buffer, File, FileSystem, OsFileSystem
from wire.errors import ConnectionLost, CorruptBatch
from wire.messages import InitProducer
from wire.record import check_alone, decode_records, encode_batch


class HeldFile:
    """A file whose writes wait, while the test holds them, or fail, if the test wants that."""

    def __init__(self, file: File, disk: "HeldDisk") -> None:
        self._file = file
        self._disk = disk

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def pwritev(self, buffers: Sequence[Buffer], position: int) -> None:
        if self._file.path.endswith(".log"):
            self._disk.segments_released.wait()
        self._file.pwritev(buffers, position)

    def sync(self) -> None:
        if self._disk.is_broken and "/journal/" in self._file.path:
            raise OSError(5, "Input/output error", self._file.path)
        self._file.sync()


class HeldDisk(OsFileSystem):
    """The real file system, with a hand on the writes to segments."""

    def __init__(self) -> None:
        super().__init__()
        self.segments_released = threading.Event()
        self.segments_released.set()
        self.is_broken = False

    def open(self, path: str, *, create: bool = False, exclusive: bool = False, writable: bool = True) -> File:
        return HeldFile(super().open(path, create=create, exclusive=exclusive, writable=writable), self)  # type: ignore[return-value]  # by __getattr__


def certificates(directory: Path, node_name: str = "logd-0") -> DevelopmentCertificates:
    return ensure_development_certificates(str(directory / "tls"), "logd", node_name, ["127.0.0.1"])


def make_node(directory: Path, on_ready: object = None, files: FileSystem | None = None, **flags: object) -> Node:
    settings = {**development_flags(str(directory)), "node.cluster_name": "logd", "listen.client": "127.0.0.1:0"}
    return Node(load(None, {}, {**settings, **flags}), on_ready, files)  # type: ignore[arg-type]  # a callable


@asynccontextmanager
async def running(directory: Path, files: FileSystem | None = None, **flags: object) -> AsyncIterator[wire.Client]:
    """A node, and a client of it; the node is stopped in an orderly way at the end."""
    user = certificates(directory).user
    ready: list[Ready] = []
    is_ready = trio.Event()

    def on_ready(told: Ready) -> None:
        ready.append(told)
        is_ready.set()

    async with trio.open_nursery() as nursery:
        node = make_node(directory, on_ready, files, **flags)
        nursery.start_soon(node.run)
        await is_ready.wait()
        tls = wire.Tls(user.ca, user.certificate, user.key)
        async with wire.Client(f"127.0.0.1:{ready[0].port}", tls=tls) as client:
            yield client
        node.stop()


def values(batches: bytes) -> list[bytes | None]:
    return [record.value for record in decode_records(check_alone(batches), batches, 0)]


async def fill_and_find(client: wire.Client, topic: str) -> None:
    """Produce and read one record: whatever was under way to the segments before it is there now."""
    first = await client.produce(topic, 0, encode_batch([(b"first", None, 0, None)]))
    assert values((await client.fetch(topic, 0, first.base_offset)).batches) == [b"first"]


async def test_what_was_acknowledged_is_found_although_its_segment_is_not_written_yet(tmp_path: Path) -> None:
    disk = HeldDisk()
    async with running(tmp_path, disk) as client:
        await client.create_topic("slow")
        await fill_and_find(client, "slow")
        disk.segments_released.clear()

        produced = await client.produce("slow", 0, encode_batch([(b"second", None, 0, None)]))
        listed = await client.list_offsets("slow", 0, wire.Anchor.END)
        found: list[bytes | None] = []

        async def fetch() -> None:
            found.extend(values((await client.fetch("slow", 0, produced.base_offset)).batches))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch)
            await client.ping()
            assert not found, "the segment is held"
            disk.segments_released.set()

        assert found == [b"second"]
        assert listed.offset == produced.base_offset + 1


async def test_a_lookup_by_time_counts_what_was_acknowledged_although_its_segment_is_not_written_yet(
    tmp_path: Path,
) -> None:
    disk = HeldDisk()
    async with running(tmp_path, disk) as client:
        await client.create_topic("slow")
        await fill_and_find(client, "slow")
        disk.segments_released.clear()
        produced = await client.produce("slow", 0, encode_batch([(b"only", None, 0, None)]))
        listed: list[int] = []

        async def look_up(timestamp_ms: int) -> None:
            listed.append((await client.list_offsets("slow", 0, timestamp_ms)).offset)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look_up, 2**62)
            await client.ping()
            assert not listed, "the segment is held"
            disk.segments_released.set()

        assert listed == [produced.base_offset + 1]


async def test_a_failed_sync_of_the_journal_ends_the_node(tmp_path: Path) -> None:
    disk = HeldDisk()

    with pytest.RaisesGroup(DiskFailed, flatten_subgroups=True):
        async with running(tmp_path, disk) as client:
            await client.create_topic("doomed")
            disk.is_broken = True
            with pytest.raises(ConnectionLost):
                await client.produce("doomed", 0, encode_batch([(b"never promised", None, 0, None)]))


async def test_every_start_has_a_term_of_its_own_and_keeps_everything_else(tmp_path: Path) -> None:
    terms = []
    for number in range(3):
        async with running(tmp_path) as client:
            if number == 0:
                await client.create_topic("kept", partitions=2)
            produced = await client.produce("kept", 1, encode_batch([(b"%d" % number, None, 0, None)]))
            assert produced.base_offset == number
            terms.append(produced.term)
            described = await client.describe_topic("kept")
            assert [partition.high_watermark for partition in described.partitions] == [0, number + 1]

    assert terms == [1, 2, 3]


async def test_group_zero_is_restored_from_its_snapshot_and_what_came_after(tmp_path: Path) -> None:
    async with running(tmp_path) as client:
        await client.create_topic("before")
        ids = [await client.request(InitProducer()) for _ in range(META_BATCHES_PER_SNAPSHOT + 5)]
        await client.create_topic("after")
    starts = sorted((tmp_path / "groups" / ("0" * 20)).glob("*.start"))

    async with running(tmp_path) as client:
        topics = {topic.topic for topic in (await client.metadata()).topics}
        next_id = await client.request(InitProducer())

    assert [int(start.stem) > 0 for start in starts] == [True], "the snapshot took the place of the first start"
    assert topics == {"before", "after"}
    assert next_id.producer_id == ids[-1].producer_id + 1  # type: ignore[attr-defined]  # ProducerInitialized


async def test_a_certificate_of_another_node_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    certificates(tmp_path, "logd-7")

    with pytest.raises(SecurityError, match="logd-7"):
        await make_node(tmp_path).run()

    assert not (tmp_path / "node.json").exists()


async def test_a_node_that_lost_its_topics_gives_up_nothing_else(tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    async with running(tmp_path) as client:
        await client.create_topic("kept")
        await client.produce("kept", 0, encode_batch([(b"kept", None, 0, None)]))
    shutil.rmtree(groups / ("0" * 20))
    async with running(tmp_path) as client:
        assert [topic.topic for topic in (await client.metadata()).topics] == ["kept"], "the journal still has it"
    shutil.rmtree(groups / ("0" * 20))
    kept = sorted((groups / f"{1:020}").glob("*.log"))

    with pytest.raises(CorruptBatch, match="group 0"):
        await make_node(tmp_path).run()

    assert kept
    assert sorted((groups / f"{1:020}").glob("*.log")) == kept
