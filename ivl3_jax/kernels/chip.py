"""Which chip a function is being traced for, and running a TPU's kernels where there is none."""

from collections.abc import Callable

import jax
from jax.sharding import AbstractDevice, PartitionSpec

from ivl3_jax.chips import by_kind
from ivl3_jax.kernels.tpu_chips import CHIPS


def chip() -> str | None:
    """v5e, v5p or v6e, by the mesh that is set and without one by the default device; None for any other device."""
    found = by_kind(_device().device_kind)
    return found.name if found is not None and found.name in CHIPS else None


def on_gpu() -> bool:
    """Whether a function is being traced for an NVIDIA GPU."""
    return _device().platform in ("gpu", "cuda")


def on_cpu() -> bool:
    """Whether a function is being traced for a CPU."""
    return _device().platform == "cpu"


def _device() -> AbstractDevice | jax.Device:
    """That of the mesh that is set; without one the default device."""
    return jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]


def interpreted(function: Callable) -> Callable:
    """`function`, which interprets Pallas kernels, of one device's arrays.

    The interpreter does not know explicit mesh axes, which a mesh of one device has as well: they are taken away.
    """

    def run(*arrays: jax.Array) -> jax.Array:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.are_all_axes_manual:
            return function(*arrays)
        whole = PartitionSpec()
        return jax.shard_map(function, in_specs=whole, out_specs=whole, check_vma=False)(*arrays)

    return run
