"""The names of topics, for completion.

For: commands with a TOPIC. Must not know: what they do with it. The one idea: completion may take a moment and may
fail, but never disturbs the line that is being typed.
"""

import contextlib
import dataclasses
import os
from typing import Final

import click
from click.shell_completion import CompletionItem

from logd.cli.connection import connected_to, resolve, run_async, wanted

# Longer, and a person who pressed Tab wonders what happened.
COMPLETION_SECONDS_MAX: Final = 1.0


def complete_topics(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The topics that begin so; none when the node does not answer in time."""
    names: list[str] = []
    # The options that stand on the line so far were parsed into it.
    asked = dataclasses.replace(wanted(context), timeout_seconds=COMPLETION_SECONDS_MAX)

    async def run() -> None:
        import anyio  # noqa: PLC0415

        with anyio.move_on_after(COMPLETION_SECONDS_MAX):
            async with connected_to(resolve(asked, os.environ)) as client:
                metadata = await client.metadata()
                names.extend(topic.topic for topic in metadata.topics)

    # Whatever is wrong, the next command will say so.
    with contextlib.suppress(Exception):
        run_async(run)
    return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]
