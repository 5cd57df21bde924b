"""Claims about the bytes of group 0's commands. `tests/golden/meta_commands.json` fixes them."""

import json
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logd.meta.commands import (
    AlterTopic,
    Command,
    CreateTopic,
    DeleteTopic,
    InitProducer,
    decode_command,
    encode_command,
)

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "meta_commands.json").read_text())

EXAMPLES: dict[str, Command] = {
    "create_topic": CreateTopic("orders", bytes(range(16)), 3, {"retention.bytes": "10GiB"}),
    "alter_topic": AlterTopic("orders", 5, {"retention.bytes": None, "retention.seconds": "7d"}),
    "alter_topic_configuration_only": AlterTopic("orders", None, {}),
    "delete_topic": DeleteTopic("orders"),
    "init_producer": InitProducer(None),
    "init_named_producer": InitProducer("billing"),
}

texts = st.text(max_size=20)
commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(
        CreateTopic, texts, st.binary(min_size=16, max_size=16), st.integers(1, 2**32), st.dictionaries(texts, texts)
    ),
    st.builds(
        AlterTopic, texts, st.none() | st.integers(1, 2**32), st.dictionaries(texts, st.none() | texts, max_size=4)
    ),
    st.builds(DeleteTopic, texts),
    st.builds(InitProducer, st.none() | texts),
)


def test_every_kind_of_command_has_golden_bytes() -> None:
    assert set(GOLDEN) == set(EXAMPLES)
    assert {type(command) for command in EXAMPLES.values()} == set(Command.__args__)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_command_has_the_bytes_it_always_had(name: str) -> None:
    assert encode_command(EXAMPLES[name]).hex() == GOLDEN[name]
    assert decode_command(bytes.fromhex(GOLDEN[name])) == EXAMPLES[name]


@given(commands)
def test_a_command_reads_back_as_itself(command: Command) -> None:
    assert decode_command(encode_command(command)) == command


def test_fields_that_a_later_version_added_at_the_end_are_ignored() -> None:
    value = msgpack.packb([1, 3, "orders", "new"])
    assert decode_command(value) == DeleteTopic("orders")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([2, 3, "orders"], "version 2 and kind 3"),
        ([1, 5, "orders"], "version 1 and kind 5"),
        ([1, 0], "kind 0"),
        ([1, [], "orders"], "kind"),
        ([1, 1, "orders"], "lacks a field"),
        ([1], "not an array"),
        ({}, "not an array"),
        (7, "not an array"),
        (None, "not an array"),
    ],
)
def test_what_this_software_cannot_read_is_refused(values: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        decode_command(msgpack.packb(values))


@given(st.binary(max_size=40))
def test_bytes_that_are_no_command_are_a_value_error(value: bytes) -> None:
    try:
        command = decode_command(value)
    except ValueError:
        return
    assert isinstance(command, Command)
