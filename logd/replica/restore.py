"""A replica's state, as its log tells it: after a start of the node, and for a log that is to begin later.

For: the node's shell and the simulator's, which pass the result to the driver. Must not know: the driver, clocks,
tasks. The one idea: what a replica remembers of its committed batches (producers, membership, group 0's state) is a
function of the log, so it is read from there: from the newest checkpoint on. Reads on the calling thread.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import msgpack

from logd.raft.configuration import change_of
from logd.raft.types import NOBODY, Configuration, Entry, EntryId, HardState, Recovered
from logd.replica.frames import entry_of, snapshot_of
from logd.replica.membership import change_from, decode_membership, encode_membership
from logd.replica.producers import ProducerTable
from logd.store.format import LogEnd, Start
from logd.store.log import Log
from wire.errors import CorruptBatch
from wire.record import BatchHeader, ControlKind, check_alone, decode_control, split_batches

# A sole voter that lost its hard state cannot know in which terms it voted; this many it will not have missed.
TERMS_SKIPPED_WITHOUT_HARD_STATE: Final = 1000
CHECKPOINT_VERSION: Final = 2
"""Version 1 is a producer table alone, and is still read."""
# One read of a log's tail, or of group 0's records.
_READ_BYTES: Final = 1 << 20


class LogState(NamedTuple):
    """What a replica comes back with, or begins with."""

    group: int
    recovered: Recovered
    end: LogEnd
    """Where the log ends, as far as it is intact: what the next batch is stamped behind."""
    committed_offset: int
    """One past the last record that is known to be committed."""
    producers: ProducerTable
    lost: str = ""
    """Why a sole voter's promised end is lost; empty when it is not. Such a group answers nothing but this."""
    saved: HardState | None = None
    """The hard state as it is on disk, where `recovered` has to go beyond it."""
    incomplete: str = ""
    """Why a sole voter that leads over a hole does not remember all of its producers."""


def encode_checkpoint(producers: bytes, configuration: Configuration) -> bytes:
    """What a segment's index remembers of the log up to some batch: `[version, producer table, membership]`."""
    packed: bytes = msgpack.packb([CHECKPOINT_VERSION, producers, encode_membership(configuration)])
    return packed


def decode_checkpoint(data: bytes) -> tuple[bytes, Configuration | None]:
    """The producer table, and the membership if the checkpoint has it. Raises ValueError."""
    if not data:
        return b"", None
    version, *values = msgpack.unpackb(data)
    if version != CHECKPOINT_VERSION:
        return data, None
    producers, membership = values
    return producers, decode_membership(membership)


def state_of_start(
    group: int, start: Start, producers: ProducerTable, hard_state: HardState | None, admission: bytes = b""
) -> LogState:
    """A replica that holds nothing after its start. Without `hard_state` it has to be admitted by `admission`."""
    producers.restore(start.producers)
    recovered = Recovered(snapshot=snapshot_of(start), hard_state=hard_state, applied=start.index, admission=admission)
    return LogState(group, recovered, start.end, start.offset, producers)


def recover(
    log: Log,
    node: str,
    producers: ProducerTable,
    admission: bytes,
    *,
    apply: Callable[[BatchHeader, memoryview], object] | None = None,
    unknown: Configuration | None = None,
    on_damage: Callable[[int, int], None] | None = None,
) -> LogState:
    """What the store recovered of one group's log.

    Arguments: `node`, this node; `producers`, an empty table with this node's bounds; `admission`, a word drawn anew,
    for a replica that lost its hard state; `apply`, told every committed batch after the log's start, in order (for
    group 0); `unknown`, what to take as membership where the start file is damaged: without it, the replica must be
    admitted anew; `on_damage`, told the indexes `[first, next)` of damage that the store did not know of
    (`Store.note_damage`): a replica among others then ends in front of it.

    Raises OSError, CorruptBatch for such damage without `on_damage`, and UndecodableBatch or ValueError where a
    committed control batch cannot be read.
    """
    return _Recovery(log, node, producers, apply, unknown).run(admission, on_damage)


class _Recovery:
    """One replica's recovery."""

    def __init__(
        self,
        log: Log,
        node: str,
        producers: ProducerTable,
        apply: Callable[[BatchHeader, memoryview], object] | None,
        unknown: Configuration | None,
    ) -> None:
        self.log = log
        self.node = node
        self.producers = producers
        self.apply = apply
        self.unknown = unknown
        self.tail: list[Entry] = []
        self.incomplete = ""
        self.configuration = decode_membership(log.start.membership)
        self.is_membership_known = log.is_start_readable or unknown is not None
        if not log.is_start_readable and unknown is not None:
            self.configuration = unknown
        # What is committed, and behind it what is not known to be.
        self.committed = log.start.end
        self.end = log.start.end

    @property
    def decides_alone(self) -> bool:
        return self.configuration.voters == {self.node} and not self.configuration.is_joint

    def run(
        self, admission: bytes, on_damage: Callable[[int, int], None] | None, intact_max: int | None = None
    ) -> LogState:
        log = self.log
        intact = log.end.index if log.floor is None or self.decides_alone else log.intact_index
        intact = intact if intact_max is None else min(intact, intact_max)
        commit = log.hard_state.commit if log.hard_state is not None else log.start.index
        first = log.start.index
        if self.apply is None:
            # What a checkpoint covers was applied, and so committed, whatever the hard state came to say.
            first, checkpoint = log.producers_checkpoint(max(intact, log.start.index))
            table, configuration = decode_checkpoint(checkpoint)
            self.producers.restore(table)
            self.configuration = configuration or self.configuration
        else:
            self.producers.restore(log.start.producers)
        try:
            self._read(first, intact, commit)
        except CorruptBatch as error:
            if not self.decides_alone:
                if on_damage is None:
                    raise
                # What was read is intact, and ends here.
                on_damage(self.end.index + 1, self.end.index + 2)
                if first <= self.end.index:
                    return self._state(admission)
                # The checkpoint is of a time after that: what it says of members and producers is not true there.
                anew = _Recovery(log, self.node, self.producers, self.apply, self.unknown)
                return anew.run(admission, on_damage, self.end.index)
            self.incomplete = str(error)
            # A sole voter leads over a hole: what is behind it is not remembered, and a retry of it is refused.
            self.committed = self.end = log.end
            self.tail = []
        return self._state(admission)

    def _read(self, first: int, last: int, commit: int) -> None:
        """Go through the batches from `first` (of which all is remembered, itself included) to `last`."""
        log = self.log
        if first > log.start.index:
            header = next(log.headers_from(first))
            self.committed = self.end = _end_of(header)
        for header in log.headers_from(first + 1, last + 1):
            # What the only voter holds is committed, whether it came to say so or not.
            if header.index > commit and not self.decides_alone:
                # reachable: a log comes back with an uncommitted tail
                self._read_tail(header.index, last)
                return
            self._on_committed(header)

    def _on_committed(self, header: BatchHeader) -> None:
        if header.is_control:
            kind, fields = decode_control(header, _read_whole(self.log, header.index))
            if kind is ControlKind.MEMBERSHIP:
                self.configuration = change_of(self.configuration, change_from(fields))
        elif self.apply is not None:
            self.apply(header, _read_whole(self.log, header.index))
        self.producers.append(header)
        self.producers.commit(header)
        self.committed = self.end = _end_of(header)

    def _read_tail(self, index: int, last: int) -> None:
        """The entries that may be replaced, and may have to be sent: bounded by what a leader leaves uncommitted."""
        while index <= last:
            result = self.log.plan_read_index(index, last + 1, _READ_BYTES).run(nowait=False)
            assert result is not None
            for batch in split_batches(result.batches):
                entry = entry_of(bytes(batch))
                self.tail.append(entry)
                self.producers.append(entry.data.header)
                self.end = _end_of(entry.data.header)
            index = result.next_index

    def _state(self, admission: bytes) -> LogState:
        log, committed, end = self.log, self.committed, self.end
        hard_state: HardState | None = None
        floor: EntryId | None = None
        lost = ""
        if log.floor is not None and self.decides_alone:
            lost = what_is_lost(log)
        elif log.floor is not None and (log.damage or (end.term, end.index) < (log.floor.term, log.floor.index)):
            # reachable: a log comes back damaged
            floor = EntryId(log.floor.index, log.floor.term)
        if log.hard_state is not None and self.is_membership_known:
            # The end of a log that was taken from a snapshot may be of a term that no hard state names yet.
            term = max(log.hard_state.term, end.term)
            vote = log.hard_state.vote if term == log.hard_state.term else NOBODY
            hard_state = HardState(term, vote, max(log.hard_state.commit, committed.index))
            admission = b""
        elif self.decides_alone:
            term = max(log.known_term, end.term) + TERMS_SKIPPED_WITHOUT_HARD_STATE
            hard_state = HardState(term, NOBODY, committed.index)
            admission = b""
        if lost:
            floor = EntryId(log.floor.index, log.floor.term) if log.floor is not None else None
        saved = HardState(*log.hard_state) if log.hard_state is not None else None
        recovered = Recovered(
            snapshot=snapshot_of(log.start)._replace(configuration=decode_membership(log.start.membership)),
            base=EntryId(committed.index, committed.term),
            base_chain=committed.chain,
            entries=self.tail,
            hard_state=hard_state,
            configuration=self.configuration,
            applied=committed.index,
            floor=floor,
            admission=admission,
        )
        return LogState(log.group, recovered, end, committed.next_offset, self.producers, lost, saved, self.incomplete)


def start_at(log: Log, index: int, producers: ProducerTable) -> Start:
    """The start of a log that begins behind its batch `index`, as every replica makes it from its own log.

    `producers` is an empty table, whose contents are of no use afterwards. Raises as reading the log does.
    """
    first, checkpoint = log.producers_checkpoint(index)
    table, configuration = decode_checkpoint(checkpoint)
    producers.restore(table)
    configuration = configuration or decode_membership(log.start.membership)
    end = log.start.end
    if first > log.start.index:
        end = _end_of(next(log.headers_from(first)))
    for header in log.headers_from(first + 1, index + 1):
        end = _end_of(header)
        producers.append(header)
        producers.commit(header)
        if header.is_control:
            kind, fields = decode_control(header, _read_whole(log, header.index))
            if kind is ControlKind.MEMBERSHIP:
                configuration = change_of(configuration, change_from(fields))
    return log.start._replace(
        index=end.index,
        term=end.term,
        offset=end.next_offset,
        chain=end.chain,
        append_timestamp=end.append_timestamp,
        membership=encode_membership(configuration),
        producers=producers.encode(),
    )


def _read_whole(log: Log, index: int) -> memoryview:
    """One batch, with its payload verified: a read that is passed on leaves that to whoever gets it."""
    result = log.plan_read_index(index, index + 1, _READ_BYTES).run(nowait=False)
    assert result is not None
    batch = next(split_batches(result.batches))
    check_alone(batch)
    return batch


def _end_of(header: BatchHeader) -> LogEnd:
    return LogEnd(header.index, header.term, header.next_offset, header.append_timestamp, header.chain)


def what_is_lost(log: Log) -> str:
    """Why a log's promised end is lost, for an operator; empty when it is not."""
    if log.floor is None or log.end.index >= log.floor.index:
        return ""
    return (
        f"lost what was promised above index {log.end.index}, up to {log.floor.index}: see {log.directory}; "
        f"restore the directory, or stop the node and `logctl segment accept-loss DATA --group {log.group}`"
    )
