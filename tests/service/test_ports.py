"""The contract of `logd.service.ports`, held against the fakes of the tests and against a node with a real disk."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from logd.config import development_flags, load
from logd.meta.commands import AlterTopic, CreateTopic, DeleteTopic, InitProducer
from logd.meta.state import META_GROUP, ProducerGranted, TopicChanged, TopicRemoved
from logd.node.actor import RaftActor
from logd.node.disk import Disk, Doorbell
from logd.node.node import Node, read_clock
from logd.node.partition import NodeCluster
from logd.service.ports import Bounds, Cluster, Partition
from tests.support.fake_cluster import FakeCluster, batch_of
from wire.errors import LogdError, NotLeader, OffsetMismatch, TopicExists, TopicNotFound
from wire.messages import Produced
from wire.record import check_produced, decode_header, split_batches
from wire.types import Acks, Durability

ORDERS = CreateTopic("orders", bytes(range(16)), 2, {})


@asynccontextmanager
async def node_cluster(directory: Path) -> AsyncIterator[NodeCluster]:
    """All of a node but its door."""
    node = Node(load(None, {}, development_flags(str(directory))))
    store = node._open_store()
    node._driver = node._make_driver(store)
    doorbell = Doorbell()
    disk = Disk(doorbell)
    disk.start()
    try:
        actor = RaftActor(store, node._driver, disk, doorbell, read_clock, node._log, lambda: None)
        node._driver.reconcile()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(actor.run)
            cluster = NodeCluster("node-1", ("127.0.0.1", 7421), actor, trio.CapacityLimiter(2))
            await cluster.wait_ready([META_GROUP])
            yield cluster
            actor.stop()
    finally:
        assert await disk.stop(30)
        doorbell.close()
        store.close()


@pytest.fixture(params=["fake", "node"])
async def any_cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cluster]:
    if request.param == "fake":
        yield FakeCluster()
    else:
        async with node_cluster(tmp_path / "data") as made:
            yield made


async def make_orders(cluster: Cluster) -> Partition:
    outcome = await cluster.command(ORDERS)
    assert isinstance(outcome, TopicChanged)
    await cluster.wait_ready(outcome.topic.groups)
    return cluster.partition("orders", 0)


async def produce(
    cluster: Cluster,
    partition: Partition,
    batch: bytes,
    acks: Acks = Acks.QUORUM,
    expected_offset: int | None = None,
) -> Produced | LogdError:
    """Produce, ring as a session would, and wait for the answer."""
    outcomes: list[Produced | LogdError] = []
    answered = trio.Event()

    def reply(outcome: Produced | LogdError) -> None:
        outcomes.append(outcome)
        answered.set()

    partition.produce(batch, check_produced(batch), acks, expected_offset, reply)
    if isinstance(cluster, NodeCluster):
        cluster._actor.start_waiting()
    with trio.fail_after(10):
        await answered.wait()
    await trio.lowlevel.checkpoint()
    (outcome,) = outcomes
    return outcome


async def test_commands_are_decided_and_seen_at_once(any_cluster: Cluster) -> None:
    await make_orders(any_cluster)
    assert any_cluster.topics()["orders"].configuration == {}
    assert isinstance(await any_cluster.command(ORDERS), TopicExists)
    assert await any_cluster.command(InitProducer("a")) == ProducerGranted(1, 0)
    altered = await any_cluster.command(AlterTopic("orders", 3, {}))
    assert isinstance(altered, TopicChanged)
    await any_cluster.wait_ready(altered.topic.groups)
    assert any_cluster.partition("orders", 2).bounds() == Bounds(0, 0)
    assert isinstance(await any_cluster.command(DeleteTopic("orders")), TopicRemoved)
    assert any_cluster.topics() == {}


async def test_what_is_not_there_is_not_found(any_cluster: Cluster) -> None:
    with pytest.raises(TopicNotFound):
        any_cluster.partition("orders", 0)
    await make_orders(any_cluster)
    with pytest.raises(TopicNotFound):
        any_cluster.partition("orders", 2)


async def test_what_is_acknowledged_is_read(any_cluster: Cluster) -> None:
    partition = await make_orders(any_cluster)
    for number in range(3):
        batch = batch_of(2, value=b"%d" % number)
        produced = await produce(any_cluster, partition, batch)
        assert isinstance(produced, Produced)
        assert (produced.base_offset, produced.durability) == (2 * number, Durability.QUORUM_FSYNC)
        assert partition.bounds() == Bounds(0, 2 * number + 2)
        read = await partition.read(2 * number + 1, 1)
        assert read.next_offset == 2 * number + 2
        (stored,) = [view for view in split_batches(read.batches) if not decode_header(view).is_control]
        assert bytes(stored[:80]) == batch[:80]
        assert decode_header(stored).chain == produced.chain


async def test_without_acks_the_answer_promises_nothing(any_cluster: Cluster) -> None:
    partition = await make_orders(any_cluster)
    produced = await produce(any_cluster, partition, batch_of(), Acks.NONE)
    assert produced == Produced(0, 0, 0, b"", Durability.NONE, ())
    with trio.fail_after(10):
        await partition.wait_beyond(0)


async def test_a_condition_that_does_not_hold_is_answered_with_what_does(any_cluster: Cluster) -> None:
    partition = await make_orders(any_cluster)
    refused = await produce(any_cluster, partition, batch_of(), expected_offset=1)
    assert isinstance(refused, OffsetMismatch)
    assert refused.details == {"next_offset": 0}
    assert isinstance(await produce(any_cluster, partition, batch_of(), expected_offset=0), Produced)


async def test_a_read_gives_whole_batches_and_one_at_least(any_cluster: Cluster) -> None:
    partition = await make_orders(any_cluster)
    for _ in range(5):
        await produce(any_cluster, partition, batch_of(value=bytes(1_000)))
    # What was just acknowledged may come with the next read.
    await partition.wait_beyond(4)
    for bytes_max, next_offset in ((0, 1), (1, 1), (3_500, 2), (1 << 20, 5)):
        read = await partition.read(0, bytes_max)
        headers = [decode_header(view) for view in split_batches(read.batches)]
        records = [header for header in headers if not header.is_control]
        assert read.next_offset == records[-1].next_offset
        # The real log begins with a no-op, which is delivered too.
        assert next_offset <= read.next_offset <= next_offset + 1
        assert records[0].base_offset == 0
    assert await partition.read(5, 1 << 20) == (b"", 5)


async def test_whoever_waits_is_woken_by_a_record(any_cluster: Cluster) -> None:
    partition = await make_orders(any_cluster)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for offset in (0, 0, 1):
                nursery.start_soon(partition.wait_beyond, offset)
            await trio.testing.wait_all_tasks_blocked()
            await produce(any_cluster, partition, batch_of(2))
        await partition.wait_beyond(1)
    assert partition.bounds().high_watermark == 2


@pytest.mark.parametrize("is_heard", [True, False])
async def test_whoever_waits_in_a_topic_that_is_deleted_is_told(any_cluster: Cluster, *, is_heard: bool) -> None:
    """Also when nobody waits for the answer to the deletion any more."""
    partition = await make_orders(any_cluster)
    told: list[LogdError] = []

    async def wait() -> None:
        try:
            await partition.wait_beyond(0)
        except LogdError as error:
            told.append(error)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            if is_heard or isinstance(any_cluster, FakeCluster):
                await any_cluster.command(DeleteTopic("orders"))
            else:
                async with trio.open_nursery() as hasty:
                    hasty.start_soon(any_cluster.command, DeleteTopic("orders"))
                    await trio.testing.wait_all_tasks_blocked()
                    hasty.cancel_scope.cancel()
    assert len(told) == 1
    assert told[0].retriable
    with pytest.raises(TopicNotFound):
        any_cluster.partition("orders", 0)


async def test_a_partition_that_was_deleted_refuses(any_cluster: Cluster) -> None:
    partition = await make_orders(any_cluster)
    await any_cluster.command(DeleteTopic("orders"))
    refused = await produce(any_cluster, partition, batch_of())
    assert isinstance(refused, NotLeader)
    with pytest.raises(LogdError):
        partition.bounds()


async def test_a_time_is_found_and_a_place_is_led(any_cluster: Cluster) -> None:
    partition = await make_orders(any_cluster)
    await produce(any_cluster, partition, batch_of(3))
    read = await partition.read(0, 1 << 20)
    headers = [decode_header(view) for view in split_batches(read.batches)]
    (stamp,) = [header.append_timestamp for header in headers if not header.is_control]
    assert await partition.offset_at(stamp) == 0
    assert await partition.offset_at(stamp + 1) == 3
    leader, term = partition.leader()
    assert leader == any_cluster.node
    assert term > 0
    size = partition.size()
    assert size.log_end_offset == 3
    assert size.log_bytes >= len(read.batches)
    assert size.segments >= 1
    assert not await partition.confirm_damage(0, 3)
