"""Attention of packed rows on TPUs, in Pallas: FlashAttention-2 (Dao 2023) over a list of blocks that are not empty.

Scores lie as [keys, queries]: the maximum and the sum over the keys then run down sublanes, which costs next to
nothing, statistics of a query are a row of lanes, and heads of 64 lie beside one another without padding. All query
heads that read one kv head are worked on together, so that keys are fetched and masks made once for all of them. The
list is made by `packed_schedule` at run time; blocks of one segment below the diagonal take a path that masks nothing,
and the others are worked on in pieces, those left out that are empty.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ivl3_jax.kernels import packed_schedule as schedule
from ivl3_jax.kernels.packed_blocks import backward_blocks, forward_blocks, span
from ivl3_jax.kernels.packed_tiles import Run, Tiles
from ivl3_jax.kernels.residuals import ATTENTION_RESIDUALS
from ivl3_jax.kernels.tpu_packed_attention_backward import backward
from ivl3_jax.kernels.tpu_packed_attention_forward import forward


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_segments: jax.Array | None = None,
    kv_segments: jax.Array | None = None,
    *,
    causal: bool,
    q_offset: int | jax.Array = 0,
    interpret: bool = False,
) -> jax.Array:
    """`oracle.attention` of packed rows; blocks of queries and keys that share no segment cost nothing.

    Args:
        q: [B, S, N, H], bfloat16 or float32; query head n reads kv head n // (N // K).
        k, v: [B, L, K, H] in q's dtype.
        q_segments, kv_segments: int32 [B, S] and [B, L], both or neither; only equal ids see one another, and 0,
            padding, sees nothing and is seen by nothing. Fastest where ids rise along a row, with 0 at its end.
        causal: whether query i sees only the kv positions j <= q_offset + i.
        q_offset: the kv position at which query 0 stands.
        interpret: run on any platform, slowly.

    Returns:
        [B, S, N, H] in q's dtype, accumulated in float32; zeros for a query that sees nothing, whose gradients are
        zero too. Gradients are the same in every run.

    Raises:
        ValueError: a shape or dtype that is not supported, naming the nearest that is.
    """
    (N, H), K = q.shape[2:], k.shape[2]
    if N % K:
        raise ValueError(f"attention: {N} query heads are not a multiple of {K} kv heads")
    if (q_segments is None) != (kv_segments is None):
        raise ValueError("attention: give both q_segments and kv_segments, or neither")
    if H % 64:
        raise ValueError(f"attention: head size {H} is not supported; the nearest that is: {-(-H // 64) * 64}")
    if q.dtype not in (jnp.bfloat16, jnp.float32) or not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            f"attention: q, k and v are {q.dtype}, {k.dtype} and {v.dtype}; give all as bfloat16 or all as float32"
        )
    if q.size == 0 or k.size == 0:
        return jnp.zeros_like(q)
    run = Run(causal, q_offset if isinstance(q_offset, int) else None, interpret)
    return _attention(run, q, k, v, q_segments, kv_segments, jnp.asarray(q_offset, jnp.int32))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(run, q, k, v, q_segments, kv_segments, q_offset):
    return _forward(run, q, k, v, q_segments, kv_segments, q_offset)[0]


def _forward(run: Run, q, k, v, q_segments, kv_segments, q_offset):
    tiles = _tiles(forward_blocks, q, k)
    ids, offsets = _ids(tiles, q, k, q_segments, kv_segments), (run.known_offset, q_offset)
    pairs = schedule.pairs(*ids, _known(*offsets), blocks=tiles.blocks, causal=run.causal)
    q_flat, k_flat, v_flat = _flat(q, tiles.blocks.q), _flat(k, tiles.blocks.kv), _flat(v, tiles.blocks.kv)
    out, lse = forward(tiles, run, pairs, q_offset, q_flat, k_flat, v_flat, *ids)
    return out[:, : q.shape[1]].reshape(q.shape), lse[..., : q.shape[1]]


def _tiles(blocks_for, q, k) -> Tiles:
    (S, N, H), (L, K) = q.shape[1:], k.shape[1:3]
    return Tiles.of(N, K, H, blocks_for(S, L, N // K * H, q.dtype))


def _ids(tiles: Tiles, q, k, q_segments, kv_segments) -> tuple[jax.Array, jax.Array]:
    return (
        schedule.marked_ids(q_segments, q.shape[:2], tiles.blocks.q, schedule.PADDED_QUERY),
        schedule.marked_ids(kv_segments, k.shape[:2], tiles.blocks.kv, schedule.PADDED_KEY),
    )


def _known(known, traced):
    return traced if known is None else known


def _flat(x: jax.Array, block: int) -> jax.Array:
    """[B, S, N, H] -> [B, S, N * H], S made a multiple of `block`."""
    return jnp.pad(x.reshape(*x.shape[:2], -1), ((0, 0), (0, -x.shape[1] % block), (0, 0)))


def _forward_saving(run, q, k, v, q_segments, kv_segments, q_offset):
    out, lse = (
        checkpoint_name(x, ATTENTION_RESIDUALS) for x in _forward(run, q, k, v, q_segments, kv_segments, q_offset)
    )
    return out, (q, k, v, q_segments, kv_segments, q_offset, out, lse)


def _backward(run: Run, saved, d_out):
    q, k, v, q_segments, kv_segments, q_offset, out, lse = saved
    tiles = _tiles(backward_blocks, q, k)
    q_ids, kv_ids = _ids(tiles, q, k, q_segments, kv_segments)
    of_queries = [_flat(x, tiles.blocks.q) for x in (q, out, d_out)]
    of_keys = [_flat(x, tiles.blocks.kv) for x in (k, v)]
    lse = jnp.pad(lse, ((0, 0), (0, 0), (0, 0), (0, q_ids.shape[1] - lse.shape[-1])))
    length = span(tiles)
    starts = range(0, kv_ids.shape[1], length)
    d_q, d_kv = None, []
    for start in starts:
        here = slice(start, start + length)
        offset = _known(run.known_offset, q_offset) - start
        pairs = schedule.pairs(q_ids, kv_ids[:, here], offset, blocks=tiles.blocks, causal=run.causal)
        k_here, v_here = (x[:, here] for x in of_keys)
        # A rounded share of several would be rounded again in the sum.
        d_q_dtype = q.dtype if len(starts) == 1 else jnp.float32
        share, *d_kv_here = backward(
            tiles, run, pairs, q_offset - start, *of_queries, lse, k_here, v_here, q_ids, kv_ids[:, here], d_q_dtype
        )
        d_q = share if d_q is None else d_q + share
        d_kv.append(d_kv_here)
    gradients = d_q.astype(q.dtype), *(jnp.concatenate(shares, 1) for shares in zip(*d_kv, strict=True))
    return *(g[:, : x.shape[1]].reshape(x.shape) for g, x in zip(gradients, (q, k, v), strict=True)), None, None, None


_attention.defvjp(_forward_saving, _backward)
