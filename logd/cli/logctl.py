"""`logctl`, the command line of logd: the root of the commands, each of which is a module loaded when it runs.

For: the entry point, and completion. Must not know: any command beyond its name. The one idea: the table below names
every command, its module and its one line of help, so that `logctl --help` imports none of them.
"""

# ruff: noqa: E402 - Ctrl-C is dealt with before anything is imported that takes its time
from logd.cli import loading

loading.begin()

import difflib
import importlib
import sys
from collections.abc import Mapping
from typing import Final, NamedTuple

import click

from logd.cli.runner import run


class LazyCommand(NamedTuple):
    """Where a command is, and what the root's help says of it."""

    module: str
    help: str


COMMANDS: Final[Mapping[str, LazyCommand]] = {
    "produce": LazyCommand("logd.cli.produce", "Append records to a topic."),
    "consume": LazyCommand("logd.cli.consume", "Read records from a topic."),
    "topic": LazyCommand("logd.cli.topic", "Create, list, describe, alter and delete topics."),
    "context": LazyCommand("logd.cli.context", "Name clusters, and choose the one that commands go to."),
    "ping": LazyCommand("logd.cli.about", "Ask a node whether it is there, and how long that takes."),
    "segment": LazyCommand("logd.cli.segment", "Read a data directory offline, without a node."),
    "completion": LazyCommand("logd.cli.completion", "Print what a shell needs to complete logctl's commands."),
    "version": LazyCommand("logd.cli.about", "Print the version of logctl, and of the node if one answers."),
}
"""Every command, in the order of the help: what one needs first stands first."""

# Wide enough for an example line, narrow enough to read.
HELP_COLUMNS: Final = 100


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        row = COMMANDS.get(cmd_name)
        if row is None:
            return None
        module = importlib.import_module(row.module)
        found = getattr(module, "command", None) or getattr(module, cmd_name)
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            raise click.UsageError(f"no command {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, row.help) for name, row in COMMANDS.items()])


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": HELP_COLUMNS},
    epilog="Options stand after the command. Exit codes: docs/operations.md. Start: logctl context add --help",
)
def command() -> None:
    """Use a logd cluster from the command line.

    logctl finds the cluster in the current context (`logctl context`), in LOGCTL_* variables, or in flags; in a
    directory where `logd --dev` ran it finds that node by itself.
    """


def main() -> None:
    """The entry point."""
    code = run(command, "logctl")
    # All is said and done; what the interpreter still does is nobody's business.
    loading.begin()
    sys.exit(code)


# Whoever only imports this keeps the Ctrl-C that it had; in `main`, all is inside `run` from here on.
loading.end()
