"""The machine as a table: every pair of role and message is there, also what is ignored."""

from collections.abc import Callable
from itertools import product

import pytest

from logd.raft.group import Group
from logd.raft.table import HANDLERS, ignore
from logd.raft.types import Message, MessageType, Role
from tests.raft.support import lead, replica, settle

M = MessageType

LEADERS_ALONE = {M.APPEND_RESPONSE, M.HEARTBEAT_RESPONSE, M.BEAT, M.CHECK_QUORUM, M.UNREACHABLE, M.SNAPSHOT_STATUS}


def in_role(role: Role) -> Group:
    group = replica(pre_vote=False, check_quorum=False)
    if role is Role.LEADER:
        lead(group, "b")
    elif role is Role.PRE_CANDIDATE:
        group.become_pre_candidate()
    elif role is Role.CANDIDATE:
        group.become_candidate()
    settle(group)
    return group


def test_every_pair_of_role_and_message_is_in_the_table() -> None:
    assert set(HANDLERS) == set(product(Role, MessageType))


def test_every_handler_says_what_it_is_for() -> None:
    undocumented = {handler.__name__ for handler in HANDLERS.values() if not handler.__doc__}
    assert undocumented == set()


def test_what_only_a_leader_does_with_answers_is_ignored_by_all_others() -> None:
    for role, type_ in product((Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE), LEADERS_ALONE):
        assert HANDLERS[role, type_] is ignore, (role, type_)


@pytest.mark.parametrize(("role", "type_"), [pair for pair, handler in HANDLERS.items() if handler is ignore])
def test_what_is_ignored_changes_nothing(role: Role, type_: MessageType) -> None:
    group = in_role(role)
    before = group.status()
    group.step(Message(type_, "a", "b", group.term, context=b"x", snapshot=group.log.snapshot))
    assert (group.status(), group.has_ready) == (before, False)


@pytest.mark.parametrize(
    ("role", "transition"),
    [
        (Role.FOLLOWER, Group.become_leader),
        (Role.LEADER, Group.become_candidate),
        (Role.LEADER, Group.become_pre_candidate),
    ],
)
def test_there_is_no_way_around_an_election_and_none_from_leading_to_campaigning(
    role: Role, transition: Callable[[Group], None]
) -> None:
    with pytest.raises(AssertionError):
        transition(in_role(role))


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("type_", [M.STORAGE_APPEND, M.STORAGE_APPLY])
def test_what_the_core_says_to_the_disk_is_not_for_the_core(type_: MessageType, role: Role) -> None:
    with pytest.raises(ValueError, match="for the disk"):
        HANDLERS[role, type_](replica(), Message(type_))
