"""A file much larger than memory may be goes through `logctl` unchanged."""

import hashlib
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.memory import measured, resident_bytes
from tests.support.servers import Daemon

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

MIB = 1 << 20
FILE_BYTES = 1024 * MIB
MEMORY_BYTES_MAX = 200 * MIB


def write_file(path: Path) -> str:
    """Bytes without a pattern, and their digest."""
    chance = random.Random(1)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(FILE_BYTES // MIB):
            chunk = chance.randbytes(MIB)
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


LOGCTL = [sys.executable, "-c", "from logd.cli.logctl import main; main()"]


def run_measured(words: list[str], daemon: Daemon, tmp_path: Path, stdout: int) -> int:
    """Run `logctl`; return the most memory that it had resident, in bytes."""
    server = daemon.server()
    tls = [f"--tls-ca={server.tls.ca}", f"--tls-certificate={server.tls.certificate}", f"--tls-key={server.tls.key}"]
    report = tmp_path / "resident"
    command = [*LOGCTL, *words, "--server", server.address, *tls]
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path)}
    subprocess.run(measured(command, report), stdout=stdout, stdin=subprocess.DEVNULL, env=environment, check=True)
    return resident_bytes(report)


def test_a_file_of_one_gibibyte_comes_out_as_it_went_in_and_neither_side_keeps_it_in_memory(tmp_path: Path) -> None:
    sent, received = tmp_path / "sent", tmp_path / "received"
    digest = write_file(sent)
    daemon = Daemon(tmp_path / "data")
    try:
        run_measured(["topic", "create", "files"], daemon, tmp_path, subprocess.DEVNULL)
        produced_with = run_measured(
            ["produce", "files", "--format", "raw", str(sent)], daemon, tmp_path, subprocess.DEVNULL
        )
        with received.open("wb") as file:
            consumed_with = run_measured(["consume", "files", "--format", "raw"], daemon, tmp_path, file.fileno())
        size = received.stat().st_size
        with received.open("rb") as file:
            received_digest = hashlib.file_digest(file, "sha256").hexdigest()
    finally:
        daemon.stop()
        # pytest keeps the directories of several runs; three times 1 GiB of each is too much.
        shutil.rmtree(tmp_path)

    assert size == FILE_BYTES
    assert received_digest == digest
    assert produced_with < MEMORY_BYTES_MAX
    assert consumed_with < MEMORY_BYTES_MAX
