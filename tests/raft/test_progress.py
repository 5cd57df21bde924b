"""Claims about what a leader knows of a replica, and about how much it may send."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logd.raft.progress import Inflights, Progress, ProgressState
from logd.raft.types import ProgressStatus

PROBE, REPLICATE, SNAPSHOT = ProgressState.PROBE, ProgressState.REPLICATE, ProgressState.SNAPSHOT


def progress(
    state: ProgressState = PROBE, match_index: int = 0, next_index: int = 1, messages_max: int = 256
) -> Progress:
    return Progress(Inflights(messages_max), state=state, match_index=match_index, next_index=next_index)


def waiting(state: ProgressState, *, paused: bool) -> Progress:
    replica = progress(state)
    replica.is_append_paused = paused
    return replica


# --- Inflights --------------------------------------------------------------------------------------------------------


def test_inflights_are_bounded_by_number() -> None:
    inflights = Inflights(2)
    inflights.add(3, 10)
    assert (inflights.count, inflights.is_full) == (1, False)
    inflights.add(5, 1 << 40)
    assert (inflights.count, inflights.is_full) == (2, True)
    with pytest.raises(AssertionError, match="beyond the bound"):
        inflights.add(6, 0)


def test_inflights_are_bounded_by_bytes_and_the_message_that_reaches_the_bound_is_taken() -> None:
    inflights = Inflights(100, 300)
    inflights.add(1, 299)
    assert (inflights.count, inflights.is_full) == (1, False)
    inflights.add(2, 500)
    assert (inflights.count, inflights.is_full) == (2, True)
    inflights.free_up_to(1)
    assert (inflights.is_full, inflights.count, inflights.bytes) == (True, 1, 500)
    inflights.free_up_to(2)
    assert (inflights.is_full, inflights.count, inflights.bytes) == (False, 0, 0)


def test_inflights_of_no_messages_are_always_full() -> None:
    assert Inflights(0).is_full


def test_an_answer_frees_all_messages_up_to_it_and_none_beyond() -> None:
    inflights = Inflights(10)
    for index in (3, 5, 7, 9):
        inflights.add(index, index)
    for answered, count, size_bytes in ((2, 4, 24), (3, 3, 21), (4, 3, 21), (7, 1, 9), (6, 1, 9), (100, 0, 0)):
        inflights.free_up_to(answered)
        assert (inflights.count, inflights.bytes) == (count, size_bytes)


def test_inflights_can_be_used_again_after_a_reset() -> None:
    inflights = Inflights(2, 100)
    for _ in range(5):
        inflights.add(1, 60)
        inflights.add(2, 60)
        assert inflights.is_full
        inflights.reset()
        assert (inflights.count, inflights.bytes, inflights.is_full) == (0, 0, False)


@given(st.integers(1, 6), st.integers(0, 40), st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=60))
def test_inflights_are_what_was_added_and_not_answered(
    messages_max: int, bytes_max: int, moves: list[tuple[bool, int]]
) -> None:
    inflights, sent, index = Inflights(messages_max, bytes_max), list[tuple[int, int]](), 0
    for is_answer, amount in moves:
        if is_answer:
            answered = max(index - amount, 0)
            inflights.free_up_to(answered)
            sent = [message for message in sent if message[0] > answered]
        elif not inflights.is_full:
            index += amount
            inflights.add(index, amount)
            sent.append((index, amount))
        held_bytes = sum(size_bytes for _, size_bytes in sent)
        assert (inflights.count, inflights.bytes) == (len(sent), held_bytes)
        assert inflights.is_full == (len(sent) == messages_max or (bytes_max > 0 and held_bytes >= bytes_max))


# --- Transitions ------------------------------------------------------------------------------------------------------


def test_a_new_replica_is_probed_from_the_first_entry_and_counts_for_all_that_it_says() -> None:
    new = Progress(Inflights(256))
    assert new.status() == ProgressStatus(
        "probe",
        match_index=0,
        next_index=1,
        is_learner=False,
        is_paused=False,
        is_recently_active=False,
        pending_snapshot=0,
        inflight_messages=0,
    )
    assert (new.admission, new.acknowledged_commit, new.sent_commit) == (b"", 0, 0)


def test_a_probe_begins_just_behind_the_match() -> None:
    replica = progress(REPLICATE, 1, 5)
    replica.sent_commit = 4
    replica.become_probe()
    assert (replica.state, replica.match_index, replica.next_index) == (PROBE, 1, 2)
    assert replica.sent_commit == 1


def test_a_probe_after_a_snapshot_that_arrived_begins_behind_the_snapshot() -> None:
    replica = progress(PROBE, 1, 5)
    replica.become_snapshot(10)
    replica.become_probe()
    assert (replica.state, replica.match_index, replica.next_index) == (PROBE, 1, 11)
    assert (replica.pending_snapshot, replica.sent_commit) == (0, 10)


def test_a_probe_after_a_snapshot_that_was_lost_begins_behind_the_match() -> None:
    replica = progress(PROBE, 1, 5)
    replica.become_snapshot(10)
    replica.pending_snapshot = 0  # how the core says that it was lost
    replica.become_probe()
    assert (replica.state, replica.match_index, replica.next_index) == (PROBE, 1, 2)
    assert replica.sent_commit == 1


def test_a_probe_after_a_snapshot_that_was_overtaken_begins_behind_the_match() -> None:
    replica = progress(PROBE, 1, 5)
    replica.become_snapshot(10)
    assert replica.maybe_update(12)
    replica.become_probe()
    assert (replica.match_index, replica.next_index) == (12, 13)


def test_replication_begins_just_behind_the_match() -> None:
    replica = progress(PROBE, 1, 5)
    replica.become_replicate()
    assert (replica.state, replica.match_index, replica.next_index) == (REPLICATE, 1, 2)


def test_a_snapshot_carries_its_own_commit_and_what_follows_begins_behind_it() -> None:
    replica = progress(PROBE, 1, 5)
    replica.become_snapshot(10)
    assert (replica.state, replica.match_index, replica.next_index) == (SNAPSHOT, 1, 11)
    assert (replica.pending_snapshot, replica.sent_commit) == (10, 10)
    assert not replica.can_bump_commit(20)


@pytest.mark.parametrize(
    "become", [Progress.become_probe, Progress.become_replicate, lambda replica: replica.become_snapshot(9)]
)
def test_every_transition_forgets_what_was_waited_for(become: Callable[[Progress], None]) -> None:
    replica = progress(REPLICATE, 1, 2, messages_max=1)
    replica.sent_entries(1, 100)
    assert (replica.inflights.count, replica.is_append_paused) == (1, True)
    become(replica)
    assert (replica.inflights.count, replica.inflights.bytes, replica.is_append_paused) == (0, 0, False)


# --- Sending ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "is_append_paused", "is_paused"),
    [
        (PROBE, False, False),
        (PROBE, True, True),
        (REPLICATE, False, False),
        (REPLICATE, True, True),
        (SNAPSHOT, False, True),
        (SNAPSHOT, True, True),
    ],
)
def test_entries_wait_for_an_answer_or_for_the_snapshot(
    state: ProgressState, is_append_paused: bool, is_paused: bool
) -> None:
    assert waiting(state, paused=is_append_paused).is_paused is is_paused


def test_a_probe_with_entries_is_waited_for_and_does_not_move_on() -> None:
    replica = progress(PROBE, 3, 5)
    replica.sent_entries(2, 100)
    assert (replica.is_paused, replica.next_index, replica.inflights.count) == (True, 5, 0)


def test_a_probe_without_entries_is_not_waited_for_and_ends_no_wait() -> None:
    replica = progress(PROBE, 3, 5)
    replica.sent_entries(0, 0)
    assert not replica.is_paused
    replica.sent_entries(1, 10)
    replica.sent_entries(0, 0)
    assert replica.is_paused


def test_replication_moves_on_with_what_is_sent_until_the_inflights_are_full() -> None:
    replica = progress(REPLICATE, 3, 4, messages_max=2)
    replica.sent_entries(3, 100)
    assert (replica.is_paused, replica.next_index, replica.inflights.count) == (False, 7, 1)
    replica.sent_entries(1, 100)
    assert (replica.is_paused, replica.next_index, replica.inflights.bytes) == (True, 8, 200)


def test_a_message_is_in_flight_until_its_last_entry_is_answered() -> None:
    replica = progress(REPLICATE, 3, 4)
    replica.sent_entries(3, 100)
    replica.inflights.free_up_to(5)
    assert replica.inflights.count == 1
    replica.inflights.free_up_to(6)
    assert replica.inflights.count == 0


def test_a_message_without_entries_is_not_in_flight_but_waits_for_room() -> None:
    replica = progress(REPLICATE, 3, 4, messages_max=1)
    replica.sent_entries(0, 0)
    assert (replica.is_paused, replica.next_index, replica.inflights.count) == (False, 4, 0)
    replica.sent_entries(1, 10)
    replica.is_append_paused = False  # a heartbeat's answer
    replica.sent_entries(0, 0)
    assert (replica.is_paused, replica.next_index, replica.inflights.count) == (True, 5, 1)


def test_room_among_the_inflights_ends_the_wait_with_the_next_message() -> None:
    replica = progress(REPLICATE, 3, 4, messages_max=1)
    replica.sent_entries(1, 10)
    assert replica.maybe_update(4)
    replica.inflights.free_up_to(4)
    assert not replica.is_paused
    replica.sent_entries(0, 0)
    assert not replica.is_paused


def test_nothing_is_sent_while_a_snapshot_is_on_its_way() -> None:
    replica = progress()
    replica.become_snapshot(10)
    with pytest.raises(AssertionError, match="waits for a snapshot"):
        replica.sent_entries(1, 10)


def test_a_commit_is_worth_a_message_only_if_it_can_raise_what_the_replica_knows() -> None:
    replica = progress(REPLICATE, 3, 6)
    replica.sent_commit_index(3)
    assert not replica.can_bump_commit(3)
    assert replica.can_bump_commit(4)
    assert replica.can_bump_commit(9)
    replica.sent_commit_index(5)  # all that is on its way is covered
    assert not replica.can_bump_commit(9)
    replica.sent_entries(1, 10)
    assert replica.can_bump_commit(9)


# --- Answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "match_index", "next_index", "is_news"),
    [(2, 3, 5, False), (3, 3, 5, False), (4, 4, 5, True), (5, 5, 6, True), (9, 9, 10, True)],
)
def test_an_answer_raises_the_match_and_never_lowers_anything(
    index: int, match_index: int, next_index: int, is_news: bool
) -> None:
    replica = progress(REPLICATE, 3, 5)
    assert replica.maybe_update(index) is is_news
    assert (replica.match_index, replica.next_index) == (match_index, next_index)


def test_an_old_answer_ends_no_wait_and_a_new_one_does() -> None:
    replica = progress(PROBE, 3, 5)
    replica.is_append_paused = True
    assert not replica.maybe_update(3)
    assert replica.is_paused
    assert replica.maybe_update(4)
    assert not replica.is_paused


@pytest.mark.parametrize(
    ("state", "match_index", "next_index", "rejected", "hint", "sends_anew", "next_after"),
    [
        # What was taken since cannot be refused.
        (REPLICATE, 5, 10, 5, 5, False, 10),
        (REPLICATE, 5, 10, 4, 4, False, 10),
        # Something got lost on the way: back to the match, whatever the hint.
        (REPLICATE, 5, 10, 9, 9, True, 6),
        (REPLICATE, 5, 10, 9, 0, True, 6),
        (REPLICATE, 5, 10, 6, 9, True, 6),
        # An answer to another probe than the last.
        (PROBE, 0, 10, 5, 5, False, 10),
        (PROBE, 0, 10, 10, 9, False, 10),
        # One back, at least …
        (PROBE, 0, 10, 9, 9, True, 9),
        (PROBE, 0, 10, 9, 20, True, 9),
        (PROBE, 0, 2, 1, 1, True, 1),
        # … as far back as the hint, …
        (PROBE, 0, 10, 9, 2, True, 3),
        (PROBE, 0, 10, 9, 0, True, 1),
        # … but never to the first entry's predecessor, nor to what is known to match.
        (PROBE, 0, 1, 0, 0, True, 1),
        (PROBE, 5, 10, 9, 2, True, 6),
        (SNAPSHOT, 5, 11, 10, 7, True, 8),
        (SNAPSHOT, 5, 11, 9, 7, False, 11),
    ],
)
def test_a_refusal_lowers_the_next_index_and_never_the_match_5_3(
    state: ProgressState,
    match_index: int,
    next_index: int,
    rejected: int,
    hint: int,
    sends_anew: bool,
    next_after: int,
) -> None:
    replica = progress(state, match_index, next_index)
    assert replica.maybe_decrease(rejected, hint) is sends_anew
    assert (replica.match_index, replica.next_index) == (match_index, next_after)


def test_a_refused_probe_ends_the_wait_and_an_old_refusal_does_not() -> None:
    replica = progress(PROBE, 0, 5)
    replica.sent_entries(1, 10)
    assert not replica.maybe_decrease(3, 2)
    assert replica.is_paused
    assert replica.maybe_decrease(4, 2)
    assert not replica.is_paused


@pytest.mark.parametrize(("state", "sent_commit"), [(PROBE, 3), (REPLICATE, 1)])
def test_a_refusal_takes_the_commit_on_its_way_for_lost(state: ProgressState, sent_commit: int) -> None:
    replica = progress(state, 1, 10)
    replica.sent_commit_index(9)
    assert replica.maybe_decrease(9, 3)
    assert replica.sent_commit == sent_commit == replica.next_index - 1


# --- Damage -----------------------------------------------------------------------------------------------------------


def test_a_replica_that_lost_what_it_had_acknowledged_is_probed_from_what_is_left() -> None:
    replica = progress(REPLICATE, 9, 12)
    replica.sent_entries(2, 10)
    replica.sent_commit_index(9)
    replica.acknowledged_commit = 8
    assert replica.lower_match(4)
    assert (replica.state, replica.match_index, replica.next_index) == (PROBE, 4, 5)
    assert (replica.inflights.count, replica.is_paused, replica.sent_commit) == (0, False, 4)
    assert replica.acknowledged_commit == 8


def test_a_replica_that_lost_only_what_nobody_counted_on_stays_as_it_is() -> None:
    replica = progress(REPLICATE, 9, 12)
    assert not replica.lower_match(9)
    assert not replica.lower_match(11)
    assert (replica.state, replica.match_index, replica.next_index) == (REPLICATE, 9, 12)


def test_a_damaged_replica_still_gets_the_snapshot_that_is_on_its_way() -> None:
    replica = progress(PROBE, 9, 10)
    replica.become_snapshot(20)
    assert replica.lower_match(4)
    assert (replica.state, replica.match_index, replica.next_index) == (SNAPSHOT, 4, 21)
    assert replica.pending_snapshot == 20


def send(replica: Progress, count: int, size_bytes: int) -> None:
    if not replica.is_paused:
        replica.sent_entries(count, size_bytes)


def answer(replica: Progress, index: int, _: int) -> None:
    if replica.maybe_update(index):
        replica.inflights.free_up_to(index)


def hear(replica: Progress, *_: int) -> None:
    # What the core does: a heartbeat's answer lets one message leave, even if the inflights are full.
    replica.is_append_paused = False
    send(replica, 0, 0)


def tell_commit(replica: Progress, index: int, _: int) -> None:
    if replica.can_bump_commit(index):
        replica.sent_commit_index(index)


MOVES: dict[str, Callable[[Progress, int, int], object]] = {
    "probe": lambda replica, _first, _second: replica.become_probe(),
    "replicate": lambda replica, _first, _second: replica.become_replicate(),
    "snapshot": lambda replica, ahead, _: replica.become_snapshot(replica.match_index + 1 + ahead),
    "send": send,
    "answer": answer,
    "hear": hear,
    "refuse": Progress.maybe_decrease,
    "damage": lambda replica, index, _: replica.lower_match(index),
    "tell commit": tell_commit,
}


@given(st.lists(st.tuples(st.sampled_from(sorted(MOVES)), st.integers(0, 12), st.integers(0, 12)), max_size=40))
def test_whatever_happens_the_match_stays_below_the_next_index_and_only_damage_lowers_it(
    moves: list[tuple[str, int, int]],
) -> None:
    replica = progress(messages_max=3)
    for name, first, second in moves:
        match_before = replica.match_index
        MOVES[name](replica, first, second)
        assert 0 <= replica.match_index < replica.next_index
        assert replica.match_index >= match_before or name == "damage"
        assert (replica.pending_snapshot > 0) == (replica.state is SNAPSHOT)
        assert (replica.inflights.count > 0) <= (replica.state is REPLICATE)
        assert replica.is_paused or replica.inflights.count < 3
