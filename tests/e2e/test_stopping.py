"""Clean stops: what is in flight is answered, the exit code is 0, and the next start is quick."""

import contextlib
import signal
from pathlib import Path

import pytest
import trio

import wire
from tests.e2e.ledger import Ledger, batch_of, verify_directory
from tests.support.daemon import PATIENCE_SECONDS, LogdProcess, Strace, has_strace, wait_until
from wire.errors import ClientError, ConnectionLost, LogdError, ShuttingDown
from wire.messages import Produced

# What a start is given on a machine that runs other tests beside: the claims say less than a second, and a few.
READY_SECONDS_MAX = 5.0
PARTITIONS_MANY = 300


async def hold_requests(client: wire.Client, outcomes: list[Produced | LogdError], count: int) -> None:
    """Send produces at once, and write down what each comes to."""

    async def one(number: int) -> None:
        try:
            outcomes.append(await client.produce("stop", number % 2, batch_of("stop", number)))
        except LogdError as error:
            outcomes.append(error)

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number)


@pytest.mark.skipif(bool(has_strace()), reason=has_strace())
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_answers_what_is_in_flight_and_refuses_what_comes_after(
    how: signal.Signals, tmp_path: Path
) -> None:
    outcomes: list[Produced | LogdError] = []
    late: list[LogdError] = []
    with LogdProcess(tmp_path) as node, trio.fail_after(2 * PATIENCE_SECONDS):
        node.start()
        async with node.client() as client:
            await client.create_topic("stop", 2)
            # A slow disk: each fsync of the journal takes a while, so that much is in flight when the signal comes.
            with Strace(tmp_path, [node.threads()[1]], "fdatasync:delay_enter=300000"):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(hold_requests, client, outcomes, 100)
                    await trio.testing.wait_all_tasks_blocked()
                    await client.ping()
                    node.signal(how)
                    await wait_until(lambda: bool(node.events("stopping")), "it says that it stops")
                    try:
                        await client.produce("stop", 0, batch_of("late", 0))
                    except LogdError as error:
                        late.append(error)
                code = await trio.to_thread.run_sync(node.wait)
        assert code == 0
        assert len(outcomes) == 100
        assert all(isinstance(outcome, Produced) for outcome in outcomes)
        assert isinstance(late[0], (ShuttingDown, ConnectionLost))
        assert [event["event"] for event in node.log()] == ["ready", "stopping", "stopped"]
        node.check_log()
        verify_directory(node.data)
        node.start()
        async with node.client() as client:
            ends = [(await client.list_offsets("stop", partition)).high_watermark for partition in range(2)]
            assert ends == [3 * 50, 3 * 50]
        node.stop()


@pytest.mark.skipif(bool(has_strace()), reason=has_strace())
async def test_a_second_signal_does_not_wait_for_what_is_in_flight(tmp_path: Path) -> None:
    outcomes: list[Produced | LogdError] = []
    with LogdProcess(tmp_path) as node, trio.fail_after(2 * PATIENCE_SECONDS):
        node.start()
        try:
            async with node.client() as client:
                await client.create_topic("stop", 2)
                with Strace(tmp_path, [node.threads()[1]], "fdatasync:delay_enter=3000000:when=1"):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(hold_requests, client, outcomes, 10)
                        await trio.testing.wait_all_tasks_blocked()
                        await client.ping()
                        node.signal(signal.SIGTERM)
                        await wait_until(lambda: bool(node.events("stopping")), "it says that it stops")
                        node.signal(signal.SIGTERM)
                        # Nobody waits for the slow disk: the clients are let go.
                        with trio.fail_after(2.0):
                            while not outcomes:  # noqa: ASYNC110  # the other process sets it
                                await trio.sleep(0.01)
                    code = await trio.to_thread.run_sync(node.wait)
        except* ClientError:
            pass
        assert code == 0
        assert all(isinstance(outcome, ConnectionLost) for outcome in outcomes)
        node.check_log()
        # What was written to the disk in the end is there, whole.
        verify_directory(node.data)


async def test_waiting_readers_do_not_keep_a_node_from_stopping(tmp_path: Path) -> None:
    with LogdProcess(tmp_path) as node, trio.fail_after(2 * PATIENCE_SECONDS):
        node.start()
        async with node.client() as client:
            await client.create_topic("stop", 1)

            async def wait_at_the_end() -> None:
                # An early answer is a right one, too.
                with contextlib.suppress(LogdError):
                    assert not (await client.fetch("stop", 0, 0, wait_seconds=60)).batches

            async def follow() -> None:
                with pytest.raises(LogdError):
                    async with node.client() as other, wire.Consumer(other, "stop") as consumer:
                        await consumer.next_batch()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_at_the_end)
                nursery.start_soon(follow)
                await trio.testing.wait_all_tasks_blocked()
                await client.ping()
                node.signal(signal.SIGTERM)
                # Far below the time that a drain may take.
                assert await trio.to_thread.run_sync(node.wait, 5.0) == 0
                nursery.cancel_scope.cancel()
        node.check_log()


async def test_a_node_is_ready_soon_also_with_hundreds_of_partitions_and_after_a_kill(tmp_path: Path) -> None:
    ledger = Ledger()
    with LogdProcess(tmp_path) as node, trio.fail_after(2 * PATIENCE_SECONDS):
        node.start()
        first = node.ready_seconds
        async with node.client() as client:
            await ledger.create(client, "many", PARTITIONS_MANY)
            for partition in range(PARTITIONS_MANY):
                await ledger.produce(client, "many", partition, batch_of("many", partition, 300, 1))
        node.stop()
        node.start()
        stopped = node.ready_seconds
        node.kill()
        node.start()
        killed = node.ready_seconds
        async with node.client() as client:
            await ledger.check(client)
        node.stop()
        node.check_log()
        verify_directory(node.data)
    assert max(first, stopped, killed) < READY_SECONDS_MAX, (first, stopped, killed)
