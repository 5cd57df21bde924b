"""The journal: the node's promises, in order, in files that are recycled once nothing depends on them.

For: the store, which makes rounds of entries. Must not know: what entries mean to a log. The one idea: one position in
one file, and behind it a rule about when an older file is free: when every segment, name and start that it covers is
synced, and a *synced* table, in a later file, names a first needed file above it.

`JournalFile` and `Journal` belong to the owner's thread. `read_*` are for recovery and inspection.
"""

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from logd.store.context import Context
from logd.store.errors import Unreadable
from logd.store.files import File
from logd.store.format import (
    BLOCK_BYTES,
    ROUND_MAGIC,
    TABLE_COPIES,
    TABLE_MAGIC,
    TRAILER,
    TRAILER_MAGIC,
    RoundHead,
    Table,
    claims_file,
    decode_round_copy,
    decode_round_head,
    decode_table,
    peek_head_bytes,
    peek_table_bytes,
    peek_trailer,
)
from logd.store.layout import parse_number
from logd.store.segment import Segment

# Zeros are written, and journals scanned, in pieces of this size.
PIECE_BYTES: Final = 1 << 20


class JournalFile:
    """One file of the journal that recovery would read."""

    __slots__ = ("directories", "dirty", "file", "number", "unwritten_rounds")

    def __init__(self, number: int, file: File) -> None:
        self.number = number
        self.file = file
        self.dirty: set[Segment] = set()
        """Segments with bytes, a length or an index that this file's rounds cover, not yet known to be synced."""
        self.directories: set[str] = set()
        """Directories in which segments were unlinked by this file's rounds, not yet synced."""
        self.unwritten_rounds = 0
        """Rounds of this file whose batches may not be in their segments yet."""

    @property
    def is_clean(self) -> bool:
        """Whether nothing depends on this file's rounds any more."""
        return not (self.dirty or self.directories or self.unwritten_rounds)


class Journal:
    """The files, the position, and what each file still covers."""

    def __init__(
        self,
        context: Context,
        current: JournalFile,
        position: int,
        last_round: int,
        last_digest: bytes,
        free: list[int],
    ) -> None:
        self.context = context
        self.current = current
        self.position = position
        """Where the next round starts. Invariant: on a block boundary."""
        self.last_round = last_round
        """The number of the last round that was prepared."""
        self.last_digest = last_digest
        self.durable_round = last_round
        """The number of the last round whose fsync returned. Written by the thread that writes rounds."""
        self.closed: dict[int, JournalFile] = {}
        """Older files that the newest synced table still needs, in order."""
        self.free = free
        """Numbers of files below the first needed one of a synced table."""
        self.spare: JournalFile | None = None
        """The next file, ready to be written. Its number is the current one's plus 1."""
        self.is_spare_wanted = True
        """False while a job is making one."""
        self.has_spare_failed = False
        """The last job found no space; the next round asks again."""
        self.must_roll = False
        """The next round comes behind a new table, for only tables say what a log has lost."""

    def first_needed_after_roll(self) -> int:
        """The first file that recovery has to read, as the table of the next file will name it."""
        for number, file in self.closed.items():
            if not file.is_clean:
                return number
        return self.current.number + (1 if self.current.is_clean else 0)

    def has_next_spare(self, first_needed: int) -> bool:
        """Whether another spare can be made after a roll whose table names `first_needed`.

        Only a table frees files, and only a spare can take a table: a roll into the last file that frees none would
        leave the journal waiting for itself for ever.
        """
        oldest = next(iter(self.closed), self.current.number)
        return bool(self.free) or self.file_count < self.context.options.journal_files_max or oldest < first_needed

    def roll(self, table_length: int) -> None:
        """Go on in the spare file, behind its table."""
        assert self.spare is not None
        self.closed[self.current.number] = self.current
        self.current, self.spare = self.spare, None
        self.position = table_length
        self.is_spare_wanted = True
        self.must_roll = False

    def mark_dirty(self, segment: Segment) -> None:
        """The current file covers something of this segment."""
        self.current.dirty.add(segment)

    def is_covered(self, segment: Segment) -> bool:
        """Whether some file's rounds still cover unsynced bytes of a segment."""
        return segment in self.current.dirty or any(segment in file.dirty for file in self.closed.values())

    def is_covered_after(self, segment: Segment, file: JournalFile) -> bool:
        """Whether a later file than `file` covers unsynced bytes of a segment."""
        later = (*self.closed.values(), self.current)
        return any(segment in other.dirty for other in later if other.number > file.number)

    def to_sync(self) -> JournalFile | None:
        """The oldest closed file that something depends on, once all its batches are in their segments."""
        for file in self.closed.values():
            if not file.is_clean:
                return None if file.unwritten_rounds else file
        return None

    def rolled(self, first_needed: int) -> None:
        """The table of `current` is synced: files below `first_needed` are free."""
        for number in [number for number in self.closed if number < first_needed]:
            self.closed.pop(number).file.close()
            self.free.append(number)

    @property
    def file_count(self) -> int:
        return len(self.closed) + 1 + len(self.free) + (self.spare is not None)

    def spare_job(self) -> "SpareJob | None":
        """The job that makes the next file; None if there is one, it is being made, or there are too many."""
        if self.spare is not None or not self.is_spare_wanted:
            return None
        if not self.free and self.file_count >= self.context.options.journal_files_max:
            return None
        self.is_spare_wanted = False
        return SpareJob(self, self.free.pop(0) if self.free else None)

    def close(self) -> None:
        """Close all files; syncs nothing."""
        for file in (*self.closed.values(), self.current, *((self.spare,) if self.spare else ())):
            file.file.close()


class SpareJob:
    """Makes the next journal file: a free one by another name, or a new one of zeros."""

    def __init__(self, journal: Journal, recycled: int | None) -> None:
        self._journal = journal
        self._context = journal.context
        self._number = journal.current.number + 1
        self._recycled = recycled
        self._file: File | None = None

    def run(self) -> None:
        """Make the file and its name durable. No space is no error here: rounds wait once they need it."""
        files, layout = self._context.files, self._context.layout
        path = layout.journal_file(self._number)
        if self._recycled is not None:
            files.rename(layout.journal_file(self._recycled), path)
            files.sync_directory(layout.journal)
        try:
            self._file = open_journal_file(self._context, path)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise

    def apply(self) -> None:
        """The journal can roll."""
        if self._file is not None:
            self._journal.spare = JournalFile(self._number, self._file)
        else:
            self._journal.has_spare_failed = True


def open_journal_file(context: Context, path: str) -> File:
    """A file of the wanted size at `path`, its name synced: the one that is there, or a new one of written zeros.

    Raises OSError; with ENOSPC nothing is left behind. The bytes of a file that was there are stale: every structure
    in the journal carries its file's number, so none of them verifies under the new name.
    """
    files, size = context.files, context.options.journal_file_bytes
    if files.exists(path):
        file = files.open(path)
        if file.size() == size:
            return file
        file.close()
        files.unlink(path)
    file = files.open(path, create=True, exclusive=True)
    try:
        zeros = bytes(min(PIECE_BYTES, size))
        for position in range(0, size, len(zeros)):
            file.pwritev([memoryview(zeros)[: size - position]], position)
    except OSError:
        file.close()
        files.unlink(path)
        raise
    try:
        file.sync()
    except OSError as error:
        # A failed sync is final whatever its reason.
        raise OSError(errno.EIO, str(error), path) from error
    files.sync_directory(context.layout.journal)
    return file


# --- Reading ----------------------------------------------------------------------------------------------------------


def journal_numbers(context_names: list[str]) -> list[int]:
    """The file numbers among the names of the journal directory, in order."""
    return sorted(number for name in context_names if (number := parse_number(name)) is not None)


@dataclass(frozen=True, slots=True)
class TableFound:
    """What was found at the beginning of a journal file."""

    table: Table | None
    damaged_copies: int
    """Copies that look like this file's but do not verify, or are missing beside one that does."""


def read_table(file: File, journal_id: bytes, number: int) -> TableFound:
    """The table of a journal file, from whichever copy verifies."""
    size = file.size()
    found: Table | None = None
    good = 0
    first = _read_table_copy(file, journal_id, number, 0, size)
    if first is not None:
        found, good = first, 1
        stride = first.rounds_position // TABLE_COPIES
        if _read_table_copy(file, journal_id, number, stride, size) is not None:
            good += 1
        return TableFound(found, TABLE_COPIES - good)
    # The first copy's length cannot be trusted, so the second is looked for on every boundary.
    for position, block in scan_blocks(file, 0, size):
        if position and bytes(block[: len(TABLE_MAGIC)]) == TABLE_MAGIC:
            second = _read_table_copy(file, journal_id, number, position, size)
            if second is not None:
                return TableFound(second, 1)
    return TableFound(None, 0)


def _read_table_copy(file: File, journal_id: bytes, number: int, position: int, size: int) -> Table | None:
    try:
        length = peek_table_bytes(file.pread(BLOCK_BYTES, position))
        if position + length > size:
            return None
        return decode_table(file.pread(length, position), journal_id, number, position)
    except Unreadable:
        return None


def scan_blocks(file: File, start: int, end: int) -> Iterator[tuple[int, memoryview]]:
    """Every block from `start` to `end`, and its position."""
    position = start
    while position < end:
        data = memoryview(file.pread(min(PIECE_BYTES, end - position), position))
        if not data:
            return
        for at in range(0, len(data), BLOCK_BYTES):
            yield position + at, data[at : at + BLOCK_BYTES]
        position += len(data)


def read_head(file: File, journal_id: bytes, number: int, position: int) -> RoundHead:
    """The head that starts at `position`. Raises Unreadable."""
    data = file.pread(BLOCK_BYTES, position)
    wanted = peek_head_bytes(data)
    if wanted > len(data):
        if wanted > file.size() - position:
            raise Unreadable("a head that is longer than its file")
        data = file.pread(wanted, position)
    return decode_round_head(data, journal_id, number, position)


def read_copy(file: File, journal_id: bytes, number: int, end_position: int) -> RoundHead:
    """The head of the round that ends at `end_position`, from its second copy. Raises Unreadable."""
    begin = max(0, end_position - BLOCK_BYTES)
    data = file.pread(end_position - begin, begin)
    trailer = peek_trailer(data, len(data))
    if trailer is None:
        raise Unreadable("no round ends here")
    length, head_bytes, digest = trailer
    head_position = end_position - TRAILER.size - head_bytes
    if head_position < 0 or length > end_position or head_bytes > length:
        raise Unreadable("a trailer whose lengths are impossible")
    return decode_round_copy(file.pread(head_bytes, head_position), digest, journal_id, number, end_position)


def find_heads(file: File, journal_id: bytes, number: int, start: int) -> Iterator[RoundHead]:
    """Every head of this file that verifies at or after `start`, by either copy; a round may come twice."""
    size = file.size()
    for position, block in scan_blocks(file, start, size):
        if bytes(block[: len(ROUND_MAGIC)]) == ROUND_MAGIC:
            with contextlib.suppress(Unreadable):
                yield read_head(file, journal_id, number, position)
        at = BLOCK_BYTES - TRAILER.size
        if bytes(block[at : at + len(TRAILER_MAGIC)]) == TRAILER_MAGIC:
            with contextlib.suppress(Unreadable):
                yield read_copy(file, journal_id, number, position + BLOCK_BYTES)


def is_begun(file: File, journal_id: bytes, number: int) -> bool:
    """Whether anything in a file claims to be of this very file, whether it verifies or not."""
    for _, block in scan_blocks(file, 0, file.size()):
        magic = bytes(block[: len(TABLE_MAGIC)])
        if magic in (TABLE_MAGIC, ROUND_MAGIC) and claims_file(block, magic, journal_id, number):
            return True
    return False
