"""The servers and event loops that the client library's tests run on."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import wire
from tests.support.reference_server import ReferenceServer
from tests.support.servers import Daemon, Server, make_certificates, running_reference, user_tls


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates")
    make_certificates(directory)
    return directory


@pytest.fixture(scope="session")
def tls(certificates: Path) -> wire.Tls:
    return user_tls(certificates)


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One for all tests, which keep apart by the names of their topics."""
    daemon = Daemon(tmp_path_factory.mktemp("daemon") / "data")
    yield daemon
    daemon.stop()


@pytest.fixture
async def reference(certificates: Path, anyio_backend: str) -> AsyncIterator[ReferenceServer]:
    async with running_reference(certificates) as reference:
        yield reference


@pytest.fixture(params=["reference", "logd"])
async def server(
    request: pytest.FixtureRequest, certificates: Path, tls: wire.Tls, daemon: Daemon, anyio_backend: str
) -> AsyncIterator[Server]:
    """What passes here on both makes the reference a fair stand-in for the daemon."""
    if request.param == "logd":
        yield daemon.server()
    else:
        async with running_reference(certificates) as reference:
            yield Server(f"127.0.0.1:{reference.port}", tls)


@pytest.fixture
async def client(server: Server) -> AsyncIterator[wire.Client]:
    async with wire.Client(server.address, tls=server.tls) as client:
        yield client


@pytest.fixture
async def reference_client(reference: ReferenceServer, tls: wire.Tls) -> AsyncIterator[wire.Client]:
    async with wire.Client(f"127.0.0.1:{reference.port}", tls=tls) as client:
        yield client


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """A name that no other test has."""
    return f"topic-{abs(hash(request.node.nodeid)):x}"
