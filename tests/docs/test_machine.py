"""What the documentation says of the consensus core is what the core does."""

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from logd.raft.group import Group
from logd.raft.table import HANDLERS, ignore
from logd.raft.types import (
    ChangeKind,
    ChangeStep,
    ConfigurationChange,
    GroupOptions,
    Message,
    MessageType,
    ProposalDropped,
    Ready,
    Role,
    Snapshot,
)
from logd.replica.types import DriverOptions
from tests.docs.pages import DOCS, machine, tables, text_of
from tests.mutants.mutant import BUGS_COUNT, JOURNAL_RULES_COUNT
from tests.mutants.table import MUTANTS
from tests.raft.network import Network

RAFT = DOCS / "raft.md"
BUGS = DOCS / "bugs.md"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


# --- The table of handlers --------------------------------------------------------------------------------------------


def test_every_pair_of_role_and_message_has_its_cell() -> None:
    rows = {cells(line)[0]: cells(line)[1:] for line in machine().raft_machine().splitlines()[2:]}

    assert list(rows) == [kind.value for kind in MessageType]
    for (role, kind), handler in HANDLERS.items():
        said = rows[kind.value][list(Role).index(role)]
        assert said == ("" if handler is ignore else f"`{machine().handler_name(handler)}`")


def test_every_handler_says_what_it_is_for() -> None:
    said = {cells(line)[0]: cells(line)[1] for line in machine().raft_handlers().splitlines()[2:]}

    assert set(said) == {f"`{machine().handler_name(handler)}`" for handler in HANDLERS.values()}
    assert [name for name, words in said.items() if not words] == []


# --- The ways between roles -------------------------------------------------------------------------------------------

Gone = tuple[Role, str, Role]


@contextmanager
def watching(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[Gone]]:
    """Every way between roles that any replica goes meanwhile. The constructor's first role is no way."""
    gone: set[Gone] = set()
    causes: list[Message | None] = []

    def note(name: str, original: Callable[..., None]) -> Callable[..., None]:
        def become(group: Group, *arguments: Any) -> None:
            before, term = group.role, group.term
            original(group, *arguments)
            if not causes:
                return
            if name == "become_follower" and group.term > term:
                cause = machine().TERM
            else:
                message = causes[-1]
                cause = machine().CHANGE if message is None else message.type.value
            gone.add((before, cause, group.role))

        return become

    def under(original: Callable[..., Any], *, is_message: bool) -> Callable[..., Any]:
        def act(group: Group, argument: Any) -> Any:
            causes.append(argument if is_message else None)
            try:
                return original(group, argument)
            finally:
                causes.pop()

        return act

    with monkeypatch.context() as patch:
        for name in [name for name in vars(Group) if name.startswith("become_")]:
            patch.setattr(Group, name, note(name, getattr(Group, name)))
        patch.setattr(Group, "step", under(Group.step, is_message=True))
        patch.setattr(Group, "apply_change", under(Group.apply_change, is_message=False))
        yield gone


class Life:
    """Replicas to which something happens by chance: nothing is settled, anything may be lost or late."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.network = Network("abcd", pre_vote=seed % 3 != 0, check_quorum=seed % 2 == 0, election_ticks=3)
        for name in "abcd":
            self.network.chance[name] = self.chance
        self.acts = [self.tick] * 6 + [self.deliver] * 24 + [self.save] * 12 + [self.propose, self.lose, self.repeat]
        self.acts += [self.change, self.transfer, self.crash, self.compact, self.campaign]

    def live(self, steps: int) -> None:
        for _ in range(steps):
            name = self.chance.choice("abcd")
            self.chance.choice(self.acts)(name)

    def tick(self, name: str) -> None:
        self.network[name].tick()

    def campaign(self, name: str) -> None:
        self.network[name].campaign()

    def save(self, name: str) -> None:
        if self.network[name].has_ready:
            self.network.take(name)
        if self.network.writes[name]:
            self.network.write(name)

    def deliver(self, _: str) -> None:
        if self.network.pool:
            self.step(self.network.pool.pop(self.chance.randrange(len(self.network.pool))))

    def repeat(self, _: str) -> None:
        if self.network.pool:
            self.step(self.chance.choice(self.network.pool))

    def step(self, message: Message) -> None:
        self.network[message.to].step(message)

    def lose(self, _: str) -> None:
        if self.network.pool:
            self.network.pool.pop(self.chance.randrange(len(self.network.pool)))

    def crash(self, name: str) -> None:
        self.network.crash(name)
        self.network.recover(name)

    def leaders(self) -> list[Group]:
        return [group for group in self.network if group.role is Role.LEADER]

    def propose(self, _: str) -> None:
        for leader in self.leaders():
            with suppress(ProposalDropped):
                leader.propose("x")

    def change(self, name: str) -> None:
        adds, removes = (ChangeKind.ADD_VOTER, ChangeKind.ADD_LEARNER), (ChangeKind.REMOVE,)
        kind = self.chance.choice((*adds, *adds, *removes))
        for leader in self.leaders():
            with suppress(ProposalDropped):
                leader.propose_change(ConfigurationChange((ChangeStep(kind, name),)))

    def transfer(self, name: str) -> None:
        for leader in self.leaders():
            leader.transfer_leader(name)

    def compact(self, name: str) -> None:
        group, disk = self.network[name], self.network.disks[name]
        index = min(group.applied, disk.snapshot.index + len(disk.entries))
        if index > disk.snapshot.index:
            self.network.compact(name, index)


def go_rare_ways() -> None:
    """What chance brings about too seldom to rely on."""
    for pre_vote in (True, False):
        for kind in (MessageType.APPEND, MessageType.HEARTBEAT, MessageType.SNAPSHOT):
            campaigner = Network(pre_vote=pre_vote)["a"]
            campaigner.campaign()
            snapshot = Snapshot(3, 1, campaigner.configuration)
            campaigner.step(Message(kind, "a", "b", campaigner.term, snapshot=snapshot))
    network = Network(election_ticks=3)
    leader = network.elect("a")
    leader.propose_change(ConfigurationChange((ChangeStep(ChangeKind.REMOVE, "a"),)))
    network.settle()
    network = Network(election_ticks=3)
    leader = network.elect("a")
    network.isolate("a")
    network.tick("a", times=7)


def test_the_ways_between_roles_are_those_that_the_core_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = {(way.before, way.cause, way.after) for way in machine().WAYS}

    with watching(monkeypatch) as gone:
        go_rare_ways()
        for seed in range(100):
            Life(seed).live(500)

    assert gone == declared


def test_the_drawing_has_an_arrow_for_each_way() -> None:
    drawn = machine().roles_drawing()

    numbers = [number for numbers in machine().drawn_edges().values() for number in numbers]
    assert sorted(numbers) == list(range(1, len(machine().WAYS) + 1))
    assert drawn.count("marker-end") == len(machine().drawn_edges())
    assert [role for role in Role if f">{role.value}</text>" not in drawn] == []


# --- Limits, messages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [GroupOptions, DriverOptions, Ready])
def test_every_option_and_all_of_a_ready_has_its_meaning_from_one_place(kind: type) -> None:
    assert machine().undocumented(kind) == set()


def test_what_a_message_carries_besides_is_explained_by_the_code() -> None:
    shown = {cells(line)[0] for line in machine().message_fields().splitlines()[2:]}

    assert {"`range`", "`is_damaged`", "`admission`", "`chain`"} <= shown <= {f"`{name}`" for name in Message._fields}


def test_deviations_are_numbered_without_a_gap_and_say_where_they_come_from() -> None:
    text = text_of(RAFT).partition("## Deviations")[2].partition("## Damaged")[0]
    numbers = [int(number) for number in re.findall(r"^(\d+)\. \*\*", text, re.MULTILINE)]

    assert numbers == list(range(1, len(numbers) + 1))


# --- Bugs -------------------------------------------------------------------------------------------------------------


def test_every_bug_stands_on_the_page_with_tests_that_are_there() -> None:
    rows = [cells(line) for line in machine().bugs().splitlines()[2:]]
    numbers = {row[0] for row in rows}

    assert numbers == {str(n + 1) for n in range(BUGS_COUNT)} | {f"J{n + 1}" for n in range(JOURNAL_RULES_COUNT)}
    assert len(rows) == len(MUTANTS)
    assert [test for mutant in MUTANTS for test in mutant.tests if not tables().is_test(test)] == []
    for row, mutant in zip(rows, MUTANTS, strict=True):
        assert mutant.bug in row
        assert [test for test in mutant.tests if test.partition("::")[2] not in row[4]] == []
