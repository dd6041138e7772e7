"""A gradient step on adapters alone through the real XLA:TPU compiler, without a TPU."""

import jax
import pytest
from jax.sharding import NamedSharding

from ivl3_jax.batch import empty_batch
from ivl3_jax.models.adapters import with_adapters
from ivl3_jax.models.model import Model, abstract_model, batch_specs
from ivl3_jax.sharding.plan import ShardingPlan
from tests.models.adapted import EVERYWHERE, loss_function, parted
from tests.models.small import CONFIG


@pytest.mark.long
def test_compiles_for_v5e(libtpu):
    """Abstract from beginning to end; the gradients lie as the adapters do."""
    from jax.experimental import topologies

    plan = ShardingPlan.read("fsdp_tensor", {"fsdp": 2, "tensor": 2})
    mesh = plan.make_mesh(list(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices))
    abstract = abstract_model(CONFIG, plan, mesh, param_dtype="bfloat16", dtype="bfloat16")
    model = Model(CONFIG, plan, mesh, *with_adapters(*abstract, EVERYWHERE, plan, mesh))
    batch = jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)),
        empty_batch(4, 128, 2, 2, CONFIG.vision.image_size),
        batch_specs(plan),
    )
    adapters, base = parted(model)
    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(loss_function(model))).trace(adapters, base, batch)
        compiled = step.lower(lowering_platforms=("tpu",)).compile()
    assert compiled.output_shardings == jax.tree.map(lambda leaf: leaf.sharding, adapters)
