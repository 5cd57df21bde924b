"""Producing: from a request to a proposal.

For: every door. Must not know: connections, tasks, or how a batch becomes durable. The one idea: a batch is checked as
bytes, once, and handed on as the same object; the answer comes back through `reply`, so that no task waits per batch.
"""

from dataclasses import dataclass

from logd.service import authorization
from logd.service.ports import Authorizer, Cluster, ProduceReply
from wire.errors import LogdError
from wire.messages import Produce
from wire.record import check_produced


@dataclass(frozen=True, slots=True)
class ProduceService:
    """Arguments: `batch_bytes_max`, the limit that `Welcome` told the clients."""

    cluster: Cluster
    authorizer: Authorizer
    batch_bytes_max: int

    def produce(self, principal: str, request: Produce, reply: ProduceReply) -> None:
        """Append the request's batch. Every outcome, refusals included, goes to `reply`."""
        try:
            self.authorizer.check(principal, authorization.PRODUCE, request.topic)
            partition = self.cluster.partition(request.topic, request.partition)
            header = check_produced(request.batch, self.batch_bytes_max)
        except LogdError as error:
            reply(error)
            return
        partition.produce(request.batch, header, request.acks, request.expected_offset, reply)
