"""`logctl context`: which clusters there are, and which one commands go to."""

import os
from typing import Any

import click

from logd.cli import contexts, output
from logd.cli.contexts import Context
from logd.cli.errors import ConfigurationProblem, ContextNotFound, FileNotFound
from logd.cli.options import complete_contexts, output_options


@click.group("context")
def command() -> None:
    """Name clusters, and choose the one that commands go to.

    A context holds addresses and the paths of certificates. They are kept in $XDG_CONFIG_HOME/logd/contexts.toml
    (or ~/.config/…), which only you can read. Flags and LOGCTL_* variables go over them.
    """


def _document(context: Context, current: str) -> dict[str, Any]:
    return {
        "name": context.name,
        "current": context.name == current,
        "server": context.server,
        "tls_ca": context.tls_ca,
        "tls_certificate": context.tls_certificate,
        "tls_key": context.tls_key,
        "cluster_name": context.cluster_name,
    }


def _absolute(path: str, option: str) -> str:
    if not path:
        return ""
    if not os.path.isfile(path):
        raise FileNotFound(f"{option}: {path}: no such file", {"path": path})
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ConfigurationProblem(f"{option}: the path is not valid text") from None
    return os.path.abspath(path)


@command.command("add")
@click.argument("name")
@click.option("--server", default="", metavar="HOST[:PORT][,…]", help="Address of a node; several are tried in turn.")
@click.option("--tls-ca", default="", metavar="FILE", help="PEM file with the cluster's CA.")
@click.option("--tls-certificate", default="", metavar="FILE", help="PEM file with your certificate.")
@click.option("--tls-key", default="", metavar="FILE", help="PEM file with the key of your certificate.")
@click.option("--cluster-name", default="", metavar="NAME", help="Name that the node's certificate must carry.")
@click.option("--use", is_flag=True, help="Make it the current context, as the first one always is.")
@click.option("--force", is_flag=True, help="Replace a context of this name.")
@output_options
def add(  # one parameter per option
    *,
    name: str,
    server: str,
    tls_ca: str,
    tls_certificate: str,
    tls_key: str,
    cluster_name: str,
    use: bool,
    force: bool,
) -> None:
    """Add a context called NAME.

    What is left out can be given with each command.

    \b
    Example:
      logctl context add dev --server 127.0.0.1:7421 --tls-ca .logd/tls/ca.crt \\
        --tls-certificate .logd/tls/user.crt --tls-key .logd/tls/user.key
    """  # noqa: D301  # click reads the backspace as "keep these lines"
    if not contexts.is_context_name(name):
        raise click.BadParameter(
            f"{name!r}: a name has at most 63 letters, digits, '.', '_' and '-', the first a letter or digit",
            param_hint="'NAME'",
        )
    added = Context(
        name,
        server,
        _absolute(tls_ca, "--tls-ca"),
        _absolute(tls_certificate, "--tls-certificate"),
        _absolute(tls_key, "--tls-key"),
        cluster_name,
    )
    with contexts.changing(contexts.path_of(os.environ)) as cell:
        cell[0] = cell[0].added(added, use=use, force=force)
    is_current = cell[0].current == name
    output.current().answer(
        _document(added, cell[0].current),
        f"added context {name}"
        + (", now the current one" if is_current else f"; `logctl context use {name}` selects it"),
    )


@command.command("use")
@click.argument("name", shell_complete=complete_contexts)
@output_options
def use(*, name: str) -> None:
    """Make NAME the context that commands go to."""
    with contexts.changing(contexts.path_of(os.environ)) as cell:
        cell[0] = cell[0].used(name)
    output.current().answer(_document(cell[0].get(name), name), f"commands now go to context {name}")


@command.command("list")
@output_options
def list_contexts() -> None:
    """List the contexts; a star marks the current one."""
    known = contexts.load(contexts.path_of(os.environ))
    out = output.current()
    rows = [_document(context, known.current) for _, context in sorted(known.contexts.items())]
    if not out.as_json:
        rows = [{**row, "current": "*" if row["current"] else " "} for row in rows]
    out.table(
        "contexts",
        ("Current", "Name", "Server", "TLS certificate"),
        rows,
        empty="there are no contexts; `logctl context add` makes one",
    )


@command.command("show")
@click.argument("name", required=False, shell_complete=complete_contexts)
@output_options
def show(*, name: str | None) -> None:
    """Show context NAME, or the current one."""
    known = contexts.load(contexts.path_of(os.environ))
    if name is None and not known.current:
        raise ContextNotFound(
            "no context is in use", hint="`logctl context list` shows them, `logctl context use` selects one"
        )
    found = known.get(name or known.current)
    document = _document(found, known.current)
    lines = [f"{key:<16} {output.cell_text(value)}" for key, value in document.items()]
    output.current().answer(document, "\n".join(lines))


@command.command("remove")
@click.argument("name", shell_complete=complete_contexts)
@output_options
def remove(*, name: str) -> None:
    """Forget context NAME. The certificates it names stay where they are."""
    with contexts.changing(contexts.path_of(os.environ)) as cell:
        found = cell[0].get(name)
        was_current = cell[0].current == name
        cell[0] = cell[0].removed(name)
    note = "; no context is in use now" if was_current else ""
    output.current().answer(_document(found, ""), f"removed context {name}{note}")
