"""Placing a mesh on devices, so that neighbours on a mesh axis are neighbours on the machine."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils


def arranged(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices as an array of `shape`, along the links of a TPU where they are one.

    A mesh axis takes whole axes of the torus where the sizes allow it, else a part of one. Of the devices of several
    slices the first mesh axis takes the slices.

    Raises:
        ValueError: the first mesh axis is no multiple of the number of slices.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return _within(mesh_utils.create_device_mesh, shape, devices=devices)
    if shape[0] % slices:
        raise ValueError(
            f"mesh.data is {shape[0]} and the devices are {slices} slices, which only `data` may cross; it must be a "
            f"multiple of {slices}, such as {slices} with {math.prod(shape) // slices} devices in the other axes"
        )
    within = (shape[0] // slices, *shape[1:])
    across = (slices, *(1 for _ in shape[1:]))
    return _within(mesh_utils.create_hybrid_device_mesh, within, across, devices=devices)


def _within(create, *shapes: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    try:
        return create(*shapes, devices=devices)
    except NotImplementedError:  # JAX splits an axis of the torus only when told to
        return create(*shapes, devices=devices, allow_split_physical_axes=True)
