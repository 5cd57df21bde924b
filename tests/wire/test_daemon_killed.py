"""The daemon is killed while a producer and a consumer are at work: what was acknowledged is there, once, in order."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import wire
from tests.support.servers import Daemon
from wire import blocking

KILLS = 3
RECORDS_BETWEEN_KILLS = 2000


@pytest.fixture
def own_daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path / "data")
    yield daemon
    daemon.stop()


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_what_was_acknowledged_before_a_kill_is_read_after_it(own_daemon: Daemon, backend: str) -> None:
    server = own_daemon.server()
    sent: list[blocking.Acknowledgement] = []
    seen: list[wire.Record] = []

    def consume(client: blocking.Client) -> None:
        with blocking.Consumer(client, "t") as consumer:
            for record in consumer:
                seen.append(record)
                if record.value == b"end":
                    return

    with blocking.Client(server.address, tls=server.tls, backend=backend) as client:
        client.create_topic("t", partitions=1)
        reader = threading.Thread(target=consume, args=(client,), daemon=True)
        reader.start()
        with blocking.Producer(client, "t", batch_records_max=50, linger_seconds=0.001) as producer:
            for kill in range(KILLS):
                for number in range(RECORDS_BETWEEN_KILLS):
                    record = producer.send(b"%d" % (kill * RECORDS_BETWEEN_KILLS + number))
                    sent.append(record)
                own_daemon.kill()
                own_daemon.start(server.address)
            sent.append(producer.send(b"end"))
        reader.join(60)
        assert not reader.is_alive()
    receipts = [acknowledgement.wait() for acknowledgement in sent]
    assert [receipt.offset for receipt in receipts] == list(range(KILLS * RECORDS_BETWEEN_KILLS + 1))
    assert [record.offset for record in seen] == [receipt.offset for receipt in receipts]
    assert [record.value for record in seen[:-1]] == [b"%d" % number for number in range(KILLS * RECORDS_BETWEEN_KILLS)]
