"""Whatever comes out of a command becomes one line and an exit code."""

import json
import os
import subprocess
import sys

import click
import pytest

from logd.cli.errors import FileNotFound, OutputClosed
from logd.cli.exits import Exit
from logd.cli.runner import collapse, run
from wire.errors import TopicNotFound


def command_raising(error: BaseException) -> click.Command:
    @click.command()
    @click.option("--output", "-o")
    def command(output: str | None) -> None:
        raise error

    return command


def group(*errors: BaseException) -> BaseExceptionGroup[BaseException]:
    return BaseExceptionGroup("several", list(errors))


def test_success_is_zero() -> None:
    assert run(click.Command("x", callback=lambda: None), "x", []) == 0


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (TopicNotFound("no topic 'a'"), Exit.NOT_FOUND, "prog: no topic 'a'\n  `logctl topic list`"),
        (group(TopicNotFound("no topic 'a'")), Exit.NOT_FOUND, "prog: no topic 'a'\n"),
        (group(group(TopicNotFound("inner")), ValueError("other")), Exit.NOT_FOUND, "prog: inner\n"),
        (KeyboardInterrupt(), Exit.INTERRUPTED, "prog: interrupted\n"),
        (group(TopicNotFound("a"), KeyboardInterrupt()), Exit.INTERRUPTED, "prog: interrupted\n"),
        (OSError(28, "No space left on device", "out"), Exit.FILES, "prog: out: No space left on device\n"),
        (FileNotFound("a.txt: no such file"), Exit.NOT_FOUND, "prog: a.txt: no such file\n"),
        (ZeroDivisionError("oops"), Exit.INTERNAL, "prog: ZeroDivisionError: oops\n  this is a defect"),
        (click.UsageError("wrong"), Exit.USAGE, "prog: wrong\n  see `prog --help`"),
        (SystemExit(7), 7, ""),
        (SystemExit(1), 1, ""),
    ],
)
def test_an_error_is_one_line_and_a_code(
    error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command_raising(error), "prog", []) == code
    printed = capsys.readouterr()
    # click ends the line on which a terminal shows ^C.
    assert printed.err.lstrip("\n").startswith(text)
    assert printed.out == ""
    assert "Traceback" not in printed.err


@pytest.mark.parametrize("error", [OutputClosed(), BrokenPipeError(), group(OutputClosed(), ValueError("x"))])
def test_a_closed_output_ends_quietly(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command_raising(error), "prog", []) == Exit.BROKEN_PIPE
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("words", [["--output", "json"], ["--output=json"], ["-o", "json"]])
def test_an_error_is_json_where_json_was_asked_for(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    error = TopicNotFound("no topic", {"topic": "a", "id": b"\x01"})
    assert run(command_raising(error), "prog", words) == Exit.NOT_FOUND
    document = json.loads(capsys.readouterr().err)
    assert document["error"]["code"] == "TopicNotFound"
    assert document["error"]["message"] == "no topic"
    assert document["error"]["details"] == {"topic": "a", "id": "01"}


def test_a_usage_error_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command_raising(ValueError()), "prog", ["--output", "json", "--nonsense"]) == Exit.USAGE
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "Usage"


def test_a_message_cannot_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    run(command_raising(TopicNotFound("\x1b[2Jgone")), "prog", [])
    assert capsys.readouterr().err.startswith("prog: \\x1b[2Jgone\n")


def test_errors_of_other_rooms_are_translated(capsys: pytest.CaptureFixture[str]) -> None:
    code = run(
        command_raising(LookupError("foreign")), "prog", [], translate=lambda error: TopicNotFound(f"seen: {error}")
    )
    assert code == Exit.NOT_FOUND
    assert capsys.readouterr().err.startswith("prog: seen: foreign\n")


def test_the_interrupt_outweighs_what_it_caused() -> None:
    interrupt = KeyboardInterrupt()
    assert collapse(group(ValueError(), group(OutputClosed(), interrupt))) is interrupt


def test_a_defect_shows_its_place_when_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGCTL_TRACEBACK", "1")
    assert run(command_raising(ZeroDivisionError()), "prog", []) == Exit.INTERNAL
    assert "Traceback" in capsys.readouterr().err


def test_a_completion_that_nobody_can_give_is_no_broken_pipe() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv = ['logctl']; from logd.cli.logctl import main; main()"],
        env={**os.environ, "_LOGCTL_COMPLETE": "nonsense_complete"},
        capture_output=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, b"", b"")


@pytest.mark.parametrize("words", [["--help"], ["completion", "bash"], ["produce", "--help"]])
def test_a_pipe_that_was_closed_is_told_by_the_exit_code_and_nothing_else(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [sys.executable, "-c", "from logd.cli.logctl import main; main()", *words],
            stdout=writing,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (Exit.BROKEN_PIPE, b"")
