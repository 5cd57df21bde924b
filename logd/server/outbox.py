"""What a session has to send: answers are put, and leave together.

For: the sessions, and the actor, which lets them leave. Must not know: what the bytes mean. The one idea: an answer
costs a call to TLS and one to the kernel, so all that become due at one moment share them; and nobody waits for a send,
because what the kernel does not take at once is the stream's to send on.
"""

from typing import Final, Protocol

# Answers with data wait while this much is unsent; it covers a fast link's delay with two large answers.
UNSENT_BYTES_MAX: Final = 8 << 20


class ByteStream(Protocol):
    """A connection as the session uses it: `wire.stream.SecureStream`, or a test's."""

    @property
    def unsent_bytes(self) -> int: ...
    def send_nowait(self, data: bytes) -> None: ...
    async def wait_sent(self, unsent_bytes_max: int) -> None: ...
    async def run_sender(self) -> None: ...
    async def receive(self) -> memoryview: ...


class Outbox:
    """Answers that are put and not yet handed to the stream.

    Small answers are bounded by the requests in flight, large ones wait for `wait_room` before they are made.
    """

    __slots__ = ("_chunks", "_chunks_bytes", "_is_closed", "_stream", "is_corked")

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._chunks: list[bytes] = []
        # Invariant: the sum of the chunks' sizes.
        self._chunks_bytes = 0
        self._is_closed = False
        self.is_corked = False
        """Somebody will flush: see `Corks`, which alone changes it, so that no outbox stands there twice."""

    def put(self, data: bytes) -> None:
        """Add an answer. Never blocks; after `close` it does nothing."""
        if data and not self._is_closed:
            self._chunks.append(data)
            self._chunks_bytes += len(data)

    def flush(self) -> None:
        """Let everything leave that was put."""
        if self._chunks:
            data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            self._chunks.clear()
            self._chunks_bytes = 0
            self._stream.send_nowait(data)

    def close(self) -> None:
        """Nothing leaves any more."""
        self._is_closed = True
        self._chunks.clear()
        self._chunks_bytes = 0

    @property
    def has_room(self) -> bool:
        """Whether less is on its way than the client may let pile up."""
        return self._chunks_bytes + self._stream.unsent_bytes <= UNSENT_BYTES_MAX

    async def wait_room(self) -> None:
        """Wait until an answer with data may be put."""
        await self._stream.wait_sent(UNSENT_BYTES_MAX)


class Corks:
    """Outboxes that got answers from the actor, and leave when it has dealt out all of them."""

    def __init__(self) -> None:
        self._outboxes: list[Outbox] = []

    def add(self, outbox: Outbox) -> None:
        """Have an outbox flushed at the next `release`."""
        if not outbox.is_corked:
            outbox.is_corked = True
            self._outboxes.append(outbox)

    def release(self) -> None:
        """Flush all of them."""
        while self._outboxes:
            outbox = self._outboxes.pop()
            outbox.is_corked = False
            outbox.flush()
