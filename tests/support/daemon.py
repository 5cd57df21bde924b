"""A real `logd` in a process of its own, to be killed, starved, interrupted and looked at from outside.

For: the end-to-end tests. Must not know: what is claimed of the node. The one idea: a test sees what an operator sees
(the ready line, the exit code, the log, the files, what the kernel says of the process) and waits for one of these,
never for time to pass.
"""

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import trio

import wire
from tests.support.servers import START_SECONDS_MAX, Server, user_tls

STOP_SECONDS_MAX: Final = 20.0
# What a wait is given that no claim bounds: long, for the machine may be busy with something else.
PATIENCE_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.005
# The events that say "a defect of logd": no input may cause them.
DEFECTS: Final = frozenset(("session_failed", "request_failed"))

# Everything small, so that a few megabytes roll segments and go round the journal.
SMALL: Final[Mapping[str, str]] = {
    "store.segment_bytes_max": "1MiB",
    "store.disk_reserve_bytes": "0",
    "journal.file_bytes": "1MiB",
    "journal.files_max": "4",
    "journal.round_bytes_max": "256KiB",
    "protocol.frame_bytes_max": "256KiB",
    "protocol.fetch_bytes_max": "128KiB",
    "protocol.batch_bytes_max": "128KiB",
    "topics.partitions_max": "64",
    "topics.partitions_total_max": "64",
}


async def wait_until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Return when `condition` holds; fail, naming `what`, when it does not within `seconds`."""
    with trio.move_on_after(seconds):
        while not condition():  # noqa: ASYNC110  # what is waited for happens in another process
            await trio.sleep(POLL_SECONDS)
        return
    raise AssertionError(f"{what}: not within {seconds:g} s")


class LogdProcess:
    """One node: its directory, its settings, and the process while there is one.

    Arguments: `directory`, in which its data, certificates and logs stand, each start with a log of its own;
    `settings`, over those of `--dev`; `prefix`, a command that runs the program given to it, such as strace.
    """

    def __init__(
        self, directory: Path, settings: Mapping[str, str] | None = None, *, prefix: Sequence[str] = ()
    ) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.settings = {"log.format": "json", **(settings or {})}
        self.prefix = list(prefix)
        self.arguments: list[str] = []
        """More of the command line, put at its end."""
        self.port = 0
        self.starts = 0
        self.ready_seconds = 0.0
        """How long the last start took, from the command to the ready line."""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    # --- Starting and ending ------------------------------------------------------------------------------------------

    def command(self) -> list[str]:
        listen = f"127.0.0.1:{self.port}"
        command = [sys.executable, "-B", "-W", "error", "-m", "logd", "--dev", "--data-dir", str(self.data)]
        settings = [word for key, value in self.settings.items() for word in ("--set", f"{key}={value}")]
        return [*self.prefix, *command, "--listen", listen, *settings, *self.arguments]

    def spawn(self) -> None:
        """Start the process, and do not wait for it."""
        assert self._process is None, "it runs already"
        self.starts += 1
        self.directory.mkdir(parents=True, exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("LOGD_")}
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=environment
            )

    def start(self) -> Self:
        """Start the process and return when it is ready; from the second start on, on the same port."""
        begin = time.monotonic()
        self.spawn()
        line = self.read_line()
        self.ready_seconds = time.monotonic() - begin
        word = line.decode().strip().removeprefix("ready address=")
        if not word[:1].isdigit():
            code = self.wait(STOP_SECONDS_MAX) if not line else None
            raise AssertionError(f"not ready but {line!r}, exit code {code}; its log:\n{self.log_text()}")
        self.port = int(word.rpartition(":")[2])
        return self

    def read_line(self, seconds: float = START_SECONDS_MAX) -> bytes:
        """The first line on standard output; what there is of it when the process ends or the time is up."""
        deadline = time.monotonic() + seconds
        stdout = self.process.stdout
        assert stdout is not None
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n") and selector.select(max(0.0, deadline - time.monotonic())):
                piece = os.read(stdout.fileno(), 4096)
                if not piece:
                    break
                line += piece
        return line

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "it does not run"
        return self._process

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait(self, seconds: float = STOP_SECONDS_MAX) -> int:
        """The exit code (negative: the signal that ended it), when it comes."""
        process = self.process
        code = process.wait(seconds)
        assert process.stdout is not None
        process.stdout.close()
        self._process = None
        return code

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it at once, if it runs; nothing of it is left running then."""
        if self._process is not None:
            self._process.kill()
            self.wait()

    def stop(self) -> None:
        """Stop it cleanly."""
        self.signal(signal.SIGTERM)
        assert self.wait() == 0, self.log_text()

    def run_to_end(self, seconds: float = STOP_SECONDS_MAX) -> tuple[int, str]:
        """Start it where it cannot run: the exit code, and what it said on standard error."""
        self.spawn()
        return self.wait(seconds), self.log_text()

    # --- Looking at it ------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        return self.process.pid

    def threads(self) -> list[int]:
        """The kernel's numbers of its threads, in the order in which they were started."""
        return sorted(int(name) for name in os.listdir(f"/proc/{self.pid}/task"))

    def status_bytes(self, name: str) -> int:
        """A size out of /proc: `VmRSS` (now) or `VmHWM` (the most it ever was)."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) << 10
        raise AssertionError(f"the kernel says no {name}")

    def descriptors(self) -> int:
        """How many files and sockets it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    @property
    def log_path(self) -> Path:
        """The log of the last start."""
        return self.directory / f"log-{self.starts}.txt"

    def log_text(self) -> str:
        return self.log_path.read_text(errors="replace")

    def log(self) -> list[dict[str, Any]]:
        """The events of the last start; what a development node says to a person is none."""
        return [json.loads(line) for line in self.log_text().splitlines() if line.startswith("{")]

    def events(self, *names: str) -> list[dict[str, Any]]:
        """The logged events of these names."""
        return [event for event in self.log() if event["event"] in names]

    def check_log(self) -> None:
        """No start so far left a traceback in its log, or a line that says "defect"."""
        for number in range(1, self.starts + 1):
            text = (self.directory / f"log-{number}.txt").read_text(errors="replace")
            defects = [line for line in text.splitlines() if any(f'"{name}"' in line for name in DEFECTS)]
            assert "Traceback" not in text and "Exception ignored" not in text and not defects, text  # noqa: PT018

    # --- Its clients --------------------------------------------------------------------------------------------------

    @property
    def tls_directory(self) -> Path:
        return self.data / "tls"

    @property
    def server(self) -> Server:
        return Server(f"127.0.0.1:{self.port}", user_tls(self.tls_directory))

    def client(self) -> wire.Client:
        return wire.Client(self.server.address, tls=self.server.tls)


def has_strace() -> str:
    """Why system calls cannot be intercepted here; empty if they can."""
    if shutil.which("strace") is None:
        return "strace is not installed (apt-get install strace)"
    done = subprocess.run(["strace", "-e", "trace=none", "true"], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"strace cannot trace here: {done.stderr.strip()}"


class Strace:
    """strace attached to some threads of a running process: it tampers with the calls of each thread by itself.

    Arguments: `threads`, their numbers; `injection`, such as `fdatasync:error=EIO:when=3`, or None; `calls`, what is
    written down besides.
    """

    def __init__(self, directory: Path, threads: Sequence[int], injection: str | None, *calls: str) -> None:
        traced = [*calls, *([injection.partition(":")[0]] if injection else [])]
        self.trace = directory / f"strace-{os.urandom(4).hex()}.txt"
        words = [word for thread in threads for word in ("-p", str(thread))]
        command = ["strace", "-ttt", "-o", str(self.trace), "-e", "trace=" + ",".join(traced)]
        if injection:
            command += ["-e", f"inject={injection}"]
        self._said = self.trace.with_suffix(".said")
        with self._said.open("wb") as said:
            self._process = subprocess.Popen([*command, *words], stderr=said)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._said.read_text().count("attached") < len(threads):
            assert self._process.poll() is None and time.monotonic() < deadline, self._said.read_text()  # noqa: PT018
            time.sleep(POLL_SECONDS)

    def wait(self) -> str:
        """What it wrote down, once the process has ended or `detach` was called."""
        self._process.wait(STOP_SECONDS_MAX)
        return self.trace.read_text()

    def detach(self) -> str:
        """Leave the process alone; what was written down."""
        self._process.send_signal(signal.SIGINT)
        return self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self.detach()
