"""Looking at a run from outside its loss: held-out loss, the profiler."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import jax
from flax import nnx

from ivl3_jax.batch import Batch
from ivl3_jax.data.loader import Loader
from ivl3_jax.data.settings import open_feed
from ivl3_jax.models.internvl import token_losses
from ivl3_jax.models.model import Model, Params
from ivl3_jax.training.beginning import Beginning
from ivl3_jax.training.config import Recipe, WatchRecipe
from ivl3_jax.training.placing import Placement

# Looks at the model after a step, and returns figures by name.
Look = Callable[[Model, int], Mapping[str, Any]]


def held_out_loss(recipe: Recipe, beginning: Beginning, place: Placement, held_out: str) -> Look:
    """Looks at the loss on held-out data, a meta file or one of conversations: always the same batches."""
    files = (
        {"meta": [held_out], "annotation": None} if held_out.endswith(".json") else {"meta": [], "annotation": held_out}
    )
    data = dataclasses.replace(recipe.data, **files, root=None, weights="length", text_share=None)
    other = open_feed(data, beginning.processor, seed=0)
    losses = jax.jit(partial(_losses, beginning.graphdef))

    def look(model: Model, step: int) -> Mapping[str, Any]:
        loader = Loader(other, streams=place.rows)
        total = weight = 0.0
        for batch in islice(loader, recipe.watch.held_out_batches):
            loss, weights = losses(model.params, place(batch))
            total, weight = total + float(loss), weight + float(weights)
        loader.close()
        return {"held_out_loss": total / weight} if weight else {}

    return look


def _losses(graphdef: nnx.GraphDef, params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    def one(_: None, part: Batch) -> tuple[None, jax.Array]:
        return None, token_losses(nnx.merge(graphdef, params), part).sum()

    return jax.lax.scan(one, None, batch)[1].sum(), batch.loss_weights.sum()


@contextmanager
def profiler(watch: WatchRecipe, output: str) -> Iterator[Callable[[int], None]]:
    """Traces the steps that `watch.profile` names; yields what is to be called with the number of each step done."""
    if watch.profile is None:
        yield lambda step: None
        return
    first, count = watch.profile
    running = False

    def begin() -> None:
        nonlocal running
        jax.profiler.start_trace(f"{output}/profile")
        running = True

    def end() -> None:
        nonlocal running
        if running:
            jax.profiler.stop_trace()
            running = False

    def at_step(step: int) -> None:
        if step == first - 1:
            begin()
        elif step >= first + count - 1:
            end()

    if first == 1:
        begin()
    try:
        yield at_step
    finally:
        end()
