"""A failed fsync or write: nothing is promised after it, the node says why and ends; a new start loses nothing."""

import re
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

import wire
from tests.e2e.ledger import Ledger, batch_of, verify_directory
from tests.support.daemon import PATIENCE_SECONDS, SMALL, LogdProcess, Strace, has_strace
from wire.errors import ClientError, CorruptBatch

pytestmark = pytest.mark.skipif(bool(has_strace()), reason=has_strace())

EXIT_SECONDS_MAX = 1.0
SYNCS = ("fdatasync", "fsync")
PRODUCERS = 3


async def load(client: wire.Client, ledger: Ledger, topic: str, partition: int) -> None:
    for number in range(10_000):
        await ledger.produce(client, topic, partition, batch_of(f"{topic}{partition}", number, 40_000))


async def load_until_it_ends(node: LogdProcess, ledger: Ledger) -> None:
    """Produce to several partitions at once until the connection is lost."""
    try:
        async with node.client() as client, trio.open_nursery() as nursery:
            for partition in range(PRODUCERS):
                nursery.start_soon(load, client, ledger, "load", partition)
    except* ClientError:
        pass


def syncs(trace: str) -> list[tuple[float, str]]:
    """Time and descriptor of each fdatasync or fsync that strace saw, of all threads, in order."""
    found = re.findall(r"^(?:\d+ )?(\d+\.\d+) f(?:data)?sync\((\d+)\)", trace, re.MULTILINE)
    return sorted((float(time), descriptor) for time, descriptor in found)


def check_last_words(node: LogdProcess, code: int) -> None:
    """It ended by itself, and said in one line that the disk failed, and how."""
    assert code > 0
    node.check_log()
    last = [line for line in node.log_text().splitlines() if "Input/output error" in line]
    assert len(last) == 1, node.log_text()
    assert node.log_text().splitlines()[-1] == last[0]
    assert "defect" not in last[0]
    assert str(node.data) in last[0]


FAILURES = {
    "the-first-round": (1, "fdatasync", 1),
    "a-later-round": (1, "fdatasync", 7),
    "a-rounds-bytes": (1, "pwritev2", 5),
    "a-segments-bytes": (1, "pwritev2", 8),
    "a-segment-in-the-background": (2, "fdatasync", 2),
    "a-segments-space": (2, "fallocate", 2),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_after_a_failed_fsync_nothing_is_promised_and_the_node_ends_at_once(name: str, tmp_path: Path) -> None:
    thread, call, number = FAILURES[name]
    ledger = Ledger()
    with LogdProcess(tmp_path, SMALL) as node, trio.fail_after(2 * PATIENCE_SECONDS):
        node.start()
        async with node.client() as client:
            await ledger.create(client, "load", PRODUCERS)
        threads = node.threads()
        others: Sequence[int] = [number for number in threads[1:3] if number != threads[thread]]
        with (
            Strace(tmp_path, [threads[thread]], f"{call}:error=EIO:when={number}", *SYNCS) as strace,
            Strace(tmp_path, others, None, *SYNCS) as watching,
        ):
            await load_until_it_ends(node, ledger)
            code = await trio.to_thread.run_sync(node.wait)
            trace = strace.wait()
            seen = syncs(trace + watching.wait())
        check_last_words(node, code)

        failed = re.search(r"^(\d+\.\d+) \w+\((\d+).*EIO .*INJECTED", trace, re.MULTILINE)
        assert failed is not None
        time = float(failed[1])
        assert failed[2] not in [descriptor for later, descriptor in seen if later > time]
        exits = re.findall(r"^(\d+\.\d+) \+\+\+ exited", trace, re.MULTILINE)
        assert float(exits[-1]) - time < EXIT_SECONDS_MAX

        answers = ledger.answers
        if name == "the-first-round":
            assert not answers
        node.start()
        async with node.client() as client:
            await ledger.check(client)
            await ledger.produce(client, "load", 0, batch_of("later", 0))
            await ledger.check(client)
        assert ledger.answers == answers + 1
        node.stop()


async def test_an_fsync_that_fails_during_recovery_ends_the_start(tmp_path: Path) -> None:
    ledger = Ledger()
    with LogdProcess(tmp_path, SMALL) as node, trio.fail_after(2 * PATIENCE_SECONDS):
        node.start()
        async with node.client() as client:
            await ledger.create(client, "load", 1)
            for number in range(5):
                await ledger.produce(client, "load", 0, batch_of("load", number))
        node.kill()
        node.prefix = ["strace", "-D", "-o", str(tmp_path / "trace"), "-e", "trace=fdatasync"]
        node.prefix += ["-e", "inject=fdatasync:error=EIO:when=2"]
        code, _ = await trio.to_thread.run_sync(node.run_to_end)
        check_last_words(node, code)
        node.prefix = []
        node.start()
        async with node.client() as client:
            await ledger.check(client)
        node.signal(signal.SIGTERM)
        assert node.wait() == 0


async def test_a_disk_that_fails_before_the_node_is_ready_ends_the_start(tmp_path: Path) -> None:
    with LogdProcess(tmp_path, SMALL) as node, trio.fail_after(2 * PATIENCE_SECONDS):
        # The space of group 0's first segment: its leader's first batch waits for it, and the node for that.
        node.prefix = ["strace", "-D", "-f", "-o", str(tmp_path / "trace"), "-e", "trace=fallocate"]
        node.prefix += ["-e", "inject=fallocate:error=EIO:when=1"]
        code, _ = await trio.to_thread.run_sync(node.run_to_end)
        check_last_words(node, code)
        node.prefix = []
        node.start()
        node.stop()
        node.check_log()


async def test_what_the_disk_does_not_give_is_a_typed_error_and_everything_else_goes_on(tmp_path: Path) -> None:
    ledger = Ledger()
    with LogdProcess(tmp_path, SMALL) as node, trio.fail_after(2 * PATIENCE_SECONDS):
        node.start()
        async with node.client() as client:
            await ledger.create(client, "load", 1)
            for number in range(3):
                await ledger.produce(client, "load", 0, batch_of("load", number))
            with Strace(tmp_path, [node.pid], "preadv2:error=EIO"):
                with pytest.raises(CorruptBatch) as refused:
                    await client.fetch("load", 0, 3)
                assert refused.value.details["base_offset"] == 3
                # The connection lives, and writing is not concerned.
                await ledger.produce(client, "load", 0, batch_of("beside", 0))
            await ledger.check(client)
        (line,) = node.events("read_failed")
        assert line["problem"] == "Input/output error"
        assert line["file"].startswith(str(node.data))
        node.stop()
        node.check_log()
        verify_directory(node.data)
