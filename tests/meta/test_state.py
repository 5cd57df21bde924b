"""Claims about the state machine of group 0."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import msgpack
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from logd.meta import state as state_module
from logd.meta.commands import AlterTopic, CreateTopic, DeleteTopic, InitProducer
from logd.meta.state import (
    EPOCH_MAX,
    MetaState,
    Outcome,
    ProducerGranted,
    Topic,
    TopicChanged,
    TopicRemoved,
)
from wire.errors import InvalidTopic, LogdError, Overloaded, TopicExists, TopicNotFound

GOLDEN_SNAPSHOT = Path(__file__).parent.parent / "golden" / "meta_snapshot.hex"
TOPIC_ID = bytes(range(16))
OTHER_ID = bytes(16)


def create(name: str = "orders", partitions: int = 1, **configuration: str) -> CreateTopic:
    return CreateTopic(name, TOPIC_ID, partitions, configuration)


def some_state() -> MetaState:
    """A state that has something of everything."""
    state = MetaState()
    state.apply(create("orders", 2, **{"retention.seconds": "7d", "retention.bytes": "1GiB"}))
    state.apply(create("gone", 3))
    state.apply(create("audit", 1))
    state.apply(DeleteTopic("gone"))
    state.apply(AlterTopic("orders", 3, {}))
    state.apply(InitProducer(None))
    state.apply(InitProducer("billing"))
    state.apply(InitProducer("billing"))
    return state


# --- Topics -----------------------------------------------------------------------------------------------------------


def test_a_topic_gets_groups_that_nobody_had() -> None:
    state = MetaState()
    assert state.apply(create("a", 2)) == TopicChanged(Topic("a", TOPIC_ID, (1, 2), {}))
    assert state.apply(create("b", 1)) == TopicChanged(Topic("b", TOPIC_ID, (3,), {}))
    assert state.groups() == {1: (state.topics["a"], 0), 2: (state.topics["a"], 1), 3: (state.topics["b"], 0)}


def test_a_name_that_is_taken_is_refused_and_the_topic_stays() -> None:
    state = MetaState()
    state.apply(create("a", 2))
    before = state.digest()
    assert isinstance(state.apply(CreateTopic("a", OTHER_ID, 5, {})), TopicExists)
    assert state.digest() == before


def test_the_groups_of_a_deleted_topic_are_not_used_again() -> None:
    state = MetaState()
    state.apply(create("a", 2))
    removed = state.apply(DeleteTopic("a"))
    assert removed == TopicRemoved(Topic("a", TOPIC_ID, (1, 2), {}))
    assert state.groups() == {}
    state.apply(create("a", 1))
    assert state.topics["a"].groups == (3,)


@pytest.mark.parametrize("command", [DeleteTopic("a"), AlterTopic("a", 3, {}), AlterTopic("a", None, {"k": None})])
def test_what_is_asked_of_a_topic_that_is_not_there_changes_nothing(command: DeleteTopic | AlterTopic) -> None:
    state = MetaState()
    outcome = state.apply(command)
    assert isinstance(outcome, TopicNotFound)
    assert outcome.details == {"topic": "a"}
    assert state.digest() == MetaState().digest()


def test_a_topic_grows_by_new_groups_and_keeps_the_old() -> None:
    state = MetaState()
    state.apply(create("a", 2))
    state.apply(create("b", 1))
    state.apply(AlterTopic("a", 4, {}))
    assert state.topics["a"].groups == (1, 2, 4, 5)
    state.apply(AlterTopic("a", 4, {}))
    assert state.topics["a"].groups == (1, 2, 4, 5)


def test_a_topic_does_not_shrink_and_nothing_else_of_the_command_is_done() -> None:
    state = MetaState()
    state.apply(create("a", 2))
    before = state.digest()
    outcome = state.apply(AlterTopic("a", 1, {"retention.bytes": "5"}))
    assert isinstance(outcome, InvalidTopic)
    assert outcome.details == {"topic": "a", "partitions": 2}
    assert state.digest() == before


def test_configuration_is_added_replaced_and_reset() -> None:
    state = MetaState()
    state.apply(create("a", 1, x="1", y="2"))
    state.apply(AlterTopic("a", None, {"x": None, "y": "3", "z": "4", "never-set": None}))
    assert state.topics["a"].configuration == {"y": "3", "z": "4"}


def test_a_state_does_not_share_a_configuration_with_the_command_that_made_it() -> None:
    configuration = {"x": "1"}
    state = MetaState()
    state.apply(CreateTopic("a", TOPIC_ID, 1, configuration))
    configuration["x"] = "2"
    assert state.topics["a"].configuration == {"x": "1"}


# --- Producers --------------------------------------------------------------------------------------------------------


def test_producer_ids_without_a_name_are_always_new_and_cost_nothing() -> None:
    state = MetaState()
    assert [state.apply(InitProducer(None)) for _ in range(3)] == [ProducerGranted(n, 0) for n in (1, 2, 3)]
    assert state.named_producers == {}


def test_a_named_producer_keeps_its_id_and_gets_the_next_epoch() -> None:
    state = MetaState()
    state.apply(InitProducer(None))
    assert state.apply(InitProducer("billing")) == ProducerGranted(2, 0)
    assert state.apply(InitProducer(None)) == ProducerGranted(3, 0)
    assert state.apply(InitProducer("billing")) == ProducerGranted(2, 1)


def test_a_name_whose_epochs_are_used_up_goes_on_under_a_new_id() -> None:
    state = MetaState()
    state.apply(InitProducer("billing"))
    state.named_producers["billing"] = (1, EPOCH_MAX - 1)
    assert state.apply(InitProducer("billing")) == ProducerGranted(1, EPOCH_MAX)
    assert state.apply(InitProducer("billing")) == ProducerGranted(2, 0)
    assert state.apply(InitProducer("billing")) == ProducerGranted(2, 1)


def test_the_number_of_names_is_bounded_and_known_names_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "NAMED_PRODUCERS_MAX", 2)
    state = MetaState()
    state.apply(InitProducer("a"))
    state.apply(InitProducer("b"))
    before = state.digest()
    outcome = state.apply(InitProducer("c"))
    assert isinstance(outcome, Overloaded)
    assert state.digest() == before
    assert state.apply(InitProducer("a")) == ProducerGranted(1, 1)
    assert state.apply(InitProducer(None)) == ProducerGranted(3, 0)


# --- Snapshots --------------------------------------------------------------------------------------------------------


def test_a_snapshot_has_the_bytes_it_always_had() -> None:
    assert some_state().snapshot().hex() == GOLDEN_SNAPSHOT.read_text().strip()


def test_a_state_of_the_golden_snapshot_goes_on_where_it_was_left() -> None:
    state = MetaState.restore(bytes.fromhex(GOLDEN_SNAPSHOT.read_text()))
    assert state == some_state()
    assert state.apply(create("next")) == TopicChanged(Topic("next", TOPIC_ID, (8,), {}))
    assert state.apply(InitProducer("billing")) == ProducerGranted(2, 2)
    assert state.apply(InitProducer(None)) == ProducerGranted(3, 0)


def test_no_bytes_are_the_snapshot_of_a_new_cluster() -> None:
    assert MetaState.restore(b"") == MetaState()


def test_the_digest_does_not_tell_how_a_state_came_about() -> None:
    one, other = MetaState(), MetaState()
    one.apply(CreateTopic("a", TOPIC_ID, 1, {"x": "1", "y": "2"}))
    other.apply(CreateTopic("a", TOPIC_ID, 1, {"y": "2"}))
    assert one.digest() != other.digest()
    other.apply(AlterTopic("a", None, {"x": "1"}))
    assert one.digest() == other.digest() == hashlib.sha256(one.snapshot()).digest()


@pytest.mark.parametrize("values", [[2, 1, 1, [], []], ["x"], [], {}, 7, None, [1], [1, 1, 1, []]])
def test_a_snapshot_that_this_software_does_not_know_is_refused(values: object) -> None:
    with pytest.raises(ValueError, match=r"snapshot|unpack"):
        MetaState.restore(msgpack.packb(values))


def test_a_snapshot_that_is_cut_is_refused() -> None:
    snapshot = some_state().snapshot()
    for length in range(1, len(snapshot)):
        with pytest.raises(ValueError, match=r"."):
            MetaState.restore(snapshot[:length])


# --- Against a model --------------------------------------------------------------------------------------------------

names = st.sampled_from(["a", "b", "c", "d"])
keys = st.sampled_from(["x", "y", "z"])
values = st.text(max_size=3)


@dataclass
class ModelTopic:
    partitions: list[int]
    configuration: dict[str, str]


@dataclass
class Model:
    """What a user believes of the cluster: names, and ids that are never seen twice."""

    topics: dict[str, ModelTopic] = field(default_factory=dict)
    groups_seen: set[int] = field(default_factory=set)
    producers_seen: set[tuple[int, int]] = field(default_factory=set)
    named: dict[str, tuple[int, int]] = field(default_factory=dict)


class MetaMachine(RuleBasedStateMachine):
    """The state, a twin that is rebuilt from snapshots now and then, and the model."""

    def __init__(self) -> None:
        super().__init__()
        self.state = MetaState()
        self.twin = MetaState()
        self.model = Model()

    def both(self, command: CreateTopic | AlterTopic | DeleteTopic | InitProducer) -> Outcome:
        outcome, same = self.state.apply(command), self.twin.apply(command)
        if isinstance(outcome, LogdError):
            assert isinstance(same, LogdError)
            assert (type(outcome), str(outcome), outcome.details) == (type(same), str(same), same.details)
        else:
            assert outcome == same
        return outcome

    def take_new(self, groups: tuple[int, ...]) -> None:
        assert self.model.groups_seen.isdisjoint(groups)
        assert 0 not in groups
        self.model.groups_seen.update(groups)

    @rule(name=names, partitions=st.integers(1, 5), configuration=st.dictionaries(keys, values))
    def create_topic(self, name: str, partitions: int, configuration: dict[str, str]) -> None:
        outcome = self.both(CreateTopic(name, TOPIC_ID, partitions, configuration))
        if name in self.model.topics:
            assert isinstance(outcome, TopicExists)
            return
        assert isinstance(outcome, TopicChanged)
        assert len(outcome.topic.groups) == partitions
        self.take_new(outcome.topic.groups)
        self.model.topics[name] = ModelTopic(list(outcome.topic.groups), configuration)

    @rule(
        name=names,
        partitions=st.none() | st.integers(1, 8),
        configuration=st.dictionaries(keys, st.none() | values),
    )
    def alter_topic(self, name: str, partitions: int | None, configuration: dict[str, str | None]) -> None:
        outcome = self.both(AlterTopic(name, partitions, configuration))
        known = self.model.topics.get(name)
        if known is None:
            assert isinstance(outcome, TopicNotFound)
        elif partitions is not None and partitions < len(known.partitions):
            assert isinstance(outcome, InvalidTopic)
        else:
            assert isinstance(outcome, TopicChanged)
            self.take_new(outcome.topic.groups[len(known.partitions) :])
            known.partitions = list(outcome.topic.groups)
            assert partitions is None or len(known.partitions) == partitions
            for key, value in configuration.items():
                known.configuration.pop(key, None)
                if value is not None:
                    known.configuration[key] = value

    @rule(name=names)
    def delete_topic(self, name: str) -> None:
        outcome = self.both(DeleteTopic(name))
        assert isinstance(outcome, TopicRemoved if self.model.topics.pop(name, None) else TopicNotFound)

    @rule(name=st.none() | names)
    def init_producer(self, name: str | None) -> None:
        outcome = self.both(InitProducer(name))
        assert isinstance(outcome, ProducerGranted)
        granted = (outcome.producer_id, outcome.producer_epoch)
        assert granted not in self.model.producers_seen
        self.model.producers_seen.add(granted)
        if name is None:
            assert outcome.producer_epoch == 0
        elif name in self.model.named:
            producer_id, epoch = self.model.named[name]
            assert granted == (producer_id, epoch + 1)
        if name is not None:
            self.model.named[name] = granted

    @rule()
    def rebuild_the_twin(self) -> None:
        self.twin = MetaState.restore(self.twin.snapshot())

    @invariant()
    def topics_are_as_the_model_says(self) -> None:
        assert {name: (list(topic.groups), dict(topic.configuration)) for name, topic in self.state.topics.items()} == {
            name: (topic.partitions, topic.configuration) for name, topic in self.model.topics.items()
        }

    @invariant()
    def equal_commands_give_equal_states(self) -> None:
        assert self.state == self.twin
        assert self.state.digest() == self.twin.digest()

    @invariant()
    def every_group_has_one_owner(self) -> None:
        assert len(self.state.groups()) == sum(len(topic.groups) for topic in self.state.topics.values())


TestMetaMachine = MetaMachine.TestCase
TestMetaMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
