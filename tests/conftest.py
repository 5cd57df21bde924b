"""Which event loop an asynchronous test runs on.

A test runs on Trio, as the daemon does, unless it is marked `anyio`: then AnyIO's own plugin runs it on each backend
that its `anyio_backend` fixture names. The two plugins would otherwise both take every such test (`trio_mode`).
"""

import inspect

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        function = getattr(item, "obj", None)
        # Under hypothesis the test is an inner function.
        function = getattr(getattr(function, "hypothesis", None), "inner_test", function)
        if inspect.iscoroutinefunction(function) and item.get_closest_marker("anyio") is None:
            item.add_marker(pytest.mark.trio)
