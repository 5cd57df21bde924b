"""Claims about topics, producer ids and metadata, whatever door they are asked through."""

import pytest
import trio

from logd.meta.commands import AlterTopic as AlterCommand
from logd.meta.commands import CreateTopic as CreateCommand
from logd.service.authorization import MembersOfCluster
from logd.service.configuration import TopicConfiguration
from logd.service.topics import TopicLimits, TopicService
from tests.support.fake_cluster import NODE, TERM, FakeCluster, FakePartition
from wire.errors import (
    CorruptBatch,
    InvalidRequest,
    InvalidTopic,
    NotAuthorized,
    TopicExists,
    TopicNotFound,
)
from wire.messages import (
    AlterTopic,
    CreateTopic,
    DeleteTopic,
    DescribeTopic,
    InitProducer,
    Metadata,
    NodeDescription,
    ProducerInitialized,
    TopicAltered,
    TopicCreated,
    TopicDeleted,
)

ADA = "spiffe://orchard/user/ada"
MALLORY = "spiffe://orchard2/user/mallory"
TOPIC_ID = bytes(range(16))
DEFAULTS = TopicConfiguration(None, 604_800.0)
DEFAULT_TEXT = {"retention.bytes": "none", "retention.seconds": "604800", "durability": "quorum_fsync"}


@pytest.fixture
def service(cluster: FakeCluster) -> TopicService:
    limits = TopicLimits(partitions_default=2, partitions_max=5, partitions_total_max=9)
    return TopicService(cluster, MembersOfCluster("orchard"), limits, DEFAULTS, lambda: TOPIC_ID)


# --- Creating ---------------------------------------------------------------------------------------------------------


async def test_a_topic_is_made_with_what_was_asked_for(service: TopicService, cluster: FakeCluster) -> None:
    request = CreateTopic("audit", 3, 1, {"retention.bytes": "1GiB"})
    assert await service.create(ADA, request) == TopicCreated(TOPIC_ID, 3)
    assert cluster.commands == [CreateCommand("audit", TOPIC_ID, 3, {"retention.bytes": "1GiB"})]


async def test_zero_partitions_are_the_default(service: TopicService) -> None:
    assert await service.create(ADA, CreateTopic("audit")) == TopicCreated(TOPIC_ID, 2)


@pytest.mark.parametrize("name", ["a", "A1", "a.b_c-d", "0", "a" * 249])
async def test_names_that_files_and_urls_can_carry_are_good(service: TopicService, name: str) -> None:
    assert await service.create(ADA, CreateTopic(name, 1)) == TopicCreated(TOPIC_ID, 1)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "-a", "_a", "__meta", "a/b", "a b", "ä", "a\n", "a\x00", "a" * 250, "a" * 100_000, "٣"]
)
async def test_other_names_are_refused_before_they_cost_a_record(
    service: TopicService, cluster: FakeCluster, name: str
) -> None:
    with pytest.raises(InvalidTopic, match="cannot name a topic"):
        await service.create(ADA, CreateTopic(name, 1))
    assert cluster.commands == []


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        (CreateTopic("a", 6), r"6 is not in 1…5"),
        (CreateTopic("a", 2**32 - 1), r"is not in 1…5"),
        (CreateTopic("a", 1, 2), "one replica"),
        (CreateTopic("a", 1, 1, {"retention.bytes": "many"}), "retention.bytes"),
        (CreateTopic("a", 1, 1, {"": ""}), "no such topic setting"),
    ],
)
async def test_what_cannot_be_had_is_refused_and_nothing_is_made(
    service: TopicService, cluster: FakeCluster, request_: CreateTopic, problem: str
) -> None:
    with pytest.raises(InvalidTopic, match=problem):
        await service.create(ADA, request_)
    assert cluster.commands == []


async def test_the_partitions_of_all_topics_are_bounded(service: TopicService) -> None:
    await service.create(ADA, CreateTopic("a", 5))
    with pytest.raises(InvalidTopic, match=r"7 of at most 9") as caught:
        await service.create(ADA, CreateTopic("b", 3))
    assert caught.value.details == {"partitions_total": 7, "partitions_total_max": 9}
    await service.create(ADA, CreateTopic("b", 2))


async def test_a_topic_that_is_there_costs_no_record(service: TopicService, cluster: FakeCluster) -> None:
    with pytest.raises(TopicExists):
        await service.create(ADA, CreateTopic("orders", 1))
    assert cluster.commands == []


async def test_of_two_who_make_the_same_topic_one_wins(service: TopicService, cluster: FakeCluster) -> None:
    cluster.gate = trio.Event()
    outcomes: list[object] = []

    async def create() -> None:
        try:
            outcomes.append(await service.create(ADA, CreateTopic("audit", 1)))
        except TopicExists as error:
            outcomes.append(type(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(create)
        nursery.start_soon(create)
        await trio.testing.wait_all_tasks_blocked()
        cluster.gate.set()
    assert sorted(map(str, outcomes)) == sorted(map(str, [TopicCreated(TOPIC_ID, 1), TopicExists]))


# --- Altering and deleting --------------------------------------------------------------------------------------------


async def test_a_topic_grows_and_is_configured(service: TopicService, cluster: FakeCluster) -> None:
    altered = await service.alter(ADA, AlterTopic("orders", 4, {"retention.seconds": "1h"}))
    assert altered == TopicAltered(4, {**DEFAULT_TEXT, "retention.seconds": "3600"})
    altered = await service.alter(ADA, AlterTopic("orders", None, {"retention.seconds": None}))
    assert altered == TopicAltered(4, DEFAULT_TEXT)
    assert [type(command) for command in cluster.commands] == [AlterCommand, AlterCommand]


@pytest.mark.parametrize(
    "request_", [AlterTopic("orders", 0), AlterTopic("orders", 6), AlterTopic("orders", 1), AlterTopic("orders", 2**32)]
)
async def test_a_number_of_partitions_that_cannot_be_is_refused(service: TopicService, request_: AlterTopic) -> None:
    with pytest.raises(InvalidTopic):
        await service.alter(ADA, request_)
    assert service.describe(ADA, DescribeTopic("orders")).partitions[1].partition == 1


async def test_growing_counts_only_what_is_new(service: TopicService) -> None:
    await service.create(ADA, CreateTopic("a", 5))
    await service.alter(ADA, AlterTopic("orders", 4))
    with pytest.raises(InvalidTopic, match="of at most 9"):
        await service.alter(ADA, AlterTopic("orders", 5))


async def test_a_deleted_topic_is_gone(service: TopicService, cluster: FakeCluster) -> None:
    assert await service.delete(ADA, DeleteTopic("orders")) == TopicDeleted()
    with pytest.raises(TopicNotFound):
        await service.delete(ADA, DeleteTopic("orders"))
    with pytest.raises(TopicNotFound):
        await service.alter(ADA, AlterTopic("orders"))
    assert len(cluster.commands) == 1


# --- Producers --------------------------------------------------------------------------------------------------------


async def test_producers_get_ids_and_names_get_epochs(service: TopicService) -> None:
    assert await service.init_producer(ADA, InitProducer()) == ProducerInitialized(1, 0)
    assert await service.init_producer(ADA, InitProducer("billing")) == ProducerInitialized(2, 0)
    assert await service.init_producer(ADA, InitProducer("billing")) == ProducerInitialized(2, 1)


@pytest.mark.parametrize("name", ["", "x" * 256, "x" * 1_000_000])
async def test_a_producers_name_is_bounded(service: TopicService, cluster: FakeCluster, name: str) -> None:
    with pytest.raises(InvalidRequest):
        await service.init_producer(ADA, InitProducer(name))
    assert cluster.commands == []


# --- Describing -------------------------------------------------------------------------------------------------------


def test_metadata_tells_who_leads_what(service: TopicService) -> None:
    told = service.metadata(ADA, Metadata())
    assert told.nodes == (NodeDescription(NODE, "127.0.0.1", 7421),)
    (topic,) = told.topics
    assert (topic.topic, topic.configuration) == ("orders", DEFAULT_TEXT)
    assert [(part.partition, part.group, part.leader, part.term, part.replicas) for part in topic.partitions] == [
        (0, 1, NODE, TERM, (NODE,)),
        (1, 2, NODE, TERM, (NODE,)),
    ]


def test_metadata_of_no_topics_is_of_the_nodes_alone(service: TopicService) -> None:
    assert service.metadata(ADA, Metadata(())).topics == ()


def test_metadata_of_a_topic_that_is_not_there_says_so(service: TopicService) -> None:
    with pytest.raises(TopicNotFound):
        service.metadata(ADA, Metadata(("orders", "audit")))


def test_a_topic_that_is_asked_for_often_is_told_once(service: TopicService) -> None:
    # Otherwise a frame of a few bytes per name would be answered with all partitions for each.
    assert len(service.metadata(ADA, Metadata(("orders",) * 100_000)).topics) == 1


def test_a_description_has_offsets_and_sizes(service: TopicService, partition: FakePartition) -> None:
    size = partition.fill(3, records=2)
    partition.log_start_offset = 2
    first, second = service.describe(ADA, DescribeTopic("orders")).partitions
    assert (first.log_start_offset, first.high_watermark, first.log_end_offset) == (2, 6, 6)
    assert (first.log_bytes, first.segments) == (3 * size, 1)
    assert (second.high_watermark, second.log_bytes) == (0, 0)


@pytest.mark.parametrize("damage", [True, False])
def test_a_partition_that_is_damaged_or_being_set_up_is_told_without_a_leader(
    service: TopicService, cluster: FakeCluster, partition: FakePartition, *, damage: bool
) -> None:
    if damage:
        partition.fail(CorruptBatch("its end is lost"))
    else:
        del cluster.partitions[1]
    first, second = service.describe(ADA, DescribeTopic("orders")).partitions
    assert (first.leader, first.term, first.replicas) == (None, 0, (NODE,))
    assert second.leader == NODE


# --- Authorization ----------------------------------------------------------------------------------------------------


async def test_nobody_of_another_cluster_gets_anything(service: TopicService, cluster: FakeCluster) -> None:
    with pytest.raises(NotAuthorized) as caught:
        await service.create(MALLORY, CreateTopic("audit"))
    assert caught.value.details == {"principal": MALLORY, "action": "admin", "resource": "audit"}
    with pytest.raises(NotAuthorized):
        await service.alter(MALLORY, AlterTopic("orders"))
    with pytest.raises(NotAuthorized):
        await service.delete(MALLORY, DeleteTopic("orders"))
    with pytest.raises(NotAuthorized):
        await service.init_producer(MALLORY, InitProducer())
    with pytest.raises(NotAuthorized):
        service.metadata(MALLORY, Metadata())
    with pytest.raises(NotAuthorized):
        service.describe(MALLORY, DescribeTopic("orders"))
    assert cluster.commands == []


async def test_whether_a_topic_exists_is_not_told_to_who_may_not_know(service: TopicService) -> None:
    with pytest.raises(NotAuthorized):
        await service.delete(MALLORY, DeleteTopic("audit"))
    with pytest.raises(NotAuthorized):
        service.describe(MALLORY, DescribeTopic("audit"))
