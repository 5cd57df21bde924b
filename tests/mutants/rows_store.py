"""The bugs of others that would live in the store here, each as the rule that keeps it away."""

from typing import Final

from tests.mutants.mutant import Edit, Mutant, Source

TESTS: Final = "tests/store/test_bugs.py"

STORE: Final[tuple[Mutant, ...]] = (
    Mutant(
        Source.BUG,
        4,
        "bug-04-vote-in-the-page-cache",
        "A vote that is in the page cache alone (nats-server #5848, robustmq #2039)",
        "a round is synced whatever is in it",
        (
            Edit(
                "logd.store.round",
                "        file.pwritev(self._buffers, self._position)\n        file.sync()\n",
                "        file.pwritev(self._buffers, self._position)\n"
                "        if any(work.items for work in self._works):\n"
                "            file.sync()\n",
            ),
        ),
        (f"{TESTS}::test_bug_04_a_vote_survives_a_power_cut_right_after_it_was_given",),
    ),
    Mutant(
        Source.BUG,
        16,
        "bug-16-applied-index-of-another-moment",
        "State and applied index that are not of one moment (etcd #13766 and its postmortem, ra ffe3016a)",
        "a producer table carries the index up to which it is true, in the same file",
        (
            Edit(
                "logd.store.log",
                "        return index.producers if index.producers[0] <= index.covered.index else None\n",
                "        return (index.covered.index, index.producers[1])\n",
            ),
        ),
        (f"{TESTS}::test_bug_16_a_producer_table_is_as_old_as_it_says",),
    ),
    Mutant(
        Source.BUG,
        17,
        "bug-17-lazy-fsync",
        "An acknowledgement before the fsync (nats-server #7564, #7567)",
        "every round is synced before it is durable",
        (
            Edit(
                "logd.store.round",
                "        file.pwritev(self._buffers, self._position)\n        file.sync()\n",
                "        file.pwritev(self._buffers, self._position)\n"
                "        if self.number % 4 == 0:\n"
                "            file.sync()\n",
            ),
        ),
        (f"{TESTS}::test_bug_17_what_was_acknowledged_survives_a_power_cut_at_any_time",),
    ),
    Mutant(
        Source.BUG,
        18,
        "bug-18-corruption-is-the-end",
        "Corruption in the middle taken for the end of the log (nats-server #7549, #7556; pebble #453; camunda #6098)",
        "what was promised and cannot be read is a hole, and the log's end stays where it was promised",
        (
            Edit(
                "logd.store.recovery",
                "            if good is None:\n                self._holes.append(_Hole(index,",
                "            if good is None:\n"
                "                assert before is not None\n"
                "                replayed.promised = (before.index, before.term, before.chain)\n"
                "                return\n"
                "                self._holes.append(_Hole(index,",
            ),
        ),
        (f"{TESTS}::test_bug_18_a_flipped_bit_in_the_middle_is_a_hole_and_not_the_end_of_the_log",),
    ),
    Mutant(
        Source.BUG,
        19,
        "bug-19-torn-tail-stays",
        "An append behind a torn tail that was not cut (amelie #17, ra 2a463afd, mysticeti #219)",
        "what lies beyond the promised end is cut, and the next batch goes there",
        (
            Edit(
                "logd.store.recovery",
                "                file.truncate(end_position)\n                self._changed.add(first)\n",
                "                pass\n",
            ),
            Edit(
                "logd.store.recovery",
                "            end_position = touched.get(first)\n            if end_position is None:\n",
                "            if True:\n",
            ),
        ),
        (f"{TESTS}::test_bug_19_what_is_appended_after_a_torn_tail_is_read_back",),
        violations=("CorruptBatch",),
    ),
    Mutant(
        Source.BUG,
        20,
        "bug-20-fsync-is-tried-again",
        "An fsync that failed is tried again (wiredtiger WT-4045, neon #8140, SpacetimeDB #985, turso #3077)",
        "the first failed fsync is final",
        (
            Edit(
                "logd.store.round",
                "        file.pwritev(self._buffers, self._position)\n        file.sync()\n",
                "        file.pwritev(self._buffers, self._position)\n"
                "        try:\n"
                "            file.sync()\n"
                "        except OSError:\n"
                "            self._store.context.files.open(file.path).sync()\n",
            ),
        ),
        (f"{TESTS}::test_bug_20_a_failed_fsync_is_final",),
    ),
    Mutant(
        Source.BUG,
        21,
        "bug-21-room-is-not-reserved",
        "A full disk leaves half a record (prometheus #13027)",
        "space is allocated before the round that fills it is written",
        (Edit("logd.store.log", "            file.allocate(self._from, length)\n", ""),),
        (f"{TESTS}::test_bug_21_a_disk_that_is_full_in_the_middle_of_a_batch_refuses_it_before_it_is_promised",),
    ),
    Mutant(
        Source.BUG,
        22,
        "bug-22-lowest-segment-first",
        "A truncated suffix leaves a hole (braft #119, ra f2b3e0ca)",
        "segments of a replaced suffix are unlinked from the highest down",
        (
            Edit(
                "logd.store.round",
                "        for segment in reversed(self.voided):\n",
                "        for segment in self.voided:\n",
            ),
        ),
        (f"{TESTS}::test_bug_22_a_crash_at_any_point_of_a_truncation_leaves_contiguous_segments",),
    ),
    Mutant(
        Source.BUG,
        23,
        "bug-23-position-of-32-bits",
        "A position or an offset of 32 bits (ra ac3d5e91, KAFKA-1670, KAFKA-4451, KAFKA-6264)",
        "the index holds positions of 64 bits",
        (
            Edit(
                "logd.store.index",
                "    entries.positions.append(position)\n",
                "    entries.positions.append(position & 0xFFFFFFFF)\n",
            ),
        ),
        (f"{TESTS}::test_bug_23_batches_beyond_4_gib_and_offsets_beyond_32_bits_are_found",),
        violations=("CorruptBatch",),
    ),
    Mutant(
        Source.BUG,
        24,
        "bug-24-name-is-not-synced",
        "A file whose directory entry is not durable (KAFKA-3968, KAFKA-15312, KAFKA-14273; ALICE)",
        "a new file's name is synced before anything is promised in it",
        (
            Edit(
                "logd.store.journal",
                "            files.rename(layout.journal_file(self._recycled), path)\n"
                "            files.sync_directory(layout.journal)\n",
                "            files.rename(layout.journal_file(self._recycled), path)\n",
            ),
            Edit(
                "logd.store.journal",
                "    files.sync_directory(context.layout.journal)\n    return file\n",
                "    return file\n",
            ),
        ),
        (f"{TESTS}::test_bug_24_a_new_journal_file_and_a_new_segment_survive_a_power_cut",),
        violations=("JournalLost",),
    ),
)
