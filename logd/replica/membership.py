"""The membership of a group, as bytes: in a log's start, in a checkpoint, and as the change that an entry makes.

For: whoever makes or reads these. Must not know: Raft's rules about changing it. The one idea: names of nodes, sorted,
so that equal memberships are equal bytes.
"""

from typing import Any, Final

import msgpack

from logd.raft.types import ChangeKind, ChangeStep, Configuration, ConfigurationChange, Transition

MEMBERSHIP_VERSION: Final = 2
"""Version 1 had voters and learners alone, and is still read."""

_KINDS: Final = {kind: number for number, kind in enumerate(ChangeKind, start=1)}
_KIND_OF: Final = {number: kind for kind, number in _KINDS.items()}
_TRANSITIONS: Final = {transition: number for number, transition in enumerate(Transition, start=1)}
_TRANSITION_OF: Final = {number: transition for transition, number in _TRANSITIONS.items()}


def encode_membership(configuration: Configuration) -> bytes:
    """`[version, voters, learners, voters_outgoing, learners_next, auto_leave]` in msgpack."""
    packed: bytes = msgpack.packb(
        [
            MEMBERSHIP_VERSION,
            sorted(configuration.voters),
            sorted(configuration.learners),
            sorted(configuration.voters_outgoing),
            sorted(configuration.learners_next),
            configuration.auto_leave,
        ]
    )
    return packed


def decode_membership(data: bytes) -> Configuration:
    """Raises ValueError for what newer software wrote. No bytes: nobody is a member, as far as is known."""
    if not data:
        return Configuration()
    version, *values = msgpack.unpackb(data)
    if version not in (1, MEMBERSHIP_VERSION):
        raise ValueError(f"a membership of version {version}: this software knows {MEMBERSHIP_VERSION}")
    voters, learners, outgoing, following, auto_leave = values if version > 1 else [*values, [], [], False]
    return Configuration(
        voters=frozenset(voters),
        learners=frozenset(learners),
        voters_outgoing=frozenset(outgoing),
        learners_next=frozenset(following),
        auto_leave=auto_leave,
    )


def change_fields(change: ConfigurationChange) -> list[Any]:
    """The fields of the control batch that holds a change."""
    steps = [[_KINDS[step.kind], step.node] for step in change.steps]
    return [steps, _TRANSITIONS[change.transition], change.admission]


def change_from(fields: list[Any]) -> ConfigurationChange:
    """What `change_fields` gave; newer software may have added more. Raises ValueError for what cannot be read."""
    try:
        steps, transition, admission, *_ = fields
        return ConfigurationChange(
            tuple(ChangeStep(_KIND_OF[kind], node) for kind, node in steps), _TRANSITION_OF[transition], admission
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a change of membership: {error!r}") from error
