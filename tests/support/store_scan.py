"""What a store's log holds durably, looked at from outside: for checks at every step of a simulation.

Must not know: consensus. The one idea: nothing here makes a call of the file system, so that looking neither draws
from a fault's chance nor counts as work, and payloads are never touched: headers alone are decoded, a few µs for each
entry. Whoever looks at every step keeps the index that it has come to.
"""

from collections.abc import Iterator
from typing import NamedTuple

from logd.store.format import SEGMENT_HEADER_BYTES
from logd.store.index import floor_by_index
from logd.store.log import Log
from tests.support.fake_files import FakeFileSystem
from wire.record import HEADER_BYTES, decode_header

# Batches of a simulation are small: a read of this size holds a few dozen of them.
READ_BYTES = 16 << 10


class DurableEntry(NamedTuple):
    """One batch that a replica has promised."""

    index: int  # type: ignore[assignment]  # the glossary's word wins over `tuple.index`
    term: int
    chain: bytes
    base_offset: int


def durable_entries(files: FakeFileSystem, log: Log, index: int | None = None) -> Iterator[DurableEntry]:
    """The entries of a log that are durable, from `index` (by default the first retained) to `log.end`, in order.

    They end before the first hole of a damaged log (`intact_index`), and while a round that replaces a suffix is
    prepared and not durable, where that suffix begins. A log must not change while this is iterated over.
    """
    index = max(log.start.index + 1, index or 0)
    end_index = log.intact_index + 1
    for entry in _in_segments(files, log, index, min(end_index, log.written.index + 1)):
        index = entry.index + 1
        yield entry
    for placed in log.unwritten:
        for header, _, _ in placed.items if placed.is_durable else ():
            if index == header.index <= placed.end.index and index < end_index:
                index += 1
                yield DurableEntry(header.index, header.term, header.chain, header.base_offset)


def _in_segments(files: FakeFileSystem, log: Log, index: int, next_index: int) -> Iterator[DurableEntry]:
    segments = [segment for segment in log.segments if segment.first_index < next_index]
    if index >= next_index or not segments:
        return
    first = max((number for number, segment in enumerate(segments) if segment.first_index <= index), default=0)
    for number in range(first, len(segments)):
        segment = segments[number]
        stop = min(segments[number + 1].first_index, next_index) if number + 1 < len(segments) else next_index
        position, at_index = SEGMENT_HEADER_BYTES, segment.first_index
        if segment.entries is not None and (entry := floor_by_index(segment.entries, index)) >= 0:
            position, at_index = segment.entries.positions[entry], segment.entries.indexes[entry]
        data, begin = b"", position
        while at_index < stop:
            if position + HEADER_BYTES > begin + len(data):
                data, begin = files.peek(segment.path, READ_BYTES, position), position
            header = decode_header(data, position - begin)
            assert header.index == at_index, f"{segment.path} holds index {header.index} where {at_index} must be"
            if at_index >= index:
                yield DurableEntry(at_index, header.term, header.chain, header.base_offset)
            position += header.batch_bytes
            at_index += 1
