"""How a group's membership changes: from one configuration to the next, or not at all.

For: the core, and whoever proposes a change. Must not know: logs, or when a change takes effect. The one idea: a change
is a function from a configuration to a configuration that refuses whatever could let two majorities decide apart: it
moves one voter, or it makes the configuration joint, where both majorities are needed (Raft paper, section 6; Ongaro's
thesis, sections 4.1 and 4.3). Rules and refusals are etcd-io/raft's, word for word, because test suites compare them.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import assert_never

from logd.raft.progress import Progress
from logd.raft.types import NOBODY, ChangeKind, ChangeStep, Configuration, ConfigurationChange, Transition


class InvalidChange(ValueError):
    """A change of membership that must not be made to this configuration. Nothing was changed."""


def change_of(configuration: Configuration, change: ConfigurationChange) -> Configuration:
    """The configuration that a change leads to, one at a time or joint as the change asks for.

    Raises: InvalidChange.
    """
    if change.leaves_joint:
        return leave_joint(configuration)
    if change.transition is not Transition.AUTO or len(change.steps) > 1:
        return enter_joint(configuration, change.steps, auto_leave=change.transition is not Transition.EXPLICIT)
    return simple(configuration, change.steps)


def simple(configuration: Configuration, steps: Iterable[ChangeStep]) -> Configuration:
    """The configuration after steps that together add or remove at most one voter.

    So any majority of the one has a node in common with any of the other (thesis, section 4.1).

    Raises: InvalidChange.
    """
    check_configuration(configuration)
    if configuration.is_joint:
        raise InvalidChange("can't apply simple config change in joint config")
    changed = _apply(configuration, steps, outgoing=frozenset(), auto_leave=False)
    if len(configuration.voters ^ changed.voters) > 1:
        raise InvalidChange("more than one voter changed without entering joint config")
    return changed


def enter_joint(configuration: Configuration, steps: Iterable[ChangeStep], *, auto_leave: bool) -> Configuration:
    """The joint configuration between this one and what the steps make of it (thesis, section 4.3).

    Arguments: `auto_leave`, whether the leader leaves it by itself.
    Raises: InvalidChange.
    """
    check_configuration(configuration)
    if configuration.is_joint:
        raise InvalidChange("config is already joint")
    if not configuration.voters:
        raise InvalidChange("can't make a zero-voter config joint")
    return _apply(configuration, steps, outgoing=configuration.voters, auto_leave=auto_leave)


def leave_joint(configuration: Configuration) -> Configuration:
    """The configuration that a joint one leads to: the outgoing voters go, or become learners if they are to.

    Raises: InvalidChange.
    """
    check_configuration(configuration)
    if not configuration.is_joint:
        raise InvalidChange("can't leave a non-joint config")
    changed = Configuration(voters=configuration.voters, learners=configuration.learners | configuration.learners_next)
    check_configuration(changed)
    return changed


def _apply(
    configuration: Configuration, steps: Iterable[ChangeStep], *, outgoing: frozenset[str], auto_leave: bool
) -> Configuration:
    """Take the steps one after the other. Steps always change the incoming voters; the outgoing ones stay."""
    voters, learners, learners_next = set(configuration.voters), set(configuration.learners), set[str]()
    for kind, node in steps:
        if node == NOBODY:
            # Whoever proposes may strike a step out so.
            continue
        if kind is ChangeKind.UPDATE or (kind is ChangeKind.ADD_LEARNER and node in learners):
            continue
        voters.discard(node)
        learners.discard(node)
        learners_next.discard(node)
        if kind is ChangeKind.ADD_VOTER:
            voters.add(node)
        elif kind is ChangeKind.ADD_LEARNER:
            # A node is never voter and learner at once, so an outgoing voter becomes a learner only when it has gone.
            (learners_next if node in outgoing else learners).add(node)
        elif kind is not ChangeKind.REMOVE:
            assert_never(kind)
    if not voters:
        raise InvalidChange("removed all voters")
    changed = Configuration(
        voters=frozenset(voters),
        voters_outgoing=outgoing,
        learners=frozenset(learners),
        learners_next=frozenset(learners_next),
        auto_leave=auto_leave,
    )
    check_configuration(changed)
    return changed


def check_configuration(configuration: Configuration) -> None:
    """Check that each node has one part in a configuration, and that only a joint one is on its way anywhere.

    Raises: InvalidChange. The empty configuration passes: every group begins with it.
    """
    for node in sorted(configuration.learners_next - configuration.voters_outgoing):
        raise InvalidChange(f"{node} is in LearnersNext, but not Voters[1]")
    for node in sorted(configuration.learners & configuration.voters_outgoing):
        raise InvalidChange(f"{node} is in Learners and Voters[1]")
    for node in sorted(configuration.learners & configuration.voters):
        raise InvalidChange(f"{node} is in Learners and Voters[0]")
    for node in sorted(configuration.learners_next & configuration.voters):
        # The one refusal that is not etcd's, whose changer does not make such a configuration either.
        raise InvalidChange(f"{node} is in LearnersNext and Voters[0]")
    if configuration.auto_leave and not configuration.is_joint:
        raise InvalidChange("AutoLeave must be false when not joint")


def describe(configuration: Configuration) -> str:
    """One line, as etcd writes it: `voters=(a b)&&(a c) learners=(d) learners_next=(c) autoleave`."""
    parts = [f"voters={_names(configuration.voters)}"]
    if configuration.is_joint:
        parts[0] += f"&&{_names(configuration.voters_outgoing)}"
    if configuration.learners:
        parts.append(f"learners={_names(configuration.learners)}")
    if configuration.learners_next:
        parts.append(f"learners_next={_names(configuration.learners_next)}")
    if configuration.auto_leave:
        parts.append("autoleave")
    return " ".join(parts)


def _names(nodes: frozenset[str]) -> str:
    return f"({' '.join(sorted(nodes))})"


def reconcile_progress(
    progress: Mapping[str, Progress], configuration: Configuration, last_index: int, make: Callable[[int], Progress]
) -> dict[str, Progress]:
    """What a leader tracks under a configuration: nodes that stay keep their progress, others come and go.

    A node that one change removes and adds again stays: it is the same replica, and what it holds is not forgotten.

    Arguments: `last_index`, the last of the leader's log, from where a new node is probed; `make`, a fresh Progress
    whose next index is the given one.
    Returns: a new dictionary, in the order of the names; the Progress objects in it are the same.
    """
    tracked = {}
    for node in sorted(configuration.members):
        known = progress.get(node)
        if known is None:
            known = make(max(last_index, 1))
            # Check-quorum must not count a node as silent that nobody could have spoken to yet.
            known.is_recently_active = True
        known.is_learner = node in configuration.learners
        tracked[node] = known
    return tracked
