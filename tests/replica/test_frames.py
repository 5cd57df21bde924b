"""Claims about what nodes send each other: it comes back as it was, and what was damaged on the way is refused.

`python -m tests.replica.test_frames` writes the golden file if it is missing. It never changes it: other bytes are
another feature level.
"""

import itertools
import pathlib
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logd.raft.types import (
    CAMPAIGN_TRANSFER,
    ChangeKind,
    ChangeStep,
    Configuration,
    ConfigurationChange,
    Entry,
    EntryKind,
    Message,
    MessageType,
)
from logd.replica.frames import Beat, PeerFrame, decode_frame, encode_frame, entry_of, entry_of_stamped, snapshot_of
from logd.replica.membership import change_fields, encode_membership
from logd.store.format import Start
from tests.replica.harness import TOPIC_ID, batch_of
from wire.errors import CorruptBatch
from wire.record import HEADER_BYTES, ControlKind, Stamp, StampedBatch, control_batch, stamp

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "peer_frame_2.hex"
CHAIN = bytes(range(32))
M = MessageType
CHANGE = ConfigurationChange(
    (ChangeStep(ChangeKind.ADD_VOTER, "n4"), ChangeStep(ChangeKind.REMOVE, "n3")), admission=b"word"
)
CONFIGURATION = Configuration(frozenset(("n1", "n2")), frozenset(("n1", "n3")), frozenset(("n4",)), frozenset(("n3",)))
START = Start(6, 2, 40, CHAIN, 1_700_000_000_000, TOPIC_ID, 1, encode_membership(CONFIGURATION), b"producers", b"state")


def run(index: int, *batches: bytes, term: int = 3, chain: bytes = CHAIN) -> tuple[Entry, ...]:
    """Entries behind `index`, stamped one behind the other."""
    entries: list[Entry] = []
    offset = 10 * index
    for batch in batches:
        index += 1
        stamped = stamp(batch, Stamp(offset, index, term, 1_700_000_000_000 + index, chain))
        entries.append(entry_of_stamped(stamped))
        offset, chain = stamped.header.next_offset, stamped.header.chain
    return tuple(entries)


ENTRIES = run(
    6,
    control_batch(ControlKind.NO_OP, timestamp_ms=1),
    batch_of(3, producer_id=7, base_sequence=4),
    control_batch(ControlKind.MEMBERSHIP, *change_fields(CHANGE), timestamp_ms=2),
    control_batch(ControlKind.RETENTION, 5, 30, timestamp_ms=3),
)

EXAMPLES: dict[MessageType, list[dict[str, Any]]] = {
    M.PRE_VOTE_REQUEST: [{"term": 4, "index": 10, "log_term": 3}],
    M.PRE_VOTE_RESPONSE: [{"term": 4}, {"term": 4, "reject": True}],
    M.VOTE_REQUEST: [{"term": 4, "index": 10, "log_term": 3}, {"term": 4, "context": CAMPAIGN_TRANSFER}],
    M.VOTE_RESPONSE: [{"term": 4}, {"term": 4, "reject": True}],
    M.APPEND: [
        {"term": 3, "index": 6, "log_term": 2, "commit": 5, "chain": CHAIN, "entries": ENTRIES},
        {"term": 3, "index": 10, "log_term": 3, "commit": 10},
    ],
    M.APPEND_RESPONSE: [
        {"term": 3, "index": 10, "commit": 9},
        {"term": 3, "index": 10, "reject": True, "reject_hint": 4, "log_term": 2},
        {"term": 3, "index": 4, "is_damaged": True, "last_index": 4},
        {"term": 3, "index": 4, "last_index": 4, "admission": b"word"},
    ],
    M.HEARTBEAT: [{"term": 3, "commit": 9}, {"term": 3, "commit": 9, "context": b"\0" * 8}],
    M.HEARTBEAT_RESPONSE: [{"term": 3, "commit": 9, "context": b"\0" * 8}, {"term": 3, "admission": b"word"}],
    M.SNAPSHOT: [{"term": 3, "snapshot": snapshot_of(START)}],
    M.TIMEOUT_NOW: [{"term": 3}],
    M.READ_INDEX: [{"context": b"n1/1"}],
    M.READ_INDEX_RESPONSE: [{"term": 3, "index": 9, "context": b"n1/1"}],
}

BETWEEN_NODES = [kind for kind in MessageType if kind in EXAMPLES]


def message(kind: MessageType, fields: dict[str, Any]) -> Message:
    return Message(kind, "n2", "n1", **fields)


def plain(entry: Entry) -> tuple[Any, ...]:
    return entry.id, entry.kind, entry.data.to_bytes(), entry.size_bytes, entry.chain, entry.change


def comparable(message: Message) -> Message:
    return message._replace(entries=tuple(map(plain, message.entries)))  # type: ignore[arg-type]  # to be compared


def through(frame: PeerFrame) -> PeerFrame:
    return decode_frame(encode_frame(frame), "n1", "n2")


@pytest.mark.parametrize("kind", BETWEEN_NODES, ids=lambda kind: kind.name.lower())
def test_a_message_comes_back_as_it_was(kind: MessageType) -> None:
    messages = [(group, message(kind, fields)) for group, fields in enumerate(EXAMPLES[kind])]
    frame = through(PeerFrame(2, None, messages))
    assert [group for group, _ in frame.messages] == [group for group, _ in messages]
    assert [comparable(arrived) for _, arrived in frame.messages] == [comparable(sent) for _, sent in messages]


def test_every_message_between_replicas_that_the_daemon_uses_has_an_example() -> None:
    # These are either of the shell of one replica, or passed on by groups that are asked to; the daemon's are not.
    inside = {kind for kind in MessageType if kind.name.startswith("STORAGE_")} | {
        M.CAMPAIGN,
        M.BEAT,
        M.CHECK_QUORUM,
        M.UNREACHABLE,
        M.SNAPSHOT_STATUS,
        M.TRANSFER_LEADER,
        M.PROPOSE,
        M.FORGET_LEADER,
    }
    assert set(BETWEEN_NODES) == set(MessageType) - inside


def test_who_sent_a_message_is_not_the_senders_to_say() -> None:
    forged = Message(M.HEARTBEAT, "n9", "n8", term=3)
    ((_, arrived),) = decode_frame(encode_frame(PeerFrame(2, None, [(1, forged)])), "n1", "n2").messages
    assert (arrived.sender, arrived.to) == ("n1", "n2")


def test_what_an_entry_means_is_read_from_its_batch() -> None:
    ((_, arrived),) = through(PeerFrame(2, None, [(1, message(M.APPEND, EXAMPLES[M.APPEND][0]))])).messages
    no_op, data, change, retention = arrived.entries
    assert [entry.kind for entry in arrived.entries] == [
        EntryKind.NO_OP,
        EntryKind.DATA,
        EntryKind.CONFIGURATION,
        EntryKind.DATA,
    ]
    assert change.change == CHANGE
    # Batches without records do not count in the limits by bytes.
    assert no_op.size_bytes == change.size_bytes == retention.size_bytes == 0
    assert data.size_bytes == data.data.batch_bytes


def test_a_beat_comes_back_as_it_was() -> None:
    beat = Beat(7, 12, 10, [(1, 3, 9), (4, 3, 1)], [5, 6], 8, 40)
    assert through(PeerFrame(2, beat)) == PeerFrame(2, beat)
    assert through(PeerFrame(1)) == PeerFrame(1)


def test_a_frame_of_a_newer_version_is_read_as_far_as_it_is_known() -> None:
    level, beat, messages = msgpack.unpackb(encode_frame(PeerFrame(3, Beat(7, 1), [(1, message(M.HEARTBEAT, {}))])))
    newer = msgpack.packb([level, [*beat, "more"], [*messages, [1, 99, 3, "what?"]], "more"])
    frame = decode_frame(newer, "n1", "n2")
    assert frame.level == 3
    assert frame.beat == Beat(7, 1)
    assert [arrived.type for _, arrived in frame.messages] == [M.HEARTBEAT]


# --- Damage -----------------------------------------------------------------------------------------------------------


def append(entries: tuple[Entry, ...], *, index: int = 6, chain: bytes = CHAIN) -> bytes:
    sent = Message(M.APPEND, "n2", "n1", 3, index=index, log_term=2, chain=chain, entries=entries)
    return encode_frame(PeerFrame(2, None, [(1, sent)]))


def test_a_batch_with_a_flipped_bit_is_refused() -> None:
    batch = ENTRIES[1].data.to_bytes()
    for position in range(0, len(batch), 7):
        damaged = bytearray(batch)
        damaged[position] ^= 0x10
        frame = append(ENTRIES).replace(batch, bytes(damaged))
        with pytest.raises(CorruptBatch):
            decode_frame(frame, "n1", "n2")


def test_a_batch_that_does_not_follow_the_one_before_it_is_refused() -> None:
    for wrong in ((ENTRIES[0], ENTRIES[2]), (ENTRIES[1], ENTRIES[0]), (ENTRIES[0], ENTRIES[0]), ENTRIES[1:]):
        with pytest.raises(CorruptBatch):
            decode_frame(append(wrong), "n1", "n2")


def test_a_batch_of_another_log_is_refused() -> None:
    with pytest.raises(CorruptBatch, match="does not follow"):
        decode_frame(append(ENTRIES, chain=bytes(32)), "n1", "n2")
    with pytest.raises(CorruptBatch, match="does not follow"):
        decode_frame(append(ENTRIES, index=7), "n1", "n2")


def test_a_batch_with_more_or_less_behind_it_is_refused() -> None:
    header, header_bytes, payload = ENTRIES[0].data
    for other in (bytes(payload) + b"x", bytes(payload)[:-1]):
        entry = Entry(7, 3, data=StampedBatch(header, header_bytes, other))
        with pytest.raises(CorruptBatch):
            decode_frame(append((entry,)), "n1", "n2")
    with pytest.raises(CorruptBatch):
        entry_of(header_bytes[: HEADER_BYTES - 1])


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\xc1",
        b"\x93\x02",
        msgpack.packb(5),
        msgpack.packb([]),
        msgpack.packb([2, None]),
        msgpack.packb([2, None, 5]),
        msgpack.packb([2, 5, []]),
        msgpack.packb([2, [1, 2], []]),
        msgpack.packb([2, [1, 2, 3, [[4]], [], 0, 0], []]),
        msgpack.packb([2, None, [[1]]]),
        msgpack.packb([2, None, [5]]),
        msgpack.packb([2, None, [[1, []]]]),
        msgpack.packb([2, None, [[1, 7, "3"]]]),
        msgpack.packb([2, None, [["1", 7, 3]]]),
        msgpack.packb([2, None, [[1, 7, -3]]]),
        msgpack.packb([2, None, [[1, 7, 3, 0.5]]]),
        msgpack.packb([2, None, [[1, 7, 3, 0, 0, 0, 0, 0, "context"]]]),
        msgpack.packb([2, None, [[1, 5, 3, 0, 0, 0, 0, 0, b"", b"", 0, b"", ["batch"]]]]),
        msgpack.packb([2, None, [[1, 9, 3, 0, 0, 0, 0, 0, b"", b"", 0, b"", [], [1, 2]]]]),
        msgpack.packb(
            [2, None, [[1, 9, 3, 0, 0, 0, 0, 0, b"", b"", 0, b"", [], [0, 0, 0, b"", 0, b"", 0, b"\x91", b""]]]]
        ),
        msgpack.packb([2, None, [[1, 9, 3]]]),
        msgpack.packb(["2", None, []]),
        b"\x91" * 5_000,
    ],
)
def test_garbage_is_no_frame(garbage: bytes) -> None:
    with pytest.raises(ValueError, match="not a frame"):
        decode_frame(garbage, "n1", "n2")


WHOLE = encode_frame(
    PeerFrame(
        2,
        Beat(7, 12, 10, [(1, 3, 9), (4, 3, 1)], [5, 6], 8, 40),
        [(group, message(kind, fields)) for group, kind in enumerate(BETWEEN_NODES) for fields in EXAMPLES[kind]],
    )
)


def is_whole(frame: PeerFrame) -> bool:
    """Whether the core may be given everything in it without a second look."""
    numbers = [
        (arrived.term, arrived.index, arrived.log_term, arrived.commit, arrived.reject_hint, arrived.last_index, group)
        for group, arrived in frame.messages
    ]
    return all(type(number) is int and number >= 0 for number in itertools.chain(*numbers)) and all(
        type(arrived.context) is type(arrived.chain) is type(arrived.admission) is bytes
        for _, arrived in frame.messages
    )


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=3))
def test_whatever_is_damaged_is_refused_by_name_or_is_a_frame(places: list[tuple[int, int]]) -> None:
    damaged = bytearray(WHOLE)
    for position, byte in places:
        damaged[position] = byte
    try:
        frame = decode_frame(bytes(damaged), "n1", "n2")
    except (ValueError, CorruptBatch):
        return
    assert is_whole(frame)


@given(st.integers(0, len(WHOLE) - 1))
def test_a_frame_that_is_cut_short_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="not a frame"):
        decode_frame(WHOLE[:length], "n1", "n2")


# --- Bytes ------------------------------------------------------------------------------------------------------------


def test_a_frame_is_written_as_the_golden_bytes() -> None:
    assert WHOLE.hex() == bytes.fromhex(GOLDEN.read_text()).hex()


def test_the_golden_frame_is_read_as_it_was_written() -> None:
    frame = decode_frame(bytes.fromhex(GOLDEN.read_text()), "n1", "n2")
    sent = [message(kind, fields) for kind in BETWEEN_NODES for fields in EXAMPLES[kind]]
    assert [comparable(arrived) for _, arrived in frame.messages] == [comparable(one) for one in sent]
    assert is_whole(frame)


def test_a_heartbeat_costs_a_few_bytes() -> None:
    alone = len(encode_frame(PeerFrame(2, None, [(1, message(M.HEARTBEAT, {"term": 3, "commit": 9}))])))
    two = len(encode_frame(PeerFrame(2, None, [(1, message(M.HEARTBEAT, {"term": 3, "commit": 9}))] * 2)))
    assert two - alone <= 8


if __name__ == "__main__" and not GOLDEN.exists():
    text = WHOLE.hex()
    GOLDEN.write_text("\n".join(text[at : at + 96] for at in range(0, len(text), 96)) + "\n")
