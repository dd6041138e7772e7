"""The train step of InternVL3-1B's shapes through the real XLA:TPU compiler, without a TPU."""

import jax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ivl3_jax.batch import empty_batch
from ivl3_jax.config import InternVLConfig
from ivl3_jax.models.model import abstract_model, batch_specs
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.training.config import TrainConfig
from ivl3_jax.training.objectives import NextToken
from ivl3_jax.training.step import init_state, make_step

HBM = 16 * 2**30  # bytes of a v5e chip


@pytest.mark.long  # two steps of a like are compiled by test_inventories.py in any case
@pytest.mark.parametrize("mesh", [{"fsdp": 16}, {"fsdp": 8, "tensor": 2}])
def test_compiles_and_fits_v5e_4x4(libtpu, mesh):
    """16 packed rows of 2,048 tokens and 4 tiles, f32 parameters and moments, bf16 compute."""
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4")
    plan = ShardingPlan.read("fsdp_tensor", mesh)
    mesh = plan.make_mesh(list(topology.devices))
    config = InternVLConfig.preset("InternVL3-1B")
    graphdef, params = abstract_model(config, plan, mesh, param_dtype="float32", dtype="bfloat16")
    with jax.set_mesh(mesh):
        state = jax.eval_shape(lambda p: init_state(p, TrainConfig()), params)
        batch = jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct((1, *x.shape), x.dtype, sharding=NamedSharding(mesh, P(None, *spec))),
            empty_batch(16, 2048, 4, 8, config.vision.image_size),
            batch_specs(plan),
        )
        key = jax.eval_shape(lambda: jax.random.key(0))
        step = (
            make_step(graphdef, params, NextToken(), TrainConfig(), config.tile_tokens)
            .trace(state, batch, None, key)
            .lower(lowering_platforms=("tpu",))
            .compile()
        )
    memory = step.memory_analysis()
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    assert used - memory.alias_size_in_bytes < HBM
    text = step.as_text()
    for kernel in ("vit_attention_backward", "packed_attention_backward", "cross_entropy_d_w"):
        assert kernel in text
