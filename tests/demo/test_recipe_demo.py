"""The recipe on a small scale: its data, its pairs, and all of it once."""

import json
import re

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra: demo)")
pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: demo)")

from ivl3_jax.cli import demo, main
from ivl3_jax.demo import digits, stages, tasks
from ivl3_jax.demo.recipe import RecipeConfig


def test_sums_are_true():
    source = stages.Sums(0)
    asked = [source[number].messages for number in range(200)]
    assert asked == [stages.Sums(0)[number].messages for number in range(200)]
    assert asked != [stages.Sums(1)[number].messages for number in range(200)]
    for question, answer in asked:
        shown = re.search(r"[0-9]{2,}", question.text) if "Add" in question.text else None
        if shown:
            terms, total = answer.text.split("=")
            assert terms == "+".join(shown[0]) and int(total) == sum(map(int, shown[0]))
        else:
            first, second = map(int, re.findall(r"\d+", question.text))
            verdict = {True: "they are the same"}.get(first == second, f"the {'first' if first > second else 'second'}")
            assert answer.text == f"{first} and {second}: {verdict}"


def test_pretraining_reads_and_has_a_quarter_of_text():
    (lessons, images), (sums, text) = stages.pretraining(3)
    assert (images, text) == (0.75, 0.25)
    assert all(lessons[number].images for number in range(20))
    assert not any(sums[number].images for number in range(20))


class Parrot:
    """A model that says nothing to every other question, and otherwise nonsense, but only now and then."""

    def __init__(self):
        self.processor, self.engine = self, self
        self.tokenizer, self.eos_ids = self, ()
        self.asked, self.turns = 0, []

    def encode_prompt(self, prompt):
        return prompt

    def generate(self, prompts, limit, stop, sampling):
        assert sampling.temperature == 1.0
        self.asked += len(prompts)
        self.turns.append(sampling.seed)
        return ["nonsense" if number % 2 and len(self.turns) > 1 else None for number in range(len(prompts))]

    def decode(self, reply):
        return reply or ""


def test_wrong_answers_make_pairs_with_the_right_ones(monkeypatch):
    drawn = []
    compose = tasks.compose
    monkeypatch.setattr(tasks, "compose", lambda *args, **kw: drawn.append(compose(*args, **kw)) or drawn[-1])
    parrot = Parrot()
    pairs = stages.preference_pairs(parrot, 0, 30, 4)
    assert parrot.asked == 4 * 30 and len(set(parrot.turns)) == 4
    assert len(pairs) == 15, "a pair for each question, and an empty answer teaches nothing"
    assert max(scan for picture in drawn for scan in picture.index) < digits.FIRST_HELD_OUT
    for pair in pairs:
        assert pair.rejected == "nonsense" and pair.chosen and pair.images
        assert pair.messages[-1].role == "user"


def test_no_mistakes_make_no_pairs(monkeypatch):
    monkeypatch.setattr(tasks.Question, "right", lambda question, reply: True)
    assert stages.preference_pairs(Parrot(), 0, 10, 2) == []


def test_settings_are_checked():
    with pytest.raises(ValueError, match="RecipeConfig.seeds is empty"):
        RecipeConfig(None, None, seeds=[])
    with pytest.raises(ValueError, match="RecipeConfig.asked is 0; it must be at least 1"):
        RecipeConfig(None, None, asked=0)


@pytest.mark.long
def test_the_whole_recipe_in_small(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "keep_freed_memory", lambda: None)  # a setting of the whole process
    output = tmp_path / "run"
    small = "--pretrain-steps 4 --sft-steps 4 --preference-steps 2 --asked 20 --samples 2 --examination 0.01 --looks 2"
    shape = "--vision.layers 1 --decoder.layers 1 --seeds [0,1]"
    assert main.main(["demo", "--recipe", "--output", str(output), *small.split(), *shape.split()]) == 0
    told = capsys.readouterr().out
    facts = json.loads((output / "demo.json").read_text())
    ways = [
        "native pre-training",
        "SFT",
        "MPO",
        "more SFT instead of MPO",
        "SFT after a warm-up",
        "SFT, plain positions",
    ]
    assert list(facts["right"]) == list(facts["sampled"]) == ways
    assert all(name in told for name in ways)
    assert all(len(shares) == 2 for shares in [*facts["right"].values(), *facts["longer"].values()])
    assert len(facts["longer"]) == 4
    assert [len(run) for run in facts["losses"]["SFT"]] == [4, 4]
    assert [step for step, _ in facts["along"]["SFT"][0]] == [2, 4]
    assert np.isfinite([loss for runs in facts["losses"].values() for run in runs for loss in run]).all()
    assert (output / "recipe.png").read_bytes().startswith(b"\x89PNG")
