"""The membership of a group, as a log's start carries it.

For: whoever makes or reads a start. Must not know: Raft's rules about changing it. The one idea: names of nodes,
sorted, so that equal memberships are equal bytes.
"""

from typing import Any, Final, NamedTuple

import msgpack

MEMBERSHIP_VERSION: Final = 1


class Membership(NamedTuple):
    """Who votes in a group, and who only follows."""

    voters: frozenset[str]
    learners: frozenset[str] = frozenset()


def encode_membership(membership: Membership) -> bytes:
    """`[version, voters, learners]` in msgpack."""
    packed: bytes = msgpack.packb([MEMBERSHIP_VERSION, sorted(membership.voters), sorted(membership.learners)])
    return packed


def decode_membership(data: bytes) -> Membership:
    """Raises ValueError for what newer software wrote."""
    values: list[Any] = msgpack.unpackb(data)
    if values[0] != MEMBERSHIP_VERSION:
        raise ValueError(f"a membership of version {values[0]}: this software knows {MEMBERSHIP_VERSION}")
    return Membership(frozenset(values[1]), frozenset(values[2]))
