"""A process reward model as the critic of solutions, in the form of VisualPRM (arXiv 2503.10291)."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ivl3_jax.data.encoded import Encoded
from ivl3_jax.data.records import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, Message, Sample
from ivl3_jax.inference.chat import Chat
from ivl3_jax.inference.request import Request, Weighed, whole_number

MOST_STEPS = 12
BREAK = "\n\n"  # between steps
GOOD, BAD = "+", "-"


@dataclass(frozen=True)
class Judged:
    """What a critic thinks of a solution.

    Attributes:
        steps: of it. scores: of each, P(+) / (P(+) + P(-)).
    """

    steps: tuple[str, ...]
    scores: tuple[float, ...]

    @property
    def score(self) -> float:
        """The mean over steps."""
        return sum(self.scores) / len(self.scores)


class Critic:
    """Judges solutions by what a checkpoint of InternVL's form says to each of their steps, `+` or `-`.

        critic = Critic(Chat(ivl3_jax.load("VisualPRM-8B")))
        critic.judge(Sample((Message("user", "How many?"),), ("photo.jpg",)), ["There are two.\\n\\nFinal answer: 2"])

    The dialogue is that of `generate_steps_with_soft_score`: the question and the first step in one turn, then a step a
    turn, every answer before the one in question being `+`. All steps of a solution are judged in one pass, and what
    solutions have in common, the pictures first of all, is computed once.
    """

    def __init__(self, chat: Chat, most_steps: int = MOST_STEPS) -> None:
        """Asks through a chat, its system message included; one of more steps has neighbours merged.

        Raises:
            ValueError: its tokenizer has no token `+` or `-`.
        """
        self.chat, self.most_steps = chat, whole_number("most_steps", most_steps, least=1)
        self._signs = chat.processor.tokenizer.id(GOOD), chat.processor.tokenizer.id(BAD)

    def judge(self, asked: Sample, solutions: Sequence[str]) -> list[Judged]:
        """What it thinks of each.

        Args:
            asked: the question, one user turn, with its images and videos.

        Raises:
            ValueError: it has other turns, an image cannot be read, or question and solution pass what the model takes.
        """
        return self.judge_all([(asked, solutions)])[0]

    def judge_all(self, asked: Sequence[tuple[Sample, Sequence[str]]]) -> list[list[Judged]]:
        """As `judge`, of several questions at once."""
        requests: dict[tuple[int, str], Request] = {}
        for number, (sample, solutions) in enumerate(asked):
            opened = self._opened(sample)
            for solution in solutions:
                if (number, solution) not in requests:
                    requests[number, solution] = self._request(opened, solution)
        tickets = dict(zip(requests, self.chat.engine.run([*requests.values()]), strict=True))
        return [
            [
                Judged(tuple(steps_of(solution, self.most_steps)), soft_scores(tickets[number, solution].weights))
                for solution in solutions
            ]
            for number, (_, solutions) in enumerate(asked)
        ]

    def dialogue(self, asked: Sample, solution: str) -> Sample:
        """The conversation about a solution, with `+` to every step.

        Args:
            asked: one user turn with placeholders for its images.
        """
        messages: list[Message] = []
        plain = self.chat.processor.harmless(solution)
        # A step stands in a user turn, where a placeholder would be one.
        for placeholder in (IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER):
            plain = plain.replace(placeholder, f"< {placeholder[1:]}")
        for step in steps_of(plain, self.most_steps):
            text = step if messages else f"### Question:\n{asked.messages[0].text}\n\n### Solution Process:\n{step}"
            messages += [Message("user", text), Message("assistant", GOOD)]
        return dataclasses.replace(asked, messages=tuple(messages))

    def _opened(self, asked: Sample) -> Sample:
        if [message.role for message in asked.messages] != ["user"]:
            roles = ", ".join(message.role for message in asked.messages) or "none"
            raise ValueError(f"the turns of the question are: {roles}; a critic judges answers to one user turn")
        return self.chat.processor.opened(asked, self.chat.processor.max_tiles)

    def _request(self, asked: Sample, solution: str) -> Request:
        processor = self.chat.processor
        dialogue = self.dialogue(asked, solution)
        encoded = processor.encode(dialogue)
        places = np.flatnonzero(encoded.labels == self._signs[0])  # no other answer has it, and questions no label
        if len(places) != len(dialogue.messages) // 2:
            raise ValueError(f"{processor.tokenizer.where}: an answer of {GOOD!r} is not that one token")
        return Request(_until(encoded, int(places[-1]) + 1), 0, weighed=Weighed(tuple(places.tolist()), self._signs))


def steps_of(solution: str, most: int = MOST_STEPS) -> list[str]:
    """A solution's steps, which blank lines part; of more than `most`, neighbours are merged into equal groups.

    As `split_response` of the published code, but that a step has to have text.
    """
    steps = [step for step in solution.split(BREAK) if step.strip()] or [solution]
    each = math.ceil(len(steps) / most)
    return [BREAK.join(steps[start : start + each]) for start in range(0, len(steps), each)]


def soft_scores(weights: np.ndarray) -> tuple[float, ...]:
    """P(+) / (P(+) + P(-)) of log-probabilities [steps, 2]."""
    return tuple((1 / (1 + np.exp(weights[:, 1].astype(np.float64) - weights[:, 0]))).tolist())


def _until(encoded: Encoded, end: int) -> Encoded:
    """The first `end` tokens: what stands behind the last place is not looked at."""
    names = ("tokens", "labels", "supervised", "visual_index", "positions")
    return dataclasses.replace(encoded, **{name: getattr(encoded, name)[:end] for name in names})
