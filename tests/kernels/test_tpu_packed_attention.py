"""The TPU kernel for packed rows equals the plain formula, forward and in every gradient, in Pallas's interpreter."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from ivl3_jax.kernels import chunked_attention, oracle, packed_blocks, tpu_packed_attention
from ivl3_jax.kernels.packed_schedule import Blocks
from tests.kernels.test_attention import assert_equal, operands, packed_ids
from tests.models.small import relative
from tests.tolerances import LAYER

TABLE = packed_blocks.TABLE
SMALL = Blocks(256, 256, 128, 128), Blocks(256, 128, 128, 128)


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """So that short rows have many blocks, whole ones and some in pieces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_blocks, "TABLE", dict.fromkeys(packed_blocks.TABLE, SMALL))
        yield


@functools.partial(jax.jit, static_argnames=("ours", "causal", "known_offset", "interpret"))
def value_and_gradients(inputs, q_ids, kv_ids, q_offset, *, ours, causal, known_offset=None, interpret=True):
    *inputs, cotangent = inputs
    q_offset = q_offset if known_offset is None else known_offset

    def run(q, k, v):
        if ours:
            return tpu_packed_attention.attention(
                q, k, v, q_ids, kv_ids, causal=causal, q_offset=q_offset, interpret=interpret
            )
        # For the oracle padding is a segment like others; here it sees nothing.
        return oracle.attention(q, k, v, jnp.where(q_ids == 0, -1, q_ids), kv_ids, causal=causal, q_offset=q_offset)

    out, pull = jax.vjp(run, *inputs)
    return out, *pull(cotangent)


def compare(inputs, q_ids, kv_ids, causal=True, q_offset=0, tolerance=LAYER["float32"], **options):
    ids = jnp.asarray(q_ids), jnp.asarray(kv_ids)
    ours = value_and_gradients(inputs, *ids, q_offset, ours=True, causal=causal, **options)
    assert_equal(ours, value_and_gradients(inputs, *ids, q_offset, ours=False, causal=causal), tolerance)
    out, d_q, d_k, d_v = map(np.asarray, ours)
    assert not out[q_ids == 0].any() and not d_q[q_ids == 0].any()
    assert not d_k[kv_ids == 0].any() and not d_v[kv_ids == 0].any()


@pytest.mark.parametrize(
    ("N", "K", "H", "S"),
    [
        (7, 1, 64, 129),
        (6, 1, 128, 512),
        pytest.param(14, 2, 64, 300, marks=pytest.mark.long),
        pytest.param(14, 2, 128, 300, marks=pytest.mark.long),
        pytest.param(5, 1, 128, 256, marks=pytest.mark.long),
        pytest.param(16, 1, 128, 200, marks=pytest.mark.long),
    ],
)
def test_grouped_heads_and_odd_lengths(N, K, H, S):
    rng = np.random.default_rng(N * S)
    ids = packed_ids(rng, 2, S, 5)
    compare(operands(rng, 2, S, S, N, K, H), ids, ids)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    segments=st.tuples(st.integers(0, 200), st.integers(1, 5)),
    shape=st.sampled_from([(2, 384, 384, 0), (2, 128, 512, 200), (2, 300, 515, 215)]),
    causal=st.booleans(),
)
def test_any_packing(seed, segments, shape, causal):
    """Segments of length 1 and more, rows of padding alone, up to 200 segments, and shards of the queries.

    One row has few, long segments, so that no gradient is zero but for rounding.
    """
    B, S, L, offset = shape
    rng = np.random.default_rng(seed)
    kv_ids = np.concatenate([packed_ids(rng, 1, L, n) if n else np.zeros((1, L), np.int32) for n in segments])
    kv_ids[1, : L - 1] = np.maximum(kv_ids[1, : L - 1], 1)
    compare(operands(rng, B, S, L, 2, 1, 64), kv_ids[:, offset : offset + S], kv_ids, causal, offset)


def test_every_segment_of_length_one():
    """Each query takes its own value whatever its score: gradients of q and k are zero but for rounding."""
    rng = np.random.default_rng(0)
    ids = np.arange(1, 201, dtype=np.int32)[None]
    q, k, v, cotangent = operands(rng, 1, 200, 200, 2, 1, 64)
    out, d_q, d_k, d_v = value_and_gradients((q, k, v, cotangent), ids, ids, 0, ours=True, causal=True)
    np.testing.assert_allclose(out, jnp.repeat(v, 2, axis=2), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(d_v, cotangent.sum(2, keepdims=True), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(d_q, 0, atol=LAYER["float32"])
    np.testing.assert_allclose(d_k, 0, atol=LAYER["float32"])


def test_without_segments_and_with_a_known_offset():
    rng = np.random.default_rng(1)
    inputs = operands(rng, 1, 256, 640, 2, 1, 64)
    everything = np.ones((1, 640), np.int32)
    compare(inputs, everything[:, :256], everything, q_offset=384, known_offset=384)
    q, k, v, _ = inputs
    whole = tpu_packed_attention.attention(q, k, v, causal=True, q_offset=384, interpret=True)
    np.testing.assert_allclose(whole, oracle.attention(q, k, v, causal=True, q_offset=384), rtol=1e-5, atol=1e-5)


def test_ids_in_any_order():
    rng = np.random.default_rng(2)
    q_ids, kv_ids = rng.integers(0, 4, (2, 2, 384), np.int32)
    kv_ids[:, 128:256] = 7
    compare(operands(rng, 2, 384, 384, 2, 1, 64), q_ids, kv_ids)


def test_bfloat16_accumulates_in_float32():
    rng = np.random.default_rng(3)
    ids = packed_ids(rng, 1, 500, 3)
    inputs = operands(rng, 1, 500, 500, 4, 2, 64, "bfloat16")
    ours = value_and_gradients(inputs, ids, ids, 0, ours=True, causal=True)
    assert {x.dtype for x in ours} == {jnp.dtype("bfloat16")}
    wide = value_and_gradients([x.astype(jnp.float32) for x in inputs], ids, ids, 0, ours=False, causal=True)
    # As tests/kernels/test_attention.py: one rounding of the result, another of `out`, which the backward pass reads.
    assert_equal(ours, wide, 2 * float(jnp.finfo(jnp.bfloat16).eps))


def test_large_scores_in_bfloat16_are_no_less_exact_than_elsewhere():
    """Queries are not rounded a second time, which shows where scores are large."""
    rng = np.random.default_rng(3)
    ids = np.repeat([[1, 2]], (200, 184), axis=1).astype(np.int32)  # no padding, which implementations treat unlike
    q, k, v, cotangent = operands(rng, 1, 384, 384, 2, 1, 128, "bfloat16")
    inputs = q * 40, k, v, cotangent
    exact = value_and_gradients([x.astype(jnp.float32) for x in inputs], ids, ids, 0, ours=False, causal=True)
    ours = value_and_gradients(inputs, ids, ids, 0, ours=True, causal=True)
    out, pull = jax.vjp(lambda *x: chunked_attention.attention(*x, ids, ids, causal=True), *inputs[:-1])
    for found, other, expected in zip(ours, (out, *pull(cotangent)), exact, strict=True):
        assert relative(found, expected) < 1.5 * relative(other, expected)


@pytest.mark.parametrize("padding", [0, -1, -7])
def test_padding_is_whatever_is_not_positive(padding):
    rng = np.random.default_rng(8)
    ids = packed_ids(rng, 1, 300, 3)
    ids[:, 250:] = 0
    inputs = operands(rng, 1, 300, 300, 2, 1, 64)
    marked = np.where(ids == 0, padding, ids)
    ours = value_and_gradients(inputs, marked, marked, 0, ours=True, causal=True)
    assert_equal(ours, value_and_gradients(inputs, ids, ids, 0, ours=False, causal=True), LAYER["float32"])


def test_keys_in_spans(monkeypatch):
    """As where the sums of all keys would not fit into VMEM; a segment reaches over two of them."""
    rng = np.random.default_rng(4)
    ids = packed_ids(rng, 2, 500, 3)
    monkeypatch.setattr(packed_blocks, "SUMS", 2 * 4 * 128 * 256)
    jax.clear_caches()
    compare(operands(rng, 2, 500, 500, 2, 1, 64), ids, ids)
    compare(operands(rng, 2, 500, 500, 2, 1, 64), ids, ids, known_offset=0)
    jax.clear_caches()


def test_the_blocks_of_the_table(monkeypatch):
    monkeypatch.undo()
    rng = np.random.default_rng(5)
    ids = packed_ids(rng, 1, 1100, 4)
    compare(operands(rng, 1, 1100, 1100, 2, 1, 128), ids, ids)


def test_in_a_simulation_of_the_memories_of_a_tpu():
    """Blocks are copied as on a chip, and what has not been written is NaN: no block is read or left out wrongly."""
    rng = np.random.default_rng(6)
    ids = packed_ids(rng, 2, 384, 4)
    ids[1, 100:] = 0
    compare(operands(rng, 2, 384, 384, 2, 1, 64), ids, ids, interpret=pltpu.InterpretParams())


def test_no_rows_and_no_keys_are_legal():
    q, kv = jnp.zeros((0, 5, 2, 64)), jnp.zeros((0, 5, 1, 64))
    assert tpu_packed_attention.attention(q, kv, kv, causal=True).shape == q.shape
    q, kv = jnp.ones((1, 5, 2, 64)), jnp.zeros((1, 0, 1, 64))
    assert not tpu_packed_attention.attention(q, kv, kv, causal=True).any()


def test_what_cannot_be_is_refused():
    def refused(message, q, k, *segments):
        with pytest.raises(ValueError, match=message):
            tpu_packed_attention.attention(jnp.zeros(q), jnp.zeros(k), jnp.zeros(k), *segments, causal=True)

    refused("3 query heads are not a multiple of 2 kv heads", (1, 5, 3, 64), (1, 5, 2, 64))
    refused("head size 80 is not supported; the nearest that is: 64", (1, 5, 2, 80), (1, 5, 2, 80))
    refused("both q_segments and kv_segments", (1, 5, 2, 64), (1, 5, 2, 64), jnp.zeros((1, 5), jnp.int32))
    refused("25 kv heads with their 50 query heads of 64 .* 3200 lanes; at most 2048", (1, 5, 50, 64), (1, 5, 25, 64))
    half = jnp.zeros((1, 5, 2, 64), "float16")
    with pytest.raises(ValueError, match="q is float16 and k float16"):
        tpu_packed_attention.attention(half, half, half, causal=True)


@pytest.mark.parametrize(
    ("rows", "S", "heads", "told"),
    [
        (1, 131072, (28, 4, 128), None),
        (1, 131072, (32, 2, 128), None),
        (3, 131072, (28, 4, 128), "make up to 98688 pairs of blocks, and 81920 .*; 2 such rows would do"),
        (1, 262144, (32, 2, 128), "make up to 262656 pairs of blocks, and 81920 .*; \\d+ queries and keys would do"),
    ],
)
def test_how_long_a_row_may_be(monkeypatch, rows, S, heads, told):
    monkeypatch.setattr(packed_blocks, "TABLE", TABLE)
    N, K, H = heads
    q, k = (jax.ShapeDtypeStruct((rows, S, n, H), jnp.bfloat16) for n in (N, K))
    found = tpu_packed_attention.unsupported(q, k, None, None)
    assert found is None if told is None else re.search(told, found), found


@pytest.mark.parametrize(
    ("rows", "S", "L", "heads"),
    [(1, 262144, 262144, (32, 2, 128)), (2, 529203, 529203, (64, 4, 64)), (5, 588676, 40801, (28, 4, 128))],
)
def test_what_is_said_to_do_does(monkeypatch, rows, S, L, heads):
    monkeypatch.setattr(packed_blocks, "TABLE", TABLE)
    N, K, H = heads

    def told(rows, S, L):
        q, k = (jax.ShapeDtypeStruct(x, jnp.bfloat16) for x in ((rows, S, N, H), (rows, L, K, H)))
        return tpu_packed_attention.unsupported(q, k, None, None)

    found = re.search(r"; (\d+) queries( and keys)? would do$", told(rows, S, L))
    fitting = int(found[1])
    assert told(rows, fitting, fitting if found[2] else L) is None
