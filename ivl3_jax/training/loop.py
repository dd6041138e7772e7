"""The training loop."""

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ivl3_jax.batch import Batch
from ivl3_jax.models.model import Model
from ivl3_jax.training.bad_steps import BadSteps
from ivl3_jax.training.config import TrainConfig
from ivl3_jax.training.flops import StepFlops, peak_flops
from ivl3_jax.training.objectives import MixedPreference, NextToken, Objective
from ivl3_jax.training.optimizer import learning_rate
from ivl3_jax.training.placing import Placement
from ivl3_jax.training.progress import Clock, Progress
from ivl3_jax.training.reference import Reference
from ivl3_jax.training.step import TrainState, init_state, make_step


class Batches(Iterator[Batch], Protocol):
    """Host batches, all of one shape: the rows of this process."""


class Keeper(Protocol):
    """Keeps states, and knows the last one."""

    def due(self, step: int) -> bool:
        """Whether the state after this step is to be kept."""

    def keep(self, state: TrainState, clock: Clock) -> None:
        """Keeps a state, with whatever belongs to it."""

    def back(self, clock: Clock) -> TrainState:
        """The last one kept; the clock is set back to it."""


class NoKeeper:
    """Keeps nothing; for short runs in memory."""

    def due(self, step: int) -> bool:
        return False

    def keep(self, state: TrainState, clock: Clock) -> None:
        pass

    def back(self, clock: Clock) -> TrainState:
        raise ValueError("there is no state to go back to; save states, or use on_bad_step skip or stop")


def objective_of(config: TrainConfig) -> Objective:
    """The loss that a run minimises."""
    return NextToken() if config.preference is None else MixedPreference(config.preference)


def train(
    model: Model,
    batches: Batches | Iterator[Batch],
    config: TrainConfig,
    *,
    state: TrainState | None = None,
    reference: Reference | None = None,
    place: Placement | None = None,
    keeper: Keeper | None = None,
    bad: BadSteps | None = None,
    sources: tuple[str, ...] = ("data",),
    began: float | None = None,
    productive: float = 0.0,
    report: Callable[[Progress], None] = lambda progress: None,
    look: Callable[[Model, int], None] = lambda model, step: None,
    told_to_end: Callable[[int], bool] = lambda step: False,
) -> tuple[Model, TrainState]:
    """Trains `model` on batches up to step `config.steps`; the given one's arrays are used up.

    Args:
        batches: host batches of numpy arrays [R, ...], all of one shape.
        state: where to go on, in place of a fresh one from the model's parameters.
        reference: gives the reference model's log-probabilities, where the objective wants them.
        place: puts batches onto the mesh; made from the first batch where there is none.
        keeper: keeps states. bad: says what becomes of bad steps.
        sources: names of the data's sources. began, productive: see `Clock`.
        report: called every `config.log_every` steps and after the last. look: likewise called after every step, with
            a model to look at until it returns. told_to_end: asked after every step whether it is to be the last.

    Returns:
        The trained model and the last state, which is before `config.steps` if it was told to end.

    Raises:
        ValueError: the batches end too early, or too many steps are bad.
    """
    bad, keeper = bad or BadSteps(config), keeper or NoKeeper()
    objective = objective_of(config)
    # Known beforehand: computed on the device it would wait there for the step that runs.
    rate = np.asarray(jax.vmap(learning_rate(config))(np.arange(config.steps)))
    flops = StepFlops(model.config, model.params, config.components)
    run_step = make_step(
        model.graphdef, model.params, objective, config, model.config.tile_tokens, sources=len(sources), plan=model.plan
    )
    clock = Clock(
        config.steps,
        lambda step: float(rate[step]),
        flops,
        peak_flops(),
        sources,
        began=time.time() if began is None else began,
        productive=productive,
    )
    pending: list[tuple[int, Any, Batch]] = []

    def settle(state: TrainState) -> TrainState:
        """Looks at the metrics of the step before, while the newest runs."""
        number, metrics, batch = pending.pop()
        finish = clock.add(number, metrics)
        if not metrics.applied.item():
            state = bad.handle(number, metrics, batch, state, lambda: keeper.back(clock))
        if number % config.log_every == 0 or number == config.steps:
            report(finish())
        return state

    with jax.set_mesh(model.mesh):
        key = jax.random.key(config.seed)
        if state is None:
            state = init_state(model.params, config, model.plan)
        step = int(state.step)
        while step < config.steps:
            asked = time.perf_counter()
            batch = next(batches, None)
            clock.waited(time.perf_counter() - asked)
            if batch is None:
                raise ValueError(f"the data ended after {step} of {config.steps} steps; lower train.steps")
            if place is None:
                rows, tokens = np.shape(batch.tokens)
                place = Placement(model.plan, model.mesh, rows, tokens, config.accumulate)
            placed = place(batch)
            log_probs = reference(step, placed) if reference is not None else None
            state, metrics = run_step(state, placed, log_probs, key)
            step += 1
            if pending:
                state = settle(state)
            pending.append((step, metrics, batch))
            with clock.aside():
                look(model.replace(state.params), step)
            last = step == config.steps or told_to_end(step)
            if last or keeper.due(step):
                state = settle(state)
                with clock.aside():
                    keeper.keep(state, clock)
            if last:
                break
    return model.replace(state.params), state


def averaged(model: Model, state: TrainState) -> Model:
    """The model with the moving average in place of the parameters that have one."""
    params, average = flatten_dict(model.params), flatten_dict(state.average)
    cast = {path: leaf.astype(params[path].dtype) for path, leaf in average.items()}
    return model.replace(unflatten_dict(params | cast))
