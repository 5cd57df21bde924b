"""A store beside a model of what it promised, for every test that crashes it.

The model is as simple as it gets: for each group a start, a hard state and the bytes of its batches. A round changes
all of it or nothing; once `Round.write` has returned, it has. `Bench` drives both and says what a recovered store may
hold.
"""

import copy
from dataclasses import dataclass, field

from logd.store.context import StoreOptions
from logd.store.events import Event, IndexRebuilt, TornTail
from logd.store.format import INITIAL_HARD_STATE, HardState, LogEnd, Start
from logd.store.log import Log
from logd.store.round import Append, Remove, Round, RoundEntry, SetHardState, SetStart
from logd.store.store import Store
from tests.store.support import NODE, SMALL, do, end_of, make_batch, make_room, new_start, open_store, stored
from tests.support.fake_files import FakeFileSystem
from wire.record import StampedBatch, split_batches


@dataclass
class ModelLog:
    """What one group promised."""

    start: Start
    hard_state: HardState = INITIAL_HARD_STATE
    batches: list[StampedBatch] = field(default_factory=list)
    """Those after the start, in order."""

    @property
    def end(self) -> LogEnd:
        return end_of(self.batches[-1]) if self.batches else self.start.end

    def end_before(self, index: int) -> LogEnd:
        """The end of the log below an index."""
        kept = [batch for batch in self.batches if batch.header.index < index]
        return end_of(kept[-1]) if kept else self.start.end

    def replace_from(self, batches: list[StampedBatch]) -> None:
        first = batches[0].header.index
        self.batches = [batch for batch in self.batches if batch.header.index < first] + batches

    def move_start(self, start: Start, *, keeps_suffix: bool) -> None:
        kept = [batch for batch in self.batches if batch.header.index > start.index]
        self.start, self.batches = start, kept if keeps_suffix else []


State = dict[int, ModelLog]
Observed = dict[int, tuple[Start, HardState | None, bytes]]


def observed_model(state: State) -> Observed:
    return {
        group: (log.start, log.hard_state, b"".join(batch.to_bytes() for batch in log.batches))
        for group, log in state.items()
    }


def observed_store(store: Store) -> Observed:
    return {group: (log.start, log.hard_state, stored(log)) for group, log in store.groups.items()}


def unexpected(events: list[Event]) -> list[Event]:
    """What no crash may leave."""
    allowed = (TornTail, IndexRebuilt)
    return [event for event in events if not isinstance(event, allowed)]


class Bench:
    """Drives a store and its model side by side."""

    def __init__(self, files: FakeFileSystem, options: StoreOptions = SMALL) -> None:
        self.files = files
        self.options = options
        self.durable: State = {}
        """What was promised. Invariant: a recovered store holds this, or `pending`."""
        self.pending: State | None = None
        """What the round under way will make of it."""
        self.store = open_store(files, options)
        self.salt = 0

    # --- What a recovered store may hold ------------------------------------------------------------------------------

    def allowed(self) -> list[Observed]:
        states = [self.durable] + ([self.pending] if self.pending is not None else [])
        return [observed_model(state) for state in states]

    def snapshot(self) -> "list[Observed]":
        return copy.deepcopy(self.allowed())

    # --- Rounds -------------------------------------------------------------------------------------------------------

    def begin(self, entries: list[RoundEntry], after: State) -> Round:
        made = self.store.prepare_round(entries)
        self.pending = after
        return made

    def write(self, made: Round) -> None:
        made.write()
        assert self.pending is not None
        self.durable, self.pending = self.pending, None
        made.apply_durable()

    def settle(self, made: Round) -> None:
        made.settle()
        made.apply_written()

    def round(self, entries: list[RoundEntry], after: State) -> None:
        made = self.begin(entries, after)
        self.write(made)
        self.settle(made)

    def copy(self) -> State:
        """A state to change; batches and starts never change, so they are shared."""
        return {group: ModelLog(log.start, log.hard_state, list(log.batches)) for group, log in self.durable.items()}

    # --- Operations ---------------------------------------------------------------------------------------------------

    def log(self, group: int) -> Log:
        return self.store.groups[group]

    def make_batches(self, before: LogEnd, count: int, *, term: int, value_bytes: int = 60) -> list[StampedBatch]:
        batches = []
        for _ in range(count):
            self.salt += 1
            batches.append(make_batch(before, term=term, value_bytes=value_bytes, salt=self.salt))
            before = end_of(batches[-1])
        return batches

    def append_entries(
        self, group: int, count: int, *, index: int | None = None, value_bytes: int = 60, term: int | None = None
    ) -> tuple[list[RoundEntry], State]:
        """Entries that append, or replace everything from `index` on."""
        after = self.copy()
        model = after[group]
        before = model.end if index is None else model.end_before(index)
        batches = self.make_batches(before, count, term=term or model.hard_state.term, value_bytes=value_bytes)
        make_room(self.log(group), batches)
        model.replace_from(batches)
        return [Append(group, batch) for batch in batches], after

    def append(self, group: int, count: int, **how: int) -> None:
        self.round(*self.append_entries(group, count, **how))

    def set_hard_state(self, group: int, term: int, vote: str = NODE) -> None:
        after = self.copy()
        after[group].hard_state = HardState(term, vote, 0)
        self.round([SetHardState(group, HardState(term, vote, 0))], after)

    def create(self, group: int) -> None:
        start = new_start(group)
        do(self.store.create_group(group, start))
        after = self.copy()
        after[group] = ModelLog(start, HardState(1, NODE, 0))
        self.round([SetStart(group, start), SetHardState(group, HardState(1, NODE, 0))], after)

    def remove(self, group: int) -> None:
        after = self.copy()
        del after[group]
        self.round([Remove(group)], after)

    def retain(self, group: int, keep_bytes: int) -> bool:
        boundary = self.log(group).retention_boundary(0, keep_bytes)
        if boundary is None:
            return False
        self.move_start(group, boundary, keeps_suffix=True)
        return True

    def move_start(self, group: int, end: LogEnd, *, keeps_suffix: bool) -> None:
        after = self.copy()
        start = after[group].start._replace(
            index=end.index,
            term=end.term,
            offset=end.next_offset,
            chain=end.chain,
            append_timestamp=end.append_timestamp,
            producers=b"producers of %d" % end.index,
        )
        do(self.log(group).prepare_start(start))
        after[group].move_start(start, keeps_suffix=keeps_suffix)
        self.round([SetStart(group, start, keeps_suffix)], after)

    def install_snapshot(self, group: int, ahead: int) -> None:
        """Replace the log by one that starts beyond its end or, if `ahead` is negative, within it on another chain."""
        model = self.durable[group]
        base = model.end_before(max(model.start.index + 1, model.end.index + 1 + min(ahead, 0)))
        other = self.make_batches(base, max(ahead, 1), term=model.end.term + 1)[-1]
        self.move_start(group, end_of(other), keeps_suffix=False)

    def housekeep(self) -> None:
        while (job := self.store.next_housekeeping()) is not None:
            do(job)

    def reopen(self, files: FakeFileSystem) -> None:
        """Go on with what a crash left."""
        self.files = files
        self.store = open_store(files, self.options)
        found = observed_store(self.store)
        matching = [
            state for state in (self.durable, self.pending) if state is not None and observed_model(state) == found
        ]
        assert matching, "a recovered store that was never promised"
        self.durable, self.pending = matching[0], None

    def check(self) -> None:
        """The open store holds what was promised, and readers see all of it."""
        assert observed_store(self.store) == observed_model(self.durable)


def check_recovered(files: FakeFileSystem, allowed: list[Observed], options: StoreOptions = SMALL) -> None:
    """Open what a crash left: it holds an allowed state, undamaged; it goes on, and comes back once more."""
    store = open_store(files, options)
    found = observed_store(store)
    assert found in allowed, _difference(found, allowed)
    assert not unexpected(store.events), unexpected(store.events)
    appended = {}
    for group, log in store.groups.items():
        assert log.floor is None
        assert log.damage == ()
        assert log.hard_state is not None
        check_offsets(log)
        batch = make_batch(log.end, term=max(log.end.term, log.hard_state.term))
        make_room(log, [batch])
        made = store.prepare_round([SetHardState(group, HardState(batch.header.term, NODE, 0)), Append(group, batch)])
        made.write()
        made.apply_durable()
        made.settle()
        made.apply_written()
        appended[group] = stored(log)
    job = store.next_housekeeping()
    while job is not None:
        do(job)
        job = store.next_housekeeping()
    again = open_store(files.crash(None), options)
    assert {group: stored(log) for group, log in again.groups.items()} == appended
    assert not unexpected(again.events), unexpected(again.events)


def check_offsets(log: Log) -> None:
    """Every offset is found, and the batch that holds it comes first."""
    offset = log.log_start_offset
    while offset < log.written_next_offset:
        result = log.plan_read(offset, log.written_next_offset, 300).run()
        assert result is not None
        first = next(split_batches(result.batches))
        assert result.first_offset <= offset < result.next_offset
        assert len(first)
        offset = result.next_offset


def _difference(found: Observed, allowed: list[Observed]) -> str:
    lines = [f"groups {sorted(found)}, promised {[sorted(state) for state in allowed]}"]
    for group, (start, hard_state, data) in found.items():
        for state in allowed:
            if group in state:
                other = state[group]
                lines.append(
                    f"group {group}: start {start.index} hard {hard_state} {len(data)} bytes; "
                    f"promised start {other[0].index} hard {other[1]} {len(other[2])} bytes"
                )
    return "\n".join(lines)
