"""The drawings of structures are made from the structures; this is what that rests on."""

import struct

import pytest

from tests.docs.pages import tables


def test_offsets_and_sizes_are_those_of_the_structure() -> None:
    parts = tables().parts_of(">8sHxxIq")

    assert [tuple(part) for part in parts] == [
        (0, 8, "bytes"),
        (8, 2, "u16"),
        (10, 1, ""),
        (11, 1, ""),
        (12, 4, "u32"),
        (16, 8, "i64"),
    ]


def test_a_drawing_names_every_field_and_the_end() -> None:
    drawn = tables().struct_table(struct.Struct(">IQ"), [("length", "of what follows"), ("index", "the batch's")])

    assert "| 0 | 4 | u32 | `length` | of what follows |" in drawn
    assert "| 12 |  |  |  | end |" in drawn


def test_a_drawing_with_a_field_too_few_or_too_many_is_refused() -> None:
    for fields in ([("length", "")], [("length", ""), ("index", ""), ("term", "")]):
        with pytest.raises(ValueError, match="has 2 fields"):
            tables().struct_table(struct.Struct(">IQ"), fields)


def test_a_layout_that_is_not_big_endian_is_refused() -> None:
    with pytest.raises(ValueError, match="big-endian"):
        tables().parts_of("<I")
