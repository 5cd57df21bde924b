"""From flags, environment, context and development directory to a connected client.

For: every command that talks to a node. Must not know: what it says. The one idea: the settings are put together field
by field, the nearest source first, and each source is named when the user asks (`-v`) or when something is missing.
"""

import contextlib
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from logd.cli import contexts, output
from logd.cli.contexts import Context
from logd.cli.errors import CertificateRefused, ConfigurationProblem, Timeout
from wire.errors import LogdError, Misconfigured, ProtocolError
from wire.types import PORT_DEFAULT

if TYPE_CHECKING:
    import wire

Result = TypeVar("Result")

_META: Final = "logd.cli.connection"
# Where `logd --dev` puts what a user of it needs, under the working directory.
DEVELOPMENT_DIRECTORY: Final = ".logd/tls"


@dataclass(slots=True)
class Wanted:
    """What the command line and the environment say of the connection; None is "nothing"."""

    server: str | None = None
    tls_ca: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    cluster_name: str | None = None
    context: str | None = None
    timeout_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class Connection:
    """All that is needed to connect."""

    servers: tuple[str, ...]
    tls_ca: str
    tls_certificate: str
    tls_key: str
    cluster_name: str | None
    timeout_seconds: float
    # Where each setting comes from, for `-v` and for the messages of problems.
    origins: Mapping[str, str]

    def describe(self) -> str:
        """One line that says what is used and why."""
        source = self.origins["server"]
        certificate = f"{self.tls_certificate} ({self.origins['tls_certificate']})"
        return f"connecting to {', '.join(self.servers)} ({source}) with {certificate}"


def wanted(context: click.Context | None = None) -> Wanted:
    """What the options of a command say (of the running one, by default); they fill it in as they are parsed."""
    found = (context or click.get_current_context()).meta.setdefault(_META, Wanted())
    assert isinstance(found, Wanted)
    return found


def resolve(asked: Wanted, environment: Mapping[str, str], directory: str = ".") -> Connection:
    """Put the connection together: flags and environment over the context, or over a development node's directory.

    Raises ContextNotFound, or ConfigurationProblem when the certificates are not told.
    """
    base, origin = _base(asked, environment, directory)
    settings: dict[str, str] = {}
    origins: dict[str, str] = {}
    for item in fields(Context)[1:]:
        given = getattr(asked, item.name)
        settings[item.name] = given if given is not None else getattr(base, item.name)
        origins[item.name] = "as asked" if given is not None else origin
    if not settings["server"]:
        settings["server"] = f"127.0.0.1:{PORT_DEFAULT}"
        origins["server"] = "the default"
    missing = [name for name in ("tls_ca", "tls_certificate", "tls_key") if not settings[name]]
    if missing:
        flags = ", ".join("--" + name.replace("_", "-") for name in missing)
        raise ConfigurationProblem(
            f"no certificates to connect with: {flags} not given, and {origin}{' has none' if base.name else ''}",
            {"problems": [f"{name}: not given" for name in missing]},
            hint="`logctl context add` keeps them; `logd --dev` makes some under ./.logd/tls",
        )
    servers = tuple(part.strip() for part in settings["server"].split(",") if part.strip())
    return Connection(
        servers,
        settings["tls_ca"],
        settings["tls_certificate"],
        settings["tls_key"],
        settings["cluster_name"] or None,
        asked.timeout_seconds,
        origins,
    )


def _base(asked: Wanted, environment: Mapping[str, str], directory: str) -> tuple[Context, str]:
    """What stands below the flags, and where it comes from in words."""
    known = contexts.load(contexts.path_of(environment))
    if asked.context:
        return known.get(asked.context), f"context {asked.context}"
    if known.current:
        return known.get(known.current), f"context {known.current}"
    development = os.path.join(directory, DEVELOPMENT_DIRECTORY)
    if os.path.isfile(os.path.join(development, "user.crt")):
        files = {
            "tls_ca": os.path.join(development, "ca.crt"),
            "tls_certificate": os.path.join(development, "user.crt"),
            "tls_key": os.path.join(development, "user.key"),
        }
        return Context(
            "development", _development_server(development), **files
        ), "the development node of this directory"
    return Context(""), "no context is in use"


def _development_server(directory: str) -> str:
    """Where the development node said, at its last start, that it listens; empty when it did not."""
    try:
        with open(os.path.join(directory, "address"), encoding="utf-8") as file:
            return file.read(1_000).strip()
    except (OSError, UnicodeDecodeError):
        return ""


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator["wire.Client"]:
    """A client for the running command, connected. Raises what `resolve` and connecting raise."""
    connection = resolve(wanted(), os.environ)
    output.current().detail(connection.describe())
    async with connected_to(connection) as client:
        yield client


@contextlib.asynccontextmanager
async def connected_to(connection: Connection) -> AsyncIterator["wire.Client"]:
    """A client that is connected. Raises Timeout, CertificateRefused, and what connecting raises."""
    import anyio  # noqa: PLC0415  # only a command that runs pays for it

    import wire  # noqa: PLC0415

    tls = wire.Tls(
        ca=connection.tls_ca,
        certificate=connection.tls_certificate,
        key=connection.tls_key,
        cluster_name=connection.cluster_name,
    )
    try:
        connecting = wire.Client(list(connection.servers), tls=tls)
    except Misconfigured as error:
        # Nothing was tried yet: it can only be the addresses.
        raise ConfigurationProblem(
            f"{error} ({connection.origins['server']})", {"problems": [str(error)]}, hint="--server HOST[:PORT][,…]"
        ) from error
    seconds = connection.timeout_seconds
    is_connected = False
    # The scope is left after the client, as it was entered before it; only its deadline ends with the connecting.
    with anyio.CancelScope(deadline=anyio.current_time() + seconds) as scope:
        async with contextlib.AsyncExitStack() as stack:
            try:
                client = await stack.enter_async_context(connecting)
            except Misconfigured as error:
                raise _told_apart(error) from error
            is_connected = True
            scope.deadline = math.inf
            yield client
    if scope.cancelled_caught and not is_connected:
        raise Timeout(
            f"no connection to {', '.join(connection.servers)} within {seconds:g} s", {"timeout_seconds": seconds}
        )


def _told_apart(error: Misconfigured) -> LogdError:
    """A connection that cannot be, as what it is: a wrong certificate, or somebody who is no node."""
    if isinstance(error.__cause__, ProtocolError):
        return error.__cause__.__class__(error.message, error.details)
    return CertificateRefused(error.message, error.details)


async def within(seconds: float, what: str, call: Callable[[], Awaitable[Result]]) -> Result:
    """Await the call for so long. Raises Timeout, whose message begins with `what`."""
    import anyio  # noqa: PLC0415

    try:
        with anyio.fail_after(seconds):
            return await call()
    except TimeoutError:
        raise Timeout(f"{what} within {seconds:g} s", {"timeout_seconds": seconds}) from None


async def answered(call: Callable[[], Awaitable[Result]]) -> Result:
    """Await an answer that should come at once, for `--timeout`."""
    return await within(wanted().timeout_seconds, "no answer", call)


def run_async(function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    """Run the asynchronous part of a command, under Trio."""
    import anyio  # noqa: PLC0415

    return anyio.run(function, *arguments, backend="trio")
