"""`ivl3 train`: runs a recipe."""

import os

from ivl3_jax.cli.arguments import parse

HELP = """Trains a model from a recipe and writes a checkpoint that `ivl3 chat` opens.
ivl3 train --config recipe.yaml --output runs/first --train.learning-rate 1e-5
"""


def run(argv: list[str]) -> int:
    """Trains, printing one progress line, and says where the checkpoint is; returns 0."""
    from ivl3_jax.training.config import Recipe

    recipe = parse(
        Recipe,
        argv,
        prog="ivl3 train",
        description="Supervised fine-tuning on InternVL JSONL conversations.",
        example="ivl3 train --config recipe.yaml --output runs/first",
    )
    if "float64" in (recipe.model.param_dtype, recipe.model.dtype):
        os.environ["JAX_ENABLE_X64"] = "1"
    from ivl3_jax.cli.progress import TrainProgress
    from ivl3_jax.training.recipe import run_recipe

    with TrainProgress(recipe.train.steps) as progress:
        checkpoint = run_recipe(recipe, report=progress)
    print(f'checkpoint in {checkpoint}; try: ivl3 chat {checkpoint} IMAGE "QUESTION"')
    return 0
