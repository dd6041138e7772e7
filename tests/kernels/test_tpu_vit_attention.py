"""ViT attention for TPUs, interpreted on the CPU, equals the plain formula, forward and in every gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivl3_jax.kernels import chunked_attention, oracle, tpu_tiling
from ivl3_jax.kernels.attention import chosen
from ivl3_jax.kernels.tpu_vit_attention import attention
from tests.kernels.test_attention import assert_equal, operands, value_and_gradients
from tests.models.small import relative
from tests.tolerances import LAYER

interpreted = functools.partial(attention, interpret=True)
# One rounding of the result to bfloat16, another of `out`, which the backward pass reads.
BFLOAT16 = 2 * float(jnp.finfo(jnp.bfloat16).eps)


def compare(B, S, N, H, dtype, scale=1.0, device="v5p"):
    """As it is made for one kind of TPU."""
    q, k, v, cotangent = operands(np.random.default_rng(S * N), B, S, S, N, N, H, dtype)
    inputs = q * jnp.asarray(scale, dtype), k, v, cotangent
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tpu_tiling, "chip", lambda: device)
        ours = value_and_gradients(interpreted, *inputs, causal=False)
    assert {x.dtype for x in ours} == {jnp.dtype(dtype)}
    wide = value_and_gradients(oracle.attention, *(x.astype(jnp.float32) for x in inputs), causal=False)
    assert_equal(ours, wide, LAYER["float32"] if dtype == "float32" else BFLOAT16)


@pytest.mark.parametrize("device", ["v5p", "v6e"])
@pytest.mark.parametrize(("N", "H", "dtype"), [(1, 128, "float32"), (2, 64, "float32"), (2, 64, "bfloat16")])
def test_a_published_tile(N, H, dtype, device):
    compare(1, 1025, N, H, dtype, device=device)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    B=st.integers(1, 2),
    groups=st.integers(1, 2),
    H=st.sampled_from([64, 128]),
    P=st.sampled_from([128, 256, 384]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    device=st.sampled_from(["v5p", "v6e"]),
)
def test_equals_the_oracle(B, groups, H, P, dtype, device):
    compare(B, P + 1, groups * 128 // H, H, dtype, device=device)


def test_large_scores_do_not_overflow():
    compare(1, 257, 2, 64, "float32", scale=25.0)


@pytest.mark.parametrize("device", ["v5p", "v6e"])
@pytest.mark.parametrize(("N", "H"), [(2, 64), (1, 128)])
def test_large_scores_in_bfloat16_are_no_less_exact_than_elsewhere(N, H, device):
    """Queries are not rounded a second time, which shows where scores are large."""
    q, k, v, cotangent = operands(np.random.default_rng(7), 1, 257, 257, N, N, H, "bfloat16")
    inputs = q * 40, k, v, cotangent
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tpu_tiling, "chip", lambda: device)
        ours = value_and_gradients(interpreted, *inputs, causal=False)
    others = value_and_gradients(chunked_attention.attention, *inputs, causal=False)
    exact = value_and_gradients(oracle.attention, *(x.astype(jnp.float32) for x in inputs), causal=False)
    for found, other, expected in zip(ours, others, exact, strict=True):
        assert relative(found, expected) < 1.5 * relative(other, expected)


@pytest.mark.parametrize("H", [64, 128])
def test_any_position_may_be_the_one_left_over(H):
    inputs = operands(np.random.default_rng(5), 2, 129, 129, 2, 2, H)
    order = np.random.default_rng(6).permutation(129)
    there = value_and_gradients(interpreted, *inputs, causal=False)
    moved = value_and_gradients(interpreted, *(x[:, order] for x in inputs), causal=False)
    assert_equal(moved, [x[:, order] for x in there], LAYER["float32"])


def test_no_tiles_are_legal():
    empty = jnp.zeros((0, 1025, 16, 64))
    assert interpreted(empty, empty, empty).shape == empty.shape


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 1024, 2, 64), {}, "1024 positions are not supported; the nearest are 1025"),
        ((1, 65, 2, 64), {}, "the nearest are 129"),
        ((1, 4097, 2, 64), {}, "the nearest are 2049"),
        ((1, 1025, 2, 96), {}, "head size 96 is not supported, only 64 and 128"),
        ((1, 1025, 15, 64), {}, "15 heads of 64 do not fill 128 lanes; 14 or 16 heads would"),
        ((1, 1025, 2, 64), {"causal": True}, "causal attention and segments"),
        ((1, 1025, 2, 64), {"q_segments": np.ones((1, 1025), np.int32)}, "causal attention and segments"),
    ],
)
def test_what_is_not_supported_is_refused(shape, options, message):
    x = jnp.zeros(shape)
    with pytest.raises(ValueError, match=message):
        interpreted(x, x, x, **options)


def test_other_operands_are_refused():
    x = jnp.zeros((1, 129, 2, 64))
    with pytest.raises(ValueError, match="they have to be of one shape"):
        interpreted(x, x[:, :, :1], x[:, :, :1])
    with pytest.raises(ValueError, match="float16 is not supported, only float32 and bfloat16"):
        interpreted(*[x.astype(jnp.float16)] * 3)


def test_the_cpu_keeps_its_own():
    x = jax.ShapeDtypeStruct((1, 1025, 16, 64), jnp.bfloat16)
    assert chosen(x, x, None, False) == "chunked"
