"""What a page of the documentation may take from the code, as Sphinx sees it.

For: Sphinx. Must not know: how a table is made (`tables.py`, `machine.py`). The one idea: whatever a page names (a
table, a structure, a setting, a test) is looked up while it is built, and what is not found is a warning, which
`make docs` makes an error.

    ```{table-of} settings                   a table from `tables.TABLES` or `machine.TABLES`
    ```{drawing-of} roles                    a drawing from `machine.DRAWINGS`
    ```{struct} logd.store.format:TRAILER    a drawing; the body holds `field | meaning` lines
    {setting}`journal.files_max`             a setting that exists
    {test}`tests/x/test_y.py::test_z`        a test that exists
"""

import importlib
import struct
from collections.abc import Callable
from typing import Any

import machine
import tables
from docutils import nodes
from docutils.parsers.rst.states import Inliner
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from logd.config import settings_table

TABLES = {**tables.TABLES, **machine.TABLES}


class _FromCode(SphinxDirective):
    """A directive that becomes Markdown text, which is parsed in its place."""

    required_arguments = 1
    has_content = True

    def markdown(self) -> str:
        """The text; raises ValueError with what is wrong."""
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        try:
            text = self.markdown()
        except (ValueError, ImportError, AttributeError) as error:
            raise self.error(f"{self.name} {self.arguments[0]}: {error}") from error
        holder = nodes.container()
        self.state.nested_parse(StringList(text.splitlines(), source=""), self.content_offset, holder)
        return holder.children


class TableOf(_FromCode):
    """A table that is made from the code."""

    def markdown(self) -> str:
        make = TABLES.get(self.arguments[0])
        if make is None:
            raise ValueError(f"there is no such table; there are {', '.join(TABLES)}")
        return make()


class DrawingOf(SphinxDirective):
    """A drawing that is made from the code."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        make = machine.DRAWINGS.get(self.arguments[0])
        if make is None:
            raise self.error(f"there is no such drawing; there are {', '.join(machine.DRAWINGS)}")
        return [nodes.raw("", make(), format="html")]


class Struct(_FromCode):
    """A structure's bytes."""

    def markdown(self) -> str:
        module, _, name = self.arguments[0].partition(":")
        layout = getattr(importlib.import_module(module), name)
        if not isinstance(layout, struct.Struct):
            raise ValueError("not a struct.Struct")  # noqa: TRY004  # told like every other mistake of a page
        fields = []
        for line in self.content:
            field, bar, meaning = line.partition("|")
            if not bar:
                raise ValueError(f"expected `field | meaning`, got {line!r}")
            fields.append((field.strip(), meaning.strip()))
        return tables.struct_table(layout, fields)


Found = tuple[list[nodes.Node], list[nodes.system_message]]
Role = Callable[[str, str, str, int, Inliner], Found]


def _checked(what: str, exists: Callable[[str], bool]) -> Role:
    def role(
        _name: str,
        rawtext: str,
        text: str,
        line: int,
        inliner: Inliner,
        options: dict[str, Any] | None = None,  # noqa: ARG001  # the signature is docutils'
        content: list[str] | None = None,  # noqa: ARG001
    ) -> Found:
        if not exists(text):
            message = inliner.reporter.error(f"there is no {what} {text}", line=line)
            return [inliner.problematic(rawtext, rawtext, message)], [message]
        return [nodes.literal(rawtext, text)], []

    return role


def setup(app: Sphinx) -> ExtensionMetadata:
    """Called by Sphinx."""
    keys = {setting.key for setting in settings_table()}
    app.add_directive("table-of", TableOf)
    app.add_directive("drawing-of", DrawingOf)
    app.add_directive("struct", Struct)
    app.add_role("setting", _checked("setting", keys.__contains__))
    app.add_role("test", _checked("test", tables.is_test))
    # Not parallel: the tables are made from modules, once, and two cores are better used by something else.
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": False}
