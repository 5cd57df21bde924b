"""The bytes of every structure: fixed by golden files, read back as they were, and refused when anything is wrong.

`python -m tests.store.test_format` writes golden files that are missing. It never changes one: other bytes are another
version, with a file of its own.
"""

import pathlib
from array import array
from collections.abc import Callable

import pytest

from logd.store import format as fmt
from logd.store.errors import Unreadable
from logd.store.layout import Layout, number_name, parse_number

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
JOURNAL_ID = bytes(range(16))
CLUSTER_ID = bytes(range(16, 32))
TOPIC_ID = bytes(range(32, 48))
CHAIN = bytes(range(64, 96))
DIGEST = bytes(range(96, 128))

END = fmt.LogEnd(7, 3, 1_000, 1_700_000_000_123, CHAIN)
HARD_STATE = fmt.HardState(4, "node-ä", 6)
START = fmt.Start(5, 2, 900, CHAIN, 1_700_000_000_000, TOPIC_ID, 9, b"membership", b"producers", b"state")
ENTRIES: list[fmt.Entry] = [
    fmt.HardStateEntry(1, HARD_STATE),
    fmt.StartEntry(2, START.end, TOPIC_ID, 9, DIGEST, keeps_suffix=True),
    fmt.StartEntry(3, START.end, TOPIC_ID, 9, DIGEST, keeps_suffix=False),
    fmt.BatchEntry(1, 8, 4, fmt.Place(1, 1 << 33, 1_234), CHAIN),
    fmt.RemoveEntry(4),
    fmt.EndEntry(5, 7, 3, CHAIN),
]
ROWS = [
    fmt.TableRow(0, TOPIC_ID, 0, START.end, DIGEST, HARD_STATE, END, fmt.Place(1, 4_096, 500), None),
    fmt.TableRow(1 << 40, TOPIC_ID, 9, START.end, DIGEST, None, END, fmt.NOWHERE, fmt.Floor(12, 4, DIGEST, 6)),
]
SEGMENT_HEADER = fmt.SegmentHeader(7, CLUSTER_ID, TOPIC_ID, 9, 8, END)
INDEX = fmt.IndexFile(
    7,
    1,
    True,
    END,
    fmt.Place(1, 8_192, 300),
    fmt.IndexEntries(array("Q", [0, 500]), array("Q", [1, 5]), array("Q", [4_096, 8_000]), array("q", [-5, 1 << 40])),
    (6, b"a table"),
)
NODE = fmt.NodeFile("node-1", CLUSTER_ID, JOURNAL_ID)


def make_round() -> bytes:
    directory = [fmt.encode_entry(entry) for entry in ENTRIES]
    batches = b"b" * 1_234
    length = fmt.round_bytes(sum(map(len, directory)), len(batches))
    head, digest = fmt.encode_round_head(JOURNAL_ID, 3, 8_192, 17, length, DIGEST, directory)
    padding = length - 2 * len(head) - fmt.DIGEST_BYTES - len(batches) - fmt.TRAILER.size
    return b"".join((head, digest, batches, bytes(padding), head, fmt.encode_trailer(length, head, digest)))


def make_table() -> bytes:
    return fmt.encode_table(JOURNAL_ID, 3, 2, 16, DIGEST, [fmt.encode_row(row) for row in ROWS])


def make_start() -> bytes:
    return fmt.encode_start(CLUSTER_ID, 7, START)[0]


def make_segment_header() -> bytes:
    return fmt.encode_segment_header(SEGMENT_HEADER)


def make_index() -> bytes:
    return fmt.encode_index(INDEX)


def make_node() -> bytes:
    return fmt.encode_node(NODE)


STRUCTURES: dict[str, Callable[[], bytes]] = {
    "store_round_1": make_round,
    "store_table_1": make_table,
    "store_start_1": make_start,
    "store_segment_header_1": make_segment_header,
    "store_index_1": make_index,
    "store_node_1": make_node,
}


def read_golden(name: str) -> bytes:
    return bytes.fromhex((GOLDEN / f"{name}.hex").read_text())


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_structure_is_written_as_the_golden_bytes(name: str) -> None:
    assert STRUCTURES[name]().hex() == read_golden(name).hex()


def test_the_golden_round_is_read_by_either_head() -> None:
    data = read_golden("store_round_1")

    first = fmt.decode_round_head(data, JOURNAL_ID, 3, 8_192)
    trailer = fmt.peek_trailer(data, len(data))
    assert trailer is not None
    length, head_bytes, digest = trailer
    begin = len(data) - fmt.TRAILER.size - head_bytes
    second = fmt.decode_round_copy(data[begin : begin + head_bytes], digest, JOURNAL_ID, 3, 8_192 + len(data))

    assert first == second
    assert first.entries == ENTRIES
    assert (first.round_number, first.previous_digest, first.length) == (17, DIGEST, len(data))
    assert length == len(data)
    assert data[first.batches_position - 8_192 :].startswith(b"b" * 1_234)


def test_the_golden_table_is_read_by_either_copy() -> None:
    data = read_golden("store_table_1")
    half = len(data) // 2

    first = fmt.decode_table(data, JOURNAL_ID, 3, 0)
    second = fmt.decode_table(data[half:], JOURNAL_ID, 3, half)

    assert first == second
    assert first.rows == ROWS
    assert (first.first_needed, first.last_round, first.last_digest) == (2, 16, DIGEST)
    assert first.rounds_position == len(data)


def test_the_golden_start_segment_header_index_and_node_are_read() -> None:
    assert fmt.decode_start(read_golden("store_start_1"), CLUSTER_ID, 7)[0] == START
    assert fmt.decode_segment_header(read_golden("store_segment_header_1")) == SEGMENT_HEADER
    assert fmt.decode_index(read_golden("store_index_1"), 7, 1) == INDEX
    assert fmt.decode_node(read_golden("store_node_1")) == NODE


DECODERS: dict[str, Callable[[bytes], object]] = {
    "store_round_1": lambda data: fmt.decode_round_head(data, JOURNAL_ID, 3, 8_192),
    "store_table_1": lambda data: fmt.decode_table(data, JOURNAL_ID, 3, 0),
    "store_start_1": lambda data: fmt.decode_start(data, CLUSTER_ID, 7),
    "store_segment_header_1": fmt.decode_segment_header,
    "store_index_1": lambda data: fmt.decode_index(data, 7, 1),
    "store_node_1": fmt.decode_node,
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_structure_with_any_byte_changed_is_refused_or_read_as_it_was(name: str) -> None:
    data = STRUCTURES[name]()
    whole = DECODERS[name](data)
    refused = 0
    for position in range(min(len(data), 2_000)):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        try:
            assert DECODERS[name](bytes(changed)) == whole, f"byte {position} is covered by nothing"
        except Unreadable:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_structure_that_is_cut_anywhere_is_refused(name: str) -> None:
    data = STRUCTURES[name]()
    needed = len(data.rstrip(b"\x00\n")) if name != "store_table_1" else len(data) // 2
    if name == "store_round_1":
        needed = fmt.peek_head_bytes(data)
    if name == "store_table_1":
        needed = fmt.peek_table_bytes(data)
    for length in range(needed):
        with pytest.raises(Unreadable):
            DECODERS[name](data[:length])


def test_structures_of_another_journal_file_or_position_are_stale() -> None:
    for journal_id, number, position in ((bytes(16), 3, 8_192), (JOURNAL_ID, 4, 8_192), (JOURNAL_ID, 3, 4_096)):
        with pytest.raises(Unreadable):
            fmt.decode_round_head(make_round(), journal_id, number, position)
    for journal_id, number, position in ((bytes(16), 3, 0), (JOURNAL_ID, 4, 0), (JOURNAL_ID, 3, 4_096)):
        with pytest.raises(Unreadable):
            fmt.decode_table(make_table(), journal_id, number, position)
    for cluster_id, group in ((bytes(16), 7), (CLUSTER_ID, 8)):
        with pytest.raises(Unreadable):
            fmt.decode_start(make_start(), cluster_id, group)
    for group, first_index in ((8, 1), (7, 2)):
        with pytest.raises(Unreadable):
            fmt.decode_index(make_index(), group, first_index)


def test_a_table_of_four_thousand_groups_leaves_room_for_rounds() -> None:
    assert fmt.table_bytes(4_000) + (8 << 20) < 64 << 20


def test_rounds_and_tables_end_on_block_boundaries() -> None:
    assert len(make_round()) % fmt.BLOCK_BYTES == 0
    assert len(make_table()) % fmt.BLOCK_BYTES == 0
    assert len(make_table()) == fmt.table_bytes(len(ROWS))


def test_a_vote_for_a_name_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 64 bytes"):
        fmt.encode_entry(fmt.HardStateEntry(1, fmt.HardState(1, "n" * 65, 0)))


def test_a_newer_node_file_is_read_so_that_it_can_be_refused_by_name() -> None:
    assert fmt.decode_node(fmt.encode_node(NODE._replace(format_version=2))).format_version == 2


def test_names_sort_as_their_numbers_do_and_nothing_else_is_a_name() -> None:
    numbers = [0, 9, 10, 1 << 63, (1 << 64) - 1]
    assert sorted(map(number_name, numbers)) == [number_name(number) for number in numbers]
    for number in numbers:
        assert parse_number(number_name(number)) == number
        assert parse_number(number_name(number) + ".log", ".log") == number
    for name in ("1", "0" * 19, "0" * 21, "0" * 19 + "x", "\u0660" * 20, "0" * 20 + ".log.new", "-" + "0" * 19):
        assert parse_number(name) is None
        assert parse_number(name, ".log") is None


def test_paths_are_those_of_the_format() -> None:
    layout = Layout("/d")
    assert layout.journal_file(3) == "/d/journal/00000000000000000003"
    assert layout.segment(7, 12) == "/d/groups/00000000000000000007/00000000000000000012.log"
    assert layout.index(7, 12) == "/d/groups/00000000000000000007/00000000000000000012.index"
    assert layout.start(7, 0) == "/d/groups/00000000000000000007/00000000000000000000.start"


if __name__ == "__main__":
    for golden_name, make in STRUCTURES.items():
        golden_path = GOLDEN / f"{golden_name}.hex"
        if not golden_path.exists():
            text = make().hex()
            golden_path.write_text("\n".join(text[at : at + 96] for at in range(0, len(text), 96)) + "\n")
