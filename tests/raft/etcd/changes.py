"""etcd's words for membership changes and progress, into ours and back."""

from typing import Final

from logd.raft.progress import Progress, ProgressState
from logd.raft.types import NOBODY, ChangeKind, ChangeStep

KINDS: Final = {
    "v": ChangeKind.ADD_VOTER,
    "l": ChangeKind.ADD_LEARNER,
    "r": ChangeKind.REMOVE,
    "u": ChangeKind.UPDATE,
}
STATES: Final = {
    ProgressState.PROBE: "StateProbe",
    ProgressState.REPLICATE: "StateReplicate",
    ProgressState.SNAPSHOT: "StateSnapshot",
}


def steps_of(text: str) -> tuple[ChangeStep, ...]:
    """`v1 l2 r3 u4` as steps. Node 0 is etcd's word for nobody. Raises: KeyError, ValueError for anything else."""
    steps = []
    for word in text.split():
        kind, number = KINDS[word[:1]], int(word[1:])
        steps.append(ChangeStep(kind, str(number) if number else NOBODY))
    return tuple(steps)


def describe_progress(progress: Progress) -> str:
    """A Progress as etcd prints it."""
    parts = [f"{STATES[progress.state]} match={progress.match_index} next={progress.next_index}"]
    if progress.is_learner:
        parts.append("learner")
    if progress.is_paused:
        parts.append("paused")
    if progress.pending_snapshot:
        parts.append(f"pendingSnap={progress.pending_snapshot}")
    if not progress.is_recently_active:
        parts.append("inactive")
    if progress.inflights.count:
        parts.append(f"inflight={progress.inflights.count}{'[full]' if progress.inflights.is_full else ''}")
    return " ".join(parts)
