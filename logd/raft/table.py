"""What each role does with each message: the machine as a table.

For: `Group.step`, and the page that draws it (`docs/raft.md`). Must not know: why. The one idea: every pair is here,
also those that are ignored, so that nothing is ignored by accident.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from logd.raft import election, reads, replication
from logd.raft.types import Message, MessageType, Role, SafetyViolation

if TYPE_CHECKING:
    from logd.raft.group import Group

Handler = Callable[["Group", Message], None]


def ignore(group: "Group", message: Message) -> None:
    """Nothing follows from this message in this role."""


def violate(group: "Group", message: Message) -> None:
    """Somebody else acts as leader of the term that this replica leads: section 5.2 rules it out."""
    raise SafetyViolation(f"{message.sender} leads term {message.term}, which {group.node} leads")


def refuse(_: "Group", message: Message) -> None:
    """The message is an output of the core, not an input."""
    raise ValueError(f"{message.type.value!r} is for the disk, not for the core")


def drop_proposal(group: "Group", message: Message) -> None:
    """Nobody takes proposals here now."""
    replication.on_proposal_without_lead(group, message)


T = MessageType

_EVERYBODY: Final[dict[MessageType, Handler]] = {
    T.PRE_VOTE_REQUEST: election.on_vote_request,
    T.VOTE_REQUEST: election.on_vote_request,
    T.STORAGE_APPEND: refuse,
    T.STORAGE_APPLY: refuse,
    T.STORAGE_APPEND_RESPONSE: replication.on_stored,
    T.STORAGE_APPLY_RESPONSE: replication.on_applied,
}

# What comes from the leader of this term makes everybody else its follower.
_FOLLOWING: Final[dict[MessageType, Handler]] = {
    T.APPEND: replication.on_append,
    T.HEARTBEAT: replication.on_heartbeat,
    T.SNAPSHOT: replication.on_snapshot,
}

# Answers to a leader, and what only a leader does: not for others.
_NOT_LEADING: Final[dict[MessageType, Handler]] = {
    T.APPEND_RESPONSE: ignore,
    T.HEARTBEAT_RESPONSE: ignore,
    T.BEAT: ignore,
    T.CHECK_QUORUM: ignore,
    T.UNREACHABLE: ignore,
    T.SNAPSHOT_STATUS: ignore,
    T.PROPOSE: drop_proposal,
}

_CAMPAIGNING: Final[dict[MessageType, Handler]] = {
    T.READ_INDEX: ignore,
    T.READ_INDEX_RESPONSE: ignore,
    T.TRANSFER_LEADER: ignore,
    T.TIMEOUT_NOW: ignore,
    T.FORGET_LEADER: ignore,
    T.CAMPAIGN: election.on_campaign,
}

_ROLES: Final[dict[Role, dict[MessageType, Handler]]] = {
    Role.FOLLOWER: {
        **_EVERYBODY,
        **_FOLLOWING,
        **_NOT_LEADING,
        T.PRE_VOTE_RESPONSE: ignore,
        T.VOTE_RESPONSE: ignore,
        T.READ_INDEX: election.pass_to_leader,
        T.READ_INDEX_RESPONSE: reads.on_read_index_response,
        T.TRANSFER_LEADER: election.pass_to_leader,
        T.TIMEOUT_NOW: election.on_timeout_now,
        T.FORGET_LEADER: election.on_forget_leader,
        T.CAMPAIGN: election.on_campaign,
    },
    Role.PRE_CANDIDATE: {
        **_EVERYBODY,
        **_FOLLOWING,
        **_NOT_LEADING,
        **_CAMPAIGNING,
        T.PRE_VOTE_RESPONSE: election.on_pre_vote_response,
        T.VOTE_RESPONSE: ignore,
    },
    Role.CANDIDATE: {
        **_EVERYBODY,
        **_FOLLOWING,
        **_NOT_LEADING,
        **_CAMPAIGNING,
        T.PRE_VOTE_RESPONSE: ignore,
        T.VOTE_RESPONSE: election.on_vote_response,
    },
    Role.LEADER: {
        **_EVERYBODY,
        T.APPEND: violate,
        T.HEARTBEAT: violate,
        T.SNAPSHOT: violate,
        T.PRE_VOTE_RESPONSE: ignore,
        T.VOTE_RESPONSE: ignore,
        T.APPEND_RESPONSE: replication.on_append_response,
        T.HEARTBEAT_RESPONSE: replication.on_heartbeat_response,
        T.SNAPSHOT_STATUS: replication.on_snapshot_status,
        T.UNREACHABLE: replication.on_unreachable,
        T.PROPOSE: replication.on_propose,
        T.READ_INDEX: reads.on_read_index,
        T.READ_INDEX_RESPONSE: ignore,
        T.TRANSFER_LEADER: election.on_transfer,
        T.TIMEOUT_NOW: ignore,
        T.FORGET_LEADER: ignore,
        T.CAMPAIGN: ignore,
        T.BEAT: reads.on_beat,
        T.CHECK_QUORUM: election.on_check_quorum,
    },
}

HANDLERS: Final[dict[tuple[Role, MessageType], Handler]] = {
    (role, type_): handlers[type_] for role, handlers in _ROLES.items() for type_ in MessageType
}
"""Every pair of role and message."""
