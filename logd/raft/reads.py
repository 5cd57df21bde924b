"""Linearizable reads (thesis 6.4): the commit that a read must have seen, confirmed by a majority.

For: the table. Must not know: what is read. The one idea: a leader notes its commit, then lets a majority confirm, by
answering a heartbeat sent *after* that, that it still leads. One heartbeat serves all reads that came before it: its
context is the number of the last of them.
"""

import struct
from collections import deque
from typing import TYPE_CHECKING, Final

from logd.raft.quorum import joint_committed_index
from logd.raft.types import NOBODY, Configuration, Message, MessageType, ProposalDropped, ReadMode, ReadState

if TYPE_CHECKING:
    from logd.raft.group import Group

_NUMBER: Final = struct.Struct(">Q")


class ReadQueue:
    """A leader's reads that wait to be confirmed."""

    # Invariant: the first of `waiting` has the number `confirmed` + 1.

    def __init__(self) -> None:
        self.waiting: deque[tuple[Message, int]] = deque()
        """Requests, each with the commit when it came."""
        self.confirmed = 0
        self.acknowledged: dict[str, int] = {}
        """Up to which read each member has confirmed."""
        self.early: list[Message] = []
        """Requests that came before the leader's first commit in its own term."""

    @property
    def is_waiting(self) -> bool:
        return bool(self.waiting or self.early)

    def __len__(self) -> int:
        return len(self.waiting) + len(self.early)

    def context(self) -> bytes:
        """What a heartbeat carries so that its answers confirm every read that waits now."""
        return _NUMBER.pack(self.confirmed + len(self.waiting)) if self.waiting else b""

    def acknowledge(self, member: str, context: bytes) -> None:
        """A member answered the heartbeat with this context."""
        if len(context) == _NUMBER.size:
            (number,) = _NUMBER.unpack(context)
            self.acknowledged[member] = max(self.acknowledged.get(member, 0), number)

    def take_confirmed(self, configuration: Configuration) -> list[tuple[Message, int]]:
        """The reads that a majority has confirmed since the last time."""
        confirmed = joint_committed_index(configuration, self.acknowledged.get)
        taken = []
        while self.confirmed < confirmed and self.waiting:
            taken.append(self.waiting.popleft())
            self.confirmed += 1
        return taken


def on_read_index(group: "Group", message: Message) -> None:
    """A leader is asked for a read index."""
    if len(group.reads) >= group.options.read_requests_max:
        raise ProposalDropped("too many reads wait for confirmation")
    if not group.has_committed_in_term:
        # reachable: a read comes before the leader's first commit
        # It may not know yet what its predecessors have committed (section 8): not even alone, for the commit in the
        # hard state may be older than what was acknowledged before a restart.
        group.reads.early.append(message)
    else:
        _begin(group, message)


def release_early(group: "Group") -> None:
    """The first commit in the leader's own term: reads that waited for it begin."""
    early, group.reads.early = group.reads.early, []
    for message in early:
        _begin(group, message)


def _begin(group: "Group", message: Message) -> None:
    if group.is_singleton or group.options.read_mode is ReadMode.LEASE:
        _answer(group, message, group.log.commit)
        return
    group.reads.waiting.append((message, group.log.commit))
    group.reads.acknowledge(group.node, group.reads.context())
    send_heartbeats(group)


def on_confirmation(group: "Group", member: str, context: bytes) -> None:
    """A member answered a heartbeat: perhaps with that a majority has."""
    if not context or group.options.read_mode is not ReadMode.QUORUM:
        return
    group.reads.acknowledge(member, context)
    answer_confirmed(group)


def answer_confirmed(group: "Group") -> None:
    """Answer what a majority has confirmed: also when the configuration changed, and with it what a majority is."""
    for request, index in group.reads.take_confirmed(group.configuration):
        _answer(group, request, index)


def _answer(group: "Group", request: Message, index: int) -> None:
    if request.sender in (NOBODY, group.node):
        group.read_states.append(ReadState(index, request.context))
    else:
        group.send(Message(MessageType.READ_INDEX_RESPONSE, to=request.sender, index=index, context=request.context))


def on_read_index_response(group: "Group", message: Message) -> None:
    """A follower's read was confirmed by the leader that it asked."""
    group.read_states.append(ReadState(message.index, message.context))


# --- Heartbeats -------------------------------------------------------------------------------------------------------


def on_beat(group: "Group", _: Message) -> None:
    """A leader makes itself heard (section 5.2)."""
    send_heartbeats(group)


def send_heartbeats(group: "Group") -> None:
    """One heartbeat to each member. It advances the commit no further than what the member is known to hold."""
    context = group.reads.context()
    for name, progress in group.progress.items():
        if name == group.node:
            continue
        commit = min(progress.match_index, group.log.commit)
        group.send(Message(MessageType.HEARTBEAT, to=name, commit=commit, context=context))
        progress.sent_commit_index(commit)
