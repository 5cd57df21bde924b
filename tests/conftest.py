"""How all tests are run: which event loop an asynchronous one runs on, and how hypothesis tries.

A test runs on Trio, as the daemon does, unless it is marked `anyio`: then AnyIO's own plugin runs it on each backend
that its `anyio_backend` fixture names. The two plugins would otherwise both take every such test (`trio_mode`).
"""

import inspect

import pytest
from hypothesis import settings

from tests.mutants.hook import install_from_environment

# With LOGD_MUTANT=<name> the code under test has that bug; before anything of it is imported.
install_from_environment()

# The same examples on every run, and no verdict by the clock: the machine may be busy with something else.
settings.register_profile("logd", deadline=None, derandomize=True)
settings.load_profile("logd")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        function = getattr(item, "obj", None)
        # Under hypothesis the test is an inner function.
        function = getattr(getattr(function, "hypothesis", None), "inner_test", function)
        if inspect.iscoroutinefunction(function) and item.get_closest_marker("anyio") is None:
            item.add_marker(pytest.mark.trio)
