"""Which chip a function is being traced for."""

import jax

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
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    return CHIPS.get(device.device_kind)
