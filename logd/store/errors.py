"""Everything that can go wrong in the store, short of `OSError`, which the port raises and nobody here swallows.

For: callers that handle one of these apart from the others. Must not know: how an operator is told. The one idea:
each class says what state it leaves; `OSError` from a sync or a write always means that the process must stop.
"""

from wire.errors import LogdError


class StoreError(LogdError):
    """The base of the store's own errors."""

    code = "Store"
    leaves = "nothing was changed"


class StoreLocked(StoreError):
    """Another process has the data directory open."""

    code = "StoreLocked"


class StoreRefused(StoreError):
    """The directory is not this node's: foreign, of another node or cluster, half there, or of a newer format.

    Nothing in it was touched. `details['reason']` is one of `foreign`, `half`, `node_name`, `newer_format`, `damaged`.
    """

    code = "StoreRefused"


class JournalLost(StoreError):
    """The journal holds no table that verifies: what was promised is unknown. Nothing was touched."""

    code = "JournalLost"


class Unreadable(StoreError):
    """A structure that does not verify: wrong magic, version, identity or digest. The message says which."""

    code = "Unreadable"


class RoundTooLarge(StoreError):
    """The entries do not fit `round_bytes_max`: split them over rounds. Nothing was changed."""

    code = "RoundTooLarge"


class JournalFull(StoreError):
    """The next journal file is not free yet, because what it covers is not synced: the round waits.

    Try again after housekeeping jobs were applied; the wait counts as the age of the oldest disk job.
    """

    code = "JournalFull"
    retriable = True


class NoRoom(StoreError):
    """An append for which `Log.space_for` did not answer None. Nothing was changed: ask it, run its job, retry."""

    code = "NoRoom"
    retriable = True


class WrongEntry(StoreError):
    """An entry that contradicts the log's state: a wrong chain, a term that goes back, an unknown group.

    A defect of the caller, never the disk's: nothing was changed, and the process had better stop.
    """

    code = "WrongEntry"


class TooManyGroups(StoreError):
    """A journal file cannot hold two tables of so many groups and a round. Nothing was changed."""

    code = "TooManyGroups"


class ReadOutdated(StoreError):
    """A planned read whose segment was given up before it ran (retention, truncation): plan it again."""

    code = "ReadOutdated"
    retriable = True
