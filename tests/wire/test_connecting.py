"""How a client gets to a server and back to it, and what it says when it does not."""

import contextlib
import random
import shutil
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from anyio.streams.tls import TLSStream

import wire
import wire.client
import wire.stream
from logd.security.tls import server_context
from tests.support.reference_server import Drop, ReferenceServer, Silence
from tests.support.servers import make_certificates, running_reference
from wire.codec import encode
from wire.connection import Limits, ServerConnection
from wire.errors import ConnectionFailed, ConnectionLost, LogdError, Misconfigured, ProtocolError, ShuttingDown
from wire.messages import Error, Message, Ping, Pong
from wire.stream import Address

pytestmark = pytest.mark.anyio

Handler = Callable[[anyio.abc.ByteStream], Awaitable[None]]


async def no_pause(_seconds: float) -> None:
    await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[str]:
    """A bare TCP server; what a handler raises about a broken connection is the test's intention."""

    async def handle(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            broken = (anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError, ssl.SSLError)
            with contextlib.suppress(*broken):
                await handler(stream)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, handle)
        yield f"127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        group.cancel_scope.cancel()


def verdict_over_tls(context: ssl.SSLContext) -> Handler:
    """A server that only shakes hands, and sends TLS's own verdict (AnyIO's stream would keep it to itself)."""

    async def handle(stream: anyio.abc.ByteStream) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                with contextlib.suppress(ssl.SSLWantReadError):
                    tls.do_handshake()
            finally:
                await stream.send(outgoing.read())
            incoming.write(await stream.receive())

    return handle


def over_tls(context: ssl.SSLContext, handler: Handler) -> Handler:
    async def handle(stream: anyio.abc.ByteStream) -> None:
        wrapped = await TLSStream.wrap(stream, server_side=True, ssl_context=context, standard_compatible=False)
        await handler(wrapped)

    return handle


async def connect(address: str, tls: wire.Tls) -> None:
    async with wire.Client(address, tls=tls, sleep=no_pause):
        pass


@pytest.fixture
def context(certificates: Path) -> ssl.SSLContext:
    return server_context(make_certificates(certificates).node)


# --- addresses and files ---


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost", Address("localhost", 7421)),
        ("127.0.0.1:80", Address("127.0.0.1", 80)),
        ("[::1]:7421", Address("::1", 7421)),
        ("[::1]", Address("::1", 7421)),
        ("node-1.example.org:65535", Address("node-1.example.org", 65535)),
    ],
)
def test_an_address_is_read_and_written(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", ":1", "host:", "host:0", "host:65536", "host:x", "::1", "a b", "http://host", "h:1:2"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(Misconfigured, match="no address"):
        Address.parse(text)


def test_a_client_needs_an_address(tls: wire.Tls) -> None:
    with pytest.raises(Misconfigured):
        wire.Client([], tls=tls)


async def test_a_wrong_file_is_named(tls: wire.Tls, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("garbage")
    missing = str(tmp_path / "missing.pem")
    for wrong in (
        wire.Tls(ca=missing, certificate=tls.certificate, key=tls.key),
        wire.Tls(ca=tls.ca, certificate=missing, key=tls.key),
        wire.Tls(ca=tls.ca, certificate=tls.certificate, key=missing),
        wire.Tls(ca=str(garbage), certificate=tls.certificate, key=tls.key),
        wire.Tls(ca=tls.ca, certificate=str(garbage), key=tls.key),
        wire.Tls(ca=tls.ca, certificate=tls.certificate, key=str(garbage)),
    ):
        with pytest.raises(Misconfigured, match=r"missing\.pem|garbage\.pem"):
            await connect("127.0.0.1:1", wrong)


async def test_a_certificate_with_another_key_is_refused(tls: wire.Tls, certificates: Path) -> None:
    with pytest.raises(Misconfigured, match="no certificate with its key"):
        await connect(
            "127.0.0.1:1", wire.Tls(ca=tls.ca, certificate=tls.certificate, key=str(certificates / "node.key"))
        )


# --- who is there ---


async def test_nobody_is_asked_again_with_growing_pauses_and_then_given_up(tls: wire.Tls) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    with pytest.raises(ConnectionFailed, match="refused"):
        async with wire.Client("127.0.0.1:1", tls=tls, sleep=sleep, chance=random.Random(7)):
            pass
    assert len(pauses) == wire.client.CONNECT_ROUNDS_MAX - 1
    for number, pause in enumerate(pauses):
        longest = min(wire.client.BACKOFF_SECONDS_MIN * 2**number, wire.client.BACKOFF_SECONDS_MAX)
        assert longest / 2 <= pause <= longest


async def test_a_name_that_is_not_known_says_so(tls: wire.Tls) -> None:
    with pytest.raises(ConnectionFailed, match="name is not known"):
        await connect("no-such-host.invalid", tls)


async def test_addresses_are_tried_in_turn(reference: ReferenceServer, tls: wire.Tls) -> None:
    addresses = ["127.0.0.1:1", f"127.0.0.1:{reference.port}"]
    async with wire.Client(addresses, tls=tls, sleep=no_pause) as client:
        assert client.node == "node-1"


async def test_each_address_says_why_not(tls: wire.Tls) -> None:
    with pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1:1: .*; .*127\.0\.0\.1:2: "):
        async with wire.Client(["127.0.0.1:1", "127.0.0.1:2"], tls=tls, sleep=no_pause):
            pass


async def test_a_server_of_another_authority_is_not_trusted(tls: wire.Tls, tmp_path: Path) -> None:
    async with running_reference(tmp_path) as foreign:
        with pytest.raises(Misconfigured, match="certificate is not trusted"):
            await connect(f"127.0.0.1:{foreign.port}", tls)


async def test_a_client_of_another_authority_is_told_that_it_was_refused(
    context: ssl.SSLContext, tls: wire.Tls, tmp_path: Path
) -> None:
    foreign = make_certificates(tmp_path).user
    mixed = wire.Tls(ca=tls.ca, certificate=foreign.certificate, key=foreign.key)
    async with listening(verdict_over_tls(context)) as address:
        with pytest.raises(Misconfigured, match=r"the server refused the certificate: .*(unknown ca|decrypt error)"):
            await connect(address, mixed)


async def test_another_cluster_is_refused(reference: ReferenceServer, tls: wire.Tls) -> None:
    wrong = wire.Tls(ca=tls.ca, certificate=tls.certificate, key=tls.key, cluster_name="other")
    with pytest.raises(Misconfigured, match="belongs to cluster 'dev', not to 'other'"):
        await connect(f"127.0.0.1:{reference.port}", wrong)
    right = wire.Tls(ca=tls.ca, certificate=tls.certificate, key=tls.key, cluster_name="dev", server_name="node-1")
    await connect(f"127.0.0.1:{reference.port}", right)


async def test_a_server_that_is_no_node_is_refused(tls: wire.Tls) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)

    async def silent(stream: anyio.abc.ByteStream) -> None:
        await stream.receive()

    async with listening(over_tls(context, silent)) as address:
        with pytest.raises(Misconfigured, match=r"names no node|not trusted: unsuitable certificate purpose"):
            await connect(address, tls)


async def test_an_older_tls_is_refused(tls: wire.Tls, certificates: Path) -> None:
    files = make_certificates(certificates).node
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(files.certificate, files.key)

    async def silent(stream: anyio.abc.ByteStream) -> None:
        await stream.receive()

    async with listening(over_tls(context, silent)) as address:
        with pytest.raises(ConnectionFailed, match="handshake"):
            await connect(address, tls)


async def test_a_server_without_tls_is_recognised(tls: wire.Tls) -> None:
    async def web_server(stream: anyio.abc.ByteStream) -> None:
        await stream.receive()
        await stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with listening(web_server) as address:
        with pytest.raises(Misconfigured, match=r"no TLS 1\.3 handshake"):
            await connect(address, tls)


async def test_a_server_that_hangs_up_at_once_is_a_failed_connection(tls: wire.Tls) -> None:
    async def rude(_stream: anyio.abc.ByteStream) -> None:
        pass

    async with listening(rude) as address:
        with pytest.raises(ConnectionFailed):
            await connect(address, tls)


async def test_a_server_that_says_nothing_is_given_up(tls: wire.Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire.stream, "CONNECT_SECONDS_MAX", 0.01)

    async def silent(_stream: anyio.abc.ByteStream) -> None:
        await anyio.sleep_forever()

    async with listening(silent) as address:
        with pytest.raises(ConnectionFailed, match="no answer within"):
            await connect(address, tls)


async def test_the_callers_scope_bounds_connecting(tls: wire.Tls) -> None:
    async def silent(_stream: anyio.abc.ByteStream) -> None:
        await anyio.sleep_forever()

    async with listening(silent) as address:
        with anyio.move_on_after(0.01) as scope:
            await connect(address, tls)
    assert scope.cancelled_caught


async def test_a_server_of_another_protocol_is_recognised(tls: wire.Tls, context: ssl.SSLContext) -> None:
    async def other(stream: anyio.abc.ByteStream) -> None:
        await stream.receive()
        await stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with listening(over_tls(context, other)) as address:
        with pytest.raises(Misconfigured, match="not a server of this protocol"):
            await connect(address, tls)


async def test_a_greeting_may_be_refused_with_a_reason(tls: wire.Tls, context: ssl.SSLContext) -> None:
    async def draining(stream: anyio.abc.ByteStream) -> None:
        await stream.receive()
        await stream.send(ServerConnection(Limits()).farewell(ShuttingDown("the node is shutting down")))

    async with listening(over_tls(context, draining)) as address:
        with pytest.raises(ConnectionFailed, match="shutting down"):
            await connect(address, tls)


# --- on the way ---


async def serve_greeting(stream: anyio.abc.ByteStream) -> None:
    await stream.receive()
    await stream.send(ServerConnection(Limits()).welcome("node-1", bytes(16)))


async def test_what_is_in_flight_fails_with_the_connection(
    reference: ReferenceServer, reference_client: wire.Client
) -> None:
    def interfere(message: Message) -> None:
        if isinstance(message, Ping):
            raise Drop

    reference.interfere = interfere
    with pytest.raises(ConnectionLost):
        await reference_client.ping()


async def test_the_next_request_connects_again(reference: ReferenceServer, reference_client: wire.Client) -> None:
    for number in range(1, 4):
        session = reference_client.session_nowait()
        assert session is not None
        assert reference.sessions == number
        await reference.drop_all()
        while session.is_open:
            await anyio.lowlevel.checkpoint()
        await reference_client.ping()


async def test_many_tasks_make_one_connection_again(reference: ReferenceServer, reference_client: wire.Client) -> None:
    session = reference_client.session_nowait()
    assert session is not None
    session.end(ConnectionLost("by the test"))
    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(reference_client.ping)
    assert reference.sessions == 2


async def test_who_is_cancelled_while_connecting_leaves_it_to_the_next(
    reference: ReferenceServer, reference_client: wire.Client
) -> None:
    session = reference_client.session_nowait()
    assert session is not None
    session.end(ConnectionLost("by the test"))
    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            group.start_soon(reference_client.ping)
            scope.cancel()
            await reference_client.ping()
    await reference_client.ping()


async def test_garbage_on_a_good_connection_loses_it(tls: wire.Tls, context: ssl.SSLContext) -> None:
    async def mad(stream: anyio.abc.ByteStream) -> None:
        await serve_greeting(stream)
        await stream.receive()
        await stream.send(b"\xff" * 100)
        await stream.receive()

    async with listening(over_tls(context, mad)) as address, wire.Client(address, tls=tls) as client:
        with pytest.raises(ConnectionLost) as caught:
            await client.ping()
    assert isinstance(caught.value.__cause__, ProtocolError)


@pytest.mark.parametrize("answer", [encode(Pong(), 77), encode(Ping(), 1), encode(Error("X", "", {}, False), 9)])
async def test_an_answer_to_no_request_loses_the_connection(
    tls: wire.Tls, context: ssl.SSLContext, answer: bytes
) -> None:
    async def confused(stream: anyio.abc.ByteStream) -> None:
        await serve_greeting(stream)
        await stream.receive()
        await stream.send(answer)
        await stream.receive()

    async with listening(over_tls(context, confused)) as address, wire.Client(address, tls=tls) as client:
        with pytest.raises(ConnectionLost):
            await client.ping()


async def test_the_reason_for_a_close_reaches_the_caller(tls: wire.Tls, context: ssl.SSLContext) -> None:
    async def strict(stream: anyio.abc.ByteStream) -> None:
        await serve_greeting(stream)
        await stream.receive()
        await stream.send(encode(Error("ProtocolError", "no request within 3 s", {}, False), 0))

    async with listening(over_tls(context, strict)) as address, wire.Client(address, tls=tls) as client:
        with pytest.raises(ConnectionLost, match="no request within 3 s"):
            await client.ping()


async def test_answers_may_come_in_single_bytes(tls: wire.Tls, context: ssl.SSLContext) -> None:
    async def slow(stream: anyio.abc.ByteStream) -> None:
        await stream.receive()
        for byte in ServerConnection(Limits()).welcome("node-1", bytes(16)):
            await stream.send(bytes((byte,)))
        await stream.receive()
        for byte in encode(Pong(), 1):
            await stream.send(bytes((byte,)))
        await stream.receive()

    async with listening(over_tls(context, slow)) as address, wire.Client(address, tls=tls) as client:
        await client.ping()


async def test_a_server_that_takes_nothing_is_given_up(
    tls: wire.Tls, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire.stream, "WRITE_STALL_SECONDS", 0.05)

    async def stalled(stream: anyio.abc.ByteStream) -> None:
        await serve_greeting(stream)
        await anyio.sleep_forever()

    batch = wire.encode_batch([(bytes(1 << 20), None, 0, None)])
    errors: list[LogdError] = []

    async def produce(client: wire.Client) -> None:
        try:
            await client.produce("t", 0, batch)
        except ConnectionLost as error:
            errors.append(error)

    async with listening(over_tls(context, stalled)) as address:  # noqa: SIM117  # one after the other reads better
        async with wire.Client(address, tls=tls) as client, anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(produce, client)
    assert len(errors) == 20
    assert "took no byte" in str(errors[0])


async def test_large_requests_and_answers_cross_each_other(
    reference: ReferenceServer, reference_client: wire.Client
) -> None:
    await reference_client.create_topic("t", partitions=1)
    batch = wire.encode_batch([(bytes(1 << 19), None, 0, None)])

    async def exchange(number: int) -> None:
        await reference_client.produce("t", 0, batch)
        assert len((await reference_client.fetch("t", 0, 0, bytes_max=4 << 20)).batches) > number

    async with anyio.create_task_group() as group:
        for number in range(30):
            group.start_soon(exchange, number)


async def test_requests_beyond_the_servers_limits_wait_their_turn(certificates: Path, tls: wire.Tls) -> None:
    async with running_reference(certificates, Limits(requests_in_flight_max=3)) as reference:
        held = True

        def interfere(message: Message) -> None:
            if held and isinstance(message, Ping):
                raise Silence

        reference.interfere = interfere
        async with wire.Client(f"127.0.0.1:{reference.port}", tls=tls) as client:  # noqa: SIM117  # one after the other reads better
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(client.ping)
                while len(reference.requests) < 3:
                    await anyio.lowlevel.checkpoint()
                for _ in range(50):
                    await anyio.lowlevel.checkpoint()
                assert len(reference.requests) == 3
                group.cancel_scope.cancel()


async def test_room_that_a_producer_does_not_need_goes_to_the_next(certificates: Path, tls: wire.Tls) -> None:
    async with running_reference(certificates, Limits(requests_in_flight_max=1)) as reference:  # noqa: SIM117  # one after the other reads better
        async with wire.Client(f"127.0.0.1:{reference.port}", tls=tls) as client:
            await client.create_topic("t", partitions=4)
            with anyio.fail_after(10):
                async with wire.Producer(client, "t", batch_records_max=1) as producer:  # noqa: SIM117  # one after the other reads better
                    async with anyio.create_task_group() as group:
                        for number in range(40):
                            producer.send_nowait(b"x", partition=number % 4)
                            group.start_soon(client.ping)
            assert sum(reference.log("t", number).high_watermark for number in range(4)) == 40


async def test_renewed_certificates_serve_from_the_next_connection_on(tmp_path: Path, tls: wire.Tls) -> None:
    own = tmp_path / "own"
    files = wire.Tls(ca=str(own / "ca.crt"), certificate=str(own / "user.crt"), key=str(own / "user.key"))
    async with running_reference(tmp_path / "server") as reference:
        shutil.copytree(Path(tls.ca).parent, own)
        with pytest.raises(Misconfigured):
            await connect(f"127.0.0.1:{reference.port}", files)
        shutil.copytree(tmp_path / "server", own, dirs_exist_ok=True)
        await connect(f"127.0.0.1:{reference.port}", files)
