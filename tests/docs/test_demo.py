"""The demonstration works, leaves nothing behind, and is what the README shows."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.docs.pages import DOCS, REPOSITORY, text_of

DEMO = DOCS / "demo.py"
# On a busy machine; alone it takes about three.
SECONDS_MAX = 100


def demo() -> ModuleType:
    specification = importlib.util.spec_from_file_location("demo", DEMO)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def start(directory: Path, **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "TMPDIR": str(directory), **variables}
    return subprocess.Popen(
        [sys.executable, DEMO], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def nodes_under(directory: Path) -> list[int]:
    """The processes that were started in a directory."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                where = (process / "cwd").readlink()
            except OSError:
                continue
            if where.is_relative_to(directory):
                found.append(int(process.name))
    return found


def steps_of(text: str) -> list[str]:
    return re.findall(r"^\d\. .*$", text, re.MULTILINE)


def test_the_demonstration_comes_to_its_end_and_leaves_nothing_behind(tmp_path: Path) -> None:
    # What a user has set for a cluster of their own is not in the way.
    process = start(tmp_path, LOGCTL_SERVER="192.0.2.1:1", LOGD_LOG_LEVEL="nonsense")
    said, _ = process.communicate(timeout=SECONDS_MAX)

    assert process.returncode == 0, said
    assert "equal, byte for byte" in said
    assert "✗" not in said
    assert list(tmp_path.iterdir()) == []
    assert steps_of(text_of(REPOSITORY / "README.md")) == steps_of(said)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demonstration_cleans_up(tmp_path: Path, ending: signal.Signals) -> None:
    process = start(tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("2."):
            break
    assert nodes_under(tmp_path)

    process.send_signal(ending)
    said, _ = process.communicate(timeout=SECONDS_MAX)

    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []
    assert nodes_under(tmp_path) == []


def test_any_difference_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = demo()
    sent, received = tmp_path / "sent", tmp_path / "received"
    sent.write_bytes(b"one\ntwo\n")
    for wrong in (b"", b"one\n", b"one\ntwo\n\n", b"one\ntwp\n", b"two\none\n"):
        received.write_bytes(wrong)
        with pytest.raises(module.DemoError):
            module.compare(module.Screen(), sent, received)
    received.write_bytes(b"one\ntwo\n")
    module.compare(module.Screen(), sent, received)

    assert capsys.readouterr().out.count("equal, byte for byte") == 1


def test_without_a_history_the_readme_goes_in(tmp_path: Path) -> None:
    repository = tmp_path / "checkout"
    repository.mkdir()
    (repository / "README.md").write_text("first\nlast without an end")

    command = demo().collect_history(tmp_path / "sent", repository)

    assert command == "cat README.md"
    assert (tmp_path / "sent").read_text() == "first\nlast without an end\n"
