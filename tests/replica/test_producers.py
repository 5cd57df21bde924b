"""Claims about what a partition remembers of its producers."""

import random

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logd.replica.producers import BATCHES_REMEMBERED, Duplicate, ProducerTable, Remembered
from tests.replica.harness import batch_of
from wire.errors import (
    DuplicateSequence,
    Fenced,
    InvalidBatch,
    LogdError,
    Overloaded,
    SequenceGap,
    UnknownProducer,
)
from wire.record import BatchHeader, check_produced

EXPIRY_MS = 1_000


def sent(producer_id: int, base_sequence: int, records: int = 1, epoch: int = 0) -> BatchHeader:
    """What a producer sends."""
    return check_produced(batch_of(records, producer_id=producer_id, producer_epoch=epoch, base_sequence=base_sequence))


class Log:
    """A table, and the headers that went into it."""

    def __init__(self, producers_max: int = 10) -> None:
        self.table = ProducerTable(producers_max, EXPIRY_MS)
        self.now_ms = 0
        self.headers: list[BatchHeader] = []
        self.committed = 0

    def check(self, header: BatchHeader) -> Duplicate | LogdError | None:
        return self.table.check(header, self.now_ms)

    def stamped(self, header: BatchHeader) -> BatchHeader:
        """The header as it would stand next in the log."""
        offset = self.headers[-1].next_offset if self.headers else 0
        return header._replace(index=len(self.headers) + 1, base_offset=offset, append_timestamp=self.now_ms)

    def append(self, header: BatchHeader) -> BatchHeader:
        stamped = self.stamped(header)
        self.headers.append(stamped)
        self.table.append(stamped)
        return stamped

    def commit(self, count: int | None = None) -> None:
        """So many more batches; or all that is in the log, as one round's completion does."""
        commit_index = len(self.headers) if count is None else min(self.committed + count, len(self.headers))
        for header in self.headers[self.committed : commit_index]:
            self.table.commit(header)
        self.committed = commit_index

    def truncate(self, first_index: int) -> None:
        assert first_index > self.committed
        del self.headers[first_index - 1 :]
        self.table.truncate(first_index)

    def rebuilt(self) -> ProducerTable:
        """The table as a start reads it from what is committed."""
        table = ProducerTable(self.table.producers_max, self.table.expiry_ms)
        for header in self.headers[: self.committed]:
            table.commit(header)
        return table


class Naive:
    """The rules of the table, followed batch by batch over a whole log; what is uncommitted is never trimmed."""

    def __init__(self, log: Log) -> None:
        self.producers_max = log.table.producers_max
        self.newest_timestamp = 0
        # Of each id: epoch, last timestamp, batches.
        self.producers: dict[int, tuple[int, int, list[Remembered]]] = {}
        for header in log.headers[: log.committed]:
            self._add(header, BATCHES_REMEMBERED)
        self.encoded = msgpack.packb(
            [1, self.newest_timestamp, [[known, *values] for known, values in self.producers.items()]]
        )
        for header in log.headers[log.committed :]:
            self._add(header, None)

    def _add(self, header: BatchHeader, remembered_max: int | None) -> None:
        self.newest_timestamp = header.append_timestamp
        self.producers = self._alive(header.append_timestamp)
        if header.producer_id == 0:
            return
        epoch, _, batches = self.producers.pop(header.producer_id, (-1, 0, []))
        if header.producer_epoch > epoch:
            epoch, batches = header.producer_epoch, []
        batch = Remembered(header.base_sequence, header.record_count, header.base_offset, header.index)
        batches = [*batches, batch]
        if remembered_max is not None:
            batches = batches[-remembered_max:]
        self.producers[header.producer_id] = (epoch, header.append_timestamp, batches)

    def _alive(self, now_ms: int) -> dict[int, tuple[int, int, list[Remembered]]]:
        return {known: values for known, values in self.producers.items() if values[1] >= now_ms - EXPIRY_MS}

    def check(self, header: BatchHeader, now_ms: int) -> Duplicate | type[LogdError] | None:
        alive = self._alive(max(now_ms, self.newest_timestamp))
        if header.producer_id == 0:
            return None
        if header.producer_id not in alive and len(alive) >= self.producers_max:
            return Overloaded
        epoch, _, batches = alive.get(header.producer_id, (-1, 0, []))
        if header.producer_epoch < epoch:
            return Fenced
        if header.producer_epoch > epoch:
            return UnknownProducer if header.base_sequence else None
        expected = batches[-1].next_sequence
        if header.base_sequence == expected:
            return None
        if header.base_sequence > expected:
            return SequenceGap
        for batch in batches:
            if (batch.base_sequence, batch.record_count) == (header.base_sequence, header.record_count):
                return Duplicate(batch)
        forgotten = header.base_sequence + header.record_count <= batches[0].base_sequence
        return DuplicateSequence if forgotten else InvalidBatch


def test_batches_without_a_producer_are_not_remembered() -> None:
    log = Log()
    for _ in range(3):
        assert log.check(sent(0, 0)) is None
        log.append(sent(0, 0))
    log.commit()
    assert len(log.table) == 0


def test_sequences_are_counted_in_records() -> None:
    log = Log()
    log.append(sent(7, 0, records=10))
    assert log.check(sent(7, 10)) is None
    gap = log.check(sent(7, 11))
    assert isinstance(gap, SequenceGap)
    assert gap.details == {"producer_id": 7, "base_sequence": 11, "expected_sequence": 10}


def test_a_repeat_is_known_by_sequence_and_length() -> None:
    log = Log()
    log.append(sent(7, 0, records=3))
    log.append(sent(7, 3, records=2))
    assert log.check(sent(7, 3, records=2)) == Duplicate(Remembered(3, 2, 3, 2))
    assert log.check(sent(7, 0, records=3)) == Duplicate(Remembered(0, 3, 0, 1))


@pytest.mark.parametrize(("base_sequence", "records"), [(3, 3), (0, 5), (4, 1), (3, 1), (1, 1)])
def test_what_overlaps_known_batches_and_is_none_of_them_is_no_duplicate(base_sequence: int, records: int) -> None:
    # To answer "it is there already" would lose the records that are not.
    log = Log()
    log.append(sent(7, 0, records=3))
    log.append(sent(7, 3, records=2))
    assert isinstance(log.check(sent(7, base_sequence, records=records)), InvalidBatch)


def test_the_last_five_committed_batches_are_remembered_and_no_more() -> None:
    log = Log()
    for sequence in range(BATCHES_REMEMBERED + 2):
        log.append(sent(7, sequence))
    log.commit()
    assert isinstance(log.check(sent(7, 1)), DuplicateSequence)
    assert log.check(sent(7, 2)) == Duplicate(Remembered(2, 1, 2, 3))


def test_nothing_is_forgotten_before_it_is_committed() -> None:
    log = Log()
    for sequence in range(50):
        log.append(sent(7, sequence))
    assert log.check(sent(7, 0)) == Duplicate(Remembered(0, 1, 0, 1))


def test_a_producer_that_nobody_knows_starts_at_zero() -> None:
    log = Log()
    assert isinstance(log.check(sent(7, 1)), UnknownProducer)
    assert log.check(sent(7, 0)) is None


def test_a_newer_epoch_starts_again_and_fences_the_older() -> None:
    log = Log()
    log.append(sent(7, 0, epoch=1))
    assert isinstance(log.check(sent(7, 1, epoch=2)), UnknownProducer)
    assert log.check(sent(7, 0, epoch=2)) is None
    assert log.check(sent(7, 1, epoch=1)) is None
    log.append(sent(7, 0, epoch=2))
    fenced = log.check(sent(7, 1, epoch=1))
    assert isinstance(fenced, Fenced)
    assert fenced.details == {"producer_id": 7, "producer_epoch": 2}


def test_a_full_table_refuses_new_producers_and_serves_known_ones() -> None:
    log = Log(producers_max=2)
    log.append(sent(1, 0))
    log.append(sent(2, 0))
    assert isinstance(log.check(sent(3, 0)), Overloaded)
    assert log.check(sent(1, 1)) is None


def test_a_full_table_makes_room_by_itself_when_a_producer_expires() -> None:
    # Although nothing was appended since, which is what takes the expired ones out.
    log = Log(producers_max=2)
    log.append(sent(1, 0))
    log.now_ms = 600
    log.append(sent(2, 0))
    log.now_ms = EXPIRY_MS
    assert isinstance(log.check(sent(3, 0)), Overloaded)
    log.now_ms = EXPIRY_MS + 1
    assert log.check(sent(3, 0)) is None
    log.append(sent(3, 0))
    log.commit()
    assert len(log.table) == 2


def test_an_expired_producer_is_unknown_even_before_anything_else_is_appended() -> None:
    log = Log()
    log.append(sent(7, 0))
    log.now_ms = EXPIRY_MS
    assert log.check(sent(7, 1)) is None
    log.now_ms = EXPIRY_MS + 1
    assert isinstance(log.check(sent(7, 1)), UnknownProducer)
    assert log.check(sent(7, 0)) is None


def test_expiry_counts_from_the_last_batch() -> None:
    log = Log()
    log.append(sent(1, 0))
    log.append(sent(2, 0))
    log.now_ms = 900
    log.append(sent(1, 1))
    log.now_ms = 1_500
    log.append(sent(0, 0))
    log.commit()
    assert len(log.table) == 1
    assert log.check(sent(1, 2)) is None


def test_checking_changes_nothing() -> None:
    log = Log(producers_max=2)
    log.append(sent(1, 0))
    log.commit()
    log.append(sent(2, 0))
    before = log.table.encode()
    log.now_ms = 10 * EXPIRY_MS
    for header in (sent(1, 0), sent(1, 1), sent(3, 0), sent(2, 5), sent(2, 0, epoch=1)):
        log.check(header)
    assert log.table.encode() == before


def test_no_bytes_are_an_empty_table() -> None:
    log = Log()
    log.append(sent(7, 0))
    log.commit()
    log.append(sent(8, 0))
    log.table.restore(b"")
    assert len(log.table) == 0
    assert isinstance(log.check(sent(7, 1)), UnknownProducer)
    assert isinstance(log.check(sent(8, 1)), UnknownProducer)


def test_a_table_of_newer_software_is_refused() -> None:
    with pytest.raises(ValueError, match="version 2"):
        Log().table.restore(msgpack.packb([2, 0, []]))


# --- Committed, and not yet -------------------------------------------------------------------------------------------


def test_what_is_only_appended_is_not_in_the_encoded_table() -> None:
    log = Log()
    log.append(sent(7, 0))
    log.commit()
    before = log.table.encode()
    log.now_ms = 2 * EXPIRY_MS
    log.append(sent(8, 0))
    log.append(sent(7, 0, epoch=1))
    assert log.table.encode() == before


def test_a_truncated_batch_may_be_sent_again() -> None:
    log = Log()
    log.append(sent(7, 0))
    log.commit()
    log.append(sent(7, 1))
    log.append(sent(7, 2))
    log.truncate(3)
    assert log.check(sent(7, 1)) == Duplicate(Remembered(1, 1, 1, 2))
    assert log.check(sent(7, 2)) is None
    log.truncate(2)
    assert log.check(sent(7, 1)) is None


def test_a_truncated_epoch_gives_the_older_one_its_memory_back() -> None:
    log = Log()
    log.append(sent(7, 0))
    log.commit()
    log.append(sent(7, 1))
    log.append(sent(7, 0, epoch=1))
    assert isinstance(log.check(sent(7, 2)), Fenced)
    log.truncate(3)
    assert log.check(sent(7, 0)) == Duplicate(Remembered(0, 1, 0, 1))
    assert log.check(sent(7, 1)) == Duplicate(Remembered(1, 1, 1, 2))
    assert log.check(sent(7, 2)) is None


def test_batches_of_a_replaced_epoch_commit_behind_the_newer_one() -> None:
    log = Log()
    log.append(sent(7, 0))
    log.append(sent(7, 0, epoch=1))
    log.commit(1)
    assert msgpack.unpackb(log.table.encode()) == [1, 0, [[7, 0, 0, [[0, 1, 0, 1]]]]]
    assert log.check(sent(7, 0, epoch=1)) == Duplicate(Remembered(0, 1, 1, 2))
    log.commit(1)
    assert msgpack.unpackb(log.table.encode()) == [1, 0, [[7, 1, 0, [[0, 1, 1, 2]]]]]


def test_a_truncated_stamp_expires_nobody() -> None:
    log = Log()
    log.append(sent(7, 0))
    log.commit()
    log.now_ms = EXPIRY_MS + 1
    log.append(sent(0, 0))
    log.now_ms = EXPIRY_MS
    assert isinstance(log.check(sent(7, 1)), UnknownProducer)
    log.truncate(2)
    assert log.check(sent(7, 1)) is None


def test_a_producer_that_expires_and_returns_in_the_overlay_has_no_older_batches() -> None:
    log = Log()
    log.append(sent(7, 0, records=2))
    log.commit()
    log.now_ms = EXPIRY_MS + 1
    log.append(sent(7, 0))
    assert isinstance(log.check(sent(7, 0, records=2)), InvalidBatch)
    log.commit()
    assert log.table.encode() == msgpack.packb([1, EXPIRY_MS + 1, [[7, 0, EXPIRY_MS + 1, [[0, 1, 2, 2]]]]])


def test_new_producers_in_the_overlay_count_until_they_are_truncated() -> None:
    log = Log(producers_max=2)
    log.append(sent(1, 0))
    log.commit()
    log.append(sent(2, 0))
    assert isinstance(log.check(sent(3, 0)), Overloaded)
    log.truncate(2)
    assert log.check(sent(3, 0)) is None


def test_a_commit_takes_with_it_what_was_appended_before() -> None:
    log = Log()
    log.append(sent(0, 0))
    last = log.append(sent(7, 0))
    log.table.commit(last)
    log.committed = 2
    assert log.table.encode() == log.rebuilt().encode()
    log.table.truncate(1)
    assert isinstance(log.check(sent(7, 0)), Duplicate)


def agrees(log: Log, header: BatchHeader) -> Duplicate | LogdError | None:
    """What the table says of a batch, having found that the naive rules say the same."""
    found = log.check(header)
    expected = Naive(log).check(header, log.now_ms)
    assert (type(found) if isinstance(found, LogdError) else found) == expected
    return found


def send_any(log: Log, chance: random.Random, sequences: dict[int, tuple[int, int]]) -> None:
    """Ask for batches that are not next, and append one that is, as a leader does."""
    producer_id = chance.randint(0, 6)
    epoch, sequence = sequences.get(producer_id, (0, 0))
    for _ in range(4):
        odd = sent(producer_id, max(0, sequence - chance.randint(-2, 12)), chance.randint(1, 3), epoch)
        agrees(log, odd._replace(producer_epoch=max(0, epoch - chance.randint(-1, 1))))
    if chance.random() < 0.1 or producer_id == 0:
        epoch, sequence = epoch + (producer_id > 0), 0
    header = sent(producer_id, sequence, chance.randint(1, 3), epoch)
    verdict = agrees(log, header)
    if isinstance(verdict, UnknownProducer | SequenceGap):  # forgotten, or truncated
        header = sent(producer_id, 0, 1, epoch + 1)
        verdict = agrees(log, header)
    if verdict is None:
        log.append(header)
        sequences[producer_id] = (header.producer_epoch, header.base_sequence + header.record_count)
    elif not isinstance(verdict, Overloaded):
        sequences[producer_id] = (epoch + 1, 0)


@pytest.mark.parametrize("seed", range(60))
def test_the_table_is_what_the_naive_rules_make_of_both_parts_of_the_log(seed: int) -> None:
    chance = random.Random(seed)
    log = Log(producers_max=chance.choice((2, 3, 5)))
    sequences: dict[int, tuple[int, int]] = {}
    for _ in range(200):
        match chance.choices(("send", "pass", "commit", "replay", "truncate", "restore"), (60, 8, 12, 4, 8, 3))[0]:
            case "pass":
                log.now_ms += chance.choice((1, 50, 400, EXPIRY_MS, EXPIRY_MS + 1))
            case "commit":
                log.commit(chance.randint(1, 8))
            case "replay" if log.committed == len(log.headers):
                header = sent(chance.randint(0, 2), 0, epoch=100 + len(log.headers))
                if agrees(log, header) is None:
                    log.headers.append(log.stamped(header))  # and is committed without ever being appended here
                    log.commit()
            case "truncate":
                log.truncate(chance.randint(log.committed + 1, len(log.headers) + 1))
                # A clock that is behind, as another leader's may be; never behind the log.
                log.now_ms = log.headers[-1].append_timestamp if log.headers else 0
            case "restore":
                encoded = log.table.encode()
                log.table.restore(encoded)
                assert log.table.encode() == encoded
                for header in log.headers[log.committed :]:
                    log.table.append(header)
            case _:
                send_any(log, chance, sequences)
        assert log.table.encode() == Naive(log).encoded
    log.commit()
    assert log.table.encode() == log.rebuilt().encode() == Naive(log).encoded
    assert len(log.headers) > 20


operations = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 4), st.integers(1, 3), st.integers(0, 1)),
        st.tuples(st.just("pass"), st.integers(1, 700), st.just(0), st.just(0)),
        st.tuples(st.sampled_from(["commit", "restore"]), st.just(0), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@given(operations)
def test_the_table_is_a_function_of_the_log(steps: list[tuple[str, int, int, int]]) -> None:
    """A table that is carried as bytes in between, and one that is built from headers; producers obey the rules."""
    log = Log(producers_max=3)
    sequences: dict[int, tuple[int, int]] = {}
    for step in steps:
        match step:
            case ("send", producer_id, records, epoch_step):
                epoch, sequence = sequences.get(producer_id, (0, 0))
                if epoch_step and producer_id:
                    epoch, sequence = epoch + 1, 0
                header = sent(producer_id, sequence if producer_id else 0, records, epoch)
                verdict = log.check(header)
                if isinstance(verdict, UnknownProducer):
                    epoch, sequence = epoch + 1, 0
                    header = sent(producer_id, 0, records, epoch)
                    verdict = log.check(header)
                if verdict is None:
                    log.append(header)
                    sequences[producer_id] = (epoch, sequence + records)
                else:
                    assert isinstance(verdict, Overloaded)
            case ("pass", milliseconds, _, _):
                log.now_ms += milliseconds
            case ("commit", *_):
                log.commit()
            case _:
                table = ProducerTable(3, EXPIRY_MS)
                table.restore(log.table.encode())
                for header in log.headers[log.committed :]:
                    table.append(header)
                assert table.encode() == log.table.encode()
                log.table = table
        assert len(log.table) <= 3
    log.commit()
    assert log.rebuilt().encode() == log.table.encode()
