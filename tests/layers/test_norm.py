"""The written-out derivative of the norms, against autodiff of their formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivl3_jax.layers.norm import scaled_norm
from ivl3_jax.sharding.plan import ShardingPlan
from tests.models.small import relative

EPS = 1e-6


def formula(x, scale):
    over = tuple(range(x.ndim - scale.ndim, x.ndim))
    return x / jnp.sqrt(jnp.mean(x * x, over, keepdims=True) + EPS) * scale


@pytest.mark.parametrize(
    ("rows", "sizes"), [((), (7,)), ((5,), (7,)), ((2, 5), (7,)), ((2, 5), (3, 4)), ((0, 5), (7,))]
)
@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_derivative(rows, sizes, size):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True), jax.set_mesh(ShardingPlan().make_mesh()):
        x, g = (jnp.asarray(rng.standard_normal(rows + sizes)) for _ in range(2))
        x, scale = x * size, jnp.asarray(rng.standard_normal(sizes))
        y, expected_y = scaled_norm(EPS, x, scale), formula(x, scale)
        found, expected = (jax.vjp(f, x, scale)[1](g) for f in (lambda x, s: scaled_norm(EPS, x, s), formula))
        for one, other in zip((y, *found), (expected_y, *expected), strict=True):
            assert one.shape == other.shape
            assert one.dtype == np.float64
            assert one.size == 0 or not jnp.any(other) or relative(one, other) < 1e-13


def test_bfloat16_is_normalised_in_float32():
    rng = np.random.default_rng(0)
    x, g, scale = (jnp.asarray(rng.standard_normal((4, 64)), jnp.bfloat16) for _ in range(3))
    with jax.set_mesh(ShardingPlan().make_mesh()):
        y, back = jax.vjp(lambda x, s: scaled_norm(EPS, x, s), x, scale[0])
        wide, wide_back = jax.vjp(formula, x.astype(np.float32), scale[0].astype(np.float32))
        for one, other in zip((y, *back(g)), (wide, *wide_back(g.astype(np.float32))), strict=True):
            assert one.dtype == jnp.bfloat16
            assert relative(one.astype(np.float32), other) < 1e-2
