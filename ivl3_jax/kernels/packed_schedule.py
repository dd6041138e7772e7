"""Which blocks of queries meet which blocks of keys in packed rows, as a list made while the program runs.

The kernels of `tpu_packed_attention` take one step for each pair in the list, so a pair that the segments or causality
make empty costs nothing, however the rows are packed. A block that sees nothing, or is seen by nothing, is in one pair
without work all the same: what a kernel gives for it has to be written.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# What a pair is, as bits: the first or last of its query block, the first or last of its key block, and whether every
# query in it sees every key, so that nothing needs to be masked. The bits above say in which pieces some query may see
# some key: the bit of piece (i, j) of q_pieces x kv_pieces is FIRST_PIECE << i * kv_pieces + j.
FIRST_OF_QUERIES, LAST_OF_QUERIES, FIRST_OF_KEYS, LAST_OF_KEYS, FULL, FIRST_PIECE = (1 << n for n in range(6))
MOST_PIECES = 4
FLAG_BITS = 5 + MOST_PIECES
ROW_SHIFT = 16  # a row and a block of it share one word
MOST_PAIRS = 80 << 10  # three words each in scalar memory, which has 1 MiB

PADDED_QUERY, PADDED_KEY = -1, 0  # ids that equal no other


def row_and_block(word):
    """Of a word that holds both."""
    return word >> ROW_SHIFT, word & ((1 << ROW_SHIFT) - 1)


class Pairs(NamedTuple):
    """The pairs of all rows, by row, then query block, then key block; words past `count` mean nothing.

    Attributes:
        queries: int32 [pairs], row << ROW_SHIFT | query block.
        keys: int32 [pairs], key block << FLAG_BITS | flags.
        closing: int32 [pairs], row << ROW_SHIFT | the key block whose last pair comes next, or is this.
        count: int32 scalar. Every block is in at least one pair, in one with no piece where nothing is seen.
    """

    queries: jax.Array
    keys: jax.Array
    closing: jax.Array
    count: jax.Array


class Blocks(NamedTuple):
    """How many queries and keys a block has, and a piece of it; at most `MOST_PIECES` pieces make up a pair."""

    q: int
    kv: int
    q_piece: int
    kv_piece: int


def marked_ids(ids: jax.Array | None, shape: tuple[int, int], block: int, padded: int) -> jax.Array:
    """int32 [B, S], S a multiple of `block`: the ids of `shape`, 1 where there are none, with padding's id replaced."""
    ids = jnp.ones(shape, jnp.int32) if ids is None else ids.astype(jnp.int32)
    ids = jnp.pad(ids, ((0, 0), (0, -shape[1] % block)))
    return jnp.where(ids <= 0, padded, ids)


def most_pairs(rows: int, q_blocks: int, kv_blocks: int, blocks: Blocks, causal: bool, q_offset) -> int:
    """How many pairs there can be, whatever the segments; a list has room for `MOST_PAIRS`."""
    each = np.full(q_blocks, kv_blocks)
    if causal and isinstance(q_offset, int):
        each = np.clip((q_offset + (np.arange(q_blocks) + 1) * blocks.q - 1) // blocks.kv + 1, 0, kv_blocks)
    unseen = kv_blocks - int(each[-1])
    return rows * (int(each.clip(1).sum()) + unseen)


def pairs(q_ids: jax.Array, kv_ids: jax.Array, q_offset, *, blocks: Blocks, causal: bool) -> Pairs:
    """The pairs of blocks in which some query may see some key, and one for each block that is in none of those.

    Args:
        q_ids, kv_ids: int32 [B, S] and [B, L] from `marked_ids`, S and L multiples of the blocks. Ids in any order are
            legal; the list is exact where they rise along the row.
        q_offset: the kv position at which query 0 stands.
    """
    (B, S), L = q_ids.shape, kv_ids.shape[1]
    nq, nk = S // blocks.q, L // blocks.kv
    m, n = blocks.q // blocks.q_piece, blocks.kv // blocks.kv_piece
    seen, full = (
        x.reshape(B, nq, m, nk, n).swapaxes(2, 3).reshape(B, nq, nk, m * n)
        for x in _seen(q_ids.reshape(B, nq * m, -1), kv_ids.reshape(B, nk * n, -1), q_offset, causal)
    )
    flags = jnp.where(full.all(-1), FULL, 0) + (seen * (FIRST_PIECE << np.arange(m * n))).sum(-1)
    seen = seen.any(-1)
    # A block that would be in no pair meets the first keys, or the last queries: causality, too, leaves that pair last.
    seen = seen.at[:, :, 0].max(~seen.any(2))
    seen = seen.at[:, -1].max(~seen.any(1))
    for axis, first, last in ((2, FIRST_OF_QUERIES, LAST_OF_QUERIES), (1, FIRST_OF_KEYS, LAST_OF_KEYS)):
        so_far = jnp.cumsum(seen, axis=axis)
        flags += jnp.where(so_far == 1, first, 0)
        flags += jnp.where(so_far == so_far.max(axis, keepdims=True), last, 0)
    words = (jnp.arange(B * nq * nk).reshape(B, nq, nk) << FLAG_BITS) + flags
    none = jnp.iinfo(jnp.int32).max
    words = jnp.sort(jnp.where(seen, words, none).reshape(-1))[: most_pairs(B, nq, nk, blocks, causal, q_offset)]
    place, flags = words >> FLAG_BITS, words & ((1 << FLAG_BITS) - 1)
    row, block = place // (nq * nk) << ROW_SHIFT, place % nk
    index = jnp.arange(words.size)
    closes = _least_from_here(jnp.where(flags & LAST_OF_KEYS, index, words.size - 1))
    return Pairs(
        row | place // nk % nq,
        block << FLAG_BITS | flags,
        (row | block)[closes],
        seen.sum(dtype=jnp.int32),
    )


def _least_from_here(x: jax.Array) -> jax.Array:
    """lax.cummin(x, reverse=True) of [n], by rows of 512: of a hundred thousand at once it takes seconds to compile."""
    rows = jnp.pad(x, (0, -x.size % 512), constant_values=jnp.iinfo(x.dtype).max).reshape(-1, 512)
    within = lax.cummin(rows, axis=1, reverse=True)
    after = lax.cummin(jnp.append(within[1:, 0], jnp.iinfo(x.dtype).max), reverse=True)
    return jnp.minimum(within, after[:, None]).reshape(-1)[: x.size]


def _seen(q_ids: jax.Array, kv_ids: jax.Array, q_offset, causal: bool) -> tuple[jax.Array, jax.Array]:
    """bool [B, q blocks, kv blocks] twice: whether some query may see some key, and whether all see all."""
    (_, nq, q), (_, nk, kv) = q_ids.shape, kv_ids.shape

    def span(ids, padded):
        return jnp.where(ids == padded, jnp.iinfo(jnp.int32).max, ids).min(-1), ids.max(-1)

    (low_q, high_q), (low_kv, high_kv) = span(q_ids, PADDED_QUERY), span(kv_ids, PADDED_KEY)
    low_q, high_q, low_kv, high_kv = low_q[:, :, None], high_q[:, :, None], low_kv[:, None], high_kv[:, None]
    seen = (low_q <= high_kv) & (low_kv <= high_q)
    # A block that is padding in part has the id of padding as its least.
    one_q, one_kv = (q_ids.min(-1) == q_ids.max(-1))[:, :, None], (kv_ids.min(-1) == kv_ids.max(-1))[:, None]
    full = seen & one_q & one_kv & (low_q == low_kv)
    if causal:
        query, key = q_offset + jnp.arange(nq)[:, None] * q, jnp.arange(nk) * kv
        seen &= key <= query + q - 1
        full &= key + kv - 1 <= query
    return seen, full
