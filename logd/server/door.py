"""Which verb of the service answers which message.

For: the session, which asks this table. Must not know: connections or bytes. The one idea: a new request is one row
here, and its meaning one verb in `logd.service`.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from logd.service.fetch import FetchService
from logd.service.produce import ProduceService
from logd.service.topics import TopicService
from wire.messages import (
    AlterTopic,
    CreateTopic,
    DeleteTopic,
    DescribeTopic,
    InitProducer,
    ListOffsets,
    Message,
    Metadata,
    Ping,
    Pong,
    ReportDamage,
)

SyncVerb = Callable[[str, Any], Message]
AsyncVerb = Callable[[str, Any], Awaitable[Message]]


@dataclass(frozen=True, slots=True)
class Door:
    """The services behind the native door.

    `Produce`, `Fetch`, `Subscribe`, `Credit` and `Unsubscribe` are the session's own: their answers are not one
    value, or too large to be made before there is room for them.
    """

    produce: ProduceService
    fetch: FetchService
    topics: TopicService

    def sync_verbs(self) -> Mapping[type[Message], SyncVerb]:
        """Requests that are answered at once."""
        return {
            Ping: lambda _principal, _request: Pong(),
            Metadata: self.topics.metadata,
            DescribeTopic: self.topics.describe,
        }

    def async_verbs(self) -> Mapping[type[Message], AsyncVerb]:
        """Requests that may wait: each has a task while it does."""
        return {
            ListOffsets: self.fetch.list_offsets,
            ReportDamage: self.fetch.report_damage,
            CreateTopic: self.topics.create,
            AlterTopic: self.topics.alter,
            DeleteTopic: self.topics.delete,
            InitProducer: self.topics.init_producer,
        }
