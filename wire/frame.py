"""Frames: how messages are told apart on a stream of bytes.

For: cutting a stream into bodies, and putting the length in front of one. Must not know: what a body says. The one
idea: a frame is `u32 length` and that many bytes, and nothing is allocated for bytes that have not arrived.
"""

import struct
from collections.abc import Iterator
from typing import Final

from wire.errors import ProtocolError

LENGTH: Final = struct.Struct(">I")

# Before the handshake is complete nobody is known, so nobody is given more room than a greeting needs.
GREETING_FRAME_BYTES_MAX: Final = 4 << 10
# Eight batches of the largest size: room for a long fetch, and still a short time on any link.
FRAME_BYTES_MAX_DEFAULT: Final = 8 << 20
# A frame's body is at least the array `[type, request_id, headers]`.
BODY_BYTES_MIN: Final = 4


def frame(body: bytes) -> bytes:
    """`body` with its length in front."""
    return LENGTH.pack(len(body)) + body


class FrameReader:
    """Collects what arrives and hands out whole bodies.

    Invariant: the buffer holds no more than arrived, and never more than one frame of `frame_bytes_max` plus the last
    chunk that was fed.
    """

    def __init__(self, frame_bytes_max: int = GREETING_FRAME_BYTES_MAX) -> None:
        self.frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()
        # Bytes before this position are consumed; they are dropped in one go, so that cutting stays linear.
        self._position = 0

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes that arrived."""
        if self._position:
            del self._buffer[: self._position]
            self._position = 0
        self._buffer += data

    @property
    def buffered_bytes(self) -> int:
        """Bytes that arrived and are not handed out yet: 0 between two frames."""
        return len(self._buffer) - self._position

    def bodies(self) -> Iterator[memoryview]:
        """The whole bodies that have arrived, each to be used up before the next is asked for.

        Raises ProtocolError for a length out of bounds; the stream cannot be read any further then.
        """
        while self.buffered_bytes >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._buffer, self._position)
            if not BODY_BYTES_MIN <= length <= self.frame_bytes_max:
                raise ProtocolError(
                    f"a frame of {length} bytes: allowed are {BODY_BYTES_MIN} to {self.frame_bytes_max}",
                    {"frame_bytes": length, "frame_bytes_max": self.frame_bytes_max},
                )
            start = self._position + LENGTH.size
            if len(self._buffer) < start + length:
                return
            # The buffer may only change while no view of it is out: the view is closed before the position moves on.
            with memoryview(self._buffer)[start : start + length] as body:
                self._position = start + length
                yield body
