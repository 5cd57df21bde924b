"""The journal's seven rules: what goes wrong without them is of this project's own making."""

from typing import Final

from tests.mutants.mutant import Edit, Mutant, Source

RECOVERY: Final = "tests/store/test_recovery.py"

JOURNAL: Final[tuple[Mutant, ...]] = (
    Mutant(
        Source.JOURNAL,
        1,
        "journal-1-higher-term-wins",
        "The higher term wins at replay",
        "a later round replaces an earlier one, also by a lower term (figure 8 of the Raft paper)",
        (
            Edit(
                "logd.store.recovery",
                "        self.void(index)\n        if index <= self.base.index:\n",
                "        last = self.placements[-1] if self.placements else None\n"
                "        if last is not None and last.index >= index and last.term > placement.term:\n"
                "            return\n"
                "        self.void(index)\n        if index <= self.base.index:\n",
            ),
        ),
        (f"{RECOVERY}::test_a_lower_term_replaces_a_higher_one",),
    ),
    Mutant(
        Source.JOURNAL,
        2,
        "journal-2-equal-bytes-are-trusted",
        "Bytes that look equal are not written again",
        "recovery writes every surviving batch: after a failed fsync the page cache shows what the disk lacks",
        (
            Edit(
                "logd.store.recovery",
                "        file.pwritev(buffers, place.position)\n",
                '        content = b"".join(bytes(buffer) for buffer in buffers)\n'
                "        if file.pread(len(content), place.position) == content:\n"
                "            return\n"
                "        file.pwritev(buffers, place.position)\n",
            ),
        ),
        (f"{RECOVERY}::test_bytes_that_only_the_page_cache_has_are_written_again",),
        violations=("CorruptBatch",),
    ),
    Mutant(
        Source.JOURNAL,
        3,
        "journal-3-promised-end-forgotten",
        "The promised end is forgotten with the journal file that held it",
        "a table carries each group's promised end, and a log that misses it is damaged",
        (
            Edit(
                "logd.store.recovery",
                "        if log.damage or end.index < index:\n",
                "        if not replayed.placements:\n"
                "            log.damage = ()\n"
                "        if (log.damage or end.index < index) and replayed.placements:\n",
            ),
        ),
        (f"{RECOVERY}::test_the_promised_end_is_remembered_when_its_journal_file_is_recycled",),
    ),
    Mutant(
        Source.JOURNAL,
        4,
        "journal-4-older-hard-state",
        "An older hard state is taken where the newest cannot be read",
        "after a lost round a replica has no hard state rather than one from before a vote",
        (
            Edit(
                "logd.store.recovery",
                "            group.hard_state = None\n            group.is_end_uncertain = True\n",
                "            group.is_end_uncertain = True\n",
            ),
        ),
        (f"{RECOVERY}::test_a_hard_state_that_may_be_older_than_a_lost_vote_is_not_taken",),
    ),
    Mutant(
        Source.JOURNAL,
        5,
        "journal-5-rounds-overlap",
        "A round is written before the fsync of the one before it has returned",
        "one round is in flight at a time",
        (
            Edit(
                "logd.store.round",
                '    assert store.round_in_flight is None, "the round before is not durable yet"\n',
                "",
            ),
            Edit(
                "logd.store.round",
                '        assert journal.durable_round == self.number - 1, "the round before is not durable"\n',
                "",
            ),
        ),
        (f"{RECOVERY}::test_rounds_are_written_one_after_the_other",),
    ),
    Mutant(
        Source.JOURNAL,
        6,
        "journal-6-segment-overwritten-early",
        "A segment is overwritten before the round that replaces its suffix is durable",
        "batches go to their segments after the fsync of their round",
        (
            Edit(
                "logd.store.round",
                "        file = self._file.file\n        if self._table is not None:\n",
                "        self.settle()\n"
                "        self.settle = lambda: None\n"
                "        file = self._file.file\n        if self._table is not None:\n",
            ),
        ),
        (
            f"{RECOVERY}::test_nothing_of_a_segment_is_overwritten_before_the_replacing_round_is_durable",
            "tests/store/test_bugs.py::test_a_round_that_failed_leaves_the_suffix_that_it_was_to_replace",
        ),
        violations=("CorruptBatch",),
    ),
    Mutant(
        Source.JOURNAL,
        7,
        "journal-7-removal-out-of-order",
        "A start or a removal takes effect outside the journal's order",
        "starts and removals are entries of rounds, replayed in their order",
        (
            Edit(
                "logd.store.recovery",
                "            replay.groups.pop(entry.group, None)\n            return\n",
                "            self._removed = (*getattr(self, '_removed', ()), entry.group)\n            return\n",
            ),
            Edit(
                "logd.store.recovery",
                "        assert replay is not None\n        for group in replay.groups.values():\n",
                "        assert replay is not None\n"
                "        for number in getattr(self, '_removed', ()):\n"
                "            replay.groups.pop(number, None)\n"
                "        for group in replay.groups.values():\n",
            ),
        ),
        (f"{RECOVERY}::test_a_group_that_was_removed_and_started_again_holds_only_what_came_after",),
    ),
)
