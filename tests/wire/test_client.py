"""The client against a server that keeps the protocol: the reference, and the daemon."""

import itertools

import anyio
import pytest

import wire
from tests.support.servers import Server
from wire.errors import (
    ClientClosed,
    CorruptBatch,
    InvalidBatch,
    InvalidRequest,
    InvalidTopic,
    OffsetMismatch,
    OffsetOutOfRange,
    TopicExists,
    TopicNotFound,
)
from wire.record import check_alone, check_in_place, decode_header, decode_records, split_batches
from wire.types import Acks, Anchor, Durability

pytestmark = pytest.mark.anyio


def batch_of(*values: bytes) -> bytes:
    return wire.encode_batch([(value, None, 1_700_000_000_000, None) for value in values])


async def test_the_greeting_tells_who_answers(client: wire.Client) -> None:
    assert client.node
    assert len(client.cluster_id) == 16
    assert client.limits.batch_bytes_max >= 1 << 20


async def test_a_ping_is_answered(client: wire.Client) -> None:
    with anyio.fail_after(5):
        await client.ping()


async def test_what_is_produced_is_fetched_byte_for_byte(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    batch = batch_of(b"one", b"two")
    produced = await client.produce(topic, 0, batch)
    fetched = await client.fetch(topic, 0, 0)
    stored = [bytes(view) for view in split_batches(fetched.batches) if not decode_header(view).is_control]
    assert stored[0][:80] == batch[:80]
    assert stored[0][176:] == batch[176:]
    assert produced.base_offset == 0
    assert produced.durability is Durability.QUORUM_FSYNC
    assert produced.nodes == (client.node,)
    assert fetched.next_offset == fetched.high_watermark == 2
    assert produced.chain == decode_header(stored[0]).chain


async def test_stored_batches_form_one_chain(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    for number in range(5):
        await client.produce(topic, 0, batch_of(b"%d" % number, b"more"))
    headers = []
    offset = 0
    while offset < 10:  # an answer may hold less than there is
        fetched = await client.fetch(topic, 0, offset)
        headers += [check_alone(view) for view in split_batches(fetched.batches)]
        offset = fetched.next_offset
    for previous, header in itertools.pairwise(headers):
        check_in_place(header, previous)
    assert headers[-1].next_offset == 10


async def test_a_fetch_in_the_middle_begins_at_or_before_its_offset(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    for _ in range(3):
        await client.produce(topic, 0, batch_of(b"a", b"b", b"c"))
    fetched = await client.fetch(topic, 0, 4, bytes_max=1)
    batches = [view for view in split_batches(fetched.batches) if not decode_header(view).is_control]
    header = decode_header(batches[0])
    assert header.base_offset == 3
    assert [record.offset for record in decode_records(header, batches[0], 0)] == [3, 4, 5]
    assert len(batches) == 1


@pytest.mark.parametrize(
    ("acks", "durability"),
    [
        (Acks.NONE, {Durability.NONE}),
        (Acks.LEADER, {Durability.LEADER_FSYNC, Durability.QUORUM_FSYNC}),
        (Acks.QUORUM, {Durability.QUORUM_FSYNC}),
    ],
)
async def test_an_answer_names_what_was_achieved(
    client: wire.Client, topic: str, acks: Acks, durability: set[Durability]
) -> None:
    await client.create_topic(topic, partitions=1)
    produced = await client.produce(topic, 0, batch_of(b"x"), acks=acks)
    assert produced.durability in durability


async def test_a_conditional_append_takes_its_offset_or_nothing(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    await client.produce(topic, 0, batch_of(b"a"), expected_offset=0)
    with pytest.raises(OffsetMismatch) as caught:
        await client.produce(topic, 0, batch_of(b"b"), expected_offset=0)
    assert caught.value.details["next_offset"] == 1
    assert (await client.produce(topic, 0, batch_of(b"c"), expected_offset=1)).base_offset == 1


async def test_a_fetch_at_the_end_waits_for_the_next_record(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(client.produce, topic, 0, batch_of(b"late"))
            fetched = await client.fetch(topic, 0, 0, wait_seconds=9.0)
    assert fetched.next_offset == 1


async def test_a_fetch_at_the_end_comes_back_empty_in_time(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    with anyio.fail_after(5):
        fetched = await client.fetch(topic, 0, 0, wait_seconds=0.01)
    assert fetched.batches == b""
    assert fetched.next_offset == 0


async def test_offsets_are_listed_by_end_and_by_time(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    await client.produce(topic, 0, batch_of(b"a", b"b"))
    assert (await client.list_offsets(topic, 0, Anchor.START)).offset == 0
    assert (await client.list_offsets(topic, 0, Anchor.END)).offset == 2
    assert (await client.list_offsets(topic, 0, 0)).offset == 0
    assert (await client.list_offsets(topic, 0, 2**62)).offset == 2


async def test_topics_are_created_described_altered_and_deleted(client: wire.Client, topic: str) -> None:
    created = await client.create_topic(topic, partitions=2)
    assert created.partitions == 2
    with pytest.raises(TopicExists):
        await client.create_topic(topic, partitions=1)
    assert (await client.alter_topic(topic, partitions=3)).partitions == 3
    described = await client.describe_topic(topic)
    assert [item.partition for item in described.partitions] == [0, 1, 2]
    assert topic in {item.topic for item in (await client.metadata()).topics}
    metadata = await client.metadata([topic])
    assert [item.topic for item in metadata.topics] == [topic]
    assert metadata.nodes[0].name == client.node
    await client.delete_topic(topic)
    with pytest.raises(TopicNotFound):
        await client.describe_topic(topic)


async def test_every_wrong_request_has_its_typed_error(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    good = batch_of(b"a")
    with pytest.raises(TopicNotFound):
        await client.produce(topic + "x", 0, good)
    with pytest.raises(TopicNotFound):
        await client.fetch(topic, 7, 0)
    with pytest.raises(OffsetOutOfRange) as caught:
        await client.fetch(topic, 0, 1)
    assert caught.value.details["high_watermark"] == 0
    with pytest.raises(InvalidBatch):
        await client.produce(topic, 0, b"")
    with pytest.raises(CorruptBatch):
        await client.produce(topic, 0, good[:-1] + b"?")
    with pytest.raises(InvalidTopic):
        await client.create_topic("", partitions=1)
    await client.ping()


async def test_arguments_that_cannot_be_encoded_are_refused_before_they_are_sent(client: wire.Client) -> None:
    with pytest.raises(InvalidRequest):
        await client.fetch("t", 2**70, 0)
    with pytest.raises(InvalidRequest):
        await client.fetch("t", -1, 0)
    with pytest.raises(InvalidRequest):
        await client.describe_topic("\ud800")
    await client.ping()


async def test_many_requests_share_one_connection(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    offsets = []

    async def produce(number: int) -> None:
        offsets.append((await client.produce(topic, 0, batch_of(b"%d" % number))).base_offset)

    async with anyio.create_task_group() as group:
        for number in range(600):  # more than may be in flight
            group.start_soon(produce, number)
    assert sorted(offsets) == list(range(600))


async def test_a_cancelled_request_leaves_the_connection_usable(client: wire.Client, topic: str) -> None:
    await client.create_topic(topic, partitions=1)
    for _ in range(5):
        with anyio.move_on_after(0) as scope:
            await client.fetch(topic, 0, 0, wait_seconds=0.05)
        assert scope.cancelled_caught
    await client.produce(topic, 0, batch_of(b"a"))
    assert (await client.fetch(topic, 0, 0)).next_offset == 1


async def test_after_the_block_the_client_is_closed(server: Server) -> None:
    async with wire.Client(server.address, tls=server.tls) as client:
        await client.ping()
    with pytest.raises(ClientClosed):
        await client.ping()
    with pytest.raises(ClientClosed):
        async with client:
            pass


async def test_the_block_lets_an_exception_out_as_it_is(server: Server) -> None:
    error = LookupError("the caller's own")
    with pytest.raises(LookupError) as caught:
        async with wire.Client(server.address, tls=server.tls):
            raise error
    assert caught.value is error


async def test_a_request_in_flight_fails_when_the_client_is_closed(server: Server, topic: str) -> None:
    errors = []

    async def wait_long(client: wire.Client) -> None:
        try:
            await client.fetch(topic, 0, 0, wait_seconds=5.0)
        except ClientClosed as error:
            errors.append(error)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group, wire.Client(server.address, tls=server.tls) as client:
            await client.create_topic(topic, partitions=1)
            group.start_soon(wait_long, client)
            await client.ping()
    assert len(errors) == 1


async def test_cancelling_the_block_closes_and_goes_on(server: Server) -> None:
    with anyio.move_on_after(5) as scope:
        async with wire.Client(server.address, tls=server.tls):
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_defect_in_a_task_of_the_library_comes_out_as_it_is(server: Server) -> None:
    async def defective() -> None:
        raise ZeroDivisionError

    with anyio.fail_after(10), pytest.raises(ZeroDivisionError):  # noqa: PT012  # leaving the block is what raises
        async with wire.Client(server.address, tls=server.tls) as client:
            client.spawn(defective)
            await anyio.sleep_forever()
