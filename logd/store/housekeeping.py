"""What is done in the background so that the journal's files can be recycled and start-up stays short.

For: `Store.next_housekeeping`. Must not know: when it runs. The one idea: a journal file stands in for every segment
that its rounds wrote to until that segment is synced, cut to its end if it is sealed, and indexed; then it is free.
"""

import errno
from typing import TYPE_CHECKING, Final

from logd.store.errors import ReadOutdated
from logd.store.files import FileSystem
from logd.store.format import IndexEntries
from logd.store.index import append_entry, cut_entries, encode_index_of, index_path, load_entries, write_index_file
from logd.store.journal import JournalFile
from logd.store.log import Log
from logd.store.read import SegmentSource
from logd.store.segment import Segment

if TYPE_CHECKING:
    from logd.store.store import Store

# A job syncs so many segments before others on the same thread get their turn.
SEGMENTS_PER_JOB_MAX: Final = 64


class _Target:
    """One segment of a `SyncJob`, as it was when the job was made."""

    __slots__ = ("end_position", "entries", "is_to_finish", "last", "place", "producers", "segment")

    def __init__(self, segment: Segment, *, is_to_finish: bool) -> None:
        self.segment = segment
        self.is_to_finish = is_to_finish
        self.end_position = segment.end_position
        self.entries = segment.entries
        self.last = segment.last
        self.place = segment.last_place
        self.producers = segment.producers


class SyncJob:
    """Syncs what one journal file covers, a portion at a time."""

    def __init__(self, store: "Store", file: JournalFile) -> None:
        self._store = store
        self._context = store.context
        self._file = file
        self._directories = set(file.directories)
        self._targets: list[_Target] = []
        # In the order of their names, so that runs are repeatable.
        for segment in sorted(file.dirty, key=lambda segment: (segment.group, segment.first_index)):
            if segment.is_retired:
                file.dirty.discard(segment)
                continue
            if len(self._targets) == SEGMENTS_PER_JOB_MAX:
                break
            is_to_finish = (
                segment.is_sealed and not segment.is_finished and not store.journal.is_covered_after(segment, file)
            )
            # While the file may be cut, no suffix may be replaced in it.
            segment.busy += 1
            self._targets.append(_Target(segment, is_to_finish=is_to_finish))

    def run(self) -> None:
        """Cut, sync, index. Raises OSError, which is final; only an index may fail for want of space."""
        for target in self._targets:
            try:
                borrowed = self._context.open_files.borrow(target.segment)
            except ReadOutdated:
                continue
            assert borrowed is not None
            with borrowed as file:
                if target.is_to_finish and file.size() > target.end_position:
                    file.truncate(target.end_position)
                file.sync()
            if target.is_to_finish:
                self._write_index(target)
        for directory in sorted(self._directories):
            if self._context.files.exists(directory):
                self._context.files.sync_directory(directory)

    def _write_index(self, target: _Target) -> None:
        segment = target.segment
        if target.last is None or target.place is None:
            return
        try:
            if target.entries is None:
                source = SegmentSource(self._context, segment)
                target.entries, _ = load_entries(source, self._context, segment, target.end_position, None)
            content = encode_index_of(segment, target.entries, target.last, target.place, target.producers)
        except ReadOutdated:
            return
        write_hint(self._context.files, index_path(segment), content, is_synced=True)

    def apply(self) -> None:
        """The journal file covers less now."""
        journal = self._store.journal
        self._file.directories -= self._directories
        for target in self._targets:
            segment = target.segment
            segment.busy -= 1
            self._file.dirty.discard(segment)
            if target.is_to_finish and segment.is_sealed and not segment.is_retired:
                segment.is_finished = True
                segment.allocated = target.end_position
                if segment.entries is not None:
                    self._context.index_cache.used(segment, segment.entries)
            if not journal.is_covered(segment):
                segment.unpin()
            if not segment.is_sealed:
                self._store.want_checkpoint(segment.group)
        self._store.sync_job = None


class CheckpointJob:
    """Writes the index of an active segment, with the producer table, so that start-up walks less.

    It covers everything up to the log's tail, also what no round has made durable yet: whoever reads it checks that the
    batch it ends with is there.
    """

    def __init__(self, store: "Store", log: Log, segment: Segment, entries: IndexEntries) -> None:
        self._context = store.context
        self._segment = segment
        self._covered, self._place = log.tail, log.tail_place
        producers = store.context.producers_of(log.group)
        is_covered = producers is not None and producers[0] <= log.tail.index
        self._producers = producers if is_covered else None
        self._entries = cut_entries(entries, log.tail.index + 1)
        if store.round_in_flight is not None:
            for entry in store.round_in_flight.pending_entries(log):
                append_entry(self._entries, *entry)
        log.checkpointed = log.tail

    @classmethod
    def of(cls, store: "Store", log: Log) -> "CheckpointJob | None":
        """The job for a log; None if there is nothing to write."""
        segment = log.active
        if segment is None or segment.entries is None or log.tail_place.segment != segment.first_index:
            return None
        return None if log.checkpointed == log.tail else cls(store, log, segment, segment.entries)

    def run(self) -> None:
        """Write it; want of space is no error, the file is a hint."""
        if self._segment.is_retired:
            return
        content = encode_index_of(self._segment, self._entries, self._covered, self._place, self._producers)
        write_hint(self._context.files, index_path(self._segment), content, is_synced=False)

    def apply(self) -> None:
        """Nothing: memory knows more than the file."""


def write_hint(files: FileSystem, path: str, content: bytes, *, is_synced: bool) -> None:
    """Write an index file, or leave it if there is no space or its directory is gone. Raises other OSErrors."""
    try:
        write_index_file(files, path, content, is_synced=is_synced)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.ENOENT):
            raise
