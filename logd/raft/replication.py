"""Logs: how a leader's entries reach the others, and what it concludes (section 5.3; thesis 10.2.1 for pipelining).

For: the table. Must not know: elections, beyond that there is a leader. The one idea: a leader probes where a
follower's log meets its own, then streams ahead of the answers within a bound, and falls back to probing whenever an
answer does not fit.
"""

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from logd.raft import election, reads
from logd.raft.progress import Progress, ProgressState
from logd.raft.types import (
    NOBODY,
    ConfigurationChange,
    Entry,
    EntryId,
    EntryKind,
    Message,
    MessageType,
    ProposalDropped,
    Role,
    SafetyViolation,
    Snapshot,
)

if TYPE_CHECKING:
    from logd.raft.group import Group


# --- A leader's own log -----------------------------------------------------------------------------------------------


def on_propose(group: "Group", message: Message) -> None:
    """A leader takes entries. Raises ProposalDropped, with nothing changed."""
    if group.node not in group.progress:
        raise ProposalDropped("this replica was removed from the group")
    if group.transfer_to:
        raise ProposalDropped(f"leadership is on its way to {group.transfer_to}")
    pending_before = group.pending_change_index
    for place, entry in enumerate(message.entries):
        if entry.change is None:
            continue
        problem = why_not(group, is_leaving=not entry.change.steps)
        if problem and group.options.checks_changes:
            # It keeps its place, and means nothing: whoever waits for it sees it come through without effect.
            entry.kind, entry.change = EntryKind.DATA, None
        else:
            group.pending_change_index = group.log.last_index + 1 + place
    if not append(group, message.entries):
        group.pending_change_index = pending_before
        raise ProposalDropped("too much waits to be committed")
    send_appends(group)


def why_not(group: "Group", *, is_leaving: bool) -> str:
    """Why a change of membership may not be proposed now; empty if it may (section 6; thesis 4.1 and 4.3).

    Nothing is changed before a commit in the leader's own term: before that, it does not know whether a predecessor's
    change is committed, and two changes in flight could make two disjoint majorities (Ongaro, raft-dev, 2015-07-10).
    """
    if group.pending_change_index > group.log.applied:
        return f"an earlier change may not be applied yet: entry {group.pending_change_index}"
    if group.options.changes_wait_for_own_commit and not group.has_committed_in_term:
        return "no entry of this leader's own term is committed yet"
    if group.configuration.is_joint and not is_leaving:
        return "the group must leave its joint configuration first"
    if not group.configuration.is_joint and is_leaving:
        return "the group is in no joint configuration"
    return ""


def append(group: "Group", entries: Sequence[Entry]) -> bool:
    """Give entries their places at the end of a leader's log. False, with nothing changed, if they are too much."""
    size_bytes = sum(entry.size_bytes for entry in entries)
    # One is always taken, however large: else it never would be. And so is what has no payload: a leader must be able
    # to begin its term, and to leave a joint configuration.
    if (
        group.uncommitted_bytes
        and size_bytes
        and (group.uncommitted_bytes + size_bytes > group.options.uncommitted_bytes_max)
    ):
        return False
    group.uncommitted_bytes += size_bytes
    for place, entry in enumerate(entries):
        entry.index = group.log.last_index + 1 + place
        entry.term = group.term
    group.log.append(entries)
    # The leader's own log counts towards the majority when it is durable, no sooner.
    group.send(Message(MessageType.APPEND_RESPONSE, to=group.node, index=group.log.last_index))
    return True


# --- To the others ----------------------------------------------------------------------------------------------------


def send_appends(group: "Group") -> None:
    """Tell every member what is new: entries, or the commit."""
    for name in group.progress:
        if name != group.node:
            maybe_send_append(group, name, if_empty=True)


def maybe_send_append(group: "Group", to: str, *, if_empty: bool) -> bool:
    """Send what `to` needs next, if it may be sent now. With `if_empty`, also if that is only the commit."""
    progress = group.progress[to]
    if progress.is_paused:
        return False
    log = group.log
    if progress.state is ProgressState.REPLICATE and not log.is_in_memory(progress.next_index):
        # reachable: a follower falls behind the window
        # What comes next left memory: from here on one range at a time, each answered before the next is asked for.
        progress.become_probe()
    previous_index = progress.next_index - 1
    if previous_index < log.snapshot.index:
        # reachable: a follower needs a snapshot
        return _maybe_send_snapshot(group, to, progress)
    if not log.is_in_memory(progress.next_index):
        # reachable: a follower is fed a range
        return _send_range(group, to, progress)
    entries: list[Entry] = []
    if progress.next_index <= log.last_index and (
        progress.state is not ProgressState.REPLICATE or not progress.inflights.is_full
    ):
        entries = log.entries_from(progress.next_index, log.last_index + 1, group.options.message_bytes_max)
    if not entries and not if_empty:
        return False
    group.send(
        Message(
            MessageType.APPEND,
            to=to,
            index=previous_index,
            log_term=log.term_at(previous_index) or 0,
            commit=log.commit,
            entries=tuple(entries),
            chain=log.chain_at(previous_index),
        )
    )
    progress.sent_entries(len(entries), sum(entry.size_bytes for entry in entries))
    progress.sent_commit_index(log.commit)
    return True


def _send_range(group: "Group", to: str, progress: Progress) -> bool:
    """Let the shell read from disk what left memory."""
    log, previous_index = group.log, progress.next_index - 1
    group.send(
        Message(
            MessageType.APPEND,
            to=to,
            index=previous_index,
            log_term=log.term_at(previous_index) or 0,
            commit=log.commit,
            range=log.range_from(progress.next_index, group.options.message_bytes_max),
            chain=log.chain_at(previous_index),
        )
    )
    # Counted as one entry, so that nothing more is sent until it is answered, or a heartbeat shows that it was lost.
    progress.sent_entries(1, 0)
    progress.sent_commit_index(log.commit)
    return True


def _maybe_send_snapshot(group: "Group", to: str, progress: Progress) -> bool:
    """What the follower needs is not retained any more: it begins anew behind a snapshot (section 7)."""
    if not progress.is_recently_active:
        return False
    snapshot = group.log.offered
    assert snapshot.index >= group.log.snapshot.index
    progress.become_snapshot(snapshot.index)
    group.send(Message(MessageType.SNAPSHOT, to=to, snapshot=snapshot))
    return True


# --- What the others answer -------------------------------------------------------------------------------------------


def on_append_response(group: "Group", message: Message) -> None:
    """A member says how far its log is durable, or that the entries did not fit."""
    name = message.sender
    progress = group.progress[name]  # whoever is no member was not let through
    progress.is_recently_active = True
    _note_condition(progress, message)
    if message.reject:
        _on_refusal(group, progress, message)
    elif message.index > group.log.last_index:
        raise SafetyViolation(f"{name} holds entry {message.index} of this leader, whose log ends at {group.log.last}")
    elif progress.maybe_update(message.index) or (
        progress.match_index == message.index and progress.state is ProgressState.PROBE
    ):
        _on_news(group, name, progress)


def _on_refusal(group: "Group", progress: Progress, message: Message) -> None:
    """What was sent does not follow on what stands there: go back to where the logs may meet."""
    next_probe = message.reject_hint
    if message.log_term > 0:
        # reachable: a refusal with a hint skips a term
        # Skip a whole term a message: above that entry the two logs cannot agree (section 5.3, the optimisation).
        next_probe, _ = group.log.find_conflict_by_term(message.reject_hint, message.log_term)
    if progress.maybe_decrease(message.index, next_probe):
        if progress.state is ProgressState.REPLICATE:
            progress.become_probe()
        maybe_send_append(group, message.sender, if_empty=True)
    elif message.is_damaged or message.admission:
        # reachable: a damaged follower is sent what it lost
        # Its match was lowered just now, or it is asked again for what it lost: there is something to send.
        maybe_send_append(group, message.sender, if_empty=True)


def _on_news(group: "Group", name: str, progress: Progress) -> None:
    """A member holds more than was known, or the probe met its log."""
    if progress.state is ProgressState.PROBE:
        progress.become_replicate()
    elif progress.state is ProgressState.REPLICATE:
        progress.inflights.free_up_to(progress.match_index)
    elif progress.match_index + 1 >= group.log.first_index:
        # reachable: a follower goes on from the log after a snapshot
        # It can go on from the log, whether by the snapshot or without it.
        progress.become_probe()
        progress.become_replicate()
    if group.maybe_commit():
        reads.release_early(group)
        send_appends(group)
    elif name != group.node and progress.can_bump_commit(group.log.commit):
        maybe_send_append(group, name, if_empty=True)
    if name == group.node:
        return
    # Room was made among what is in flight: fill it.
    while maybe_send_append(group, name, if_empty=False):
        pass
    if name == group.transfer_to and progress.match_index == group.log.last_index:
        # reachable: a transfer goes on when its target has caught up
        election.send_timeout_now(group, name)


def _note_condition(progress: Progress, message: Message) -> None:
    """What a member says of itself: how far it knows the commit, and whether it is whole."""
    progress.admission = message.admission
    if message.admission:
        # reachable: a replica without hard state answers its leader
        # It may have known more, and does not any more.
        progress.acknowledged_commit = message.commit
    else:
        progress.acknowledged_commit = max(progress.acknowledged_commit, message.commit)
    if (message.is_damaged or message.admission) and message.last_index < progress.match_index:
        # reachable: a damaged follower lowers its match
        # The one thing that lowers a match: it knows, and says, that it does not hold any more what it acknowledged.
        # What is committed stays committed, for the commit never goes back.
        progress.lower_match(message.last_index)


def on_heartbeat_response(group: "Group", message: Message) -> None:
    """A member is alive: go on sending, if the last message to it may have been lost."""
    progress = group.progress[message.sender]
    progress.is_recently_active = True
    progress.is_append_paused = False
    _note_condition(progress, message)
    if progress.match_index < group.log.last_index or progress.state is ProgressState.PROBE:
        maybe_send_append(group, message.sender, if_empty=True)
    if not message.admission:
        reads.on_confirmation(group, message.sender, message.context)


def on_snapshot_status(group: "Group", message: Message) -> None:
    """The shell knows whether a snapshot arrived."""
    progress = group.progress.get(message.sender)
    if progress is None or progress.state is not ProgressState.SNAPSHOT:
        return
    if message.reject:
        progress.pending_snapshot = 0
    progress.become_probe()
    # If it arrived, its answer comes next; if not, the next heartbeat's answer begins again.
    progress.is_append_paused = True


def on_unreachable(group: "Group", message: Message) -> None:
    """What was streamed ahead is probably lost: probe again."""
    progress = group.progress.get(message.sender)
    if progress is not None and progress.state is ProgressState.REPLICATE:
        progress.become_probe()


# --- A follower's log -------------------------------------------------------------------------------------------------


def on_append(group: "Group", message: Message) -> None:
    """Take the leader's entries if they follow what stands here, or say where the logs may meet (section 5.3)."""
    election.follow(group, message)
    log = group.log
    if message.index < log.commit:
        # reachable: an append below the commit
        # Everything up to the commit is known to be the leader's; nothing there is ever replaced.
        _accept(group, message.sender, log.commit)
        return
    previous = EntryId(message.index, message.log_term)
    last_index = log.maybe_append(previous, message.chain, message.entries, message.commit)
    if last_index is not None:
        group.settle_floor()
        _accept(group, message.sender, last_index)
        return
    # Where the logs differ by many entries of many terms, the leader could probe for long: the answer names the last
    # place here whose term is not above the leader's at that place.
    hint, term = log.find_conflict_by_term(min(message.index, log.last_index), message.log_term)
    response = Message(
        MessageType.APPEND_RESPONSE, message.sender, index=message.index, reject=True, reject_hint=hint, log_term=term
    )
    group.send(with_condition(group, response))


def _accept(group: "Group", to: str, index: int) -> None:
    """Answer that the log is the leader's up to `index`; it leaves when that is durable."""
    response = Message(MessageType.APPEND_RESPONSE, to=to, index=index, commit=group.log.commit)
    group.send(with_condition(group, response))


def with_condition(group: "Group", message: Message) -> Message:
    """Every answer to a leader says if this replica lost something: what does not say so clears it of that."""
    if not group.is_damaged and not group.admission:
        return message
    return message._replace(is_damaged=group.is_damaged, admission=group.admission, last_index=group.log.last_index)


def on_heartbeat(group: "Group", message: Message) -> None:
    """The leader is alive, and knows that this replica holds what it says is committed."""
    election.follow(group, message)
    commit = message.commit
    if group.is_damaged or group.admission:
        # reachable: a damaged follower is told of a commit beyond its log
        # The leader may not know yet what was lost here.
        commit = min(commit, group.log.last_index)
    group.log.commit_to(commit)
    response = Message(
        MessageType.HEARTBEAT_RESPONSE, to=message.sender, commit=group.log.commit, context=message.context
    )
    group.send(with_condition(group, response))


def on_snapshot(group: "Group", message: Message) -> None:
    """Begin anew behind a snapshot, if it brings anything (section 7)."""
    election.follow(group, message)
    assert message.snapshot is not None
    if _restore(group, message.snapshot):
        group.settle_floor()
        _accept(group, message.sender, group.log.last_index)
    else:
        _accept(group, message.sender, group.log.commit)


def _restore(group: "Group", snapshot: Snapshot) -> bool:
    if snapshot.index <= group.log.commit:
        return False
    if group.node not in snapshot.configuration.members and not group.options.snapshot_is_start:
        return False
    if group.log.matches(snapshot.id):
        # reachable: a snapshot of what the log holds already
        # The log has it, and more: it only tells how far the commit is.
        group.log.commit_to(snapshot.index)
        return False
    group.log.restore(snapshot)
    group.install_configuration(snapshot.configuration)
    return True


# --- What the disk and the shell answer -------------------------------------------------------------------------------


def on_stored(group: "Group", message: Message) -> None:
    """The disk has what was handed out (the message's term is this one: see `Group.take_ready`)."""
    if message.index:
        group.log.stable_to(EntryId(message.index, message.log_term))
    if message.snapshot is not None:
        on_snapshot_stored(group, message.snapshot)
    if message.admission == group.admission:
        # Only now is it like any other: a crash will find the hard state.
        group.admission = b""


def on_snapshot_stored(group: "Group", snapshot: Snapshot) -> None:
    """A snapshot replaced the log on disk; it counts as applied."""
    pending = group.log.pending_snapshot
    if pending is not None and pending.index > snapshot.index:
        # A newer one is on its way, whose configuration is in force already.
        return
    group.log.stable_snapshot(snapshot.index)
    _applied_to(group, snapshot.index, 0)


def on_applied(group: "Group", message: Message) -> None:
    """Entries were applied."""
    if message.entries:
        size_bytes = sum(entry.size_bytes for entry in message.entries)
        _applied_to(group, message.entries[-1].index, size_bytes)
        group.uncommitted_bytes = max(group.uncommitted_bytes - size_bytes, 0)


def _applied_to(group: "Group", index: int, size_bytes: int) -> None:
    group.log.applied_to(max(index, group.log.applied), size_bytes)
    maybe_leave_joint(group)


def maybe_leave_joint(group: "Group") -> None:
    """Leave a joint configuration that is in force, without being asked, if it is one to be left so (thesis 4.3)."""
    if group.role is Role.LEADER and group.configuration.auto_leave and group.log.applied >= group.pending_change_index:
        change = Entry(0, 0, EntryKind.CONFIGURATION, change=ConfigurationChange())
        # reachable: a joint configuration is left by the leader itself
        # Dropped while a transfer is under way: the next leader tries again, or this one when the transfer failed.
        with contextlib.suppress(ProposalDropped):
            group.step(Message(MessageType.PROPOSE, sender=group.node, entries=(change,)))


def on_proposal_without_lead(group: "Group", message: Message) -> None:
    """A follower passes proposals on, if it is asked to; a candidate has nobody to pass them to."""
    if group.role is Role.FOLLOWER and group.leader != NOBODY and group.options.forwards_proposals:
        group.send(message._replace(to=group.leader))
        return
    raise ProposalDropped("this replica does not lead")
