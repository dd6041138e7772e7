"""Attention by cuDNN: where segments lie, what is refused, and on a GPU the oracle's results."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivl3_jax.kernels import gpu_attention, oracle

ON_GPU = jax.default_backend() == "gpu"
segments_of = jax.jit(gpu_attention.Segments.of, static_argnums=1)


@settings(deadline=None)  # the first one compiles
@given(st.lists(st.integers(1, 9), max_size=6), st.integers(0, 5))
def test_segments(lengths, padding):
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    # To one of a few lengths, each of which is compiled; padding may be none.
    ids = np.pad(ids, (0, padding + (-len(ids) - padding) % 18 or 18))
    found = segments_of(jnp.asarray(ids[None], jnp.int32), 5)
    assert bool(found.told) == (len(lengths) <= 5)
    if found.told:
        missing = [-1] * (5 - len(lengths))
        starts = np.cumsum([0, *lengths])[:-1].tolist()
        assert found.lengths.tolist() == [[*lengths, *missing]]
        assert found.starts.tolist() == [[*starts, *missing, -1]]


def test_a_segment_in_two_places_is_seen():
    ids = jnp.asarray([[1, 1, 2, 2], [1, 2, 1, 0]], jnp.int32)
    assert not gpu_attention.Segments.of(ids, 4).told
    assert gpu_attention.Segments.of(ids[:1], 4).told


@pytest.mark.parametrize(
    ("shapes", "dtype", "told"),
    [
        (((1, 8, 4, 64), (1, 8, 2, 64)), "float32", "give q, k and v as bfloat16 or as float16"),
        (((1, 8, 3, 64), (1, 8, 2, 64)), "bfloat16", "3 query heads are not a multiple of 2 kv heads"),
        (((1, 8, 4, 130), (1, 8, 2, 130)), "bfloat16", "head size 130 is not supported; the nearest that is: 128"),
        (((1, 4, 4, 64), (1, 8, 2, 64)), "bfloat16", "4 queries of rows of 8; causal or packed rows have to be whole"),
    ],
)
def test_refusals(shapes, dtype, told):
    q, k = (jnp.zeros(shape, dtype) for shape in shapes)
    with pytest.raises(ValueError, match=told):
        gpu_attention.attention(q, k, k, causal=True)


@pytest.mark.skipif(ON_GPU, reason="lowers for a GPU that is not there")
def test_lowers_packed_rows_for_cudnn():
    q, k = (jax.ShapeDtypeStruct((2, 256, heads, 64), jnp.bfloat16) for heads in (4, 2))
    ids = jax.ShapeDtypeStruct((2, 256), jnp.int32)

    def loss(q, k, v, ids):
        return gpu_attention.attention(q, k, v, ids, ids, causal=True).astype(jnp.float32).sum()

    cudnn = "jax._src.cudnn.fused_attention_stablehlo"
    with (
        mock.patch.object(gpu_attention, "_capability", lambda: 9.0),
        mock.patch(f"{cudnn}.check_cudnn_version", lambda: 91000),
        mock.patch(f"{cudnn}.check_compute_capability", lambda capability: True),
        mock.patch(f"{cudnn}.is_cuda_compute_capability_equal", lambda capability: False),
    ):
        lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(q, k, k, ids).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    assert "__cudnn$fmhaSoftmax" in text and "__cudnn$fmhaSoftmaxBackward" in text
    # Statistics have a row for each segment that there may be.
    assert f"tensor<{2 * gpu_attention.SEGMENTS}x4x256xf32>" in text


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [None, (100, 1, 300, 90), (1,) * 100])
def test_equals_the_oracle(lengths, causal):
    rng = np.random.default_rng(0)
    q, k, v, d_out = (jnp.asarray(rng.normal(size=(2, 512, n, 64)), jnp.bfloat16) for n in (8, 2, 2, 8))
    ids = None
    if lengths is not None:
        row = np.repeat(np.arange(1, len(lengths) + 1), lengths)
        ids = jnp.asarray(np.tile(np.pad(row, (0, 512 - len(row))), (2, 1)), jnp.int32)
        d_out = jnp.where((ids > 0)[:, :, None, None], d_out, 0)

    def both(run, *operands):
        out, pull = jax.vjp(lambda *x: run(*x, ids, ids, causal=causal), *operands)
        return [out if ids is None else jnp.where((ids > 0)[:, :, None, None], out, 0), *pull(d_out.astype(out.dtype))]

    found = jax.jit(lambda *x: both(gpu_attention.attention, *x))(q, k, v)
    exact = jax.jit(lambda *x: both(oracle.attention, *x))(*(x.astype(jnp.float32) for x in (q, k, v)))
    for one, other in zip(found, exact, strict=True):
        one, other = np.asarray(one, np.float32), np.asarray(other)
        assert np.sqrt(np.mean((one - other) ** 2)) < 0.01 * np.sqrt(np.mean(other**2))
