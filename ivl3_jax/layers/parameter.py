"""Declaring a parameter once: shape, initialiser, logical axes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

Initializer = Callable[[jax.Array, tuple[int, ...], jnp.dtype], jax.Array]


def parameter(
    rngs: nnx.Rngs, initializer: Initializer, shape: tuple[int, ...], axes: tuple[str, ...], dtype: jnp.dtype
) -> nnx.Param:
    """A parameter of `shape` whose dimensions bear the logical names `axes`.

    The layout on a mesh is not decided here: a `ShardingPlan` reads the names (`models.model.abstract_model`).
    """
    if len(shape) != len(axes):
        raise ValueError(f"shape {shape} has {len(shape)} dimensions, axes {axes} name {len(axes)}")
    return nnx.Param(initializer(rngs.params(), shape, dtype), axes=axes)


def normal(std: float) -> Initializer:
    """Zero-mean Gaussian with standard deviation `std`."""
    return jax.nn.initializers.normal(std)


def constant(value: float) -> Initializer:
    """Every entry `value`."""
    return jax.nn.initializers.constant(value)


def padded(initializer: Initializer, axis: int, size: int) -> Initializer:
    """`initializer` for the first `size` entries along `axis`, zeros for what a sharding plan pads.

    The draw has the unpadded shape, so that a fresh model is the same under every plan.
    """

    def initialise(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        drawn = initializer(key, (*shape[:axis], size, *shape[axis + 1 :]), dtype)
        padding = [(0, 0)] * len(shape)
        padding[axis] = (0, shape[axis] - size)
        return jnp.pad(drawn, padding)

    return initialise


def accumulation_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Where norms, softmax, rope angles and losses are computed: at least float32, and float64 in the f64 mode."""
    return jnp.promote_types(dtype, jnp.float32)
