"""Tables of the documentation that are made from the code, as Markdown text.

For: the directives in `from_code.py`, and tests that ask whether something is documented. Must not know: Sphinx. The
one idea: what has one definition in code gets no second one in prose. Each function returns one table, and `TABLES`
names them all.
"""

import ast
import dataclasses
import enum
import re
import struct
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from logd.cli.exits import EXITS
from logd.config import settings_table
from logd.service.configuration import TOPIC_SETTINGS
from logd.store import events
from wire.connection import CLIENT_HANDLERS, SERVER_HANDLERS, Limits, State
from wire.errors import SERVER_ERRORS, ClientError, LogdError, UnknownError
from wire.messages import MESSAGES, Bounds, Message, MessageType

REPOSITORY = Path(__file__).resolve().parents[2]

Row = Sequence[object]


# --- Markdown ---------------------------------------------------------------------------------------------------------


def table(head: Row, rows: Iterable[Row]) -> str:
    """A Markdown table."""
    lines = [_line(head), _line("---" for _ in head)]
    lines += [_line(row) for row in rows]
    return "\n".join(lines)


def _line(cells: Iterable[object]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def code(value: object) -> str:
    """As code; nothing for nothing."""
    return f"`{value}`" if str(value) else ""


def summary(thing: object) -> str:
    """What a class or a function says of itself, on one line, without its example."""
    text = getattr(thing, "__doc__", None) or ""
    return " ".join(text.partition("```")[0].split())


# --- Messages ---------------------------------------------------------------------------------------------------------

_INTEGERS = {
    Bounds(0, 2**16 - 1): "u16",
    Bounds(0, 2**32 - 1): "u32",
    Bounds(0, 2**64 - 1): "u64",
    Bounds(-(2**63), 2**63 - 1): "i64",
}
_WORDS = {int: "int", str: "str", bytes: "bin", bool: "bool", type(None): "nil", Any: "any"}


def type_text(annotation: Any) -> str:
    """A field's type in the protocol's words; raises KeyError for one that the codec does not have either."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _INTEGERS[arguments[1]]
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(each) for each in arguments)
    if origin is tuple:
        return f"array of {type_text(arguments[0])}"
    if origin is Mapping:
        return f"map {type_text(arguments[0])} → {type_text(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, enum.StrEnum):
        return " / ".join(f'"{member}"' for member in annotation)
    if isinstance(annotation, type) and issubclass(annotation, Message):
        return annotation.__name__
    return _WORDS[annotation]


def _field_texts(kind: type[Message]) -> Iterator[str]:
    hints = get_type_hints(kind, include_extras=True)
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]  # every message is a dataclass
        text = f"`{item.name}`: {type_text(hints[item.name])}"
        if item.default is not dataclasses.MISSING:
            text += f" = {_default_text(item.default)}"
        elif item.default_factory is not dataclasses.MISSING:
            text += " = empty"
        yield text


def _default_text(value: object) -> str:
    if value is None:
        return "nil"
    return str(value).lower() if isinstance(value, bool) else "empty" if value == () else str(value)


def _message_row(row: MessageType) -> Row:
    follows = row.answer.__name__ if row.answer else "nothing" if row.one_way else ""
    fields = "<br>".join(_field_texts(row.kind)) or "none"
    return (row.number, code(row.kind.__name__), fields, code(follows) if row.answer else follows, summary(row.kind))


def messages() -> str:
    """Every message: number, fields in the order of the wire, what answers it."""
    return table(("type", "message", "fields, in order", "answered by", "meaning"), map(_message_row, MESSAGES))


def parts_of_messages() -> str:
    """What stands inside messages as an array of its own."""
    parts: dict[type[Message], None] = {}
    for row in MESSAGES:
        _collect_parts(row.kind, parts)
    return table(
        ("part", "fields, in order", "meaning"),
        ((code(kind.__name__), "<br>".join(_field_texts(kind)), summary(kind)) for kind in parts),
    )


def _collect_parts(kind: type[Message], found: dict[type[Message], None]) -> None:
    for annotation in get_type_hints(kind, include_extras=True).values():
        for part in (annotation, *get_args(annotation)):
            if isinstance(part, type) and issubclass(part, Message) and part not in found:
                found[part] = None
                _collect_parts(part, found)


# --- The connection ---------------------------------------------------------------------------------------------------


def _event_of(handler: Callable[..., object]) -> str:
    returned = get_type_hints(handler)["return"]
    kinds = [kind for kind in (get_args(returned) or (returned,)) if kind is not type(None)]
    return " or ".join(code(kind.__name__) for kind in kinds)


def _machine(
    handlers: Mapping[tuple[State, type[Message]], Callable[..., object]], otherwise: Mapping[State, str]
) -> str:
    kinds = dict.fromkeys(kind for _, kind in handlers)
    rows = []
    for kind in kinds:
        cells = [
            _event_of(handlers[state, kind]) if (state, kind) in handlers else otherwise[state] for state in otherwise
        ]
        rows.append((code(kind.__name__), *cells))
    rows.append(("every other message", *otherwise.values()))
    return table(("what arrives", *(f"while {state.name}" for state in otherwise)), rows)


def server_machine() -> str:
    """What may arrive at a server when, and the event it becomes."""
    return _machine(
        SERVER_HANDLERS, {State.GREETING: "`ProtocolError`, closed", State.READY: "refused with `Unsupported`"}
    )


def client_machine() -> str:
    """What may arrive at a client when, and the event it becomes."""
    return _machine(
        CLIENT_HANDLERS, {State.GREETING: "`ProtocolError`, closed", State.READY: "`ProtocolError`, closed"}
    )


def limits() -> str:
    """The limits that a server tells in `Welcome`."""
    rows = ((code(item.name), f"{item.default:,}") for item in dataclasses.fields(Limits))
    return table(("limit", "default"), rows)


# --- Errors -----------------------------------------------------------------------------------------------------------


def client_errors() -> Iterator[type[LogdError]]:
    """Every error that the library raises by itself."""
    yield from ClientError.__subclasses__()


def _error_row(kind: type[LogdError]) -> Row:
    return (code(kind.code), "yes" if kind.retriable else "no", summary(kind), kind.leaves)


_ERROR_HEAD = ("code", "retriable", "meaning", "what it leaves")


def server_error_codes() -> str:
    """Every error that can be an answer."""
    return table(_ERROR_HEAD, (_error_row(kind) for kind in SERVER_ERRORS.values() if kind is not UnknownError))


def client_error_codes() -> str:
    """Every error that the client library raises by itself, `Unknown` among them."""
    return table(_ERROR_HEAD, map(_error_row, (*client_errors(), UnknownError)))


# --- The daemon -------------------------------------------------------------------------------------------------------


def settings() -> str:
    """Every setting, in the order of the file."""
    rows = []
    for setting in settings_table():
        default = "required" if setting.required else code(setting.default_text)
        rows.append((code(setting.key), default, setting.unit, setting.expected, setting.meaning))
    return table(("setting", "default", "unit", "expected", "meaning, and why this default"), rows)


def topic_settings() -> str:
    """What can be configured of a topic."""
    return table(("topic setting", "meaning"), ((code(each.key), each.meaning) for each in TOPIC_SETTINGS))


def exits() -> str:
    """Every exit code."""
    rows = (
        (int(row.exit), code(row.exit.name), row.meaning, ", ".join(code(each) for each in row.codes)) for row in EXITS
    )
    return table(("exit code", "name", "meaning", "error codes"), rows)


def store_events() -> str:
    """What recovery and housekeeping notice."""
    rows = []
    for kind in event_kinds():
        fields = ", ".join(code(item.name) for item in dataclasses.fields(kind))
        rows.append((code(event_name(kind)), fields, summary(kind)))
    return table(("event", "fields", "meaning"), rows)


def event_kinds() -> list[type[events.Event]]:
    """Every kind of event of the store, in the order of its module."""
    # By the module's names: a dataclass with slots leaves its first self behind as a subclass.
    found = [thing for thing in vars(events).values() if isinstance(thing, type) and issubclass(thing, events.Event)]
    return [kind for kind in found if kind is not events.Event]


def event_name(kind: type[events.Event]) -> str:
    """The event as it stands in the log."""
    return re.sub(r"(?<!^)([A-Z])", r"_\1", kind.__name__).lower()


class LogEvent(NamedTuple):
    """One place in the code that writes a log line."""

    name: str
    level: str
    fields: tuple[str, ...]
    room: str


_LEVELS = ("debug", "info", "warning", "error", "critical")


def log_events() -> list[LogEvent]:
    """Every log line that the daemon can write, found in the source: a call of a level with the event's name."""
    found = []
    for path in sorted((REPOSITORY / "logd").rglob("*.py")):
        room = path.relative_to(REPOSITORY / "logd").parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(attr=level), args=[ast.Constant(value=str(name)), *_]) if (
                    level in _LEVELS and name.isidentifier()
                ):
                    fields = tuple(keyword.arg or "…" for keyword in node.keywords)
                    found.append(LogEvent(name, level, fields, room))
    return found


def log_lines() -> str:
    """Every log event, once: its levels, fields and rooms."""
    by_name: dict[str, list[LogEvent]] = {}
    for event in log_events():
        by_name.setdefault(event.name, []).append(event)
    rows = []
    for name, places in sorted(by_name.items()):
        levels = ", ".join(dict.fromkeys(place.level for place in places))
        rooms = ", ".join(dict.fromkeys(place.room for place in places))
        fields = ", ".join(code(field) for field in dict.fromkeys(field for place in places for field in place.fields))
        rows.append((code(name), levels, fields, rooms))
    return table(("event", "level", "fields", "room"), rows)


# --- Bytes ------------------------------------------------------------------------------------------------------------

_SIZES = {"B": 1, "H": 2, "I": 4, "Q": 8, "q": 8}
_TYPES = {"B": "u8", "H": "u16", "I": "u32", "Q": "u64", "q": "i64"}


class Part(NamedTuple):
    """One field of a structure, or padding (`type` empty)."""

    offset: int
    size: int
    type: str


def parts_of(format_text: str) -> list[Part]:
    """The fields of a `struct` format, in order; raises ValueError for a code that the formats do not use."""
    if not format_text.startswith(">"):
        raise ValueError("every integer is big-endian")
    parts: list[Part] = []
    offset = 0
    digits = ""
    for letter in format_text[1:].replace(" ", ""):
        if letter.isdigit():
            digits += letter
            continue
        count = int(digits or "1")
        digits = ""
        if letter in "sx":
            parts.append(Part(offset, count, "bytes" if letter == "s" else ""))
            offset += count
            continue
        if letter not in _SIZES:
            raise ValueError(f"no word for the format {letter!r}")
        for _ in range(count):
            parts.append(Part(offset, _SIZES[letter], _TYPES[letter]))
            offset += _SIZES[letter]
    assert offset == struct.calcsize(format_text)
    return parts


def struct_table(layout: struct.Struct, fields: Sequence[tuple[str, str]]) -> str:
    """The drawing of one structure. `fields` are (name, meaning) of all fields but padding, in order.

    Raises ValueError when they are more or fewer than the structure has.
    """
    parts = parts_of(layout.format)
    named = sum(1 for part in parts if part.type)
    if named != len(fields):
        raise ValueError(f"the structure has {named} fields, the documentation names {len(fields)}")
    rest = iter(fields)
    rows: list[Row] = []
    for part in parts:
        name, meaning = next(rest) if part.type else ("", "zero")
        rows.append((part.offset, part.size, part.type, code(name), meaning))
    rows.append((layout.size, "", "", "", "end"))
    return table(("at", "bytes", "type", "field", "meaning"), rows)


# --- Tests, which promises name ---------------------------------------------------------------------------------------


def is_test(reference: str) -> bool:
    """Whether `tests/…/test_x.py::test_name` (or `::TestClass::test_name`, or a file alone) is there."""
    path_text, *names = reference.split("::")
    path = REPOSITORY / path_text
    if not path_text.startswith("tests/") or not path.is_file():
        return False
    body: Sequence[ast.AST] = ast.parse(path.read_text(encoding="utf-8")).body
    for name in names:
        found = next((node for node in body if getattr(node, "name", None) == name), None)
        if found is None:
            # A class's state machine is a test by assignment: `TestStore = StoreMachine.TestCase`.
            return any(
                isinstance(node, ast.Assign)
                and any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
                for node in body
            )
        body = getattr(found, "body", [])
    return True


TABLES: Mapping[str, Callable[[], str]] = {
    made.__name__.replace("_", "-"): made
    for made in (
        messages,
        parts_of_messages,
        server_machine,
        client_machine,
        limits,
        server_error_codes,
        client_error_codes,
        settings,
        topic_settings,
        exits,
        store_events,
        log_lines,
    )
}
"""Every table, by the name that a page calls it by."""
