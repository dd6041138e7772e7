"""Decoding from pages, interpreted, equals attention over the rows that they hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivl3_jax.kernels import oracle, tpu_decoding_attention
from ivl3_jax.kernels.tpu_decoding_attention import paged_attention
from tests.tolerances import LAYER

PAGE, MOST = 16, 8  # positions of a page, pages of a row


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Two pages at once, so that rows have several blocks."""
    monkeypatch.setattr(tpu_decoding_attention, "BLOCK", 2 * PAGE)


def paged(lengths, S, N, K, H, seed=0, dtype="float32"):
    """Pages in random order, some in no row; what is past a row's end is NaN, and so is its table out of range."""
    rng = np.random.default_rng(seed)
    B, pages = len(lengths), len(lengths) * MOST + 3
    q = rng.standard_normal((B, S, N, H))
    keys, values = rng.standard_normal((2, pages, PAGE, K * H))
    table = rng.permutation(pages)[: B * MOST].reshape(B, MOST)
    for row, length in enumerate(lengths):
        for m in range(MOST):
            start = min(max(length - m * PAGE, 0), PAGE)
            keys[table[row, m], start:] = values[table[row, m], start:] = np.nan
        table[row, -(-length // PAGE) :] = pages + 99
    narrow = (jnp.asarray(x, dtype) for x in (q, keys, values))
    return *narrow, jnp.asarray(table, jnp.int32), jnp.asarray(lengths, jnp.int32)


def agree(operands):
    found = jax.jit(lambda *o: paged_attention(*o, interpret=True))(*operands)
    wide = [x.astype(jnp.float32) for x in operands[:3]]
    table = jnp.minimum(operands[3], operands[1].shape[0] - 1)
    expected = oracle.paged_attention(*wide, table, operands[4])
    assert found.dtype == operands[0].dtype and np.isfinite(found.astype(jnp.float32)).all()
    tolerance = LAYER["float32"] if found.dtype == jnp.float32 else 2**-7
    assert np.linalg.norm(found.astype(jnp.float32) - expected) <= tolerance * np.linalg.norm(expected)


LENGTH = st.sampled_from([1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, MOST * PAGE]) | st.integers(1, MOST * PAGE)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(LENGTH, min_size=3, max_size=3), seed=st.integers(0, 99))
def test_ragged_lengths(lengths, seed):
    agree(paged(lengths, 1, 4, 2, 64, seed))


@pytest.mark.parametrize(
    ("N", "K", "H"), [(14, 2, 64), (12, 2, 128), (28, 4, 128), (40, 8, 128), (64, 8, 128), (32, 2, 128), (8, 8, 32)]
)
def test_published_heads(N, K, H):
    agree(paged([33, 1, 128], 1, N, K, H))


@pytest.mark.parametrize("S", [2, 5])
def test_several_queries(S):
    agree(paged([S, 16 + S, 128], S, 4, 2, 64))


def test_bfloat16():
    agree(paged([1, 40, 128], 2, 14, 2, 64, dtype="bfloat16"))


@pytest.mark.parametrize("lengths", [[0, 40, 0, 0, 17], [0], [0, 0], [3, 0]])
def test_empty_rows_are_zeros(lengths):
    operands = paged(lengths, 1, 4, 2, 64)
    agree(operands)
    y = paged_attention(*operands, interpret=True)
    assert not y[np.asarray(lengths) == 0].any()


@pytest.mark.parametrize(
    ("page", "width", "H", "message"),
    [
        (24, 128, 64, "page size 24; it must be a multiple of 16, such as 32"),
        (16, 64, 64, "1 kv heads of 64 take 64 elements a position; they must be a multiple of 128"),
        (16, 384, 96, "96 must divide 128"),
        (16, 128, 48, "128 elements a position do not fit 4 heads of 48"),
    ],
)
def test_unsupported_shapes_are_refused(page, width, H, message):
    pages = jnp.zeros((3, page, width))
    with pytest.raises(ValueError, match=message):
        paged_attention(jnp.zeros((1, 1, 4, H)), pages, pages, jnp.zeros((1, 2), jnp.int32), jnp.ones(1, jnp.int32))
