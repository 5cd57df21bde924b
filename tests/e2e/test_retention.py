"""Retention by bytes and by age: whole segments go, the oldest first, and every reader is told where the log begins."""

import time
from pathlib import Path

import pytest
import trio

import wire
from tests.e2e.ledger import Ledger, batch_of, verify_directory
from tests.support.daemon import PATIENCE_SECONDS, SMALL, LogdProcess
from wire.errors import OffsetOutOfRange
from wire.record import decode_header, split_batches

SETTINGS = {**SMALL, "topics.retention_check_seconds": "0.1"}
BATCH_BYTES = 100_000
SEGMENT_BYTES = 1 << 20


async def start_offset(client: wire.Client, topic: str) -> int:
    return (await client.list_offsets(topic, 0, wire.Anchor.START)).offset


async def wait_for_start(client: wire.Client, topic: str, offset: int) -> int:
    """The log's start, once it is at least `offset`."""
    with trio.fail_after(PATIENCE_SECONDS):
        while (start := await start_offset(client, topic)) < offset:  # noqa: ASYNC110  # the node's own clock moves it
            await trio.sleep(0.02)
    return start


async def fill(client: wire.Client, ledger: Ledger, topic: str, batches: int) -> None:
    for number in range(batches):
        await ledger.produce(client, topic, 0, batch_of(topic, number, BATCH_BYTES))


async def check_readers(client: wire.Client, topic: str, start: int) -> None:
    """Below the start nothing is served, at it reading begins, and a consumer from the start finds all the rest."""
    with pytest.raises(OffsetOutOfRange) as refused:
        await client.fetch(topic, 0, start - 1)
    assert refused.value.details["log_start_offset"] == start
    assert (
        next(iter(map(decode_header, split_batches((await client.fetch(topic, 0, start)).batches)))).base_offset
        == start
    )
    end = (await client.list_offsets(topic, 0)).high_watermark
    async with wire.Consumer(client, topic, partition=0, follow=False) as consumer:
        offsets = [record.offset async for record in consumer]
    assert offsets == list(range(start, end))


async def test_retention_by_bytes_gives_up_whole_segments_and_a_restart_keeps_the_new_start(tmp_path: Path) -> None:
    ledger = Ledger()
    with LogdProcess(tmp_path, SETTINGS) as node, trio.fail_after(2 * PATIENCE_SECONDS):
        node.start()
        async with node.client() as client:
            await ledger.create(client, "bytes", 1, retention_bytes=str(2 * SEGMENT_BYTES))
            await ledger.create(client, "kept", 1)
            await fill(client, ledger, "bytes", 50)
            await fill(client, ledger, "kept", 12)
            start = await wait_for_start(client, "bytes", 1)
            (partition,) = (await client.describe_topic("bytes")).partitions
            assert 2 * SEGMENT_BYTES <= partition.log_bytes < 4 * SEGMENT_BYTES
            await check_readers(client, "bytes", start)
            assert await start_offset(client, "kept") == 0
            await ledger.check(client)
        segments = sorted(node.data.glob("groups/*/*.log"))
        node.kill()
        node.start()
        async with node.client() as client:
            assert await start_offset(client, "bytes") == start
            await check_readers(client, "bytes", start)
            await ledger.check(client)
            # What is lowered takes effect as well.
            await client.alter_topic("bytes", configuration={"retention.bytes": "1"})
            assert await wait_for_start(client, "bytes", start + 1) > start
        node.stop()
        assert len(sorted(node.data.glob("groups/*/*.log"))) < len(segments)
        node.check_log()
        verify_directory(node.data)


async def test_retention_by_age_gives_up_what_is_older_and_nothing_of_the_active_segment(tmp_path: Path) -> None:
    ledger = Ledger()
    with LogdProcess(tmp_path, SETTINGS) as node, trio.fail_after(2 * PATIENCE_SECONDS):
        node.start()
        async with node.client() as client:
            await ledger.create(client, "age", 1, retention_seconds="1")
            await fill(client, ledger, "age", 25)
            start = await wait_for_start(client, "age", 1)
            end = (await client.list_offsets("age", 0)).high_watermark
            assert start < end
            await check_readers(client, "age", start)
            await ledger.check(client)
        node.stop()
        node.start()
        async with node.client() as client:
            assert await start_offset(client, "age") >= start
            await ledger.check(client)
        node.stop()
        node.check_log()
        verify_directory(node.data)


async def test_a_reader_behind_retention_is_told_so_and_never_given_something_else(tmp_path: Path) -> None:
    ledger = Ledger()
    with LogdProcess(tmp_path, SETTINGS) as node, trio.fail_after(2 * PATIENCE_SECONDS):
        node.start()
        refusals = 0
        done = trio.Event()

        async def read_from_the_start(client: wire.Client) -> None:
            nonlocal refusals
            offset = 0
            while not done.is_set():
                try:
                    fetched = await client.fetch("brief", 0, offset, bytes_max=BATCH_BYTES, wait_seconds=0.1)
                except OffsetOutOfRange as error:
                    refusals += 1
                    offset = error.details["log_start_offset"]
                    continue
                for batch in split_batches(fetched.batches):
                    header = decode_header(batch)
                    assert header.base_offset <= offset < header.next_offset or header.base_offset >= offset
                    if not header.is_control:
                        assert header.base_offset <= offset
                        offset = max(offset, header.next_offset)

        async with node.client() as client, node.client() as reader:
            await ledger.create(client, "brief", 1, retention_bytes="1")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_from_the_start, reader)
                await fill(client, ledger, "brief", 60)
                await wait_for_start(client, "brief", 100)
                done.set()
            await ledger.check(client)
        node.stop()
        node.check_log()


async def check_times(client: wire.Client, before: int, stamps: list[tuple[int, int]], end: int) -> None:
    for wanted in {before - 1000, *(stamp for stamp, _ in stamps), stamps[-1][0] + 1, stamps[3][0] + 1}:
        expected = next((offset for stamp, offset in stamps if stamp >= wanted), end)
        assert (await client.list_offsets("times", 0, wanted)).offset == expected
    assert (await client.list_offsets("times", 0, wire.Anchor.START)).offset == 0
    assert (await client.list_offsets("times", 0, wire.Anchor.END)).offset == end


async def test_offsets_are_listed_by_the_time_of_appending(tmp_path: Path) -> None:
    ledger = Ledger()
    with LogdProcess(tmp_path, SETTINGS) as node, trio.fail_after(2 * PATIENCE_SECONDS):
        node.start()
        async with node.client() as client:
            await ledger.create(client, "times", 1)
            before = time.time_ns() // 1_000_000
            await fill(client, ledger, "times", 25)
            stamps = []
            offset = 0
            end = (await client.list_offsets("times", 0)).high_watermark
            while offset < end:
                fetched = await client.fetch("times", 0, offset)
                headers = [decode_header(batch) for batch in split_batches(fetched.batches)]
                stamps += [(header.append_timestamp, header.base_offset) for header in headers if not header.is_control]
                offset = fetched.next_offset
            assert stamps == sorted(stamps)
            await check_times(client, before, stamps, end)
        node.kill()
        node.start()
        async with node.client() as client:
            await check_times(client, before, stamps, end)
        node.stop()
        node.check_log()
