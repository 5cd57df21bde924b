"""Messages to bytes and back, driven by the table in `wire.messages`.

For: the connection, and whoever tests bytes. Must not know: streams, or which message is due. The one idea: the
annotations of a message's fields are compiled, once, into a row of checks; encoding and decoding are then the same
few lines for every message. What leaves here is typed and within its bounds, so nobody behind it checks again.
"""

import functools
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from enum import StrEnum
from typing import Annotated, Any, Final, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgpack

from wire.errors import InvalidRequest, ProtocolError, ServerError, Unsupported
from wire.frame import LENGTH
from wire.messages import MESSAGES, Bounds, Message

Headers = Mapping[str, Any]

# `[type, request_id, headers]` stand before a message's own fields.
PREAMBLE_LENGTH: Final = 3
REQUEST_ID_MAX: Final = 2**32 - 1
# Far above any honest message, and far below what would cost anything to refuse.
_ITEMS_MAX: Final = 100_000


class Envelope(NamedTuple):
    """A decoded frame."""

    request_id: int
    headers: Headers
    message: Message


class MessageFault(Exception):  # it carries an error to answer with; it is not one that users see
    """A frame that is whole and belongs to a request, but is no message: the request is refused, the connection lives.

    `request_id` says which request, `error` what to answer.
    """

    def __init__(self, request_id: int, error: ServerError) -> None:
        super().__init__(str(error))
        self.request_id = request_id
        self.error = error


Check = Callable[[Any], Any]
"""Takes what msgpack gave, returns the typed value; raises `_WrongValue`."""


class _WrongValue(Exception):  # caught where the field's name is known
    pass


class _Field(NamedTuple):
    name: str
    check: Check
    required: bool


class _Plan(NamedTuple):
    number: int
    kind: type[Message]
    fields: tuple[_Field, ...]
    required: int


# --- Encoding -------------------------------------------------------------------------------------------------------


def encode(message: Message, request_id: int, headers: Headers | None = None) -> bytes:
    """One whole frame, its length in front."""
    kind = type(message)
    values = [_NUMBER_OF[kind], request_id, headers or None]
    values += [getattr(message, name) for name in kind.__match_args__]  # type: ignore[attr-defined]  # a dataclass's
    body: bytes = msgpack.packb(values, default=_as_array)
    return LENGTH.pack(len(body)) + body


def _as_array(value: object) -> list[Any]:
    if isinstance(value, Message):
        return [getattr(value, name) for name in type(value).__match_args__]  # type: ignore[attr-defined]  # as above
    raise TypeError(f"{type(value).__name__} cannot stand in a message")


# --- Decoding -------------------------------------------------------------------------------------------------------


def decode(body: bytes | memoryview) -> Envelope:
    """A frame's body as a message.

    Raises ProtocolError when it is not an array that starts with a type, a request id and headers: the connection is
    to be closed; MessageFault when it is, but the type is unknown or a field is wrong: the request is to be refused.
    """
    number, request_id, headers, values = _open_envelope(body)
    plan = _PLANS.get(number)
    if plan is None:
        raise MessageFault(request_id, Unsupported(f"message type {number} is unknown", {"type": number}))
    try:
        return Envelope(request_id, headers, _build(plan, values))
    except _WrongValue as wrong:
        raise MessageFault(request_id, InvalidRequest(f"{plan.kind.__name__}.{wrong}")) from None


def _open_envelope(body: bytes | memoryview) -> tuple[int, int, Headers, list[Any]]:
    try:
        values = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            max_array_len=_ITEMS_MAX,
            max_map_len=_ITEMS_MAX,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise ProtocolError(f"a frame that is not msgpack: {str(error) or type(error).__name__}") from None
    if not isinstance(values, list) or len(values) < PREAMBLE_LENGTH:
        raise ProtocolError("a frame that is not an array [type, request_id, headers, …]")
    number, request_id, headers = values[:PREAMBLE_LENGTH]
    if type(number) is not int or type(request_id) is not int or not 0 <= request_id <= REQUEST_ID_MAX:
        raise ProtocolError("a frame whose type and request_id are not unsigned integers")
    if headers is None:
        headers = {}
    elif not isinstance(headers, dict):
        raise ProtocolError("a frame whose headers are neither nil nor a map")
    return number, request_id, headers, values[PREAMBLE_LENGTH:]


def _build(plan: _Plan, values: list[Any]) -> Message:
    # zip stops at the shorter one: unknown trailing fields are ignored, absent ones keep their defaults.
    if len(values) < plan.required:
        missing = ", ".join(item.name for item in plan.fields[len(values) : plan.required])
        raise _WrongValue(f"{missing}: missing")
    checked = []
    for item, value in zip(plan.fields, values, strict=False):
        try:
            checked.append(item.check(value))
        except _WrongValue as wrong:
            raise _WrongValue(f"{item.name}: {wrong}") from None
    return plan.kind(*checked)


# --- Compiling annotations into checks ------------------------------------------------------------------------------


def _exactly(kind: type, word: str) -> Check:
    # `type() is` and not `isinstance`: a bool is no integer on this wire.
    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise _WrongValue(f"expected {word}, got {_word(value)}")
        return value

    return check


_WORDS: Final = {
    int: "an integer",
    str: "text",
    bytes: "bytes",
    bool: "true or false",
    list: "an array",
    dict: "a map",
    float: "a float",
    type(None): "nil",
}


def _word(value: object) -> str:
    return _WORDS.get(type(value), type(value).__name__)


def _bounded(bounds: Bounds) -> Check:
    def check(value: Any) -> int:
        if type(value) is not int:
            raise _WrongValue(f"expected an integer, got {_word(value)}")
        if not bounds.lowest <= value <= bounds.highest:
            raise _WrongValue(f"{value} is not in {bounds.lowest}…{bounds.highest}")
        return value

    return check


def _one_of(kind: type[StrEnum]) -> Check:
    members: dict[Any, StrEnum] = {str(member): member for member in kind}

    def check(value: Any) -> StrEnum:
        found = members.get(value) if isinstance(value, str) else None
        if found is None:
            raise _WrongValue(f"expected one of {', '.join(members)}, got {_word(value)}")
        return found

    return check


def _sequence(item: Check) -> Check:
    def check(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise _WrongValue(f"expected an array, got {_word(value)}")
        return tuple(item(element) for element in value)

    return check


def _mapping(key: Check, item: Check) -> Check:
    def check(value: Any) -> dict[Any, Any]:
        if type(value) is not dict:
            raise _WrongValue(f"expected a map, got {_word(value)}")
        return {key(name): item(element) for name, element in value.items()}

    return check


def _either(first: Check, second: Check) -> Check:
    def check(value: Any) -> Any:
        try:
            return first(value)
        except _WrongValue:
            return second(value)

    return check


def _nested(kind: type[Message]) -> Check:
    plan = _compile(-1, kind)

    def check(value: Any) -> Message:
        if type(value) is not list:
            raise _WrongValue(f"expected an array, got {_word(value)}")
        return _build(plan, value)

    return check


def _anything(value: Any) -> Any:
    return value


@functools.cache
def _check_for(annotation: Any) -> Check:
    """The check for one annotation: this function is the list of what can stand in a message."""
    if annotation is Any:
        return _anything
    if annotation in _WORDS:
        return _exactly(annotation, _WORDS[annotation])
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _bounded(arguments[1])
    if origin in (Union, types.UnionType):
        return _either(*map(_check_for, arguments))
    if origin is tuple:
        return _sequence(_check_for(arguments[0]))
    if origin is Mapping:
        return _mapping(*map(_check_for, arguments))
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return _one_of(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Message):
        return _nested(annotation)
    raise TypeError(f"{annotation} cannot stand in a message")


def _compile(number: int, kind: type[Message]) -> _Plan:
    hints = get_type_hints(kind, include_extras=True)
    rows = tuple(
        _Field(
            item.name,
            _check_for(hints[item.name]),
            required=item.default is MISSING and item.default_factory is MISSING,
        )
        for item in fields(kind)  # type: ignore[arg-type]  # every message is a dataclass
    )
    return _Plan(number, kind, rows, sum(row.required for row in rows))


_PLANS: Final = {row.number: _compile(row.number, row.kind) for row in MESSAGES}
_NUMBER_OF: Final = {row.kind: row.number for row in MESSAGES}
