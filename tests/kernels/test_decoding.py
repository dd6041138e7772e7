"""Rows that are written into pages bit by bit, against the oracle on the whole rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from ivl3_jax.kernels import oracle
from ivl3_jax.kernels.decoding import Cache, Int8Cache, Places, attend, chosen, extend, in_pages, new_cache, write
from ivl3_jax.kernels.family import preferring
from tests.models.small import relative
from tests.tolerances import LAYER

B, K, PAGE, PAGES = 3, 2, 16, 6  # rows, kv heads, positions of a page, pages of a row
CAPACITY = PAGE * PAGES


@pytest.fixture
def mesh():
    with jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))):
        yield


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def scattered(rows=B, seed=0):
    """A table of pages in random order; page 0 is nobody's."""
    order = 1 + np.random.default_rng(seed).permutation(rows * PAGES)
    return order.reshape(rows, PAGES).astype(np.int32)


def places(table, lengths):
    return Places(jnp.asarray(table), jnp.asarray(lengths))


def filled(k, v, lengths, table, kind="plain"):
    """A cache that holds the first `lengths` positions of rows, written one by one."""
    cache = new_cache(kind, 1 + table.size, PAGE, k.shape[2], k.shape[3], jnp.float32, None)
    for row, length in enumerate(lengths):
        here = places(table[row : row + 1], np.zeros(1, np.int32))
        whole = -(-length // PAGE) * PAGE
        cache = write(cache, jnp.asarray(k[row : row + 1, :whole]), jnp.asarray(v[row : row + 1, :whole]), here)
    return cache


@pytest.mark.parametrize("family", ["chunked", "cudnn", "tpu", "oracle"])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("new", [1, 3])
def test_rows_of_unequal_length(new, group, family, mesh):
    """Steps of `new` positions until a row is full; what lies behind a row in its pages counts for nothing."""
    k, v = random(B, CAPACITY, K, 64), random(B, CAPACITY, K, 64, seed=1)
    q = random(B, CAPACITY, K * group, 64, seed=2)
    expected = np.asarray(oracle.attention(q, k, v, causal=True))
    lengths, rows, table = np.array([20, 91, 33], np.int32), np.arange(B)[:, None], scattered()
    cache = filled(k, v, lengths, table)
    layout = PartitionSpec(None, None, None, None)
    with preferring(family):
        step = jax.jit(lambda cache, q, k, v, at: extend(cache, q, k, v, at, layout))
        while lengths.max() + new <= CAPACITY:
            at = lengths[:, None] + np.arange(new)
            found, cache = step(cache, q[rows, at], k[rows, at], v[rows, at], places(table, lengths))
            assert relative(found, expected[rows, at]) < LAYER["float32"]
            lengths = lengths + new


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("family", ["chunked", "tpu", "oracle"])
def test_pieces_of_prompts(family, rows, mesh):
    """Whole pages at once, each behind what its row has."""
    k, v = random(rows, CAPACITY, K, 64), random(rows, CAPACITY, K, 64, seed=1)
    q = random(rows, CAPACITY, 2 * K, 64, seed=2)
    expected = np.asarray(oracle.attention(q, k, v, causal=True))
    lengths, table = np.array([32, 64], np.int32)[:rows], scattered(rows)
    cache, size = filled(k, v, lengths, table), 2 * PAGE
    at = lengths[:, None] + np.arange(size)
    index = np.arange(rows)[:, None]
    with preferring(family):
        layout = PartitionSpec(None, None, None, None)
        found, _ = jax.jit(lambda cache, *new: extend(cache, *new, places(table, lengths), layout))(
            cache, q[index, at], k[index, at], v[index, at]
        )
    assert relative(found, expected[index, at]) < LAYER["float32"]


def test_writing_leaves_the_other_pages_as_they_are(mesh):
    table = scattered()
    k, v = random(B, 1, K, 8), random(B, 1, K, 8, seed=1)
    before = Cache(*(jnp.asarray(random(1 + table.size, PAGE, K * 8, seed=seed)) for seed in (2, 3)))
    lengths = np.array([0, 17, 95], np.int32)
    after = write(before, jnp.asarray(k), jnp.asarray(v), places(table, lengths))
    for old, new, x in zip(before, after, (k, v), strict=True):
        expected = np.array(old)
        for row, length in enumerate(lengths):
            expected[table[row, length // PAGE], length % PAGE] = x[row].reshape(-1)
        np.testing.assert_array_equal(new, expected)


def test_eight_bits(mesh):
    """Within what rounding to 127 steps of the largest element of a head makes of it."""
    k, v, q = (random(B, CAPACITY, n, 64, seed=seed) for seed, n in enumerate((K, K, 2 * K)))
    lengths, table = np.array([20, 90, 33], np.int32), scattered()
    cache = filled(k, v, lengths, table, "int8")
    assert isinstance(cache, Int8Cache) and cache.keys.dtype == jnp.int8
    last = lengths[:, None] - 1
    rows = np.arange(B)[:, None]
    expected = np.asarray(oracle.attention(q, k, v, causal=True))[rows, last]
    found = attend(jnp.asarray(q[rows, last]), cache, places(table, lengths - 1))
    assert 1e-5 < relative(found, expected) < 0.02


def test_whole_rows_in_pages(mesh):
    k, v, q = (random(2, 64, n, 8, seed=seed) for seed, n in enumerate((K, K, 4)))
    cache, table = in_pages(jnp.asarray(k), jnp.asarray(v), 32)
    found = attend(jnp.asarray(q[:, 63:]), cache, places(table, np.full(2, 63, np.int32)))
    assert relative(found, np.asarray(oracle.attention(q, k, v, causal=True))[:, 63:]) < LAYER["float32"]


def test_who_attends():
    q = jax.ShapeDtypeStruct((1, 1, 4, 64), jnp.float32)
    pages = jax.ShapeDtypeStruct((4, 32, 128), jnp.float32)
    scales = jax.ShapeDtypeStruct((4, 32, 2), jnp.float32)
    piece = jax.ShapeDtypeStruct((1, 64, 4, 64), jnp.float32)
    for cache in (Cache(pages, pages), Int8Cache(pages, pages, scales, scales)):
        assert chosen(q, cache) == "pages" and chosen(piece, cache) == "plain"
        with preferring("cudnn"):
            assert chosen(q, cache) == "plain"
    with preferring("tpu"):
        assert chosen(q, Cache(pages, pages)) == "tpu"
        assert chosen(piece, Cache(pages, pages)) == "plain"
        assert chosen(q, Int8Cache(pages, pages, scales, scales)) == "plain"
        narrow = jax.ShapeDtypeStruct((4, 24, 128), jnp.float32)
        assert chosen(q, Cache(narrow, narrow)) == "plain"


def test_a_narrow_cache(mesh):
    """Keys and values are kept in the cache's dtype, and results come in the query's."""
    k, v, q = (random(B, 1, K, 8, seed=seed) for seed in range(3))
    cache = new_cache("plain", 1 + B * PAGES, PAGE, K, 8, jnp.bfloat16, None)
    at = places(scattered(), np.zeros(B, np.int32))
    cache = write(cache, jnp.asarray(k), jnp.asarray(v), at)
    assert cache.keys.dtype == cache.values.dtype == jnp.bfloat16
    assert attend(jnp.asarray(q), cache, at).dtype == jnp.float32
