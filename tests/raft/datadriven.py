"""Scripts that read as a conversation: a directive, its input, `----`, and what was answered.

For: tests whose expectations are text. The one idea: a script is run case by case, each answer is compared to the
letter with what the script says, and on request the answers are written back instead.

The format is that of github.com/cockroachdb/datadriven, so that scripts written for it can be run:

    # Comments and empty lines are skipped.
    directive positional key=value key=(several, values) \\
        continued=yes
    input, in as many lines as it takes
    ----
    the answer, up to an empty line

An answer that holds empty lines stands between doubled lines:

    directive
    ----
    ----
    the answer

    goes on
    ----
    ----
"""

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

SEPARATOR: Final = "----"
# A word, a word with a value, or a word with values in parentheses, which may hold spaces.
ARGUMENT: Final = re.compile(r"\s*(?P<key>[^\s=()]+)(?:=(?:\((?P<values>[^()]*)\)|(?P<value>[^\s()]*)))?(?=\s|$)")


class MalformedScript(Exception):
    """A script is not in the format. Nothing after that place was run."""


class UnknownDirective(Exception):
    """A script asks for what its handler does not know, which is a failure: to skip it would be to claim too much."""

    def __init__(self, case: "Case") -> None:
        super().__init__(f"{case.position}: unknown directive: {case.directive}")


class Argument(NamedTuple):
    """One argument of a directive."""

    key: str
    values: tuple[str, ...]
    """Empty for a positional argument and for `key=()`."""
    is_positional: bool


@dataclass(frozen=True, slots=True)
class Case:
    """One directive of a script, and what it should answer."""

    position: str
    """File and line, for messages."""
    directive: str
    arguments: tuple[Argument, ...]
    input: str
    """Without white space around it."""
    expected: str
    """Each line of the answer, with its end."""
    head: str = field(repr=False)
    """The source up to the first `----`, from where the last case ended."""

    @property
    def positional(self) -> tuple[str, ...]:
        return tuple(argument.key for argument in self.arguments if argument.is_positional)

    @property
    def keys(self) -> frozenset[str]:
        """The keys of all arguments that are not positional: a handler refuses those that it does not know."""
        return frozenset(argument.key for argument in self.arguments if not argument.is_positional)

    def values(self, key: str) -> tuple[str, ...] | None:
        """All values of an argument, in order; None if it is not there."""
        found = [argument.values for argument in self.arguments if argument.key == key and not argument.is_positional]
        if not found:
            return None
        return tuple(value for values in found for value in values)

    def value(self, key: str, default: str | None = None) -> str:
        """The one value of an argument. Raises: MalformedScript if it is not there and there is no default."""
        values = self.values(key)
        if values is None and default is not None:
            return default
        if values is None or len(values) != 1:
            raise MalformedScript(f"{self.position}: {self.directive} needs one value of {key}")
        return values[0]


def parse(text: str, name: str = "script") -> Iterator[Case]:
    """The cases of a script, one after the other. Raises: MalformedScript, when it comes to that place."""
    yield from _Reader(text, name).cases()


class _Reader:
    """Walks over the lines of a script."""

    def __init__(self, text: str, name: str) -> None:
        self.lines = text.splitlines()
        self.name = name
        self.next = 0
        self.tail = ""
        """Once all cases are taken: what stands behind the last."""

    def cases(self) -> Iterator[Case]:
        begin = 0
        while (at := self._find_directive()) is not None:
            directive, arguments = self._directive(at)
            input_begin = self.next
            try:
                separator = self.lines.index(SEPARATOR, input_begin)
            except ValueError:
                raise MalformedScript(f"{self.name}:{at + 1}: {directive} has no {SEPARATOR}") from None
            self.next = separator + 1
            expected = self._expected()
            yield Case(
                position=f"{self.name}:{at + 1}",
                directive=directive,
                arguments=arguments,
                input="\n".join(self.lines[input_begin:separator]).strip(),
                expected=expected,
                head=_text(self.lines[begin:separator]),
            )
            begin = self.next
        self.tail = _text(self.lines[begin:])

    @property
    def is_done(self) -> bool:
        return self.next >= len(self.lines)

    def _take(self) -> str:
        line = self.lines[self.next]
        self.next += 1
        return line

    def _find_directive(self) -> int | None:
        while not self.is_done:
            line = self._take().strip()
            if line and not line.startswith("#"):
                return self.next - 1
        return None

    def _directive(self, at: int) -> tuple[str, tuple[Argument, ...]]:
        line = self.lines[at].strip()
        while line.endswith("\\") and not self.is_done:
            line = f"{line[:-1]} {self._take().strip()}"
        arguments = []
        place = 0
        while place < len(line):
            match = ARGUMENT.match(line, place)
            if match is None:
                raise MalformedScript(f"{self.name}:{at + 1}: not an argument: {line[place:].strip()}")
            arguments.append(_argument(match))
            place = match.end()
        directive = arguments.pop(0)
        if not directive.is_positional:
            raise MalformedScript(f"{self.name}:{at + 1}: not a directive: {line}")
        return directive.key, tuple(arguments)

    def _expected(self) -> str:
        begin = self.next
        if not self.is_done and self.lines[self.next] == SEPARATOR:
            self.next += 1
            while self.lines[self.next : self.next + 2] != [SEPARATOR, SEPARATOR]:
                if self.is_done:
                    raise MalformedScript(f"{self.name}:{begin + 1}: no end of what stands between doubled {SEPARATOR}")
                self.next += 1
            expected = self.lines[begin + 1 : self.next]
            self.next += 2
        else:
            while not self.is_done and self.lines[self.next].strip():
                self.next += 1
            expected = self.lines[begin : self.next]
        # The empty line after an answer belongs to the answer, so that writing back leaves one.
        if not self.is_done and not self.lines[self.next].strip():
            self.next += 1
        return _text(expected)


def _argument(match: re.Match[str]) -> Argument:
    key, values, value = match.group("key", "values", "value")
    if values is not None:
        return Argument(key, tuple(value.strip() for value in values.split(",")) if values.strip() else (), False)
    return Argument(key, (), True) if value is None else Argument(key, (value,), False)


def _text(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def run_script(path: Path, handler: Callable[[Case], str], *, rewrite: bool = False) -> int:
    """Run all cases of a script, and compare each answer to the letter.

    Arguments: `handler`, which answers a case (the end of the last line may be missing), and raises UnknownDirective;
    `rewrite`, whether the script is written anew with the answers instead.
    Returns: how many cases were run. Raises: AssertionError at the first answer that is not as expected.
    """
    reader = _Reader(path.read_text(encoding="utf-8"), path.name)
    count = 0
    written = []
    for case in reader.cases():
        answer = handler(case)
        if answer and not answer.endswith("\n"):
            answer += "\n"
        if rewrite:
            written.append(case.head + _separated(answer))
        elif answer != case.expected:
            raise AssertionError(f"{case.position}: {case.directive}\n{_difference(case.expected, answer)}")
        count += 1
    if rewrite:
        path.write_text("\n".join([*written, reader.tail] if reader.tail else written), encoding="utf-8")
    return count


def _separated(answer: str) -> str:
    """An answer as it stands in a script, from the separator on."""
    lines = answer.splitlines()
    if all(line.strip() and line != SEPARATOR for line in lines):
        return f"{SEPARATOR}\n{answer}"
    if (SEPARATOR, SEPARATOR) in pairwise([*lines, SEPARATOR]):
        raise MalformedScript(f"an answer cannot hold the end of an answer: {answer}")
    doubled = f"{SEPARATOR}\n{SEPARATOR}\n"
    return f"{doubled}{answer}{doubled}"


def _difference(expected: str, answer: str) -> str:
    return "\n".join(
        difflib.unified_diff(expected.splitlines(), answer.splitlines(), "expected", "answered", lineterm="")
    )
