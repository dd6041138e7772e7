"""Chunked attention equals the plain formula, forward and in every gradient, and is linear in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivl3_jax.kernels import chunked_attention, oracle
from tests.tolerances import LAYER


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 16, so that short sequences have many, the last one ragged."""
    monkeypatch.setattr(chunked_attention, "CHUNK", 16)
    monkeypatch.setattr(chunked_attention, "CAUSAL_CHUNK", 16)


def operands(rng, B, S, L, N, K, H, dtype="float32"):
    """q, k, v and a cotangent of the result."""
    shapes = (B, S, N, H), (B, L, K, H), (B, L, K, H), (B, S, N, H)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def packed_ids(rng, rows, length, segments):
    """Segment ids 1, 2, ... of random lengths, down to none at all, and padding at the end, as in a Batch."""
    cuts = np.sort(rng.integers(0, length + 1, (rows, segments)), axis=1)
    ids = 1 + (np.arange(length)[None, :, None] >= cuts[:, None, :]).sum(-1)
    return np.where(ids > segments, 0, ids).astype(np.int32)


def value_and_gradients(attention, q, k, v, cotangent, *segments, **options):
    def run(q, k, v):
        out, pull = jax.vjp(lambda *operands: attention(*operands, *segments, **options), q, k, v)
        return out, *pull(cotangent)

    return jax.jit(run)(q, k, v)


def assert_equal(ours, reference, tolerance):
    for name, a, b in zip(("out", "d_q", "d_k", "d_v"), ours, reference, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.isfinite(a).all(), name
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b), name


def compare(tolerance, operands, *segments, **options):
    ours = value_and_gradients(chunked_attention.attention, *operands, *segments, **options)
    assert_equal(ours, value_and_gradients(oracle.attention, *operands, *segments, **options), tolerance)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("B", "S", "L", "N", "K", "q_offset", "segments"),
    [
        (2, 17, 17, 4, 4, 0, 0),
        (3, 16, 16, 4, 2, 0, 5),
        (2, 67, 67, 14, 2, 0, 0),
        (2, 67, 67, 14, 2, 0, 3),
        (2, 131, 131, 2, 2, 0, 131),
        (1, 1, 70, 4, 2, 69, 0),
        (2, 33, 70, 4, 2, 37, 4),
        (2, 50, 31, 2, 1, -9, 0),
    ],
)
def test_equals_the_oracle(small_chunks, causal, B, S, L, N, K, q_offset, segments):
    rng = np.random.default_rng(S * L + segments)
    ids = ()
    if segments:
        kv_ids = packed_ids(rng, B, L, segments)
        ids = kv_ids[:, L - S :], kv_ids
    compare(LAYER["float32"], operands(rng, B, S, L, N, K, 8), *ids, causal=causal, q_offset=q_offset)


@pytest.mark.parametrize("seed", range(4))
def test_float64_over_random_cases(small_chunks, seed):
    rng = np.random.default_rng(seed)
    B, S, L, K, ratio = (int(n) for n in rng.integers(1, (4, 90, 90, 4, 8)))
    # Ids in no order, and sides that share few or none of them: skipping may only ever be conservative.
    ids = rng.integers(0, 6, (B, S), np.int32), rng.integers(0, 6, (B, L), np.int32)
    with jax.enable_x64(True):
        inputs = operands(rng, B, S, L, K * ratio, K, 4, "float64")
        compare(LAYER["float64"], inputs, *ids, causal=bool(seed % 2), q_offset=int(rng.integers(-20, 60)))


def test_a_whole_vit_tile():
    inputs = operands(np.random.default_rng(0), 1, 1025, 1025, 2, 2, 16)
    assert chunked_attention._Tiling.of(inputs[0].shape, inputs[1].shape, False)[-2:] == (1025, 1025)
    compare(LAYER["float32"], inputs, causal=False)


def test_default_chunks_of_a_packed_row():
    rng = np.random.default_rng(1)
    ids = packed_ids(rng, 1, 1300, 40)
    compare(LAYER["float32"], operands(rng, 1, 1300, 1300, 7, 1, 16), ids, ids, causal=True)


def test_bfloat16_accumulates_in_float32(small_chunks):
    rng = np.random.default_rng(2)
    inputs = operands(rng, 2, 70, 70, 4, 2, 16, "bfloat16")
    ours = value_and_gradients(chunked_attention.attention, *inputs, causal=True)
    wide = value_and_gradients(oracle.attention, *(x.astype(jnp.float32) for x in inputs), causal=True)
    assert {x.dtype for x in ours} == {jnp.dtype("bfloat16")}
    # One rounding of the result to bfloat16, another of `out`, which the backward pass reads.
    assert_equal(ours, wide, 2 * float(jnp.finfo(jnp.bfloat16).eps))


@pytest.mark.parametrize("attention", [oracle.attention, chunked_attention.attention])
def test_a_query_that_sees_nothing_gives_zeros(small_chunks, attention):
    q, k, v, cotangent = operands(np.random.default_rng(3), 1, 40, 40, 2, 1, 8)
    mine, theirs = np.full((1, 40), 1, np.int32), np.full((1, 40), 2, np.int32)
    mine[:, 20:] = theirs[:, 30:] = 3
    out, d_q, d_k, d_v = value_and_gradients(attention, q, k, v, cotangent, mine, theirs, causal=False)
    assert not out[:, :20].any() and not d_q[:, :20].any()
    assert not d_k[:, :30].any() and not d_v[:, :30].any()
    assert out[:, 20:].all() and d_k[:, 30:].any()


def test_rows_of_padding_alone_are_finite_and_apart(small_chunks):
    rng = np.random.default_rng(4)
    q, k, v, cotangent = operands(rng, 2, 50, 50, 2, 2, 8)
    ids = np.stack([np.zeros(50, np.int32), packed_ids(rng, 1, 50, 3)[0]])
    compare(LAYER["float32"], (q, k, v, cotangent), ids, ids, causal=True)
    run = jax.jit(lambda q, k, v, ids: chunked_attention.attention(q, k, v, ids, ids, causal=True))
    alone, both = run(q[1:], k[1:], v[1:], ids[1:]), run(q, k, v, ids)
    np.testing.assert_allclose(both[1:], alone, rtol=1e-6, atol=1e-6)


def test_kv_chunks_of_other_segments_and_of_the_future_are_skipped():
    tiling = chunked_attention._Tiling(1, 1, 1, queries=12, keys=12, units=1, q=4, kv=4)
    ids = jnp.asarray([[1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 0, 0]])

    def counts(causal, ids):
        ids = tiling.split_ids(ids, 4)
        return chunked_attention._chunk_order(tiling, causal, ids, ids, 0)[1][0].tolist()

    assert counts(False, None) == [3, 3, 3]
    assert counts(True, None) == [1, 2, 3]
    assert counts(False, ids) == [1, 1, 1]
    assert counts(False, ids[:, ::-1]) == [1, 1, 1]
    order, _ = chunked_attention._chunk_order(tiling, True, tiling.split_ids(ids, 4), tiling.split_ids(ids, 4), 0)
    assert order[0, 2, 0] == 2


@pytest.mark.parametrize("causal", [False, True])
def test_memory_is_linear_in_the_sequence(causal):
    def temporaries(S):
        q, kv = (jax.ShapeDtypeStruct((1, S, heads, 64), jnp.float32) for heads in (4, 2))

        def loss(q, k, v):
            return chunked_attention.attention(q, k, v, causal=causal).sum()

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, kv, kv).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(8192) <= 2.2 * temporaries(4096)


def test_no_rows_and_no_keys_are_legal():
    q, kv = jnp.zeros((0, 5, 2, 4)), jnp.zeros((0, 5, 1, 4))
    assert chunked_attention.attention(q, kv, kv, causal=False).shape == q.shape
    q, kv = jnp.ones((1, 5, 2, 4)), jnp.zeros((1, 0, 1, 4))
    assert not chunked_attention.attention(q, kv, kv, causal=False).any()


def test_what_cannot_be_is_refused():
    q, kv = jnp.zeros((1, 5, 3, 4)), jnp.zeros((1, 5, 2, 4))
    with pytest.raises(ValueError, match="3 query heads are not a multiple of 2 kv heads"):
        chunked_attention.attention(q, kv, kv, causal=False)
    with pytest.raises(ValueError, match="both q_segments and kv_segments"):
        chunked_attention.attention(q, q, q, jnp.zeros((1, 5), jnp.int32), causal=False)
