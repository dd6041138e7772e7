"""AdamW as the InternVL recipes use it."""

import jax
import jax.numpy as jnp
import optax

from ivl3_jax.models.model import Params
from ivl3_jax.training.config import TrainConfig
from ivl3_jax.training.trained import Rates

DECAYED = ("kernel", "table", "positions", "lora_a", "lora_b")


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """Linear warm-up, then a cosine to `final_learning_rate` times the peak."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if config.warmup_steps else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=max(config.steps, config.warmup_steps + 1),
        end_value=config.learning_rate * config.final_learning_rate,
    )


def decay_mask(params: Params) -> Params:
    """True for parameters that weight decay shrinks: matrices and tables, by the name of the leaf."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)


def make_optimizer(config: TrainConfig, rates: Rates) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW (Loshchilov & Hutter 2019) with decay on `DECAYED` only.

    Moments and updates are float32 (float64 for float64 parameters), whatever the parameters are stored in; the first
    moment is kept in `moment_dtype`. `rates` are the factors on the learning rate of the parameters it is given; what
    has a factor of 0 is neither moved nor counted in the norm. The updates are to be multiplied by `-learning_rate` of
    the step: after steps that were not applied, the schedule is at another one than the moments.
    """
    moment = None if config.moment_dtype == "float32" else jnp.dtype(config.moment_dtype)
    adamw = optax.chain(
        optax.stateless(lambda grads, _: _by_path(lambda grad, rate: jnp.where(rate > 0, grad, 0), grads, rates)),
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.beta1, config.beta2, config.eps, mu_dtype=moment),
        optax.add_decayed_weights(config.weight_decay, decay_mask),
        optax.stateless(lambda updates, _: _by_path(lambda update, rate: update * rate, updates, rates)),
    )
    return optax.GradientTransformation(
        lambda params: adamw.init(_wide(params)),
        lambda grads, state, params: adamw.update(_wide(grads), state, _wide(params)),
    )


def _by_path(function, tree: Params, rates: Rates) -> Params:
    """function(leaf, its rate), leaves whose rate is 1 throughout left as they are."""

    def apply(path, leaf: jax.Array) -> jax.Array:
        rate = rates[tuple(key.key for key in path)]
        return leaf if (rate == 1).all() else function(leaf, rate.astype(leaf.dtype))

    return jax.tree_util.tree_map_with_path(apply, tree)


def _wide(tree: Params) -> Params:
    """Leaves in at least float32, so that moments of bfloat16 parameters do not round away."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), tree)
