"""The errors that the command line adds to those of the protocol, and what a user can do about each.

For: commands, which raise them. Must not know: how they are shown. The one idea: an error is one sentence that names
what the user wrote, and a hint names the next command to try.
"""

import os
from collections.abc import Sequence
from typing import Final

from logd.cli.exits import Exit, exit_of
from wire.errors import Details, LogdError, TopicNotFound


class CommandError(LogdError):
    """The base of the command line's own errors. `hint` says what to do next, or is empty."""

    def __init__(self, message: str, details: Details | None = None, *, hint: str = "") -> None:
        super().__init__(message, details)
        self.hint = hint


class ContextNotFound(CommandError):
    """A context was named that the file does not hold."""

    code = "ContextNotFound"
    leaves = "nothing was done"


class ContextExists(CommandError):
    """A context of this name is there already."""

    code = "ContextExists"
    leaves = "the existing context is unchanged"


class ConfigurationProblem(CommandError):
    """A configuration, context or certificate file is wrong; `details['problems']` lists what.

    `lines` are shown to a person below the message; a program has them in the details.
    """

    code = "Configuration"
    leaves = "nothing was done"

    def __init__(
        self, message: str, details: Details | None = None, *, hint: str = "", lines: Sequence[str] = ()
    ) -> None:
        super().__init__(message, details, hint=hint)
        self.lines = tuple(lines)

    def __str__(self) -> str:
        return "\n  ".join((super().__str__() + (":" if self.lines else ""), *self.lines))


class InvalidInput(CommandError):
    """A line, object or file of the input is not what its format says; the details name the place."""

    code = "InvalidInput"
    leaves = "the records before the place were produced, the others not"


class FileNotFound(CommandError):
    """A file named on the command line is not there."""

    code = "FileNotFound"
    leaves = "nothing was done"


class FileFailed(CommandError):
    """A local file, the input or the output failed."""

    code = "FileFailed"
    leaves = "what was read before is done"


class NotConfirmed(CommandError):
    """A question was answered with no."""

    code = "NotConfirmed"
    leaves = "nothing was done"


class Timeout(CommandError):
    """No answer came within `--timeout`."""

    code = "Timeout"
    retriable = True
    leaves = "the request may have been carried out"


class CertificateRefused(CommandError):
    """One end did not accept the certificate of the other, or a certificate file is not in order."""

    code = "CertificateRefused"
    leaves = "nothing was sent"


class ListenFailed(CommandError):
    """The node's address cannot be listened on."""

    code = "ListenFailed"
    retriable = True
    leaves = "nothing was done"


class VerifyFailed(CommandError):
    """Stored bytes do not verify."""

    code = "VerifyFailed"
    leaves = "nothing was changed"


class Interrupted(CommandError):
    """The user stopped the command by Ctrl-C."""

    code = "Interrupted"
    leaves = "as the summary says"


class Terminated(CommandError):
    """Somebody stopped the command by SIGTERM."""

    code = "Terminated"
    leaves = "as the summary says"


class OutputClosed(Exception):
    """Whoever read the output went away. It ends the process quietly, so it is no `LogdError`."""


def file_error(error: OSError, path: str) -> CommandError:
    """The typed error for a local file that could not be opened, read or written."""
    name = "standard input" if path == "-" else path
    reason = error.strerror or str(error)
    if isinstance(error, FileNotFoundError):
        return FileNotFound(f"{name}: no such file", {"path": path})
    return FileFailed(f"{name}: {reason}", {"path": path})


HINTS: Final = {
    "TopicNotFound": "`logctl topic list` shows the topics, `logctl topic create` makes one",
    "TopicExists": "`logctl topic describe` shows it, `logctl topic alter` changes it",
    "NotAuthorized": "`logctl context show` says which certificate was used",
    "ConnectionFailed": "is the node running, and is --server right? `logctl context show` says what is used",
    "CertificateRefused": "`logctl context show` says which files and which cluster are meant; all come from one CA",
    "StoreLocked": "is another logd running on this directory?",
    "StoreRefused": "--data-dir names the directory of this node's data",
    "ListenFailed": "--listen chooses another address; port 0 is any free one",
    "ConnectionLost": "try again; a produce that was cut may be in the log",
    "OffsetOutOfRange": "`logctl topic describe` shows the offsets that can be read; `--from start` is always right",
    "CorruptBatch": "`logctl segment verify` on the node's data directory says where the chain stops",
    "DiskFull": "free space on the node, or shorten the retention; writing resumes by itself",
    "Overloaded": "wait a little, or produce with fewer and larger batches",
    "RecordTooLarge": "`--format raw` cuts a large file into records that fit",
    "Unsupported": "`logctl version` shows the versions of both ends",
    "ProtocolError": "does a logd node listen at this address?",
}
"""What to try next, by the error's code."""


def hint_of(error: LogdError) -> str:
    """What to try next; empty when there is nothing to say."""
    own = error.hint if isinstance(error, CommandError) else ""
    if isinstance(error, TopicNotFound) and "partition" in error.details:
        # The topic is there: what is missing is one of its partitions.
        topic = error.details.get("topic", "TOPIC")
        adding = f"`logctl topic alter {topic} --partitions N` adds some"
        own = f"`logctl topic describe {topic}` shows its partitions, {adding}"
    return own or HINTS.get(error.code, "")


def exit_code_of(error: BaseException) -> Exit:
    """The exit code for anything that can end a command."""
    if isinstance(error, LogdError):
        return exit_of(error)
    if isinstance(error, KeyboardInterrupt):
        return Exit.INTERRUPTED
    if isinstance(error, OutputClosed | BrokenPipeError):
        return Exit.BROKEN_PIPE
    if isinstance(error, OSError):
        return Exit.FILES
    return Exit.INTERNAL


def is_debugging() -> bool:
    """Whether the user asked to see where a defect is: `LOGCTL_TRACEBACK=1`."""
    return os.environ.get("LOGCTL_TRACEBACK", "") not in ("", "0")
