"""How fast are larger records produced in batches: 100 of 1 KiB each, against NATS JetStream as it comes.

`python -m bench.produce_large`
"""

from __future__ import annotations

from bench.harness import Bar, Options, Question, Result, answer, print_aside, run_script
from bench.logd_client import produce_records
from bench.logd_node import BatchPlan, LogdNode, produce_raw
from bench.nats_peer import NatsServer, Plan, Sync, publish_raw

OURS = BatchPlan(records=100, payload_bytes=1_024, window_batches=16)
# The fastest of the survey (`python -m bench.nats_peer`); fast ingest and more connections are within its noise.
PEER = Plan(payload_bytes=1_024, mode="message", chunk_messages=100, window_messages=5_000)

QUESTION = Question(
    name="produce batches of 100 x 1 KiB",
    unit="records/s",
    peer_name="NATS JetStream, default sync, raw pipelined socket",
    bar=Bar(">=", 0.9),
    method=f"""
        Ours: one mutual-TLS connection, batches encoded beforehand and framed in the measured time,
        {OURS.window_batches} batches under way, acks=quorum, each acknowledged after an fsync.
        Peer: one plain connection, byte strings built beforehand, {PEER.window_messages:,} messages under way, one
        JetStream acknowledgement for each message; one file stream, no fsync before the acknowledgement.
        Both: a new topic or stream for each run; all that was acknowledged is counted in the log afterwards.
    """,
)


def run(options: Options) -> Result:
    """Answer the question."""
    with LogdNode(options.data_directory) as node, NatsServer(options.data_directory, Sync.DEFAULT) as server:
        result = answer(
            QUESTION,
            ours=lambda: produce_raw(node, OURS, options.seconds).rate,
            peer=lambda: publish_raw(server, PEER, options.seconds).rate,
            options=options,
        )
        print_aside(
            "records one by one through wire.Producer",
            lambda: produce_records(
                node,
                payload_bytes=OURS.payload_bytes,
                seconds=options.seconds / 2,
                batch_records_max=OURS.records,
            ),
            QUESTION,
            options,
        )
        return result


if __name__ == "__main__":
    run_script(run, __doc__ or "")
