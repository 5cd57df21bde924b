"""Every error that the protocol can carry, each with a type, a stable code and a promise about the state it leaves.

For: whoever raises, sends, receives or documents an error. Must not know: which request it answers or how it is
encoded. The one idea: the table of codes is the class hierarchy itself. A class states its code, whether trying again
can help, and what is true when it is raised; the documentation is generated from it.

```python
try:
    await client.describe_topic("nowhere")
except wire.errors.TopicNotFound as error:
    print(error, error.retriable, error.leaves)
```
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Final

Details = Mapping[str, Any]


class LogdError(Exception):
    """The base of all errors of logd that a caller may want to catch.

    Arguments: `message`, one sentence for a person; `details`, values for a program (names and units as in the
    documentation of each error).

    ```python
    try:
        await client.describe_topic("nowhere")
    except wire.LogdError as error:
        print(error.code, error.message, error.details, error.retriable)
    ```
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
    """An error that a server answers a request with; its code crosses the wire.

    ```python
    try:
        await client.describe_topic("nowhere")
    except wire.ServerError as error:
        print(error.code, error.leaves)
    ```
    """


class UnknownError(ServerError):
    """A newer server answered with a code that this client does not know; `details['code']` holds it.

    ```python
    error = wire.errors.server_error("Tired", "need sleep")
    assert isinstance(error, wire.UnknownError) and error.details["code"] == "Tired"
    ```
    """

    code = "Unknown"
    leaves = "as the server's documentation says of the code in the details"


class InternalError(ServerError):
    """The server met a state that should be impossible; its log has the reason.

    ```python
    error = wire.errors.server_error("Internal", "a defect")
    assert isinstance(error, wire.InternalError) and not error.retriable
    ```
    """

    code = "Internal"
    leaves = "unknown: treat a write as OutcomeUnknown"


class ProtocolError(ServerError):
    """Bytes that are not a frame of this protocol, or a message where it may not stand. The connection is closed.

    ```python
    error = wire.errors.server_error("ProtocolError", "no frame")
    assert isinstance(error, wire.ProtocolError) and not error.retriable
    ```
    """

    code = "ProtocolError"
    leaves = "nothing was done by the offending frame; requests sent before it may have been carried out"


class Unsupported(ServerError):
    """A message type, version or feature that this server does not have. The connection lives.

    ```python
    error = wire.errors.server_error("Unsupported", "no such request")
    assert isinstance(error, wire.Unsupported) and not error.retriable
    ```
    """

    code = "Unsupported"
    leaves = "nothing was done"


class InvalidRequest(ServerError):
    """A well-formed message with a field that is missing, out of range or contradicts another.

    ```python
    try:
        wire.Consumer(client, "events", credit_bytes=0)
    except wire.InvalidRequest as error:
        print(error)
    ```
    """

    code = "InvalidRequest"
    leaves = "nothing was done"


class NotAuthorized(ServerError):
    """The certificate's identity may not do this here.

    ```python
    error = wire.errors.server_error("NotAuthorized", "may not delete topics")
    assert isinstance(error, wire.NotAuthorized) and not error.retriable
    ```
    """

    code = "NotAuthorized"
    leaves = "nothing was done"


class NotLeader(ServerError):
    """This node does not lead the partition; the details name the leader and its address where known.

    ```python
    error = wire.errors.server_error("NotLeader", "ask node-2", {"leader": "node-2"})
    assert isinstance(error, wire.NotLeader) and error.details["leader"] == "node-2"
    ```
    """

    code = "NotLeader"
    retriable = True
    leaves = "nothing was done"


class TopicNotFound(ServerError):
    """There is no such topic, or no such partition in it.

    ```python
    try:
        await client.describe_topic("nowhere")
    except wire.TopicNotFound as error:
        print(error)
    ```
    """

    code = "TopicNotFound"
    leaves = "nothing was done"


class TopicExists(ServerError):
    """A topic of this name is there already.

    ```python
    try:
        await client.create_topic("events")
    except wire.TopicExists as error:
        print(error)
    ```
    """

    code = "TopicExists"
    leaves = "the existing topic is unchanged"


class InvalidTopic(ServerError):
    """A topic's name or configuration that is not acceptable; the message says which part and why.

    ```python
    try:
        await client.create_topic("no/name")
    except wire.InvalidTopic as error:
        print(error)
    ```
    """

    code = "InvalidTopic"
    leaves = "nothing was done"


class OffsetOutOfRange(ServerError):
    """An offset below `log_start_offset` or beyond `high_watermark`; the details hold both.

    ```python
    try:
        await client.fetch("events", 0, 1000)
    except wire.OffsetOutOfRange as error:
        print(error.details["log_start_offset"], error.details["high_watermark"])
    ```
    """

    code = "OffsetOutOfRange"
    leaves = "nothing was done"


class NotYetAvailable(ServerError):
    """Beyond the watermark before a new leader's first commit in its own term: ask again shortly.

    ```python
    error = wire.errors.server_error("NotYetAvailable", "ask again")
    assert isinstance(error, wire.NotYetAvailable) and error.retriable
    ```
    """

    code = "NotYetAvailable"
    retriable = True
    leaves = "nothing was done"


class Overloaded(ServerError):
    """A bounded queue or table is full; `details['delay_seconds']` says when to try again.

    ```python
    error = wire.errors.server_error("Overloaded", "too many", {"delay_seconds": 0.5})
    assert isinstance(error, wire.Overloaded) and error.details["delay_seconds"] == 0.5
    ```
    """

    code = "Overloaded"
    retriable = True
    leaves = "nothing was done"


class ShuttingDown(ServerError):
    """The node drains and takes no new work.

    ```python
    error = wire.errors.server_error("ShuttingDown", "the node stops")
    assert isinstance(error, wire.ShuttingDown) and error.retriable
    ```
    """

    code = "ShuttingDown"
    retriable = True
    leaves = "nothing was done"


class OutcomeUnknown(ServerError):
    """The write was proposed and its fate was not learned in time. An idempotent retry appends exactly once.

    ```python
    error = wire.errors.server_error("OutcomeUnknown", "no quorum in time")
    assert isinstance(error, wire.OutcomeUnknown) and error.retriable
    ```
    """

    code = "OutcomeUnknown"
    retriable = True
    leaves = "the records may be in the log, once, or may not"


class BatchTooLarge(ServerError):
    """A batch above `batch_bytes_max`; the details hold the limit.

    ```python
    try:
        await client.produce("events", 0, wire.encode_batch([(bytes(2 << 20), None, 0, None)]))
    except wire.BatchTooLarge as error:
        print(error)
    ```
    """

    code = "BatchTooLarge"
    leaves = "nothing was done"


class InvalidBatch(ServerError):
    """A batch that breaks a rule of the format: control bit, unknown flags, leader's fields filled in, wrong count.

    ```python
    try:
        await client.produce("events", 0, b"no batch")
    except wire.InvalidBatch as error:
        print(error)
    ```
    """

    code = "InvalidBatch"
    leaves = "nothing was done"


class CorruptBatch(ServerError):
    """Bytes whose digest does not match: on produce, damaged on the way; on fetch, damaged in the replica.

    ```python
    try:
        list(wire.split_batches(b"cut off"))
    except wire.CorruptBatch as error:
        print(error)
    ```
    """

    code = "CorruptBatch"
    leaves = "on produce nothing was done; on fetch the details hold the offset range that cannot be read"


class OffsetMismatch(ServerError):
    """A conditional append whose `expected_offset` is not the next offset; the details hold the next one.

    ```python
    batch = wire.encode_batch([(b"third", None, 0, None)])
    try:
        await client.produce("events", 0, batch, expected_offset=0)
    except wire.OffsetMismatch as error:
        assert error.details["next_offset"] == 2
        print(error)
    ```
    """

    code = "OffsetMismatch"
    leaves = "nothing was done"


class SequenceGap(ServerError):
    """A sequence beyond the next expected one of this producer: an earlier batch is missing.

    ```python
    error = wire.errors.server_error("SequenceGap", "a batch is missing")
    assert isinstance(error, wire.SequenceGap) and not error.retriable
    ```
    """

    code = "SequenceGap"
    leaves = "nothing was done"


class UnknownProducer(ServerError):
    """A producer id that this partition has never seen, or has expired, with a sequence other than 0.

    ```python
    batch = wire.encode_batch([(b"third", None, 0, None)], producer_id=999_999, base_sequence=5)
    try:
        await client.produce("events", 0, batch)
    except wire.UnknownProducer as error:
        print(error)
    ```
    """

    code = "UnknownProducer"
    leaves = "nothing was done"


class DuplicateSequence(ServerError):
    """A repeat of a batch older than the last five of its producer: it is in the log, its offset is forgotten.

    ```python
    error = wire.errors.server_error("DuplicateSequence", "it is there")
    assert isinstance(error, wire.DuplicateSequence) and not error.retriable
    ```
    """

    code = "DuplicateSequence"
    leaves = "the records are in the log already; nothing was added"


class Fenced(ServerError):
    """A newer epoch of the same producer has written to this partition.

    ```python
    error = wire.errors.server_error("Fenced", "a newer one writes")
    assert isinstance(error, wire.Fenced) and not error.retriable
    ```
    """

    code = "Fenced"
    leaves = "nothing was done"


class DiskFull(ServerError):
    """The node has no space for the batch. Reads go on, and writes resume by themselves when space is freed.

    ```python
    error = wire.errors.server_error("DiskFull", "no space")
    assert isinstance(error, wire.DiskFull) and error.retriable
    ```
    """

    code = "DiskFull"
    retriable = True
    leaves = "nothing was done"


class StorageFailed(ServerError):
    """The node's disk failed a write or an fsync: it promises nothing more and exits.

    ```python
    error = wire.errors.server_error("StorageFailed", "an fsync failed")
    assert isinstance(error, wire.StorageFailed) and error.retriable
    ```
    """

    code = "StorageFailed"
    retriable = True
    leaves = "the records may be in the log, once, or may not"


# --- Errors that the client raises by itself ------------------------------------------------------------------------


class ClientError(LogdError):
    """An error that arises in the client and never crosses the wire.

    ```python
    try:
        wire.Address.parse("no address")
    except wire.ClientError as error:
        print(error.code, error.leaves)
    ```
    """

    code = "Client"
    leaves = "as the subclass says"


class ConnectionFailed(ClientError):
    """No connection: nobody answers at the address, or whoever does ends the connection before its greeting.

    ```python
    try:
        async with wire.Client("127.0.0.1:1", tls=tls):
            pass
    except wire.ConnectionFailed as error:
        print(error)
    ```
    """

    code = "ConnectionFailed"
    retriable = True
    leaves = "nothing was sent"


class Misconfigured(ClientError):
    """No connection, and trying again cannot help: an address, a file, a certificate or the cluster is not right.

    It is no ConnectionFailed: whoever tries again on that must not do so for ever on this.

    ```python
    try:
        wire.Client("no address", tls=tls)
    except wire.Misconfigured as error:
        print(error)
    ```
    """

    code = "Misconfigured"
    leaves = "nothing was sent"


class ConnectionLost(ClientError):
    """The connection ended while an answer was awaited.

    ```python
    error = wire.ConnectionLost("the node was killed")
    assert error.retriable
    print(error.leaves)
    ```
    """

    code = "ConnectionLost"
    retriable = True
    leaves = "the request may have been carried out"


class ClientClosed(ClientError):
    """The client, producer or consumer was closed; nothing further is sent.

    ```python
    try:
        await wire.Client(address, tls=tls).ping()
    except wire.ClientClosed as error:
        print(error)
    ```
    """

    code = "ClientClosed"
    leaves = "what was not acknowledged before the close may or may not be in the log"


class BufferFull(ClientError):
    """`send_nowait` found the producer's bounded memory full: await `send` instead, or wait for acknowledgements.

    ```python
    async with wire.Producer(client, "events", batch_bytes_max=1000, buffer_bytes_max=1000) as producer:
        try:
            while True:
                producer.send_nowait(bytes(100))
        except wire.BufferFull as error:
            print(error)
    ```
    """

    code = "BufferFull"
    retriable = True
    leaves = "the record was not taken"


class RecordTooLarge(ClientError):
    """One record that cannot fit any batch; the details hold its size and the limit.

    ```python
    try:
        producer.send_nowait(bytes(2 << 20))
    except wire.RecordTooLarge as error:
        print(error)
    ```
    """

    code = "RecordTooLarge"
    leaves = "the record was not taken"


class UndecodableBatch(ClientError):
    """A batch that verifies but whose payload is no array of records; the details hold its offset range.

    A consumer that catches it can go on: its position is already past the batch.

    ```python
    error = wire.UndecodableBatch("no array", {"base_offset": 7, "next_offset": 9})
    assert error.details["next_offset"] == 9
    ```
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
