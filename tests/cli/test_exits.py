"""The exit codes are one table, and every error has its row."""

from collections import Counter

import pytest

import wire.errors
from logd.cli import errors
from logd.cli.errors import exit_code_of
from logd.cli.exits import EXITS, Exit, exit_of
from wire.errors import ClientError, LogdError, ServerError


def subclasses(kind: type[LogdError]) -> list[type[LogdError]]:
    found = [kind]
    for sub in kind.__subclasses__():
        found += subclasses(sub)
    return found


def of_module(kind: type[LogdError], module: str) -> list[type[LogdError]]:
    return [each for each in subclasses(kind) if each.__module__ == module]


def test_every_exit_code_has_one_row_with_a_meaning() -> None:
    assert [row.exit for row in EXITS] == list(Exit)
    assert all(row.meaning.endswith(".") for row in EXITS)


def test_no_error_code_stands_in_two_rows() -> None:
    counted = Counter(code for row in EXITS for code in row.codes)
    assert [code for code, count in counted.items() if count > 1] == []


@pytest.mark.parametrize(
    "kind",
    [
        each
        for base, module in (
            (ServerError, "wire.errors"),
            (ClientError, "wire.errors"),
            (errors.CommandError, "logd.cli.errors"),
        )
        for each in of_module(base, module)
        if each not in (ServerError, errors.CommandError)
    ],
)
def test_every_error_has_a_row(kind: type[LogdError]) -> None:
    assert kind.code in {code for row in EXITS for code in row.codes}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (wire.errors.TopicNotFound("x"), Exit.NOT_FOUND),
        (wire.errors.OutcomeUnknown("x"), Exit.RETRIABLE),
        (wire.errors.ConnectionLost("x"), Exit.UNAVAILABLE),
        (errors.VerifyFailed("x"), Exit.CORRUPT),
        (KeyboardInterrupt(), Exit.INTERRUPTED),
        (BrokenPipeError(), Exit.BROKEN_PIPE),
        (OSError(28, "No space left on device"), Exit.FILES),
        (ValueError("x"), Exit.INTERNAL),
    ],
)
def test_errors_end_a_process_with_their_code(error: BaseException, code: Exit) -> None:
    assert exit_code_of(error) is code


def test_an_error_of_the_future_says_at_least_whether_to_try_again() -> None:
    class Later(LogdError):
        code = "SomethingNew"
        retriable = True

    class Never(LogdError):
        code = "SomethingElse"

    assert exit_of(Later("x")) is Exit.RETRIABLE
    assert exit_of(Never("x")) is Exit.INTERNAL


def test_hints_are_for_codes_that_exist() -> None:
    assert set(errors.HINTS) <= {code for row in EXITS for code in row.codes}
