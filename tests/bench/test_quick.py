"""The suite asks everything, whatever becomes of one question."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bench import harness, quick
from bench.harness import Bar, BenchmarkError, Options, Question, Result, answer


def answered(options: Options) -> Result:
    question = Question("a question", "records/s", "a peer", Bar(">=", 2), "by hand")
    return answer(question, ours=lambda: 1.0, peer=lambda: 1.0, options=options)


def unanswerable(_options: Options) -> Result:
    raise BenchmarkError("the peer is gone\nand this is its log")


@pytest.fixture
def on_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "file_system_of", lambda _path: ("ext4", "/dev/vda"))
    monkeypatch.setattr(os, "sync", lambda: None)


@pytest.mark.usefixtures("on_a_disk")
def test_a_question_without_an_answer_does_not_keep_the_others_from_being_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quick, "load_questions", lambda: {"first": unanswerable, "second": answered})
    results = tmp_path / "results.jsonl"
    results.write_text("an older suite\n", encoding="utf-8")
    code = quick.run_suite("a suite", ["--json", str(results), "--data-dir", str(tmp_path / "data")], seconds=1.0)
    assert code == 1
    assert [json.loads(line)["question"] for line in results.read_text(encoding="utf-8").splitlines()] == ["a question"]
    assert "no answer: first: the peer is gone\n" in capsys.readouterr().out


@pytest.mark.usefixtures("on_a_disk")
def test_a_bar_that_is_not_met_is_an_answer_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quick, "load_questions", lambda: {"only": answered})
    assert quick.run_suite("a suite", ["--data-dir", str(tmp_path / "data")], seconds=1.0) == 0
    assert "NOT MET" in capsys.readouterr().out


def test_every_question_has_a_script_with_a_bar_and_a_method() -> None:
    questions = quick.load_questions()
    assert tuple(questions) == quick.QUESTIONS
    for run in questions.values():
        question = run.__globals__["QUESTION"]
        assert question.method.strip()
        assert str(question.bar)
