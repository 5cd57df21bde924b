"""Claims about changes of membership. Sections are the Raft paper's, and the thesis's where they have two numbers."""

from collections.abc import Iterator
from itertools import combinations
from random import Random

import pytest

from logd.raft.configuration import (
    InvalidChange,
    change_of,
    check_configuration,
    describe,
    enter_joint,
    leave_joint,
    reconcile_progress,
    simple,
)
from logd.raft.progress import Inflights, Progress, ProgressState
from logd.raft.quorum import VoteResult, joint_vote_result
from logd.raft.types import NOBODY, ChangeKind, ChangeStep, Configuration, ConfigurationChange, Transition

NODES = ("a", "b", "c", "d", "e", "f")
KINDS = {"+": ChangeKind.ADD_VOTER, "~": ChangeKind.ADD_LEARNER, "-": ChangeKind.REMOVE, "=": ChangeKind.UPDATE}


def steps(text: str) -> tuple[ChangeStep, ...]:
    """`+a ~b -c =d`: a becomes a voter, b a learner, c is removed, and nothing changes for d."""
    return tuple(ChangeStep(KINDS[word[0]], word[1:]) for word in text.split())


def configuration(voters: str, outgoing: str = "", learners: str = "", learners_next: str = "") -> Configuration:
    """Each argument is a word whose letters are nodes."""
    return Configuration(frozenset(voters), frozenset(outgoing), frozenset(learners), frozenset(learners_next))


# --- One at a time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "change", "after"),
    [
        (configuration("abc"), "+d", configuration("abcd")),
        (configuration("abc"), "-c", configuration("ab")),
        (configuration("abc"), "~c", configuration("ab", learners="c")),
        (configuration("ab", learners="c"), "+c", configuration("abc")),
        (configuration("ab", learners="c"), "-c", configuration("ab")),
        (configuration("abc"), "~d ~e", configuration("abc", learners="de")),
        (configuration("ab", learners="cd"), "+c -d ~e", configuration("abc", learners="e")),
        # What is there already, or gone already, changes nothing.
        (configuration("abc", learners="d"), "+a ~d -e =b", configuration("abc", learners="d")),
        # The last word on a node counts.
        (configuration("abc"), "-a +a ~d -d", configuration("abc")),
        (configuration("abc"), "", configuration("abc")),
    ],
)
def test_a_simple_change_takes_its_steps_in_order_and_moves_at_most_one_voter_4_1(
    before: Configuration, change: str, after: Configuration
) -> None:
    assert simple(before, steps(change)) == after


@pytest.mark.parametrize("change", ["+d +e", "-a -b", "-a +d", "~a +d", "~a ~b", "+d -a =b"])
def test_a_simple_change_of_two_voters_is_refused_4_1(change: str) -> None:
    with pytest.raises(InvalidChange, match=r"^more than one voter changed without entering joint config$"):
        simple(configuration("abc"), steps(change))


@pytest.mark.parametrize("change", ["-a", "~a"])
def test_the_last_voter_stays(change: str) -> None:
    for before in (configuration("a"), configuration("a", learners="b")):
        with pytest.raises(InvalidChange, match=r"^removed all voters$"):
            simple(before, steps(change))
        with pytest.raises(InvalidChange, match=r"^removed all voters$"):
            enter_joint(before, steps(change), auto_leave=True)


def test_a_group_begins_with_the_empty_configuration_and_one_voter() -> None:
    assert simple(Configuration(), steps("+a ~b")) == configuration("a", learners="b")
    with pytest.raises(InvalidChange, match=r"^removed all voters$"):
        simple(Configuration(), steps("~a"))


def test_a_step_for_nobody_is_one_that_was_struck_out() -> None:
    struck_out = [ChangeStep(kind, NOBODY) for kind in ChangeKind]
    assert simple(configuration("ab"), struck_out) == configuration("ab")


# --- Joint ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "change", "joint", "after"),
    [
        (configuration("abc"), "+d +e -a", configuration("bcde", "abc"), configuration("bcde")),
        (configuration("a"), "-a +b", configuration("b", "a"), configuration("b")),
        (configuration("abc"), "", configuration("abc", "abc"), configuration("abc")),
        # A voter is not a learner before it has ceased to be a voter.
        (configuration("abc"), "~c ~d", configuration("ab", "abc", "d", "c"), configuration("ab", learners="cd")),
        (configuration("abc"), "~c +c", configuration("abc", "abc"), configuration("abc")),
        (configuration("abc"), "~c -c", configuration("ab", "abc"), configuration("ab")),
        (configuration("abc"), "-c ~c", configuration("ab", "abc", "", "c"), configuration("ab", learners="c")),
        (configuration("ab", learners="c"), "+c -a", configuration("bc", "ab"), configuration("bc")),
        (configuration("ab", learners="c"), "-c +c ~c", configuration("ab", "ab", "c"), configuration("ab", "", "c")),
    ],
)
def test_a_joint_change_goes_by_way_of_both_majorities_4_3(
    before: Configuration, change: str, joint: Configuration, after: Configuration
) -> None:
    assert enter_joint(before, steps(change), auto_leave=False) == joint
    assert leave_joint(joint) == after


def test_only_a_joint_configuration_is_left_by_the_leader_itself() -> None:
    joint = enter_joint(configuration("ab"), steps("+c +d"), auto_leave=True)
    assert joint.auto_leave
    assert not leave_joint(joint).auto_leave


def test_a_joint_configuration_is_left_before_anything_else_changes_4_3() -> None:
    joint = configuration("bcd", "abc")
    for change in ("", "+e", "+e +f"):
        with pytest.raises(InvalidChange, match=r"^config is already joint$"):
            enter_joint(joint, steps(change), auto_leave=False)
        with pytest.raises(InvalidChange, match=r"^can't apply simple config change in joint config$"):
            simple(joint, steps(change))


def test_what_is_not_joint_cannot_be_left_and_what_is_empty_cannot_become_joint() -> None:
    for before in (Configuration(), configuration("abc")):
        with pytest.raises(InvalidChange, match=r"^can't leave a non-joint config$"):
            leave_joint(before)
    with pytest.raises(InvalidChange, match=r"^can't make a zero-voter config joint$"):
        enter_joint(Configuration(), steps("+a"), auto_leave=False)


# --- How a change is made ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transition", "change", "after"),
    [
        (Transition.AUTO, "+d", "voters=(a b c d)"),
        (Transition.AUTO, "+d +e", "voters=(a b c d e)&&(a b c) autoleave"),
        (Transition.AUTO, "~d ~e", "voters=(a b c)&&(a b c) learners=(d e) autoleave"),
        (Transition.IMPLICIT, "+d", "voters=(a b c d)&&(a b c) autoleave"),
        (Transition.IMPLICIT, "", "voters=(a b c)&&(a b c) autoleave"),
        (Transition.EXPLICIT, "+d", "voters=(a b c d)&&(a b c)"),
        (Transition.EXPLICIT, "+d ~c", "voters=(a b d)&&(a b c) learners_next=(c)"),
    ],
)
def test_a_change_says_how_it_is_made(transition: Transition, change: str, after: str) -> None:
    changed = change_of(configuration("abc"), ConfigurationChange(steps(change), transition))
    assert describe(changed) == after


def test_a_change_without_steps_leaves_a_joint_configuration() -> None:
    assert change_of(configuration("bcd", "abc"), ConfigurationChange()) == configuration("bcd")
    with pytest.raises(InvalidChange, match="can't leave"):
        change_of(configuration("abc"), ConfigurationChange())


@pytest.mark.parametrize("transition", [Transition.IMPLICIT, Transition.EXPLICIT])
def test_a_change_without_steps_that_asks_for_a_joint_configuration_does_not_leave_one(transition: Transition) -> None:
    with pytest.raises(InvalidChange, match="already joint"):
        change_of(configuration("bcd", "abc"), ConfigurationChange(transition=transition))


def test_a_configuration_reads_as_etcd_writes_it() -> None:
    assert describe(Configuration()) == "voters=()"
    whole = Configuration(frozenset("ba"), frozenset("cda"), frozenset("fe"), frozenset("dc"), auto_leave=True)
    assert describe(whole) == "voters=(a b)&&(a c d) learners=(e f) learners_next=(c d) autoleave"


@pytest.mark.parametrize(
    ("broken", "refusal"),
    [
        (configuration("ab", "", "", "c"), "c is in LearnersNext, but not Voters[1]"),
        (configuration("ab", "bc", "c"), "c is in Learners and Voters[1]"),
        (configuration("ab", "", "b"), "b is in Learners and Voters[0]"),
        (configuration("abc", "bc", "", "c"), "c is in LearnersNext and Voters[0]"),
        (Configuration(frozenset("a"), auto_leave=True), "AutoLeave must be false when not joint"),
    ],
)
def test_a_configuration_that_no_change_leads_to_is_refused_and_so_is_every_change_of_it(
    broken: Configuration, refusal: str
) -> None:
    with pytest.raises(InvalidChange) as raised:
        check_configuration(broken)
    assert str(raised.value) == refusal
    for change in (ConfigurationChange(), ConfigurationChange(steps("+a")), ConfigurationChange(steps("+a +b"))):
        with pytest.raises(InvalidChange) as raised:
            change_of(broken, change)
        assert str(raised.value) == refusal


# --- What no path of changes does -------------------------------------------------------------------------------------


def can_decide_apart(before: Configuration, after: Configuration) -> bool:
    """Whether somebody could win under `before` while others win under `after`, without a node in common."""
    everybody = before.members | after.members
    return any(
        decides(after, everybody - group)
        for count in range(len(everybody) + 1)
        for group in map(frozenset, combinations(sorted(everybody), count))
        if decides(before, group)
    )


def decides(configuration: Configuration, group: frozenset[str]) -> bool:
    votes = {node: node in group for node in configuration.members}
    return joint_vote_result(configuration, votes) is VoteResult.WON


def random_changes(chance: Random, count: int) -> Iterator[ConfigurationChange]:
    for _ in range(count):
        if chance.random() < 0.3:
            yield ConfigurationChange()  # the only way out of a joint configuration
            continue
        kinds = [
            ChangeKind.ADD_VOTER,
            ChangeKind.ADD_VOTER,
            ChangeKind.ADD_LEARNER,
            ChangeKind.REMOVE,
            ChangeKind.UPDATE,
        ]
        length = chance.choice((0, 1, 1, 2, 3, 6))
        yield ConfigurationChange(
            tuple(ChangeStep(chance.choice(kinds), chance.choice(NODES)) for _ in range(length)),
            chance.choice(list(Transition)),
        )


def test_the_check_knows_two_configurations_that_can_decide_apart() -> None:
    assert can_decide_apart(configuration("a"), configuration("b"))
    assert can_decide_apart(configuration("abc"), configuration("cde"))
    assert can_decide_apart(configuration("abc"), configuration("abcde"))
    assert not can_decide_apart(configuration("abc"), configuration("abcd"))
    assert not can_decide_apart(configuration("abc"), configuration("cde", "abc"))


@pytest.mark.parametrize("seed", range(8))
def test_no_path_of_legal_changes_lets_two_majorities_decide_apart_6(seed: int) -> None:
    chance = Random(seed)
    current, taken, joint = configuration("a"), 0, 0
    for change in random_changes(chance, 600):
        try:
            changed = change_of(current, change)
        except InvalidChange:
            continue
        assert not can_decide_apart(current, changed), (describe(current), change, describe(changed))
        current, taken, joint = changed, taken + 1, joint + changed.is_joint
    assert (taken > 150, joint > 50) == (True, True)


@pytest.mark.parametrize("seed", range(8))
def test_every_node_is_what_the_last_step_about_it_says_and_others_stay_what_they_were(seed: int) -> None:
    chance = Random(seed)
    current = configuration("a")
    for change in random_changes(chance, 600):
        try:
            changed = change_of(current, change)
        except InvalidChange:
            continue
        last_word = {node: kind for kind, node in change.steps if kind is not ChangeKind.UPDATE}
        for node in NODES:
            assert part_of(node, changed) == expected_part(node, current, changed, last_word.get(node)), change
        current = changed


def part_of(node: str, configuration: Configuration) -> tuple[bool, bool, bool]:
    return node in configuration.voters, node in configuration.learners, node in configuration.learners_next


def expected_part(
    node: str, before: Configuration, after: Configuration, last_word: ChangeKind | None
) -> tuple[bool, bool, bool]:
    """Whether a node is a voter, a learner, or is to become one."""
    if before.is_joint:
        # The only legal change is to leave.
        return node in before.voters, node in before.learners | before.learners_next, False
    match last_word:
        case None:
            return part_of(node, before)
        case ChangeKind.ADD_LEARNER:
            return False, node not in after.voters_outgoing, node in after.voters_outgoing
        case _:
            return last_word is ChangeKind.ADD_VOTER, False, False


# --- Progress ---------------------------------------------------------------------------------------------------------


def new_progress(next_index: int) -> Progress:
    return Progress(Inflights(10), next_index=next_index)


def test_a_new_node_is_probed_from_the_end_of_the_log_and_counts_as_heard() -> None:
    tracked = reconcile_progress({}, configuration("ab", learners="c"), 7, new_progress)
    assert [(node, progress.match_index, progress.next_index) for node, progress in tracked.items()] == [
        ("a", 0, 7),
        ("b", 0, 7),
        ("c", 0, 7),
    ]
    assert all(progress.state is ProgressState.PROBE and progress.is_recently_active for progress in tracked.values())
    assert [node for node, progress in tracked.items() if progress.is_learner] == ["c"]


def test_the_next_index_of_a_new_node_is_above_its_match_even_if_the_log_is_empty() -> None:
    assert reconcile_progress({}, configuration("a"), 0, new_progress)["a"].next_index == 1


def test_a_node_that_stays_keeps_its_progress_and_one_that_goes_is_forgotten() -> None:
    before = reconcile_progress({}, configuration("abc"), 3, new_progress)
    before["a"].maybe_update(3)
    after = reconcile_progress(before, configuration("ad"), 9, new_progress)
    assert after["a"] is before["a"]
    assert (list(after), after["d"].next_index) == (["a", "d"], 9)
    assert list(before) == ["a", "b", "c"]


def test_an_outgoing_voter_stays_tracked_and_becomes_a_learner_only_when_it_has_gone() -> None:
    joint = configuration("ad", "abc", learners_next="c")
    tracked = reconcile_progress({}, joint, 3, new_progress)
    assert list(tracked) == ["a", "b", "c", "d"]
    assert not tracked["c"].is_learner
    left = reconcile_progress(tracked, leave_joint(joint), 9, new_progress)
    assert list(left) == ["a", "c", "d"]
    assert left["c"] is tracked["c"]
    assert left["c"].is_learner


def test_a_learner_that_becomes_a_voter_keeps_what_it_holds() -> None:
    before = reconcile_progress({}, configuration("a", learners="b"), 3, new_progress)
    before["b"].maybe_update(3)
    after = reconcile_progress(before, configuration("ab"), 3, new_progress)
    assert (after["b"].is_learner, after["b"].match_index) == (False, 3)
