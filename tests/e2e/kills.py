"""A node that is killed just before a system call of our choice, and a client that remembers what it was told.

strace injects SIGKILL at the entry of the n-th call of a thread that changes something on the disk: the call is not
carried out, everything before it is.
"""

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import trio

import wire
from tests.support.servers import user_tls
from wire.errors import TopicExists, TopicNotFound
from wire.record import encode_batch

# Every call that changes a disk; `?` before those that not every architecture has.
CALLS = (
    "pwrite64,pwritev,pwritev2,fdatasync,fsync,ftruncate,fallocate,"
    "?rename,?renameat,?renameat2,?unlink,?unlinkat,?rmdir,?mkdir,?mkdirat"
)

# Small files, so that a short workload fills some of each kind.
SMALL = (
    ("store.segment_bytes_max", "1MiB"),
    ("protocol.batch_bytes_max", "256KiB"),
    ("protocol.fetch_bytes_max", "256KiB"),
    ("protocol.frame_bytes_max", "512KiB"),
    ("journal.file_bytes", "2MiB"),
    ("journal.files_max", "3"),
    ("journal.round_bytes_max", "512KiB"),
    ("journal.confirm_seconds", "0.05"),
    ("topics.partitions_total_max", "100"),
    ("topics.partitions_max", "100"),
    ("topics.retention_check_seconds", "0.2"),
)
START_SECONDS_MAX = 30.0
# Time for all that a workload asks, on a machine that is busy with strace.
WORK_SECONDS_MAX = 60.0


def strace_works() -> bool:
    """Whether processes may be traced here at all."""
    strace = shutil.which("strace")
    if strace is None:
        return False
    done = subprocess.run([strace, "-qq", "-o", "/dev/null", "true"], capture_output=True, check=False)
    return done.returncode == 0


def injection(call: int) -> list[str]:
    """What tells strace to kill at the entry of a thread's n-th call."""
    return ["-f", "-qq", "-o", "/dev/null", "-e", f"trace={CALLS}", "-e", f"inject={CALLS}:signal=KILL:when={call}"]


class KillableNode:
    """`logd --dev` on a directory that outlives its lives."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._tracer: subprocess.Popen[bytes] | None = None
        self.address = ""

    @property
    def tls(self) -> wire.Tls:
        return user_tls(self.directory / "tls")

    @property
    def log(self) -> Path:
        return self.directory.with_suffix(".log")

    def start(self, *, killed_at_call: int | None = None) -> bool:
        """Start it; with `killed_at_call`, traced from its first instruction. False if it died before it was ready."""
        options = [word for key, value in SMALL for word in ("--set", f"{key}={value}")]
        command = [sys.executable, "-m", "logd", "--dev", "--data-dir", str(self.directory), "--listen", "127.0.0.1:0"]
        # With -D the process that is started is the node itself, and the tracer goes away with it.
        traced = ["strace", "-D", *injection(killed_at_call)] if killed_at_call is not None else []
        with self.log.open("wb") as log:
            self._process = subprocess.Popen([*traced, *command, *options], stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            said = self.log.read_text(errors="replace")
            for line in said.splitlines():
                if line.startswith("ready address="):
                    self.address = line.partition("=")[2]
                    return True
            if self._process.poll() is not None:
                return False
            time.sleep(0.01)
        raise AssertionError(f"neither ready nor dead: {self.log.read_text(errors='replace')[-2000:]}")

    def kill_at_call(self, call: int) -> None:
        """From now on, trace the running node; each thread's calls are counted from here."""
        assert self._process is not None
        self._tracer = subprocess.Popen(
            ["strace", *injection(call), "-p", str(self._process.pid)], stderr=subprocess.PIPE
        )
        # It has attached once the kernel says so of the first thread.
        status = Path(f"/proc/{self._process.pid}/status")
        deadline = time.monotonic() + START_SECONDS_MAX
        while "TracerPid:\t0" in status.read_text():
            assert time.monotonic() < deadline, "strace does not attach"
            time.sleep(0.005)

    @property
    def is_dead(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def dies_within(self, seconds: float) -> bool:
        """Wait for its end, but not for long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._process is not None:
                self._process.wait(seconds)
        return self.is_dead

    def stop(self) -> None:
        """SIGTERM, and wait for its end, whichever it takes."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(START_SECONDS_MAX)
        self._reap_tracer()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._reap_tracer()

    def _reap_tracer(self) -> None:
        if self._tracer is not None:
            self._tracer.terminate()
            self._tracer.wait(START_SECONDS_MAX)
            assert self._tracer.stderr is not None
            self._tracer.stderr.close()
            self._tracer = None


@contextlib.contextmanager
def killable(directory: Path) -> Iterator[KillableNode]:
    """A node that is surely gone at the end, whatever a test did."""
    node = KillableNode(directory)
    try:
        yield node
    finally:
        node.kill()


@dataclass
class Memory:
    """What a client was told."""

    # Invariant: for each partition, by offset, the value of every record that was acknowledged.
    acknowledged: dict[tuple[str, int], dict[int, bytes]] = field(default_factory=dict)
    # Values whose outcome is not known.
    unknown: set[bytes] = field(default_factory=set)
    terms: dict[tuple[str, int], int] = field(default_factory=dict)
    sent: int = 0

    # How many records were acknowledged in all, those of topics that are gone included.
    count: int = 0


async def work(node: KillableNode, memory: Memory, operations: int) -> bool:
    """Make topics and produce to them, one batch after the other, until it is done (True) or the node is gone."""
    try:
        with trio.fail_after(WORK_SECONDS_MAX):
            async with wire.Client(node.address, tls=node.tls) as client:
                for _ in range(operations):
                    await _one(client, memory)
    except wire.LogdError:
        if not await _dies(node):
            raise
        return False
    return True


async def _dies(node: KillableNode) -> bool:
    """Whether the node is gone, or will be in a moment."""
    return await trio.to_thread.run_sync(node.dies_within, 3.0)


# Topics come and go, so that groups are made and removed, and no check has to read more than two of them.
RECORDS_PER_TOPIC = 120


async def _one(client: wire.Client, memory: Memory) -> None:
    memory.sent += 1
    number = memory.sent
    series, partition = number // RECORDS_PER_TOPIC, number % 2
    topic = f"t{series}"
    if (topic, 0) not in memory.terms:
        with contextlib.suppress(TopicExists):
            await client.create_topic(topic, partitions=2)
        memory.terms[topic, 0] = memory.terms[topic, 1] = 0
        await _give_up(client, memory, f"t{series - 2}")
    # Every third is large, so that segments and journal files fill.
    value = b"%06d-" % number + b"x" * (150_000 if number % 3 == 0 else 30)
    memory.unknown.add(value)
    batch = encode_batch([(value, None, number, None)])
    produced = await client.produce(topic, partition, batch)
    memory.unknown.discard(value)
    log = memory.acknowledged.setdefault((topic, partition), {})
    assert produced.base_offset not in log, "an offset was given twice"
    assert produced.term >= memory.terms[topic, partition], "a term went down"
    memory.terms[topic, partition] = produced.term
    log[produced.base_offset] = value
    memory.count += 1


async def _give_up(client: wire.Client, memory: Memory, topic: str) -> None:
    # From the moment of asking, nothing is expected of it.
    for partition in (0, 1):
        memory.acknowledged.pop((topic, partition), None)
    with contextlib.suppress(TopicNotFound):
        await client.delete_topic(topic)


async def check(node: KillableNode, memory: Memory) -> None:
    """Everything that was acknowledged is there, in its place, and nothing else but what was sent."""
    with trio.fail_after(WORK_SECONDS_MAX):
        async with wire.Client(node.address, tls=node.tls) as client:
            there = {topic.topic for topic in (await client.metadata()).topics}
            for (topic, partition), log in memory.acknowledged.items():
                assert topic in there, f"topic {topic} is gone"
                found = await _read(client, topic, partition)
                for offset, value in log.items():
                    assert found.get(offset) == value, f"{topic}/{partition}: offset {offset} was acknowledged"
                strange = set(found.values()) - set(log.values()) - memory.unknown
                assert not strange, f"{topic}/{partition}: holds what was never sent"


async def _read(client: wire.Client, topic: str, partition: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    async with wire.Consumer(client, topic, partition=partition, follow=False) as consumer:
        async for record in consumer:
            assert record.offset == len(found), "offsets are dense"
            assert record.value is not None
            found[record.offset] = record.value
    return found
