"""The paper's recipe and two of its ablations on handwriting, over several seeds: `ivl3 demo --recipe`."""

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jax
import numpy as np

from ivl3_jax.batch import Batch
from ivl3_jax.config import DecoderConfig, VisionConfig
from ivl3_jax.data.positions import v2pe_positions
from ivl3_jax.data.processor import Processor
from ivl3_jax.demo.evaluation import examine
from ivl3_jax.demo.run import DemoConfig, fresh_model, make_room
from ivl3_jax.demo.stages import Listed, Sums, batches, finer, instructions, preference_pairs, pretraining
from ivl3_jax.inference.chat import Chat
from ivl3_jax.models.model import Model
from ivl3_jax.training.config import Component, PreferenceWeights, TrainConfig
from ivl3_jax.training.loop import Progress, train
from ivl3_jax.training.reference import ReferenceModel

FINER = 3  # times the tiles of training, for the longer contexts
MORE = 1000  # added to the seed of conversations that were not among the fine-tuning's
STEPS = (1.0, 0.25)  # of V2PE, with which longer contexts are examined


@dataclass(frozen=True)
class RecipeConfig:
    """Everything that can be set.

    Attributes:
        vision, decoder: of the model, as in `ivl3 demo`.
        output: the directory that receives everything; one of an earlier demo is replaced.
        seeds: of the runs whose mean and spread are given.
        pretrain_steps, sft_steps, preference_steps: of the stages; pretrain_rate, sft_rate, preference_rate: their peak
            learning rates.
        asked: questions for preference pairs. samples: answers to each, of which a wrong one stands against the right.
        rows, tokens: B and S of a batch. max_tiles: of one picture, its thumbnail not counted.
        examination: the share of the examination's questions to ask after a stage.
        looks: times that a tenth of them is asked while a model is fine-tuned, for the curve.
        ablations: whether the other ways to a fine-tuned model are gone too.
    """

    vision: VisionConfig
    decoder: DecoderConfig
    output: str = "runs/recipe"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    pretrain_steps: int = 1000
    sft_steps: int = 1500
    preference_steps: int = 200
    pretrain_rate: float = 8e-4
    sft_rate: float = 6e-4
    preference_rate: float = 5e-5
    asked: int = 2000
    samples: int = 8
    rows: int = 6
    tokens: int = 128
    max_tiles: int = 4
    examination: float = 0.5
    looks: int = 8
    ablations: bool = True

    def __post_init__(self) -> None:
        for name in (
            "pretrain_steps",
            "sft_steps",
            "preference_steps",
            "asked",
            "rows",
            "tokens",
            "max_tiles",
            "looks",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"RecipeConfig.{name} is {getattr(self, name)}; it must be at least 1")
        if not self.seeds:
            raise ValueError("RecipeConfig.seeds is empty; give at least one")

    @property
    def all_steps(self) -> int:
        """Of all stages at all seeds."""
        ways, others = (3, 2) if self.ablations else (1, 1)
        each = ways * (self.pretrain_steps + self.sft_steps) + others * self.preference_steps
        return len(self.seeds) * each

    @property
    def model(self) -> DemoConfig:
        return DemoConfig(self.vision, self.decoder, max_tiles=self.max_tiles, rows=self.rows, tokens=self.tokens)


@dataclass
class Found:
    """What the runs come to.

    Attributes:
        right: by way and stage, the share of right answers in the examination at each seed; sampled: likewise, of
            answers drawn at temperature 1.
        longer: by way and step of V2PE, likewise with pictures cut finer than any in training.
        losses: by way and stage, those of every step at each seed.
        along: by way, (step, share of right answers) while it is fine-tuned, at each seed. seconds: of everything.
    """

    right: dict[str, list[float]] = field(default_factory=dict)
    sampled: dict[str, list[float]] = field(default_factory=dict)
    longer: dict[str, list[float]] = field(default_factory=dict)
    losses: dict[str, list[list[float]]] = field(default_factory=dict)
    along: dict[str, list[list[tuple[int, float]]]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def shares(self) -> dict[str, list[float]]:
        """All shares of right answers at the end of a way."""
        sampled = {f"{name}, sampled": shares for name, shares in self.sampled.items()}
        return self.right | sampled | {f"finer tiles: {name}": shares for name, shares in self.longer.items()}


@dataclass(frozen=True)
class Lab:
    """One seed's fresh model and the stages that can be gone through with it."""

    config: RecipeConfig
    seed: int
    fresh: Model
    processor: Processor
    tell: Callable[[str], None]
    report: Callable[[Progress], None]
    found: Found

    def teach(
        self,
        name: str,
        model: Model,
        stream: Iterator[Batch],
        config: TrainConfig,
        *,
        reference: ReferenceModel | None = None,
        look: Callable[[Model, int], None] = lambda model, step: None,
    ) -> Model:
        """A stage; the model's arrays are used up."""
        self.tell(f"seed {self.seed}: {name}, {config.steps} steps")
        losses: list[float] = []

        def told(now: Progress) -> None:
            losses.append(round(now.loss, 4))
            self.report(now)

        trained, _ = train(model, stream, config, reference=reference, report=told, look=look)
        self.found.losses.setdefault(name, []).append(losses)
        return trained

    def stream(self, sources, steps: int, **changes) -> Iterator[Batch]:
        shape = {"rows": self.config.rows, "tokens": self.config.tokens, "seed": self.seed}
        return batches(self.processor, sources, steps, **(shape | changes))

    def settings(self, steps: int, rate: float, **changes) -> TrainConfig:
        warmup = max(1, steps // 30)
        return TrainConfig(
            steps=steps, learning_rate=rate, warmup_steps=warmup, final_learning_rate=0.01, beta2=0.95, seed=self.seed,
            **changes,
        )  # fmt: skip

    def start(self) -> Model:
        return copied(self.fresh)

    def native(self, name: str, *, deltas: bool) -> Model:
        """Everything trained from the first step, pictures and text in one mixture."""
        config = self.config
        stream = self.stream(pretraining(self.seed), config.pretrain_steps, deltas=deltas)
        return self.teach(name, self.start(), stream, self.settings(config.pretrain_steps, config.pretrain_rate))

    def warmed_up(self) -> Model:
        """The decoder on text first, then ViT and projector in front of the frozen decoder, in as many steps."""
        config, steps = self.config, self.config.pretrain_steps
        text, rest = steps // 4, steps - steps // 4
        frozen = Component(train=False)
        model = self.teach(
            "text alone",
            self.start(),
            self.stream([(Sums(self.seed), 1.0)], text),
            self.settings(text, config.pretrain_rate, vision=frozen, projector=frozen),
        )
        reading = pretraining(self.seed)[:1]
        settings = self.settings(rest, config.pretrain_rate, decoder=frozen)
        return self.teach("warm-up before a frozen decoder", model, self.stream(reading, rest, deltas=True), settings)

    def tuned(self, name: str, model: Model, *, deltas: bool) -> Model:
        """Supervised fine-tuning."""
        config, steps = self.config, self.config.sft_steps
        points: list[tuple[int, float]] = []

        def look(now: Model, step: int) -> None:
            if step % max(1, steps // config.looks) == 0:
                points.append((step, self.right(now, config.examination / 10)))

        stream = self.stream(instructions(self.seed), steps, deltas=deltas)
        trained = self.teach(name, model, stream, self.settings(steps, config.sft_rate), look=look)
        self.found.along.setdefault(name, []).append(points)
        return trained

    def preferring(self, name: str, model: Model) -> Model:
        """Mixed preference optimisation on questions about training digits that the model may get wrong."""
        config = self.config
        pairs = preference_pairs(Chat(model, processor=self.processor), self.seed, config.asked, config.samples)
        told = f"{len(pairs)} of {config.asked} questions have a wrong answer among {config.samples}, and make pairs"
        self.tell(f"seed {self.seed}: {told}")
        if not pairs:
            return model
        stream = self.stream(
            [(Listed("pairs", pairs), 1.0)],
            config.preference_steps,
            tokens=2 * config.tokens,
            deltas=True,
        )
        settings = self.settings(config.preference_steps, config.preference_rate, preference=PreferenceWeights())
        return self.teach(name, model, stream, settings, reference=ReferenceModel(copied(model)))

    def right(self, model: Model, share: float, temperature: float = 0.0) -> float:
        """The share of right answers to that share of the examination."""
        answered = examine(Chat(model, processor=self.processor), share, temperature)
        return float(np.mean([answer.right for answer in answered]))

    def examine(self, name: str, model: Model) -> None:
        """Adds the shares of right answers, greedy and sampled."""
        for shares, temperature in ((self.found.right, 0.0), (self.found.sampled, 1.0)):
            shares.setdefault(name, []).append(self.right(model, self.config.examination, temperature))

    def more(self, name: str, model: Model) -> Model:
        """As much fine-tuning as `preferring` does, on as many new conversations, at the same rate."""
        config = self.config
        stream = self.stream(instructions(self.seed + MORE), config.preference_steps, deltas=True)
        settings = self.settings(config.preference_steps, config.preference_rate)
        return self.teach(name, model, stream, settings)

    def examine_longer(self, name: str, model: Model) -> None:
        """Adds those about pictures that are cut finer, for each step of V2PE."""
        for delta in STEPS:
            positions = partial(v2pe_positions, delta=delta)
            processor = dataclasses.replace(finer(self.processor, FINER), positions=positions)
            longer = dataclasses.replace(self, processor=processor)
            found = longer.right(model, self.config.examination)
            self.found.longer.setdefault(f"{name}, step {delta:g}", []).append(found)


def run_recipe_demo(
    config: RecipeConfig,
    *,
    tell: Callable[[str], None] = lambda line: None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Found:
    """Goes all ways at each seed, and writes figures and curves to the output directory.

    Raises:
        FileExistsError: the output directory holds something else than an earlier demo.
    """
    began = time.perf_counter()
    output = Path(config.output)
    make_room(output)
    found = Found()
    for seed in config.seeds:
        with tempfile.TemporaryDirectory() as files:
            fresh = fresh_model(dataclasses.replace(config.model, seed=seed), Path(files))
            lab = Lab(config, seed, fresh, Processor.from_directory(files), tell, report, found)
            base = lab.native("native pre-training", deltas=True)
            lab.examine("native pre-training", base)
            tuned = lab.tuned("SFT", base, deltas=True)
            lab.examine("SFT", tuned)
            lab.examine_longer("V2PE", tuned)
            lab.examine("MPO", lab.preferring("MPO", copied(tuned)))
            if config.ablations:
                lab.examine("more SFT instead of MPO", lab.more("more SFT instead of MPO", copied(tuned)))
                lab.examine("SFT after a warm-up", lab.tuned("SFT after a warm-up", lab.warmed_up(), deltas=True))
                plain = lab.tuned(
                    "SFT, plain positions", lab.native("pre-training, plain positions", deltas=False), deltas=False
                )
                lab.examine("SFT, plain positions", plain)
                lab.examine_longer("plain", plain)
        found.seconds = time.perf_counter() - began
        write(config, found, output)
    return found


def write(config: RecipeConfig, found: Found, output: Path) -> None:
    """Figures as demo.json, curves and shares as recipe.png."""
    facts = {"config": dataclasses.asdict(config), **dataclasses.asdict(found)}
    (output / "demo.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    from ivl3_jax.demo.recipe_picture import draw_recipe

    draw_recipe(found.losses, found.along, found.shares, output / "recipe.png")


def copied(model: Model) -> Model:
    """A copy, since training uses arrays up."""
    return model.replace(jax.tree.map(lambda leaf: leaf.copy(), model.params))


def summary(values: Mapping[str, list[float]]) -> list[tuple[str, float, float, float]]:
    """(name, mean, least, most) of each."""
    return [(name, float(np.mean(shares)), min(shares), max(shares)) for name, shares in values.items()]
