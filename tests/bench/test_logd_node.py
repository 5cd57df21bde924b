"""The raw driver against a server that speaks the protocol over real TLS and keeps only counts."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.harness import BenchmarkError
from bench.logd_node import (
    CLUSTER_NAME,
    NODE_NAME,
    TOPIC,
    BatchPlan,
    RawClient,
    configuration_text,
    filled_topic,
    fresh_topic,
    port_from_log,
    produce_raw,
    pump_batches,
)
from logd.config import load
from logd.security.ca import ensure_development_certificates
from logd.security.tls import TlsFiles, server_context
from wire.connection import Limits, Requested, ServerConnection
from wire.errors import TopicNotFound
from wire.messages import (
    CreateTopic,
    DeleteTopic,
    ListedOffsets,
    ListOffsets,
    Message,
    Produce,
    Produced,
    TopicCreated,
    TopicDeleted,
)
from wire.record import check_produced
from wire.types import Durability

FEW_BATCHES = BatchPlan(records=10, payload_bytes=100, window_batches=4)


class CountingNode:
    """A node that acknowledges every batch after checking it, and remembers how many records each partition got."""

    def __init__(self, directory: Path) -> None:
        self.tls_directory = directory
        self.process_id = os.getpid()
        self.durability = Durability.QUORUM_FSYNC
        self.topics: dict[str, list[int]] = {}
        self.lost_records = 0
        ensure_development_certificates(str(directory), CLUSTER_NAME, NODE_NAME, ["127.0.0.1"])
        files = TlsFiles(*(str(directory / name) for name in ("ca.crt", "node.crt", "node.key")))
        self._context = server_context(files)
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        # A connection to itself ends accept(), which closing the listener from another thread does not.
        self._closing.set()
        socket.create_connection(("127.0.0.1", self.port)).close()
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            plain, _ = self._listener.accept()
            if self._closing.is_set():
                plain.close()
                return
            thread = threading.Thread(target=self._serve, args=(plain,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, plain: socket.socket) -> None:
        # A driver that gives up closes its end at any moment, which is not the server's business.
        with contextlib.suppress(OSError), self._context.wrap_socket(plain, server_side=True) as stream:
            connection = ServerConnection(Limits())
            while data := stream.recv(1 << 16):
                connection.feed(data)
                while event := connection.next_event():
                    if isinstance(event, Requested):
                        stream.sendall(self._reply(connection, event))
                    else:
                        stream.sendall(connection.welcome(NODE_NAME, bytes(16)))

    def _reply(self, connection: ServerConnection, request: Requested) -> bytes:
        answer = self.answer(request.message)
        if isinstance(answer, TopicNotFound):
            return connection.refuse(request.request_id, answer)
        return connection.answer(request.request_id, answer)

    def answer(self, message: Message) -> Message | TopicNotFound:
        match message:
            case CreateTopic(topic, partitions):
                self.topics[topic] = [0] * partitions
                return TopicCreated(bytes(16), partitions)
            case DeleteTopic(topic):
                del self.topics[topic]
                return TopicDeleted()
            case ListOffsets(topic, partition):
                end = self.topics[topic][partition] - self.lost_records
                return ListedOffsets(end, 0, end)
            case Produce(topic, partition, _, batch) if topic in self.topics:
                base_offset = self.topics[topic][partition]
                self.topics[topic][partition] += check_produced(batch).record_count
                return Produced(base_offset, 1, 1, bytes(32), self.durability, (NODE_NAME,))
            case _:
                return TopicNotFound("no such topic")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[CountingNode]:
    counting_node = CountingNode(tmp_path)
    yield counting_node
    counting_node.close()


def test_every_batch_of_a_run_is_acknowledged_and_counted(node: CountingNode) -> None:
    load_achieved = produce_raw(node, FEW_BATCHES, seconds=0.01)
    assert load_achieved.records > 0
    assert load_achieved.records % FEW_BATCHES.records == 0
    assert node.topics == {}


def test_partitions_take_turns(node: CountingNode) -> None:
    plan = BatchPlan(records=10, payload_bytes=100, window_batches=4, partitions=3)
    with fresh_topic(node, partitions=3) as client:
        started = iter(range(6))
        assert pump_batches(client, plan, plan.build(), lambda: next(started, None) is not None) == 6
        assert node.topics[TOPIC] == [20, 20, 20]
        assert client.stored_records(3) == 60


def test_a_batch_larger_than_any_socket_buffer_arrives_whole(node: CountingNode) -> None:
    with filled_topic(node, payload_bytes=1_000, records=2_500, batch_records=900) as records:
        assert records == 2_700
        assert node.topics[TOPIC] == [2_700]


def test_a_refusal_ends_the_run_and_says_why(node: CountingNode) -> None:
    plan = FEW_BATCHES
    with RawClient(node.port, node.tls_directory) as client, pytest.raises(BenchmarkError, match="no such topic"):
        pump_batches(client, plan, plan.build(), lambda: True)


def test_an_acknowledgement_without_an_fsync_is_no_result(node: CountingNode) -> None:
    node.durability = Durability.NONE
    with pytest.raises(BenchmarkError, match="quorum_fsync"):
        produce_raw(node, FEW_BATCHES, seconds=0.01)
    assert node.topics == {}


def test_a_record_that_was_acknowledged_and_is_not_there_is_no_result(
    node: CountingNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.lost_records = 1
    monkeypatch.setattr("bench.logd_node.READABLE_SECONDS_MAX", 0.0)
    with pytest.raises(BenchmarkError, match="holds"):
        produce_raw(node, FEW_BATCHES, seconds=0.01)


def test_the_configuration_is_one_that_the_daemon_accepts(tmp_path: Path) -> None:
    path = tmp_path / "logd.toml"
    path.write_text(configuration_text(tmp_path), encoding="utf-8")
    configuration = load(str(path), {}, {})
    assert configuration.listen.client.port == 0
    assert configuration.node.data_dir == f"{tmp_path}/data"


@pytest.mark.parametrize(
    ("log", "port"),
    [
        ("", 0),
        ("2026-01-01T00:00:00Z info starting address=127.0.0.1:1\n", 0),
        ("starting\n2026-01-01T00:00:00Z info ready address=127.0.0.1:7421 node=n\n", 7421),
    ],
)
def test_the_port_is_read_from_the_line_that_says_ready(log: str, port: int) -> None:
    assert port_from_log(log) == port
