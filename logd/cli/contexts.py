"""Named contexts: where a cluster is and who one is there, kept out of every command line.

For: `logctl context` and whoever resolves a connection. Must not know: the network. The one idea: one small TOML file
of the user, replaced whole and atomically, readable by nobody else.
"""

import contextlib
import fcntl
import json
import os
import re
import secrets
import stat
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from logd.cli.errors import ConfigurationProblem, ContextExists, ContextNotFound, file_error

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
# A file of this kind is written by `logctl`; one above this was not meant to be one.
_FILE_BYTES_MAX: Final = 1 << 20
CONTEXTS_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Context:
    """One cluster as one user sees it. Every field but the name may be empty."""

    name: str
    # Addresses, separated by commas.
    server: str = ""
    # Absolute paths of PEM files.
    tls_ca: str = ""
    tls_certificate: str = ""
    tls_key: str = ""
    # The cluster that the node's certificate must name; empty for any.
    cluster_name: str = ""

    def settings(self) -> dict[str, str]:
        """What is set, by its name in the file."""
        return {item.name: value for item in fields(self)[1:] if (value := getattr(self, item.name))}


@dataclass(frozen=True, slots=True)
class Contexts:
    """The content of the file. Invariant: `current` is empty or one of the names."""

    current: str = ""
    contexts: Mapping[str, Context] = field(default_factory=dict)

    def get(self, name: str) -> Context:
        """The context of this name. Raises ContextNotFound, which names those that there are."""
        found = self.contexts.get(name)
        if found is None:
            known = ", ".join(sorted(self.contexts))
            hint = f"there are: {known}" if known else "`logctl context add` makes one"
            raise ContextNotFound(f"no context is called {name!r}", {"context": name}, hint=hint)
        return found

    def added(self, context: Context, *, use: bool, force: bool) -> "Contexts":
        """With one more; it becomes the current one if asked, or if it is the only one. Raises ContextExists."""
        if context.name in self.contexts and not force:
            raise ContextExists(
                f"there is a context {context.name!r} already",
                {"context": context.name},
                hint="--force replaces it",
            )
        contexts = {**self.contexts, context.name: context}
        if len(contexts) > CONTEXTS_MAX:
            raise ConfigurationProblem(f"there are {CONTEXTS_MAX} contexts already; remove one first")
        current = context.name if use or len(contexts) == 1 else self.current
        return replace(self, current=current, contexts=contexts)

    def used(self, name: str) -> "Contexts":
        """With this one as the current one. Raises ContextNotFound."""
        return replace(self, current=self.get(name).name)

    def removed(self, name: str) -> "Contexts":
        """Without this one; if it was the current one, there is none afterwards. Raises ContextNotFound."""
        self.get(name)
        contexts = {other: context for other, context in self.contexts.items() if other != name}
        return replace(self, current="" if self.current == name else self.current, contexts=contexts)


def is_context_name(name: str) -> bool:
    """Whether a context may be called so: letters, digits, `.`, `_`, `-`; at most 63; a letter or digit first."""
    return _NAME.fullmatch(name) is not None


def path_of(environment: Mapping[str, str]) -> str:
    """Where the file is: `$XDG_CONFIG_HOME/logd/contexts.toml`, or under `~/.config`."""
    base = environment.get("XDG_CONFIG_HOME", "")
    # The specification says that a relative path there is to be ignored.
    if not os.path.isabs(base):
        base = os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(base, "logd", "contexts.toml")


def load(path: str) -> Contexts:
    """Read the file; no file is no contexts. Raises ConfigurationProblem or FileFailed."""
    try:
        with open(path, "rb") as file:
            content = file.read(_FILE_BYTES_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        return Contexts()
    except OSError as error:
        raise file_error(error, path) from error
    if len(content) > _FILE_BYTES_MAX:
        raise _wrong(path, f"longer than {_FILE_BYTES_MAX} bytes")
    try:
        document = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise _wrong(path, f"not valid TOML: {error}") from None
    return _parse(path, document)


def _parse(path: str, document: Mapping[str, Any]) -> Contexts:
    tables = document.get("contexts", {})
    current = document.get("current", "")
    if not isinstance(tables, dict) or not isinstance(current, str):
        raise _wrong(path, 'expected `current = "NAME"` and [contexts.NAME] tables')
    known = {item.name for item in fields(Context)[1:]}
    contexts = {}
    for name, table in tables.items():
        if not isinstance(table, dict) or not is_context_name(name):
            raise _wrong(path, f"contexts.{name}: not a context")
        for key, value in table.items():
            if key not in known:
                raise _wrong(path, f"contexts.{name}.{key}: unknown key; known are {', '.join(sorted(known))}")
            if not isinstance(value, str):
                raise _wrong(path, f"contexts.{name}.{key}: expected text")
        contexts[name] = Context(name, **table)
    if current and current not in contexts:
        raise _wrong(path, f"current: there is no context {current!r}")
    return Contexts(current, contexts)


def _wrong(path: str, problem: str) -> ConfigurationProblem:
    return ConfigurationProblem(f"{path}: {problem}", {"problems": [problem], "path": path})


def to_toml(contexts: Contexts) -> str:
    """The file's text."""
    lines = ["# Written by `logctl context`; comments are not kept."]
    if contexts.current:
        lines.append(f"current = {_toml_text(contexts.current)}")
    for name, context in sorted(contexts.contexts.items()):
        lines += ["", f"[contexts.{_toml_text(name)}]"]
        lines += [f"{key} = {_toml_text(value)}" for key, value in context.settings().items()]
    return "\n".join(lines) + "\n"


def _toml_text(text: str) -> str:
    # A basic string of TOML is escaped as JSON is, but for DEL.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


@contextlib.contextmanager
def changing(path: str) -> Iterator[list[Contexts]]:
    """Hold the file against other `logctl`s; put the new contexts in place of the list's element.

    On leaving without an error the file is replaced: whole, synced, mode 0600.
    """
    # A link stays a link: what it points to is replaced.
    path = os.path.realpath(path)
    directory = os.path.dirname(path)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise file_error(error, directory) from error
    try:
        # The directory is what is locked, for the file itself is replaced.
        fcntl.flock(held, fcntl.LOCK_EX)
        cell = [load(path)]
        before = cell[0]
        yield cell
        if cell[0] != before:
            _replace_file(path, to_toml(cell[0]), held)
    finally:
        os.close(held)


def _replace_file(path: str, text: str, directory: int) -> None:
    temporary = f"{path}.{secrets.token_hex(8)}"
    try:
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, stat.S_IRUSR | stat.S_IWUSR
        )
        try:
            with open(descriptor, "wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(descriptor)
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        os.fsync(directory)
    except OSError as error:
        raise file_error(error, path) from error
