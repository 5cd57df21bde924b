"""`logctl produce`: records from standard input, files or the command line into a topic."""

import contextlib
import dataclasses
import math
import os
import random
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

from logd.cli import output
from logd.cli.connection import answered, connected, run_async
from logd.cli.errors import InvalidInput
from logd.cli.files import check_readable, chunks, opened
from logd.cli.formats import FORMATS, Given, cutter, unescape
from logd.cli.options import connection_options, output_options
from logd.cli.topics import complete_topics
from logd.cli.values import PAIR, duration, size, whole_number
from wire.errors import BufferFull, ClientClosed, ConnectionLost, LogdError, OutcomeUnknown, StorageFailed
from wire.types import Acks, Codec

if TYPE_CHECKING:
    import wire
    from logd.cli.interruption import Interruption

_MIB: Final = 1 << 20
BATCH_RECORDS_DEFAULT: Final = 10_000
LINGER_SECONDS_DEFAULT: Final = 0.005
# What is taken and not acknowledged, at most: enough to keep a fast disk busy, a tenth of what the process may use.
BUFFER_BYTES_MAX: Final = 16 * _MIB
# What a batch holds beside one record's key, value and headers: its header, and the record's own few bytes.
RECORD_OVERHEAD_BYTES: Final = 512
# What compressing may add to what cannot be compressed: one part in 128 is twice what zstd says.
_COMPRESSION_LOSS_SHIFT: Final = 7
# How long what was accepted may take to be acknowledged after Ctrl-C, before it is given up.
STOP_SECONDS_MAX: Final = 10.0
# Longer than any start of a node takes; a person begins to wonder.
STALL_SECONDS: Final = 5.0
# More partitions than this are summed up in one line; `--output json` names all.
PARTITIONS_SHOWN_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line asks for."""

    topic: str
    paths: Sequence[str]
    values: Sequence[bytes]
    format: str
    key: bytes | None
    key_separator: bytes | None
    headers: Mapping[str, bytes] | None
    partition: int | None
    record_bytes: int | None
    acks: Acks
    batch_bytes: int | None
    batch_records: int
    linger_seconds: float
    codec: Codec
    # Known when every input is a regular file.
    total_bytes: int | None = None


@dataclass(slots=True)
class PartitionRange:
    """Where records went in one partition. Invariant: base_offset < next_offset, and records > 0."""

    base_offset: int
    next_offset: int
    records: int


class Ranges:
    """Which offsets the records got, from their acknowledgements."""

    def __init__(self) -> None:
        self.partitions: dict[int, PartitionRange] = {}
        self.durability = ""

    def add_all(self, acknowledgements: Sequence["wire.Acknowledgement"]) -> None:
        """Count what is acknowledged among these, which are done and in the order of sending.

        Records without a key go to one partition for a whole batch, so nearly always the first and the last receipt
        of a row say what lies between them: it is halved until they do.
        """
        rows = [(0, len(acknowledgements))]
        while rows:
            begin, end = rows.pop()
            if begin >= end:
                continue
            first, last = _receipt(acknowledgements[begin]), _receipt(acknowledgements[end - 1])
            if first and last and _frame(first, last, end - begin):
                self._add(first, end - begin)
            elif end - begin > 1:
                middle = (begin + end) // 2
                rows += [(middle, end), (begin, middle)]

    def _add(self, first: "wire.Receipt", records: int) -> None:
        self.durability = first.durability.value
        # Whether a place is known, the receipt says by its offset.
        if first.offset < 0:
            return
        known = self.partitions.get(first.partition)
        next_offset = first.offset + records
        if known is None:
            self.partitions[first.partition] = PartitionRange(first.offset, next_offset, records)
        else:
            known.base_offset = min(known.base_offset, first.offset)
            known.next_offset = max(known.next_offset, next_offset)
            known.records += records


def _frame(first: "wire.Receipt", last: "wire.Receipt", records: int) -> bool:
    """Whether all of these records lie between the two; with `acks=none` no place is known, and it does not matter."""
    same = first.partition == last.partition
    return same and (last.offset - first.offset == records - 1 or first.offset < 0 > last.offset)


def _receipt(acknowledgement: "wire.Acknowledgement") -> "wire.Receipt | None":
    try:
        return acknowledgement.receipt_nowait()
    except LogdError:
        # What failed has no place; how many failed, and why, is told elsewhere.
        return None


def _may_be_in_log(acknowledgement: "wire.Acknowledgement") -> bool:
    try:
        acknowledgement.receipt_nowait()
    except (ClientClosed, ConnectionLost, OutcomeUnknown, StorageFailed):
        return True
    except LogdError:
        pass
    return False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it; sizes are of encoded records, in bytes."""

    seconds: float
    records: int
    records_failed: int
    records_unknown: int
    encoded_bytes: int
    batches: int
    retries: int
    ranges: Ranges


@click.command("produce", short_help="Append records to a topic.")
@click.argument("topic", shell_complete=complete_topics)
@click.argument("files", nargs=-1, type=click.Path(allow_dash=True))
@click.option("--value", multiple=True, help="A record's value, instead of an input; may be repeated.", metavar="TEXT")
@click.option("--key", metavar="TEXT", help="Key of every record that has none of its own.")
@click.option(
    "--key-separator",
    metavar="TEXT",
    help="With `lines`: what stands before its first occurrence is the key; \\t, \\0 and \\xHH work. A line without it "
    "ends the command with 9; those before it were produced.",
)
@click.option(
    "--headers", type=PAIR, multiple=True, metavar="NAME=VALUE", help="A header of every record; may be repeated."
)
@click.option("--partition", type=whole_number(0, 2**32 - 1), metavar="N", help="Partition of every record.")
@click.option(
    "--format",
    "-f",
    "format_",
    type=click.Choice(FORMATS),
    default="lines",
    show_default=True,
    help="How the input is cut into records.",
)
@click.option(
    "--record-bytes",
    type=size(1, 64 * _MIB),
    metavar="SIZE",
    help="With `raw`: length of the records that an input is cut into [default: all that fits into a batch].",
)
@click.option(
    "--acks",
    type=click.Choice([each.value for each in Acks]),
    default=Acks.QUORUM.value,
    show_default=True,
    help="When a record counts as acknowledged.",
)
@click.option(
    "--batch-bytes",
    type=size(1, 64 * _MIB),
    metavar="SIZE",
    help="Send a batch when it is so large; no record may be larger [default: the node's limit].",
)
@click.option(
    "--batch-records",
    type=whole_number(1, 1_000_000),
    default=BATCH_RECORDS_DEFAULT,
    show_default=True,
    metavar="N",
    help="Send a batch when it has so many records.",
)
@click.option(
    "--linger",
    type=duration(60.0),
    default=LINGER_SECONDS_DEFAULT,
    metavar="DURATION",
    help="Send a batch when its first record has waited so long  [default: 5ms].",
)
@click.option(
    "--compression",
    type=click.Choice([codec.name.lower() for codec in Codec]),
    default="none",
    show_default=True,
    help="How batches are compressed.",
)
@connection_options
@output_options
def command(  # one parameter per option
    *,
    topic: str,
    files: Sequence[str],
    value: Sequence[str],
    key: str | None,
    key_separator: str | None,
    headers: Sequence[tuple[str, str]],
    partition: int | None,
    format_: str,
    record_bytes: int | None,
    acks: str,
    batch_bytes: int | None,
    batch_records: int,
    linger: float,
    compression: str,
) -> None:
    """Append records to TOPIC, from FILES, from standard input, or given with --value.

    \b
    Formats:
      lines    a record is a line; a carriage return before its end is part of it
      raw      an input is one record, or several of --record-bytes if it is longer; all go to one partition
      json     a record is a line like {"key": "k", "value": "v", "headers": {"h": "x"}, "timestamp_ms": 0,
               "partition": 0}; bytes that are no text are {"base64": "…"}, and only "value" is required
      msgpack  a record is a map with the same fields
    What `logctl consume` prints in a format can be produced in it again.

    \b
    Examples:
      echo hello | logctl produce greetings
      logctl produce orders --value '42 apples' --key customer-7
      logctl produce files --format raw picture.png
      logctl produce orders --format json --compression zstd orders.jsonl

    Ctrl-C stops reading and waits until what was accepted is acknowledged; a second one abandons it.
    """  # noqa: D301  # click reads the backspace as "keep these lines"
    if value and files:
        raise click.UsageError("give either files or --value, not both")
    if key_separator is not None and (format_ != "lines" or value or key is not None):
        raise click.UsageError("--key-separator goes with --format lines, and without --key and --value")
    if record_bytes is not None and format_ != "raw":
        raise click.UsageError("--record-bytes goes with --format raw")
    paths = () if value else tuple(files) or ("-",)
    sizes = [check_readable(path) for path in paths]
    plan = Plan(
        topic=topic,
        paths=paths,
        values=[os.fsencode(each) for each in value],
        format=format_,
        key=None if key is None else os.fsencode(key),
        key_separator=None if key_separator is None else _separator(key_separator),
        headers={name: os.fsencode(text) for name, text in headers} or None,
        partition=partition,
        record_bytes=record_bytes,
        acks=Acks(acks),
        batch_bytes=batch_bytes,
        batch_records=batch_records,
        linger_seconds=linger,
        codec=Codec[compression.upper()],
        total_bytes=None if None in sizes else sum(each or 0 for each in sizes),
    )
    out = output.current()
    if paths == ("-",) and output.is_terminal(sys.stdin):
        out.note("reading records from the terminal; Ctrl-D ends the input")
    run_async(_run, plan, out)


def _separator(text: str) -> bytes:
    """What separates key and value, with its escapes replaced. Raises BadParameter."""
    try:
        separator = unescape(text)
        if not separator or b"\n" in separator:
            raise ValueError(f"{text!r}: expected a text that can stand in a line, like = or \\t")
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--key-separator'") from None
    return separator


async def _run(plan: Plan, out: output.Output) -> None:
    from logd.cli.interruption import interruptible  # noqa: PLC0415  # it loads the event loop

    async with interruptible() as interruption, connected() as client:
        sending = _Sending(plan, client, interruption)
        problem: LogdError | None = None
        try:
            async with sending.producer:
                problem = await sending.run(out)
                if problem is not None:
                    # Whoever leaves by an exception is not made to wait for what cannot be acknowledged any more.
                    raise problem
        finally:
            if sending.outcome is not None:
                is_complete = problem is None and interruption.signal is None
                _summarize(plan, sending.outcome, out, is_complete=is_complete)


class _Sending:
    """One run of the command: reads, sends, and keeps count."""

    def __init__(self, plan: Plan, client: "wire.Client", interruption: "Interruption") -> None:
        import wire  # noqa: PLC0415

        self._plan = plan
        self._client = client
        self._interruption = interruption
        batch_bytes_max = min(plan.batch_bytes or client.limits.batch_bytes_max, client.limits.batch_bytes_max)
        headers_bytes = sum(len(name.encode()) + len(value) + 10 for name, value in (plan.headers or {}).items())
        # An upper bound of a value, after what every record brings.
        self._record_bytes_max = batch_bytes_max - RECORD_OVERHEAD_BYTES - len(plan.key or b"") - headers_bytes
        if plan.codec is not Codec.NONE:
            self._record_bytes_max -= batch_bytes_max >> _COMPRESSION_LOSS_SHIFT
        if self._record_bytes_max < 1:
            raise InvalidInput(
                f"the key, the headers and a batch's own header leave no room in {batch_bytes_max:,} bytes",
                {"batch_bytes_max": batch_bytes_max},
            )
        self.producer = wire.Producer(
            client,
            plan.topic,
            acks=plan.acks,
            linger_seconds=plan.linger_seconds,
            batch_bytes_max=batch_bytes_max,
            batch_records_max=plan.batch_records,
            codec=plan.codec,
            buffer_bytes_max=max(BUFFER_BYTES_MAX, 2 * batch_bytes_max),
        )
        self._input_bytes = 0
        # Invariant: acknowledgements of what was sent and is not yet counted in `_ranges`, oldest first. The producer's
        # buffer bounds those that are not done.
        self._pending: deque[list[wire.Acknowledgement]] = deque()
        self._ranges = Ranges()
        # Failed in a way that does not say whether they are in the log.
        self._records_unknown = 0
        # Set when the run ends, in whatever way.
        self.outcome: Outcome | None = None

    async def run(self, out: output.Output) -> LogdError | None:
        """Send everything and wait until it is acknowledged; returns what stopped it."""
        begin = time.perf_counter()
        self._interruption.group.start_soon(self._tell_stalls, out)
        try:
            return await self._run(out)
        finally:
            self.outcome = self._take_outcome(time.perf_counter() - begin)

    async def _run(self, out: output.Output) -> LogdError | None:
        problem: LogdError | None = None
        async with self._progress(out):
            try:
                with self._interruption.stopping_here():
                    await self._send_all()
            except LogdError as error:
                problem = error
        is_stopped = self._interruption.signal is not None
        if is_stopped and (waiting := self._records_waiting()):
            out.note(
                f"waiting for {output.count_text(waiting, 'record')} to be acknowledged; Ctrl-C again abandons them"
            )
        # What was taken before the problem is brought to its end all the same.
        unflushed = await self._flush(STOP_SECONDS_MAX if is_stopped else math.inf)
        return problem or unflushed

    async def _flush(self, seconds: float) -> LogdError | None:
        import anyio  # noqa: PLC0415

        with anyio.move_on_after(None if seconds == math.inf else seconds):
            try:
                await self.producer.flush()
            except LogdError as error:
                return error
            return None
        return OutcomeUnknown(
            f"{output.count_text(self._records_waiting(), 'record')} not acknowledged within {seconds:g} s",
            {"records": self._records_waiting()},
        )

    def _records_waiting(self) -> int:
        known = self.producer.statistics
        return known.records_sent - known.records_acknowledged - known.records_failed

    def _progress(self, out: output.Output) -> contextlib.AbstractAsyncContextManager[None]:
        # Where a person types the records, a moving line would be in the way.
        is_typing = "-" in self._plan.paths and output.is_terminal(sys.stdin)
        if out.quiet or is_typing or not output.show_progress():
            return contextlib.nullcontext()
        from logd.cli import progress  # noqa: PLC0415

        def take() -> progress.Sample:
            known = self.producer.statistics
            return progress.Sample(
                known.records_acknowledged, known.bytes_acknowledged, self._records_waiting(), self._input_bytes
            )

        self._interruption.shows_progress = True
        return progress.shown(f"producing to {self._plan.topic}", take, self._plan.total_bytes)

    # --- sending ---

    async def _send_all(self) -> None:
        await self._send([Given(value) for value in self._plan.values], None)
        for path in self._plan.paths:
            await self._send_file(path)

    async def _send_file(self, path: str) -> None:
        partition = await self._partition_of_pieces() if self._plan.format == "raw" else None
        cut = cutter(
            self._plan.format,
            self._record_bytes_max,
            self._plan.record_bytes or self._record_bytes_max,
            self._plan.key_separator,
        )
        with opened(path) as descriptor:
            async with contextlib.aclosing(chunks(descriptor, path)) as stream:
                async for chunk in stream:
                    await self._send(cut.feed(chunk), partition)
                    self._input_bytes += len(chunk)
                    if cut.problem is not None:
                        break
        if cut.problem is None:
            await self._send(cut.finish(), partition)
        if cut.problem is not None:
            name = "standard input" if path == "-" else path
            raise type(cut.problem)(f"{name}: {cut.problem}", {**cut.problem.details, "path": path})

    async def _partition_of_pieces(self) -> int | None:
        """All pieces of one raw input go to one partition, for their order matters; which one is left to chance."""
        if self._plan.partition is not None or self._plan.key is not None:
            return None
        topic = await answered(lambda: self._client.describe_topic(self._plan.topic))
        return random.randrange(len(topic.partitions))  # noqa: S311  # it spreads load, it keeps no secret

    async def _send(self, records: Sequence[Given], piece_partition: int | None) -> None:
        plan = self._plan
        send = self.producer.send_nowait
        default_partition = plan.partition if plan.partition is not None else piece_partition
        acknowledgements = []
        try:
            for value, key, headers, timestamp_ms, partition in records:
                wanted_key = plan.key if key is None else key
                if plan.headers is not None:
                    headers = {**plan.headers, **(headers or {})}
                if default_partition is not None:
                    partition = default_partition
                try:
                    acknowledgement = send(value, wanted_key, headers, partition, timestamp_ms)
                except BufferFull:
                    acknowledgement = await self.producer.send(value, wanted_key, headers, partition, timestamp_ms)
                acknowledgements.append(acknowledgement)
        finally:
            if acknowledgements:
                self._pending.append(acknowledgements)
        self._count_acknowledged(to_the_end=False)
        if self.producer.statistics.records_failed:
            # More of the input would only make more to fail; flushing says why.
            await self.producer.flush()

    async def _tell_stalls(self, out: output.Output) -> None:
        """Where no moving line shows it, say that the node does not answer: the producer itself goes on trying."""
        import anyio  # noqa: PLC0415

        acknowledged = 0
        while True:
            await anyio.sleep(STALL_SECONDS)
            before, acknowledged = acknowledged, self.producer.statistics.records_acknowledged
            if acknowledged == before and self._records_waiting() and not self._interruption.shows_progress:
                waiting = output.count_text(self._records_waiting(), "record")
                out.note(f"no acknowledgement for {STALL_SECONDS:g} s, {waiting} waiting; trying on")

    # --- counting ---

    def _count_acknowledged(self, *, to_the_end: bool) -> None:
        while self._pending:
            if not self._pending[0][-1].done and not to_the_end:
                return
            done = [each for each in self._pending[0] if each.done]
            if len(done) < len(self._pending[0]) and not to_the_end:
                return
            self._pending.popleft()
            self._ranges.add_all(done)
            if self.producer.statistics.records_failed:
                self._records_unknown += sum(map(_may_be_in_log, done))

    def _take_outcome(self, seconds: float) -> Outcome:
        self._count_acknowledged(to_the_end=True)
        known = self.producer.statistics
        return Outcome(
            seconds=seconds,
            records=known.records_acknowledged,
            records_failed=known.records_failed - self._records_unknown,
            records_unknown=self._records_waiting() + self._records_unknown,
            encoded_bytes=known.bytes_acknowledged,
            batches=known.batches_acknowledged,
            retries=known.retries,
            ranges=self._ranges,
        )


def _summarize(plan: Plan, outcome: Outcome, out: output.Output, *, is_complete: bool) -> None:
    seconds = max(outcome.seconds, 1e-6)
    if out.as_json:
        document = {
            "topic": plan.topic,
            "records": outcome.records,
            "records_failed": outcome.records_failed,
            "records_unknown": outcome.records_unknown,
            "bytes": outcome.encoded_bytes,
            "batches": outcome.batches,
            "retries": outcome.retries,
            "seconds": round(seconds, 6),
            "records_per_second": round(outcome.records / seconds, 1),
            "bytes_per_second": round(outcome.encoded_bytes / seconds, 1),
            "durability": outcome.ranges.durability,
            "partitions": [
                {"partition": number, **dataclasses.asdict(known)}
                for number, known in sorted(outcome.ranges.partitions.items())
            ],
            "complete": is_complete,
        }
        click.echo(output.json_line(document))
        return
    if not is_complete and not outcome.records and not outcome.records_failed and not outcome.records_unknown:
        # The error says it all.
        return
    out.note(
        f"produced {output.count_text(outcome.records, 'record')} ({output.bytes_text(outcome.encoded_bytes)}) to "
        f"{plan.topic} in {seconds:.2f} s: {outcome.records / seconds:,.0f} records/s, "
        f"{output.bytes_text(outcome.encoded_bytes / seconds)}/s"
    )
    for number, known in sorted(outcome.ranges.partitions.items())[:PARTITIONS_SHOWN_MAX]:
        offsets = (
            f"offset {known.base_offset}"
            if known.next_offset == known.base_offset + 1
            else f"offsets {known.base_offset} to {known.next_offset - 1}"
        )
        out.note(f"  partition {number}: {offsets}, {outcome.ranges.durability}")
    more = len(outcome.ranges.partitions) - PARTITIONS_SHOWN_MAX
    if more > 0:
        out.note(f"  and {output.count_text(more, 'more partition')}; --output json names all")
    if plan.acks is Acks.NONE and outcome.records:
        out.note("  with --acks none nothing is promised, and no place is known")
    if outcome.records_failed:
        out.note(f"  {output.count_text(outcome.records_failed, 'record')} failed")
    if outcome.records_unknown:
        out.note(f"  {output.count_text(outcome.records_unknown, 'record')} abandoned: they may be in the log or not")
