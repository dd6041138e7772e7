"""Attention over a sharded sequence through the real XLA:TPU compiler: what the devices send one another, and when."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ivl3_jax.kernels.attention import attention
from ivl3_jax.sharding.context import Context
from ivl3_jax.sharding.plan import ShardingPlan

pytestmark = pytest.mark.slow

S, LAYOUT = 32768, P("fsdp", "context", "tensor", None)

KERNEL = re.compile(r"\s+(?:ROOT )?%(packed_attention_\w+).* custom-call\(")
COLLECTIVE = re.compile(r"\s+(?:ROOT )?%\S+ = \(?\w+\[.* ((?:all-|reduce-scatter|collective-)[a-z-]*)\(")


def compiled(form) -> list[tuple[str, str]]:
    """Gradients of a packed row on each 8 chips of a v5p-128: kernels and collectives in order, by computation."""
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5p:4x4x4", wrap=(True,) * 3).devices
    mesh = ShardingPlan(mesh={"fsdp": 4, "context": 8, "tensor": 2}).make_mesh(list(devices))

    def loss(q, k, v, ids):
        out = attention(q, k, v, causal=True, layout=LAYOUT, kv_layout=LAYOUT, segment_ids=ids, context=form)
        return out.astype(jnp.float32).sum()

    def array(heads):
        return jax.ShapeDtypeStruct((4, S, heads, 128), jnp.bfloat16, sharding=NamedSharding(mesh, LAYOUT))

    ids = jax.ShapeDtypeStruct((4, S), jnp.int32, sharding=NamedSharding(mesh, P("fsdp", None)))
    with jax.set_mesh(mesh):
        traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(array(32), array(4), array(4), ids)
        text = traced.lower(lowering_platforms=("tpu",)).compile().as_text()
    found, computation = [], ""
    for line in text.splitlines():
        if head := re.match(r"(?:ENTRY )?%([\w.-]+) \(.*\{$", line):
            computation = head[1]
        elif op := KERNEL.match(line) or COLLECTIVE.match(line):
            found.append((computation, op[1]))
    return found


@pytest.mark.parametrize("order", ["zigzag", "plain"])
@pytest.mark.long
def test_what_travels_round_a_ring_is_under_way_while_kernels_run(libtpu, order):
    found = compiled(Context("ring", order))
    assert {op for _, op in found if "attention" not in op} == {
        "collective-permute-start",
        "collective-permute-done",
    }
    start, done = "collective-permute-start", "collective-permute-done"
    bodies = {name: [op for computation, op in found if computation == name] for name, op in found if "attention" in op}
    assert [start, "packed_attention_forward", done] in bodies.values()
    assert [start, start, "packed_attention_backward", done, done] in bodies.values()


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        pytest.param(Context("gather", "zigzag"), {"all-gather": 2, "reduce-scatter": 2}, marks=pytest.mark.long),
        pytest.param(Context("gather"), {"all-gather": 2, "reduce-scatter": 2}, marks=pytest.mark.long),
        (Context("all_to_all"), {"all-to-all": 6}),
    ],
    ids=["gather zigzag", "gather plain", "all_to_all"],
)
def test_collectives(libtpu, form, expected):
    """Keys and values and their gradients; for all_to_all queries and theirs as well."""
    found = [op for _, op in compiled(form) if "attention" not in op]
    assert {op: found.count(op) for op in found} == expected
