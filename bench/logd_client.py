"""Our side through the client library: what a Python user gets, over the same mutual TLS.

It must not know the peer. The one idea: nothing is prepared outside of the measured time; records are made, encoded,
sent, acknowledged, verified and decoded inside it, as the peer's client does with its messages.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import anyio.lowlevel

import wire
from bench.harness import BenchmarkError
from bench.logd_node import TOPIC, Node, fresh_topic
from wire.errors import BufferFull
from wire.producer import BATCH_RECORDS_MAX_DEFAULT
from wire.record import encode_batch
from wire.types import Durability

Answer = TypeVar("Answer")

# Ours runs on both loops; Trio is the daemon's own, and a lone produce is a tenth faster on it than on asyncio, which
# is the only one that the peer's client knows. Throughput is the same on both.
BACKEND = "trio"


def with_client(node: Node, work: Callable[[wire.Client], Awaitable[Answer]]) -> Answer:
    """Run `work` with a connected client; close it afterwards."""
    directory = node.tls_directory
    tls = wire.Tls(
        ca=str(directory / "ca.crt"), certificate=str(directory / "user.crt"), key=str(directory / "user.key")
    )

    async def main() -> Answer:
        async with wire.Client(f"127.0.0.1:{node.port}", tls=tls) as client:
            return await work(client)

    return anyio.run(main, backend=BACKEND)


async def produce_latency(client: wire.Client, *, payload_bytes: int, seconds: float) -> float:
    """The median time of one record's produce, from value to acknowledgement, in seconds; encoding included."""
    value = b"x" * payload_bytes
    durations = []
    deadline = time.perf_counter() + seconds
    while (start := time.perf_counter()) < deadline:
        batch = encode_batch([(value, None, time.time_ns() // 1_000_000, None)])
        produced = await client.produce(TOPIC, 0, batch)
        durations.append(time.perf_counter() - start)
        if produced.durability is not Durability.QUORUM_FSYNC:
            raise BenchmarkError(f"expected {Durability.QUORUM_FSYNC}, got {produced}")
    return statistics.median(durations)


async def send_record_by_record(
    client: wire.Client, *, payload_bytes: int, seconds: float, batch_records_max: int = BATCH_RECORDS_MAX_DEFAULT
) -> tuple[int, float]:
    """`Producer.send_nowait` one record after another; acknowledged records, and the seconds they took."""
    value = b"x" * payload_bytes
    start = time.perf_counter()
    async with wire.Producer(client, TOPIC, batch_records_max=batch_records_max) as producer:
        deadline = start + seconds
        while time.perf_counter() < deadline:
            try:
                # The clock is read once a hundred records, as on the peer's side.
                for _ in range(100):
                    producer.send_nowait(value)
            except BufferFull:
                await producer.send(value)  # waits for room
            else:
                await anyio.lowlevel.checkpoint()
        await producer.flush()
        elapsed = time.perf_counter() - start
        statistics_then = producer.statistics
    if statistics_then.records_acknowledged != statistics_then.records_sent:
        raise BenchmarkError(f"not all was acknowledged: {statistics_then}")
    return statistics_then.records_acknowledged, elapsed


def produce_records(
    node: Node, *, payload_bytes: int, seconds: float, batch_records_max: int = BATCH_RECORDS_MAX_DEFAULT
) -> float:
    """`send_record_by_record` into a fresh topic; records per second, all of them found in the log afterwards."""
    with fresh_topic(node) as raw:
        records, elapsed = with_client(
            node,
            lambda client: send_record_by_record(
                client, payload_bytes=payload_bytes, seconds=seconds, batch_records_max=batch_records_max
            ),
        )
        raw.check_stored(1, records)
    return records / elapsed


async def catch_up_by_record(client: wire.Client, *, payload_bytes: int, seconds: float) -> float:
    """The same as `catch_up`, but `async for record in consumer`."""
    received, start = 0, time.perf_counter()
    while True:
        async with wire.Consumer(client, TOPIC, partition=0, start=wire.Anchor.START, follow=False) as consumer:
            async for record in consumer:
                received += 1
                # The clock is read once a thousand records, which is once a batch, as in `catch_up`.
                if not received % 1_000:
                    check_value(record, payload_bytes)
                    if (elapsed := time.perf_counter() - start) >= seconds:
                        return received / elapsed


def check_value(record: wire.Record, payload_bytes: int) -> None:
    """Raise `BenchmarkError` unless a record came back as it was sent."""
    if record.value is None or len(record.value) != payload_bytes:
        raise BenchmarkError(f"a record of {payload_bytes} B came back as {record.value!r}")


async def catch_up(client: wire.Client, *, payload_bytes: int, seconds: float) -> float:
    """Read the filled topic from its start, again when it ends, batch by batch; decoded records per second."""
    received, start = 0, time.perf_counter()
    while True:
        async with wire.Consumer(client, TOPIC, partition=0, start=wire.Anchor.START, follow=False) as consumer:
            async for batch in consumer.batches():
                received += len(batch.records)
                check_value(batch.records[-1], payload_bytes)
                if (elapsed := time.perf_counter() - start) >= seconds:
                    return received / elapsed
