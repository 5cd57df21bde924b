"""Claims about reading, whatever door it comes through. No test waits for real time: the clock jumps."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from logd.service.authorization import MembersOfCluster
from logd.service.fetch import FetchService, Subscription
from tests.support.fake_cluster import TIME_MS, FakeCluster, FakePartition, batch_of
from wire.errors import (
    CorruptBatch,
    InvalidRequest,
    NotAuthorized,
    NotLeader,
    NotYetAvailable,
    OffsetOutOfRange,
    TopicNotFound,
)
from wire.messages import (
    DamageReported,
    Delivery,
    Fetch,
    Fetched,
    ListedOffsets,
    ListOffsets,
    ReportDamage,
    Subscribe,
)
from wire.record import split_batches
from wire.types import Anchor

ADA = "spiffe://orchard/user/ada"
MALLORY = "spiffe://elsewhere/user/mallory"
WAIT_SECONDS_MAX = 60.0
FETCH_BYTES_MAX = 10_000


@pytest.fixture
def service(cluster: FakeCluster) -> FetchService:
    return FetchService(cluster, MembersOfCluster("orchard"), FETCH_BYTES_MAX, WAIT_SECONDS_MAX)


def fetch(offset: int, max_bytes: int = 1 << 20, max_wait_ms: int = 0) -> Fetch:
    return Fetch("orders", 0, offset, max_bytes, max_wait_ms)


def stored(partition: FakePartition, *places: int) -> bytes:
    return b"".join(partition.batches[place].to_bytes() for place in places)


# --- Fetch ------------------------------------------------------------------------------------------------------------


async def test_whole_batches_are_given_from_the_one_that_holds_the_offset(
    service: FetchService, partition: FakePartition
) -> None:
    partition.fill(3, records=2)
    assert await service.fetch(ADA, fetch(3)) == Fetched(stored(partition, 1, 2), 6, 0, 6)


async def test_an_answer_holds_what_was_asked_for_and_one_batch_at_least(
    service: FetchService, partition: FakePartition
) -> None:
    size = partition.fill(3)
    assert await service.fetch(ADA, fetch(0, max_bytes=2 * size)) == Fetched(stored(partition, 0, 1), 2, 0, 3)
    assert await service.fetch(ADA, fetch(0, max_bytes=2 * size - 1)) == Fetched(stored(partition, 0), 1, 0, 3)
    assert await service.fetch(ADA, fetch(0, max_bytes=0)) == Fetched(stored(partition, 0), 1, 0, 3)


async def test_no_answer_is_longer_than_the_service_allows(service: FetchService, partition: FakePartition) -> None:
    size = partition.fill(20, value=bytes(1_000))
    fetched = await service.fetch(ADA, fetch(0, max_bytes=2**32 - 1))
    assert len(fetched.batches) == FETCH_BYTES_MAX // size * size


async def test_at_the_end_there_is_nothing_and_no_read(service: FetchService, partition: FakePartition) -> None:
    partition.fill(2)
    assert await service.fetch(ADA, fetch(2)) == Fetched(b"", 2, 0, 2)
    assert partition.reads == []


async def test_a_fetch_of_an_empty_partition_starts_at_zero(service: FetchService) -> None:
    assert await service.fetch(ADA, fetch(0)) == Fetched(b"", 0, 0, 0)


@pytest.mark.parametrize("offset", [0, 1, 7, 2**64 - 1])
async def test_an_offset_that_is_not_there_is_refused_with_both_bounds(
    service: FetchService, partition: FakePartition, offset: int
) -> None:
    partition.fill(6)
    partition.log_start_offset = 2
    with pytest.raises(OffsetOutOfRange) as caught:
        await service.fetch(ADA, fetch(offset, max_wait_ms=1000))
    assert caught.value.details == {"log_start_offset": 2, "high_watermark": 6, "offset": offset}


async def test_a_fetch_at_the_end_waits_for_a_record(
    service: FetchService, partition: FakePartition, autojump_clock: trio.testing.MockClock
) -> None:
    async def append_later() -> None:
        await trio.sleep(5)
        partition.append(batch_of())

    before = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(append_later)
        fetched = await service.fetch(ADA, fetch(0, max_wait_ms=30_000))
    assert fetched == Fetched(stored(partition, 0), 1, 0, 1)
    assert trio.current_time() - before == pytest.approx(5)


@pytest.mark.parametrize(("max_wait_ms", "seconds"), [(1_500, 1.5), (2**32 - 1, WAIT_SECONDS_MAX)])
async def test_the_wait_ends_by_the_request_or_by_the_bound(
    service: FetchService, autojump_clock: trio.testing.MockClock, max_wait_ms: int, seconds: float
) -> None:
    before = trio.current_time()
    assert await service.fetch(ADA, fetch(0, max_wait_ms=max_wait_ms)) == Fetched(b"", 0, 0, 0)
    assert trio.current_time() - before == pytest.approx(seconds)


async def test_a_fetch_does_not_wait_where_there_is_something(
    service: FetchService, partition: FakePartition, autojump_clock: trio.testing.MockClock
) -> None:
    partition.fill(1)
    before = trio.current_time()
    await service.fetch(ADA, fetch(0, max_wait_ms=30_000))
    assert trio.current_time() == before


@pytest.mark.parametrize("error", [NotLeader("left"), CorruptBatch("damaged"), NotYetAvailable("new term")])
async def test_whoever_waits_learns_what_happened_to_the_partition(
    service: FetchService,
    partition: FakePartition,
    autojump_clock: trio.testing.MockClock,
    error: NotLeader | CorruptBatch | NotYetAvailable,
) -> None:
    async def fail_later() -> None:
        await trio.sleep(1)
        partition.fail(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail_later)
        with pytest.raises(type(error)):
            await service.fetch(ADA, fetch(0, max_wait_ms=30_000))


async def test_retention_that_overtakes_a_waiting_reader_is_told(
    service: FetchService, partition: FakePartition, autojump_clock: trio.testing.MockClock
) -> None:
    async def append_and_retain() -> None:
        await trio.sleep(1)
        partition.fill(5)
        partition.log_start_offset = 3

    async with trio.open_nursery() as nursery:
        nursery.start_soon(append_and_retain)
        with pytest.raises(OffsetOutOfRange):
            await service.fetch(ADA, fetch(0, max_wait_ms=30_000))


@pytest.mark.parametrize(("topic", "partition_number"), [("audit", 0), ("orders", 2), ("", 0)])
async def test_reading_what_is_not_there(service: FetchService, topic: str, partition_number: int) -> None:
    with pytest.raises(TopicNotFound):
        await service.fetch(ADA, Fetch(topic, partition_number, 0, 1))
    with pytest.raises(TopicNotFound):
        service.subscribe(ADA, Subscribe(topic, partition_number, 0, 1))
    with pytest.raises(TopicNotFound):
        await service.list_offsets(ADA, ListOffsets(topic, partition_number, Anchor.END))


async def test_nobody_of_another_cluster_reads(service: FetchService, partition: FakePartition) -> None:
    partition.fill(1)
    with pytest.raises(NotAuthorized):
        await service.fetch(MALLORY, fetch(0))
    with pytest.raises(NotAuthorized):
        service.subscribe(MALLORY, Subscribe("orders", 0, 0, 1))
    with pytest.raises(NotAuthorized):
        await service.list_offsets(MALLORY, ListOffsets("orders", 0, Anchor.END))
    with pytest.raises(NotAuthorized):
        await service.report_damage(MALLORY, ReportDamage("orders", 0, 0, 1, ""))
    assert partition.reads == []


# --- Where to start, and damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "offset"),
    [
        (Anchor.START, 2),
        (Anchor.END, 6),
        (TIME_MS, 2),
        (-(2**63), 2),
        (TIME_MS + 2_000, 2),
        (TIME_MS + 2_001, 3),
        (TIME_MS + 5_000, 5),
        (TIME_MS + 5_001, 6),
        (2**63 - 1, 6),
    ],
)
async def test_a_start_is_found_within_what_is_readable(
    service: FetchService, partition: FakePartition, at: Anchor | int, offset: int
) -> None:
    partition.fill(6)
    partition.log_start_offset = 2
    assert await service.list_offsets(ADA, ListOffsets("orders", 0, at)) == ListedOffsets(offset, 2, 6)


async def test_reported_damage_is_looked_at_again(service: FetchService, partition: FakePartition) -> None:
    partition.fill(5)
    partition.damaged = {3}
    assert await service.report_damage(ADA, ReportDamage("orders", 0, 3, 4, "digest")) == DamageReported(confirmed=True)
    assert await service.report_damage(ADA, ReportDamage("orders", 0, 0, 3, "")) == DamageReported(confirmed=False)


@pytest.mark.parametrize(("base_offset", "next_offset"), [(3, 3), (3, 2), (2**64 - 1, 0)])
async def test_damage_of_no_record_is_no_report(service: FetchService, base_offset: int, next_offset: int) -> None:
    with pytest.raises(InvalidRequest):
        await service.report_damage(ADA, ReportDamage("orders", 0, base_offset, next_offset, ""))


async def test_damage_outside_of_the_log_is_not_looked_for(service: FetchService, partition: FakePartition) -> None:
    partition.fill(5)
    with pytest.raises(OffsetOutOfRange):
        await service.report_damage(ADA, ReportDamage("orders", 0, 6, 7, ""))


# --- Subscriptions ----------------------------------------------------------------------------------------------------


def subscribe(service: FetchService, offset: int, credit_bytes: int) -> Subscription:
    return service.subscribe(ADA, Subscribe("orders", 0, offset, credit_bytes))[1]


async def delivery_of(subscription: Subscription) -> Delivery:
    await subscription.wait()
    delivery = await subscription.read()
    assert delivery is not None
    return delivery


def test_a_subscription_tells_the_bounds_first(service: FetchService, partition: FakePartition) -> None:
    partition.fill(3)
    bounds, _ = service.subscribe(ADA, Subscribe("orders", 0, 3, 100))
    assert bounds == (0, 3)
    with pytest.raises(OffsetOutOfRange):
        service.subscribe(ADA, Subscribe("orders", 0, 4, 100))


async def test_deliveries_follow_each_other_without_a_gap(service: FetchService, partition: FakePartition) -> None:
    size = partition.fill(5, records=2)
    subscription = subscribe(service, 3, 1 << 20)
    assert await delivery_of(subscription) == Delivery(stored(partition, 1, 2, 3, 4), 10, 0, 10)
    partition.fill(1)
    assert await delivery_of(subscription) == Delivery(stored(partition, 5), 11, 0, 11)
    assert size > 0


async def test_without_credit_nothing_is_delivered(
    service: FetchService, partition: FakePartition, autojump_clock: trio.testing.MockClock
) -> None:
    size = partition.fill(3)
    subscription = subscribe(service, 0, 0)
    with trio.move_on_after(10) as patience:
        await subscription.wait()
    assert patience.cancelled_caught
    subscription.add_credit(size)
    assert (await delivery_of(subscription)).next_offset == 1
    with trio.move_on_after(10) as patience:
        await subscription.wait()
    assert patience.cancelled_caught


async def test_credit_that_comes_while_it_is_waited_for_wakes(
    service: FetchService, partition: FakePartition, autojump_clock: trio.testing.MockClock
) -> None:
    partition.fill(1)
    subscription = subscribe(service, 0, 0)

    async def give_later() -> None:
        await trio.sleep(3)
        subscription.add_credit(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_later)
        assert (await delivery_of(subscription)).next_offset == 1


async def test_a_delivery_above_the_credit_is_one_batch_and_is_paid_later(
    service: FetchService, partition: FakePartition, autojump_clock: trio.testing.MockClock
) -> None:
    size = partition.fill(4)
    subscription = subscribe(service, 0, 1)
    assert (await delivery_of(subscription)).next_offset == 1
    subscription.add_credit(size - 1)
    with trio.move_on_after(10) as patience:
        await subscription.wait()
    assert patience.cancelled_caught
    subscription.add_credit(1)
    assert (await delivery_of(subscription)).next_offset == 2


async def test_no_delivery_is_longer_than_the_service_allows(service: FetchService, partition: FakePartition) -> None:
    size = partition.fill(20, value=bytes(1_000))
    subscription = subscribe(service, 0, 2**32 - 1)
    assert len((await delivery_of(subscription)).batches) == FETCH_BYTES_MAX // size * size


async def test_a_subscription_at_the_end_of_retention_is_told(service: FetchService, partition: FakePartition) -> None:
    partition.fill(5)
    subscription = subscribe(service, 0, 1 << 20)
    partition.log_start_offset = 3
    await subscription.wait()
    with pytest.raises(OffsetOutOfRange):
        await subscription.read()


@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=20),
    credits_=st.lists(st.integers(0, 2_000), min_size=1, max_size=20),
    first=st.integers(0, 1_000),
)
def test_never_more_than_one_batch_is_delivered_above_the_credit(
    sizes: list[int], credits_: list[int], first: int
) -> None:
    async def run() -> None:
        partition = FakePartition()
        largest = max(partition.fill(1, value=bytes(size)) for size in sizes)
        subscription = Subscription(partition, 0, first, 700)
        given_bytes, delivered = first, b""
        for credit in (0, *credits_):
            subscription.add_credit(credit)
            given_bytes += credit
            while True:
                with trio.move_on_after(1) as patience:
                    await subscription.wait()
                if patience.cancelled_caught:
                    break
                delivery = await subscription.read()
                assert delivery is not None
                delivered += delivery.batches
                assert len(delivered) < given_bytes + largest
        # What the credit was for has come, and nothing twice or out of order.
        whole = b"".join(batch.to_bytes() for batch in partition.batches)
        assert whole.startswith(delivered)
        assert len(delivered) >= min(given_bytes, len(whole))
        assert len(list(split_batches(delivered))) <= len(sizes)

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
