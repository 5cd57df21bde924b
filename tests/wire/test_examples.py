"""The examples in the docstrings run as they stand, against a server."""

import inspect
import os
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

import wire
import wire.blocking
import wire.consumer
import wire.producer
from tests.support.servers import Server, running_reference, user_tls

_BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def examples() -> Iterator[tuple[str, str]]:
    documented: list[Any] = [
        wire,
        wire.Tls,
        wire.Client,
        wire.Producer,
        wire.Consumer,
        wire.blocking.Client,
        wire.blocking.Producer,
        wire.blocking.Consumer,
    ]
    for thing in documented:
        name = f"{getattr(thing, '__module__', '')} {thing.__name__}"
        blocks = _BLOCK.findall(inspect.getdoc(thing) or "")
        assert blocks, f"{name} has no example"
        for block in blocks:
            yield name, textwrap.dedent(block)


@pytest.fixture
def fresh_server(certificates: Path) -> Iterator[Server]:
    with (
        start_blocking_portal("trio") as portal,
        portal.wrap_async_context_manager(running_reference(certificates)) as reference,
    ):
        yield Server(f"127.0.0.1:{reference.port}", user_tls(certificates))


@pytest.mark.parametrize(
    ("name", "code"), list(examples()), ids=lambda value: value if " " in value and "\n" not in value else ""
)
def test_an_example_runs_as_it_stands(name: str, code: str, fresh_server: Server) -> None:
    names = {
        "wire": wire,
        "address": fresh_server.address,
        "tls": fresh_server.tls,
        "directory": os.path.dirname(fresh_server.tls.ca),
    }
    if "async with" in code:
        code = "async def main():\n" + textwrap.indent(code, "    ")
    exec(compile(code, name, "exec"), names)
    if "main" in names:
        main: Callable[[], Any] = names["main"]  # type: ignore[assignment]  # what the code above defined
        anyio.run(main)
    with wire.blocking.Client(fresh_server.address, tls=fresh_server.tls) as client:
        topics = client.metadata().topics
    assert topics or "create_topic" not in code
