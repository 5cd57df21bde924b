"""The daemon's command line: settings from everywhere, everything wrong at once, nothing started by a check."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from logd import __version__
from logd.cli.logd import command, translate, wanted_descriptors
from logd.cli.runner import run
from logd.security.ca import ensure_development_certificates
from logd.security.tls import SecurityError


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("LOGD_"):
            monkeypatch.delenv(name)


def test_a_development_configuration_needs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "logd", ["--dev", "--check-config"]) == 0
    assert capsys.readouterr().out == "ok\n"
    # A check makes nothing.
    assert os.listdir() == []


def test_a_check_lists_every_setting_with_its_origin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGD_LOG_LEVEL", "debug")
    words = ["--dev", "--check-config", "--output", "json", "--listen", "127.0.0.1:0", "--data-dir", "there"]
    assert run(command, "logd", [*words, "--set", "store.segment_bytes_max=2MiB"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings["listen.client"] == {"value": "127.0.0.1:0", "origin": "--listen"}
    assert settings["store.segment_bytes_max"] == {"value": "2MiB", "origin": "--set"}
    assert settings["log.level"] == {"value": "debug", "origin": "LOGD_LOG_LEVEL"}
    assert settings["node.data_dir"] == {"value": "there", "origin": "--data-dir"}
    assert settings["tls.ca"] == {"value": "there/tls/ca.crt", "origin": "--dev"}


def test_the_environment_moves_a_development_directory_with_its_certificates(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGD_NODE_DATA_DIR", "elsewhere")
    assert run(command, "logd", ["--dev", "--check-config", "--output", "json"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings["tls.key"]["value"] == "elsewhere/tls/node.key"


def test_everything_wrong_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    Path("logd.toml").write_text("[store]\nsegment_bytes_mx = 5\n[listen]\nclient = 'x'\n")
    assert run(command, "logd", ["--dev", "--config", "logd.toml", "--set", "log.level=loud", "--check-config"]) == 78
    printed = capsys.readouterr().err
    assert printed.startswith("logd: the configuration has 3 problems:\n")
    assert "store.segment_bytes_mx: unknown key; did you mean store.segment_bytes_max?" in printed
    assert "listen.client: expected host:port" in printed
    assert "log.level: expected one of" in printed
    assert "(from --set)" in printed


def test_a_check_refuses_the_files_that_a_start_would_refuse() -> None:
    ensure_development_certificates("tls", "logd", "logd-7", ["127.0.0.1"])
    Path("logd.toml").write_text(
        "[node]\ndata_dir = 'data'\n[tls]\nca = 'tls/ca.crt'\ncertificate = 'tls/node.crt'\nkey = 'tls/node.key'\n"
    )
    for words in ([], ["--check-config"]):
        started = [sys.executable, "-m", "logd", "--config", "logd.toml", *words]
        ended = subprocess.run(started, capture_output=True, text=True, check=False)
        printed = ended.stderr.splitlines()
        assert (ended.returncode, printed[0]) == (78, "logd: the configuration has 1 problem:")
        assert printed[1].startswith("  node.name: logd-0 (the default), but the certificate names the node logd-7: ")
    assert run(command, "logd", ["--config", "logd.toml", "--check-config", "--node-name", "logd-7"]) == 0
    assert sorted(os.listdir()) == ["logd.toml", "tls"]


def test_a_check_looks_at_files_given_to_a_development_node(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dev", "--check-config", "--tls-ca", "gone.crt"]
    assert run(command, "logd", words, translate=translate) == 78
    assert "tls.ca: gone.crt: cannot be read" in capsys.readouterr().err


def test_problems_are_a_list_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "logd", ["--output", "json"]) == 78
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["code"] == "Configuration"
    assert len(error["details"]["problems"]) == 4


def test_a_missing_file_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "logd", ["--config", "gone.toml", "--dev"]) == 78
    assert "gone.toml: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("soft", "hard", "wanted"),
    [
        (1024, 4096, 4096),
        (1024, 1 << 20, 65_536),
        (1024, -1, 65_536),
        (1024, 1024, 1024),
        (1 << 20, 1 << 20, 1 << 20),
        (-1, -1, -1),
    ],
)
def test_a_node_takes_the_descriptors_that_it_is_granted(soft: int, hard: int, wanted: int) -> None:
    assert wanted_descriptors(soft, hard) == wanted


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "logd", ["--version"]) == 0
    assert capsys.readouterr().out == f"logd {__version__}\n"


def test_wrong_certificate_files_are_a_configuration_error() -> None:
    error = translate(SecurityError("ca.crt: not there"))
    assert error is not None
    assert (error.code, str(error)) == ("Configuration", "ca.crt: not there")
    assert translate(ValueError()) is None


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from logd.cli.logd import command\n"
        "from logd.cli.runner import run\n"
        "assert run(command, 'logd', ['--help']) == 0\n"
        "heavy = ('trio', 'anyio', 'rich', 'zstandard', 'logd.node', 'logd.config', 'cryptography', 'structlog')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_the_module_can_be_run() -> None:
    done = subprocess.run([sys.executable, "-m", "logd", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"logd {__version__}\n")
