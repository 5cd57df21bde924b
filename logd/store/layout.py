"""Where everything stands in a data directory: names and paths, nothing else.

For: whoever makes or lists files of the store. Must not know: what is in them. The one idea: a name is a number of 20
digits and a suffix, so that names sort as their numbers do, and a name that is not of this shape is not ours.

    DATA/node.json  DATA/LOCK  DATA/journal/<file number>
    DATA/groups/<group>/<index>.start  <first index>.log  <first index>.index
"""

from typing import Final

# 2**64 - 1 has 20 digits: every number that the formats can hold has a name, and all names sort numerically.
NUMBER_DIGITS: Final = 20

NODE_FILE: Final = "node.json"
LOCK_FILE: Final = "LOCK"
JOURNAL_DIRECTORY: Final = "journal"
GROUPS_DIRECTORY: Final = "groups"

START_SUFFIX: Final = ".start"
SEGMENT_SUFFIX: Final = ".log"
INDEX_SUFFIX: Final = ".index"
NEW_SUFFIX: Final = ".new"
"""A file that is being written and will be renamed; one that is found at start-up is a leftover."""


def number_name(number: int) -> str:
    """A number as it stands in a file's name."""
    return f"{number:0{NUMBER_DIGITS}d}"


def parse_number(name: str, suffix: str = "") -> int | None:
    """The number in a name made by `number_name` plus `suffix`; None if the name is not of that shape."""
    digits = name.removesuffix(suffix) if suffix else name
    if len(digits) != NUMBER_DIGITS or len(digits) + len(suffix) != len(name):
        return None
    # `isdigit` alone would accept other scripts' digits, which `int` reads but `number_name` never writes.
    return int(digits) if digits.isascii() and digits.isdigit() else None


class Layout:
    """The paths of one data directory."""

    __slots__ = ("directory", "groups", "journal", "lock", "node")

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.node = f"{directory}/{NODE_FILE}"
        self.lock = f"{directory}/{LOCK_FILE}"
        self.journal = f"{directory}/{JOURNAL_DIRECTORY}"
        self.groups = f"{directory}/{GROUPS_DIRECTORY}"

    def journal_file(self, file_number: int) -> str:
        return f"{self.journal}/{number_name(file_number)}"

    def group(self, group: int) -> str:
        return f"{self.groups}/{number_name(group)}"

    def start(self, group: int, index: int) -> str:
        return f"{self.group(group)}/{number_name(index)}{START_SUFFIX}"

    def segment(self, group: int, first_index: int) -> str:
        return f"{self.group(group)}/{number_name(first_index)}{SEGMENT_SUFFIX}"

    def index(self, group: int, first_index: int) -> str:
        return f"{self.group(group)}/{number_name(first_index)}{INDEX_SUFFIX}"
