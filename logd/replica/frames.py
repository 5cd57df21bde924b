"""What one node sends another: the messages of all their groups, in one frame.

For: the driver. Must not know: how frames travel, or when they are sent. The one idea: a message is a short msgpack
array whose trailing defaults are left out, and entries in it are whole batches, byte for byte as they are stored.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from logd.raft.types import Entry, EntryKind, Message, MessageType, Snapshot
from logd.replica.membership import change_from, decode_membership
from logd.store.format import Start
from wire.errors import CorruptBatch
from wire.record import (
    HEADER_BYTES,
    ControlKind,
    StampedBatch,
    check_alone,
    check_in_place,
    decode_control,
)

# A tag is never reused.
_TAGS: Final = {
    MessageType.PRE_VOTE_REQUEST: 1,
    MessageType.PRE_VOTE_RESPONSE: 2,
    MessageType.VOTE_REQUEST: 3,
    MessageType.VOTE_RESPONSE: 4,
    MessageType.APPEND: 5,
    MessageType.APPEND_RESPONSE: 6,
    MessageType.HEARTBEAT: 7,
    MessageType.HEARTBEAT_RESPONSE: 8,
    MessageType.SNAPSHOT: 9,
    MessageType.TIMEOUT_NOW: 10,
    MessageType.READ_INDEX: 11,
    MessageType.READ_INDEX_RESPONSE: 12,
}
_TYPES: Final = {tag: type_ for type_, tag in _TAGS.items()}

_REJECT: Final = 1
_DAMAGED: Final = 2


@dataclass(slots=True)
class Beat:
    """A node's heartbeat to another, for all groups that it leads and that are at rest.

    The list of these groups has a number, its generation; only what changed since `base` travels, and all of it if
    `base` is 0.
    """

    life: int
    """Drawn at each start of the node: what was agreed with an earlier life is void."""
    generation: int
    base: int = 0
    resting: list[tuple[int, int, int]] = field(default_factory=list)
    """Groups that came to rest since `base`: group, term, last index."""
    awake: list[int] = field(default_factory=list)
    """Groups that are not at rest any more since `base`."""
    known_life: int = 0
    known_generation: int = 0
    """What the sender has of the receiver's own list: so that every beat answers one."""


@dataclass(slots=True)
class PeerFrame:
    """Everything for one peer that may leave now."""

    level: int
    """The feature level of the sender: formats above the lowest of a cluster are not used in it."""
    beat: Beat | None = None
    messages: list[tuple[int, Message]] = field(default_factory=list)
    """Group, message."""


def encode_frame(frame: PeerFrame) -> bytes:
    """`[level, beat or nil, [[group, tag, term, …], …]]` in msgpack."""
    beat = frame.beat
    packed: bytes = msgpack.packb(
        [
            frame.level,
            beat
            and [
                beat.life,
                beat.generation,
                beat.base,
                beat.resting,
                beat.awake,
                beat.known_life,
                beat.known_generation,
            ],
            [_encode_message(group, message) for group, message in frame.messages],
        ]
    )
    return packed


def decode_frame(data: bytes, sender: str, receiver: str) -> PeerFrame:
    """What `encode_frame` gave, with every batch in it verified: valid alone, and in its place among the others.

    Raises ValueError for what is no frame, and CorruptBatch for a batch that does not verify.
    """
    try:
        level, beat, messages, *_ = msgpack.unpackb(data)
        _check_numbers(level)
        return PeerFrame(
            level,
            _decode_beat(beat) if beat is not None else None,
            [(fields[0], _decode_message(fields, sender, receiver)) for fields in messages if fields[1] in _TYPES],
        )
    except (ValueError, TypeError, KeyError, IndexError, msgpack.UnpackException) as error:
        raise ValueError(f"not a frame of a peer: {error!r}") from error


def _encode_message(group: int, message: Message) -> list[Any]:
    snapshot = message.snapshot
    fields = [
        group,
        _TAGS[message.type],
        message.term,
        message.index,
        message.log_term,
        message.commit,
        _REJECT * message.reject | _DAMAGED * message.is_damaged,
        message.reject_hint,
        message.context,
        message.chain,
        message.last_index,
        message.admission,
        [entry.data.to_bytes() for entry in message.entries],
        None if snapshot is None else list(snapshot.data),
        message.campaign,
    ]
    while not fields[-1]:
        fields.pop()
    return fields


def _decode_beat(fields: list[Any]) -> Beat:
    life, generation, base, resting, awake, known_life, known_generation, *_ = fields
    _check_numbers(life, generation, base, *awake, known_life, known_generation)
    rests = [(group, term, index) for group, term, index in resting]
    for rest in rests:
        _check_numbers(*rest)
    return Beat(life, generation, base, rests, awake, known_life, known_generation)


def _check_numbers(*values: Any) -> None:
    """Raises TypeError unless all are numbers as the core counts, from 0."""
    for value in values:
        if type(value) is not int or value < 0:
            raise TypeError(f"{value!r} is no number from 0")


def _check_bytes(*values: Any) -> None:
    for value in values:
        if type(value) is not bytes:
            raise TypeError(f"{value!r} is no bytes")


_DEFAULTS: Final[tuple[Any, ...]] = (0, 0, 0, 0, 0, 0, 0, 0, b"", b"", 0, b"", (), None, 0)


def _decode_message(fields: list[Any], sender: str, receiver: str) -> Message:
    values = (*fields, *_DEFAULTS[len(fields) :])
    group, tag, term, index, log_term, commit, flags, hint, context, chain, last, admission, *rest = values[:15]
    batches, start, campaign = rest
    # The core trusts what it is told.
    _check_numbers(group, term, index, log_term, commit, flags, hint, last, campaign)
    _check_bytes(context, chain, admission)
    if (start is not None) != (tag == _TAGS[MessageType.SNAPSHOT]):
        raise ValueError("a start belongs into a snapshot, and nowhere else")
    entries: tuple[Entry, ...] = ()
    if batches:
        entries = tuple(map(entry_of, batches))
        _check_run(index, chain, entries)
    return Message(
        type=_TYPES[tag],
        to=receiver,
        sender=sender,
        term=term,
        index=index,
        log_term=log_term,
        commit=commit,
        entries=entries,
        snapshot=None if start is None else snapshot_of(_decode_start(start)),
        reject=bool(flags & _REJECT),
        reject_hint=hint,
        context=context,
        chain=chain,
        last_index=last,
        is_damaged=bool(flags & _DAMAGED),
        admission=admission,
        campaign=campaign,
    )


def _decode_start(fields: list[Any]) -> Start:
    start = Start(*fields)
    _check_numbers(start.index, start.term, start.offset, start.append_timestamp, start.partition)
    _check_bytes(start.chain, start.topic_id, start.membership, start.producers, start.state)
    return start


def _check_run(index: int, chain: bytes, entries: tuple[Entry, ...]) -> None:
    """Every batch follows from the one before it, and the first from the entry at `index`. Raises CorruptBatch."""
    first = entries[0].data.header
    if first.index != index + 1 or (chain and first.previous_chain != chain):
        raise CorruptBatch(f"the batch of index {first.index} does not follow the entry {index} that it is sent behind")
    for before, after in itertools.pairwise(entries):
        check_in_place(after.data.header, before.data.header)


def snapshot_of(start: Start) -> Snapshot:
    """A log's start, as the core knows it."""
    return Snapshot(start.index, start.term, decode_membership(start.membership), start.chain, start)


def entry_of(batch: bytes) -> Entry:
    """A stored batch, as the core knows it. Raises CorruptBatch where it is not valid alone."""
    header = check_alone(batch)
    if header.batch_bytes != len(batch):
        raise CorruptBatch(f"{len(batch)} bytes for a batch of {header.batch_bytes}")
    stamped = StampedBatch(header, batch[:HEADER_BYTES], memoryview(batch)[HEADER_BYTES:])
    return entry_of_stamped(stamped)


def entry_of_stamped(stamped: StampedBatch) -> Entry:
    """A stamped batch, as the core knows it."""
    header = stamped.header
    entry = Entry(header.index, header.term, EntryKind.DATA, stamped, header.batch_bytes, header.chain)
    if header.is_control:
        kind, fields = decode_control(header, stamped.to_bytes())
        # It does not count in the limits by bytes: a leader must always be able to begin its term, and to change.
        entry.size_bytes = 0
        if kind is ControlKind.NO_OP:
            entry.kind = EntryKind.NO_OP
        elif kind is ControlKind.MEMBERSHIP:
            entry.kind, entry.change = EntryKind.CONFIGURATION, change_from(fields)
    return entry
