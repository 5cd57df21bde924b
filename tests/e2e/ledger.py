"""What was promised, kept beside the node: so that what it holds later can be compared with it.

For: the tests that take the node away in the middle of something. Must not know: how it was taken away. The one idea:
each batch that was sent is remembered with its bytes, and with the answer if one came; what the log holds must then be
those batches, byte for byte, in order, with every answered one where its answer says, and none twice.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import wire
from logd.store.files import OsFileSystem
from logd.store.inspect import inspect
from wire.errors import OffsetOutOfRange
from wire.messages import Produced
from wire.record import HEADER_BYTES, PRODUCER_PART, check_alone, check_in_place, decode_header, split_batches


def batch_of(name: str, number: int, size: int = 1000, records: int = 3) -> bytes:
    """A batch that no other is equal to, about `size` bytes long; the same for the same arguments."""
    value = f"{name}/{number}/".encode()
    value += bytes((number + position) % 251 for position in range(16)) * (size // records // 16)
    return wire.encode_batch([(value, b"%d" % place, number, None) for place in range(records)])


async def stored_batches(client: wire.Client, topic: str, partition: int, offset: int = 0) -> list[bytes]:
    """Every batch with records from `offset` on, each verified alone and in its place."""
    found: list[bytes] = []
    previous: wire.BatchHeader | None = None
    while True:
        fetched = await client.fetch(topic, partition, offset)
        for view in split_batches(fetched.batches):
            header = check_alone(view)
            if previous is not None and header.index <= previous.index:
                continue
            if previous is not None and header.index == previous.index + 1:
                check_in_place(header, previous)
            previous = header
            if not header.is_control:
                assert header.base_offset == (decode_header(found[-1]).next_offset if found else offset)
                found.append(bytes(view))
        if fetched.next_offset >= fetched.high_watermark:
            return found
        offset = fetched.next_offset


def as_sent(batch: bytes) -> bytes:
    """The part of a stored batch that its producer wrote."""
    return batch[: PRODUCER_PART.size] + batch[HEADER_BYTES:]


@dataclass
class Ledger:
    """What was sent to each partition, in order, and what was answered."""

    sent: dict[tuple[str, int], list[bytes]] = field(default_factory=lambda: defaultdict(list))
    answered: dict[tuple[str, int], list[tuple[int, Produced]]] = field(default_factory=lambda: defaultdict(list))
    """The number of the batch among those sent, and its answer."""
    topics: dict[str, bytes] = field(default_factory=dict)
    """Topics whose creation was acknowledged and whose deletion was not asked for, with their ids."""
    deleted: set[bytes] = field(default_factory=set)
    """The ids of topics whose deletion was acknowledged."""

    async def produce(self, client: wire.Client, topic: str, partition: int, batch: bytes) -> Produced:
        """Produce one batch and remember what became of it."""
        sent = self.sent[topic, partition]
        number = len(sent)
        sent.append(as_sent(batch))
        produced = await client.produce(topic, partition, batch)
        self.answered[topic, partition].append((number, produced))
        return produced

    async def create(self, client: wire.Client, topic: str, partitions: int, **configuration: str) -> None:
        named = {key.replace("_", "."): value for key, value in configuration.items()}
        self.topics[topic] = (await client.create_topic(topic, partitions, configuration=named)).topic_id

    async def delete(self, client: wire.Client, topic: str) -> None:
        """Forget the topic, whatever becomes of the request."""
        topic_id = self.topics.pop(topic)
        for key in [key for key in self.sent if key[0] == topic]:
            del self.sent[key]
            self.answered.pop(key, None)
        await client.delete_topic(topic)
        self.deleted.add(topic_id)

    @property
    def answers(self) -> int:
        return sum(len(answered) for answered in self.answered.values())

    async def check(self, client: wire.Client) -> None:
        """The node holds everything that was acknowledged, and nothing that was not sent."""
        known = {topic.topic: topic for topic in (await client.metadata()).topics}
        assert not self.deleted & {topic.topic_id for topic in known.values()}
        for name, topic_id in self.topics.items():
            assert known[name].topic_id == topic_id
            for partition in range(len(known[name].partitions)):
                await self.check_partition(client, name, partition)

    async def check_partition(self, client: wire.Client, topic: str, partition: int) -> None:
        while True:
            start = (await client.list_offsets(topic, partition, wire.Anchor.START)).log_start_offset
            try:
                stored = await stored_batches(client, topic, partition, start)
                break
            except OffsetOutOfRange as error:
                # Retention moved the start meanwhile.
                assert error.details["log_start_offset"] > start  # noqa: PT017  # a retry, not an expectation
        sent, answered = self.sent[topic, partition], self.answered[topic, partition]
        # In order and none twice: each stored batch is one that was sent after the one before it.
        numbers, place = [], 0
        for batch in stored:
            place = sent.index(as_sent(batch), place) + 1
            numbers.append(place - 1)
        at = {decode_header(batch).base_offset: (number, batch) for number, batch in zip(numbers, stored, strict=True)}
        for number, produced in answered:
            if produced.base_offset < start:
                continue  # retention, which moves the start, was wanted
            found = at.get(produced.base_offset)
            assert found is not None, f"{topic}/{partition}: acknowledged offset {produced.base_offset} is not there"
            header = decode_header(found[1])
            assert found[0] == number
            if not produced.duplicate:
                assert (header.index, header.term, header.chain) == (produced.index, produced.term, produced.chain)


def verify_directory(data: Path) -> None:
    """Every digest and chain in a node's directory holds, as `logctl segment verify` finds by itself."""
    found = list(inspect(OsFileSystem(), str(data)))
    assert any(finding.kind == "batch" for finding in found)
    assert [finding.as_json() for finding in found if finding.is_problem] == []
