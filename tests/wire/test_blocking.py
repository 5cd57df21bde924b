"""The blocking face: the same promises, from threads, without an event loop in sight."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

import wire
from tests.support.reference_server import ReferenceServer, Silence
from tests.support.servers import Daemon, Server, running_reference
from wire import blocking
from wire.errors import (
    BufferFull,
    ClientClosed,
    ConnectionFailed,
    CorruptBatch,
    NotAuthorized,
    RecordTooLarge,
    TopicNotFound,
)
from wire.messages import Message, Ping, Produce


@pytest.fixture
def threaded_reference(certificates: Path) -> Iterator[ReferenceServer]:
    with (
        start_blocking_portal("trio") as portal,
        portal.wrap_async_context_manager(running_reference(certificates)) as reference,
    ):
        yield reference


@pytest.fixture(params=["reference", "logd"])
def threaded_server(request: pytest.FixtureRequest, daemon: Daemon, tls: wire.Tls) -> Server:
    if request.param == "logd":
        return daemon.server()
    reference: ReferenceServer = request.getfixturevalue("threaded_reference")
    return Server(f"127.0.0.1:{reference.port}", tls)


@pytest.fixture(params=["asyncio", "trio"])
def client(request: pytest.FixtureRequest, threaded_server: Server) -> Iterator[blocking.Client]:
    with blocking.Client(threaded_server.address, tls=threaded_server.tls, backend=request.param) as client:
        yield client


@pytest.fixture
def reference_client(threaded_reference: ReferenceServer, tls: wire.Tls) -> Iterator[blocking.Client]:
    with blocking.Client(f"127.0.0.1:{threaded_reference.port}", tls=tls) as client:
        yield client


def test_requests_are_answered(client: blocking.Client, topic: str) -> None:
    client.ping()
    assert client.node
    assert len(client.cluster_id) == 16
    assert client.limits.batch_bytes_max
    assert client.create_topic(topic, partitions=1).partitions == 1
    assert client.alter_topic(topic, partitions=2).partitions == 2
    produced = client.produce(topic, 0, wire.encode_batch([(b"a", None, 0, None)]), expected_offset=0)
    assert produced.base_offset == 0
    assert client.fetch(topic, 0, 0, bytes_max=100).next_offset == 1
    assert client.list_offsets(topic, 0).offset == 1
    assert client.describe_topic(topic).partitions[0].high_watermark == 1
    assert [item.topic for item in client.metadata([topic]).topics] == [topic]
    client.delete_topic(topic)
    with pytest.raises(TopicNotFound):
        client.describe_topic(topic)


def test_records_go_in_and_come_out(client: blocking.Client, topic: str) -> None:
    client.create_topic(topic, partitions=1)
    with blocking.Producer(client, topic) as producer:
        acknowledgements = [producer.send(b"%d" % number, headers={"h": b"v"}) for number in range(2000)]
        assert acknowledgements[7].wait().offset == 7
    assert all(acknowledgement.done for acknowledgement in acknowledgements)
    assert [acknowledgement.wait().offset for acknowledgement in acknowledgements] == list(range(2000))
    with blocking.Consumer(client, topic, follow=False) as consumer:
        records = list(consumer)
        assert consumer.position(0) == consumer.high_watermark(0) == 2000
    assert [record.value for record in records] == [b"%d" % number for number in range(2000)]
    assert records[0].headers == {"h": b"v"}


def test_a_record_is_sent_when_it_lingered_long_enough(client: blocking.Client, topic: str) -> None:
    client.create_topic(topic, partitions=1)
    with (
        blocking.Producer(client, topic, linger_seconds=0.001) as producer,
        blocking.Consumer(client, topic) as consumer,
    ):
        for number in range(5):
            producer.send_nowait(b"%d" % number)
            assert next(consumer).value == b"%d" % number


def test_a_loop_that_was_left_is_taken_up_where_it_stopped(client: blocking.Client, topic: str) -> None:
    client.create_topic(topic, partitions=1)
    with blocking.Producer(client, topic, batch_records_max=10) as producer:
        for number in range(50):
            producer.send(b"%d" % number)
    with blocking.Consumer(client, topic, follow=False) as consumer:
        for record in consumer:
            if record.offset == 13:
                break
        assert consumer.position(0) == 14
        batches = consumer.batches()
        assert [record.offset for record in next(batches).records] == [14, 15, 16, 17, 18, 19]
        assert consumer.position(0) == 20
        assert [batch.header.base_offset for batch in batches] == [20, 30, 40]


def test_order_is_kept_for_each_of_many_threads(client: blocking.Client, topic: str) -> None:
    client.create_topic(topic, partitions=1)
    with blocking.Producer(client, topic, linger_seconds=0.001) as producer:

        def send(name: int) -> None:
            for number in range(1500):
                producer.send(b"%d %d" % (name, number))

        threads = [threading.Thread(target=send, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with blocking.Consumer(client, topic, follow=False) as consumer:
        words = [(record.value or b"").split() for record in consumer]
    for name in range(4):
        assert [int(number) for who, number in words if int(who) == name] == list(range(1500))


def test_what_is_wrong_with_a_record_is_told_by_its_acknowledgement(client: blocking.Client, topic: str) -> None:
    client.create_topic(topic, partitions=1)
    with blocking.Producer(client, topic, batch_bytes_max=1000) as producer:
        with pytest.raises(TypeError):
            producer.send("text")  # type: ignore[arg-type]  # that is the claim
        too_large = producer.send(bytes(client.limits.batch_bytes_max))
        nowhere = producer.send(b"", partition=9)
        with pytest.raises(RecordTooLarge):
            too_large.wait()
        with pytest.raises(TopicNotFound):
            nowhere.wait()
        assert producer.send(b"good").wait().offset == 0


def test_send_nowait_refuses_beyond_the_bound(
    reference_client: blocking.Client, threaded_reference: ReferenceServer
) -> None:
    reference_client.create_topic("t", partitions=1)

    def interfere(message: Message) -> None:
        if isinstance(message, Produce):
            raise Silence

    threaded_reference.interfere = interfere
    with pytest.raises(LookupError), blocking.Producer(reference_client, "t", buffer_bytes_max=300_000) as producer:  # noqa: PT012  # leaving the block is what raises
        with pytest.raises(BufferFull):  # noqa: PT012  # leaving the block is what raises
            for _ in range(400):
                producer.send_nowait(bytes(1000))
        assert producer.statistics.in_flight_bytes <= 300_000
        raise LookupError


def test_errors_of_the_server_come_out_of_the_block(
    reference_client: blocking.Client, threaded_reference: ReferenceServer
) -> None:
    reference_client.create_topic("t", partitions=1)

    def interfere(message: Message) -> None:
        if isinstance(message, Produce):
            raise NotAuthorized("not you")

    threaded_reference.interfere = interfere
    with pytest.raises(NotAuthorized), blocking.Producer(reference_client, "t") as producer:
        producer.send(b"x")


def test_damage_is_told_after_what_came_before_it(
    reference_client: blocking.Client, threaded_reference: ReferenceServer
) -> None:
    reference_client.create_topic("t", partitions=1)
    with blocking.Producer(reference_client, "t", batch_records_max=10) as producer:
        for _ in range(50):
            producer.send(b"x")
    log = threaded_reference.log("t")
    log.batches[2], good = log.batches[2][:-1] + b"?", log.batches[2]
    with blocking.Consumer(reference_client, "t", follow=False) as consumer:
        seen: list[int] = []
        with pytest.raises(CorruptBatch):
            seen.extend(record.offset for record in consumer)
        log.batches[2] = good
        seen += [record.offset for record in consumer]
    assert seen == list(range(50))


def test_an_interrupt_ends_the_wait_and_leaves_the_client_usable(
    reference_client: blocking.Client, threaded_reference: ReferenceServer
) -> None:
    main = threading.main_thread().ident
    assert main is not None
    interrupted = threading.Event()

    def interrupt_once(_number: int, _frame: object) -> None:
        if not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    def interrupt() -> None:
        # A signal that comes just ahead of a lock's wait does not end it, in any Python program; the next one does.
        while not interrupted.wait(0.05):
            signal.pthread_kill(main, signal.SIGINT)

    def interfere(message: Message) -> None:
        if isinstance(message, Ping):
            threaded_reference.interfere = lambda _message: None
            sender.start()
            raise Silence

    sender = threading.Thread(target=interrupt)
    threaded_reference.interfere = interfere
    before = signal.signal(signal.SIGINT, interrupt_once)
    try:
        with pytest.raises(KeyboardInterrupt):
            reference_client.ping()
    finally:
        sender.join()
        signal.signal(signal.SIGINT, before)
    reference_client.ping()
    assert interrupted.is_set()


def test_a_failed_connection_leaves_no_thread_behind(tls: wire.Tls) -> None:
    before = threading.active_count()
    with pytest.raises(ConnectionFailed), blocking.Client("127.0.0.1:1", tls=tls):
        pass
    assert threading.active_count() == before


def test_after_the_block_everything_is_closed(client: blocking.Client, topic: str) -> None:
    client.create_topic(topic, partitions=1)
    with blocking.Producer(client, topic) as producer, blocking.Consumer(client, topic) as consumer:
        pass
    with pytest.raises(ClientClosed):
        producer.send(b"late")
    with pytest.raises(ClientClosed):
        next(consumer)
    client.__exit__(None, None, None)
    with pytest.raises(ClientClosed):
        client.ping()


@pytest.mark.parametrize("module", ["wire", "wire.record", "wire.errors"])
def test_importing_the_library_loads_no_event_loop_and_nothing_of_the_daemon(module: str) -> None:
    heavy = ("anyio", "asyncio", "trio", "ssl", "logd", "cryptography", "prometheus_client", "zstandard", "structlog")
    program = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert answer.stdout.strip() == "[]"


def test_every_public_name_is_found() -> None:
    for name in wire.__all__:
        assert getattr(wire, name) is not None
        assert name in dir(wire)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = wire.nonsense
