"""What producer and consumer make of a server that fails, forgets, damages and drops: nothing is lost or doubled."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

import wire
import wire.client
import wire.consumer
import wire.producer
from logd.security.tls import server_context
from tests.support.reference_server import AfterwardsDrop, Drop, ReferenceServer, Silence
from tests.support.servers import make_certificates, running_reference
from wire.connection import Limits
from wire.errors import (
    ClientClosed,
    ConnectionFailed,
    ConnectionLost,
    CorruptBatch,
    DiskFull,
    LogdError,
    NotAuthorized,
    NotYetAvailable,
    OffsetOutOfRange,
    OutcomeUnknown,
    Overloaded,
    ShuttingDown,
    StorageFailed,
    TopicNotFound,
    UndecodableBatch,
)
from wire.messages import InitProducer, Message, Ping, Produce, Subscribe
from wire.record import ControlKind, Stamp, control_batch, decode_header, produced_batch, stamp

pytestmark = pytest.mark.anyio

Interference = Callable[[Message], Any]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of the length that they have is the claim of other tests."""
    monkeypatch.setattr(wire.client, "BACKOFF_SECONDS_MIN", 0.0005)
    monkeypatch.setattr(wire.client, "BACKOFF_SECONDS_MAX", 0.002)
    monkeypatch.setattr(wire.producer, "BACKOFF_SECONDS_MAX", 0.002)
    monkeypatch.setattr(wire.producer, "_EXPIRY_INTERVAL_SECONDS", 0.005)


def on_produce(*actions: Any) -> Interference:
    """To the n-th produce request, do the n-th action: None, a return value, or an exception to raise."""
    rest = list(actions)

    def interfere(message: Message) -> Any:
        if isinstance(message, Produce) and rest:
            action = rest.pop(0)
            if isinstance(action, BaseException):
                raise action
            return action
        return None

    return interfere


def values(reference: ReferenceServer, topic: str = "t", partition: int = 0) -> list[bytes | None]:
    log = reference.log(topic, partition)
    return [
        record.value
        for header, batch in zip(log.headers, log.batches, strict=True)
        for record in wire.decode_records(header, batch, partition)
    ]


def numbers(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


async def run_within(
    scope: anyio.CancelScope, reference: ReferenceServer, *, task_status: anyio.abc.TaskStatus[None]
) -> None:
    with scope:
        await reference.run(task_status=task_status)


# --- the producer ---


@pytest.mark.parametrize(
    "action", [Drop(), AfterwardsDrop(), ShuttingDown("bye"), OutcomeUnknown("?"), DiskFull("full")]
)
async def test_a_batch_is_sent_again_and_appended_once(
    reference: ReferenceServer, reference_client: wire.Client, action: Any
) -> None:
    await reference_client.create_topic("t")
    reference.interfere = on_produce(None, action)
    async with wire.Producer(reference_client, "t", batch_records_max=1) as producer:
        with anyio.fail_after(10):
            receipts = [await producer.send_nowait(value) for value in numbers(4)]
        assert producer.statistics.retries == 1
    assert [receipt.offset for receipt in receipts] == [0, 1, 2, 3]
    assert [receipt.duplicate for receipt in receipts] == [False, isinstance(action, AfterwardsDrop), False, False]
    assert values(reference) == numbers(4)


async def test_an_error_in_the_pipeline_keeps_the_order(
    reference: ReferenceServer, reference_client: wire.Client
) -> None:
    await reference_client.create_topic("t")
    reference.interfere = on_produce(None, Overloaded("later", {"delay_seconds": 0.001}), None, None, Drop())
    async with wire.Producer(reference_client, "t", batch_records_max=1) as producer:
        for value in numbers(20):
            producer.send_nowait(value)
        with anyio.fail_after(10):
            await producer.flush()
    assert values(reference) == numbers(20)


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_on_the_way_each_record_is_there_once_and_in_order(
    reference: ReferenceServer, reference_client: wire.Client, seed: int
) -> None:
    chance = random.Random(seed)
    await reference_client.create_topic("t", partitions=3)

    def interfere(message: Message) -> Any:
        if not isinstance(message, (Produce, InitProducer)) or chance.random() > 0.2:
            return None
        action = chance.choice(
            [Drop(), AfterwardsDrop(), Overloaded("x"), ShuttingDown("x"), NotYetAvailable("x"), OutcomeUnknown("x")]
        )
        if isinstance(action, BaseException):
            raise action
        return action

    async with wire.Producer(reference_client, "t", batch_records_max=3, linger_seconds=0) as producer:
        reference.interfere = interfere
        acknowledgements = []
        with anyio.fail_after(30):
            for number in range(300):
                acknowledgements.append(await producer.send(b"%d" % number, partition=number % 3))
                if chance.random() < 0.1:
                    await anyio.lowlevel.checkpoint()
            await producer.flush()
        receipts = [await acknowledgement for acknowledgement in acknowledgements]
    for partition in range(3):
        assert values(reference, "t", partition) == numbers(300)[partition::3]
    assert [receipt.offset for receipt in receipts] == [number // 3 for number in range(300)]


async def test_a_refusal_fails_what_was_sent_behind_it_and_nothing_later(
    reference: ReferenceServer, reference_client: wire.Client
) -> None:
    await reference_client.create_topic("t")
    reference.interfere = on_produce(None, NotAuthorized("no more"))
    async with wire.Producer(reference_client, "t", batch_records_max=1) as producer:
        acknowledgements = [producer.send_nowait(value) for value in numbers(8)]
        assert (await acknowledgements[0]).offset == 0
        for acknowledgement in acknowledgements[1:]:
            with pytest.raises(NotAuthorized):
                await acknowledgement
        assert producer.statistics.records_failed == 7
        assert producer.statistics.in_flight_bytes == 0
        assert (await producer.send_nowait(b"later")).offset == 1
    assert values(reference) == [b"0", b"later"]


async def test_a_refusal_in_one_partition_is_none_of_the_others_business(
    reference: ReferenceServer, reference_client: wire.Client
) -> None:
    await reference_client.create_topic("t", partitions=2)

    def interfere(message: Message) -> None:
        if isinstance(message, Produce) and message.partition == 1:
            raise NotAuthorized("not this one")

    reference.interfere = interfere
    with pytest.raises(NotAuthorized):  # noqa: PT012  # leaving the block is what raises
        async with wire.Producer(reference_client, "t") as producer:
            for value in numbers(10):
                producer.send_nowait(value, partition=int(value) % 2)
    assert values(reference, "t", 0) == numbers(10)[::2]


async def test_an_error_is_raised_to_somebody_once(reference: ReferenceServer, reference_client: wire.Client) -> None:
    await reference_client.create_topic("t")
    reference.interfere = on_produce(NotAuthorized("1"), NotAuthorized("2"), NotAuthorized("3"))
    with pytest.raises(NotAuthorized, match="3"):  # noqa: PT012  # leaving the block is what raises
        async with wire.Producer(reference_client, "t") as producer:
            first = producer.send_nowait(b"1")
            with pytest.raises(NotAuthorized, match="1"):
                await first
            await producer.flush()
            producer.send_nowait(b"2")
            with pytest.raises(NotAuthorized, match="2"):
                await producer.flush()
            await producer.flush()
            producer.send_nowait(b"3")


async def test_a_producer_that_was_forgotten_goes_on_under_a_new_identity(
    reference: ReferenceServer, reference_client: wire.Client
) -> None:
    await reference_client.create_topic("t")
    async with wire.Producer(reference_client, "t", batch_records_max=1) as producer:
        await producer.send_nowait(b"0")
        reference.log("t").producers.clear()
        with anyio.fail_after(10):
            for value in numbers(8)[1:]:
                producer.send_nowait(value)
            await producer.flush()
    assert values(reference) == numbers(8)
    assert decode_header(reference.log("t").batches[-1]).producer_id == 2


async def test_a_forgotten_producer_does_not_send_again_what_may_be_there(
    reference: ReferenceServer, reference_client: wire.Client
) -> None:
    await reference_client.create_topic("t")
    async with wire.Producer(reference_client, "t", batch_records_max=1) as producer:
        await producer.send_nowait(b"0")

        def forget(message: Message) -> Any:
            if isinstance(message, Produce) and reference.sessions > 1:
                reference.log("t").producers.clear()
            return AfterwardsDrop() if isinstance(message, Produce) and reference.sessions == 1 else None

        reference.interfere = forget
        with anyio.fail_after(10), pytest.raises(LogdError) as caught:
            await producer.send_nowait(b"1")
        assert caught.value.code == "UnknownProducer"
    assert values(reference) == [b"0", b"1"]


async def test_what_cannot_be_delivered_in_time_fails_with_the_reason(
    reference: ReferenceServer, reference_client: wire.Client
) -> None:
    await reference_client.create_topic("t")

    def interfere(message: Message) -> None:
        if isinstance(message, Produce):
            raise DiskFull("no space on node-1")

    reference.interfere = interfere
    async with wire.Producer(reference_client, "t", delivery_seconds_max=0.02) as producer:
        with anyio.fail_after(10), pytest.raises(DiskFull, match="no space on node-1"):
            await producer.send_nowait(b"x")
        reference.interfere = lambda _message: None
        assert (await producer.send_nowait(b"y")).offset == 0


async def test_an_answer_that_never_comes_leaves_the_outcome_unknown(
    reference: ReferenceServer, reference_client: wire.Client
) -> None:
    await reference_client.create_topic("t")
    reference.interfere = on_produce(Silence())
    async with wire.Producer(reference_client, "t", delivery_seconds_max=0.02) as producer:
        with anyio.fail_after(10), pytest.raises(OutcomeUnknown):
            await producer.send_nowait(b"x")
        assert (await producer.send_nowait(b"y")).offset == 0


async def test_a_server_that_comes_back_on_its_port_is_found(certificates: Any, tls: wire.Tls) -> None:
    reference = ReferenceServer(server_context(make_certificates(certificates).node))
    scope = anyio.CancelScope()

    async with anyio.create_task_group() as group:
        await group.start(run_within, scope, reference)
        async with wire.Client(f"127.0.0.1:{reference.port}", tls=tls) as client:
            await client.create_topic("t")
        async with (
            wire.Client(f"127.0.0.1:{reference.port}", tls=tls) as client,
            wire.Consumer(client, "t", partition=0, start=0) as consumer,
            wire.Producer(client, "t") as producer,
        ):
            session = client.session_nowait()
            assert session is not None
            await producer.send_nowait(b"0")
            scope.cancel()
            while session.is_open:
                await anyio.lowlevel.checkpoint()
            later = producer.send_nowait(b"1")
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            await group.start(reference.run)
            with anyio.fail_after(10):
                assert (await later).offset == 1
                assert [(await anext(consumer)).value for _ in range(2)] == [b"0", b"1"]
        group.cancel_scope.cancel()


@pytest.mark.parametrize("action", [Drop(), OutcomeUnknown("?"), StorageFailed("?")])
async def test_without_idempotence_an_unknown_outcome_is_told_and_not_tried_again(
    reference: ReferenceServer, reference_client: wire.Client, action: Any
) -> None:
    await reference_client.create_topic("t")
    reference.interfere = on_produce(action)
    async with wire.Producer(reference_client, "t", idempotent=False) as producer:
        with anyio.fail_after(10), pytest.raises((ConnectionLost, OutcomeUnknown, StorageFailed)):
            await producer.send_nowait(b"0")
        assert producer.statistics.retries == 0
        assert (await producer.send_nowait(b"1")).offset == 0


async def test_without_idempotence_what_surely_was_not_done_is_tried_again(
    reference: ReferenceServer, reference_client: wire.Client
) -> None:
    await reference_client.create_topic("t")
    reference.interfere = on_produce(Overloaded("later"))
    async with wire.Producer(reference_client, "t", idempotent=False) as producer:
        with anyio.fail_after(10):
            assert (await producer.send_nowait(b"0")).offset == 0


async def test_no_more_than_five_batches_are_in_flight_for_a_partition(
    reference: ReferenceServer, reference_client: wire.Client
) -> None:
    await reference_client.create_topic("t", partitions=2)
    reference.interfere = on_produce(*(Silence() for _ in range(100)))
    with pytest.raises(LookupError):  # noqa: PT012  # leaving the block is what raises
        async with wire.Producer(reference_client, "t", batch_records_max=1) as producer:
            for number in range(40):
                producer.send_nowait(b"x", partition=number % 2)
            for _ in range(100):
                await anyio.lowlevel.checkpoint()
            sent = [message.partition for message in reference.requests if isinstance(message, Produce)]
            assert sorted(sent) == [0] * 5 + [1] * 5
            raise LookupError


async def test_a_deleted_topic_fails_its_records(reference: ReferenceServer, reference_client: wire.Client) -> None:
    await reference_client.create_topic("t")
    with pytest.raises(TopicNotFound):  # noqa: PT012  # leaving the block is what raises
        async with wire.Producer(reference_client, "t") as producer:
            await producer.send_nowait(b"x")
            await reference_client.delete_topic("t")
            producer.send_nowait(b"y")


# --- the consumer ---


async def fill(reference: ReferenceServer, client: wire.Client, records: int) -> None:
    await client.create_topic("t")
    async with wire.Producer(client, "t", batch_records_max=10) as producer:
        for value in numbers(records):
            await producer.send(value)


async def test_a_lost_connection_interrupts_no_reading(
    reference: ReferenceServer, reference_client: wire.Client
) -> None:
    await fill(reference, reference_client, 500)
    reference.delivery_bytes_max = 500
    seen = []
    async with wire.Consumer(reference_client, "t", credit_bytes=1, follow=False) as consumer:
        consumer._credit_bytes = 1000  # less than the least, to have something left to interrupt
        with anyio.fail_after(10):
            async for record in consumer:
                seen.append(record.offset)
                if record.offset % 70 == 0:
                    await reference.drop_all()
    assert seen == list(range(500))
    assert reference.sessions > 1


async def test_a_subscription_that_is_refused_for_now_is_made_later(
    reference: ReferenceServer, reference_client: wire.Client
) -> None:
    await fill(reference, reference_client, 10)
    errors: list[LogdError] = [NotYetAvailable("soon"), ShuttingDown("bye"), Overloaded("x")]

    def interfere(message: Message) -> None:
        if isinstance(message, Subscribe) and errors:
            raise errors.pop()

    reference.interfere = interfere
    async with wire.Consumer(reference_client, "t", follow=False) as consumer:
        with anyio.fail_after(10):
            assert len([record async for record in consumer]) == 10


def end_every_subscription(message: Message) -> Any:
    return AfterwardsDrop() if isinstance(message, Subscribe) else None


class RecordedBackoff(wire.client.Backoff):
    """Writes down the pauses, which the event loop then keeps."""

    pauses: ClassVar[list[float]] = []

    def next_seconds(self) -> float:
        self.pauses.append(super().next_seconds())
        return self.pauses[-1]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    monkeypatch.setattr(RecordedBackoff, "pauses", [])
    monkeypatch.setattr(wire.consumer, "Backoff", RecordedBackoff)
    return RecordedBackoff.pauses


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def test_a_node_that_ends_every_session_is_asked_less_and_less_until_it_delivers(
    reference: ReferenceServer, reference_client: wire.Client, pauses: list[float]
) -> None:
    await reference_client.create_topic("t")
    reference.interfere = end_every_subscription
    seen: list[int] = []

    async def read_one() -> None:
        seen.append((await anext(consumer)).offset)

    async with wire.Consumer(reference_client, "t") as consumer:
        async with anyio.create_task_group() as group:
            group.start_soon(read_one)
            await until(lambda: len(pauses) >= 6)
            # From the third on it is the longest pause, or half of it.
            assert min(pauses[2:]) >= wire.client.BACKOFF_SECONDS_MAX / 2
            reference.interfere = lambda _message: None
            async with wire.Producer(reference_client, "t") as producer:
                await producer.send(b"first")
        before = len(pauses)
        async with anyio.create_task_group() as group:
            group.start_soon(read_one)
            await reference.drop_all()
            await until(lambda: len(pauses) > before)
            assert pauses[before] <= wire.client.BACKOFF_SECONDS_MIN
            async with wire.Producer(reference_client, "t") as producer:
                await producer.send(b"second")
    assert seen == [0, 1]


async def test_a_subscription_that_lasted_is_as_good_as_a_delivery(
    reference: ReferenceServer, reference_client: wire.Client, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    await reference_client.create_topic("t")
    monkeypatch.setattr(wire.consumer, "_STEADY_SECONDS", 0.0)
    reference.interfere = end_every_subscription
    async with wire.Consumer(reference_client, "t") as consumer, anyio.create_task_group() as group:
        group.start_soon(consumer.next_batch)
        await until(lambda: len(pauses) >= 6)
        group.cancel_scope.cancel()
    # A connection that ends before the subscription is taken is none that lasted.
    assert min(pauses[1:]) <= wire.client.BACKOFF_SECONDS_MIN


async def test_a_node_that_ends_every_session_is_an_error_in_the_end(
    reference: ReferenceServer, reference_client: wire.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await reference_client.create_topic("t")
    monkeypatch.setattr(wire.consumer, "RECOVERY_SECONDS_MAX", 0.02)
    reference.interfere = end_every_subscription
    async with wire.Consumer(reference_client, "t") as consumer:
        with anyio.fail_after(10), pytest.raises(ConnectionLost):
            await anext(consumer)


async def test_a_refusal_for_good_is_raised_and_can_be_tried_again(
    reference: ReferenceServer, reference_client: wire.Client
) -> None:
    await fill(reference, reference_client, 10)

    def interfere(message: Message) -> None:
        if isinstance(message, Subscribe):
            raise NotAuthorized("not you")

    reference.interfere = interfere
    async with wire.Consumer(reference_client, "t", follow=False) as consumer:
        for _ in range(2):
            with pytest.raises(NotAuthorized):
                await anext(consumer)
        reference.interfere = lambda _message: None
        assert len([record async for record in consumer]) == 10


async def test_retention_that_overtakes_a_consumer_is_told(
    reference: ReferenceServer, reference_client: wire.Client
) -> None:
    await fill(reference, reference_client, 30)
    reference.log("t").log_start_offset = 20
    async with wire.Consumer(reference_client, "t", start=5) as consumer:
        with pytest.raises(OffsetOutOfRange) as caught:
            await anext(consumer)
    assert caught.value.details["log_start_offset"] == 20


def flip(batch: bytes, position: int) -> bytes:
    changed = bytearray(batch)
    changed[position] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("position", [0, 3, 4, 5, 8, 11, 40, 60, 80, 95, 100, 130, 150, 175, 176, 190, -1])
async def test_damage_is_found_reported_and_left_behind_once_repaired(
    reference: ReferenceServer, reference_client: wire.Client, position: int
) -> None:
    await fill(reference, reference_client, 50)
    log = reference.log("t")
    good = log.batches[2]
    log.batches[2] = flip(good, position)
    async with wire.Consumer(reference_client, "t", follow=False) as consumer:
        seen = [(await anext(consumer)).offset for _ in range(20)]
        for _ in range(2):
            with pytest.raises(CorruptBatch) as caught:
                await anext(consumer)
            assert caught.value.details["base_offset"] == consumer.position(0) == 20
            assert caught.value.details["next_offset"] > 20
        log.batches[2] = good
        seen += [record.offset async for record in consumer]
    assert seen == list(range(50))
    report = reference.damage_reports[0]
    assert (report.topic, report.partition, report.base_offset) == ("t", 0, 20)
    assert len(reference.damage_reports) == 2


async def test_a_batch_of_another_history_is_found(reference: ReferenceServer, reference_client: wire.Client) -> None:
    await fill(reference, reference_client, 50)
    log = reference.log("t")
    header = log.headers[3]
    forged = stamp(wire.encode_batch([(b"forged", None, 0, None)] * 10), Stamp(30, 4, 1, 0, bytes(32)))
    log.batches[3] = forged.to_bytes()
    assert header.next_offset == forged.header.next_offset
    async with wire.Consumer(reference_client, "t", follow=False) as consumer:
        with pytest.raises(CorruptBatch, match="the chain breaks"):  # noqa: PT012  # leaving the block is what raises
            async for record in consumer:
                assert record.value != b"forged"


async def test_a_missing_batch_is_found(reference: ReferenceServer, reference_client: wire.Client) -> None:
    await fill(reference, reference_client, 50)
    log = reference.log("t")
    del log.batches[3], log.headers[3]
    async with wire.Consumer(reference_client, "t", follow=False) as consumer:
        with pytest.raises(CorruptBatch, match="does not follow"):
            async for _ in consumer:
                pass
    async with wire.Consumer(reference_client, "t", start=30, follow=False) as consumer:
        with pytest.raises(CorruptBatch, match="30 was asked for, and 40"):
            await anext(consumer)


async def test_a_batch_without_records_of_this_format_can_be_skipped(
    reference: ReferenceServer, reference_client: wire.Client
) -> None:
    await reference_client.create_topic("t")
    await reference_client.produce("t", 0, wire.encode_batch([(b"0", None, 0, None)]))
    await reference_client.produce("t", 0, produced_batch(b"\x91\x01", 1))
    await reference_client.produce("t", 0, wire.encode_batch([(b"2", None, 0, None)]))
    async with wire.Consumer(reference_client, "t", follow=False) as consumer:
        assert (await anext(consumer)).value == b"0"
        with pytest.raises(UndecodableBatch) as caught:
            await anext(consumer)
        assert caught.value.details == {"base_offset": 1, "next_offset": 2}
        assert consumer.position(0) == 2
        assert [record.value async for record in consumer] == [b"2"]


async def test_without_verification_digests_are_not_looked_at(
    reference: ReferenceServer, reference_client: wire.Client
) -> None:
    await fill(reference, reference_client, 10)
    log = reference.log("t")
    log.batches[0] = flip(log.batches[0], 150)
    async with wire.Consumer(reference_client, "t", follow=False, verify=False) as consumer:
        assert len([record async for record in consumer]) == 10
    async with wire.Consumer(reference_client, "t", follow=False) as consumer:
        with pytest.raises(CorruptBatch):
            await anext(consumer)


async def test_control_batches_are_passed_over(reference: ReferenceServer, reference_client: wire.Client) -> None:
    await fill(reference, reference_client, 20)
    log = reference.log("t")
    for _ in range(3):
        log.append(control_batch(ControlKind.NO_OP, timestamp_ms=0), 0)
    await reference_client.produce("t", 0, wire.encode_batch([(b"20", None, 0, None)]))
    log.append(control_batch(ControlKind.NO_OP, timestamp_ms=0), 0)
    async with wire.Consumer(reference_client, "t", follow=False) as consumer:
        reference.delivery_bytes_max = 1  # a delivery for each batch, which begins behind the control batches
        assert [record.value async for record in consumer] == numbers(21)
    reference.delivery_bytes_max = 1 << 20
    async with wire.Consumer(reference_client, "t", follow=False) as consumer:
        assert [record.value async for record in consumer] == numbers(21)
    async with wire.Consumer(reference_client, "t", start=20, follow=False) as consumer:
        assert [record.value async for record in consumer] == [b"20"]


async def test_a_consumer_that_does_not_read_holds_no_more_than_its_credit(
    reference: ReferenceServer, reference_client: wire.Client
) -> None:
    await reference_client.create_topic("t")
    async with wire.Producer(reference_client, "t", batch_bytes_max=20_000) as producer:
        for _ in range(1000):
            await producer.send(bytes(1000))
    reference.delivery_bytes_max = 10_000
    async with wire.Consumer(reference_client, "t", credit_bytes=100_000) as consumer:
        await anext(consumer)
        for _ in range(300):
            await anyio.lowlevel.checkpoint()
        lane = consumer._lanes[0]
        held = sum(len(getattr(delivery, "batches", b"")) for delivery in lane.deliveries)
        assert 60_000 < held < 100_000 + 20_000


async def test_closing_the_client_ends_a_consumers_wait(reference: ReferenceServer, tls: wire.Tls) -> None:
    errors = []

    async def consume(client: wire.Client) -> None:
        async with wire.Consumer(client, "t") as consumer:
            try:
                await anext(consumer)
            except ClientClosed as error:
                errors.append(error)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:  # noqa: SIM117  # one after the other reads better
            async with wire.Client(f"127.0.0.1:{reference.port}", tls=tls) as client:
                await client.create_topic("t")
                group.start_soon(consume, client)
                for _ in range(20):
                    await anyio.lowlevel.checkpoint()
    assert len(errors) == 1


async def test_a_server_that_stays_away_is_told_to_producer_and_consumer_in_time(
    certificates: Path, tls: wire.Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire.consumer, "RECOVERY_SECONDS_MAX", 0.01)
    reference = ReferenceServer(server_context(make_certificates(certificates).node))
    scope = anyio.CancelScope()
    gone = (ConnectionFailed, ConnectionLost)
    async with anyio.create_task_group() as group:
        await group.start(run_within, scope, reference)
        async with wire.Client(f"127.0.0.1:{reference.port}", tls=tls) as client:
            await client.create_topic("t")
            async with (
                wire.Producer(client, "t", delivery_seconds_max=0.01) as producer,
                wire.Consumer(client, "t") as consumer,
            ):
                await producer.send_nowait(b"x")
                await anext(consumer)
                scope.cancel()
                with anyio.fail_after(20):
                    for _ in range(2):
                        with pytest.raises(gone):
                            await producer.send_nowait(b"y")
                        with pytest.raises(gone):
                            await anext(consumer)
                    with pytest.raises(gone):
                        await client.ping()
    assert values(reference) == [b"x"]


async def test_a_request_that_is_cancelled_while_it_waits_for_room_gives_its_turn_away(
    certificates: Path, tls: wire.Tls
) -> None:
    held = True

    def interfere(message: Message) -> None:
        if held and isinstance(message, Ping):
            raise Silence

    async with running_reference(certificates, Limits(requests_in_flight_max=1)) as reference:
        reference.interfere = interfere
        async with wire.Client(f"127.0.0.1:{reference.port}", tls=tls) as client:
            session = client.session_nowait()
            assert session is not None
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    for _ in range(3):
                        group.start_soon(client.ping)
                    while session.has_room():
                        await anyio.lowlevel.checkpoint()
                    await anyio.lowlevel.checkpoint()
                    scope.cancel()
            assert not session._waiting_for_room
            assert not session.has_room()
