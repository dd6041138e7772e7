"""Questions of a file, and the journal of what was done about them."""

import json

import pytest

from ivl3_jax.inference.scaling.journal import Journal
from ivl3_jax.inference.scaling.questions import read_questions


def write(file, *records):
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def test_forms(tmp_path):
    talk = [{"from": "human", "value": "<image>\nWhy?"}, {"from": "gpt", "value": "So. Final answer: 4"}]
    file = write(
        tmp_path / "q.jsonl",
        {"image": "a.png", "question": "How many?", "answer": 2},
        {"image": ["a.png", "b.png"], "question": "Same?", "answer_gt": "yes"},
        {"image": "a.png", "conversations": [{"from": "system", "value": "x"}, *talk]},
        {"conversations": [{"from": "human", "value": "Capital?"}, {"from": "gpt", "value": "Paris"}]},
        {"question": "Open?"},
    )
    found = read_questions(file)
    assert [each.answer for each in found] == ["2", "yes", "4", "Paris", None]
    assert [each.text for each in found] == ["How many?", "Same?", "<image>\nWhy?", "Capital?", "Open?"]
    assert found[1].asked.images == (str(tmp_path / "a.png"), str(tmp_path / "b.png"))
    assert read_questions(file, "elsewhere")[0].asked.images == ("elsewhere/a.png",)


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({}, "'question' is None"),
        ({"question": " "}, "'question'"),
        ({"question": "a", "answer": [1]}, "'answer' is"),
        ({"question": "a", "answer": True}, "'answer' is"),
        ({"question": "a", "image": 3}, "'image' is 3"),
        ({"question": "a", "image": "../b.png"}, "leaves the root"),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "first turn"),
        ([], "JSON list"),
    ],
)
def test_a_faulty_line_is_named(tmp_path, record, told):
    file = write(tmp_path / "q.jsonl", {"question": "good"}, record)
    with pytest.raises(ValueError, match=told) as error:
        read_questions(file)
    assert "q.jsonl:2" in str(error.value)


def test_a_file_of_nothing(tmp_path):
    (tmp_path / "q.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="has no lines"):
        read_questions(tmp_path / "q.jsonl")


QUESTIONS = [{"question": text} for text in "abcd"]


def journal(folder, questions=QUESTIONS, **settings):
    return Journal(folder, "a.jsonl", {"samples": 2} | settings, questions)


def test_a_journal_goes_on(tmp_path):
    folder = tmp_path / "run"
    begun = journal(folder)
    begun.add(0, {"text": "ä"})
    begun.add(2, {"text": "b"})
    with (folder / "a.jsonl").open("a") as file:
        file.write('{"number": 3, "te')  # an interruption in the middle of a line
    again = journal(folder)
    assert again.done == {0: {"text": "ä"}, 2: {"text": "b"}} and again.left == [1, 3]
    again.add(1, {"text": "c"})
    assert set(journal(folder).done) == {0, 1, 2}
    # More questions, and another one in a place that is not done, are no matter.
    assert journal(folder, [*QUESTIONS[:3], {"question": "x"}, {"question": "y"}]).left == [3, 4]


def test_answers_to_another_question_are_not_taken(tmp_path):
    journal(tmp_path / "run").add(1, {})
    with pytest.raises(ValueError, match=r"a\.jsonl:1: question 2 was another one then"):
        journal(tmp_path / "run", [QUESTIONS[1], QUESTIONS[0]])


@pytest.mark.parametrize("line", ["[]", "{}", "nothing", '{"number": 9, "of": ""}', '{"number": "a", "of": ""}'])
def test_a_damaged_line_is_named(tmp_path, line):
    journal(tmp_path / "run").add(1, {})
    with (tmp_path / "run/a.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"a\.jsonl:2: damaged"):
        journal(tmp_path / "run")


def test_a_journal_of_other_settings_is_not_touched(tmp_path):
    journal(tmp_path / "run").add(0, {})
    with pytest.raises(ValueError, match="samples was 2 and is now 3"):
        journal(tmp_path / "run", samples=3)
    for text in ("[]", "{"):
        (tmp_path / "run/settings.json").write_text(text)
        with pytest.raises(ValueError, match="is no JSON object"):
            journal(tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("mine")
    with pytest.raises(ValueError, match=r"no settings\.json"):
        journal(tmp_path / "other")
