"""A full disk: said at once, survived by readers and by the control path, over as soon as there is space again."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import trio

import wire
from tests.e2e.ledger import Ledger, batch_of, verify_directory
from tests.support.daemon import PATIENCE_SECONDS, SMALL, LogdProcess
from wire.errors import DiskFull

BATCH_BYTES = 60_000
REFUSAL_SECONDS_MAX = 1.0
RESUME_SECONDS_MAX = 10.0
PARTITIONS = 3

MIB = 1 << 20
# Settings, the disk's size, and what of it is taken by others at first: more than the journal may still grow by when
# it is freed. Small files on a small disk, and what somebody has who types `logd --dev` on a disk that is soon full.
SMALL_FILES = ({**SMALL, "store.disk_reserve_bytes": "4MiB"}, 64 * MIB, 24 * MIB)
DEVELOPMENT: tuple[Mapping[str, str], int, int] = ({}, 176 * MIB, 40 * MIB)


@pytest.fixture(params=[SMALL_FILES, DEVELOPMENT], ids=["small-files", "development"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LogdProcess]:
    """A node with a disk of its own."""
    settings, disk_bytes, ballast_bytes = request.param
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={disk_bytes}", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        with LogdProcess(tmp_path, settings) as node:
            node.data = place / "data"
            with (place / "ballast").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, ballast_bytes)
            yield node
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


async def fill(client: wire.Client, ledger: Ledger, topic: str) -> int:
    """Produce until the disk is full, in every partition; how many batches there was space for."""
    taken = 0
    full: set[int] = set()
    while len(full) < PARTITIONS:
        for partition in set(range(PARTITIONS)) - full:
            if await is_refused(client, ledger, topic, partition, taken):
                full.add(partition)
            else:
                taken += 1
    return taken


async def is_refused(client: wire.Client, ledger: Ledger, topic: str, partition: int, number: int) -> bool:
    """Produce one batch; whether the disk was full. Either answer comes soon."""
    with trio.fail_after(REFUSAL_SECONDS_MAX):
        try:
            await ledger.produce(client, topic, partition, batch_of(topic, number, BATCH_BYTES))
        except DiskFull as error:
            assert error.retriable  # noqa: PT017  # the wait for it is what is bounded
            # The refusal says that nothing was done.
            ledger.sent[topic, partition].pop()
            return True
    return False


async def write_again(client: wire.Client, ledger: Ledger, topic: str) -> None:
    """Try in every partition until it is written to, as a client does that got a retriable error."""
    with trio.fail_after(RESUME_SECONDS_MAX):
        for partition in range(PARTITIONS):
            number = 10_000
            while await is_refused(client, ledger, topic, partition, number):
                number += 1
                await trio.sleep(0.1)


async def test_a_full_disk_refuses_writes_serves_reads_and_is_over_when_there_is_space(node: LogdProcess) -> None:
    ledger = Ledger()
    with trio.fail_after(2 * PATIENCE_SECONDS):
        node.start()
        async with node.client() as client:
            await ledger.create(client, "load", PARTITIONS)
            assert await fill(client, ledger, "load")
            # Reads go on, and so does the control path, out of the reserve.
            await ledger.check(client)
            await ledger.create(client, "late", 1)
            await client.alter_topic("late", configuration={"retention.bytes": "1GiB"})
            assert (await client.init_producer()).producer_id
            assert await is_refused(client, ledger, "load", 0, 20_000)

            (node.data.parent / "ballast").unlink()
            await write_again(client, ledger, "load")
            await ledger.check(client)

            # Again, and now it dies while its disk is full.
            await fill(client, ledger, "load")
        node.kill()
        verify_directory(node.data)
        node.start()
        async with node.client() as client:
            await ledger.check(client)
            await fill(client, ledger, "load")
            # A topic that is deleted makes space as well.
            await ledger.create(client, "after", PARTITIONS)
            await ledger.delete(client, "load")
            await write_again(client, ledger, "after")
            await ledger.check(client)
        assert node.events("disk_full")
        node.stop()
        node.check_log()
        verify_directory(node.data)
