"""A replica alone on a desk, for tests of the core.

For: `tests/raft`. Must not know: the driver, or bytes. The one idea: everything else in the group is the test, which
says what the others would; the replica's own disk and state machine do everything at once when it is asked to settle.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from logd.raft.configuration import InvalidChange
from logd.raft.group import Chance, Group
from logd.raft.types import (
    NOBODY,
    Configuration,
    Entry,
    GroupOptions,
    HardState,
    Message,
    MessageType,
    ReadState,
    Recovered,
)


class Fixed:
    """Chance that always says the same: by default, everybody waits for exactly `election_ticks`."""

    def __init__(self, number: int = 0) -> None:
        self.number = number

    def randrange(self, stop: int, /) -> int:
        return self.number % stop


def entries(*terms: int, first_index: int = 1, size_bytes: int = 0) -> tuple[Entry, ...]:
    """Consecutive entries of these terms."""
    return tuple(Entry(first_index + place, term, size_bytes=size_bytes) for place, term in enumerate(terms))


def members(voters: Iterable[str] = "abc", learners: Iterable[str] = "") -> Configuration:
    return Configuration(frozenset(voters), learners=frozenset(learners))


def replica(
    node: str = "a",
    voters: Iterable[str] = "abc",
    *,
    learners: Iterable[str] = "",
    terms: Sequence[int] = (),
    term: int | None = None,
    vote: str = NOBODY,
    commit: int = 0,
    chance: Chance | None = None,
    recovered: Callable[[Recovered], Recovered] = lambda recovered: recovered,
    **options: Any,
) -> Group:
    """A replica that comes back with a log of these terms, in the last of them unless `term` says otherwise."""
    hard_state = HardState(max(terms, default=0) if term is None else term, vote, commit)
    state = Recovered(entries=entries(*terms), hard_state=hard_state, configuration=members(voters, learners))
    return Group(node, GroupOptions(**options), recovered(state), chance or Fixed())


class Done(NamedTuple):
    """What a replica did until it had nothing left to do."""

    messages: list[Message]
    """To others, in the order in which they left."""
    committed: list[Entry]
    read_states: list[ReadState]

    def of(self, wanted: MessageType, to: str = NOBODY) -> list[Message]:
        return [message for message in self.messages if message.type is wanted and to in (NOBODY, message.to)]


def apply(group: Group, committed: Sequence[Entry]) -> None:
    """Apply entries: of these, only changes of membership mean anything here."""
    for entry in committed:
        if entry.change is not None:
            # A change that cannot be made means nothing, everywhere alike.
            with contextlib.suppress(InvalidChange):
                group.apply_change(entry.change)
    if committed and group.options.asynchronous_storage:
        group.on_applied(committed[-1].index)


def settle(group: Group) -> Done:
    """Let its disk and its state machine do everything, at once."""
    done = Done([], [], [])
    while group.has_ready:
        ready = group.take_ready()
        done.messages.extend(ready.messages)
        done.committed.extend(ready.committed)
        done.read_states.extend(ready.read_states)
        for message in ready.responses:
            if message.to == group.node:
                group.step(message)
            else:
                done.messages.append(message)
        apply(group, ready.committed)
        if not group.options.asynchronous_storage:
            group.advance()
    return done


def lead(group: Group, *supporters: str) -> Group:
    """Let a replica win an election by these voters and settle."""
    group.campaign()
    settle(group)
    for response in (MessageType.PRE_VOTE_RESPONSE, MessageType.VOTE_RESPONSE):
        for name in supporters:
            term = group.term + (response is MessageType.PRE_VOTE_RESPONSE)
            group.step(Message(response, to=group.node, sender=name, term=term))
            settle(group)
    return group


def acknowledge(group: Group, sender: str, index: int, **fields: Any) -> Done:
    """A member's answer to an append arrives; what comes of it."""
    group.step(Message(MessageType.APPEND_RESPONSE, group.node, sender, group.term, index=index, **fields))
    return settle(group)
