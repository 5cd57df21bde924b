"""What a session has still to send: one writer takes it, anybody may put.

For: the session. Must not know: what the bytes mean. The one idea: whoever has an answer puts its bytes and goes on;
one task writes, so that no two sends ever meet on one stream and no deadline of a request cancels a send.
"""

from collections import deque
from typing import Final

import trio

# One send of this size keeps TLS and the socket busy without holding several answers' memory twice.
SEND_BYTES_MAX: Final = 1 << 20
# Answers with data wait while this much is unsent; it covers a fast link's delay with two large answers.
UNSENT_BYTES_MAX: Final = 8 << 20


class Outbox:
    """Bytes to send, in order.

    Invariant: `unsent_bytes` is the sum of what was put and not yet taken as sent.
    """

    def __init__(self) -> None:
        self.unsent_bytes = 0
        self._chunks: deque[bytes] = deque()
        self._filled = trio.Event()
        self._emptied = trio.Event()
        self._closed = False

    def put(self, data: bytes) -> None:
        """Add bytes; never blocks. Small answers are bounded by the requests in flight, large ones by `wait_room`."""
        if data and not self._closed:
            self._chunks.append(data)
            self.unsent_bytes += len(data)
            self._filled.set()

    def close(self) -> None:
        """Nothing more will be put: the writer ends when it has sent what is there."""
        self._closed = True
        self._filled.set()

    async def wait_room(self) -> None:
        """Wait until an answer with data may be put."""
        while self.unsent_bytes >= UNSENT_BYTES_MAX:
            self._emptied = trio.Event()
            await self._emptied.wait()

    async def take(self) -> bytes | None:
        """Everything up to `SEND_BYTES_MAX`, as one piece; None after `close`, when all is taken."""
        while not self._chunks:
            if self._closed:
                return None
            self._filled = trio.Event()
            await self._filled.wait()
        taken = [self._chunks.popleft()]
        size = len(taken[0])
        while self._chunks and size + len(self._chunks[0]) <= SEND_BYTES_MAX:
            taken.append(self._chunks.popleft())
            size += len(taken[-1])
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def sent(self, length_bytes: int) -> None:
        """What `take` gave is with the kernel."""
        self.unsent_bytes -= length_bytes
        if self.unsent_bytes < UNSENT_BYTES_MAX:
            self._emptied.set()
