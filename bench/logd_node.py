"""Our side: a real `logd` in a process of its own, and the raw driver that corresponds to the peer's.

It must not know the peer. The one idea: **the same terms**. The daemon runs as users run it (mutual TLS 1.3, fsync
before every acknowledgement), on the same disk; where the peer is driven by byte strings built beforehand, ours is
driven by batches encoded beforehand, over one TLS connection with requests pipelined, through the protocol's own state
machine (`wire.connection`), which frames every request and parses every answer within the measured time.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from bench.harness import BenchmarkError, CpuShare, watch_cpu
from logd.security.ca import ensure_development_certificates
from wire.connection import Answered, ClientConnection, Refused, State, Welcomed
from wire.messages import CreateTopic, DeleteTopic, ListedOffsets, ListOffsets, Message, Produce, Produced, TopicCreated
from wire.record import encode_batch
from wire.types import Acks, Anchor, Durability

TOPIC = "bench"
CLUSTER_NAME = "bench"
NODE_NAME = "bench-0"

START_SECONDS_MAX = 20.0
STOP_SECONDS_MAX = 20.0
# A server that says nothing for this long while batches wait for an answer has failed the run.
SILENCE_SECONDS_MAX = 20.0
# What was acknowledged becomes readable within milliseconds; this long after it, it is lost.
READABLE_SECONDS_MAX = 2.0
# One TLS record holds at most this much; `SSLSocket.recv` returns one record at most.
TLS_RECORD_BYTES = 16 << 10


class Node(Protocol):
    """What a load driver needs to know of a running node."""

    @property
    def port(self) -> int:
        """Where it listens on the loopback."""

    @property
    def tls_directory(self) -> Path:
        """Where its certificates lie: `ca.crt`, `user.crt`, `user.key` are the client's."""

    @property
    def process_id(self) -> int:
        """Whose processor time is the server's."""


class LogdNode:
    """A `logd --config FILE` on a port of its own, with its data in a directory of its own; a context manager.

    `data_directory` is a directory on a real disk; the node's own is made in it and removed at the end. `module` is
    what is run in place of `logd`, for those who look into it, and `environment` what is added to its environment.
    """

    def __init__(
        self, data_directory: Path, *, module: str = "logd", environment: Mapping[str, str] | None = None
    ) -> None:
        self._parent = data_directory
        self._module = module
        self._environment = {**os.environ, **(environment or {})}
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def process_id(self) -> int:
        """The running daemon's process id."""
        if self._process is None:
            raise BenchmarkError("logd is not running")
        return self._process.pid

    @property
    def address(self) -> str:
        """Where clients reach it."""
        return f"127.0.0.1:{self.port}"

    @property
    def tls_directory(self) -> Path:
        """Where its certificates lie: `ca.crt`, `user.crt`, `user.key` are the client's."""
        if self._directory is None:
            raise BenchmarkError("logd is not running")
        return self._directory / "tls"

    def __enter__(self) -> Self:
        """Start the daemon and return once it says that it is ready; raise `BenchmarkError` with its log if not."""
        self._directory = Path(tempfile.mkdtemp(prefix="logd-", dir=self._parent))
        ensure_development_certificates(str(self.tls_directory), CLUSTER_NAME, NODE_NAME, ["127.0.0.1"])
        configuration = self._directory / "logd.toml"
        configuration.write_text(configuration_text(self._directory), encoding="utf-8")
        try:
            # A file and not a pipe: nobody reads while the daemon runs, and a full pipe would stop it.
            with self._log_path().open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", self._module, "--config", str(configuration)],
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the daemon and remove its data."""
        self.stop()

    def _log_path(self) -> Path:
        if self._directory is None:
            raise BenchmarkError("logd is not running")
        return self._directory / "logd.log"

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            if self._process is not None and self._process.poll() is not None:
                break
            self.port = port_from_log(self._log_path().read_text(encoding="utf-8", errors="replace"))
            if self.port:
                return
            time.sleep(0.01)
        log = self._log_path().read_text(encoding="utf-8", errors="replace")
        raise BenchmarkError(f"logd did not become ready:\n{log[-2000:]}")

    def stop(self) -> None:
        """Stop the daemon, by force if it must be, and remove its data. Harmless when it is not running."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None


def configuration_text(directory: Path) -> str:
    """The daemon's configuration: its defaults, but for names, places, a free port and a log that can be read."""
    return (
        f'[node]\nname = "{NODE_NAME}"\ncluster_name = "{CLUSTER_NAME}"\ndata_dir = "{directory}/data"\n'
        f'[listen]\nclient = "127.0.0.1:0"\n'
        f'[tls]\nca = "{directory}/tls/ca.crt"\ncertificate = "{directory}/tls/node.crt"\n'
        f'key = "{directory}/tls/node.key"\n'
        f'[log]\nformat = "text"\n'
    )


def port_from_log(log: str) -> int:
    """The port in the line that says the daemon is ready (`… ready address=127.0.0.1:PORT`), or 0."""
    for line in log.splitlines():
        words = line.split()
        if "ready" in words:
            for word in words:
                if word.startswith("address="):
                    return int(word.rpartition(":")[2])
    return 0


# --------------------------------------------------------------------------- the raw driver


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """How the raw driver produces: the shape of a batch, how many may be under way, and to how many partitions."""

    records: int
    payload_bytes: int
    # Invariant: batches under way on the one connection, over all partitions, never exceed this.
    window_batches: int = 8
    partitions: int = 1

    def __str__(self) -> str:
        """Short form for tables."""
        return (
            f"batches of {self.records:>5} x {self.payload_bytes:>5} B  "
            f"window {self.window_batches:>3}  partitions {self.partitions}"
        )

    def build(self) -> bytes:
        """One batch, encoded; without a producer id the same bytes may be sent again and again."""
        value = b"x" * self.payload_bytes
        now_ms = time.time_ns() // 1_000_000
        return encode_batch([(value, None, now_ms, None)] * self.records)


@dataclass(frozen=True, slots=True)
class BatchLoad:
    """What one run of the raw driver achieved."""

    records: int
    seconds: float
    cpu: CpuShare

    @property
    def rate(self) -> float:
        """Acknowledged records per second."""
        return self.records / self.seconds


AnswerMessage = TypeVar("AnswerMessage", bound=Message)


class RawClient:
    """One mutual-TLS connection driven without an event loop: requests out, answers in, nothing else."""

    def __init__(self, port: int, tls_directory: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # Identity is the URI in the node's certificate; the CA, made for this run alone, is what is checked here.
        context.check_hostname = False
        context.load_verify_locations(tls_directory / "ca.crt")
        context.load_cert_chain(tls_directory / "user.crt", tls_directory / "user.key")
        plain = socket.create_connection(("127.0.0.1", port), START_SECONDS_MAX)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = context.wrap_socket(plain)
        self._socket.settimeout(0)
        self._poller = select.poll()
        self._poller.register(self._socket, select.POLLIN)
        self._connection = ClientConnection()
        # Invariant: what OpenSSL refused for now is offered again with the same bytes in front, as it demands.
        self._unsent = deque([memoryview(self._connection.hello("bench"))])
        self._wait_for_welcome()

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connection."""
        self._socket.close()

    def _wait_for_welcome(self) -> None:
        while self._connection.state is not State.READY:
            self.pump()

    def pump(self) -> list[Message]:
        """Send what waits, wait until something can be done, take what came; return the answers, in order.

        Raises `BenchmarkError` when a request is refused, the server is silent or the connection ends.
        """
        self._send()
        events = select.POLLIN | (select.POLLOUT if self._unsent else 0)
        self._poller.modify(self._socket, events)
        if not self._poller.poll(SILENCE_SECONDS_MAX * 1000):
            raise BenchmarkError(f"logd said nothing for {SILENCE_SECONDS_MAX:g} s")
        self._receive()
        answers: list[Message] = []
        for event in self._connection.events():
            match event:
                case Answered(_, answer):
                    answers.append(answer)
                case Refused(_, error):
                    raise BenchmarkError(f"logd refused: {error}")
                case Welcomed():
                    pass
                case other:
                    raise BenchmarkError(f"unexpected {other}")
        return answers

    def _send(self) -> None:
        while self._unsent:
            piece = self._unsent[0]
            try:
                sent = self._socket.send(piece)
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return
            if sent == len(piece):
                self._unsent.popleft()
            else:
                self._unsent[0] = piece[sent:]

    def _receive(self) -> None:
        while True:
            try:
                data = self._socket.recv(TLS_RECORD_BYTES)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            if not data:
                raise BenchmarkError("logd closed the connection")
            self._connection.feed(data)

    def start_request(self, message: Message) -> None:
        """Queue a request; the next `pump` sends it."""
        _, data = self._connection.request(message)
        self._unsent.append(memoryview(data))

    def ask(self, message: Message, answer_kind: type[AnswerMessage]) -> AnswerMessage:
        """One request and its answer, with nothing else under way."""
        self.start_request(message)
        while not (answers := self.pump()):
            pass
        (answer,) = answers
        if not isinstance(answer, answer_kind):
            raise BenchmarkError(f"expected {answer_kind.__name__}, got {answer}")
        return answer

    def stored_records(self, partitions: int) -> int:
        """How many records of the topic can be read, over all its partitions."""
        return sum(
            self.ask(ListOffsets(TOPIC, partition, Anchor.END), ListedOffsets).high_watermark
            for partition in range(partitions)
        )

    def check_stored(self, partitions: int, records: int) -> None:
        """Raise `BenchmarkError` unless exactly `records` records of the topic can be read, soon.

        A round is acknowledged when it is in the journal, and read once it is in its segments, a moment later.
        """
        deadline = time.monotonic() + READABLE_SECONDS_MAX
        while (stored := self.stored_records(partitions)) < records and time.monotonic() < deadline:
            time.sleep(0.001)
        if stored != records:
            raise BenchmarkError(f"logd acknowledged {records} records and holds {stored}")


@contextmanager
def fresh_topic(node: Node, *, partitions: int = 1) -> Iterator[RawClient]:
    """A connection to a node whose topic is new and empty; the topic is deleted afterwards."""
    with RawClient(node.port, node.tls_directory) as client:
        client.ask(CreateTopic(TOPIC, partitions=partitions), TopicCreated)
        try:
            yield client
        finally:
            # After a failed run the connection may hold answers of that run: a new one asks for the end.
            with RawClient(node.port, node.tls_directory) as cleaner:
                cleaner.start_request(DeleteTopic(TOPIC))
                while not cleaner.pump():
                    pass


def produce_raw(node: Node, plan: BatchPlan, seconds: float) -> BatchLoad:
    """Produce into a fresh topic for `seconds`, then wait for what is under way; count what was acknowledged.

    Raises `BenchmarkError` if anything is refused, acknowledged without a quorum's fsync, or not there at the end.
    """
    batch = plan.build()
    with fresh_topic(node, partitions=plan.partitions) as client:
        with watch_cpu(node.process_id) as cpu:
            start = time.perf_counter()
            deadline = start + seconds
            batches = pump_batches(client, plan, batch, lambda: time.perf_counter() < deadline)
            elapsed = time.perf_counter() - start
        records = batches * plan.records
        client.check_stored(plan.partitions, records)
    return BatchLoad(records, elapsed, cpu)


def pump_batches(client: RawClient, plan: BatchPlan, batch: bytes, more: Callable[[], bool]) -> int:
    """Keep the window full while `more()`, then wait for what is under way; return how many were acknowledged.

    Partitions take turns, so that a window over ten of them holds as many bytes as one over one.
    """
    requests = [Produce(TOPIC, partition, Acks.QUORUM, batch) for partition in range(plan.partitions)]
    sent = acknowledged = 0
    while True:
        while sent - acknowledged < plan.window_batches and more():
            client.start_request(requests[sent % plan.partitions])
            sent += 1
        if sent == acknowledged:
            return acknowledged
        answers = client.pump()
        check_durable(answers)
        acknowledged += len(answers)


def check_durable(answers: Sequence[Message]) -> None:
    """Raise `BenchmarkError` unless each answer says that a quorum has fsynced: nothing less is compared."""
    for answer in answers:
        if not isinstance(answer, Produced) or answer.durability is not Durability.QUORUM_FSYNC:
            raise BenchmarkError(f"expected {Durability.QUORUM_FSYNC}, got {answer}")


@contextmanager
def filled_topic(node: Node, *, payload_bytes: int, records: int, batch_records: int = 1_000) -> Iterator[int]:
    """A topic of one partition that holds at least `records` records; yields how many. Deleted afterwards."""
    plan = BatchPlan(batch_records, payload_bytes)
    batch, wanted = plan.build(), -(-records // batch_records)
    with fresh_topic(node) as client:
        started = iter(range(wanted))
        batches = pump_batches(client, plan, batch, lambda: next(started, None) is not None)
        client.check_stored(1, batches * batch_records)
        yield batches * batch_records
