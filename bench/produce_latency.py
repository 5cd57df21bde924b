"""How long does one synchronous produce take, against NATS JetStream when it too calls fsync before it answers.

`python -m bench.produce_latency`
"""

from __future__ import annotations

from bench.harness import Bar, Options, Question, Result, answer, run_script
from bench.logd_client import produce_latency, with_client
from bench.logd_node import LogdNode, fresh_topic
from bench.nats_peer import NatsServer, Sync, latency_nats_py, latency_raw

PAYLOAD_BYTES = 100

QUESTION = Question(
    name="one synchronous produce, p50",
    unit="ms",
    peer_name="NATS JetStream, sync_interval: always, the better of nats-py and a raw socket",
    bar=Bar("<=", 1.5),
    method=f"""
        Ours: wire.Client on Trio over mutual TLS, one record of {PAYLOAD_BYTES} B at a time, acks=quorum, encoding
        included.
        Peer: no TLS, `sync_interval: always`; half of each run nats-py's js.publish, half a raw socket with bytes built
        beforehand; the smaller of the two medians counts.
        A run's figure is the median of all its produces.
    """,
)


def run(options: Options) -> Result:
    """Answer the question."""

    def ours() -> float:
        with fresh_topic(node):
            return 1000 * with_client(
                node, lambda client: produce_latency(client, payload_bytes=PAYLOAD_BYTES, seconds=options.seconds)
            )

    def peer() -> float:
        half = options.seconds / 2
        return 1000 * min(
            latency_raw(server, payload_bytes=PAYLOAD_BYTES, seconds=half),
            latency_nats_py(server, payload_bytes=PAYLOAD_BYTES, seconds=half),
        )

    with LogdNode(options.data_directory) as node, NatsServer(options.data_directory, Sync.ALWAYS) as server:
        return answer(QUESTION, ours=ours, peer=peer, options=options)


if __name__ == "__main__":
    run_script(run, __doc__ or "")
