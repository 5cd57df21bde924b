"""A node killed before any system call that changes its disk keeps what it acknowledged (reliability: kill -9).

The kills are made by strace at the entry of the n-th such call of a thread, for n = 1, 2, 3, … until a life is too
short to have an n-th call. After each, the node is started again without a tracer and asked for everything.
"""

from pathlib import Path

import pytest
import trio

from tests.e2e.kills import Memory, check, killable, strace_works, work

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not strace_works(), reason="strace is not here, or may not trace"),
]

# More calls than any of the lives makes; a life that survives ends the search.
CALLS_MAX = 400


def test_a_first_start_killed_before_any_call_is_a_first_start_again(tmp_path: Path) -> None:
    for call in range(1, CALLS_MAX):
        with killable(tmp_path / f"d{call}") as node:
            survived = node.start(killed_at_call=call)
            node.kill()

            assert node.start(), f"killed before call {call}, it does not start: {node.log.read_text()[-2000:]}"
            memory = Memory()
            assert trio.run(work, node, memory, 4)
            trio.run(check, node, memory)
        if survived:
            assert call > 12
            return
    raise AssertionError("a first start has no end")


def test_a_node_killed_before_any_call_of_its_work_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    with killable(tmp_path / "data") as node:
        memory = Memory()
        lives = 0
        for call in range(1, CALLS_MAX):
            assert node.start(), f"after the kill before call {call - 1}: {node.log.read_text()[-2000:]}"
            trio.run(check, node, memory)
            node.kill_at_call(call)
            if trio.run(work, node, memory, 60) and not node.is_dead:
                break
            node.kill()
            lives += 1

        assert lives > 20
        assert memory.count > 200
        node.kill()
        assert node.start()
        trio.run(check, node, memory)


def test_a_recovery_killed_before_any_call_is_repeated(tmp_path: Path) -> None:
    with killable(tmp_path / "data") as node:
        memory = Memory()
        assert node.start()
        for call in range(1, CALLS_MAX):
            # Something new is always left to recover.
            assert trio.run(work, node, memory, 20)
            node.kill()
            survived = node.start(killed_at_call=call)
            node.kill()
            assert node.start(), f"killed before call {call}: {node.log.read_text()[-2000:]}"
            trio.run(check, node, memory)
            if survived:
                assert call > 5
                return
    raise AssertionError("a recovery has no end")


def test_a_stop_killed_before_any_call_loses_nothing(tmp_path: Path) -> None:
    with killable(tmp_path / "data") as node:
        memory = Memory()
        for call in range(1, 40):
            assert node.start()
            assert trio.run(work, node, memory, 3)
            node.kill_at_call(call)
            node.stop()
            assert node.start(), f"killed before call {call}: {node.log.read_text()[-2000:]}"
            trio.run(check, node, memory)
            node.kill()
