"""What is taught, and in which order."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import numpy as np

from ivl3_jax.batch import Batch
from ivl3_jax.data.encoding import Encoder
from ivl3_jax.data.loader import Loader
from ivl3_jax.data.mixture import Mixture
from ivl3_jax.data.packing import Budget
from ivl3_jax.data.processor import Processor
from ivl3_jax.data.records import Sample
from ivl3_jax.data.stream import Feed, Part
from ivl3_jax.demo.tasks import ask, draw_pictures

SAMPLES = 1 << 20  # more than any run sees, so that no picture comes twice


@dataclass(frozen=True)
class Stage:
    """A stretch of the run with one mixture of lessons and one shape of batch.

    Attributes:
        name: for the training curve.
        until: the share of the run at whose end the stage is over.
        max_tiles: of one picture, its thumbnail not counted; None is the processor's own.
        tiles: T of the stage's batches.
        lessons: (task, number of digits) -> weight, the probability up to a constant.
    """

    name: str
    until: float
    max_tiles: int | None
    tiles: int
    lessons: Mapping[tuple[str, int], float]

    def sample(self, seed: int, index: int) -> Sample:
        """The training conversation of an index: a pure function of the seed, the stage and the index."""
        rng = np.random.default_rng([seed, index, round(self.until * 1000)])
        weights = np.array(list(self.lessons.values()))
        task, digits = list(self.lessons)[rng.choice(len(weights), p=weights / weights.sum())]
        return ask(task, draw_pictures(task, "train", digits, rng), rng).sample()


# Sums and comparisons name the digits too, so they teach reading as well.
ALL_TASKS = {
    ("read", 1): 12,
    ("read", 2): 12,
    ("read", 3): 26,
    ("count", 1): 1,
    ("count", 2): 2,
    ("count", 3): 2,
    ("add", 2): 8,
    ("add", 3): 20,
    ("larger", 1): 8,
    ("larger", 2): 10,
    ("same", 1): 6,
    ("same", 2): 8,
}

# A single digit in a single tile shows soonest that looking helps. Then all tasks, still with each picture squeezed
# into one tile, as its thumbnail would be: most digits for the time. Dynamic tiling at last shows long numbers in full.
STAGES = (
    Stage("one digit", 0.05, 1, 5, {("read", 1): 1}),
    Stage("all tasks, one tile", 0.35, 1, 5, ALL_TASKS),
    Stage("all tasks, dynamic tiling", 1.0, None, 10, ALL_TASKS),
)


def first_steps(steps: int) -> list[tuple[int, Stage]]:
    """The first step, from 1, of each stage in a run of so many steps."""
    begins = [0.0, *(stage.until for stage in STAGES)]
    return [(round(begin * steps) + 1, stage) for begin, stage in zip(begins, STAGES, strict=False)]


@dataclass(frozen=True)
class Lessons:
    """The training conversations of a stage, by number, as a data source."""

    stage: Stage
    seed: int

    @property
    def name(self) -> str:
        return self.stage.name

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Sample:
        return self.stage.sample(self.seed, index)


def lessons(processor: Processor, steps: int, seed: int, rows: int, tokens: int) -> Iterator[Batch]:
    """The packed batches of a run, one stage after the other.

    Args:
        rows, tokens: B and S of every batch.
    """
    begins = [first for first, _ in first_steps(steps)]
    lengths = [after - first for first, after in zip(begins, [*begins[1:], steps + 1], strict=True)]
    for stage, length in zip(STAGES, lengths, strict=True):
        room = Budget(tokens, stage.tiles, tokens // 8)
        adapted = dataclasses.replace(processor, max_tiles=stage.max_tiles or processor.max_tiles)
        part = Part(Lessons(stage, seed), Encoder(adapted, room.tokens, room.tiles))
        feed = Feed([part], Mixture((SAMPLES,), (1.0,), rows, seed), room, weighting="token")
        with closing(Loader(feed)) as batches:
            yield from islice(batches, length)
