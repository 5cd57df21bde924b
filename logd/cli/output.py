"""What commands print: tables for people, JSON for programs, notes on standard error.

For: every command that answers with something other than records. Must not know: where the values come from. The one
idea: standard output holds the answer and nothing else, in one of two shapes; whatever is meant for a person who waits
goes to standard error.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import click

OUTPUT_VARIABLE: Final = "LOGCTL_OUTPUT"
OUTPUTS: Final = ("table", "json")
_META: Final = "logd.cli.output"


class Output:
    """How the answer of this command is to be shown."""

    def __init__(self) -> None:
        self.as_json = False
        self.quiet = False
        self.verbose = False

    def answer(self, document: Mapping[str, Any], text: str) -> None:
        """Print the one answer of a command: the document for programs, or the text for people."""
        click.echo(json_line(document) if self.as_json else text)

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, empty: str = "") -> None:
        """Print rows: `{name: [row, …]}` for programs, aligned columns for people.

        The row's keys are the columns' names in lower case with underscores; it may hold more than is shown.
        `empty` is told to people, on standard error, when there is no row.
        """
        found = list(rows)
        if self.as_json:
            click.echo(json_line({name: found}))
        elif found:
            click.echo("\n".join(aligned(columns, found)))
        elif empty:
            self.note(empty)

    def note(self, text: str) -> None:
        """Tell a person something beside the answer, unless `--quiet`."""
        if not self.quiet:
            click.echo(printable(text), err=True)

    def detail(self, text: str) -> None:
        """Tell a person who asked for more with `--verbose`."""
        if self.verbose:
            click.echo(printable(text), err=True)


def current(context: click.Context | None = None) -> Output:
    """The output of a command, by default of the one that is running."""
    meta = (context or click.get_current_context()).meta
    output = meta.setdefault(_META, Output())
    assert isinstance(output, Output)
    return output


def aligned(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of a table, its heading first; numbers stand to the right."""
    keys = [column.lower().replace(" ", "_") for column in columns]
    cells = [[cell_text(row[key]) for key in keys] for row in rows]
    numeric = [all(isinstance(row[key], int | float) for row in rows) for key in keys]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in ([column.upper() for column in columns], *cells)
    ]


def cell_text(value: object) -> str:
    """A value in a table: `-` for nothing, `k=v` pairs for a map, on one line whatever it holds."""
    if value is None or value in ("", (), [], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return printable(" ".join(f"{key}={item}" for key, item in value.items()))
    if isinstance(value, list | tuple):
        return printable(", ".join(map(str, value)))
    return printable(str(value))


def printable(text: str) -> str:
    """The text with every character that a terminal would act upon written out (line ends stay)."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character == "\n"
        else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def json_line(document: Mapping[str, Any]) -> str:
    """A document on one line. Bytes (ids, digests) are hexadecimal."""
    text = json.dumps(document, ensure_ascii=False, default=_json_value)
    # A file name may hold bytes that are no text; they must not stop the answer.
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _json_value(value: object) -> object:
    if isinstance(value, bytes | memoryview):
        return bytes(value).hex()
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


def error_line(program: str, code: str, message: str, details: Mapping[str, Any], hint: str, *, as_json: bool) -> str:
    """What is printed of an error: one line, and a second with the hint; or one JSON object."""
    if as_json:
        error = {"code": code, "message": message, "details": dict(details)}
        if hint:
            error["hint"] = hint
        return json_line({"error": error})
    line = f"{program}: {printable(message)}"
    return f"{line}\n  {hint}" if hint else line


def is_json_asked(words: Sequence[str]) -> bool:
    """Whether the command line asks for JSON, told before (or although) it could not be parsed."""
    asked = os.environ.get(OUTPUT_VARIABLE, "")
    for word, following in zip(words, [*words, ""][1:], strict=True):
        if word == "--":
            break
        if word in ("--output", "-o"):
            asked = following
        elif word.startswith("--output="):
            asked = word.removeprefix("--output=")
    return asked == "json"


def bytes_text(count: float) -> str:
    """A number of bytes as people read it: `1.5 MB`. Decimal units, as in rates."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B"


def count_text(count: int, noun: str) -> str:
    """`1 record`, `2,000 records`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def is_terminal(stream: Any) -> bool:
    """Whether a person looks at this stream."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def show_progress() -> bool:
    """Whether a progress display can be seen: standard error is a terminal that can move its cursor."""
    return is_terminal(sys.stderr) and os.environ.get("TERM", "dumb") != "dumb"
