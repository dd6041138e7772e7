"""The list of pairs of blocks has exactly those in which something is seen, in order, and says what they are.

A block that is in none of them is in one more pair, which has no piece.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivl3_jax.kernels import packed_schedule as schedule
from tests.kernels.test_attention import packed_ids

pairs_of = jax.jit(schedule.pairs, static_argnums=2, static_argnames=("blocks", "causal"))
marked_ids = jax.jit(schedule.marked_ids, static_argnums=(1, 2, 3))


def listed(pairs):
    """(row, query block, kv block, flags) of each pair, and (row, kv block) that it closes next."""
    count = int(pairs.count)
    queries, keys, closing = (np.asarray(x)[:count] for x in pairs[:3])
    row, block = schedule.row_and_block(queries)
    flags = keys & (1 << schedule.FLAG_BITS) - 1
    found = [row, block, keys >> schedule.FLAG_BITS, flags]
    return list(zip(*map(np.ndarray.tolist, found), strict=True)), np.stack(schedule.row_and_block(closing), 1).tolist()


def expected(q_ids, kv_ids, offset, blocks, causal):
    """The same from every single query and key."""
    (B, S), L = q_ids.shape, kv_ids.shape[1]
    seen = (q_ids[:, :, None] == kv_ids[:, None]) & (q_ids[:, :, None] > 0)
    if causal:
        seen &= np.arange(L) <= offset + np.arange(S)[:, None]
    nq, nk = S // blocks.q, L // blocks.kv
    cut = seen.reshape(B, nq, blocks.q, nk, blocks.kv).transpose(0, 1, 3, 2, 4)
    some, every = cut.any((3, 4)), cut.all((3, 4))
    m, n = blocks.q // blocks.q_piece, blocks.kv // blocks.kv_piece
    pieces = cut.reshape(B, nq, nk, m, blocks.q_piece, n, blocks.kv_piece).any((4, 6)).reshape(B, nq, nk, m * n)
    for b in range(B):
        for i in range(nq):
            some[b, i, 0] |= not some[b, i].any()
        for j in range(nk):
            some[b, -1, j] |= not some[b, :, j].any()
    pairs = []
    for b, i, j in np.argwhere(some).tolist():
        flags = schedule.FIRST_OF_QUERIES * (not some[b, i, :j].any())
        flags |= schedule.LAST_OF_QUERIES * (not some[b, i, j + 1 :].any())
        flags |= schedule.FIRST_OF_KEYS * (not some[b, :i, j].any())
        flags |= schedule.LAST_OF_KEYS * (not some[b, i + 1 :, j].any())
        flags |= schedule.FULL * int(every[b, i, j])
        flags |= sum(schedule.FIRST_PIECE << bit for bit in np.flatnonzero(pieces[b, i, j]).tolist())
        pairs.append((b, i, j, flags))
    return pairs


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 3),
    segments=st.integers(0, 40),
    blocks=st.sampled_from([(4, 4, 4, 4), (8, 4, 4, 4), (4, 8, 4, 4), (8, 8, 4, 4), (16, 4, 4, 4)]),
    causal=st.booleans(),
    shard=st.integers(0, 3),
)
def test_exact_where_ids_rise(seed, rows, segments, blocks, causal, shard):
    rng = np.random.default_rng(seed)
    kv_ids = packed_ids(rng, rows, 64, segments) if segments else np.zeros((rows, 64), np.int32)
    offset, blocks = 16 * shard, schedule.Blocks(*blocks)
    q_ids = kv_ids[:, offset : offset + 16]
    marked = (
        marked_ids(jnp.asarray(ids), ids.shape, 4, padded)
        for ids, padded in ((q_ids, schedule.PADDED_QUERY), (kv_ids, schedule.PADDED_KEY))
    )
    pairs, closing = listed(pairs_of(*marked, offset, blocks=blocks, causal=causal))
    wanted = expected(q_ids, kv_ids, offset, blocks, causal)
    assert pairs == wanted
    assert len(pairs) <= schedule.most_pairs(rows, 16 // blocks.q, 64 // blocks.kv, blocks, causal, offset)
    closes = [[b, j] for b, _, j, flags in pairs if flags & schedule.LAST_OF_KEYS]
    at = np.cumsum([0, *(flags & schedule.LAST_OF_KEYS != 0 for *_, flags in pairs)])
    assert closing == [closes[n] for n in at[:-1]]


def test_how_many_pairs_there_can_be():
    blocks = schedule.Blocks(512, 512, 512, 512)
    assert schedule.most_pairs(1, 256, 256, blocks, True, 0) == 256 * 257 // 2
    assert schedule.most_pairs(2, 256, 256, blocks, False, 0) == 2 * 256 * 256


@pytest.mark.parametrize("n", [1, 511, 512, 513, 3000])
def test_least_from_here(n):
    x = np.random.default_rng(n).integers(0, 10000, n).astype(np.int32)
    expected = np.minimum.accumulate(x[::-1])[::-1]
    np.testing.assert_array_equal(schedule._least_from_here(jnp.asarray(x)), expected)
