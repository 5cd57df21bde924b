"""The settings: what is said about each wrong value, what goes over what, and that none is undocumented."""

import os
import re
from pathlib import Path

import msgspec
import pytest

from logd import config
from logd.config import (
    RELATIONS,
    Address,
    Config,
    ConfigurationError,
    Given,
    SettingType,
    development_flags,
    load,
    parse_address,
    settings_table,
    value_text,
)

REQUIRED: dict[str, object] = {
    "node.data_dir": "data",
    "tls.ca": "ca.crt",
    "tls.certificate": "node.crt",
    "tls.key": "node.key",
}


def problems_of(path: Path | None, environment: dict[str, str], flags: dict[str, object]) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(None if path is None else str(path), environment, flags)
    return caught.value.problems


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "logd.toml"


# What goes over what.


def test_defaults_alone_make_a_configuration_once_the_required_settings_are_given() -> None:
    settings = load(None, {}, REQUIRED)

    assert settings.node.name == "logd-0"
    assert settings.listen.client == Address("127.0.0.1", 7421)
    assert settings.topics.retention_bytes is None
    assert settings.topics.retention_seconds == 7 * 86_400
    assert settings.origins["listen.client"] == "default"


def test_the_environment_goes_over_the_file_and_flags_over_both_and_each_value_remembers_its_source(file: Path) -> None:
    file.write_text("[store]\nreaders = 2\nindex_interval_bytes = 8192\nsegment_bytes_max = '2MiB'\n")
    environment = {"LOGD_STORE_READERS": "3", "LOGD_STORE_INDEX_INTERVAL_BYTES": "16KiB"}
    flags = {**REQUIRED, "store.readers": Given("5", "--readers")}

    settings = load(str(file), environment, flags)

    assert (settings.store.readers, settings.origins["store.readers"]) == (5, "--readers")
    assert (settings.store.index_interval_bytes, settings.origins["store.index_interval_bytes"]) == (
        16_384,
        "LOGD_STORE_INDEX_INTERVAL_BYTES",
    )
    assert (settings.store.segment_bytes_max, settings.origins["store.segment_bytes_max"]) == (2 << 20, str(file))
    assert settings.origins["node.data_dir"] == "--node-data-dir"


def test_a_flag_that_is_none_was_not_given() -> None:
    settings = load(None, {"LOGD_STORE_READERS": "7"}, {**REQUIRED, "store.readers": None})

    assert settings.store.readers == 7


def test_what_a_mode_suggests_goes_over_defaults_only(file: Path) -> None:
    file.write_text("[journal]\nfiles_max = 9\n")
    flags = {**development_flags("/dev-data"), "tls.key": "mine.key"}

    settings = load(str(file), {"LOGD_STORE_DISK_RESERVE_BYTES": "5MiB"}, flags)

    assert settings.node.data_dir == "/dev-data"
    assert settings.origins["node.data_dir"] == "--dev"
    assert settings.journal.files_max == 9
    assert settings.store.disk_reserve_bytes == 5 << 20
    assert settings.tls.key == "mine.key"
    assert settings.tls.certificate == os.path.join("/dev-data", "tls", "node.crt")


def test_development_flags_alone_make_a_configuration() -> None:
    settings = load(None, {}, development_flags())

    assert settings.node.data_dir == "./.logd"
    assert settings.journal.file_bytes < 64 << 20


def test_every_setting_can_be_set_in_each_of_the_three_places(file: Path) -> None:
    given = load(None, {}, REQUIRED)
    written = {setting.key: value_text(setting, value) for setting, value, _ in given.items()}
    lines: dict[str, list[str]] = {}
    for setting in settings_table():
        section, name = setting.key.split(".")
        bare = setting.type is SettingType.COUNT
        lines.setdefault(section, []).append(f"{name} = {written[setting.key] if bare else repr(written[setting.key])}")
    file.write_text("\n".join(f"[{section}]\n" + "\n".join(keys) for section, keys in lines.items()))

    from_file = load(str(file), {}, {})
    from_environment = load(None, {setting.environment: written[setting.key] for setting in settings_table()}, {})
    from_flags = load(None, {}, dict(written))

    for (setting, value, origin), (_, expected, _) in zip(from_file.items(), given.items(), strict=True):
        assert origin == str(file)
        assert value == (str(file.parent / str(expected)) if setting.type is SettingType.PATH else expected)
    assert set(from_environment.origins.values()) == {setting.environment for setting in settings_table()}
    for other in (from_environment, from_flags):
        assert [value for _, value, _ in other.items()] == [value for _, value, _ in given.items()]


def test_a_relative_path_counts_from_the_file_that_says_it_and_else_from_the_working_directory(file: Path) -> None:
    file.write_text("[tls]\nca = 'tls/ca.crt'\nkey = '/etc/logd/node.key'\n")
    environment = {"LOGD_TLS_CERTIFICATE": "node.crt", "LOGD_NODE_DATA_DIR": "data"}

    settings = load(str(file), environment, {})

    assert settings.tls.ca == str(file.parent / "tls/ca.crt")
    assert settings.tls.key == "/etc/logd/node.key"
    assert (settings.tls.certificate, settings.node.data_dir) == ("node.crt", "data")


def test_a_configuration_is_frozen_and_of_the_types_that_it_declares() -> None:
    settings = load(None, {}, REQUIRED)

    assert msgspec.convert(msgspec.to_builtins(settings), Config) == settings
    with pytest.raises(AttributeError):
        settings.store.readers = 9  # type: ignore[misc]  # that it is refused is the claim


# How values are written.


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("65536", 65_536),
        ("65536B", 65_536),
        ("64KiB", 65_536),
        ("64 kib", 65_536),
        ("3MiB", 3 << 20),
        ("1GiB", 1 << 30),
    ],
)
def test_a_size_is_a_number_of_bytes_or_has_a_binary_unit(written: str, meant: int) -> None:
    settings = load(None, {"LOGD_STORE_DISK_RESERVE_BYTES": written}, REQUIRED)

    assert settings.store.disk_reserve_bytes == meant


@pytest.mark.parametrize(
    ("written", "meant"),
    [("90", 90.0), ("1.5", 1.5), ("250ms", 0.25), ("5s", 5.0), ("2m", 120.0), ("2min", 120.0), ("1h", 3_600.0)],
)
def test_a_duration_is_seconds_or_has_a_unit(written: str, meant: float) -> None:
    settings = load(None, {"LOGD_LISTEN_FRAME_SECONDS": written}, REQUIRED)

    assert settings.listen.frame_seconds == pytest.approx(meant)


@pytest.mark.parametrize("written", ["-1", "'none'", "'-1'"])
def test_retention_without_bound_is_none_or_minus_one(file: Path, written: str) -> None:
    file.write_text(f"[topics]\nretention_bytes = {written}\nretention_seconds = {written}\n")

    settings = load(str(file), {}, REQUIRED)

    assert (settings.topics.retention_bytes, settings.topics.retention_seconds) == (None, None)


@pytest.mark.parametrize(
    ("written", "host", "port"),
    [
        ("127.0.0.1:7421", "127.0.0.1", 7421),
        ("0.0.0.0:0", "0.0.0.0", 0),
        ("[::1]:7421", "::1", 7421),
        ("[fe80::1%eth0]:65535", "fe80::1%eth0", 65_535),
        ("logd-0.logd.example:1", "logd-0.logd.example", 1),
    ],
)
def test_an_address_is_read_and_written_the_same(written: str, host: str, port: int) -> None:
    address = parse_address(written)

    assert address == Address(host, port)
    assert str(address) == written


# What is said about wrong values, one by one.

WRONG_VALUES = [
    # size
    (
        "store.segment_bytes_max",
        "'lots'",
        'store.segment_bytes_max: expected an integer in [1 MiB, 1 TiB], got "lots" (from FILE)',
    ),
    (
        "store.segment_bytes_max",
        "1",
        "store.segment_bytes_max: expected an integer in [1 MiB, 1 TiB], got 1 (from FILE)",
    ),
    ("store.segment_bytes_max", "'2TiB'", 'expected an integer in [1 MiB, 1 TiB], got "2TiB" (from FILE)'),
    ("store.segment_bytes_max", "'64MB'", 'got "64MB" (units are B, KiB, MiB, GiB, TiB) (from FILE)'),
    ("store.segment_bytes_max", "'-64MiB'", 'got "-64MiB" (from FILE)'),
    ("store.segment_bytes_max", "6.4e7", "got 64000000.0 (from FILE)"),
    ("store.segment_bytes_max", "'1048576'", 'got "1048576" (a number needs no quotes) (from FILE)'),
    ("store.segment_bytes_max", "'٦٤MiB'", 'got "٦٤MiB" (from FILE)'),
    ("store.segment_bytes_max", "'none'", 'got "none" (from FILE)'),
    ("store.segment_bytes_max", "-1", "got -1 (from FILE)"),
    ("topics.retention_bytes", "0", 'or "none", got 0 (from FILE)'),
    # count
    (
        "store.readers",
        "'4'",
        'store.readers: expected an integer in [1, 64], got "4" (a number needs no quotes) (from FILE)',
    ),
    ("store.readers", "true", "got true (from FILE)"),
    ("store.readers", "0", "got 0 (from FILE)"),
    ("store.readers", "65", "got 65 (from FILE)"),
    ("store.readers", "4.0", "got 4.0 (from FILE)"),
    ("store.readers", "[4]", "got a list (from FILE)"),
    ("store.readers", "{ four = 4 }", "got a section (from FILE)"),
    ("store.readers", "2024-05-01", "got 2024-05-01 (from FILE)"),
    ("store.readers", "1" * 400, "got a number of hundreds of digits (from FILE)"),
    # duration
    (
        "listen.handshake_seconds",
        "'soon'",
        'listen.handshake_seconds: expected a duration in [100 ms, 10 min], got "soon" (from FILE)',
    ),
    ("listen.handshake_seconds", "0", "got 0 (from FILE)"),
    ("listen.handshake_seconds", "nan", "got nan (from FILE)"),
    ("listen.handshake_seconds", "inf", "got inf (from FILE)"),
    ("listen.handshake_seconds", "false", "got false (from FILE)"),
    ("listen.handshake_seconds", "'10'", 'got "10" (a number needs no quotes) (from FILE)'),
    ("listen.handshake_seconds", "'1y'", 'got "1y" (units are ms, s, min, h, d) (from FILE)'),
    ("listen.handshake_seconds", "9" * 400, "got a number of hundreds of digits (from FILE)"),
    # name
    ("node.name", "'Logd 0'", "node.name: expected a name of a-z, 0-9, '.', '_', '-', at most 63"),
    ("node.name", "''", 'got "" (from FILE)'),
    ("node.name", "'-a'", 'got "-a" (from FILE)'),
    ("node.name", "'é'", 'got "é" (from FILE)'),
    ("node.name", '"a\\n"', 'got "a\\n" (from FILE)'),
    ("node.cluster_name", "7", "node.cluster_name: expected a name"),
    ("node.cluster_name", f"'{'a' * 64}'", f'got "{"a" * 64}" (from FILE)'),
    ("node.name", f"'{'a' * 5_000}'", f'got "{"a" * 80}…" (from FILE)'),
    # path
    ("node.data_dir", "''", 'node.data_dir: expected a path, got "" (from FILE)'),
    ("tls.ca", "7", "tls.ca: expected a path, got 7 (from FILE)"),
    ("tls.key", '"a\\u0000b"', 'tls.key: expected a path, got "a\\x00b" (from FILE)'),
    # address
    ("listen.client", "7421", "listen.client: expected host:port, got 7421 (from FILE)"),
    ("listen.client", "'127.0.0.1'", 'got "127.0.0.1" (the port is missing or not in [0, 65535]) (from FILE)'),
    ("listen.client", "'a:65536'", "(the port is missing or not in [0, 65535])"),
    ("listen.client", "'a:-1'", "(the port is missing or not in [0, 65535])"),
    ("listen.client", "'::1:7421'", "(an IPv6 address stands in brackets)"),
    ("listen.client", "'[127.0.0.1]:1'", "(no IPv6 address in the brackets)"),
    ("listen.client", "':7421'", "(the host is missing; 0.0.0.0 is every address)"),
    ("listen.client", "'a b:1'", "(not a host name)"),
    # choice
    (
        "log.level",
        "'loud'",
        'log.level: expected one of debug, info, warning, error, got "loud" (from FILE)',
    ),
    ("log.format", "7", "log.format: expected one of auto, text, json, got 7 (from FILE)"),
    ("log.format", "['text']", "log.format: expected one of auto, text, json, got a list (from FILE)"),
]


@pytest.mark.parametrize(("key", "written", "said"), WRONG_VALUES)
def test_a_wrong_value_in_the_file_is_told_with_its_key_what_was_expected_and_where_it_stands(
    file: Path, key: str, written: str, said: str
) -> None:
    section, name = key.split(".")
    file.write_text(f"[{section}]\n{name} = {written}\n")

    problems = problems_of(file, {}, {k: v for k, v in REQUIRED.items() if k != key})

    assert len(problems) == 1, problems
    assert problems[0].startswith(f"{key}: ")
    assert said.replace("FILE", str(file)) in problems[0]


@pytest.mark.parametrize(
    ("variable", "written", "said"),
    [
        ("LOGD_STORE_SEGMENT_BYTES_MAX", "lots", "store.segment_bytes_max: expected an integer in [1 MiB, 1 TiB]"),
        ("LOGD_STORE_READERS", "", 'store.readers: expected an integer in [1, 64], got ""'),
        ("LOGD_STORE_READERS", "1e1", 'got "1e1"'),
        ("LOGD_LISTEN_IDLE_SECONDS", "-5", 'listen.idle_seconds: expected a duration in [0 s, 365 d], got "-5"'),
        ("LOGD_NODE_NAME", "\udcff\x1b[2J", 'got "\\udcff\\x1b[2J"'),
    ],
)
def test_a_wrong_variable_is_named(variable: str, written: str, said: str) -> None:
    problems = problems_of(None, {variable: written}, REQUIRED)

    assert len(problems) == 1
    assert said in problems[0]
    assert problems[0].endswith(f"(from {variable})")


def test_a_wrong_flag_is_named_as_the_user_knows_it() -> None:
    problems = problems_of(None, {}, {**REQUIRED, "listen.client": Given("nowhere", "--listen"), "store.readers": 0})

    assert [problem.rpartition(" (from ")[2] for problem in problems] == ["--listen)", "--store-readers)"]


def test_all_problems_are_told_at_once(file: Path) -> None:
    file.write_text("[store]\nreaders = 0\n[log]\nlevel = 'loud'\n")

    problems = problems_of(file, {"LOGD_TOPICS_PARTITIONS_MAX": "si"}, {"node.name": "?"})

    assert [problem.partition(":")[0] for problem in problems] == [
        "node.name",
        "node.data_dir",
        "tls.ca",
        "tls.certificate",
        "tls.key",
        "store.readers",
        "topics.partitions_max",
        "log.level",
    ]


@pytest.mark.parametrize("key", sorted(REQUIRED))
def test_a_missing_required_setting_is_told_with_both_ways_to_set_it(key: str) -> None:
    (problem,) = problems_of(None, {}, {k: v for k, v in REQUIRED.items() if k != key})

    variable = "LOGD_" + key.replace(".", "_").upper()
    assert problem == f"{key}: required; set it in the file, or as {variable} (or start with --dev)"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[store]\nreadres = 1", "store.readres: unknown key; did you mean store.readers?"),
        ("[store]\nround_bytes_max = 1", "store.round_bytes_max: unknown key; did you mean journal.round_bytes_max?"),
        ("readers = 1", "readers: unknown key; did you mean store.readers?"),
        ("[journl]\nfiles_max = 1", "[journl]: unknown section; did you mean [journal]?"),
        ("[xyzzy]\na = 1", "[xyzzy]: unknown section"),
        ("[store]\nxyzzy = 1", "store.xyzzy: unknown key"),
        ('[store]\n"\\u001b[31m" = 1', "store.\\x1b[31m: unknown key"),
        ("store = 4", "store: expected a section [store], got 4"),
        ("[[store]]\nreaders = 4", "store: expected a section [store], got a list"),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest_known_one(file: Path, content: str, said: str) -> None:
    file.write_text(content)

    assert problems_of(file, {}, REQUIRED) == [f"{said} (from {file})"]


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("LOGD_STORE_READRES", "LOGD_STORE_READRES: unknown variable; did you mean LOGD_STORE_READERS?"),
        ("LOGD_STROE_READERS", "LOGD_STROE_READERS: unknown variable; did you mean LOGD_STORE_READERS?"),
        ("LOGD_STORE_XYZZY", "LOGD_STORE_XYZZY: unknown variable"),
    ],
)
def test_an_unknown_variable_is_told_with_the_nearest_known_one(variable: str, said: str) -> None:
    assert problems_of(None, {variable: "1"}, REQUIRED) == [said]


def test_an_unknown_flag_is_told_with_the_nearest_known_one() -> None:
    assert problems_of(None, {}, {**REQUIRED, "store.reader": "1"}) == [
        "store.reader: unknown setting; did you mean store.readers?"
    ]


@pytest.mark.parametrize(
    "variable",
    [
        "LOGD_SERVICE_HOST",
        "LOGD_SERVICE_PORT_CLIENT",
        "LOGD_PORT",
        "LOGD_PORT_7421_TCP_ADDR",
        "LOGD_CLIENT_SERVICE_HOST",
        "LOGD_STORE_SERVICE_HOST",
        "LOGD_STORE_PORT_7421_TCP",
        "LOGD_BENCH_DIRECTORY",
        "LOGDX_STORE_READERS",
        "LOGD_",
    ],
)
def test_variables_that_others_set_are_left_alone(variable: str) -> None:
    settings = load(None, {variable: "tcp://10.0.0.1:7421"}, REQUIRED)

    assert variable not in settings.origins.values()


def test_no_setting_is_named_like_what_kubernetes_sets() -> None:
    assert [s.key for s in settings_table() if config._SERVICE_LINK.fullmatch(s.environment)] == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[store\n", "not valid TOML: "),
        (b"[store]\nreaders = 1\nreaders = 2\n", "not valid TOML: "),
        (b"\xff\xfe", "not valid TOML: 'utf-8' codec"),
        (b"a = " + b"[" * 50_000, "not valid TOML: "),
        (b"a = " + b"1" * 5_000, "not valid TOML: "),
        (b"#" * (config.FILE_BYTES_MAX + 1), "not valid TOML: longer than 1 MiB"),
    ],
)
def test_a_file_that_is_no_toml_is_one_problem(file: Path, content: bytes, said: str) -> None:
    file.write_bytes(content)

    (problem,) = problems_of(file, {}, REQUIRED)

    assert problem.startswith(f"{file}: {said}")


def test_a_file_that_cannot_be_read_is_one_problem(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    assert problems_of(tmp_path / "no.toml", {}, REQUIRED) == [
        f"{tmp_path / 'no.toml'}: cannot be read: No such file or directory"
    ]
    assert problems_of(tmp_path, {}, REQUIRED) == [f"{tmp_path}: cannot be read: Is a directory"]
    assert problems_of(pipe, {}, REQUIRED) == [f"{pipe}: cannot be read: not a regular file"]


def test_a_file_that_cannot_be_read_is_not_blamed_for_what_it_may_well_set(tmp_path: Path) -> None:
    gone = f"{tmp_path / 'no.toml'}: cannot be read: No such file or directory"

    assert problems_of(tmp_path / "no.toml", {}, {}) == [gone]
    # The file may set the frame's length as well.
    assert problems_of(tmp_path / "no.toml", {}, {"protocol.batch_bytes_max": "16MiB"}) == [gone]
    wrong = problems_of(tmp_path / "no.toml", {"LOGD_STORE_READERS": "many"}, {})
    assert wrong == [gone, 'store.readers: expected an integer in [1, 64], got "many" (from LOGD_STORE_READERS)']


def test_the_number_of_problems_told_is_bounded(file: Path) -> None:
    file.write_text("[store]\n" + "".join(f"key{number} = 1\n" for number in range(20_000)))

    problems = problems_of(file, {}, REQUIRED)

    assert len(problems) == config.PROBLEMS_MAX + 1
    assert problems[-1] == f"… and {20_000 - config.PROBLEMS_MAX} more problems"


# What settings must satisfy together.

BROKEN_RELATIONS = {
    ("protocol.batch_bytes_max", "protocol.frame_bytes_max"): {"protocol.batch_bytes_max": "8MiB"},
    ("protocol.fetch_bytes_max", "protocol.frame_bytes_max"): {"protocol.fetch_bytes_max": "8MiB"},
    ("protocol.frame_bytes_max", "journal.round_bytes_max"): {"journal.round_bytes_max": "4MiB"},
    ("journal.round_bytes_max", "journal.file_bytes"): {"journal.file_bytes": "9MiB"},
    ("protocol.batch_bytes_max", "store.segment_bytes_max"): {"store.segment_bytes_max": "1MiB"},
    ("store.index_interval_bytes", "store.segment_bytes_max"): {
        "store.index_interval_bytes": "4MiB",
        "store.segment_bytes_max": "2MiB",
    },
    ("protocol.frame_bytes_max", "listen.bytes_in_flight_max"): {"listen.bytes_in_flight_max": "4MiB"},
    ("listen.bytes_in_flight_max", "listen.bytes_in_flight_total_max"): {"listen.bytes_in_flight_max": "1GiB"},
    ("topics.partitions_default", "topics.partitions_max"): {"topics.partitions_default": "1001"},
    ("topics.partitions_max", "topics.partitions_total_max"): {"topics.partitions_max": "4001"},
}


def test_every_relation_has_a_case_that_breaks_it() -> None:
    assert {(relation.lesser, relation.greater) for relation in RELATIONS} == set(BROKEN_RELATIONS)


@pytest.mark.parametrize("pair", list(BROKEN_RELATIONS), ids=" <= ".join)
def test_settings_that_do_not_fit_together_are_told_with_both_keys_and_origins(pair: tuple[str, str]) -> None:
    (problem,) = problems_of(None, {}, {**REQUIRED, **BROKEN_RELATIONS[pair]})

    lesser, greater = pair
    origins = {key: f"from --{key.replace('.', '-').replace('_', '-')}" for key in BROKEN_RELATIONS[pair]}
    assert problem.startswith(f"{lesser}: ")
    assert f" must fit into {greater}: " in problem
    assert f"({origins.get(lesser, 'the default')})" in problem
    assert f"({origins.get(greater, 'the default')})" in problem


def test_a_relation_of_which_one_side_is_wrong_alone_is_not_told_on_top() -> None:
    (problem,) = problems_of(None, {}, {**REQUIRED, "journal.round_bytes_max": "0"})

    assert problem.startswith("journal.round_bytes_max: expected")


# Every setting is documented.


@pytest.mark.parametrize("setting", settings_table(), ids=lambda setting: setting.key)
def test_every_setting_has_a_meaning_in_one_line_bounds_and_a_default_within_them(setting: config.Setting) -> None:
    assert re.fullmatch(r"[A-Z].{20,110}\.", setting.meaning), setting.meaning
    assert setting.required or setting.default_text
    if setting.type in (SettingType.SIZE, SettingType.COUNT, SettingType.DURATION):
        assert setting.minimum is not None
        assert setting.maximum is not None
        assert setting.minimum < setting.maximum
        if isinstance(setting.default, int | float):
            assert setting.minimum <= setting.default <= setting.maximum
    if setting.choices:
        assert setting.default in setting.choices


@pytest.mark.parametrize("setting", settings_table(), ids=lambda setting: setting.key)
def test_every_quantity_carries_its_unit_in_its_name(setting: config.Setting) -> None:
    assert ("bytes" in setting.key.split("_") + setting.key.split(".")[1].split("_")) == (setting.unit == "bytes")
    assert ("seconds" in setting.key.split(".")[1].split("_")) == (setting.unit == "seconds")


def test_keys_variables_and_flags_are_unique() -> None:
    table = settings_table()

    for names in ([s.key for s in table], [s.environment for s in table], [s.flag for s in table]):
        assert len(set(names)) == len(table)


def test_every_section_says_what_it_is_for() -> None:
    assert all(section.__doc__ for section in config._sections().values())
    assert {setting.key.split(".")[0] for setting in settings_table()} == set(config._sections())
