"""How many records a second does one Python producer take, one by one, through `Producer.send_nowait`.

`python -m bench.send_nowait`
"""

from __future__ import annotations

from bench.harness import Bar, Options, Question, Result, answer, run_script
from bench.logd_client import produce_records
from bench.logd_node import LogdNode
from bench.nats_peer import NatsServer, Sync, publish_nats_py

PAYLOAD_BYTES = 100
# The best of 100, 250, 500, 1,000, 4,000 and 20,000.
PEER_PENDING_MAX = 500

QUESTION = Question(
    name="Producer.send_nowait, record by record",
    unit="records/s",
    peer_name="NATS JetStream, default sync, nats-py publish_async",
    bar=Bar(">=", 150_000, of="ours", unit="records/s"),
    method=f"""
        Ours: one wire.Producer over mutual TLS, records of {PAYLOAD_BYTES} B without key, acks=quorum, defaults
        otherwise; from the first send until the last acknowledgement; the log is counted afterwards.
        Peer: js.publish_async without TLS, at most {PEER_PENDING_MAX} unacknowledged, no fsync before the answer.
        The bar is absolute; the ratio informs.
    """,
)


def run(options: Options) -> Result:
    """Answer the question."""

    def peer() -> float:
        return publish_nats_py(
            server, payload_bytes=PAYLOAD_BYTES, seconds=options.seconds, pending_max=PEER_PENDING_MAX
        ).rate

    with LogdNode(options.data_directory) as node, NatsServer(options.data_directory, Sync.DEFAULT) as server:
        return answer(
            QUESTION,
            ours=lambda: produce_records(node, payload_bytes=PAYLOAD_BYTES, seconds=options.seconds),
            peer=peer,
            options=options,
        )


if __name__ == "__main__":
    run_script(run, __doc__ or "")
