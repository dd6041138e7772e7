"""What is taught, and in which order."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from ivl3_jax.batch import Batch
from ivl3_jax.data.loader import batches
from ivl3_jax.data.processor import Processor
from ivl3_jax.data.records import Sample
from ivl3_jax.demo.tasks import ask, draw_pictures

SAMPLES = 1 << 20  # more than any run sees, so that no picture comes twice


@dataclass(frozen=True)
class Stage:
    """A stretch of the run with one mixture of lessons.

    Attributes:
        name: for the training curve.
        until: the share of the run at whose end the stage is over.
        lessons: (task, number of digits) -> weight, the probability up to a constant.
    """

    name: str
    until: float
    lessons: dict[tuple[str, int], float]

    def sample(self, seed: int, index: int) -> Sample:
        """The training conversation of an index: a pure function of the seed, the stage and the index."""
        rng = np.random.default_rng([seed, index, len(self.lessons)])
        weights = np.array(list(self.lessons.values()))
        task, digits = list(self.lessons)[rng.choice(len(weights), p=weights / weights.sum())]
        return ask(task, draw_pictures(task, "train", digits, rng), rng).sample()


# Reading is what everything else stands on. A single digit shows the decoder soonest that looking helps; then come
# longer numbers, and the other tasks once there is something to reason from.
STAGES = (
    Stage("one digit", 0.2, {("read", 1): 1}),
    Stage(
        "all tasks",
        1.0,
        {
            ("read", 1): 12,
            ("read", 2): 24,
            ("read", 3): 20,
            ("count", 1): 3,
            ("count", 2): 3,
            ("count", 3): 3,
            ("add", 2): 8,
            ("add", 3): 8,
            ("larger", 1): 5,
            ("larger", 2): 5,
            ("same", 1): 4,
            ("same", 2): 4,
        },
    ),
)


def first_steps(steps: int) -> list[tuple[int, Stage]]:
    """The first step, from 1, of each stage in a run of so many steps."""
    begins = [0.0, *(stage.until for stage in STAGES)]
    return [(round(begin * steps) + 1, stage) for begin, stage in zip(begins, STAGES, strict=False)]


def lessons(processor: Processor, steps: int, seed: int, rows: int, tokens: int, tiles: int) -> Iterator[Batch]:
    """The packed batches of a run, one stage after the other; see `ivl3_jax.data.loader.batches`."""
    begins = [first for first, _ in first_steps(steps)]
    lengths = [after - first for first, after in zip(begins, [*begins[1:], steps + 1], strict=True)]

    def of(stage: Stage) -> Iterator[Batch]:
        sample: Callable[[int], Sample] = lambda index: stage.sample(seed, index)  # noqa: E731
        return batches(
            sample, SAMPLES, processor, rows=rows, tokens=tokens, tiles=tiles, segments=tokens // 16, seed=seed
        )

    return chain.from_iterable(islice(of(stage), length) for stage, length in zip(STAGES, lengths, strict=True))
