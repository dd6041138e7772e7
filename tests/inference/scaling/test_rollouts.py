"""Pairs made of a model's own answers."""

import numpy as np
import pytest
from PIL import Image

import ivl3_jax
from ivl3_jax.data.records import Message, Sample, Video
from ivl3_jax.inference.chat import Chat
from ivl3_jax.inference.request import Limits, Request, known
from ivl3_jax.inference.sampling import GREEDY, Sampling
from ivl3_jax.inference.scaling.best_of import Answer, drawn_for
from ivl3_jax.inference.scaling.rollouts import correctness_pairs, dropout_pairs, rollouts, unseen, without_looking
from tests.models.small import checkpoint

SMALL = Limits(rows=8, page=16, piece=32, positions=2048)
DRAWN = Sampling(temperature=1.0, top_k=50)


@pytest.fixture(scope="module")
def chat():
    return Chat(ivl3_jax.load(checkpoint()), limits=SMALL)


@pytest.fixture(scope="module")
def asked():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70, 3)).astype(np.uint8)
    return [Sample((Message("user", text),), (Image.fromarray(pixels),)) for text in ("<image>\nHow much?", "Why?")]


def test_answers_are_those_of_the_engine(chat, asked):
    found = rollouts(chat, asked, 3, DRAWN, 9)
    assert [len(told) for told in found] == [3, 3]
    assert all(answer.cut == (len(answer.tokens) == 9) for told in found for answer in told)
    stop = frozenset(chat.processor.tokenizer.eos_ids)
    for sample, told in zip(asked, found, strict=True):
        prompt = chat.processor.encode_prompt(sample)
        for number, answer in enumerate(told):
            request = Request(prompt, 9, drawn_for(prompt, DRAWN), first_sample=number, stop=stop)
            said = chat.engine.run([request])[0].all_said()
            assert [each.token for each in said if each.token is not None] == answer.tokens


def test_the_second_half_is_what_the_model_writes_without_the_image(chat, asked):
    seen = rollouts(chat, asked, 2, DRAWN, 9)
    blind = without_looking(chat, asked, seen, GREEDY, 9)
    prompt = chat.processor.encode_prompt(Sample((Message("user", "How much?"),)))
    for answer, other in zip(seen[0], blind[0], strict=True):
        half = -(-len(answer.tokens) // 2)
        assert half > 0 and other.tokens[:half] == answer.tokens[:half] and len(other.tokens) <= 9
        tokens = known(prompt, answer.tokens[:half])[0].tolist()
        assert "IMG" not in chat.processor.tokenizer.decode(tokens, skip_special=False)


def test_an_answer_of_nothing_stays_so(chat, asked):
    assert without_looking(chat, asked[:1], [[Answer([])]], GREEDY, 3)[0][0].tokens == []


def test_a_question_without_what_it_shows():
    sample = Sample((Message("user", "<image>\nA <image> and <video>?"),), ("a", "b"), videos=(Video("c"),))
    bare = unseen(sample)
    assert bare.messages[0].text == "A  and ?" and not bare.images and not bare.videos


def test_correctness_pairs():
    texts = ["Final answer: 2", "Final answer: 3", "I do not know", "", "so: Final answer: 2.0", "Final answer: 3"]
    pairs = correctness_pairs(texts, "2", 15, seed=0)
    right, wrong = {texts[0], texts[4]}, {texts[1], texts[2]}
    assert set(pairs) == {(a, b) for a in right for b in wrong} and len(pairs) == 4
    assert correctness_pairs(texts, "2", 3, seed=0) == pairs[:3]
    assert correctness_pairs(texts[:1], "2", 15, seed=0) == [] == correctness_pairs(texts, "4", 15, seed=0)


def test_dropout_pairs():
    assert dropout_pairs(["a", "b", "", "c", "c"], ["x", "b", "y", "z", "z"], 15) == [("a", "x"), ("c", "z")]
    assert dropout_pairs(["a", "b"], ["x", "y"], 1) == [("a", "x")]
