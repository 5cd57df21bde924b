"""kill -9 at random moments under load: nothing acknowledged is lost, nothing comes twice."""

import random
import statistics
from functools import partial
from pathlib import Path

import trio

import wire
from tests.e2e.ledger import stored_batches, verify_directory
from tests.support.daemon import PATIENCE_SECONDS, SMALL, LogdProcess, wait_until
from wire.record import decode_header, decode_records

PARTITIONS = 4
# Every fourth time it is killed twice, which makes twenty.
KILL_ROUNDS = 16
RESTART_SECONDS_MAX = 5.0
RECORD_BYTES = 300

Sent = list[tuple[bytes, wire.Acknowledgement]]


def acknowledged(sent: list[Sent]) -> int:
    return sum(acknowledgement.done for records in sent for _, acknowledgement in records[-200:])


async def load(producer: wire.Producer, sent: list[Sent], done: trio.Event) -> None:
    """Produce to all partitions in turn, a bounded number of records ahead of the answers."""
    number = 0
    while not done.is_set():
        for partition in range(PARTITIONS):
            value = b"%d/%d/" % (partition, number) + bytes([number % 251]) * RECORD_BYTES
            sent[partition].append((value, await producer.send(value, partition=partition)))
        number += 1
        if number % 20 == 0:
            await sent[0][-1][1].wait()


def has_all(records: list[tuple[int, bytes | None]], count: int) -> bool:
    return len(records) >= count


async def follow(
    node: LogdProcess,
    seen: list[list[tuple[int, bytes | None]]],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Read everything as it comes, across every kill, on a connection of its own."""
    async with node.client() as client, wire.Consumer(client, "load") as consumer:
        task_status.started()
        async for record in consumer:
            seen[record.partition].append((record.offset, record.value))


async def test_what_is_acknowledged_survives_kill_9_at_any_moment_once_and_in_order(tmp_path: Path) -> None:
    chance = random.Random(2)
    sent: list[Sent] = [[] for _ in range(PARTITIONS)]
    seen: list[list[tuple[int, bytes | None]]] = [[] for _ in range(PARTITIONS)]
    restarts: list[float] = []
    with LogdProcess(tmp_path, SMALL) as node, trio.fail_after(100):
        node.start()
        async with node.client() as client, trio.open_nursery() as readers:
            await client.create_topic("load", PARTITIONS)
            batching = {"linger_seconds": 0.001, "batch_records_max": 20}
            async with wire.Producer(client, "load", **batching, buffer_bytes_max=1 << 20) as producer:  # type: ignore[arg-type]  # each has its type
                done = trio.Event()
                await readers.start(follow, node, seen)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(load, producer, sent, done)
                    for kill in range(KILL_ROUNDS):
                        if kill % 4 == 3:
                            # While it starts: in the middle of recovery, or before it.
                            await trio.sleep(chance.uniform(0.2, 0.7))
                            await trio.to_thread.run_sync(node.kill)
                            node.spawn()
                            await trio.sleep(chance.uniform(0.2, 0.7))
                        else:
                            before = producer.statistics.records_acknowledged
                            more = chance.choice((1, 50, 200, 1000))
                            await wait_until(
                                lambda more=more + before: producer.statistics.records_acknowledged >= more,  # type: ignore[misc]  # a bound argument
                                f"{more} more acknowledged records",
                            )
                        await trio.to_thread.run_sync(node.kill)
                        await trio.to_thread.run_sync(node.start)
                        restarts.append(node.ready_seconds)
                    done.set()
                with trio.fail_after(PATIENCE_SECONDS):
                    await producer.flush()
            for partition, records in enumerate(sent):
                receipts = [await acknowledgement.wait() for _, acknowledgement in records]
                batches = await stored_batches(client, "load", partition)
                stored = [
                    (record.offset, record.value)
                    for batch in batches
                    for record in decode_records(decode_header(batch), batch, partition)
                ]
                expected = [(receipt.offset, value) for receipt, (value, _) in zip(receipts, records, strict=True)]
                assert stored == expected
                assert [offset for offset, _ in stored] == list(range(len(stored)))
                # Whoever followed all the while got the same, and no record twice.
                wanted = partial(has_all, seen[partition], len(stored))
                await wait_until(wanted, "who follows has read to the end")
                assert seen[partition] == stored
            readers.cancel_scope.cancel()
        node.kill()
        verify_directory(node.data)
        node.start()
        node.stop()
        node.check_log()
        verify_directory(node.data)
    # The machine may be busy with something else for once; the node's own work is the same each time.
    assert statistics.median(restarts) < RESTART_SECONDS_MAX
    assert min(len(records) for records in sent) > 500
