"""The root imports no command and nothing heavy; every command explains itself."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from logd.cli import contexts
from logd.cli.contexts import Context
from logd.cli.logctl import COMMANDS, command
from logd.cli.options import complete_contexts
from logd.cli.runner import run

HEAVY = ("trio", "anyio", "rich", "zstandard", "msgpack", "logd.node", "logd.store", "cryptography", "structlog", "ssl")


def every_command(parent: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, parent
    if isinstance(parent, click.Group):
        context = click.Context(parent)
        for name in parent.list_commands(context):
            child = parent.get_command(context, name)
            assert child is not None
            yield from every_command(child, (*path, name))


ALL = list(every_command(command))


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in list(os.environ):
        if name.startswith("LOGCTL_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    "arguments",
    ["['--help']", "['produce', '--help']", "['consume', '--help']", "['topic', '--help']", "['completion', 'bash']"],
)
def test_help_loads_nothing_heavy(arguments: str) -> None:
    code = (
        "import sys\n"
        "from logd.cli.logctl import command\n"
        "from logd.cli.runner import run\n"
        f"assert run(command, 'logctl', {arguments}) == 0\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_the_roots_help_imports_no_command() -> None:
    code = (
        "import sys\n"
        "from logd.cli.logctl import COMMANDS, command\n"
        "from logd.cli.runner import run\n"
        "run(command, 'logctl', ['--help'])\n"
        "print([row.module for row in COMMANDS.values() if row.module in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_roots_one_line_is_the_commands_own(name: str) -> None:
    module = importlib.import_module(COMMANDS[name].module)
    found = getattr(module, "command", None) or getattr(module, name)
    assert found.get_short_help_str(200) == COMMANDS[name].help


@pytest.mark.parametrize(("path", "found"), ALL, ids=[" ".join(path) or "logctl" for path, _ in ALL])
def test_every_command_and_option_explains_itself(path: tuple[str, ...], found: click.Command) -> None:
    assert found.help
    for parameter in found.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert (
                parameter.help.rstrip(" ]").endswith((".", "default: 5ms", "default: 10s", ")"))
                or "[default" in parameter.help
            )
    result = CliRunner().invoke(command, [*path, "--help"], terminal_width=100)
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 110


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prodce"], "no command 'prodce'; did you mean 'produce'?"),
        (["xyz"], "no command 'xyz'"),
        (["--server", "x"], "a command's options stand after it"),
        (["topic", "create"], "Missing argument 'TOPIC'"),
        (["topic", "create", "x", "--partitions", "0"], "expected a number from 1"),
        (["topic", "create", "x", "--config", "novalue"], "expected name=value"),
        (["topic", "alter", "x"], "nothing to change"),
        (["topic", "alter", "x", "--config", "a=1", "--reset", "a"], "both changed and reset"),
        (["produce", "x", "file", "--value", "y"], "either files or --value"),
        (["produce", "x", "--key-separator", ":", "--key", "k"], "--key-separator"),
        (["produce", "x", "--key-separator", ":", "--format", "raw"], "--key-separator"),
        (["produce", "x", "--key-separator", ""], "expected a text that can stand in a line, like = or \\t"),
        (["produce", "x", "--key-separator", "\\n"], "expected a text that can stand in a line"),
        (["produce", "x", "--key-separator", "\\q"], "\\q is unknown"),
        (["produce", "x", "--record-bytes", "5"], "goes with --format raw"),
        (["produce", "x", "--headers", "novalue"], "expected name=value"),
        (["consume", "x", "--from", "middle"], "expected start"),
        (["consume", "x", "--until", "start"], "expected an offset, a time, or end"),
        (["consume", "x", "--until", "-5"], "expected an offset, a time, or end"),
        (["consume", "x", "--format", "jsn"], "did you mean json"),
        (["consume", "x", "--format", "%y"], "%y is unknown"),
        (["context", "add", "a/b"], "a name has at most 63"),
        (["completion", "tcsh"], "'tcsh' is not one of"),
        (["ping", "--timeout", "2d"], "more than 3600 seconds"),
        (["ping", "--timeout", "0"], "'0' is less than 0.001 seconds"),
    ],
)
def test_a_wrong_command_line_is_told_and_exits_with_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, "logctl", words) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "logctl", []) == 2
    assert capsys.readouterr().err.startswith("Usage: logctl")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["topic", "list"], 78),
        (["topic", "list", "--context", "none"], 3),
        (["produce", "x", "gone.txt"], 3),
        (["produce", "x", "."], 74),
        (["context", "show"], 3),
        (["context", "use", "gone"], 3),
        (["context", "add", "x", "--tls-ca", "gone"], 3),
    ],
)
def test_what_is_wrong_without_a_node_has_its_code(
    words: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, "logctl", [*words, "--output", "json"]) == code
    assert set(json.loads(capsys.readouterr().err)["error"]) >= {"code", "message", "details"}


def test_the_version_needs_no_node(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "logctl", ["version", "--output", "json", "--quiet"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["server"] is None
    assert printed.err == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_call_logctl_back(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "logctl", ["completion", shell]) == 0
    assert "_LOGCTL_COMPLETE" in capsys.readouterr().out


def complete(words: str) -> list[str]:
    environment = {
        **os.environ,
        "_LOGCTL_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    code = "from logd.cli.logctl import main; import sys; sys.argv = ['logctl']; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.split()]


def test_commands_flags_and_contexts_complete() -> None:
    with contexts.changing(contexts.path_of(os.environ)) as cell:
        cell[0] = cell[0].added(Context("production", "p:1"), use=False, force=False)
    assert complete("logctl to") == ["topic"]
    assert complete("logctl produce --batch-") == ["--batch-bytes", "--batch-records"]
    assert complete("logctl context use pro") == ["production"]


def test_topics_complete_silently_to_nothing_without_a_node() -> None:
    assert complete("logctl consume ord") == []


def test_a_broken_context_file_does_not_disturb_completion() -> None:
    path = Path(contexts.path_of(os.environ))
    path.parent.mkdir(parents=True)
    path.write_text("nonsense")
    assert complete_contexts(click.Context(command), click.Option(["--x"]), "") == []
