"""`logctl completion`: the few lines that a shell needs to complete logctl's commands, topics and contexts."""

import click
from click.shell_completion import get_completion_class

from logd.cli import output
from logd.cli.options import output_options

SHELLS = ("bash", "zsh", "fish")
COMPLETE_VARIABLE = "_LOGCTL_COMPLETE"


@click.command("completion", short_help="Print what a shell needs to complete logctl's commands.")
@click.argument("shell", type=click.Choice(SHELLS))
@output_options
def command(*, shell: str) -> None:
    """Print what SHELL needs to complete logctl's commands, flags, topics and contexts.

    \b
    bash:  echo 'eval "$(logctl completion bash)"' >> ~/.bashrc
    zsh:   echo 'eval "$(logctl completion zsh)"' >> ~/.zshrc
    fish:  logctl completion fish > ~/.config/fish/completions/logctl.fish
    """  # noqa: D301  # click reads the backspace as "keep these lines"
    kind = get_completion_class(shell)
    # The choice admits only shells that click knows.
    assert kind is not None
    # click's source for bash first looks for a bash, to warn about an old one; the template alone needs none.
    completer = kind(command, {}, "logctl", COMPLETE_VARIABLE)
    script = completer.source_template % completer.source_vars()
    output.current().answer({"shell": shell, "script": script}, script.rstrip("\n"))
