"""Functions that run on each device's shard."""

import math
from collections.abc import Callable, Sequence

import jax
from jax.sharding import PartitionSpec, reshard


def in_use(spec: PartitionSpec) -> PartitionSpec:
    """`spec` without the mesh axes that have size 1 on the current mesh."""
    sizes = jax.sharding.get_abstract_mesh().shape

    def keep(to: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        axes = tuple(axis for axis in ((to,) if isinstance(to, str) else to or ()) if sizes.get(axis) != 1)
        return axes[0] if len(axes) == 1 else axes or None

    return PartitionSpec(*map(keep, spec))


def shard_count(to: str | tuple[str, ...] | None) -> int:
    """In how many parts a dimension lies that goes to these axes of the current mesh."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes.get(axis, 1) for axis in ((to,) if isinstance(to, str) else to or ()))


def on_shards(function: Callable, *, in_specs: Sequence[PartitionSpec], out_specs: PartitionSpec) -> Callable:
    """`function` of each device's shards, as a function of whole arrays, which it lays out by the specs first.

    It is `jax.shard_map` over the whole mesh, but plainly `function` on one device: there, shard_map's transpose sends
    every gradient through an all-reduce of one, which the CPU backend copies.
    """
    local_in, local_out = tuple(map(in_use, in_specs)), in_use(out_specs)
    run = function
    if jax.sharding.get_abstract_mesh().size > 1:
        run = jax.shard_map(function, in_specs=local_in, out_specs=local_out, check_vma=False)

    def whole(*arrays: jax.Array) -> jax.Array:
        return reshard(run(*map(reshard, arrays, local_in)), out_specs)

    return whole
