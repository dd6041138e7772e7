"""Stochastic depth (Huang et al. 2016): a residual branch is dropped for whole samples while training."""

import jax
import numpy as np
from jax.sharding import PartitionSpec, reshard


def drop_path_rates(layers: int, last: float) -> np.ndarray:
    """float32 [layers], growing linearly from 0 at the first layer to `last` at the last."""
    return np.linspace(0, last, layers, dtype=np.float32)


def drop_path(branch: jax.Array, rate: jax.Array, draws: jax.Array, layout: PartitionSpec) -> jax.Array:
    """Zeroes whole samples of `branch` [T, ...] with probability `rate`, scales the others by 1 / (1 - rate).

    Args:
        branch: what is dropped. rate: a scalar.
        draws: float32 [T], uniform in [0, 1); a sample is dropped where its draw is below the rate.
        layout: that of the branch.
    """
    factor = ((draws >= rate) / (1 - rate)).astype(branch.dtype).reshape(-1, *(1,) * (branch.ndim - 1))
    return branch * reshard(factor, PartitionSpec(layout[0], *(None,) * (branch.ndim - 1)))
