"""Claims about who gets through the door, over real sockets and real TLS.

Nothing here waits for real time, but for the kernel to carry bytes from one end of this machine to the other.
"""

import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from logd.security.tls import TlsFiles, client_context, server_context
from logd.server.listener import Listener
from tests.security.certificates import LONG_AGO, Issuer, bare_client, node, user
from tests.server.conftest import CLUSTER, Server
from wire.connection import Answered, ClientConnection, ClientEvent
from wire.errors import ConnectionFailed, ConnectionLost, Misconfigured
from wire.messages import Ping, Pong
from wire.stream import SecureStream


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    return Issuer.create(tmp_path_factory.mktemp("listener") / "pki")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    """Another CA, for a cluster of the same name."""
    return Issuer.create(tmp_path_factory.mktemp("foreign") / "pki")


class Door:
    """A listener that serves, and the clients of a test."""

    def __init__(self, server: Server, context: ssl.SSLContext, connections_max: int) -> None:
        self.server = server
        # What the next handshake is made with.
        self.context: ssl.SSLContext | None = context
        self.listener = Listener(
            self._context_of_now,
            CLUSTER,
            server.door,
            server.options,
            server.budget,
            server.gate,
            server.corks,
            server.log,
            lambda: None,
            connections_max,
        )
        self.address: tuple[str, int] = ("", 0)

    def _context_of_now(self) -> ssl.SSLContext:
        if self.context is None:
            raise ZeroDivisionError("no context")
        return self.context

    async def connect(self) -> socket.socket:
        """A TCP connection, and nothing said."""
        stream = await trio.open_tcp_stream(*self.address)
        connected = socket.socket(fileno=stream.socket.detach())
        connected.setblocking(False)
        return connected

    @asynccontextmanager
    async def client(self, context: ssl.SSLContext) -> AsyncIterator["TlsClient"]:
        stream = SecureStream(await self.connect(), context)
        try:
            await stream.handshake()
            yield TlsClient(stream)
        finally:
            stream.close_nowait()

    async def wait_idle(self) -> None:
        """Wait until no connection is left."""
        while self.listener.connections:
            await trio.lowlevel.checkpoint()


class TlsClient:
    def __init__(self, stream: SecureStream) -> None:
        self.stream = stream
        self.connection = ClientConnection()

    async def event(self) -> ClientEvent:
        while True:
            for event in self.connection.events():
                return event
            self.connection.feed(await self.stream.receive())

    async def ping(self) -> None:
        """Greet if that is still to be done, ask, and be answered."""
        if not self.connection.requests_in_flight and self.connection.state.name == "GREETING":
            self.stream.send_nowait(self.connection.hello("test"))
            await self.event()
        request_id, data = self.connection.request(Ping())
        self.stream.send_nowait(data)
        assert await self.event() == Answered(request_id, Pong())


@asynccontextmanager
async def opened(server: Server, files: TlsFiles, connections_max: int = 10) -> AsyncIterator[Door]:
    door = Door(server, server_context(files), connections_max)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        door.address = listeners[0].socket.getsockname()[:2]
        nursery.start_soon(door.listener.serve, listeners)
        yield door
        nursery.cancel_scope.cancel()
    assert door.listener.connections == 0


@pytest.fixture
async def door(server: Server, issuer: Issuer) -> AsyncIterator[Door]:
    async with opened(server, issuer.files(node())) as made:
        yield made


async def closed_by_the_server(connected: socket.socket) -> None:
    """Read until the server closes, however it does that."""
    with contextlib.suppress(ConnectionResetError):
        while True:
            await trio.lowlevel.wait_readable(connected)
            if not connected.recv(1 << 16):
                break
    connected.close()


async def test_a_certificate_of_the_cluster_opens_the_door(door: Door, issuer: Issuer) -> None:
    for identity in (user(), node("node-2")):
        async with door.client(client_context(issuer.files(identity))) as client:
            await client.ping()
            await client.ping()
    await door.wait_idle()
    assert door.server.lines == []


# --- Who does not get in ----------------------------------------------------------------------------------------------


async def shake_hands(door: Door, context: ssl.SSLContext) -> None:
    """A client that tries and learns that it is not wanted; in TLS 1.3 only when it reads."""
    with pytest.raises((ConnectionFailed, ConnectionLost, Misconfigured)):
        async with door.client(context) as client:
            await client.ping()


async def without_certificate(door: Door, _issuer: Issuer, _foreign: Issuer) -> None:
    await shake_hands(door, bare_client(None))


async def with_a_foreign_certificate(door: Door, _issuer: Issuer, foreign: Issuer) -> None:
    await shake_hands(door, bare_client(foreign.files(user())))


async def with_an_expired_certificate(door: Door, issuer: Issuer, _foreign: Issuer) -> None:
    await shake_hands(door, bare_client(issuer.files(user("eve"), now=LONG_AGO)))


async def of_another_cluster(door: Door, issuer: Issuer, _foreign: Issuer) -> None:
    await shake_hands(door, bare_client(issuer.files(user(cluster_name="elsewhere"))))


async def with_tls_1_2(door: Door, issuer: Issuer, _foreign: Issuer) -> None:
    await shake_hands(door, bare_client(issuer.files(user()), ssl.TLSVersion.TLSv1_2))


async def in_plaintext(door: Door, _issuer: Issuer, _foreign: Issuer) -> None:
    connected = await door.connect()
    connected.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await closed_by_the_server(connected)


async def with_our_frames_in_plaintext(door: Door, _issuer: Issuer, _foreign: Issuer) -> None:
    connected = await door.connect()
    connected.send(ClientConnection().hello("test"))
    await closed_by_the_server(connected)


async def with_noise(door: Door, _issuer: Issuer, _foreign: Issuer) -> None:
    connected = await door.connect()
    connected.send(b"\x16\x03\x01\x01\x00" + b"\xff" * 5_000)
    await closed_by_the_server(connected)


async def and_leaves_at_once(door: Door, _issuer: Issuer, _foreign: Issuer) -> None:
    (await door.connect()).close()


async def and_resets(door: Door, _issuer: Issuer, _foreign: Issuer) -> None:
    connected = await door.connect()
    connected.send(b"\x16\x03\x01")
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    connected.close()


Stranger = Callable[[Door, Issuer, Issuer], Awaitable[None]]
STRANGERS: dict[str, list[Stranger]] = {
    "handshake_failed": [
        without_certificate,
        with_a_foreign_certificate,
        with_an_expired_certificate,
        with_tls_1_2,
        in_plaintext,
        with_our_frames_in_plaintext,
        with_noise,
        and_leaves_at_once,
        and_resets,
    ],
    "identity_refused": [of_another_cluster],
}


@pytest.mark.parametrize(
    ("event", "comes"),
    [(event, stranger) for event, strangers in STRANGERS.items() for stranger in strangers],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_a_stranger_costs_one_line_and_nobody_else_anything(
    door: Door, issuer: Issuer, foreign: Issuer, event: str, comes: Stranger
) -> None:
    async with door.client(client_context(issuer.files(user()))) as friend:
        await friend.ping()
        await comes(door, issuer, foreign)
        with trio.fail_after(10):
            while door.listener.connections > 1 or not door.server.lines:
                await trio.lowlevel.checkpoint()
        await friend.ping()
    (line,) = door.server.lines
    assert line.startswith(f"{event} peer=")
    assert "problem=" in line


async def test_whoever_says_nothing_is_closed_in_time(
    server: Server, issuer: Issuer, autojump_clock: MockClock
) -> None:
    async with opened(server, issuer.files(node())) as door:
        before = trio.current_time()
        await closed_by_the_server(await door.connect())
        assert trio.current_time() - before == pytest.approx(10)
        await door.wait_idle()
    assert len(server.lines) == 1
    assert server.lines[0].endswith('problem="no TLS handshake within 10 s"')


async def test_whoever_shakes_hands_and_says_no_hello_is_closed_in_time(
    server: Server, issuer: Issuer, autojump_clock: MockClock
) -> None:
    async with opened(server, issuer.files(node())) as door, door.client(client_context(issuer.files(user()))) as quiet:
        before = trio.current_time()
        # The farewell is an error of the connection itself.
        assert (await quiet.event())[0] == 0
        with pytest.raises(ConnectionLost):
            await quiet.stream.receive()
        assert trio.current_time() - before == pytest.approx(10)
    assert [line.split()[0] for line in server.lines] == ["too_slow"]


# --- Bounds, and the context of now -----------------------------------------------------------------------------------


async def test_beyond_the_connections_a_new_one_is_closed_at_once(server: Server, issuer: Issuer) -> None:
    context = client_context(issuer.files(user()))
    async with opened(server, issuer.files(node()), connections_max=2) as door:
        async with door.client(context) as one, door.client(context) as other:
            await closed_by_the_server(await door.connect())
            await one.ping()
            await other.ping()
        await door.wait_idle()
        async with door.client(context) as late:
            await late.ping()
    (line,) = server.lines
    assert line.startswith("connections_full peer=")


async def test_a_new_context_serves_from_the_next_handshake_on(door: Door, issuer: Issuer, foreign: Issuer) -> None:
    async with door.client(client_context(issuer.files(user()))) as old:
        await old.ping()
        door.context = server_context(foreign.files(node()))
        async with door.client(client_context(foreign.files(user()))) as new:
            await new.ping()
            await old.ping()
    await door.wait_idle()
    assert door.server.lines == []


async def test_a_defect_at_the_door_ends_one_connection(server: Server, issuer: Issuer, tmp_path: Path) -> None:
    async with opened(server, issuer.files(node())) as door:
        good = door.context
        async with door.client(client_context(issuer.files(user()))) as client:
            await client.ping()
            door.context = None
            await closed_by_the_server(await door.connect())
            door.context = good
            await client.ping()
        await door.wait_idle()
    (line,) = server.failures()
    assert line.startswith("session_failed peer=")
    assert 'exception="ZeroDivisionError: no context"' in line
