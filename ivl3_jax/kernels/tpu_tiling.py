"""Which TPU a program is compiled for, and the block sizes measured for it."""

from typing import NamedTuple

import jax

LANES = 128


class VitBlocks(NamedTuple):
    """How `tpu_vit_attention` works on one generation.

    `forward` and `backward`: queries in a block. `ahead`: forward, how many blocks of scores are asked of the matrix
    unit before the exponentials of the one at hand. `sum_by_product`: whether the matrix unit also sums the
    exponentials of a head of 128, where its width would otherwise lie idle.
    """

    forward: int
    backward: int
    ahead: int
    sum_by_product: bool


# Measured by benchmarks/kernels.py.
_VIT_BLOCKS = {
    ("v5", 64): VitBlocks(512, 256, 0, False),
    ("v5", 128): VitBlocks(512, 256, 0, False),
    ("v6", 64): VitBlocks(512, 256, 1, False),
    ("v6", 128): VitBlocks(256, 512, 1, True),
}


def device_kind() -> str:
    """What the current mesh, a topology's included, is made of, such as "TPU v5"; the default device without a mesh."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device is not None else jax.devices()[0].device_kind


def vit_blocks(head_dim: int) -> VitBlocks:
    """For the TPU at hand; generations after v6e are taken to be like it, and whatever is no TPU like v5."""
    kind = device_kind()
    generation = "v5" if not kind.startswith("TPU") or kind.startswith(("TPU v4", "TPU v5")) else "v6"
    return _VIT_BLOCKS[generation, head_dim]


def dividing(block: int, length: int) -> int:
    """The largest multiple of 128 up to `block` that divides `length`, itself a multiple of 128."""
    return max(n for n in range(LANES, min(block, length) + 1, LANES) if length % n == 0)
