"""What the tests of this room share: a node's door over a cluster in memory, and sessions behind it."""

import dataclasses
import io
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
import trio

from logd.meta.commands import CreateTopic
from logd.observability.logs import LimitedLogger, LineLimiter, configure, get_logger
from logd.server.door import Door
from logd.server.outbox import Corks
from logd.server.session import Budget, Gate, Session, SessionOptions
from logd.service.authorization import MembersOfCluster
from logd.service.configuration import TopicConfiguration
from logd.service.fetch import FetchService
from logd.service.produce import ProduceService
from logd.service.topics import TopicLimits, TopicService
from tests.server.streams import Client, MemoryStream
from tests.support.fake_cluster import NODE, FakeCluster, FakePartition
from wire.connection import Limits

CLUSTER = "orchard"
ADA = f"spiffe://{CLUSTER}/user/ada"
CLUSTER_ID = bytes(range(16))
LIMITS = Limits(frame_bytes_max=1 << 20, batch_bytes_max=1 << 19, requests_in_flight_max=8, bytes_in_flight_max=1 << 20)
OPTIONS = SessionOptions(
    node=NODE,
    cluster_id=CLUSTER_ID,
    limits=LIMITS,
    handshake_seconds=10.0,
    idle_seconds=0.0,
    frame_seconds=20.0,
    write_stall_seconds=30.0,
    subscriptions_max=3,
)


class Server:
    """The node's side: what all sessions share, and the lines that it logged."""

    def __init__(self, options: SessionOptions = OPTIONS) -> None:
        self.options = options
        self.cluster = FakeCluster()
        self.cluster.meta.apply(CreateTopic("orders", bytes(16), 4, {}))
        self.cluster.set_up(range(1, 5))
        self.partition: FakePartition = self.cluster.partition("orders", 0)
        self.budget = Budget(4 << 20)
        self.gate = Gate()
        self.corks = Corks()
        # How often a session said that it handed on what had come.
        self.hand_overs = 0
        self._lines = io.StringIO()
        configure("info", "text", self._lines)
        self.log = LimitedLogger(get_logger("server"), LineLimiter(), trio.current_time)
        authorizer = MembersOfCluster(CLUSTER)
        self.door = Door(
            ProduceService(self.cluster, authorizer, options.limits.batch_bytes_max),
            FetchService(self.cluster, authorizer, options.limits.frame_bytes_max - 4096, 60.0),
            TopicService(
                self.cluster, authorizer, TopicLimits(1, 10, 100), TopicConfiguration(None, None), lambda: bytes(16)
            ),
        )

    @property
    def lines(self) -> list[str]:
        """Event and values of each line that was logged."""
        return [line.split(" server ", 1)[1] for line in self._lines.getvalue().splitlines()]

    def failures(self) -> list[str]:
        """The lines about defects; whoever asks expects them."""
        lines = self.lines
        self._lines.truncate(0)
        self._lines.seek(0)
        return lines

    def change(self, **changes: Any) -> None:
        """Change options or limits, by name."""
        limits = {name: changes.pop(name) for name in list(changes) if hasattr(self.options.limits, name)}
        self.options = dataclasses.replace(
            self.options, limits=dataclasses.replace(self.options.limits, **limits), **changes
        )

    def release(self) -> None:
        """What the actor does after a round: all answers, then all that is corked leaves."""
        self.partition.release()
        self.corks.release()

    def session(self, stream: MemoryStream, principal: str = ADA) -> Session:
        def after_requests() -> None:
            self.hand_overs += 1

        return Session(
            stream,
            principal,
            self.door,
            self.options,
            self.budget,
            self.gate,
            self.corks,
            self.log,
            after_requests,
        )

    @asynccontextmanager
    async def connected(self, principal: str = ADA, *, kernel_bytes_max: int = 1 << 20) -> AsyncIterator[Client]:
        """A client that was let in but has not said anything; its session ends with the block at the latest."""
        stream = MemoryStream(write_stall_seconds=self.options.write_stall_seconds, kernel_bytes_max=kernel_bytes_max)

        async def run() -> None:
            try:
                await self.session(stream, principal).run()
            finally:
                stream.close_nowait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield Client(stream)
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def greeted(self, principal: str = ADA, *, kernel_bytes_max: int = 1 << 20) -> AsyncIterator[Client]:
        """A client after its greeting."""
        async with self.connected(principal, kernel_bytes_max=kernel_bytes_max) as client:
            await client.greet()
            yield client


@pytest.fixture
def server() -> Iterator[Server]:
    """A server; when the test is over, nothing is left of any request, and nothing has failed."""
    made = Server()
    yield made
    structlog.reset_defaults()
    assert made.budget.taken_bytes == 0
    assert made.gate.requests == 0
    assert not made.gate.waits
    assert not [line for line in made.lines if "Traceback" in line or line.startswith("session_failed")]
