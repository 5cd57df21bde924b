"""The options that many commands share, as decorators.

For: the commands. Must not know: what the commands do. The one idea: a shared option leaves its value in the context
of the running command, so that a command's own signature lists only what is its own.
"""

import os
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
from click.shell_completion import CompletionItem

from logd.cli import contexts, output
from logd.cli.connection import wanted
from logd.cli.values import duration

Function = TypeVar("Function", bound=Callable[..., Any])

# No round trip is shorter: it can only be a mistake, and 0 is no way to write "without limit".
TIMEOUT_SECONDS_MIN: Final = 0.001
# A wait longer than this is a wait for somebody to notice.
TIMEOUT_SECONDS_MAX: Final = 3_600.0
# Ten slow round trips with their handshakes; an idle node answers within a hundredth of it.
TIMEOUT_SECONDS_DEFAULT: Final = 10.0


def output_options(function: Function) -> Function:
    """`--output`, `--quiet` and `--verbose`."""

    def keep(field: str) -> Callable[[click.Context, click.Parameter, Any], None]:
        def callback(context: click.Context, _parameter: click.Parameter, value: Any) -> None:
            setattr(output.current(context), field, value == "json" if field == "as_json" else value)

        return callback

    for option in (
        click.option(
            "--verbose",
            "-v",
            is_flag=True,
            expose_value=False,
            callback=keep("verbose"),
            help="Say more on standard error: which server and certificate are used.",
        ),
        click.option(
            "--quiet",
            "-q",
            is_flag=True,
            expose_value=False,
            callback=keep("quiet"),
            help="Say nothing on standard error but errors.",
        ),
        click.option(
            "--output",
            "-o",
            type=click.Choice(output.OUTPUTS),
            default="table",
            show_default=True,
            envvar=output.OUTPUT_VARIABLE,
            show_envvar=True,
            expose_value=False,
            callback=keep("as_json"),
            help="Shape of the answer, and of errors.",
        ),
    ):
        function = option(function)
    return function


def complete_contexts(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of contexts, for completion."""
    try:
        known = contexts.load(contexts.path_of(os.environ))
    except Exception:  # noqa: BLE001  # completion has nowhere to say what is wrong, and must not disturb the line
        return []
    return [
        CompletionItem(name, help=context.server)
        for name, context in known.contexts.items()
        if name.startswith(incomplete)
    ]


def connection_options(function: Function) -> Function:
    """`--server`, `--tls-…`, `--cluster-name`, `--context` and `--timeout`."""

    def keep(field: str) -> Callable[[click.Context, click.Parameter, Any], None]:
        def callback(context: click.Context, _parameter: click.Parameter, value: Any) -> None:
            setattr(wanted(context), field, value)

        return callback

    def option(name: str, field: str, text: str, **attributes: Any) -> Callable[[Function], Function]:
        return click.option(
            name,
            envvar="LOGCTL_" + name.removeprefix("--").replace("-", "_").upper(),
            show_envvar=True,
            expose_value=False,
            callback=keep(field),
            help=text,
            **attributes,
        )

    for decorate in (
        option(
            "--timeout",
            "timeout_seconds",
            "Time for connecting, and for each answer that should come at once  [default: 10s].",
            type=duration(TIMEOUT_SECONDS_MAX, minimum=TIMEOUT_SECONDS_MIN),
            default=TIMEOUT_SECONDS_DEFAULT,
            metavar="DURATION",
        ),
        option("--cluster-name", "cluster_name", "Name that the node's certificate must carry.", metavar="NAME"),
        option("--tls-key", "tls_key", "PEM file with the key of your certificate.", metavar="FILE"),
        option("--tls-certificate", "tls_certificate", "PEM file with your certificate.", metavar="FILE"),
        option("--tls-ca", "tls_ca", "PEM file with the cluster's CA.", metavar="FILE"),
        option("--server", "server", "Address of a node; several are tried in turn.", metavar="HOST[:PORT][,…]"),
        option(
            "--context",
            "context",
            "Context to use instead of the current one.",
            metavar="NAME",
            shell_complete=complete_contexts,
        ),
    ):
        function = decorate(function)
    return function
