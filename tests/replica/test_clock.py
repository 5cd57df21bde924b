"""Claims about the time that leaders stamp."""

from hypothesis import given
from hypothesis import strategies as st

from logd.replica.clock import JUMP_MS_MAX, AppendClock, ClockReading


def test_the_first_reading_is_believed() -> None:
    clock = AppendClock.started(ClockReading(1_000_000, 50))
    assert clock.now_ms(ClockReading(1_000_000, 50)) == 1_000_000


def test_a_slewed_clock_is_followed_both_ways() -> None:
    clock = AppendClock.started(ClockReading(1_000_000, 0))
    assert clock.now_ms(ClockReading(1_010_005, 10_000)) == 1_010_005
    assert clock.now_ms(ClockReading(1_019_990, 20_000)) == 1_019_990
    assert clock.jumps == 0


def test_a_jump_of_the_largest_believed_size_is_followed_and_one_more_is_not() -> None:
    clock = AppendClock.started(ClockReading(0, 0))
    assert clock.now_ms(ClockReading(JUMP_MS_MAX, 0)) == JUMP_MS_MAX
    assert clock.now_ms(ClockReading(-1, 0)) == JUMP_MS_MAX
    assert clock.jumps == 1


def test_after_a_jump_time_goes_on_as_if_there_had_been_none() -> None:
    clock = AppendClock.started(ClockReading(1_000_000, 0))
    hour = 3_600_000
    assert clock.now_ms(ClockReading(1_000_000 + hour, 1_000)) == 1_001_000
    assert clock.now_ms(ClockReading(1_000_000 - hour, 2_000)) == 1_002_000


def test_a_jump_is_counted_once_until_the_clock_is_back() -> None:
    clock = AppendClock.started(ClockReading(0, 0))
    for monotonic_ms in range(3):
        clock.now_ms(ClockReading(10_000_000, monotonic_ms))
    assert clock.jumps == 1
    assert clock.now_ms(ClockReading(10, 10)) == 10
    clock.now_ms(ClockReading(-10_000_000, 11))
    assert clock.jumps == 2


@given(st.lists(st.tuples(st.integers(-(10**13), 10**13), st.integers(0, 10**6)), min_size=1, max_size=20))
def test_a_stamp_is_never_further_from_the_last_than_time_passed_and_a_believed_step(
    steps: list[tuple[int, int]],
) -> None:
    clock = AppendClock.started(ClockReading(0, 0))
    monotonic_ms, last = 0, 0
    for wall_ms, passed_ms in steps:
        monotonic_ms += passed_ms
        stamp = clock.now_ms(ClockReading(wall_ms, monotonic_ms))
        assert abs(stamp - last - passed_ms) <= JUMP_MS_MAX
        last = stamp
