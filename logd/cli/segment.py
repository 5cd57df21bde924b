"""`logctl segment`: what stands in the files of a data directory, read without a node."""

import click

from logd.cli.options import output_options


@click.group("segment")
def command() -> None:
    """Read a data directory offline, without a node.

    Nothing is changed and no lock is taken, so the node may be running.
    """


@command.command("dump")
@click.argument("path", type=click.Path())
@output_options
def dump(*, path: str) -> None:
    """Print the batch headers in PATH: a segment, a group's directory, a data directory, or a journal file."""
    raise NotImplementedError(path)


@command.command("verify")
@click.argument("path", type=click.Path())
@output_options
def verify(*, path: str) -> None:
    """Check every digest and chain in PATH, and say exactly where one stops."""
    raise NotImplementedError(path)
