"""Servers to run the client library's tests against: the reference in memory, and the daemon as its users start it."""

import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import anyio

import wire
from logd.security.ca import DevelopmentCertificates, ensure_development_certificates
from logd.security.tls import server_context
from tests.support.reference_server import ReferenceServer
from wire.connection import Limits

CLUSTER = "dev"
START_SECONDS_MAX = 20.0


@dataclass(frozen=True)
class Server:
    """Where a server listens, and the files to be let in with."""

    address: str
    tls: wire.Tls

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


def make_certificates(directory: Path) -> DevelopmentCertificates:
    return ensure_development_certificates(str(directory), CLUSTER, "node-1", [])


def user_tls(directory: Path) -> wire.Tls:
    return wire.Tls(
        ca=str(directory / "ca.crt"), certificate=str(directory / "user.crt"), key=str(directory / "user.key")
    )


@contextlib.asynccontextmanager
async def running_reference(directory: Path, limits: Limits | None = None) -> AsyncIterator[ReferenceServer]:
    """A reference server in the event loop of the caller."""
    reference = ReferenceServer(server_context(make_certificates(directory).node), limits)
    async with anyio.create_task_group() as group:
        await group.start(reference.run)
        yield reference
        group.cancel_scope.cancel()


class Daemon:
    """`logd --dev` in a process of its own, started when it is first asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[str] | None = None
        self._address = ""

    def server(self) -> Server:
        if self._process is None:
            self.start("127.0.0.1:0")
        return Server(self._address, user_tls(self._directory / "tls"))

    def start(self, listen: str) -> None:
        command = [sys.executable, "-m", "logd", "--dev", "--data-dir", str(self._directory), "--listen", listen]
        with (self._directory.parent / f"{self._directory.name}.log").open("a") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        deadline = time.monotonic() + START_SECONDS_MAX
        for line in self._process.stdout:
            for word in line.split():
                if word.startswith("address="):
                    self._address = word.removeprefix("address=")
                    return
            assert time.monotonic() < deadline
        raise AssertionError(f"the daemon did not start; see {self._directory}.log")

    def kill(self) -> None:
        """As a power cut would end it."""
        if self._process is not None:
            self._process.kill()
            self._end()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._end()

    def _end(self) -> None:
        assert self._process is not None
        process, self._process = self._process, None
        assert process.stdout is not None
        try:
            process.wait(START_SECONDS_MAX)
        finally:
            process.kill()
            process.stdout.close()
