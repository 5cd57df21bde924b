"""`logctl topic`: what topics there are, and their making, changing and end."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from logd.cli import output
from logd.cli.connection import answered, connected, run_async
from logd.cli.errors import NotConfirmed
from logd.cli.options import connection_options, output_options
from logd.cli.topics import complete_topics
from logd.cli.values import PAIR, whole_number
from logd.service.configuration import TOPIC_SETTINGS
from wire.errors import TopicNotFound

if TYPE_CHECKING:
    import wire
    from wire.messages import PartitionDescription, TopicDescription

# The wire's own bound; what the cluster allows it says itself.
_COUNT_MAX: Final = 2**32 - 1
# Enough to hide the way to the node and back, an eighth of what a connection may have in flight.
DESCRIPTIONS_IN_FLIGHT_MAX: Final = 32


@click.group("topic")
def command() -> None:
    """Create, list, describe, alter and delete topics."""


def _configuration(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    return dict(pairs)


_SETTINGS_HELP: Final = "\b\nSettings:\n" + "\n".join(
    f"  {setting.key:<18} {setting.meaning.replace('`', '')}" for setting in TOPIC_SETTINGS
)


@command.command("create", epilog=_SETTINGS_HELP)
@click.argument("topic")
@click.option(
    "--partitions",
    type=whole_number(1, _COUNT_MAX),
    metavar="N",
    help="Number of partitions [default: the cluster's].",
)
@click.option(
    "--replicas", type=whole_number(1, _COUNT_MAX), metavar="N", help="Replicas of each [default: the cluster's]."
)
@click.option(
    "--config", type=PAIR, multiple=True, metavar="KEY=VALUE", help="A setting of the topic; may be repeated."
)
@connection_options
@output_options
def create(*, topic: str, partitions: int | None, replicas: int | None, config: Sequence[tuple[str, str]]) -> None:
    """Create TOPIC.

    \b
    Examples:
      logctl topic create orders
      logctl topic create clicks --partitions 8 --config retention.seconds=3600
    """  # noqa: D301  # click reads the backspace as "keep these lines"

    async def run() -> int:
        async with connected() as client:
            created = await answered(
                lambda: client.create_topic(topic, partitions or 0, replicas or 0, _configuration(config))
            )
            return created.partitions

    count = run_async(run)
    output.current().answer(
        {"topic": topic, "partitions": count}, f"created topic {topic} with {output.count_text(count, 'partition')}"
    )


@command.command("list")
@connection_options
@output_options
def list_topics() -> None:
    """List the topics."""

    async def run() -> "list[TopicDescription]":
        async with connected() as client:
            return await _described(client)

    rows = [
        {
            "topic": topic.topic,
            "partitions": len(topic.partitions),
            "replicas": max((len(partition.replicas) for partition in topic.partitions), default=0),
            "records": sum(_records(partition) for partition in topic.partitions),
            "bytes": sum(partition.log_bytes for partition in topic.partitions),
        }
        for topic in sorted(run_async(run), key=lambda topic: topic.topic)
    ]
    output.current().table(
        "topics",
        ("Topic", "Partitions", "Replicas", "Records", "Bytes"),
        rows,
        empty="there are no topics; `logctl topic create` makes one",
    )


async def _described(client: "wire.Client") -> "list[TopicDescription]":
    """Every topic with its sizes, which the metadata of all does not have."""
    import anyio  # noqa: PLC0415

    topics = (await answered(client.metadata)).topics
    limiter = anyio.CapacityLimiter(DESCRIPTIONS_IN_FLIGHT_MAX)
    found: list[TopicDescription] = []

    async def describe_one(topic: str) -> None:
        # One that was deleted meanwhile is not in the list.
        with contextlib.suppress(TopicNotFound):
            async with limiter:
                found.append(await answered(lambda: client.describe_topic(topic)))

    async with anyio.create_task_group() as group:
        for topic in topics:
            group.start_soon(describe_one, topic.topic)
    return found


def _records(partition: "PartitionDescription") -> int:
    return partition.high_watermark - partition.log_start_offset


@command.command("describe", short_help="Describe TOPIC: its partitions, offsets and settings.")
@click.argument("topic", shell_complete=complete_topics)
@connection_options
@output_options
def describe(*, topic: str) -> None:
    """Describe TOPIC: its partitions, where they are, what can be read of them, and its settings."""

    async def run() -> "TopicDescription":
        async with connected() as client:
            return await answered(lambda: client.describe_topic(topic))

    found: TopicDescription = run_async(run)
    out = output.current()
    if out.as_json:
        out.answer(_document(found), "")
        return
    click.echo(f"topic {found.topic}  id {found.topic_id.hex()}")
    out.table(
        "partitions",
        ("Partition", "Leader", "Term", "Replicas", "Log start offset", "High watermark", "Bytes", "Segments"),
        [_partition_row(partition) for partition in found.partitions],
    )
    click.echo("\nsettings")
    for key, value in sorted(found.configuration.items()):
        click.echo(f"  {output.printable(key)} = {output.printable(value)}")


def _partition_row(partition: "PartitionDescription") -> dict[str, Any]:
    return {
        "partition": partition.partition,
        "group": partition.group,
        "leader": partition.leader,
        "term": partition.term,
        "replicas": list(partition.replicas),
        "log_start_offset": partition.log_start_offset,
        "high_watermark": partition.high_watermark,
        "log_end_offset": partition.log_end_offset,
        "bytes": partition.log_bytes,
        "segments": partition.segments,
    }


def _document(topic: "TopicDescription") -> dict[str, Any]:
    return {
        "topic": topic.topic,
        "topic_id": topic.topic_id.hex(),
        "partitions": [_partition_row(partition) for partition in topic.partitions],
        "configuration": dict(sorted(topic.configuration.items())),
    }


@command.command("alter", epilog=_SETTINGS_HELP)
@click.argument("topic", shell_complete=complete_topics)
@click.option(
    "--partitions", type=whole_number(1, _COUNT_MAX), metavar="N", help="Raise the number of partitions to this."
)
@click.option("--config", type=PAIR, multiple=True, metavar="KEY=VALUE", help="Change a setting; may be repeated.")
@click.option("--reset", multiple=True, metavar="KEY", help="Put a setting back to its default; may be repeated.")
@connection_options
@output_options
def alter(*, topic: str, partitions: int | None, config: Sequence[tuple[str, str]], reset: Sequence[str]) -> None:
    """Change TOPIC's settings, or add partitions.

    More partitions change where new records with a key go; records that are there stay where they are.
    """
    if partitions is None and not config and not reset:
        raise click.UsageError("nothing to change: give --partitions, --config or --reset")
    both = set(dict(config)) & set(reset)
    if both:
        raise click.UsageError(f"{min(both)} is both changed and reset")
    changes: Mapping[str, str | None] = {**dict.fromkeys(reset), **_configuration(config)}

    async def run() -> tuple[int, Mapping[str, str]]:
        async with connected() as client:
            altered = await answered(lambda: client.alter_topic(topic, partitions, changes))
            return altered.partitions, altered.configuration

    count, configuration = run_async(run)
    settings = " ".join(f"{key}={value}" for key, value in sorted(configuration.items()))
    output.current().answer(
        {"topic": topic, "partitions": count, "configuration": dict(sorted(configuration.items()))},
        output.printable(f"topic {topic} now has {output.count_text(count, 'partition')} and {settings}"),
    )


@command.command("delete")
@click.argument("topic", shell_complete=complete_topics)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@connection_options
@output_options
def delete(*, topic: str, yes: bool) -> None:
    """Delete TOPIC and all of its records, for good."""

    async def look() -> int:
        async with connected() as client:
            found = await answered(lambda: client.describe_topic(topic))
            return sum(map(_records, found.partitions))

    async def run() -> None:
        async with connected() as client:
            await answered(lambda: client.delete_topic(topic))

    if not yes:
        question = f"Delete topic {topic} with {output.count_text(run_async(look), 'record')}, for good?"
        if not _confirmed(question):
            raise NotConfirmed(f"topic {topic} was not deleted", {"topic": topic}, hint="--yes deletes without asking")
    run_async(run)
    output.current().answer({"topic": topic, "deleted": True}, f"deleted topic {topic}")


def _confirmed(question: str) -> bool:
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        # No answer, because there is nobody to give it: the end of the input counts as a no.
        click.echo(err=True)
        return False
