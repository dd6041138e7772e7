"""Decoding's attention on CPUs, against the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivl3_jax.kernels import cpu_decoding_attention, oracle
from tests.models.small import relative
from tests.tolerances import LAYER

PAGE = 16
paged_attention = jax.jit(cpu_decoding_attention.paged_attention)


def example(B, S, K, group, H, lengths, wider=0, dtype=np.float32):
    """Queries, keys and values in pages of a random order, their table, which may be wider than it has to, lengths."""
    rng = np.random.default_rng(0)
    width = max(lengths) // PAGE + 1 + wider
    table = np.zeros((B, width), np.int32)
    free = iter(1 + rng.permutation(B * width))
    for row, length in enumerate(lengths):
        used = (length + S - 1) // PAGE + 1
        table[row, :used] = [next(free) for _ in range(used)]
    keys, values = (rng.standard_normal((1 + B * width, PAGE, K * H)).astype(dtype) for _ in range(2))
    q = rng.standard_normal((B, S, K * group, H)).astype(dtype)
    return q, (keys, values), table, np.array(lengths, np.int32)


@pytest.mark.parametrize(
    ("K", "group", "H"), [(4, 7, 128), (8, 1, 64), (3, 2, 64), (2, 7, 64), (1, 3, 256), (5, 2, 24), (2, 4, 80)]
)
@pytest.mark.parametrize("S", [1, 5])
def test_heads_of_every_kind(K, group, H, S):
    """Alone in a product and several in one, those of odd numbers too; rows that are empty, and many pages of few."""
    q, cache, table, lengths = example(5, S, K, group, H, [0, 300, 15, 16, 90], wider=3)
    expected = oracle.paged_attention(q, *cache, table, lengths + S)
    assert relative(paged_attention(q, cache, table, lengths), np.asarray(expected)) < LAYER["float32"]


def test_eight_bits_of_several_queries():
    """As if keys and values were what their scales make of them."""
    q, (keys, values), table, lengths = example(3, 4, 4, 2, 32, [70, 3, 33])
    rng = np.random.default_rng(1)
    whole = [np.round(x * 40).clip(-127, 127).astype(np.int8) for x in (keys, values)]
    scales = [rng.uniform(0.01, 0.03, (*x.shape[:2], 4)).astype(np.float32) for x in whole]
    made = [x * np.repeat(scale, 32, axis=2) for x, scale in zip(whole, scales, strict=True)]
    found = paged_attention(q, (*whole, *scales), table, lengths)
    assert relative(found, np.asarray(oracle.paged_attention(q, *made, table, lengths + 4))) < LAYER["float32"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["keys", "values"])
def test_what_is_no_number_stays_in_its_row(where, bad):
    """Nor does anything come out of page 0, which is nobody's, or of what others left behind a row's end."""
    q, cache, table, lengths = example(3, 1, 2, 3, 64, [40, 100, 20], wider=4)
    expected = np.asarray(paged_attention(q, cache, table, lengths))
    spoilt = cache[where == "values"]
    spoilt[0], spoilt[table[1, 2], 3], spoilt[table[0, 2], 9:], spoilt[table[2, 1], 5:] = bad, bad, bad, bad
    found = np.asarray(paged_attention(q, cache, table, lengths))
    assert not np.isfinite(found[1]).all()
    np.testing.assert_allclose(found[[0, 2]], expected[[0, 2]], rtol=1e-5, atol=1e-6)


def test_bfloat16_is_rounded_once():
    q, cache, table, lengths = example(2, 1, 2, 3, 64, [40, 100])
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (q, cache))
    found = paged_attention(*half, table, lengths)
    expected = paged_attention(*jax.tree.map(lambda x: x.astype(jnp.float32), half), table, lengths)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, expected.astype(jnp.bfloat16))
