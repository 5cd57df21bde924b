"""What a partition remembers of its idempotent producers.

For: the driver, which asks before it proposes. Must not know: who sent a batch, or whether it is on any disk. The one
idea: the table is a function of the log. Each producer has its last five committed batches, and what is appended
beyond the commit as an overlay, which a truncation takes back; so a replica that reads the same batches holds the
same table.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgpack

from wire.errors import DuplicateSequence, Fenced, InvalidBatch, LogdError, Overloaded, SequenceGap, UnknownProducer
from wire.record import BatchHeader

# Clients keep at most five batches in flight per partition, so a retry is always among the last five.
BATCHES_REMEMBERED: Final = 5
TABLE_VERSION: Final = 1


class Remembered(NamedTuple):
    """One batch of a producer, and the place it got."""

    base_sequence: int
    record_count: int
    base_offset: int
    index: int  # type: ignore[assignment]  # the glossary's word wins over `tuple.index`

    @property
    def next_sequence(self) -> int:
        return self.base_sequence + self.record_count


@dataclass(slots=True)
class _Producer:
    """One producer id in one partition."""

    epoch: int
    last_append_timestamp: int
    # Invariant: in the order of the log, sequences contiguous; at most five of them are committed.
    batches: list[Remembered] = field(default_factory=list)


class Duplicate(NamedTuple):
    """The answer of `check` to a repeat: the place of the original."""

    original: Remembered


class ProducerTable:
    """The producers of one partition.

    Arguments: `producers_max`, how many ids one partition remembers; `expiry_ms`, how long after its last batch an id
    is forgotten, by the leader's stamps.
    """

    def __init__(self, producers_max: int, expiry_ms: int) -> None:
        self.producers_max = producers_max
        self.expiry_ms = expiry_ms
        # Invariant: ordered by last_append_timestamp, so that the ones to expire stand in front.
        self._producers: OrderedDict[int, _Producer] = OrderedDict()
        self._newest_timestamp = 0

    def __len__(self) -> int:
        return len(self._producers)

    def check(self, header: BatchHeader, append_timestamp: int) -> Duplicate | LogdError | None:
        """Whether a produced batch may be appended: None for yes, its original's place, or the error to answer.

        `append_timestamp`, in ms, is what the batch would be stamped with. What that stamp would let expire counts as
        forgotten already, but stays in the table until a batch with such a stamp is in the log.
        """
        if header.producer_id == 0:
            return None
        expired_before = max(self._newest_timestamp, append_timestamp) - self.expiry_ms
        known = self._producers.get(header.producer_id)
        if known is not None and known.last_append_timestamp < expired_before:
            known = None
        if known is None and self._is_full(expired_before):
            return Overloaded(
                f"this partition remembers {self.producers_max} producers already",
                {"delay_seconds": 60.0},
            )
        if known is None or header.producer_epoch > known.epoch:
            if header.base_sequence != 0:
                return UnknownProducer(
                    f"producer {header.producer_id} of epoch {header.producer_epoch} starts at sequence "
                    f"{header.base_sequence}: it is new here, or was forgotten",
                    {"producer_id": header.producer_id},
                )
            return None
        if header.producer_epoch < known.epoch:
            return Fenced(
                f"producer {header.producer_id} of epoch {header.producer_epoch} is fenced by epoch {known.epoch}",
                {"producer_id": header.producer_id, "producer_epoch": known.epoch},
            )
        return _check_sequence(header, known.batches)

    def _is_full(self, expired_before: int) -> bool:
        if len(self._producers) < self.producers_max:
            return False
        return next(iter(self._producers.values())).last_append_timestamp >= expired_before

    def append(self, header: BatchHeader) -> None:
        """Note a batch that was appended to the log, committed or not."""
        self._expire(header.append_timestamp)
        if header.producer_id == 0:
            return
        producer = self._producers.get(header.producer_id)
        if producer is None or header.producer_epoch > producer.epoch:
            producer = self._producers[header.producer_id] = _Producer(header.producer_epoch, header.append_timestamp)
        producer.last_append_timestamp = header.append_timestamp
        producer.batches.append(Remembered(header.base_sequence, header.record_count, header.base_offset, header.index))
        self._producers.move_to_end(header.producer_id)

    def commit(self, header: BatchHeader, commit_index: int) -> None:
        """Forget what a committed batch's producer no longer needs: all but its last five committed ones."""
        producer = self._producers.get(header.producer_id)
        if producer is None:
            return
        committed = sum(batch.index <= commit_index for batch in producer.batches)
        if committed > BATCHES_REMEMBERED:
            del producer.batches[: committed - BATCHES_REMEMBERED]

    def _expire(self, now_ms: int) -> None:
        self._newest_timestamp = max(self._newest_timestamp, now_ms)
        while self._producers:
            producer_id, producer = next(iter(self._producers.items()))
            if producer.last_append_timestamp >= self._newest_timestamp - self.expiry_ms:
                return
            del self._producers[producer_id]

    # --- As carried in `start` files and sealed indexes ---------------------------------------------------------------

    def encode(self) -> bytes:
        """The table in one canonical form."""
        packed: bytes = msgpack.packb(
            [
                TABLE_VERSION,
                self._newest_timestamp,
                [
                    [producer_id, known.epoch, known.last_append_timestamp, [list(batch) for batch in known.batches]]
                    for producer_id, known in self._producers.items()
                ],
            ]
        )
        return packed

    def restore(self, table: bytes) -> None:
        """Replace the contents by what `encode` gave; no bytes, no producers. Raises ValueError."""
        self._producers.clear()
        self._newest_timestamp = 0
        if not table:
            return
        values: list[Any] = msgpack.unpackb(table)
        if values[0] != TABLE_VERSION:
            raise ValueError(f"a producer table of version {values[0]}: this software knows {TABLE_VERSION}")
        _, self._newest_timestamp, producers = values
        for producer_id, epoch, timestamp, batches in producers:
            known = _Producer(epoch, timestamp, [Remembered._make(batch) for batch in batches])
            self._producers[producer_id] = known


def _check_sequence(header: BatchHeader, batches: list[Remembered]) -> Duplicate | LogdError | None:
    expected = batches[-1].next_sequence if batches else 0
    if header.base_sequence == expected:
        return None
    details = {
        "producer_id": header.producer_id,
        "base_sequence": header.base_sequence,
        "expected_sequence": expected,
    }
    if header.base_sequence > expected:
        return SequenceGap(
            f"producer {header.producer_id} sent sequence {header.base_sequence}, expected is {expected}",
            details,
        )
    for batch in batches:
        if (batch.base_sequence, batch.record_count) == (header.base_sequence, header.record_count):
            return Duplicate(batch)
    if header.base_sequence + header.record_count > batches[0].base_sequence:
        # Neither new nor any batch that was sent: calling it a duplicate would lose what was never written.
        return InvalidBatch(
            f"producer {header.producer_id} sent sequences {header.base_sequence} to "
            f"{header.base_sequence + header.record_count - 1}, which are no batch that it sent before",
            details,
        )
    return DuplicateSequence(
        f"producer {header.producer_id} repeats sequence {header.base_sequence}, whose offset is forgotten",
        details,
    )
