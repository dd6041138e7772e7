"""Low-rank adapters of linear layers, W + scale · A B with A [in, r] and B [r, out] (Hu et al. 2021, arXiv 2106.09685).

`Linear` applies them; here is what they begin with, and how they are folded into W.
"""

import math
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np

STRIP = 1 << 16  # values; a strip of W, of a product and of their sum stay in a core's cache


def kaiming_uniform(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, inputs: int) -> jax.Array:
    """A as peft draws it: uniform within 1 / sqrt(inputs), He et al. 2015 with the slope sqrt(5)."""
    bound = 1 / math.sqrt(inputs)
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def merge(weight: np.ndarray, left: np.ndarray, right: np.ndarray, scale: float) -> np.ndarray:
    """weight [m, n] + scale · left [m, r] right [r, n] in the widest of their dtypes, at least float32; not rounded.

    Every value is summed by itself, in the order of r, without fused operations: whichever part of a weight is merged,
    on whichever machine and in either orientation, its values are the same bits.
    """
    wide = reduce(np.promote_types, (part.dtype for part in (weight, left, right)), np.dtype(np.float32))
    left, right, factor = left.astype(wide, copy=False), right.astype(wide, copy=False), wide.type(scale)
    out = np.empty(weight.shape, wide)
    step = max(1, STRIP // max(1, weight.shape[1]))
    for at in range(0, len(weight), step):
        rows = slice(at, at + step)
        total = np.zeros_like(out[rows])
        product = np.empty_like(total)
        for column, row in zip(left[rows].T[..., None], right, strict=True):
            np.multiply(column, row, out=product)
            np.add(total, product, out=total)
        np.multiply(total, factor, out=total)
        np.add(weight[rows], total, out=out[rows])
    return out
