"""Ctrl-C and SIGTERM for commands that move records: the first one stops, the second one abandons.

For: `produce` and `consume`. Must not know: what they do. The one idea: a signal is an event like any other, taken by
one task, which cancels the scope that is to stop; so nothing is torn in the middle, and what was accepted comes to its
end.
"""

import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Iterator

import anyio
import anyio.abc
import click

from logd.cli.errors import Interrupted, Terminated
from logd.cli.output import is_terminal


class Interruption:
    """What signals do to the command that is running. Made by `interruptible`."""

    def __init__(self, group: anyio.abc.TaskGroup) -> None:
        # For what runs beside the command's own course; it is cancelled when the command is done.
        self.group = group
        self.signal: signal.Signals | None = None
        # Whether a moving line is on the terminal; it writes over the ^C that the terminal shows.
        self.shows_progress = False
        self._stopping = group.cancel_scope

    @contextlib.contextmanager
    def stopping_here(self) -> Iterator[None]:
        """Let the first signal end just this block, and the course go on behind it. Otherwise it ends everything."""
        with anyio.CancelScope() as scope:
            self._stopping = scope
            try:
                yield
            finally:
                self._stopping = self.group.cancel_scope

    def check(self) -> None:
        """Raise Interrupted or Terminated if a signal came."""
        if self.signal is signal.SIGTERM:
            raise Terminated("terminated")
        if self.signal is not None:
            raise Interrupted("interrupted")

    async def watch(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Take the signals, for as long as the group lives."""
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for number in signals:
                self.signal = self.signal or signal.Signals(number)
                if number == signal.SIGINT and not self.shows_progress and is_terminal(sys.stderr):
                    click.echo(err=True)
                self._stopping.cancel()


@contextlib.asynccontextmanager
async def interruptible() -> AsyncIterator[Interruption]:
    """Run a block that signals stop. At its end, however it comes, Interrupted or Terminated is raised if one came.

    An error of the block's own goes before that.
    """
    async with anyio.create_task_group() as group:
        interruption = Interruption(group)
        await group.start(interruption.watch)
        yield interruption
        group.cancel_scope.cancel()
    interruption.check()
