"""Claims about what can be configured of a topic."""

import pytest

from logd.service.configuration import (
    TOPIC_SETTINGS,
    TopicConfiguration,
    as_text,
    check_configuration,
    configuration_of,
)
from wire.errors import InvalidTopic
from wire.types import Durability

NO_QUANTITIES = [
    *("", "0", "-2", "0.5", "x", "1 GiB", " 1", "1_000", "1e3", "nan", "inf", "infinity", "0x10", "1GiBGiB", "١٢"),
    *("1PiB", "None", "9" * 20, "9" * 19, "1." + "0" * 10, "9" * 5_000_000),
]
DEFAULTS = TopicConfiguration(retention_bytes=None, retention_seconds=604_800.0)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1048576", 1 << 20),
        ("1KiB", 1 << 10),
        ("1.5MiB", 3 << 19),
        ("10GiB", 10 << 30),
        ("2TiB", 2 << 40),
        ("4000000TiB", 4_000_000 << 40),
        ("none", None),
        ("-1", None),
    ],
)
def test_sizes_are_read(text: str, value: int | None) -> None:
    check_configuration({"retention.bytes": text})
    assert configuration_of({"retention.bytes": text}, DEFAULTS).retention_bytes == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1.0), ("90s", 90.0), ("1.5m", 90.0), ("2h", 7200.0), ("7d", 604_800.0), ("none", None), ("-1", None)],
)
def test_times_are_read(text: str, value: float | None) -> None:
    check_configuration({"retention.seconds": text})
    assert configuration_of({"retention.seconds": text}, DEFAULTS).retention_seconds == value


@pytest.mark.parametrize("key", ["retention.bytes", "retention.seconds"])
@pytest.mark.parametrize("text", NO_QUANTITIES, ids=lambda text: text[:12])
def test_what_is_no_quantity_is_refused_by_its_key(key: str, text: str) -> None:
    with pytest.raises(InvalidTopic) as caught:
        check_configuration({key: text})
    assert caught.value.details == {"key": key}
    assert str(caught.value).startswith(f"{key}: expected a ")
    assert len(str(caught.value)) < 500


def test_units_belong_to_their_setting() -> None:
    with pytest.raises(InvalidTopic):
        check_configuration({"retention.bytes": "7d"})
    with pytest.raises(InvalidTopic):
        check_configuration({"retention.seconds": "1KiB"})


def test_an_unknown_key_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(InvalidTopic, match=r"retention.hours: no such topic setting; there are retention.bytes"):
        check_configuration({"retention.hours": "1"})
    with pytest.raises(InvalidTopic) as caught:
        check_configuration({"k" * 1_000_000: "1"})
    assert len(str(caught.value)) < 500


def test_less_durability_than_a_majority_is_not_to_be_had() -> None:
    check_configuration({"durability": "quorum_fsync"})
    for text in ("leader_fsync", "none", ""):
        with pytest.raises(InvalidTopic, match="durability: expected quorum_fsync"):
            check_configuration({"durability": text})


def test_a_key_that_is_put_back_is_checked_only_for_its_name() -> None:
    check_configuration(dict.fromkeys((setting.key for setting in TOPIC_SETTINGS), None))
    with pytest.raises(InvalidTopic):
        check_configuration({"nothing": None})


def test_what_is_not_stored_is_the_default_of_today() -> None:
    assert configuration_of({}, DEFAULTS) == DEFAULTS
    changed = TopicConfiguration(5, None)
    assert configuration_of({}, changed) == changed
    assert configuration_of({"retention.bytes": "7"}, changed) == TopicConfiguration(7, None)


def test_every_setting_is_shown_as_it_could_be_given() -> None:
    shown = as_text(TopicConfiguration(1 << 30, 1.5, Durability.QUORUM_FSYNC))
    assert shown == {"retention.bytes": "1073741824", "retention.seconds": "1.5", "durability": "quorum_fsync"}
    assert set(shown) == {setting.key for setting in TOPIC_SETTINGS}
    check_configuration(shown)
    unlimited = as_text(TopicConfiguration(None, None))
    assert configuration_of(unlimited, DEFAULTS) == TopicConfiguration(None, None)
