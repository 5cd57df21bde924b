"""Every way of making a round durable writes the whole round, and a full file begins again at its front."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from bench.disk_round import BATCH_BYTES, BLOCK_BYTES, Appender, Candidates, WriterThread, drawn_order

GROUPS = 3


@pytest.fixture
def candidates(tmp_path: Path) -> Iterator[Candidates]:
    with ExitStack() as stack:
        yield Candidates(tmp_path, GROUPS, stack, journal_bytes=8 * GROUPS * BATCH_BYTES)


def test_an_appender_keeps_to_block_boundaries() -> None:
    appender = Appender(descriptor=-1, size_bytes=10 * BLOCK_BYTES)
    assert [appender.next_position(length) for length in (1, BLOCK_BYTES, BLOCK_BYTES + 1, 1)] == [
        0,
        BLOCK_BYTES,
        2 * BLOCK_BYTES,
        4 * BLOCK_BYTES,
    ]


def test_an_appender_begins_again_when_the_file_is_full() -> None:
    appender = Appender(descriptor=-1, size_bytes=2 * BLOCK_BYTES)
    assert [appender.next_position(BLOCK_BYTES) for _ in range(3)] == [0, BLOCK_BYTES, 0]


@pytest.mark.parametrize("way", ["each_segment", "each_segment_in_threads"])
def test_each_segment_holds_its_groups_batch(candidates: Candidates, tmp_path: Path, way: str) -> None:
    getattr(candidates, way)()
    for number, batch in enumerate(candidates.batches):
        assert (tmp_path / f"segment-{number}").read_bytes()[BATCH_BYTES:] == batch


@pytest.mark.parametrize(
    ("way", "name"),
    [
        ("journal_growing", "journal-growing"),
        ("journal_zeroed", "journal-zeroed"),
        ("journal_dsync", "journal-zeroed"),
        ("journal_then_segments", "journal-zeroed"),
    ],
)
def test_a_journal_holds_all_batches_of_a_round_in_order(
    candidates: Candidates, tmp_path: Path, way: str, name: str
) -> None:
    getattr(candidates, way)()
    assert (tmp_path / name).read_bytes()[: GROUPS * BATCH_BYTES] == b"".join(candidates.batches)


def test_the_table_has_a_row_for_every_way(candidates: Candidates) -> None:
    rows = candidates.ways()
    for way in rows.values():
        way()
    assert len(rows) >= 6


def test_every_way_runs_once_a_round_and_follows_every_other_sooner_or_later() -> None:
    names = ["a", "b", "c", "d"]
    chance = random.Random(1)
    orders = [drawn_order(names, chance) for _ in range(100)]
    assert all(sorted(order) == names for order in orders)
    assert {pair for order in orders for pair in itertools.pairwise(order)} == set(itertools.permutations(names, 2))


async def test_the_writer_thread_runs_jobs_in_order_and_wakes_the_loop() -> None:
    done: list[int] = []
    writer = WriterThread()
    try:
        for number in range(3):
            writer.submit(lambda number=number: done.append(number))  # type: ignore[misc]  # mypy cannot type the default
        with trio.fail_after(5):
            finished = 0
            while finished < 3:
                await trio.lowlevel.wait_readable(writer.event)
                finished += os.eventfd_read(writer.event)
    finally:
        writer.close()
    assert done == [0, 1, 2]
