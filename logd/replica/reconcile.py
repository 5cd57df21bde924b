"""Towards the voters that are wanted: one change of membership at a time.

For: the driver, which asks now and then as a leader, and before it proposes a change. Must not know: how a change is
made, or who wants it. The one idea: a node is a learner before it votes, and whoever lost its hard state is a learner
again; what would leave too few voters that are known to count is refused.
"""

from logd.raft.group import Group
from logd.raft.types import (
    ChangeKind,
    ChangeStep,
    Configuration,
    ConfigurationChange,
)


def what_endangers(raft: Group, configuration: Configuration, lag_max: int) -> str:
    """Why a configuration could not be relied on to decide anything; empty if it can."""
    known = raft.configuration.voters | raft.configuration.voters_outgoing
    # Check-quorum has just begun to ask anew if not.
    knows_who_is_there = raft.election_elapsed_ticks > 2 * raft.options.heartbeat_ticks
    for voters in (configuration.voters, configuration.voters_outgoing):
        doubtful = []
        for name in sorted(voters):
            progress = raft.progress.get(name)
            if progress is None:
                doubtful.append(f"{name} is not even a learner")
            elif progress.admission:
                doubtful.append(f"{name} has to be admitted")
            elif name != raft.node and not progress.is_recently_active and knows_who_is_there:
                doubtful.append(f"{name} is not heard")
            elif name not in known and raft.last.index - progress.match_index > lag_max:
                doubtful.append(f"{name} lacks {raft.last.index - progress.match_index} entries")
        if doubtful and 2 * (len(voters) - len(doubtful)) <= len(voters):
            return ", ".join(doubtful)
        strangers = sorted(voters - raft.configuration.members)
        if strangers:
            return f"{', '.join(strangers)}: to be a learner comes first"
        # Who never acknowledged anything may not be there at all, however short the log is.
        unheard = sorted(name for name in voters - known - {raft.node} if not raft.progress[name].match_index)
        if unheard:
            return f"{', '.join(unheard)}: nothing was heard yet"
    return ""


def next_change(raft: Group, wanted: frozenset[str] | None, lag_max: int) -> ConfigurationChange | None:
    """The next step towards the wanted voters, one at a time; None if all is as it should be, or nothing can be done.

    A replica that lost its hard state is made a learner first, by an entry that carries its word: from then on it
    counts for what it holds. A learner votes as soon as it holds nearly the whole log.
    """
    configuration = raft.configuration
    if configuration.is_joint or not raft.has_committed_in_term:
        return None
    for name, progress in raft.progress.items():
        # One that asks with a word that was applied already has yet to learn of it, or said so before it did.
        if progress.admission and progress.admission not in raft.admitted:
            if name in configuration.voters and len(configuration.voters) == 1:
                continue
            step = ChangeStep(ChangeKind.ADD_LEARNER, name)
            # reachable: a replica without hard state is proposed for admission
            return ConfigurationChange((step,), admission=progress.admission)
    if wanted is None:
        return None
    for name in sorted(wanted - configuration.voters):
        if name not in configuration.learners:
            return ConfigurationChange((ChangeStep(ChangeKind.ADD_LEARNER, name),))
        if _keeps_up(raft, name, lag_max):
            return ConfigurationChange((ChangeStep(ChangeKind.ADD_VOTER, name),))
    if not wanted <= configuration.voters:
        return None  # nobody goes before all are there who are to come
    for name in sorted(configuration.members - wanted):
        if name == raft.node and len(configuration.voters) > 1:
            _hand_over(raft, wanted & configuration.voters, lag_max)
            return None
        return ConfigurationChange((ChangeStep(ChangeKind.REMOVE, name),))
    return None


def _hand_over(raft: Group, heirs: frozenset[str], lag_max: int) -> None:
    """Let one of these lead, if there is one that can: for any other, proposals would wait in vain, again and again."""
    able = [name for name in sorted(heirs) if _keeps_up(raft, name, lag_max)]
    if able:
        raft.transfer_leader(able[0])


def _keeps_up(raft: Group, name: str, lag_max: int) -> bool:
    """Whether a member was heard lately, and holds nearly the whole log: who was never heard holds nothing."""
    progress = raft.progress[name]
    return (
        progress.is_recently_active
        and not progress.admission
        and progress.match_index > 0
        and raft.last.index - progress.match_index <= lag_max
    )


def hand_over(raft: Group) -> None:
    """Hand leadership to a voter that holds the whole log, if one is heard; by name, so that all choose alike."""
    last_index = raft.last.index
    for name in sorted(raft.configuration.voters):
        progress = raft.progress.get(name)
        if name == raft.node or progress is None or progress.admission or not progress.is_recently_active:
            continue
        if progress.match_index == last_index:
            raft.transfer_leader(name)
            return
