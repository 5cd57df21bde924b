"""`make demo`: a node is started, fed, killed and asked again, before your eyes.

For: somebody who has just cloned the repository. Must not know: anything that a user could not; it types the commands
that a user would type, and shows them. The one idea: this repository's own history goes in, the node is killed without
warning, and what comes out is compared byte for byte. Any difference ends it with an exit code other than 0.

Everything happens in a temporary directory, which is removed at the end, also after Ctrl-C.
"""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import wire

REPOSITORY: Final = Path(__file__).resolve().parent.parent
# The programs beside this interpreter: those of the environment that `make venv` made.
PROGRAMS: Final = Path(sys.executable).parent
TOPIC: Final = "history"
# Any free port, so that a node of your own is not in the way.
START_COMMAND: Final = "logd --dev --listen 127.0.0.1:0"

# A node that takes longer to start or to stop has failed the demonstration.
START_SECONDS_MAX: Final = 30.0
STOP_SECONDS_MAX: Final = 30.0
# No single command of this takes long; one that hangs must not keep anybody waiting for ever.
COMMAND_SECONDS_MAX: Final = 300.0

# What a process's standard input or output is connected to.
Stream = IO[bytes] | int

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130


class DemoError(Exception):
    """The demonstration failed; the message says at what."""


# --- What is shown ----------------------------------------------------------------------------------------------------


class Screen:
    """What is printed: steps, commands as a user types them, and what came of them."""

    def __init__(self) -> None:
        self._is_coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._steps = 0

    def title(self, text: str) -> None:
        self._print(self._styled("1", text))

    def step(self, text: str) -> None:
        self._steps += 1
        self._print("")
        self._print(self._styled("1", f"{self._steps}. {text}"))

    def command(self, text: str) -> None:
        self._print("   " + self._styled("36", f"$ {text}"))

    def code(self, *lines: str) -> None:
        """Python, as it is typed into its prompt."""
        for line in lines:
            self._print("   " + self._styled("36", ("... " if line.startswith(" ") else ">>> ") + line))

    def told(self, text: str) -> None:
        """What a command said, or what is to be seen in it."""
        for line in text.rstrip("\n").splitlines():
            self._print("     " + line.rstrip())

    def good(self, text: str) -> None:
        self._print("   " + self._styled("32", f"✓ {text}"))

    def bad(self, text: str) -> None:
        self._print("   " + self._styled("31", f"✗ {text}"))

    def _styled(self, style: str, text: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if self._is_coloured else text

    def _print(self, text: str) -> None:
        print(text, flush=True)


# --- Processes --------------------------------------------------------------------------------------------------------


class Interrupts:
    """Ctrl-C and SIGTERM, held back while a process is being started: none may be running that nobody knows of."""

    def __init__(self) -> None:
        self._is_held = False
        self._came = False

    def install(self) -> None:
        """A `kill` of this script is met like Ctrl-C: what it made is cleaned up."""
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, _signal: int, _frame: object) -> None:
        self._came = True
        if not self._is_held:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """What comes meanwhile is raised at the end."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self._came:
            raise KeyboardInterrupt


# --- What goes in -----------------------------------------------------------------------------------------------------


def collect_history(path: Path, repository: Path = REPOSITORY) -> str:
    """Write this repository's history to `path`, or its README where there is none; return the command for it."""
    git = shutil.which("git")
    if git is not None:
        with path.open("wb") as file:
            arguments = ["log", "--reverse", "--patch", "--no-color", "--no-ext-diff", "--no-show-signature"]
            done = subprocess.run(
                [git, "--no-pager", *arguments],
                cwd=repository,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.DEVNULL,
                timeout=COMMAND_SECONDS_MAX,
                check=False,
            )
        if done.returncode == 0 and path.stat().st_size:
            return "git log --reverse --patch"
    # `consume` ends every record with a line's end, the last one too.
    path.write_bytes((repository / "README.md").read_bytes().rstrip(b"\n") + b"\n")
    return "cat README.md"


def digest_and_lines(path: Path) -> tuple[str, int]:
    """The SHA-256 of a file, and how many lines it has."""
    whole = hashlib.sha256()
    lines = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            whole.update(chunk)
            lines += chunk.count(b"\n")
    return whole.hexdigest(), lines


# --- The node and the commands ----------------------------------------------------------------------------------------


class Node:
    """The daemon, as `logd --dev` starts it, in a directory of its own."""

    def __init__(self, directory: Path, environment: dict[str, str], interrupts: Interrupts) -> None:
        self._directory = directory
        self._environment = environment
        self._interrupts = interrupts
        self._process: subprocess.Popen[bytes] | None = None
        self._log = directory / "logd.log"
        self.address = ""

    @property
    def process_id(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> float:
        """Start it; return after how many seconds it was ready. Raises DemoError with the end of its log."""
        begin = time.monotonic()
        program, *options = START_COMMAND.split()
        with self._log.open("wb") as log, self._interrupts.held():
            self._process = subprocess.Popen(
                [PROGRAMS / program, *options],
                cwd=self._directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for this script, which then stops the node by itself.
                start_new_session=True,
            )
        while time.monotonic() - begin < START_SECONDS_MAX:
            if self._process.poll() is not None:
                break
            self.address = self._ready_address()
            if self.address:
                return time.monotonic() - begin
            time.sleep(0.005)
        end = self._log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise DemoError(f"the node did not become ready; its log ends with\n{end}")

    def _ready_address(self) -> str:
        for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("ready address="):
                return line.partition("=")[2]
        return ""

    def kill(self) -> None:
        """SIGKILL: no warning, no last words."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> float:
        """SIGTERM; return after how many seconds it was gone. Raises DemoError for an exit code other than 0."""
        assert self._process is not None
        begin = time.monotonic()
        self._process.terminate()
        try:
            code = self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            raise DemoError(f"the node did not stop within {STOP_SECONDS_MAX:g} s") from None
        if code != 0:
            raise DemoError(f"the node ended with exit code {code}")
        return time.monotonic() - begin

    def end(self) -> None:
        """See that it is gone, whatever happened."""
        if self._process is not None and self._process.poll() is None:
            self.kill()


class Shell:
    """Runs `logctl` as a user would, and shows both sides of it."""

    def __init__(self, screen: Screen, directory: Path, environment: dict[str, str], interrupts: Interrupts) -> None:
        self._screen = screen
        self._directory = directory
        self._environment = environment
        self._interrupts = interrupts

    def logctl(
        self, words: str, *, source: Path | None = None, target: Path | None = None, shown: str | None = None
    ) -> None:
        """Run `logctl` with `words`; show the command (or `shown`) and what it told people. Raises DemoError.

        `source` and `target` are the files that its standard input and output are connected to.
        """
        self._screen.command(shown or f"logctl {words}")
        with contextlib.ExitStack() as stack:
            stdin: Stream = stack.enter_context(source.open("rb")) if source else subprocess.DEVNULL
            stdout: Stream = stack.enter_context(target.open("wb")) if target else subprocess.PIPE
            code, out, err = self._run([str(PROGRAMS / "logctl"), *words.split()], stdin, stdout)
        self._screen.told((out or b"").decode() + err.decode())
        if code != 0:
            raise DemoError(f"logctl {words} ended with exit code {code}")

    def _run(self, command: list[str], stdin: Stream, stdout: Stream) -> tuple[int, bytes | None, bytes]:
        process: subprocess.Popen[bytes] | None = None
        try:
            with self._interrupts.held():
                process = subprocess.Popen(
                    command,
                    cwd=self._directory,
                    env=self._environment,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=subprocess.PIPE,
                )
            out, err = process.communicate(timeout=COMMAND_SECONDS_MAX)
            return process.returncode, out, err
        finally:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()


def user_environment(directory: Path) -> dict[str, str]:
    """The environment, but for what would make the commands speak to a node of the user's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LOGD_", "LOGCTL_"))}
    return {**kept, "XDG_CONFIG_HOME": str(directory / "config")}


# --- The library ------------------------------------------------------------------------------------------------------


def certificates(directory: Path) -> wire.Tls:
    """Those that `logd --dev` made for its user."""
    return wire.Tls(
        ca=str(directory / "ca.crt"), certificate=str(directory / "user.crt"), key=str(directory / "user.key")
    )


def sign_off(screen: Screen, address: str, tls_directory: Path, value: bytes) -> tuple[int, str]:
    """Append one more record with the library; return its offset and the chain of its receipt."""
    screen.code(
        "with (wire.blocking.Client(address, tls=tls) as client,",
        f'      wire.blocking.Producer(client, "{TOPIC}") as producer):',
        "    receipt = producer.send(value).wait()",
    )
    tls = certificates(tls_directory)
    with (
        wire.blocking.Client(address, tls=tls) as client,
        wire.blocking.Producer(client, TOPIC) as producer,
    ):
        receipt = producer.send(value).wait()
    screen.told(f"offset {receipt.offset:,}, index {receipt.index}, term {receipt.term}, {receipt.durability}")
    screen.told(f"chain {receipt.chain.hex()}")
    return receipt.offset, receipt.chain.hex()


def chain_at(address: str, tls_directory: Path, offset: int) -> str:
    """The chain of the stored batch that holds `offset`, verified by the library."""
    import wire  # noqa: PLC0415

    tls = certificates(tls_directory)
    with (
        wire.blocking.Client(address, tls=tls) as client,
        wire.blocking.Consumer(client, TOPIC, partition=0, start=offset, follow=False) as consumer,
    ):
        for batch in consumer.batches():
            return batch.header.chain.hex()
    raise DemoError(f"nothing is stored at offset {offset}")


# --- The demonstration ------------------------------------------------------------------------------------------------


def demonstrate(screen: Screen, directory: Path, node: Node, shell: Shell) -> None:
    """All steps, in order. Raises DemoError at the first that does not hold."""
    sent, received = directory / "sent", directory / "received"
    tls_directory = directory / ".logd" / "tls"
    origin = collect_history(sent)
    _, lines = digest_and_lines(sent)

    screen.step("A node, with certificates that it makes itself")
    screen.command(START_COMMAND)
    seconds = node.start()
    screen.told(f"ready on {node.address} after {seconds:.2f} s; mutual TLS 1.3, data in ./.logd")

    screen.step("A topic, and this repository's history (or README), line by line")
    shell.logctl(f"topic create {TOPIC}")
    shell.logctl(f"produce {TOPIC}", source=sent, shown=f"{origin} | logctl produce {TOPIC}")

    screen.step("One more, from Python, and what the node says to it")
    value = f"end of the history: {lines:,} lines".encode()
    offset, chain = sign_off(screen, node.address, tls_directory, value)
    with sent.open("ab") as file:
        file.write(value + b"\n")
    if offset != lines:
        raise DemoError(f"{lines:,} records were produced before it, so its offset should be {lines:,}, not {offset:,}")

    screen.step("Everything above was acknowledged, so nothing may be lost now")
    screen.command(f"kill -9 {node.process_id}")
    node.kill()
    screen.command(START_COMMAND)
    seconds = node.start()
    screen.told(f"ready on {node.address} after {seconds:.2f} s")

    screen.step("What comes out is what went in")
    shell.logctl(f"consume {TOPIC}", target=received, shown=f"logctl consume {TOPIC} > received")
    compare(screen, sent, received)
    stored = chain_at(node.address, tls_directory, offset)
    if stored != chain:
        raise DemoError(f"the receipt's chain was {chain}, the log's is {stored}")
    screen.good(f"the log's last chain is the receipt's: {stored[:16]}… ties it to all {lines:,} records before it")

    screen.step("A clean stop, and the files read without a node")
    screen.command(f"kill -TERM {node.process_id}")
    seconds = node.stop()
    screen.told(f"stopped after {seconds:.2f} s, exit code 0")
    shell.logctl("segment verify .logd")


def compare(screen: Screen, sent: Path, received: Path) -> None:
    """Hold the two files against each other, byte for byte. Raises DemoError."""
    sent_digest, sent_lines = digest_and_lines(sent)
    received_digest, received_lines = digest_and_lines(received)
    screen.told(f"sent      {sent_lines:>10,} records  {sent.stat().st_size:>12,} bytes  SHA-256 {sent_digest[:16]}…")
    screen.told(
        f"received  {received_lines:>10,} records  {received.stat().st_size:>12,} bytes  "
        f"SHA-256 {received_digest[:16]}…"
    )
    if (sent_digest, sent_lines) != (received_digest, received_lines):
        raise DemoError("what was received differs from what was sent")
    screen.good("equal, byte for byte")


@contextlib.contextmanager
def temporary_directory() -> Iterator[Path]:
    """A directory that is gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="logd-demo-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def main() -> int:
    """Run it; return the exit code."""
    interrupts = Interrupts()
    interrupts.install()
    screen = Screen()
    begin = time.monotonic()
    try:
        with temporary_directory() as directory:
            environment = user_environment(directory)
            node = Node(directory, environment, interrupts)
            screen.title("logd: a log that proves what it promised")
            try:
                demonstrate(screen, directory, node, Shell(screen, directory, environment, interrupts))
            finally:
                node.end()
    except DemoError as error:
        screen.bad(str(error))
        return EXIT_FAILED
    except subprocess.TimeoutExpired as error:
        screen.bad(str(error))
        return EXIT_FAILED
    except BrokenPipeError:
        # Whoever was watching went away; what was made is cleaned up all the same.
        sys.stdout = None
        return EXIT_FAILED
    except KeyboardInterrupt:
        screen.bad("interrupted; the node is stopped and its data removed")
        return EXIT_INTERRUPTED
    screen.title(
        f"\nDone in {time.monotonic() - begin:.1f} s; nothing is left behind. Next: make run, and docs/quickstart.md"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
