"""A linear layer whose kernel has its outputs first, against the same layer as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ivl3_jax.layers.linear import FEW, Linear
from ivl3_jax.layers.parameter import normal
from ivl3_jax.sharding.plan import ShardingPlan
from tests.models.small import relative

EMBED, MLP, HEADS = {"embed": 8}, {"mlp": 16}, {"heads": 4, "head_dim": 2}


@pytest.mark.parametrize("sizes", [(), (2, 2)], ids=["one device", "fsdp and tensor"])
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("rows", [1, 4, FEW + 2])
@pytest.mark.parametrize(("inputs", "outputs"), [(EMBED, MLP), (MLP, EMBED), (EMBED, HEADS), (HEADS, EMBED)])
def test_outputs_first(inputs, outputs, rows, int8, sizes):
    plan = (
        ShardingPlan.read("fsdp_tensor", dict(zip(("fsdp", "tensor"), sizes, strict=True))) if sizes else ShardingPlan()
    )
    rng = np.random.default_rng(0)
    with jax.enable_x64(True), jax.set_mesh(plan.make_mesh()):
        rules = plan.decoder.whole("batch", "sequence", "residual")  # as the engine has it
        shared = {"rules": rules, "rngs": nnx.Rngs(0), "dtype": jnp.float64}
        linear = Linear(inputs, outputs, bias=True, init=normal(1.0), **shared)
        x = jnp.asarray(rng.standard_normal((rows, 2, *inputs.values())))
        if int8:
            linear.to_int8()
        expected = linear(x, "batch", "sequence")
        weight = linear.weight(jnp.float64)
        linear.put_outputs_first()
        assert (linear.weight(jnp.float64) == weight).all()
        assert linear.kernel.shape == (*outputs.values(), *inputs.values())
        found = linear(x, "batch", "sequence")
        assert found.shape == expected.shape == (rows, 2, *outputs.values())
        assert relative(found, expected) < 1e-13
