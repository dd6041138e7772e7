"""AdamW as the InternVL recipes use it."""

import jax
import jax.numpy as jnp
import optax

from ivl3_jax.training.config import TrainConfig

DECAYED = ("kernel", "table", "positions")


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """Linear warm-up, then a cosine to `final_learning_rate` times the peak."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if config.warmup_steps else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=max(config.steps, config.warmup_steps + 1),
        end_value=config.learning_rate * config.final_learning_rate,
    )


def decay_mask(params: dict) -> dict:
    """True for parameters that weight decay shrinks: matrices and tables, by the name of the leaf."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW (Loshchilov & Hutter 2019) with decay on `DECAYED` only.

    Moments and updates are float32 (float64 for float64 parameters), whatever the parameters are stored in.
    """
    adamw = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
    )
    return optax.GradientTransformation(
        lambda params: adamw.init(_wide(params)),
        lambda grads, state, params: adamw.update(_wide(grads), state, _wide(params)),
    )


def _wide(tree: dict) -> dict:
    """Leaves in at least float32, so that moments of bfloat16 parameters do not round away."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), tree)
