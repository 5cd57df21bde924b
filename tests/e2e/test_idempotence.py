"""Idempotent producers against a real node: the same batch twice is one, and a newer producer fences the older."""

from pathlib import Path

import pytest
import trio

import wire
from tests.e2e.ledger import batch_of, stored_batches
from tests.support.daemon import PATIENCE_SECONDS, LogdProcess
from wire.errors import DuplicateSequence, Fenced, SequenceGap, UnknownProducer
from wire.messages import ProducerInitialized
from wire.record import encode_batch


def batch(identity: ProducerInitialized, sequence: int, text: bytes = b"once") -> bytes:
    return encode_batch(
        [(text, None, 0, None)],
        producer_id=identity.producer_id,
        producer_epoch=identity.producer_epoch,
        base_sequence=sequence,
    )


async def test_the_same_bytes_on_two_connections_and_after_a_kill_are_one_batch(tmp_path: Path) -> None:
    with LogdProcess(tmp_path) as node, trio.fail_after(2 * PATIENCE_SECONDS):
        node.start()
        async with node.client() as one, node.client() as another:
            await one.create_topic("once", 1)
            identity = await one.init_producer()
            sent = [batch(identity, number, b"%d" % number) for number in range(8)]
            first = [await one.produce("once", 0, each) for each in sent]
            assert [produced.duplicate for produced in first] == [False] * 8
            again = await another.produce("once", 0, sent[-1])
            assert (again.duplicate, again.base_offset, again.index) == (True, 7, first[-1].index)

            # Both at once: one of them appends, and both are told the same place.
            racing = batch(identity, 8)
            answers = []

            async def send(client: wire.Client) -> None:
                answers.append(await client.produce("once", 0, racing))

            async with trio.open_nursery() as nursery:
                for client in (one, another) * 3:
                    nursery.start_soon(send, client)
            assert {produced.base_offset for produced in answers} == {8}
            assert sorted(produced.duplicate for produced in answers) == [False] + [True] * 5

            with pytest.raises(SequenceGap):
                await another.produce("once", 0, batch(identity, 12))
            with pytest.raises(DuplicateSequence):
                await another.produce("once", 0, sent[0])
        node.kill()
        node.start()
        async with node.client() as client:
            remembered = await client.produce("once", 0, sent[-1])
            assert (remembered.duplicate, remembered.base_offset) == (True, 7)
            produced = await client.produce("once", 0, batch(identity, 9))
            assert (produced.duplicate, produced.base_offset) == (False, 9)
            stranger = ProducerInitialized(identity.producer_id + 1000, 0)
            with pytest.raises(UnknownProducer):
                await client.produce("once", 0, batch(stranger, 5))
            assert len(await stored_batches(client, "once", 0)) == 10
        node.stop()
        node.check_log()


async def test_a_producer_started_again_under_its_name_fences_the_older_one(tmp_path: Path) -> None:
    with LogdProcess(tmp_path) as node, trio.fail_after(2 * PATIENCE_SECONDS):
        node.start()
        async with node.client() as one, node.client() as another:
            await one.create_topic("fenced", 1)
            async with wire.Producer(one, "fenced", name="billing") as older:
                await (await older.send(b"from the older"))
                async with wire.Producer(another, "fenced", name="billing") as newer:
                    await (await newer.send(b"from the newer"))
                late = await older.send(b"too late")
                with pytest.raises(Fenced):
                    await late
            # Anybody else is not concerned.
            await one.produce("fenced", 0, batch_of("else", 0))
        node.kill()
        node.start()
        async with node.client() as client:
            async with wire.Consumer(client, "fenced", follow=False) as consumer:
                values = [record.value async for record in consumer]
            assert values[:2] == [b"from the older", b"from the newer"]
            assert b"too late" not in values
            # The epoch is kept: the next of this name is newer than both.
            identity = await client.init_producer("billing")
            assert identity.producer_epoch == 2
        node.stop()
        node.check_log()
