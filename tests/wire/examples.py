"""One example of each message, and of a batch: what the golden files hold, and what other tests begin with."""

from typing import Final

from wire.messages import (
    AlterTopic,
    ClusterMetadata,
    CreateTopic,
    Credit,
    DamageReported,
    DeleteTopic,
    Delivery,
    DescribeTopic,
    Error,
    Fetch,
    Fetched,
    Hello,
    InitProducer,
    ListedOffsets,
    ListOffsets,
    Message,
    Metadata,
    NodeDescription,
    PartitionDescription,
    Ping,
    Pong,
    Produce,
    Produced,
    ProducerInitialized,
    ReportDamage,
    Subscribe,
    Subscribed,
    TopicAltered,
    TopicCreated,
    TopicDeleted,
    TopicDescription,
    Unsubscribe,
    Unsubscribed,
    Welcome,
)
from wire.record import Stamp, encode_batch, stamp
from wire.types import Acks, Anchor, Durability

DIGEST: Final = bytes(range(32))
ID: Final = bytes(range(16))
REQUEST_ID: Final = 0x01020304

_PARTITION: Final = PartitionDescription(2, 7, "node-1", 3, ("node-1", "node-2"), 10, 20, 21, 4096, 1)
_TOPIC: Final = TopicDescription("orders", ID, (_PARTITION,), {"retention_seconds": "3600"})

MESSAGES: Final[tuple[Message, ...]] = (
    Error("TopicNotFound", "there is no topic orders", {"topic": "orders", "delay_seconds": 0.5}, retriable=False),
    Hello((1,), "wire/0.1", ("later",)),
    Welcome(1, "node-1", ID, (), {"frame_bytes_max": 8388608, "batch_bytes_max": 1048576}),
    Ping(),
    Pong(),
    Produce("orders", 2, Acks.QUORUM, b"\x00batch\xff", 41),
    Produced(41, 17, 3, DIGEST, Durability.QUORUM_FSYNC, ("node-1", "node-2"), duplicate=True),
    Fetch("orders", 2, 41, 1048576, 500, linearizable=True),
    Fetched(b"\x00batches\xff", 42, 10, 2**64 - 1),
    Subscribe("orders", 2, 41, 8388608),
    Subscribed(10, 42),
    Credit(4194304),
    Delivery(b"\x00batches\xff", 42, 10, 42),
    Unsubscribe(),
    Unsubscribed(),
    ListOffsets("orders", 2, Anchor.START),
    ListedOffsets(10, 10, 42),
    InitProducer("billing"),
    ProducerInitialized(5, 65535),
    ReportDamage("orders", 2, 41, 42, "the payload does not match its digest"),
    DamageReported(confirmed=True),
    Metadata(("orders", "bücher")),
    ClusterMetadata((NodeDescription("node-1", "::1", 7421),), (_TOPIC,)),
    CreateTopic("orders", 3, 1, {"retention_seconds": "3600"}),
    TopicCreated(ID, 3),
    AlterTopic("orders", None, {"retention_seconds": None}),
    TopicAltered(3, {}),
    DeleteTopic("orders"),
    TopicDeleted(),
    DescribeTopic("orders"),
    _TOPIC,
)

RECORDS: Final[tuple[tuple[bytes | None, bytes | None, int, dict[str, bytes] | None], ...]] = (
    (b"value", b"key", 1_700_000_000_000, {"trace": b"\x01\x02"}),
    (None, b"tombstone", 1_700_000_000_250, None),
    (b"", None, 1_699_999_999_999, {}),
)
PLACE: Final = Stamp(base_offset=41, index=17, term=3, append_timestamp=1_700_000_000_300, previous_chain=DIGEST)


def produced_batch() -> bytes:
    return encode_batch(RECORDS, producer_id=5, producer_epoch=2, base_sequence=1000)


def stamped_batch() -> bytes:
    return stamp(produced_batch(), PLACE).to_bytes()
