"""The store: one node's data directory, opened.

For: the node that drives it. Must not know: Raft, the network, clocks, event loops. The one idea: memory belongs to one
thread, the owner's. What touches the disk after opening is a job or a step of a round, made by the owner, run by
somebody else, and applied by the owner again. The store starts no thread and waits for nothing.

A round's way:  prepare_round -> Round.write -> apply_durable (promises may leave) -> Round.settle -> apply_written
Housekeeping:   while (job := store.next_housekeeping()): job.run(); job.apply()

What a shell does, and in which order. "Job" is always: `run()` on one thread for all jobs, in the order in which they
were made, then `apply()`; an OSError other than the ENOSPC of `space_for`, `create_group` and `prepare_start` ends the
process. One round is prepared at a time: the next one after this one's `apply_durable`. Rounds are settled in order,
each at the latest right behind the next one's `write`. JournalFull and NoRoom leave everything as it was: apply what
is under way (jobs, settled rounds), do housekeeping, and try again.

* Append, a run of batches: ask `log.space_for(bytes of all the group's batches for this round)`, do its job, ask again,
  until it is None; then `[SetHardState?, Append, …]` in one round. At most `round_bytes_max` by `entry_bytes`.
* Replace a suffix: the same, with `space_for(bytes, index=first of the new batches)`, then all of them in one round,
  contiguous, the first one at that index; terms may be lower than what was there. `log.end` is the new end, lower or
  not, after `apply_durable`; nothing of the old suffix is overwritten or unlinked before `settle`. Only one replacement
  of a log in a round: what is replaced again before the round is made was never the disk's concern.
* Hard state: `SetHardState` in a round before, or in the same as, the first batch of its term. A commit that advances
  may go alone, with anything else, or not at all. While `log.hard_state` is None (lost), everything else may be written
  and it stays None over restarts, until a `SetHardState` is durable.
* New replica: job `store.create_group(group, start)`; round `[SetStart(group, start), SetHardState?]`; the log exists,
  with `INITIAL_HARD_STATE` (`is_unadmitted`: with none), after `apply_durable`, and its first batch goes into a later
  round.
* Snapshot that replaces the log: job `log.prepare_start(start)`, above the present start (or at it, if
  `log.is_start_readable` is false); round `[SetHardState?, SetStart(group, start, keeps_suffix=False)]`; the log is
  empty behind the start after `apply_durable`; batches that follow it go into a later round. Retention is the same
  with `keeps_suffix=True` and a start that the log holds, and batches of the group stay out of that round too.
* Damaged log (`log.floor` is set): it counts as ending at `log.intact_index`. Batches from `intact_index + 1` on, the
  same or others, are a replacement (`space_for(…, index=intact_index + 1)`) of all that is above; if `log.damage` is
  empty, only the end was lost, and they are a plain append. The floor is in every table and outlives restarts; it is
  None again once the log is whole and its end, or its start, is as up-to-date as the floor by (term, index). Damage
  that a reader finds later (CorruptBatch) is told by `store.note_damage`.
* Restart: for each log `start` (with `is_start_readable`), `hard_state`, `floor`, `intact_index`, `end`; headers by
  `headers_from(index, intact_index + 1)`; the tail with its bytes by `plan_read_index(commit + 1, intact_index + 1, …)`
  again and again from `next_index` on: it reads what it returns, and at most one index file.
* Stop, and after a pause: a round of `store.empty_round()`, so that the last one is known not to be torn.
"""

import contextlib
import errno
import gc
from collections.abc import Iterator, Sequence

from logd.store.context import Context, ProducersOf, StoreOptions
from logd.store.errors import StoreLocked, StoreRefused, Unreadable, WrongEntry
from logd.store.events import Event
from logd.store.files import FileSystem, Lock
from logd.store.format import (
    BLANK_DIGEST,
    FORMAT_VERSION,
    IDENTITY_BYTES,
    NODE_NAME_BYTES_MAX,
    HardState,
    NodeFile,
    Start,
    decode_node,
    encode_node,
    encode_start,
    encode_table,
)
from logd.store.housekeeping import CheckpointJob, SyncJob
from logd.store.index import IndexCache
from logd.store.jobs import Job, sync_directory
from logd.store.journal import Journal, JournalFile, is_begun, journal_numbers, open_journal_file
from logd.store.layout import (
    GROUPS_DIRECTORY,
    JOURNAL_DIRECTORY,
    LOCK_FILE,
    NEW_SUFFIX,
    NODE_FILE,
    Layout,
    number_name,
    parse_number,
)
from logd.store.log import Log, write_start_file
from logd.store.open_files import OpenFiles
from logd.store.recovery import JournalReader, Restorer
from logd.store.retention import Garbage, remove_directory
from logd.store.round import Round, RoundEntry, prepare_round

# What a directory that was never used, or whose making was interrupted, may hold. `lost+found`: of a file system.
# `tls`: a development node keeps its certificates there, made before its store.
_FRESH_NAMES = {LOCK_FILE, JOURNAL_DIRECTORY, GROUPS_DIRECTORY, NODE_FILE + NEW_SUFFIX, "lost+found", "tls"}


def _no_producers(_: int) -> tuple[int, bytes] | None:
    return None


class Store:
    """An open data directory. Made by `Store.open`; everything but jobs and `Round`'s steps is the owner thread's."""

    def __init__(self, context: Context, lock: Lock, journal: Journal, groups: dict[int, Log]) -> None:
        self.context = context
        self.journal = journal
        self.groups = groups
        """The logs on this node, by group."""
        self.round_in_flight: Round | None = None
        """The round that is prepared and not applied as durable."""
        self.sync_job: SyncJob | None = None
        self.thirsty: dict[Log, None] = {}
        """Logs whose active segment is soon full."""
        self._lock = lock
        self._prepared: dict[int, tuple[Start, bytes]] = {}
        self._checkpoints: dict[int, None] = {}
        context.mark_dirty = journal.mark_dirty

    # --- Opening and closing ------------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        files: FileSystem,
        directory: str,
        *,
        node_name: str,
        options: StoreOptions | None = None,
        new_cluster_id: bytes,
        new_journal_id: bytes,
        producers_of: ProducersOf = _no_producers,
    ) -> "Store":
        """Open a data directory: recover what is there, or make a new one.

        Arguments: `node_name`, at most 64 bytes of UTF-8; `new_cluster_id` and `new_journal_id`, 16 random bytes each,
        used only for a new directory; `producers_of`, the producer table of a group and the index up to which it is
        true, asked when a segment is sealed and at checkpoints, never while opening.

        Raises StoreLocked; StoreRefused for a directory that is not this node's, with nothing touched; JournalLost;
        and OSError, after which opening may be tried again: everything that was done would be done again.
        """
        if not 0 < len(node_name.encode()) <= NODE_NAME_BYTES_MAX:
            raise ValueError(f"a node's name has 1 to {NODE_NAME_BYTES_MAX} bytes")
        if len(new_cluster_id) != IDENTITY_BYTES or len(new_journal_id) != IDENTITY_BYTES:
            raise ValueError(f"identities have {IDENTITY_BYTES} bytes")
        options = options or StoreOptions()
        layout = Layout(directory)
        node = _read_node(files, layout, node_name)
        if node is None:
            _check_fresh(files, layout)
            if not files.exists(directory):
                files.mkdir(directory)
        try:
            lock = files.lock(layout.lock)
        except BlockingIOError as error:
            raise StoreLocked(f"{directory} is in use by another process") from error
        try:
            if node is None:
                # Somebody else may have made it before the lock was ours.
                node = _read_node(files, layout, node_name)
            if node is None:
                node = NodeFile(node_name, new_cluster_id, new_journal_id)
                context = _context(files, layout, options, node, producers_of)
                journal = _create(context, node)
                groups: dict[int, Log] = {}
            else:
                context = _context(files, layout, options, node, producers_of)
                with _collector_paused():
                    journal, groups = _recover(context)
            return cls(context, lock, journal, groups)
        except BaseException:
            lock.release()
            raise

    @property
    def cluster_id(self) -> bytes:
        return self.context.cluster_id

    @property
    def journal_id(self) -> bytes:
        return self.context.journal_id

    @property
    def events(self) -> list[Event]:
        """What was noticed; the caller logs and clears it."""
        return self.context.events

    def close(self) -> None:
        """Give everything back; the last round before it was an empty one, and is written.

        Writes the indexes of active segments, so that the next start walks less. Raises OSError; all is closed then.
        """
        try:
            for log in self.groups.values():
                job = CheckpointJob.of(self, log)
                if job is not None:
                    job.run()
        finally:
            for log in self.groups.values():
                for segment in log.segments:
                    segment.unpin()
            self.context.open_files.close()
            self.journal.close()
            self._lock.release()

    @property
    def options(self) -> StoreOptions:
        return self.context.options

    # --- Rounds -------------------------------------------------------------------------------------------------------

    def prepare_round(self, entries: Sequence[RoundEntry]) -> Round:
        """Give every entry its place, and build the bytes of the round. The round before is durable and applied.

        An `Append` whose index is not above the log's end replaces that batch and all above it, also by a lower term.
        Changes of one group besides appends and hard states are alone in their round.

        Raises, with nothing changed: RoundTooLarge (see `entry_bytes`), NoRoom (see `Log.space_for`), JournalFull (do
        housekeeping and try again), TooManyGroups, WrongEntry (a defect of the caller).
        """
        return prepare_round(self, entries)

    def can_write_round(self) -> bool:
        """Whether a round of any size finds its place: `prepare_round` will not raise JournalFull."""
        journal, options = self.journal, self.context.options
        if not journal.must_roll and journal.position + options.round_bytes_max <= options.journal_file_bytes:
            return True
        return journal.spare is not None and journal.has_next_spare(journal.first_needed_after_roll())

    def note_damage(
        self, group: int, first_index: int, next_index: int, base_offset: int = 0, next_offset: int = 0
    ) -> None:
        """A reader found that batches of a log are damaged: it counts as one in which recovery found a hole.

        Arguments: the indexes `[first_index, next_index)`, and the offsets if they are known, as CorruptBatch's details
        say. The log has a `floor` from now on, and `intact_index` is below the hole; appending from there on repairs
        it. The next round comes behind a table that says so. (A crash before that forgets it, and the next reader finds
        the damage again.) Raises WrongEntry for indexes that the log does not hold.
        """
        if self.groups[group].note_damage(first_index, next_index, base_offset, next_offset):
            self.journal.must_roll = True

    def empty_round(self) -> Round:
        """A round without entries: it shows that the one before was durable. After a pause, and at stop."""
        return prepare_round(self, ())

    # --- Groups -------------------------------------------------------------------------------------------------------

    def create_group(self, group: int, start: Start) -> Job:
        """Make a group's directory and start file; then put `SetStart` into a round: with it the log exists.

        Raises WrongEntry if the group is here already.
        """
        if group in self.groups:
            raise WrongEntry(f"group {group} is here already")
        # Its directory may still wait to be removed; the job begins with that.
        self.context.garbage.spare(self.context.layout.group(group))
        return _CreateGroupJob(self, group, start)

    def prepared_group(self, group: int) -> tuple[Start, bytes] | None:
        """The start of a group whose `create_group` job was applied."""
        return self._prepared.get(group)

    def prepared(self, group: int, start: Start, digest: bytes) -> None:
        """A start file was written; `_CreateGroupJob` says so."""
        self._prepared[group] = (start, digest)

    def created(self, group: int, start: Start, hard_state: HardState | None) -> Log:
        """A new group's start is durable."""
        _, digest = self._prepared.pop(group)
        log = self.groups[group] = Log(self.context, group, start, digest, hard_state)
        return log

    def forget(self, log: Log) -> None:
        """A group's removal is durable."""
        del self.groups[log.group]
        self.thirsty.pop(log, None)
        log.is_removed = True
        for segment in log.segments:
            segment.is_retired = True
            segment.unpin()
            self.context.open_files.forget(segment)
        log.segments = ()
        self.context.garbage.add_directory(log.directory)

    # --- Housekeeping -------------------------------------------------------------------------------------------------

    def want_checkpoint(self, group: int) -> None:
        """Write the index of this group's active segment when there is nothing more urgent."""
        self._checkpoints[group] = None

    def next_housekeeping(self) -> Job | None:
        """The next job for the housekeeping thread, the most urgent first; None if there is nothing to do now.

        Jobs run one at a time, in the order in which they, and the jobs of `space_for`, `prepare_start` and
        `create_group`, were made. Ask again after each `apply`, and after `Round.apply_written`.
        """
        job: Job | None = self.journal.spare_job()
        if job is not None:
            return job
        while self.thirsty:
            log, _ = self.thirsty.popitem()
            if log.wants_room():
                return log.room_ahead()
        if self.sync_job is None:
            file = self.journal.to_sync()
            if file is not None:
                self.sync_job = SyncJob(self, file)
                return self.sync_job
        job = self.context.garbage.take_job(self.context)
        if job is not None:
            return job
        while self._checkpoints:
            group = next(iter(self._checkpoints))
            del self._checkpoints[group]
            log_ = self.groups.get(group)
            job = CheckpointJob.of(self, log_) if log_ is not None else None
            if job is not None:
                return job
        return None


class _CreateGroupJob:
    """Makes a group's directory and start file, durable with their names."""

    def __init__(self, store: Store, group: int, start: Start) -> None:
        self._store = store
        self._context = store.context
        self._group = group
        self._start = start
        self._content, self._digest = encode_start(self._context.cluster_id, group, start)

    def run(self) -> None:
        """Make them; ENOSPC is not final, what is left behind is cleared at the next attempt or start."""
        context = self._context
        files, layout = context.files, context.layout
        directory = layout.group(self._group)
        # No journal names this directory: it is of a replica that was removed, or of an attempt that failed.
        if files.exists(directory):
            remove_directory(files, directory)
            sync_directory(files, layout.groups)
        files.mkdir(directory)
        sync_directory(files, layout.groups)
        write_start_file(context, directory, layout.start(self._group, self._start.index), self._content)

    def apply(self) -> None:
        """Allow `SetStart` for the new group."""
        self._store.prepared(self._group, self._start, self._digest)


# --- Opening ----------------------------------------------------------------------------------------------------------


def _context(
    files: FileSystem, layout: Layout, options: StoreOptions, node: NodeFile, producers_of: ProducersOf
) -> Context:
    return Context(
        files=files,
        layout=layout,
        options=options,
        open_files=OpenFiles(files, options.open_files_max),
        cluster_id=node.cluster_id,
        journal_id=node.journal_id,
        producers_of=producers_of,
        index_cache=IndexCache(options.index_cache_bytes_max),
        garbage=Garbage(),
        mark_dirty=lambda _: None,
    )


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Recovery makes a few objects for each batch of the journal, none of them in a cycle, and drops them together.

    The collector would go through all of them again and again: a third of the time for a journal of small batches.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _refuse(reason: str, message: str) -> StoreRefused:
    return StoreRefused(message, {"reason": reason})


def _read_node(files: FileSystem, layout: Layout, node_name: str) -> NodeFile | None:
    """Whose directory it is; None if it says nothing. Raises StoreRefused; touches nothing."""
    if not files.exists(layout.node):
        return None
    file = files.open(layout.node, writable=False)
    try:
        data = file.pread(file.size(), 0)
    finally:
        file.close()
    try:
        node = decode_node(data)
    except Unreadable as error:
        raise _refuse("damaged", f"{layout.node} cannot be read: {error}") from error
    if node.format_version > FORMAT_VERSION:
        raise _refuse(
            "newer_format",
            f"{layout.directory} has format {node.format_version}, this version reads up to {FORMAT_VERSION}",
        )
    if node.node_name != node_name:
        raise _refuse("node_name", f"{layout.directory} belongs to node {node.node_name!r}, this is {node_name!r}")
    for path in (layout.journal, layout.groups):
        if not files.exists(path):
            raise _refuse("half", f"{path} is missing: the directory is half there")
    return node


def _check_fresh(files: FileSystem, layout: Layout) -> None:
    """Without node.json: a directory that is empty, or whose making was interrupted. Raises StoreRefused."""
    if not files.exists(layout.directory):
        return
    names = files.listdir(layout.directory)
    foreign = sorted(set(names) - _FRESH_NAMES)
    if foreign:
        raise _refuse("foreign", f"{layout.directory} holds {foreign[0]!r}, which is not a node's, and no {NODE_FILE}")
    # node.json comes last when a directory is made, and groups come after it.
    has_groups = files.exists(layout.groups) and files.listdir(layout.groups)
    has_journal = files.exists(layout.journal) and set(files.listdir(layout.journal)) - {number_name(1)}
    if has_groups or has_journal:
        raise _refuse("half", f"{layout.directory} holds data, but its {NODE_FILE} is missing")


def _create(context: Context, node: NodeFile) -> Journal:
    """A new directory. node.json is written last: until it is there, this would all be done again."""
    files, layout = context.files, context.layout
    for path in (layout.journal, layout.groups):
        if not files.exists(path):
            files.mkdir(path)
    files.sync_directory(layout.directory)
    journal = _open_journal(context, 1, 0, BLANK_DIGEST, [], [])
    new = layout.node + NEW_SUFFIX
    if files.exists(new):
        files.unlink(new)
    file = files.open(new, create=True, exclusive=True)
    try:
        file.pwritev([encode_node(node)], 0)
        file.sync()
    finally:
        file.close()
    files.rename(new, layout.node)
    files.sync_directory(layout.directory)
    parent, slash, _ = layout.directory.rpartition("/")
    files.sync_directory(parent or slash or ".")
    return journal


def _open_journal(
    context: Context, number: int, last_round: int, last_digest: bytes, rows: list[bytes], old: list[int]
) -> Journal:
    """Open the next journal file with its table, synced. Everything that older files cover is synced."""
    table = encode_table(context.journal_id, number, number, last_round, last_digest, rows)
    path = context.layout.journal_file(number)
    if context.files.exists(path):
        # From a recovery that was cut: bytes of its table must not outlive the one that is written now.
        file = context.files.open(path, writable=False)
        is_stale = is_begun(file, context.journal_id, number)
        file.close()
        if is_stale:
            context.files.unlink(path)
    file = open_journal_file(context, path)
    file.pwritev([table], 0)
    file.sync()
    # Also for a file that was there: its name may be a rename that no sync has made durable.
    context.files.sync_directory(context.layout.journal)
    return Journal(context, JournalFile(number, file), len(table), last_round, last_digest, old)


def _recover(context: Context) -> tuple[Journal, dict[int, Log]]:
    """R1 to R5, in the order of the format's steps."""
    files, layout = context.files, context.layout
    reader = JournalReader(context)
    try:
        replay = reader.replay()
        reader.find_lost_groups(replay)
        reader.make_last_round_durable()
        groups = {group: Restorer(context, replayed).restore() for group, replayed in sorted(replay.groups.items())}
        number = reader.newest_used + 1
    finally:
        reader.close()
    rows = [log.row() for _, log in sorted(groups.items())]
    old = [known for known in journal_numbers(files.listdir(layout.journal)) if known < number]
    # The next spare may be there already; what is beyond is not ours to guess about.
    spare = number + 1 if files.exists(layout.journal_file(number + 1)) else None
    for known in journal_numbers(files.listdir(layout.journal)):
        if known > number + 1:
            files.unlink(layout.journal_file(known))
    try:
        journal = _open_journal(context, number, replay.last_round, replay.last_digest, rows, old)
    except OSError as error:
        free = [known for known in old if known < reader.free_below]
        if error.errno != errno.ENOSPC or not free:
            raise
        # A full disk, and no spare was ready: a file that nothing needs takes its place.
        files.rename(layout.journal_file(old.pop(0)), layout.journal_file(number))
        journal = _open_journal(context, number, replay.last_round, replay.last_digest, rows, old)
    surplus = len(old) + 1 + (spare is not None) - context.options.journal_files_max
    for known in old[: max(surplus, 0)]:
        files.unlink(layout.journal_file(known))
    del old[: max(surplus, 0)]
    if spare is not None:
        journal.spare = JournalFile(spare, open_journal_file(context, layout.journal_file(spare)))
    for log in groups.values():
        for segment in log.segments:
            if segment.is_sealed and not segment.is_finished:
                journal.mark_dirty(segment)
    for name in files.listdir(layout.groups):
        group = parse_number(name)
        if group is not None and group not in groups:
            context.garbage.add_directory(layout.group(group))
    return journal, groups
