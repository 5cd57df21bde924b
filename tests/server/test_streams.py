"""The contract of a session's stream, held against the fake and against TLS over a real socket."""

import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from logd.security.tls import client_context, server_context
from logd.server.outbox import ByteStream
from tests.security.certificates import Issuer, node, user
from tests.server.streams import MemoryStream
from wire.errors import ConnectionLost
from wire.stream import SecureStream

# More than any kernel keeps between two ends that do not read.
MUCH = 32 << 20


class Pair(ABC):
    """The server's end, and what its client does."""

    server: ByteStream

    @abstractmethod
    def send(self, data: bytes) -> None: ...
    @abstractmethod
    async def receive(self) -> bytes: ...
    @abstractmethod
    def reset(self) -> None: ...


class MemoryPair(Pair):
    def __init__(self) -> None:
        self.stream = MemoryStream(write_stall_seconds=1.0)
        self.server = self.stream

    def send(self, data: bytes) -> None:
        self.stream.client_send(data)

    async def receive(self) -> bytes:
        return await self.stream.client_receive()

    def reset(self) -> None:
        self.stream.client_close()


class SecurePair(Pair):
    def __init__(self, client: SecureStream, server: SecureStream) -> None:
        self.client = client
        self.server = server

    def send(self, data: bytes) -> None:
        self.client.send_nowait(data)

    async def receive(self) -> bytes:
        return bytes(await self.client.receive())

    def reset(self) -> None:
        self.client.close_nowait()


@asynccontextmanager
async def secure_pair(directory: Path) -> AsyncIterator[SecurePair]:
    issuer = Issuer.create(directory / "pki")
    near, far = socket.socketpair()
    for end in (near, far):
        end.setblocking(False)
    client = SecureStream(near, client_context(issuer.files(user())))
    server = SecureStream(far, server_context(issuer.files(node())), server_side=True, write_stall_seconds=1.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.handshake)
        await server.handshake()
    try:
        yield SecurePair(client, server)
    finally:
        client.close_nowait()
        server.close_nowait()


@pytest.fixture(params=["memory", "secure"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    if request.param == "memory":
        yield MemoryPair()
    else:
        async with secure_pair(tmp_path) as made:
            yield made


async def test_bytes_arrive_in_order_both_ways(pair: Pair) -> None:
    pair.send(b"one ")
    pair.send(b"two")
    received = b""
    while len(received) < 7:
        received += bytes(await pair.server.receive())
    assert received == b"one two"
    pair.server.send_nowait(b"three")
    assert await pair.receive() == b"three"
    assert pair.server.unsent_bytes == 0


async def test_the_end_is_an_error_every_time(pair: Pair) -> None:
    pair.reset()
    for _ in range(2):
        with pytest.raises(ConnectionLost):
            await pair.server.receive()


async def test_what_arrived_before_the_end_is_received_before_it(pair: Pair) -> None:
    pair.send(b"last words")
    pair.reset()
    assert bytes(await pair.server.receive()) == b"last words"
    with pytest.raises(ConnectionLost):
        await pair.server.receive()


async def test_sending_never_waits_and_the_sender_sends_the_rest(pair: Pair) -> None:
    pair.server.send_nowait(bytes(MUCH))
    pair.server.send_nowait(b"end")
    assert pair.server.unsent_bytes > MUCH // 2
    received = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.server.run_sender)
        while len(received) < MUCH + 3:
            received += await pair.receive()
        await pair.server.wait_sent(0)
        nursery.cancel_scope.cancel()
    assert received.endswith(b"\x00end")
    assert pair.server.unsent_bytes == 0


async def test_everybody_who_waits_for_room_is_woken(pair: Pair) -> None:
    pair.server.send_nowait(bytes(MUCH))
    received = 0
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.server.run_sender)
            async with trio.open_nursery() as waiting:
                for bound in (MUCH // 2, 0, MUCH // 2, 0):
                    waiting.start_soon(pair.server.wait_sent, bound)
                await trio.testing.wait_all_tasks_blocked()
                while received < MUCH:
                    received += len(await pair.receive())
            nursery.cancel_scope.cancel()
    assert pair.server.unsent_bytes == 0


async def test_a_client_that_takes_nothing_ends_the_sender(pair: Pair, autojump_clock: trio.testing.MockClock) -> None:
    pair.server.send_nowait(bytes(MUCH))
    with pytest.raises(ConnectionLost, match="took no byte for 1 s"):
        await pair.server.run_sender()


async def test_sending_to_who_is_gone_does_not_fail(pair: Pair) -> None:
    pair.reset()
    for _ in range(3):
        pair.server.send_nowait(b"x" * 100_000)
    with pytest.raises(ConnectionLost):
        await pair.server.receive()
    with pytest.raises(ConnectionLost):
        await pair.server.run_sender()
