"""The paper's stages on handwriting: native pre-training, supervised fine-tuning, preferences; and other ways there."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import numpy as np

from ivl3_jax.batch import Batch
from ivl3_jax.data.encoding import Encoder
from ivl3_jax.data.loader import Loader
from ivl3_jax.data.mixture import Mixture
from ivl3_jax.data.packing import Budget
from ivl3_jax.data.positions import random_deltas
from ivl3_jax.data.processor import Processor
from ivl3_jax.data.records import Message, Pair, Sample
from ivl3_jax.data.sources import Source
from ivl3_jax.data.stream import Feed, Part
from ivl3_jax.demo.curriculum import ALL_TASKS, SAMPLES, Lessons, Stage
from ivl3_jax.demo.tasks import Question, ask, draw_pictures
from ivl3_jax.inference.chat import Chat
from ivl3_jax.inference.sampling import Sampling

LONGEST_ANSWER = 16  # tokens
AT_ONCE = 100  # prompts generated together
TILES = 10

READING = Stage("reading", 0.1, None, TILES, {("read", 1): 2, ("read", 2): 2, ("read", 3): 3})
EVERYTHING = Stage("all tasks", 0.2, None, TILES, ALL_TASKS)
ASKED = Stage("asked for preferences", 0.3, None, TILES, ALL_TASKS)


@dataclass(frozen=True)
class Sums:
    """Text alone: sums as the pictures' questions want them, and which of two numbers is larger."""

    seed: int
    name: str = "sums"

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, index, 7])
        digits = rng.integers(0, 10, rng.integers(2, 4))
        if rng.random() < 0.5:
            turns = (
                "Add the digits of " + "".join(map(str, digits)) + ".",
                f"{'+'.join(map(str, digits))}={digits.sum()}",
            )
        else:
            first, second = rng.integers(0, 100, 2)
            verdict = "they are the same" if first == second else f"the {'first' if first > second else 'second'}"
            turns = (f"Which is larger, {first} or {second}?", f"{first} and {second}: {verdict}")
        return Sample((Message("user", turns[0]), Message("assistant", turns[1])))


@dataclass(frozen=True)
class Listed:
    """Samples or pairs that are at hand, as a source."""

    name: str
    items: Sequence[Sample | Pair]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample | Pair:
        return self.items[index]


def batches(
    processor: Processor,
    sources: Sequence[tuple[Source, float]],
    steps: int,
    *,
    rows: int,
    tokens: int,
    seed: int,
    weighting: str = "square",
    deltas: bool = False,
) -> Iterator[Batch]:
    """The packed batches of a stage.

    Args:
        sources: with their weights. rows, tokens: B and S. weighting: of tokens in the loss.
        deltas: whether V2PE's step is drawn for each image.
    """
    budget = Budget(tokens, TILES * tokens // 128, tokens // 8)
    encoder = Encoder(processor, budget.tokens, budget.tiles, deltas=random_deltas if deltas else None)
    parts = [Part(source, encoder) for source, _ in sources]
    lengths, weights = tuple(len(source) for source, _ in sources), tuple(weight for _, weight in sources)
    feed = Feed(parts, Mixture(lengths, weights, rows, seed), budget, weighting=weighting)
    with closing(Loader(feed)) as loader:
        yield from islice(loader, steps)


def pretraining(seed: int) -> list[tuple[Source, float]]:
    """Reading and text in one mixture, a quarter of it text."""
    return [(Lessons(READING, seed), 0.75), (Sums(seed), 0.25)]


def instructions(seed: int) -> list[tuple[Source, float]]:
    """All tasks."""
    return [(Lessons(EVERYTHING, seed), 1.0)]


def preference_pairs(chat: Chat, seed: int, questions: int, samples: int) -> list[Pair]:
    """Pairs as MMPR's are made where answers can be checked: several are sampled, a wrong one against the right one.

    A question makes one pair if any of its samples is wrong. With a single sample each, a model that knows how sure it
    may be would be wrong about a picture as often in favour of either reading, and such pairs teach it to doubt.

    Args:
        chat: the model that answers, at temperature 1. questions: about training digits. samples: of each answer.
    """
    asked = [_question(seed, number) for number in range(questions)]
    tokenizer, found = chat.processor.tokenizer, []
    for start in range(0, questions, AT_ONCE):
        group = asked[start : start + AT_ONCE]
        prompts = [chat.processor.encode_prompt(question.prompt()) for question in group]
        wrong: dict[int, str] = {}
        for turn in range(samples):
            sampling = Sampling(temperature=1.0, seed=(seed * questions + start) * samples + turn)
            replies = chat.engine.generate(prompts, LONGEST_ANSWER, tokenizer.eos_ids, sampling)
            for number, (question, reply) in enumerate(zip(group, replies, strict=True)):
                said = tokenizer.decode(reply)
                if said and not question.right(said):
                    wrong.setdefault(number, said)
        for number, said in sorted(wrong.items()):
            sample = group[number].sample()
            found.append(Pair(sample.messages[:-1], group[number].answer, said, sample.images))
    return found


def _question(seed: int, number: int) -> Question:
    rng = np.random.default_rng([seed, number, 11])
    weights = np.array(list(ASKED.lessons.values()))
    task, digits = list(ASKED.lessons)[rng.choice(len(weights), p=weights / weights.sum())]
    return ask(task, draw_pictures(task, "train", digits, rng), rng)


def finer(processor: Processor, times: int) -> Processor:
    """A processor that cuts pictures into up to so many times the tiles: a longer context than was trained."""
    return dataclasses.replace(processor, max_tiles=processor.max_tiles * times)
