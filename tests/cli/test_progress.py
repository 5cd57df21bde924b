"""The moving line tells what is counted anyway."""

import pytest

from logd.cli.produce import Ranges
from logd.cli.progress import Rates, Sample, line
from wire.errors import LogdError, OutcomeUnknown
from wire.producer import Acknowledgement, Receipt
from wire.types import Durability


def sample(records: int, moved_bytes: int = 0) -> Sample:
    return Sample(records, moved_bytes, 5)


def test_rates_are_over_a_sliding_window() -> None:
    rates = Rates()
    assert rates.add(0.0, sample(0)) == (0.0, 0.0)
    assert rates.add(1.0, sample(100, 1000)) == (100.0, 1000.0)
    for second in range(2, 40):
        last = rates.add(float(second), sample(100, 1000))
    assert last == (0.0, 0.0)


@pytest.mark.parametrize(("lag", "ending"), [(1234, "  lag 1,234"), (None, "2.0 kB/s")])
def test_the_line_has_rates_and_lag(lag: int | None, ending: str) -> None:
    text = line(Sample(1_000_000, 5, lag), 1234.5, 2000.0)
    assert text.startswith("1,000,000 records  1,234 records/s  2.0 kB/s")
    assert text.endswith(ending)


def test_a_line_that_stands_still_says_why() -> None:
    assert line(sample(7), 0.0, 0.0).endswith("lag 5  waiting for the node")
    assert "waiting" not in line(Sample(7, 0, 0), 0.0, 0.0)


# --- where records went -----------------------------------------------------------------------------------------------


class Known(Acknowledgement):
    """An acknowledgement that says what it is told to, and counts how often it is asked."""

    __slots__ = ("asked", "receipt")

    def __init__(self, receipt: Receipt | LogdError) -> None:
        self.receipt = receipt
        self.asked = 0

    def receipt_nowait(self) -> Receipt | None:
        self.asked += 1
        if isinstance(self.receipt, LogdError):
            raise self.receipt
        return self.receipt


def receipt(partition: int, offset: int) -> Known:
    return Known(Receipt("t", partition, offset, 1, 1, b"", Durability.QUORUM_FSYNC, ("n",), duplicate=False))


def ranges_of(acknowledgements: list[Known]) -> dict[int, tuple[int, int, int]]:
    ranges = Ranges()
    ranges.add_all(acknowledgements)
    return {
        number: (known.base_offset, known.next_offset, known.records) for number, known in ranges.partitions.items()
    }


def test_a_row_of_one_partition_is_told_from_its_ends() -> None:
    row = [receipt(0, 100 + number) for number in range(10_000)]
    assert ranges_of(row) == {0: (100, 10_100, 10_000)}
    assert sum(each.asked for each in row) == 2


def test_rows_of_several_partitions_are_told_apart() -> None:
    row = [receipt(1, number) for number in range(1000)] + [receipt(0, 7 + number) for number in range(500)]
    row += [receipt(1, 1000 + number) for number in range(10)]
    assert ranges_of(row) == {1: (0, 1010, 1010), 0: (7, 507, 500)}
    assert sum(each.asked for each in row) < 200


def test_records_that_alternate_are_counted_one_by_one() -> None:
    assert ranges_of([receipt(number % 2, number // 2) for number in range(20)]) == {0: (0, 10, 10), 1: (0, 10, 10)}


def test_what_failed_has_no_place() -> None:
    assert ranges_of([receipt(0, 5), Known(OutcomeUnknown("x")), receipt(0, 6)]) == {0: (5, 7, 2)}


def test_without_acknowledgements_no_place_is_known() -> None:
    row = [Known(Receipt("t", 0, -1, 0, 0, b"", Durability.NONE, (), duplicate=False)) for _ in range(1000)]
    assert ranges_of(row) == {}
    assert sum(each.asked for each in row) == 2
