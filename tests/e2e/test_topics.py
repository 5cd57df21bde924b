"""Topics that come and go: directories, ids, and everybody else's records."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

import wire
from tests.e2e.ledger import Ledger, batch_of, verify_directory
from tests.support.daemon import PATIENCE_SECONDS, SMALL, LogdProcess, wait_until
from wire.errors import TopicExists, TopicNotFound


def groups(node: LogdProcess) -> set[str]:
    return set(os.listdir(node.data / "groups"))


async def test_a_deleted_topic_is_gone_with_its_files_and_its_name_is_free_again(tmp_path: Path) -> None:
    ledger = Ledger()
    with LogdProcess(tmp_path, SMALL) as node, trio.fail_after(2 * PATIENCE_SECONDS):
        node.start()
        async with node.client() as client:
            await ledger.create(client, "brief", 3)
            first = ledger.topics["brief"]
            with pytest.raises(TopicExists):
                await client.create_topic("brief", 1)
            for partition in range(3):
                await ledger.produce(client, "brief", partition, batch_of("brief", partition))
            before = groups(node)
            await ledger.delete(client, "brief")
            for refused in (
                lambda: client.produce("brief", 0, batch_of("brief", 9)),
                lambda: client.fetch("brief", 0, 0),
                lambda: client.describe_topic("brief"),
                lambda: client.delete_topic("brief"),
            ):
                with pytest.raises(TopicNotFound):
                    await refused()
            await wait_until(lambda: len(groups(node)) == len(before) - 3, "its directories are gone")

            await ledger.create(client, "brief", 1)
            assert ledger.topics["brief"] != first
            assert await client.list_offsets("brief", 0) == wire.ListedOffsets(0, 0, 0)
            produced = await ledger.produce(client, "brief", 0, batch_of("another", 0))
            assert produced.base_offset == 0
            assert not groups(node) & (before - {"0" * 20})
        node.kill()
        verify_directory(node.data)
        node.start()
        async with node.client() as client:
            await ledger.check(client)
            assert (await client.describe_topic("brief")).topic_id != first
        node.stop()
        node.check_log()
        verify_directory(node.data)


async def produce(client: wire.Client, topic: str) -> None:
    for number in range(100_000):
        await client.produce(topic, 0, batch_of(topic, number, 20_000))


async def follow(client: wire.Client, topic: str) -> None:
    async with wire.Consumer(client, topic) as consumer:
        async for _ in consumer.batches():
            pass


async def test_deleting_under_load_hurts_nobody_else(tmp_path: Path) -> None:
    ledger = Ledger()
    refused = 0
    with LogdProcess(tmp_path, SMALL) as node, trio.fail_after(2 * PATIENCE_SECONDS):
        node.start()
        done = trio.Event()

        async def produce_steadily(client: wire.Client, partition: int) -> None:
            number = 0
            while not done.is_set():
                await ledger.produce(client, "steady", partition, batch_of("steady", number, 5_000))
                number += 1

        async def until_gone(
            use: Callable[[wire.Client, str], Awaitable[None]], client: wire.Client, topic: str
        ) -> None:
            nonlocal refused
            with pytest.raises(TopicNotFound):
                await use(client, topic)
            refused += 1

        async with node.client() as client, node.client() as brief:
            await ledger.create(client, "steady", 2)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(produce_steadily, client, 0)
                nursery.start_soon(produce_steadily, client, 1)
                for number in range(8):
                    topic = f"brief-{number}"
                    await client.create_topic(topic, 2)
                    async with trio.open_nursery() as short:
                        for _ in range(3):
                            short.start_soon(until_gone, produce, brief, topic)
                        short.start_soon(until_gone, follow, brief, topic)
                        answers = ledger.answers
                        await wait_until(lambda answers=answers: ledger.answers > answers + 5, "others go on")  # type: ignore[misc]  # a bound argument
                        await client.delete_topic(topic)
                done.set()
            assert refused == 8 * 4
            await ledger.check(client)
            await wait_until(lambda: len(groups(node)) == 3, "only what is wanted is left")
        node.kill()
        node.start()
        async with node.client() as client:
            await ledger.check(client)
        node.stop()
        node.check_log()
        verify_directory(node.data)
