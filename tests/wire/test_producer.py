"""The producer against both servers: batching, order, acknowledgements and bounds."""

import anyio
import pytest

import wire
from wire.errors import (
    BufferFull,
    ClientClosed,
    InvalidRequest,
    RecordTooLarge,
    TopicNotFound,
)
from wire.types import Acks, Codec, Durability, Record

pytestmark = pytest.mark.anyio


async def read_all(client: wire.Client, topic: str) -> list[Record]:
    async with wire.Consumer(client, topic, follow=False) as consumer:
        return [record async for record in consumer]


async def test_each_record_gets_its_own_receipt(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    async with wire.Producer(client, topic) as producer:
        acknowledgements = [producer.send_nowait(b"%d" % number) for number in range(10)]
        assert not acknowledgements[0].done
        assert acknowledgements[0].receipt_nowait() is None
        receipts = [await acknowledgement for acknowledgement in acknowledgements]
    assert [receipt.offset for receipt in receipts] == list(range(10))
    assert acknowledgements[3].receipt_nowait() == receipts[3]
    assert {(receipt.topic, receipt.partition, receipt.durability) for receipt in receipts} == {
        (topic, 0, Durability.QUORUM_FSYNC)
    }
    assert receipts[0].nodes == (client.node,)
    assert len(receipts[0].chain) == 32
    assert not receipts[0].duplicate


async def test_a_record_comes_back_whole(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    async with wire.Producer(client, topic) as producer:
        await producer.send(b"value", key=b"key", headers={"a": b"1", "b": b""}, timestamp_ms=-5)
        await producer.send(None, key=b"gone", timestamp_ms=7)
        await producer.send(bytearray(b"any"), key=memoryview(b"bytes"), timestamp_ms=9)  # type: ignore[arg-type]  # what ducks do
    assert await read_all(client, topic) == [
        Record(b"value", b"key", {"a": b"1", "b": b""}, -5, 0, 0),
        Record(None, b"gone", None, 7, 1, 0),
        Record(b"any", b"bytes", None, 9, 2, 0),
    ]


async def test_a_key_always_goes_to_its_partition(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=3)
    keys = [b"key-%d" % number for number in range(50)]
    async with wire.Producer(client, topic) as producer:
        acknowledgements = [producer.send_nowait(b"", key) for key in keys]
        await producer.flush()
        partitions = [(await acknowledgement).partition for acknowledgement in acknowledgements]
    assert partitions == [wire.partition_for_key(key, 3) for key in keys]


async def test_without_a_key_a_partition_gets_whole_batches_in_turn(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=3)
    async with wire.Producer(client, topic, batch_records_max=10) as producer:
        acknowledgements = [producer.send_nowait(b"%d" % number) for number in range(60)]
        partitions = [(await acknowledgement).partition for acknowledgement in acknowledgements]
    first = partitions[0]
    assert partitions == [(first + number // 10) % 3 for number in range(60)]


async def test_a_named_partition_wins_over_the_key(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=2)
    async with wire.Producer(client, topic) as producer:
        receipts = [await producer.send_nowait(b"", b"key", partition=number) for number in (0, 1)]
        with pytest.raises(TopicNotFound):
            producer.send_nowait(b"", partition=2)
        with pytest.raises(TopicNotFound):
            producer.send_nowait(b"", partition=-1)
    assert [receipt.partition for receipt in receipts] == [0, 1]


@pytest.mark.parametrize("codec", list(Codec))
async def test_order_is_kept_over_many_small_batches(client: wire.Client, topic: str, codec: Codec) -> None:
    await client.create_topic(topic, partitions=1)
    async with wire.Producer(client, topic, batch_records_max=7, codec=codec, linger_seconds=0) as producer:
        for number in range(1000):
            await producer.send(b"%d" % number)
    records = await read_all(client, topic)
    assert [int(record.value or b"") for record in records] == list(range(1000))
    assert [record.offset for record in records] == list(range(1000))


async def test_a_record_alone_is_sent_when_it_lingered_long_enough(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    async with wire.Producer(client, topic, linger_seconds=0.001) as producer:
        with anyio.fail_after(5):
            for number in range(3):
                assert (await producer.send_nowait(b"x")).offset == number
        assert producer.statistics.batches_sent == 3


async def test_a_flush_does_not_linger(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=2)
    async with wire.Producer(client, topic, linger_seconds=3600) as producer:
        acknowledgement = producer.send_nowait(b"x")
        with anyio.fail_after(5):
            await producer.flush()
        assert acknowledgement.done


async def test_leaving_the_block_acknowledges_everything(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=2)
    with anyio.fail_after(5):
        async with wire.Producer(client, topic, linger_seconds=3600) as producer:
            acknowledgements = [producer.send_nowait(b"x", partition=number % 2) for number in range(10)]
    assert all(acknowledgement.done for acknowledgement in acknowledgements)
    assert len(await read_all(client, topic)) == 10
    with pytest.raises(ClientClosed):
        producer.send_nowait(b"late")


async def test_leaving_by_an_exception_waits_for_nothing(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    with anyio.fail_after(5), pytest.raises(LookupError):  # noqa: PT012  # leaving the block is what raises
        async with wire.Producer(client, topic, linger_seconds=3600) as producer:
            acknowledgement = producer.send_nowait(b"x")
            raise LookupError
    with pytest.raises(ClientClosed):
        await acknowledgement
    await client.ping()


async def test_leaving_by_a_cancellation_does_not_hang(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    with anyio.move_on_after(5) as scope:
        async with wire.Producer(client, topic, linger_seconds=3600) as producer:
            acknowledgement = producer.send_nowait(b"x")
            scope.cancel()
            await acknowledgement
    assert scope.cancelled_caught
    assert acknowledgement.done
    await client.ping()


async def test_closing_the_client_under_a_producer_fails_what_is_left(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    producer = wire.Producer(client, topic, linger_seconds=3600)
    await producer.__aenter__()
    acknowledgement = producer.send_nowait(b"x")
    await client.__aexit__(None, None, None)
    with pytest.raises(ClientClosed):
        await acknowledgement
    with pytest.raises(ClientClosed):
        producer.send_nowait(b"x")
    await producer.__aexit__(None, None, None)


async def test_a_full_buffer_refuses_and_room_comes_back(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    async with wire.Producer(client, topic, buffer_bytes_max=1 << 20) as producer:
        value = b"x" * 1000
        taken = 0
        with pytest.raises(BufferFull) as caught:  # noqa: PT012  # leaving the block is what raises
            while True:
                producer.send_nowait(value)
                taken += 1
        assert (1 << 20) // 1010 <= taken <= (1 << 20) // 1007
        assert caught.value.details["buffer_bytes_max"] == 1 << 20
        assert producer.statistics.in_flight_bytes == caught.value.details["buffered_bytes"] <= 1 << 20
        await producer.flush()
        assert producer.statistics.in_flight_bytes == 0
        producer.send_nowait(value)
    assert len(await read_all(client, topic)) == taken + 1


async def test_send_waits_for_room_in_turn(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    async with wire.Producer(
        client, topic, buffer_bytes_max=64 << 10, batch_bytes_max=16 << 10, linger_seconds=3600
    ) as producer:

        async def send(number: int) -> None:
            for _ in range(5):
                await producer.send(b"%06d" % number * 1000)

        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                for number in range(20):
                    group.start_soon(send, number)
    assert len(await read_all(client, topic)) == 100


async def test_a_cancelled_send_passes_its_turn_on(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    value = b"x" * 8000
    async with wire.Producer(client, topic, buffer_bytes_max=64 << 10, batch_bytes_max=16 << 10) as producer:
        with pytest.raises(BufferFull):  # noqa: PT012  # leaving the block is what raises
            while True:
                producer.send_nowait(value)
        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    with anyio.CancelScope() as scope:
                        scope.cancel()
                        await producer.send(value)
                group.start_soon(producer.send, value)
        await producer.send(value)


async def test_a_record_beyond_the_largest_batch_is_refused(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    async with wire.Producer(client, topic) as producer:
        with pytest.raises(RecordTooLarge) as caught:
            producer.send_nowait(bytes(client.limits.batch_bytes_max))
        assert caught.value.details["record_bytes"] > caught.value.details["record_bytes_max"]
        largest = caught.value.details["record_bytes_max"] - 9
        assert (await producer.send_nowait(bytes(largest))).offset == 0


async def test_a_large_record_gets_a_batch_of_its_own(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    async with wire.Producer(client, topic, batch_bytes_max=1000) as producer:
        for size in (10, 20_000, 10, 10, 30_000, 30_000):
            producer.send_nowait(bytes(size))
    async with wire.Consumer(client, topic, follow=False) as consumer:
        sizes = [[len(record.value or b"") for record in batch.records] async for batch in consumer.batches()]
    assert sizes == [[10], [20_000], [10, 10], [30_000], [30_000]]


@pytest.mark.parametrize("codec", list(Codec))
async def test_the_largest_batch_fits_the_server(client: wire.Client, topic: str, codec: Codec) -> None:
    await client.create_topic(topic, partitions=1)
    noise = bytes(range(256)) * (5 << 10)
    async with wire.Producer(client, topic, batch_bytes_max=1 << 30, codec=codec) as producer:
        size = client.limits.batch_bytes_max - 176 - 5 - 9
        if codec is Codec.ZSTD:
            size -= (size >> 8) + 128
        receipt = await producer.send_nowait(noise[:size])
    assert receipt.offset == 0


async def test_what_is_no_record_is_refused_and_harms_nothing(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    async with wire.Producer(client, topic) as producer:
        for wrong in ("text", 7, [b"x"]):
            with pytest.raises(TypeError):
                producer.send_nowait(wrong)  # type: ignore[arg-type]  # that is the claim
            with pytest.raises(TypeError):
                producer.send_nowait(b"", key=wrong)  # type: ignore[arg-type]  # that is the claim
            with pytest.raises(TypeError):
                producer.send_nowait(b"", headers={"name": wrong})  # type: ignore[dict-item]  # that is the claim
        with pytest.raises(TypeError):
            producer.send_nowait(b"", headers={b"name": b""})  # type: ignore[dict-item]  # that is the claim
        for wrong_time in (2**63, -(2**64), 1.5, True):
            with pytest.raises(InvalidRequest):
                producer.send_nowait(b"", timestamp_ms=wrong_time)  # type: ignore[arg-type]  # that is the claim
        with pytest.raises(InvalidRequest):
            producer.send_nowait(b"", headers={"\ud800": b""})
        producer.send_nowait(b"", timestamp_ms=2**63 - 1)
        with pytest.raises(InvalidRequest):  # too far from the batch's first
            producer.send_nowait(b"", timestamp_ms=-(2**63) + 1)
    assert len(await read_all(client, topic)) == 1


async def test_with_acks_none_no_place_is_promised(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    async with wire.Producer(client, topic, acks=Acks.NONE) as producer:
        receipt = await producer.send_nowait(b"x")
    assert receipt.durability is Durability.NONE
    assert receipt.offset == -1


async def test_statistics_account_for_every_record(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=2)
    async with wire.Producer(client, topic, batch_records_max=10) as producer:
        for number in range(95):
            producer.send_nowait(b"x", partition=number % 2)
        sent = producer.statistics
        assert sent.records_sent == 95
        assert sent.in_flight_bytes == sent.bytes_sent
        await producer.flush()
        done = producer.statistics
    assert (done.records_sent, done.records_acknowledged, done.records_failed) == (95, 95, 0)
    assert done.bytes_acknowledged == done.bytes_sent == sent.bytes_sent
    assert done.batches_sent == done.batches_acknowledged == 10
    assert done.retries == 0


async def test_a_topic_that_is_not_there_fails_at_the_door(client: wire.Client, topic: str) -> None:
    with pytest.raises(TopicNotFound):
        async with wire.Producer(client, topic):
            pass


async def test_options_out_of_range_are_refused(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    for options in (
        {"linger_seconds": -1.0},
        {"linger_seconds": float("nan")},
        {"batch_bytes_max": 0},
        {"batch_records_max": -1},
        {"name": "n", "idempotent": False},
        {"buffer_bytes_max": 1000},
        {"batch_bytes_max": 100},
    ):
        with pytest.raises(InvalidRequest):
            async with wire.Producer(client, topic, **options):
                pass


async def test_a_newer_producer_of_the_same_name_fences_the_older(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    name = f"{topic}-name"
    older = wire.Producer(client, topic, name=name)
    async with older:
        await older.send_nowait(b"older")
        async with wire.Producer(client, topic, name=name) as newer:
            await newer.send_nowait(b"newer")
        with pytest.raises(wire.errors.Fenced):
            await older.send_nowait(b"too late")
    assert [record.value for record in await read_all(client, topic)] == [b"older", b"newer"]


async def test_without_idempotence_records_arrive_too(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    async with wire.Producer(client, topic, idempotent=False, batch_records_max=3) as producer:
        for number in range(100):
            await producer.send(b"%d" % number)
    assert len(await read_all(client, topic)) == 100


async def test_several_tasks_may_share_a_producer(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=2)

    async def send(producer: wire.Producer, name: int) -> None:
        for number in range(100):
            await (await producer.send(b"%d %d" % (name, number), partition=name % 2))

    async with wire.Producer(client, topic, linger_seconds=0) as producer, anyio.create_task_group() as group:
        for name in range(10):
            group.start_soon(send, producer, name)
    records = await read_all(client, topic)
    for name in range(10):
        mine = [int(value[1]) for record in records if int((value := (record.value or b"").split())[0]) == name]
        assert mine == list(range(100))
