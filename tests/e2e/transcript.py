"""Transcripts: what a user types and what comes back, as one readable file that can be played again.

A file is lines, told apart by how they begin:

    # text           said to the reader
    $ command        typed into a shell, in the chapter's own directory
      line           came back on standard output (two spaces before it)
    ! line           came back on standard error
    [3]              the exit code, where it is not 0
    @start command   started in the background until it says that it is ready
    @stop            stopped by SIGTERM; what it printed and its exit code follow

What differs from run to run (times, rates, ports, ids, digests) is replaced by a word in capitals.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

ROOT: Final = Path(__file__).parent.parent.parent
READY_SECONDS_MAX: Final = 30.0
COMMAND_SECONDS_MAX: Final = 60.0

# In this order: what an earlier one replaced, a later one does not see.
NORMAL: Final = (
    (
        r"logctl \d+\.\d+\.\d+|logd \d+\.\d+\.\d+|(?<=\"logctl\": \")\d+\.\d+\.\d+|(?<=\"logd\": \")\d+\.\d+\.\d+",
        "VERSION",
    ),
    (r"127\.0\.0\.1:\d{4,5}", "127.0.0.1:PORT"),
    (r"\b[0-9a-f]{64}\b", "DIGEST"),
    (r"\b[0-9a-f]{32}\b", "ID"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "DATE"),
    (r"\b1[6-9]\d{11}\b", "TIME_MS"),
    (r"in \d+\.\d\d s: [\d,]+ records/s, [\d.]+ \w?B/s", "in SECONDS: RATE"),
    (r"(?<=chain )[0-9a-f]{16}\b", "CHAIN"),
    (r"(?<=answers in )\d+\.\d+ ms", "MILLISECONDS"),
    (r"(?<=\"milliseconds\": \[)[\d., ]+", "MILLISECONDS"),
    (r"(?<=\"seconds\": )[\d.e-]+", "SECONDS"),
    (r"(?<=_per_second\": )[\d.e-]+", "RATE"),
)


@dataclass
class Step:
    """One thing done, and what came back."""

    line: str
    came_back: list[str] = field(default_factory=list)


def parse(text: str) -> list[Step]:
    """The steps of a transcript; comments and empty lines are steps with nothing that comes back."""
    steps: list[Step] = []
    for line in text.splitlines():
        if line.startswith(("  ", "! ", "!", "[")) and steps and steps[-1].line.startswith(("$", "@")):
            steps[-1].came_back.append(line)
        else:
            steps.append(Step(line))
    return steps


def render(steps: Iterable[Step]) -> str:
    """The text of a transcript."""
    return "".join(f"{line}\n" for step in steps for line in (step.line, *step.came_back))


def commands(text: str) -> Iterator[str]:
    """Every command line of a transcript."""
    for step in parse(text):
        for sign in ("$ ", "@start "):
            if step.line.startswith(sign):
                yield step.line.removeprefix(sign)


class Player:
    """Plays a transcript in a directory of its own; what it started in the background ends with it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "work"
        self._directory.mkdir()
        programs = directory / "bin"
        programs.mkdir()
        for program in ("logd", "logctl"):
            script = programs / program
            script.write_text(
                f"#!/bin/sh\nexec {sys.executable} -c 'from logd.cli.{program} import main; main()' \"$@\"\n"
            )
            script.chmod(0o755)
        self._environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "error",
            "HOME": str(directory / "home"),
            "COLUMNS": "100",
            "LANG": "C.UTF-8",
            "TZ": "UTC",
        }
        self._background: subprocess.Popen[bytes] | None = None
        self._logs = [directory / "background.out", directory / "background.err"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._background is not None:
            self._background.kill()
            self._background.wait()

    def play(self, steps: Iterable[Step]) -> list[Step]:
        """Do all of it again; what comes back now."""
        return [Step(step.line, self._play(step.line)) for step in steps]

    def _play(self, line: str) -> list[str]:
        if line.startswith("$ "):
            return self._run(line.removeprefix("$ "))
        if line.startswith("@start "):
            return self._start(line.removeprefix("@start "))
        if line == "@stop":
            return self._stop()
        assert not line or line.startswith("#"), f"what is {line!r}?"
        return []

    def _run(self, command: str) -> list[str]:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=self._directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )
        return self._lines(done.stdout, done.stderr, done.returncode)

    def _start(self, command: str) -> list[str]:
        assert self._background is None
        out, err = self._logs
        with out.open("wb") as stdout, err.open("wb") as stderr:
            self._background = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self._directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )
        deadline = time.monotonic() + READY_SECONDS_MAX
        # The welcome is written after the line on standard output that tells the address.
        while b"ready address=" not in out.read_bytes():
            assert self._background.poll() is None, err.read_text()
            assert time.monotonic() < deadline, err.read_text()
            time.sleep(0.01)
        return []

    def _stop(self) -> list[str]:
        assert self._background is not None
        self._background.send_signal(signal.SIGTERM)
        code = self._background.wait(READY_SECONDS_MAX)
        self._background = None
        out, err = self._logs
        # The log is for operators, one event a line; what the user is told stands between.
        said = [line for line in err.read_bytes().splitlines(keepends=True) if not line.startswith(b"{")]
        return self._lines(out.read_bytes(), b"".join(said), code)

    def _lines(self, stdout: bytes, stderr: bytes, code: int) -> list[str]:
        lines = [f"  {line}".rstrip() or "  " for line in self._normal(stdout)]
        lines += [f"! {line}".rstrip() for line in self._normal(stderr)]
        return [*lines, f"[{code}]"] if code else lines

    def _normal(self, data: bytes) -> list[str]:
        text = (
            data.decode(errors="backslashreplace")
            .replace(str(self._directory), "DIRECTORY")
            .replace(str(self._directory.parent), "ABOVE")
        )
        for pattern, word in NORMAL:
            text = re.sub(pattern, word, text)
        # Only line feeds end a line here: a carriage return is shown.
        lines = [line.replace("\r", "\\r").replace("\0", "\\0") for line in text.split("\n")]
        return lines[:-1] if lines[-1] == "" else [*lines[:-1], lines[-1] + "<no line feed>"]
