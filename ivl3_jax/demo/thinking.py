"""Adding digits step by step: a task whose solutions have steps that can be right or wrong."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ivl3_jax.data.records import Message, Sample
from ivl3_jax.demo.curriculum import SAMPLES
from ivl3_jax.demo.digits import Picture, Split
from ivl3_jax.demo.tasks import draw_pictures
from ivl3_jax.inference.scaling.critic import BAD, BREAK, GOOD, Critic

DIGITS = 3
PLACES = ("first", "second", "third")
ASKED = (
    "Add the digits step by step.",
    "Step by step, what is the sum?",
    "What do the digits add up to? Go step by step.",
)
SEED = 2503  # of the examination: the same whatever the run's own seed


@dataclass(frozen=True)
class Sum:
    """A question about a picture of one to three digits."""

    text: str
    picture: Picture

    @property
    def answer(self) -> str:
        return str(sum(self.picture.digits))

    @property
    def steps(self) -> list[str]:
        """Those of the one right solution: each digit, the sum, and what it comes to."""
        seen = [f"{place}: {digit}" for place, digit in zip(PLACES, self.picture.digits, strict=False)]
        return [*seen, f"{'+'.join(self.picture.text)}={self.answer}", f"Final answer: {self.answer}"]

    def asked(self) -> Sample:
        """The question alone."""
        return Sample((Message("user", self.text),), (self.picture.image,))

    def solved(self) -> Sample:
        """The question with its solution, to learn from."""
        return Sample((*self.asked().messages, Message("assistant", "\n\n".join(self.steps))), (self.picture.image,))


def sums(split: Split, seed: Sequence[int], digits: int = DIGITS) -> Sum:
    """A question, the same for the same seed."""
    rng = np.random.default_rng([*seed, 17])
    return Sum(str(rng.choice(ASKED)), draw_pictures("add", split, digits, rng)[0])


@dataclass(frozen=True)
class Solved:
    """Questions about digits to learn from, with their solutions, as a data source."""

    seed: int
    name: str = "sums step by step"

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Sample:
        return sums("train", (self.seed, index, 1)).solved()


@dataclass(frozen=True)
class Claims:
    """A step of a solution, right or wrong, behind right ones, as a data source for a critic.

    Half of the answers are `+` or `-`. A sign has to do neither with what is claimed nor with what is there, only with
    whether both are the same, and from signs alone a model of this size does not learn to look. So the other answers
    say what is claimed, or what is there. A critic is asked for signs only.

    Attributes:
        critic: whose form the dialogue has. digits: of a picture, 1 to 3.
    """

    critic: Critic
    seed: int
    digits: int
    name: str = "claims"

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, index, 19])
        question = sums("train", (self.seed, index, 2), self.digits)
        seen = rng.random() < 0.75  # a digit, else the sum or the final answer
        place = int(rng.integers(self.digits) if seen else self.digits + rng.integers(2))
        true, numbers = (question.picture.digits[place], 10) if seen else (int(question.answer), 9 * self.digits + 1)
        right = rng.random() < 0.5
        claimed = true if right else int(true + rng.integers(1, numbers)) % numbers
        steps = [*question.steps[:place], question.steps[place].removesuffix(str(true)) + str(claimed)]
        processor = self.critic.chat.processor
        dialogue = self.critic.dialogue(processor.opened(question.asked(), processor.max_tiles), BREAK.join(steps))
        sign = GOOD if right else BAD
        told = (sign, sign, str(claimed), str(true))[rng.integers(4)]
        return replace(dialogue, messages=(*dialogue.messages[:-1], Message("assistant", told)))
