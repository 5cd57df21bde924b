"""What can be configured of a topic.

For: whoever creates or alters a topic, and retention, which reads the result. Must not know: where a configuration is
kept. The one idea: a topic's settings are a table of names with a parser each; what is stored is the text that was
given, and a default is looked up when it is read, so that changing a default reaches every topic that kept it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from wire.errors import InvalidTopic
from wire.types import Durability

UNLIMITED_WORDS: Final = frozenset(("none", "-1"))
_BYTES_SUFFIXES: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SECONDS_SUFFIXES: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# A stored text is kept on every node for ever, so that its length is bounded here.
_QUANTITY: Final = re.compile(r"(?P<number>[0-9]{1,19}(?:\.[0-9]{1,9})?)(?P<suffix>[A-Za-z]*)")
# What an error repeats of a text that was not understood.
_SHOWN_CHARACTERS_MAX: Final = 80


@dataclass(frozen=True, slots=True)
class TopicConfiguration:
    """A topic's settings in force. None: no limit."""

    retention_bytes: int | None
    retention_seconds: float | None
    durability: Durability = Durability.QUORUM_FSYNC


class TopicSetting(NamedTuple):
    """One row of the table: its key, what it means, and how its text is read (raises ValueError)."""

    key: str
    meaning: str
    parse: Callable[[str], object]


def _bytes(text: str) -> int | None:
    return None if text in UNLIMITED_WORDS else int(_quantity(text, _BYTES_SUFFIXES, "a size such as 1048576 or 10GiB"))


def _seconds(text: str) -> float | None:
    return None if text in UNLIMITED_WORDS else _quantity(text, _SECONDS_SUFFIXES, "a time such as 3600 or 7d")


def _quantity(text: str, suffixes: Mapping[str, int], expected: str) -> float:
    match = _QUANTITY.fullmatch(text)
    factor = suffixes.get(match["suffix"], 0) if match and match["suffix"] else 1
    quantity = float(match["number"]) * factor if match else 0.0
    if not 1 <= quantity < 1 << 62:
        raise ValueError(f"expected {expected}, or none")
    return quantity


def _durability(text: str) -> Durability:
    if text != Durability.QUORUM_FSYNC:
        raise ValueError(f"expected {Durability.QUORUM_FSYNC}: every acknowledged record is on the disks of a majority")
    return Durability.QUORUM_FSYNC


TOPIC_SETTINGS: Final = (
    TopicSetting("retention.bytes", "Bytes kept per partition (`10GiB`), or `none`.", _bytes),
    TopicSetting("retention.seconds", "Age up to which records are kept (`7d`, `3600`), or `none`.", _seconds),
    TopicSetting("durability", "What an acknowledgement achieves: `quorum_fsync`, and nothing less.", _durability),
)
_BY_KEY: Final = {setting.key: setting for setting in TOPIC_SETTINGS}


def check_configuration(configuration: Mapping[str, str | None]) -> None:
    """Raises InvalidTopic, naming the key, for a setting that is unknown or cannot be read."""
    for key, text in configuration.items():
        setting = _BY_KEY.get(key)
        if setting is None:
            known = ", ".join(_BY_KEY)
            shown = key[:_SHOWN_CHARACTERS_MAX]
            raise InvalidTopic(f"{shown}: no such topic setting; there are {known}", {"key": shown})
        if text is None:
            continue
        try:
            setting.parse(text)
        except ValueError as error:
            raise InvalidTopic(f"{key}: {error}, got {text[:_SHOWN_CHARACTERS_MAX]!r}", {"key": key}) from None


def configuration_of(stored: Mapping[str, str], defaults: TopicConfiguration) -> TopicConfiguration:
    """The settings in force: what is stored, and the defaults for the rest."""
    retention_bytes, retention_seconds = defaults.retention_bytes, defaults.retention_seconds
    if "retention.bytes" in stored:
        retention_bytes = _bytes(stored["retention.bytes"])
    if "retention.seconds" in stored:
        retention_seconds = _seconds(stored["retention.seconds"])
    return TopicConfiguration(retention_bytes, retention_seconds)


def as_text(configuration: TopicConfiguration) -> dict[str, str]:
    """Every setting with its value, as it would be written."""
    return {
        "retention.bytes": _text(configuration.retention_bytes),
        "retention.seconds": _text(configuration.retention_seconds),
        "durability": str(configuration.durability),
    }


def _text(value: float | None) -> str:
    return "none" if value is None else f"{value:.0f}" if value == int(value) else str(value)
