"""What the TPU compiler makes of a sum of gradients that every chip asks only its own part of (extra tpu; no TPU).

    python benchmarks/reduce_scatter.py [--slices v5e:16x16,v5p:4x4x4]

A product's gradient is summed by an explicit `psum_scatter`, which leaves the partitioner nothing to choose: over half
of a slice, and over all of it. Printed are the collectives of the module, compiled with the options of `ivl3 train`,
and the size of what it holds beside its arguments.
"""

import argparse

from ivl3_jax.cli.main import set_platform_defaults

WIDTH, HIDDEN, ROWS = 4096, 8192, 128  # of the weight; positions of a chip


def summed(name: str, axes: tuple[str, ...]) -> tuple[str, int]:
    """Kinds of collectives, and the bytes of the module's temporaries, where the sum goes over mesh axes `axes`."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from ivl3_jax.lab.calibration import Calibration
    from ivl3_jax.lab.case import fitted
    from ivl3_jax.lab.hlo import Module
    from ivl3_jax.lab.kernel_time import kernel_seconds
    from ivl3_jax.lab.timeline import walk
    from ivl3_jax.lab.topology import Topology
    from ivl3_jax.sharding.compiler import fewer_options, options_of
    from ivl3_jax.sharding.plan import ShardingPlan

    topology = Topology.read(name)
    plan = fitted(ShardingPlan.read("context"), topology, {"context": 2})
    placed = topology.make_mesh(plan)
    rows, parts = P(("fsdp", "context")), P(axes)

    def gradient(x, g):
        return jax.lax.psum_scatter(jnp.einsum("bk,bn->kn", x, g), axes, tiled=True)

    spread = jax.shard_map(gradient, mesh=placed.mesh, in_specs=(rows, rows), out_specs=parts, check_vma=False)
    shapes = [
        jax.ShapeDtypeStruct((ROWS * topology.chips, size), jnp.bfloat16, sharding=NamedSharding(placed.mesh, rows))
        for size in (WIDTH, HIDDEN)
    ]
    lowered, options = jax.jit(spread).lower(*shapes), options_of(topology.chip.name, plan)
    while True:
        try:
            found = lowered.compile(compiler_options=options)
            break
        except jax.errors.JaxRuntimeError as error:
            fewer = fewer_options(error, options)
            if fewer is None:
                raise
            options = fewer[0]
    calibration = Calibration()
    module, kernels = Module.read(found.as_text()), kernel_seconds(topology.chip.name, 1, calibration)
    kinds = {each.kind for each in walk(module, placed, kernels, calibration).collectives}
    return ", ".join(sorted(kinds)), found.memory_analysis().temp_size_in_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", default="v5e:4x4,v5e:16x16,v5p:4x4x4,v6e:16x16", help="with commas between")
    options = parser.parse_args()
    set_platform_defaults()
    for name in options.slices.split(","):
        for told, axes in (("half of it", ("fsdp",)), ("all of it", ("fsdp", "context"))):
            kinds, held = summed(name, axes)
            print(f"{name:10} {told:11} {kinds:16} {held / 2**20:6.1f} MiB beside its arguments", flush=True)


if __name__ == "__main__":
    main()
