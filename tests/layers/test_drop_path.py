"""Stochastic depth: whole samples, the right fraction of them, unchanged in the mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ivl3_jax.layers.drop_path import drop_path, drop_path_rates
from ivl3_jax.sharding.plan import ShardingPlan


def test_rates_grow_linearly():
    np.testing.assert_allclose(drop_path_rates(5, 0.4), [0, 0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    assert drop_path_rates(1, 0.4).tolist() == [0]


def drawn(plan, rate, seed, samples=4000):
    mesh, layout = plan.make_mesh(), PartitionSpec("fsdp", None, None)
    with jax.set_mesh(mesh):
        branch = jax.device_put(jnp.ones((samples, 3, 2)), NamedSharding(mesh, layout))
        draws = jax.random.uniform(jax.random.key(seed), (samples,))
        return np.asarray(jax.jit(lambda x, draws: drop_path(x, rate, draws, layout))(branch, draws))


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.7])
def test_samples_are_kept_or_dropped_whole(rate):
    found = drawn(ShardingPlan(), rate, 0)
    assert set(np.unique(found)) <= {np.float32(0), np.float32(1) / np.float32(1 - rate)}
    assert (found == found[:, :1, :1]).all()
    dropped = (found[:, 0, 0] == 0).mean()
    assert abs(dropped - rate) < 4 * (rate * (1 - rate) / len(found)) ** 0.5 + 1e-9  # four standard errors
    assert found.mean() == pytest.approx((1 - dropped) / (1 - rate), rel=1e-5)


def test_the_draw_depends_on_the_key_and_not_on_the_mesh():
    plan = ShardingPlan.read("fsdp_tensor", {"fsdp": 8})
    np.testing.assert_array_equal(drawn(ShardingPlan(), 0.3, 1, 64), drawn(plan, 0.3, 1, 64))
    assert (drawn(plan, 0.3, 1, 64) != drawn(plan, 0.3, 2, 64)).any()
