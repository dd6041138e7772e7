"""Every TPU kernel through the real compiler at published shapes, without a TPU."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ivl3_jax.kernels.attention import attention, chosen

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


@pytest.fixture(params=TOPOLOGIES)
def device(request, libtpu):
    """A mesh of one device of each generation, current while the test runs."""
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[request.param])
    mesh = jax.make_mesh((1,), ("fsdp",), (AxisType.Explicit,), devices=topology.devices[:1])
    with jax.set_mesh(mesh):
        yield NamedSharding(mesh, PartitionSpec())


def compiled(function, *operands) -> str:
    return jax.jit(function).trace(*operands).lower(lowering_platforms=("tpu",)).compile().as_text()


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.long)])
@pytest.mark.parametrize(("heads", "head_dim"), [(16, 64), (25, 128)], ids=["300M", "6B"])
def test_vit_attention(device, heads, head_dim, dtype):
    """13 tiles of 1,025 positions, value and gradients, chosen by the seam and not by name."""
    x = jax.ShapeDtypeStruct((13, 1025, heads, head_dim), dtype, sharding=device)
    layout = PartitionSpec(None, None, None, None)
    assert chosen(x, x, None, False) == "tpu_vit"
    assert chosen(x, x, None, True) == "tpu_packed"

    def loss(q, k, v):
        return attention(q, k, v, causal=False, layout=layout, kv_layout=layout).astype(jnp.float32).sum()

    text = compiled(jax.grad(loss, argnums=(0, 1, 2)), x, x, x)
    assert "vit_attention_forward" in text and "vit_attention_backward" in text


def test_vit_attention_on_shards(libtpu):
    """Tiles over four devices: each one's kernel sees its own."""
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="tpu", topology_name="v6e:2x2")
    mesh = jax.make_mesh((4,), ("fsdp",), (AxisType.Explicit,), devices=topology.devices)
    layout = PartitionSpec("fsdp", None, None, None)
    with jax.set_mesh(mesh):
        x = jax.ShapeDtypeStruct((8, 1025, 16, 64), jnp.bfloat16, sharding=NamedSharding(mesh, layout))
        text = compiled(lambda x: attention(x, x, x, causal=False, layout=layout, kv_layout=layout), x)
    assert "vit_attention_forward" in text and "bf16[2,1025,1024]" in text
