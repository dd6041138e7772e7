"""Adding digits step by step: a task whose solutions have steps that can be right or wrong."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ivl3_jax.data.records import Message, Sample
from ivl3_jax.demo.curriculum import SAMPLES
from ivl3_jax.demo.digits import Picture, Split
from ivl3_jax.demo.tasks import draw_pictures
from ivl3_jax.inference.scaling.critic import BAD, GOOD, Critic, steps_of

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
    """A question about a picture of three digits."""

    text: str
    picture: Picture

    @property
    def answer(self) -> str:
        return str(sum(self.picture.digits))

    @property
    def steps(self) -> list[str]:
        """Those of the one right solution: each digit, the sum, and what it comes to."""
        seen = [f"{place}: {digit}" for place, digit in zip(PLACES, self.picture.digits, strict=True)]
        return [*seen, f"{'+'.join(self.picture.text)}={self.answer}", f"Final answer: {self.answer}"]

    def asked(self) -> Sample:
        """The question alone."""
        return Sample((Message("user", self.text),), (self.picture.image,))

    def solved(self) -> Sample:
        """The question with its solution, to learn from."""
        return Sample((*self.asked().messages, Message("assistant", "\n\n".join(self.steps))), (self.picture.image,))

    def judged(self, critic: Critic, solution: str) -> Sample:
        """The critic's dialogue about a solution, to learn from: `+` up to the first wrong step, and `-` to that.

        What follows a wrong step is left out: when a critic is asked, `+` stands before every step.
        """
        asked = self.asked()
        opened = critic.chat.processor.opened(asked, critic.chat.processor.max_tiles)
        found = steps_of(solution)
        right = 0
        while right < min(len(found), len(self.steps)) and found[right] == self.steps[right]:
            right += 1
        messages = critic.dialogue(opened, solution).messages[: 2 * (right + 1)]
        if right < len(found):
            messages = (*messages[:-1], Message("assistant", BAD))
        assert all(message.text in (GOOD, BAD) for message in messages[1::2])
        return Sample(messages, opened.images)


def sums(split: Split, seed: Sequence[int]) -> Sum:
    """A question, the same for the same seed."""
    rng = np.random.default_rng([*seed, 17])
    return Sum(str(rng.choice(ASKED)), draw_pictures("add", split, DIGITS, rng)[0])


@dataclass(frozen=True)
class Solved:
    """Questions about digits to learn from, with their solutions, as a data source."""

    seed: int
    name: str = "sums step by step"

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Sample:
        return sums("train", (self.seed, index, 1)).solved()
