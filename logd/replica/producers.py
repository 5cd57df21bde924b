"""What a partition remembers of its idempotent producers.

For: the driver, which asks before it proposes. Must not know: who sent a batch, or whether it is on any disk. The one
idea: the table is a function of the committed log: each producer with its last five batches. What is appended beyond
the commit is an overlay, through which questions look, and which a truncation takes back; so replicas that committed
the same batches hold the same table, whatever else they appended in between.
"""

from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final, NamedTuple

import msgpack

from wire.errors import DuplicateSequence, Fenced, InvalidBatch, LogdError, Overloaded, SequenceGap, UnknownProducer
from wire.record import BatchHeader

# Clients keep at most five batches in flight per partition, so a retry is always among the last five.
BATCHES_REMEMBERED: Final = 5
TABLE_VERSION: Final = 1
_BASE_SEQUENCE: Final = attrgetter("base_sequence")


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
    """What is committed of one producer id in one partition."""

    epoch: int
    last_append_timestamp: int
    # Invariant: in the order of the log, sequences contiguous; at least one, at most five.
    batches: list[Remembered] = field(default_factory=list)


@dataclass(slots=True)
class _Uncommitted:
    """What is appended beyond the commit by one producer id, as far as it counts: of its newest epoch."""

    epoch: int
    last_append_timestamp: int
    # False: these batches are the producer's first, or the first since it expired or changed its epoch; what is
    # committed of it is over once the first of them is committed.
    continues_committed: bool
    # Invariant: in the order of the log, sequences contiguous, never empty.
    batches: deque[Remembered] = field(default_factory=deque)


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
        # The committed table, in two parts: `_fading`, what the stamps of the overlay let expire once they are
        # committed, and `_producers`, the others.
        # Invariant: `_fading` followed by `_producers` is ordered by last_append_timestamp, oldest first, and is a
        # function of the committed log; `_fading` is empty where the overlay is.
        self._fading: OrderedDict[int, _Producer] = OrderedDict()
        self._producers: OrderedDict[int, _Producer] = OrderedDict()
        self._newest_timestamp = 0
        # The overlay: all batches appended and not committed, in the order of the log. What it takes from memory, the
        # leader's bound on uncommitted batches bounds.
        self._overlay: deque[BatchHeader] = deque()
        # Its producers that are not expired by its own stamps, ordered by last_append_timestamp.
        self._uncommitted: OrderedDict[int, _Uncommitted] = OrderedDict()
        # Invariant: how many of `_uncommitted` are not in `_producers`.
        self._uncommitted_only = 0
        # Invariant: at least `_newest_timestamp`, and equal where the overlay is empty.
        self._newest_timestamp_appended = 0

    def __len__(self) -> int:
        """How many producers are committed and not expired."""
        return len(self._fading) + len(self._producers)

    def check(self, header: BatchHeader, append_timestamp: int) -> Duplicate | LogdError | None:
        """Whether a produced batch may be appended: None for yes, its original's place, or the error to answer.

        `append_timestamp`, in ms, is what the batch would be stamped with. What that stamp would let expire counts as
        forgotten already, but stays in the table until a batch with such a stamp is in the log.
        """
        if header.producer_id == 0:
            return None
        expired_before = max(self._newest_timestamp_appended, append_timestamp) - self.expiry_ms
        known = self._uncommitted.get(header.producer_id) or self._producers.get(header.producer_id)
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
        if header.base_sequence == known.batches[-1].next_sequence:
            return None
        return self._check_repeat(header, known)

    def _check_repeat(self, header: BatchHeader, known: _Producer | _Uncommitted) -> Duplicate | LogdError:
        """What a batch is that does not follow its producer's last one."""
        committed: Sequence[Remembered] = ()
        if isinstance(known, _Uncommitted) and known.continues_committed:
            committed = self._committed(header.producer_id).batches
        return _check_repeat(header, committed or known.batches, known.batches)

    def _committed(self, producer_id: int) -> _Producer:
        return self._producers.get(producer_id) or self._fading[producer_id]

    def _is_full(self, expired_before: int) -> bool:
        if len(self._producers) + self._uncommitted_only < self.producers_max:
            return False
        for uncommitted in self._uncommitted.values():
            if uncommitted.last_append_timestamp < expired_before:
                return False
            break
        for producer_id, producer in self._producers.items():
            if producer.last_append_timestamp >= expired_before:
                break
            # Passes over at most those with uncommitted batches whose committed ones are as old as the expiry.
            if producer_id not in self._uncommitted:
                return False
        return True

    # --- What the log tells: each batch in its order ------------------------------------------------------------------

    def append(self, header: BatchHeader) -> None:
        """Note a batch that was appended to the log and is not committed. What is committed stays as it is."""
        self._overlay.append(header)
        timestamp = self._newest_timestamp_appended
        if header.append_timestamp > timestamp:
            timestamp = self._newest_timestamp_appended = header.append_timestamp
            self._fade(timestamp - self.expiry_ms)
        producer_id = header.producer_id
        if producer_id == 0:
            return
        known = self._uncommitted.get(producer_id)
        if known is None:
            committed = self._producers.get(producer_id)
            if committed is None:
                self._uncommitted_only += 1
            if committed is None or header.producer_epoch > committed.epoch:
                known = _Uncommitted(header.producer_epoch, timestamp, continues_committed=False)
            else:
                known = _Uncommitted(committed.epoch, timestamp, continues_committed=True)
            self._uncommitted[producer_id] = known
        else:
            if header.producer_epoch > known.epoch:
                known = _Uncommitted(header.producer_epoch, timestamp, continues_committed=False)
                self._uncommitted[producer_id] = known
            known.last_append_timestamp = timestamp
            self._uncommitted.move_to_end(producer_id)
        known.batches.append(_remembered(header))

    def commit(self, header: BatchHeader) -> None:
        """Note that a batch is committed, and with it all that was appended before it.

        One that was never appended here, as when a start replays what is committed, must follow all that was. Of a
        producer its last five batches are kept; those that the batch's stamp lets expire are forgotten.
        """
        overlay = self._overlay
        if not overlay or overlay[-1].index < header.index:
            self.append(header)
        while overlay and overlay[0].index <= header.index:
            self._commit_oldest(overlay.popleft())

    def truncate(self, first_index: int) -> None:
        """Forget the uncommitted batches from `first_index` on. What is committed stays as it is.

        Costs the length of the overlay, and of what only its stamps let expire.
        """
        overlay = self._overlay
        if not overlay or overlay[-1].index < first_index:
            return
        kept = [header for header in overlay if header.index < first_index]
        self._clear_overlay()
        for header in kept:
            self.append(header)

    def _fade(self, expired_before: int) -> None:
        """Put aside what a stamp in the overlay lets expire."""
        while self._producers:
            producer_id, producer = next(iter(self._producers.items()))
            if producer.last_append_timestamp >= expired_before:
                break
            self._fading[producer_id] = self._producers.pop(producer_id)
            self._uncommitted_only += producer_id in self._uncommitted
        while self._uncommitted:
            producer_id, uncommitted = next(iter(self._uncommitted.items()))
            if uncommitted.last_append_timestamp >= expired_before:
                break
            # Its committed batches, if it has any, are older still, and put aside already.
            del self._uncommitted[producer_id]
            self._uncommitted_only -= 1

    def _commit_oldest(self, header: BatchHeader) -> None:
        """Move a batch that just left the overlay into the committed table."""
        timestamp = self._newest_timestamp
        if header.append_timestamp > timestamp:
            timestamp = self._newest_timestamp = header.append_timestamp
            # What this stamp lets expire was put aside when it was appended, if not before.
            while self._fading:
                expired_id, expired = next(iter(self._fading.items()))
                if expired.last_append_timestamp >= timestamp - self.expiry_ms:
                    break
                del self._fading[expired_id]
        producer_id = header.producer_id
        if producer_id == 0:
            return
        uncommitted = self._uncommitted.get(producer_id)
        producer = self._producers.get(producer_id)
        if producer is not None:
            self._producers.move_to_end(producer_id)
        else:
            producer = self._fading.pop(producer_id, None) or _Producer(header.producer_epoch, timestamp)
            if timestamp < self._newest_timestamp_appended - self.expiry_ms:
                self._fading[producer_id] = producer
            else:
                self._producers[producer_id] = producer
                self._uncommitted_only -= uncommitted is not None
        if header.producer_epoch > producer.epoch:
            producer.epoch = header.producer_epoch
            producer.batches.clear()
        producer.last_append_timestamp = timestamp
        # The oldest uncommitted batch that counts is another one where this one's epoch is replaced further on.
        if uncommitted is not None and uncommitted.batches[0].index == header.index:
            producer.batches.append(uncommitted.batches.popleft())
            uncommitted.continues_committed = True
            if not uncommitted.batches:
                del self._uncommitted[producer_id]
        else:
            producer.batches.append(_remembered(header))
        if len(producer.batches) > BATCHES_REMEMBERED:
            del producer.batches[:-BATCHES_REMEMBERED]

    def _clear_overlay(self) -> None:
        self._overlay.clear()
        self._uncommitted.clear()
        self._uncommitted_only = 0
        self._newest_timestamp_appended = self._newest_timestamp
        while self._fading:
            producer_id, producer = self._fading.popitem()
            self._producers[producer_id] = producer
            self._producers.move_to_end(producer_id, last=False)

    # --- As carried in `start` files and sealed indexes ---------------------------------------------------------------

    def encode(self) -> bytes:
        """The committed table in one canonical form: equal committed logs give equal bytes."""
        packed: bytes = msgpack.packb(
            [
                TABLE_VERSION,
                self._newest_timestamp,
                [
                    [producer_id, known.epoch, known.last_append_timestamp, [list(batch) for batch in known.batches]]
                    for part in (self._fading, self._producers)
                    for producer_id, known in part.items()
                ],
            ]
        )
        return packed

    def restore(self, table: bytes) -> None:
        """Replace the contents by what `encode` gave, with nothing uncommitted; no bytes, no producers.

        Raises ValueError for a table of newer software.
        """
        self._newest_timestamp = 0
        self._clear_overlay()
        self._producers.clear()
        if not table:
            return
        values: list[Any] = msgpack.unpackb(table)
        if values[0] != TABLE_VERSION:
            raise ValueError(f"a producer table of version {values[0]}: this software knows {TABLE_VERSION}")
        _, self._newest_timestamp, producers = values
        self._newest_timestamp_appended = self._newest_timestamp
        for producer_id, epoch, timestamp, batches in producers:
            known = _Producer(epoch, timestamp, [Remembered._make(batch) for batch in batches])
            self._producers[producer_id] = known


def _remembered(header: BatchHeader) -> Remembered:
    return Remembered(header.base_sequence, header.record_count, header.base_offset, header.index)


def _check_repeat(
    header: BatchHeader, older: Sequence[Remembered], newer: Sequence[Remembered]
) -> Duplicate | LogdError:
    """Answer a batch that does not follow: `older` and, behind them or the same, `newer` are what is known."""
    expected = newer[-1].next_sequence
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
    batches = newer if header.base_sequence >= newer[0].base_sequence else older
    place = bisect_left(batches, header.base_sequence, key=_BASE_SEQUENCE)
    if place < len(batches):
        batch = batches[place]
        if (batch.base_sequence, batch.record_count) == (header.base_sequence, header.record_count):
            return Duplicate(batch)
    if header.base_sequence + header.record_count > older[0].base_sequence:
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
