"""A few replicas with disks, and a network between them.

For: `tests/raft`. Must not know: the driver, or bytes. The one idea: a disk is what was written before the last crash,
in order; a message is a value that can be held back, repeated or lost; nothing happens unless the test lets it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from logd.raft.group import Chance, Group
from logd.raft.types import (
    EMPTY_LOG,
    INITIAL_HARD_STATE,
    NOBODY,
    Entry,
    GroupOptions,
    HardState,
    Message,
    ReadState,
    Ready,
    Recovered,
    Snapshot,
)
from tests.raft.support import Fixed, apply, entries, members


@dataclass(slots=True)
class Disk:
    """What is durable of one replica."""

    hard_state: HardState | None = INITIAL_HARD_STATE
    snapshot: Snapshot = EMPTY_LOG
    entries: list[Entry] = field(default_factory=list)
    # Invariant: entries[0].index == snapshot.index + 1, and they are consecutive.

    def write(self, ready: Ready) -> None:
        self.hard_state = ready.hard_state or self.hard_state
        if ready.snapshot is not None:
            self.snapshot = ready.snapshot
            self.entries.clear()
        if ready.append:
            kept = ready.append[0].index - self.snapshot.index - 1
            assert kept <= len(self.entries), "a gap would be written"
            assert (ready.truncate_from is None) or ready.truncate_from == ready.append[0].index
            self.entries[kept:] = ready.append

    def fill(self, message: Message) -> Message | None:
        """Read what a message asks its shell to read, two entries at a time; None if it was given up meanwhile."""
        if message.range is None:
            return message
        first = message.range.first_index - self.snapshot.index - 1
        if first < 0:
            return None
        found = self.entries[first : min(first + 2, message.range.last_index - self.snapshot.index)]
        log_term = self.entries[first - 1].term if first else self.snapshot.term
        return message._replace(log_term=log_term, entries=tuple(found), range=None)


class Network:
    """Replicas by name, their disks, and what is on its way between them."""

    def __init__(
        self, voters: str = "abc", *, learners: str = "", logs: dict[str, Sequence[int]] | None = None, **options: Any
    ) -> None:
        self.configuration = members(voters, learners)
        self.options = GroupOptions(**options)
        self.chance: dict[str, Chance] = {}
        self.disks: dict[str, Disk] = {}
        self.groups: dict[str, Group] = {}
        self.pool: list[Message] = []
        """What was sent and did not arrive."""
        self.writes: dict[str, list[Ready]] = {}
        """What was handed to a disk and is not durable."""
        self.cut: set[tuple[str, str]] = set()
        """Pairs (from, to) between which everything is lost."""
        self.read_states: dict[str, list[ReadState]] = {}
        for name in voters + learners:
            log = entries(*(logs or {}).get(name, ()))
            self.disks[name] = Disk(
                HardState(log[-1].term, NOBODY, 0) if log else INITIAL_HARD_STATE, entries=list(log)
            )
            self.recover(name)

    def __getitem__(self, name: str) -> Group:
        return self.groups[name]

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups.values())

    # --- One thing at a time ------------------------------------------------------------------------------------------

    def take(self, name: str) -> None:
        """Take one Ready: what may leave at once leaves; the rest waits for the disk."""
        ready = self.groups[name].take_ready()
        self.send(ready.messages)
        self.read_states[name].extend(ready.read_states)
        self.writes[name].append(ready)
        apply(self.groups[name], ready.committed)

    def write(self, name: str) -> None:
        """The oldest write is durable, and what waited for it leaves."""
        ready = self.writes[name].pop(0)
        self.disks[name].write(ready)
        self.send(ready.responses)

    def send(self, messages: Iterable[Message]) -> None:
        for message in messages:
            # What a replica's own disk answers has no sender.
            sender = message.sender or message.to
            filled = self.disks[sender].fill(message)
            if (sender, message.to) not in self.cut and message.to in self.groups and filled is not None:
                # Whoever receives an entry has one of its own.
                filled = filled._replace(sender=sender)
                self.pool.append(filled._replace(entries=tuple(replace(entry) for entry in filled.entries)))

    def crash(self, name: str) -> None:
        """Only what is durable is left."""
        self.groups.pop(name)
        self.writes.pop(name)
        self.pool = [message for message in self.pool if message.sender != name or message.to != name]

    def recover(self, name: str, damage: Callable[[Recovered], Recovered] = lambda recovered: recovered) -> None:
        disk = self.disks[name]
        configuration = disk.snapshot.configuration if disk.snapshot.index else self.configuration
        state = damage(Recovered(disk.snapshot, None, b"", tuple(disk.entries), disk.hard_state, configuration))
        disk.snapshot, disk.entries, disk.hard_state = state.snapshot, list(state.entries), state.hard_state
        self.groups[name] = Group(name, self.options, state, self.chance.get(name) or Fixed())
        self.writes[name], self.read_states[name] = [], []

    # --- Until nothing is left to do ----------------------------------------------------------------------------------

    def settle(self) -> None:
        """Let everybody do everything, and everything arrive that is not cut."""
        for _ in range(1000):
            for name, group in self.groups.items():
                while group.has_ready or self.writes[name]:
                    if group.has_ready:
                        self.take(name)
                    else:
                        self.write(name)
            if not self.pool:
                return
            pool, self.pool = self.pool, []
            for message in pool:
                if message.to in self.groups:
                    self.groups[message.to].step(message)
        raise AssertionError("no rest")

    def elect(self, name: str) -> Group:
        self.groups[name].campaign()
        self.settle()
        return self.groups[name]

    def propose(self, name: str, data: Any = "x", size_bytes: int = 0) -> None:
        self.groups[name].propose(data, size_bytes)
        self.settle()

    def tick(self, *names: str, times: int = 1) -> None:
        for _ in range(times):
            for name in names:
                self.groups[name].tick()
                self.settle()

    def isolate(self, name: str) -> None:
        self.cut |= {(name, other) for other in self.disks} | {(other, name) for other in self.disks if other != name}
        self.cut.discard((name, name))

    def heal(self) -> None:
        self.cut.clear()

    def compact(self, name: str, index: int) -> None:
        """Let the log of a replica begin behind `index`, which is applied."""
        group, disk = self.groups[name], self.disks[name]
        snapshot = Snapshot(index, disk.entries[index - disk.snapshot.index - 1].term, group.configuration)
        del disk.entries[: index - disk.snapshot.index]
        disk.snapshot = snapshot
        group.compact(snapshot)
