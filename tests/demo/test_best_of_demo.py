"""Sums step by step: the task, what a critic learns from, and the whole demo in small."""

import json

import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra: demo)")
pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: demo)")

import ivl3_jax
from ivl3_jax.cli import demo, main
from ivl3_jax.demo import digits
from ivl3_jax.demo.best_of import BestOfConfig, examination
from ivl3_jax.demo.thinking import Solved, sums
from ivl3_jax.inference.chat import Chat
from ivl3_jax.inference.scaling.critic import Critic
from ivl3_jax.inference.scaling.final_answer import final_answer, same_answer
from tests.models.small import checkpoint


def test_solutions_are_true_and_of_digits_to_learn_from():
    for index in range(50):
        question = sums("train", (0, index))
        solution = question.solved().messages[-1].text
        assert same_answer(final_answer(solution), question.answer)
        assert question.answer == str(sum(question.picture.digits)) and len(question.steps) == 5
        assert max(question.picture.index) < digits.FIRST_HELD_OUT
    assert Solved(0)[3].messages == Solved(0)[3].messages != Solved(1)[3].messages


def test_the_examination_is_held_out_and_always_the_same():
    asked = examination(40)
    assert min(scan for each in asked for scan in each.picture.index) >= digits.FIRST_HELD_OUT
    assert [each.answer for each in examination(20)] == [each.answer for each in asked[:20]]


def test_the_first_wrong_step_is_the_last_that_is_judged():
    critic = Critic(Chat(ivl3_jax.load(checkpoint())))
    question = sums("train", (0, 1))
    right = question.steps
    signs = lambda steps: [m.text for m in question.judged(critic, "\n\n".join(steps)).messages[1::2]]  # noqa: E731
    assert signs(right) == ["+"] * 5
    assert signs([*right[:2], "third: nothing", *right[3:]]) == ["+", "+", "-"]
    assert signs([*right[:4], "Final answer: 99"]) == ["+"] * 4 + ["-"]
    assert signs(right[1:]) == ["-"]
    assert signs([*right, "and more"]) == ["+"] * 5 + ["-"]
    assert signs(right[:3]) == ["+"] * 3
    first = question.judged(critic, "\n\n".join(right)).messages[0].text
    assert first == f"### Question:\n<image>\n{question.text}\n\n### Solution Process:\n{right[0]}"


def test_settings_are_checked():
    with pytest.raises(ValueError, match="BestOfConfig.seeds is empty"):
        BestOfConfig(None, None, seeds=[])
    with pytest.raises(ValueError, match="BestOfConfig.drawn is 0; it must be at least 1"):
        BestOfConfig(None, None, drawn=0)


@pytest.mark.long
def test_the_whole_demo_in_small(tmp_path, capsys, monkeypatch):
    """And `ivl3 best-of` finds what it says, from the checkpoints and questions that it leaves."""
    monkeypatch.setattr(demo, "keep_freed_memory", lambda: None)  # a setting of the whole process
    output = tmp_path / "run"
    small = "--steps 4 --critic-steps 2 --asked 6 --drawn 2 --questions 5 --samples 4 --seeds [0,1]"
    shape = "--vision.layers 1 --decoder.layers 1"
    assert main.main(["demo", "--best-of", "--output", str(output), *small.split(), *shape.split()]) == 0
    facts = json.loads((output / "demo.json").read_text())
    assert len(facts["right"]) == 2 and {f"critic, {n}" for n in (1, 2, 4)} < set(facts["right"][0])
    assert (output / "best-of.png").read_bytes().startswith(b"\x89PNG")
    command = next(line for line in capsys.readouterr().out.splitlines() if "ivl3 best-of" in line).split()[1:]
    more = ["--samples", "4", "--max-new-tokens", "8", "--output", str(tmp_path / "again")]
    assert main.main([*command, *more]) == 0
    assert len((tmp_path / "again/candidates.jsonl").read_text().splitlines()) == 5
