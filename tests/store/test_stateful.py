"""The store against its model, in any order of operations, with crashes between any two of them.

Hypothesis chooses what happens; the model says what a recovered store may hold. Every durable batch is there, byte by
byte; a hard state never goes back; there is never a hole, and never a foreign byte.
"""

import random
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from logd.store.errors import JournalFull
from logd.store.format import HardState
from logd.store.jobs import Job
from logd.store.round import Remove, Round, RoundEntry, SetHardState
from tests.store.model import Bench, State, unexpected
from tests.store.support import NODE, end_of
from tests.support.fake_files import MUTATING, FakeFileSystem

GROUPS = st.integers(1, 3)


class StoreMachine(RuleBasedStateMachine):
    """One store, its model, at most one round under way, and at most one job that ran and was not applied."""

    @initialize()
    def open(self) -> None:
        self.bench = Bench(FakeFileSystem())
        self.made: Round | None = None
        self.unsettled: list[Round] = []
        self.job: Job | None = None
        self.terms: dict[int, int] = {}
        self.bench.create(1)

    # --- Rounds, step by step -----------------------------------------------------------------------------------------

    def begin(self, entries: list[RoundEntry], after: State) -> None:
        try:
            self.made = self.bench.begin(entries, after)
        except JournalFull:
            self.bench.pending = None

    def quiet(self) -> bool:
        return self.made is None

    def groups(self) -> list[int]:
        return sorted(self.bench.durable)

    def pick(self, choice: int) -> int | None:
        groups = self.groups()
        return groups[choice % len(groups)] if groups else None

    @precondition(quiet)
    @rule(choice=GROUPS, count=st.integers(1, 6), value_bytes=st.sampled_from([10, 100, 900, 5_000]))
    def append(self, choice: int, count: int, value_bytes: int) -> None:
        group = self.pick(choice)
        if group is not None and count * value_bytes < 12_000:
            self.finish_job()
            self.begin(*self.bench.append_entries(group, count, value_bytes=value_bytes))

    @precondition(quiet)
    @rule(count=st.integers(1, 3), value_bytes=st.sampled_from([10, 300]))
    def append_to_all(self, count: int, value_bytes: int) -> None:
        self.finish_job()
        entries: list[RoundEntry] = []
        after = self.bench.copy()
        for group in self.groups():
            some, changed = self.bench.append_entries(group, count, value_bytes=value_bytes)
            entries += some
            after[group] = changed[group]
        self.begin(entries, after)

    @precondition(quiet)
    @rule(choice=GROUPS, back=st.integers(1, 40), count=st.integers(1, 4), is_lower=st.booleans())
    def replace_suffix(self, choice: int, back: int, count: int, is_lower: bool) -> None:
        group = self.pick(choice)
        if group is None:
            return
        model = self.bench.durable[group]
        index = max(model.start.index + 1, model.end.index + 1 - back)
        if index > model.end.index:
            return
        self.finish_job()
        term = max(1, model.hard_state.term - 1) if is_lower else model.hard_state.term
        self.begin(*self.bench.append_entries(group, count, index=index, term=term, value_bytes=200))

    @precondition(quiet)
    @rule(choice=GROUPS, step=st.integers(0, 3), with_batch=st.booleans())
    def vote(self, choice: int, step: int, with_batch: bool) -> None:
        group = self.pick(choice)
        if group is None:
            return
        self.finish_job()
        old = self.bench.durable[group].hard_state
        new = HardState(old.term + step, NODE, old.commit + 1)
        entries: list[RoundEntry] = []
        after = self.bench.copy()
        if with_batch:
            entries, after = self.bench.append_entries(group, 1, term=new.term)
        after[group].hard_state = new
        self.begin([SetHardState(group, new), *entries], after)

    @precondition(quiet)
    @rule(choice=GROUPS)
    def create(self, choice: int) -> None:
        if choice not in self.bench.durable and self.bench.store.can_write_round():
            self.finish_job()
            self.bench.create(choice)

    @precondition(quiet)
    @rule(choice=GROUPS)
    def remove(self, choice: int) -> None:
        if choice in self.bench.durable:
            after = self.bench.copy()
            del after[choice]
            self.begin([Remove(choice)], after)

    @precondition(lambda self: self.made is None and not self.unsettled)
    @rule(choice=GROUPS, keep_bytes=st.sampled_from([0, 9_000, 20_000]))
    def retain(self, choice: int, keep_bytes: int) -> None:
        group = self.pick(choice)
        if group is not None and self.bench.store.can_write_round():
            self.finish_job()
            self.bench.retain(group, keep_bytes)

    @precondition(quiet)
    @rule(choice=GROUPS, share=st.integers(0, 10))
    def start_anywhere(self, choice: int, share: int) -> None:
        """Group 0 moves its start with each snapshot of its state, not only to a segment's boundary."""
        group = self.pick(choice)
        if group is not None and self.bench.store.can_write_round():
            batches = self.bench.durable[group].batches
            if batches:
                self.finish_job()
                end = end_of(batches[min(len(batches) - 1, len(batches) * share // 10)])
                self.bench.move_start(group, end, keeps_suffix=True)

    @precondition(quiet)
    @rule(choice=GROUPS, ahead=st.integers(-8, 5))
    def install_snapshot(self, choice: int, ahead: int) -> None:
        group = self.pick(choice)
        if group is not None and self.bench.store.can_write_round():
            self.finish_job()
            self.bench.install_snapshot(group, ahead)

    @precondition(quiet)
    @rule()
    def empty_round(self) -> None:
        self.begin([], self.bench.copy())

    @precondition(lambda self: self.made is not None)
    @rule()
    def write(self) -> None:
        assert self.made is not None
        self.bench.write(self.made)
        self.unsettled.append(self.made)
        self.made = None

    @precondition(lambda self: bool(self.unsettled))
    @rule()
    def settle(self) -> None:
        self.bench.settle(self.unsettled.pop(0))

    # --- Housekeeping -------------------------------------------------------------------------------------------------

    def finish_job(self) -> None:
        """Jobs run in the order in which they were made."""
        if self.job is not None:
            self.job.apply()
            self.job = None

    @rule()
    def housekeep_one(self) -> None:
        self.finish_job()
        self.job = self.bench.store.next_housekeeping()
        if self.job is not None:
            self.job.run()

    @rule()
    def housekeep(self) -> None:
        self.finish_job()
        self.bench.housekeep()

    # --- The end, and what comes after --------------------------------------------------------------------------------

    def recover(self, files: FakeFileSystem) -> None:
        self.bench.reopen(files)
        self.made, self.unsettled, self.job = None, [], None
        assert not unexpected(self.bench.store.events), self.bench.store.events
        for log in self.bench.store.groups.values():
            assert log.floor is None
            assert log.damage == ()

    @rule(seed=st.none() | st.integers(0, 1 << 16))
    def lose_power(self, seed: int | None) -> None:
        self.recover(self.bench.files.crash(None if seed is None else random.Random(seed)))

    @rule()
    def kill(self) -> None:
        self.recover(self.bench.files.kill())

    @precondition(lambda self: self.made is not None)
    @rule(calls=st.integers(1, 4), seed=st.none() | st.integers(0, 1 << 16))
    def crash_in_a_round(self, calls: int, seed: int | None) -> None:
        """The power goes ahead of one of the calls that carry the round out."""
        assert self.made is not None
        images: list[tuple[FakeFileSystem, State, State | None]] = []
        files, bench = self.bench.files, self.bench

        def before_call(operation: str, path: str) -> None:
            if operation in MUTATING and len(images) < calls:
                image = files.crash(None if seed is None else random.Random(seed))
                images.append((image, bench.durable, bench.pending))

        files.before_call = before_call
        made, self.made = self.made, None
        bench.write(made)
        while self.unsettled:
            bench.settle(self.unsettled.pop(0))
        bench.settle(made)
        files.before_call = None
        image, bench.durable, bench.pending = images[-1]
        self.recover(image)

    @precondition(lambda self: self.made is None and not self.unsettled)
    @rule()
    def stop_and_start(self) -> None:
        self.finish_job()
        self.bench.store.close()
        self.recover(self.bench.files)

    # --- Always -------------------------------------------------------------------------------------------------------

    @invariant()
    def hard_states_never_go_back(self) -> None:
        if not hasattr(self, "bench"):
            return
        for group in list(self.terms):
            if group not in self.bench.store.groups:
                del self.terms[group]
        for group, log in self.bench.store.groups.items():
            assert log.hard_state is not None
            assert log.hard_state.term >= self.terms.get(group, 0)
            self.terms[group] = log.hard_state.term

    @invariant()
    def readers_see_what_was_promised(self) -> None:
        if hasattr(self, "bench") and self.made is None and not self.unsettled:
            self.bench.check()


TestStore: Any = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=120,
    stateful_step_count=40,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
