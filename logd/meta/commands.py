"""The commands of group 0, and the record each of them is.

For: the service, which proposes them, and the state, which applies them. Must not know: who asked. The one idea: a
command is a record's value, `[version, kind, field, …]` in msgpack; a kind's number is never used again, and fields are
only ever added at the end.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgpack

COMMAND_VERSION: Final = 1
# `[version, kind]` stand before a command's own fields.
PREAMBLE_LENGTH: Final = 2


@dataclass(frozen=True, slots=True)
class CreateTopic:
    """Make a topic. The id is drawn by the proposer, since applying draws nothing."""

    name: str
    topic_id: bytes
    partitions: int
    configuration: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AlterTopic:
    """Change configuration (None removes a key), or grow to `partitions`."""

    name: str
    partitions: int | None
    configuration: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class DeleteTopic:
    """Remove a topic."""

    name: str


@dataclass(frozen=True, slots=True)
class InitProducer:
    """Hand out a producer id, or the next epoch of a named one."""

    name: str | None


Command = CreateTopic | AlterTopic | DeleteTopic | InitProducer

_KINDS: Final[Mapping[int, type[Command]]] = {1: CreateTopic, 2: AlterTopic, 3: DeleteTopic, 4: InitProducer}
_NUMBERS: Final = {kind: number for number, kind in _KINDS.items()}


def encode_command(command: Command) -> bytes:
    """The value of the record that this command is."""
    fields = [getattr(command, name) for name in type(command).__match_args__]
    value: bytes = msgpack.packb([COMMAND_VERSION, _NUMBERS[type(command)], *fields])
    return value


def decode_command(value: bytes) -> Command:
    """The command of a record's value.

    Raises ValueError for a version or kind of newer software, and for what is no command at all: a node that cannot
    read group 0 must not go on.
    """
    values: Any = msgpack.unpackb(value)
    if not isinstance(values, list) or len(values) < PREAMBLE_LENGTH:
        raise ValueError("a command that is not an array [version, kind, …]")
    version, number, *fields = values
    kind = _KINDS.get(number) if isinstance(number, int) else None
    if version != COMMAND_VERSION or kind is None:
        raise ValueError(f"a command of version {version} and kind {number}, which this software does not know")
    try:
        return kind(*fields[: len(kind.__match_args__)])
    except TypeError as error:
        raise ValueError(f"a command of kind {number} that lacks a field: {error}") from None
