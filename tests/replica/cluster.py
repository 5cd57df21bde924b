"""A few drivers with disks that are lists, and a network between them that is a list.

For: tests of the driver among peers. Must not know: the store, which has tests of its own. The one idea: nothing
happens unless the test lets it: a disk is what was written before the last crash, a frame may be held back or lost, and
time passes by ticks.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from logd.meta.commands import Command
from logd.meta.state import META_GROUP, MetaState
from logd.raft.configuration import change_of
from logd.raft.types import INITIAL_HARD_STATE, Configuration, EntryId, HardState, Recovered, Role
from logd.replica.clock import AppendClock, ClockReading
from logd.replica.driver import Driver, apply_batch
from logd.replica.frames import entry_of_stamped, snapshot_of
from logd.replica.membership import change_from, decode_membership, encode_membership
from logd.replica.restore import LogState
from logd.replica.types import CreateGroup, DriverOptions, Effect, InstallStart, MoveStart, ReadRange, SnapshotMeta
from logd.store.format import LogEnd, Start
from logd.store.round import Append, Remove, RoundEntry, SetHardState, SetStart
from tests.replica.harness import WALL_MS, FakeRoom, proposal, start_after
from wire.errors import LogdError
from wire.messages import Produced
from wire.record import ControlKind, StampedBatch, check_alone, decode_control
from wire.types import Acks

TICK_MS = 100
NAMES = ("n1", "n2", "n3")
GROUP = 1


def members(*voters: str, learners: Iterable[str] = ()) -> Configuration:
    return Configuration(frozenset(voters), learners=frozenset(learners))


@dataclass(slots=True)
class DiskLog:
    """What is durable of one group: its start, the batches behind it, and its hard state."""

    start: Start
    hard_state: HardState | None = INITIAL_HARD_STATE
    batches: list[StampedBatch] = field(default_factory=list)

    @property
    def end(self) -> LogEnd:
        if not self.batches:
            return self.start.end
        header = self.batches[-1].header
        return LogEnd(header.index, header.term, header.next_offset, header.append_timestamp, header.chain)

    def write(self, entry: RoundEntry) -> None:
        match entry:
            case Append(_, batch):
                kept = batch.header.index - self.start.index - 1
                assert 0 <= kept <= len(self.batches), f"index {batch.header.index} does not follow {self.end.index}"
                del self.batches[kept:]
                assert batch.header.previous_chain == self.end.chain
                self.batches.append(batch)
            case SetHardState(_, hard_state):
                before = self.hard_state or INITIAL_HARD_STATE
                assert hard_state.term >= before.term
                assert hard_state.term > before.term or before.vote in ("", hard_state.vote), "a vote was changed"
                assert hard_state.commit >= before.commit, "the commit went back"
                self.hard_state = HardState(*hard_state)
            case SetStart(_, start, keeps_suffix=True):
                assert self.start.index < start.index <= self.end.index
                del self.batches[: start.index - self.start.index]
                self.start = start
            case SetStart(_, start):
                self.start = start
                self.batches.clear()

    def start_at(self, node: "Node", index: int) -> Start:
        """The start of a log that begins behind its batch `index`."""
        upto = DiskLog(self.start, HardState(1, "", index), self.batches[: index - self.start.index])
        state = upto.recover(GROUP, node)
        membership = encode_membership(state.recovered.configuration or Configuration())
        return start_after(upto.batches[-1].header)._replace(
            membership=membership, producers=state.producers.encode(), topic_id=self.start.topic_id
        )

    def recover(self, group: int, node: "Node", admission: bytes = b"", floor: EntryId | None = None) -> LogState:
        """What `logd.replica.restore` makes of such a log; without a hard state, by `admission`."""
        producers = node.driver.new_producer_table()
        producers.restore(self.start.producers)
        configuration = decode_membership(self.start.membership)
        committed = self.start.end
        count = max((self.hard_state.commit if self.hard_state is not None else 0) - self.start.index, 0)
        assert self.hard_state is None or floor or count <= len(self.batches), "a commit beyond the log's end"
        for batch in self.batches[:count]:
            header = batch.header
            producers.append(header)
            producers.commit(header)
            committed = LogEnd(header.index, header.term, header.next_offset, header.append_timestamp, header.chain)
            if header.is_control:
                kind, fields = decode_control(header, batch.to_bytes())
                if kind is ControlKind.MEMBERSHIP:
                    configuration = change_of(configuration, change_from(fields))
            elif group == META_GROUP:
                apply_batch(node.driver.meta, header, batch.to_bytes())
        for batch in self.batches[count:]:
            producers.append(batch.header)
        recovered = Recovered(
            snapshot=snapshot_of(self.start),
            base=EntryId(committed.index, committed.term),
            base_chain=committed.chain,
            entries=[entry_of_stamped(batch) for batch in self.batches[count:]],
            hard_state=self.hard_state,
            configuration=configuration,
            applied=committed.index,
            floor=floor,
            admission=admission,
        )
        return LogState(group, recovered, self.end, committed.next_offset, producers)


class Node:
    """One driver, its disk and whoever asks it. `life` counts its starts."""

    def __init__(self, cluster: "Cluster", name: str, options: DriverOptions, number: int) -> None:
        self.cluster = cluster
        self.name = name
        self.options = options
        self.number = number
        self.life = 0
        self.disk: dict[int, DiskLog] = {}
        self.under_way: list[RoundEntry] = []
        self.hangs = False
        """Rounds are taken, and do not become durable."""
        self.reads_ranges = True
        self.writes_starts = True
        self.make_room: Callable[[], FakeRoom] = FakeRoom
        self.effects: list[Effect] = []
        self.ranges: list[ReadRange] = []
        self.answers: dict[Any, list[Any]] = {}
        self.rounds: list[list[RoundEntry]] = []
        self.new_driver(MetaState())

    def new_driver(self, meta: MetaState) -> None:
        self.life += 1
        chance = random.Random(self.number * 1000 + self.life)
        clock, life = AppendClock.started(self.cluster.reading), self.number * 1000 + self.life
        self.driver = Driver(self.name, self.options, clock, meta, chance, life)

    # --- Steps --------------------------------------------------------------------------------------------------------

    def take_round(self) -> bool:
        if self.under_way or not self.driver.has_work:
            return False
        room = self.make_room()
        self.under_way = self.driver.take_round(room, self.cluster.reading)
        room.check(self.under_way)
        return bool(self.under_way)

    def durable(self) -> bool:
        if not self.under_way or self.hangs:
            return False
        entries, self.under_way = self.under_way, []
        for entry in entries:
            if isinstance(entry, Remove):
                del self.disk[entry.group]
            else:
                if entry.group not in self.disk:
                    assert isinstance(entry, SetStart)
                    self.disk[entry.group] = DiskLog(entry.start, None if entry.is_unadmitted else INITIAL_HARD_STATE)
                    continue
                self.disk[entry.group].write(entry)
        self.rounds.append(entries)
        self.driver.on_durable()
        return True

    def collect(self) -> bool:
        for answer in self.driver.take_answers():
            self.answers.setdefault(answer.reply, []).append(answer.outcome)
        effects = self.driver.take_effects()
        for effect in effects:
            self.effects.append(effect)
            match effect:
                case MoveStart(group, index):
                    if index > self.disk[group].start.index:
                        self.driver.install(group, self.disk[group].start_at(self, index), None)
                case InstallStart(group, start) if self.writes_starts:
                    self.driver.install(group, start, None)
                case ReadRange():
                    self.ranges.append(effect)
                case CreateGroup(group):
                    self.driver.install(group, self.cluster.founding_start(), self.new_state(group))
                case SnapshotMeta(header, state, membership):
                    start = start_after(header)._replace(membership=membership, state=state)
                    self.driver.install(META_GROUP, start, None)
        if self.reads_ranges:
            self.read_ranges()
        return bool(effects)

    def new_state(self, group: int) -> LogState:
        return DiskLog(self.cluster.founding_start()).recover(group, self)

    def read_ranges(self) -> None:
        ranges, self.ranges = self.ranges, []
        for group, first_index, next_index, bytes_max, token in ranges:
            log = self.disk[group]
            first = first_index - log.start.index - 1
            if first < 0:
                self.driver.on_range(token, None)
                continue
            batches: list[StampedBatch] = []
            size_bytes = 0
            for batch in log.batches[first : next_index - log.start.index - 1]:
                if len(batches) >= 2 and size_bytes + batch.batch_bytes > bytes_max:
                    break
                size_bytes += batch.batch_bytes
                batches.append(batch)
            self.driver.on_range(token, batches)

    # --- What a test asks for -----------------------------------------------------------------------------------------

    def produce(
        self, reply: Any, batch: bytes, group: int = GROUP, *, acks: Acks = Acks.QUORUM, expected: int | None = None
    ) -> LogdError | None:
        error = self.driver.propose(group, proposal(reply, batch, acks=acks, expected_offset=expected))
        self.cluster.settle()
        return error

    def command(self, reply: Any, command: Command) -> LogdError | None:
        error = self.driver.propose_command(command, self.cluster.reading, reply)
        self.cluster.settle()
        return error

    def outcome(self, reply: Any) -> Any:
        (outcome,) = self.answers[reply]
        return outcome

    def produced(self, reply: Any) -> Produced:
        outcome = self.outcome(reply)
        assert isinstance(outcome, Produced), outcome
        return outcome

    def leads(self, group: int = GROUP) -> bool:
        return self.driver.is_leader(group)

    # --- Crashes ------------------------------------------------------------------------------------------------------

    def restart(self, **damage: Any) -> None:
        """The process ends and begins again from its disk; `damage` goes to `DiskLog.recover` of group 1."""
        self.under_way, self.hangs, self.effects, self.ranges = [], False, [], []
        meta = self.disk.get(META_GROUP)
        self.new_driver(MetaState.restore(meta.start.state) if meta is not None else MetaState())
        self.cluster.queue = [queued for queued in self.cluster.queue if self.name not in queued[:2]]
        for group, log in self.disk.items():
            self.driver.adopt(group)
            self.driver.open_group(log.recover(group, self, **damage if group == GROUP else {}))

    def wipe(self, admission: bytes, group: int = GROUP) -> None:
        """The directory is lost; the group is made anew, as one that has to be admitted."""
        self.disk[group] = DiskLog(self.cluster.founding_start(), None)
        self.restart(admission=admission)


class Cluster:
    """Drivers by name. Group 1 is led by nobody at first."""

    def __init__(
        self,
        names: Sequence[str] = NAMES,
        *,
        voters: Sequence[str] | None = None,
        groups: Sequence[int] = (GROUP,),
        options: DriverOptions | None = None,
        **options_of: DriverOptions,
    ) -> None:
        self.now_ms = 0
        self.founding = members(*(voters or names))
        # Frames on their way: sender, receiver, bytes.
        self.queue: list[tuple[str, str, bytes]] = []
        self.cut: set[tuple[str, str]] = set()
        self.frames_sent = 0
        self.nodes: dict[str, Node] = {}
        for number, name in enumerate(names, start=1):
            node = self.nodes[name] = Node(self, name, options_of.get(name, options or DriverOptions()), number)
            for group in groups:
                node.disk[group] = DiskLog(self.founding_start())
                node.driver.adopt(group)
                node.driver.open_group(node.disk[group].recover(group, node))

    def founding_start(self) -> Start:
        return start_after(None, self.founding)

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    @property
    def reading(self) -> ClockReading:
        return ClockReading(WALL_MS + self.now_ms, self.now_ms)

    # --- Time and the network -----------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Let everything happen that can: rounds become durable, frames arrive, effects are carried out."""
        for _ in range(10_000):
            if not self.step():
                return
        raise AssertionError("no rest")

    def step(self) -> bool:
        moved = False
        for node in self.nodes.values():
            moved |= node.take_round()
            moved |= self.send(node)
            moved |= node.durable()
            moved |= self.send(node)
            moved |= node.collect()
        queue, self.queue = self.queue, []
        for sender, to, frame in queue:
            self.deliver(sender, to, frame)
            moved = True
        return moved

    def send(self, node: Node) -> bool:
        frames = node.driver.take_frames()
        self.frames_sent += len(frames)
        self.queue += [(node.name, to, frame) for to, frame in frames if to in self.nodes]
        return bool(frames)

    def deliver(self, sender: str, to: str, frame: bytes) -> None:
        if (sender, to) not in self.cut:
            self.nodes[to].driver.on_frame(sender, frame)

    def tick(self, times: int = 1, *names: str) -> None:
        """Let time pass, for everybody or for these alone."""
        for _ in range(times):
            self.now_ms += TICK_MS
            for name, node in self.nodes.items():
                if not names or name in names:
                    node.driver.tick(self.reading)
            self.settle()

    def isolate(self, *names: str) -> None:
        """These hear each other, and the others nothing of them."""
        others = self.nodes.keys() - set(names)
        self.cut |= {(name, other) for name in names for other in others}
        self.cut |= {(other, name) for name in names for other in others}

    def heal(self) -> None:
        self.cut.clear()

    # --- Who leads ----------------------------------------------------------------------------------------------------

    def elect(self, name: str, group: int = GROUP) -> Node:
        """Let a node's time run until it leads, and everybody's until that is known.

        Whoever hears it does not believe in an older leader any more.
        """
        for _ in range(60):
            for other, node in self.nodes.items():
                if (name, other) not in self.cut and other != name and node.driver.knows(group):
                    node.driver.core(group).forget_leader()
            self.tick(1, name)
            if self.nodes[name].leads(group):
                self.tick(1)
                return self.nodes[name]
        raise AssertionError(f"{name} does not lead")

    def leader(self, group: int = GROUP, *, ticks_max: int = 100) -> Node:
        """Let time pass until one node leads in the highest term, and return it."""
        for _ in range(ticks_max):
            leaders = [node for node in self.nodes.values() if node.leads(group)]
            if leaders:
                newest = max(leaders, key=lambda node: node.driver.term(group))
                known = [node.driver.term(group) for node in self.nodes.values() if node.driver.knows(group)]
                if newest.driver.core(group).has_committed_in_term and newest.driver.term(group) == max(known):
                    return newest
            self.tick()
        raise AssertionError("nobody leads")

    # --- What holds ---------------------------------------------------------------------------------------------------

    def check(self, group: int = GROUP) -> None:
        """Logs agree byte for byte where both have a batch, and every batch is whole and in its place."""
        seen: dict[int, bytes] = {}
        for node in self.nodes.values():
            log = node.disk.get(group)
            if log is None:
                continue
            chain = log.start.chain
            for batch in log.batches:
                header = check_alone(batch.to_bytes())
                assert header.previous_chain == chain
                chain = header.chain
            commit = node.driver.commit_index(group)
            for batch in log.batches:
                if batch.header.index <= commit:
                    known = seen.setdefault(batch.header.index, batch.to_bytes())
                    assert known == batch.to_bytes(), f"entry {batch.header.index} differs on {node.name}"

    def check_equal(self, group: int = GROUP) -> None:
        """All logs end alike, and all producers' tables are what the log says."""
        self.check(group)
        (end,) = {node.disk[group].end for node in self.nodes.values() if group in node.disk}
        assert end.index > 0
        (_,) = {node.driver.producers_of(group) for node in self.nodes.values() if node.driver.knows(group)}

    def followers(self, group: int = GROUP) -> list[Node]:
        return [node for node in self.nodes.values() if node.driver.core(group).role is not Role.LEADER]
