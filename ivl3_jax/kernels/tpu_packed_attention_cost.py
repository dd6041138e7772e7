"""What the kernels of `tpu_packed_attention` take: pairs of blocks are counted, and each kind of pair has its cycles.

A step of the grid makes, for every query head, the products of a pair of blocks, and beside them works on each score in
the vector units. Some of the latter hides behind the products; `Constants.score` is what does not.
"""

import itertools
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ivl3_jax.kernels.packed_blocks import backward_blocks, forward_blocks
from ivl3_jax.kernels.packed_schedule import Blocks
from ivl3_jax.kernels.tpu_work import REGISTER, Call, Work


class Constants(NamedTuple):
    """Cycles of one pass, fitted to the schedule's of the seven sizes' heads.

    Attributes:
        pair: of a step of the grid, whatever it computes: moving blocks, deciding.
        start: of a pair's work, or a piece's, before the matrix units are busy. masked: more of it for a piece.
        score: of a register of scores, what the products do not hide.
        queries: of a register of float32 queries, at a query block's begin and end: transposing, scaling, rounding.
        keys: of a register of float32 keys, at a key block's begin and end; backward only.
    """

    pair: float
    start: float
    masked: float
    score: float
    queries: float
    keys: float


FORWARD = {
    "v5e": Constants(pair=290, start=215, masked=100, score=0.75, queries=4.2, keys=0),
    "v5p": Constants(pair=440, start=215, masked=100, score=0.75, queries=4.2, keys=0),
    "v6e": Constants(pair=250, start=318, masked=150, score=1.0, queries=3.0, keys=0),
}
BACKWARD = {
    "v5e": Constants(pair=640, start=0, masked=100, score=0, queries=8.8, keys=3.3),
    "v5p": Constants(pair=700, start=0, masked=100, score=0, queries=8.8, keys=3.3),
    "v6e": Constants(pair=570, start=70, masked=190, score=0.17, queries=6.5, keys=2.2),
}


class Pairs(NamedTuple):
    """Of one row, in the mean of all calls that it takes: as `packed_schedule.pairs` lists them.

    Attributes:
        all, full: pairs of blocks that are listed, and those of them in which all queries see all keys.
        pieces: in those that are not full, pieces in which some query sees some key.
        queries, keys: blocks of queries and of keys.
    """

    all: float
    full: float
    pieces: float
    queries: float
    keys: float


@lru_cache
def pairs(S: int, L: int, blocks: Blocks, documents: int) -> Pairs:
    """For a causal row of equal segments.

    Args:
        S, L: queries and keys of a call, multiples of the blocks. The row has as many as the larger, unless L is S made
            up to whole blocks; where the other is less, it is one of the parts into which the row's queries, or keys,
            are cut.
        documents: how many segments the row is made up of.
    """
    T = S if 0 <= L - S < blocks.kv else max(S, L)
    nq, nk = -(-T // blocks.q), -(-T // blocks.kv)
    m, n = blocks.q // blocks.q_piece, blocks.kv // blocks.kv_piece
    ids = np.arange(T, dtype=np.int64) * documents // T
    seen, full = _seen(ids, nq, nk, blocks.q, blocks.kv)
    in_pieces = _seen(ids, nq * m, nk * n, blocks.q_piece, blocks.kv_piece)[0].reshape(nq, m, nk, n).sum((1, 3)) * ~full
    calls = (T / S) * max(1, T / L)
    listed = queries = keys = 0
    for i, j in itertools.product(range(0, nq, S // blocks.q), range(0, nk, L // blocks.kv)):
        of_call = seen[i : i + S // blocks.q, j : j + L // blocks.kv].copy()
        of_call[:, 0] |= ~of_call.any(1)
        of_call[-1] |= ~of_call.any(0)
        listed, queries, keys = listed + int(of_call.sum()), queries + of_call.shape[0], keys + of_call.shape[1]
    return Pairs(*(n / calls for n in (listed, int(full.sum()), int(in_pieces.sum()), queries, keys)))


def _seen(ids: np.ndarray, nq: int, nk: int, q: int, kv: int) -> tuple[np.ndarray, np.ndarray]:
    """bool [nq, nk] twice, whether some query sees some key and whether all see all; behind rising ids is padding."""
    query, key, last = np.arange(nq)[:, None] * q, np.arange(nk) * kv, len(ids) - 1
    first_q, last_q, first_kv, last_kv = (
        ids[np.minimum(place, last)] for place in (query, query + q - 1, key, key + kv - 1)
    )
    seen = (first_q <= last_kv) & (first_kv <= last_q) & (key <= query + q - 1) & (query <= last) & (key <= last)
    one = (first_q == last_q) & (first_kv == last_kv) & (first_q == first_kv)
    return seen, one & (key + kv - 1 <= query) & (query + q - 1 <= last)


def forward(call: Call) -> Work:
    """Two products: scores, and weights times values."""
    (B, S, width), (_, L, kv_width), (_, steps, heads, _) = call.shapes({-5: 3, -4: 3}, {1: 4})
    call.expect_bfloat16(-5)
    H = width // (steps * heads)
    blocks = forward_blocks(S, L, heads * H, "bfloat16", call.chip)

    def products(q: int, kv: int) -> tuple[tuple[int, int, int], ...]:
        return (kv, H, q), (H, kv, q)

    return _work(call, (B, S, L, steps, heads, kv_width // (steps * H), H), blocks, FORWARD[call.chip], products)


def backward(call: Call) -> Work:
    """Five products: scores and weights' gradients, and the gradients of values, keys and queries."""
    (B, S, width), (_, L, kv_width), (_, steps, heads, _) = call.shapes({-8: 3, -7: 3, -2: 4}, {})
    call.expect_bfloat16(-8)
    H = width // (steps * heads)
    blocks = backward_blocks(S, L, heads * H, "bfloat16", call.chip)

    def products(q: int, kv: int) -> tuple[tuple[int, int, int], ...]:
        return (kv, H, q), (kv, H, q), (kv, q, H), (kv, q, H), (H, kv, q)

    return _work(call, (B, S, L, steps, heads, kv_width // (steps * H), H), blocks, BACKWARD[call.chip], products)


def _work(call: Call, sizes: tuple[int, ...], blocks: Blocks, constants: Constants, products) -> Work:
    """`products`: of queries and keys, the (rows, inner, columns) of what one head makes, the left operand first."""
    B, S, L, steps, heads, kv_heads, H = sizes
    found = pairs(S, L, blocks, call.documents)
    wide, kv_wide = heads * H, kv_heads * H

    def body(q: int, kv: int) -> float:
        matrix = sum(call.on.product(*product) for product in products(q, kv))
        return constants.start + heads * (matrix + constants.score * q * kv / REGISTER)

    cycles = (
        found.all * constants.pair
        + found.full * body(blocks.q, blocks.kv)
        + found.pieces * (constants.masked + body(blocks.q_piece, blocks.kv_piece))
        + found.queries * constants.queries * blocks.q * wide / REGISTER
        + found.keys * constants.keys * blocks.kv * kv_wide / REGISTER
    )
    of_head = sum(2 * rows * inner * columns for rows, inner, columns in products(1, 1))
    scores = found.full * blocks.q * blocks.kv + found.pieces * blocks.q_piece * blocks.kv_piece
    # Forward q and the result once, backward also d_out and d_q; k and v for each pair, and once their gradients.
    back = call.name == "packed_attention_backward"
    once = (4 if back else 2) * found.queries * blocks.q * wide + (2 * found.keys * blocks.kv * kv_wide if back else 0)
    moved = 2 * (once + 2 * found.all * blocks.kv * kv_wide) + 4 * found.queries * blocks.q * heads
    # A chip's cores share the first dimension of the grid, which is that of the kv heads, each with all rows.
    return Work(B * steps * heads * scores * of_head, B * steps * moved, B * -(-steps // call.on.cores) * cycles)
