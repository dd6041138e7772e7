"""A real step through the real compiler: what it holds, and what is refused."""

import dataclasses

import jax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ivl3_jax.config import InternVLConfig
from ivl3_jax.lab.compile import BatchShape, compile_step, shard_bytes
from ivl3_jax.lab.hlo import Module
from ivl3_jax.lab.kernel_time import kernel_seconds
from ivl3_jax.lab.saved import saved_bytes
from ivl3_jax.lab.timeline import walk
from ivl3_jax.lab.topology import Topology
from ivl3_jax.sharding.plan import ShardingPlan

LAYERS = 3


@pytest.fixture(scope="module")
def config():
    """InternVL3-1B's shapes with few layers."""
    whole = InternVLConfig.preset("InternVL3-1B")
    return dataclasses.replace(
        whole,
        vision=dataclasses.replace(whole.vision, layers=1),
        decoder=dataclasses.replace(whole.decoder, layers=LAYERS, vocab=4096),
    )


@pytest.fixture(scope="module")
def placed(libtpu):
    plan = ShardingPlan.read("fsdp_tensor", {"fsdp": 2, "tensor": 2})
    return plan, Topology.read("v5e:2x2").make_mesh(plan)


def test_what_the_host_keeps_takes_nothing_of_the_chip(placed):
    mesh = placed[1].mesh
    kept = [
        jax.ShapeDtypeStruct((8, 6), "float32", sharding=NamedSharding(mesh, P("fsdp"), memory_kind=kind))
        for kind in (None, "device", "pinned_host")
    ]
    assert shard_bytes(kept) == 2 * 4 * 6 * 4


@pytest.mark.long
def test_a_step(config, placed):
    plan, mesh = placed
    done = compile_step(config, plan, mesh, BatchShape(rows=4, tokens=1024, tiles=1))
    assert done.shortage is None
    memory = done.memory
    assert memory.total == memory.parameters + memory.optimizer + memory.batch + memory.temporaries
    assert memory.temporaries > 0
    assert memory.optimizer == pytest.approx(2 * memory.parameters, rel=1e-3)  # two moments
    module = Module.read(done.text)
    assert saved_bytes(module) == LAYERS * 2 * 1024 * config.decoder.width * 2  # what goes into each layer, of two rows
    found = walk(module, mesh, kernel_seconds("v5e"))
    assert not found.warnings
    assert sum(found.parts.values()) == pytest.approx(found.seconds)
    assert min(found.parts[name] for name in ("products", "kernels", "exposed communication")) > 0

    decoder = [each for each in found.collectives if "decoder" in each.scope and each.bytes > 2**16]
    axes = {(each.kind.split("-")[-1], each.axes) for each in decoder}
    # Weights are gathered over fsdp; what a block gives is summed over tensor.
    assert ("gather", ("fsdp",)) in axes
    assert ("reduce", ("tensor",)) in axes or ("scatter", ("tensor",)) in axes
    width, mlp = config.decoder.width, config.decoder.mlp
    kernels = [each for each in decoder if each.kind == "all-gather" and each.bytes == 2 * width * mlp // 2]
    # gate, up and down: in the forward pass, and again for the backward pass.
    assert sum(each.count for each in kernels) == 3 * 2 * LAYERS
    assert {loop.trips for loop in found.loops if "decoder" in loop.scope} == {LAYERS}


def test_an_option_that_is_none(config, placed):
    plan, mesh = placed
    with pytest.raises(ValueError, match="xla_tpu_no_such_option"):
        compile_step(config, plan, mesh, BatchShape(4, 1024), options={"xla_tpu_no_such_option": True})


def test_rows_that_do_not_divide(config, placed):
    plan, mesh = placed
    with pytest.raises(ValueError, match="batch = 3, which does not divide"):
        compile_step(config, plan, mesh, BatchShape(3, 1024))


@pytest.mark.long
def test_too_little_memory(placed):
    plan, mesh = placed
    done = compile_step(InternVLConfig.preset("InternVL3-8B"), plan, mesh, BatchShape(8, 16384))
    assert done.text == ""
    assert done.shortage.kind == "HBM"
    assert done.shortage.wanted > done.shortage.available > 15 * 2**30
