"""`ivl3 train`: runs a recipe."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivl3_jax.cli.arguments import parse

if TYPE_CHECKING:
    from ivl3_jax.models.model import Model
    from ivl3_jax.training.config import Recipe

HELP = """Trains a model from a recipe, goes on after an interruption, and writes a checkpoint that `ivl3 chat` opens.
ivl3 train --config recipe.yaml --output runs/first --train.learning-rate 1e-5
"""

ANSWER_TOKENS = 64


def run(argv: list[str]) -> int:
    """Trains, printing one progress line, and says where the checkpoint is; returns 0, also when told to end."""
    from ivl3_jax.training.config import Recipe

    recipe = parse(
        Recipe,
        argv,
        prog="ivl3 train",
        description="Pre-training, supervised fine-tuning or preference optimisation on InternVL's data. The same "
        "command goes on with a run that was interrupted.",
        example="ivl3 train --config recipe.yaml --output runs/first",
    )
    if "float64" in (recipe.model.param_dtype, recipe.model.dtype):
        os.environ["JAX_ENABLE_X64"] = "1"
    from ivl3_jax.training.distributed import join_processes

    join_processes(recipe.distributed)
    import jax

    from ivl3_jax.cli.progress import TrainProgress
    from ivl3_jax.training.recipe import run_recipe

    first = jax.process_index() == 0
    with TrainProgress(recipe.train.steps, shown=first) as progress:
        checkpoint = run_recipe(
            recipe,
            tell=lambda line: print(line, file=sys.stderr, flush=True) if first else None,
            report=progress,
            looks=[Answers(recipe)] if recipe.watch.questions else [],
        )
    if checkpoint is not None and first:
        print(f'checkpoint in {checkpoint}; try: ivl3 chat {checkpoint} IMAGE "QUESTION"')
    return 0


class Answers:
    """Asks the model the first question of each conversation of a file, now and then."""

    def __init__(self, recipe: "Recipe") -> None:
        """Reads the questions.

        Raises:
            ValueError, OSError: the file is missing, a line of it is faulty, or the model is spread over devices.
        """
        from ivl3_jax.data.meta import open_source
        from ivl3_jax.data.records import Sample
        from ivl3_jax.data.sources import SourceSpec
        from ivl3_jax.sharding.plan import ShardingPlan

        if ShardingPlan.read(recipe.sharding.plan, recipe.sharding.mesh).devices != 1:
            raise ValueError("watch.questions: generation runs on one device; leave it out, and ask the checkpoint")
        file = str(recipe.watch.questions)
        source = open_source(SourceSpec("questions", str(Path(file).parent), file))
        self._samples = []
        for number in range(len(source)):
            sample = source[number]
            if not isinstance(sample, Sample):
                raise ValueError(f"{sample.where}: is a preference pair; watch.questions takes conversations")
            self._samples.append(sample)

    def __call__(self, model: "Model", step: int) -> Mapping[str, Any]:
        """The answers after a step."""
        from ivl3_jax.inference.chat import Chat

        chat, answers = Chat(model), []
        for sample in self._samples:
            question = next(message.text for message in sample.messages if message.role == "user")
            answer = chat.ask(question, list(sample.images), max_new_tokens=ANSWER_TOKENS)
            answers.append({"question": question, "answer": answer})
        return {"answers": answers}
