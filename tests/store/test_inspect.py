"""What is said of a data directory that nobody opens."""

import json

import pytest

from logd.store.errors import StoreError
from logd.store.inspect import Finding, inspect
from logd.store.round import Append
from tests.store.support import add_group, append, housekeep, make_batches, make_room, open_store
from tests.support.fake_files import FakeFileSystem

GROUP = "/data/groups/00000000000000000001"
FIRST = f"{GROUP}/00000000000000000001.log"


def prepared(*, count: int = 60) -> FakeFileSystem:
    files = FakeFileSystem()
    store = open_store(files)
    log = add_group(store, 1)
    for batch in make_batches(log.end, count, value_bytes=100):
        append(store, 1, [batch])
        housekeep(store)
    store.close()
    return files


def problems(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.is_problem]


def stops(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.kind == "stop"]


def test_a_sound_directory_is_told_whole_and_without_a_problem() -> None:
    files = prepared()

    findings = list(inspect(files, "/data"))

    assert problems(findings) == []
    batches = [finding for finding in findings if finding.kind == "batch"]
    assert [finding.values["index"] for finding in batches] == list(range(1, 61))
    assert {finding.kind for finding in findings} == {
        "node", "journal_file", "round", "start", "segment", "index", "batch", "stop",
    }  # fmt: skip
    for finding in findings:
        json.dumps(finding.as_json())


def test_inspection_changes_nothing_and_needs_no_lock() -> None:
    files = FakeFileSystem()
    store = open_store(files)
    add_group(store, 1)
    before = [call for call in files.calls if call.operation != "open"]

    findings = list(inspect(files, "/data"))

    assert problems(findings) == []
    after = [call for call in files.calls if call.operation != "open"]
    mutating = {"pwritev", "truncate", "unlink", "rename", "mkdir", "rmdir", "sync", "sync_directory", "allocate"}
    assert [call for call in after[len(before) :] if call.operation in mutating] == []


def test_a_damaged_header_stops_the_chain_at_its_file_position_and_index() -> None:
    files = prepared()
    batches = [finding for finding in inspect(files, FIRST) if finding.kind == "batch"]
    victim = batches[5]
    files.flip_bit(FIRST, victim.values["position"] + 90)

    findings = list(inspect(files, FIRST))

    (stop,) = stops(findings)
    assert stop.path == FIRST
    assert stop.values["position"] == victim.values["position"]
    assert stop.values["index"] == victim.values["index"]
    assert "chain digest" in stop.values["reason"]


def test_a_damaged_payload_is_named_and_the_chain_goes_on() -> None:
    files = prepared()
    batches = [finding for finding in inspect(files, FIRST) if finding.kind == "batch"]
    victim = batches[5]
    files.flip_bit(FIRST, victim.values["position"] + 200)

    findings = list(inspect(files, FIRST))

    (problem,) = problems(findings)
    assert problem.values["index"] == victim.values["index"]
    assert "payload" in problem.values["reason"]
    assert len([finding for finding in findings if finding.kind == "batch"]) == len(batches)


def test_a_promise_that_is_only_in_the_journal_is_no_corruption() -> None:
    files = FakeFileSystem()
    store = open_store(files)
    log = add_group(store, 1)
    batches = make_batches(log.end, 2)
    make_room(log, batches)
    store.prepare_round([Append(1, batch) for batch in batches]).write()

    findings = list(inspect(files, GROUP))

    assert problems(findings) == []
    (stop,) = stops(findings)
    assert (stop.values["verdict"], stop.values["index"], stop.values["promised_index"]) == ("in_journal", 1, 2)


def test_what_was_promised_and_is_nowhere_is_corruption() -> None:
    files = prepared()
    last = max(path for path in files.tree(GROUP) if path.endswith(".log"))
    # Recovery brings everything to the segments, and its table names the end.
    open_store(files).close()
    position = [finding for finding in inspect(files, last) if finding.kind == "batch"][-1].values["position"]
    files.flip_bit(last, position + 100)

    (stop,) = problems(list(inspect(files, GROUP)))[:1]

    assert stop.values["verdict"] == "corruption"
    assert stop.values["index"] == stop.values["promised_index"] == 60


def test_bytes_behind_the_promised_end_are_a_torn_tail() -> None:
    files = prepared(count=3)
    batches = [finding for finding in inspect(files, FIRST) if finding.kind == "batch"]
    end = batches[-1].values["position"] + batches[-1].values["bytes"]
    files.overwrite(FIRST, end, b"\x01garbage" * 40)

    (stop,) = stops(list(inspect(files, GROUP)))

    assert stop.values["verdict"] == "torn_tail"
    assert not stop.is_problem


def test_a_damaged_round_is_told_from_the_end_of_the_journal() -> None:
    files = prepared(count=6)
    journal = "/data/journal/00000000000000000001"
    rounds = [finding for finding in inspect(files, journal) if finding.kind == "round"]
    files.flip_bit(journal, rounds[2].values["position"] + 20)

    findings = list(inspect(files, journal))

    first, last = stops(findings)
    assert (first.values["verdict"], first.values["position"]) == ("corruption", rounds[2].values["position"])
    assert last.values["verdict"] == "end"


def test_a_path_that_is_no_part_of_a_data_directory_is_refused() -> None:
    files = prepared(count=1)
    files.mkdir("/elsewhere")

    with pytest.raises(StoreError):
        list(inspect(files, "/elsewhere"))
    with pytest.raises(FileNotFoundError):
        list(inspect(files, "/nowhere"))


def test_whatever_file_is_missing_its_loss_is_told() -> None:
    whole = prepared(count=300)
    names = whole.listdir(GROUP)
    firsts = [name for name in names if name.endswith(".log")]
    assert len(firsts) > 2
    start = f"{GROUP}/00000000000000000000.start"

    for lost in (start, f"{GROUP}/{firsts[0]}", f"{GROUP}/{firsts[1]}"):
        files = whole.kill()
        files.unlink(lost)
        assert problems(list(inspect(files, "/data"))), lost

    files = whole.kill()
    for name in names:
        files.unlink(f"{GROUP}/{name}")
    files.rmdir(GROUP)
    (told,) = problems(list(inspect(files, "/data")))
    assert (told.path, told.values["index"], told.values["promised_index"]) == (GROUP, 1, 300)
    assert "missing" in told.values["reason"]


def test_a_lost_directory_of_all_groups_or_of_the_journal_is_told() -> None:
    whole = prepared(count=300)
    files = whole.kill()
    for name in files.listdir(GROUP):
        files.unlink(f"{GROUP}/{name}")
    files.rmdir(GROUP)
    files.rmdir("/data/groups")

    told = problems(list(inspect(files, "/data")))

    assert [finding.path for finding in told] == ["/data/groups", GROUP]
    assert "missing" in told[0].values["reason"]
    files = whole.kill()
    for name in files.listdir("/data/journal"):
        files.unlink(f"/data/journal/{name}")
    files.rmdir("/data/journal")
    assert [finding.path for finding in problems(list(inspect(files, "/data")))] == ["/data/journal"]


def test_a_directory_that_the_journal_can_make_again_is_no_loss() -> None:
    files = prepared(count=3)
    for name in files.listdir(GROUP):
        if not name.endswith(".start"):
            files.unlink(f"{GROUP}/{name}")

    assert problems(list(inspect(files, "/data"))) == []
