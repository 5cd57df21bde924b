"""What receiving costs the daemon: `trio.SSLStream` beside the pump of `wire.stream`, over one TLS 1.3 connection.

`python -m bench.server_stream`. For: ADR 8, which says why the daemon's sessions do not read an `SSLStream`. The one
idea: a client in a process of its own sends frames of a full batch as fast as it can; what counts is the processor time
that one side takes per byte, since the other side has the other core. No bar.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable

import trio

from logd.security.ca import ensure_development_certificates
from logd.security.tls import TlsFiles, client_context, server_context
from wire.stream import SecureStream

TOTAL_BYTES = 256 << 20
# A Produce of 1,000 records of 100 B.
FRAME_BYTES = 114_000
RUNS = 5
# What `trio.SSLStream` is asked for; it returns one record of at most 16 KiB whatever is asked.
ASKED_BYTES = 64 << 10

Receive = Callable[[trio.SocketStream, TlsFiles], Awaitable[int]]


async def with_ssl_stream(connected: trio.SocketStream, files: TlsFiles) -> int:
    """Returns the number of receives."""
    stream = trio.SSLStream(connected, server_context(files), server_side=True)
    await stream.do_handshake()
    received = receives = 0
    while received < TOTAL_BYTES:
        received += len(await stream.receive_some(ASKED_BYTES))
        receives += 1
    return receives


async def with_the_pump(connected: trio.SocketStream, files: TlsFiles) -> int:
    """Returns the number of receives."""
    own = socket.socket(fileno=connected.socket.detach())
    own.settimeout(0)
    stream = SecureStream(own, server_context(files), server_side=True)
    await stream.handshake()
    received = receives = 0
    while received < TOTAL_BYTES:
        received += len(await stream.receive())
        receives += 1
    stream.close_nowait()
    return receives


def send(port: int, directory: str) -> None:
    """The client: blocking, in a process of its own."""
    files = ensure_development_certificates(directory, "bench", "bench-0", ["127.0.0.1"]).user
    with socket.create_connection(("127.0.0.1", port)) as plain:
        stream = client_context(files).wrap_socket(plain)
        frame, sent = bytes(FRAME_BYTES), 0
        while sent < TOTAL_BYTES:
            stream.sendall(frame)
            sent += FRAME_BYTES
        # Hold the connection until the other side has read everything and closes it.
        plain_end = stream.recv(1)
        assert not plain_end


async def measure(receive: Receive, directory: str) -> tuple[float, float, int]:
    """MB per second, MB per second of processor time, and the number of receives."""
    files = ensure_development_certificates(directory, "bench", "bench-0", ["127.0.0.1"]).node
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    command = [sys.executable, "-m", "bench.server_stream", str(port), directory]
    process = await trio.lowlevel.open_process(command, stderr=subprocess.DEVNULL)
    try:
        connected = await listener.accept()
        begin, begin_processor = time.perf_counter(), time.process_time()
        receives = await receive(connected, files)
        seconds, processor = time.perf_counter() - begin, time.process_time() - begin_processor
        await trio.aclose_forcefully(connected)
    finally:
        process.kill()
        await process.wait()
        await listener.aclose()
    return TOTAL_BYTES / 1e6 / seconds, TOTAL_BYTES / 1e6 / processor, receives


def main() -> None:
    """Print the table."""
    ways: dict[str, Receive] = {"trio.SSLStream": with_ssl_stream, "wire.stream.SecureStream": with_the_pump}
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(RUNS):
            for name, receive in ways.items():
                found[name].append(trio.run(measure, receive, directory))
    what = f"{TOTAL_BYTES >> 20} MiB in frames of {FRAME_BYTES} bytes, {RUNS} runs by turns, medians"
    print(f"{what}; {os.cpu_count()} cores\n")
    print(f"{'':26}{'MB/s':>8}{'MB per CPU second':>20}{'receives':>10}")
    for name, runs in found.items():
        rate, per_processor, receives = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"{name:26}{rate:8.0f}{per_processor:20.0f}{receives:10.0f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        send(int(sys.argv[1]), sys.argv[2])
    else:
        main()
