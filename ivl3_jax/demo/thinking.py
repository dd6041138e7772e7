"""Reading and adding digits step by step: a task whose solutions have steps that can be right or wrong."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ivl3_jax.data.records import Message, Sample
from ivl3_jax.demo.curriculum import SAMPLES
from ivl3_jax.demo.digits import Picture, Split
from ivl3_jax.demo.tasks import draw_pictures
from ivl3_jax.inference.scaling.critic import BAD, BREAK, GOOD, Critic

PLACES = ("first", "second", "third")
MOST_DIGITS = len(PLACES)
ASKED = (
    "Add the digits step by step.",
    "Step by step, what is the sum?",
    "What do the digits add up to? Go step by step.",
)
WRONG = 0.5  # of the steps that a critic learns from
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
    def claims(self) -> list[tuple[str, int, int]]:
        """Of each step of the one right solution: its text up to its number, that number, and how many it could be.

        The steps are each digit, the sum of several, and what it comes to.
        """
        digits, total = self.picture.digits, sum(self.picture.digits)
        seen = [(f"{place}: ", digit, 10) for place, digit in zip(PLACES, digits, strict=False)]
        added = [f"{'+'.join(self.picture.text)}="] if len(digits) > 1 else []
        return [*seen, *((text, total, 9 * len(digits) + 1) for text in (*added, "Final answer: "))]

    @property
    def steps(self) -> list[str]:
        """Those of the one right solution."""
        return [f"{text}{number}" for text, number, _ in self.claims]

    def asked(self) -> Sample:
        """The question alone."""
        return Sample((Message("user", self.text),), (self.picture.image,))

    def solved(self) -> Sample:
        """The question with its solution, to learn from."""
        return Sample((*self.asked().messages, Message("assistant", "\n\n".join(self.steps))), (self.picture.image,))


def sums(split: Split, seed: Sequence[int], digits: int) -> Sum:
    """A question, the same for the same seed."""
    rng = np.random.default_rng([*seed, 17])
    return Sum(str(rng.choice(ASKED)), draw_pictures("add", split, digits, rng)[0])


@dataclass(frozen=True)
class Solved:
    """Questions about digits to learn from, with their solutions, as a data source.

    Attributes:
        digits: of a picture, 1 to 3.
    """

    seed: int
    digits: int
    name: str = "sums step by step"

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Sample:
        return sums("train", (self.seed, index, 1), self.digits).solved()


@dataclass(frozen=True)
class Claims:
    """Solutions whose steps are claimed until they are right, as a data source for a critic.

    Before each right step stand wrong ones, one on average, so that a picture is looked at many times. In half of the
    dialogues the answers are `+` or `-`. A sign has to do neither with what is claimed nor with what is there, only
    with whether both are the same, and from signs alone a model of this size does not learn to look. So in the others
    every answer says what is claimed, or what is there. A critic is asked for signs only. A dialogue ends with as many
    steps as the critic keeps apart, perhaps with a wrong one.

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
        kind, steps, answers = rng.integers(4), list[str](), list[str]()
        for text, true, numbers in question.claims:
            claimed = -1
            while claimed != true and len(steps) < self.critic.most_steps:
                claimed = true if rng.random() > WRONG else int(true + rng.integers(1, numbers)) % numbers
                steps.append(f"{text}{claimed}")
                sign = GOOD if claimed == true else BAD
                answers.append((sign, sign, str(claimed), str(true))[kind])
        return _answered(self.critic, question, steps, answers)


def _answered(critic: Critic, question: Sum, steps: list[str], answers: list[str]) -> Sample:
    processor = critic.chat.processor
    dialogue = critic.dialogue(processor.opened(question.asked(), processor.max_tiles), BREAK.join(steps))
    told = [Message("assistant", answer) for answer in answers]
    turns = [turn for pair in zip(dialogue.messages[::2], told, strict=True) for turn in pair]
    return replace(dialogue, messages=tuple(turns))
