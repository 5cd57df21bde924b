"""etcd's interaction scripts, on our core: their commands, and a transcript in their notation.

For: `test_interaction_files`. Must not know: where the scripts are. The one idea: the core is given what the script
says, and what it does is written down the way etcd's harness would, so that the script's own text is the verdict.
What etcd's core writes to its log is left out on both sides: ours has none.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from logd.raft import replication
from logd.raft.group import Group
from logd.raft.types import (
    EMPTY_LOG,
    ChangeKind,
    ChangeStep,
    Configuration,
    ConfigurationChange,
    Entry,
    EntryKind,
    GroupOptions,
    HardState,
    Message,
    MessageType,
    ProposalDropped,
    ReadMode,
    Ready,
    Role,
    Snapshot,
    Transition,
)
from tests.raft.datadriven import Case, UnknownDirective
from tests.raft.stage import APPLY, DELIVER, READY, WRITE, Replica, Stage

UNLIMITED: Final = 1 << 62

OPTIONS: Final = GroupOptions(
    changes_wait_for_own_commit=False,
    election_ticks=3,
    message_bytes_max=UNLIMITED,
    committed_bytes_max=UNLIMITED,
    uncommitted_bytes_max=UNLIMITED,
    inflight_messages_max=(1 << 31) - 1,
    inflight_bytes_max=0,
    window_bytes_max=UNLIMITED,
    check_quorum=False,
    pre_vote=False,
    forwards_proposals=True,
    steps_down_on_removal=False,
    snapshot_is_start=False,
    asynchronous_storage=False,
)
"""What etcd's harness begins with: no limits."""

OPTION_OF: Final[dict[str, Callable[[str], dict[str, Any]]]] = {
    "inflight": lambda value: {"inflight_messages_max": int(value)},
    "async-storage-writes": lambda value: {"asynchronous_storage": value == "true"},
    "prevote": lambda value: {"pre_vote": value == "true"},
    "checkquorum": lambda value: {"check_quorum": value == "true"},
    "max-committed-size-per-ready": lambda value: {"committed_bytes_max": int(value)},
    "disable-conf-change-validation": lambda value: {"checks_changes": value != "true"},
    "read-only": lambda value: {"read_mode": {"lease-based": ReadMode.LEASE, "safe": ReadMode.QUORUM}[value]},
    "step-down-on-removal": lambda value: {"steps_down_on_removal": value == "true"},
}
"""What each argument of `add-nodes` sets."""

TYPES: Final = {
    "MsgPreVote": MessageType.PRE_VOTE_REQUEST,
    "MsgPreVoteResp": MessageType.PRE_VOTE_RESPONSE,
    "MsgVote": MessageType.VOTE_REQUEST,
    "MsgVoteResp": MessageType.VOTE_RESPONSE,
    "MsgApp": MessageType.APPEND,
    "MsgAppResp": MessageType.APPEND_RESPONSE,
    "MsgHeartbeat": MessageType.HEARTBEAT,
    "MsgHeartbeatResp": MessageType.HEARTBEAT_RESPONSE,
    "MsgSnap": MessageType.SNAPSHOT,
    "MsgTimeoutNow": MessageType.TIMEOUT_NOW,
    "MsgReadIndex": MessageType.READ_INDEX,
    "MsgReadIndexResp": MessageType.READ_INDEX_RESPONSE,
    "MsgTransferLeader": MessageType.TRANSFER_LEADER,
    "MsgProp": MessageType.PROPOSE,
    "MsgForgetLeader": MessageType.FORGET_LEADER,
    "MsgStorageAppend": MessageType.STORAGE_APPEND,
    "MsgStorageAppendResp": MessageType.STORAGE_APPEND_RESPONSE,
    "MsgStorageApply": MessageType.STORAGE_APPLY,
    "MsgStorageApplyResp": MessageType.STORAGE_APPLY_RESPONSE,
}

NAMES: Final = {ours: theirs for theirs, ours in TYPES.items()}

APPEND_THREAD: Final = {MessageType.STORAGE_APPEND, MessageType.STORAGE_APPEND_RESPONSE}
APPLY_THREAD: Final = {MessageType.STORAGE_APPLY, MessageType.STORAGE_APPLY_RESPONSE}

ROLES: Final = {
    Role.FOLLOWER: "StateFollower",
    Role.PRE_CANDIDATE: "StatePreCandidate",
    Role.CANDIDATE: "StateCandidate",
    Role.LEADER: "StateLeader",
}

STEP_LETTERS: Final = {
    "v": ChangeKind.ADD_VOTER,
    "l": ChangeKind.ADD_LEARNER,
    "r": ChangeKind.REMOVE,
    "u": ChangeKind.UPDATE,
}

DOING: Final = {
    READY: "handling Ready",
    DELIVER: "receiving messages",
    WRITE: "processing append thread",
    APPLY: "processing apply thread",
}

RESPONSES: Final = {
    MessageType.APPEND_RESPONSE,
    MessageType.VOTE_RESPONSE,
    MessageType.PRE_VOTE_RESPONSE,
    MessageType.HEARTBEAT_RESPONSE,
    MessageType.READ_INDEX_RESPONSE,
}

ENTRY: Final = re.compile(r"\d+/\d+ Entry")
LOG_LINE: Final = re.compile(r"\s*(DEBUG|INFO|WARN|ERROR) ")


def numbers(names: Iterable[str]) -> str:
    return "[" + " ".join(sorted(names, key=int)) + "]"


def describe_configuration(configuration: Configuration) -> str:
    return (
        f"Voters:{numbers(configuration.voters)} VotersOutgoing:{numbers(configuration.voters_outgoing)} "
        f"Learners:{numbers(configuration.learners)} LearnersNext:{numbers(configuration.learners_next)} "
        f"AutoLeave:{str(configuration.auto_leave).lower()}"
    )


def describe_snapshot(snapshot: Snapshot) -> str:
    return f"Index:{snapshot.index} Term:{snapshot.term} ConfState:{describe_configuration(snapshot.configuration)}"


def describe_hard_state(hard_state: HardState) -> str:
    vote = f" Vote:{hard_state.vote}" if hard_state.vote else ""
    return f"Term:{hard_state.term}{vote} Commit:{hard_state.commit}"


def quoted(data: str) -> str:
    return '"' + data.replace("\\", "\\\\").replace('"', '\\"') + '"'


def change_from(text: str) -> tuple[ChangeStep, ...]:
    """`v1 l2 r3 u4` as steps."""
    return tuple(ChangeStep(STEP_LETTERS[word[0]], str(int(word[1:]))) for word in text.split())


class EtcdNotation:
    """How etcd's harness writes. Argument: `is_of_3_4`, whether it is the one of etcd 3.4, and not the newest."""

    def __init__(self, *, is_of_3_4: bool = False) -> None:
        self.is_of_3_4 = is_of_3_4

    def entry(self, entry: Entry) -> str:
        if entry.change is None:
            text = " " + quoted(entry.data or "")
            kind = "EntryNormal"
        else:
            letters = {kind: letter for letter, kind in STEP_LETTERS.items()}
            text = "".join(f" {letters[step.kind]}{step.node}" for step in entry.change.steps)
            kind = "EntryConfChange" if entry.change.is_simple_form else "EntryConfChangeV2"
        return f"{entry.term}/{entry.index} {kind}{text}"

    def message(self, message: Message) -> Iterator[str]:
        name = NAMES[message.type]
        index = 0 if message.type in APPLY_THREAD else message.index
        # In 3.4 a refusal does not name the term at its hint.
        log_term = 0 if self.is_of_3_4 and message.reject else message.log_term
        line = (
            f"{self._target(message.sender, message.type)}->{self._target(message.to, message.type)} {name} "
            f"Term:{message.term} Log:{log_term}/{index}"
        )
        if message.reject:
            line += f" Rejected (Hint: {message.reject_hint})"
        if message.commit and message.type not in RESPONSES:
            # Ours also say how much their sender knows to be committed.
            line += f" Commit:{message.commit}"
        if message.vote:
            line += f" Vote:{message.vote}"
        if len(message.entries) == 1:
            line += f" Entries:[{self.entry(message.entries[0])}]"
        elif message.entries and self.is_of_3_4:
            line += f" Entries:[{', '.join(map(self.entry, message.entries))}]"
        elif message.entries:
            yield line + " Entries:["
            yield from ("  " + self.entry(entry) for entry in message.entries)
            line = "]"
        if message.snapshot is not None and self.is_of_3_4:
            line += f" Snapshot: {describe_snapshot(message.snapshot)}"
        elif message.snapshot is not None:
            yield line
            line = f"  Snapshot: {describe_snapshot(message.snapshot)}"
        if message.responses:
            yield line + " Responses:["
            for response in message.responses:
                yield from ("  " + text for text in self.message(response))
            line = "]"
        yield line

    def _target(self, name: str, type_: MessageType) -> str:
        if name:
            return name
        return "AppendThread" if type_ in APPEND_THREAD else "ApplyThread" if type_ in APPLY_THREAD else "None"

    def dropped(self, message: Message) -> Iterator[str]:
        first, *rest = self.message(message)
        yield f"dropped: {first}"
        yield from rest

    def error(self, error: Exception) -> str:
        return "raft proposal dropped" if isinstance(error, ProposalDropped) else f"panic: {error}"

    def heading(self, name: str, doing: str) -> str:
        return f"> {name} {DOING[doing]}"

    def ready(self, replica: Replica, ready: Ready, messages: Sequence[Message]) -> Iterator[str]:
        lines = list(self._ready_lines(ready, messages))
        if not lines:
            yield "<empty Ready>"
            return
        yield f"Ready MustSync={str(self._must_sync(replica, ready)).lower()}:"
        yield from lines

    def _must_sync(self, replica: Replica, ready: Ready) -> bool:
        if ready.snapshot is None:
            return ready.must_sync
        # Ours must be durable before a snapshot is acknowledged, and says so; etcd's asks for that only by the way.
        assert ready.must_sync
        has_new_term = ready.hard_state is not None and ready.hard_state[:2] != replica.hard_state[:2]
        return has_new_term or bool(ready.append)

    def _ready_lines(self, ready: Ready, messages: Sequence[Message]) -> Iterator[str]:
        if ready.soft_state is not None:
            yield f"Lead:{ready.soft_state.leader or 0} State:{ROLES[ready.soft_state.role]}"
        if ready.hard_state is not None:
            yield f"HardState {describe_hard_state(ready.hard_state)}"
        if ready.read_states:
            yield f"ReadStates {ready.read_states}"
        if ready.append:
            yield "Entries:"
            yield from map(self.entry, ready.append)
        if ready.snapshot is not None:
            yield f"Snapshot {describe_snapshot(ready.snapshot)}"
        if ready.committed:
            yield "CommittedEntries:"
            yield from map(self.entry, ready.committed)
        if messages:
            yield "Messages:"
            for message in messages:
                yield from self.message(message)

    def processing(self, work: Message) -> Iterator[str]:
        yield "Processing:"
        yield from self.message(work._replace(responses=()))
        yield "Responses:"
        for response in work.responses:
            yield from self.message(response)


class EtcdStage(Stage):
    """The stage, with what etcd's RawNode and harness do besides its core."""

    def step(self, replica: Replica, message: Message) -> None:
        if message.sender and message.type in RESPONSES and message.sender not in replica.group.configuration.members:
            # etcd's RawNode says so and drops the message; ours gets it, and must not let it do anything.
            self.say("raft: cannot step as peer not found")
        super().step(replica, message)

    def campaign(self, replica: Replica) -> None:
        replica.group.campaign()

    def stamp(self, replica: Replica, entry: Entry) -> None:
        # etcd's limits count an entry as it is encoded, which is never empty.
        entry.size_bytes = len(entry.data or "") + 6


class EtcdStageOf34(EtcdStage):
    """etcd 3.4 counts a replica's own vote, and its own log, at once, and not when they are durable.

    To others that makes no difference, since what they are sent waits for the disk. A lone voter, however, goes through
    an election, and commits, within one Ready, where ours (as etcd's newer ones) needs several in a row: they are
    joined here.
    """

    def __init__(self, notation: EtcdNotation) -> None:
        super().__init__(notation)
        self.taken: dict[str, Ready] = {}
        """What a lone voter's Readys said that no transcript shows yet."""

    def campaign(self, replica: Replica) -> None:
        replica.group.campaign()
        while replica.group.is_singleton and replica.group.role is Role.CANDIDATE:
            self._take_alone(replica)

    def step(self, replica: Replica, message: Message) -> None:
        """Likewise, and tell whoever was paused until now the commit, whether or not it has to be told."""
        # Later ones remember what commit they sent to whom.
        progress = replica.group.progress.get(message.sender)
        was_paused = progress is not None and progress.is_paused
        sent = list(replica.group._messages)
        super().step(replica, message)
        if (
            was_paused
            and message.type is MessageType.APPEND_RESPONSE
            and not message.reject
            and replica.group.role is Role.LEADER
            and replica.group._messages == sent
        ):
            replication.maybe_send_append(replica.group, message.sender, if_empty=True)

    def _take_alone(self, replica: Replica) -> None:
        ready = self.take_ready(replica)
        self.perform(replica, ready, [])
        self.taken[replica.name] = joined(self.taken.get(replica.name, Ready()), ready)

    def has_ready(self, replica: Replica) -> bool:
        return replica.name in self.taken or super().has_ready(replica)

    def process_ready(self, replica: Replica) -> None:
        while replica.group.is_singleton and replica.group.has_ready:
            self._take_alone(replica)
        if (ready := self.taken.pop(replica.name, None)) is None:
            super().process_ready(replica)
        else:
            self.say(*self.notation.ready(replica, ready, ready.messages))
            self.pool.extend(ready.messages)


def joined(first: Ready, second: Ready) -> Ready:
    """Two Readys, one directly after the other, as one."""
    assert second.snapshot is None
    assert second.truncate_from is None
    return Ready(
        soft_state=second.soft_state or first.soft_state,
        hard_state=second.hard_state or first.hard_state,
        append=first.append + second.append,
        committed=first.committed + second.committed,
        messages=first.messages + second.messages + second.responses,
        must_sync=first.must_sync or second.must_sync,
    )


class Interaction:
    """One script's run: `handle` answers a directive with a transcript.

    Argument: `is_of_3_4`, whether the script is etcd 3.4's, and not one of the newest etcd-io/raft.
    """

    def __init__(self, *, is_of_3_4: bool = False) -> None:
        self.is_of_3_4 = is_of_3_4
        stage = EtcdStageOf34 if is_of_3_4 else EtcdStage
        self.stage = stage(EtcdNotation(is_of_3_4=is_of_3_4))
        self.commands: dict[str, Callable[[Case], None]] = {
            "add-nodes": self.add_nodes,
            "campaign": lambda case: self.stage.campaign(self.replica(case)),
            "compact": self.compact,
            "deliver-msgs": self.deliver,
            "process-ready": lambda case: self.each(case, READY, self.stage.process_ready),
            "process-append-thread": lambda case: self.each(case, WRITE, self.process_write),
            "process-apply-thread": lambda case: self.each(case, APPLY, self.process_apply),
            "log-level": self.log_level,
            "raft-log": self.raft_log,
            "raft-state": self.raft_state,
            "set-randomized-election-timeout": self.set_randomized_election_timeout,
            "stabilize": self.stabilize,
            "status": self.status,
            "tick-election": lambda case: self.tick(case, OPTIONS.election_ticks),
            "tick-heartbeat": lambda case: self.tick(case, OPTIONS.heartbeat_ticks),
            "transfer-leadership": self.transfer_leadership,
            "forget-leader": lambda case: self.act(case, Group.forget_leader),
            "send-snapshot": self.send_snapshot,
            "propose": self.propose,
            "propose-conf-change": self.propose_change,
            "report-unreachable": self.report_unreachable,
        }

    def handle(self, case: Case) -> str:
        """Do what the script says. Raises UnknownDirective for what is not understood."""
        command = self.commands.get(case.directive)
        if command is None:
            raise UnknownDirective(case)
        try:
            command(case)
        except ProposalDropped as dropped:
            self.stage.complain(dropped)
        return "\n".join(self.stage.take_lines()) or "ok"

    # --- Reading a directive ------------------------------------------------------------------------------------------

    def names(self, case: Case) -> list[str]:
        return [str(int(word)) for word in case.positional]

    def replica(self, case: Case) -> Replica:
        return self.stage.replicas[case.positional[0]]

    def act(self, case: Case, action: Callable[[Group], object]) -> None:
        replica = self.replica(case)
        action(replica.group)

    def each(self, case: Case, doing: str, process: Callable[[Replica], object]) -> None:
        names = self.names(case)
        for name in names:
            if len(names) > 1:
                with self.stage.under(self.stage.notation.heading(name, doing)):
                    process(self.stage.replicas[name])
            else:
                process(self.stage.replicas[name])

    # --- Commands -----------------------------------------------------------------------------------------------------

    def add_nodes(self, case: Case) -> None:
        options, configuration, index = OPTIONS, Configuration(), 0
        for argument in case.arguments[1:]:
            value = argument.values[0]
            if argument.key in OPTION_OF:
                options = replace(options, **OPTION_OF[argument.key](value))
                continue
            match argument.key:
                case "voters":
                    configuration = replace(configuration, voters=frozenset(argument.values))
                case "learners":
                    configuration = replace(configuration, learners=frozenset(argument.values))
                case "index":
                    index = int(value)
                case "content":
                    pass  # the state machine's; no transcript shows it
                case _:
                    raise UnknownDirective(case)
        snapshot = Snapshot(index, 1, configuration) if index else EMPTY_LOG
        for _ in range(int(case.arguments[0].key)):
            self.stage.add(str(len(self.stage.replicas) + 1), options, snapshot, term=0)

    def compact(self, case: Case) -> None:
        self.stage.compact(self.replica(case), int(case.arguments[1].key))
        self.raft_log(case)

    def deliver(self, case: Case) -> None:
        wanted: MessageType | None = None
        recipients: list[tuple[str, bool]] = []
        for argument in case.arguments:
            match argument.key:
                case "drop":
                    recipients += [(name, True) for name in argument.values]
                case "type":
                    wanted = TYPES[argument.values[0]]
                case name if argument.is_positional:
                    recipients.append((name, False))
                case _:
                    raise UnknownDirective(case)
        count = 0
        for name, is_dropped in recipients:
            count += self.stage.drop(name, wanted) if is_dropped else self.stage.deliver(name, wanted)
        if not count:
            self.stage.say("no messages")

    def process_write(self, replica: Replica) -> None:
        if not self.stage.process_write(replica):
            self.stage.say("no append work to perform")

    def process_apply(self, replica: Replica) -> None:
        if not self.stage.process_apply(replica):
            self.stage.say("no apply work to perform")

    def log_level(self, case: Case) -> None:
        self.stage.is_quiet = case.arguments[0].key.lower() == "none"

    def raft_log(self, case: Case) -> None:
        disk = self.replica(case).disk
        if disk.entries:
            self.stage.say(*map(self.stage.notation.entry, disk.entries))
        else:
            self.stage.say(f"log is empty: first index={disk.first_index}, last index={disk.last.index}")

    def raft_state(self, case: Case) -> None:
        for replica in self.stage.replicas.values():
            group = replica.group
            voters = group.configuration.voters | group.configuration.voters_outgoing
            voter = "(Voter)" if replica.name in voters else "(Non-Voter)"
            self.stage.say(f"{replica.name}: {ROLES[group.role]} {voter} Term:{group.term} Lead:{group.leader or 0}")

    def set_randomized_election_timeout(self, case: Case) -> None:
        values = {argument.key: argument.values for argument in case.arguments}
        self.replica(case).group.randomized_election_ticks = int(values["timeout"][0])

    def stabilize(self, case: Case) -> None:
        was_quiet = self.stage.is_quiet
        for argument in case.arguments:
            match argument.key:
                case "log-level":
                    self.stage.is_quiet = argument.values[0].lower() == "none"
                case _ if not argument.is_positional:
                    raise UnknownDirective(case)
        try:
            self.stage.stabilize(self.names(case))
        finally:
            self.stage.is_quiet = was_quiet

    def status(self, case: Case) -> None:
        group = self.replica(case).group
        progress_by_name = group.progress if group.role is Role.LEADER else {}
        for name, progress in sorted(progress_by_name.items(), key=lambda item: int(item[0])):
            line = (
                f"{name}: State{progress.state.value.capitalize()} match={progress.match_index} "
                f"next={progress.next_index}"
            )
            line += " learner" if progress.is_learner else ""
            line += " paused" if progress.is_paused else ""
            line += f" pendingSnap={progress.pending_snapshot}" if progress.pending_snapshot else ""
            # In 3.4 a leader does not count itself among those that it heard.
            is_active = progress.is_recently_active and not (self.is_of_3_4 and name == group.node)
            line += "" if is_active else " inactive"
            if progress.inflights.count:
                line += f" inflight={progress.inflights.count}" + ("[full]" if progress.inflights.is_full else "")
            self.stage.say(line)

    def tick(self, case: Case, count: int) -> None:
        for _ in range(count):
            self.act(case, Group.tick)

    def transfer_leadership(self, case: Case) -> None:
        values = {argument.key: argument.values[0] for argument in case.arguments}
        self.stage.replicas[values["from"]].group.transfer_leader(values["to"])

    def send_snapshot(self, case: Case) -> None:
        sender, to = self.names(case)
        replica = self.stage.replicas[sender]
        message = Message(MessageType.SNAPSHOT, to, sender, term=replica.group.term, snapshot=replica.applied)
        self.stage.pool.append(message)
        self.stage.say(*self.stage.notation.message(message))

    def propose(self, case: Case) -> None:
        data = case.arguments[1].key
        self.replica(case).group.propose(data, len(data))

    def propose_change(self, case: Case) -> None:
        transition, is_simple_form = Transition.AUTO, False
        for argument in case.arguments[1:]:
            match argument.key:
                case "v1":
                    is_simple_form = argument.values[0] == "true"
                case "transition":
                    transition = Transition(argument.values[0])
                case _:
                    raise UnknownDirective(case)
        steps = change_from(case.input)
        change = ConfigurationChange(steps, transition, is_simple_form=is_simple_form)
        # By the message and not by the method: that one raises where etcd's proposes nothing instead.
        entry = Entry(0, 0, EntryKind.CONFIGURATION, change=change)
        group = self.replica(case).group
        group.step(Message(MessageType.PROPOSE, sender=group.node, entries=(entry,)))

    def report_unreachable(self, case: Case) -> None:
        name, unreachable = self.names(case)
        self.stage.replicas[name].group.report_unreachable(unreachable)


def comparable(transcript: str) -> list[str]:
    """A transcript without what etcd's core wrote to its log."""
    lines = [line.rstrip() for line in transcript.splitlines() if not LOG_LINE.match(line)]
    return [line.replace("ok (quiet)", "ok") for line in lines if line] or ["ok"]


NEXT_IN_SNAPSHOT: Final = re.compile(r"(StateSnapshot match=\d+) next=\d+ ")


def comparable_of_3_4(transcript: str) -> list[str]:
    """Likewise, without what 3.4 shows otherwise."""
    # While a snapshot is on its way, its next index stays where it was; later ones put it behind the snapshot.
    return [NEXT_IN_SNAPSHOT.sub(r"\1 ", line) for line in comparable(transcript)]


class Facts(NamedTuple):
    """What a transcript says of one replica, in the end."""

    state: str
    """`Lead` and `State`; empty if they did not change."""
    hard_state: str
    applied: tuple[str, ...]


def facts(transcript: str) -> dict[str, Facts]:
    """The facts in the transcript of a `stabilize`, by replica."""
    found: dict[str, Facts] = {}
    name, is_applied = "", False
    for line in comparable(transcript):
        if line.startswith("> "):
            name, is_applied = line.split()[1], False
            continue
        text, fact = line.strip(), found.get(name, Facts("", "", ()))
        if text.startswith("Lead:"):
            found[name] = fact._replace(state=text)
        elif text.startswith("HardState "):
            found[name] = fact._replace(hard_state=text)
        elif is_applied and ENTRY.match(text):
            found[name] = fact._replace(applied=(*fact.applied, text))
        else:
            is_applied = text == "CommittedEntries:"
    return found


FACTS_ONLY: Final = {
    "confchange_v2_add_single_auto.txt:114": (
        "3.4 does not send the entry by which it leaves a joint configuration until the next proposal, so that others "
        "hold it later; what is committed, and applied, is the same"
    ),
    "confchange_v2_add_single_auto.txt:180": (
        "3.4 takes a second such entry before the first is applied, where later ones take an empty entry instead: "
        "neither is committed here"
    ),
}
"""Cases of 3.4's in which only facts are compared, by position, with the reason."""
