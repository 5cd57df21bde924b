"""A stack finds its room, and a produce its steps, whatever else was sampled or noted."""

from __future__ import annotations

import pytest

from bench import profile_rooms
from bench.profile_rooms import STEPS, WAITING, Profile, count_rooms, room_of, rooms_table, steps_of, steps_table

MAIN = "thread (12): MainThread"
WRITER = "thread (13): logd-writer"
COMMAND = "_start (logd/cli/logd.py:99)"


@pytest.mark.parametrize(
    ("frames", "room"),
    [
        ([MAIN, COMMAND, "run (trio/_core/_run.py:1)"], "trio"),
        (
            [MAIN, COMMAND, "SecureStream._decrypt (wire/stream.py:9)", "SSLObject.read (ssl.py:9)"],
            "wire: TLS and the socket",
        ),
        ([MAIN, COMMAND, "f (logd/raft/group.py:3)"], "raft"),
        ([MAIN, COMMAND, "f (/work/logd/.venv/lib/trio/x.py:3)"], "trio"),
        ([MAIN, COMMAND, "f (wire/client.py:3)"], "wire: client"),
        ([MAIN, COMMAND, "EpollIOManager.get_events (trio/_core/_io_epoll.py:243)"], WAITING),
        ([WRITER, "Disk._write_rounds (logd/node/disk.py:115)"], WAITING),
        ([WRITER, "Disk._write_rounds (logd/node/disk.py:115)", "Round.write (logd/store/round.py:1)"], "store"),
    ],
)
def test_a_sample_belongs_to_the_innermost_function_of_ours(frames: list[str], room: str) -> None:
    assert room_of(frames) == room


def test_samples_are_counted_by_thread_and_room_and_waiting_is_not_busy() -> None:
    lines = [
        f"{MAIN};{COMMAND};f (logd/raft/group.py:3) 30\n",
        f"{MAIN};{COMMAND};g (logd/raft/log.py:5) 10\n",
        f"{MAIN};{COMMAND};EpollIOManager.get_events (trio/_core/_io_epoll.py:243) 60\n",
        f"{WRITER};Disk._write_rounds (logd/node/disk.py:1);OsFile.sync (logd/store/files.py:1) 50\n",
    ]
    profile = Profile("a workload", "1,000/s", count_rooms(lines), samples=200)
    assert profile.share("main", "raft") == 0.2
    assert profile.busy("main") == 0.2
    assert profile.busy("writer") == 0.25
    table = rooms_table([profile])
    assert "| main | raft | 20.0 |" in table
    assert "| housekeeper | **all** | **0** |" in table
    assert not any(WAITING in line for line in table)


def one_produce(begin: float) -> list[tuple[float, str]]:
    return [(begin, "begin"), *((begin + number, place) for number, place in enumerate(STEPS, 1))]


def test_the_steps_of_a_produce_add_up_to_all_of_it() -> None:
    (found,) = steps_of(one_produce(1.0))
    assert list(found) == list(STEPS)
    assert sum(found.values()) == len(STEPS)
    assert steps_table([found])[-1] == f"| **all** | **{len(STEPS) * 1_000_000}** | **{len(STEPS) * 1_000_000}** |"


def test_what_was_noted_for_another_reason_is_not_taken_for_a_step() -> None:
    times = one_produce(1.0)
    # The actor is woken by housekeeping, and the client asks for a round, before either is due.
    times += [(1.5, "actor woken"), (2.5, "round wanted"), (2.6, "server sent")]
    (found,) = steps_of(times)
    assert set(found.values()) == {1.0}


def test_a_produce_that_missed_a_place_is_left_out() -> None:
    incomplete = [(moment, place) for moment, place in one_produce(1.0) if place != "write durable"]
    assert len(steps_of([*incomplete, *one_produce(100.0)])) == 1


def test_a_daemon_that_passes_no_place_gives_no_table() -> None:
    assert steps_of([(1.0, "begin"), (2.0, "end")]) == []
    assert set(profile_rooms.AFTER) <= set(STEPS)
