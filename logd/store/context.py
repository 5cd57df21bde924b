"""What all parts of one open store share: the port, the paths, the options, the identity, the open files.

For: every module of the store that needs more than its own state. Must not know: groups or rounds. The one idea: one
small object is handed down at construction, so that nothing in the store is global.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from logd.store.events import Event
from logd.store.files import FileSystem
from logd.store.format import BLOCK_BYTES, table_bytes
from logd.store.layout import Layout
from logd.store.open_files import OpenFiles

if TYPE_CHECKING:
    from logd.store.index import IndexCache
    from logd.store.retention import Garbage
    from logd.store.segment import Segment

JOURNAL_FILES_MIN = 3
KIBIBYTE = 1 << 10
MEBIBYTE = 1 << 20

ProducersOf = Callable[[int], tuple[int, bytes] | None]
"""The producer table of a group, encoded, and the index up to which it is true. Called on the owner's thread."""


@dataclass(frozen=True)
class StoreOptions:
    """The store's settings. Sizes in bytes."""

    segment_bytes_max: int = 64 * MEBIBYTE
    """Retention works by whole segments, and recovery scans at most one: 64 MiB is 1 % of what a small disk holds."""
    index_interval_bytes: int = 4 * KIBIBYTE
    """A page of the cache: a finer index would not read less."""
    journal_file_bytes: int = 64 * MEBIBYTE
    """Eight of the largest rounds, so that the table at its beginning is a small part of what is written."""
    journal_files_max: int = 8
    """Rounds wait when so many are unsynced: what recovery reads at most is this times `journal_file_bytes`."""
    round_bytes_max: int = 8 * MEBIBYTE
    """A frame between peers holds as much. One fsync of it took 5 ms where this was measured."""
    disk_reserve_bytes: int = 64 * MEBIBYTE
    """Kept free for control batches, `start` files and recovery."""
    open_files_max: int = 256
    """A quarter of the usual limit of a process (1,024); files with unsynced bytes stay open beyond it."""
    index_cache_bytes_max: int = 32 * MEBIBYTE
    """Sparse indexes of older segments that stay in memory: 64 segments' of the smallest batches."""
    allocation_bytes_min: int = 256 * KIBIBYTE
    """A segment's first reservation: a node of 300 idle partitions reserves 75 MiB."""
    allocation_bytes_max: int = 8 * MEBIBYTE
    """Later ones double up to this: one fallocate for each 80 batches of 100 KiB."""

    def __post_init__(self) -> None:
        """Raise ValueError for what the journal could never work with."""
        # One file that is needed, one that is written, one spare.
        if self.journal_files_max < JOURNAL_FILES_MIN:
            raise ValueError(f"journal_files_max is at least {JOURNAL_FILES_MIN}")
        if self.round_bytes_max + table_bytes(1) > self.journal_file_bytes:
            raise ValueError("a journal file must hold a table and the largest round")
        # Rounds start on block boundaries, so what is left behind the last whole block would never be used.
        object.__setattr__(self, "journal_file_bytes", self.journal_file_bytes // BLOCK_BYTES * BLOCK_BYTES)


@dataclass
class Context:
    """Shared by the parts of one open store."""

    files: FileSystem
    layout: Layout
    options: StoreOptions
    open_files: OpenFiles
    cluster_id: bytes
    journal_id: bytes
    producers_of: ProducersOf
    index_cache: "IndexCache"
    garbage: "Garbage"
    mark_dirty: "Callable[[Segment], None]"
    """Tells the journal that a segment has work to be done before the current journal file may be recycled."""
    events: list[Event] = field(default_factory=list)
    """What was noticed and not yet taken by the caller. Invariant: at most `EVENTS_MAX`, the oldest ones."""

    EVENTS_MAX = 10_000

    def report(self, event: Event) -> None:
        """Note an event; beyond the bound the newest are dropped, for the first ones tell the cause."""
        if len(self.events) < self.EVENTS_MAX:
            self.events.append(event)
