"""Functions that run on each device's shard, or in each stage of a pipeline."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec, auto_axes, explicit_axes, reshard

APART = ("stage", "data")  # mesh axes along which a pipeline's stages work apart


def in_use(spec: PartitionSpec) -> PartitionSpec:
    """`spec` without the mesh axes that have size 1 on the current mesh."""
    sizes = jax.sharding.get_abstract_mesh().shape

    def keep(to: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        axes = tuple(axis for axis in _axes(to) if sizes.get(axis) != 1)
        return axes[0] if len(axes) == 1 else axes or None

    return PartitionSpec(*map(keep, spec))


def shard_count(to: str | tuple[str, ...] | None) -> int:
    """In how many parts a dimension lies that goes to these axes of the current mesh."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes.get(axis, 1) for axis in mesh_axes(to))


def mesh_axes(*dimensions: str | tuple[str, ...] | None) -> set[str]:
    """The mesh axes that the dimensions of a layout go to."""
    return {axis for to in dimensions for axis in _axes(to)}


def on_shards(
    function: Callable, *, in_specs: Sequence[PartitionSpec], out_specs: PartitionSpec | tuple[PartitionSpec, ...]
) -> Callable:
    """`function` of each device's shards, as a function of whole arrays, which it lays out by the specs first.

    It is `jax.shard_map` over the whole mesh, within a stage of a pipeline over the rest of it; but plainly `function`
    on one device: there, shard_map's transpose sends every gradient through an all-reduce of one, which the CPU backend
    copies.
    """
    local_in = tuple(map(in_use, in_specs))
    local_out = in_use(out_specs) if isinstance(out_specs, PartitionSpec) else tuple(map(in_use, out_specs))
    run, mesh = function, jax.sharding.get_abstract_mesh()
    if mesh.size > 1:
        rest = set(mesh.axis_names) - set(mesh.manual_axes)
        run = jax.shard_map(function, in_specs=local_in, out_specs=local_out, axis_names=rest, check_vma=False)

    def whole(*arrays: jax.Array) -> Any:
        return reshard(run(*map(reshard, arrays, local_in)), out_specs)

    return whole


def on_stages(function: Callable, *, in_specs: Any, out_specs: Any) -> Callable:
    """`function` of what each place along the mesh axes `stage` and `data` holds, as a function of whole arrays.

    Within it arrays have these two axes not in their layouts and keep all others, explicit as everywhere, so that a
    layer does not see where it runs. A dimension that is sharded over one of them is sharded over nothing else. It is
    not to be differentiated: what a transposition hands over would lose its layout.

    Args:
        in_specs, out_specs: layouts of the whole arrays, each a pytree like the arguments and the result.
    """

    def each(change: Callable[[PartitionSpec], PartitionSpec], specs: Any) -> Any:
        return jax.tree.map(change, specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))

    def inside(spec: PartitionSpec) -> PartitionSpec:
        return without(spec, *APART)

    def apart(spec: PartitionSpec) -> PartitionSpec:
        return without(spec, *(set(jax.sharding.get_abstract_mesh().axis_names) - set(APART)))

    def whole(*arrays: Any) -> Any:
        rest = tuple(axis for axis in jax.sharding.get_abstract_mesh().axis_names if axis not in APART)
        # The detour over automatic axes: jax 0.10 replicates what enters and leaves a shard_map over some of the axes
        # where the others are explicit.
        run = explicit_axes(function, axes=rest, in_sharding=each(inside, in_specs))
        local_in, local_out = each(apart, in_specs), each(apart, out_specs)
        run = jax.shard_map(run, in_specs=local_in, out_specs=local_out, axis_names=set(APART), check_vma=False)
        return auto_axes(run, axes=rest, out_sharding=out_specs)(*arrays)

    return whole


def without(spec: PartitionSpec, *mesh_axes: str) -> PartitionSpec:
    """A layout over all other mesh axes alone."""
    kept = (tuple(axis for axis in _axes(to) if axis not in mesh_axes) for to in spec)
    return PartitionSpec(*(axes or None for axes in kept))


def _axes(to: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (to,) if isinstance(to, str) else to or ()
