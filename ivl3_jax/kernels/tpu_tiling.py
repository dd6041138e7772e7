"""Block sizes of `tpu_vit_attention`, measured for each generation of TPUs."""

from typing import NamedTuple

from ivl3_jax.kernels.chip import chip

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


# Measured by `ivl3 bench kernels`.
_VIT_BLOCKS = {
    ("v5", 64): VitBlocks(512, 256, 0, False),
    ("v5", 128): VitBlocks(512, 256, 0, False),
    ("v6", 64): VitBlocks(512, 256, 1, False),
    ("v6", 128): VitBlocks(256, 512, 1, True),
}


def vit_blocks(head_dim: int, on: str | None = None) -> VitBlocks:
    """For a chip; without a name for the TPU at hand, v5p's where there is none."""
    return _VIT_BLOCKS["v6" if (on or chip()) == "v6e" else "v5", head_dim]


def dividing(block: int, length: int) -> int:
    """The largest multiple of 128 up to `block` that divides `length`, itself a multiple of 128."""
    return max(n for n in range(LANES, min(block, length) + 1, LANES) if length % n == 0)
