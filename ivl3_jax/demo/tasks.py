"""Questions about pictures of digits, their answers, and whether a reply is right.

Where an answer needs more than looking, it first says what was seen ("3+7=10"): the decoder then has the digits as
text to reason from. Only the result behind counts.
"""

import re
from dataclasses import dataclass

import numpy as np

from ivl3_jax.data.records import Message, Sample
from ivl3_jax.demo.digits import Picture, Split, compose, load

READ = (
    "What number is written here?",
    "Read the number.",
    "Which number do you see?",
    "What does the picture say?",
    "Read the digits from left to right.",
)
COUNT = (
    "How many digits are there?",
    "Count the digits.",
    "How many digits do you see?",
    "How long is the number?",
)
ADD = (
    "What is the sum of the digits?",
    "Add the digits.",
    "What do the digits add up to?",
    "Add up all digits in the picture.",
)
LARGER = (
    "Which number is larger, the first or the second?",
    "Which picture shows the larger number?",
    "Compare the two numbers: which is larger?",
)
SAME = (
    "Are the two numbers the same?",
    "Do both pictures show the same number?",
    "Is it the same number twice?",
)
PHRASINGS = {"read": READ, "count": COUNT, "add": ADD, "larger": LARGER, "same": SAME}
TWO_PICTURES = ("larger", "same")

# Small sheets: the processor shares its tiles among the images of a conversation when training.
SMALL = 0.7


@dataclass(frozen=True)
class Question:
    """One question about one or two pictures.

    Attributes:
        task: a key of `PHRASINGS`.
        text, answer: what is asked, and the full answer that is taught.
        pictures: what is asked about.
    """

    task: str
    text: str
    answer: str
    pictures: tuple[Picture, ...]

    def sample(self, *more: "Question") -> Sample:
        """The conversation to learn from; `more` questions follow about the same pictures."""
        turns = [
            Message(role, text)
            for question in (self, *more)
            for role, text in (("user", question.text), ("assistant", question.answer))
        ]
        return Sample(tuple(turns), tuple(picture.image for picture in self.pictures))

    def prompt(self) -> Sample:
        """The conversation up to the answer."""
        return Sample((Message("user", self.text),), tuple(picture.image for picture in self.pictures))

    def right(self, reply: str) -> bool:
        """Whether a reply comes to the right result, however it got there."""
        return result(reply) == result(self.answer)


def result(reply: str) -> str:
    """What a reply comes to: what follows the last "=" or ":", without spaces around and full stops."""
    return re.split(r"[=:]", reply)[-1].strip().rstrip(".")


def ask(task: str, pictures: tuple[Picture, ...], rng: np.random.Generator) -> Question:
    """A question of a task about pictures, in one of its phrasings."""
    first = pictures[0]
    text = str(rng.choice(PHRASINGS[task]))
    if task == "read":
        answer = first.text
    elif task == "count":
        answer = str(len(first.digits))
    elif task == "add":
        answer = f"{'+'.join(first.text)}={sum(first.digits)}"
    else:
        second = pictures[1]
        larger = "first" if int(first.text) > int(second.text) else "second"
        verdict = f"the {larger}" if task == "larger" else "yes" if first.text == second.text else "no"
        answer = f"{first.text} and {second.text}: {verdict}"
    return Question(task, text, answer, pictures)


def draw_pictures(task: str, split: Split, digits: int, rng: np.random.Generator) -> tuple[Picture, ...]:
    """One picture of `digits` digits, or two for a comparison, fit for the questions of a task."""
    if task not in TWO_PICTURES:
        return (compose(split, _members(split, digits, rng), rng),)
    first = _members(split, digits, rng)
    second = _members(split, digits, rng)
    labels = load(split).labels
    if task == "same" and rng.random() < 0.5:
        # The same number in other hands.
        second = [int(rng.choice(np.flatnonzero(labels == labels[member]))) for member in first]
    while task == "larger" and all(labels[first] == labels[second]):
        second = _members(split, digits, rng)
    return compose(split, first, rng, largest=SMALL), compose(split, second, rng, largest=SMALL)


def _members(split: Split, digits: int, rng: np.random.Generator) -> list[int]:
    return [int(member) for member in rng.integers(0, len(load(split)), digits)]
