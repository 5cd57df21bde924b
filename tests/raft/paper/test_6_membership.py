"""Section 6, "Cluster membership changes", and the thesis, 4.1 to 4.3."""

from typing import Any

import pytest

from logd.raft.configuration import InvalidChange
from logd.raft.group import Group
from logd.raft.types import (
    ChangeKind,
    ChangeStep,
    Configuration,
    ConfigurationChange,
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageType,
    ProposalDropped,
    Recovered,
    Role,
    Transition,
)
from tests.raft.network import Network
from tests.raft.support import Fixed, acknowledge, entries, lead, members, replica, settle

M = MessageType
PLAIN: dict[str, Any] = {"pre_vote": False, "check_quorum": False}


def change(*steps: tuple[ChangeKind, str], transition: Transition = Transition.AUTO) -> ConfigurationChange:
    return ConfigurationChange(tuple(ChangeStep(*step) for step in steps), transition)


def add(node: str) -> ConfigurationChange:
    return change((ChangeKind.ADD_VOTER, node))


def remove(node: str) -> ConfigurationChange:
    return change((ChangeKind.REMOVE, node))


LEAVE = ConfigurationChange()
EXCHANGE = change((ChangeKind.ADD_VOTER, "d"), (ChangeKind.REMOVE, "c"), transition=Transition.EXPLICIT)


def joint_leader(**options: Any) -> Group:
    """The leader `a` of a, b, c, on its way to a, b, d, with everything applied and acknowledged."""
    group = lead(replica(**PLAIN, **options), "b")
    acknowledge(group, "b", 1)
    group.propose_change(EXCHANGE)
    settle(group)
    acknowledge(group, "b", 2)
    assert group.configuration.is_joint
    return group


# --- When a change may be proposed, and when it is in force -----------------------------------------------------------


def test_a_change_is_an_entry_that_takes_effect_when_it_is_applied() -> None:
    """Section 6: configurations are "stored and communicated using special entries"; in force once applied."""
    group = lead(replica(**PLAIN), "b")
    acknowledge(group, "b", 1)
    place = group.propose_change(add("d"))
    before = group.configuration
    settle(group)
    acknowledge(group, "b", 2)
    assert (place.index, "d" in before.voters) == (2, False)
    assert group.configuration == Configuration(frozenset("abcd"))
    assert group.log.entries[1].kind is EntryKind.CONFIGURATION


def test_one_change_at_a_time() -> None:
    """Thesis 4.1: a leader must not begin a change before the last one is committed; here: applied."""
    group = lead(replica(**PLAIN), "b")
    acknowledge(group, "b", 1)
    group.propose_change(add("d"))
    with pytest.raises(ProposalDropped, match="an earlier change may not be applied yet: entry 2"):
        group.propose_change(add("e"))
    settle(group)
    acknowledge(group, "b", 2)
    assert group.propose_change(add("e")).index == 3


def test_no_change_before_the_first_commit_of_the_own_term() -> None:
    """Thesis 4.1 (the bug found in 2015): "until its current term's no-op entry has been committed"."""
    group = lead(replica(**PLAIN), "b")
    with pytest.raises(ProposalDropped, match="an earlier change may not be applied yet: entry 1"):
        lead(replica(terms=(1,), **PLAIN), "b").propose_change(add("d"))
    acknowledge(group, "b", 1)
    assert group.propose_change(add("d")).index == 2


def test_a_change_that_comes_too_early_in_a_message_becomes_an_entry_without_effect() -> None:
    """Thesis 4.1; as in etcd, whoever waits for that entry sees it come through."""
    group = lead(replica(**PLAIN), "b")
    acknowledge(group, "b", 1)
    proposal = tuple(Entry(0, 0, EntryKind.CONFIGURATION, change=add(node)) for node in "de")
    group.step(Message(M.PROPOSE, sender="a", entries=proposal))
    assert [(entry.kind, entry.change is None) for entry in group.log.entries[1:]] == [
        (EntryKind.CONFIGURATION, False),
        (EntryKind.DATA, True),
    ]


def test_a_change_that_is_dropped_with_what_it_came_with_does_not_stand_in_the_way() -> None:
    """Nothing is changed by a proposal that is not taken."""
    group = lead(replica(uncommitted_bytes_max=10, **PLAIN), "b")
    acknowledge(group, "b", 1)
    group.propose("x", size_bytes=9)
    both = (Entry(0, 0, EntryKind.CONFIGURATION, change=add("d")), Entry(0, 0, size_bytes=9))
    with pytest.raises(ProposalDropped, match="too much waits"):
        group.step(Message(M.PROPOSE, sender="a", entries=both))
    assert group.propose_change(add("e")).index == 3


def test_changes_are_not_checked_where_the_caller_does_not_want_it() -> None:
    """As in etcd, a shell may know better; the change must then be refused when it is applied."""
    group = lead(replica(checks_changes=False, **PLAIN), "b")
    assert group.propose_change(add("d")).index == 2
    assert group.propose_change(LEAVE).index == 3
    assert [entry.change for entry in group.log.entries[1:]] == [add("d"), LEAVE]


def test_the_first_entry_of_a_new_leader_counts_as_a_change_until_it_is_applied() -> None:
    """Thesis 4.1: a change of the predecessor may be in the log."""
    network = Network()
    network.elect("a")
    network.isolate("a")
    network["a"].propose_change(remove("c"))
    network.settle()
    network["b"].step(Message(M.APPEND, "b", "a", 1, index=1, log_term=1, entries=(network["a"].log.entries[1],)))
    network["b"].forget_leader()
    network["c"].forget_leader()
    network.elect("b")
    assert network["b"].role is Role.LEADER
    assert network["b"].configuration == Configuration(frozenset("ab"))


def test_a_replica_with_a_committed_change_that_it_has_not_applied_does_not_campaign() -> None:
    """4.1 with "in force when applied": its majority may be one that no other counts with."""
    for steps in (add("d"), EXCHANGE):
        group = replica(term=1, **PLAIN)
        log = (Entry(1, 1), Entry(2, 1, EntryKind.CONFIGURATION, change=steps))
        group.step(Message(M.APPEND, "a", "b", 1, entries=log, commit=2))
        group.campaign()
        before = (group.role, group.term)
        settle(group)
        group.campaign()
        assert (before, group.role) == ((Role.FOLLOWER, 1), Role.CANDIDATE)


def test_a_change_that_cannot_be_made_changes_nothing() -> None:
    """4.1: every change is from one configuration to the next, or not at all."""
    group = replica(voters="a")
    with pytest.raises(InvalidChange, match="removed all voters"):
        group.apply_change(remove("a"))
    assert group.configuration == Configuration(frozenset("a"))


# --- One server at a time (thesis 4.1) --------------------------------------------------------------------------------


def test_a_server_that_is_added_gets_the_whole_log() -> None:
    """Thesis 4.2.1: a new server begins without entries and catches up."""
    network = Network("abc", learners="d")
    network.elect("a")
    network.propose("a")
    network["a"].propose_change(add("d"))
    network.settle()
    assert network["a"].configuration == network["d"].configuration == Configuration(frozenset("abcd"))
    assert network["d"].last == network["a"].last


def test_what_waited_for_a_server_is_committed_when_it_is_removed() -> None:
    """4.1: the majority is that of the new configuration, and it counts at once."""
    group = lead(replica("a", "ab", **PLAIN), "b")
    acknowledge(group, "b", 1)
    group.propose_change(remove("b"))
    group.propose("x")
    settle(group)
    acknowledge(group, "b", 2)
    assert (group.commit_index, group.configuration) == (3, Configuration(frozenset("a")))


def test_a_server_that_was_added_counts_for_check_quorum_only_when_it_could_have_answered() -> None:
    """Thesis 6.2: silence since before a server was a member is no sign of a partition."""
    group = lead(replica("a", "a"))
    group.propose_change(add("b"))
    settle(group)
    for _ in range(group.options.election_ticks):
        group.tick()
    after_one = group.role
    for _ in range(group.options.election_ticks):
        group.tick()
    assert (after_one, group.role) == (Role.LEADER, Role.FOLLOWER)


def test_what_a_removed_server_says_counts_for_nothing() -> None:
    """Section 6: "servers … not in C_new" do not count any more."""
    group = lead(replica(voters="abcd", **PLAIN), "b", "c")
    for name in "bc":
        acknowledge(group, name, 1)
    group.propose_change(remove("d"))
    settle(group)
    for name in "bc":
        acknowledge(group, name, 2)
    group.propose("x")
    settle(group)
    acknowledge(group, "d", 3)
    group.step(Message(M.HEARTBEAT_RESPONSE, "a", "d", 1, context=b"12345678"))
    assert (group.commit_index, sorted(group.progress)) == (2, ["a", "b", "c"])


def test_a_server_that_is_added_again_stays_what_it_was() -> None:
    """Thesis 4.1: a change may be proposed twice, for its proposer may not have heard of the first."""
    group = lead(replica(**PLAIN), "b")
    acknowledge(group, "b", 1)
    acknowledge(group, "c", 1)
    group.propose_change(add("c"))
    settle(group)
    acknowledge(group, "b", 2)
    assert (group.configuration, group.progress["c"].match_index) == (members(), 1)


# --- Learners (thesis 4.2.1) ------------------------------------------------------------------------------------------


def test_a_learner_gets_entries_and_counts_for_nothing() -> None:
    """Thesis 4.2.1: a new server joins as one that is not counted "towards majorities"."""
    group = lead(replica(voters="ab", learners="c", **PLAIN), "b")
    appends = group.progress["c"]
    acknowledge(group, "c", 1)
    assert (appends.match_index, appends.is_learner, group.commit_index) == (1, True, 0)


def test_a_learner_neither_campaigns_nor_takes_over() -> None:
    """Thesis 4.2.1: it has no part in elections of its own accord."""
    group = replica("c", "ab", learners="c", term=1, **PLAIN)
    for _ in range(3 * group.options.election_ticks):
        group.tick()
    group.campaign()
    group.step(Message(M.TIMEOUT_NOW, "c", "a", 1))
    assert (group.role, group.term, group.is_promotable) == (Role.FOLLOWER, 1, False)


def test_a_learner_votes_for_it_may_have_been_promoted_without_knowing() -> None:
    """4.1 with "in force when applied": a candidate that knows more may need this vote."""
    group = replica("c", "ab", learners="c", term=1, **PLAIN)
    group.step(Message(M.VOTE_REQUEST, "c", "a", 2))
    (answer,) = settle(group).messages
    assert (answer.type, answer.reject) == (M.VOTE_RESPONSE, False)


def test_a_learner_is_promoted_and_can_lead() -> None:
    """Thesis 4.2.1: "once the new server has caught up", it becomes a voter."""
    network = Network("a", learners="b")
    network.elect("a")
    before = network["b"].is_promotable
    network["a"].propose_change(add("b"))
    network.settle()
    network["b"].forget_leader()
    network["a"].step(Message(M.TRANSFER_LEADER, sender="b"))
    network.settle()
    assert (before, network["b"].role) == (False, Role.LEADER)


def test_a_voter_can_be_made_a_learner() -> None:
    """Thesis 4.1: one voter fewer; it keeps its copy."""
    group = lead(replica(**PLAIN), "b")
    acknowledge(group, "b", 1)
    acknowledge(group, "c", 1)
    group.propose_change(change((ChangeKind.ADD_LEARNER, "c")))
    settle(group)
    acknowledge(group, "b", 2)
    assert (group.configuration.voters, group.configuration.learners) == (frozenset("ab"), frozenset("c"))
    assert (group.progress["c"].match_index, group.progress["c"].is_learner) == (1, True)


def test_a_learner_is_removed_and_the_last_voter_is_not() -> None:
    """Thesis 4.1: a group without voters could decide nothing any more."""
    group = lead(replica("a", "a", learners="b"))
    group.propose_change(remove("b"))
    settle(group)
    without = group.configuration
    with pytest.raises(InvalidChange, match="removed all voters"):
        group.apply_change(remove("a"))
    assert (without, group.configuration) == (members("a"), members("a"))


@pytest.mark.parametrize(
    ("voters", "learners", "is_promotable"),
    [("a", "", True), ("abc", "", True), ("", "", False), ("bc", "", False), ("bc", "a", False)],
)
def test_only_voters_may_campaign(voters: str, learners: str, is_promotable: bool) -> None:
    """Section 6: whoever is in no configuration has no part in elections."""
    group = replica("a", voters, learners=learners)
    for _ in range(3 * group.options.election_ticks):
        group.tick()
    assert group.is_promotable is is_promotable
    assert (group.role is not Role.FOLLOWER) is is_promotable


def test_a_member_that_does_not_know_that_it_is_one_follows() -> None:
    """Section 6: it takes entries and votes, from whomever they come; the change that made it a member may follow."""
    group = replica("d", "", term=1)
    group.step(Message(M.VOTE_REQUEST, "d", "a", 2))
    group.step(Message(M.APPEND, "d", "a", 2, entries=entries(2), commit=1))
    answers = settle(group).messages
    assert [(answer.type, answer.reject) for answer in answers] == [
        (M.VOTE_RESPONSE, False),
        (M.APPEND_RESPONSE, False),
    ]
    assert (group.leader, group.last.index) == ("a", 1)


# --- Joint consensus (section 6; thesis 4.3) --------------------------------------------------------------------------


def test_agreement_requires_both_majorities() -> None:
    """Section 6: "agreement (for elections and entry commitment) requires separate majorities from both"."""
    group = joint_leader()
    group.propose("x")
    settle(group)
    acknowledge(group, "c", 3)
    by_old_alone = group.commit_index
    acknowledge(group, "d", 3)
    assert (by_old_alone, group.commit_index) == (2, 3)


@pytest.mark.parametrize(
    ("votes", "role"),
    [("b", Role.LEADER), ("c", Role.CANDIDATE), ("d", Role.CANDIDATE), ("cd", Role.LEADER)],
)
def test_an_election_requires_both_majorities(votes: str, role: Role) -> None:
    """Section 6: "for elections"."""
    group = joint_leader()
    group.become_follower(group.term, "")
    group.campaign()
    asked = {message.to for message in settle(group).of(M.VOTE_REQUEST)}
    for sender in votes:
        group.step(Message(M.VOTE_RESPONSE, "a", sender, group.term))
    assert (asked, group.role) == ({"b", "c", "d"}, role)


def test_entries_go_to_the_servers_of_both_configurations() -> None:
    """Section 6: "log entries are replicated to all servers in both configurations"."""
    group = joint_leader()
    for name in "bcd":
        acknowledge(group, name, 2)
    group.propose("x")
    assert {message.to for message in settle(group).of(M.APPEND)} == {"b", "c", "d"}


def test_any_server_of_either_configuration_may_lead() -> None:
    """Section 6: "any server from either configuration may serve as leader"."""
    network = Network("abc", learners="d")
    network.elect("a")
    network["a"].propose_change(EXCHANGE)
    network.settle()
    outgoing = network["c"].is_promotable
    network["a"].transfer_leader("c")
    network.settle()
    assert (outgoing, network["c"].role, network["d"].is_promotable) == (True, Role.LEADER, True)


def test_a_joint_configuration_is_left_by_a_second_change() -> None:
    """Section 6: "it is now safe for the leader to create a log entry describing C_new"."""
    group = joint_leader()
    with pytest.raises(ProposalDropped, match="must leave its joint configuration first"):
        group.propose_change(add("e"))
    group.propose_change(LEAVE)
    settle(group)
    acknowledge(group, "b", 3)
    assert group.configuration == Configuration(frozenset("abd"))
    with pytest.raises(ProposalDropped, match="in no joint configuration"):
        group.propose_change(LEAVE)


@pytest.mark.parametrize("transition", [Transition.AUTO, Transition.IMPLICIT])
def test_a_leader_leaves_a_joint_configuration_by_itself_if_it_may(transition: Transition) -> None:
    """Thesis 4.3: the leader proposes C_new once the joint configuration is committed."""
    network = Network("abc", learners="d")
    network.elect("a")
    network["a"].propose_change(change((ChangeKind.ADD_VOTER, "d"), (ChangeKind.REMOVE, "c"), transition=transition))
    network.settle()
    assert {network[name].configuration for name in "abd"} == {Configuration(frozenset("abd"))}


def test_a_new_leader_finishes_what_its_predecessor_began() -> None:
    """Section 6: "a single server … can … complete the configuration change" after any crash."""
    network = Network("abc", learners="d")
    network.elect("a")
    network["a"].propose_change(change((ChangeKind.ADD_VOTER, "d"), (ChangeKind.REMOVE, "c")))
    # It reaches the others, who may never hear of its commit from a.
    for name in "ab":
        network.take(name)
        network.write(name)
        pool, network.pool = network.pool, []
        for message in pool:
            network[message.to].step(message)
    network.isolate("a")
    for name in "bcd":
        network[name].forget_leader()
    network.elect("b")
    assert network["b"].role is Role.LEADER
    network.heal()
    network.tick("b", times=2)
    assert {network[name].configuration for name in "abd"} == {Configuration(frozenset("abd"))}


def test_a_joint_configuration_is_left_when_the_transfer_that_prevented_it_failed() -> None:
    """Thesis 4.3: nobody but the leader would leave it."""
    group = lead(replica(**PLAIN), "b")
    acknowledge(group, "b", 1)
    group.propose_change(change((ChangeKind.ADD_VOTER, "d"), (ChangeKind.REMOVE, "c")))
    group.transfer_leader("c")
    settle(group)
    acknowledge(group, "b", 2)
    during = group.last.index
    for _ in range(group.options.election_ticks):
        group.tick()
    settle(group)
    acknowledge(group, "b", 3)
    acknowledge(group, "d", 3)
    assert (during, group.last.index, group.configuration) == (2, 3, Configuration(frozenset("abd")))


def test_only_the_leader_leaves_a_joint_configuration() -> None:
    """Section 6: "it is now safe for the leader to create a log entry": nobody else asks it to."""
    joint = Configuration(frozenset("abd"), frozenset("abc"), auto_leave=True)
    state = Recovered(configuration=joint, hard_state=HardState(1, "", 0))
    group = replica("b", recovered=lambda _: state, forwards_proposals=True)
    group.step(Message(M.APPEND, "b", "a", 1, entries=entries(1), commit=1))
    done = settle(group)
    assert (len(done.committed), done.of(M.PROPOSE)) == (1, [])


def test_an_outgoing_voter_becomes_a_learner_only_when_it_has_gone() -> None:
    """Thesis 4.3 with learners: it is a voter of the old configuration until that is left."""
    group = lead(replica(**PLAIN), "b")
    acknowledge(group, "b", 1)
    group.propose_change(change((ChangeKind.ADD_LEARNER, "c"), (ChangeKind.ADD_VOTER, "d")))
    settle(group)
    acknowledge(group, "b", 2)
    joint = group.configuration
    acknowledge(group, "b", 3)
    assert (joint.learners_next, joint.learners, joint.auto_leave) == (frozenset("c"), frozenset(), True)
    assert group.configuration == Configuration(frozenset("abd"), learners=frozenset("c"))


def test_a_change_of_one_step_may_be_made_joint() -> None:
    """Thesis 4.3: any change can be made by way of a joint configuration."""
    group = lead(replica(**PLAIN), "b")
    acknowledge(group, "b", 1)
    group.propose_change(change((ChangeKind.ADD_VOTER, "d"), transition=Transition.EXPLICIT))
    settle(group)
    acknowledge(group, "b", 2)
    assert group.configuration == Configuration(frozenset("abcd"), frozenset("abc"))


# --- A leader that goes (thesis 4.2.2) --------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [remove("a"), change((ChangeKind.ADD_LEARNER, "a"))])
def test_a_leader_that_is_no_voter_any_more_steps_down_once_that_is_committed(steps: ConfigurationChange) -> None:
    """Section 6: "the leader steps down (returns to follower state) once it has committed the C_new log entry"."""
    network = Network()
    network.elect("a")
    network["a"].propose_change(steps)
    before = network["a"].role
    network.settle()
    assert (before, network["a"].role, network["a"].is_promotable) == (Role.LEADER, Role.FOLLOWER, False)
    network["c"].forget_leader()
    network.elect("b")
    assert network["b"].role is Role.LEADER
    assert network["b"].configuration.voters == frozenset("bc")


def test_a_leader_manages_a_cluster_of_which_it_is_no_part_until_then() -> None:
    """Section 6: "it replicates log entries but does not count itself in majorities"; here: once that is applied."""
    group = lead(replica(steps_down_on_removal=False, **PLAIN), "b")
    acknowledge(group, "b", 1)
    group.propose_change(remove("a"))
    settle(group)
    acknowledge(group, "b", 2)
    acknowledge(group, "c", 2)
    assert (group.role, group.configuration.voters) == (Role.LEADER, frozenset("bc"))
    with pytest.raises(ProposalDropped, match="was removed"):
        group.propose("x")
    for _ in range(2 * group.options.election_ticks):
        group.tick()
    assert [beat.to for beat in settle(group).of(M.HEARTBEAT)][:2] == ["b", "c"]


# --- Disruptive servers (section 6; thesis 4.2.3) ---------------------------------------------------------------------


@pytest.mark.parametrize("type_", [M.VOTE_REQUEST, M.PRE_VOTE_REQUEST])
def test_a_server_that_hears_its_leader_neither_votes_nor_takes_the_term(type_: MessageType) -> None:
    """Section 6: "if a server receives a RequestVote RPC within the minimum election timeout of hearing …"."""
    group = replica(term=1, chance=Fixed(5))
    group.step(Message(M.HEARTBEAT, "a", "b", 1))
    settle(group)
    for _ in range(group.options.election_ticks - 1):
        group.tick()
    group.step(Message(type_, "a", "c", 5, index=9, log_term=4))
    while_hearing = (settle(group).messages, group.term, group.vote)
    group.tick()
    group.step(Message(type_, "a", "c", 5, index=9, log_term=4))
    assert while_hearing == ([], 1, "")
    assert [answer.reject for answer in settle(group).messages if answer.to == "c"] == [False]


def test_a_removed_server_cannot_disturb_the_cluster() -> None:
    """Section 6: "removed servers … can disrupt the cluster"; not where votes are refused while a leader is heard."""
    network = Network("abcd", pre_vote=False)
    network.elect("a")
    network.isolate("d")
    network["a"].propose_change(remove("d"))
    network.settle()
    network.heal()
    network.elect("d")
    network.elect("d")
    assert (network["a"].role, network["a"].term, network["d"].role) == (Role.LEADER, 1, Role.CANDIDATE)


def test_entries_of_a_new_member_are_probed_from_the_leaders_end() -> None:
    """Figure 2, leaders: nextIndex is "initialized to leader last log index + 1"."""
    group = lead(replica(terms=(1, 1), **PLAIN), "b")
    acknowledge(group, "b", 3)
    group.propose_change(add("d"))
    settle(group)
    probes = acknowledge(group, "b", 4).of(M.APPEND, "d")
    assert [(probe.index, [entry.index for entry in probe.entries]) for probe in probes] == [(3, [4])]
