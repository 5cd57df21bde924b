"""Starts that must not happen: one line that says why, the documented exit code, and nothing touched."""

import datetime as dt
import hashlib
import resource
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from logd.cli.exits import Exit
from logd.security import ca
from logd.security.identity import Identity, Kind
from logd.store.format import FORMAT_VERSION, decode_node, encode_node
from tests.e2e.hostile import development_authority, issue
from tests.e2e.ledger import Ledger, batch_of
from tests.support.daemon import SMALL, LogdProcess


async def live(node: LogdProcess) -> None:
    async with node.client() as client:
        ledger = Ledger()
        await ledger.create(client, "life", 2)
        await ledger.produce(client, "life", 0, batch_of("life", 0))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> LogdProcess:
    """A node that has lived, and was stopped."""

    with LogdProcess(tmp_path_factory.mktemp("stopped"), SMALL) as node:
        node.start()
        trio.run(live, node)
        node.stop()
    return node


@pytest.fixture
def node(stopped: LogdProcess, tmp_path: Path) -> Iterator[LogdProcess]:
    """The same node in a place where it may be spoiled; its certificates are made and in order."""
    shutil.copytree(stopped.data, tmp_path / "data")
    with LogdProcess(tmp_path, SMALL) as node:
        yield node


def digests(directory: Path) -> dict[str, str]:
    """What is in a directory, every byte of it; a lock may be made, it is empty."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.name in ("LOCK", ".lock"):
            assert not path.stat().st_size
        else:
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "directory"
            found[str(path.relative_to(directory))] = content
    return found


def check_refused(node: LogdProcess, code: Exit, *words: str) -> None:
    """It ends with this code; what it says of the reason is one line, and perhaps one more that says what to do."""
    before = digests(node.data)
    found, said = node.run_to_end()
    lines = said.splitlines()
    assert found == code, said
    assert lines[0].startswith("logd: ") and all(word in said for word in words), said  # noqa: PT018
    assert all(line.startswith("  ") for line in lines[1:]) and len(lines) <= 3, said  # noqa: PT018
    node.check_log()
    assert digests(node.data) == before


def test_two_processes_never_share_a_directory(node: LogdProcess, tmp_path: Path) -> None:
    node.start()
    with LogdProcess(tmp_path / "second", SMALL) as second:
        second.data = node.data
        second.directory.mkdir()
        code, said = second.run_to_end()
        assert code == Exit.RETRIABLE
        assert said.startswith("logd: ") and "in use by another process" in said  # noqa: PT018
        second.check_log()
    node.stop()
    node.check_log()


def test_a_start_raises_the_limit_of_descriptors_and_says_so_once(tmp_path: Path) -> None:
    shell = ["bash", "-c", 'ulimit -Sn 256 && ulimit -Hn 2000 && exec "$@"', "bash"]
    with LogdProcess(tmp_path, SMALL, prefix=shell) as node:
        node.start()
        assert resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE) == (2000, 2000)
        raised = node.events("descriptor_limit_raised")
        assert [(event["before"], event["limit"]) for event in raised] == [(256, 2000)]
        node.stop()


def test_the_directory_of_another_node_is_refused(node: LogdProcess) -> None:
    authority = development_authority(node.tls_directory)
    files = issue(authority, Identity("logd", Kind.NODE, "another"), node.directory)
    node.arguments = ["--node-name", "another", "--tls-certificate", files.certificate, "--tls-key", files.key]
    check_refused(node, Exit.CONFIGURATION, "logd-0", "another")


def test_a_directory_of_a_newer_format_is_refused(node: LogdProcess) -> None:
    path = node.data / "node.json"
    tomorrow = decode_node(path.read_bytes())._replace(format_version=FORMAT_VERSION + 1)
    path.write_bytes(encode_node(tomorrow))
    check_refused(node, Exit.CONFIGURATION, f"format {FORMAT_VERSION + 1}")


def test_a_directory_that_is_no_nodes_is_refused(tmp_path: Path) -> None:
    with LogdProcess(tmp_path, SMALL) as node:
        (node.data / "photographs").mkdir(parents=True)
        (node.data / "photographs" / "holidays").write_bytes(b"precious")
        ca.ensure_development_certificates(str(node.tls_directory), "logd", "logd-0", ["127.0.0.1"])
        check_refused(node, Exit.CONFIGURATION, "photographs")


def test_half_a_directory_is_refused(node: LogdProcess) -> None:
    (node.data / "node.json").unlink()
    check_refused(node, Exit.CONFIGURATION, "node.json")


def test_a_damaged_node_file_is_refused(node: LogdProcess) -> None:
    path = node.data / "node.json"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    check_refused(node, Exit.CONFIGURATION, "node.json")


def test_a_missing_journal_is_refused(node: LogdProcess) -> None:
    shutil.rmtree(node.data / "journal")
    check_refused(node, Exit.CONFIGURATION, "journal")


def test_an_address_in_use_is_refused(node: LogdProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupant:
        node.port = occupant.getsockname()[1]
        check_refused(node, Exit.RETRIABLE, "cannot listen", f"127.0.0.1:{node.port}")


# What else can be wrong with a setting is claimed in tests/config; here, that nothing is touched.
WRONG = {
    "no-such-certificate": (["--tls-certificate", "/nowhere/node.crt"], "/nowhere/node.crt"),
    "no-such-ca": (["--tls-ca", "/nowhere/ca.crt"], "/nowhere/ca.crt"),
    "a-wrong-value": (["--set", "store.segment_bytes_max=fast"], "store.segment_bytes_max"),
    "no-such-file": (["--config", "/nowhere/logd.toml"], "/nowhere/logd.toml"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_configuration_is_refused(name: str, node: LogdProcess) -> None:
    node.arguments, word = WRONG[name][0], WRONG[name][1]
    check_refused(node, Exit.CONFIGURATION, word)


def test_certificates_of_another_cluster_are_refused(node: LogdProcess) -> None:
    foreign = ca.create_authority("orchard", dt.datetime.now(dt.UTC))
    ca.write_certificate(str(node.directory / "ca.crt"), foreign.certificate)
    files = issue(foreign, Identity("orchard", Kind.NODE, "logd-0"), node.directory)
    node.arguments = ["--tls-ca", str(node.directory / "ca.crt")]
    node.arguments += ["--tls-certificate", files.certificate, "--tls-key", files.key]
    check_refused(node, Exit.CONFIGURATION, "orchard")


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    with LogdProcess(tmp_path / "node", SMALL) as node:
        node.data = tmp_path / "file" / "data"
        code, said = node.run_to_end()
        assert code == Exit.CONFIGURATION
        assert str(node.data) in said
        node.check_log()
