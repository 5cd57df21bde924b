"""The errors: each code has one type, and comes back as it was sent."""

import pytest

import wire
import wire.client
from wire.errors import (
    SERVER_ERRORS,
    ClientError,
    ConnectionFailed,
    LogdError,
    Misconfigured,
    ServerError,
    UnknownError,
    server_error,
)


def all_errors() -> list[type[LogdError]]:
    found: list[type[LogdError]] = []
    rest: list[type[LogdError]] = [ServerError, ClientError]
    while rest:
        kind = rest.pop()
        found.append(kind)
        rest += kind.__subclasses__()
    return [kind for kind in found if kind.__module__ == "wire.errors"]


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_says_its_code_and_what_it_leaves(kind: type[LogdError]) -> None:
    assert kind.code
    assert kind.leaves
    assert kind.__doc__
    assert str(kind()) == kind.code
    assert str(kind("a sentence")) == "a sentence"
    assert kind("x", {"a": 1}).details == {"a": 1}


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in all_errors() if kind not in (ServerError, ClientError)]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("code", sorted(SERVER_ERRORS))
def test_a_code_becomes_its_type(code: str) -> None:
    error = server_error(code, "why", {"key": "value"})
    assert type(error) is SERVER_ERRORS[code]
    assert (error.code, str(error), error.details) == (code, "why", {"key": "value"})


def test_a_code_of_the_future_is_kept() -> None:
    error = server_error("Tired", "need sleep")
    assert isinstance(error, UnknownError)
    assert error.details["code"] == "Tired"


def test_an_error_for_several_tasks_is_an_exception_for_each() -> None:
    cause = OSError("cable")
    first = SERVER_ERRORS["NotLeader"]("x", {"leader": "n"})
    first.__cause__ = cause
    second = wire.client.again(first)
    assert second is not first
    assert (type(second), str(second), second.details, second.__cause__) == (type(first), "x", {"leader": "n"}, cause)


def test_every_error_is_an_attribute_of_the_package() -> None:
    kinds: list[type[LogdError]] = [LogdError, *all_errors()]
    for kind in kinds:
        assert getattr(wire, kind.__name__) is kind
        assert kind.__name__ in wire.__all__


def test_who_tries_again_when_a_connection_fails_does_not_do_so_for_a_wrong_file(tls: wire.Tls) -> None:
    assert not issubclass(Misconfigured, ConnectionFailed)
    assert not Misconfigured.retriable
    with pytest.raises(Misconfigured, match="there is no such file"):
        wire.Tls("/nowhere/ca.crt", tls.certificate, tls.key).context()
