"""logd's protocol and its client library, for Trio and asyncio; `wire.blocking` is for scripts.

For: programs that write to and read from a logd cluster. The one idea: a name is loaded when it is first used, so that
importing the package costs nothing, and brings no event loop into a program that only decodes batches.

```python
async with wire.Client(address, tls=tls) as client:
    await client.create_topic("hello", partitions=1)
    async with wire.Producer(client, "hello") as producer:
        receipt = await producer.send_nowait(b"world")
    async with wire.Consumer(client, "hello", start=receipt.offset, follow=False) as consumer:
        async for record in consumer:
            assert record.value == b"world"
```

Every name and method has an example. What they take for granted: `address` and `tls` lead to a node; `client` is open;
`producer` and `consumer`, which does not follow, are of the topic `events`, whose one partition holds two records.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import wire.blocking as blocking
    import wire.errors as errors
    from wire.client import Client as Client
    from wire.connection import Limits as Limits
    from wire.consumer import Batch as Batch
    from wire.consumer import Consumer as Consumer
    from wire.errors import BatchTooLarge as BatchTooLarge
    from wire.errors import BufferFull as BufferFull
    from wire.errors import ClientClosed as ClientClosed
    from wire.errors import ClientError as ClientError
    from wire.errors import ConnectionFailed as ConnectionFailed
    from wire.errors import ConnectionLost as ConnectionLost
    from wire.errors import CorruptBatch as CorruptBatch
    from wire.errors import DiskFull as DiskFull
    from wire.errors import DuplicateSequence as DuplicateSequence
    from wire.errors import Fenced as Fenced
    from wire.errors import InternalError as InternalError
    from wire.errors import InvalidBatch as InvalidBatch
    from wire.errors import InvalidRequest as InvalidRequest
    from wire.errors import InvalidTopic as InvalidTopic
    from wire.errors import LogdError as LogdError
    from wire.errors import Misconfigured as Misconfigured
    from wire.errors import NotAuthorized as NotAuthorized
    from wire.errors import NotLeader as NotLeader
    from wire.errors import NotYetAvailable as NotYetAvailable
    from wire.errors import OffsetMismatch as OffsetMismatch
    from wire.errors import OffsetOutOfRange as OffsetOutOfRange
    from wire.errors import OutcomeUnknown as OutcomeUnknown
    from wire.errors import Overloaded as Overloaded
    from wire.errors import ProtocolError as ProtocolError
    from wire.errors import RecordTooLarge as RecordTooLarge
    from wire.errors import SequenceGap as SequenceGap
    from wire.errors import ServerError as ServerError
    from wire.errors import ShuttingDown as ShuttingDown
    from wire.errors import StorageFailed as StorageFailed
    from wire.errors import TopicExists as TopicExists
    from wire.errors import TopicNotFound as TopicNotFound
    from wire.errors import UndecodableBatch as UndecodableBatch
    from wire.errors import UnknownError as UnknownError
    from wire.errors import UnknownProducer as UnknownProducer
    from wire.errors import Unsupported as Unsupported
    from wire.messages import ClusterMetadata as ClusterMetadata
    from wire.messages import Fetched as Fetched
    from wire.messages import ListedOffsets as ListedOffsets
    from wire.messages import NodeDescription as NodeDescription
    from wire.messages import PartitionDescription as PartitionDescription
    from wire.messages import Produced as Produced
    from wire.messages import TopicAltered as TopicAltered
    from wire.messages import TopicCreated as TopicCreated
    from wire.messages import TopicDescription as TopicDescription
    from wire.producer import Acknowledgement as Acknowledgement
    from wire.producer import Producer as Producer
    from wire.producer import ProducerStatistics as ProducerStatistics
    from wire.producer import Receipt as Receipt
    from wire.record import BatchHeader as BatchHeader
    from wire.record import decode_records as decode_records
    from wire.record import encode_batch as encode_batch
    from wire.record import partition_for_key as partition_for_key
    from wire.record import split_batches as split_batches
    from wire.stream import Address as Address
    from wire.stream import Tls as Tls
    from wire.types import Acks as Acks
    from wire.types import Anchor as Anchor
    from wire.types import Codec as Codec
    from wire.types import Durability as Durability
    from wire.types import Record as Record

_HOMES: Final = {
    "Acknowledgement": "producer",
    "Acks": "types",
    "Address": "stream",
    "Anchor": "types",
    "Batch": "consumer",
    "BatchHeader": "record",
    "BatchTooLarge": "errors",
    "BufferFull": "errors",
    "Client": "client",
    "ClientClosed": "errors",
    "ClientError": "errors",
    "ClusterMetadata": "messages",
    "Codec": "types",
    "ConnectionFailed": "errors",
    "ConnectionLost": "errors",
    "Consumer": "consumer",
    "CorruptBatch": "errors",
    "DiskFull": "errors",
    "DuplicateSequence": "errors",
    "Durability": "types",
    "Fenced": "errors",
    "Fetched": "messages",
    "InternalError": "errors",
    "InvalidBatch": "errors",
    "InvalidRequest": "errors",
    "InvalidTopic": "errors",
    "Limits": "connection",
    "ListedOffsets": "messages",
    "LogdError": "errors",
    "Misconfigured": "errors",
    "NodeDescription": "messages",
    "NotAuthorized": "errors",
    "NotLeader": "errors",
    "NotYetAvailable": "errors",
    "OffsetMismatch": "errors",
    "OffsetOutOfRange": "errors",
    "OutcomeUnknown": "errors",
    "Overloaded": "errors",
    "PartitionDescription": "messages",
    "Produced": "messages",
    "Producer": "producer",
    "ProducerStatistics": "producer",
    "ProtocolError": "errors",
    "Receipt": "producer",
    "Record": "types",
    "RecordTooLarge": "errors",
    "SequenceGap": "errors",
    "ServerError": "errors",
    "ShuttingDown": "errors",
    "StorageFailed": "errors",
    "Tls": "stream",
    "TopicAltered": "messages",
    "TopicCreated": "messages",
    "TopicDescription": "messages",
    "TopicExists": "errors",
    "TopicNotFound": "errors",
    "UndecodableBatch": "errors",
    "UnknownError": "errors",
    "UnknownProducer": "errors",
    "Unsupported": "errors",
    "decode_records": "record",
    "encode_batch": "record",
    "partition_for_key": "record",
    "split_batches": "record",
}
_MODULES: Final = frozenset(("blocking", "errors"))

__all__ = [
    "Acknowledgement",
    "Acks",
    "Address",
    "Anchor",
    "Batch",
    "BatchHeader",
    "BatchTooLarge",
    "BufferFull",
    "Client",
    "ClientClosed",
    "ClientError",
    "ClusterMetadata",
    "Codec",
    "ConnectionFailed",
    "ConnectionLost",
    "Consumer",
    "CorruptBatch",
    "DiskFull",
    "DuplicateSequence",
    "Durability",
    "Fenced",
    "Fetched",
    "InternalError",
    "InvalidBatch",
    "InvalidRequest",
    "InvalidTopic",
    "Limits",
    "ListedOffsets",
    "LogdError",
    "Misconfigured",
    "NodeDescription",
    "NotAuthorized",
    "NotLeader",
    "NotYetAvailable",
    "OffsetMismatch",
    "OffsetOutOfRange",
    "OutcomeUnknown",
    "Overloaded",
    "PartitionDescription",
    "Produced",
    "Producer",
    "ProducerStatistics",
    "ProtocolError",
    "Receipt",
    "Record",
    "RecordTooLarge",
    "SequenceGap",
    "ServerError",
    "ShuttingDown",
    "StorageFailed",
    "Tls",
    "TopicAltered",
    "TopicCreated",
    "TopicDescription",
    "TopicExists",
    "TopicNotFound",
    "UndecodableBatch",
    "UnknownError",
    "UnknownProducer",
    "Unsupported",
    "blocking",
    "decode_records",
    "encode_batch",
    "errors",
    "partition_for_key",
    "split_batches",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"wire.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'wire' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"wire.{home}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
