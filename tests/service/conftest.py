"""A cluster in memory with one topic, `orders`, of two partitions."""

import pytest

from logd.meta.commands import CreateTopic
from tests.support.fake_cluster import FakeCluster, FakePartition


@pytest.fixture
def cluster() -> FakeCluster:
    made = FakeCluster()
    made.meta.apply(CreateTopic("orders", bytes(16), 2, {}))
    made.set_up((1, 2))
    return made


@pytest.fixture
def partition(cluster: FakeCluster) -> FakePartition:
    return cluster.partition("orders", 0)
