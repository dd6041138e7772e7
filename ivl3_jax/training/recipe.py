"""From a recipe to a trained checkpoint: the pieces put together."""

import dataclasses
import json
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from ivl3_jax.conversion.checkpoint import load, save
from ivl3_jax.data.loader import Loader
from ivl3_jax.data.processor import Processor
from ivl3_jax.data.settings import open_feed
from ivl3_jax.models.model import Model, abstract_model
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.training.config import ModelRecipe, Recipe
from ivl3_jax.training.loop import Progress, train
from ivl3_jax.training.processor import check_room, open_config, open_processor


def run_recipe(recipe: Recipe, *, report: Callable[[Progress], None] = lambda progress: None) -> Path:
    """Trains as the recipe says; returns the directory of the checkpoint, in the `-hf` layout.

    `<output>/metrics.jsonl` receives one line a reported step. A sample that is skipped is told in a warning, with its
    file and line, and counted there by reason.

    Raises:
        ValueError, OSError: a file is missing or faulty, or settings do not fit one another; before any training.
    """
    output = Path(recipe.output)
    checkpoint = output / "checkpoint"
    if checkpoint.exists():
        raise ValueError(f"output {output} already holds a checkpoint; choose another directory or remove it")
    plan = ShardingPlan.read(recipe.sharding.plan, recipe.sharding.mesh)
    model, processor = open_model(recipe.model, plan, recipe.train.seed)
    check_room(recipe.data, model.config)
    feed = open_feed(recipe.data, processor, recipe.train.seed)
    output.mkdir(parents=True, exist_ok=True)
    batches = Loader(feed, workers=recipe.data.workers, ahead=recipe.data.ahead)
    with closing(batches), open(output / "metrics.jsonl", "w", encoding="utf-8") as metrics:

        def tell(progress: Progress) -> None:
            for skip in batches.take_skips():
                warnings.warn(f"skipped: {skip.message}", stacklevel=2)
            skipped = {"skipped": dict(batches.skipped)} if batches.skipped else {}
            metrics.write(json.dumps(dataclasses.asdict(progress) | skipped) + "\n")
            metrics.flush()
            report(progress)

        trained = train(model, batches, recipe.train, report=tell)
    save(trained, checkpoint)
    return checkpoint


def open_model(recipe: ModelRecipe, plan: ShardingPlan, seed: int) -> tuple[Model, Processor]:
    """The model to start from, on the plan's mesh, and the processor that belongs to it.

    Raises:
        ValueError: the tokenizer does not belong to a model of that size.
    """
    if recipe.checkpoint is not None:
        model = load(recipe.checkpoint, recipe.param_dtype, plan)
        processor = open_processor(recipe)
    else:
        assert recipe.tokenizer is not None  # ModelRecipe sees to it
        processor = open_processor(recipe)
        model = Model.init(open_config(recipe), plan, seed=seed, param_dtype=recipe.param_dtype)
        model = dataclasses.replace(model, source=Path(recipe.tokenizer))
    config = model.config
    if recipe.drop_path is not None:
        config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, drop_path=recipe.drop_path))
    graphdef, _ = abstract_model(config, plan, model.mesh, param_dtype=recipe.param_dtype, dtype=recipe.dtype)
    return dataclasses.replace(model, config=config, graphdef=graphdef), processor
