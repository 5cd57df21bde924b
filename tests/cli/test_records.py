"""Records go in and come out through the programs themselves, and stop as they promise when they are stopped."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

from tests.support.memory import measured, resident_bytes
from tests.support.reference_server import ReferenceServer, Silence
from tests.support.servers import running_reference
from wire.messages import Message, Produce

WAIT_SECONDS_MAX = 30.0
# Of the process, however large the file.
RESIDENT_BYTES_MAX = 200 << 20


class Node:
    """A reference server, and a way to call `logctl` against it."""

    def __init__(self, server: ReferenceServer, directory: Path) -> None:
        self.server = server
        self.directory = directory
        self.program = "from logd.cli.logctl import main; main()"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("LOGCTL_", "XDG_"))},
            "HOME": str(directory),
            "PYTHONWARNINGS": "error",
            "LOGCTL_SERVER": f"127.0.0.1:{server.port}",
        }

    def start(self, *words: str, **attributes: Any) -> subprocess.Popen[bytes]:
        program = [sys.executable, "-c", self.program]
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **attributes}
        return subprocess.Popen([*program, *words], cwd=self.directory, env=self.environment, **streams)

    def call(self, *words: str, given: bytes = b"") -> tuple[int, bytes, str]:
        process = self.start(*words)
        out, err = process.communicate(given, WAIT_SECONDS_MAX)
        return process.returncode, out, err.decode()

    def resident_bytes(self, *words: str, **streams: Any) -> int:
        """Call it; how much memory it had resident at most."""
        report = self.directory / "resident"
        command = measured([sys.executable, "-c", self.program, *words], report)
        subprocess.run(command, cwd=self.directory, env=self.environment, check=True, **streams)
        return resident_bytes(report)

    def topic(self, name: str, partitions: int = 1) -> str:
        code, _, err = self.call("topic", "create", name, "--partitions", str(partitions), "--quiet")
        assert code == 0, err
        return name


@pytest.fixture(scope="module")
def _portal_and_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    directory = tmp_path_factory.mktemp("node")
    with (
        start_blocking_portal("trio") as portal,
        portal.wrap_async_context_manager(running_reference(directory / ".logd" / "tls")) as server,
    ):
        yield Node(server, directory)


@pytest.fixture
def node(_portal_and_server: Node) -> Iterator[Node]:
    yield _portal_and_server
    _portal_and_server.server.interfere = lambda _message: None


def read_line(stream: Any, wanted: Callable[[str], bool]) -> str:
    for line in stream:
        text: str = line.decode()
        if wanted(text):
            return text
    raise AssertionError("the stream ended")


def summary_of(err: str) -> Sequence[str]:
    return err.splitlines()


def test_what_went_in_comes_out(node: Node) -> None:
    topic = node.topic("roundtrip")
    data = b"a\r\n\nc\xff\x00\n"
    assert node.call("produce", topic, given=data)[0] == 0
    assert node.call("consume", topic, "--quiet") == (0, data, "")


def test_a_summary_for_programs_counts_everything(node: Node) -> None:
    topic = node.topic("summary", 2)
    lines = b"".join(b"%d\n" % number for number in range(1000))
    code, out, err = node.call("produce", topic, "--output", "json", "--batch-records", "100", given=lines)
    summary = json.loads(out)
    assert (code, err) == (0, "")
    assert (summary["records"], summary["records_failed"], summary["records_unknown"]) == (1000, 0, 0)
    assert sum(each["records"] for each in summary["partitions"]) == 1000
    assert {each["next_offset"] - each["base_offset"] == each["records"] for each in summary["partitions"]} == {True}
    assert summary["durability"] == "quorum_fsync"
    assert summary["complete"] is True


def test_a_large_file_passes_in_bounded_memory(node: Node) -> None:
    topic = node.topic("large", 2)
    path = node.directory / "large"
    path.write_bytes(os.urandom(1 << 20) * 48)
    with path.open("rb") as stdin:
        produced = node.resident_bytes("produce", topic, "--format", "raw", "--quiet", stdin=stdin)
    with (node.directory / "again").open("wb") as stdout:
        consumed = node.resident_bytes("consume", topic, "--format", "raw", "--quiet", stdout=stdout)
    assert (node.directory / "again").read_bytes() == path.read_bytes()
    assert max(produced, consumed) < RESIDENT_BYTES_MAX


def test_json_of_one_topic_makes_the_same_topic_again(node: Node) -> None:
    first, second = node.topic("copy1", 3), node.topic("copy2", 3)
    lines = b"".join(b'{"value":"v%d","key":"k%d","headers":{"n":"%d"}}\n' % (n, n % 7, n) for n in range(100))
    assert node.call("produce", first, "--format", "json", given=lines)[0] == 0
    copied = node.call("consume", first, "--format", "json", "--quiet")[1]
    assert node.call("produce", second, "--format", "json", given=copied)[0] == 0
    again = node.call("consume", second, "--format", "json", "--quiet")[1]
    assert sorted(again.splitlines()) == sorted(copied.splitlines())


def test_ctrl_c_ends_reading_and_keeps_what_was_accepted(node: Node) -> None:
    topic = node.topic("interrupted")
    produce = node.start("produce", topic, "--output", "json")
    assert produce.stdin is not None
    produce.stdin.write(b"accepted\n")
    produce.stdin.flush()
    assert node.call("consume", topic, "--follow", "--count", "1", "--quiet")[1] == b"accepted\n"
    produce.send_signal(signal.SIGINT)
    # The input is still open: only the signal can end it.
    assert produce.wait(WAIT_SECONDS_MAX) == 130
    out, err = produce.communicate()
    assert (json.loads(out)["records"], json.loads(out)["complete"]) == (1, False)
    assert json.loads(err)["error"]["code"] == "Interrupted"


def test_a_second_ctrl_c_abandons_what_is_not_acknowledged(node: Node) -> None:
    topic = node.topic("abandoned")
    arrived = threading.Event()

    def keep_silent(message: Message) -> None:
        if isinstance(message, Produce):
            arrived.set()
            raise Silence

    node.server.interfere = keep_silent
    produce = node.start("produce", topic)
    assert produce.stdin is not None
    produce.stdin.write(b"one\n")
    produce.stdin.flush()
    assert arrived.wait(WAIT_SECONDS_MAX)
    produce.send_signal(signal.SIGINT)
    assert "1 record to be acknowledged" in read_line(produce.stderr, lambda line: "Ctrl-C again" in line)
    produce.send_signal(signal.SIGINT)
    assert produce.wait(WAIT_SECONDS_MAX) == 130
    err = produce.communicate()[1].decode()
    assert "1 record abandoned: they may be in the log or not" in err
    assert "Traceback" not in err


def test_sigterm_ends_a_command_as_ctrl_c_does(node: Node) -> None:
    topic = node.topic("terminated")
    node.call("produce", topic, "--value", "x")
    consume = node.start("consume", topic, "--follow")
    assert consume.stdout is not None
    assert consume.stdout.readline() == b"x\n"
    consume.send_signal(signal.SIGTERM)
    assert consume.wait(WAIT_SECONDS_MAX) == 143
    assert "next offset 1" in consume.communicate()[1].decode()


def test_ctrl_c_ends_waiting_with_a_summary(node: Node) -> None:
    topic = node.topic("waiting")
    node.call("produce", topic, "--value", "x")
    consume = node.start("consume", topic, "--follow")
    assert consume.stdout is not None
    assert consume.stdout.readline() == b"x\n"
    consume.send_signal(signal.SIGINT)
    assert consume.wait(WAIT_SECONDS_MAX) == 130
    err = consume.communicate()[1].decode()
    assert "consumed 1 record of waiting" in err
    assert err.endswith("logctl: interrupted\n")


def wait_full(process: subprocess.Popen[bytes]) -> None:
    """Return when nothing more goes into the pipe that the process prints to."""
    assert process.stdout is not None
    descriptor = os.open(f"/proc/self/fd/{process.stdout.fileno()}", os.O_WRONLY | os.O_NONBLOCK)
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    try:
        while select.select((), (descriptor,), (), 0)[1]:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        os.close(descriptor)


# More than a pipe holds, less than may wait behind it: reading ends while printing hangs.
BLOCKING_LINES = [b"%099d" % number for number in range(30_000)]


def topic_that_blocks(node: Node, name: str) -> str:
    if name not in node.server.topics:
        given = b"".join(line + b"\n" for line in BLOCKING_LINES)
        assert node.call("produce", node.topic(name), "--batch-records", "500", given=given)[0] == 0
    return name


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("words", [(), ("--follow",)])
def test_a_stop_does_not_wait_for_a_reader_that_reads_nothing(
    node: Node, words: Sequence[str], number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = topic_that_blocks(node, "blocked")
    settings = "import logd.cli.consume as c; c.STOP_SECONDS_MAX = c.STOP_NOTE_SECONDS = 0.05; "
    monkeypatch.setattr(node, "program", settings + node.program)
    consume = node.start("consume", topic, "--output", "json", "--format", "lines", *words)
    wait_full(consume)
    consume.send_signal(number)
    assert consume.wait(WAIT_SECONDS_MAX) == code
    out, err = consume.communicate()
    summary, error = (json.loads(line) for line in err.splitlines()[-2:])
    assert error["error"]["code"] in ("Interrupted", "Terminated")
    # What is counted is what is in the pipe, to the byte; the place to go on is behind the last whole batch of it.
    assert summary["bytes"] == len(out)
    assert summary["complete"] is False
    assert out == b"".join(line + b"\n" for line in BLOCKING_LINES)[: len(out)]
    next_offset = summary["partitions"][0]["next_offset"]
    assert next_offset == summary["records"]
    assert len(out) // 100 - 500 < next_offset <= len(out) // 100


def test_a_second_ctrl_c_gives_up_a_reader_that_reads_nothing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = topic_that_blocks(node, "blocked")
    monkeypatch.setattr(node, "program", "import logd.cli.consume as c; c.STOP_NOTE_SECONDS = 0; " + node.program)
    consume = node.start("consume", topic, "--follow")
    wait_full(consume)
    consume.send_signal(signal.SIGINT)
    assert read_line(consume.stderr, lambda line: "Ctrl-C again gives it up" in line)
    consume.send_signal(signal.SIGINT)
    assert consume.wait(WAIT_SECONDS_MAX) == 130
    err = consume.communicate()[1].decode().splitlines()
    assert err[0].startswith("consumed ")
    assert err[1].startswith("  partition 0: next offset ")
    assert err[2].startswith("  the output did not take ")
    assert err[3:] == ["logctl: interrupted"]


def test_a_reader_that_takes_its_time_gets_everything(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = topic_that_blocks(node, "blocked")
    monkeypatch.setattr(node, "program", "import logd.cli.consume as c; c.STOP_SECONDS_MAX = 0; " + node.program)
    consume = node.start("consume", topic, "--quiet")
    wait_full(consume)
    out, err = consume.communicate(timeout=WAIT_SECONDS_MAX)
    assert (consume.returncode, err) == (0, b"")
    assert out.splitlines() == BLOCKING_LINES


def test_a_reader_that_goes_away_is_no_reason_for_words(node: Node) -> None:
    topic = node.topic("pipe")
    node.call("produce", topic, given=b"x" * 99 + b"\n" + b"y\n" * 500_000)
    with node.start("consume", topic) as consume:
        assert consume.stdout is not None
        assert consume.stderr is not None
        consume.stdout.readline()
        consume.stdout.close()
        assert consume.wait(WAIT_SECONDS_MAX) == 141
        assert consume.stderr.read() == b""


def test_a_reader_that_goes_away_is_noticed_while_there_is_nothing_to_print(node: Node) -> None:
    topic = node.topic("idle")
    with node.start("consume", topic, "--follow") as consume:
        assert consume.stdout is not None
        consume.stdout.close()
        assert consume.wait(WAIT_SECONDS_MAX) == 141


def test_wrong_input_stops_after_what_stood_before_it(node: Node) -> None:
    topic = node.topic("wrong")
    code, _, err = node.call("produce", topic, "--format", "json", given=b'{"value":"a"}\n{"value":"b"}\nnonsense\n')
    assert code == 9
    assert "produced 2 records" in err
    assert "standard input: line 3: not a JSON object" in err
    assert node.call("consume", topic, "--quiet")[1] == b"a\nb\n"


def test_all_pieces_of_one_file_go_to_one_partition(node: Node) -> None:
    topic = node.topic("pieces", 8)
    code, out, _ = node.call("produce", topic, "-f", "raw", "--record-bytes", "10", "-o", "json", given=b"z" * 1000)
    assert code == 0
    assert [each["records"] for each in json.loads(out)["partitions"]] == [100]


def test_a_key_decides_the_partition(node: Node) -> None:
    topic = node.topic("keyed", 4)
    lines = b"".join(b"key-%d=v%d\n" % (number % 20, number) for number in range(400))
    assert node.call("produce", topic, "--key-separator", "=", "--batch-records", "10", given=lines)[0] == 0
    printed = node.call("consume", topic, "--format", "%k %p", "--quiet")[1].split(b"\n")[:-1]
    assert len(printed) == 400
    assert len({line.split()[0] for line in printed}) == len(set(printed)) == 20


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--count", "2"], b"0\n1\n"),
        (["--from", "7"], b"7\n8\n9\n"),
        (["--from", "-2"], b"8\n9\n"),
        (["--from", "-99", "--until", "1"], b"0\n"),
        (["--from", "end"], b""),
        (["--from", "3", "--until", "5"], b"3\n4\n"),
        (["--from", "5", "--until", "3"], b""),
        (["--until", "end", "--follow", "--from", "8"], b"8\n9\n"),
        (["--until", "4", "--follow"], b"0\n1\n2\n3\n"),
        (["--until", "-1h", "--follow"], b""),
        (["--until", "+300ms", "--follow", "--from", "9"], b"9\n"),
        (["--from", "@0", "--count", "1"], b"0\n"),
        (["--from", "+1h"], b""),
    ],
)
def test_a_part_of_a_topic(node: Node, words: list[str], expected: bytes) -> None:
    topic = "part"
    if topic not in node.server.topics:
        node.topic(topic)
        node.call("produce", topic, "--batch-records", "4", given=b"".join(b"%d\n" % n for n in range(10)))
    assert node.call("consume", topic, "--quiet", *words) == (0, expected, "")


@pytest.mark.parametrize(
    "words", [["--from", "-1"], ["--from", "2"], ["--from", "1", "--until", "3"], ["--until", "2"]]
)
def test_a_part_of_every_partition(node: Node, words: list[str]) -> None:
    topic = "parts"
    if topic not in node.server.topics:
        node.topic(topic, 2)
        for partition in ("0", "1"):
            node.call("produce", topic, "--partition", partition, given=b"a\nb\nc\n")
    code, out, err = node.call("consume", topic, "--quiet", "--format", "%o", *words)
    assert (code, err) == (0, "")
    wanted = {"-1": [2], "2": [2], "1": [1, 2]}.get(words[1] if words[0] == "--from" else "", [0, 1])
    assert sorted(map(int, out.split())) == sorted(wanted * 2)


def test_a_key_may_end_with_a_tabulator(node: Node) -> None:
    topic = node.topic("tabulated")
    assert node.call("produce", topic, "--key-separator", "\\t", given=b"k\tv\n")[0] == 0
    assert node.call("consume", topic, "--format", "%k=%v", "--quiet")[1] == b"k=v\n"


@pytest.mark.parametrize("words", [("consume",), ("produce", "--value", "x")])
def test_a_partition_that_is_not_there_is_told_with_what_to_do(node: Node, words: Sequence[str]) -> None:
    topic = "narrow"
    if topic not in node.server.topics:
        node.topic(topic)
    code, out, err = node.call(words[0], topic, "--partition", "7", *words[1:])
    assert (code, out) == (3, b"")
    assert err.splitlines()[-2:] == [
        "logctl: topic narrow has no partition 7, only 1 partition, counted from 0",
        "  `logctl topic describe narrow` shows its partitions, `logctl topic alter narrow --partitions N` adds some",
    ]


def test_a_node_that_does_not_answer_is_told(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = node.topic("stalled")

    def keep_silent(message: Message) -> None:
        if isinstance(message, Produce):
            raise Silence

    node.server.interfere = keep_silent
    program = "import logd.cli.produce as p; p.STALL_SECONDS = 0.1; from logd.cli.logctl import main; main()"
    monkeypatch.setattr(node, "program", program)
    produce = node.start("produce", topic, "--value", "x")
    assert "1 record waiting; trying on" in read_line(produce.stderr, lambda line: "no acknowledgement" in line)
    produce.kill()
    produce.communicate()


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_streams_that_are_closed_are_no_defect(node: Node, closed: str) -> None:
    code = f"{sys.executable} -c 'from logd.cli.logctl import main; main()' topic list {closed}"
    done = subprocess.run(
        ["sh", "-c", code], cwd=node.directory, env=node.environment, capture_output=True, check=False
    )
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("server", ["a:b", "127.0.0.1:0", "x y", ","])
def test_what_is_no_address_is_told(node: Node, server: str) -> None:
    code, _, err = node.call("ping", "--server", server)
    assert code == 78
    assert "--server HOST[:PORT]" in err


def test_no_node_is_an_error_of_its_own(node: Node) -> None:
    code, out, err = node.call("topic", "list", "--server", "127.0.0.1:1", "--timeout", "300ms")
    assert (code, out) == (6, b"")
    assert err.startswith("logctl: no connection to 127.0.0.1:1 within 0.3 s\n")


def test_a_file_that_is_no_certificate_is_refused(node: Node) -> None:
    (node.directory / "nonsense.crt").write_text("nonsense")
    code, _, err = node.call("ping", "--tls-ca", "nonsense.crt")
    assert code == 5
    assert "nonsense.crt: no CA certificate" in err


def test_a_wrong_cluster_is_refused(node: Node) -> None:
    code, _, err = node.call("ping", "--cluster-name", "other")
    assert code == 5
    assert "not to 'other'" in err


def test_topics_complete(node: Node) -> None:
    node.topic("completable")
    process = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv = ['logctl']; from logd.cli.logctl import main; main()"],
        cwd=node.directory,
        env={
            **node.environment,
            "_LOGCTL_COMPLETE": "bash_complete",
            "COMP_WORDS": f"logctl consume --server 127.0.0.1:{node.server.port} completa",
            "COMP_CWORD": "4",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.stdout, process.stderr) == ("plain,completable\n", "")
