"""Every message of the protocol, as a type and as a row of one table.

For: whoever sends or handles a message. Must not know: bytes. The one idea: a message is a frozen dataclass whose
fields, in order and with their types, are the wire format; `MESSAGES` gives each its number. Fields are only ever
added at the end, with a default; a number is never used again. `docs/protocol.md` is generated from this table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, NamedTuple

from wire.types import Acks, Anchor, Durability


class Bounds(NamedTuple):
    """The range of an integer on the wire, both ends included."""

    lowest: int
    highest: int


U16 = Annotated[int, Bounds(0, 2**16 - 1)]
U32 = Annotated[int, Bounds(0, 2**32 - 1)]
U64 = Annotated[int, Bounds(0, 2**64 - 1)]
I64 = Annotated[int, Bounds(-(2**63), 2**63 - 1)]


class Message:
    """The base of all messages."""

    __slots__ = ()


# --- Greeting -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """The first message of a connection: what the client speaks."""

    versions: tuple[U32, ...]
    client: str
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """The answer to `Hello`: the version chosen, who answers, and the limits in force."""

    version: U32
    node: str
    cluster_id: bytes
    features: tuple[str, ...]
    limits: Mapping[str, U64]


@dataclass(frozen=True, slots=True)
class Error(Message):
    """Any request may be answered with it; with request id 0 it concerns the connection, which is then closed."""

    code: str
    message: str
    details: Mapping[str, Any]
    retriable: bool


@dataclass(frozen=True, slots=True)
class Ping(Message):
    """A question whether anybody is there."""


@dataclass(frozen=True, slots=True)
class Pong(Message):
    """The answer to `Ping`."""


# --- Records --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Produce(Message):
    """Append one batch. With `expected_offset`, only if its first record gets exactly this offset."""

    topic: str
    partition: U32
    acks: Acks
    batch: bytes
    expected_offset: U64 | None = None


@dataclass(frozen=True, slots=True)
class Produced(Message):
    """Where the batch stands, and what was achieved. With `acks=none` the place is not known: all zero and empty.

    `duplicate`: the batch was in the log already, and this is its original place (`term` 0 and `chain` empty when
    they are no longer at hand).

    ```python
    produced = await client.produce("events", 0, wire.encode_batch([(b"third", None, 0, None)]))
    assert (produced.base_offset, produced.duplicate) == (2, False)
    ```
    """

    base_offset: U64
    index: U64
    term: U64
    chain: bytes
    durability: Durability
    nodes: tuple[str, ...]
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Fetch(Message):
    """Read batches from `offset` on; at the end of the log, wait up to `max_wait_ms` for more."""

    topic: str
    partition: U32
    offset: U64
    max_bytes: U32
    max_wait_ms: U32 = 0
    linearizable: bool = False


@dataclass(frozen=True, slots=True)
class Fetched(Message):
    """Contiguous batches as they are stored; empty when nothing came in time. The first may begin before `offset`.

    ```python
    fetched = await client.fetch("events", 0, 0)
    assert len(list(wire.split_batches(fetched.batches))) >= 1
    ```
    """

    batches: bytes
    next_offset: U64
    log_start_offset: U64
    high_watermark: U64


@dataclass(frozen=True, slots=True)
class Subscribe(Message):
    """Send batches from `offset` on as they come, as long as there is credit. Its request id names the subscription."""

    topic: str
    partition: U32
    offset: U64
    credit_bytes: U32


@dataclass(frozen=True, slots=True)
class Subscribed(Message):
    """The first answer to `Subscribe`; deliveries follow under the same request id."""

    log_start_offset: U64
    high_watermark: U64


@dataclass(frozen=True, slots=True)
class Credit(Message):
    """More room for a subscription, under its request id. Not answered."""

    credit_bytes: U32


@dataclass(frozen=True, slots=True)
class Delivery(Message):
    """Batches of a subscription. Their bytes are taken off its credit, which the last one may exceed."""

    batches: bytes
    next_offset: U64
    log_start_offset: U64
    high_watermark: U64


@dataclass(frozen=True, slots=True)
class Unsubscribe(Message):
    """End the subscription of this request id."""


@dataclass(frozen=True, slots=True)
class Unsubscribed(Message):
    """The last message of a subscription that was ended by `Unsubscribe`."""


@dataclass(frozen=True, slots=True)
class ListOffsets(Message):
    """Where to start: an end of the readable range, or a time in ms since 1970 UTC."""

    topic: str
    partition: U32
    at: Anchor | I64


@dataclass(frozen=True, slots=True)
class ListedOffsets(Message):
    """`offset`: the anchor, or the first whose batch was appended at or after the time (the watermark if none was).

    ```python
    listed = await client.list_offsets("events", 0, wire.Anchor.START)
    assert (listed.offset, listed.high_watermark) == (0, 2)
    ```
    """

    offset: U64
    log_start_offset: U64
    high_watermark: U64


@dataclass(frozen=True, slots=True)
class InitProducer(Message):
    """Ask for a producer id. With a name, the same id as before and the next epoch, which fences older holders."""

    name: str | None = None


@dataclass(frozen=True, slots=True)
class ProducerInitialized(Message):
    """The identity under which sequences are counted."""

    producer_id: U64
    producer_epoch: U16


@dataclass(frozen=True, slots=True)
class ReportDamage(Message):
    """A reader found that a stored range does not verify; the node checks its replica and repairs it if it can."""

    topic: str
    partition: U32
    base_offset: U64
    next_offset: U64
    problem: str


@dataclass(frozen=True, slots=True)
class DamageReported(Message):
    """`confirmed`: the node read the range again and found the same."""

    confirmed: bool


# --- The cluster and its topics -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NodeDescription(Message):
    """A node, and where clients reach it.

    ```python
    (node,) = (await client.metadata()).nodes
    print(node.name, wire.Address(node.host, node.port))
    ```
    """

    name: str
    host: str
    port: U16


@dataclass(frozen=True, slots=True)
class PartitionDescription(Message):
    """One partition as the answering node sees it. `leader` is None while there is none.

    ```python
    (partition,) = (await client.describe_topic("events")).partitions
    assert partition.high_watermark - partition.log_start_offset == 2
    ```
    """

    partition: U32
    group: U64
    leader: str | None
    term: U64
    replicas: tuple[str, ...]
    log_start_offset: U64 = 0
    high_watermark: U64 = 0
    log_end_offset: U64 = 0
    log_bytes: U64 = 0
    segments: U32 = 0


@dataclass(frozen=True, slots=True)
class TopicDescription(Message):
    """A topic, its partitions and its whole configuration (defaults included).

    ```python
    description = await client.describe_topic("events")
    print(description.topic, len(description.partitions), description.configuration)
    ```
    """

    topic: str
    topic_id: bytes
    partitions: tuple[PartitionDescription, ...]
    configuration: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Metadata(Message):
    """Who leads what: of the topics named, or of all."""

    topics: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class ClusterMetadata(Message):
    """The answer to `Metadata`.

    ```python
    metadata = await client.metadata()
    print([node.name for node in metadata.nodes], [topic.topic for topic in metadata.topics])
    ```
    """

    nodes: tuple[NodeDescription, ...]
    topics: tuple[TopicDescription, ...]


@dataclass(frozen=True, slots=True)
class CreateTopic(Message):
    """Make a topic; 0 partitions or replicas mean the cluster's default."""

    topic: str
    partitions: U32 = 0
    replicas: U32 = 0
    configuration: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TopicCreated(Message):
    """The topic stands and can be written to.

    ```python
    created = await client.create_topic("letters", partitions=3)
    assert created.partitions == 3 and len(created.topic_id) == 16
    ```
    """

    topic_id: bytes
    partitions: U32


@dataclass(frozen=True, slots=True)
class AlterTopic(Message):
    """Change a topic's configuration (None puts a key back to its default), or add partitions."""

    topic: str
    partitions: U32 | None = None
    configuration: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TopicAltered(Message):
    """The answer to `AlterTopic`: the topic as it is now.

    ```python
    altered = await client.alter_topic("events", partitions=2)
    assert altered.partitions == 2
    ```
    """

    partitions: U32
    configuration: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DeleteTopic(Message):
    """Remove a topic and its records for good."""

    topic: str


@dataclass(frozen=True, slots=True)
class TopicDeleted(Message):
    """The answer to `DeleteTopic`."""


@dataclass(frozen=True, slots=True)
class DescribeTopic(Message):
    """Like `Metadata` of one topic, with offsets and sizes."""

    topic: str


# --- The table ------------------------------------------------------------------------------------------------------


class MessageType(NamedTuple):
    """One row: the number on the wire, and for a request the type that answers it.

    `answer` is None for what is no request; a request that is never answered says so with `one_way`.
    """

    number: int
    kind: type[Message]
    answer: type[Message] | None = None
    one_way: bool = False


MESSAGES: Final = (
    MessageType(0, Error),
    MessageType(1, Hello, Welcome),
    MessageType(2, Welcome),
    MessageType(3, Ping, Pong),
    MessageType(4, Pong),
    MessageType(10, Produce, Produced),
    MessageType(11, Produced),
    MessageType(12, Fetch, Fetched),
    MessageType(13, Fetched),
    MessageType(14, Subscribe, Subscribed),
    MessageType(15, Subscribed),
    MessageType(16, Credit, one_way=True),
    MessageType(17, Delivery),
    MessageType(18, Unsubscribe, Unsubscribed),
    MessageType(19, Unsubscribed),
    MessageType(20, ListOffsets, ListedOffsets),
    MessageType(21, ListedOffsets),
    MessageType(22, InitProducer, ProducerInitialized),
    MessageType(23, ProducerInitialized),
    MessageType(24, ReportDamage, DamageReported),
    MessageType(25, DamageReported),
    MessageType(40, Metadata, ClusterMetadata),
    MessageType(41, ClusterMetadata),
    MessageType(42, CreateTopic, TopicCreated),
    MessageType(43, TopicCreated),
    MessageType(44, AlterTopic, TopicAltered),
    MessageType(45, TopicAltered),
    MessageType(46, DeleteTopic, TopicDeleted),
    MessageType(47, TopicDeleted),
    MessageType(48, DescribeTopic, TopicDescription),
    MessageType(49, TopicDescription),
)
"""Numbers 64 to 95 are kept for messages between nodes (`Raft`, `Gossip`)."""

ANSWERS: Final[Mapping[type[Message], type[Message]]] = {
    row.kind: row.answer for row in MESSAGES if row.answer is not None
}
ONE_WAY: Final = frozenset(row.kind for row in MESSAGES if row.one_way)

# What a frame's headers may hold; anything else in them is ignored.
HEADER_TRACEPARENT: Final = "traceparent"
HEADER_TIMEOUT_MS: Final = "timeout_ms"
