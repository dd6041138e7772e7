"""A cache that is filled bit by bit, against the oracle on the whole rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ivl3_jax.kernels import oracle
from ivl3_jax.kernels.decoding import append, decode_attention, new_cache
from tests.models.small import relative
from tests.tolerances import LAYER

B, K, H, CAPACITY = 3, 2, 8, 12


@pytest.fixture
def placed():
    mesh = jax.make_mesh((1,), ("data",))
    with jax.set_mesh(mesh):
        yield lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec()))


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


@pytest.mark.parametrize("new", [1, 3])
def test_the_cache_of_the_tpu_kernel(new, placed):
    """Positions appended to rows of unequal length, and pages beyond them that are not yet filled."""
    capacity, heads, width = 96, 4, 64
    k, v = random(B, capacity, K, width), random(B, capacity, K, width, seed=1)
    q = random(B, capacity, heads, width, seed=2)
    expected = np.asarray(oracle.attention(q, k, v, causal=True))
    lengths, rows = np.array([31, 40, 61], np.int32), np.arange(B)[:, None]
    cache = new_cache(placed(k[:, :64]), placed(v[:, :64]), capacity, "tpu")
    assert cache.capacity == new_cache(k[:, :64], v[:, :64], capacity, "plain").capacity == capacity
    for _ in range(2):
        at = lengths[:, None] + np.arange(new)
        cache = jax.jit(append)(cache, placed(k[rows, at]), placed(v[rows, at]), lengths)
        lengths = lengths + new
        found = jax.jit(decode_attention)(placed(q[rows, at]), cache, lengths)
        assert relative(found, expected[rows, at]) < LAYER["float32"]


def test_an_unknown_implementation_is_refused():
    k = random(1, 4, K, H)
    with pytest.raises(ValueError, match="decoding implementation 'flash' is unknown; there are plain, tpu"):
        new_cache(k, k, 8, "flash")


def test_capacities_that_cannot_be_are_refused():
    k = random(1, 20, K, H)
    with pytest.raises(ValueError, match="a cache of 8 positions has no room for the 20 that it begins with"):
        new_cache(k, k, 8)
    with pytest.raises(ValueError, match="whole pages of 16; capacity is 40, the nearest is 48"):
        new_cache(k, k, 40, "tpu")


def test_a_narrow_cache():
    k, v, q = (random(B, 5, K, H, seed=seed).astype(jnp.bfloat16) for seed in range(3))
    wide = random(B, 1, K, H)
    cache = jax.jit(append)(new_cache(k[:, :4], v[:, :4], 8), wide, wide, np.full(B, 4, np.int32))
    assert cache.keys.dtype == cache.values.dtype == jnp.bfloat16
    assert decode_attention(q[:, :1].astype(np.float32), cache, np.full(B, 5, np.int32)).dtype == jnp.float32
