"""What the raw driver sends and how it counts, on bytes alone: no server, no socket."""

from __future__ import annotations

import pytest

from bench.harness import BenchmarkError
from bench.nats_peer import WINDOW_MESSAGES_MAX, AcknowledgementCounter, Plan, build_chunk

ACKNOWLEDGEMENT = b'MSG _INBOX.load.0 3 28\r\n{"stream":"BENCH","seq":1234}\r\n'
COMMIT = b'MSG _INBOX.load.0 3 49\r\n{"stream":"BENCH","seq":3,"batch":"b0","count":3}\r\n'


def feed_all(counter: AcknowledgementCounter, *parts: bytes) -> None:
    for part in parts:
        counter.feed(part)


def test_acknowledgements_are_counted_wherever_a_read_cuts_them() -> None:
    received = ACKNOWLEDGEMENT * 3
    for cut in range(len(received) + 1):
        counter = AcknowledgementCounter(Plan(100))
        counter.feed(received[:cut])
        counter.feed(received[cut:])
        assert counter.messages == 3


def test_acknowledgements_are_counted_byte_by_byte() -> None:
    counter = AcknowledgementCounter(Plan(100))
    for position in range(len(ACKNOWLEDGEMENT)):
        counter.feed(ACKNOWLEDGEMENT[position : position + 1])
    assert counter.messages == 1


def test_a_commit_counts_for_the_whole_batch() -> None:
    counter = AcknowledgementCounter(Plan(100, "atomic", chunk_messages=3, window_messages=6))
    counter.feed(COMMIT + COMMIT)
    assert counter.messages == 6


def test_the_flow_control_of_a_fast_batch_counts_for_nothing() -> None:
    counter = AcknowledgementCounter(Plan(100, "fast", chunk_messages=3, window_messages=6))
    counter.feed(b'MSG _INBOX.load.0 3 37\r\n{"type":"ack","seq":500,"msgs":500}\r\n')
    assert counter.messages == 0


@pytest.mark.parametrize("refusal", [b'{"error":{"code":429}}', b"-ERR 'Slow Consumer'", b'{"type":"gap","seq":2}'])
def test_a_refusal_ends_the_run_with_the_servers_words(refusal: bytes) -> None:
    with pytest.raises(BenchmarkError, match="refused"):
        AcknowledgementCounter(Plan(100)).feed(refusal)


def test_a_refusal_is_seen_wherever_a_read_cuts_it() -> None:
    refusal = b'{"error":{"code":429}}'
    for cut in range(1, len(refusal)):
        counter = AcknowledgementCounter(Plan(100))
        with pytest.raises(BenchmarkError):
            feed_all(counter, refusal[:cut], refusal[cut:])


@pytest.mark.parametrize(
    "plan",
    [
        Plan(100, "atomic", chunk_messages=1_001),
        Plan(100, "message", chunk_messages=1_000, window_messages=999),
        Plan(100, "message", window_messages=WINDOW_MESSAGES_MAX + 1),
        Plan(100, connections=0),
        Plan(0),
    ],
)
def test_a_plan_that_cannot_work_is_refused(plan: Plan) -> None:
    with pytest.raises(BenchmarkError):
        plan.check()


def test_a_chunk_of_messages_asks_for_an_answer_to_each() -> None:
    chunk = build_chunk(Plan(5, "message", chunk_messages=2, window_messages=2), 7)
    assert chunk == b"PUB bench.records _INBOX.load.7 5\r\nxxxxx\r\n" * 2


def test_an_atomic_batch_asks_for_one_answer_at_its_commit() -> None:
    chunk = build_chunk(Plan(5, "atomic", chunk_messages=3, window_messages=3), 0)
    assert chunk.count(b"HPUB bench.records ") == 3
    assert chunk.count(b"_INBOX.load.0") == 1
    assert chunk.endswith(b"Nats-Batch-Id: b0\r\nNats-Batch-Sequence: 3\r\nNats-Batch-Commit: 1\r\n\r\nxxxxx\r\n")


def test_the_sizes_of_a_message_with_headers_are_true() -> None:
    head, _, rest = build_chunk(Plan(5, "atomic", chunk_messages=1, window_messages=1), 0).partition(b"\r\n")
    header_bytes, total_bytes = (int(word) for word in head.split()[-2:])
    assert rest[:header_bytes].endswith(b"\r\n\r\n")
    assert rest[header_bytes:] == b"xxxxx\r\n"
    assert total_bytes == header_bytes + 5


def test_a_fast_batch_says_start_append_and_commit_in_its_reply_subjects() -> None:
    chunk = build_chunk(Plan(5, "fast", chunk_messages=3, window_messages=3), 0)
    replies = [line.split()[2] for line in chunk.split(b"\r\n") if line.startswith(b"PUB ")]
    assert replies == [
        b"_INBOX.load.0.b0.500.fail.1.0.$FI",
        b"_INBOX.load.0.b0.500.fail.2.1.$FI",
        b"_INBOX.load.0.b0.500.fail.3.2.$FI",
    ]
