"""Claims about producing, whatever door it comes through."""

import pytest

from logd.service.authorization import MembersOfCluster
from logd.service.produce import ProduceService
from tests.support.fake_cluster import FakeCluster, FakePartition, batch_of
from wire.errors import (
    BatchTooLarge,
    CorruptBatch,
    InvalidBatch,
    LogdError,
    NotAuthorized,
    NotLeader,
    OffsetMismatch,
    TopicNotFound,
)
from wire.messages import Produce, Produced
from wire.record import ControlKind, control_batch
from wire.types import Acks, Durability

ADA = "spiffe://orchard/user/ada"
BATCH = batch_of()
BATCH_BYTES_MAX = 1_000


def produce(cluster: FakeCluster, request: Produce, principal: str = ADA) -> Produced | LogdError:
    outcomes: list[Produced | LogdError] = []
    ProduceService(cluster, MembersOfCluster("orchard"), BATCH_BYTES_MAX).produce(principal, request, outcomes.append)
    (outcome,) = outcomes
    return outcome


def test_a_batch_is_handed_on_as_it_came(cluster: FakeCluster, partition: FakePartition) -> None:
    partition.holds = True
    service = ProduceService(cluster, MembersOfCluster("orchard"), BATCH_BYTES_MAX)
    service.produce(ADA, Produce("orders", 0, Acks.QUORUM, BATCH, 7), lambda outcome: None)
    (held,) = partition.held
    assert held.batch is BATCH
    assert held.expected_offset == 7


def test_the_outcome_is_the_partitions(cluster: FakeCluster) -> None:
    outcome = produce(cluster, Produce("orders", 0, Acks.QUORUM, BATCH))
    assert isinstance(outcome, Produced)
    assert (outcome.base_offset, outcome.durability) == (0, Durability.QUORUM_FSYNC)
    assert isinstance(produce(cluster, Produce("orders", 0, Acks.QUORUM, BATCH, 9)), OffsetMismatch)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (Produce("audit", 0, Acks.QUORUM, BATCH), TopicNotFound),
        (Produce("orders", 2, Acks.QUORUM, BATCH), TopicNotFound),
        (Produce("", 0, Acks.NONE, BATCH), TopicNotFound),
        (Produce("orders", 0, Acks.QUORUM, b""), InvalidBatch),
        (Produce("orders", 0, Acks.QUORUM, BATCH[:-1]), InvalidBatch),
        (Produce("orders", 0, Acks.QUORUM, BATCH + b"\x00"), InvalidBatch),
        (Produce("orders", 0, Acks.QUORUM, BATCH[:-1] + bytes([BATCH[-1] ^ 1])), CorruptBatch),
        (Produce("orders", 0, Acks.QUORUM, batch_of(value=bytes(BATCH_BYTES_MAX))), BatchTooLarge),
        (Produce("orders", 0, Acks.QUORUM, control_batch(ControlKind.NO_OP, timestamp_ms=0)), InvalidBatch),
    ],
)
def test_a_refusal_goes_to_the_reply_and_nothing_is_appended(
    cluster: FakeCluster, partition: FakePartition, request_: Produce, error: type[LogdError]
) -> None:
    assert type(produce(cluster, request_)) is error
    assert partition.batches == []


def test_a_partition_that_is_being_set_up_is_not_led(cluster: FakeCluster) -> None:
    del cluster.partitions[1]
    outcome = produce(cluster, Produce("orders", 0, Acks.QUORUM, BATCH))
    assert isinstance(outcome, NotLeader)
    assert outcome.retriable


@pytest.mark.parametrize(
    "principal", ["spiffe://orchard2/user/a", "spiffe://orchard", "", "orchard/user/a", "spiffe://other/orchard/a"]
)
def test_nobody_of_another_cluster_appends(cluster: FakeCluster, partition: FakePartition, principal: str) -> None:
    outcome = produce(cluster, Produce("orders", 0, Acks.QUORUM, BATCH), principal)
    assert isinstance(outcome, NotAuthorized)
    assert partition.batches == []


def test_nodes_are_members_too(cluster: FakeCluster) -> None:
    outcome = produce(cluster, Produce("orders", 0, Acks.NONE, BATCH), "spiffe://orchard/node/node-1")
    assert isinstance(outcome, Produced)
