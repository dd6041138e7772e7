"""`ivl3 best-of` and `ivl3 rollouts` on a small checkpoint, as a user calls them."""

import csv
import json

import pytest

from ivl3_jax.cli.main import main
from ivl3_jax.data.meta import open_source, read_meta
from ivl3_jax.data.processor import Processor
from ivl3_jax.data.records import Pair
from tests.data.pictures import picture
from tests.models.small import checkpoint

BRIEF = ["--max-new-tokens", "4", "--prompt", "plain"]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A directory to be in, with questions."""
    monkeypatch.chdir(tmp_path)
    picture(30, 30).save("a.png")
    records = [
        {"image": "a.png", "question": "How much?", "answer": "2"},
        {"question": "Who?", "answer": "me"},
        {"image": "a.png", "question": "What is it like?"},
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "bare.jsonl").write_text('{"question": "Why?"}\n')
    return tmp_path


def call(*argv):
    return main([str(each) for each in argv])


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_one_question(work, capsys):
    assert call("best-of", checkpoint(), "How much?", "--images", "[a.png]", "--samples", 3, *BRIEF) == 0
    out, err = capsys.readouterr()
    assert out.strip() and err.count("→") == 1 and not (work / "runs").exists()


def test_questions_with_a_critic_and_again(work, capsys, monkeypatch):
    asking = ["best-of", checkpoint(), "q.jsonl", "--critic", checkpoint(), "--samples", 2, "--output", "out", *BRIEF]
    assert call(*asking) == 0
    found = lines(work / "out/candidates.jsonl")
    assert [each["number"] for each in found] == [0, 1, 2] and all(len(each["candidates"]) == 2 for each in found)
    for each in found:
        scores = [candidate["score"] for candidate in each["candidates"]]
        assert each["best"] == scores.index(max(scores))
        for candidate in each["candidates"]:
            assert len(candidate["steps"]) == len(candidate["scores"])
            assert candidate["score"] == pytest.approx(sum(candidate["scores"]) / len(candidate["scores"]))
    table = list(csv.DictReader((work / "out/best-of.csv").open()))
    assert {(row["way"], row["candidates"]) for row in table} >= {("critic", "2"), ("majority", "1")}
    assert (work / "out/best-of.png").stat().st_size > 5000
    # What an interruption has left is gone on from.
    whole = (work / "out/candidates.jsonl").read_text()
    (work / "out/candidates.jsonl").write_text(whole[: whole.index("\n") + 20])
    capsys.readouterr()
    assert call(*asking) == 0
    assert "1 of 3 questions are there from before" in capsys.readouterr().err
    again = lines(work / "out/candidates.jsonl")
    assert [[c["text"] for c in each["candidates"]] for each in again] == [
        [c["text"] for c in each["candidates"]] for each in found
    ]


def test_pairs_that_training_takes(work, capsys):
    brief = ["--max-new-tokens", 150, "--prompt", "plain"]  # long enough for some to end by themselves
    asking = ["rollouts", checkpoint(), "q.jsonl", "--output", "out", "--samples", 6, "--temperature", 3, *brief]
    assert call(*asking) == 0
    told = lines(work / "out/answers.jsonl")
    assert ["without the image" in each for each in told] == [False, False, True]
    assert all(len(each["cut"]) == 6 for each in told) and not all(told[2]["cut"])
    pairs = lines(work / "out/pairs.jsonl")
    assert pairs and {pair["question"] for pair in pairs} == {"What is it like?"}, "nothing is right at random"
    assert all(pair["image"] == "a.png" and pair["chosen"] != pair["rejected"] for pair in pairs)
    processor = Processor.from_directory(checkpoint())
    (spec,) = read_meta(work / "out/meta.json")
    source = open_source(spec)
    assert len(source) == len(pairs) and isinstance(source[0], Pair)
    assert [len(processor.measure(source[number]).texts) for number in range(len(source))] == [2] * len(pairs)
    # Other pairs of the same answers need no model.
    capsys.readouterr()
    assert call(*asking, "--pairs", 1) == 0
    assert len(lines(work / "out/pairs.jsonl")) == 1 and "1 pairs of 3 questions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["best-of", "CK", " "], "the question is empty"),
        (["best-of", "CK", "none.jsonl"], "none.jsonl: No such file"),
        (["best-of", "CK", "q.jsonl", "--images", "[a.png]"], "--images belongs to a question given here"),
        (["best-of", "CK", "Why?", "--prompt", "think"], "step-by-step, plain, or text with {question}"),
        (["best-of", "CK", "Why?", "--samples", "0"], "samples is 0"),
        (["best-of", "CK", "Why?", "--images", "[b.png]"], "b.png"),
        (["rollouts", "CK", "q.jsonl", "--kind", "correctness"], "q.jsonl:3: has no 'answer'"),
        (["rollouts", "CK", "q.jsonl", "--kind", "other"], "other"),
        (["rollouts", "CK", "q.jsonl", "--samples", "0"], "--samples is 0; it must be at least 1"),
        (["rollouts", "CK", "bare.jsonl"], "bare.jsonl:1: has neither an answer to check against nor a picture"),
    ],
)
def test_mistakes(work, capsys, argv, told):
    assert call(*[checkpoint() if each == "CK" else each for each in argv]) in (1, 2)
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1


def test_what_cannot_be_asked_ends_the_run_or_is_left_out(work, capsys):
    (work / "q.jsonl").write_text('{"image": "none.png", "question": "a"}\n{"question": "b", "answer": "1"}\n')
    asking = ["best-of", checkpoint(), "q.jsonl", "--output", "out", "--samples", 2, *BRIEF]
    assert call(*asking) == 1
    err = capsys.readouterr().err
    assert "q.jsonl:1" in err and "none.png" in err
    assert call(*asking, "--faults", "skip") == 0
    told = capsys.readouterr()
    assert "left out: q.jsonl:1" in told.err and [each["number"] for each in lines(work / "out/candidates.jsonl")] == [
        1
    ]
    picture(30, 30).save("none.png")
    assert call(*asking) == 0
    assert {each["number"] for each in lines(work / "out/candidates.jsonl")} == {0, 1}


def test_marks_in_answers_are_only_text(work, capsys, monkeypatch):
    from ivl3_jax.inference.scaling import best_of

    monkeypatch.setattr(best_of, "final_answer", lambda text: "[/b] [x]")
    assert call("best-of", checkpoint(), "Why?", "--samples", 2, *BRIEF) == 0


def test_other_settings_do_not_mix(work, capsys):
    asking = ["rollouts", checkpoint(), "q.jsonl", "--output", "out", *BRIEF, "--samples"]
    assert call(*asking, 2) == 0
    assert call(*asking, 3) == 1
    assert "samples was 2 and is now 3" in capsys.readouterr().err
