"""The connection is put together field by field, the nearest source first."""

from pathlib import Path

import pytest

from logd.cli import contexts
from logd.cli.connection import Wanted, resolve
from logd.cli.contexts import Context
from logd.cli.errors import ConfigurationProblem, ContextNotFound


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    with contexts.changing(contexts.path_of(environment)) as cell:
        cell[0] = cell[0].added(Context("one", "one:1", "/ca1", "/crt1", "/key1", "c1"), use=True, force=False)
        cell[0] = cell[0].added(Context("two", "two:2", "/ca2", "/crt2", "/key2"), use=False, force=False)
    return environment


@pytest.fixture
def development(tmp_path: Path) -> str:
    tls = tmp_path / ".logd" / "tls"
    tls.mkdir(parents=True)
    (tls / "user.crt").touch()
    (tls / "address").write_text("127.0.0.1:1234\n")
    return str(tmp_path)


def test_the_current_context_is_used(environment: dict[str, str]) -> None:
    found = resolve(Wanted(), environment)
    assert found.servers == ("one:1",)
    assert (found.tls_ca, found.tls_certificate, found.tls_key, found.cluster_name) == ("/ca1", "/crt1", "/key1", "c1")
    assert "context one" in found.describe()


def test_a_named_context_goes_before_the_current_one(environment: dict[str, str]) -> None:
    found = resolve(Wanted(context="two"), environment)
    assert found.servers == ("two:2",)
    assert found.cluster_name is None


def test_a_flag_goes_over_one_field_of_the_context(environment: dict[str, str]) -> None:
    found = resolve(Wanted(server="x:9, y:8"), environment)
    assert found.servers == ("x:9", "y:8")
    assert found.tls_ca == "/ca1"
    assert found.origins["server"] == "as asked"


def test_an_unknown_context_is_told(environment: dict[str, str]) -> None:
    with pytest.raises(ContextNotFound):
        resolve(Wanted(context="three"), environment)


def test_the_development_node_of_the_directory_is_found(tmp_path: Path, development: str) -> None:
    found = resolve(Wanted(), {"XDG_CONFIG_HOME": str(tmp_path / "none")}, development)
    assert found.servers == ("127.0.0.1:1234",)
    assert found.tls_certificate.endswith(".logd/tls/user.crt")
    assert "development node" in found.describe()


def test_a_context_goes_before_the_development_node(environment: dict[str, str], development: str) -> None:
    assert resolve(Wanted(), environment, development).servers == ("one:1",)


def test_the_default_address_stands_in_where_none_is_told(tmp_path: Path, development: str) -> None:
    (Path(development) / ".logd" / "tls" / "address").unlink()
    found = resolve(Wanted(), {"XDG_CONFIG_HOME": str(tmp_path / "none")}, development)
    assert found.servers == ("127.0.0.1:7421",)
    assert found.origins["server"] == "the default"


def test_missing_certificates_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationProblem, match="--tls-certificate, --tls-key") as caught:
        resolve(Wanted(tls_ca="/ca"), {"XDG_CONFIG_HOME": str(tmp_path)}, str(tmp_path))
    assert "logctl context add" in caught.value.hint
