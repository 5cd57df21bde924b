"""Many connections, slow ones, and a lot of data: all in bounded memory."""

import contextlib
import hashlib
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import wire
from tests.e2e.hostile import Raw, client_context
from tests.e2e.ledger import Ledger, batch_of
from tests.support.daemon import PATIENCE_SECONDS, LogdProcess, wait_until
from wire.codec import encode
from wire.messages import Credit, Delivery, Ping, Pong, Subscribe, Subscribed

IDLE = 1000
IDLE_BYTES_MAX = 100 << 10
MIB = 1 << 20
FILE_BYTES = 32 * MIB
MEMORY_BYTES_MAX = 200 * MIB


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Room for both ends of a thousand connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * IDLE
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"only {hard} descriptors are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def median_seconds(client: wire.Client, ledger: Ledger, count: int) -> float:
    """How long one produce takes, in the middle of `count`."""
    times = []
    for number in range(count):
        begin = time.perf_counter()
        await ledger.produce(client, "busy", 0, batch_of("busy", number))
        times.append(time.perf_counter() - begin)
    return sorted(times)[count // 2]


async def test_a_thousand_idle_connections_cost_little_and_slow_nobody_down(descriptors: None, tmp_path: Path) -> None:
    ledger = Ledger()
    with LogdProcess(tmp_path) as node, trio.fail_after(3 * PATIENCE_SECONDS):
        node.start()
        tls = node.server.tls
        context = client_context(None)
        context.load_cert_chain(tls.certificate, tls.key)
        with contextlib.ExitStack() as stack:
            async with node.client() as client:
                await ledger.create(client, "busy", 1)
                alone = await median_seconds(client, ledger, 200)
                before = node.status_bytes("VmRSS")
                idle = [stack.enter_context(Raw(node.port, context)) for _ in range(IDLE)]
                for connection in idle:
                    connection.greet()
                each = (node.status_bytes("VmRSS") - before) // IDLE
                beside = await median_seconds(client, ledger, 200)
                # One more than there may be is closed, and nobody else notices.
                for _ in range(40):
                    with Raw(node.port) as surplus:
                        surplus.socket.settimeout(0.2)
                        with contextlib.suppress(TimeoutError, ConnectionError):
                            if not surplus.socket.recv(1):
                                break
                    stack.enter_context(Raw(node.port, context))
                else:
                    pytest.fail("there is no bound on connections")
                assert node.events("connections_full")
                # They live all the same.
                for connection in idle[:: IDLE // 20]:
                    connection.send(encode(Ping(), 1))
                    assert connection.answer() == Pong()
                await ledger.check(client)
        assert each < IDLE_BYTES_MAX
        # Far apart on a machine with time to spare, and told apart from what would be one task switch per connection.
        assert beside < 3 * alone + 0.005
        await wait_until(lambda: node.descriptors() < 100, "all connections are closed", 5.0)
        node.stop()
        node.check_log()


async def test_a_subscription_gets_no_more_than_its_credit_and_goes_on_where_it_stood(tmp_path: Path) -> None:
    batch_bytes = len(batch_of("much", 0, 50_000))
    batches = 40
    with LogdProcess(tmp_path) as node, trio.fail_after(2 * PATIENCE_SECONDS):
        node.start()
        async with node.client() as client:
            await client.create_topic("much", 1)
            for number in range(batches):
                await client.produce("much", 0, batch_of("much", number, 50_000))
            tls = node.server.tls
            context = client_context(None)
            context.load_cert_chain(tls.certificate, tls.key)
            with Raw(node.port, context) as raw:
                raw.greet()
                raw.send(encode(Subscribe("much", 0, 0, 3 * batch_bytes), 1))
                assert raw.answer() == Subscribed(0, 3 * batches)
                offset = taken = 0
                credit = 3 * batch_bytes
                while offset < 3 * batches:
                    while taken < credit and offset < 3 * batches:
                        delivery = raw.answer()
                        assert isinstance(delivery, Delivery)
                        taken += len(delivery.batches)
                        assert delivery.next_offset > offset
                        offset = delivery.next_offset
                    # What was delivered exceeds the credit by less than a batch, and nothing more comes without more.
                    assert taken < credit + batch_bytes
                    raw.send(encode(Ping(), 2))
                    assert raw.answer() == Pong()
                    raw.send(encode(Credit(2 * batch_bytes), 1))
                    credit += 2 * batch_bytes
        node.stop()
        node.check_log()


# --- logctl, from file to file ----------------------------------------------------------------------------------------


def logctl(node: LogdProcess, words: list[str], stdout: int) -> int:
    """Run `logctl`; the most memory that it had resident, in bytes."""
    tls = node.server.tls
    flags = ["--server", node.server.address, f"--tls-ca={tls.ca}"]
    flags += [f"--tls-certificate={tls.certificate}", f"--tls-key={tls.key}"]
    # Not `ru_maxrss`: a child begins with its parent's.
    measured = (
        "import sys; from pathlib import Path; from logd.cli.logctl import main\n"
        "try: main()\n"
        "finally: sys.stderr.write('PEAK' + Path('/proc/self/status').read_text().partition('VmHWM:')[2])"
    )
    environment = {**os.environ, "HOME": str(node.directory), "XDG_CONFIG_HOME": str(node.directory)}
    done = subprocess.run(
        [sys.executable, "-c", measured, *words, *flags],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stderr.rpartition("PEAK")[2].split()[0]) << 10


def test_a_file_comes_out_as_it_went_in_and_nobody_keeps_it_in_memory(tmp_path: Path) -> None:
    """The size is for every day; `test_large_files.py` does the same with a gibibyte."""
    sent, received = tmp_path / "sent", tmp_path / "received"
    sent.write_bytes(random.Random(1).randbytes(FILE_BYTES))
    with LogdProcess(tmp_path / "node") as node:
        node.start()
        logctl(node, ["topic", "create", "files"], subprocess.DEVNULL)
        produced_with = logctl(node, ["produce", "files", "--format", "raw", str(sent)], subprocess.DEVNULL)
        with received.open("wb") as file:
            consumed_with = logctl(node, ["consume", "files", "--format", "raw"], file.fileno())
        node_with = node.status_bytes("VmHWM")
        node.stop()
        node.check_log()
    assert hashlib.sha256(received.read_bytes()).digest() == hashlib.sha256(sent.read_bytes()).digest()
    assert max(produced_with, consumed_with, node_with) < MEMORY_BYTES_MAX
