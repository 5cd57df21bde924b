"""`logctl version` and `logctl ping`: who is here, and who is there."""

import os
import time
from typing import Any

import click

from logd import __version__
from logd.cli import output
from logd.cli.connection import answered, connected, connected_to, resolve, run_async, wanted
from logd.cli.options import connection_options, output_options
from logd.cli.values import whole_number
from wire.errors import LogdError
from wire.types import PROTOCOL_VERSION


@click.command("ping")
@click.option(
    "--count", type=whole_number(1, 1_000), default=1, show_default=True, metavar="N", help="How many times to ask."
)
@connection_options
@output_options
def ping(*, count: int) -> None:
    """Ask a node whether it is there, and how long that takes.

    The first answer comes over a connection that is already made: its time is one round trip.
    """

    async def run() -> tuple[str, list[float]]:
        async with connected() as client:
            times = []
            for _ in range(count):
                begin = time.perf_counter()
                await answered(client.ping)
                times.append(time.perf_counter() - begin)
            return client.node, times

    node, times = run_async(run)
    milliseconds = [seconds * 1000 for seconds in times]
    lines = [f"{node} answers in {each:.2f} ms" for each in milliseconds]
    output.current().answer({"node": node, "milliseconds": [round(each, 3) for each in milliseconds]}, "\n".join(lines))


@click.command("version", short_help="Print the version of logctl, and of the node if one answers.")
@connection_options
@output_options
def version() -> None:
    """Print the version of logctl, and what the node says of itself if one answers."""

    async def run() -> dict[str, Any]:
        async with connected_to(connection) as client:
            return {
                "node": client.node,
                "cluster_id": client.cluster_id.hex(),
                "limits": client.limits.to_wire(),
            }

    out = output.current()
    document: dict[str, Any] = {"logctl": __version__, "protocol": PROTOCOL_VERSION, "server": None}
    lines = [f"logctl {__version__}, protocol {PROTOCOL_VERSION}"]
    try:
        connection = resolve(wanted(), os.environ)
        out.detail(connection.describe())
        document["server"] = server = run_async(run)
        limits = ", ".join(f"{name} {value}" for name, value in server["limits"].items())
        lines += [f"node {server['node']} of cluster {server['cluster_id']}", f"  limits: {limits}"]
    except LogdError as error:
        # The version of this program is the answer; the node's is an extra.
        document["problem"] = str(error)
        out.note(f"no node: {error}")
    out.answer(document, "\n".join(lines))
