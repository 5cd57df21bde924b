"""Terms, votes and campaigns: sections 5.1, 5.2 and 5.4.1 of the paper; 3.10 and 9.6 of the thesis.

For: the table. Must not know: how entries are replicated. The one idea: a replica gives its vote once a term, to
somebody whose log holds everything that it knows of itself, and only when it has no reason to believe in a leader.
"""

from typing import TYPE_CHECKING, Final

from logd.raft import replication
from logd.raft.quorum import VoteResult, joint_vote_result
from logd.raft.types import CAMPAIGN_TRANSFER, NOBODY, EntryId, Message, MessageType, ReadMode, Role

if TYPE_CHECKING:
    from logd.raft.group import Group

_LEADERS_ALONE: Final = {MessageType.APPEND, MessageType.HEARTBEAT, MessageType.SNAPSHOT}
"""Only the leader of a term sends these in that term."""

_VOTE_REQUESTS: Final = {MessageType.VOTE_REQUEST, MessageType.PRE_VOTE_REQUEST}

_MEMBERS_ALONE: Final = {
    MessageType.PRE_VOTE_RESPONSE,
    MessageType.VOTE_RESPONSE,
    MessageType.APPEND_RESPONSE,
    MessageType.HEARTBEAT_RESPONSE,
}
"""These are answers to what only members are sent."""

_RESPONSE: Final = {
    MessageType.VOTE_REQUEST: MessageType.VOTE_RESPONSE,
    MessageType.PRE_VOTE_REQUEST: MessageType.PRE_VOTE_RESPONSE,
}


def accept_term(group: "Group", message: Message) -> bool:
    """Bring the replica's term up to the message's; false if the message is of the past, or must not disturb.

    Section 5.1: whoever sees a higher term takes it and follows; what carries a lower one is not obeyed.
    """
    if message.type in _MEMBERS_ALONE and message.sender not in group.progress:
        # Removed since it was asked; it may not know that, and campaign in ever higher terms. Its late answer counts
        # for nothing, and must not depose anybody either (section 6, "disruptive servers").
        return False
    if message.term == 0 or message.term == group.term:
        return True
    if message.term < group.term:
        _answer_the_past(group, message)
        return False
    if message.type in _VOTE_REQUESTS and _believes_in_leader(group) and message.context != CAMPAIGN_TRANSFER:
        # reachable: a vote request is not heeded as a leader is alive
        # Whoever hears a leader regularly helps nobody to depose it (section 6, "disruptive servers"; thesis 4.2.3).
        return False
    if message.type is MessageType.PRE_VOTE_REQUEST:
        return True  # the term is one that nobody has yet
    if message.type is MessageType.PRE_VOTE_RESPONSE and not message.reject:
        return True  # the term is the one that this replica asked for
    group.become_follower(message.term, message.sender if message.type in _LEADERS_ALONE else NOBODY)
    return True


def _believes_in_leader(group: "Group") -> bool:
    return (
        group.options.check_quorum
        and group.leader != NOBODY
        and group.election_elapsed_ticks < group.options.election_ticks
    )


def _answer_the_past(group: "Group", message: Message) -> None:
    """What came with a lower term is dropped, except where the sender could wait for ever."""
    if message.type in {MessageType.APPEND, MessageType.HEARTBEAT}:
        # With a pre-vote, or a quorum checked, this replica cannot raise the sender's term by campaigning: a leader
        # of the past would talk to it for ever. The answer's term deposes it.
        if group.options.check_quorum or group.options.pre_vote:
            answer = Message(MessageType.APPEND_RESPONSE, to=message.sender)
            group.send(replication.with_condition(group, answer))
    elif message.type is MessageType.PRE_VOTE_REQUEST:
        # Likewise for a pre-candidate that waits for answers in a term that is over.
        group.send(Message(MessageType.PRE_VOTE_RESPONSE, to=message.sender, term=group.term, reject=True))
    elif message.type is MessageType.STORAGE_APPEND_RESPONSE and message.snapshot is not None:
        # reachable: a snapshot is stored after the term has moved on
        # Entries of an earlier term may have been replaced since; a snapshot holds only what is committed.
        replication.on_snapshot_stored(group, message.snapshot)


# --- Campaigns --------------------------------------------------------------------------------------------------------


def on_campaign(group: "Group", _: Message) -> None:
    """No sign of a leader for an election timeout (section 5.2)."""
    _maybe_campaign(group, is_pre_vote=group.options.pre_vote, context=b"")


def on_timeout_now(group: "Group", _: Message) -> None:
    """The leader wants this replica to take over: no pre-vote, for nobody is in doubt (thesis 3.10)."""
    _maybe_campaign(group, is_pre_vote=False, context=CAMPAIGN_TRANSFER)


def _maybe_campaign(group: "Group", *, is_pre_vote: bool, context: bytes) -> None:
    if not group.is_promotable:
        return
    if group.log.has_unapplied_change():
        # reachable: no campaign past a committed, unapplied change
        # This replica may not be a voter any more, or others may count differently: first it learns.
        return
    campaign(group, is_pre_vote=is_pre_vote, context=context)


def campaign(group: "Group", *, is_pre_vote: bool, context: bytes) -> None:
    """Ask all voters, this replica included, for their (pre-)votes."""
    if is_pre_vote:
        group.become_pre_candidate()
        request, response, term = MessageType.PRE_VOTE_REQUEST, MessageType.PRE_VOTE_RESPONSE, group.term + 1
    else:
        group.become_candidate()
        request, response, term = MessageType.VOTE_REQUEST, MessageType.VOTE_RESPONSE, group.term
    # The question leaves before the disk has anything of this campaign. So it claims no more than what is durable:
    # after a crash, this replica may campaign in the same term again, and be given the votes that the first one won.
    index = group.log.stable
    log_term = group.log.term_at(index) or 0
    number = group.campaign_number
    for voter in sorted(group.configuration.voters | group.configuration.voters_outgoing):
        if voter == group.node:
            # Its own vote, too, counts only once it is durable.
            group.send(Message(response, to=voter, term=term, campaign=number))
            continue
        claim = Message(request, to=voter, term=term, index=index, log_term=log_term, context=context, campaign=number)
        group.send(claim)


# --- Votes ------------------------------------------------------------------------------------------------------------


def on_vote_request(group: "Group", message: Message) -> None:
    """Give this term's vote, or say whether it would be given (section 5.2, 5.4.1; thesis 9.6)."""
    if group.admission:
        # reachable: a replica without hard state does not vote
        # Whoever lost its hard state does not know whom it has voted for.
        return
    is_pre_vote = message.type is MessageType.PRE_VOTE_REQUEST
    can_vote = (
        group.vote == message.sender
        or (group.vote == NOBODY and group.leader == NOBODY)
        or (is_pre_vote and message.term > group.term)
    )
    response = _RESPONSE[message.type]
    if can_vote and group.log.is_up_to_date(EntryId(message.index, message.log_term), group.floor):
        # A pre-vote is for the term that was asked for, which is not this replica's.
        group.send(Message(response, to=message.sender, term=message.term, campaign=message.campaign))
        if not is_pre_vote:
            # Only a vote that is given puts off this replica's own campaign.
            group.election_elapsed_ticks = 0
            group.vote = message.sender
    else:
        refusal = Message(response, to=message.sender, term=group.term, reject=True, campaign=message.campaign)
        group.send(refusal)


def on_pre_vote_response(group: "Group", message: Message) -> None:
    """A pre-candidate counts; with a majority it begins the election."""
    match _count(group, message):
        case VoteResult.WON:
            campaign(group, is_pre_vote=False, context=b"")
        case VoteResult.LOST:
            group.become_follower(group.term, NOBODY)
        case VoteResult.PENDING:
            pass


def on_vote_response(group: "Group", message: Message) -> None:
    """A candidate counts; with a majority it leads, and says so at once (section 5.2)."""
    match _count(group, message):
        case VoteResult.WON if group.node in group.votes:
            # Its own vote is among them, and so durable: no crash lets it win this term twice, with two logs.
            group.become_leader()
            replication.send_appends(group)
        case VoteResult.LOST:
            group.become_follower(group.term, NOBODY)
        case _:
            pass


def _count(group: "Group", message: Message) -> VoteResult:
    # The first answer counts: a voter does not change its mind within a term, whatever the network repeats. And only
    # an answer to this campaign: one to an earlier life of this replica, in the same term, may be of a voter that lost
    # its hard state since, was admitted again, and votes for somebody else.
    if message.campaign in (0, group.campaign_number):
        group.votes.setdefault(message.sender, not message.reject)
    return joint_vote_result(group.configuration, group.votes)


# --- Who leads --------------------------------------------------------------------------------------------------------


def on_check_quorum(group: "Group", _: Message) -> None:
    """A leader that did not hear a majority for an election timeout steps down (section 6; thesis 6.2)."""
    active = {name: progress.is_recently_active and not progress.admission for name, progress in group.progress.items()}
    active[group.node] = True
    if joint_vote_result(group.configuration, active) is not VoteResult.WON:
        group.become_follower(group.term, NOBODY)
        return
    for name, progress in group.progress.items():
        if name != group.node:
            progress.is_recently_active = False


def on_transfer(group: "Group", message: Message) -> None:
    """The leader hands over to `sender`, when that holds the whole log (thesis 3.10)."""
    to = message.sender
    progress = group.progress.get(to)
    if progress is None or progress.is_learner or progress.admission or to == group.transfer_to:
        return
    if to == group.node:
        # It stays with whom it is: a transfer that is under way is given up.
        group.transfer_to = NOBODY
        replication.maybe_leave_joint(group)
        return
    # It has an election timeout's time; until then no proposal is taken, so that the log stands still.
    group.election_elapsed_ticks = 0
    group.transfer_to = to
    if progress.match_index == group.log.last_index:
        send_timeout_now(group, to)
    else:
        replication.maybe_send_append(group, to, if_empty=True)


def send_timeout_now(group: "Group", to: str) -> None:
    """Let `to` campaign at once."""
    group.send(Message(MessageType.TIMEOUT_NOW, to=to))


def pass_to_leader(group: "Group", message: Message) -> None:
    """What only the leader can do is passed on, once; without one it is dropped."""
    if group.leader != NOBODY:
        group.send(message._replace(to=group.leader))


def on_forget_leader(group: "Group", _: Message) -> None:
    """The follower's shell knows that its leader is dead: it may vote for another at once."""
    # Under leases, the old leader may still answer reads on the strength of this replica's belief in it.
    if group.options.read_mode is not ReadMode.LEASE:
        group.leader = NOBODY


def follow(group: "Group", message: Message) -> None:
    """Whoever sends what only a leader sends, in this term, leads it (section 5.2)."""
    if group.role is not Role.FOLLOWER:
        group.become_follower(message.term, message.sender)
    group.election_elapsed_ticks = 0
    group.leader = message.sender
