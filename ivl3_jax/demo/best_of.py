"""Best of N on handwriting, a model that adds step by step and a critic of its steps: `ivl3 demo --best-of`."""

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import ivl3_jax
from ivl3_jax.config import DecoderConfig, VisionConfig
from ivl3_jax.data.processor import Processor
from ivl3_jax.data.records import Sample
from ivl3_jax.data.sources import Source
from ivl3_jax.demo.recipe import copied
from ivl3_jax.demo.run import DemoConfig, corpus, fresh_model, make_room
from ivl3_jax.demo.stages import Listed, batches
from ivl3_jax.demo.thinking import SEED, Solved, Sum, sums
from ivl3_jax.inference.chat import Chat
from ivl3_jax.inference.sampling import Sampling
from ivl3_jax.inference.scaling.best_of import BestOf, Candidate
from ivl3_jax.inference.scaling.critic import Critic
from ivl3_jax.inference.scaling.curve import Share, draw, shares, write_table
from ivl3_jax.models.model import Model
from ivl3_jax.training.config import TrainConfig
from ivl3_jax.training.loop import Progress, train

LONGEST = 96  # tokens of a solution


@dataclass(frozen=True)
class BestOfConfig:
    """Everything that can be set.

    Attributes:
        vision, decoder: of both models, as in `ivl3 demo`.
        output: the directory that receives everything; one of an earlier demo is replaced.
        seeds: of the runs.
        steps, learning_rate: of the model that answers.
        critic_steps, critic_rate: of the critic, which goes on from that model.
        asked: questions about digits to learn from, whose answers the critic learns to judge; drawn: those to each.
        questions: about held-out digits, of the examination; samples: candidates for each.
        temperature: of all answers but the greedy one.
        rows, tokens: B and S of a batch. max_tiles: of one picture, its thumbnail not counted.
    """

    vision: VisionConfig
    decoder: DecoderConfig
    output: str = "runs/best-of-demo"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    steps: int = 4000
    learning_rate: float = 8e-4
    critic_steps: int = 1000
    critic_rate: float = 4e-4
    asked: int = 2000
    drawn: int = 4
    questions: int = 300
    samples: int = 16
    temperature: float = 1.0
    rows: int = 6
    tokens: int = 192
    max_tiles: int = 4

    def __post_init__(self) -> None:
        for name in ("steps", "critic_steps", "asked", "drawn", "questions", "samples", "rows", "tokens", "max_tiles"):
            if getattr(self, name) < 1:
                raise ValueError(f"BestOfConfig.{name} is {getattr(self, name)}; it must be at least 1")
        if not self.seeds:
            raise ValueError("BestOfConfig.seeds is empty; give at least one")

    @property
    def model(self) -> DemoConfig:
        return DemoConfig(self.vision, self.decoder, max_tiles=self.max_tiles, rows=self.rows, tokens=self.tokens)

    @property
    def all_steps(self) -> int:
        """Of training, at all seeds."""
        return len(self.seeds) * (self.steps + self.critic_steps)


@dataclass(frozen=True)
class Found:
    """What the runs come to: the shares of each seed, and the seconds of everything."""

    shares: list[list[Share]]
    seconds: float


def run_best_of_demo(
    config: BestOfConfig,
    *,
    tell: Callable[[str], None] = lambda line: None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Found:
    """Teaches both models at each seed, examines, and writes figures, pictures and the last seed's checkpoints.

    Raises:
        FileExistsError: the output directory holds something else than an earlier demo.
    """
    began = time.perf_counter()
    output = Path(config.output)
    make_room(output)
    found: list[list[Share]] = []
    for seed in config.seeds:
        with tempfile.TemporaryDirectory() as files:
            found.append(_seed(config, seed, Path(files), output, tell, report))
    seconds = time.perf_counter() - began
    facts = {
        "config": dataclasses.asdict(config),
        "seconds": round(seconds, 1),
        "right": [{f"{each.way}, {each.count}": each.mean for each in run} for run in found],
    }
    (output / "demo.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    write_table(found, output / "best-of.csv")
    title = f"Adding handwritten digits step by step: {config.questions:,} questions, {len(config.seeds)} seeds"
    draw(found, output / "best-of.png", title)
    return Found(found, seconds)


def _seed(
    config: BestOfConfig,
    seed: int,
    files: Path,
    output: Path,
    tell: Callable[[str], None],
    report: Callable[[Progress], None],
) -> list[Share]:
    texts = [message.text for index in range(400) for message in Solved(0)[index].messages]
    dialogue = ["### Question:\n", "### Solution Process:\n", "Final answer: "] * 20
    fresh = fresh_model(dataclasses.replace(config.model, seed=seed), files, [*corpus(), *texts, *dialogue])
    processor = Processor.from_directory(files)

    def teach(model: Model, source: Source, steps: int, rate: float) -> Model:
        stream = batches(processor, [(source, 1.0)], steps, rows=config.rows, tokens=config.tokens, seed=seed)
        settings = TrainConfig(
            steps=steps,
            learning_rate=rate,
            warmup_steps=max(1, steps // 30),
            final_learning_rate=0.01,
            beta2=0.95,
            seed=seed,
        )
        return train(model, stream, settings, report=report)[0]

    tell(f"seed {seed}: a model that adds step by step, {config.steps} steps")
    model = teach(fresh, Solved(seed), config.steps, config.learning_rate)
    chat = Chat(model, processor=processor)
    learned = _judged(config, seed, chat)
    wrong = sum(sample.messages[-1].text == "-" for sample in learned)
    told = f"{len(learned):,} of its answers, {wrong:,} of them wrong"
    tell(f"seed {seed}: a critic, {config.critic_steps} steps on {told}")
    judge = teach(copied(model), Listed("judged", learned), config.critic_steps, config.critic_rate)
    tell(f"seed {seed}: {config.samples} answers to each of {config.questions:,} questions about held-out digits")
    answered = _examined(config, seed, chat, Critic(Chat(judge, processor=processor)))
    if seed == config.seeds[-1]:
        for name, each in (("checkpoint", model), ("critic", judge)):
            ivl3_jax.save(dataclasses.replace(each, source=files), output / name)
        _write_questions(config, output)
    return shares(answered)


def _judged(config: BestOfConfig, seed: int, chat: Chat) -> list[Sample]:
    """What the critic learns from: the model's own answers about digits to learn from, each judged by the truth."""
    asking = _asking(config, seed, chat, config.drawn)
    asked = [sums("train", (seed, number, 2)) for number in range(config.asked)]
    critic = Critic(chat)
    judged = (
        question.judged(critic, text)
        for question, found in zip(asked, asking.answer([each.asked() for each in asked]), strict=True)
        for text in dict.fromkeys(each.text for each in found)
        if text
    )
    # An answer that rambles may make a dialogue longer than a row; the truth's is much shorter.
    return [sample for sample in judged if len(chat.processor.encode(sample)) <= config.tokens]


def _examined(config: BestOfConfig, seed: int, chat: Chat, critic: Critic) -> list[tuple[list[Candidate], str]]:
    asked = examination(config.questions)
    asking = _asking(config, seed, chat, config.samples, critic)
    found = asking.answer([each.asked() for each in asked])
    return [(candidates, each.answer) for candidates, each in zip(found, asked, strict=True)]


def _asking(config: BestOfConfig, seed: int, chat: Chat, samples: int, critic: Critic | None = None) -> BestOf:
    sampling = Sampling(temperature=config.temperature, seed=seed)
    return BestOf(chat, critic, samples=samples, sampling=sampling, max_new_tokens=LONGEST)


def examination(count: int) -> list[Sum]:
    """The questions about held-out digits, the same for every run."""
    return [sums("held_out", (SEED, number)) for number in range(count)]


def _write_questions(config: BestOfConfig, output: Path) -> None:
    """The examination as `ivl3 best-of` takes it."""
    (output / "pictures").mkdir()
    with (output / "questions.jsonl").open("w", encoding="utf-8") as lines:
        for number, each in enumerate(examination(config.questions)):
            each.picture.image.save(output / f"pictures/{number}.png")
            record = {"image": f"pictures/{number}.png", "question": each.text, "answer": each.answer}
            lines.write(json.dumps(record) + "\n")
