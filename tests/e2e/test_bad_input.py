"""Whatever comes in at the socket: a typed error or a closed connection, one log line, and nobody else notices."""

import datetime as dt
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import msgpack
import pytest
import trio

import wire
from logd.security import ca
from logd.security.identity import Identity, Kind
from tests.e2e.hostile import Raw, client_context, development_authority, frame, issue
from tests.e2e.ledger import Ledger, batch_of
from tests.support.daemon import PATIENCE_SECONDS, LogdProcess, wait_until
from wire.codec import encode
from wire.messages import Fetch, Hello, Ping, Pong, Produce
from wire.record import CONTROL_FLAG
from wire.types import Acks, Codec

LIMIT_SECONDS = 1.0
SETTINGS = {
    "listen.handshake_seconds": f"{LIMIT_SECONDS}",
    "listen.frame_seconds": f"{LIMIT_SECONDS}",
    "listen.write_stall_seconds": f"{LIMIT_SECONDS}",
}
FRAME_BYTES_MAX = 8 << 20
GROWTH_BYTES_MAX = 16 << 20

Attack = Callable[[LogdProcess], list[str]]
"""What somebody does, and the codes of the errors that come back before the connection is closed."""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LogdProcess]:
    with LogdProcess(tmp_path_factory.mktemp("hostile"), SETTINGS) as node:
        node.start()
        yield node
        node.stop()
        node.check_log()


@asynccontextmanager
async def somebody_honest(node: LogdProcess, topic: str) -> AsyncIterator[None]:
    """Produces and reads back all the while, and finds everything in order at the end."""
    ledger = Ledger()
    done = trio.Event()

    async def work(client: wire.Client) -> None:
        number = 0
        while not done.is_set():
            produced = await ledger.produce(client, topic, 0, batch_of(topic, number))
            fetched = await client.fetch(topic, 0, produced.base_offset, wait_seconds=PATIENCE_SECONDS)
            assert fetched.batches
            number += 1
            await trio.sleep(0.005)
        assert number

    async with node.client() as client:
        await ledger.create(client, topic, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work, client)
            yield
            done.set()
        await ledger.check(client)


def own_files(node: LogdProcess) -> ssl.SSLContext:
    tls = node.server.tls
    context = client_context(None)
    context.load_cert_chain(tls.certificate, tls.key)
    return context


# --- After a proper greeting: frames ----------------------------------------------------------------------------------


def after_greeting(data: bytes) -> Attack:
    def attack(node: LogdProcess) -> list[str]:
        with Raw(node.port, own_files(node)) as raw:
            raw.greet()
            raw.send(data)
            return raw.last_words()

    return attack


def before_greeting(data: bytes) -> Attack:
    def attack(node: LogdProcess) -> list[str]:
        with Raw(node.port, own_files(node)) as raw:
            raw.send(data)
            return raw.last_words()

    return attack


def nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\xc0"


FRAMES = {
    "length-0": after_greeting(struct.pack(">I", 0)),
    "length-1": after_greeting(frame(b"\xc0")),
    "length-max-and-1": after_greeting(struct.pack(">I", FRAME_BYTES_MAX + 1)),
    "length-0x7fffffff": after_greeting(struct.pack(">I", 0x7FFFFFFF) + bytes(1 << 16)),
    "length-0xffffffff": after_greeting(struct.pack(">I", 0xFFFFFFFF) + bytes(1 << 16)),
    "stalled-in-a-frame": after_greeting(struct.pack(">I", FRAME_BYTES_MAX) + bytes(1000)),
    "no-msgpack": after_greeting(frame(b"\xc1" * 100)),
    "no-array": after_greeting(frame(msgpack.packb({"type": 1, "request": 2}))),
    "array-too-short": after_greeting(frame(b"\x92" + b"\xcd\x00\x01" * 2)),
    "a-text-for-a-type": after_greeting(frame(msgpack.packb(["Ping", 1, None]))),
    "trailing-bytes": after_greeting(frame(msgpack.packb([2, 1, None]) + b"more")),
    "nested-ten-thousand-deep": after_greeting(frame(nested(10_000))),
    "array-of-2-to-the-32": after_greeting(frame(b"\xdd\xff\xff\xff\xff" + b"\x01" * 100)),
    "map-of-2-to-the-32": after_greeting(frame(b"\x93\x01\x01\xdf\xff\xff\xff\xff" + b"\x01" * 100)),
    "text-of-2-to-the-32": after_greeting(frame(b"\x93\x01\x01\xdb\xff\xff\xff\xff" + b"a" * 100)),
    "extension-type": after_greeting(frame(b"\x93\x01\x01" + msgpack.packb(msgpack.ExtType(5, b"x" * 50)))),
    "not-utf-8": after_greeting(frame(b"\x93\x01\x01\xa4\xff\xfe\xfd\xfc")),
    "integer-above-2-to-the-63": after_greeting(frame(b"\x93\x01\xcf\xff\xff\xff\xff\xff\xff\xff\xff\xc0")),
    "not-a-number-for-a-request": after_greeting(frame(msgpack.packb([1, float("nan"), None]))),
    "the-connections-own-request-id": after_greeting(encode(Ping(), 0)),
    "a-request-before-hello": before_greeting(encode(Ping(), 1)),
    "a-long-frame-before-hello": before_greeting(struct.pack(">I", 1 << 20)),
    "an-unknown-version": before_greeting(encode(Hello((99,), "tomorrow"), 0)),
    "http": before_greeting(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
}


@pytest.mark.parametrize("name", FRAMES)
async def test_a_frame_that_breaks_the_protocol_ends_its_connection_with_a_typed_error(
    name: str, node: LogdProcess
) -> None:
    lines = len(node.log())
    async with somebody_honest(node, name):
        with trio.fail_after(PATIENCE_SECONDS):
            codes = await trio.to_thread.run_sync(FRAMES[name], node)
    assert codes == ["ProtocolError"]
    # Of one kind at most ten a second are written; the rest is counted.
    assert len(node.log()) <= lines + 1


# --- Requests: the connection lives on --------------------------------------------------------------------------------

GOOD = batch_of("good", 0)


def changed(batch: bytes, position: int, byte: int) -> bytes:
    return batch[:position] + bytes([byte]) + batch[position + 1 :]


def produce(batch: bytes, topic: str = "requests", partition: int = 0) -> bytes:
    return encode(Produce(topic, partition, Acks.QUORUM, batch), 1)


FETCH_NUMBER = msgpack.unpackb(encode(Fetch("requests", 0, 0, 1), 1)[4:])[0]
BOMB = wire.encode_batch([(bytes(50 << 20), None, 0, None)], codec=Codec.ZSTD)
REQUESTS = {
    "unknown-type": (frame(msgpack.packb([9999, 1, None, "?"])), "Unsupported"),
    "a-second-hello": (encode(Hello((1,), "again"), 1), "Unsupported"),
    "an-answer-as-a-request": (encode(Pong(), 1), "Unsupported"),
    "missing-fields": (frame(msgpack.packb([FETCH_NUMBER, 1, None, "requests"])), "InvalidRequest"),
    "a-negative-offset": (encode(Fetch("requests", 0, -1, 1000), 1), "InvalidRequest"),
    "a-partition-above-2-to-the-32": (encode(Fetch("requests", 1 << 40, 0, 1000), 1), "InvalidRequest"),
    "no-such-topic": (produce(GOOD, "nowhere"), "TopicNotFound"),
    "no-such-partition": (produce(GOOD, partition=9), "TopicNotFound"),
    "an-offset-out-of-range": (encode(Fetch("requests", 0, 1 << 40, 1000), 1), "OffsetOutOfRange"),
    "a-batch-too-large": (produce(bytes((1 << 20) + 1)), "BatchTooLarge"),
    "a-batch-of-one-byte": (produce(b"x"), "InvalidBatch"),
    "a-batch-cut-short": (produce(GOOD[:-1]), "InvalidBatch"),
    "a-wrong-digest": (produce(changed(GOOD, len(GOOD) - 1, 7)), "CorruptBatch"),
    "the-control-bit": (produce(changed(GOOD, 5, CONTROL_FLAG)), "InvalidBatch"),
    "an-unknown-codec": (produce(changed(GOOD, 5, 6)), "InvalidBatch"),
    "a-stamped-batch": (produce(changed(GOOD, 87, 1)), "InvalidBatch"),
    "no-records": (produce(changed(GOOD, 11, 0)), "InvalidBatch"),
    "more-records-than-there-are": (
        encode(Produce("requests", 0, Acks.QUORUM, changed(GOOD, 11, 9)), 1),
        "InvalidBatch",
    ),
}


@pytest.fixture(scope="module")
def topic(node: LogdProcess) -> str:
    async def create() -> None:
        async with node.client() as client:
            await client.create_topic("requests", 1)

    trio.run(create)
    return "requests"


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_request_that_cannot_be_carried_out_is_refused_by_name_and_its_connection_lives(
    name: str, node: LogdProcess, topic: str
) -> None:
    data, code = REQUESTS[name]
    lines = len(node.log())

    def ask() -> tuple[object, object]:
        with Raw(node.port, own_files(node)) as raw:
            raw.greet()
            raw.send(data)
            answer = raw.answer()
            raw.send(encode(Ping(), 2))
            return answer, raw.answer()

    with trio.fail_after(PATIENCE_SECONDS):
        error, pong = await trio.to_thread.run_sync(ask)
    assert getattr(error, "code", error) == code
    assert pong == Pong()
    async with node.client() as client:
        assert (await client.list_offsets(topic, 0)).high_watermark == 0
    assert len(node.log()) <= lines + 1


async def test_a_batch_that_would_grow_a_thousandfold_costs_the_node_nothing(node: LogdProcess) -> None:
    before = node.status_bytes("VmHWM")
    async with node.client() as client:
        await client.create_topic("bomb", 1)
        await client.produce("bomb", 0, BOMB)
        await client.fetch("bomb", 0, 0)
    assert node.status_bytes("VmHWM") - before < GROWTH_BYTES_MAX


# --- Before anybody is known: TLS -------------------------------------------------------------------------------------


def refused(context: ssl.SSLContext) -> Attack:
    """A handshake that fails, or a session that ends with the first byte: TLS 1.3 clients learn of it by reading."""

    def attack(node: LogdProcess) -> list[str]:
        try:
            with Raw(node.port, context) as raw:
                raw.send(encode(Hello((1,), "stranger"), 0))
                return [type(message).__name__ for message in raw.messages()]
        except (ssl.SSLError, ConnectionError):
            return []

    return attack


def plain(data: bytes) -> Attack:
    """A connection without TLS; after a moment without an answer it is closed."""

    def attack(node: LogdProcess) -> list[str]:
        with Raw(node.port) as raw:
            raw.send(data)
            while True:
                try:
                    if not raw.socket.recv(1000):
                        return []
                except ConnectionError:
                    return []

    return attack


def half_a_client_hello() -> bytes:
    """The first bytes of an honest handshake."""
    outgoing = ssl.MemoryBIO()
    client = client_context(None).wrap_bio(ssl.MemoryBIO(), outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    return hello[: len(hello) // 2]


@pytest.fixture(scope="module")
def strangers(node: LogdProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Attack]:
    directory = tmp_path_factory.mktemp("strangers")
    ours = development_authority(node.tls_directory)
    cluster = "logd"
    foreign = ca.create_authority(cluster, dt.datetime.now(dt.UTC))
    eve = Identity(cluster, Kind.USER, "eve")
    own = node.server.tls
    assert own.certificate is not None
    old_tls = client_context(None, ssl.TLSVersion.TLSv1_2)
    old_tls.load_cert_chain(own.certificate, own.key)
    return {
        "plaintext": plain(encode(Hello((1,), "plain"), 0)),
        "garbage": plain(bytes(range(256)) * 64),
        "a-handshake-that-stalls": plain(half_a_client_hello()),
        "nothing-at-all": plain(b""),
        "tls-1.2": refused(old_tls),
        "no-certificate": refused(client_context(None)),
        "a-foreign-ca": refused(client_context(issue(foreign, eve, directory))),
        "another-cluster": refused(client_context(issue(ours, Identity("other", Kind.USER, "eve"), directory))),
        "an-expired-certificate": refused(client_context(issue(ours, eve, directory, age_days=1000))),
    }


STRANGERS = (
    "plaintext",
    "garbage",
    "a-handshake-that-stalls",
    "nothing-at-all",
    "tls-1.2",
    "no-certificate",
    "a-foreign-ca",
    "another-cluster",
    "an-expired-certificate",
)


@pytest.mark.parametrize("name", STRANGERS)
async def test_a_stranger_gets_no_word_and_one_line(name: str, node: LogdProcess, strangers: dict[str, Attack]) -> None:
    lines = len(node.log())
    async with somebody_honest(node, name):
        with trio.fail_after(PATIENCE_SECONDS):
            words = await trio.to_thread.run_sync(strangers[name], node)
        await wait_until(lambda: len(node.log()) > lines, "a line in the log")
    assert words == []
    (line,) = node.log()[lines:]
    assert line["event"] in ("handshake_failed", "identity_refused")


# --- Slow peers and many ----------------------------------------------------------------------------------------------


async def test_a_reader_that_reads_nothing_is_closed_and_takes_bounded_memory(node: LogdProcess) -> None:
    async with node.client() as client:
        await client.create_topic("much", 1)
        for number in range(40):
            await client.produce("much", 0, batch_of("much", number, 900_000))

    lines = len(node.log())
    before = node.status_bytes("VmRSS")

    def ask_and_never_read() -> int:
        with Raw(node.port, own_files(node)) as raw:
            raw.greet()
            for request_id in range(1, 200):
                raw.send(encode(Fetch("much", 0, 0, 4 << 20), request_id))
            # The node gives up on it, and says so in its log; only then does it look.
            while not node.events("send_failed"):
                trio.from_thread.run(trio.sleep, 0.05)
            return node.status_bytes("VmRSS")

    async with somebody_honest(node, "beside-a-slow-one"):
        with trio.fail_after(PATIENCE_SECONDS):
            after = await trio.to_thread.run_sync(ask_and_never_read)
    assert after - before < 32 << 20
    assert len(node.log()) == lines + 1


def times_told(node: LogdProcess) -> int:
    """How often the log says that somebody was refused, held back lines included."""
    lines = node.events("protocol_error", "handshake_failed", "identity_refused")
    return len(lines) + sum(int(event.get("suppressed", 0)) for event in node.log())


async def test_hundreds_of_attacks_leave_neither_memory_nor_descriptors_behind(
    node: LogdProcess, strangers: dict[str, Attack]
) -> None:
    attacks = [attack for name, attack in FRAMES.items() if "stalled" not in name and name != "an-unknown-version"]
    attacks += [strangers[name] for name in STRANGERS if "stall" not in name and "nothing" not in name]
    async with somebody_honest(node, "survivor"):
        descriptors, memory, told = node.descriptors(), node.status_bytes("VmRSS"), times_told(node)
        async with trio.open_nursery() as nursery:
            for attack in attacks * 10:
                nursery.start_soon(trio.to_thread.run_sync, attack, node)
        lines = len(node.log())
        await wait_until(lambda: node.descriptors() <= descriptors, "all connections are closed", 5.0)
        assert node.status_bytes("VmRSS") - memory < GROWTH_BYTES_MAX
        # What was held back is summed up.
        await wait_until(lambda: times_told(node) == told + len(attacks) * 10, "every attack is accounted for")
    assert lines < len(attacks) * 10
