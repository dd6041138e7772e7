"""What the TPU compiler makes of a sum of gradients that every chip asks only its own part of (extra tpu; no TPU).

    python benchmarks/reduce_scatter.py [SLICE ...]

A product's gradient is summed by an explicit `psum_scatter`, which leaves the partitioner nothing to choose: over half
of a slice, and over all of it. Printed is what stands in the module, with the options of `ivl3 train`, and the size of
what it holds beside its arguments.
"""

import re
import sys

from ivl3_jax.cli.main import set_platform_defaults

SLICES = ("v5e:4x4", "v5e:16x16", "v5p:4x4x4", "v6e:16x16")
WIDTH, HIDDEN, ROWS = 4096, 8192, 128  # of the weight; positions of a chip


def compiled(name, axes):
    """The module, and the bytes of its temporaries, where the sum goes over mesh axes `axes`."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from ivl3_jax.lab.case import fitted
    from ivl3_jax.lab.topology import Topology
    from ivl3_jax.sharding.compiler import options_of
    from ivl3_jax.sharding.plan import ShardingPlan

    topology = Topology.read(name)
    plan = fitted(ShardingPlan.read("context"), topology, {"context": 2})
    mesh = topology.make_mesh(plan).mesh
    rows, parts = P(("fsdp", "context")), P(axes)

    def gradient(x, g):
        return jax.lax.psum_scatter(jnp.einsum("bk,bn->kn", x, g), axes, tiled=True)

    spread = jax.shard_map(gradient, mesh=mesh, in_specs=(rows, rows), out_specs=parts, check_vma=False)
    shapes = [
        jax.ShapeDtypeStruct((ROWS * topology.chips, width), jnp.bfloat16, sharding=NamedSharding(mesh, rows))
        for width in (WIDTH, HIDDEN)
    ]
    found = jax.jit(spread).lower(*shapes).compile(compiler_options=options_of(topology.chip.name, plan))
    return found.as_text(), found.memory_analysis().temp_size_in_bytes


def main():
    set_platform_defaults()
    for name in sys.argv[1:] or SLICES:
        for told, axes in (("half of it", ("fsdp",)), ("all of it", ("fsdp", "context"))):
            text, held = compiled(name, axes)
            kinds = sorted(set(re.findall(r" (reduce-scatter|all-reduce|all-reduce-scatter)(?:-start)?\(", text)))
            print(f"{name:10} {told:11} {', '.join(kinds):16} {held / 2**20:6.1f} MiB beside its arguments", flush=True)


if __name__ == "__main__":
    main()
