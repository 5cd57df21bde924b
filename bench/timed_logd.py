"""A `logd` that notes when a produce passes certain places: `python -m bench.timed_logd --config FILE`.

For: `bench.profile_rooms`, which starts it in place of the daemon. It must not know what the times are for. The one
idea: wrap a few functions from outside, so that the daemon itself carries nothing for it; what was noted is written to
the file that `LOGD_BENCH_TIMES` names when the daemon stops. The clock is the same in all processes of a machine.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any

from logd.cli.logd import main
from logd.node.actor import RaftActor
from logd.node.disk import Disk
from logd.service.produce import ProduceService
from logd.store.round import Round
from wire.stream import SecureStream

TIMES_VARIABLE = "LOGD_BENCH_TIMES"
# If set, a session that has read a batch only rings the doorbell, and the actor's task starts the round.
DOORBELL_VARIABLE = "LOGD_BENCH_DOORBELL"
# The newest are kept: an hour of synchronous produces does not fill the memory.
TIMES_MAX = 1_000_000

# Invariant: (seconds, name of the place), in the order they were noted by each thread.
times: deque[tuple[float, str]] = deque(maxlen=TIMES_MAX)


def note(owner: type, name: str, *, before: str | None = None, after: str | None = None) -> None:
    """Note when a method is entered (`before`) or left (`after`), under these names."""
    original: Callable[..., Any] = getattr(owner, name)

    def noted(*arguments: Any, **named: Any) -> Any:
        if before:
            times.append((perf_counter(), before))
        try:
            return original(*arguments, **named)
        finally:
            if after:
                times.append((perf_counter(), after))

    setattr(owner, name, noted)


def note_return(owner: type, name: str, after: str) -> None:
    """Note when an async method has returned."""
    original: Callable[..., Any] = getattr(owner, name)

    async def noted(*arguments: Any, **named: Any) -> Any:
        result = await original(*arguments, **named)
        times.append((perf_counter(), after))
        return result

    setattr(owner, name, noted)


def note_stream(received: str, decrypted: str, sent: str) -> None:
    """Note what both ends of a connection do, under these names."""
    note_return(SecureStream, "_receive_ciphertext", received)
    note(SecureStream, "_decrypt", after=decrypted)
    note(SecureStream, "_push", after=sent)


def write_times(path: str) -> None:
    """Write what was noted, as a JSON array of [seconds, name]."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(list(times), file)


def ring_only(actor: RaftActor) -> None:
    """What `RaftActor.start_waiting` saves: the way over the doorbell."""
    actor._doorbell.ring()  # noqa: SLF001  # looking into the daemon is what this module is for


def run() -> None:
    """The daemon, with its arguments from the command line."""
    if DOORBELL_VARIABLE in os.environ:
        setattr(RaftActor, "start_waiting", ring_only)  # noqa: B010  # a method that is not declared to change
    note_stream("server received", "server decrypted", "server sent")
    note(ProduceService, "produce", before="request dispatched")
    note(RaftActor, "_start_round", before="round wanted")
    note(Disk, "submit_round", after="round submitted")
    note(Round, "write", before="write started", after="write durable")
    note(RaftActor, "_step", before="actor woken")
    try:
        main()
    finally:
        write_times(os.environ[TIMES_VARIABLE])


if __name__ == "__main__":
    run()
