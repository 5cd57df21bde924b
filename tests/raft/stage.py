"""A stage on which a few replicas talk: their disks, the messages between them, and the order in which things happen.

For: the scripts of `testdata`, and etcd's. Must not know: how a command is written, or a message printed: a `Notation`
does that. The one idea: nothing happens by itself. A message lies in the pool until it is delivered or dropped, a write
in its replica's queue until it is processed, and all that is said on the way is the transcript.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Protocol

from logd.raft.group import Group
from logd.raft.types import (
    EMPTY_LOG,
    INITIAL_HARD_STATE,
    NOBODY,
    Configuration,
    Entry,
    EntryId,
    GroupOptions,
    HardState,
    Message,
    MessageType,
    ProposalDropped,
    Ready,
    Recovered,
    SafetyViolation,
    Snapshot,
)

STEPS_MAX = 1000
"""A script in which replicas do not come to rest within so many rounds never would."""


class NoChance:
    """Nothing is left to chance: everybody waits for exactly `election_ticks`, unless a script says otherwise."""

    def randrange(self, stop: int, /) -> int:
        return 0


@dataclass(slots=True)
class Disk:
    """What is durable of one replica."""

    snapshot: Snapshot = EMPTY_LOG
    hard_state: HardState = INITIAL_HARD_STATE
    entries: list[Entry] = field(default_factory=list)
    # Invariant: entries[0].index == snapshot.index + 1, and they are consecutive.

    @property
    def first_index(self) -> int:
        return self.snapshot.index + 1

    @property
    def last(self) -> EntryId:
        return self.entries[-1].id if self.entries else self.snapshot.id

    def term_at(self, index: int) -> int:
        return self.snapshot.term if index == self.snapshot.index else self.entries[index - self.first_index].term

    def write(self, hard_state: HardState | None, snapshot: Snapshot | None, entries: Sequence[Entry]) -> None:
        """One round."""
        if hard_state is not None:
            self.hard_state = hard_state
        if snapshot is not None:
            self.snapshot = snapshot
            self.entries.clear()
        if entries:
            assert entries[0].index <= self.last.index + 1, "a gap would be written"
            del self.entries[entries[0].index - self.first_index :]
            self.entries.extend(entries)

    def compact(self, snapshot: Snapshot) -> None:
        del self.entries[: snapshot.index - self.snapshot.index]
        self.snapshot = snapshot

    def fill(self, message: Message) -> Message:
        """Read what a message asks its shell to read."""
        if message.range is None:
            return message
        first_index, last_index, bytes_max = message.range
        entries: list[Entry] = []
        for entry in self.entries[first_index - self.first_index : last_index + 1 - self.first_index]:
            bytes_max -= entry.size_bytes
            if entries and bytes_max < 0:
                break
            entries.append(entry)
        log_term = self.term_at(first_index - 1)
        return message._replace(index=first_index - 1, log_term=log_term, entries=tuple(entries), range=None)


@dataclass(slots=True)
class Replica:
    """One replica with its disk, what its disk still has to do, and what it would have to apply."""

    group: Group
    options: GroupOptions
    disk: Disk
    applied: Snapshot
    """What its state machine would give another one: everything applied so far."""
    configurations: dict[int, Configuration] = field(default_factory=dict)
    """Which one was in force from which index on."""
    writes: list[Message] = field(default_factory=list)
    """STORAGE_APPEND messages, oldest first."""
    applies: list[Message] = field(default_factory=list)
    """STORAGE_APPLY messages, oldest first."""
    hard_state: HardState = INITIAL_HARD_STATE
    """The last that the shell was told to write."""
    handed_out: int = 0
    """The last index that the shell was told to write, as the shell counts."""
    is_running: bool = True

    @property
    def name(self) -> str:
        return self.group.node


class Notation(Protocol):
    """How a transcript is written."""

    def ready(self, replica: Replica, ready: Ready, messages: Sequence[Message]) -> Iterable[str]:
        """What a replica wants done; `messages` is all that it sends, with what goes to its disk as messages, too."""
        ...

    def message(self, message: Message) -> Iterable[str]: ...

    def dropped(self, message: Message) -> Iterable[str]: ...

    def entry(self, entry: Entry) -> str: ...

    def error(self, error: Exception) -> str: ...

    def heading(self, name: str, doing: str) -> str:
        """What stands above what one replica does; `doing` is one of DOING."""
        ...

    def processing(self, work: Message) -> Iterable[str]:
        """A disk, or a state machine, did `work`."""
        ...


READY, DELIVER, WRITE, APPLY = DOING = ("ready", "deliver", "write", "apply")


class Stage:
    """The replicas and the messages between them. Argument: `notation`, in which the transcript is written."""

    def __init__(self, notation: Notation) -> None:
        self.notation = notation
        self.replicas: dict[str, Replica] = {}
        self.pool: list[Message] = []
        """What was sent and is neither delivered nor dropped, oldest first."""
        self.is_quiet = False
        self._lines: list[str] = []
        self._indent = ""

    # --- The transcript -----------------------------------------------------------------------------------------------

    def say(self, *lines: str) -> None:
        if not self.is_quiet:
            self._lines.extend(self._indent + line for line in lines)

    def complain(self, error: Exception) -> None:
        """Say what went wrong, also where it is quiet."""
        self._lines.append(self._indent + self.notation.error(error))

    def take_lines(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines

    @contextmanager
    def under(self, heading: str) -> Iterator[None]:
        """What is said inside stands indented below `heading`."""
        self.say(heading)
        self._indent += "  "
        try:
            yield
        finally:
            self._indent = self._indent[:-2]

    # --- Who is there -------------------------------------------------------------------------------------------------

    def add(self, name: str, options: GroupOptions, snapshot: Snapshot, term: int) -> Replica:
        """A replica whose log begins behind `snapshot`, and that has not voted in `term`."""
        disk = Disk(snapshot, HardState(term, NOBODY, snapshot.index))
        return self._start(name, options, disk, Recovered(snapshot, hard_state=disk.hard_state))

    def _start(self, name: str, options: GroupOptions, disk: Disk, recovered: Recovered) -> Replica:
        group = Group(name, options, recovered, self.chance())
        replica = Replica(group, options, disk, disk.snapshot, hard_state=disk.hard_state, handed_out=disk.last.index)
        replica.configurations[disk.snapshot.index] = disk.snapshot.configuration
        self.replicas[name] = replica
        return replica

    def chance(self) -> NoChance:
        return NoChance()

    def restart(self, name: str, change: Callable[[Recovered], Recovered] = lambda recovered: recovered) -> Replica:
        """What was not durable is lost, what was applied is applied again; `change` adds what the disk did to it."""
        old = self.replicas[name]
        recovered = change(
            Recovered(old.disk.snapshot, entries=tuple(old.disk.entries), hard_state=old.disk.hard_state)
        )
        self.pool = [message for message in self.pool if message.to != name or message.sender not in (name, NOBODY)]
        old.disk.snapshot = recovered.snapshot
        old.disk.entries = list(recovered.entries)
        return self._start(name, old.options, old.disk, recovered)

    # --- What happens -------------------------------------------------------------------------------------------------

    def ask(self, replica: Replica, action: Callable[[], object]) -> None:
        """Do something to a replica; what it raises is said."""
        if not replica.is_running:
            self.say("is stopped")
            return
        try:
            action()
        except ProposalDropped as dropped:
            self.complain(dropped)
        except SafetyViolation as violation:
            replica.is_running = False
            self.complain(violation)

    def has_ready(self, replica: Replica) -> bool:
        return replica.is_running and replica.group.has_ready

    def process_ready(self, replica: Replica) -> None:
        """Take one Ready and hand it on to the pool and the queues; with synchronous storage, do it all at once."""
        ready = self.take_ready(replica)
        messages = [*ready.messages, *self.storage_messages(replica, ready)]
        self.say(*self.notation.ready(replica, ready, messages))
        self.perform(replica, ready, messages)

    def take_ready(self, replica: Replica) -> Ready:
        ready = replica.group.take_ready()
        for entry in ready.append:
            self.stamp(replica, entry)
        self._check_truncation(replica, ready)
        return ready

    def perform(self, replica: Replica, ready: Ready, messages: Sequence[Message]) -> None:
        """Do what a Ready asks for; `messages` is what it sends, with what is for the disk."""
        replica.hard_state = ready.hard_state or replica.hard_state
        if not replica.options.asynchronous_storage:
            replica.disk.write(ready.hard_state, ready.snapshot, ready.append)
            self._on_snapshot(replica, ready.snapshot)
            self._apply(replica, ready.committed)
        for message in messages:
            if message.type is MessageType.STORAGE_APPEND:
                replica.writes.append(message)
            elif message.type is MessageType.STORAGE_APPLY:
                replica.applies.append(message)
            else:
                self.pool.append(replica.disk.fill(message))
        if not replica.options.asynchronous_storage:
            self.ask(replica, replica.group.advance)

    def stamp(self, replica: Replica, entry: Entry) -> None:
        """What a driver does to an entry in the first Ready that shows it."""

    def _check_truncation(self, replica: Replica, ready: Ready) -> None:
        """The shell is told of every replaced suffix, and of none besides."""
        if ready.snapshot is not None:
            replica.handed_out = ready.snapshot.index
        if not ready.append:
            assert ready.truncate_from is None
            return
        first_index = ready.append[0].index
        assert ready.truncate_from == (first_index if first_index <= replica.handed_out else None)
        replica.handed_out = ready.append[-1].index

    def storage_messages(self, replica: Replica, ready: Ready) -> Iterator[Message]:
        """A Ready's part for the disk and the state machine, as messages; synchronously, what leaves after both."""
        if not replica.options.asynchronous_storage:
            yield from ready.responses
            return
        if ready.append or ready.hard_state or ready.snapshot or ready.responses:
            term, vote, commit = ready.hard_state or INITIAL_HARD_STATE
            yield Message(
                MessageType.STORAGE_APPEND,
                sender=replica.name,
                term=term,
                vote=vote,
                commit=commit,
                entries=ready.append,
                snapshot=ready.snapshot,
                responses=ready.responses,
            )
        if ready.committed:
            applied = Message(MessageType.STORAGE_APPLY_RESPONSE, to=replica.name, entries=ready.committed)
            applied = applied._replace(index=ready.committed[-1].index)
            yield Message(MessageType.STORAGE_APPLY, sender=replica.name, entries=ready.committed, responses=(applied,))

    def process_write(self, replica: Replica) -> bool:
        """Let the disk do the oldest thing it was asked for. Returns whether there was any."""
        if not replica.writes:
            return False
        work = replica.writes.pop(0)
        hard_state = HardState(work.term, work.vote, work.commit) if work.term else None
        replica.disk.write(hard_state, work.snapshot, work.entries)
        self.say(*self.notation.processing(work))
        self._on_snapshot(replica, work.snapshot)
        self.pool.extend(work.responses)
        return True

    def process_apply(self, replica: Replica) -> bool:
        """Let the state machine do the oldest thing it was asked for. Returns whether there was any."""
        if not replica.applies:
            return False
        work = replica.applies.pop(0)
        self.say(*self.notation.processing(work))
        self._apply(replica, work.entries)
        self.pool.extend(work.responses)
        return True

    def _on_snapshot(self, replica: Replica, snapshot: Snapshot | None) -> None:
        if snapshot is not None:
            replica.applied = snapshot
            replica.configurations = {snapshot.index: snapshot.configuration}

    def _apply(self, replica: Replica, entries: Sequence[Entry]) -> None:
        for entry in entries:
            configuration = replica.applied.configuration
            if entry.change is not None:
                configuration = replica.group.apply_change(entry.change)
                replica.configurations[entry.index] = configuration
            replica.applied = Snapshot(entry.index, entry.term, configuration, entry.chain)
            if not replica.options.snapshot_is_start:
                replica.group.offer_snapshot(replica.applied)

    def compact(self, replica: Replica, index: int) -> None:
        """Give up the log up to and including `index`, which is applied."""
        configuration = max((item for item in replica.configurations.items() if item[0] <= index), key=itemgetter(0))[1]
        chain = replica.group.log.chain_at(index)
        snapshot = Snapshot(index, replica.disk.term_at(index), configuration, chain)
        replica.group.compact(snapshot)
        replica.disk.compact(snapshot)

    # --- Messages -----------------------------------------------------------------------------------------------------

    def messages_to(
        self, name: str, wanted: MessageType | None = None, *, only_from_others: bool = False
    ) -> list[Message]:
        return [
            message
            for message in self.pool
            if message.to == name
            and (wanted is None or message.type is wanted)
            and not (only_from_others and message.sender in (name, NOBODY))
        ]

    def _take(self, messages: Sequence[Message]) -> None:
        taken = {id(message) for message in messages}
        self.pool = [message for message in self.pool if id(message) not in taken]

    def deliver(self, name: str, wanted: MessageType | None = None) -> int:
        """Deliver what lies there for `name` now. Returns how many messages that was."""
        messages = self.messages_to(name, wanted)
        self._take(messages)
        for message in messages:
            self.say(*self.notation.message(message))
            replica = self.replicas[name]
            self.ask(replica, lambda replica=replica, message=message: self.step(replica, message))  # type: ignore[misc]  # mypy does not infer lambdas with defaults
        return len(messages)

    def step(self, replica: Replica, message: Message) -> None:
        replica.group.step(message)

    def drop(self, name: str, wanted: MessageType | None = None) -> int:
        """Lose what lies there for `name` from others. Returns how many messages that was."""
        messages = self.messages_to(name, wanted, only_from_others=True)
        self._take(messages)
        for message in messages:
            self.say(*self.notation.dropped(message))
        return len(messages)

    def stabilize(self, names: Sequence[str] = ()) -> None:
        """Let these replicas (by default, all) do whatever there is to do, until there is nothing left."""
        replicas = [self.replicas[name] for name in names or self.replicas]
        for _ in range(STEPS_MAX):
            # One kind after the other over all replicas, as a network in step would.
            if not any([self._ready_round(replicas), self._deliver_round(replicas), self._work_rounds(replicas)]):
                return
        raise AssertionError(f"no rest after {STEPS_MAX} rounds")

    def _ready_round(self, replicas: Sequence[Replica]) -> bool:
        is_busy = False
        for replica in replicas:
            if self.has_ready(replica):
                is_busy = True
                with self.under(self.notation.heading(replica.name, READY)):
                    self.process_ready(replica)
        return is_busy

    def _deliver_round(self, replicas: Sequence[Replica]) -> bool:
        is_busy = False
        for replica in replicas:
            if self.messages_to(replica.name):
                is_busy = True
                with self.under(self.notation.heading(replica.name, DELIVER)):
                    self.deliver(replica.name)
        return is_busy

    def _work_rounds(self, replicas: Sequence[Replica]) -> bool:
        is_busy = False
        for doing, process in ((WRITE, self.process_write), (APPLY, self.process_apply)):
            for replica in replicas:
                if replica.writes if doing is WRITE else replica.applies:
                    is_busy = True
                    self.say(self.notation.heading(replica.name, doing))
                    self._indent += "  "
                    while process(replica):
                        pass
                    self._indent = self._indent[:-2]
        return is_busy


def lost_from(index: int) -> Callable[[Recovered], Recovered]:
    """A damage: the entries from `index` on cannot be read any more; what was promised is known."""

    def change(recovered: Recovered) -> Recovered:
        entries = [entry for entry in recovered.entries if entry.index < index]
        floor = recovered.entries[-1].id if recovered.entries else recovered.snapshot.id
        return replace(recovered, entries=tuple(entries), floor=floor)

    return change


def lost_hard_state(admission: bytes) -> Callable[[Recovered], Recovered]:
    """A damage: nobody knows any more what this replica voted for."""
    return lambda recovered: replace(recovered, hard_state=None, admission=admission)


def lost_everything(admission: bytes) -> Callable[[Recovered], Recovered]:
    """A damage: everything is gone."""
    return lambda recovered: Recovered(EMPTY_LOG, hard_state=None, admission=admission)


def forged(index: int) -> Callable[[Recovered], Recovered]:
    """A damage that nothing on the disk shows: the entry is another than the one that was written."""

    def change(recovered: Recovered) -> Recovered:
        entries = [
            replace(entry, chain=bytes(len(entry.chain))) if entry.index == index else entry
            for entry in recovered.entries
        ]
        return replace(recovered, entries=tuple(entries))

    return change
