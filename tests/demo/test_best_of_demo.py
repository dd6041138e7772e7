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
        question = sums("train", (0, index), 1 + index % 3)
        solution = question.solved().messages[-1].text
        assert same_answer(final_answer(solution), question.answer)
        assert question.answer == str(sum(question.picture.digits))
        assert len(question.steps) == (2, 4, 5)[index % 3]
        assert max(question.picture.index) < digits.FIRST_HELD_OUT
    assert Solved(0, 1)[3].messages == Solved(0, 1)[3].messages != Solved(1, 1)[3].messages


def test_the_examination_is_held_out_and_always_the_same():
    asked = examination(40, 2)
    assert min(scan for each in asked for scan in each.picture.index) >= digits.FIRST_HELD_OUT
    assert [each.answer for each in examination(20, 2)] == [each.answer for each in asked[:20]]


@pytest.mark.parametrize("digits", [1, 3])
def test_claims_are_told_as_they_are(digits):
    """Every step until it is right; and to all of them the sign, what is claimed, or what is there."""
    critic = Critic(Chat(ivl3_jax.load(checkpoint())))
    source, told = Claims(critic, seed=4, digits=digits), Counter()
    for index in range(100):
        question, dialogue = sums("train", (4, index, 2), digits), source[index].messages
        assert dialogue[0].text.startswith(f"### Question:\n<image>\n{question.text}\n\n### Solution Process:\n")
        assert len(dialogue) <= 2 * critic.most_steps
        place, kinds = 0, {"sign", "claimed", "true"}
        for asked, answer in zip(dialogue[::2], dialogue[1::2], strict=True):
            step, wanted = asked.text.rpartition("\n")[2], question.steps[place]
            claimed, true = (re.split("[:=] ?", each)[-1] for each in (step, wanted))
            assert step.removesuffix(claimed) == wanted.removesuffix(true)
            sign = "+" if step == wanted else "-"
            kinds &= {
                kind for kind, said in (("sign", sign), ("claimed", claimed), ("true", true)) if said == answer.text
            }
            told[sign, place] += 1
            place += step == wanted
        assert kinds
    assert set(told) == {(sign, place) for sign in "+-" for place in range((2, 4, 5)[digits - 1])}
    assert source[7].messages == source[7].messages


def test_settings_are_checked():
    with pytest.raises(ValueError, match="BestOfConfig.seeds is empty"):
        BestOfConfig(None, None, 1, seeds=[])
    with pytest.raises(ValueError, match="BestOfConfig.digits is 4; it must be at most 3"):
        BestOfConfig(None, None, 4)
    with pytest.raises(ValueError, match="BestOfConfig.critic_reading_steps is -1; it must be at least 0"):
        BestOfConfig(None, None, 1, critic_reading_steps=-1)
    with pytest.raises(ValueError, match="BestOfConfig.samples is 0; it must be at least 1"):
        BestOfConfig(None, None, 1, samples=0)


@pytest.mark.long
def test_the_whole_demo_in_small(tmp_path, capsys, monkeypatch):
    """And `ivl3 best-of` finds what it says, from the checkpoints and questions that it leaves."""
    monkeypatch.setattr(demo, "keep_freed_memory", lambda: None)  # a setting of the whole process
    output = tmp_path / "run"
    small = (
        "--reading-steps 4 --steps 4 --critic-reading-steps 3 --critic-steps 2 --questions 5 --samples 4 --seeds [0,1]"
    )
    shape = "--vision.layers 1 --decoder.layers 1"
    assert main.main(["demo", "--best-of", "--output", str(output), *small.split(), *shape.split()]) == 0
    facts = json.loads((output / "demo.json").read_text())
    assert len(facts["right"]) == 2 and {f"critic, {n}" for n in (1, 2, 4)} < set(facts["right"][0])
    assert (output / "best-of.png").read_bytes().startswith(b"\x89PNG")
    command = next(line for line in capsys.readouterr().out.splitlines() if "ivl3 best-of" in line).split()[1:]
    more = ["--samples", "4", "--max-new-tokens", "8", "--output", str(tmp_path / "again")]
    assert main.main([*command, *more]) == 0
    assert len((tmp_path / "again/candidates.jsonl").read_text().splitlines()) == 5
