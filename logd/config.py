"""The settings of one node: what may be set, how it is written, and where each value came from.

Its one idea: every setting is declared once, as an annotated field with its type, bounds, default and the reason for
it; reading, checking, naming in the environment and the settings table of the documentation all follow from that
declaration. It must not know what a setting is used for, nor look at the machine: it reads one file and nothing else,
so that settings mean the same beside a running node as before its first start.
"""

import dataclasses
import difflib
import enum
import functools
import ipaddress
import math
import os
import re
import stat
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Final, Literal

import msgspec

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
TIB: Final = 1 << 40

MINUTE: Final = 60.0
HOUR: Final = 3_600.0
DAY: Final = 86_400.0
YEAR: Final = 365 * DAY

# A configuration is written by hand; a file beyond this was not meant to be one.
FILE_BYTES_MAX: Final = MIB
# A file that is wrong from top to bottom is told so on one screen or two, not on a thousand.
PROBLEMS_MAX: Final = 100
# The longest excerpt of a wrong value that a message repeats.
SHOWN_CHARACTERS_MAX: Final = 80
# What a frame holds beside its batch (type, request id, headers, names): as much as a frame may be before the
# handshake.
FRAME_OVERHEAD_BYTES: Final = 4 * KIB
# A segment opens with one block of its own.
SEGMENT_HEADER_BYTES: Final = 4 * KIB
# A journal file opens with a table: one row per group (start, hard state, promised end), rounded up, and its heads.
JOURNAL_TABLE_ROW_BYTES: Final = 256
JOURNAL_TABLE_HEAD_BYTES: Final = 64 * KIB

# Where a value comes from that nobody gave.
DEFAULT_ORIGIN: Final = "default"

# Names of clusters, nodes and users. They stand in the URI of a certificate, so that nothing in them needs escaping.
NAME_SYNTAX: Final = "[a-z0-9][a-z0-9._-]{0,62}"
_NAME = re.compile(NAME_SYNTAX)


def is_name(text: str) -> bool:
    """Say whether `text` may name a cluster, a node or a user: `[a-z0-9]`, then at most 62 of `[a-z0-9._-]`."""
    return _NAME.fullmatch(text) is not None


class ConfigurationError(Exception):
    """The configuration is wrong; nothing was started and nothing changed.

    `problems` holds one line for each thing wrong, with the key as the user wrote it and where it was written.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class Address(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to listen: a host (name or IP address, IPv6 without brackets) and a port (0: the system chooses)."""

    host: str
    # Invariant: it lies in [0, 65535].
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Value = int | float | bool | str | Address | None


class SettingType(enum.StrEnum):
    """How a setting is written."""

    SIZE = "size"
    COUNT = "count"
    DURATION = "duration"
    NAME = "name"
    PATH = "path"
    ADDRESS = "address"
    CHOICE = "choice"


@dataclasses.dataclass(frozen=True, slots=True)
class _Rule:
    """What a field's annotation says: all of a setting but its name and its default."""

    type: SettingType
    meaning: str
    minimum: float = 0
    maximum: float = math.inf
    choices: tuple[str, ...] = ()
    # "none" is a value too, and means without bound.
    optional: bool = False


def _size(minimum: int, maximum: int, meaning: str, *, optional: bool = False) -> _Rule:
    return _Rule(SettingType.SIZE, meaning, minimum, maximum, optional=optional)


def _count(minimum: int, maximum: int, meaning: str) -> _Rule:
    return _Rule(SettingType.COUNT, meaning, minimum, maximum)


def _duration(minimum: float, maximum: float, meaning: str, *, optional: bool = False) -> _Rule:
    return _Rule(SettingType.DURATION, meaning, minimum, maximum, optional=optional)


def _name(meaning: str) -> _Rule:
    return _Rule(SettingType.NAME, meaning)


def _path(meaning: str) -> _Rule:
    return _Rule(SettingType.PATH, meaning)


def _address(meaning: str) -> _Rule:
    return _Rule(SettingType.ADDRESS, meaning)


def _choice(choices: tuple[str, ...], meaning: str) -> _Rule:
    return _Rule(SettingType.CHOICE, meaning, choices=choices)


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of settings: one table of the file, one prefix in the environment."""


class NodeSettings(Section, frozen=True, kw_only=True):
    """Who this node is and where it keeps its data."""

    name: Annotated[
        str, _name("Name of this node, as in its certificate; the first pod of a stateful set by default.")
    ] = "logd-0"
    cluster_name: Annotated[
        str, _name("Name of the cluster, as in every certificate of it; enough for who has one.")
    ] = "logd"
    data_dir: Annotated[
        str, _path("Directory of the node's data; no default, for data must never land where nobody looks for it.")
    ]


class ListenSettings(Section, frozen=True, kw_only=True):
    """The native door: where it stands, and what one connection and all together may hold."""

    client: Annotated[
        Address,
        _address("Where clients connect, `host:port`, IPv6 in brackets, port 0 for any; local until told otherwise."),
    ] = Address("127.0.0.1", 7421)
    connections_max: Annotated[
        int,
        _count(
            1, 65_536, "Connections at once, then new ones are closed; each takes a descriptor, so raise both together."
        ),
    ] = 1024
    requests_in_flight_max: Annotated[
        int,
        _count(
            1, 65_536, "Requests unanswered per connection, then it is not read; covers 100 ms at 2,500 requests/s."
        ),
    ] = 256
    bytes_in_flight_max: Annotated[
        int,
        _size(
            64 * KIB, 16 * GIB, "Bytes of unanswered requests per connection, then it is not read; four full frames."
        ),
    ] = 32 * MIB
    bytes_in_flight_total_max: Annotated[
        int,
        _size(64 * KIB, TIB, "Bytes of unanswered requests over all connections; a small machine's spare memory."),
    ] = 256 * MIB
    handshake_seconds: Annotated[
        float,
        _duration(0.1, 10 * MINUTE, "Time for TLS and Hello, then the connection is closed; ten slow round trips."),
    ] = 10.0
    idle_seconds: Annotated[
        float,
        _duration(
            0, YEAR, "Time without a request before a connection is closed, 0 for never; waiting is what consumers do."
        ),
    ] = 0.0
    frame_seconds: Annotated[
        float,
        _duration(
            0.1, HOUR, "Time from a frame's first byte to its last, then the connection is closed; 8 MiB at 2.3 Mbit/s."
        ),
    ] = 30.0
    write_stall_seconds: Annotated[
        float,
        _duration(0.1, HOUR, "Time in which a peer may take nothing of what it is sent, then it is closed; as frames."),
    ] = 30.0
    subscriptions_max: Annotated[
        int, _count(1, 65_536, "Subscriptions per connection; a consumer of every partition of the largest topic.")
    ] = 1_000


class TlsSettings(Section, frozen=True, kw_only=True):
    """The files that say who this node is and whom it believes."""

    ca: Annotated[
        str, _path("PEM file with the cluster's CA (two while it is replaced); no default, trust is a decision.")
    ]
    certificate: Annotated[str, _path("PEM file with the node's certificate; no default, it is made for one node.")]
    key: Annotated[str, _path("PEM file with the certificate's private key, without passphrase; no default, as above.")]


class ProtocolSettings(Section, frozen=True, kw_only=True):
    """The limits that a client is told when it says Hello."""

    frame_bytes_max: Annotated[
        int, _size(64 * KIB, 256 * MIB, "Longest frame; holds several full batches, and is soon over on a slow line.")
    ] = 8 * MIB
    batch_bytes_max: Annotated[
        int, _size(KIB, 64 * MIB, "Longest batch with its header; at 1 MiB the cost per batch is long negligible.")
    ] = MIB
    fetch_wait_seconds_max: Annotated[
        float,
        _duration(0, HOUR, "Longest wait of a Fetch at the end of a log; below the patience of most middleboxes."),
    ] = 60.0
    fetch_bytes_max: Annotated[
        int, _size(4 * KIB, 256 * MIB, "Most bytes of batches in one Fetched; half a frame, so that two fit in flight.")
    ] = 4 * MIB


class StoreSettings(Section, frozen=True, kw_only=True):
    """The segments: how long they get and what they keep free."""

    segment_bytes_max: Annotated[
        int, _size(MIB, TIB, "Length at which a segment is sealed; retention's grain, and few files for a terabyte.")
    ] = 64 * MIB
    index_interval_bytes: Annotated[
        int, _size(512, 64 * MIB, "Bytes of a segment per entry of its index; a page, the least that a disk reads.")
    ] = 4 * KIB
    disk_reserve_bytes: Annotated[
        int, _size(0, TIB, "Space kept for control batches, start files and recovery; one segment's worth.")
    ] = 64 * MIB
    readers: Annotated[
        int,
        _count(1, 64, "Threads for reads that miss the page cache; what keeps a disk busy without crowding two cores."),
    ] = 4


class JournalSettings(Section, frozen=True, kw_only=True):
    """The journal: what one fsync makes durable."""

    file_bytes: Annotated[
        int,
        _size(MIB, 16 * GIB, "Length of a journal file, zeroed once and recycled; seven full rounds and a table."),
    ] = 64 * MIB
    files_max: Annotated[
        int, _count(3, 1_024, "Files before rounds wait for segments to be synced; bounds recovery to 512 MiB.")
    ] = 8
    round_bytes_max: Annotated[
        int, _size(64 * KIB, GIB, "Most bytes that one fsync makes durable; one full frame, which must fit.")
    ] = 8 * MIB
    confirm_seconds: Annotated[
        float,
        _duration(
            0.01, MINUTE, "Quiet time before an empty round confirms the last one (`journal_confirm`); cheap at 1/s."
        ),
    ] = 1.0


class TopicsSettings(Section, frozen=True, kw_only=True):
    """What topics are made with, and how many there may be."""

    partitions_default: Annotated[
        int,
        _count(
            1, 100_000, "Partitions of a topic that is made without saying; order over all records is least surprising."
        ),
    ] = 1
    partitions_max: Annotated[
        int, _count(1, 100_000, "Partitions of one topic; a quarter of the node's, so that one cannot take all.")
    ] = 1_000
    partitions_total_max: Annotated[
        int, _count(1, 100_000, "Partitions of the node; their rows in the journal's table stay near 1 MiB.")
    ] = 4_000
    retention_bytes: Annotated[
        int | None,
        _size(
            1, (1 << 63) - 1, 'Bytes kept per partition, or "none" (-1); age alone decides by default.', optional=True
        ),
    ] = None
    retention_seconds: Annotated[
        float | None,
        _duration(
            1,
            1_000 * YEAR,
            'Age up to which records are kept, or "none"; a week, a long weekend is no loss.',
            optional=True,
        ),
    ] = 7 * DAY
    retention_check_seconds: Annotated[
        float, _duration(0.1, DAY, "Time between two looks at what retention may remove; far below any useful age.")
    ] = 30.0


class ProducersSettings(Section, frozen=True, kw_only=True):
    """What is remembered of idempotent producers."""

    per_partition_max: Annotated[
        int,
        _count(
            1,
            1_000_000,
            "Idempotent producers per partition, then Overloaded; bounds what a client of many ids can take.",
        ),
    ] = 10_000
    expiry_seconds: Annotated[
        float,
        _duration(
            MINUTE, 10 * YEAR, "Time without a batch before a producer is forgotten; as long as records are kept."
        ),
    ] = 7 * DAY


class LogSettings(Section, frozen=True, kw_only=True):
    """The node's own log lines."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        _choice(
            ("debug", "info", "warning", "error"), "Least level that is written; info tells starts, stops, repairs."
        ),
    ] = "info"
    format: Annotated[
        Literal["auto", "text", "json"],
        _choice(
            ("auto", "text", "json"), "Shape of a line; auto is text on a terminal, where people read, and else json."
        ),
    ] = "auto"


class ShutdownSettings(Section, frozen=True, kw_only=True):
    """How a node stops."""

    drain_seconds: Annotated[
        float, _duration(0, HOUR, "Time to answer what is in flight before a stop; a third of what Kubernetes grants.")
    ] = 10.0


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every setting of a node, checked. `origins` says for each key where its value came from."""

    node: NodeSettings
    listen: ListenSettings
    tls: TlsSettings
    protocol: ProtocolSettings
    store: StoreSettings
    journal: JournalSettings
    topics: TopicsSettings
    producers: ProducersSettings
    log: LogSettings
    shutdown: ShutdownSettings
    # Invariant: one entry per setting, by its dotted key.
    origins: dict[str, str]

    def items(self) -> Iterator[tuple["Setting", Value, str]]:
        """Yield every setting in the order of the table, with its value and the origin of that value."""
        for setting in settings_table():
            section, name = setting.key.split(".")
            yield setting, getattr(getattr(self, section), name), self.origins[setting.key]


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One setting as declared; the documentation's table is made of these."""

    # Dotted, as in the file: `store.segment_bytes_max`.
    key: str
    type: SettingType
    # Meaningless when `required`.
    default: Value
    required: bool
    optional: bool
    # "bytes", "seconds", or "" for what has none.
    unit: str
    # None for what has no bounds.
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    meaning: str

    @property
    def environment(self) -> str:
        """The name of its environment variable: `LOGD_STORE_SEGMENT_BYTES_MAX`."""
        return "LOGD_" + self.key.replace(".", "_").upper()

    @property
    def flag(self) -> str:
        """The flag that a command line would give it: `--store-segment-bytes-max`."""
        return "--" + self.key.replace(".", "-").replace("_", "-")

    @property
    def expected(self) -> str:
        """What a right value looks like, in the words of an error message."""
        return _expected(self)

    @property
    def default_text(self) -> str:
        """The default as a person would write it; empty for a required setting."""
        return "" if self.required else value_text(self, self.default)


_UNITS = {SettingType.SIZE: "bytes", SettingType.DURATION: "seconds"}
_BOUNDED = (SettingType.SIZE, SettingType.DURATION, SettingType.COUNT)


@functools.cache
def _sections() -> dict[str, type[Section]]:
    hints = typing.get_type_hints(Config)
    return {name: hints[name] for name in Config.__struct_fields__ if name != "origins"}


@functools.cache
def settings_table() -> list[Setting]:
    """Return every setting, in the order of the file's sections and of the declarations in them."""
    table = []
    for section_name, section in _sections().items():
        hints = typing.get_type_hints(section, include_extras=True)
        for field in msgspec.structs.fields(section):
            rule: _Rule = hints[field.name].__metadata__[0]
            bounded = rule.type in _BOUNDED
            table.append(
                Setting(
                    key=f"{section_name}.{field.name}",
                    type=rule.type,
                    default=None if field.required else field.default,
                    required=field.required,
                    optional=rule.optional,
                    unit=_UNITS.get(rule.type, ""),
                    minimum=rule.minimum if bounded else None,
                    maximum=rule.maximum if bounded else None,
                    choices=rule.choices,
                    meaning=rule.meaning,
                )
            )
    return table


@dataclasses.dataclass(frozen=True, slots=True)
class Given:
    """A flag's value with the name under which the user knows it.

    A `suggested` value stands only just above the defaults, so that the file, the environment and real flags go over
    it; this is how a mode such as `--dev` brings its own defaults.
    """

    value: object
    origin: str
    suggested: bool = False


# A development node lives on somebody's laptop: it takes little room and leaves little behind.
# Not less than a journal file: a start on a full disk may have to make one.
_DEVELOPMENT_DISK_RESERVE_BYTES = 16 * MIB
_DEVELOPMENT_JOURNAL_FILE_BYTES = 16 * MIB
_DEVELOPMENT_JOURNAL_FILES_MAX = 4


def development_certificates_directory(data_dir: str) -> str:
    """Return where a development node keeps the certificates that it makes for itself."""
    return os.path.join(data_dir, "tls")


def development_flags(data_dir: str = "./.logd") -> dict[str, object]:
    """Return what `--dev` brings to `load(…, flags)`: defaults of its own, over which everything else goes.

    Merge it under the user's flags: `{**development_flags(data_dir), **flags}`. The certificates it names are
    made by `logd.security.ca.ensure_development_certificates`.
    """
    tls = development_certificates_directory(data_dir)
    values: dict[str, object] = {
        "node.data_dir": data_dir,
        "tls.ca": os.path.join(tls, "ca.crt"),
        "tls.certificate": os.path.join(tls, "node.crt"),
        "tls.key": os.path.join(tls, "node.key"),
        "store.disk_reserve_bytes": _DEVELOPMENT_DISK_RESERVE_BYTES,
        "journal.file_bytes": _DEVELOPMENT_JOURNAL_FILE_BYTES,
        "journal.files_max": _DEVELOPMENT_JOURNAL_FILES_MAX,
    }
    return {key: Given(value, "--dev", suggested=True) for key, value in values.items()}


def load(config_path: str | None, environment: Mapping[str, str], flags: Mapping[str, object]) -> Config:
    """Read and check the settings: defaults, then suggested flags, the file, `LOGD_*` variables, and flags.

    `config_path` is the TOML file, or None for none. Relative paths in it count from its directory; those from the
    environment and flags from the working directory. `flags` maps dotted keys to values or `Given`s; None is "not
    given".
    Only the file is read; no file that a setting names is looked at.

    Raises `ConfigurationError` with every problem found (at most `PROBLEMS_MAX`, and how many more).
    """
    problems = _Problems()
    settings = {setting.key: setting for setting in settings_table()}
    file_layer = _file_layer(config_path, settings, problems)
    layers = [
        _flag_layer(flags, settings, problems, suggested=True),
        file_layer or {},
        _environment_layer(environment, settings, problems),
        _flag_layer(flags, settings, problems, suggested=False),
    ]
    values: dict[str, Value] = {}
    origins: dict[str, str] = {}
    for key, setting in settings.items():
        written = next((layer[key] for layer in reversed(layers) if key in layer), None)
        if written is None:
            # In a file that could not be read it may well be set.
            if setting.required and file_layer is not None:
                problems.add(f"{key}: required; set it in the file, or as {setting.environment}{_hint_required(key)}")
            if setting.required:
                continue
            values[key], origins[key] = setting.default, DEFAULT_ORIGIN
            continue
        try:
            values[key] = _parse(setting, written)
        except ValueError as error:
            detail = f" ({error})" if str(error) else ""
            problems.add(
                f"{key}: expected {setting.expected}, got {_shown(written.value)}{detail} (from {written.origin})"
            )
            continue
        origins[key] = written.origin
    if file_layer is not None:
        _check_relations(values, origins, problems)
    problems.raise_if_any()
    sections = {
        name: section(**{field: values[f"{name}.{field}"] for field in section.__struct_fields__})
        for name, section in _sections().items()
    }
    return Config(**sections, origins=origins)  # type: ignore[arg-type]  # the table pairs names with their types


class _Problems:
    """What is wrong so far; counts on beyond its bound without keeping more."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._more = 0

    @property
    def full(self) -> bool:
        return len(self._lines) >= PROBLEMS_MAX

    def add(self, line: str) -> None:
        if self.full:
            self._more += 1
        else:
            self._lines.append(line)

    def raise_if_any(self) -> None:
        if self._more:
            raise ConfigurationError([*self._lines, f"… and {self._more} more problems"])
        if self._lines:
            raise ConfigurationError(self._lines)


@dataclasses.dataclass(frozen=True, slots=True)
class _Written:
    """A value as somebody wrote it."""

    value: object
    origin: str
    # A variable or a flag can only be text; in the file a quoted number is a mistake.
    textual: bool
    # Relative paths count from here; empty is the working directory.
    directory: str = ""


def _hint_required(key: str) -> str:
    return " (or start with --dev)" if key.startswith("tls.") or key == "node.data_dir" else ""


def _flag_layer(
    flags: Mapping[str, object], settings: Mapping[str, Setting], problems: _Problems, *, suggested: bool
) -> dict[str, _Written]:
    layer = {}
    for key, flag in flags.items():
        is_suggested = isinstance(flag, Given) and flag.suggested
        value = flag.value if isinstance(flag, Given) else flag
        if is_suggested is not suggested or value is None:
            continue
        if key not in settings:
            problems.add(f"{_shown_key(key)}: unknown setting{_nearest(key, list(settings), problems)}")
            continue
        layer[key] = _Written(value, flag.origin if isinstance(flag, Given) else settings[key].flag, textual=True)
    return layer


# Kubernetes tells every pod of every service in its namespace: a service named `logd` yields LOGD_SERVICE_HOST,
# LOGD_PORT, LOGD_PORT_7421_TCP_ADDR and so on. They are not meant for us.
_SERVICE_LINK = re.compile(
    r"LOGD_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
# A variable outside our sections may belong to somebody else; if it is this like one of ours, it is a typing error.
_ALIKE = 0.85


def _environment_layer(
    environment: Mapping[str, str], settings: Mapping[str, Setting], problems: _Problems
) -> dict[str, _Written]:
    by_variable = {setting.environment: key for key, setting in settings.items()}
    layer = {}
    for variable, text in environment.items():
        if variable in by_variable:
            layer[by_variable[variable]] = _Written(text, variable, textual=True)
        elif variable.startswith("LOGD_") and not _SERVICE_LINK.fullmatch(variable) and not problems.full:
            ours = variable.split("_")[1].lower() in _sections()
            nearest = _nearest(variable, list(by_variable), problems, cutoff=_ALIKE)
            if ours or nearest:
                problems.add(f"{_shown_key(variable)}: unknown variable{nearest}")
    return layer


def _file_layer(path: str | None, settings: Mapping[str, Setting], problems: _Problems) -> dict[str, _Written] | None:
    """Return what the file sets, or None if it cannot be read: then nobody knows what it was to set."""
    if path is None:
        return {}
    try:
        document = tomllib.loads(_read_file(path))
    except OSError as error:
        problems.add(f"{path}: cannot be read: {error.strerror or error}")
        return None
    except RecursionError:
        problems.add(f"{path}: not valid TOML: nested too deeply")
        return None
    except ValueError as error:
        problems.add(f"{path}: not valid TOML: {error}")
        return None
    layer = {}
    directory = os.path.dirname(path)
    keys = list(settings)
    for section, table in document.items():
        if section not in _sections():
            _add_unknown_section(path, section, table, keys, problems)
            continue
        if not isinstance(table, dict):
            problems.add(f"{section}: expected a section [{section}], got {_shown(table)} (from {path})")
            continue
        for name, value in table.items():
            key = f"{section}.{name}"
            if key in settings:
                layer[key] = _Written(value, path, textual=False, directory=directory)
            else:
                problems.add(f"{_shown_key(key)}: unknown key{_nearest(key, keys, problems)} (from {path})")
    return layer


def _add_unknown_section(path: str, section: str, table: object, keys: list[str], problems: _Problems) -> None:
    if isinstance(table, dict):
        nearest = _nearest(section, list(_sections()), problems, form="[{}]")
        problems.add(f"[{_shown_key(section)}]: unknown section{nearest} (from {path})")
    else:
        problems.add(f"{_shown_key(section)}: unknown key{_nearest(section, keys, problems)} (from {path})")


def _read_file(path: str) -> str:
    """Return the text of a regular file; never wait for a pipe's other end, never take more than the bound."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    # Opening a directory this way is refused by Python itself.
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "not a regular file")
        content = file.read(FILE_BYTES_MAX + 1)
    if len(content) > FILE_BYTES_MAX:
        raise ValueError(f"longer than {_size_text(FILE_BYTES_MAX)}")
    return content.decode()


def _nearest(written: str, known: list[str], problems: _Problems, *, cutoff: float = 0.6, form: str = "{}") -> str:
    """Return "; did you mean …?" or nothing. Costs a comparison with every known name, so not beyond the bound."""
    if problems.full or len(written) > SHOWN_CHARACTERS_MAX:
        return ""
    # The right key in the wrong section, or in none, is nearer than any other likeness.
    last = written.rpartition(".")[2]
    matches = [name for name in known if name.rpartition(".")[2] == last and name != last]
    matches = matches or difflib.get_close_matches(written, known, n=1, cutoff=cutoff)
    return f"; did you mean {form.format(matches[0])}?" if matches else ""


# How values are read.

_SIZE_UNITS = {"b": 1, "kib": KIB, "mib": MIB, "gib": GIB, "tib": TIB}
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": MINUTE, "min": MINUTE, "h": HOUR, "d": DAY}
_WHOLE = re.compile(r"[+-]?[0-9]{1,19}")
_SIZE = re.compile(r"([0-9]{1,19})\s*([A-Za-z]+)")
_DURATION = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)")


def _parse(setting: Setting, written: _Written) -> Value:
    """Return the value, or raise `ValueError` with whatever the expectation alone does not say."""
    value = written.value
    if setting.optional and (value == "none" or (isinstance(value, int | str) and str(value) == "-1")):
        return None
    parsed = _PARSERS[setting.type](setting, written)
    if setting.minimum is not None and setting.maximum is not None:
        # The parsers of bounded types yield numbers.
        assert isinstance(parsed, int | float)
        if not setting.minimum <= parsed <= setting.maximum:
            raise ValueError
    return parsed


def _parse_count(_setting: Setting, written: _Written) -> int:
    if isinstance(written.value, int) and not isinstance(written.value, bool):
        return written.value
    if isinstance(written.value, str) and _WHOLE.fullmatch(written.value.strip()):
        if written.textual:
            return int(written.value)
        raise ValueError("a number needs no quotes")
    raise ValueError


def _parse_size(setting: Setting, written: _Written) -> int:
    if not isinstance(written.value, str):
        return _parse_count(setting, written)
    text = written.value.strip()
    if match := _SIZE.fullmatch(text):
        unit = match[2].lower()
        if unit not in _SIZE_UNITS:
            raise ValueError("units are B, KiB, MiB, GiB, TiB")
        return int(match[1]) * _SIZE_UNITS[unit]
    return _parse_count(setting, written)


def _parse_duration(_setting: Setting, written: _Written) -> float:
    value = written.value
    if isinstance(value, int | float) and not isinstance(value, bool):
        # A whole number of hundreds of digits does not fit a float; the bounds exclude it anyway.
        if not math.isfinite(value) if isinstance(value, float) else abs(value) > 1 << 63:
            raise ValueError
        return float(value)
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        if not match[2] and not written.textual:
            raise ValueError("a number needs no quotes")
        if (match[2].lower() or "s") not in _DURATION_UNITS:
            raise ValueError("units are ms, s, min, h, d")
        return float(match[1]) * _DURATION_UNITS[match[2].lower() or "s"]
    raise ValueError


def _parse_name(_setting: Setting, written: _Written) -> str:
    if isinstance(written.value, str) and is_name(written.value):
        return written.value
    raise ValueError


def _parse_path(_setting: Setting, written: _Written) -> str:
    if not isinstance(written.value, str) or not written.value or "\0" in written.value:
        raise ValueError
    return os.path.join(written.directory, written.value)


def _parse_address(_setting: Setting, written: _Written) -> Address:
    if not isinstance(written.value, str):
        raise ValueError  # noqa: TRY004 - every wrong value is told the same way
    return parse_address(written.value)


def _parse_choice(setting: Setting, written: _Written) -> str:
    if isinstance(written.value, str) and written.value in setting.choices:
        return written.value
    raise ValueError


_PARSERS: dict[SettingType, Callable[[Setting, _Written], Value]] = {
    SettingType.SIZE: _parse_size,
    SettingType.COUNT: _parse_count,
    SettingType.DURATION: _parse_duration,
    SettingType.NAME: _parse_name,
    SettingType.PATH: _parse_path,
    SettingType.ADDRESS: _parse_address,
    SettingType.CHOICE: _parse_choice,
}

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})")


def parse_address(text: str) -> Address:
    """Return the address that `text` (`host:port`, IPv6 in brackets) names; raise `ValueError` saying what is wrong."""
    host, colon, port_text = text.rpartition(":")
    if not colon or not re.fullmatch("[0-9]{1,5}", port_text) or int(port_text) > 65_535:
        raise ValueError("the port is missing or not in [0, 65535]")
    if host.startswith("[") and host.endswith("]"):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise ValueError("no IPv6 address in the brackets") from None
        return Address(host[1:-1], int(port_text))
    if ":" in host:
        raise ValueError("an IPv6 address stands in brackets")
    if not _HOST.fullmatch(host):
        raise ValueError("the host is missing; 0.0.0.0 is every address" if not host else "not a host name")
    return Address(host, int(port_text))


# What settings must satisfy together.


@dataclasses.dataclass(frozen=True, slots=True)
class _Relation:
    """`lesser` (a key, or several added up) plus `room` must not exceed `greater`."""

    lesser: str
    greater: str
    reason: str
    room: Callable[[Mapping[str, Value]], int] = lambda _values: 0
    # Further keys that `room` reads.
    needs: tuple[str, ...] = ()


def _frame_overhead(_values: Mapping[str, Value]) -> int:
    return FRAME_OVERHEAD_BYTES


def _segment_header(_values: Mapping[str, Value]) -> int:
    return SEGMENT_HEADER_BYTES


def _journal_table(values: Mapping[str, Value]) -> int:
    return (
        typing.cast("int", values["topics.partitions_total_max"]) * JOURNAL_TABLE_ROW_BYTES + JOURNAL_TABLE_HEAD_BYTES
    )


RELATIONS: Final = (
    _Relation("protocol.batch_bytes_max", "protocol.frame_bytes_max", "a batch travels in one frame", _frame_overhead),
    _Relation(
        "protocol.fetch_bytes_max", "protocol.frame_bytes_max", "what is fetched travels in one frame", _frame_overhead
    ),
    _Relation(
        "protocol.frame_bytes_max", "journal.round_bytes_max", "what one frame brings is made durable in one round"
    ),
    _Relation(
        "journal.round_bytes_max",
        "journal.file_bytes",
        "a round stands in one journal file, after a table of all partitions",
        _journal_table,
        ("topics.partitions_total_max",),
    ),
    _Relation("protocol.batch_bytes_max", "store.segment_bytes_max", "a batch stands in one segment", _segment_header),
    _Relation("store.index_interval_bytes", "store.segment_bytes_max", "a segment's index needs an entry"),
    _Relation("protocol.frame_bytes_max", "listen.bytes_in_flight_max", "a connection must be able to hold one frame"),
    _Relation("listen.bytes_in_flight_max", "listen.bytes_in_flight_total_max", "one connection is part of all"),
    _Relation("topics.partitions_default", "topics.partitions_max", "a topic made without saying must be allowed"),
    _Relation("topics.partitions_max", "topics.partitions_total_max", "the largest topic must fit the node"),
)


def _origin_text(origins: Mapping[str, str], key: str) -> str:
    return "the default" if origins[key] == DEFAULT_ORIGIN else f"from {origins[key]}"


def _check_relations(values: Mapping[str, Value], origins: Mapping[str, str], problems: _Problems) -> None:
    settings = {setting.key: setting for setting in settings_table()}
    for relation in RELATIONS:
        if any(key not in values for key in (relation.lesser, relation.greater, *relation.needs)):
            continue
        lesser, greater = values[relation.lesser], values[relation.greater]
        # Relations hold between numbers.
        assert isinstance(lesser, int) and isinstance(greater, int)  # noqa: PT018 - one thought
        room = relation.room(values)
        if lesser + room > greater:
            added = f" and {_size_text(room)} more" if room else ""
            low = f"{value_text(settings[relation.lesser], lesser)} ({_origin_text(origins, relation.lesser)})"
            high = f"{value_text(settings[relation.greater], greater)} ({_origin_text(origins, relation.greater)})"
            problems.add(f"{relation.lesser}: {low}{added} must fit into {relation.greater}: {high}; {relation.reason}")


# How values are shown.


def value_text(setting: Setting, value: Value) -> str:
    """Return `value` as a person would write it in the file (without quotes): `64MiB`, `7d`, `none`, `true`."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if setting.type is SettingType.SIZE and isinstance(value, int):
        return _size_text(value).replace(" ", "")
    if setting.type is SettingType.DURATION and isinstance(value, int | float):
        return _duration_text(value).replace(" ", "")
    return str(value)


def _size_text(size: float) -> str:
    for unit, factor in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size >= factor and size % factor == 0:
            return f"{int(size) // factor} {unit}"
    return f"{int(size)} B" if size else "0"


def _duration_text(seconds: float) -> str:
    for unit, factor in (("d", DAY), ("h", HOUR), ("min", MINUTE)):
        if seconds >= factor and seconds % factor == 0:
            return f"{int(seconds / factor)} {unit}"
    return f"{seconds:g} s" if seconds >= 1 or seconds == 0 else f"{seconds * 1000:g} ms"


def _expected(setting: Setting) -> str:
    if setting.type is SettingType.CHOICE:
        text = "one of " + ", ".join(setting.choices)
    elif setting.minimum is None or setting.maximum is None:
        text = {
            SettingType.NAME: "a name of a-z, 0-9, '.', '_', '-', at most 63, the first a letter or digit",
            SettingType.PATH: "a path",
            SettingType.ADDRESS: "host:port",
        }[setting.type]
    elif setting.type is SettingType.SIZE:
        text = f"an integer in [{_size_text(setting.minimum)}, {_size_text(setting.maximum)}]"
    elif setting.type is SettingType.DURATION:
        text = f"a duration in [{_duration_text(setting.minimum)}, {_duration_text(setting.maximum)}]"
    else:
        text = f"an integer in [{int(setting.minimum)}, {int(setting.maximum)}]"
    return f'{text} or "none"' if setting.optional else text


def _shown(value: object) -> str:
    """Return a wrong value on one line, at a bounded length, with nothing in it that a terminal would act upon."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, int) and value.bit_length() > 256:
        return "a number of hundreds of digits"
    text = value if isinstance(value, str) else str(value)
    cut = text[:SHOWN_CHARACTERS_MAX]
    cut = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in cut)
    cut += "…" if len(text) > SHOWN_CHARACTERS_MAX else ""
    return f'"{cut}"' if isinstance(value, str) else cut


def _shown_key(key: str) -> str:
    return _shown(key)[1:-1]
