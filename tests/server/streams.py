"""A connection in memory, as `logd.server` uses one, and a client at its other end.

`MemoryStream` keeps the contract of `wire.stream.SecureStream`: `test_streams.py` holds both to it.
"""

from collections import deque
from typing import Final

import trio

from wire.connection import (
    Answered,
    ClientConnection,
    ClientEvent,
    Delivered,
    Refused,
    Welcomed,
)
from wire.errors import ConnectionLost, ServerError
from wire.messages import Message

# What lies between two ends that do not read: small, so that a test sees the bound.
KERNEL_BYTES_MAX: Final = 1 << 20


class MemoryStream:
    """The server's end. What the client does is named `client_…`."""

    def __init__(self, *, write_stall_seconds: float = 30.0, kernel_bytes_max: int = KERNEL_BYTES_MAX) -> None:
        self._write_stall_seconds = write_stall_seconds
        self._kernel_bytes_max = kernel_bytes_max
        self._arrived = bytearray()
        self._arrival = trio.Event()
        self._ended: str | None = None
        # A send failed: that the client is gone is learned by `receive` alone as long as nothing is sent.
        self._broken = False
        self._unsent: deque[bytes] = deque()
        self._kernel = bytearray()
        self._kernel_filled = trio.Event()
        self._sender_wanted = trio.Event()
        self._client_read = trio.Event()
        self._progress = trio.Event()
        self.unsent_bytes = 0
        # Everything that was sent on, for tests that count.
        self.sends = 0
        self.is_closed = False
        self._closed = trio.Event()

    # --- The port -----------------------------------------------------------------------------------------------------

    def send_nowait(self, data: bytes) -> None:
        self.sends += 1
        if self._ended is not None:
            self._break()
            return
        self._unsent.append(data)
        self.unsent_bytes += len(data)
        if len(self._unsent) == 1:
            self._push()

    def _push(self) -> None:
        while self._unsent and (room := self._kernel_bytes_max - len(self._kernel)) > 0:
            data = self._unsent.popleft()
            if len(data) > room:
                self._unsent.appendleft(data[room:])
            self._kernel += data[:room]
            self.unsent_bytes -= min(len(data), room)
            self._kernel_filled.set()
        if self._unsent:
            self._sender_wanted.set()

    async def wait_sent(self, unsent_bytes_max: int) -> None:
        while self.unsent_bytes > unsent_bytes_max and not self._broken:
            if self._progress.is_set():
                self._progress = trio.Event()
            await self._progress.wait()

    async def run_sender(self) -> None:
        while True:
            await self._sender_wanted.wait()
            if self._broken:
                raise ConnectionLost(self._ended or "")
            with trio.move_on_after(self._write_stall_seconds):
                while len(self._kernel) >= self._kernel_bytes_max:
                    self._client_read = trio.Event()
                    await self._client_read.wait()
                self._push()
                self._progress.set()
                if not self._unsent and not self._broken:
                    self._sender_wanted = trio.Event()
                continue
            raise ConnectionLost(f"the client took no byte for {self._write_stall_seconds:g} s")

    async def receive(self) -> memoryview:
        while not self._arrived:
            if self._ended is not None:
                raise ConnectionLost(self._ended)
            self._arrival = trio.Event()
            await self._arrival.wait()
        await trio.lowlevel.checkpoint()
        data = bytes(self._arrived)
        self._arrived.clear()
        return memoryview(data)

    def close_nowait(self) -> None:
        self.is_closed = True
        self._closed.set()
        self._kernel_filled.set()

    # --- The other end ------------------------------------------------------------------------------------------------

    def client_send(self, data: bytes) -> None:
        self._arrived += data
        self._arrival.set()

    def client_close(self, why: str = "the client closed the connection") -> None:
        """A reset: what is on its way to the client is lost with it."""
        self._ended = why
        self._arrival.set()
        if self._unsent:
            self._break()

    def _break(self) -> None:
        self._broken = True
        self._unsent.clear()
        self.unsent_bytes = 0
        self._kernel.clear()
        self._progress.set()
        self._sender_wanted.set()
        self._client_read.set()

    async def client_receive(self) -> bytes:
        """What has come; nothing at the end."""
        while not self._kernel and not self.is_closed:
            self._kernel_filled = trio.Event()
            await self._kernel_filled.wait()
        return self.client_receive_nowait()

    async def client_wait_closed(self) -> None:
        """Wait until the server closed, without reading."""
        await self._closed.wait()

    def client_receive_nowait(self) -> bytes:
        data = bytes(self._kernel)
        self._kernel.clear()
        self._client_read.set()
        return data


class Client:
    """A client that speaks the protocol at the other end of a stream."""

    def __init__(self, stream: MemoryStream) -> None:
        self.stream = stream
        self.connection = ClientConnection()
        self._events: deque[ClientEvent] = deque()

    async def greet(self) -> Welcomed:
        self.stream.client_send(self.connection.hello("test/1"))
        event = await self.event()
        assert isinstance(event, Welcomed)
        return event

    async def event(self) -> ClientEvent:
        """The next event. Raises EOFError at the end of the connection."""
        while not self._events:
            data = await self.stream.client_receive()
            if not data:
                raise EOFError
            self._take(data)
        return self._events.popleft()

    def events_nowait(self) -> list[ClientEvent]:
        """What has come so far."""
        self._take(self.stream.client_receive_nowait())
        events = list(self._events)
        self._events.clear()
        return events

    def _take(self, data: bytes) -> None:
        self.connection.feed(data)
        self._events.extend(self.connection.events())

    def send(self, message: Message, timeout_ms: int | None = None) -> int:
        """Send a request; returns its id."""
        headers = None if timeout_ms is None else {"timeout_ms": timeout_ms}
        request_id, data = self.connection.request(message, headers)
        self.stream.client_send(data)
        return request_id

    async def ask(self, message: Message, timeout_ms: int | None = None) -> Message:
        """The answer to a request, which has to be the next event. Raises what the server answers."""
        return await self.answer(self.send(message, timeout_ms))

    async def answer(self, request_id: int) -> Message:
        event = await self.event()
        assert event[0] == request_id, event
        if isinstance(event, Refused):
            raise event.error
        assert isinstance(event, Answered)
        return event.answer

    async def error(self, request_id: int) -> ServerError:
        event = await self.event()
        assert isinstance(event, Refused), event
        assert event.request_id == request_id, event
        return event.error

    async def delivered(self, request_id: int) -> Delivered:
        event = await self.event()
        assert isinstance(event, Delivered), event
        assert event.request_id == request_id
        return event

    async def farewell(self) -> ServerError:
        """The last words of the server; the connection ends with them."""
        error = await self.error(0)
        await self.end()
        return error

    async def end(self) -> None:
        """Nothing more comes, and the connection is closed."""
        assert not self._events, self._events
        assert await self.stream.client_receive() == b""
