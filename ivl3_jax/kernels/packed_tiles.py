"""How the kernels for packed rows cut q, k and v into blocks, and how they mask one."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ivl3_jax.kernels import packed_schedule as schedule
from ivl3_jax.kernels.packed_schedule import FLAG_BITS, ROW_SHIFT, row_and_block

MASKED = -1e30  # finite, so that masked scores never meet in inf - inf
LANES = 128  # of a vector register; its other dimension is 8
LOG2_E = math.log2(math.e)  # the kernels take powers of 2, which is what the chip computes


class Run(NamedTuple):
    """What is the same for every step: `known_offset` is `q_offset` where it is a number, else None."""

    causal: bool
    known_offset: int | None
    interpret: bool | pltpu.InterpretParams


def together(K: int, H: int) -> int:
    """How many of K kv heads of H one step takes: as many as fill a multiple of 128 lanes, or all."""
    return min((n for n in range(1, K) if K % n == 0 and n * H % LANES == 0), default=K)


class Tiles(NamedTuple):
    """Blocks of positions, of the heads that one step of the grid works on.

    Positions lie in sublanes and heads side by side in lanes, as in the arrays [B, S, N * H]. A step takes as many kv
    heads as fill a multiple of 128 lanes, or all of them, with all the query heads that read them.
    """

    steps: int
    kv_heads: int
    group: int
    head: int
    blocks: schedule.Blocks

    @classmethod
    def of(cls, N: int, K: int, H: int, blocks: schedule.Blocks) -> "Tiles":
        kv_heads = together(K, H)
        return cls(K // kv_heads, kv_heads, N // K, H, blocks)

    @property
    def heads(self) -> int:
        """The query heads of a step."""
        return self.kv_heads * self.group

    def of_head(self, n: int) -> tuple[slice, slice]:
        """Where query head n of a step lies, and where the kv head that it reads."""
        kv = n // self.group
        return slice(n * self.head, (n + 1) * self.head), slice(kv * self.head, (kv + 1) * self.head)

    def pieces(self) -> list[tuple[int, slice, slice]]:
        """The pieces of a pair: the bit that says whether one is seen, its queries, and its keys."""
        q, kv, q_piece, kv_piece = self.blocks
        every = [(i, j) for i in range(0, q, q_piece) for j in range(0, kv, kv_piece)]
        return [
            (schedule.FIRST_PIECE << bit, slice(i, i + q_piece), slice(j, j + kv_piece))
            for bit, (i, j) in enumerate(every)
        ]

    def cost(self, run: Run, q: jax.Array, k: jax.Array, products: int) -> pl.CostEstimate:
        """The work of a kernel with so many products for each pair, at most: segments may make it less.

        XLA's scheduler has to know it, or it lets what devices send one another wait until the kernel is done.
        """
        (B, S), L, (q_block, kv_block, *_) = q.shape[:2], k.shape[1], self.blocks
        pairs = schedule.most_pairs(B, S // q_block, L // kv_block, self.blocks, run.causal, run.known_offset)
        scores = pairs * q_block * kv_block * self.heads * self.steps
        moved = 2 * q.size + 2 * pairs * kv_block * k.shape[2]
        return pl.CostEstimate(2 * products * scores * self.head, scores, moved * q.dtype.itemsize)

    @property
    def q_spec(self) -> pl.BlockSpec:
        """Of [B, S, N * H]: the queries of a pair."""
        return pl.BlockSpec(
            (None, self.blocks.q, self.heads * self.head), lambda h, p, queries, *_: (*row_and_block(queries[p]), h)
        )

    @property
    def kv_spec(self) -> pl.BlockSpec:
        """Of [B, L, K * H]: the keys or values of a pair."""
        return pl.BlockSpec(
            (None, self.blocks.kv, self.kv_heads * self.head),
            lambda h, p, queries, keys, *_: (queries[p] >> ROW_SHIFT, keys[p] >> FLAG_BITS, h),
        )

    @property
    def q_row_spec(self) -> pl.BlockSpec:
        """Of [B, 1, S]: something of each query, in lanes."""

        def place(h, p, queries, *_):
            row, block = row_and_block(queries[p])
            return row, 0, block

        return pl.BlockSpec((None, 1, self.blocks.q), place)

    @property
    def kv_row_spec(self) -> pl.BlockSpec:
        """Of [B, 1, L]: something of each key, in lanes."""
        return pl.BlockSpec(
            (None, 1, self.blocks.kv),
            lambda h, p, queries, keys, *_: (queries[p] >> ROW_SHIFT, 0, keys[p] >> FLAG_BITS),
        )

    @property
    def statistic_spec(self) -> pl.BlockSpec:
        """Of [B, steps, heads, S]: something of each query and head."""

        def place(h, p, queries, *_):
            row, block = row_and_block(queries[p])
            return row, h, 0, block

        return pl.BlockSpec((None, None, self.heads, self.blocks.q), place)


def delta(tiles: Tiles, queries_word, keys_word, q_offset):
    """Key y of a pair's keys stands before query x of its queries, or with it, where y - x is at most this."""
    return q_offset + row_and_block(queries_word)[1] * tiles.blocks.q - (keys_word >> FLAG_BITS) * tiles.blocks.kv


def ceiling(q_ids: jax.Array, kv_ids: jax.Array, latest) -> jax.Array:
    """float32 [kv, q], what scores are at most: infinity where the query sees the key, else `MASKED`.

    The lesser of two costs one operation. A sum would too, but it would become the start of the product's own sum,
    which keeps the compiler from working on several heads at once.

    Args:
        q_ids: int32 [1, q]. kv_ids: int32 [1, kv].
        latest: what `delta` gives; None without causality.
    """
    q, kv = q_ids.shape[1], kv_ids.shape[1]
    # Ids of keys have to lie in sublanes; a transposition of whole tiles brings them there.
    keys = jnp.tile(jnp.broadcast_to(kv_ids, (LANES, kv)).T, (1, q // LANES))
    seen = keys == q_ids
    if latest is not None:
        shape = (kv, q)
        seen &= lax.broadcasted_iota(jnp.int32, shape, 0) - lax.broadcasted_iota(jnp.int32, shape, 1) <= latest
    return jnp.where(seen, jnp.inf, MASKED)


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b in float32; exact products for float32 operands."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, preferred_element_type=jnp.float32, precision=precision)
