"""Topics, producer ids, and who leads what.

For: every door. Must not know: how group 0 decides, or what a group's files are. The one idea: what changes the cluster
is a command to group 0, checked here first, so that a refusal costs no record.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from logd.meta.commands import AlterTopic as AlterCommand
from logd.meta.commands import Command
from logd.meta.commands import CreateTopic as CreateCommand
from logd.meta.commands import DeleteTopic as DeleteCommand
from logd.meta.commands import InitProducer as InitProducerCommand
from logd.meta.state import Outcome, ProducerGranted, Topic, TopicChanged
from logd.service import authorization
from logd.service.configuration import TopicConfiguration, as_text, check_configuration, configuration_of
from logd.service.ports import Authorizer, Cluster
from wire.errors import InvalidRequest, InvalidTopic, LogdError, TopicExists, TopicNotFound
from wire.messages import (
    AlterTopic,
    ClusterMetadata,
    CreateTopic,
    DeleteTopic,
    DescribeTopic,
    InitProducer,
    Metadata,
    NodeDescription,
    PartitionDescription,
    ProducerInitialized,
    TopicAltered,
    TopicCreated,
    TopicDeleted,
    TopicDescription,
)

# What file systems, metrics labels and URLs can all carry without escaping.
TOPIC_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,248}")
# Names that begin so are the cluster's own.
INTERNAL_PREFIX: Final = "__"
PRODUCER_NAME_CHARACTERS_MAX: Final = 255


@dataclass(frozen=True, slots=True)
class TopicLimits:
    """The bounds on topics, as configured."""

    partitions_default: int
    partitions_max: int
    partitions_total_max: int


@dataclass(frozen=True, slots=True)
class TopicService:
    """Arguments: `new_topic_id`, what draws 16 random bytes; `defaults`, what a topic has without configuration."""

    cluster: Cluster
    authorizer: Authorizer
    limits: TopicLimits
    defaults: TopicConfiguration
    new_topic_id: Callable[[], bytes]

    async def create(self, principal: str, request: CreateTopic) -> TopicCreated:
        """Make a topic; it can be written to when this returns.

        Raises InvalidTopic, TopicExists or NotAuthorized, and leaves nothing then.
        """
        self.authorizer.check(principal, authorization.ADMIN, request.topic)
        check_topic_name(request.topic)
        check_configuration(request.configuration)
        if request.replicas > 1:
            raise InvalidTopic("replicas: this cluster has one node, so a topic has one replica", {"nodes": 1})
        partitions = request.partitions or self.limits.partitions_default
        self._check_partitions(partitions, more=partitions)
        if request.topic in self.cluster.topics():
            raise TopicExists(f"topic {request.topic} exists already", {"topic": request.topic})
        command = CreateCommand(request.topic, self.new_topic_id(), partitions, request.configuration)
        topic = await self._change(command)
        return TopicCreated(topic.topic_id, len(topic.groups))

    async def alter(self, principal: str, request: AlterTopic) -> TopicAltered:
        """Change a topic's configuration or grow it; raises InvalidTopic, TopicNotFound or NotAuthorized."""
        self.authorizer.check(principal, authorization.ADMIN, request.topic)
        check_configuration(request.configuration)
        known = self._topic(request.topic)
        if request.partitions is not None:
            self._check_partitions(request.partitions, more=request.partitions - len(known.groups))
        topic = await self._change(AlterCommand(request.topic, request.partitions, request.configuration))
        return TopicAltered(len(topic.groups), self._configuration(topic))

    async def delete(self, principal: str, request: DeleteTopic) -> TopicDeleted:
        """Remove a topic and its records; raises TopicNotFound or NotAuthorized."""
        self.authorizer.check(principal, authorization.ADMIN, request.topic)
        self._topic(request.topic)
        _raised(await self.cluster.command(DeleteCommand(request.topic)))
        return TopicDeleted()

    async def init_producer(self, principal: str, request: InitProducer) -> ProducerInitialized:
        """Hand out a producer id, durably, before it is used."""
        self.authorizer.check(principal, authorization.PRODUCE, "producer")
        if request.name is not None and not 1 <= len(request.name) <= PRODUCER_NAME_CHARACTERS_MAX:
            raise InvalidRequest(f"InitProducer.name: expected 1 to {PRODUCER_NAME_CHARACTERS_MAX} characters")
        outcome = _raised(await self.cluster.command(InitProducerCommand(request.name)))
        assert isinstance(outcome, ProducerGranted)
        return ProducerInitialized(outcome.producer_id, outcome.producer_epoch)

    def metadata(self, principal: str, request: Metadata) -> ClusterMetadata:
        """Who leads what; raises TopicNotFound for a topic that was named and is not there."""
        # Each once: the answer is bounded by the cluster's topics, and not by how often one is asked for.
        names = sorted(self.cluster.topics()) if request.topics is None else tuple(dict.fromkeys(request.topics))
        described = []
        for name in names:
            self.authorizer.check(principal, authorization.DESCRIBE, name)
            described.append(self._describe(self._topic(name), sizes=False))
        host, port = self.cluster.address
        return ClusterMetadata((NodeDescription(self.cluster.node, host, port),), tuple(described))

    def describe(self, principal: str, request: DescribeTopic) -> TopicDescription:
        """One topic with offsets and sizes; raises TopicNotFound or NotAuthorized."""
        self.authorizer.check(principal, authorization.DESCRIBE, request.topic)
        return self._describe(self._topic(request.topic), sizes=True)

    # --- Helpers ------------------------------------------------------------------------------------------------------

    async def _change(self, command: Command) -> Topic:
        outcome = _raised(await self.cluster.command(command))
        assert isinstance(outcome, TopicChanged)
        await self.cluster.wait_ready(outcome.topic.groups)
        return outcome.topic

    def _topic(self, name: str) -> Topic:
        topic = self.cluster.topics().get(name)
        if topic is None:
            raise TopicNotFound(f"there is no topic {name}", {"topic": name})
        return topic

    def _check_partitions(self, partitions: int, *, more: int) -> None:
        if not 1 <= partitions <= self.limits.partitions_max:
            raise InvalidTopic(
                f"partitions: {partitions} is not in 1…{self.limits.partitions_max}",
                {"partitions_max": self.limits.partitions_max},
            )
        total = sum(len(topic.groups) for topic in self.cluster.topics().values())
        if total + more > self.limits.partitions_total_max:
            raise InvalidTopic(
                f"partitions: the cluster has {total} of at most {self.limits.partitions_total_max} already",
                {"partitions_total": total, "partitions_total_max": self.limits.partitions_total_max},
            )

    def _configuration(self, topic: Topic) -> dict[str, str]:
        return as_text(configuration_of(topic.configuration, self.defaults))

    def _describe(self, topic: Topic, *, sizes: bool) -> TopicDescription:
        partitions = tuple(
            self._describe_partition(topic, partition, sizes=sizes) for partition in range(len(topic.groups))
        )
        return TopicDescription(topic.name, topic.topic_id, partitions, self._configuration(topic))

    def _describe_partition(self, topic: Topic, partition: int, *, sizes: bool) -> PartitionDescription:
        group = topic.groups[partition]
        replicas = (self.cluster.node,)
        try:
            found = self.cluster.partition(topic.name, partition)
            leader, term = found.leader()
            if not sizes:
                return PartitionDescription(partition, group, leader, term, replicas)
            bounds, size = found.bounds(), found.size()
        except LogdError:
            # Being set up, or damaged: it is there, and nobody leads it.
            return PartitionDescription(partition, group, None, 0, replicas)
        return PartitionDescription(partition, group, leader, term, replicas, *bounds, *size)


def check_topic_name(name: str) -> None:
    """Raises InvalidTopic for a name that nobody may choose."""
    if not TOPIC_NAME.fullmatch(name) or name.startswith(INTERNAL_PREFIX):
        raise InvalidTopic(
            f"{name!r} cannot name a topic: 1 to 249 of a-z A-Z 0-9 . _ -, beginning with a letter or a digit",
            {"topic": name},
        )


def _raised(outcome: Outcome) -> Outcome:
    if isinstance(outcome, LogdError):
        raise outcome
    return outcome
