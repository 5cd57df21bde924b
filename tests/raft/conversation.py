"""Our own scripts: commands to a few replicas, and what they answer, in the words of the glossary.

For: `test_scripts`, and whoever writes a script in `testdata`. Must not know: how a script is laid out (`datadriven`).
The one idea: a script is read from top to bottom and understood without the code, so nothing is abbreviated, and
`index@term` is an entry.

The commands (`1` is a replica; `replicas` is one or more of them, none for all):

    add-nodes <count> [voters=(1,2)] [learners=(3)] [index=10] [<option>=<value>]   options are those of GroupOptions
    propose 1 <data> [size=<bytes>]
    propose-change 1 [transition=auto|implicit|explicit] [admission=<word>]
    add-voter 4
    remove 2                                             one step a line; without steps: leave the joint configuration
    campaign 1          forget-leader 1          transfer from=1 to=2          read-index 1 <word>
    tick 1 [count=<ticks>]                               set-election-ticks 1 <ticks>
    report-unreachable 1 2                               1 is told that its last message to 2 was lost
    report-snapshot 1 2 delivered=yes|no
    process-ready replicas                               take one Ready each, and do what it asks for
    write replicas      apply replicas                   with asynchronous storage: the oldest write; what was committed
    deliver replicas [type=<type>] [drop=(2,3)]          messages to these; lose those to the ones in `drop`
    stabilize replicas                                   all of that, as long as there is something to do
    compact 1 <index>                                    give up the log up to there
    restart 1 [lost-from=<index> | forged=<index> | lost=hard-state | lost=everything] [admission=<word>]
    state               every replica                    status 1            what a leader knows of the others
    log 1               what is durable
    quietly
    <command>                                            do these, each on one line, and say only what goes wrong
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from hashlib import sha256
from typing import Any, Final

from logd.raft.group import Group
from logd.raft.types import (
    CAMPAIGN_TRANSFER,
    EMPTY_LOG,
    ChangeKind,
    ChangeStep,
    Configuration,
    ConfigurationChange,
    Entry,
    EntryId,
    EntryKind,
    GroupOptions,
    Message,
    MessageType,
    ReadMode,
    Ready,
    Role,
    SafetyViolation,
    Snapshot,
    Transition,
)
from tests.raft.datadriven import SEPARATOR, Case, MalformedScript, UnknownDirective, parse
from tests.raft.stage import (
    APPLY,
    DELIVER,
    READY,
    WRITE,
    Replica,
    Stage,
    forged,
    lost_everything,
    lost_from,
    lost_hard_state,
)

OPTIONS: Final = GroupOptions(election_ticks=3, check_quorum=False, pre_vote=False, asynchronous_storage=False)
"""As the daemon's, but the simplest protocol that there is: a script says what it wants besides."""

DOING: Final = {READY: "is ready", DELIVER: "receives", WRITE: "writes", APPLY: "applies"}

TYPES: Final = {type_.value.replace(" ", "-"): type_ for type_ in MessageType}

FOR_THE_SHELL: Final = {MessageType.STORAGE_APPEND, MessageType.STORAGE_APPLY}


def option(name: str, value: str) -> dict[str, Any]:
    """One option as a script writes it."""
    name = name.replace("-", "_")
    kind = {field.name: field.type for field in fields(GroupOptions)}[name]
    if kind is bool:
        return {name: {"yes": True, "no": False}[value]}
    return {name: ReadMode(value) if kind is ReadMode else int(value)}


def listed(names: Sequence[str] | frozenset[str]) -> str:
    return "(" + " ".join(sorted(names)) + ")"


def describe_id(entry: EntryId) -> str:
    return f"{entry.index}@{entry.term}"


def describe_configuration(configuration: Configuration) -> str:
    parts = [f"voters {listed(configuration.voters)}"]
    if configuration.is_joint:
        parts.append(f"outgoing {listed(configuration.voters_outgoing)}")
    if configuration.learners:
        parts.append(f"learners {listed(configuration.learners)}")
    if configuration.learners_next:
        parts.append(f"next learners {listed(configuration.learners_next)}")
    return " ".join(parts) + (" left by itself" if configuration.auto_leave else "")


def describe_change(change: ConfigurationChange) -> str:
    words = ", ".join(f"{step.kind.value} {step.node}" for step in change.steps) or "leave joint"
    transition = "" if change.transition is Transition.AUTO else f" {change.transition.value}"
    return f"change{transition}: {words}" + (f", admission {change.admission.decode()}" if change.admission else "")


class PlainNotation:
    """The words of our scripts."""

    def entry(self, entry: Entry) -> str:
        if entry.change is not None:
            text = describe_change(entry.change)
        elif entry.kind is EntryKind.NO_OP:
            text = "no-op"
        else:
            text = str(entry.data)
        return f"{entry.index}@{entry.term} {text}"

    def message(self, message: Message) -> Iterator[str]:
        parts = [message.type.value, *self._body(message)]
        if message.term:
            parts.insert(1, f"term {message.term}")
        if message.is_damaged:
            parts.append(f"damaged, ends at {message.last_index}")
        if message.admission:
            parts.append(f"not admitted, word {message.admission.decode()}, ends at {message.last_index}")
        line = f"{message.sender or 'disk'} -> {message.to}: " + ", ".join(parts)
        if message.entries and message.type is not MessageType.STORAGE_APPLY_RESPONSE:
            line += ": " + "; ".join(map(self.entry, message.entries))
        yield line

    def _body(self, message: Message) -> Iterator[str]:
        at = describe_id(EntryId(message.index, message.log_term))
        match message.type:
            case MessageType.PRE_VOTE_REQUEST | MessageType.VOTE_REQUEST:
                yield f"last {at}"
                if message.context == CAMPAIGN_TRANSFER:
                    yield "by transfer"
            case MessageType.PRE_VOTE_RESPONSE | MessageType.VOTE_RESPONSE:
                yield "no" if message.reject else "yes"
            case MessageType.APPEND:
                yield from self._append(message)
            case MessageType.APPEND_RESPONSE if message.reject:
                yield f"no {message.index}"
                yield f"perhaps {describe_id(EntryId(message.reject_hint, message.log_term))}"
            case MessageType.APPEND_RESPONSE:
                yield f"has {message.index}"
            case MessageType.STORAGE_APPEND_RESPONSE if message.index:
                yield f"log to {at}"
            case MessageType.STORAGE_APPLY_RESPONSE:
                yield f"to {message.index}"
            case _:
                yield from self._read(message)
        if message.snapshot is not None:
            yield self._snapshot(message.snapshot)

    def _append(self, message: Message) -> Iterator[str]:
        at = describe_id(EntryId(message.index, message.log_term))
        yield f"after {at}" if message.log_term else f"after {message.index}"
        yield f"commit {message.commit}"
        if message.range is not None:
            first_index, last_index, bytes_max = message.range
            yield f"entries {first_index} to {last_index} from disk, {bytes_max} bytes at most"

    def _read(self, message: Message) -> Iterator[str]:
        match message.type:
            case MessageType.HEARTBEAT | MessageType.HEARTBEAT_RESPONSE:
                yield f"commit {message.commit}"
                if message.context:
                    yield f"read {int.from_bytes(message.context, 'big')}"
            case MessageType.READ_INDEX:
                yield message.context.decode()
            case MessageType.READ_INDEX_RESPONSE:
                yield f"index {message.index}"
                yield message.context.decode()
            case _:
                pass

    def _snapshot(self, snapshot: Snapshot) -> str:
        return f"{describe_id(snapshot.id)} {describe_configuration(snapshot.configuration)}"

    def dropped(self, message: Message) -> Iterator[str]:
        yield from (f"lost: {line}" for line in self.message(message))

    def error(self, error: Exception) -> str:
        return f"{'stops' if isinstance(error, SafetyViolation) else 'dropped'}: {error}"

    def heading(self, name: str, doing: str) -> str:
        return f"> {name} {DOING[doing]}"

    def ready(self, replica: Replica, ready: Ready, messages: Sequence[Message]) -> Iterator[str]:
        lines = [*self._to_do(replica, ready), *self._to_send(replica, ready, messages)]
        yield from lines or ["nothing"]

    def _to_do(self, replica: Replica, ready: Ready) -> Iterator[str]:
        if ready.soft_state is not None:
            leader, role = ready.soft_state
            yield f"now {role.value}" + ("" if leader == replica.name else f", leader {leader or 'unknown'}")
        if ready.hard_state is not None:
            term, vote, commit = ready.hard_state
            yield f"hard state: term {term}, vote {vote or 'none'}, commit {commit}"
        if ready.snapshot is not None:
            yield f"begin behind {self._snapshot(ready.snapshot)}"
        if ready.truncate_from is not None:
            yield f"truncate from {ready.truncate_from}"
        for entry in ready.append:
            yield f"append {self.entry(entry)}"
        for entry in ready.committed:
            yield f"commit {self.entry(entry)}"
        for state in ready.read_states:
            yield f"read {state.context.decode()} at {state.index}"
        if ready.must_sync:
            yield "sync"

    def _to_send(self, replica: Replica, ready: Ready, messages: Sequence[Message]) -> Iterator[str]:
        for message in messages:
            if message.type not in FOR_THE_SHELL:
                yield from (f"send {line}" for line in self.message(message))
        if replica.options.asynchronous_storage:
            for message in ready.responses:
                yield from (f"once written {line}" for line in self.message(message))

    def processing(self, work: Message) -> Iterator[str]:
        if work.term:
            yield f"hard state: term {work.term}, vote {work.vote or 'none'}, commit {work.commit}"
        if work.snapshot is not None:
            yield f"begin behind {self._snapshot(work.snapshot)}"
        for entry in work.entries:
            yield self.entry(entry)
        for response in work.responses:
            yield from (f"send {line}" for line in self.message(response))


class ChainedStage(Stage):
    """A stage whose drivers chain their entries, as the daemon's do."""

    def stamp(self, replica: Replica, entry: Entry) -> None:
        if not entry.chain:
            previous = replica.group.log.chain_at(entry.index - 1)
            entry.chain = sha256(previous + self.notation.entry(entry).encode()).digest()


class Conversation:
    """One script's run: `handle` answers a case with a transcript."""

    def __init__(self) -> None:
        self.stage = ChainedStage(PlainNotation())
        self.commands: dict[str, Callable[[Case], None]] = {
            "add-nodes": self.add_nodes,
            "propose": self.propose,
            "propose-change": self.propose_change,
            "campaign": lambda case: self.act(case, Group.campaign),
            "forget-leader": lambda case: self.act(case, Group.forget_leader),
            "transfer": self.transfer,
            "read-index": self.read_index,
            "tick": self.tick,
            "set-election-ticks": self.set_election_ticks,
            "report-unreachable": self.report_unreachable,
            "report-snapshot": self.report_snapshot,
            "process-ready": lambda case: self.each(case, READY, self.stage.process_ready),
            "write": lambda case: self.each(case, WRITE, self.stage.process_write),
            "apply": lambda case: self.each(case, APPLY, self.stage.process_apply),
            "deliver": self.deliver,
            "stabilize": lambda case: self.stage.stabilize(self.names(case)),
            "compact": self.compact,
            "restart": self.restart,
            "state": self.state,
            "status": self.status,
            "log": self.log,
            "quietly": self.quietly,
        }

    def handle(self, case: Case) -> str:
        """Do what the script says. Raises UnknownDirective, and MalformedScript for an argument that is not known."""
        self.run(case)
        return "\n".join(self.stage.take_lines()) or "ok"

    def run(self, case: Case) -> None:
        command = self.commands.get(case.directive)
        if command is None:
            raise UnknownDirective(case)
        command(case)

    # --- Reading a case -----------------------------------------------------------------------------------------------

    def names(self, case: Case, *keys: str) -> list[str]:
        """The replicas that a case names; `keys` are the arguments that it may have besides."""
        if unknown := case.keys - set(keys):
            raise MalformedScript(f"{case.position}: {case.directive} knows no {', '.join(sorted(unknown))}")
        return list(case.positional)

    def replica(self, case: Case, *keys: str) -> Replica:
        return self.stage.replicas[self.names(case, *keys)[0]]

    def act(self, case: Case, action: Callable[[Group], object]) -> None:
        replica = self.replica(case)
        self.stage.ask(replica, lambda: action(replica.group))

    def each(self, case: Case, doing: str, process: Callable[[Replica], object]) -> None:
        names = self.names(case)
        for name in names or self.stage.replicas:
            replica = self.stage.replicas[name]
            if len(names) == 1:
                process(replica)
            else:
                with self.stage.under(self.stage.notation.heading(name, doing)):
                    process(replica)

    # --- Commands -----------------------------------------------------------------------------------------------------

    def add_nodes(self, case: Case) -> None:
        options, snapshot = OPTIONS, EMPTY_LOG
        for key in case.keys - {"voters", "learners", "index"}:
            options = replace(options, **option(key, case.value(key)))
        if "index" in case.keys:
            voters, learners = case.values("voters") or (), case.values("learners") or ()
            configuration = Configuration(frozenset(voters), learners=frozenset(learners))
            snapshot = Snapshot(int(case.value("index")), 1, configuration)
        for _ in range(int(case.positional[0])):
            self.stage.add(str(len(self.stage.replicas) + 1), options, snapshot, snapshot.term)

    def propose(self, case: Case) -> None:
        replica, data = self.replica(case, "size"), case.positional[1]
        size_bytes = int(case.value("size", str(len(data))))
        self.stage.ask(replica, lambda: replica.group.propose(data, size_bytes))

    def propose_change(self, case: Case) -> None:
        replica = self.replica(case, "transition", "admission")
        steps = tuple(
            ChangeStep(ChangeKind(kind), node) for kind, node in (line.split() for line in case.input.splitlines())
        )
        transition = Transition(case.value("transition", "auto"))
        change = ConfigurationChange(steps, transition, case.value("admission", "").encode())
        self.stage.ask(replica, lambda: replica.group.propose_change(change))

    def transfer(self, case: Case) -> None:
        replica = self.stage.replicas[case.value("from")]
        self.stage.ask(replica, lambda: replica.group.transfer_leader(case.value("to")))

    def read_index(self, case: Case) -> None:
        self.act(case, lambda group: group.read_index(case.positional[1].encode()))

    def tick(self, case: Case) -> None:
        replica = self.replica(case, "count")
        for _ in range(int(case.value("count", "1"))):
            self.stage.ask(replica, replica.group.tick)

    def set_election_ticks(self, case: Case) -> None:
        self.replica(case).group.randomized_election_ticks = int(case.positional[1])

    def report_unreachable(self, case: Case) -> None:
        self.act(case, lambda group: group.report_unreachable(case.positional[1]))

    def report_snapshot(self, case: Case) -> None:
        replica = self.replica(case, "delivered")
        delivered = {"yes": True, "no": False}[case.value("delivered")]
        self.stage.ask(replica, lambda: replica.group.report_snapshot(case.positional[1], delivered=delivered))

    def deliver(self, case: Case) -> None:
        names, wanted = self.names(case, "type", "drop"), TYPES[case.value("type")] if "type" in case.keys else None
        count = sum(self.stage.deliver(name, wanted) for name in names)
        count += sum(self.stage.drop(name, wanted) for name in case.values("drop") or ())
        if not count:
            self.stage.say("no messages")

    def compact(self, case: Case) -> None:
        self.stage.compact(self.replica(case), int(case.positional[1]))

    def restart(self, case: Case) -> None:
        replica = self.replica(case, "forged", "lost", "lost-from", "admission")
        admission = case.value("admission", "").encode()
        if "forged" in case.keys:
            self.stage.restart(replica.name, forged(int(case.value("forged"))))
        elif "lost-from" in case.keys:
            self.stage.restart(replica.name, lost_from(int(case.value("lost-from"))))
        elif "lost" in case.keys:
            damage = {"hard-state": lost_hard_state, "everything": lost_everything}[case.value("lost")]
            self.stage.restart(replica.name, damage(admission))
        else:
            self.stage.restart(replica.name)

    def state(self, case: Case) -> None:
        self.names(case)
        for replica in self.stage.replicas.values():
            group = replica.group
            leader = "" if group.role is Role.LEADER else f", leader {group.leader or 'unknown'}"
            line = f"{replica.name}: {group.role.value} in term {group.term}{leader}, commit {group.commit_index}, "
            line += f"applied {group.applied}, last {describe_id(group.last)}, "
            line += describe_configuration(group.configuration)
            line += f", damaged, floor {describe_id(group.floor)}" if group.floor is not None else ""
            line += f", not admitted, word {group.admission.decode()}" if group.admission else ""
            self.stage.say(line + ("" if replica.is_running else ", stopped"))

    def status(self, case: Case) -> None:
        group = self.replica(case).group
        for name, progress in group.progress.items() if group.role is Role.LEADER else ():
            line = f"{name}: {progress.state.value}, match {progress.match_index}, next {progress.next_index}"
            line += ", learner" if progress.is_learner else ""
            line += ", paused" if progress.is_paused else ""
            line += f", snapshot {progress.pending_snapshot}" if progress.pending_snapshot else ""
            line += "" if progress.is_recently_active else ", not heard"
            if progress.inflights.count:
                full = " (full)" if progress.inflights.is_full else ""
                line += f", {progress.inflights.count} in flight{full}"
            line += f", not admitted, word {progress.admission.decode()}" if progress.admission else ""
            self.stage.say(line)

    def log(self, case: Case) -> None:
        replica = self.replica(case)
        disk = replica.disk
        self.stage.say(f"behind {describe_id(disk.snapshot.id)}", *map(self.stage.notation.entry, disk.entries))
        if replica.group.log.stable != disk.last.index:
            self.stage.say(f"known to be durable: to {replica.group.log.stable}")

    def quietly(self, case: Case) -> None:
        self.stage.is_quiet = True
        try:
            for line in case.input.splitlines():
                for part in parse(f"{line}\n{SEPARATOR}\n", case.position):
                    self.run(part)
        finally:
            self.stage.is_quiet = False
