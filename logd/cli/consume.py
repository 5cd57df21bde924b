"""`logctl consume`: records of a topic to standard output."""

import contextlib
import math
import select
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

from logd.cli import output
from logd.cli.connection import answered, connected, run_async
from logd.cli.errors import OutputClosed
from logd.cli.files import Sink
from logd.cli.formats import FIELDS, FORMATS, Writer, writer
from logd.cli.options import connection_options, output_options
from logd.cli.topics import complete_topics
from logd.cli.values import PLACE, AtOffset, AtTime, LastRecords, Place, whole_number
from wire.errors import TopicNotFound
from wire.types import Anchor, Record

if TYPE_CHECKING:
    import wire
    from logd.cli.interruption import Interruption

# What the node may send ahead: a large part of a second at full speed, a twentieth of what the process may use.
CREDIT_BYTES: Final = 8 << 20
# What may wait to be printed: several writes, so that reading goes on meanwhile.
WAITING_BYTES_MAX: Final = 4 << 20
# How long what was read may take to be printed after Ctrl-C, before it is given up; and before a person is told of it.
STOP_SECONDS_MAX: Final = 10.0
STOP_NOTE_SECONDS: Final = 0.5
# How often it is looked whether somebody still reads the output, while there is nothing to print.
OUTPUT_CHECK_SECONDS: Final = 0.5
# After the time of `--until` has come: what the node's clock may be behind ours.
CLOCK_GRACE_SECONDS: Final = 0.5
PARTITIONS_SHOWN_MAX: Final = 8

_FORMAT_HELP: Final = "\n".join(f"          %{letter}  {meaning}" for letter, (meaning, _) in FIELDS.items())


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line asks for."""

    topic: str
    partition: int | None
    start: Place
    until: Place | None
    follow: bool
    count: int | None


def _complete_format(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in FORMATS if name.startswith(incomplete)]


_HELP: Final = f"""Print the records of TOPIC, by default from its start to its end.

    Records of one partition come in order; those of several as they arrive.

    \b
    Places:
      start, end        the ends of what can be read
      42                an offset, in every partition
      -10               the last ten records of each partition
      -30s, -1h30m      so long ago, by the time of appending
      2026-01-31T12:00  a time, yours if it names no zone
      @1769860800000    a time in milliseconds since 1970 UTC

    \b
    Formats:
      lines    each value and a line's end
      raw      the values, and nothing between them
      json     a JSON object a line, which `logctl produce --format json` reads back
      msgpack  a msgpack map after the other, for the same use
      TEXT     with these replaced, and a line's end unless it ends in \\c; \\n \\t \\r \\0 \\\\ \\xHH work as well
{_FORMAT_HELP}
          %t  topic
          %%  a percent sign

    \b
    Examples:
      logctl consume orders --from -10
      logctl consume orders --follow --from end --format '%D %k: %v'
      logctl consume files --format raw > picture.png

    Ctrl-C stops it; the summary says where to go on.
    """


@click.command("consume", help=_HELP, short_help="Read records from a topic.")
@click.argument("topic", shell_complete=complete_topics)
@click.option(
    "--from",
    "start",
    type=PLACE,
    default=Anchor.START.value,
    show_default=True,
    metavar="PLACE",
    help="Where to begin: start, end, an offset, -N for the last N records, or a time.",
)
@click.option("--follow", is_flag=True, help="Do not stop at the end, but wait for more.")
@click.option("--count", type=whole_number(1, 2**63 - 1), metavar="N", help="Stop after N records.")
@click.option(
    "--until",
    type=PLACE,
    metavar="PLACE",
    help="Stop before this place: an offset, a time, or end, as it is at the beginning.",
)
@click.option("--partition", type=whole_number(0, 2**32 - 1), metavar="N", help="Only this partition [default: all].")
@click.option(
    "--format",
    "-f",
    "format_",
    metavar="FORMAT",
    shell_complete=_complete_format,
    help=f"How records are printed: {', '.join(FORMATS)}, or a text with %v, %k, … in it [default: lines].",
)
@connection_options
@output_options
def command(  # one parameter per option
    *,
    topic: str,
    start: Place,
    follow: bool,
    count: int | None,
    until: Place | None,
    partition: int | None,
    format_: str | None,
) -> None:
    """Print the records of a topic; see `_HELP`."""
    out = output.current()
    if isinstance(until, LastRecords) or until is Anchor.START:
        raise click.BadParameter("expected an offset, a time, or end", param_hint="'--until'")
    try:
        write = writer(format_ or ("json" if out.as_json else "lines"), topic)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--format'") from None
    run_async(_run, Plan(topic, partition, start, until, follow, count), write, out)


async def _run(plan: Plan, write: Writer, out: output.Output) -> None:
    from logd.cli.interruption import interruptible  # noqa: PLC0415  # it loads the event loop

    sys.stdout.flush()
    with contextlib.closing(Sink(sys.stdout.fileno())) as sink:
        async with interruptible() as interruption, connected() as client:
            reading = _Reading(plan, client, write, sink, interruption)
            is_complete = False
            try:
                await reading.run(out)
                is_complete = interruption.signal is None
            finally:
                reading.summarize(out, is_complete=is_complete)


class _Printer:
    """Writes what it is given, in its own task, in large pieces. Memory is bounded by whoever gives."""

    def __init__(self, sink: Sink) -> None:
        import anyio  # noqa: PLC0415

        self._sink = sink
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._wanted = anyio.Event()
        self._written = anyio.Event()
        self._is_writing = False
        # The output is gone, or full.
        self.has_failed = False

    @property
    def bytes_written(self) -> int:
        """What the system has, to the byte: what is on its way counts as it goes."""
        return self._sink.bytes_written

    def put(self, data: bytes) -> None:
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        self._wanted.set()

    @property
    def is_full(self) -> bool:
        return self._waiting_bytes >= WAITING_BYTES_MAX

    async def wait_room(self) -> None:
        """Return when there is room again."""
        while self.is_full:
            await self._written.wait()

    async def drain(self) -> None:
        """Return when everything is written."""
        while self._waiting or self._is_writing:
            await self._written.wait()

    async def run(self) -> None:
        import anyio  # noqa: PLC0415

        while True:
            await self._wanted.wait()
            data = b"".join(self._waiting)
            self._waiting = []
            self._waiting_bytes = 0
            self._wanted = anyio.Event()
            self._is_writing = True
            try:
                await self._sink.write(data)
            except Exception:
                self.has_failed = True
                raise
            self._is_writing = False
            self._written.set()
            self._written = anyio.Event()


class _Reading:
    """One run of the command: reads, prints, and keeps count."""

    def __init__(
        self, plan: Plan, client: "wire.Client", write: Writer, sink: Sink, interruption: "Interruption"
    ) -> None:
        self._plan = plan
        self._client = client
        self._write = write
        self._interruption = interruption
        self._printer = _Printer(sink)
        self._begin = 0.0
        self._records = 0
        self._bytes = 0
        # By partition: the next offset to read.
        self._positions: dict[int, int] = {}
        # By partition: the offset before which all was printed, by whole batches; as `_settle` last found it.
        self._printed_positions: dict[int, int] = {}
        # What was handed to the printer: the bytes up to its end, its partition, the offset and the records then. As
        # many as the printer's bound lets wait.
        self._marks: deque[tuple[int, int, int, int]] = deque()
        self._printed_records = 0
        # By partition: the offset to stop before. Empty without `--until`.
        self._bounds: dict[int, int] = {}
        self._lags: dict[int, int] = {}

    async def run(self, out: output.Output) -> None:
        """Raises what stopped it, after everything before it was printed."""
        # Where nothing was read yet there is nothing to bring to its end: a signal ends everything.
        partitions = await self._partitions()
        starts = await self._starts(partitions)
        self._begin = time.perf_counter()
        group = self._interruption.group
        group.start_soon(self._printer.run)
        if self._plan.follow:
            group.start_soon(self._watch_output)
        try:
            async with self._progress(out):
                with self._interruption.stopping_here():
                    await self._read(partitions, starts)
        finally:
            # Also when a consumer failed: what it gave before is good.
            await self._drain(out)

    async def _drain(self, out: output.Output) -> None:
        """Wait until the output has taken what was read; after a signal no longer than `STOP_SECONDS_MAX`."""
        import anyio  # noqa: PLC0415

        if self._interruption.signal is None:
            # Whoever reads the output may take his time.
            await self._printer.drain()
            return
        with anyio.move_on_after(STOP_NOTE_SECONDS):
            await self._printer.drain()
            return
        out.note("waiting for the output to take what was read; Ctrl-C again gives it up")
        with anyio.move_on_after(STOP_SECONDS_MAX):
            await self._printer.drain()

    # --- where to begin, and where to stop ---

    async def _partitions(self) -> list[int]:
        topic = await answered(lambda: self._client.describe_topic(self._plan.topic))
        known = [partition.partition for partition in topic.partitions]
        if self._plan.partition is None:
            return known
        if self._plan.partition not in known:
            raise TopicNotFound(
                f"topic {self._plan.topic} has no partition {self._plan.partition}, "
                f"only {output.count_text(len(known), 'partition')}, counted from 0",
                {"topic": self._plan.topic, "partition": self._plan.partition, "partitions": len(known)},
            )
        return [self._plan.partition]

    async def _starts(self, partitions: Sequence[int]) -> dict[int, int] | None:
        """The offset to begin at in each partition, where one must be known; None where the node finds it itself."""
        if self._plan.until is None and not isinstance(self._plan.start, LastRecords):
            return None
        starts = {number: await self._offset_of(number, self._plan.start) for number in partitions}
        until = self._plan.until
        if isinstance(until, AtOffset) or until is Anchor.END or (isinstance(until, AtTime) and _is_past(until)):
            self._bounds = {number: await self._offset_of(number, until) for number in partitions}
        self._positions = dict(starts)
        self._printed_positions = dict(starts)
        return starts

    async def _offset_of(self, partition: int, place: Place) -> int:
        if isinstance(place, AtOffset):
            return place.offset
        at = place.timestamp_ms if isinstance(place, AtTime) else Anchor.START if place is Anchor.START else Anchor.END
        listed = await answered(lambda: self._client.list_offsets(self._plan.topic, partition, at))
        if isinstance(place, LastRecords):
            return max(listed.log_start_offset, listed.high_watermark - place.count)
        return listed.offset

    def _is_done(self) -> bool:
        if self._plan.count is not None and self._records >= self._plan.count:
            return True
        return bool(self._bounds) and all(self._positions[number] >= end for number, end in self._bounds.items())

    # --- reading ---

    async def _read(self, partitions: Sequence[int], starts: dict[int, int] | None) -> None:
        import anyio  # noqa: PLC0415

        if self._is_done():
            return
        async with anyio.create_task_group() as group:
            until = self._plan.until
            if isinstance(until, AtTime) and not self._bounds:
                group.start_soon(self._await_time, until, partitions, group.cancel_scope)
            consumers = anyio.create_task_group()
            async with consumers:
                if starts is None:
                    consumers.start_soon(self._consume, self._plan.partition, self._plan.start, group.cancel_scope)
                else:
                    for number, offset in starts.items():
                        if offset < self._bounds.get(number, math.inf):
                            consumers.start_soon(self._consume, number, AtOffset(offset), group.cancel_scope)
            group.cancel_scope.cancel()

    async def _await_time(self, until: AtTime, partitions: Sequence[int], reading: Any) -> None:
        """When the time of `--until` has come, learn which offsets that means, and stop there."""
        import anyio  # noqa: PLC0415

        await anyio.sleep(until.timestamp_ms / 1000 - time.time() + CLOCK_GRACE_SECONDS)
        self._bounds = {number: await self._offset_of(number, until) for number in partitions}
        if self._is_done():
            reading.cancel()

    async def _consume(self, partition: int | None, start: Place, reading: Any) -> None:
        import wire  # noqa: PLC0415

        place: dict[str, Any]
        if isinstance(start, AtTime):
            place = {"start_time_ms": start.timestamp_ms}
        else:
            place = {"start": start.offset if isinstance(start, AtOffset) else start}
        follow = self._plan.follow and self._plan.until is not Anchor.END
        async with wire.Consumer(
            self._client, self._plan.topic, partition=partition, credit_bytes=CREDIT_BYTES, follow=follow, **place
        ) as consumer:
            async for batch in consumer.batches():
                self._take(batch)
                if self._is_done():
                    reading.cancel()
                    return
                if self._printer.is_full:
                    await self._printer.wait_room()

    def _take(self, batch: "wire.Batch") -> None:
        records: Sequence[Record] = batch.records
        position = batch.header.next_offset
        bound = self._bounds.get(batch.partition)
        if bound is not None and position > bound:
            records = records[: max(0, bound - records[0].offset)] if records else records
            position = bound
        if self._plan.count is not None and len(records) > (left := self._plan.count - self._records):
            records = records[:left]
            position = records[-1].offset + 1
        self._positions[batch.partition] = position
        self._lags[batch.partition] = batch.high_watermark - position
        if records:
            self._records += len(records)
            data = self._write(records)
            self._bytes += len(data)
            self._printer.put(data)
        self._marks.append((self._bytes, batch.partition, position, self._records))
        self._settle()

    def _settle(self) -> None:
        """Move the positions to what the output has taken: only from there on may somebody go on."""
        while self._marks and self._marks[0][0] <= self._printer.bytes_written:
            _, partition, position, self._printed_records = self._marks.popleft()
            self._printed_positions[partition] = position

    async def _watch_output(self) -> None:
        """Notice that nobody reads the output any more, also while there is nothing to print. Raises OutputClosed."""
        import anyio  # noqa: PLC0415

        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        while True:
            if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
                self._printer.has_failed = True
                raise OutputClosed
            await anyio.sleep(OUTPUT_CHECK_SECONDS)

    # --- telling ---

    def _progress(self, out: output.Output) -> contextlib.AbstractAsyncContextManager[None]:
        # Where the records themselves scroll by, a moving line would be in the way.
        if out.quiet or output.is_terminal(sys.stdout) or not output.show_progress():
            return contextlib.nullcontext()
        from logd.cli import progress  # noqa: PLC0415

        def take() -> progress.Sample:
            return progress.Sample(self._records, self._bytes, sum(self._lags.values()) if self._lags else None)

        self._interruption.shows_progress = True
        return progress.shown(f"consuming {self._plan.topic}", take, None)

    def summarize(self, out: output.Output, *, is_complete: bool) -> None:
        """Say, on standard error, how much it was and where to go on; nothing where an error says it all."""
        self._settle()
        if not is_complete and (not self._printed_records or self._printer.has_failed):
            return
        seconds = max(time.perf_counter() - self._begin, 1e-6)
        if out.as_json:
            document = {
                "topic": self._plan.topic,
                "records": self._printed_records,
                "bytes": self._printer.bytes_written,
                "seconds": round(seconds, 6),
                "partitions": [
                    {"partition": number, "next_offset": offset}
                    for number, offset in sorted(self._printed_positions.items())
                ],
                "complete": is_complete,
            }
            out.note(output.json_line(document))
            return
        out.note(
            f"consumed {output.count_text(self._printed_records, 'record')} of {self._plan.topic} in {seconds:.2f} s: "
            f"{self._printed_records / seconds:,.0f} records/s, "
            f"{output.bytes_text(self._printer.bytes_written / seconds)}/s"
        )
        for number, offset in sorted(self._printed_positions.items())[:PARTITIONS_SHOWN_MAX]:
            out.note(f"  partition {number}: next offset {offset}")
        more = len(self._printed_positions) - PARTITIONS_SHOWN_MAX
        if more > 0:
            out.note(f"  and {output.count_text(more, 'more partition')}; --output json names all")
        left = self._records - self._printed_records
        if left:
            out.note(f"  the output did not take {output.count_text(left, 'record')} that came after")


def _is_past(place: AtTime) -> bool:
    return place.timestamp_ms <= time.time_ns() // 1_000_000
