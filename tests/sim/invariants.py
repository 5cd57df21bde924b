"""What must hold at every step of a run, checked as cheaply as it changes.

For: the shell of each node, which reports what its disk and its driver did, and the workload, which reports what was
acknowledged. Must not know: why anything happened. The one idea: because each batch's chain covers all batches before
it, two logs that agree at one place agree below it; so every check compares one place, and costs by change, not by
state.

Section numbers are those of the Raft paper.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, NamedTuple

from logd.raft.configuration import change_of
from logd.raft.types import Configuration, ConfigurationChange
from logd.replica.driver import Driver
from logd.replica.membership import decode_membership
from logd.store.events import Event
from logd.store.format import HardState, LogEnd
from logd.store.round import Append, Remove, RoundEntry, SetHardState, SetStart
from logd.store.store import Store
from tests.sim.reachable import reachable
from wire.record import BatchHeader

LEADER: Final = "LEADER"


class Violation(AssertionError):
    """Something happened that must never happen."""


class Place(NamedTuple):
    """A batch in some log, by what tells it from all others."""

    term: int
    chain: bytes


@dataclass(slots=True)
class _Replica:
    """What is known of one node's copy of one group."""

    log: list[Place] = field(default_factory=list)
    """What the core holds, or held before it left memory; the batch of index 1 stands first."""
    taken: list[Place] = field(default_factory=list)
    """What was handed to the disk, durable or not."""
    durable: list[Place] = field(default_factory=list)
    """What the disk promised."""
    held: set[bytes] = field(default_factory=set)
    """The chains of `durable`, and of what damage or a wipe took from it: what a leader may still count."""
    hard_state: HardState | None = None
    """What the disk promised; None: it may know nothing."""
    start_index: int = 0
    # What was seen last, of this life.
    seen: tuple[Any, ...] = ()
    term: int = 0
    commit: int = 0
    applied: int = 0
    configuration: Any = None
    """As it was seen last: what is committed now may have been counted by it."""
    is_impaired: bool = False
    """It lost what it promised, and did not get all of it back yet."""
    is_here: bool = False
    """Its disk has it."""
    is_unadmitted: bool = False
    """It was made without a hard state, and has none yet."""
    impaired_until: int = 0
    """The last index that it must hold again."""


@dataclass(slots=True)
class GroupTruth:
    """What the whole cluster has decided in one group."""

    committed: list[Place] = field(default_factory=list)
    terms: list[int] = field(default_factory=list)
    """The terms of `committed`, which never go down."""
    committed_in: list[int] = field(default_factory=list)
    """In which term each was committed, at the latest."""
    base_offsets: list[int] = field(default_factory=list)
    next_offset: int = 0
    acknowledged_next_offset: int = 0
    """One past the highest offset that a client was told."""
    leaders: dict[int, str] = field(default_factory=dict)
    headers: dict[bytes, BatchHeader] = field(default_factory=dict)
    """Every batch that was ever stamped and is not committed or void for sure, by chain."""
    sequences: dict[tuple[int, int], int] = field(default_factory=dict)
    """The next sequence of each producer, by id and epoch, in the committed log."""
    configuration: Any = None
    """The newest one that anybody applied; None while nobody did."""
    applied: int = 0
    """The highest index that anybody applied."""
    changes: dict[bytes, ConfigurationChange] = field(default_factory=dict)
    """Every change of membership that is in some log, by chain."""
    change_indexes: list[int] = field(default_factory=lambda: [0])
    configurations: list[Configuration] = field(default_factory=list)
    """What each committed change made of the membership, from the founding one on."""
    votes: dict[tuple[str, int], str] = field(default_factory=dict)
    """Whom each node voted for in each term, as its disk promised it."""


class Invariants:
    """The checks of one run. Everything raises Violation."""

    def __init__(self, founders: Mapping[int, Sequence[str]], nodes: Sequence[str]) -> None:
        self.groups = {
            group: GroupTruth(configurations=[Configuration(frozenset(voters))])
            for group, voters in sorted(founders.items())
        }
        self.replicas = {node: {group: _Replica() for group in self.groups} for node in nodes}
        self.may_forget_producers = False
        """A clock was ahead by more than producers are remembered: their first batch may be there twice."""
        self.elections = 0
        self.commits = 0
        self.acknowledgements = 0
        self.membership_changes = 0

    # --- What the disk did --------------------------------------------------------------------------------------------

    def on_round_taken(self, node: str, entries: Sequence[RoundEntry]) -> None:
        """A round was put together, to be written."""
        for entry in entries:
            if type(entry) is Append:
                self._on_append(node, entry)
            elif type(entry) is SetStart and not entry.keeps_suffix:
                committed = self._committed_up_to(node, entry)
                self.replicas[node][entry.group].taken[:] = committed

    def _on_append(self, node: str, entry: Append) -> None:
        group, header = entry.group, entry.batch.header
        taken, index = self.replicas[node][entry.group].taken, header.index
        if index > len(taken) + 1:
            raise Violation(f"{node}, group {group}: index {index} is written to a log that ends at {len(taken)}")
        self._check_batch(node, group, self.groups[group], entry)
        place = Place(header.term, header.chain)
        if index <= len(taken):
            if taken[index - 1] == place:
                reachable("a batch is written again in place")
                return
            del taken[index - 1 :]
        if index > 1 and header.previous_chain != taken[index - 2].chain:
            raise Violation(f"{node}, group {group}: the chain breaks before index {index}")
        taken.append(place)

    @staticmethod
    def _check_batch(node: str, group: int, truth: GroupTruth, entry: Append) -> None:
        """Equal chains are equal batches, and payloads are what was sent."""
        header = entry.batch.header
        known = truth.headers.setdefault(header.chain, header)
        if known != header:
            raise Violation(f"{node}, group {group}: two batches with one chain: {known} and {header}")
        if sha256(entry.batch.payload).digest() != header.payload_digest:
            raise Violation(f"{node}, group {group}: index {header.index} was damaged on its way")

    def _committed_up_to(self, node: str, entry: SetStart) -> list[Place]:
        """What a start stands for: it must be what is committed there."""
        start, truth = entry.start, self.groups[entry.group]
        if start.index > len(truth.committed):
            raise Violation(f"{node}, group {entry.group}: a start at {start.index}, beyond what is committed")
        if start.index and truth.committed[start.index - 1] != Place(start.term, start.chain):
            raise Violation(f"{node}, group {entry.group}: the start at {start.index} is not what is committed there")
        if start.index and start.offset != self._next_offset_at(truth, start.index):
            raise Violation(f"{node}, group {entry.group}: the start at {start.index} has offset {start.offset}")
        if decode_membership(start.membership) != _configuration_at(truth, start.index):
            raise Violation(f"{node}, group {entry.group}: the start at {start.index} has another membership")
        return truth.committed[: start.index]

    def on_round_durable(self, node: str, entries: Sequence[RoundEntry]) -> None:
        """A round's fsync returned: what it holds is promised."""
        for entry in entries:
            kind = type(entry)
            if kind is Append:
                header = entry.batch.header  # type: ignore[union-attr]  # `kind` says which
                self._make_durable(node, entry.group, header)
            elif kind is SetHardState:
                self._on_hard_state(node, entry.group, entry.hard_state)  # type: ignore[union-attr]  # see above
            elif isinstance(entry, SetStart):
                self._on_start(node, entry)
            elif isinstance(entry, Remove):
                gone = self.replicas[node][entry.group]
                made = self.replicas[node][entry.group] = _Replica()
                if gone.is_impaired:
                    # Whoever leads goes by what it once held, until it is told of the loss.
                    made.held, made.is_impaired, made.impaired_until = gone.held, True, gone.impaired_until

    def _make_durable(self, node: str, group: int, header: BatchHeader) -> None:
        replica = self.replicas[node][group]
        place, index = Place(header.term, header.chain), header.index
        durable = replica.durable
        if index <= len(durable) and durable[index - 1] != place:
            replica.held.difference_update(replaced.chain for replaced in durable[index - 1 :])
            del durable[index - 1 :]
        if index == len(durable) + 1:
            durable.append(place)
        replica.held.add(place.chain)

    def _on_hard_state(self, node: str, group: int, hard_state: HardState) -> None:
        replica, truth = self.replicas[node][group], self.groups[group]
        known = replica.hard_state
        if known is not None:
            if hard_state.term < known.term:
                raise Violation(f"{node}, group {group}: term {hard_state.term} after term {known.term}")
            if hard_state.commit < known.commit:
                raise Violation(f"{node}, group {group}: commit {hard_state.commit} after {known.commit}")
        if hard_state.vote:
            vote = truth.votes.setdefault((node, hard_state.term), hard_state.vote)
            if vote != hard_state.vote:
                raise Violation(
                    f"{node}, group {group}: two votes in term {hard_state.term}: {vote} and {hard_state.vote}"
                )
        replica.hard_state = hard_state
        replica.is_unadmitted = False

    def _on_start(self, node: str, entry: SetStart) -> None:
        replica, start = self.replicas[node][entry.group], entry.start
        if start.index < replica.start_index:
            raise Violation(f"{node}, group {entry.group}: the start goes back to {start.index}")
        committed = self._committed_up_to(node, entry)
        replica.start_index = start.index
        replica.is_here = True
        replica.is_unadmitted = replica.is_unadmitted or entry.is_unadmitted
        if not entry.keeps_suffix:
            replica.durable[:] = committed
            replica.held.update(place.chain for place in committed)

    @staticmethod
    def _next_offset_at(truth: GroupTruth, index: int) -> int:
        return truth.base_offsets[index] if index < len(truth.base_offsets) else truth.next_offset

    # --- Ups and downs ------------------------------------------------------------------------------------------------

    def on_down(self, node: str) -> None:
        """A process ended; what its disk holds is found out when it starts again."""
        for replica in self.replicas[node].values():
            replica.seen = ()
            replica.configuration = None
            replica.term = replica.commit = replica.applied = 0

    def on_wiped(self, node: str) -> None:
        """A data directory is gone, with everything that it promised."""
        self.on_damaged(node)
        for replica in self.replicas[node].values():
            replica.log, replica.taken, replica.durable = [], [], []
            replica.hard_state = None
            replica.start_index = 0
            replica.is_here = replica.is_unadmitted = False

    def on_damaged(self, node: str) -> None:
        """Bytes on this node's disk were changed behind its back: it may come back with less than it promised."""
        for replica in self.replicas[node].values():
            replica.is_impaired = True
            replica.impaired_until = max(replica.impaired_until, len(replica.durable))

    def on_repaired(self, node: str, group: int) -> None:
        """It holds again all that it ever promised: nothing is forgiven from here on."""
        replica = self.replicas[node][group]
        reachable("an impaired replica is whole again")
        replica.is_impaired = False
        replica.impaired_until = 0

    def on_open(self, node: str, store: Store, driver: Driver, events: Sequence[Event]) -> None:
        """A process recovered: it must have what it promised, or say that it lost it."""
        for group, replica in self.replicas[node].items():
            log = store.groups.get(group)
            replica.is_here = log is not None
            if log is None:
                if replica.durable and not replica.is_impaired:
                    raise Violation(f"{node}: group {group} is gone")
                replica.log, replica.taken, replica.durable, replica.start_index = [], [], [], 0
                continue
            self._check_recovered(node, group, replica, log)
            replica.is_unadmitted = log.hard_state is None

    def _check_recovered(self, node: str, group: int, replica: _Replica, log: Any) -> None:
        replica.start_index = log.start.index
        recovered = self._recovered(node, group, replica, log.end)
        promised = replica.durable
        is_whole = len(recovered) >= len(promised) or recovered != promised[: len(recovered)]
        if not replica.is_impaired:
            if log.floor is not None or log.damage:
                raise Violation(f"{node}, group {group}: damage where none was done: {log.floor} {log.damage}")
            if not is_whole:
                raise Violation(f"{node}, group {group}: {len(promised)} was promised, recovered is {len(recovered)}")
            # A replica whose start was in a round that nobody heard of may be here without one.
            if log.hard_state is None and not replica.is_unadmitted and replica.hard_state is not None:
                raise Violation(f"{node}, group {group}: its hard state is lost without damage")
        elif not is_whole and log.floor is None and log.hard_state is not None and replica.hard_state is not None:
            raise Violation(f"{node}, group {group}: it lost what is above {len(recovered)}, and does not know it")
        known = replica.hard_state
        if known is not None and log.hard_state is not None and log.hard_state.term < known.term:
            raise Violation(f"{node}, group {group}: term {log.hard_state.term} recovered, {known.term} was promised")
        replica.durable = list(recovered)
        replica.taken = list(recovered)
        replica.log = list(recovered)
        replica.held.update(known.chain for known in recovered)
        if log.hard_state is not None:
            self._recover_hard_state(node, group, replica, log.hard_state)

    def _recovered(self, node: str, group: int, replica: _Replica, end: LogEnd) -> list[Place]:
        """What a log that ends there holds: the chain says it of everything below as well."""
        if end.index == 0:
            return []
        place, committed = Place(end.term, end.chain), self.groups[group].committed
        for places in (replica.durable, replica.taken, committed):
            if end.index <= len(places) and places[end.index - 1] == place:
                if places is replica.taken:
                    reachable("a round that nobody heard of is recovered")
                return places[: end.index]
        raise Violation(f"{node}, group {group}: recovered to {end.index} of term {end.term}, which was not there")

    def _recover_hard_state(self, node: str, group: int, replica: _Replica, hard_state: HardState) -> None:
        known = replica.hard_state
        if known is not None and hard_state != known:
            reachable("a hard state that nobody heard of is recovered")
        replica.hard_state = hard_state
        if hard_state.vote:
            vote = self.groups[group].votes.setdefault((node, hard_state.term), hard_state.vote)
            if vote != hard_state.vote:
                raise Violation(f"{node}, group {group}: recovered a vote for {hard_state.vote}, promised was {vote}")

    # --- What the driver says -----------------------------------------------------------------------------------------

    def observe(self, node: str, driver: Driver) -> None:
        """Look at every replica of a node; only what changed is checked."""
        replicas = self.replicas[node]
        for group, known in driver._replicas.items():
            raft = known.raft
            log = raft.log
            replica = replicas.get(group)
            if replica is None:
                continue
            # The last entry itself: another one at its place is another object.
            seen = (raft.term, raft.role, log.commit, log.entries[-1] if log.entries else log.base)
            if seen != replica.seen:
                before, replica.seen = replica.seen, seen
                self._on_change(node, group, replica, raft, before)
            if log.applied != replica.applied:
                self._on_applied(node, group, replica, raft)
            replica.configuration = raft.configuration

    def _on_change(self, node: str, group: int, replica: _Replica, raft: Any, before: tuple[Any, ...]) -> None:
        truth = self.groups[group]
        term, role, commit, last = replica.seen
        if term < replica.term:
            raise Violation(f"{node}, group {group}: term {term} after term {replica.term}")
        replica.term = term
        if commit < replica.commit:
            raise Violation(f"{node}, group {group}: commit {commit} after {replica.commit}")
        if commit > last.index:
            raise Violation(f"{node}, group {group}: commit {commit} beyond the end {last.index}")
        if not before or before[3] != last:
            self._follow(node, group, replica, raft)
        if role.name == LEADER and (not before or before[1] is not role or before[0] != term):
            self._on_leader(node, group, replica, term)
        if commit > replica.commit:
            replica.commit = commit
            self._on_commit(node, group, replica, raft, commit)
        if len(truth.committed) and commit > len(truth.committed):
            raise Violation(f"{node}, group {group}: commit {commit} of a log that ends at {len(truth.committed)}")

    def _on_applied(self, node: str, group: int, replica: _Replica, raft: Any) -> None:
        """The configuration is that of the last applied change."""
        truth, applied = self.groups[group], raft.applied
        if applied < replica.applied:
            raise Violation(f"{node}, group {group}: applied {applied} after {replica.applied}")
        replica.applied = applied
        expected = _configuration_at(truth, applied)
        if raft.log.pending_snapshot is not None:
            return  # its configuration is in force before it counts as applied
        if applied <= len(truth.committed) and raft.configuration != expected:
            raise Violation(f"{node}, group {group}: at {applied}, {raft.configuration} is in force, not {expected}")
        if applied > truth.applied:
            truth.applied = applied
            if raft.configuration != truth.configuration:
                if truth.configuration is not None:
                    reachable("a change of membership is applied")
                truth.configuration = raft.configuration

    def _follow(self, node: str, group: int, replica: _Replica, raft: Any) -> None:
        """Bring `replica.log` to what the core holds: entries that are new or other than before are looked at."""
        entries, base, log, truth = raft.log.entries, raft.log.base.index, replica.log, self.groups[group]
        if base > len(log) or (base and log[base - 1] != (raft.log.base.term, raft.log.base_chain)):
            # A snapshot, which takes the place of whatever was there; its start is checked when it is written.
            if base > len(truth.committed):
                raise Violation(f"{node}, group {group}: a log from {base} on, beyond what is committed")
            log[:] = truth.committed[:base]
        index = base + len(entries)
        while index > base:
            entry = entries[index - base - 1]
            if index <= len(log) and log[index - 1] == (entry.term, entry.chain):
                break
            index -= 1
        if index < len(log):
            reachable("a suffix is replaced")
            replaced = log[index]
            is_committed = index < len(truth.committed) and replaced == truth.committed[index]
            if index < replica.commit or (is_committed and not replica.is_impaired):
                raise Violation(
                    f"{node}, group {group}: the committed batch {index + 1} of term {replaced.term} is given up"
                )
            del log[index:]
        for entry in entries[index - base :]:
            if not entry.chain:
                raise Violation(f"{node}, group {group}: index {entry.index} is not stamped")
            if log and log[-1].term > entry.term:
                raise Violation(f"{node}, group {group}: term {entry.term} follows {log[-1].term} at {entry.index}")
            log.append(Place(entry.term, entry.chain))
            truth.headers.setdefault(entry.chain, entry.data.header)
            if entry.change is not None:
                truth.changes[entry.chain] = entry.change

    def _on_leader(self, node: str, group: int, replica: _Replica, term: int) -> None:
        """Election safety (5.2) and leader completeness (5.4)."""
        truth = self.groups[group]
        other = truth.leaders.setdefault(term, node)
        if other != node:
            raise Violation(f"group {group}: two leaders in term {term}: {other} and {node}")
        self.elections += 1
        if replica.is_impaired:
            reachable("an impaired replica leads")
        # What was committed in a later term may be unknown to a leader whose votes arrived late: also entries of
        # earlier terms, which a later leader committed with its own.
        index = bisect_left(truth.committed_in, term)
        if index and (len(replica.log) < index or replica.log[index - 1] != truth.committed[index - 1]):
            raise Violation(
                f"group {group}: {node} leads term {term} without the committed batch {index} "
                f"of term {truth.committed[index - 1].term}"
            )

    def _on_commit(self, node: str, group: int, replica: _Replica, raft: Any, commit: int) -> None:
        """State machine safety (5.4.3), and durability on a majority for what is committed for the first time."""
        truth = self.groups[group]
        committed, log = truth.committed, replica.log
        if commit > len(log):
            if commit <= replica.start_index or replica.is_impaired:
                return
            raise Violation(f"{node}, group {group}: commit {commit}, and its log ends at {len(log)}")
        known = len(committed)
        if commit <= known:
            if log[commit - 1] != committed[commit - 1]:
                raise Violation(f"{node}, group {group}: index {commit} is committed here with another batch")
            return
        if known and log[known - 1] != committed[known - 1]:
            raise Violation(f"{node}, group {group}: commits {commit} over another batch at {known}")
        self._check_majority(node, group, raft, commit, log[commit - 1])
        for index in range(known + 1, commit + 1):
            self._commit_one(group, truth, log[index - 1])
            # It was committed in this term or before: who knows of it first need not be who committed it.
            truth.committed_in.append(max(raft.term, truth.committed_in[-1] if truth.committed_in else 0))
        self.commits += 1

    def _check_majority(self, node: str, group: int, raft: Any, commit: int, place: Place) -> None:
        """By the configuration now, or as it was before the step: the change itself may be what was committed."""
        before = self.replicas[node][group].configuration
        configurations = [raft.configuration] if before is None else [before, raft.configuration]
        if not any(self._is_on_majority(group, place, known) for known in configurations):
            voters = sorted(raft.configuration.voters | raft.configuration.voters_outgoing)
            holders = [voter for voter in voters if self._holds(voter, group, place)]
            raise Violation(f"group {group}: {node} commits {commit}, durable on {holders} of {voters}")

    def _is_on_majority(self, group: int, place: Place, configuration: Any) -> bool:
        for voters in (configuration.voters, configuration.voters_outgoing):
            holders = sum(self._holds(voter, group, place) for voter in voters)
            if voters and holders * 2 <= len(voters):
                return False
        return True

    def _holds(self, node: str, group: int, place: Place) -> bool:
        return place.chain in self.replicas[node][group].held

    def _commit_one(self, group: int, truth: GroupTruth, place: Place) -> None:
        header = truth.headers[place.chain]
        if header.base_offset != truth.next_offset:
            raise Violation(f"group {group}: offset {header.base_offset} follows {truth.next_offset}")
        if truth.terms and truth.terms[-1] > place.term:
            raise Violation(f"group {group}: term {place.term} is committed after {truth.terms[-1]}")
        if header.producer_id:
            key = (header.producer_id, header.producer_epoch)
            expected = truth.sequences.get(key, 0)
            is_restart = self.may_forget_producers and header.base_sequence == 0
            if header.base_sequence != expected and not is_restart:
                raise Violation(
                    f"group {group}: producer {key} has sequence {header.base_sequence} committed, expected {expected}"
                )
            truth.sequences[key] = header.base_sequence + header.record_count
        change = truth.changes.get(place.chain)
        if change is not None:
            self.membership_changes += 1
            truth.change_indexes.append(header.index)
            truth.configurations.append(change_of(truth.configurations[-1], change))
        truth.committed.append(place)
        truth.terms.append(place.term)
        truth.base_offsets.append(header.base_offset)
        truth.next_offset = header.next_offset

    def on_tick(self, node: str, driver: Driver) -> None:
        """What is not worth checking at each step: what leaders believe of their followers."""
        for group, known in driver._replicas.items():
            raft: Any = known.raft
            if raft.role.name != LEADER or not hasattr(raft, "progress"):
                continue
            log = self.replicas[node][group].log
            for name, progress in raft.progress.items():
                match, follower = progress.match_index, self.replicas[name][group]
                if not match or name == node:
                    continue
                if follower.hard_state is None or follower.hard_state.term > raft.term:
                    # It may have given up since what it said to this leader, for one of a later term.
                    continue
                if match > len(log) or not self._holds(name, group, log[match - 1]):
                    raise Violation(f"group {group}: {node} counts {match} for {name}, which never had it durable")

    # --- What clients were told ---------------------------------------------------------------------------------------

    def on_acknowledged(self, node: str, group: int, produced: Any) -> None:
        """A client was told that its batch is on a majority."""
        truth, index = self.groups[group], produced.index
        if index > len(truth.committed):
            raise Violation(f"{node}, group {group}: acknowledges {index}, committed is {len(truth.committed)}")
        place = truth.committed[index - 1]
        if produced.chain and place != Place(produced.term, produced.chain):
            raise Violation(f"{node}, group {group}: acknowledges another batch {index} than the committed one")
        if truth.base_offsets[index - 1] != produced.base_offset:
            raise Violation(
                f"{node}, group {group}: acknowledges offset {produced.base_offset} for {index}, "
                f"which is at {truth.base_offsets[index - 1]}"
            )
        self.acknowledgements += 1
        header = truth.headers[place.chain]
        truth.acknowledged_next_offset = max(truth.acknowledged_next_offset, header.next_offset)

    def is_counting(self, node: str, group: int) -> bool:
        """Whether a replica has all that it promised, and may say so."""
        replica = self.replicas[node][group]
        return replica.is_here and not replica.is_impaired and not replica.is_unadmitted

    def voters(self, group: int, bootstrap: Sequence[str]) -> list[str]:
        """Who votes in a group, as far as anybody has applied it."""
        configuration = self.groups[group].configuration
        return sorted(configuration.voters | configuration.voters_outgoing) if configuration else list(bootstrap)


def _configuration_at(truth: GroupTruth, index: int) -> Configuration:
    """What the committed changes up to an index make of the founding membership."""
    return truth.configurations[bisect_right(truth.change_indexes, index) - 1]
