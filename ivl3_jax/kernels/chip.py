"""Which chip a function is being traced for, and running a TPU's kernels where there is none."""

from collections.abc import Callable

import jax
from jax.sharding import AbstractDevice, PartitionSpec

# As JAX names the devices; a kernel has been compiled and its schedule read for these alone.
CHIPS = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


def chip() -> str | None:
    """v5e, v5p or v6e, by the mesh that is set and without one by the default device; None for any other device."""
    return CHIPS.get(_device().device_kind)


def on_gpu() -> bool:
    """Whether a function is being traced for an NVIDIA GPU."""
    return _device().platform in ("gpu", "cuda")


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
