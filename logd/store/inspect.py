"""Reading a data directory without opening it: what stands where, and exactly where a chain stops.

For: `logctl segment dump|verify`, and tests. Must not know: how it is printed. The one idea: it reads, verifies every
digest and every link by itself, and asks the journal what was promised; so it can tell the end of a log from a torn
tail, and both from corruption. It takes no lock and changes nothing, so the node may be running: what is written while
it reads may then be missing from what it says.
"""

import os.path
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final, NamedTuple

from logd.store.context import Context, StoreOptions
from logd.store.errors import JournalLost, StoreError, Unreadable
from logd.store.files import File, FileSystem
from logd.store.format import (
    SEGMENT_HEADER_BYTES,
    BatchEntry,
    EndEntry,
    Entry,
    HardStateEntry,
    LogEnd,
    NodeFile,
    RemoveEntry,
    StartEntry,
    decode_node,
    decode_segment_header,
    decode_start,
)
from logd.store.index import IndexCache, read_index_file
from logd.store.journal import find_heads, read_head, read_table
from logd.store.layout import (
    GROUPS_DIRECTORY,
    INDEX_SUFFIX,
    JOURNAL_DIRECTORY,
    NODE_FILE,
    SEGMENT_SUFFIX,
    START_SUFFIX,
    Layout,
    number_name,
    parse_number,
)
from logd.store.open_files import OpenFiles
from logd.store.recovery import JournalReader, Replay, Replayed
from logd.store.retention import Garbage
from wire.errors import CorruptBatch
from wire.record import HEADER_BYTES, BatchHeader, check_alone, check_in_place, decode_header, header_chain_holds

SCAN_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found. `kind` says which; `values` are JSON-able, digests as hexadecimal text.

    Kinds: `node`, `journal_file`, `round`, `start`, `segment`, `index`, `batch`, and `stop`, which ends each segment
    and journal file and whose `verdict` is one of `end`, `in_journal` (promised, not yet in its segment; normal in a
    running or crashed node), `torn_tail`, `corruption` or `unknown` (the journal could not be asked).
    """

    kind: str
    path: str
    is_problem: bool
    values: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """All of it, as one flat object."""
        return {"kind": self.kind, "path": self.path, "is_problem": self.is_problem, **self.values}


class _Directory(NamedTuple):
    """The data directory that a path is in, as far as it can be read."""

    layout: Layout
    node: NodeFile | None
    replay: Replay | None
    """What the journal promised; None if there is no journal, or it cannot be read."""


def inspect(files: FileSystem, path: str) -> Iterator[Finding]:
    """What is in `path`: a data directory, its journal or groups, a group's directory, or one file of any kind.

    Raises FileNotFoundError, StoreError for a path that is none of these, and OSError from reading.
    """
    path = os.path.normpath(path)
    name = os.path.basename(path)
    if not files.exists(path):
        raise FileNotFoundError(2, "no such file or directory", path)
    if files.exists(f"{path}/{NODE_FILE}"):
        yield from _data_directory(files, path)
        return
    parent = os.path.dirname(path)
    if name == NODE_FILE:
        yield _node_file(files, path)
    elif name == JOURNAL_DIRECTORY:
        yield from _journal(files, _directory_of(files, parent, ask_journal=False))
    elif name == GROUPS_DIRECTORY:
        yield from _groups(files, _directory_of(files, parent))
    elif parse_number(name) is not None:
        if _is_directory(files, path):
            grandparent = os.path.dirname(parent)
            yield from _group(files, _directory_of(files, grandparent), path)
        else:
            yield from _journal_file(files, _directory_of(files, os.path.dirname(parent), ask_journal=False), path)
    elif _is_file_of_group(name):
        data = os.path.dirname(os.path.dirname(parent))
        yield from _file_of_group(files, _directory_of(files, data), path)
    else:
        raise StoreError(f"{path} is neither a data directory nor a part of one")


def _is_directory(files: FileSystem, path: str) -> bool:
    try:
        files.listdir(path)
    except NotADirectoryError:
        return False
    return True


def _is_file_of_group(name: str) -> bool:
    return any(parse_number(name, suffix) is not None for suffix in (SEGMENT_SUFFIX, START_SUFFIX, INDEX_SUFFIX))


def _directory_of(files: FileSystem, directory: str, *, ask_journal: bool = True) -> _Directory:
    layout = Layout(directory)
    node = None
    replay = None
    if files.exists(layout.node):
        try:
            node = decode_node(_read(files, layout.node))
        except Unreadable:
            node = None
    if node is not None and ask_journal and files.exists(layout.journal):
        replay = _promises(files, layout, node)
    return _Directory(layout, node, replay)


def _promises(files: FileSystem, layout: Layout, node: NodeFile) -> Replay | None:
    options = StoreOptions()
    context = Context(
        files=files,
        layout=layout,
        options=options,
        open_files=OpenFiles(files, 1),
        cluster_id=node.cluster_id,
        journal_id=node.journal_id,
        producers_of=lambda _: None,
        index_cache=IndexCache(0),
        garbage=Garbage(),
        mark_dirty=lambda _: None,
    )
    reader = JournalReader(context)
    try:
        return reader.replay()
    except (JournalLost, FileNotFoundError):
        # Lost, or recycled by a running node while it was read.
        return None
    finally:
        reader.close()


def _read(files: FileSystem, path: str) -> bytes:
    file = files.open(path, writable=False)
    try:
        return file.pread(file.size(), 0)
    finally:
        file.close()


def _data_directory(files: FileSystem, path: str) -> Iterator[Finding]:
    directory = _directory_of(files, path)
    layout = directory.layout
    yield _node_file(files, layout.node)
    # node.json is written when both are there: one that is not was lost.
    if files.exists(layout.journal):
        yield from _journal(files, directory)
    else:
        yield Finding("node", layout.journal, is_problem=True, values={"reason": "the directory is missing"})
    if not files.exists(layout.groups):
        yield Finding("node", layout.groups, is_problem=True, values={"reason": "the directory is missing"})
    yield from _groups(files, directory)


def _node_file(files: FileSystem, path: str) -> Finding:
    try:
        node = decode_node(_read(files, path))
    except Unreadable as error:
        return Finding("node", path, is_problem=True, values={"reason": str(error)})
    values = {
        "node_name": node.node_name,
        "cluster_id": node.cluster_id.hex(),
        "journal_id": node.journal_id.hex(),
        "format_version": node.format_version,
    }
    return Finding("node", path, is_problem=False, values=values)


# --- The journal ------------------------------------------------------------------------------------------------------


def _journal(files: FileSystem, directory: _Directory) -> Iterator[Finding]:
    for name in files.listdir(directory.layout.journal):
        if parse_number(name) is not None:
            yield from _journal_file(files, directory, f"{directory.layout.journal}/{name}")


def _journal_file(files: FileSystem, directory: _Directory, path: str) -> Iterator[Finding]:
    number = parse_number(os.path.basename(path))
    assert number is not None
    if directory.node is None:
        yield Finding("journal_file", path, is_problem=True, values={"reason": "node.json cannot be read"})
        return
    journal_id = directory.node.journal_id
    file = files.open(path, writable=False)
    try:
        found = read_table(file, journal_id, number)
        table = found.table
        values: dict[str, Any] = {"file_number": number, "bytes": file.size(), "is_spare": table is None}
        if table is not None:
            values |= {
                "first_needed": table.first_needed,
                "last_round": table.last_round,
                "damaged_table_copies": found.damaged_copies,
                "groups": [_jsonable(row._asdict()) for row in table.rows],
            }
        has_lost_table = table is None and next(find_heads(file, journal_id, number, 0), None) is not None
        if has_lost_table:
            values |= {"is_spare": False, "reason": "neither copy of the table verifies"}
        yield Finding("journal_file", path, is_problem=has_lost_table or bool(found.damaged_copies), values=values)
        if table is not None:
            yield from _rounds(file, journal_id, number, path, table.rounds_position, table.last_round)
    finally:
        file.close()


def _rounds(file: File, journal_id: bytes, number: int, path: str, position: int, last_round: int) -> Iterator[Finding]:
    while True:
        try:
            head = read_head(file, journal_id, number, position)
        except Unreadable as error:
            later = next(
                (head for head in find_heads(file, journal_id, number, position) if head.round_number > last_round + 1),
                None,
            )
            is_damaged = later is not None
            yield Finding(
                "stop",
                path,
                is_problem=is_damaged,
                values={
                    "position": position,
                    "round_number": last_round + 1,
                    "verdict": "corruption" if is_damaged else "end",
                    "reason": str(error),
                },
            )
            if later is None:
                return
            head = later
        bad = []
        at = head.batches_position
        for entry in head.entries:
            if isinstance(entry, BatchEntry):
                if not _is_whole(file.pread(entry.place.length, at), entry):
                    bad.append({"group": entry.group, "index": entry.index, "position": at})
                at += entry.place.length
        yield Finding(
            "round",
            path,
            is_problem=bool(bad),
            values={
                "position": head.position,
                "round_number": head.round_number,
                "bytes": head.length,
                "entries": [_entry_values(entry) for entry in head.entries],
                "damaged_batches": bad,
            },
        )
        position, last_round = head.end_position, head.round_number


def _is_whole(data: bytes, entry: BatchEntry) -> bool:
    try:
        return check_alone(data).chain == entry.chain
    except CorruptBatch:
        return False


_ENTRY_NAMES: Final = {
    BatchEntry: "batch",
    HardStateEntry: "hard_state",
    StartEntry: "start",
    RemoveEntry: "remove",
    EndEntry: "end",
}


def _entry_values(entry: Entry) -> dict[str, Any]:
    return {"entry": _ENTRY_NAMES[type(entry)], **_jsonable(entry._asdict())}


def _jsonable(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _json_value(value) for name, value in values.items()}


def _json_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _jsonable(value._asdict())
    return value


# --- Groups -----------------------------------------------------------------------------------------------------------


def _groups(files: FileSystem, directory: _Directory) -> Iterator[Finding]:
    names = files.listdir(directory.layout.groups) if files.exists(directory.layout.groups) else []
    present = {group for name in names if (group := parse_number(name)) is not None}
    for group in sorted(present):
        yield from _group(files, directory, directory.layout.group(group))
    promised = directory.replay.groups if directory.replay is not None else {}
    missing = sorted(promised.keys() - present)
    if missing:
        # A running node may have removed them since the journal was read: what it says now counts.
        again = _directory_of(files, directory.layout.directory)
        still = again.replay.groups if again.replay is not None else {}
        for group in missing:
            path = directory.layout.group(group)
            if group in still and not files.exists(path):
                yield _missing(path, still[group], still[group].start.index + 1, None, "its directory is missing")


def _missing(path: str, promised: Replayed, first_index: int, next_index: int | None, reason: str) -> Finding:
    """What was promised and has no file: a problem, unless the journal still holds all of it."""
    end = promised.promised[0] + 1 if next_index is None else next_index
    in_journal = {placement.index for placement in promised.placements}
    indexes = range(first_index, end)
    is_in_journal = bool(indexes) and not promised.is_base_doubtful and all(index in in_journal for index in indexes)
    values = {
        "group": promised.group,
        "index": first_index,
        "promised_index": promised.promised[0],
        "verdict": "in_journal" if is_in_journal else "corruption",
        "reason": reason,
    }
    return Finding("stop", path, is_problem=not is_in_journal, values=values)


def _group(files: FileSystem, directory: _Directory, path: str) -> Iterator[Finding]:
    group = parse_number(os.path.basename(path))
    assert group is not None
    names = files.listdir(path)
    promised = directory.replay.groups.get(group) if directory.replay is not None else None
    start: LogEnd | None = None
    for name in names:
        if parse_number(name, START_SUFFIX) is not None:
            finding, found = _start_file(files, directory, f"{path}/{name}", group)
            yield finding
            if found is not None and (promised is None or found.index == promised.start.index):
                start = found
    if promised is not None and start is None:
        yield from _missing_start(files, path, promised)
    walk = _Walk(directory, group, promised, start)
    firsts = sorted(first for name in names if (first := parse_number(name, SEGMENT_SUFFIX)) is not None)
    if promised is not None and firsts and firsts[0] > promised.start.index + 1:
        reason = f"the segments begin with index {firsts[0]}, and the log with {promised.start.index + 1}"
        yield _missing(path, promised, promised.start.index + 1, firsts[0], reason)
    for first, following in zip_longest(firsts, firsts[1:]):
        if promised is not None and following is not None and following <= promised.start.index + 1:
            continue  # wholly below the start: it waits to be unlinked
        yield from walk.segment(files, directory.layout.segment(group, first), first, following)
    for name in names:
        if parse_number(name, INDEX_SUFFIX) is not None:
            yield _index_file(files, f"{path}/{name}", group)
    if promised is not None:
        yield from walk.end(path)


def _missing_start(files: FileSystem, path: str, promised: Replayed) -> Iterator[Finding]:
    """The start that the journal names is not there, or cannot be read (which was told with the file)."""
    expected = f"{path}/{number_name(promised.start.index)}{START_SUFFIX}"
    if not files.exists(expected):
        values = {"group": promised.group, "index": promised.start.index, "reason": "the start file is missing"}
        yield Finding("start", expected, is_problem=True, values=values)


def _file_of_group(files: FileSystem, directory: _Directory, path: str) -> Iterator[Finding]:
    name = os.path.basename(path)
    group = parse_number(os.path.basename(os.path.dirname(path)))
    if group is None:
        group = _group_in(files, path)
    first = parse_number(name, SEGMENT_SUFFIX)
    if first is not None:
        promised = directory.replay.groups.get(group) if directory.replay is not None else None
        names = files.listdir(os.path.dirname(path) or ".")
        others = [other for name in names if (other := parse_number(name, SEGMENT_SUFFIX)) is not None]
        following = min((other for other in others if other > first), default=None)
        yield from _Walk(directory, group, promised, None).segment(files, path, first, following)
    elif parse_number(name, START_SUFFIX) is not None:
        yield _start_file(files, directory, path, group)[0]
    else:
        yield _index_file(files, path, group)


def _group_in(files: FileSystem, path: str) -> int:
    """The group of a segment that was copied elsewhere, by its header block; 0 if that does not tell."""
    try:
        return decode_segment_header(_read(files, path)[:SEGMENT_HEADER_BYTES]).group
    except Unreadable:
        return 0


def _start_file(files: FileSystem, directory: _Directory, path: str, group: int) -> tuple[Finding, LogEnd | None]:
    data = _read(files, path)
    try:
        if directory.node is None:
            raise Unreadable("node.json, which says whose it must be, cannot be read")
        start, digest = decode_start(data, directory.node.cluster_id, group)
    except Unreadable as error:
        return Finding("start", path, is_problem=True, values={"group": group, "reason": str(error)}), None
    values = {
        "group": group,
        "index": start.index,
        "term": start.term,
        "offset": start.offset,
        "append_timestamp": start.append_timestamp,
        "topic_id": start.topic_id.hex(),
        "partition": start.partition,
        "chain": start.chain.hex(),
        "digest": digest.hex(),
        "membership_bytes": len(start.membership),
        "producers_bytes": len(start.producers),
        "state_bytes": len(start.state),
    }
    return Finding("start", path, is_problem=False, values=values), start.end


def _index_file(files: FileSystem, path: str, group: int) -> Finding:
    first = parse_number(os.path.basename(path), INDEX_SUFFIX)
    assert first is not None
    try:
        index = read_index_file(files, path, group, first)
    except Unreadable as error:
        # A hint: it is built again, and nothing is lost.
        return Finding("index", path, is_problem=False, values={"group": group, "reason": str(error)})
    assert index is not None
    values = {
        "group": group,
        "first_index": first,
        "entries": len(index.entries.offsets),
        "is_sealed": index.is_sealed,
        "covered_index": index.covered.index,
        "producers_index": index.producers[0] if index.producers is not None else None,
    }
    return Finding("index", path, is_problem=False, values=values)


class _Walk:
    """Batch by batch through the segments of one group, remembering what the next one must follow."""

    def __init__(self, directory: _Directory, group: int, promised: Replayed | None, start: LogEnd | None) -> None:
        self._directory = directory
        self._group = group
        self._promised = promised
        self._before: BatchHeader | LogEnd | None = start
        self._is_over = False
        self._in_journal = {placement.index for placement in promised.placements} if promised is not None else set()
        self._last_index = start.index if start is not None else 0

    def segment(self, files: FileSystem, path: str, first_index: int, following: int | None) -> Iterator[Finding]:
        file = files.open(path, writable=False)
        try:
            size = file.size()
            yield self._header(file, path, first_index)
            position, index = SEGMENT_HEADER_BYTES, first_index
            while True:
                if following is not None and index == following:
                    # What is left of the file, if anything, is space that was reserved.
                    yield self._stop(path, position, size, index, "the next segment begins here", verdict="end")
                    return
                problem, header = self._next(file, position, size, index)
                if header is None:
                    yield self._stop(path, position, size, index, problem)
                    return
                yield self._batch(path, position, header, problem)
                if index > (self._promised.start.index if self._promised is not None else 0):
                    self._before = header
                self._last_index = index
                position += header.batch_bytes
                index += 1
        finally:
            file.close()

    def _header(self, file: File, path: str, first_index: int) -> Finding:
        values: dict[str, Any] = {"group": self._group, "first_index": first_index, "bytes": file.size()}
        try:
            header = decode_segment_header(file.pread(SEGMENT_HEADER_BYTES, 0))
        except Unreadable as error:
            # A hint too: it follows from the name and the first batch.
            return Finding("segment", path, is_problem=False, values={**values, "reason": str(error)})
        values |= {
            "topic_id": header.topic_id.hex(),
            "partition": header.partition,
            "base_offset": header.before.next_offset,
            "previous_chain": header.before.chain.hex(),
        }
        is_foreign = (header.group, header.first_index) != (self._group, first_index)
        return Finding("segment", path, is_problem=is_foreign, values=values)

    def _next(self, file: File, position: int, size: int, index: int) -> tuple[str, BatchHeader | None]:
        """The batch at a position, and what is wrong with it; without a header the walk cannot go on."""
        data = file.pread(HEADER_BYTES, position)
        if len(data) < HEADER_BYTES:
            return "the file ends here", None
        if not any(data):
            return "zeros", None
        if not header_chain_holds(data):
            return "the header does not match its chain digest", None
        header = decode_header(data)
        if header.index != index:
            return f"a batch of index {header.index} where {index} must be", None
        if position + header.batch_bytes > size:
            return f"a batch of {header.batch_bytes} bytes, of which {size - position} are there", None
        problem = self._break(header)
        if problem and self._promised is not None and index > self._promised.promised[0]:
            return problem, None
        try:
            check_alone(file.pread(header.batch_bytes, position))
        except CorruptBatch as error:
            problem = problem or str(error)
        return problem, header

    def _break(self, header: BatchHeader) -> str:
        """Why a batch does not follow the one before it; empty if it does, or if that is not known."""
        before = self._before
        if before is None or header.index != before.index + 1:
            return ""
        if isinstance(before, BatchHeader):
            try:
                check_in_place(header, before)
            except CorruptBatch as error:
                return str(error)
        elif (header.previous_chain, header.base_offset) != (before.chain, before.next_offset):
            return f"index {header.index} does not follow the start"
        return ""

    def _batch(self, path: str, position: int, header: BatchHeader, problem: str) -> Finding:
        values = {
            "group": self._group,
            "position": position,
            "bytes": header.batch_bytes,
            "index": header.index,
            "term": header.term,
            "base_offset": header.base_offset,
            "next_offset": header.next_offset,
            "record_count": header.record_count,
            "is_control": header.is_control,
            "flags": header.flags,
            "producer_id": header.producer_id,
            "producer_epoch": header.producer_epoch,
            "base_sequence": header.base_sequence,
            "base_timestamp": header.base_timestamp,
            "max_timestamp": header.max_timestamp,
            "append_timestamp": header.append_timestamp,
            "payload_digest": header.payload_digest.hex(),
            "previous_chain": header.previous_chain.hex(),
            "chain": header.chain.hex(),
        }
        if problem:
            # The journal may hold a whole copy, which recovery would put here.
            values |= {"reason": problem, "is_in_journal": header.index in self._in_journal}
        return Finding("batch", path, is_problem=bool(problem), values=values)

    def _stop(self, path: str, position: int, size: int, index: int, reason: str, verdict: str = "") -> Finding:
        promised = self._promised
        is_at_end = reason in ("the file ends here", "zeros")
        if verdict:
            pass
        elif promised is None:
            verdict = "end" if is_at_end and self._directory.replay is not None else "unknown"
        elif index <= promised.promised[0]:
            verdict = "in_journal" if index in self._in_journal else "corruption"
        else:
            verdict = "end" if is_at_end else "torn_tail"
        values = {
            "group": self._group,
            "position": position,
            "bytes_left": size - position,
            "index": index,
            "promised_index": promised.promised[0] if promised is not None else None,
            "verdict": verdict,
            "reason": reason,
        }
        return Finding("stop", path, is_problem=verdict == "corruption", values=values)

    def end(self, path: str) -> Iterator[Finding]:
        """What is missing after the last segment, though it was promised."""
        promised = self._promised
        assert promised is not None
        index, _, chain = promised.promised
        last = self._before
        if self._last_index < index and index > promised.start.index:
            missing = range(self._last_index + 1, index + 1)
            is_in_journal = all(number in self._in_journal for number in missing)
            if not is_in_journal:
                yield Finding(
                    "stop",
                    path,
                    is_problem=True,
                    values={
                        "group": self._group,
                        "index": self._last_index + 1,
                        "promised_index": index,
                        "verdict": "corruption",
                        "reason": f"promised to index {index}, in segments to {self._last_index}",
                    },
                )
        elif last is not None and last.index == index and last.chain != chain:
            yield Finding(
                "stop",
                path,
                is_problem=True,
                values={
                    "group": self._group,
                    "index": index,
                    "promised_index": index,
                    "verdict": "corruption",
                    "reason": "the chain at the promised end is another one",
                },
            )
