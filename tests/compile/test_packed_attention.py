"""The TPU kernel for packed rows through the real compiler at published shapes, without a TPU."""

from itertools import product

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ivl3_jax.kernels.tpu_packed_attention import attention, partial_attention, partial_gradients

pytestmark = pytest.mark.slow

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
# Heads, kv heads, head size: InternVL3-1B, 2B, 8B and 9B's language models, then 14B, 38B and 78B's.
SIZES = [(14, 2, 64), (12, 2, 128), (28, 4, 128), (32, 2, 128), (40, 8, 128), (64, 8, 128)]
SHORT, LONG = 16384, 131072


def cases():
    for topology, size, length, dtype in product(TOPOLOGIES, SIZES, (4096, SHORT, LONG), ("bfloat16", "float32")):
        quick = (topology, size, length, dtype) == ("v6e", (28, 4, 128), SHORT, "bfloat16")
        name = f"{topology}-{'-'.join(map(str, size))}-{length}-{dtype}"
        yield pytest.param(topology, *size, length, dtype, id=name, marks=() if quick else pytest.mark.long)


@pytest.mark.parametrize(("topology", "N", "K", "H", "S", "dtype"), list(cases()))
def test_value_and_gradients(libtpu, topology, N, K, H, S, dtype):
    compiles(topology, N, K, H, S, S, dtype)


@pytest.mark.parametrize(
    ("topology", "N"),
    [("v6e", 14), *(pytest.param(name, N, marks=pytest.mark.long) for name in ("v5e", "v5p") for N in (7, 14))],
)
def test_a_shard_of_the_queries(libtpu, topology, N):
    """Context sharding: fewer queries than keys, at a place that the program learns when it runs."""
    compiles(topology, N, N // 7, 64, 2048, SHORT, "bfloat16")


@pytest.mark.long
@pytest.mark.parametrize(("topology", "N", "K", "H"), [(name, *size) for name in TOPOLOGIES for size in SIZES])
def test_a_step_of_a_ring(topology, N, K, H):
    """Results and gradients in float32: they take more of VMEM."""

    def both(q, k, v, q_ids, kv_ids, offset):
        options = {"causal": True, "q_offset": offset}
        out, lse = partial_attention(q, k, v, q_ids, kv_ids, **options)
        return partial_gradients(q, k, v, q_ids, kv_ids, out.astype(q.dtype), lse, q, **options)

    assert_compiles(topology, both, N, K, H, SHORT, SHORT, "bfloat16")


def compiles(topology, N, K, H, S, L, dtype):
    def loss(q, k, v, q_ids, kv_ids, offset):
        offset = 0 if S == L else offset
        return attention(q, k, v, q_ids, kv_ids, causal=True, q_offset=offset).astype(jnp.float32).sum()

    assert_compiles(topology, jax.grad(loss, argnums=(0, 1, 2)), N, K, H, S, L, dtype)


def assert_compiles(topology, function, N, K, H, S, L, dtype):
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[topology]).devices
    mesh = jax.make_mesh((1,), ("fsdp",), (AxisType.Explicit,), devices=devices[:1])

    def array(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    q, kv = array((1, S, N, H), dtype), array((1, L, K, H), dtype)
    ids = array((1, S), jnp.int32), array((1, L), jnp.int32)
    with jax.set_mesh(mesh):
        traced = jax.jit(function).trace(q, kv, kv, *ids, array((), jnp.int32))
        text = traced.lower(lowering_platforms=("tpu",)).compile().as_text()
    assert "packed_attention_forward" in text and "packed_attention_backward" in text
