"""Claims about what a partition remembers of its producers."""

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
        self._next_offset = 0

    def check(self, header: BatchHeader) -> Duplicate | LogdError | None:
        return self.table.check(header, self.now_ms)

    def append(self, header: BatchHeader) -> BatchHeader:
        stamped = header._replace(
            index=len(self.headers) + 1, base_offset=self._next_offset, append_timestamp=self.now_ms
        )
        self._next_offset = stamped.next_offset
        self.headers.append(stamped)
        self.table.append(stamped)
        return stamped

    def commit(self) -> None:
        """All that is in the log, as one round's completion does."""
        commit_index = len(self.headers)
        for header in self.headers[self.committed :]:
            self.table.commit(header, commit_index)
        self.committed = commit_index

    def rebuilt(self) -> ProducerTable:
        """The table as a start reads it from the log."""
        table = ProducerTable(self.table.producers_max, self.table.expiry_ms)
        for header in self.headers:
            table.append(header)
            table.commit(header, header.index)
        return table


def test_batches_without_a_producer_are_not_remembered() -> None:
    log = Log()
    for _ in range(3):
        assert log.check(sent(0, 0)) is None
        log.append(sent(0, 0))
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
    assert len(log.table) == 1
    assert log.check(sent(1, 2)) is None


def test_checking_changes_nothing() -> None:
    log = Log(producers_max=2)
    log.append(sent(1, 0))
    log.append(sent(2, 0))
    before = log.table.encode()
    log.now_ms = 10 * EXPIRY_MS
    for header in (sent(1, 0), sent(1, 1), sent(3, 0), sent(2, 5), sent(2, 0, epoch=1)):
        log.check(header)
    assert log.table.encode() == before


def test_no_bytes_are_an_empty_table() -> None:
    table = Log().table
    table.append(sent(7, 0))
    table.restore(b"")
    assert len(table) == 0


def test_a_table_of_newer_software_is_refused() -> None:
    with pytest.raises(ValueError, match="version 2"):
        Log().table.restore(msgpack.packb([2, 0, []]))


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
                assert table.encode() == log.table.encode()
                log.table = table
        assert len(log.table) <= 3
    log.commit()
    assert log.rebuilt().encode() == log.table.encode()
