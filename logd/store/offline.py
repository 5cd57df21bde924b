"""What an operator may do to a data directory while no node runs on it.

For: `logctl segment`. Must not know: how an operator is asked. The one idea: it goes the way of every other change, by
an entry in the journal, so that whatever opens the directory next knows that it was decided, and of what.
"""

from dataclasses import replace
from typing import NamedTuple

from logd.store.context import StoreOptions
from logd.store.errors import StoreRefused
from logd.store.files import FileSystem
from logd.store.format import IDENTITY_BYTES, decode_node
from logd.store.layout import Layout
from logd.store.log import Log
from logd.store.round import AcceptEnd, RoundEntry
from logd.store.store import Store


class Loss(NamedTuple):
    """What a group's log no longer holds of what was promised: the indexes `[first_index, next_index)`."""

    group: int
    first_index: int
    next_index: int
    next_offset: int
    """Where the log goes on: offsets from here on were promised and are given out again."""


def accept_loss(files: FileSystem, directory: str, group: int) -> Loss | None:
    """Let a group's log end where it ends now, and give up what was promised above; None if nothing is lost there.

    The caller has made sure that this is wanted: what is given up cannot be had back. Opening the directory recovers
    it, as a node's start does. Raises StoreLocked while a node runs, StoreRefused for what is no data directory or
    does not hold the group, and OSError.
    """
    layout = Layout(directory)
    if not files.exists(layout.node):
        raise StoreRefused(f"{directory} is not a node's data directory", {"reason": "foreign"})
    node = files.open(layout.node, writable=False)
    try:
        node_name = decode_node(node.pread(node.size(), 0)).node_name
    finally:
        node.close()
    store = Store.open(
        files,
        directory,
        node_name=node_name,
        options=_options_for(files, layout),
        # Used for a new directory only, which this is not.
        new_cluster_id=bytes(IDENTITY_BYTES),
        new_journal_id=bytes(IDENTITY_BYTES),
    )
    try:
        log = store.groups.get(group)
        if log is None:
            raise StoreRefused(f"{directory} holds no group {group}", {"reason": "group", "group": group})
        loss = _loss_of(log)
        if loss is not None:
            _commit(store, [AcceptEnd(group, log.end.index)])
            _commit(store, [])
        return loss
    finally:
        store.close()


def _loss_of(log: Log) -> Loss | None:
    if log.floor is None or log.end.index >= log.floor.index:
        return None
    return Loss(log.group, log.end.index + 1, log.floor.index + 1, log.end.next_offset)


def _options_for(files: FileSystem, layout: Layout) -> StoreOptions:
    """Options under which the next journal file fits among those that are there."""
    sizes = []
    for name in files.listdir(layout.journal):
        file = files.open(f"{layout.journal}/{name}", writable=False)
        sizes.append(file.size())
        file.close()
    usual = StoreOptions()
    file_bytes = max(sizes, default=usual.journal_file_bytes)
    return replace(usual, journal_file_bytes=file_bytes, round_bytes_max=min(usual.round_bytes_max, file_bytes // 2))


def _commit(store: Store, entries: list[RoundEntry]) -> None:
    made = store.prepare_round(entries)
    made.write()
    made.apply_durable()
    made.settle()
    made.apply_written()
