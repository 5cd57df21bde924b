"""What Raft promises in figure 3, after each of many random steps: groups under loss, repetition, disorder and crashes.

A seed is a whole life: replays are exact. One replica at a time may also lose durable entries, or everything.
"""

import random
from dataclasses import replace
from typing import Any

import pytest

from logd.raft.group import Group
from logd.raft.progress import ProgressState
from logd.raft.types import (
    ChangeKind,
    ChangeStep,
    ConfigurationChange,
    EntryId,
    ProposalDropped,
    ReadState,
    Ready,
    Recovered,
    Role,
    Transition,
)
from tests.raft.network import Network

STEPS = 6000
SEEDS = 24


class Life(Network):
    """A network that does what chance says, and checks what may never be."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        size = self.random.choice((3, 3, 4, 5))
        learners = "f" if self.random.random() < 0.3 else ""
        options: dict[str, Any] = {
            "pre_vote": self.random.random() < 0.5,
            "check_quorum": self.random.random() < 0.5,
            "election_ticks": 5,
            "inflight_messages_max": self.random.choice((1, 3, 256)),
            "message_bytes_max": self.random.choice((15, 1000)),
            "window_bytes_max": self.random.choice((600, 1 << 20)),
        }
        self.loss = self.random.choice((0.0, 0.1, 0.3))
        self.repetition = self.random.choice((0.0, 0.2))
        self.has_changes, self.has_compaction, self.has_damage = (self.random.random() < 0.5 for _ in range(3))
        # Where membership changes, two voters may be all there are: none of them may lose anything.
        self.has_damage = self.has_damage and not self.has_changes
        self.incarnations = dict.fromkeys("abcde"[:size] + learners, 0)
        self.leaders: dict[int, tuple[str, int]] = {}
        self.contents: dict[EntryId, tuple[int | None, Any]] = {}
        self.committed: dict[int, EntryId] = {}
        self.applied: dict[int, Any] = {}
        self.reads: dict[bytes, int] = {}
        self.answered = 0
        self.proposals = 0
        self.words = 0
        self.floors: dict[str, EntryId] = {}
        self.victim = ""
        super().__init__("abcde"[:size], learners=learners, **options)

    # --- What may never be --------------------------------------------------------------------------------------------

    def check(self, name: str) -> None:
        group = self.groups[name]
        log = group.log
        if group.role is Role.LEADER:
            leader = (name, self.incarnations[name])
            is_new = group.term not in self.leaders
            assert self.leaders.setdefault(group.term, leader) == leader, "election safety"
            if is_new:
                for index, entry_id in self.committed.items():
                    assert log.term_at(index) in (entry_id.term, None), "leader completeness"
                    assert log.last_index >= index, "leader completeness"
        previous: int | None = log.base.term
        for entry in log.entries:
            content = (previous, entry.data if entry.change is None else entry.change)
            assert self.contents.setdefault(entry.id, content) == content, "log matching"
            previous = entry.term
        for index in range(max(log.base.index, 1), log.commit + 1):
            term = log.term_at(index)
            if term is not None:
                assert self.committed.setdefault(index, EntryId(index, term)).term == term, "state machine safety"
        assert log.base.index <= log.commit <= log.last_index
        assert log.base.index <= log.stable <= log.handed_out <= log.last_index

    def take(self, name: str) -> None:
        before = len(self.read_states[name])
        super().take(name)
        ready: Ready = self.writes[name][-1]
        for entry in ready.committed:
            assert self.applied.setdefault(entry.index, entry.data) == entry.data, "state machine safety"
        for state in self.read_states[name][before:]:
            self.check_read(state)

    def check_read(self, state: ReadState) -> None:
        assert state.index >= self.reads[state.context], "a read that was answered before a write that preceded it"
        self.answered += 1

    # --- What may happen ----------------------------------------------------------------------------------------------

    def live(self) -> None:
        choices = (
            (self.some_message, 50),
            (self.some_disk, 40),
            (self.some_tick, 12),
            (self.some_proposal, 6),
            (self.some_read, 2),
            (self.some_crash, 0.6),
            (self.some_partition, 0.5),
            (self.some_wish, 2),
        )
        actions, weights = zip(*choices, strict=True)
        for action in self.random.choices(actions, weights, k=STEPS):
            action(self.random.choice(list(self.groups)))

    def some_message(self, _: str) -> None:
        if not self.pool:
            return
        place = self.random.randrange(min(len(self.pool), 12))
        message = self.pool[place]
        is_own = message.sender == message.to
        if is_own:
            # A disk answers in order, once.
            message = next(other for other in self.pool if other.sender == other.to == message.to)
            self.pool = [other for other in self.pool if other is not message]
        elif self.random.random() >= self.repetition:
            del self.pool[place]
        if message.to in self.groups and (is_own or self.random.random() >= self.loss):
            self.groups[message.to].step(message)
            self.check(message.to)

    def some_disk(self, name: str) -> None:
        if self.writes[name] and self.random.random() < 0.5:
            self.write(name)
        elif self.groups[name].has_ready:
            self.take(name)
            self.check(name)

    def some_tick(self, name: str) -> None:
        self.groups[name].tick()
        self.check(name)

    def some_proposal(self, name: str) -> None:
        self.proposals += 1
        try:
            self.groups[name].propose(f"data {self.proposals}", size_bytes=10)
        except ProposalDropped:
            return
        self.check(name)

    def some_read(self, name: str) -> None:
        context = b"%d" % len(self.reads)
        self.reads[context] = max(self.committed, default=0)
        self.groups[name].read_index(context)

    def some_crash(self, name: str) -> None:
        for _ in range(self.random.randrange(len(self.writes[name]) + 1)):
            self.write(name)
        self.crash(name)
        self.incarnations[name] += 1
        self.recover(name, lambda recovered: self.damage(name, recovered))
        self.check(name)

    def damage(self, name: str, recovered: Recovered) -> Recovered:
        others = [group for group in self.groups.values() if group.is_damaged or group.admission]
        if self.has_damage and not others and self.random.random() < 0.5:
            if self.random.random() < 0.3:
                self.floors.pop(name, None)
                recovered = Recovered(hard_state=None, configuration=recovered.configuration)
            elif recovered.entries:
                kept = self.random.randrange(len(recovered.entries))
                known = self.floors.get(name, EntryId(0, 0))
                self.floors[name] = max(recovered.entries[-1].id, known, key=lambda entry: (entry.term, entry.index))
                recovered = replace(recovered, entries=recovered.entries[:kept])
        if recovered.hard_state is None:
            self.words += 1
            recovered = replace(recovered, admission=b"%d" % self.words)
        # A floor is remembered until the log on the disk reaches it.
        floor = self.floors.get(name)
        last = recovered.entries[-1].id if recovered.entries else recovered.snapshot.id
        if floor is not None and (last.term, last.index) < (floor.term, floor.index):
            return replace(recovered, floor=floor)
        self.floors.pop(name, None)
        return recovered

    def some_partition(self, name: str) -> None:
        if self.cut:
            self.heal()
        elif self.random.random() < 0.5:
            self.isolate(name)
        else:
            self.cut = {(name, self.random.choice(list(self.groups)))} - {(name, name)}

    def some_wish(self, name: str) -> None:
        group = self.groups[name]
        match self.random.randrange(5):
            case 0:
                group.transfer_leader(self.random.choice(list(self.groups)))
            case 1 if self.has_changes:
                self.change(group)
            case 2 if self.has_compaction and group.applied > group.log.snapshot.index and not self.writes[name]:
                self.compact(name, group.applied)
            case 3:
                group.forget_leader()
            case _:
                self.look_after(group)
        self.check(name)

    def change(self, group: Group) -> None:
        kinds = (ChangeKind.ADD_VOTER, ChangeKind.ADD_VOTER, ChangeKind.ADD_LEARNER, ChangeKind.REMOVE)
        names = self.random.sample(sorted(self.groups), self.random.choice((1, 1, 2)))
        steps = tuple(ChangeStep(self.random.choice(kinds), name) for name in names)
        transition = self.random.choice((Transition.AUTO, Transition.IMPLICIT, Transition.EXPLICIT))
        change = ConfigurationChange(steps, transition)
        self.propose_change(group, ConfigurationChange() if group.configuration.is_joint else change)

    def propose_change(self, group: Group, change: ConfigurationChange) -> None:
        try:
            group.propose_change(change)
        except ProposalDropped:
            return

    def look_after(self, group: Group) -> None:
        """What a leader's shell does: lost snapshots are sent again, wiped replicas admitted again."""
        for name, progress in group.progress.items():
            if progress.state is ProgressState.SNAPSHOT and group.role is Role.LEADER:
                group.report_snapshot(name, delivered=False)
            if progress.admission and group.role is Role.LEADER:
                steps = (ChangeStep(ChangeKind.UPDATE, name),)
                self.propose_change(group, ConfigurationChange(steps, admission=progress.admission))

    # --- How it ends --------------------------------------------------------------------------------------------------

    def heal_and_rest(self) -> Group:
        """Nothing fails any more: everybody comes to the same log, and to rest."""
        self.heal()
        for _ in range(400):
            self.settle()
            for name, group in self.groups.items():
                group.tick()
                self.look_after(group)
                if group.role is Role.LEADER and group.configuration.is_joint:
                    self.propose_change(group, ConfigurationChange())
                self.check(name)
            leaders = [group for group in self if group.is_at_rest]
            if leaders:
                return leaders[0]
        raise AssertionError(f"no rest: {list(self)}")


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_life_breaks_what_raft_promises_and_every_life_ends_well(seed: int) -> None:
    """Figure 3: election safety, log matching, leader completeness, state machine safety; section 8: linearizable."""
    life = Life(seed)
    life.chance = dict.fromkeys(life.groups, life.random)
    for group in life:
        group._chance = life.random
    life.live()
    leader = life.heal_and_rest()
    leader.propose("at last")
    life.settle()
    life.tick(leader.node, times=3)
    assert leader.is_at_rest
    for name in leader.configuration.members:
        group = life[name]
        assert (group.last, group.commit_index, group.is_damaged, group.admission) == (
            leader.last,
            leader.last.index,
            False,
            b"",
        )
        life.check(name)
    assert leader.last.index in life.committed


def test_the_lives_are_not_empty() -> None:
    """A property that holds because nothing happens is worth nothing."""
    life = Life(0)
    for group in life:
        group._chance = life.random
    life.live()
    life.heal_and_rest()
    assert len(life.leaders) > 2
    assert len(life.committed) > 20
    assert life.answered > 2
