"""The consumer against both servers: where it starts, what it hands out, where it ends."""

import anyio
import pytest

import wire
from wire.errors import ClientClosed, InvalidRequest, OffsetOutOfRange, TopicNotFound
from wire.types import Anchor, Codec, Record

pytestmark = pytest.mark.anyio


async def fill(client: wire.Client, topic: str, records: int, *, partitions: int = 1, batch_records: int = 10) -> None:
    """Records `0` to `records - 1`, in turn to each partition."""
    await client.create_topic(topic, partitions=partitions)
    async with wire.Producer(client, topic, batch_records_max=batch_records) as producer:
        for number in range(records):
            await producer.send(b"%d" % number, partition=number % partitions)


def values(records: list[Record]) -> list[int]:
    return [int(record.value or b"") for record in records]


async def test_all_records_come_in_order(client: wire.Client, topic: str) -> None:
    await fill(client, topic, 1000)
    async with wire.Consumer(client, topic, follow=False) as consumer:
        records = [record async for record in consumer]
        assert consumer.position(0) == consumer.high_watermark(0) == 1000
    assert values(records) == list(range(1000))
    assert [record.offset for record in records] == list(range(1000))


@pytest.mark.parametrize("start", [0, 1, 9, 10, 55, 99])
async def test_reading_begins_exactly_at_an_offset(client: wire.Client, topic: str, start: int) -> None:
    await fill(client, topic, 100)
    async with wire.Consumer(client, topic, start=start, follow=False) as consumer:
        assert consumer.position(0) == start
        assert values([record async for record in consumer]) == list(range(start, 100))


async def test_reading_from_the_end_without_following_is_empty(client: wire.Client, topic: str) -> None:
    await fill(client, topic, 30)
    with anyio.fail_after(5):
        async with wire.Consumer(client, topic, start=Anchor.END, follow=False) as consumer:
            assert [record async for record in consumer] == []


async def test_an_empty_topic_ends_at_once(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=3)
    with anyio.fail_after(5):
        async with wire.Consumer(client, topic, follow=False) as consumer:
            assert [record async for record in consumer] == []
            assert [batch async for batch in consumer.batches()] == []


async def test_reading_by_time_begins_at_or_before_it(client: wire.Client, topic: str) -> None:
    await fill(client, topic, 30)
    async with wire.Consumer(client, topic, start_time_ms=0, follow=False) as consumer:
        assert len([record async for record in consumer]) == 30
    async with wire.Consumer(client, topic, start_time_ms=2**60, follow=False) as consumer:
        assert [record async for record in consumer] == []


async def test_following_hands_out_what_is_written_meanwhile(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    with anyio.fail_after(10):
        async with wire.Consumer(client, topic, start=Anchor.END) as consumer, wire.Producer(client, topic) as producer:
            for number in range(20):
                await producer.send_nowait(b"%d" % number)
                assert (await anext(consumer)).value == b"%d" % number


async def test_every_partition_is_read_in_its_order(client: wire.Client, topic: str) -> None:
    await fill(client, topic, 300, partitions=3)
    async with wire.Consumer(client, topic, follow=False) as consumer:
        records = [record async for record in consumer]
    for partition in range(3):
        mine = [record for record in records if record.partition == partition]
        assert values(mine) == list(range(partition, 300, 3))


async def test_one_partition_may_be_chosen(client: wire.Client, topic: str) -> None:
    await fill(client, topic, 30, partitions=3)
    async with wire.Consumer(client, topic, partition=2, follow=False) as consumer:
        assert values([record async for record in consumer]) == list(range(2, 30, 3))
        with pytest.raises(TopicNotFound):
            consumer.position(0)


async def test_batches_come_as_they_were_written(client: wire.Client, topic: str) -> None:
    await fill(client, topic, 35)
    async with wire.Consumer(client, topic, start=13, follow=False) as consumer:
        batches = [batch async for batch in consumer.batches()]
    assert [values(batch.records) for batch in batches] == [
        list(range(13, 20)),
        list(range(20, 30)),
        list(range(30, 35)),
    ]
    assert [batch.header.base_offset for batch in batches] == [10, 20, 30]
    assert all(batch.partition == 0 and batch.high_watermark == 35 for batch in batches)


async def test_a_loop_that_was_left_is_taken_up_where_it_stopped(client: wire.Client, topic: str) -> None:
    await fill(client, topic, 40)
    async with wire.Consumer(client, topic, follow=False) as consumer:
        async for record in consumer:
            if record.offset == 13:
                break
        assert consumer.position(0) == 14
        assert (await anext(consumer)).offset == 14
        first = await anext(consumer.batches())
        assert values(first.records) == [15, 16, 17, 18, 19]
        assert consumer.position(0) == 20
        assert values([record async for record in consumer]) == list(range(20, 40))


@pytest.mark.parametrize("codec", list(Codec))
async def test_large_records_pass_within_little_credit(client: wire.Client, topic: str, codec: Codec) -> None:
    await client.create_topic(topic, partitions=1)
    value = bytes(range(256)) * 1000
    async with wire.Producer(client, topic, codec=codec) as producer:
        for _ in range(20):
            await producer.send(value)
    with anyio.fail_after(20):
        async with wire.Consumer(client, topic, credit_bytes=1, follow=False) as consumer:
            assert [record.value for record in [record async for record in consumer]] == [value] * 20


async def test_a_consumer_that_is_closed_says_so(client: wire.Client, topic: str) -> None:
    await fill(client, topic, 5)
    async with wire.Consumer(client, topic) as consumer:
        await anext(consumer)
    with pytest.raises(ClientClosed):  # noqa: PT012  # leaving the block is what raises
        async for _ in consumer.batches():
            await consumer.next_batch()
    with pytest.raises(ClientClosed):
        async with consumer:
            pass
    await client.ping()


async def test_a_cancelled_wait_loses_nothing(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    async with wire.Consumer(client, topic) as consumer, wire.Producer(client, topic) as producer:
        for number in range(5):
            with anyio.move_on_after(0.01 if number == 0 else 0):
                await anext(consumer)
            await producer.send_nowait(b"%d" % number)
        assert [(await anext(consumer)).offset for _ in range(5)] == list(range(5))


async def test_wrong_places_have_typed_errors(client: wire.Client, topic: str) -> None:
    await fill(client, topic, 5)
    with pytest.raises(TopicNotFound):
        async with wire.Consumer(client, topic + "x") as consumer:
            pass
    for partition in (None, 0):
        async with wire.Consumer(client, topic, start=6, partition=partition) as consumer:
            with anyio.fail_after(5), pytest.raises(OffsetOutOfRange) as caught:
                await anext(consumer)
            assert caught.value.details["high_watermark"] == 5
    async with wire.Consumer(client, topic, partition=3, start=0) as consumer:
        with pytest.raises(TopicNotFound):
            await anext(consumer)
    async with wire.Consumer(client, topic, start=-1) as consumer:
        with pytest.raises(InvalidRequest):
            await anext(consumer)
    with pytest.raises(InvalidRequest):
        wire.Consumer(client, topic, credit_bytes=0)


async def test_many_consumers_share_one_connection(client: wire.Client, topic: str) -> None:
    await fill(client, topic, 200)
    read: list[list[int]] = []

    async def consume() -> None:
        async with wire.Consumer(client, topic, follow=False, credit_bytes=1000) as consumer:
            read.append(values([record async for record in consumer]))

    async with anyio.create_task_group() as group:
        for _ in range(30):
            group.start_soon(consume)
    assert read == [list(range(200))] * 30


async def test_more_partitions_than_subscriptions_are_read_in_turns(client: wire.Client, topic: str) -> None:
    await fill(client, topic, 140, partitions=70)
    with anyio.fail_after(60):
        async with wire.Consumer(client, topic, follow=False) as consumer:
            assert sorted(values([record async for record in consumer])) == list(range(140))
