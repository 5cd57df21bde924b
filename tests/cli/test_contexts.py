"""Contexts are kept in one private file that is replaced whole, and a wrong file is told, never guessed at."""

import os
import stat
import threading
from pathlib import Path

import pytest

from logd.cli import contexts
from logd.cli.contexts import Context, Contexts
from logd.cli.errors import ConfigurationProblem, ContextExists, ContextNotFound, FileFailed


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "config" / "logd" / "contexts.toml")


FULL = Context("dev", "a:1,b:2", "/ca", "/crt", "/key", "cluster")


def add(path: str, context: Context, *, use: bool = False, force: bool = False) -> None:
    with contexts.changing(path) as cell:
        cell[0] = cell[0].added(context, use=use, force=force)


def test_no_file_is_no_contexts(path: str) -> None:
    assert contexts.load(path) == Contexts()


def test_what_is_written_is_read_back(path: str) -> None:
    add(path, FULL)
    add(path, Context("odd.name", 'quo"te\\ \n\t\x7f ü'))
    found = contexts.load(path)
    assert found.contexts["dev"] == FULL
    assert found.contexts["odd.name"].server == 'quo"te\\ \n\t\x7f ü'


def test_the_file_is_the_users_alone(path: str) -> None:
    add(path, FULL)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    assert os.listdir(os.path.dirname(path)) == ["contexts.toml"]


def test_the_first_context_is_the_current_one(path: str) -> None:
    add(path, FULL)
    add(path, Context("other"))
    assert contexts.load(path).current == "dev"


def test_a_context_is_used_when_asked(path: str) -> None:
    add(path, FULL)
    add(path, Context("other"), use=True)
    assert contexts.load(path).current == "other"


def test_an_existing_context_is_kept_unless_forced(path: str) -> None:
    add(path, FULL)
    with pytest.raises(ContextExists):
        add(path, Context("dev"))
    assert contexts.load(path).contexts["dev"] == FULL
    add(path, Context("dev", "new:1"), force=True)
    assert contexts.load(path).contexts["dev"].server == "new:1"


def test_removing_the_current_context_leaves_none_in_use(path: str) -> None:
    add(path, FULL)
    with contexts.changing(path) as cell:
        cell[0] = cell[0].removed("dev")
    assert contexts.load(path) == Contexts()


def test_an_unknown_context_is_told_with_those_there_are() -> None:
    known = Contexts("dev", {"dev": FULL})
    with pytest.raises(ContextNotFound) as caught:
        known.used("prod")
    assert caught.value.hint == "there are: dev"


def test_contexts_have_a_bound() -> None:
    full = Contexts("", {f"c{number}": Context(f"c{number}") for number in range(contexts.CONTEXTS_MAX)})
    with pytest.raises(ConfigurationProblem, match="remove one first"):
        full.added(FULL, use=False, force=False)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("current = ", "not valid TOML"),
        ("current = 5", "expected `current"),
        ("contexts = 5", "expected `current"),
        ('current = "gone"', "there is no context 'gone'"),
        ("[contexts.dev]\nservers = 'x'", "contexts.dev.servers: unknown key"),
        ("[contexts.dev]\nserver = 5", "contexts.dev.server: expected text"),
        ("[contexts]\ndev = 5", "contexts.dev: not a context"),
        ("[contexts.'a b']", "contexts.a b: not a context"),
        ("x = " + "[" * 10_000, "not valid TOML"),
        ("#" * (1 << 21), "longer than"),
    ],
)
def test_a_wrong_file_is_told(path: str, text: str, problem: str) -> None:
    os.makedirs(os.path.dirname(path))
    Path(path).write_text(text)
    with pytest.raises(ConfigurationProblem, match=problem) as caught:
        contexts.load(path)
    assert path in str(caught.value)


def test_a_file_that_is_no_text_is_told(path: str) -> None:
    os.makedirs(os.path.dirname(path))
    Path(path).write_bytes(b"\xff")
    with pytest.raises(ConfigurationProblem, match="not valid TOML"):
        contexts.load(path)


def test_a_directory_in_the_files_place_is_told(path: str) -> None:
    os.makedirs(path)
    with pytest.raises(FileFailed, match="directory"):
        contexts.load(path)


def test_an_error_while_changing_leaves_the_file_as_it_was(path: str) -> None:
    add(path, FULL)
    before = Path(path).read_bytes()

    def fail() -> None:
        with contexts.changing(path) as cell:
            cell[0] = cell[0].removed("dev")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert Path(path).read_bytes() == before


def test_a_link_stays_a_link(path: str, tmp_path: Path) -> None:
    os.makedirs(os.path.dirname(path))
    real = tmp_path / "dotfiles.toml"
    real.write_text("")
    os.symlink(real, path)
    add(path, FULL)
    assert os.path.islink(path)
    assert contexts.load(str(real)).contexts["dev"] == FULL


def test_two_who_add_at_once_both_succeed(path: str) -> None:
    threads = [threading.Thread(target=add, args=(path, Context(f"c{number}"))) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(contexts.load(path).contexts) == [f"c{number}" for number in range(8)]


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("dev", True), ("a.b-c_d", True), ("9", True), ("", False), ("-x", False), ("a/b", False), ("a" * 64, False)],
)
def test_names_of_contexts(name: str, is_one: bool) -> None:
    assert contexts.is_context_name(name) is is_one


def test_the_file_is_found_as_the_xdg_specification_says() -> None:
    home = os.path.expanduser("~")
    assert contexts.path_of({"XDG_CONFIG_HOME": "/x"}) == "/x/logd/contexts.toml"
    assert contexts.path_of({}) == f"{home}/.config/logd/contexts.toml"
    assert contexts.path_of({"XDG_CONFIG_HOME": "relative"}) == f"{home}/.config/logd/contexts.toml"
