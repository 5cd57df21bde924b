"""The consensus core in the documentation: its table of handlers, the ways between its roles, its limits, known bugs.

For: the directives in `from_code.py`, and `tests/docs`. Must not know: Sphinx. The one idea: what has one definition in
code gets no second one in prose. The ways between roles cannot be read from the code, so `WAYS` declares them; a test
lets random groups run and compares what they did with it, way by way.
"""

import ast
import dataclasses
import enum
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from math import hypot
from typing import Any, Final, NamedTuple, get_type_hints

from tables import Row, code, summary, table

from logd.raft.table import HANDLERS, ignore
from logd.raft.types import GroupOptions, Message, MessageType, Ready, Role
from logd.replica.types import DriverOptions
from tests.mutants.cli import markdown_table
from tests.mutants.simulator import read_kills
from tests.mutants.table import MUTANTS

# --- Messages and handlers --------------------------------------------------------------------------------------------


def handler_name(handler: Callable[..., object]) -> str:
    """As the code writes it: `election.on_campaign`."""
    return f"{handler.__module__.rpartition('.')[2]}.{handler.__name__}"


def raft_machine() -> str:
    """What each role does with each message; nothing where the table says `ignore`."""
    rows: list[Row] = []
    for kind in MessageType:
        handlers = [HANDLERS[role, kind] for role in Role]
        rows.append((kind.value, *("" if each is ignore else code(handler_name(each)) for each in handlers)))
    return table(("message", *(role.value for role in Role)), rows)


def raft_handlers() -> str:
    """Every handler of the table, by its own words."""
    handlers = dict.fromkeys(HANDLERS.values())
    return table(("handler", "what it is for"), ((code(handler_name(each)), summary(each)) for each in handlers))


# --- The ways between roles -------------------------------------------------------------------------------------------

TERM: Final = "a higher term"
"""Not a message: any message may carry one, and it is looked at before the table is."""

CHANGE: Final = "a change of membership"
"""Not a message: it is applied."""


class Way(NamedTuple):
    """One way from a role to a role."""

    before: Role
    cause: str
    """A message's name, TERM or CHANGE."""
    after: Role
    when: str


_WON, _LOST = "a majority grants", "a majority can no more be had"
_LEADS = "its sender leads this term"

WAYS: Final[tuple[Way, ...]] = (
    Way(Role.FOLLOWER, MessageType.CAMPAIGN.value, Role.PRE_CANDIDATE, "no leader was heard, and there is a pre-vote"),
    Way(Role.FOLLOWER, MessageType.CAMPAIGN.value, Role.CANDIDATE, "the same, without a pre-vote"),
    Way(Role.FOLLOWER, MessageType.TIMEOUT_NOW.value, Role.CANDIDATE, "the leader hands over"),
    Way(Role.FOLLOWER, TERM, Role.FOLLOWER, "the term is taken, the vote is free again"),
    Way(Role.PRE_CANDIDATE, MessageType.PRE_VOTE_RESPONSE.value, Role.CANDIDATE, _WON),
    Way(Role.PRE_CANDIDATE, MessageType.PRE_VOTE_RESPONSE.value, Role.FOLLOWER, _LOST),
    Way(Role.PRE_CANDIDATE, MessageType.CAMPAIGN.value, Role.PRE_CANDIDATE, "nobody decided in time: again"),
    Way(Role.PRE_CANDIDATE, MessageType.APPEND.value, Role.FOLLOWER, _LEADS),
    Way(Role.PRE_CANDIDATE, MessageType.HEARTBEAT.value, Role.FOLLOWER, _LEADS),
    Way(Role.PRE_CANDIDATE, MessageType.SNAPSHOT.value, Role.FOLLOWER, _LEADS),
    Way(Role.PRE_CANDIDATE, TERM, Role.FOLLOWER, "the term is taken"),
    Way(Role.CANDIDATE, MessageType.VOTE_RESPONSE.value, Role.LEADER, f"{_WON}, and its own vote is durable"),
    Way(Role.CANDIDATE, MessageType.VOTE_RESPONSE.value, Role.FOLLOWER, _LOST),
    Way(
        Role.CANDIDATE,
        MessageType.CAMPAIGN.value,
        Role.PRE_CANDIDATE,
        "nobody decided in time, and there is a pre-vote",
    ),
    Way(Role.CANDIDATE, MessageType.CAMPAIGN.value, Role.CANDIDATE, "the same, without a pre-vote: in the next term"),
    Way(Role.CANDIDATE, MessageType.APPEND.value, Role.FOLLOWER, _LEADS),
    Way(Role.CANDIDATE, MessageType.HEARTBEAT.value, Role.FOLLOWER, _LEADS),
    Way(Role.CANDIDATE, MessageType.SNAPSHOT.value, Role.FOLLOWER, _LEADS),
    Way(Role.CANDIDATE, TERM, Role.FOLLOWER, "the term is taken"),
    Way(Role.LEADER, MessageType.CHECK_QUORUM.value, Role.FOLLOWER, "no majority was heard for an election timeout"),
    Way(Role.LEADER, CHANGE, Role.FOLLOWER, "it is no voter any more"),
    Way(Role.LEADER, TERM, Role.FOLLOWER, "the term is taken"),
)
"""Every way that there is, in the order of its number from 1."""


def raft_ways() -> str:
    """The ways between roles, numbered as in the drawing."""
    rows = (
        (number, way.before.value, way.after.value, way.cause, way.when) for number, way in enumerate(WAYS, start=1)
    )
    return table(("way", "from", "to", "by", "if"), rows)


class _Point(NamedTuple):
    x: float
    y: float


_WIDTH, _HEIGHT = 760, 420
_BOX: Final = _Point(74, 24)
"""Half of a box's sides."""
_PLACES: Final = {
    Role.FOLLOWER: _Point(110, 215),
    Role.PRE_CANDIDATE: _Point(380, 74),
    Role.CANDIDATE: _Point(650, 215),
    Role.LEADER: _Point(380, 375),
}
_LOOPS: Final = {Role.FOLLOWER: -44, Role.PRE_CANDIDATE: 0, Role.CANDIDATE: 44, Role.LEADER: 0}
"""Where a role's arrow to itself stands on its box: so far right of the middle."""


_SVG_HEAD: Final = f"""\
<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg" fill="none" stroke="currentColor"
 font-family="sans-serif">
<title>The roles of a replica and the ways between them</title>
<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">
<path d="M0 1 L9 5 L0 9 z" fill="currentColor" stroke="none"/></marker></defs>"""


def drawn_edges() -> Mapping[tuple[Role, Role], list[int]]:
    """The arrows of the drawing, each with the numbers of its ways."""
    edges: dict[tuple[Role, Role], list[int]] = {}
    for number, way in enumerate(WAYS, start=1):
        edges.setdefault((way.before, way.after), []).append(number)
    return edges


def roles_drawing() -> str:
    """The roles and the ways between them, as SVG in the page's own colour."""
    parts = [_SVG_HEAD]
    for (before, after), numbers in drawn_edges().items():
        path, label, anchor = _loop(before) if before is after else _arc(_PLACES[before], _PLACES[after])
        parts.append(f'<path d="{path}" marker-end="url(#tip)"/>')
        parts.append(_text(label, _ranges(numbers), 12, anchor))
    for role, place in _PLACES.items():
        corner = _Point(place.x - _BOX.x, place.y - _BOX.y)
        size = f'width="{2 * _BOX.x}" height="{2 * _BOX.y}"'
        parts.append(f'<rect x="{corner.x}" y="{corner.y}" {size} rx="8"/>')
        parts.append(_text(place, role.value, 15))
    return "\n".join([*parts, "</svg>"])


def _text(place: _Point, text: str, size: int, anchor: str = "middle") -> str:
    return (
        f'<text x="{place.x:.0f}" y="{place.y + size / 3:.0f}" font-size="{size}" text-anchor="{anchor}"'
        f' fill="currentColor" stroke="none">{text}</text>'
    )


def _ranges(numbers: list[int]) -> str:
    """`1, 3 to 5`."""
    texts: list[str] = []
    first = last = numbers[0]
    for number in [*numbers[1:], 0]:
        if number == last + 1:
            last = number
            continue
        texts.append(str(first) if first == last else f"{first} to {last}" if last > first + 1 else f"{first}, {last}")
        first = last = number
    return ", ".join(texts)


def _arc(before: _Point, after: _Point) -> tuple[str, _Point, str]:
    """A curve that leaves room for the one the other way, and where its label stands, outside of it."""
    length = hypot(after.x - before.x, after.y - before.y)
    aside = _Point(-(after.y - before.y) / length, (after.x - before.x) / length)
    bend = _Point((before.x + after.x) / 2 - 40 * aside.x, (before.y + after.y) / 2 - 40 * aside.y)
    begin, end = _edge_of(before, bend), _edge_of(after, bend)
    label = _Point((begin.x + end.x) / 4 + bend.x / 2 - 11 * aside.x, (begin.y + end.y) / 4 + bend.y / 2 - 11 * aside.y)
    anchor = "middle" if abs(aside.x) < 0.2 else "start" if aside.x < 0 else "end"
    return f"M{begin.x:.0f} {begin.y:.0f} Q{bend.x:.0f} {bend.y:.0f} {end.x:.0f} {end.y:.0f}", label, anchor


def _edge_of(centre: _Point, towards: _Point) -> _Point:
    """Where the line from a box's centre to a point leaves the box."""
    x, y = towards.x - centre.x, towards.y - centre.y
    share = min(_BOX.x / abs(x) if x else 1e9, _BOX.y / abs(y) if y else 1e9)
    return _Point(centre.x + share * x, centre.y + share * y)


def _loop(role: Role) -> tuple[str, _Point, str]:
    """An arrow from a box to itself, above it."""
    x, y = _PLACES[role].x + _LOOPS[role], _PLACES[role].y - _BOX.y
    path = f"M{x - 16:.0f} {y:.0f} C{x - 28:.0f} {y - 36:.0f} {x + 28:.0f} {y - 36:.0f} {x + 16:.0f} {y:.0f}"
    return path, _Point(x, y - 36), "middle"


# --- Options, messages, Ready -----------------------------------------------------------------------------------------

_UNITS: Final = {"ticks": "ticks", "bytes": "bytes", "messages": "messages", "ms": "ms", "requests": "reads"}

_MEANINGS: Final = {
    (GroupOptions, "heartbeat_ticks"): "How often a leader makes itself heard.",
    (GroupOptions, "inflight_messages_max"): "APPENDs with entries to one follower that are not answered.",
    (
        GroupOptions,
        "check_quorum",
    ): "Whether a leader that does not hear a majority for an election timeout steps down, "
    "and whoever hears a leader refuses its vote.",
    (GroupOptions, "pre_vote"): "Whether a campaign begins by asking if it could be won.",
    (GroupOptions, "read_mode"): "How linearizable reads are confirmed: `quorum` or `lease`.",
    (GroupOptions, "steps_down_on_removal"): "Whether a leader follows once its own removal is applied.",
    (Ready, "snapshot"): "Replaces the log; to be made durable with the rest.",
    (Ready, "append"): "Entries to be made durable, in order, at their indexes.",
    (Ready, "messages"): "They may leave at once.",
    (Ready, "responses"): "Promises: they leave, or are stepped back if they are to the replica itself, only when all "
    "that was handed out before is durable.",
    (Ready, "committed"): "May be applied at once; then `on_applied` is to be told.",
    (Ready, "read_states"): "Reads that know their index: each may be served once that is applied.",
    (DriverOptions, "waiting_bytes_max"): "Proposals of all groups that are not in a log yet; above it, `Overloaded`. "
    "The node takes it from {setting}`listen.bytes_in_flight_total_max`.",
    (DriverOptions, "producers_max"): "What one partition remembers: {setting}`producers.per_partition_max`.",
    (DriverOptions, "producer_expiry_ms"): "For how long: {setting}`producers.expiry_seconds`.",
    (DriverOptions, "raft"): "What stands in the table above.",
}
"""Fields that have no words of their own where they are declared."""


def field_words(kind: type[Any]) -> dict[str, str]:
    """The strings below a class's fields, by field."""
    (body,) = (node.body for node in ast.parse(inspect.getsource(kind)).body if isinstance(node, ast.ClassDef))
    words = {}
    for before, node in itertools.pairwise(body):
        match before, node:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                words[name] = " ".join(text.split())
    return words


def undocumented(kind: type[Any]) -> set[str]:
    """Fields of which neither the code nor this module says anything, and those of which both do."""
    own = set(field_words(kind))
    here = {name for known, name in _MEANINGS if known is kind}
    return {item.name for item in dataclasses.fields(kind)} ^ own ^ here


def _options(kind: type[Any]) -> str:
    words, rows = field_words(kind), []
    for item in dataclasses.fields(kind):
        value = item.default
        unit = next((unit for word, unit in _UNITS.items() if word in item.name.split("_")), "")
        meaning = words.get(item.name) or _MEANINGS[kind, item.name]
        rows.append((code(item.name), _value_text(value), unit, meaning))
    return table(("option", "default", "unit", "meaning"), rows)


def _value_text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, enum.Enum):
        return str(value.value)
    return f"{value:,}" if isinstance(value, int) else ""


def group_options() -> str:
    """The limits of one replica."""
    return _options(GroupOptions)


def driver_options() -> str:
    """The limits of all groups of a node."""
    return _options(DriverOptions)


def _fields(kind: type[Any]) -> Iterator[Row]:
    words = field_words(kind)
    for name in get_type_hints(kind):
        meaning = words.get(name) or _MEANINGS.get((kind, name))
        if meaning:
            yield code(name), meaning


def ready_fields() -> str:
    """What a Ready says."""
    return table(("field of a Ready", "what it says"), _fields(Ready))


def message_fields() -> str:
    """What a message carries besides its type, its two ends and what its name says."""
    return table(("field of a message", "what it says"), _fields(Message))


# --- Bugs -------------------------------------------------------------------------------------------------------------


def bugs() -> str:
    """The bugs of others and the journal's rules: what `python -m tests.mutants --table` prints."""
    return markdown_table(MUTANTS, read_kills())


TABLES: Final[Mapping[str, Callable[[], str]]] = {
    made.__name__.replace("_", "-"): made
    for made in (
        raft_machine,
        raft_handlers,
        raft_ways,
        ready_fields,
        message_fields,
        group_options,
        driver_options,
        bugs,
    )
}
"""Every table, by the name that a page calls it by."""

DRAWINGS: Final[Mapping[str, Callable[[], str]]] = {"roles": roles_drawing}
"""Every drawing, likewise."""
