"""Speed of training on the demo's handwriting: packed rows, shared tiles, what is outside the step, saving.

    python benchmarks/train.py [--steps 200] [--only packed,preferences,outside,saving]

The demo's model (1.2 million parameters) and lessons, on whatever jax runs on. Both sides of a comparison run in turns
in one process, and the middle of three rounds is given.

- packed: useful tokens a second of rows that hold several conversations, beside one conversation a row: batches of the
  same number of positions whose rows are as long as the longest conversation that was found, and batches of the same
  rows. At least 2 is asked. On the demo's lessons, and on conversations of one to eight of them, most of them short.
- preferences: pairs a second, packed with one set of tiles for both answers, beside each answer in a row of its own
  with its own copy of the tiles. At least 1.6 is asked.
- outside: time of the loop's step that is not the jitted step's, which is called again and again with one batch. At
  most 3%.
- saving: wall time with a state saved every 100 steps over that without, once the first is saved, which compiles its
  checksums. At most 2% more.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice, repeat
from pathlib import Path

import jax
import numpy as np

from ivl3_jax.batch import Batch
from ivl3_jax.cli.arguments import read
from ivl3_jax.cli.demo import CONFIG, keep_freed_memory
from ivl3_jax.data.collate import collate
from ivl3_jax.data.encoding import Encoder
from ivl3_jax.data.loader import Loader
from ivl3_jax.data.mixture import Mixture
from ivl3_jax.data.packing import Budget
from ivl3_jax.data.processor import Processor
from ivl3_jax.data.records import Pair, Sample
from ivl3_jax.data.stream import Feed, Part
from ivl3_jax.demo.curriculum import SAMPLES, STAGES, Lessons
from ivl3_jax.demo.run import DemoConfig, fresh_model
from ivl3_jax.models.model import Model
from ivl3_jax.training.config import SaveRecipe, TrainConfig
from ivl3_jax.training.loop import NoKeeper, objective_of, train
from ivl3_jax.training.objectives import PreferenceWeights
from ivl3_jax.training.placing import Placement
from ivl3_jax.training.progress import Clock
from ivl3_jax.training.states import States
from ivl3_jax.training.step import TrainState, init_state, make_step

ROUNDS = 3
STAGE = STAGES[-1]
WARM = 5  # steps before the clock starts


@dataclasses.dataclass(frozen=True)
class Setting:
    """The demo's model and processor."""

    config: DemoConfig
    model: Model
    processor: Processor

    def fresh(self) -> Model:
        """A copy whose arrays may be used up."""
        return self.model.replace(jax.tree.map(lambda leaf: leaf.copy(), self.model.params))

    def feed(self, rows: int, budget: Budget, source=None) -> Feed:
        source = source or Lessons(STAGE, 0)
        part = Part(source, Encoder(self.processor, budget.tokens, budget.tiles))
        return Feed([part], Mixture((SAMPLES,), (1.0,), rows, 0), budget, weighting="token")


class Conversations:
    """One to eight lessons one behind the other, n of them with a probability that falls as 1 / n²."""

    name = "conversations"

    def __len__(self) -> int:
        return SAMPLES // 8

    def __getitem__(self, index: int) -> Sample:
        lengths = 1.0 / np.arange(1, 9) ** 2
        turns = 1 + np.random.default_rng(index).choice(8, p=lengths / lengths.sum())
        lessons = [STAGE.sample(0, 8 * index + turn) for turn in range(turns)]
        return Sample(
            tuple(message for lesson in lessons for message in lesson.messages),
            tuple(image for lesson in lessons for image in lesson.images),
        )


class Answers:
    """Lessons as preference pairs: the right answer beside a wrong one of the same length."""

    name = "pairs"

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Pair:
        sample = STAGE.sample(0, index)
        right = sample.messages[-1].text
        wrong = "".join(str((int(c) + 1) % 10) if c.isdigit() else c for c in right)
        return Pair(sample.messages[:-1], right, wrong + (wrong == right) * "?", sample.images)


def seconds_a_step(setting: Setting, batches: Iterator[Batch], config: TrainConfig, reference=None) -> float:
    """Of the loop, once it is warm."""
    times: list[float] = []
    train(setting.fresh(), batches, config, reference=reference, report=lambda now: times.append(now.seconds))
    return (times[-1] - times[WARM - 1]) / (len(times) - WARM)


def middle(measures: dict[str, Callable[[], float]]) -> dict[str, float]:
    """The middle of some rounds of each, in turns."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(ROUNDS):
        for name, measure in measures.items():
            found[name].append(measure())
    return {name: statistics.median(values) for name, values in found.items()}


def packed(setting: Setting, steps: int) -> None:
    rows, tokens = setting.config.rows, setting.config.tokens
    compare_packed(setting, steps, Lessons(STAGE, 0), rows, tokens, STAGE.tiles)
    compare_packed(setting, steps, Conversations(), rows // 3, tokens * 3, STAGE.tiles * 3)


def compare_packed(setting: Setting, steps: int, source, rows: int, tokens: int, row_tiles: int) -> None:
    """Packed rows of so many tokens and tiles beside padded ones, on one source."""
    config = TrainConfig(steps=steps, learning_rate=1e-4)
    encoded = [setting.processor.encode(source[number]) for number in range(2000)]
    lengths, tiles = np.array([(len(one), len(one.tiles)) for one in encoded]).T
    shapes = {
        "packed": (rows, Budget(tokens, row_tiles, tokens // 8)),
        "padded to the longest": (
            round(rows * tokens / lengths.max()),
            Budget(int(lengths.max()), int(tiles.max()), 1),
        ),
        "padded to the row": (rows, Budget(tokens, max(row_tiles, int(tiles.max())), 1)),
    }
    useful: dict[str, float] = {}

    def measure(name: str) -> float:
        with closing(Loader(setting.feed(*shapes[name], source))) as loader:
            found = list(islice(loader, 40))
        useful[name] = float(np.mean([(batch.segment_ids > 0).sum() for batch in found]))
        with closing(Loader(setting.feed(*shapes[name], source))) as loader:
            return seconds_a_step(setting, loader, config)

    found = middle({name: lambda name=name: measure(name) for name in shapes})
    rates = {name: useful[name] / found[name] for name in found}
    print(f"\n{source.name}:\n")
    print("| batches | rows x positions | tiles a row | useful | ms a step | useful tokens a second | packed |")
    print("|---|---|---|---|---|---|---|")
    for name, (count, budget) in shapes.items():
        share = useful[name] / (count * budget.tokens)
        print(
            f"| {name} | {count} x {budget.tokens} | {budget.tiles} | {share:.0%} | {found[name] * 1e3:.1f} "
            f"| {rates[name]:,.0f} | {rates['packed'] / rates[name]:.2f} times |"
        )
    print(
        f"The longest conversation has {lengths.max() / lengths.mean():.2f} times the mean's positions, the one of most"
        f" tiles {tiles.max() / tiles.mean():.2f} times the mean's: more cannot be had beside the longest."
    )


def preferences(setting: Setting, steps: int) -> None:
    config = TrainConfig(steps=steps, learning_rate=1e-5, preference=PreferenceWeights())
    rows, tokens = setting.config.rows // 2, setting.config.tokens * 2
    encoder, answers, rng = Encoder(setting.processor, tokens, STAGE.tiles), Answers(), np.random.default_rng(0)
    units = [encoder.decode(encoder.measure(answers[number], rng, None)[0], rng) for number in range(500)]
    longest, most = max(len(one) for unit in units for one in unit), max(len(unit[0].tiles) for unit in units)
    each = sum(len(unit[0].tiles) for unit in units) / sum(len(one) for unit in units for one in unit)
    budget = Budget(tokens, max(most, round(tokens * each)), tokens // 8)  # as many tiles as full rows have
    pairs = max(1, round(rows * tokens / (2 * longest)))

    def duplicated() -> Iterator[Batch]:
        """Each answer with its own tiles in a row of its own; the chosen ones, then the rejected ones."""
        number = 0
        while True:
            some = [units[(number + i) % len(units)] for i in range(pairs)]
            number += pairs
            alone = [
                [dataclasses.replace(one, answer="only", tiles=unit[0].tiles)]
                for answer in (0, 1)
                for unit in some
                for one in (unit[answer],)
            ]
            yield collate(setting.processor, alone, longest, most, 1, "token")

    counted: list[float] = []
    sides: dict[str, Callable[[], float]] = {}

    def of_packed() -> float:
        with closing(Loader(setting.feed(rows, budget, answers))) as loader:
            counted.extend(float(batch.chosen.sum()) for batch in islice(loader, 40))
        with closing(Loader(setting.feed(rows, budget, answers))) as loader:
            return step_seconds(setting, loader, config, steps)

    sides["packed, shared tiles"] = of_packed
    # The objective of the duplicated side is the same arithmetic over its rows; its cost is that of the model.
    sides["a row an answer, tiles twice"] = lambda: step_seconds(setting, duplicated(), config, steps)
    found = middle(sides)
    rates = {
        "packed, shared tiles": float(np.mean(counted)) / found["packed, shared tiles"],
        "a row an answer, tiles twice": pairs / found["a row an answer, tiles twice"],
    }
    print("\n| pairs | ms a step | pairs a second |")
    print("|---|---|---|")
    for name, seconds in found.items():
        print(f"| {name} | {seconds * 1e3:.1f} | {rates[name]:,.0f} |")
    first, second = rates.values()
    print(f"packed: {first / second:.2f} times the pairs a second")


def step_seconds(setting: Setting, batches: Iterator[Batch], config: TrainConfig, steps: int) -> float:
    """Of steps with a reference table of zeros, so that the model alone is measured on both sides."""
    reference: dict[tuple[int, ...], jax.Array] = {}

    def zeros(step: int, batch: Batch) -> jax.Array:
        shape = batch.source_id.shape
        return reference.setdefault(shape, jax.numpy.zeros(shape, "float32", device=batch.source_id.sharding))

    return seconds_a_step(setting, batches, dataclasses.replace(config, steps=steps), reference=zeros)


def outside(setting: Setting, steps: int) -> None:
    config = TrainConfig(steps=steps, learning_rate=1e-4)
    rows, tokens = setting.config.rows, setting.config.tokens
    feed = setting.feed(rows, Budget(tokens, STAGE.tiles, tokens // 8))
    with closing(Loader(feed)) as loader:
        batch = next(loader)

    def alone() -> float:
        model = setting.fresh()
        place = Placement(model.plan, model.mesh, *batch.tokens.shape)
        with jax.set_mesh(model.mesh):
            step = make_step(model.graphdef, model.params, objective_of(config), config, model.config.tile_tokens)
            state, placed, key = init_state(model.params, config), place(batch), jax.random.key(0)
            for number in range(steps):
                if number == WARM:
                    jax.block_until_ready(state)
                    began = time.perf_counter()
                state, metrics = step(state, placed, None, key)
            jax.block_until_ready(state)
            return (time.perf_counter() - began) / (steps - WARM)

    found = middle({"step": alone, "loop": lambda: seconds_a_step(setting, repeat(batch), config)})
    extra = found["loop"] / found["step"] - 1
    print(f"\nstep {found['step'] * 1e3:.2f} ms, that of the loop {found['loop'] * 1e3:.2f} ms: {extra:+.1%}")


class SavesEvery(NoKeeper):
    """Saves as a run does, without its data."""

    def __init__(self, directory: Path, every: int) -> None:
        self._states, self._every = States(directory, SaveRecipe()), every

    def due(self, step: int) -> bool:
        return step % self._every == 0

    def keep(self, state: TrainState, clock: Clock) -> None:
        self._states.save(state, {}, {})

    def close(self) -> None:
        self._states.close()


def saving(setting: Setting, steps: int) -> None:
    every, config = 100, TrainConfig(steps=max(steps, 500), learning_rate=1e-4)
    rows, tokens = setting.config.rows, setting.config.tokens
    feed = setting.feed(rows, Budget(tokens, STAGE.tiles, tokens // 8))

    def measure(saves: bool) -> float:
        with tempfile.TemporaryDirectory() as directory, closing(Loader(feed)) as loader:
            keeper = SavesEvery(Path(directory), every) if saves else NoKeeper()
            times: list[float] = []
            train(setting.fresh(), loader, config, keeper=keeper, report=lambda now: times.append(time.perf_counter()))
            if isinstance(keeper, SavesEvery):
                keeper.close()
            return time.perf_counter() - times[every]

    found = middle({"without": lambda: measure(False), "with": lambda: measure(True)})
    extra = found["with"] / found["without"] - 1
    timed = f"{config.steps - every} steps"
    print(f"\n{timed} {found['without']:.1f} s, saving every {every} {found['with']:.1f} s: {extra:+.1%}")


PARTS = {"packed": packed, "preferences": preferences, "outside": outside, "saving": saving}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", default=",".join(PARTS), help="some of " + ", ".join(PARTS))
    arguments = parser.parse_args()
    keep_freed_memory()
    config = read(DemoConfig, CONFIG)
    with tempfile.TemporaryDirectory() as files:
        model = fresh_model(config, Path(files))
        setting = Setting(config, model, Processor.from_directory(files))
        for name in arguments.only.split(","):
            PARTS[name](setting, arguments.steps)


if __name__ == "__main__":
    main()
