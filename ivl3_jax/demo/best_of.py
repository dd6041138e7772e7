"""Best of N on handwriting, a model that answers step by step and a critic of its steps: `ivl3 demo --best-of`."""

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import ivl3_jax
from ivl3_jax.batch import Batch
from ivl3_jax.config import DecoderConfig, VisionConfig
from ivl3_jax.data.processor import Processor
from ivl3_jax.data.sources import Source
from ivl3_jax.demo.curriculum import lessons
from ivl3_jax.demo.recipe import copied
from ivl3_jax.demo.run import DemoConfig, corpus, fresh_model, make_room
from ivl3_jax.demo.stages import batches
from ivl3_jax.demo.thinking import MOST_DIGITS, SEED, Claims, Solved, Sum, sums
from ivl3_jax.inference.chat import Chat
from ivl3_jax.inference.sampling import Sampling
from ivl3_jax.inference.scaling.best_of import BestOf, Candidate
from ivl3_jax.inference.scaling.critic import Critic
from ivl3_jax.inference.scaling.curve import Share, draw, shares, write_table
from ivl3_jax.models.model import Model
from ivl3_jax.training.config import TrainConfig
from ivl3_jax.training.loop import Progress, train

LONGEST = 96  # tokens of a solution
OTHER_LESSONS = 1000  # added to the seed of those that the critic has had already


@dataclass(frozen=True)
class BestOfConfig:
    """Everything that can be set.

    Attributes:
        vision, decoder: of both models, as in `ivl3 demo`.
        digits: of a picture, 1 to 3; what they add up to is asked.
        output: the directory that receives everything; one of an earlier demo is replaced.
        seeds: of the runs.
        reading_steps: of the lessons of `ivl3 demo`, with which the model that answers begins.
        steps: in which it then learns to answer step by step.
        critic_reading_steps: of the same lessons, with which the critic goes on from that model: a critic that reads no
            better than what it judges is of no use. 0 leaves them out.
        critic_steps: in which it then learns to judge steps about one digit; as many again where pictures have more.
        learning_rate: of all.
        questions: about held-out digits, of the examination; samples: candidates for each.
        temperature: of all answers but the greedy one.
        rows, tokens: B and S of a batch, those of reading left out.
        max_tiles: of one picture, its thumbnail not counted.
    """

    vision: VisionConfig
    decoder: DecoderConfig
    digits: int
    output: str = "runs/best-of-demo"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    reading_steps: int = 1500
    steps: int = 300
    critic_reading_steps: int = 3000
    critic_steps: int = 1000
    learning_rate: float = 8e-4
    questions: int = 600
    samples: int = 16
    temperature: float = 1.0
    rows: int = 6
    tokens: int = 320
    max_tiles: int = 4

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            least = 0 if each.name == "critic_reading_steps" else 1
            if isinstance(value, int) and value < least:
                raise ValueError(f"BestOfConfig.{each.name} is {value}; it must be at least {least}")
        if self.digits > MOST_DIGITS:
            raise ValueError(f"BestOfConfig.digits is {self.digits}; it must be at most {MOST_DIGITS}")
        if not self.seeds:
            raise ValueError("BestOfConfig.seeds is empty; give at least one")

    @property
    def model(self) -> DemoConfig:
        """As in `ivl3 demo`, with its batches."""
        return DemoConfig(self.vision, self.decoder, max_tiles=self.max_tiles)

    @property
    def critic_lessons(self) -> list[int]:
        """The digits of the pictures of each."""
        return sorted({1, self.digits})

    @property
    def all_steps(self) -> int:
        """Of training, at all seeds."""
        critic = self.critic_reading_steps + len(self.critic_lessons) * self.critic_steps
        return len(self.seeds) * (self.reading_steps + self.steps + critic)


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
    task = "Reading a handwritten digit" if config.digits == 1 else f"Adding {config.digits} handwritten digits"
    seeds = f"{len(config.seeds)} seed{'s' * (len(config.seeds) > 1)}"
    title = f"{task}, step by step: {config.questions:,} questions, {seeds}"
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
    texts = [message.text for index in range(400) for message in Solved(0, config.digits)[index].messages]
    dialogue = ["### Question:\n", "### Solution Process:\n", "Final answer: "] * 20
    fresh = fresh_model(dataclasses.replace(config.model, seed=seed), files, [*corpus(), *texts, *dialogue])
    processor = Processor.from_directory(files)

    def taught(source: Source, steps: int) -> Iterator[Batch]:
        return batches(processor, [(source, 1.0)], steps, rows=config.rows, tokens=config.tokens, seed=seed)

    def reading(steps: int, seed: int) -> Iterator[Batch]:
        return lessons(processor, steps, seed, config.model.rows, config.model.tokens)

    def teach(model: Model, stream: Iterator[Batch], steps: int) -> Model:
        settings = TrainConfig(
            steps=steps,
            learning_rate=config.learning_rate,
            warmup_steps=max(1, steps // 30),
            final_learning_rate=0.01,
            beta2=0.95,
            seed=seed,
        )
        return train(model, stream, settings, report=report)[0]

    tell(f"seed {seed}: a model that reads, {config.reading_steps:,} steps")
    reader = teach(fresh, reading(config.reading_steps, seed), config.reading_steps)
    tell(f"seed {seed}: and answers step by step, {config.steps:,} steps")
    model = teach(reader, taught(Solved(seed, config.digits), config.steps), config.steps)
    chat = Chat(model, processor=processor)
    judge = copied(model)
    if more := config.critic_reading_steps:
        tell(f"seed {seed}: a critic that reads better, {more:,} steps")
        judge = teach(judge, reading(more, seed + OTHER_LESSONS), more)
    for digits in config.critic_lessons:
        told = "one digit" if digits == 1 else f"{digits} digits"
        tell(f"seed {seed}: a critic of claims about {told}, {config.critic_steps:,} steps")
        judge = teach(judge, taught(Claims(Critic(chat), seed, digits), config.critic_steps), config.critic_steps)
    tell(f"seed {seed}: {config.samples} answers to each of {config.questions:,} questions about held-out digits")
    answered = _examined(config, seed, chat, Critic(Chat(judge, processor=processor)))
    if seed == config.seeds[-1]:
        for name, each in (("checkpoint", model), ("critic", judge)):
            ivl3_jax.save(dataclasses.replace(each, source=files), output / name)
        _write_questions(config, output)
    return shares(answered)


def _examined(config: BestOfConfig, seed: int, chat: Chat, critic: Critic) -> list[tuple[list[Candidate], str]]:
    asked = examination(config.questions, config.digits)
    sampling = Sampling(temperature=config.temperature, seed=seed)
    asking = BestOf(chat, critic, samples=config.samples, sampling=sampling, max_new_tokens=LONGEST)
    found = asking.answer([each.asked() for each in asked])
    return [(candidates, each.answer) for candidates, each in zip(found, asked, strict=True)]


def examination(questions: int, digits: int) -> list[Sum]:
    """The questions about held-out digits, the same for every run."""
    return [sums("held_out", (SEED, number), digits) for number in range(questions)]


def _write_questions(config: BestOfConfig, output: Path) -> None:
    """The examination as `ivl3 best-of` takes it."""
    asked = examination(config.questions, config.digits)
    (output / "pictures").mkdir()
    with (output / "questions.jsonl").open("w", encoding="utf-8") as lines:
        for number, each in enumerate(asked):
            each.picture.image.save(output / f"pictures/{number}.png")
            record = {"image": f"pictures/{number}.png", "question": each.text, "answer": each.answer}
            lines.write(json.dumps(record) + "\n")
