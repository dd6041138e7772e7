"""Preference pairs from a model's own answers, as MMPR's are made (arXiv 2411.10442)."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from ivl3_jax.batch import IGNORE
from ivl3_jax.data.encoded import Encoded
from ivl3_jax.data.records import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, Message, Sample
from ivl3_jax.inference.chat import Chat
from ivl3_jax.inference.request import Request, known
from ivl3_jax.inference.sampling import Sampling
from ivl3_jax.inference.scaling.best_of import Answer, answers_of, drawn_for
from ivl3_jax.inference.scaling.final_answer import final_answer, same_answer

SAMPLING = Sampling(temperature=0.7, top_k=50)
SAMPLES = 32
MOST_PAIRS = 15  # of a question


def rollouts(
    chat: Chat, asked: Sequence[Sample], samples: int, sampling: Sampling, max_new_tokens: int
) -> list[list[Answer]]:
    """Several answers to each question.

    Args:
        asked: one user turn each, as it is put to the model.
    """
    stop = frozenset(chat.processor.tokenizer.eos_ids)
    prompts = [chat.processor.encode_prompt(sample) for sample in asked]
    drawn = [(prompt, drawn_for(prompt, sampling)) for prompt in prompts]
    requests = [Request(prompt, max_new_tokens, each, samples=samples, stop=stop) for prompt, each in drawn]
    return [answers_of(ticket) for ticket in chat.engine.run(requests)]


def without_looking(
    chat: Chat, asked: Sequence[Sample], answers: Sequence[Sequence[Answer]], sampling: Sampling, max_new_tokens: int
) -> list[list[Answer]]:
    """The same answers, but the second half of each written without images and videos (dropout next-token prediction).

    Args:
        answers: to each question; half of the tokens of each is kept, rounded up. An answer that has none stays so.
        max_new_tokens: of a whole answer.
    """
    stop = frozenset(chat.processor.tokenizer.eos_ids)
    requests, halves = [], []
    for sample, told in zip(asked, answers, strict=True):
        blind = chat.processor.encode_prompt(unseen(sample))
        for number, answer in enumerate(told):
            half = answer.tokens[: -(-len(answer.tokens) // 2)]
            left = max(1, max_new_tokens - len(half))
            halves.append(half)
            prompt = _continued(blind, half)
            requests.append(Request(prompt, left, drawn_for(prompt, sampling), first_sample=number, stop=stop))
    ends = [answers_of(ticket)[0] for ticket in chat.engine.run(requests)]
    whole = iter([Answer(half and half + end.tokens, end.cut) for half, end in zip(halves, ends, strict=True)])
    return [[next(whole) for _ in told] for told in answers]


def unseen(asked: Sample) -> Sample:
    """The question without its images and videos."""
    text = asked.messages[-1].text
    for placeholder in (IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER):
        text = text.replace(f"{placeholder}\n", "").replace(placeholder, "")
    return dataclasses.replace(asked, messages=(*asked.messages[:-1], Message("user", text)), images=(), videos=())


def correctness_pairs(texts: Sequence[str], answer: str, most: int, seed: int) -> list[tuple[str, str]]:
    """A right answer and a wrong one each, at most so many, drawn from all there are.

    An answer that comes to nothing, `Final answer:` or a box missing, is wrong.
    """
    texts = [text for text in dict.fromkeys(texts) if text]
    right = [text for text in texts if same_answer(final_answer(text), answer)]
    wrong = [text for text in texts if text not in right]
    pairs = [*itertools.product(right, wrong)]
    order = np.random.default_rng(seed).permutation(len(pairs))[:most]
    return [pairs[number] for number in order]


def dropout_pairs(seen: Sequence[str], blind: Sequence[str], most: int) -> list[tuple[str, str]]:
    """What was written while looking against what was finished without, at most so many, the first that differ."""
    pairs = dict.fromkeys(pair for pair in zip(seen, blind, strict=True) if all(pair) and pair[0] != pair[1])
    return [*pairs][:most]


def _continued(prompt: Encoded, answer: list[int]) -> Encoded:
    tokens, positions, visual = known(prompt, answer)
    return dataclasses.replace(
        prompt,
        tokens=tokens,
        positions=positions,
        visual_index=visual,
        labels=np.full_like(tokens, IGNORE),
        supervised=np.zeros(len(tokens), bool),
    )
