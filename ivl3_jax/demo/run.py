"""The demo from beginning to end: tokenizer, model, training, checkpoint, examination, page."""

import dataclasses
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ivl3_jax
from ivl3_jax.config import DecoderConfig, InternVLConfig, ProjectorConfig, VisionConfig
from ivl3_jax.conversion.companions import processor_files, write_json
from ivl3_jax.data.processor import Processor
from ivl3_jax.data.tokenizer import IMAGE_CONTEXT, TURN_END
from ivl3_jax.data.tokenizer_training import train_tokenizer, write_tokenizer_files
from ivl3_jax.demo import page
from ivl3_jax.demo.curriculum import STAGES, first_steps, lessons
from ivl3_jax.demo.evaluation import Answered, Score, examine, scores
from ivl3_jax.hf_config import to_hf
from ivl3_jax.inference.chat import Chat
from ivl3_jax.models.model import Model
from ivl3_jax.training.config import TrainConfig
from ivl3_jax.training.loop import Progress, train

FACTS = "demo.json"  # what an earlier demo's directory is known by


@dataclass(frozen=True)
class DemoConfig:
    """Everything that can be set.

    Attributes:
        vision: of the model. decoder: likewise; its vocab is the most that the tokenizer may have.
        output: the directory that receives everything; one of an earlier demo is replaced.
        seed: of initialisation, lessons and their order. The examination is always the same.
        steps, learning_rate, warmup_steps, weight_decay, beta2: of training, see `TrainConfig`.
        rows, tokens: B and S of a batch.
        max_tiles: of one picture, its thumbnail not counted.
        examination: the share of the examination's questions to ask.
    """

    vision: VisionConfig
    decoder: DecoderConfig
    output: str = "runs/demo"
    seed: int = 0
    steps: int = 4000
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    beta2: float = 0.95
    rows: int = 6
    tokens: int = 128
    max_tiles: int = 4
    examination: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.examination <= 1:
            raise ValueError(f"DemoConfig.examination is {self.examination}; it must be above 0 and at most 1")
        for name in ("rows", "tokens", "max_tiles"):
            if getattr(self, name) < 1:
                raise ValueError(f"DemoConfig.{name} is {getattr(self, name)}; it must be at least 1")
        _ = self.train  # refused before anything is removed or trained

    @property
    def train(self) -> TrainConfig:
        names = ("steps", "learning_rate", "warmup_steps", "weight_decay", "beta2", "seed")
        return TrainConfig(final_learning_rate=0.01, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class Result:
    """What a demo comes to.

    Attributes:
        checkpoint: in the `-hf` layout. chat: the saved checkpoint, opened.
        answered: the whole examination. scores: its summary. seconds: of everything.
        example: a held-out question that was not examined. picture: its picture's file.
    """

    checkpoint: Path
    chat: Chat
    answered: list[Answered]
    scores: list[Score]
    seconds: float
    example: str
    picture: Path


def run_demo(
    config: DemoConfig,
    *,
    tell: Callable[[str], None] = lambda line: None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Result:
    """Teaches, saves, opens what was saved, examines, and draws.

    Args:
        tell: takes a line about what happens now. report: takes the progress of every training step.

    Raises:
        FileExistsError: the output directory holds something else than an earlier demo.
    """
    began = time.perf_counter()
    output = Path(config.output)
    make_room(output)
    progress: list[Progress] = []

    def step_done(now: Progress) -> None:
        progress.append(now)
        report(now)

    with tempfile.TemporaryDirectory() as files:
        model = dataclasses.replace(fresh_model(config, Path(files)), source=Path(files))
        processor = Processor.from_directory(files)
        size = f"{model.parameter_count / 1e6:.2f} million parameters, {model.config.decoder.vocab} tokens"
        tell(f"A fresh InternVL3: {size}, tiles of {model.config.vision.image_size} pixels.")
        stream = lessons(processor, config.steps, config.seed, config.rows, config.tokens)
        model, _ = train(model, stream, config.train, report=step_done)
        ivl3_jax.save(model, output / "checkpoint")
    tell("Asking the saved checkpoint about held-out handwriting ...")
    chat = Chat(ivl3_jax.load(output / "checkpoint"))
    answered = examine(chat, config.examination)
    found = scores(answered)
    trained, seconds = progress[-1].seconds, time.perf_counter() - began
    facts = {
        "parameters": model.parameter_count,
        "seconds_training": round(trained, 1),
        "seconds": round(seconds, 1),
        "config": dataclasses.asdict(config),
        "scores": [dataclasses.asdict(score) for score in found],
        "loss": [round(now.loss, 5) for now in progress],
    }
    (output / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    draw(config, output, model, progress, answered, found)
    question, picture = save_pictures(answered, output / "pictures")
    return Result(output / "checkpoint", chat, answered, found, seconds, question, picture)


def make_room(output: Path) -> None:
    """An empty output directory; an earlier demo in it is removed, anything else is not touched."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if not (output / FACTS).is_file():
            raise FileExistsError(f"output {output} exists and is not an earlier demo; choose another directory")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / FACTS).write_text("{}\n", encoding="utf-8")


def fresh_model(config: DemoConfig, directory: Path, texts: Sequence[str] = ()) -> Model:
    """An untrained model; `directory` receives its config and the files of tokenizer and processor.

    texts: that the tokenizer learns its words from, by default the curriculum's.
    """
    tokenizer = train_tokenizer(texts or corpus(), config.decoder.vocab)
    write_tokenizer_files(tokenizer, directory)
    decoder = dataclasses.replace(config.decoder, vocab=tokenizer.get_vocab_size())
    sizes = InternVLConfig(config.vision, ProjectorConfig(), decoder, tokenizer.token_to_id(IMAGE_CONTEXT))
    files = {
        "config.json": to_hf(sizes),
        "generation_config.json": {"eos_token_id": [tokenizer.token_to_id(TURN_END)]},
        **processor_files(sizes, 1, config.max_tiles),
    }
    for name, content in files.items():
        write_json(directory / name, content)
    return Model.init(sizes, seed=config.seed)


def corpus() -> list[str]:
    """Conversations of the curriculum without their pictures, for the tokenizer to learn its words from."""
    samples = [stage.sample(0, index) for stage in STAGES for index in range(200)]
    numbering = "Image-1: \nImage-2: \n"
    return [f"{m.role}\n{numbering}{m.text}" for sample in samples for m in sample.messages]


def draw(
    config: DemoConfig,
    output: Path,
    model: Model,
    progress: Sequence[Progress],
    answered: Sequence[Answered],
    found: Sequence[Score],
) -> None:
    """The training curve and both pages."""
    page.draw_curve(progress, [(first, stage.name) for first, stage in first_steps(config.steps)], output / "curve.png")
    page.draw_page(page.choose(answered, 6), output / "page.png")
    vision, decoder = model.config.vision, model.config.decoder
    settings = [
        ("parameters", f"{model.parameter_count:,}"),
        ("vision", f"{vision.layers} layers of {vision.width}, tiles of {vision.image_size} px"),
        ("visual tokens", f"{model.config.tile_tokens} a tile, up to {config.max_tiles} tiles and a thumbnail"),
        ("decoder", f"{decoder.layers} layers of {decoder.width}, {decoder.vocab} tokens"),
        ("training", f"{config.steps:,} steps in {progress[-1].seconds:.0f} s"),
        ("seed", str(config.seed)),
    ]
    page.write_html(page.choose(answered, 24), found, settings, output / "curve.png", output / "page.html")


def save_pictures(answered: Sequence[Answered], directory: Path, each: int = 8) -> tuple[str, Path]:
    """Some examined pictures as files named by what is written, and a question to ask about one of them."""
    directory.mkdir()
    for digits in (1, 2, 3):
        pictures = [answer.question.pictures[0] for answer in answered]
        for picture in [picture for picture in pictures if len(picture.digits) == digits][:each]:
            picture.image.save(directory / f"{picture.text}.png")
            shown = picture
    return "What number is written here?", directory / f"{shown.text}.png"
