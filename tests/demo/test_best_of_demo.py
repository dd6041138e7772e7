"""Sums step by step: the task, what a critic learns from, and the whole demo in small."""

import json
import re
from collections import Counter

import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra: demo)")
pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: demo)")

import ivl3_jax
from ivl3_jax.cli import demo, main
from ivl3_jax.demo import digits
from ivl3_jax.demo.best_of import BestOfConfig, examination
from ivl3_jax.demo.thinking import Claims, Solved, sums
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


@pytest.mark.parametrize("digits", [1, 3])
def test_claims_are_told_as_they_are(digits):
    """Behind right steps, one that is right or wrong; and the sign, what is claimed, or what is there."""
    source, told = Claims(Critic(Chat(ivl3_jax.load(checkpoint()))), seed=4, digits=digits), Counter()
    for index in range(200):
        question, dialogue = sums("train", (4, index, 2), digits), source[index].messages
        assert dialogue[0].text.startswith(f"### Question:\n<image>\n{question.text}\n\n### Solution Process:\n")
        steps = [message.text for message in dialogue[::2]]
        steps[0] = steps[0].rpartition("\n")[2]
        place = len(steps) - 1
        assert steps[:-1] == question.steps[:place] and {m.text for m in dialogue[1:-2:2]} <= {"+"}
        claimed, true = (re.split("[:=] ?", step)[-1] for step in (steps[-1], question.steps[place]))
        right = {"+": steps[-1] == question.steps[place], "-": steps[-1] != question.steps[place]}
        assert right.get(dialogue[-1].text, dialogue[-1].text in (claimed, true))
        told[dialogue[-1].text if dialogue[-1].text in right else "a number", place] += 1
    assert {place for _, place in told} == set(range(digits + 2))
    assert {told for told, _ in told} == {"+", "-", "a number"}
    assert source[7].messages == source[7].messages


def test_settings_are_checked():
    with pytest.raises(ValueError, match="BestOfConfig.seeds is empty"):
        BestOfConfig(None, None, seeds=[])
    with pytest.raises(ValueError, match="BestOfConfig.samples is 0; it must be at least 1"):
        BestOfConfig(None, None, samples=0)


@pytest.mark.long
def test_the_whole_demo_in_small(tmp_path, capsys, monkeypatch):
    """And `ivl3 best-of` finds what it says, from the checkpoints and questions that it leaves."""
    monkeypatch.setattr(demo, "keep_freed_memory", lambda: None)  # a setting of the whole process
    output = tmp_path / "run"
    small = "--reading-steps 4 --steps 4 --critic-steps 2 --questions 5 --samples 4 --seeds [0,1]"
    shape = "--vision.layers 1 --decoder.layers 1"
    assert main.main(["demo", "--best-of", "--output", str(output), *small.split(), *shape.split()]) == 0
    facts = json.loads((output / "demo.json").read_text())
    assert len(facts["right"]) == 2 and {f"critic, {n}" for n in (1, 2, 4)} < set(facts["right"][0])
    assert (output / "best-of.png").read_bytes().startswith(b"\x89PNG")
    command = next(line for line in capsys.readouterr().out.splitlines() if "ivl3 best-of" in line).split()[1:]
    more = ["--samples", "4", "--max-new-tokens", "8", "--output", str(tmp_path / "again")]
    assert main.main([*command, *more]) == 0
    assert len((tmp_path / "again/candidates.jsonl").read_text().splitlines()) == 5
