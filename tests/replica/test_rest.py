"""Claims about groups at rest: two nodes agree in the end on which of them are, whatever becomes of the beats."""

from collections.abc import Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from logd.replica.frames import Beat
from logd.replica.rest import SILENT_TICKS_MAX, Rest

TERM, INDEX = 3, 9


class Side:
    """One node's part, and what its replicas would say."""

    def __init__(self, name: str, life: int = 1, level: int = 2) -> None:
        self.name = name
        self.rest = Rest(life, level)
        self.refused: set[int] = set()
        """Groups whose replica is not where the leader believes it to be."""
        self.woken: list[int] = []

    def can_rest(self, peer: str, group: int, term: int, index: int) -> bool:
        return group not in self.refused and (term, index) == (TERM, INDEX)

    def hear(self, peer: "Side", beat: Beat) -> None:
        self.rest.note_level(peer.name, peer.rest.level)
        self.wake(self.rest.on_beat(peer.name, beat, self.can_rest))

    def wake(self, groups: Iterable[int]) -> None:
        for group in groups:
            self.woken.append(group)
            self.rest.rouse(group)

    def tick(self, *, hangs: bool = False) -> dict[str, Beat]:
        self.wake(self.rest.tick(hangs=hangs))
        return self.rest.take_beats()

    def lay(self, group: int, *others: str) -> None:
        self.rest.lay(group, TERM, INDEX, others)


def pair(level: int = 2) -> tuple[Side, Side]:
    """A leader and a follower that have heard each other speak."""
    leader, follower = Side("n1", 11), Side("n2", 22, level)
    leader.rest.note_level("n2", level)
    follower.rest.note_level("n1", 2)
    return leader, follower


def exchange(leader: Side, follower: Side, times: int = 1) -> None:
    for _ in range(times):
        for beat in leader.tick().values():
            follower.hear(leader, beat)
        for beat in follower.tick().values():
            leader.hear(follower, beat)


def resting(*groups: int) -> tuple[Side, Side]:
    """These groups rest at both."""
    leader, follower = pair()
    for group in groups:
        leader.lay(group, "n2")
    # The first beats of both lives wake what had rested before they were heard.
    exchange(leader, follower, 2)
    for group in groups:
        leader.lay(group, "n2")
    exchange(leader, follower, 2)
    assert all(side.rest.is_resting(group) for side in (leader, follower) for group in groups)
    leader.woken.clear()
    follower.woken.clear()
    return leader, follower


# --- Coming to rest ---------------------------------------------------------------------------------------------------


def test_a_group_rests_at_the_leader_at_once_and_at_the_follower_when_it_hears_so() -> None:
    leader, follower = pair()
    leader.lay(1, "n2")
    assert leader.rest.is_resting(1)
    assert not follower.rest.is_resting(1)
    exchange(leader, follower)
    assert follower.rest.is_resting(1)


def test_a_replica_that_is_elsewhere_goes_on_and_rests_when_it_is_there() -> None:
    leader, follower = pair()
    follower.refused = {1}
    leader.lay(1, "n2")
    leader.lay(2, "n2")
    exchange(leader, follower, 2)
    leader.lay(1, "n2")
    leader.lay(2, "n2")
    exchange(leader, follower, 2)
    assert (follower.rest.is_resting(1), follower.rest.is_resting(2)) == (False, True)
    follower.refused.clear()
    exchange(leader, follower)
    assert follower.rest.is_resting(1)


def test_a_beat_tells_only_what_changed_once_the_list_is_known() -> None:
    leader, follower = resting(*range(1, 50))
    (beat,) = leader.tick().values()
    assert (beat.resting, beat.awake, beat.base) == ([], [], beat.generation)
    follower.hear(leader, beat)
    leader.rest.rouse(7)
    leader.lay(70, "n2")
    (beat,) = leader.tick().values()
    assert beat.base
    assert beat.generation == beat.base + 2
    assert (beat.resting, beat.awake) == ([(70, TERM, INDEX)], [7])
    follower.hear(leader, beat)
    assert not follower.rest.is_resting(7)
    assert follower.rest.is_resting(70)
    assert follower.woken == [7]


def test_what_changed_to_and_fro_travels_as_it_is_now() -> None:
    leader, follower = resting(1, 2)
    for _ in range(3):
        leader.rest.rouse(1)
        leader.lay(1, "n2")
    (beat,) = leader.tick().values()
    assert (beat.resting, beat.awake) == ([(1, TERM, INDEX)], [])
    follower.hear(leader, beat)
    assert follower.rest.is_resting(1)


def test_the_changes_that_nobody_answers_are_bounded() -> None:
    leader, _ = resting(1)
    for _ in range(1_000):
        leader.rest.rouse(1)
        leader.lay(1, "n2")
    (beat,) = leader.tick().values()
    # Telling all of it is shorter.
    assert beat.base == 0
    assert beat.resting == [(1, TERM, INDEX)]


def test_a_group_rests_only_if_all_others_speak_the_level() -> None:
    leader, follower = pair(level=1)
    leader.lay(1, "n2")
    assert not leader.rest.is_resting(1)
    older = Rest(1, 1)
    older.note_level("n2", 2)
    older.lay(1, TERM, INDEX, ["n2"])
    assert not older.is_resting(1)
    assert not leader.tick()
    assert not follower.tick()


def test_who_was_never_heard_of_keeps_a_group_awake() -> None:
    side = Side("n1")
    side.lay(1, "n2")
    assert not side.rest.is_resting(1)


# --- Beats that are lost, late or repeated ----------------------------------------------------------------------------


@pytest.mark.parametrize("lost", range(1, SILENT_TICKS_MAX))
def test_a_few_lost_beats_wake_nobody(lost: int) -> None:
    leader, follower = resting(1)
    for _ in range(lost):
        leader.tick()
        follower.tick()
    exchange(leader, follower)
    assert leader.rest.is_resting(1)
    assert follower.rest.is_resting(1)
    assert not leader.woken + follower.woken


def test_silence_wakes_what_rests_on_either_side() -> None:
    leader, follower = resting(1, 2)
    for _ in range(SILENT_TICKS_MAX + 1):
        leader.tick()
        follower.tick()
    assert leader.woken == follower.woken == [1, 2]
    # Nor does anything come to rest with a node that is silent.
    leader.lay(1, "n2")
    assert not leader.rest.is_resting(1)


def test_silence_of_one_wakes_nothing_that_rests_with_others() -> None:
    side = Side("n1", 11)
    others = {name: Side(name, number) for number, name in enumerate(("n2", "n3"), start=20)}
    for _ in range(2):
        for group, peer in ((2, "n2"), (3, "n3")):
            side.rest.note_level(peer, 2)
            side.lay(group, peer)
        for peer, beat in side.tick().items():
            others[peer].hear(side, beat)
        for other in others.values():
            for beat in other.tick().values():
                side.hear(other, beat)
    side.lay(2, "n2")
    side.lay(3, "n3")
    for _ in range(SILENT_TICKS_MAX + 1):
        for peer, beat in side.tick().items():
            others[peer].hear(side, beat)
        for beat in others["n3"].tick().values():
            side.hear(others["n3"], beat)
    assert not side.rest.is_resting(2)
    assert side.rest.is_resting(3)


def test_what_was_missed_is_told_again() -> None:
    leader, follower = resting(1, 2)
    leader.rest.rouse(1)
    leader.tick()  # lost
    leader.lay(3, "n2")
    leader.tick()  # lost
    exchange(leader, follower)
    assert [follower.rest.is_resting(group) for group in (1, 2, 3)] == [False, True, True]


def test_a_beat_that_was_overtaken_changes_nothing() -> None:
    leader, follower = resting(1)
    (old,) = leader.tick().values()
    leader.rest.rouse(1)
    (new,) = leader.tick().values()
    follower.hear(leader, new)
    assert not follower.rest.is_resting(1)
    follower.hear(leader, old)
    assert not follower.rest.is_resting(1)


def test_a_beat_that_comes_twice_changes_nothing() -> None:
    leader, follower = resting(1)
    leader.lay(2, "n2")
    (beat,) = leader.tick().values()
    follower.hear(leader, beat)
    follower.rest.rouse(1)
    follower.refused = {1}
    follower.hear(leader, beat)
    assert not follower.rest.is_resting(1)
    assert follower.rest.is_resting(2)


def test_an_answer_that_was_overtaken_takes_no_knowledge_back() -> None:
    leader, follower = resting(1)
    (late,) = follower.tick().values()
    for group in (2, 3):
        leader.lay(group, "n2")
        exchange(leader, follower)
    leader.hear(follower, late)
    exchange(leader, follower)
    assert all(follower.rest.is_resting(group) for group in (1, 2, 3))
    leader.rest.rouse(2)
    exchange(leader, follower)
    assert [follower.rest.is_resting(group) for group in (1, 2, 3)] == [True, False, True]


# --- Lives ------------------------------------------------------------------------------------------------------------


def test_a_leader_that_begins_anew_has_no_group_at_rest() -> None:
    leader, follower = resting(1, 2)
    anew = Side("n1", 12)
    anew.rest.note_level("n2", 2)
    anew.lay(5, "n2")
    exchange(anew, follower)
    assert sorted(follower.woken) == [1, 2]
    assert not follower.rest.is_resting(1)
    assert follower.rest.is_resting(5)
    assert leader.rest.is_resting(1)


def test_a_follower_that_begins_anew_wakes_the_groups_and_is_told_all_of_them() -> None:
    leader, _ = resting(1, 2)
    anew = Side("n2", 23)
    anew.refused = {1, 2}  # it knows no leader yet
    exchange(leader, anew, 2)
    assert sorted(leader.woken) == [1, 2]
    anew.refused.clear()
    leader.lay(1, "n2")
    leader.lay(2, "n2")
    exchange(leader, anew, 2)
    assert all(side.rest.is_resting(group) for side in (leader, anew) for group in (1, 2))


def test_a_node_whose_disk_hangs_gives_no_sign_of_life_and_wakes_what_it_leads() -> None:
    leader, follower = resting(1)
    assert not leader.tick(hangs=True)
    assert leader.woken == [1]
    for _ in range(SILENT_TICKS_MAX + 1):
        leader.tick(hangs=True)
        follower.tick()
    assert follower.woken == [1]


def test_a_group_that_is_gone_rests_nowhere() -> None:
    leader, follower = resting(1)
    follower.rest.rouse(1)
    leader.rest.rouse(1)
    exchange(leader, follower)
    assert not leader.rest.is_resting(1)
    assert not follower.rest.is_resting(1)
    leader.rest.rouse(1)
    follower.rest.rouse(99)


# --- Whatever happens -------------------------------------------------------------------------------------------------

GROUPS = st.integers(1, 4)


class RestMachine(RuleBasedStateMachine):
    """Two nodes that both lead groups, beats that are lost, late and repeated, and starts of either.

    Groups 1 and 2 are led by n1, 3 and 4 by n2.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lives = 10
        self.sides = {name: self.begin(name) for name in ("n1", "n2")}
        self.way: list[tuple[str, Side, Beat]] = []

    def begin(self, name: str) -> Side:
        self.lives += 1
        side = Side(name, self.lives)
        side.rest.note_level("n2" if name == "n1" else "n1", 2)
        # Groups that the other leads; not one's own.
        return side

    def leader(self, group: int) -> Side:
        return self.sides["n1" if group <= 2 else "n2"]

    def follower(self, group: int) -> Side:
        return self.sides["n2" if group <= 2 else "n1"]

    def hear(self, to: str, sender: Side, beat: Beat) -> None:
        side = self.sides[to]
        # A replica that is led by this node does not follow another.
        own = {1, 2} if to == "n1" else {3, 4}
        refused, side.refused = side.refused, side.refused | own
        side.hear(sender, beat)
        side.refused = refused

    @rule(group=GROUPS)
    def lay(self, group: int) -> None:
        self.leader(group).lay(group, self.follower(group).name)

    @rule(group=GROUPS)
    def rouse_leader(self, group: int) -> None:
        self.leader(group).rest.rouse(group)

    @rule(group=GROUPS)
    def rouse_follower(self, group: int) -> None:
        """Whatever woke it there reaches the leader as well."""
        self.follower(group).rest.rouse(group)
        self.leader(group).rest.rouse(group)

    @rule(group=GROUPS, is_there=st.booleans())
    def move(self, group: int, is_there: bool) -> None:
        if is_there:
            self.follower(group).refused.discard(group)
        else:
            # Its log moves only by messages, which wake it.
            self.follower(group).refused.add(group)
            self.follower(group).rest.rouse(group)
            self.leader(group).rest.rouse(group)

    @rule(name=st.sampled_from(["n1", "n2"]))
    def tick(self, name: str) -> None:
        side = self.sides[name]
        for to, beat in side.tick().items():
            self.way.append((to, side, beat))

    @precondition(lambda self: self.way)
    @rule(place=st.integers(0, 5), keeps=st.booleans())
    def arrive(self, place: int, keeps: bool) -> None:
        place %= len(self.way)
        to, sender, beat = self.way[place]
        if not keeps:
            del self.way[place]
        self.hear(to, sender, beat)

    @precondition(lambda self: self.way)
    @rule(place=st.integers(0, 5))
    def lose(self, place: int) -> None:
        del self.way[place % len(self.way)]

    @rule(name=st.sampled_from(["n1", "n2"]))
    def start_anew(self, name: str) -> None:
        self.sides[name] = self.begin(name)

    @invariant()
    def a_group_rests_as_led_here_or_on_the_word_of_a_peer(self) -> None:
        for side in self.sides.values():
            assert not side.rest._laid.keys() & side.rest._resting_by.keys()
            accepted = [group for heard in side.rest._heard.values() for group in heard.accepted]
            assert sorted(accepted) == sorted(side.rest._resting_by)

    def teardown(self) -> None:
        """When beats arrive again, both sides agree, and nothing rests at a follower that is awake at its leader."""
        for _ in range(SILENT_TICKS_MAX + 4):
            for name, other in (("n1", "n2"), ("n2", "n1")):
                for beat in self.sides[name].tick().values():
                    self.hear(other, self.sides[name], beat)
        for group in range(1, 5):
            at_leader = self.leader(group).rest.is_resting(group)
            at_follower = self.follower(group).rest.is_resting(group)
            assert at_follower == (at_leader and group not in self.follower(group).refused)


TestRestMachine = RestMachine.TestCase
TestRestMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
