"""What do many active partitions cost: ten against one, at equal bytes in flight.

One fsync per round serves all groups, so ten should cost little more than one. The peer is ourselves with one
partition. `python -m bench.partitions`
"""

from __future__ import annotations

from bench.harness import Bar, Options, Question, Result, answer, run_script
from bench.logd_node import BatchPlan, LogdNode, produce_raw

ONE = BatchPlan(records=1_000, payload_bytes=100, window_batches=20, partitions=1)
TEN = BatchPlan(records=1_000, payload_bytes=100, window_batches=20, partitions=10)

QUESTION = Question(
    name="ten active partitions",
    unit="records/s",
    peer_name="logd with one partition",
    bar=Bar(">=", 0.8),
    method=f"""
        Both: one mutual-TLS connection, batches of {ONE.records:,} x {ONE.payload_bytes} B encoded beforehand,
        {ONE.window_batches} batches under way in all, acks=quorum, each acknowledged after an fsync.
        Ours: the batches go to ten partitions in turn. Peer: all go to one.
    """,
)


def run(options: Options) -> Result:
    """Answer the question."""
    with LogdNode(options.data_directory) as node:
        return answer(
            QUESTION,
            ours=lambda: produce_raw(node, TEN, options.seconds).rate,
            peer=lambda: produce_raw(node, ONE, options.seconds).rate,
            options=options,
        )


if __name__ == "__main__":
    run_script(run, __doc__ or "")
