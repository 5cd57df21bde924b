"""Claims about scripts: what they mean, and what is written back."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.raft.datadriven import Argument, Case, MalformedScript, UnknownDirective, parse, run_script

CONVERSATION = """\
# A comment, and an empty line.

greet 1 name=(a, b) how=loudly twice
  first line
second line

----
hello
you

# Nothing is asked, and nothing answered.
silence
----

talk
----
----
one

two
----
----

last \\
  from=1 \\
  to=()
----
end

# A comment at the end.
"""


def answers(*texts: str) -> dict[str, str]:
    return dict(zip(("greet", "silence", "talk", "last"), texts, strict=True))


AS_WRITTEN = answers("hello\nyou\n", "", "one\n\ntwo\n", "end\n")


def answering(texts: Mapping[str, str]) -> Callable[[Case], str]:
    return lambda case: texts[case.directive]


def script(directory: Path, text: str = CONVERSATION) -> Path:
    path = directory / "script.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_case_is_a_directive_with_arguments_an_input_and_an_answer() -> None:
    greet, silence, talk, last = parse(CONVERSATION, "name")
    assert (greet.directive, greet.position) == ("greet", "name:3")
    assert greet.arguments == (
        Argument("1", (), True),
        Argument("name", ("a", "b"), False),
        Argument("how", ("loudly",), False),
        Argument("twice", (), True),
    )
    assert greet.input == "first line\nsecond line"
    assert [case.expected for case in (greet, silence, talk, last)] == list(AS_WRITTEN.values())
    assert (last.values("from"), last.values("to"), last.values("by")) == (("1",), (), None)
    assert (silence.input, silence.arguments, last.position) == ("", (), "name:24")


def test_arguments_are_asked_for_by_place_or_by_key() -> None:
    (case,) = parse("go 1 2 idx=(13, 100) empty= one=1 one=2\n----\n")
    assert case.positional == ("1", "2")
    assert case.keys == {"idx", "empty", "one"}
    assert (case.values("idx"), case.value("empty"), case.values("one")) == (("13", "100"), "", ("1", "2"))
    assert case.value("absent", "default") == "default"
    for key in ("absent", "idx", "one"):
        with pytest.raises(MalformedScript, match=f"go needs one value of {key}"):
            case.value(key)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("go\n", "script:1: go has no ----"),
        ("\n\ngo x=(1\n----\n", "script:3: not an argument: x=\\(1"),
        ("x=1\n----\n", "script:1: not a directive: x=1"),
        ("go\n----\n----\nnever ends\n----\n", "no end of what stands between doubled ----"),
    ],
)
def test_what_is_not_in_the_format_is_refused_by_its_place(text: str, complaint: str) -> None:
    with pytest.raises(MalformedScript, match=complaint):
        list(parse(text))


def test_answers_are_compared_to_the_letter(tmp_path: Path) -> None:
    path = script(tmp_path)
    assert run_script(path, answering(AS_WRITTEN)) == 4
    for directive, answer in AS_WRITTEN.items():
        changed = {**AS_WRITTEN, directive: f"{answer}more"}
        with pytest.raises(AssertionError, match=f"script.txt:[0-9]+: {directive}\n(.|\n)*\\+more"):
            run_script(path, answering(changed))


def test_an_answer_may_lack_the_end_of_its_last_line(tmp_path: Path) -> None:
    assert (
        run_script(script(tmp_path), answering({key: text.removesuffix("\n") for key, text in AS_WRITTEN.items()})) == 4
    )


def test_the_right_answers_are_written_back_as_they_stand(tmp_path: Path) -> None:
    path = script(tmp_path)
    assert run_script(path, answering(AS_WRITTEN), rewrite=True) == 4
    assert path.read_text() == CONVERSATION


@pytest.mark.parametrize(
    "new",
    [
        answers("", "", "", ""),
        answers("a", "b\n\nc", "d", "\n"),
        answers("----\nx", "a\n----\nb", "# no comment", "x\n\n----\ny"),
    ],
)
def test_what_is_written_back_is_read_again_with_everything_around_it(tmp_path: Path, new: dict[str, str]) -> None:
    path = script(tmp_path)
    run_script(path, answering(new), rewrite=True)
    assert run_script(path, answering(new)) == 4
    comments = [line for line in CONVERSATION.splitlines() if line.startswith(("# A", "# N"))]
    assert [line for line in path.read_text().splitlines() if line.startswith(("# A", "# N"))] == comments


def test_a_script_without_cases_is_left_as_it_is(tmp_path: Path) -> None:
    path = script(tmp_path, "# Only a comment.\n\n")
    assert run_script(path, lambda case: case.directive, rewrite=True) == 0
    assert path.read_text() == "# Only a comment.\n\n"


def test_an_answer_that_would_end_itself_is_refused(tmp_path: Path) -> None:
    path = script(tmp_path)
    for answer in ("a\n----\n----\nb", "a\n----\n"):
        with pytest.raises(MalformedScript, match="cannot hold the end"):
            run_script(path, answering(dict.fromkeys(AS_WRITTEN, answer)), rewrite=True)
    assert path.read_text() == CONVERSATION


def test_an_unknown_directive_is_a_failure_and_says_where(tmp_path: Path) -> None:
    def handler(case: Case) -> str:
        raise UnknownDirective(case)

    with pytest.raises(UnknownDirective, match=r"script\.txt:3: unknown directive: greet"):
        run_script(script(tmp_path), handler)
