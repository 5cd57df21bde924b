"""Every error that the protocol can carry, each with a type, a stable code and a promise about the state it leaves.

For: whoever raises, sends, receives or documents an error. Must not know: which request it answers or how it is
encoded. The one idea: the table of codes is the class hierarchy itself. A class states its code, whether trying again
can help, and what is true when it is raised; the documentation is generated from it.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Final

Details = Mapping[str, Any]


class LogdError(Exception):
    """The base of all errors of logd that a caller may want to catch.

    Arguments: `message`, one sentence for a person; `details`, values for a program (names and units as in the
    documentation of each error).
    """

    code: ClassVar[str] = "Internal"
    retriable: ClassVar[bool] = False
    leaves: ClassVar[str] = "unknown: a defect in logd"

    def __init__(self, message: str = "", details: Details | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = dict(details or {})

    def __str__(self) -> str:
        return self.message or self.code


# --- Answers of the server ------------------------------------------------------------------------------------------


class ServerError(LogdError):
    """An error that a server answers a request with; its code crosses the wire."""


class UnknownError(ServerError):
    """A newer server answered with a code that this client does not know; `details['code']` holds it."""

    code = "Unknown"
    leaves = "as the server's documentation says of the code in the details"


class InternalError(ServerError):
    """The server met a state that should be impossible; its log has the reason."""

    code = "Internal"
    leaves = "unknown: treat a write as OutcomeUnknown"


class ProtocolError(ServerError):
    """Bytes that are not a frame of this protocol, or a message where it may not stand. The connection is closed."""

    code = "ProtocolError"
    leaves = "nothing was done by the offending frame; requests sent before it may have been carried out"


class Unsupported(ServerError):
    """A message type, version or feature that this server does not have. The connection lives."""

    code = "Unsupported"
    leaves = "nothing was done"


class InvalidRequest(ServerError):
    """A well-formed message with a field that is missing, out of range or contradicts another."""

    code = "InvalidRequest"
    leaves = "nothing was done"


class NotAuthorized(ServerError):
    """The certificate's identity may not do this here."""

    code = "NotAuthorized"
    leaves = "nothing was done"


class NotLeader(ServerError):
    """This node does not lead the partition; the details name the leader and its address where known."""

    code = "NotLeader"
    retriable = True
    leaves = "nothing was done"


class TopicNotFound(ServerError):
    """There is no such topic, or no such partition in it."""

    code = "TopicNotFound"
    leaves = "nothing was done"


class TopicExists(ServerError):
    """A topic of this name is there already."""

    code = "TopicExists"
    leaves = "the existing topic is unchanged"


class InvalidTopic(ServerError):
    """A topic's name or configuration that is not acceptable; the message says which part and why."""

    code = "InvalidTopic"
    leaves = "nothing was done"


class OffsetOutOfRange(ServerError):
    """An offset below `log_start_offset` or beyond `high_watermark`; the details hold both."""

    code = "OffsetOutOfRange"
    leaves = "nothing was done"


class NotYetAvailable(ServerError):
    """Beyond the watermark before a new leader's first commit in its own term: ask again shortly."""

    code = "NotYetAvailable"
    retriable = True
    leaves = "nothing was done"


class Overloaded(ServerError):
    """A bounded queue or table is full; `details['delay_seconds']` says when to try again."""

    code = "Overloaded"
    retriable = True
    leaves = "nothing was done"


class ShuttingDown(ServerError):
    """The node drains and takes no new work."""

    code = "ShuttingDown"
    retriable = True
    leaves = "nothing was done"


class OutcomeUnknown(ServerError):
    """The write was proposed and its fate was not learned in time. An idempotent retry appends exactly once."""

    code = "OutcomeUnknown"
    retriable = True
    leaves = "the records may be in the log, once, or may not"


class BatchTooLarge(ServerError):
    """A batch above `batch_bytes_max`; the details hold the limit."""

    code = "BatchTooLarge"
    leaves = "nothing was done"


class InvalidBatch(ServerError):
    """A batch that breaks a rule of the format: control bit, unknown flags, leader's fields filled in, wrong count."""

    code = "InvalidBatch"
    leaves = "nothing was done"


class CorruptBatch(ServerError):
    """Bytes whose digest does not match: on produce, damaged on the way; on fetch, damaged in the replica."""

    code = "CorruptBatch"
    leaves = "on produce nothing was done; on fetch the details hold the offset range that cannot be read"


class OffsetMismatch(ServerError):
    """A conditional append whose `expected_offset` is not the next offset; the details hold the next one."""

    code = "OffsetMismatch"
    leaves = "nothing was done"


class SequenceGap(ServerError):
    """A sequence beyond the next expected one of this producer: an earlier batch is missing."""

    code = "SequenceGap"
    leaves = "nothing was done"


class UnknownProducer(ServerError):
    """A producer id that this partition has never seen, or has expired, with a sequence other than 0."""

    code = "UnknownProducer"
    leaves = "nothing was done"


class DuplicateSequence(ServerError):
    """A repeat of a batch older than the last five of its producer: it is in the log, its offset is forgotten."""

    code = "DuplicateSequence"
    leaves = "the records are in the log already; nothing was added"


class Fenced(ServerError):
    """A newer epoch of the same producer has written to this partition."""

    code = "Fenced"
    leaves = "nothing was done"


class DiskFull(ServerError):
    """The node has no space for the batch. Reads go on, and writes resume by themselves when space is freed."""

    code = "DiskFull"
    retriable = True
    leaves = "nothing was done"


class StorageFailed(ServerError):
    """The node's disk failed a write or an fsync: it promises nothing more and exits."""

    code = "StorageFailed"
    retriable = True
    leaves = "the records may be in the log, once, or may not"


# --- Errors that the client raises by itself ------------------------------------------------------------------------


class ClientError(LogdError):
    """An error that arises in the client and never crosses the wire."""

    code = "Client"
    leaves = "as the subclass says"


class ConnectionFailed(ClientError):
    """No connection: nobody answers at the address, or whoever does ends the connection before its greeting."""

    code = "ConnectionFailed"
    retriable = True
    leaves = "nothing was sent"


class Misconfigured(ClientError):
    """No connection, and trying again cannot help: an address, a file, a certificate or the cluster is not right.

    It is no ConnectionFailed: whoever tries again on that must not do so for ever on this.
    """

    code = "Misconfigured"
    leaves = "nothing was sent"


class ConnectionLost(ClientError):
    """The connection ended while an answer was awaited."""

    code = "ConnectionLost"
    retriable = True
    leaves = "the request may have been carried out"


class ClientClosed(ClientError):
    """The client, producer or consumer was closed; nothing further is sent."""

    code = "ClientClosed"
    leaves = "what was not acknowledged before the close may or may not be in the log"


class BufferFull(ClientError):
    """`send_nowait` found the producer's bounded memory full: await `send` instead, or wait for acknowledgements."""

    code = "BufferFull"
    retriable = True
    leaves = "the record was not taken"


class RecordTooLarge(ClientError):
    """One record that cannot fit any batch; the details hold its size and the limit."""

    code = "RecordTooLarge"
    leaves = "the record was not taken"


class UndecodableBatch(ClientError):
    """A batch that verifies but whose payload is no array of records; the details hold its offset range.

    A consumer that catches it can go on: its position is already past the batch.
    """

    code = "UndecodableBatch"
    leaves = "the consumer stands past the batch"


def _concrete(base: type[ServerError]) -> dict[str, type[ServerError]]:
    found = {}
    for sub in base.__subclasses__():
        found[sub.code] = sub
        found.update(_concrete(sub))
    return found


SERVER_ERRORS: Final[Mapping[str, type[ServerError]]] = _concrete(ServerError)
"""Every error that can be an answer, by its code."""


def server_error(code: str, message: str, details: Details | None = None) -> ServerError:
    """Return the typed error for an `Error` answer; a code from the future becomes `UnknownError`."""
    kind = SERVER_ERRORS.get(code)
    if kind is None:
        return UnknownError(f"{code}: {message}", {**(details or {}), "code": code})
    return kind(message, details)
