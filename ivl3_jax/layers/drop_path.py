"""Stochastic depth (Huang et al. 2016): a residual branch is dropped for whole samples while training."""

import jax
import numpy as np
from jax.sharding import PartitionSpec, reshard


def drop_path_rates(layers: int, last: float) -> np.ndarray:
    """float32 [layers], growing linearly from 0 at the first layer to `last` at the last."""
    return np.linspace(0, last, layers, dtype=np.float32)


def drop_path(branch: jax.Array, rate: jax.Array, key: jax.Array, layout: PartitionSpec) -> jax.Array:
    """Zeroes whole samples of `branch` [T, ...] with probability `rate`, scales the others by 1 / (1 - rate).

    The draw is over the global axis, so it does not depend on the mesh. `layout` is that of the branch.
    """
    keep = jax.random.bernoulli(key, 1 - rate, (branch.shape[0],) + (1,) * (branch.ndim - 1))
    factor = (keep / (1 - rate)).astype(branch.dtype)
    return branch * reshard(factor, PartitionSpec(layout[0], *(None,) * (branch.ndim - 1)))
