"""The examples in the docstrings and on the pages run as they stand, against a node; and nothing public is without."""

import ast
import builtins
import contextlib
import inspect
import os
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import wire
import wire.blocking
from tests.support.servers import Daemon, Server

_BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
_REPOSITORY = Path(__file__).parents[2]
_SECONDS_MAX = 20.0
# Those whose methods are the library; what else is public are values and errors.
_CLASSES = (wire.Client, wire.Producer, wire.Consumer, wire.Acknowledgement, wire.Receipt, wire.Batch)
_BLOCKING_CLASSES = tuple(
    thing
    for name, thing in sorted(vars(wire.blocking).items())
    if inspect.isclass(thing) and thing.__module__ == "wire.blocking" and not name.startswith("_")
)


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class defines."""
    for name, member in vars(kind).items():
        if not name.startswith("_") and (callable(member) or isinstance(member, (property, classmethod, staticmethod))):
            yield f"{kind.__module__}.{kind.__name__}.{name}", member


def public() -> Iterator[tuple[str, Any]]:
    """Everything that has an example, by its name."""
    yield "wire", wire
    for name in wire.__all__:
        yield f"wire.{name}", getattr(wire, name)
    for kind in _BLOCKING_CLASSES:
        yield f"wire.blocking.{kind.__name__}", kind
    for kind in (*_CLASSES, *_BLOCKING_CLASSES, wire.Address, wire.Tls):
        yield from members(kind)


def blocks_of(thing: Any) -> list[str]:
    # Its own words: `getdoc` would find those of a base class, or of a method that this one overrides.
    return _BLOCK.findall(inspect.cleandoc(getattr(thing, "__doc__", None) or ""))


def without_example(things: Iterator[tuple[str, Any]]) -> list[str]:
    return [name for name, thing in things if not blocks_of(thing)]


def examples() -> list[Any]:
    return [pytest.param(name, block, id=name) for name, thing in public() for block in blocks_of(thing)]


def page_blocks(page: str) -> list[str]:
    return _BLOCK.findall((_REPOSITORY / page).read_text(encoding="utf-8"))


def taken_for_granted(code: str) -> set[str]:
    """The names that an example uses and does not define."""
    found = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)]
    made = {node.id for node in found if not isinstance(node.ctx, ast.Load)}
    return {node.id for node in found} - made - set(dir(builtins))


def as_function(code: str, names: dict[str, Any], head: str) -> Callable[[], Any]:
    exec(compile(f"{head} example():\n{textwrap.indent(code, '    ')}", "example", "exec"), names)
    function: Callable[[], Any] = names["example"]
    return function


async def run_async(code: str, names: dict[str, Any]) -> None:
    free = taken_for_granted(code)
    with anyio.fail_after(_SECONDS_MAX):
        async with contextlib.AsyncExitStack() as stack:
            if free & {"client", "producer", "consumer"}:
                client = await stack.enter_async_context(wire.Client(names["address"], tls=names["tls"]))
                await client.create_topic("events", partitions=1)
                await client.produce("events", 0, wire.encode_batch([(b"first", b"anna", 1, None)]))
                await client.produce("events", 0, wire.encode_batch([(b"second", None, 2, None)]))
                names["client"] = client
                if "producer" in free:
                    names["producer"] = await stack.enter_async_context(wire.Producer(client, "events"))
                if "consumer" in free:
                    consumer = wire.Consumer(client, "events", follow=False)
                    names["consumer"] = await stack.enter_async_context(consumer)
            await as_function(code, names, "async def")()


def run_blocking(code: str, names: dict[str, Any]) -> None:
    free = taken_for_granted(code)
    with contextlib.ExitStack() as stack:
        if free & {"client", "producer", "consumer"}:
            client = stack.enter_context(wire.blocking.Client(names["address"], tls=names["tls"]))
            client.create_topic("events", partitions=1)
            client.produce("events", 0, wire.encode_batch([(b"first", b"anna", 1, None)]))
            client.produce("events", 0, wire.encode_batch([(b"second", None, 2, None)]))
            names["client"] = client
            if "producer" in free:
                names["producer"] = stack.enter_context(wire.blocking.Producer(client, "events"))
            if "consumer" in free:
                names["consumer"] = stack.enter_context(wire.blocking.Consumer(client, "events", follow=False))
        as_function(code, names, "def")()


@pytest.fixture
def node(daemon: Daemon) -> Iterator[Server]:
    """The daemon of all tests; what topics an example made are removed, for the next makes its own of those names."""
    server = daemon.server()
    with wire.blocking.Client(server.address, tls=server.tls) as client:
        before = {topic.topic for topic in client.metadata().topics}
        yield server
        for topic in client.metadata().topics:
            if topic.topic not in before:
                client.delete_topic(topic.topic)


def names_for(server: Server, printed: list[str]) -> dict[str, Any]:
    return {
        "wire": wire,
        "address": server.address,
        "tls": server.tls,
        "directory": os.path.dirname(server.tls.ca),
        "print": lambda *things: printed.append(" ".join(map(str, things))),
    }


@pytest.mark.parametrize(("name", "code"), examples())
def test_an_example_runs_as_it_stands(name: str, code: str, node: Server) -> None:
    printed: list[str] = []
    names = names_for(node, printed)
    if name.startswith("wire.blocking"):
        run_blocking(code, names)
    else:
        anyio.run(run_async, code, names, backend="trio")
    # An example that shows how an error is caught has met it, and one that loops had something to loop over.
    assert printed or "print(" not in code


def test_every_public_name_and_method_has_an_example() -> None:
    assert without_example(public()) == []


def test_a_method_without_an_example_is_found_out() -> None:
    class Child(wire.Client):
        async def ping(self) -> None:
            """Words alone."""

        @property
        def node(self) -> str:
            return ""

    assert [name.rpartition(".")[2] for name in without_example(members(Child))] == ["ping", "node"]


@pytest.mark.parametrize(
    ("page", "topic", "partitions"), [("README.md", "orders", 1), ("docs/quickstart.md", "hello", 2)]
)
def test_what_a_page_shows_in_python_runs_as_it_stands(page: str, topic: str, partitions: int, node: Server) -> None:
    with wire.blocking.Client(node.address, tls=node.tls) as client:
        client.create_topic(topic, partitions=partitions)
    blocks = page_blocks(page)
    assert blocks
    for block in blocks:
        # A reader's node listens where nothing is said, and has its files beside it.
        code = block.replace("127.0.0.1:7421", node.address).replace(".logd/tls", os.path.dirname(node.tls.ca))
        printed: list[str] = []
        names = names_for(node, printed)
        if "async with" not in code:
            run_blocking(code, names)
        elif "follow=False" in code:
            anyio.run(run_async, code, names, backend="trio")
        else:
            anyio.run(run_until_it_prints, code, names, topic, printed, backend="trio")
        assert printed


async def run_until_it_prints(code: str, names: dict[str, Any], topic: str, printed: list[str]) -> None:
    """Run an example that waits for what comes, beside somebody who writes."""

    async def write() -> None:
        async with wire.Client(names["address"], tls=names["tls"]) as client, wire.Producer(client, topic) as producer:
            while not printed:
                await producer.send_nowait(b"something new")
        group.cancel_scope.cancel()

    with anyio.fail_after(_SECONDS_MAX):
        async with anyio.create_task_group() as group:
            group.start_soon(write)
            await run_async(code, names)
