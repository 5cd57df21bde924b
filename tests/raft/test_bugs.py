"""The bugs of others that would live in the core: each has one test here that notices it.

The numbers are those of the table in `tests.mutants.table`, whose rows put each bug into this code and name the test.
"""

import pytest

from logd.raft.group import Group
from logd.raft.types import (
    NOBODY,
    ChangeKind,
    ChangeStep,
    ConfigurationChange,
    Entry,
    EntryId,
    EntryKind,
    HardState,
    Message,
    MessageType,
    ProposalDropped,
    Ready,
    Role,
)
from tests.raft.network import Network
from tests.raft.support import acknowledge, entries, lead, members, replica, settle

T = MessageType

ADD_D = ConfigurationChange((ChangeStep(ChangeKind.ADD_VOTER, "d"),))
REMOVE_C = ConfigurationChange((ChangeStep(ChangeKind.REMOVE, "c"),))


def vote_request(sender: str, term: int, index: int = 9, log_term: int = 9) -> Message:
    """By default of a candidate whose log is better than everybody's."""
    return Message(T.VOTE_REQUEST, "a", sender, term, index=index, log_term=log_term)


def append_of(sender: str, term: int, previous: tuple[int, int], *added: Entry, commit: int = 0) -> Message:
    index, log_term = previous
    return Message(T.APPEND, "a", sender, term, index=index, log_term=log_term, entries=added, commit=commit)


def answers(ready: Ready, wanted: MessageType) -> list[Message]:
    """What others are told, at once or once it is durable."""
    return [message for message in (*ready.messages, *ready.responses) if message.type is wanted]


def test_bug_01_an_entry_of_an_earlier_term_is_not_committed_by_counting() -> None:
    # Figure 8 (c): S1 leads term 4, and its entry of term 2 reaches a majority.
    s1 = lead(replica("a", "abcde", terms=(1, 2), term=3, commit=1), "b", "c")
    assert (s1.role, s1.term) == (Role.LEADER, 4)

    acknowledge(s1, "b", 2)
    acknowledge(s1, "c", 2)
    assert s1.commit_index == 1

    # Figure 8 (e): with an entry of term 4 on a majority, what is before it is committed as well.
    acknowledge(s1, "b", 3)
    acknowledge(s1, "c", 3)
    assert s1.commit_index == 3


def granted(group: Group) -> list[str]:
    """To whom a replica says, after a settling, that they have its vote."""
    return [message.to for message in settle(group).of(T.VOTE_RESPONSE) if not message.reject]


def test_bug_02_no_replica_votes_for_two_in_one_term() -> None:
    # Its own vote, in an election that it loses.
    group = replica(pre_vote=False)
    group.campaign()
    settle(group)
    for sender in "bc":
        group.step(Message(T.VOTE_RESPONSE, "a", sender, 1, reject=True))
    assert (group.role, group.term) == (Role.FOLLOWER, 1)
    group.step(vote_request("c", 1))
    assert granted(group) == []

    # A vote for another, whose leadership it then loses sight of.
    group.step(vote_request("b", 2))
    assert granted(group) == ["b"]
    group.step(Message(T.HEARTBEAT, "a", "b", 2))
    group.forget_leader()
    group.step(vote_request("c", 2))
    assert granted(group) == []

    # As a leader that steps down.
    group = lead(replica(check_quorum=True), "b")
    while group.role is Role.LEADER:
        group.tick()
    assert (group.role, group.vote) == (Role.FOLLOWER, "a")
    group.step(vote_request("c", group.term))
    assert granted(group) == []


def test_bug_03_a_new_term_is_saved_without_the_vote_of_the_old_one() -> None:
    group = replica(check_quorum=False)
    group.step(vote_request("b", 1))
    settle(group)
    assert (group.term, group.vote) == (1, "b")

    group.step(Message(T.HEARTBEAT, "a", "c", 2))

    assert group.take_ready().hard_state == HardState(2, NOBODY, 0)
    group.step(vote_request("b", 3, index=0, log_term=0))
    assert group.take_ready().hard_state == HardState(3, "b", 0)


def test_bug_05_the_term_stays_when_a_suffix_is_replaced() -> None:
    group = replica(terms=(1, 1, 3))

    group.step(append_of("b", 5, (1, 1), *entries(2, first_index=2)))

    ready = group.take_ready()
    assert ready.truncate_from == 2
    assert ready.hard_state == HardState(5, NOBODY, 0)
    assert group.term == 5
    assert group.last == EntryId(2, 2)


def test_bug_06_a_delayed_append_takes_nothing_away() -> None:
    group = replica()
    both = entries(1, 1)
    group.step(append_of("b", 1, (0, 0), *both))
    settle(group)
    assert group.last.index == 2

    group.step(append_of("b", 1, (0, 0), both[0]))

    ready = group.take_ready()
    assert group.last.index == 2
    assert ready.truncate_from is None
    assert not ready.append


def test_bug_07_a_repeated_append_is_acknowledged_only_once_its_entries_are_durable() -> None:
    group = replica()
    group.step(append_of("b", 1, (0, 0), *entries(1)))
    first = group.take_ready()
    assert [entry.index for entry in first.append] == [1]

    # The disk is slow; the leader sends it again, and asks whether it is alive.
    group.step(append_of("b", 1, (0, 0), *entries(1)))
    group.step(Message(T.HEARTBEAT, "a", "b", 1))
    second = group.take_ready()

    assert [message.type for message in second.messages] == [T.HEARTBEAT_RESPONSE]
    # They leave behind the first write, in its order.
    for ready in (first, second):
        assert [message.index for message in ready.responses if message.type is T.APPEND_RESPONSE] == [1]


def completion(ready: Ready) -> Message:
    (message,) = [message for message in ready.responses if message.type is T.STORAGE_APPEND_RESPONSE]
    return message


def test_bug_08_a_stale_completion_does_not_make_its_replacement_durable() -> None:
    # Two entries of term 1 are handed to the disk only when the replica is in term 2 already.
    group = replica(check_quorum=False)
    group.step(append_of("b", 1, (0, 0), *entries(1, 1)))
    group.step(vote_request("c", 2))
    old = completion(group.take_ready())
    assert (old.term, old.index, old.log_term) == (2, 2, 1)

    # Before they are durable, the leader of term 2 replaces the second one.
    group.step(append_of("c", 2, (1, 1), *entries(2, first_index=2), commit=2))
    new = group.take_ready()
    group.step(old)

    assert group.log.stable < 2
    assert not group.take_ready().committed
    group.step(completion(new))
    assert group.log.stable == 2


def test_bug_08_a_completion_from_before_two_replacements_makes_nothing_durable() -> None:
    group = replica(check_quorum=False)
    group.step(append_of("b", 1, (0, 0), *entries(1, 1)))
    first = completion(group.take_ready())
    # Replaced by the leader of term 2, and again by that of term 3, who has the very entries of term 1.
    group.step(append_of("c", 2, (0, 0), *entries(2, 2)))
    second = completion(group.take_ready())
    group.step(append_of("b", 3, (0, 0), *entries(1, 1, 3)))
    third = completion(group.take_ready())

    group.step(first)
    assert group.log.stable == 0, "what the first write put there was overwritten by the second"
    group.step(second)
    assert group.log.stable == 0
    group.step(third)
    assert group.log.stable == 3


def test_bug_09_the_commit_does_not_pass_what_an_append_has_verified() -> None:
    # The second entry is of a leader that is gone; the present one has another in its place, and has committed it.
    group = replica(terms=(1, 1), term=2)

    group.step(append_of("c", 2, (1, 1), commit=2))

    assert group.commit_index == 1
    group.step(append_of("c", 2, (1, 1), *entries(2, first_index=2), commit=2))
    assert group.commit_index == 2
    assert group.log.term_at(2) == 2


def test_bug_10_a_replica_that_decides_alone_commits_nothing_before_it_is_durable() -> None:
    group = lead(replica(voters="a"))
    committed = group.commit_index
    group.propose("x")

    ready = group.take_ready()

    assert [entry.data for entry in ready.append] == ["x"]
    assert not ready.committed
    assert group.commit_index == committed
    for message in ready.responses:
        group.step(message)
    assert [entry.data for entry in group.take_ready().committed] == ["x"]


def test_bug_11_who_was_removed_counts_neither_in_elections_nor_for_the_commit() -> None:
    group = lead(replica(), "b")
    acknowledge(group, "b", 1)
    place = group.propose_change(REMOVE_C)
    acknowledge(group, "b", place.index)
    assert group.configuration == members("ab")

    group.propose("x")
    acknowledge(group, "c", group.last.index)
    assert group.commit_index == place.index

    group.step(Message(T.HEARTBEAT, "a", "b", group.term + 1))
    group.forget_leader()
    group.campaign()
    settle(group)
    for response in (T.PRE_VOTE_RESPONSE, T.VOTE_RESPONSE):
        term = group.term + (response is T.PRE_VOTE_RESPONSE)
        group.step(Message(response, "a", "c", term))
        settle(group)
    assert group.role is Role.PRE_CANDIDATE


def change_entry(index: int, term: int, change: ConfigurationChange) -> Entry:
    return Entry(index, term, EntryKind.CONFIGURATION, change=change)


def test_bug_12_a_change_of_a_doomed_leader_leaves_no_trace() -> None:
    network = Network("abc")
    network.elect("b")
    before = network["a"].configuration
    # b's change reaches a alone, which cannot answer: it is not committed, and b leads no more.
    network.cut = {("b", "c"), ("c", "b"), ("a", "b")}
    network["b"].propose_change(ADD_D)
    network.settle()
    index = network["b"].last.index
    assert network["a"].log.term_at(index) == network["b"].term
    assert network["a"].configuration == before

    network.isolate("b")
    network.cut.discard(("a", "c"))
    network["a"].forget_leader()
    network["a"].step(append_of("c", 9, (index - 1, 1), *entries(9, first_index=index), commit=index))
    settle(network["a"])

    assert network["a"].log.term_at(index) == 9
    assert network["a"].commit_index == index
    assert network["a"].configuration == before
    assert "d" not in network["a"].progress


def test_bug_13_a_new_leader_takes_no_change_before_its_first_commit() -> None:
    # Whether the predecessor's entry is committed, and what it changes, a new leader does not know.
    group = lead(replica(terms=(1, 1), commit=1), "b")

    with pytest.raises(ProposalDropped):
        group.propose_change(ADD_D)

    acknowledge(group, "b", group.last.index)
    assert group.has_committed_in_term
    group.propose_change(ADD_D)


def test_bug_15_a_new_leader_answers_no_read_before_its_first_commit() -> None:
    # The predecessor has committed entry 2 and answered for it; this replica holds it, and does not know that.
    group = lead(replica(terms=(1, 1), commit=1), "b")
    group.read_index(b"read")
    early = settle(group)
    for beat in early.of(T.HEARTBEAT, "b"):
        group.step(Message(T.HEARTBEAT_RESPONSE, "a", "b", group.term, context=beat.context))

    assert not settle(group).read_states

    done = acknowledge(group, "b", group.last.index)
    (beat,) = done.of(T.HEARTBEAT, "b")
    group.step(Message(T.HEARTBEAT_RESPONSE, "a", "b", group.term, context=beat.context))
    (state,) = settle(group).read_states
    assert state.context == b"read"
    assert state.index >= 2
