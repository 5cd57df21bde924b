"""Answers to a campaign are counted for that campaign alone, whatever was forgotten meanwhile."""

from logd.raft.types import (
    ChangeKind,
    ChangeStep,
    ConfigurationChange,
    HardState,
    Message,
    MessageType,
    Recovered,
    Role,
)
from tests.raft.network import Network
from tests.raft.support import Fixed


def _take_and_write(network: Network, name: str) -> None:
    while network[name].has_ready:
        network.take(name)
    while network.writes[name]:
        network.write(name)


def _vote_that_is_late(network: Network) -> Message:
    """w's vote for a in term 2: a's own is lost in a crash, and w forgets that it gave it."""
    network["a"].campaign()
    network.take("a")
    (request,) = [message for message in network.pool if message.to == "w" and message.type is MessageType.VOTE_REQUEST]
    network.pool.clear()
    network["w"].step(request)
    _take_and_write(network, "w")
    (vote,) = [message for message in network.pool if message.to == "a"]
    network.pool.clear()
    network.crash("a")
    network.chance["a"] = Fixed(77)
    network.recover("a")
    network.crash("w")
    configuration = network.configuration
    network.recover("w", lambda _: Recovered(configuration=configuration, hard_state=None, admission=b"word"))
    return vote


def _admit(network: Network) -> None:
    """b, which leads term 1, has w admitted; a holds the entry and does not hear of the commit."""
    for _ in range(2):
        network.tick("b", times=1)
        network.settle()
    step = ChangeStep(ChangeKind.ADD_LEARNER, "w")
    network["b"].propose_change(ConfigurationChange((step,), admission=b"word"))
    _take_and_write(network, "b")
    for message in [message for message in network.pool if message.to == "a"]:
        network.pool.remove(message)
        network["a"].step(message)
    _take_and_write(network, "a")
    network.cut.add(("b", "a"))
    network.settle()


def test_a_vote_for_a_campaign_of_an_earlier_life_elects_nobody() -> None:
    """A vote outlives the life that it was asked for, and the voter its memory of it: two leaders in term 2."""
    network = Network("abw", pre_vote=False, check_quorum=False)
    network.elect("b")
    network.propose("b")
    network.settle()
    late = _vote_that_is_late(network)
    _admit(network)
    assert network["w"].admission == b""
    # b is back without knowing that the change is committed, counts w still, and wins term 2 with it.
    network.crash("b")
    term, vote, _ = network.disks["b"].hard_state or HardState(0, "", 0)
    network.disks["b"].hard_state = HardState(term, vote, 0)
    network.recover("b")
    network.isolate("a")
    network["w"].forget_leader()
    network["b"].campaign()
    network.settle()
    assert (network["b"].role, network["b"].term) == (Role.LEADER, 2)

    network["a"].campaign()
    network.settle()
    network["a"].step(late)

    assert (network["a"].role, network["a"].term) == (Role.CANDIDATE, 2)


def test_an_answer_to_this_campaign_counts() -> None:
    network = Network("abc", pre_vote=False)
    network.chance["a"] = Fixed(5)
    network.elect("a")

    assert network["a"].role is Role.LEADER
    assert network["a"].campaign_number > 0
