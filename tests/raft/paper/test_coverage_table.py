"""What etcd-io/raft's own tests attack, and which of ours attacks it: by the names of its tests.

The names are those of `raft_test.go`, `raft_paper_test.go` and `rawnode_test.go`; nothing else of theirs is here. A
test of ours is written "file::function", relative to `tests/raft`; what does not apply has a reason instead.
"""

import ast
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import pytest

HERE: Final = Path(__file__).parent.parent

TERMS = "paper/test_5_1_terms.py"
ELECTIONS = "paper/test_5_2_elections.py"
REPLICATION = "paper/test_5_3_replication.py"
SAFETY = "paper/test_5_4_safety.py"
MEMBERSHIP = "paper/test_6_membership.py"
SNAPSHOTS = "paper/test_7_snapshots.py"
CLIENTS = "paper/test_8_clients.py"
THESIS = "paper/test_thesis_elections.py"
FLOW = "test_flow.py"
STORAGE = "test_storage.py"
TABLE = "test_table.py"


class NotApplicable(NamedTuple):
    """Why a test of etcd's has no counterpart."""

    reason: str


ETCD_TESTS: Final[dict[str, str | NotApplicable]] = {
    # --- raft_test.go
    "TestProgressLeader": f"{REPLICATION}::test_a_leaders_own_copy_counts_only_once_it_is_durable",
    "TestProgressResumeByHeartbeatResp": f"{FLOW}::test_a_probe_may_be_lost_so_a_heartbeats_answer_lets_another_go",
    "TestProgressPaused": f"{FLOW}::test_a_probe_is_sent_once_until_it_is_answered",
    "TestProgressFlowControl": f"{FLOW}::test_no_more_messages_are_in_flight_than_allowed",
    "TestUncommittedEntryLimit": f"{FLOW}::test_a_leader_takes_no_more_than_a_bound_beyond_its_commit",
    "TestLeaderElection": f"{ELECTIONS}::test_a_candidate_wins_with_votes_from_a_majority_of_the_full_cluster",
    "TestLeaderElectionPreVote": f"{THESIS}::test_a_pre_candidate_campaigns_when_a_majority_would_vote_for_it",
    "TestLearnerElectionTimeout": f"{MEMBERSHIP}::test_a_learner_neither_campaigns_nor_takes_over",
    "TestLearnerPromotion": f"{MEMBERSHIP}::test_a_learner_is_promoted_and_can_lead",
    "TestLearnerCanVote": f"{MEMBERSHIP}::test_a_learner_votes_for_it_may_have_been_promoted_without_knowing",
    "TestLeaderCycle": f"{ELECTIONS}::test_every_server_can_lead_in_turn",
    "TestLeaderCyclePreVote": f"{ELECTIONS}::test_every_server_can_lead_in_turn",
    "TestLeaderElectionOverwriteNewerLogs": (
        f"{REPLICATION}::test_a_leader_forces_every_log_of_figure_7_to_duplicate_its_own"
    ),
    "TestLeaderElectionOverwriteNewerLogsPreVote": (
        f"{SAFETY}::test_an_entry_of_an_earlier_term_can_be_lost_although_a_majority_holds_it_figure_8"
    ),
    "TestVoteFromAnyState": f"{THESIS}::test_votes_of_a_later_term_are_given_in_every_role",
    "TestPreVoteFromAnyState": f"{THESIS}::test_votes_of_a_later_term_are_given_in_every_role",
    "TestLogReplication": f"{REPLICATION}::test_a_leader_retries_until_every_follower_has_every_entry",
    "TestLearnerLogReplication": f"{MEMBERSHIP}::test_a_learner_gets_entries_and_counts_for_nothing",
    "TestSingleNodeCommit": f"{STORAGE}::test_synchronously_a_sole_voter_elects_and_commits_ready_by_ready",
    "TestCannotCommitWithoutNewTermEntry": (
        f"{SAFETY}::test_an_entry_of_an_earlier_term_can_be_lost_although_a_majority_holds_it_figure_8"
    ),
    "TestCommitWithoutNewTermEntry": f"{SAFETY}::test_a_new_leader_commits_what_it_inherited_by_an_entry_of_its_own",
    "TestDuelingCandidates": f"{ELECTIONS}::test_a_split_vote_is_followed_by_another_election",
    "TestDuelingPreCandidates": f"{THESIS}::test_two_pre_candidates_do_not_raise_the_term_beyond_one",
    "TestCandidateConcede": f"{ELECTIONS}::test_a_candidate_recognizes_a_leader_of_its_term_or_a_later_one",
    "TestSingleNodeCandidate": f"{ELECTIONS}::test_the_own_vote_counts_only_once_it_is_durable",
    "TestSingleNodePreCandidate": f"{STORAGE}::test_synchronously_a_sole_voter_elects_and_commits_ready_by_ready",
    "TestOldMessages": f"{TERMS}::test_a_request_with_a_stale_term_is_rejected",
    "TestProposal": f"{REPLICATION}::test_an_entry_is_committed_once_a_majority_holds_it",
    "TestProposalByProxy": f"{TERMS}::test_a_follower_can_be_asked_to_redirect_to_its_leader",
    "TestCommit": f"{SAFETY}::test_only_entries_of_the_own_term_are_committed_by_counting",
    "TestPastElectionTimeout": f"{ELECTIONS}::test_election_timeouts_are_drawn_from_a_fixed_interval",
    "TestStepIgnoreOldTermMsg": f"{TERMS}::test_a_request_with_a_stale_term_is_rejected",
    "TestHandleMsgApp": f"{REPLICATION}::test_a_follower_deletes_a_conflicting_entry_and_all_that_follow_it",
    "TestHandleHeartbeat": f"{REPLICATION}::test_the_commit_never_goes_back",
    "TestHandleHeartbeatResp": f"{FLOW}::test_a_probe_may_be_lost_so_a_heartbeats_answer_lets_another_go",
    "TestRaftFreesReadOnlyMem": f"{CLIENTS}::test_one_round_of_heartbeats_confirms_all_reads_before_it",
    "TestMsgAppRespWaitReset": f"{FLOW}::test_a_probe_is_sent_once_until_it_is_answered",
    "TestRecvMsgVote": f"{SAFETY}::test_a_voter_denies_its_vote_to_a_log_less_up_to_date_than_its_own",
    "TestRecvMsgPreVote": f"{SAFETY}::test_a_voter_denies_its_vote_to_a_log_less_up_to_date_than_its_own",
    "TestStateTransition": f"{TABLE}::test_there_is_no_way_around_an_election_and_none_from_leading_to_campaigning",
    "TestAllServerStepdown": f"{TERMS}::test_a_leader_that_sees_a_larger_term_follows",
    "TestCandidateResetTermMsgHeartbeat": (
        f"{ELECTIONS}::test_a_candidate_recognizes_a_leader_of_its_term_or_a_later_one"
    ),
    "TestCandidateResetTermMsgApp": f"{ELECTIONS}::test_a_candidate_recognizes_a_leader_of_its_term_or_a_later_one",
    "TestCandidateSelfVoteAfterLostElection": f"{THESIS}::test_an_own_vote_that_is_durable_too_late_elects_nobody",
    "TestCandidateSelfVoteAfterLostElectionPreVote": (
        f"{THESIS}::test_an_own_vote_that_is_durable_too_late_elects_nobody"
    ),
    "TestCandidateDeliversPreCandidateSelfVoteAfterBecomingCandidate": (
        f"{THESIS}::test_a_candidate_does_not_count_its_own_late_pre_vote"
    ),
    "TestLeaderMsgAppSelfAckAfterTermChange": (
        f"{STORAGE}::test_an_old_acknowledgement_of_the_own_log_counts_for_nothing_in_a_later_term"
    ),
    "TestLeaderStepdownWhenQuorumActive": f"{THESIS}::test_a_leader_that_hears_no_majority_steps_down",
    "TestLeaderStepdownWhenQuorumLost": f"{THESIS}::test_a_leader_that_hears_no_majority_steps_down",
    "TestLeaderSupersedingWithCheckQuorum": f"{THESIS}::test_a_leader_is_superseded_once_it_is_not_heard",
    "TestLeaderElectionWithCheckQuorum": f"{THESIS}::test_a_leader_is_superseded_once_it_is_not_heard",
    "TestFreeStuckCandidateWithCheckQuorum": f"{THESIS}::test_a_stuck_candidate_of_a_later_term_is_freed",
    "TestNonPromotableVoterWithCheckQuorum": (f"{MEMBERSHIP}::test_a_member_that_does_not_know_that_it_is_one_follows"),
    "TestDisruptiveFollower": f"{THESIS}::test_a_stuck_candidate_of_a_later_term_is_freed",
    "TestDisruptiveFollowerPreVote": f"{THESIS}::test_a_server_that_was_away_disturbs_nobody_when_it_comes_back",
    "TestReadOnlyOptionSafe": f"{CLIENTS}::test_a_follower_asks_its_leader_and_gets_the_answer",
    "TestReadOnlyWithLearner": f"{CLIENTS}::test_a_learner_asks_too",
    "TestReadOnlyOptionLease": f"{CLIENTS}::test_under_a_lease_reads_are_answered_at_once",
    "TestReadOnlyForNewLeader": (f"{CLIENTS}::test_a_new_leader_answers_no_read_before_it_has_committed_in_its_term"),
    "TestReadOnlyDuplicateRequest": f"{CLIENTS}::test_the_same_request_twice_is_answered_twice",
    "TestLeaderAppResp": f"{FLOW}::test_what_was_streamed_and_lost_is_sent_again_after_a_refusal",
    "TestBcastBeat": f"{REPLICATION}::test_a_heartbeat_never_names_a_commit_beyond_what_the_follower_holds",
    "TestRecvMsgBeat": f"{TABLE}::test_what_only_a_leader_does_with_answers_is_ignored_by_all_others",
    "TestLeaderIncreaseNext": f"{FLOW}::test_what_is_streamed_is_not_waited_for",
    "TestSendAppendForProgressProbe": f"{FLOW}::test_a_probe_may_be_lost_so_a_heartbeats_answer_lets_another_go",
    "TestSendAppendForProgressReplicate": f"{FLOW}::test_what_is_streamed_is_not_waited_for",
    "TestSendAppendForProgressSnapshot": f"{SNAPSHOTS}::test_nothing_is_sent_behind_a_snapshot_until_it_is_settled",
    "TestRecvMsgUnreachable": f"{FLOW}::test_an_unreachable_member_is_probed",
    "TestRestore": f"{SNAPSHOTS}::test_a_snapshot_replaces_a_log_that_it_reaches_beyond",
    "TestRestoreWithLearner": f"{SNAPSHOTS}::test_a_snapshot_brings_its_configuration",
    "TestRestoreWithVotersOutgoing": f"{SNAPSHOTS}::test_a_snapshot_brings_its_configuration",
    "TestRestoreVoterToLearner": f"{SNAPSHOTS}::test_a_snapshot_brings_its_configuration",
    "TestRestoreLearnerPromotion": f"{SNAPSHOTS}::test_a_snapshot_brings_its_configuration",
    "TestLearnerReceiveSnapshot": (
        f"{SNAPSHOTS}::test_a_new_member_whose_snapshot_was_made_before_it_joined_is_a_member_after_it"
    ),
    "TestRestoreIgnoreSnapshot": f"{SNAPSHOTS}::test_an_old_snapshot_changes_nothing",
    "TestProvideSnap": f"{SNAPSHOTS}::test_a_snapshot_is_sent_when_the_next_entry_was_discarded",
    "TestIgnoreProvidingSnap": f"{SNAPSHOTS}::test_a_snapshot_is_not_sent_to_somebody_who_is_silent",
    "TestRestoreFromSnapMsg": f"{SNAPSHOTS}::test_a_snapshot_replaces_a_log_that_it_reaches_beyond",
    "TestSlowNodeRestore": f"{SNAPSHOTS}::test_a_follower_far_behind_catches_up_by_snapshot_and_log",
    "TestStepConfig": f"{MEMBERSHIP}::test_a_change_is_an_entry_that_takes_effect_when_it_is_applied",
    "TestStepIgnoreConfig": (
        f"{MEMBERSHIP}::test_a_change_that_comes_too_early_in_a_message_becomes_an_entry_without_effect"
    ),
    "TestNewLeaderPendingConfig": f"{MEMBERSHIP}::test_no_change_before_the_first_commit_of_the_own_term",
    "TestAddNode": f"{MEMBERSHIP}::test_a_server_that_is_added_gets_the_whole_log",
    "TestAddLearner": f"{MEMBERSHIP}::test_a_voter_can_be_made_a_learner",
    "TestAddNodeCheckQuorum": (
        f"{MEMBERSHIP}::test_a_server_that_was_added_counts_for_check_quorum_only_when_it_could_have_answered"
    ),
    "TestRemoveNode": f"{MEMBERSHIP}::test_what_a_removed_server_says_counts_for_nothing",
    "TestRemoveLearner": f"{MEMBERSHIP}::test_a_learner_is_removed_and_the_last_voter_is_not",
    "TestPromotable": f"{MEMBERSHIP}::test_only_voters_may_campaign",
    "TestRaftNodes": f"{STORAGE}::test_the_status_says_how_a_replica_stands",
    "TestCampaignWhileLeader": f"{TABLE}::test_what_is_ignored_changes_nothing",
    "TestPreCampaignWhileLeader": f"{TABLE}::test_what_is_ignored_changes_nothing",
    "TestCommitAfterRemoveNode": f"{MEMBERSHIP}::test_what_waited_for_a_server_is_committed_when_it_is_removed",
    "TestLeaderTransferToUpToDateNode": (
        f"{THESIS}::test_a_target_that_holds_the_whole_log_is_told_to_campaign_at_once"
    ),
    "TestLeaderTransferToUpToDateNodeFromFollower": f"{THESIS}::test_leadership_is_transferred_whoever_is_asked",
    "TestLeaderTransferWithCheckQuorum": (
        f"{THESIS}::test_the_target_campaigns_without_a_pre_vote_and_past_what_protects_the_leader"
    ),
    "TestLeaderTransferToSlowFollower": f"{THESIS}::test_a_target_that_lacks_entries_gets_them_first",
    "TestLeaderTransferAfterSnapshot": f"{THESIS}::test_a_transfer_waits_for_a_snapshot",
    "TestLeaderTransferToSelf": f"{THESIS}::test_leadership_goes_to_no_learner_no_stranger_and_not_to_oneself",
    "TestLeaderTransferToNonExistingNode": (
        f"{THESIS}::test_leadership_goes_to_no_learner_no_stranger_and_not_to_oneself"
    ),
    "TestLeaderTransferTimeout": f"{THESIS}::test_a_transfer_is_given_up_after_an_election_timeout",
    "TestLeaderTransferIgnoreProposal": f"{THESIS}::test_no_proposal_is_taken_during_a_transfer",
    "TestLeaderTransferReceiveHigherTermVote": f"{THESIS}::test_a_transfer_ends_with_the_term",
    "TestLeaderTransferRemoveNode": f"{THESIS}::test_a_transfer_ends_when_its_target_is_no_voter_any_more",
    "TestLeaderTransferDemoteNode": f"{THESIS}::test_a_transfer_ends_when_its_target_is_no_voter_any_more",
    "TestLeaderTransferBack": f"{THESIS}::test_a_transfer_to_the_leader_itself_gives_up_the_first",
    "TestLeaderTransferSecondTransferToAnotherNode": f"{THESIS}::test_a_transfer_to_another_replaces_the_first",
    "TestLeaderTransferSecondTransferToSameNode": (
        f"{THESIS}::test_asking_for_the_same_transfer_again_changes_nothing"
    ),
    "TestTransferNonMember": f"{THESIS}::test_whoever_was_told_to_campaign_and_is_not_a_voter_does_not",
    "TestNodeWithSmallerTermCanCompleteElection": f"{THESIS}::test_a_replica_of_a_smaller_term_can_still_win",
    "TestPreVoteWithSplitVote": f"{THESIS}::test_two_pre_candidates_do_not_raise_the_term_beyond_one",
    "TestPreVoteWithCheckQuorum": f"{THESIS}::test_a_leader_is_superseded_once_it_is_not_heard",
    "TestLearnerCampaign": f"{MEMBERSHIP}::test_a_learner_neither_campaigns_nor_takes_over",
    "TestPreVoteMigrationCanCompleteElection": (
        f"{THESIS}::test_a_cluster_in_which_not_all_ask_for_pre_votes_can_elect"
    ),
    "TestPreVoteMigrationWithFreeStuckPreCandidate": (
        f"{THESIS}::test_a_pre_candidate_of_a_later_term_is_freed_where_others_know_no_pre_vote"
    ),
    "TestConfChangeCheckBeforeCampaign": (
        f"{MEMBERSHIP}::test_a_replica_with_a_committed_change_that_it_has_not_applied_does_not_campaign"
    ),
    "TestConfChangeV2CheckBeforeCampaign": (
        f"{MEMBERSHIP}::test_a_replica_with_a_committed_change_that_it_has_not_applied_does_not_campaign"
    ),
    "TestFastLogRejection": (f"{REPLICATION}::test_a_refusal_says_where_the_logs_may_meet_and_the_leader_goes_there"),
    "TestLogReplicationWithReorderedMessage": f"{FLOW}::test_a_reordered_answer_changes_nothing",
    # --- raft_paper_test.go
    "TestFollowerUpdateTermFromMessage": f"{TERMS}::test_a_follower_that_sees_a_larger_term_takes_it",
    "TestCandidateUpdateTermFromMessage": f"{TERMS}::test_a_candidate_that_sees_a_larger_term_follows",
    "TestLeaderUpdateTermFromMessage": f"{TERMS}::test_a_leader_that_sees_a_larger_term_follows",
    "TestRejectStaleTermMessage": f"{TERMS}::test_a_request_with_a_stale_term_is_rejected",
    "TestStartAsFollower": f"{ELECTIONS}::test_servers_begin_as_followers",
    "TestLeaderBcastBeat": f"{ELECTIONS}::test_a_leader_sends_heartbeats_to_all_followers",
    "TestFollowerStartElection": f"{ELECTIONS}::test_without_a_leader_a_server_begins_an_election",
    "TestCandidateStartNewElection": f"{ELECTIONS}::test_without_a_leader_a_server_begins_an_election",
    "TestLeaderElectionInOneRoundRPC": (
        f"{ELECTIONS}::test_a_candidate_wins_with_votes_from_a_majority_of_the_full_cluster"
    ),
    "TestFollowerVote": f"{ELECTIONS}::test_each_server_votes_for_at_most_one_candidate_in_a_term",
    "TestCandidateFallback": f"{ELECTIONS}::test_a_candidate_recognizes_a_leader_of_its_term_or_a_later_one",
    "TestFollowerElectionTimeoutRandomized": f"{ELECTIONS}::test_election_timeouts_are_drawn_from_a_fixed_interval",
    "TestCandidateElectionTimeoutRandomized": f"{ELECTIONS}::test_election_timeouts_are_drawn_from_a_fixed_interval",
    "TestFollowersElectionTimeoutNonconflict": f"{ELECTIONS}::test_in_most_cases_only_a_single_server_times_out",
    "TestCandidatesElectionTimeoutNonconflict": f"{ELECTIONS}::test_in_most_cases_only_a_single_server_times_out",
    "TestLeaderStartReplication": (f"{REPLICATION}::test_a_leader_appends_a_command_and_sends_it_to_all_in_parallel"),
    "TestLeaderCommitEntry": f"{REPLICATION}::test_a_leader_includes_its_commit_in_future_messages",
    "TestLeaderAcknowledgeCommit": f"{REPLICATION}::test_an_entry_is_committed_once_a_majority_holds_it",
    "TestLeaderCommitPrecedingEntries": (
        f"{REPLICATION}::test_a_commit_includes_all_preceding_entries_also_of_earlier_leaders"
    ),
    "TestFollowerCommitEntry": (f"{REPLICATION}::test_a_follower_applies_what_it_learns_to_be_committed_in_log_order"),
    "TestFollowerCheckMsgApp": f"{REPLICATION}::test_a_follower_refuses_what_does_not_follow_on_its_log",
    "TestFollowerAppendEntries": (f"{REPLICATION}::test_a_follower_deletes_a_conflicting_entry_and_all_that_follow_it"),
    "TestLeaderSyncFollowerLog": (f"{REPLICATION}::test_a_leader_forces_every_log_of_figure_7_to_duplicate_its_own"),
    "TestVoteRequest": f"{SAFETY}::test_a_vote_request_says_how_far_the_candidates_log_goes",
    "TestVoter": f"{SAFETY}::test_a_voter_denies_its_vote_to_a_log_less_up_to_date_than_its_own",
    "TestLeaderOnlyCommitsLogFromCurrentTerm": (
        f"{SAFETY}::test_only_entries_of_the_own_term_are_committed_by_counting"
    ),
    # --- rawnode_test.go
    "TestRawNodeStep": f"{TABLE}::test_what_the_core_says_to_the_disk_is_not_for_the_core",
    "TestRawNodeProposeAndConfChange": f"{STORAGE}::test_synchronously_a_change_takes_effect_and_a_joint_one_is_left",
    "TestRawNodeJointAutoLeave": f"{MEMBERSHIP}::test_a_new_leader_finishes_what_its_predecessor_began",
    "TestRawNodeProposeAddDuplicateNode": f"{MEMBERSHIP}::test_a_server_that_is_added_again_stays_what_it_was",
    "TestRawNodeReadIndex": f"{CLIENTS}::test_a_sole_voter_waits_for_its_first_commit_too",
    "TestRawNodeStart": NotApplicable("a group begins with a configuration, not with entries that make one"),
    "TestRawNodeRestart": (
        f"{STORAGE}::test_a_replica_applies_what_its_hard_state_says_is_committed_and_nothing_that_it_had_applied"
    ),
    "TestRawNodeRestartFromSnapshot": f"{FLOW}::test_a_replica_may_come_back_with_only_the_end_of_its_log",
    "TestRawNodeStatus": f"{STORAGE}::test_the_status_says_how_a_replica_stands",
    "TestRawNodeCommitPaginationAfterRestart": (
        f"{FLOW}::test_committed_entries_come_in_bounded_portions_after_each_is_applied"
    ),
    "TestRawNodeBoundedLogGrowthWithPartition": (f"{FLOW}::test_a_leader_takes_no_more_than_a_bound_beyond_its_commit"),
    "TestRawNodeConsumeReady": f"{STORAGE}::test_a_ready_says_things_once",
}


@cache
def functions_of(path: str) -> frozenset[str]:
    tree = ast.parse((HERE / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("name", ETCD_TESTS)
def test_what_a_test_of_etcds_attacks_is_attacked_here_or_has_a_reason_why_not(name: str) -> None:
    entry = ETCD_TESTS[name]
    if isinstance(entry, NotApplicable):
        assert entry.reason
        return
    path, _, function = entry.partition("::")
    assert function in functions_of(path)


def test_all_tests_of_etcds_are_in_the_table() -> None:
    counts = {"raft_test.go": 118, "raft_paper_test.go": 26, "rawnode_test.go": 12}
    assert len(ETCD_TESTS) == sum(counts.values())
