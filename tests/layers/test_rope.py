"""Rotary embeddings against complex numbers in float64, at whole and fractional positions."""

import jax.numpy as jnp
import numpy as np
import pytest

from ivl3_jax.layers.rope import apply_rope, dynamic_inverse_frequencies, inverse_frequencies, rope_table
from tests.tolerances import LAYER

H, THETA = 16, 1e6


def table(positions, dtype):
    return rope_table(positions, inverse_frequencies(H, THETA, np.dtype(np.float32)), dtype)


def oracle(x, positions):
    """Pairs (i, i + H/2) as complex numbers, turned by position * theta^(-2i/H)."""
    half = H // 2
    angles = positions[..., None] * THETA ** (-np.arange(half) * 2 / H)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, :, None]
    return np.concatenate([turned.real, turned.imag], axis=-1)


@pytest.mark.parametrize("delta", [1, 0.5, 1 / 16, 1 / 256])
def test_against_the_oracle(delta):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 500, 3, H))
    positions = np.arange(500) * delta + np.array([[0.0], [32000.25]])
    found = apply_rope(jnp.asarray(x, jnp.float32), table(jnp.asarray(positions, jnp.float32), jnp.float32))
    # Angles near 32000 carry float32's own rounding of positions and products; those from 0 do not.
    expected = oracle(x, positions.astype(np.float32).astype(np.float64))
    assert np.linalg.norm(found[0] - expected[0]) < LAYER["float32"] * np.linalg.norm(expected[0])
    np.testing.assert_allclose(found[1], expected[1], atol=0.02)


def test_positions_of_step_one_are_plain_positions():
    whole = table(jnp.arange(300.0)[None], jnp.float32)
    summed = table(jnp.cumsum(jnp.ones((1, 300)))[None] - 1, jnp.float32)
    for a, b in zip(whole, summed, strict=True):
        np.testing.assert_array_equal(a, b)


def test_scores_depend_on_the_distance_only():
    rng = np.random.default_rng(1)
    q, k = (np.broadcast_to(rng.standard_normal((1, 1, 1, H)), (1, 64, 1, H)) for _ in range(2))
    near, far = (jnp.arange(64.0)[None] + offset for offset in (0, 100))
    scores = [
        jnp.sum(
            apply_rope(jnp.asarray(q), table(at, jnp.float32)) * apply_rope(jnp.asarray(k), table(at + 7, jnp.float32)),
            axis=-1,
        )
        for at in (near, far)
    ]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)


def test_bfloat16_activations_keep_exact_positions():
    """bfloat16 holds whole numbers only to 256: angles are computed in float32."""
    at = jnp.asarray([[1001.0, 1002.0]])
    cos, _ = table(at, jnp.bfloat16)
    exact, _ = table(at, jnp.float32)
    assert cos.dtype == jnp.bfloat16
    np.testing.assert_allclose(cos.astype(jnp.float32), exact, atol=4e-3)


def test_frequencies_are_rounded_as_pytorch_rounds_them(torch):
    theirs = 1.0 / (THETA ** (torch.arange(0, H, 2, dtype=torch.int64).float() / H))
    np.testing.assert_array_equal(inverse_frequencies(H, THETA, np.dtype(np.float32)), theirs.numpy())


def test_dynamic_ntk():
    """Against the formula in float64; exactly the plain frequencies up to the trained length."""
    trained, factor = 100, 6.0
    lengths = np.array([1, 99, 100, 101, 250, 600], np.int32)
    found = np.asarray(dynamic_inverse_frequencies(jnp.asarray(lengths), H, THETA, factor, trained, jnp.float32))
    plain = inverse_frequencies(H, THETA, np.dtype(np.float32))
    np.testing.assert_array_equal(found[:3], np.broadcast_to(plain, (3, H // 2)))
    for row, length in zip(found[3:], lengths[3:], strict=True):
        theta = THETA * (factor * length / trained - (factor - 1)) ** (H / (H - 2))
        np.testing.assert_allclose(row, theta ** (-np.arange(0, H, 2) / H), rtol=3e-6)
        assert (row[1:] < plain[1:]).all()
