"""`logctl segment`: what stands in the files of a data directory, read without a node."""

import datetime as dt
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from logd.cli import output
from logd.cli.errors import FileFailed, NotConfirmed, OutputClosed, VerifyFailed, file_error
from logd.cli.options import output_options
from wire.types import Codec

if TYPE_CHECKING:
    from logd.store.inspect import Finding

# Lines are written in pieces: a large directory has millions.
LINES_PER_WRITE: Final = 1_000
# A disk that lost its mind is told on some screens, not on thousands; how many more there are is said.
PROBLEMS_SHOWN_MAX: Final = 1_000
_CODEC_MASK: Final = 0b111


@click.group("segment")
def command() -> None:
    """Read a data directory offline, without a node.

    dump and verify change nothing and take no lock, so the node may be running. PATH is a data directory, its journal
    or groups, a group's directory, or one file of them.
    """


@command.command("dump")
@click.argument("path", type=click.Path())
@output_options
def dump(*, path: str) -> None:
    """Print what stands in PATH: every batch's header, and where each file's chain stops.

    With --output json it is one object a line.
    """
    out = output.current()
    show: Callable[[Finding], str] = _json if out.as_json else _text
    _write(map(show, _findings(path)))


@command.command("verify")
@click.argument("path", type=click.Path())
@output_options
def verify(*, path: str) -> None:
    """Check every digest and chain in PATH, and say exactly where one stops.

    A torn tail (what a crash cut off, and nobody was promised) is no problem; corruption is, and exits with 7. With
    --verbose the end of every file is told.
    """
    out = output.current()
    counts: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    problems: list[Finding] = []
    for finding in _findings(path):
        counts[finding.kind] += 1
        verdict = str(finding.values.get("verdict", ""))
        if verdict:
            verdicts[verdict] += 1
        if finding.is_problem and len(problems) < PROBLEMS_SHOWN_MAX:
            problems.append(finding)
        counts["problem"] += finding.is_problem
        if verdict and not finding.is_problem:
            # What a crash left is worth a word, the plain end of a file only who asks for it.
            tell = out.detail if verdict == "end" or out.as_json else out.note
            tell(_text(finding, with_path=True))
    document = {
        "path": path,
        "ok": not problems,
        "files": {name.replace(" ", "_"): counts[kind] for kind, name in _FILES.items()},
        "batches": counts["batch"],
        "rounds": counts["round"],
        "stops": dict(sorted(verdicts.items())),
        "problem_count": counts["problem"],
        "problems": [finding.as_json() for finding in problems],
    }
    seen = ", ".join(_counted(counts[kind], name) for kind, name in _FILES.items() if counts[kind]) or "no files"
    summary = f"{path}: {seen}; {_counted(counts['batch'], 'batches')}; {_conclusion(problems, verdicts)}"
    if out.as_json:
        click.echo(output.json_line(document))
    else:
        click.echo(output.printable(summary))
        for finding in problems:
            click.echo(_text(finding, with_path=True))
        if counts["problem"] > len(problems):
            click.echo(f"… and {counts['problem'] - len(problems)} more problems")
    if problems:
        raise VerifyFailed(
            f"{path}: {output.count_text(counts['problem'], 'problem')}; the first is in {_place(problems[0])}",
            {"path": path, "problem_count": counts["problem"]},
        )


@command.command("accept-loss")
@click.argument("directory", type=click.Path())
@click.option("--group", type=click.IntRange(min=0), required=True, metavar="N", help="The group whose end is lost.")
@click.option("--yes", "-y", is_flag=True, help="What is given up cannot be had back: yes, give it up.")
@output_options
def accept_loss(*, directory: str, group: int, yes: bool) -> None:
    """Let a group's log end where it ends, and give up what was promised above.

    For a partition whose end is lost from every file: its node refuses to lead it until this is decided (or until the
    files are restored, which is better). The node must not be running. The decision is written into the journal.
    """
    if not yes:
        raise NotConfirmed(
            f"nothing was given up of group {group}", {"group": group}, hint="--yes gives up what cannot be had back"
        )
    from logd.store.files import OsFileSystem  # noqa: PLC0415  # help needs no store
    from logd.store.offline import accept_loss as accept  # noqa: PLC0415

    out = output.current()
    try:
        loss = accept(OsFileSystem(), directory, group)
    except OSError as error:
        raise file_error(error, error.filename or directory) from error
    if out.as_json:
        click.echo(output.json_line({"group": group, "loss": None if loss is None else loss._asdict()}))
    elif loss is None:
        click.echo(f"group {group} has lost nothing of its end")
    else:
        click.echo(
            f"group {group}: gave up indexes {loss.first_index} to {loss.next_index - 1}; "
            f"the next offset is {loss.next_offset}"
        )


def _counted(count: int, plural: str) -> str:
    singular = {"batches": "batch", "indexes": "index"}.get(plural, plural.removesuffix("s"))
    return f"{count:,} {singular if count == 1 else plural}"


def _conclusion(problems: "list[Finding]", verdicts: Mapping[str, int]) -> str:
    if problems:
        return "not every chain holds"
    if "unknown" in verdicts:
        return "every chain holds as far as it goes; without its journal nobody knows how far it should"
    if set(verdicts) - {"end"}:
        return "nothing is lost; the node mends what a crash left when it starts"
    return "every chain holds"


_FILES: Final = {"segment": "segments", "start": "starts", "index": "indexes", "journal_file": "journal files"}


def _findings(path: str) -> "Iterator[Finding]":
    from logd.store.files import OsFileSystem  # noqa: PLC0415  # help needs no store
    from logd.store.inspect import inspect  # noqa: PLC0415

    try:
        yield from inspect(OsFileSystem(), path)
    except OSError as error:
        raise file_error(error, error.filename or path) from error


def _write(lines: Iterable[str]) -> None:
    waiting: list[str] = []
    for line in lines:
        waiting.append(line)
        if len(waiting) >= LINES_PER_WRITE:
            _flush(waiting)
            waiting = []
    _flush(waiting)


def _flush(lines: list[str]) -> None:
    if not lines:
        return
    try:
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise OutputClosed from None
    except OSError as error:
        raise FileFailed(f"standard output: {error.strerror}") from error


def _json(finding: "Finding") -> str:
    return output.json_line(finding.as_json())


def _text(finding: "Finding", *, with_path: bool = False) -> str:
    """One line: a batch or a stop within its file, anything else with its path."""
    values = finding.values
    problem = f"  PROBLEM: {values['reason']}" if finding.is_problem and "reason" in values else ""
    before = f"{finding.path}: " if with_path else "  "
    if finding.kind == "batch":
        return output.printable(before + _batch_text(values) + problem)
    if finding.kind == "round":
        return output.printable(before + _round_text(values) + problem)
    if finding.kind == "stop":
        return output.printable(before + _stop_text(values))
    pairs = " ".join(f"{key}={_value_text(value)}" for key, value in values.items() if key != "reason")
    reason = f"  ({values['reason']})" if "reason" in values and not problem else ""
    return output.printable(f"{finding.kind.replace('_', ' ')} {finding.path}: {pairs}{reason}{problem}")


def _batch_text(values: Mapping[str, Any]) -> str:
    content = (
        "control"
        if values["is_control"]
        else f"offsets {values['base_offset']} to {values['next_offset'] - 1} ({_codec_name(values['flags'])})"
    )
    return (
        f"position {values['position']}  index {values['index']}  term {values['term']}  {values['bytes']} bytes  "
        f"{content}  appended {_date(values['append_timestamp'])}  chain {values['chain'][:16]}"
    )


def _round_text(values: Mapping[str, Any]) -> str:
    entries = Counter(str(entry["entry"]) for entry in values["entries"])
    held = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in entries.items()) or "empty"
    damaged = "".join(
        f"  PROBLEM: the copy of group {each['group']} index {each['index']} at {each['position']} does not verify"
        for each in values["damaged_batches"]
    )
    return f"position {values['position']}  round {values['round_number']}  {values['bytes']} bytes  {held}{damaged}"


def _codec_name(flags: int) -> str:
    try:
        return Codec(flags & _CODEC_MASK).name.lower()
    except ValueError:
        return f"codec {flags & _CODEC_MASK}"


def _stop_text(values: Mapping[str, Any]) -> str:
    place = [
        f"{name.replace('_', ' ')} {values[name]}"
        for name in ("position", "index", "round_number")
        if values.get(name) is not None
    ]
    promised = values.get("promised_index")
    known = f"; promised to index {promised}" if promised is not None else ""
    verdict = str(values["verdict"]).replace("_", " ")
    return f"stops at {', '.join(place)}: {verdict} ({values['reason']}{known})"


def _value_text(value: object) -> str:
    return f"{len(value)}" if isinstance(value, list) else output.cell_text(value)


def _date(timestamp_ms: int) -> str:
    try:
        return dt.datetime.fromtimestamp(timestamp_ms / 1000, dt.UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
    except (ValueError, OverflowError, OSError):
        return str(timestamp_ms)


def _place(finding: "Finding") -> str:
    places = [f"{name} {finding.values[name]}" for name in ("position", "index") if name in finding.values]
    return " at ".join((finding.path, ", ".join(places))) if places else finding.path
