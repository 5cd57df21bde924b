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
    from wire.errors import LogdError as LogdError
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
    "Client": "client",
    "ClusterMetadata": "messages",
    "Codec": "types",
    "Consumer": "consumer",
    "Durability": "types",
    "Fetched": "messages",
    "Limits": "connection",
    "ListedOffsets": "messages",
    "LogdError": "errors",
    "NodeDescription": "messages",
    "PartitionDescription": "messages",
    "Produced": "messages",
    "Producer": "producer",
    "ProducerStatistics": "producer",
    "Receipt": "producer",
    "Record": "types",
    "Tls": "stream",
    "TopicAltered": "messages",
    "TopicCreated": "messages",
    "TopicDescription": "messages",
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
    "Client",
    "ClusterMetadata",
    "Codec",
    "Consumer",
    "Durability",
    "Fetched",
    "Limits",
    "ListedOffsets",
    "LogdError",
    "NodeDescription",
    "PartitionDescription",
    "Produced",
    "Producer",
    "ProducerStatistics",
    "Receipt",
    "Record",
    "Tls",
    "TopicAltered",
    "TopicCreated",
    "TopicDescription",
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
