"""Sizes of the blocks of `tpu_packed_attention`, by chip, found by the compiler's schedule on a packed row."""

import jax

from ivl3_jax.kernels.chip import chip
from ivl3_jax.kernels.packed_schedule import Blocks
from ivl3_jax.kernels.packed_tiles import LANES, Tiles

VMEM = 64 << 20  # bytes that a kernel may take; v5p has no more for each of its cores
SUMS = 32 << 20  # bytes of it for the gradients of keys and values

# (forward, backward) by the chip's generation.
TABLE = {
    "v5": (Blocks(512, 512, 256, 256), Blocks(512, 512, 256, 256)),
    "v6": (Blocks(512, 512, 512, 256), Blocks(512, 512, 256, 256)),
}


def forward_blocks(S: int, L: int, wide: int, dtype, on: str | None = None) -> Blocks:
    """For S queries, L keys, and query heads of a step that are `wide` lanes together.

    `on`: a chip; None for the one that is traced for, v5 where there is none.
    """
    return _fitted(_table(on)[0], S, L, wide, dtype)


def backward_blocks(S: int, L: int, wide: int, dtype, on: str | None = None) -> Blocks:
    """As `forward_blocks`."""
    return _fitted(_table(on)[1], S, L, wide, dtype)


def _table(on: str | None) -> tuple[Blocks, Blocks]:
    return TABLE["v6" if (on or chip()) == "v6e" else "v5"]


def _fitted(blocks: Blocks, S: int, L: int, wide: int, dtype) -> Blocks:
    q, kv, q_piece, kv_piece = blocks
    if wide * jax.numpy.dtype(dtype).itemsize > 1024 * 2:
        q = q_piece  # queries of so many heads, or of so wide a type, take too much VMEM otherwise
    q, kv = (min(block, -(-n // LANES) * LANES) for block, n in ((q, S), (kv, L)))
    return Blocks(q, kv, q_piece if q % q_piece == 0 else q, kv_piece if kv % kv_piece == 0 else kv)


def span(tiles: Tiles) -> int:
    """How many keys a call of the backward kernel takes at most."""
    wide = -(-tiles.kv_heads * tiles.head // LANES) * LANES
    return SUMS // (2 * 4 * wide * tiles.blocks.kv) * tiles.blocks.kv
