"""The bugs of others that would live in the core, its driver or the node here."""

from typing import Final

from tests.mutants.mutant import Edit, Mutant, Source

CORE: Final = "tests/raft/test_bugs.py"
REPLICA: Final = "tests/replica/test_bugs.py"

RAFT: Final[tuple[Mutant, ...]] = (
    Mutant(
        Source.BUG,
        1,
        "bug-01-old-term-committed-by-counting",
        "An entry of an earlier term is committed by counting (logcabin #44, canonical/raft #220 and #336, "
        "nats-server #7955)",
        "a leader counts replicas only for entries of its own term (section 5.4.2, figure 8)",
        (
            Edit(
                "logd.raft.group",
                "        if index > self.log.commit and self.log.term_at(index) == self.term:\n",
                "        if index > self.log.commit:\n",
            ),
        ),
        (f"{CORE}::test_bug_01_an_entry_of_an_earlier_term_is_not_committed_by_counting",),
    ),
    Mutant(
        Source.BUG,
        2,
        "bug-02-vote-forgotten",
        "A vote is forgotten inside its term (akka-raft #56, camunda #5356, hazelcast #16643, nats-server #7698)",
        "the vote is cleared only with a new term (section 5.2)",
        (
            Edit(
                "logd.raft.group",
                "            self.vote = NOBODY\n        self.leader = NOBODY\n",
                "        self.vote = NOBODY\n        self.leader = NOBODY\n",
            ),
        ),
        (f"{CORE}::test_bug_02_no_replica_votes_for_two_in_one_term",),
    ),
    Mutant(
        Source.BUG,
        3,
        "bug-03-old-vote-in-a-new-term",
        "A new term is saved with the vote of the old one (nats-server #7956)",
        "term and vote change together, and are one record",
        (
            Edit(
                "logd.raft.group",
                "            self.vote = NOBODY\n        self.leader = NOBODY\n",
                "        self.leader = NOBODY\n",
            ),
        ),
        (f"{CORE}::test_bug_03_a_new_term_is_saved_without_the_vote_of_the_old_one",),
    ),
    Mutant(
        Source.BUG,
        5,
        "bug-05-term-of-the-log",
        "The term goes back to that of the log when a suffix is replaced (nats-server #5975)",
        "the term comes from messages and campaigns, never from the log",
        (
            Edit(
                "logd.raft.replication",
                "    last_index = log.maybe_append(previous, message.chain, message.entries, message.commit)\n",
                "    last_index = log.maybe_append(previous, message.chain, message.entries, message.commit)\n"
                "    if log.truncated_from is not None:\n"
                "        group.term = previous.term\n",
            ),
        ),
        (f"{CORE}::test_bug_05_the_term_stays_when_a_suffix_is_replaced",),
    ),
    Mutant(
        Source.BUG,
        6,
        "bug-06-stale-append-truncates",
        "A delayed append truncates what was acknowledged (akka-raft #66, hashicorp/raft #113, "
        "redpanda #17731 and #17895, nats-server #7424)",
        "only an entry of another term is replaced, and what is above it (section 5.3)",
        (
            Edit(
                "logd.raft.log",
                "            if self.term_at(entry.index) != entry.term:\n",
                "            if self.term_at(entry.index) != entry.term or entry.index > self.commit:\n",
            ),
        ),
        (f"{CORE}::test_bug_06_a_delayed_append_takes_nothing_away",),
    ),
    Mutant(
        Source.BUG,
        7,
        "bug-07-acknowledged-before-durable",
        "A follower acknowledges what it has received and not yet synced, if the append brought nothing new "
        "(yugabyte #32875, tikv #994, c5 #263, camunda #4160)",
        "every acknowledgement waits for what was handed to the disk before it",
        (
            Edit(
                "logd.raft.group",
                "        if message.type in _PROMISES:\n            self._responses.append(message)\n",
                "        is_old = message.type is MessageType.APPEND_RESPONSE and not self.log.has_next_unstable\n"
                "        if message.type in _PROMISES and (message.to == self.node or not is_old):\n"
                "            self._responses.append(message)\n",
            ),
        ),
        (f"{CORE}::test_bug_07_a_repeated_append_is_acknowledged_only_once_its_entries_are_durable",),
    ),
    Mutant(
        Source.BUG,
        8,
        "bug-08-stale-completion",
        "The completion of a write counts although the entry was replaced (rabbitmq/ra 39490978 and 324d9bc5)",
        "a completion names index and term, and counts only if the log has that entry still",
        (
            Edit(
                "logd.raft.log",
                "        if entry.index > self.stable and self.matches(entry):\n",
                "        if self.stable < entry.index <= self.last_index:\n",
            ),
        ),
        (f"{CORE}::test_bug_08_a_stale_completion_does_not_make_its_replacement_durable",),
    ),
    Mutant(
        Source.BUG,
        8,
        "bug-08-aba-completion",
        "The completion of a write counts although the entry was replaced twice and stands there again "
        "(etcd-raft, async_storage_writes_append_aba_race.txt)",
        "a completion of an earlier term is ignored",
        (
            Edit(
                "logd.raft.election",
                "    if message.term < group.term:\n        _answer_the_past(group, message)\n",
                "    if message.term < group.term and message.type is MessageType.STORAGE_APPEND_RESPONSE:\n"
                "        return True\n"
                "    if message.term < group.term:\n        _answer_the_past(group, message)\n",
            ),
        ),
        (f"{CORE}::test_bug_08_a_completion_from_before_two_replacements_makes_nothing_durable",),
    ),
    Mutant(
        Source.BUG,
        9,
        "bug-09-commit-beyond-what-was-verified",
        "The commit passes what was verified (nats-server #8023, ra #508)",
        "a follower's commit is bounded by the last entry that this append has verified (figure 2)",
        (
            Edit(
                "logd.raft.log",
                "        self.commit_to(min(commit, last_index))\n        return last_index\n",
                "        self.commit_to(min(commit, self.last_index))\n        return last_index\n",
            ),
        ),
        (f"{CORE}::test_bug_09_the_commit_does_not_pass_what_an_append_has_verified",),
    ),
    Mutant(
        Source.BUG,
        10,
        "bug-10-own-log-counts-too-early",
        "A leader counts its own log before it is durable (etcd #14370)",
        "the leader's own log counts once it is durable, as everybody's",
        (
            Edit(
                "logd.raft.replication",
                "    # The leader's own log counts towards the majority when it is durable, no sooner.\n",
                "    group.progress[group.node].maybe_update(group.log.last_index)\n    group.maybe_commit()\n",
            ),
            Edit(
                "logd.raft.group",
                "        return not self.options.asynchronous_storage\n",
                "        return True\n",
            ),
        ),
        (f"{CORE}::test_bug_10_a_replica_that_decides_alone_commits_nothing_before_it_is_durable",),
    ),
    Mutant(
        Source.BUG,
        11,
        "bug-11-removed-members-count",
        "Members that were removed count (nats-server #7589 and f618bca80)",
        "only members are heard, and of these only voters count",
        (
            Edit(
                "logd.raft.election",
                "    if message.type in _MEMBERS_ALONE and message.sender not in group.progress:\n",
                "    is_heard = message.sender in group.progress or message.type in _RESPONSE.values()\n"
                "    if message.type in _MEMBERS_ALONE and not is_heard:\n",
            ),
            Edit(
                "logd.raft.quorum",
                "    for voter in voters:\n        vote = votes.get(voter)\n",
                "    for voter in {*voters, *votes}:\n        vote = votes.get(voter)\n",
            ),
        ),
        (f"{CORE}::test_bug_11_who_was_removed_counts_neither_in_elections_nor_for_the_commit",),
    ),
    Mutant(
        Source.BUG,
        12,
        "bug-12-change-in-force-before-commit",
        "A change of membership is in force when it is appended, and stays when its entry is replaced "
        "(nats-server #8332, canonical/raft #250 and #323)",
        "a change takes effect when it is applied, and what is applied is committed",
        (
            Edit(
                "logd.raft.replication",
                "    if last_index is not None:\n        group.settle_floor()\n",
                "    if last_index is not None:\n"
                "        for entry in message.entries:\n"
                "            if entry.change is not None and entry.index > log.applied:\n"
                "                with contextlib.suppress(ValueError):\n"
                "                    group.apply_change(entry.change)\n"
                "        group.settle_floor()\n",
            ),
            Edit(
                "logd.raft.group",
                "        configuration = change_of(self.configuration, change)\n        if change.admission",
                "        try:\n"
                "            configuration = change_of(self.configuration, change)\n"
                "        except ValueError:\n"
                "            return self.configuration\n"
                "        if change.admission",
            ),
        ),
        (f"{CORE}::test_bug_12_a_change_of_a_doomed_leader_leaves_no_trace",),
    ),
    Mutant(
        Source.BUG,
        13,
        "bug-13-change-before-own-commit",
        "A change of membership before the first commit of the leader's own term (raft-dev t4xj6dJTP6E, "
        "atomix/copycat #23, openraft #2051, axon-server-se #120)",
        "a new leader takes no change before its own first entry is committed",
        (
            Edit(
                "logd.raft.group",
                "        self.pending_change_index = self.log.last_index\n",
                "",
            ),
            Edit(
                "logd.raft.replication",
                "if group.options.changes_wait_for_own_commit and not group.has_committed_in_term:",
                "if False:",
            ),
        ),
        (f"{CORE}::test_bug_13_a_new_leader_takes_no_change_before_its_first_commit",),
    ),
    Mutant(
        Source.BUG,
        14,
        "bug-14-membership-of-the-start-alone",
        "The membership is not recovered from the end of the log (ra 110b8d63, 33eb036d)",
        "recovery applies the changes of membership that stand in the log",
        (
            Edit(
                "logd.replica.restore",
                "            if kind is ControlKind.MEMBERSHIP:\n                self.configuration = ",
                "            if kind is ControlKind.MEMBERSHIP:\n                _ = ",
            ),
        ),
        (f"{REPLICA}::test_bug_14_a_change_in_the_last_entry_is_in_force_after_a_restart",),
    ),
    Mutant(
        Source.BUG,
        15,
        "bug-15-read-before-own-commit",
        "A new leader answers a linearizable read before its first commit (etcd #7331 and #20418, "
        "tikv #9208 and #9239, redisraft PR #22)",
        "reads wait for the first commit of the leader's own term (thesis 6.4)",
        (
            Edit(
                "logd.raft.reads",
                "    if not group.has_committed_in_term:\n",
                "    if False:\n",
            ),
        ),
        (f"{CORE}::test_bug_15_a_new_leader_answers_no_read_before_its_first_commit",),
    ),
    Mutant(
        Source.BUG,
        25,
        "bug-25-leader-with-a-hung-disk",
        "A leader whose disk hangs leads for ever (hashicorp/raft #503, #612, #666; consul #22064; lavinmq #2151; "
        "tarantool #9399; etcd #15247)",
        "heartbeats stop when the oldest round is too old",
        (
            Edit(
                "logd.replica.driver",
                "        hangs = self._hangs = self._round_ticks > self.options.disk_ticks_max\n",
                "        hangs = self._hangs = False\n",
            ),
        ),
        (f"{REPLICA}::test_bug_25_a_leader_whose_disk_hangs_is_replaced",),
    ),
)
