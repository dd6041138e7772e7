"""The held-out examination: fixed questions about digits never trained on, answered by greedy generation."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ivl3_jax.demo import baseline
from ivl3_jax.demo.digits import Picture, compose
from ivl3_jax.demo.tasks import Question, ask, draw_pictures
from ivl3_jax.inference.chat import Chat
from ivl3_jax.inference.sampling import Sampling

SEED = 2504  # of the questions: the same whatever the run's own seed
LONGEST_ANSWER = 16  # tokens
AT_ONCE = 100  # prompts generated together


@dataclass(frozen=True)
class Part:
    """A part of the examination: `count` questions of some tasks about numbers of some lengths, taken in turn."""

    name: str
    tasks: tuple[str, ...]
    digits: tuple[int, ...]
    count: int


PARTS = (
    Part("read one digit", ("read",), (1,), 599),
    Part("read two digits", ("read",), (2,), 300),
    Part("read three digits", ("read",), (3,), 200),
    Part("count the digits", ("count",), (1, 2, 3), 150),
    Part("add the digits", ("add",), (2, 3), 200),
    Part("compare two numbers", ("larger", "same"), (1, 2), 200),
)


@dataclass(frozen=True)
class Answered:
    """A question, what the model said, and whether that is right."""

    part: str
    question: Question
    reply: str

    @property
    def right(self) -> bool:
        return self.question.right(self.reply)


@dataclass(frozen=True)
class Score:
    """Shares of right answers in one part, of the model and of the SVM (None where it has nothing to do)."""

    part: str
    questions: int
    model: float
    svm: float | None


def questions(share: float = 1.0) -> Iterator[tuple[str, Question]]:
    """The examination, each question with its part; `share` of it for a quick look.

    The first part shows every held-out digit once.
    """
    for number, part in enumerate(PARTS):
        for i in range(max(1, round(part.count * share))):
            rng = np.random.default_rng([SEED, number, i])
            task, digits = part.tasks[i % len(part.tasks)], part.digits[i // len(part.tasks) % len(part.digits)]
            if part is PARTS[0]:
                pictures: tuple[Picture, ...] = (compose("held_out", [i], rng),)
            else:
                pictures = draw_pictures(task, "held_out", digits, rng)
            yield part.name, ask(task, pictures, rng)


def examine(chat: Chat, share: float = 1.0, temperature: float = 0.0) -> list[Answered]:
    """Asks everything, a hundred prompts at a time, greedily unless there is a temperature."""
    asked = list(questions(share))
    answered = []
    tokenizer = chat.processor.tokenizer
    for start in range(0, len(asked), AT_ONCE):
        group = asked[start : start + AT_ONCE]
        prompts = [chat.processor.encode_prompt(question.prompt()) for _, question in group]
        sampling = Sampling(temperature=temperature, seed=start)
        replies = chat.engine.generate(prompts, LONGEST_ANSWER, tokenizer.eos_ids, sampling)
        for (part, question), reply in zip(group, replies, strict=True):
            answered.append(Answered(part, question, tokenizer.decode(reply)))
    return answered


def scores(answered: list[Answered]) -> list[Score]:
    """One line for each part, in order."""
    found = []
    for part in dict.fromkeys(answer.part for answer in answered):
        members = [answer for answer in answered if answer.part == part]
        # Counting is no task for the SVM, which is handed the digits one by one.
        counting = members[0].question.task == "count"
        svm = None if counting else float(np.mean([baseline.answers_right(answer.question) for answer in members]))
        found.append(Score(part, len(members), float(np.mean([answer.right for answer in members])), svm))
    return found
