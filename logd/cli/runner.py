"""Runs a click command and turns whatever comes out of it into one line and an exit code.

For: the two entry points. Must not know: any command. The one idea: a task group wraps what happens in it into
exception groups, which click does not look into; here, and only here, they are collapsed to the one error that the
user should hear of.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence

import click

from logd.cli.errors import OutputClosed, exit_code_of, hint_of, is_debugging
from logd.cli.exits import Exit
from logd.cli.output import error_line, is_json_asked, printable
from wire.errors import LogdError

Translate = Callable[[Exception], LogdError | None]


def run(
    command: click.Command,
    program: str,
    arguments: Sequence[str] | None = None,
    *,
    translate: Translate | None = None,
) -> int:
    """Run `command` and return its exit code; nothing but a second signal gets out of here.

    `translate` makes an error of a room below (which knows no exit codes) one of ours, or returns None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    _open_streams()
    stdout = sys.stdout
    try:
        outcome = command.main(args=words, prog_name=program, standalone_mode=False)
        code = int(outcome) if isinstance(outcome, int) else Exit.OK
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001  # this is the border: everything ends here, as a line and a code
        failure = collapse(error)
        # Where a pipe was closed under what click printed, it hangs a quiet stream before standard output and exits
        # with 1, as others do for reasons of their own.
        if isinstance(failure, SystemExit) and failure.code == 1 and sys.stdout is not stdout:
            failure = OutputClosed()
        code = _report(failure, program, words, translate)
    with _quiet_pipe():
        sys.stdout.flush()
    return code


def collapse(error: BaseException) -> BaseException:
    """The one error of a group that the user should hear of: an interrupt, else a closed output, else the first."""
    leaves = list(_leaves(error))
    for kind in (KeyboardInterrupt, click.Abort, OutputClosed, BrokenPipeError, LogdError):
        for leaf in leaves:
            if isinstance(leaf, kind):
                return leaf
    return leaves[0]


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _report(error: BaseException, program: str, words: Sequence[str], translate: Translate | None) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else Exit.INTERNAL
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, OutputClosed | BrokenPipeError):
        return Exit.BROKEN_PIPE
    as_json = is_json_asked(words)
    # click makes an Abort of the interrupt that passes through it.
    if isinstance(error, KeyboardInterrupt | click.Abort):
        _say(error_line(program, "Interrupted", "interrupted", {}, "", as_json=as_json))
        return Exit.INTERRUPTED
    if isinstance(error, click.ClickException):
        _say(_usage_text(error, program, as_json=as_json))
        return error.exit_code
    if translate is not None and isinstance(error, Exception):
        error = translate(error) or error
    if isinstance(error, LogdError):
        # What a person reads below the message, a program finds in the details.
        text = (error.message or error.code) if as_json else str(error)
        _say(error_line(program, error.code, text, error.details, hint_of(error), as_json=as_json))
        return exit_code_of(error)
    if isinstance(error, OSError):
        reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
        _say(error_line(program, "FileFailed", reason, {}, "", as_json=as_json))
        return Exit.FILES
    if is_debugging():
        traceback.print_exception(error)
    hint = "this is a defect; LOGCTL_TRACEBACK=1 shows where"
    text = f"{type(error).__name__}: {error}"
    _say(error_line(program, "Internal", text, {}, hint, as_json=as_json))
    return Exit.INTERNAL


def _usage_text(error: click.ClickException, program: str, *, as_json: bool) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    message = error.format_message()
    if as_json:
        return error_line(program, "Usage", message, {}, "", as_json=True)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return message
    path = context.command_path if context is not None else program
    if isinstance(error, click.NoSuchOption) and isinstance(context and context.command, click.Group):
        message = f"{message.rstrip('.')}; a command's options stand after it"
    return f"{program}: {printable(message)}\n  see `{path} --help`"


def _say(text: str) -> None:
    # Where nobody can hear it there is nothing to say; the exit code still tells.
    with contextlib.suppress(OSError, ValueError):
        click.echo(text, err=True)


def _open_streams() -> None:
    """Where whoever started us left a stream closed, put one that leads nowhere, before a file takes its number."""
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


@contextlib.contextmanager
def _quiet_pipe() -> Iterator[None]:
    """Keep the interpreter from complaining at its end about an output that went away."""
    try:
        yield
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
