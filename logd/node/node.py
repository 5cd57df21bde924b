"""One node: opens what is on the disk, and runs everything that serves it.

For: the command line, and tests that want a whole node in their own loop. Must not know: how it was configured. The
one idea: the nursery tree is the order of shutdown. What was promised is made durable last, so the disk is the
outermost, and the listeners, which take new work, are the innermost.
"""

import contextlib
import os
import random
import ssl
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final

import trio
from trio_util import move_on_when, periodic

from logd.config import Config
from logd.meta.state import META_GROUP, MetaState
from logd.node.actor import RaftActor
from logd.node.disk import Disk, Doorbell
from logd.node.partition import NodeCluster
from logd.observability.logs import LimitedLogger, LineLimiter, get_logger
from logd.raft.types import Configuration
from logd.replica.clock import AppendClock, ClockReading
from logd.replica.driver import Driver, apply_batch
from logd.replica.restore import recover, start_at, what_is_lost
from logd.replica.types import DriverOptions
from logd.security.tls import expiry_seconds, node_tls
from logd.server.door import Door
from logd.server.listener import Listener
from logd.server.outbox import Corks
from logd.server.session import Budget, Gate, SessionOptions
from logd.service.authorization import MembersOfCluster
from logd.service.configuration import TopicConfiguration, configuration_of
from logd.service.fetch import FetchService
from logd.service.produce import ProduceService
from logd.service.topics import TopicLimits, TopicService
from logd.store.context import StoreOptions
from logd.store.errors import ReadOutdated
from logd.store.events import Event, IndexRebuilt, TornTail
from logd.store.files import FileSystem, OsFileSystem
from logd.store.format import align
from logd.store.log import Log
from logd.store.store import Store
from wire.connection import Limits
from wire.errors import CorruptBatch

IDENTITY_BYTES: Final = 16
# How often suppressed log lines are summed up.
REPORT_SECONDS: Final = 5.0
# What is left of a rest of work at a stop, after the drain: the disk's own work.
STOP_SECONDS: Final = 30.0
REPLAY_BYTES: Final = 4 << 20


def read_clock() -> ClockReading:
    """Both clocks, at one moment."""
    return ClockReading(time.time_ns() // 1_000_000, time.monotonic_ns() // 1_000_000)


@dataclass(frozen=True, slots=True)
class Ready:
    """What a node says when it serves: its address, and who it is."""

    node: str
    host: str
    port: int
    cluster_id: bytes
    data_dir: str


class Node:
    """A node, from its configuration.

    Arguments: `on_ready`, called once it serves; `files`, the file system (tests may hand in another).
    """

    def __init__(
        self, config: Config, on_ready: Callable[[Ready], None] | None = None, files: FileSystem | None = None
    ) -> None:
        self.config = config
        self._on_ready = on_ready
        self._files = files or OsFileSystem()
        limiter = LineLimiter()
        clock = trio.current_time
        self._log = LimitedLogger(get_logger("node"), limiter, clock)
        self._server_log = LimitedLogger(get_logger("server"), limiter, clock)
        self._driver: Driver | None = None
        self._stop = trio.Event()
        self._stop_at_once = trio.Event()

    def stop(self) -> None:
        """Drain and stop; a second call stops without draining."""
        if self._stop.is_set():
            self._stop_at_once.set()
        self._stop.set()

    async def run(self) -> None:
        """Serve until `stop`.

        Raises NodeFilesError, StoreError, OSError (an address in use) before it serves, DiskFailed while it does.
        """
        context = self._tls()
        # An address in use is found out before anything in the directory is touched.
        for listener in await self._listen():
            await listener.aclose()
        store = self._open_store()
        try:
            await self._run(context, store)
        finally:
            store.close()

    # --- Opening ------------------------------------------------------------------------------------------------------

    def _tls(self) -> ssl.SSLContext:
        tls = node_tls(self.config)
        days = expiry_seconds(tls.certificate) / 86400 - time.time() / 86400
        if days < 30:
            self._log.warning("certificate_expires_soon", file=self.config.tls.certificate, days=round(days, 1))
        return tls.context

    def _open_store(self) -> Store:
        config = self.config
        options = StoreOptions(
            segment_bytes_max=config.store.segment_bytes_max,
            index_interval_bytes=config.store.index_interval_bytes,
            disk_reserve_bytes=config.store.disk_reserve_bytes,
            journal_file_bytes=config.journal.file_bytes,
            journal_files_max=config.journal.files_max,
            # Whole blocks, as rounds are: else a batch of just the largest size would fit none.
            round_bytes_max=align(config.journal.round_bytes_max),
        )
        store = Store.open(
            self._files,
            config.node.data_dir,
            node_name=config.node.name,
            options=options,
            new_cluster_id=os.urandom(IDENTITY_BYTES),
            new_journal_id=os.urandom(IDENTITY_BYTES),
            producers_of=self._producers_of,
        )
        for event in store.events:
            report_event(self._log, event)
        store.events.clear()
        return store

    def _producers_of(self, group: int) -> tuple[int, bytes] | None:
        # The store is opened first; when it is closed again before there was a driver, nobody knows of producers.
        return self._driver.producers_of(group) if self._driver is not None else None

    def _make_driver(self, store: Store) -> Driver:
        config = self.config
        options = DriverOptions(
            waiting_bytes_max=config.listen.bytes_in_flight_total_max,
            producers_max=config.producers.per_partition_max,
            producer_expiry_ms=int(config.producers.expiry_seconds * 1000),
        )
        meta_log = store.groups.get(META_GROUP)
        meta = MetaState.restore(meta_log.start.state if meta_log else b"")
        _check_meta(store, meta_log)
        chance = random.Random()  # noqa: S311  # for election timeouts, which are no secret
        life = 1 + chance.randrange(1 << 48)
        driver = Driver(config.node.name, options, AppendClock.started(read_clock()), meta, chance, life)
        # Until there are peers, a membership that cannot be read can only be this node's own.
        alone = Configuration(frozenset((config.node.name,)))
        for group, log in store.groups.items():
            is_meta = group == META_GROUP
            state = recover(
                log,
                config.node.name,
                driver.new_producer_table(),
                os.urandom(IDENTITY_BYTES),
                apply=partial(apply_batch, meta) if is_meta else None,
                unknown=alone,
            )
            if state.incomplete:
                # What is behind the hole is not remembered: a retry of it is answered UnknownProducer or SequenceGap.
                self._log.error("producers_incomplete", group=group, problem=state.incomplete)
            driver.open_group(state)
        return driver

    # --- Serving ------------------------------------------------------------------------------------------------------

    async def _run(self, context: ssl.SSLContext, store: Store) -> None:
        self._driver = driver = self._make_driver(store)
        doorbell = Doorbell()
        disk = Disk(doorbell)
        disk.start()
        try:
            corks = Corks()
            actor = RaftActor(store, driver, disk, doorbell, read_clock, self._log, corks.release)
            driver.reconcile()
            await self._serve(context, actor, corks)
        finally:
            if not await disk.stop(STOP_SECONDS):
                # The doorbell stays open: a thread that comes back rings it, and its number must not be another file's.
                self._log.error("disk_hangs", seconds=STOP_SECONDS)
            else:
                doorbell.close()

    async def _serve(self, context: ssl.SSLContext, actor: RaftActor, corks: Corks) -> None:
        gate = Gate()
        async with trio.open_nursery() as actors:
            actors.start_soon(self._run_actor, actor, actors.cancel_scope)
            async with trio.open_nursery() as tickers:
                tickers.start_soon(actor.confirm_when_quiet, self.config.journal.confirm_seconds)
                tickers.start_soon(actor.retry_when_full)
                tickers.start_soon(self._retain, actor)
                tickers.start_soon(self._report)
                async with trio.open_nursery() as listeners:
                    await self._open_door(context, actor, gate, corks, listeners)
                    await self._drain(gate)
                    listeners.cancel_scope.cancel()
                tickers.cancel_scope.cancel()
            actor.stop()
            # A disk that hangs must not keep a stopping node for ever; what was promised is durable by then.
            actors.cancel_scope.deadline = trio.current_time() + STOP_SECONDS
        if actor.is_quiet:
            self._log.info("stopped", node=self.config.node.name)
        else:
            self._log.error("stopped_before_the_disk_was_done", node=self.config.node.name)

    async def _run_actor(self, actor: RaftActor, scope: trio.CancelScope) -> None:
        await actor.run()
        scope.cancel()

    async def _open_door(
        self, context: ssl.SSLContext, actor: RaftActor, gate: Gate, corks: Corks, nursery: trio.Nursery
    ) -> None:
        config = self.config
        address = config.listen.client
        sockets = await self._listen()
        port: int = sockets[0].socket.getsockname()[1]
        cluster = NodeCluster(config.node.name, (address.host, port), actor, trio.CapacityLimiter(config.store.readers))
        with contextlib.ExitStack() as unserved:
            for listening in sockets:
                unserved.callback(listening.socket.close)
            # Whoever gets in finds every partition that was there before.
            await cluster.wait_ready([META_GROUP, *actor.driver.groups()])
            unserved.pop_all()
        listener = Listener(
            lambda: context,
            config.node.cluster_name,
            self._door(cluster),
            self._session_options(actor.store),
            Budget(config.listen.bytes_in_flight_total_max),
            gate,
            corks,
            self._server_log,
            actor.start_waiting,
            config.listen.connections_max,
        )
        nursery.start_soon(listener.serve, sockets)
        ready = Ready(config.node.name, address.host, port, actor.store.cluster_id, config.node.data_dir)
        self._log.info("ready", address=f"{ready.host}:{port}", node=ready.node, cluster_id=ready.cluster_id.hex())
        if self._on_ready is not None:
            self._on_ready(ready)

    async def _listen(self) -> list[trio.SocketListener]:
        address = self.config.listen.client
        try:
            return await trio.open_tcp_listeners(address.port, host=address.host or None)
        except OSError as error:
            raise type(error)(error.errno, f"{error.strerror or error}: {address}") from error

    def _door(self, cluster: NodeCluster) -> Door:
        config = self.config
        authorizer = MembersOfCluster(config.node.cluster_name)
        topics = config.topics
        return Door(
            ProduceService(cluster, authorizer, config.protocol.batch_bytes_max),
            FetchService(cluster, authorizer, config.protocol.fetch_bytes_max, config.protocol.fetch_wait_seconds_max),
            TopicService(
                cluster,
                authorizer,
                TopicLimits(topics.partitions_default, topics.partitions_max, topics.partitions_total_max),
                self._topic_defaults(),
                partial(os.urandom, IDENTITY_BYTES),
            ),
        )

    def _topic_defaults(self) -> TopicConfiguration:
        return TopicConfiguration(self.config.topics.retention_bytes, self.config.topics.retention_seconds)

    def _session_options(self, store: Store) -> SessionOptions:
        listen, protocol = self.config.listen, self.config.protocol
        return SessionOptions(
            node=self.config.node.name,
            cluster_id=store.cluster_id,
            limits=Limits(
                frame_bytes_max=protocol.frame_bytes_max,
                batch_bytes_max=protocol.batch_bytes_max,
                requests_in_flight_max=listen.requests_in_flight_max,
                bytes_in_flight_max=listen.bytes_in_flight_max,
            ),
            handshake_seconds=listen.handshake_seconds,
            idle_seconds=listen.idle_seconds,
            frame_seconds=listen.frame_seconds,
            write_stall_seconds=listen.write_stall_seconds,
            subscriptions_max=listen.subscriptions_max,
        )

    async def _drain(self, gate: Gate) -> None:
        """Wait for `stop`; then answer what is in flight, as long as that may take."""
        await self._stop.wait()
        self._log.info("stopping", node=self.config.node.name)
        with trio.move_on_after(self.config.shutdown.drain_seconds) as patience:
            async with move_on_when(self._stop_at_once.wait):
                await gate.drain()
        if patience.cancelled_caught:
            self._log.warning("drain_timed_out", requests=gate.requests)

    # --- Tickers ------------------------------------------------------------------------------------------------------

    async def _retain(self, actor: RaftActor) -> None:
        """Look, now and then, at what retention may give up."""
        async for _ in periodic(self.config.topics.retention_check_seconds):
            now_ms = actor.driver.clock.now_ms(read_clock())
            for group, (topic, _partition) in actor.driver.meta.groups().items():
                log = actor.store.groups.get(group)
                if log is None or actor.driver.high_watermark(group) is None:
                    continue
                configuration = configuration_of(topic.configuration, self._topic_defaults())
                seconds = configuration.retention_seconds
                boundary = log.retention_boundary(
                    now_ms, configuration.retention_bytes, None if seconds is None else int(seconds * 1000)
                )
                if boundary is None:
                    continue
                producers = actor.driver.new_producer_table()
                try:
                    # It reads a part of the log, so it is made where waiting for the disk keeps nobody else waiting.
                    start = await trio.to_thread.run_sync(start_at, log, boundary.index, producers)
                except ReadOutdated:
                    # An earlier decision became true meanwhile, and took a segment away that was being read.
                    continue
                except (CorruptBatch, OSError) as error:
                    self._log.error("retention_postponed", group=group, problem=str(error))
                    continue
                if group in actor.store.groups:
                    actor.propose_retention(group, start)

    async def _report(self) -> None:
        async for _ in periodic(REPORT_SECONDS):
            self._server_log.report()


def report_event(log: LimitedLogger, event: Event) -> None:
    """Log what the store noticed: what a crash is expected to leave as information, all else as an error."""
    name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in type(event).__name__).lstrip("_")
    level = log.info if isinstance(event, TornTail | IndexRebuilt) else log.error
    level(name, **asdict(event))


def _check_meta(store: Store, log: Log | None) -> None:
    """Refuse to go on without the topics: a node that forgot them would give up every partition's files.

    Raises CorruptBatch, with nothing changed.
    """
    problem = ""
    if log is None:
        problem = "is missing, and partitions are here" if store.groups else ""
    elif not log.is_start_readable and log.start.index > 0:
        problem = "lost the start file with its state"
    elif log.damage:
        first = log.damage[0]
        problem = f"cannot be read at index {first.first_index}"
    else:
        problem = what_is_lost(log)
    if problem:
        raise CorruptBatch(
            f"group 0, which holds the topics, {problem}: restore {store.context.layout.group(META_GROUP)} "
            "from a copy; nothing was changed",
            {"group": META_GROUP},
        )
