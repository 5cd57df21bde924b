"""The cluster's own state: topics, producer ids, and whatever else group 0 decides.

For: every node, which applies the committed records of group 0 in order. Must not know: where the records come from,
time, chance, or any disk. The one idea: `apply` is a function of the state and a command, so that equal logs give
equal states; what the outside must do about a change is returned as data, and the hash of the state can be compared
between nodes.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgpack

from logd.meta.commands import AlterTopic, Command, CreateTopic, DeleteTopic, InitProducer
from wire.errors import InvalidTopic, LogdError, Overloaded, TopicExists, TopicNotFound

META_GROUP: Final = 0
"""The group of this state itself."""

SNAPSHOT_VERSION: Final = 1
EPOCH_MAX: Final = 2**16 - 1
# Names cost memory on every node for ever; ids without a name cost nothing.
NAMED_PRODUCERS_MAX: Final = 100_000


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as the cluster knows it. `configuration` holds what was set; defaults are the reader's."""

    name: str
    topic_id: bytes
    # Invariant: the group of partition p stands at place p; group ids are never reused.
    groups: tuple[int, ...]
    configuration: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TopicChanged:
    """The result of creating or altering a topic."""

    topic: Topic


@dataclass(frozen=True, slots=True)
class TopicRemoved:
    """The result of deleting a topic: its groups are to be given up."""

    topic: Topic


@dataclass(frozen=True, slots=True)
class ProducerGranted:
    """The result of asking for a producer id."""

    producer_id: int
    producer_epoch: int


Outcome = TopicChanged | TopicRemoved | ProducerGranted | LogdError
"""What a command came to. An error is an outcome like any other: every replica reaches the same one."""


@dataclass(slots=True)
class MetaState:
    """The state machine of group 0."""

    topics: dict[str, Topic] = field(default_factory=dict)
    # Invariant: above every id that was ever handed out, so that none is used twice.
    next_group: int = META_GROUP + 1
    next_producer_id: int = 1
    named_producers: dict[str, tuple[int, int]] = field(default_factory=dict)

    def apply(self, command: Command) -> Outcome:
        """Carry out one committed command."""
        match command:
            case CreateTopic():
                return self._create_topic(command)
            case AlterTopic():
                return self._alter_topic(command)
            case DeleteTopic(name):
                topic = self.topics.pop(name, None)
                return TopicRemoved(topic) if topic else _topic_not_found(name)
            case InitProducer(name):
                return self._init_producer(name)

    def _create_topic(self, command: CreateTopic) -> Outcome:
        if command.name in self.topics:
            return TopicExists(f"topic {command.name} exists already", {"topic": command.name})
        topic = Topic(
            command.name,
            command.topic_id,
            self._take_groups(command.partitions),
            dict(command.configuration),
        )
        self.topics[topic.name] = topic
        return TopicChanged(topic)

    def _alter_topic(self, command: AlterTopic) -> Outcome:
        topic = self.topics.get(command.name)
        if topic is None:
            return _topic_not_found(command.name)
        groups = topic.groups
        if command.partitions is not None:
            if command.partitions < len(groups):
                return InvalidTopic(
                    f"topic {topic.name} has {len(groups)} partitions: their number can only grow, "
                    "because records stay where they are",
                    {"topic": topic.name, "partitions": len(groups)},
                )
            groups += self._take_groups(command.partitions - len(groups))
        configuration = {**topic.configuration, **command.configuration}
        kept = {key: value for key, value in configuration.items() if value is not None}
        self.topics[topic.name] = altered = replace(topic, groups=groups, configuration=kept)
        return TopicChanged(altered)

    def _take_groups(self, count: int) -> tuple[int, ...]:
        first = self.next_group
        self.next_group += count
        return tuple(range(first, self.next_group))

    def _init_producer(self, name: str | None) -> Outcome:
        if name is not None and name in self.named_producers:
            producer_id, epoch = self.named_producers[name]
            if epoch < EPOCH_MAX:
                self.named_producers[name] = (producer_id, epoch + 1)
                return ProducerGranted(producer_id, epoch + 1)
            # The epochs of this id are used up: the name goes on under a new one, which nobody else holds.
        elif name is not None and len(self.named_producers) >= NAMED_PRODUCERS_MAX:
            return Overloaded(f"there are {NAMED_PRODUCERS_MAX} named producers already", {"delay_seconds": 60.0})
        producer_id = self.next_producer_id
        self.next_producer_id += 1
        if name is not None:
            self.named_producers[name] = (producer_id, 0)
        return ProducerGranted(producer_id, 0)

    def groups(self) -> dict[int, tuple[Topic, int]]:
        """Every group of every topic, with its topic and partition."""
        return {
            group: (topic, partition) for topic in self.topics.values() for partition, group in enumerate(topic.groups)
        }

    # --- Snapshot -----------------------------------------------------------------------------------------------------

    def snapshot(self) -> bytes:
        """The whole state, in one canonical form."""
        packed: bytes = msgpack.packb(
            [
                SNAPSHOT_VERSION,
                self.next_group,
                self.next_producer_id,
                [
                    [topic.name, topic.topic_id, list(topic.groups), sorted(topic.configuration.items())]
                    for _, topic in sorted(self.topics.items())
                ],
                [[name, *held] for name, held in sorted(self.named_producers.items())],
            ]
        )
        return packed

    @classmethod
    def restore(cls, snapshot: bytes) -> "MetaState":
        """The state that `snapshot` was taken of; the empty one for no bytes. Raises ValueError."""
        if not snapshot:
            return cls()
        values: Any = msgpack.unpackb(snapshot)
        if not isinstance(values, list) or not values:
            raise ValueError("a snapshot that is not an array [version, …]")
        if values[0] != SNAPSHOT_VERSION:
            raise ValueError(f"a snapshot of version {values[0]}: this software knows {SNAPSHOT_VERSION}")
        _, next_group, next_producer_id, topics, named = values
        return cls(
            {
                name: Topic(name, topic_id, tuple(groups), {key: value for key, value in configuration})  # noqa: C416  # lists, not pairs
                for name, topic_id, groups, configuration in topics
            },
            next_group,
            next_producer_id,
            {name: (producer_id, epoch) for name, producer_id, epoch in named},
        )

    def digest(self) -> bytes:
        """The hash of the state: equal on every node at equal index."""
        return hashlib.sha256(self.snapshot()).digest()


def _topic_not_found(name: str) -> TopicNotFound:
    return TopicNotFound(f"there is no topic {name}", {"topic": name})
