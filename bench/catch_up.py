"""How fast does a Python consumer catch up from the start of a log, against nats-py's pull subscription.

`python -m bench.catch_up`
"""

from __future__ import annotations

from bench.harness import Bar, Options, Question, Result, answer, print_aside, run_script
from bench.logd_client import catch_up, catch_up_by_record, with_client
from bench.logd_node import LogdNode, filled_topic
from bench.nats_peer import NatsServer, Sync, filled_stream, read_pull

PAYLOAD_BYTES = 100
# Enough that a run does not begin anew more than a few times at the rates expected of each.
OUR_RECORDS = 1_000_000
PEER_RECORDS = 200_000
# The best of 100, 500, 1,000, 2,000 and 5,000, all within noise above 100; so is the best with acknowledgements off.
PEER_FETCH_MESSAGES = 500

QUESTION = Question(
    name="catch-up read with the Python client",
    unit="records/s",
    peer_name="NATS JetStream, nats-py pull subscription",
    bar=Bar(">=", 25),
    method=f"""
        Both read {PAYLOAD_BYTES} B records from the start of a log that lies in the page cache, again when it ends.
        Ours: wire.Consumer over mutual TLS, batch-wise, digests and chains verified, every record decoded; the log
        holds batches of 1,000.
        Peer: no TLS, ack_policy none (its fastest), fetch {PEER_FETCH_MESSAGES}.
    """,
)


def run(options: Options) -> Result:
    """Answer the question."""
    with (
        LogdNode(options.data_directory) as node,
        NatsServer(options.data_directory, Sync.DEFAULT) as server,
        filled_topic(node, payload_bytes=PAYLOAD_BYTES, records=OUR_RECORDS),
        filled_stream(server, payload_bytes=PAYLOAD_BYTES, messages=PEER_RECORDS),
    ):
        result = answer(
            QUESTION,
            ours=lambda: with_client(
                node, lambda client: catch_up(client, payload_bytes=PAYLOAD_BYTES, seconds=options.seconds)
            ),
            peer=lambda: (
                read_pull(server, fetch_messages=PEER_FETCH_MESSAGES, acknowledge=False, seconds=options.seconds).rate
            ),
            options=options,
        )
        print_aside(
            "record by record (async for record in consumer)",
            lambda: with_client(
                node,
                lambda client: catch_up_by_record(client, payload_bytes=PAYLOAD_BYTES, seconds=options.seconds / 2),
            ),
            QUESTION,
            options,
        )
        return result


if __name__ == "__main__":
    run_script(run, __doc__ or "")
