"""The words of the protocol that are neither bytes nor errors.

For: the small enumerations and value types which every layer of the client library, and the daemon, share. Must not
know: how anything is encoded, or who sends it. The one idea: a border parses a word once into one of these types, and
inside nobody compares strings.
"""

from enum import IntEnum, StrEnum
from typing import Final, NamedTuple

# "logd" on a telephone keypad is 5643; 7421 is unassigned by IANA and free in the common service lists.
PORT_DEFAULT: Final = 7421

# The one version of the protocol that exists. A `Hello` lists what the client speaks, a `Welcome` names the choice.
PROTOCOL_VERSION: Final = 1


class Acks(StrEnum):
    """When the producer is answered. What the replicas do never varies with it.

    ```python
    async with wire.Producer(client, "events", acks=wire.Acks.LEADER) as producer:
        receipt = await producer.send_nowait(b"third")
    assert receipt.durability is not wire.Durability.NONE
    ```
    """

    NONE = "none"
    """As soon as the batch was accepted for appending: nothing is promised."""
    LEADER = "leader"
    """When the leader has fsynced."""
    QUORUM = "quorum"
    """When a majority has fsynced: the default, and the only one that survives the loss of a node."""


class Durability(StrEnum):
    """What an acknowledgement says was achieved.

    ```python
    receipt = await producer.send_nowait(b"third")
    assert receipt.durability is wire.Durability.QUORUM_FSYNC
    ```
    """

    NONE = "none"
    LEADER_FSYNC = "leader_fsync"
    QUORUM_FSYNC = "quorum_fsync"


class Codec(IntEnum):
    """How a payload is compressed as a whole: bits 0 to 2 of a batch's flags.

    ```python
    async with wire.Producer(client, "events", codec=wire.Codec.ZSTD) as producer:
        await producer.send(b"well compressible" * 100)
    ```
    """

    NONE = 0
    ZSTD = 1


class Anchor(StrEnum):
    """The two ends of a partition's readable range, as a place to start from.

    ```python
    async with wire.Consumer(client, "events", start=wire.Anchor.END) as consumer:
        assert consumer.position(0) == 2
    ```
    """

    START = "start"
    """`log_start_offset`: the oldest record that is still retained."""
    END = "end"
    """`high_watermark`: the next record to be committed."""


class TopicPartition(NamedTuple):
    """One of the ordered logs that a topic consists of."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


class Record(NamedTuple):
    """What a user wrote, with the place it got.

    `value` is None for a tombstone. `timestamp_ms` is the producer's clock in milliseconds since 1970 UTC, and is
    informative: retention and lookups by time use the leader's.

    ```python
    record = await anext(consumer)
    assert (record.partition, record.offset, record.value) == (0, 0, b"first")
    ```
    """

    value: bytes | None
    key: bytes | None
    headers: dict[str, bytes] | None
    timestamp_ms: int
    offset: int
    partition: int
