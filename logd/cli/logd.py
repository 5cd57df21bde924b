"""`logd`, the daemon's command line: from flags, environment and file to a running node.

For: the entry point. Must not know: how a node works. The one idea: everything wrong is said at once, before anything
is started, in a line each that names the key and where it was written.
"""

# ruff: noqa: E402 - Ctrl-C is dealt with before anything is imported that takes its time
from logd.cli import loading

loading.begin()

import contextlib
import errno
import os
import shlex
import signal
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from logd import __version__
from logd.cli.errors import ConfigurationProblem, ListenFailed
from logd.cli.output import OUTPUT_VARIABLE, OUTPUTS
from logd.cli.runner import run as run_command
from logd.cli.values import PAIR
from wire.errors import LogdError

if TYPE_CHECKING:
    import trio

    from logd.config import Config
    from logd.node.node import Node

HELP_COLUMNS: Final = 100
# Beside the development certificates: where the node that made them listens, for `logctl` in this directory.
ADDRESS_FILE: Final = "address"

_COMMON: Final = {
    "data_dir": ("node.data_dir", "--data-dir"),
    "listen": ("listen.client", "--listen"),
    "node_name": ("node.name", "--node-name"),
    "cluster_name": ("node.cluster_name", "--cluster-name"),
    "tls_ca": ("tls.ca", "--tls-ca"),
    "tls_certificate": ("tls.certificate", "--tls-certificate"),
    "tls_key": ("tls.key", "--tls-key"),
    "log_level": ("log.level", "--log-level"),
    "log_format": ("log.format", "--log-format"),
}
"""The settings that have a flag of their own; all others are reached by `--set`."""

# As many as `listen.connections_max` may be; beyond it a leak should rather be noticed.
DESCRIPTORS_MAX: Final = 65_536

# What only a listening socket meets.
_LISTEN_ERRORS: Final = frozenset((errno.EADDRINUSE, errno.EADDRNOTAVAIL))


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": HELP_COLUMNS})
@click.option("--dev", is_flag=True, help="Development node: data and certificates under ./.logd, made on first start.")
@click.option("--config", metavar="FILE", help="TOML file with the settings.")
@click.option("--data-dir", metavar="DIR", help="Directory of the node's data. (node.data_dir)")
@click.option("--listen", metavar="HOST:PORT", help="Where clients connect; port 0 is any free one. (listen.client)")
@click.option("--node-name", metavar="NAME", help="Name of this node, as in its certificate. (node.name)")
@click.option("--cluster-name", metavar="NAME", help="Name of the cluster, as in certificates. (node.cluster_name)")
@click.option("--tls-ca", metavar="FILE", help="PEM file with the cluster's CA. (tls.ca)")
@click.option("--tls-certificate", metavar="FILE", help="PEM file with the node's certificate. (tls.certificate)")
@click.option("--tls-key", metavar="FILE", help="PEM file with the certificate's key. (tls.key)")
@click.option("--log-level", metavar="LEVEL", help="Least level logged: debug, info, warning, error. (log.level)")
@click.option("--log-format", metavar="FORMAT", help="Shape of a log line: auto, text, json. (log.format)")
@click.option(
    "--set",
    "assignments",
    type=PAIR,
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Any setting, like store.segment_bytes_max=64MiB; may be repeated.",
)
@click.option("--check-config", is_flag=True, help="Say `ok`, or all that is wrong, also of TLS files; start nothing.")
@click.option(
    "--output",
    "-o",
    "output",
    type=click.Choice(OUTPUTS),
    default="table",
    show_default=True,
    envvar=OUTPUT_VARIABLE,
    show_envvar=True,
    help="Shape of the answers of --check-config and --version, and of errors.",
)
@click.option("--version", is_flag=True, help="Print the version and exit.")
def command(  # one parameter per option
    *,
    dev: bool,
    config: str | None,
    assignments: Sequence[tuple[str, str]],
    check_config: bool,
    output: str,
    version: bool,
    **common: str | None,
) -> None:
    """Run one node of logd.

    \b
    Settings, each going over those before it: defaults, the file of --config, LOGD_SECTION_KEY
    variables of the environment, flags. `logd --dev` needs none.

    \b
    Examples:
      logd --dev
      logd --config /etc/logd/logd.toml --listen 0.0.0.0:7421
      logd --config logd.toml --check-config

    SIGINT (Ctrl-C) and SIGTERM stop it cleanly.
    """  # noqa: D301  # click reads the backspace as "keep these lines"
    if version:
        _answer(output, {"logd": __version__}, f"logd {__version__}")
        return
    loaded = _load(config, common, assignments, is_development=dev)
    if check_config:
        _check_files(loaded)
        _answer(output, {"ok": True, "settings": _shown(loaded)}, "ok")
        return
    _start(loaded, is_development=dev)


def _answer(output: str, document: dict[str, Any], text: str) -> None:
    from logd.cli.output import json_line  # noqa: PLC0415

    click.echo(json_line(document) if output == "json" else text)


def _load(
    path: str | None, common: dict[str, str | None], assignments: Sequence[tuple[str, str]], *, is_development: bool
) -> "Config":
    from logd.config import ConfigurationError, Given, development_flags, load  # noqa: PLC0415  # help needs no settings

    flags: dict[str, object] = {}
    if is_development:
        flags.update(development_flags(common["data_dir"] or os.environ.get("LOGD_NODE_DATA_DIR") or "./.logd"))
    for name, (key, flag) in _COMMON.items():
        if common[name] is not None:
            flags[key] = Given(common[name], flag)
    flags.update({key: Given(value, "--set") for key, value in assignments})
    try:
        return load(path, os.environ, flags)
    except ConfigurationError as error:
        raise problem_of(error.problems) from error


def problem_of(problems: Sequence[str]) -> ConfigurationProblem:
    """One error for all that is wrong: the lines for a person, the list for a program."""
    count = len(problems)
    return ConfigurationProblem(
        f"the configuration has {count} problem{'' if count == 1 else 's'}",
        {"problems": list(problems)},
        hint="docs/operations.md has every setting",
        lines=problems,
    )


def _shown(config: "Config") -> dict[str, Any]:
    from logd.config import value_text  # noqa: PLC0415

    return {
        setting.key: {"value": value_text(setting, value), "origin": origin}
        for setting, value, origin in config.items()
    }


def _check_files(config: "Config") -> None:
    """Load the TLS files as a start would. Raises NodeFilesError."""
    # A start makes the development certificates, and anew whatever is not in order of them: there is nothing to check.
    if all(config.origins[key] == "--dev" for key in ("tls.ca", "tls.certificate", "tls.key")):
        return
    from logd.security.tls import node_tls  # noqa: PLC0415  # it loads `ssl`

    node_tls(config)


def _start(config: "Config", *, is_development: bool) -> None:
    import trio  # noqa: PLC0415  # only who starts a node pays for it

    from logd.observability import logs  # noqa: PLC0415

    # The choices were checked with the settings.
    logs.configure(config.log.level, config.log.format)
    _raise_descriptor_limit()
    directory = _make_certificates(config) if is_development else None
    trio.run(_serve, config, directory)


def _raise_descriptor_limit() -> None:
    """Take the descriptors that the system grants: the usual 1,024 are there for programs with `select`."""
    import resource  # noqa: PLC0415

    from logd.observability import logs  # noqa: PLC0415

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = wanted_descriptors(soft, hard)
    if wanted == soft:
        return
    # Where even this is not allowed, the node serves as many as it may.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        logs.get_logger("node").info("descriptor_limit_raised", before=soft, limit=wanted)


def wanted_descriptors(soft: int, hard: int) -> int:
    """The soft limit of descriptors to have under these two (-1: none): never less than there is."""
    if soft < 0 or soft >= DESCRIPTORS_MAX:
        return soft
    return DESCRIPTORS_MAX if hard < 0 else max(soft, min(hard, DESCRIPTORS_MAX))


def _make_certificates(config: "Config") -> str | None:
    """Make the development certificates, unless others were given; returns their directory."""
    if config.origins["tls.certificate"] != "--dev":
        return None
    from logd.security.ca import ensure_development_certificates  # noqa: PLC0415  # `cryptography` takes its time

    directory = os.path.dirname(config.tls.certificate)
    ensure_development_certificates(directory, config.node.cluster_name, config.node.name, [config.listen.client.host])
    return directory


async def _serve(config: "Config", certificates: str | None) -> None:
    import trio  # noqa: PLC0415

    from logd.config import Address  # noqa: PLC0415
    from logd.node.node import Node, Ready  # noqa: PLC0415

    def on_ready(ready: Ready) -> None:
        address = str(Address(ready.host, ready.port))
        if certificates is not None:
            _leave_address(address, certificates)
        # The one line on standard output: whoever started the node with port 0 learns from it where it is.
        with contextlib.suppress(OSError):
            click.echo(f"ready address={address}")
        if certificates is not None:
            _welcome(address, certificates, config.node.data_dir)

    node = Node(config, on_ready)
    async with trio.open_nursery() as nursery:
        await nursery.start(_stop_on_signals, node)
        await node.run()
        nursery.cancel_scope.cancel()


async def _stop_on_signals(node: "Node", task_status: "trio.TaskStatus[None]") -> None:
    """The first signal lets what is in flight be answered; the second does not wait for that."""
    import trio  # noqa: PLC0415

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            node.stop()


def _leave_address(address: str, certificates: str) -> None:
    """Tell `logctl` in this directory where the node is. Before anybody is told that it is ready."""
    with open(os.path.join(certificates, ADDRESS_FILE), "w", encoding="utf-8") as file:
        file.write(address + "\n")


def _welcome(address: str, certificates: str, data_directory: str) -> None:
    """Tell a person what to try."""
    ca, certificate, key = (
        shlex.quote(os.path.abspath(os.path.join(certificates, name))) for name in ("ca.crt", "user.crt", "user.key")
    )
    click.echo(
        f"""
A development node is ready on {address}; its data and certificates are under {data_directory}.
Try, in another terminal:

  logctl context add dev --use --server {address} --tls-ca {ca} \\
    --tls-certificate {certificate} --tls-key {key}
  logctl topic create hello
  echo 'hello, log' | logctl produce hello
  logctl consume hello

Ctrl-C stops it. (In this directory logctl finds the node without a context.)
""",
        err=True,
    )


def translate(error: Exception) -> LogdError | None:
    """Errors of the rooms below, as the command line's own. None for what is not expected."""
    from logd.security.tls import NodeFilesError, SecurityError  # noqa: PLC0415  # it loads `ssl`

    if isinstance(error, NodeFilesError):
        return problem_of(error.problems)
    if isinstance(error, SecurityError):
        return ConfigurationProblem(str(error), {"problems": [str(error)]})
    if isinstance(error, socket.gaierror) or (isinstance(error, OSError) and error.errno in _LISTEN_ERRORS):
        return ListenFailed(f"cannot listen: {(error.strerror or str(error)).lower()}")
    return None


def main() -> None:
    """The entry point."""
    code = run_command(command, "logd", translate=translate)
    # All is said and done; what the interpreter still does is nobody's business.
    loading.begin()
    sys.exit(code)


# Whoever only imports this keeps the Ctrl-C that it had; in `main`, all is inside `run` from here on.
loading.end()
