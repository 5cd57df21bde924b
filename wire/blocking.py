"""The client library without `await`, for scripts and programs of threads.

For: whoever has no event loop. Must not know: anything of the protocol. The one idea: one thread runs an event loop
with the asynchronous client in it, and what crosses between threads is large: a request, some hundreds of records, a
whole batch. So a record costs about what it costs in the loop itself.

Everything here may be called from any thread; one `Producer` serves several, and a `Consumer` one at a time. Ctrl-C in
a waiting call cancels what it waited for, and leaves the client usable.

```python
with wire.blocking.Client(address, tls=tls) as client:
    client.create_topic("hello", partitions=1)
    with wire.blocking.Producer(client, "hello") as producer:
        assert producer.send(b"world").wait().offset == 0
```
"""

import contextlib
import functools
import operator
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

import wire.client
import wire.consumer
import wire.producer
from wire.client import FETCH_BYTES_DEFAULT
from wire.connection import Limits
from wire.consumer import Batch
from wire.errors import BufferFull, ClientClosed, LogdError
from wire.messages import (
    ClusterMetadata,
    Fetched,
    ListedOffsets,
    Message,
    Produced,
    TopicAltered,
    TopicCreated,
    TopicDescription,
)
from wire.producer import ProducerStatistics, Receipt
from wire.stream import Address, Tls
from wire.types import Acks, Anchor, Codec, Record

_T = TypeVar("_T")
# Value, key, headers, partition, timestamp.
_Fields = tuple[bytes | None, bytes | None, Mapping[str, bytes] | None, int | None, int]

# A hand-over to the loop's thread costs about 100 µs: shared by so many records, it is nothing.
_RECORDS_PER_HANDOVER: Final = 500
_BYTES_PER_HANDOVER: Final = 256 << 10
_BATCHES_PER_HANDOVER: Final = 64
# What the format adds to a small record.
_ROW_BYTES: Final = 7


class Client:
    """A connection to a cluster; as `wire.Client`, without `await`.

    ```python
    with wire.blocking.Client(address, tls=tls) as client:
        client.create_topic("letters", partitions=1)
        client.produce("letters", 0, wire.encode_batch([(b"a", None, 0, None)]))
        assert client.describe_topic("letters").partitions[0].high_watermark == 1
    ```
    """

    def __init__(
        self,
        addresses: str | Address | Sequence[str | Address],
        *,
        tls: Tls,
        name: str = wire.client.CLIENT_NAME,
        backend: str = "asyncio",
    ) -> None:
        self._client = wire.client.Client(addresses, tls=tls, name=name)
        self._backend = backend
        self._portal: BlockingPortal | None = None
        self._loop: AbstractContextManager[BlockingPortal] | None = None
        self._life: AbstractContextManager[wire.client.Client] | None = None

    def __enter__(self) -> Self:
        loop = start_blocking_portal(self._backend)
        portal = loop.__enter__()
        life = portal.wrap_async_context_manager(self._client)
        try:
            life.__enter__()
        except BaseException as error:
            loop.__exit__(type(error), error, error.__traceback__)
            raise
        self._loop, self._portal, self._life = loop, portal, life
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        life, loop = self._life, self._loop
        self._life = self._loop = self._portal = None
        if life is None or loop is None:
            return
        try:
            life.__exit__(kind, error, traceback)
        except BaseException as late:
            # Interrupted while closing: what is still running is cancelled.
            loop.__exit__(type(late), late, late.__traceback__)
            raise
        loop.__exit__(kind, error, traceback)

    def portal(self) -> BlockingPortal:
        """The way into the loop's thread. Raises ClientClosed.

        ```python
        client.portal().call(client.asynchronous.ping)
        ```
        """
        if self._portal is None:
            raise ClientClosed("the client is not open: use it as `with Client(…) as client`")
        return self._portal

    def run(self, function: Callable[..., Awaitable[_T]], *arguments: Any) -> _T:
        """Run an asynchronous function in the loop's thread and wait for it; an interrupt here cancels it there.

        ```python
        identity = client.run(client.asynchronous.init_producer, "billing")
        print(identity.producer_id, identity.producer_epoch)
        ```
        """
        future = self.portal().start_task_soon(function, *arguments)
        try:
            return future.result()
        except BaseException:
            # Whatever ends the wait (Ctrl-C) ends what is waited for; after its own error this does nothing.
            future.cancel()
            raise

    # --- as `wire.Client` ---

    @property
    def node(self) -> str:
        """The name of the node that answers.

        ```python
        print("connected to", client.node)
        ```
        """
        return self._client.node

    @property
    def cluster_id(self) -> bytes:
        """The 16 bytes that were made when the cluster formed.

        ```python
        assert len(client.cluster_id) == 16
        ```
        """
        return self._client.cluster_id

    @property
    def limits(self) -> Limits:
        """The bounds that the server told in its greeting.

        ```python
        assert client.limits.batch_bytes_max <= client.limits.frame_bytes_max
        ```
        """
        return self._client.limits

    @property
    def asynchronous(self) -> wire.client.Client:
        """The client in the loop's thread, to be used there, with `run`.

        ```python
        identity = client.run(client.asynchronous.init_producer)
        assert identity.producer_epoch == 0
        ```
        """
        return self._client

    def request(self, message: Message) -> Message:
        """Send any request and return its answer.

        ```python
        from wire.messages import Ping, Pong

        assert client.request(Ping()) == Pong()
        ```
        """
        return self.run(self._client.request, message)

    def ping(self) -> None:
        """Return when the node has answered.

        ```python
        client.ping()
        ```
        """
        self.run(self._client.ping)

    def metadata(self, topics: Sequence[str] | None = None) -> ClusterMetadata:
        """The nodes, and the topics named (None: all).

        ```python
        metadata = client.metadata(["events"])
        assert [topic.topic for topic in metadata.topics] == ["events"]
        ```
        """
        return self.run(self._client.metadata, topics)

    def create_topic(
        self, topic: str, partitions: int = 0, replicas: int = 0, configuration: Mapping[str, str] | None = None
    ) -> TopicCreated:
        """Make a topic; 0 partitions or replicas mean the cluster's default.

        ```python
        created = client.create_topic("letters", 3, configuration={"retention.seconds": "3600"})
        assert created.partitions == 3
        ```
        """
        return self.run(self._client.create_topic, topic, partitions, replicas, configuration)

    def alter_topic(
        self, topic: str, partitions: int | None = None, configuration: Mapping[str, str | None] | None = None
    ) -> TopicAltered:
        """Change a topic's configuration, or raise its number of partitions.

        ```python
        altered = client.alter_topic("events", partitions=2, configuration={"retention.seconds": "3600"})
        assert altered.partitions == 2
        ```
        """
        return self.run(self._client.alter_topic, topic, partitions, configuration)

    def delete_topic(self, topic: str) -> None:
        """Remove a topic and its records for good.

        ```python
        client.delete_topic("events")
        assert "events" not in [topic.topic for topic in client.metadata().topics]
        ```
        """
        self.run(self._client.delete_topic, topic)

    def describe_topic(self, topic: str) -> TopicDescription:
        """A topic with its partitions' offsets and sizes, and its configuration.

        ```python
        description = client.describe_topic("events")
        assert [partition.high_watermark for partition in description.partitions] == [2]
        ```
        """
        return self.run(self._client.describe_topic, topic)

    def list_offsets(self, topic: str, partition: int, at: Anchor | int = Anchor.END) -> ListedOffsets:
        """An end of the readable range; or the first offset appended at or after `at` ms since 1970 UTC.

        ```python
        end = client.list_offsets("events", 0, wire.Anchor.END)
        assert end.offset == 2
        ```
        """
        return self.run(self._client.list_offsets, topic, partition, at)

    def produce(
        self,
        topic: str,
        partition: int,
        batch: bytes,
        *,
        acks: Acks = Acks.QUORUM,
        expected_offset: int | None = None,
    ) -> Produced:
        """Append one batch of `wire.encode_batch`.

        ```python
        batch = wire.encode_batch([(b"third", None, 0, None)])
        produced = client.produce("events", 0, batch, expected_offset=2)
        assert produced.base_offset == 2
        ```
        """
        function = functools.partial(self._client.produce, acks=acks, expected_offset=expected_offset)
        return self.run(function, topic, partition, batch)

    def fetch(
        self,
        topic: str,
        partition: int,
        offset: int,
        *,
        bytes_max: int = FETCH_BYTES_DEFAULT,
        wait_seconds: float = 0.0,
        linearizable: bool = False,
    ) -> Fetched:
        """Batches from `offset` on, as they are stored; at the end of the log, wait up to `wait_seconds` for one.

        ```python
        fetched = client.fetch("events", 0, 1, wait_seconds=1.0)
        assert fetched.next_offset == 2 and b"second" in fetched.batches
        ```
        """
        function = functools.partial(
            self._client.fetch, bytes_max=bytes_max, wait_seconds=wait_seconds, linearizable=linearizable
        )
        return self.run(function, topic, partition, offset)


class Acknowledgement:
    """What `send` returns: `wait` for the receipt of that record, or drop it.

    ```python
    acknowledgement = producer.send(b"third")
    assert acknowledgement.wait().offset == 2
    ```
    """

    __slots__ = ("_error", "_producer", "_record", "_taken")

    def __init__(self, producer: "Producer", record: _Fields) -> None:
        self._producer = producer
        # Invariant: `_record` until it is handed over, then one of the other two.
        self._record: _Fields | None = record
        self._taken: wire.producer.Acknowledgement | None = None
        self._error: Exception | None = None

    async def _hand_over(self, producer: wire.producer.Producer) -> None:
        """In the loop's thread: give the record to the producer. What the producer says of it is kept."""
        assert self._record is not None
        try:
            self._taken = await producer.send(*self._record)
        except (LogdError, TypeError) as error:
            self._error = error
        self._record = None

    @property
    def done(self) -> bool:
        """Whether the receipt or the error is there.

        ```python
        acknowledgement = producer.send(b"third")
        producer.flush()
        assert acknowledgement.done
        ```
        """
        return self._error is not None or (self._taken is not None and self._taken.done)

    def receipt_nowait(self) -> Receipt | None:
        """The receipt, or None while the record is on its way. Raises the error it failed with.

        ```python
        acknowledgement = producer.send(b"third")
        producer.flush()
        assert acknowledgement.receipt_nowait().offset == 2
        ```
        """
        if self._error is not None:
            raise self._error
        return None if self._taken is None else self._taken.receipt_nowait()

    def wait(self) -> Receipt:
        """The receipt, when it comes. Raises the error that says why the record was not acknowledged.

        ```python
        receipt = producer.send(b"third").wait()
        assert receipt.durability is wire.Durability.QUORUM_FSYNC
        ```
        """
        if not self.done:
            self._producer._settle(self)  # noqa: SLF001  # a producer and its acknowledgements are one mechanism
        receipt = self.receipt_nowait()
        assert receipt is not None
        return receipt

    async def _settled(self) -> None:
        """In the loop's thread: wait until it is done."""
        if self._taken is not None and not self._taken.done:
            # An error is raised by `receipt_nowait`, in the thread that waits.
            with contextlib.suppress(LogdError):
                await self._taken.wait()


class Producer:
    """Writes records to a topic; as `wire.Producer`, without `await`, and for any number of threads.

    Records gather on this side for half of `linger_seconds`, or until some hundreds are there, and are then handed to
    the producer in the loop's thread. So what is wrong with one (RecordTooLarge, a partition that is not there) is
    raised by its acknowledgement and by `flush`, not by `send`.

    ```python
    with wire.blocking.Client(address, tls=tls) as client:
        client.create_topic("measurements", partitions=1)
        with wire.blocking.Producer(client, "measurements") as producer:
            for number in range(1000):
                producer.send(b"%d" % number)
            print(producer.send(b"the last").wait().offset)
    ```
    """

    def __init__(
        self,
        client: Client,
        topic: str,
        *,
        acks: Acks = Acks.QUORUM,
        linger_seconds: float = wire.producer.LINGER_SECONDS_DEFAULT,
        batch_bytes_max: int = wire.producer.BATCH_BYTES_MAX_DEFAULT,
        batch_records_max: int = wire.producer.BATCH_RECORDS_MAX_DEFAULT,
        codec: Codec = Codec.NONE,
        buffer_bytes_max: int = wire.producer.BUFFER_BYTES_MAX_DEFAULT,
        idempotent: bool = True,
        name: str | None = None,
        delivery_seconds_max: float = wire.producer.DELIVERY_SECONDS_MAX_DEFAULT,
    ) -> None:
        self.topic: Final = topic
        self._client = client
        self._producer = wire.producer.Producer(
            client.asynchronous,
            topic,
            acks=acks,
            linger_seconds=linger_seconds / 2,
            batch_bytes_max=batch_bytes_max,
            batch_records_max=batch_records_max,
            codec=codec,
            buffer_bytes_max=buffer_bytes_max,
            idempotent=idempotent,
            name=name,
            delivery_seconds_max=delivery_seconds_max,
        )
        self._linger_seconds = linger_seconds / 2
        self._buffer_bytes_max = buffer_bytes_max
        self._life: AbstractContextManager[wire.producer.Producer] | None = None
        # Guards the three below. Held for moments only, and never while waiting.
        self._lock = threading.Lock()
        # Invariant: records that were not handed over, in order; their size; and whether a task will hand them over.
        self._gathered: list[Acknowledgement] = []
        self._gathered_bytes = 0
        self._is_drain_due = False
        # One hand-over at a time: that keeps the order.
        self._turn: anyio.Lock | None = None
        self._first_error: Exception | None = None

    def __enter__(self) -> Self:
        life = self._client.portal().wrap_async_context_manager(self._producer)
        self._turn = self._client.portal().call(anyio.Lock)
        life.__enter__()
        self._life = life
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        life = self._life
        if life is None:
            return
        try:
            if error is None:
                self.flush()
        except BaseException as late:
            self._life = None
            life.__exit__(type(late), late, late.__traceback__)
            raise
        self._life = None
        life.__exit__(kind, error, traceback)

    @property
    def statistics(self) -> ProducerStatistics:
        """What was done so far; records that are still gathering are not in it.

        ```python
        producer.send(b"third").wait()
        assert producer.statistics.records_acknowledged == 1
        ```
        """
        return self._producer.statistics

    def send(
        self,
        value: bytes | None,
        key: bytes | None = None,
        headers: Mapping[str, bytes] | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> Acknowledgement:
        """Take one record, waiting for room if need be. The arguments are those of `wire.Producer.send_nowait`.

        ```python
        acknowledgement = producer.send(b"third", key=b"anna", headers={"trace": b"7"})
        assert acknowledgement.wait().offset == 2
        ```
        """
        acknowledgement, is_full = self._gather(value, key, headers, partition, timestamp_ms)
        if is_full:
            self._client.run(self._drain)
        return acknowledgement

    def send_nowait(
        self,
        value: bytes | None,
        key: bytes | None = None,
        headers: Mapping[str, bytes] | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> Acknowledgement:
        """Take one record, or raise BufferFull, at once.

        ```python
        acknowledgement = producer.send_nowait(b"third", partition=0)
        assert acknowledgement.wait().offset == 2
        ```
        """
        waiting = self._gathered_bytes + self._producer.in_flight_bytes
        if waiting + _size(value, key) > self._buffer_bytes_max:
            raise BufferFull(f"{waiting} bytes await their acknowledgement, of {self._buffer_bytes_max}")
        return self._gather(value, key, headers, partition, timestamp_ms)[0]

    def flush(self) -> None:
        """Wait until everything sent so far is acknowledged or has failed; raises the first error nobody was told.

        ```python
        acknowledgements = [producer.send(b"%d" % number) for number in range(10)]
        producer.flush()
        assert all(acknowledgement.done for acknowledgement in acknowledgements)
        ```
        """
        self._client.run(self._drain)
        first, self._first_error = self._first_error, None
        self._client.run(self._producer.flush)
        if first is not None:
            raise first

    def _settle(self, acknowledgement: Acknowledgement) -> None:
        """Return when `acknowledgement` is done."""
        self._client.run(self._drain)
        self._client.run(acknowledgement._settled)  # noqa: SLF001  # a producer and its acknowledgements are one mechanism

    def _gather(
        self,
        value: bytes | None,
        key: bytes | None,
        headers: Mapping[str, bytes] | None,
        partition: int | None,
        timestamp_ms: int | None,
    ) -> tuple[Acknowledgement, bool]:
        if self._life is None:
            raise ClientClosed("the producer is not open: use it as `with Producer(…) as producer`")
        value, key, headers = wire.producer.checked_record(value, key, headers, timestamp_ms)
        if timestamp_ms is None:
            timestamp_ms = time.time_ns() // 1_000_000
        acknowledgement = Acknowledgement(self, (value, key, headers, partition, timestamp_ms))
        with self._lock:
            self._gathered.append(acknowledgement)
            self._gathered_bytes += _size(value, key)
            is_full = len(self._gathered) >= _RECORDS_PER_HANDOVER or self._gathered_bytes >= _BYTES_PER_HANDOVER
            is_first = not self._is_drain_due
            self._is_drain_due = True
        if is_first and not is_full:
            self._client.portal().start_task_soon(self._drain_later)
        return acknowledgement, is_full

    async def _drain_later(self) -> None:
        await anyio.sleep(self._linger_seconds)
        # The producer may have been closed meanwhile: then each record says so.
        await self._drain()

    async def _drain(self) -> None:
        assert self._turn is not None
        async with self._turn:
            with self._lock:
                gathered, self._gathered = self._gathered, []
                self._gathered_bytes = 0
                self._is_drain_due = False
            handed = 0
            try:
                for acknowledgement in gathered:
                    await acknowledgement._hand_over(self._producer)  # noqa: SLF001  # a producer and its acknowledgements are one mechanism
                    handed += 1
            finally:
                if handed < len(gathered):
                    # Cancelled by Ctrl-C: the rest is as if it had just been gathered.
                    with self._lock:
                        self._gathered[:0] = gathered[handed:]


class Consumer:
    """Reads the records of a topic; as `wire.Consumer`, without `await`. For one thread at a time.

    ```python
    with wire.blocking.Client(address, tls=tls) as client:
        client.create_topic("news", partitions=1)
        with wire.blocking.Producer(client, "news") as producer:
            producer.send(b"it works")
        with wire.blocking.Consumer(client, "news", follow=False) as consumer:
            for record in consumer:
                print(record.offset, record.value)
    ```
    """

    def __init__(
        self,
        client: Client,
        topic: str,
        *,
        partition: int | None = None,
        start: Anchor | int = Anchor.START,
        start_time_ms: int | None = None,
        credit_bytes: int = wire.consumer.CREDIT_BYTES_DEFAULT,
        follow: bool = True,
        verify: bool = True,
    ) -> None:
        self.topic: Final = topic
        self._client = client
        self._consumer = wire.consumer.Consumer(
            client.asynchronous,
            topic,
            partition=partition,
            start=start,
            start_time_ms=start_time_ms,
            credit_bytes=credit_bytes,
            follow=follow,
            verify=verify,
        )
        self._life: AbstractContextManager[wire.consumer.Consumer] | None = None
        # What was handed over and not handed out: whole batches, what is left of one, and the error behind them.
        self._batches: deque[Batch] = deque()
        self._current: Batch | None = None
        self._rest: Iterator[Record] = iter(())
        self._error: LogdError | None = None

    def __enter__(self) -> Self:
        life = self._client.portal().wrap_async_context_manager(self._consumer)
        life.__enter__()
        self._life = life
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        life, self._life = self._life, None
        if life is not None:
            life.__exit__(kind, error, traceback)

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        while True:
            for record in self._rest:
                return record
            batch = self._next_batch()
            if batch is None:
                raise StopIteration
            self._current = batch
            self._rest = iter(batch.records)

    def batches(self) -> Iterator[Batch]:
        """Iterate over whole batches: what is left of one whose records were handed out singly comes first.

        ```python
        for batch in consumer.batches():
            print(batch.partition, batch.header.base_offset, len(batch.records))
        ```
        """
        while True:
            left = list(self._rest)
            current, self._current = self._current, None
            batch = current._replace(records=left) if left and current is not None else self._next_batch()
            if batch is None:
                return
            yield batch

    def position(self, partition: int) -> int:
        """The offset after the last record that was handed out of this partition; before that, where it starts.

        ```python
        record = next(consumer)
        assert consumer.position(0) == record.offset + 1
        ```
        """
        position = self._consumer.position(partition)
        for batch in self._batches:
            if batch.partition == partition:
                return batch.records[0].offset - self._left(partition)
        return position - self._left(partition)

    def _left(self, partition: int) -> int:
        is_current = self._current is not None and self._current.partition == partition
        return operator.length_hint(self._rest) if is_current else 0

    def high_watermark(self, partition: int) -> int:
        """The partition's high watermark as last heard of; 0 before that.

        ```python
        record = next(consumer)
        print("behind by", consumer.high_watermark(record.partition) - consumer.position(record.partition))
        ```
        """
        return self._consumer.high_watermark(partition)

    def _next_batch(self) -> Batch | None:
        if not self._batches:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            self._batches.extend(self._client.run(self._take))
        return self._batches.popleft() if self._batches else None

    async def _take(self) -> list[Batch]:
        """In the loop's thread: what there is, at least one batch unless it is the end."""
        first = await self._consumer.next_batch()
        taken = [] if first is None else [first]
        try:
            while first is not None and len(taken) < _BATCHES_PER_HANDOVER:
                batch = self._consumer.next_batch_nowait()
                if batch is None:
                    break
                taken.append(batch)
        except LogdError as error:
            self._error = error
        return taken


def _size(value: bytes | None, key: bytes | None) -> int:
    """About what a record takes in a batch; exact where it matters, in the producer."""
    return len(value or b"") + len(key or b"") + _ROW_BYTES
