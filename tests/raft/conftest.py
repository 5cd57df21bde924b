"""What the tests of the Raft core share."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write the answers into the scripts of tests/raft/testdata")


@pytest.fixture
def rewrite(pytestconfig: pytest.Config) -> bool:
    """Whether scripts are written anew instead of compared."""
    # Where this file is found only while tests are collected, the option does not exist.
    return bool(pytestconfig.getoption("--rewrite", default=False))
