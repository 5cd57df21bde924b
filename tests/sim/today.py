"""What the driver of one voter needs otherwise; goes away with it."""

# mypy: ignore-errors

from typing import Any

try:
    from logd.replica.membership import Membership, encode_membership

    HAS_PEERS = False
except ImportError:
    from logd.raft.types import Configuration as Membership
    from logd.replica.membership import encode_membership

    HAS_PEERS = True

if not HAS_PEERS:
    from logd.node.actor import _state_of_start
    from logd.node.node import _log_state, _start_after
    from logd.store.format import LogEnd


def membership_of(voters: tuple[str, ...]) -> bytes:
    return encode_membership(Membership(frozenset(voters)))


def open_group(driver: Any, log: Any, node: str, admission: bytes) -> None:
    if HAS_PEERS:
        from logd.replica import restore

        driver.open_group(restore.recover(log, node, driver.new_producer_table(), admission))
        return
    producers = driver.open_group(_log_state(log.group, log))
    table_index, table = log.producers_checkpoint()
    producers.restore(table)
    for header in log.headers_from(table_index + 1):
        producers.append(header)
        producers.commit(header, header.index)


def state_of_start(driver: Any, group: int, start: Any, admission: bytes) -> Any:
    if HAS_PEERS:
        from logd.replica import restore

        return restore.state_of_start(group, start, driver.new_producer_table(), None, admission)
    return _state_of_start(group, start)


def start_at(log: Any, index: int, producers: Any) -> Any:
    if HAS_PEERS:
        from logd.replica import restore

        return restore.start_at(log, index, producers)
    header = next(log.headers_from(index))
    end = LogEnd(header.index, header.term, header.next_offset, header.append_timestamp, header.chain)
    return _start_after(producers, log, end)
