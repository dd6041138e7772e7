"""The training state and one optimizer step: pure, jitted, donated."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ivl3_jax.batch import Batch
from ivl3_jax.models.internvl import batch_loss
from ivl3_jax.models.model import Params


class TrainState(NamedTuple):
    """Everything a step changes."""

    step: jax.Array  # int32 scalar, steps done
    params: Params
    optimizer: optax.OptState


class Metrics(NamedTuple):
    """What a step reports, float scalars on device.

    Attributes:
        loss: weighted mean over the global batch, in nats. tokens: trained positions (weight above 0).
        positions: all positions that are not padding. grad_norm: global norm before clipping.
    """

    loss: jax.Array
    tokens: jax.Array
    positions: jax.Array
    grad_norm: jax.Array


TrainStep = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; moments take the layout of their parameters."""
    return TrainState(jnp.zeros((), jnp.int32), params, jax.jit(optimizer.init)(params))


def make_step(graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation) -> TrainStep:
    """The jitted step(state, batch, key) -> (state, metrics); the state is donated. Call it under the model's mesh.

    `key` is the run's; every step folds its number into it, so the draw depends on nothing but seed and step.
    """

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        drop_path = jax.random.fold_in(key, state.step)

        def loss_of(params: Params) -> jax.Array:
            return batch_loss(nnx.merge(graphdef, params), batch, key=drop_path)

        loss, grads = jax.value_and_grad(loss_of)(state.params)
        updates, moments = optimizer.update(grads, state.optimizer, state.params)
        metrics = Metrics(
            loss=loss,
            tokens=(batch.loss_weights > 0).sum(),
            positions=(batch.segment_ids > 0).sum(),
            grad_norm=optax.tree.norm(grads),
        )
        return TrainState(state.step + 1, optax.apply_updates(state.params, updates), moments), metrics

    return jax.jit(step, donate_argnums=0)
