"""Frames: cutting a stream, however it arrives, and allocating nothing for bytes that did not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import ProtocolError
from wire.frame import BODY_BYTES_MIN, FrameReader, frame

bodies = st.lists(st.binary(min_size=BODY_BYTES_MIN, max_size=50), max_size=10)


@given(bodies=bodies, cuts=st.lists(st.integers(1, 30), min_size=1))
def test_bodies_come_out_as_they_went_in_however_the_stream_is_cut(bodies: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(frame, bodies))
    reader = FrameReader(50)
    seen = []
    position = number = 0
    while position < len(stream):
        step = cuts[number % len(cuts)]
        reader.feed(stream[position : position + step])
        seen += [bytes(body) for body in reader.bodies()]
        position, number = position + step, number + 1
    assert seen == bodies
    assert reader.buffered_bytes == 0


def test_a_half_frame_waits() -> None:
    reader = FrameReader(100)
    whole = frame(b"four and more")
    reader.feed(whole[:-1])
    assert list(reader.bodies()) == []
    assert reader.buffered_bytes == len(whole) - 1
    reader.feed(whole[-1:])
    assert [bytes(body) for body in reader.bodies()] == [b"four and more"]


@pytest.mark.parametrize("length", [0, 1, BODY_BYTES_MIN - 1, 101, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_length_out_of_bounds_is_refused_before_its_bytes_arrive(length: int) -> None:
    reader = FrameReader(100)
    reader.feed(length.to_bytes(4, "big"))
    with pytest.raises(ProtocolError) as caught:
        list(reader.bodies())
    assert caught.value.details == {"frame_bytes": length, "frame_bytes_max": 100}


@pytest.mark.parametrize("length", [BODY_BYTES_MIN, 100])
def test_the_bounds_themselves_are_allowed(length: int) -> None:
    reader = FrameReader(100)
    reader.feed(frame(bytes(length)))
    assert [len(body) for body in reader.bodies()] == [length]


def test_a_bound_that_grows_holds_for_the_next_frame() -> None:
    reader = FrameReader(10)
    reader.feed(frame(bytes(5)) + frame(bytes(50)))
    seen = []
    for body in reader.bodies():
        seen.append(len(body))
        reader.frame_bytes_max = 100
    assert seen == [5, 50]


def test_a_reader_that_was_left_goes_on_where_it_stopped() -> None:
    reader = FrameReader(100)
    reader.feed(frame(b"first") + frame(b"second"))
    assert bytes(next(reader.bodies())) == b"first"
    reader.feed(frame(b"third"))
    assert [bytes(body) for body in reader.bodies()] == [b"second", b"third"]
