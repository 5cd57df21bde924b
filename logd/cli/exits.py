"""The exit codes: one table, from which the documentation is made.

For: whoever ends a process of `logd` or `logctl`, and scripts that look at how it ended. Must not know: how an error
is shown. The one idea: a code says what a script can do about it (correct the command, wait, give up, look at the
disk), and every error of the protocol stands in exactly one row.
"""

from enum import IntEnum
from typing import Final, NamedTuple

from wire.errors import LogdError


class Exit(IntEnum):
    """How a process ended."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    NOT_FOUND = 3
    EXISTS = 4
    REFUSED = 5
    UNAVAILABLE = 6
    CORRUPT = 7
    OUT_OF_RANGE = 8
    INVALID = 9
    CONFLICT = 10
    INCOMPATIBLE = 11
    FILES = 74
    RETRIABLE = 75
    CONFIGURATION = 78
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    TERMINATED = 143


class ExitRow(NamedTuple):
    """One row of the documentation: the code, what it means, and the error codes that lead to it."""

    exit: Exit
    meaning: str
    codes: tuple[str, ...] = ()


EXITS: Final = (
    ExitRow(Exit.OK, "Done."),
    ExitRow(Exit.INTERNAL, "A defect, in logctl or in the node; its log has the reason.", ("Internal", "Unknown")),
    ExitRow(Exit.USAGE, "The command line is wrong; nothing was done.", ("Usage",)),
    ExitRow(
        Exit.NOT_FOUND,
        "No such topic, partition, context or file.",
        ("TopicNotFound", "ContextNotFound", "FileNotFound"),
    ),
    ExitRow(Exit.EXISTS, "It is there already, and was left as it is.", ("TopicExists", "ContextExists")),
    ExitRow(
        Exit.REFUSED,
        "Refused: the certificate is not accepted, may not do this, or a question was answered with no.",
        ("NotAuthorized", "CertificateRefused", "NotConfirmed"),
    ),
    ExitRow(
        Exit.UNAVAILABLE,
        "No connection, or it was lost, or no answer came in time.",
        ("ConnectionFailed", "ConnectionLost", "Timeout", "Client", "ClientClosed"),
    ),
    ExitRow(
        Exit.CORRUPT,
        "Stored bytes do not verify.",
        ("CorruptBatch", "UndecodableBatch", "VerifyFailed", "Unreadable", "JournalLost"),
    ),
    ExitRow(Exit.OUT_OF_RANGE, "The offset is not, or no longer, in the log.", ("OffsetOutOfRange",)),
    ExitRow(
        Exit.INVALID,
        "The data given is not acceptable: a name, a setting, a record, a line of the input.",
        ("InvalidRequest", "InvalidTopic", "InvalidBatch", "BatchTooLarge", "RecordTooLarge", "InvalidInput", "Store"),
    ),
    ExitRow(
        Exit.CONFLICT,
        "Another producer, or an earlier batch, stands in the way.",
        ("OffsetMismatch", "SequenceGap", "UnknownProducer", "DuplicateSequence", "Fenced"),
    ),
    ExitRow(
        Exit.INCOMPATIBLE,
        "The other end speaks another protocol, or a version without this request.",
        ("ProtocolError", "Unsupported"),
    ),
    ExitRow(Exit.FILES, "A local file, the input or the output could not be read or written.", ("FileFailed",)),
    ExitRow(
        Exit.RETRIABLE,
        "It did not work now and may later: trying again is right.",
        (
            "ListenFailed",
            "StoreLocked",
            "NotLeader",
            "NotYetAvailable",
            "Overloaded",
            "ShuttingDown",
            "OutcomeUnknown",
            "DiskFull",
            "StorageFailed",
            "BufferFull",
        ),
    ),
    ExitRow(
        Exit.CONFIGURATION,
        "The configuration, a context or a certificate file is wrong; every problem is listed.",
        ("Configuration", "Misconfigured", "StoreRefused"),
    ),
    ExitRow(Exit.INTERRUPTED, "Stopped by Ctrl-C, after what was accepted was brought to its end.", ("Interrupted",)),
    ExitRow(Exit.BROKEN_PIPE, "Whoever read the output went away; as a shell reports SIGPIPE. Nothing is printed."),
    ExitRow(Exit.TERMINATED, "Stopped by SIGTERM, as by Ctrl-C.", ("Terminated",)),
)
"""Every exit code, in the order of the documentation."""

EXIT_OF_CODE: Final = {code: row.exit for row in EXITS for code in row.codes}


def exit_of(error: LogdError) -> Exit:
    """The exit code for an error; one that a newer library brings and this table lacks says only if to try again."""
    fallback = Exit.RETRIABLE if error.retriable else Exit.INTERNAL
    return EXIT_OF_CODE.get(error.code, fallback)
