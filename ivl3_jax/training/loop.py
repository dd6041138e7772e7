"""The training loop."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax

from ivl3_jax.batch import Batch
from ivl3_jax.models.model import Model, place_batch
from ivl3_jax.training.config import TrainConfig
from ivl3_jax.training.optimizer import learning_rate, make_optimizer
from ivl3_jax.training.step import Metrics, init_state, make_step


@dataclass(frozen=True)
class Progress:
    """What is known after a step.

    Attributes:
        step: steps done, from 1. steps: of the whole run. loss: nats a trained token, weighted.
        tokens: trained positions, positions: positions without padding, both of this step's batch.
        learning_rate, grad_norm: of this step. seconds: since the first step began, compilation included.
    """

    step: int
    steps: int
    loss: float
    tokens: int
    positions: int
    learning_rate: float
    grad_norm: float
    seconds: float


def train(
    model: Model,
    batches: Iterator[Batch],
    config: TrainConfig,
    *,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Model:
    """Trains `model` on `config.steps` batches and returns the trained one; the given one's arrays are used up.

    Args:
        batches: host batches, all of one shape. report: called every `config.log_every` steps and after the last.

    Raises:
        ValueError: the batches end too early, or the loss is no longer finite.
    """
    schedule = learning_rate(config)
    optimizer = make_optimizer(config)
    step = make_step(model.graphdef, optimizer)
    began = time.perf_counter()

    def tell(number: int, metrics: Metrics) -> None:
        if number % config.log_every and number != config.steps:
            return
        loss, tokens, positions, grad_norm = (x.item() for x in jax.device_get(metrics))
        if not loss < float("inf"):
            raise ValueError(
                f"the loss is {loss} at step {number} (gradient norm {grad_norm}); try a lower learning_rate"
            )
        seconds = time.perf_counter() - began
        rate = float(schedule(number - 1))
        report(Progress(number, config.steps, loss, tokens, positions, rate, grad_norm, seconds))

    with jax.set_mesh(model.mesh):
        key = jax.random.key(config.seed)
        state = init_state(model.params, optimizer)
        last: Metrics | None = None
        for number in range(1, config.steps + 1):
            batch = next(batches, None)
            if batch is None:
                raise ValueError(f"the data ended after {number - 1} of {config.steps} steps; lower train.steps")
            state, metrics = step(state, place_batch(batch, model.plan, model.mesh), key)
            if last is not None:
                tell(number - 1, last)  # the step before, while this one runs
            last = metrics
        if last is not None:
            tell(config.steps, last)
    return model.replace(state.params)
