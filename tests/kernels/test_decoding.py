"""A cache that is filled bit by bit, against the oracle on the whole rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivl3_jax.kernels import oracle
from ivl3_jax.kernels.decoding import append, decode_attention, new_cache
from tests.models.small import relative
from tests.tolerances import LAYER

B, K, H, CAPACITY = 3, 2, 8, 12


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("new", [1, 3])
def test_rows_of_unequal_length(new, group):
    """Prefill of 5 positions of which rows use 2, 5 and 4, then steps of `new` until one row is full."""
    k, v = random(B, CAPACITY, K, H), random(B, CAPACITY, K, H, seed=1)
    q = random(B, CAPACITY, K * group, H, seed=2)
    expected = np.asarray(oracle.attention(q, k, v, causal=True))
    lengths, rows = np.array([2, 5, 4], np.int32), np.arange(B)[:, None]
    cache = jax.jit(new_cache, static_argnums=2)(k[:, :5], v[:, :5], CAPACITY)
    while lengths.max() + new <= CAPACITY:
        at = lengths[:, None] + np.arange(new)
        cache = jax.jit(append)(cache, k[rows, at], v[rows, at], lengths)
        lengths = lengths + new
        found = jax.jit(decode_attention)(q[rows, at], cache, lengths)
        assert relative(found, expected[rows, at]) < LAYER["float32"]


def test_a_narrow_cache():
    k, v, q = (random(B, 5, K, H, seed=seed).astype(jnp.bfloat16) for seed in range(3))
    wide = random(B, 1, K, H)
    cache = jax.jit(append)(new_cache(k[:, :4], v[:, :4], 8), wide, wide, np.full(B, 4, np.int32))
    assert cache.keys.dtype == cache.values.dtype == jnp.bfloat16
    assert decode_attention(q[:, :1].astype(np.float32), cache, np.full(B, 5, np.int32)).dtype == jnp.float32
