"""Candidates of a question, and which is taken."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

import ivl3_jax
from ivl3_jax.data.records import Message, Sample
from ivl3_jax.inference.chat import Chat
from ivl3_jax.inference.request import Limits
from ivl3_jax.inference.sampling import Sampling
from ivl3_jax.inference.scaling import curve
from ivl3_jax.inference.scaling.best_of import BestOf, Candidate, best, drawn_for, majority
from ivl3_jax.inference.scaling.critic import Critic, Judged
from tests.models.small import checkpoint

SMALL = Limits(rows=8, page=16, piece=32, positions=2048)
DRAWN = Sampling(temperature=1.0, seed=3)


@pytest.fixture(scope="module")
def chat():
    return Chat(ivl3_jax.load(checkpoint()), limits=SMALL)


@pytest.fixture(scope="module")
def asked():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70, 3)).astype(np.uint8)
    return [Sample((Message("user", text),), (Image.fromarray(pixels),)) for text in ("How much?", "How many?", "Who?")]


def test_the_first_is_greedy_and_more_candidates_are_the_same_ones_and_others(chat, asked):
    few = BestOf(chat, samples=2, sampling=DRAWN, max_new_tokens=12)
    many = BestOf(chat, samples=5, sampling=DRAWN, max_new_tokens=12)
    one = few.candidates(asked[0])
    assert one[0].text == chat.ask("How much?", asked[0].images, max_new_tokens=12).strip()
    assert [each.text for each in many.candidates(asked[0])[:2]] == [each.text for each in one]
    assert len({each.text for each in many.candidates(asked[0])}) > 2
    greedy = BestOf(chat, samples=1, max_new_tokens=12).candidates(asked[0])
    assert [each.text for each in greedy] == [one[0].text]


def test_several_questions_at_once_are_as_one_by_one(chat, asked):
    critic = Critic(chat)
    asking = BestOf(chat, critic, samples=3, sampling=DRAWN, max_new_tokens=8)
    together = list(asking.answer(asked))
    for sample, found in zip(asked, together, strict=True):
        alone = asking.candidates(sample)
        assert [each.text for each in alone] == [each.text for each in found]
        scores = [judged.score for judged in critic.judge(sample, [each.text for each in found])]
        np.testing.assert_allclose([each.judged.score for each in found], scores, atol=1e-5)


def test_questions_have_draws_of_their_own(chat, asked):
    """Else a sample's luck would be the same in every question, and no number of them would even it out."""
    other = Image.fromarray(255 - np.asarray(asked[0].images[0]))
    again, repainted = asked[0], dataclasses.replace(asked[0], images=(other,))
    found = [
        drawn_for(chat.processor.encode_prompt(sample), dataclasses.replace(DRAWN, seed=seed))
        for sample in (*asked, repainted, again)
        for seed in (3, 4)
    ]
    assert len({each.seed for each in found[:-2]}) == 8 and found[-2:] == found[:2]


def test_the_prompt_is_put_around_the_question_and_the_critic_sees_it_bare(chat, asked, monkeypatch):
    prompts, judged = [], []
    run = chat.engine.run

    def running(requests):
        prompts.extend(chat.processor.tokenizer.decode(request.prompt.tokens) for request in requests)
        return run(requests)

    monkeypatch.setattr(chat.engine, "run", running)

    class Told(Critic):
        def judge_all(self, asked):
            judged.extend(sample.messages[0].text for sample, _ in asked)
            return [[Judged(("a",), (0.5,))] * len(texts) for _, texts in asked]

    BestOf(chat, Told(chat), samples=2, max_new_tokens=2, prompt="Think. {question} Now!").candidates(asked[0])
    assert all("Think. How much? Now!" in prompt for prompt in prompts) and len(prompts) == 2
    assert judged == ["How much?"]


def test_a_prompt_needs_a_place_for_the_question(chat):
    with pytest.raises(ValueError, match="step-by-step, plain, or text with {question}"):
        BestOf(chat, prompt="think")


def made(finals, scores=None):
    scores = scores or [None] * len(finals)
    return [
        Candidate(str(final), final, None if score is None else Judged(("x",), (score,)))
        for final, score in zip(finals, scores, strict=True)
    ]


def test_the_best_is_the_first_of_the_highest_score():
    assert best(made(["a", "b", "c"], [0.25, 0.75, 0.75])) == 1
    with pytest.raises(ValueError, match="not judged"):
        best(made(["a"]))


@pytest.mark.parametrize(
    ("finals", "taken"),
    [
        (["2", "3", "3.0"], 1),
        (["2", "3"], 0),
        ([None, None, "4"], 2),
        ([None, None], 0),
        (["yes", "no", "No."], 1),
    ],
)
def test_majority(finals, taken):
    assert majority(made(finals)) == taken


def test_shares_by_hand(tmp_path):
    answered = [
        (made(["1", "2", "2", "3"], [0.1, 0.9, 0.2, 0.3]), "2"),
        (made(["5", "5", "7", "7"], [0.5, 0.4, 0.1, 0.9]), "7"),
    ]
    found = curve.shares(answered)
    assert {(each.way, each.count): each.mean for each in found} == {
        ("critic", 1): 0, ("critic", 2): 0.5, ("critic", 4): 1,
        ("majority", 1): 0, ("majority", 2): 0, ("majority", 4): 0.5,
        ("any is right", 1): 0, ("any is right", 2): 0.5, ("any is right", 4): 1,
        ("one alone", 1): 0, ("one alone", 2): 0.25, ("one alone", 4): 0.5,
    }  # fmt: skip
    curve.write_table([found], tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().splitlines()[1].startswith("0,critic,1,0.0000,0.0000")
    curve.draw([found, found], tmp_path / "a.png", "two runs")
    curve.draw([[each for each in found if each.way != "critic"]], tmp_path / "b.png", "one run")
    assert Image.open(tmp_path / "a.png").width > 500


def test_all_candidates_count():
    found = curve.shares([(made(["1", "2", "2"]), "2")])
    assert {(each.way, each.count): each.mean for each in found if each.way == "majority"} == {
        ("majority", 1): 0,
        ("majority", 2): 0,
        ("majority", 3): 1,
    }


def test_a_standard_error_is_over_questions():
    share = curve.Share("critic", 1, np.array([1.0, 0, 0, 1]))
    assert share.mean == 0.5 and share.error == pytest.approx(0.25)
