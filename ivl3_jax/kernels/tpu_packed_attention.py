"""Attention of packed rows on TPUs, in Pallas: FlashAttention-2 (Dao 2023) over a list of blocks that are not empty.

Scores lie as [keys, queries]: the maximum and the sum over the keys then run down sublanes, which costs next to
nothing, statistics of a query are a row of lanes, and heads of 64 lie beside one another without padding. All query
heads that read one kv head are worked on together, so that keys are fetched and masks made once for all of them. The
list is made by `packed_schedule` at run time; blocks of one segment below the diagonal take a path that masks nothing,
and the others are worked on in pieces, those left out that are empty.
"""

import bisect
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas import tpu as pltpu

from ivl3_jax.kernels import packed_schedule as schedule
from ivl3_jax.kernels.oracle import NOTHING_SEEN
from ivl3_jax.kernels.packed_blocks import backward_blocks, forward_blocks, span
from ivl3_jax.kernels.packed_tiles import LOG2_E, Run, Tiles, together
from ivl3_jax.kernels.tpu_packed_attention_backward import backward
from ivl3_jax.kernels.tpu_packed_attention_forward import forward
from ivl3_jax.sharding.remat import ATTENTION

LANES_AT_ONCE, KV_LANES_AT_ONCE = 2048, 1024  # of the query and of the kv heads of a step, so that they fit in VMEM


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_segments: jax.Array | None = None,
    kv_segments: jax.Array | None = None,
    *,
    causal: bool,
    q_offset: int | jax.Array = 0,
    interpret: bool | pltpu.InterpretParams = False,
) -> jax.Array:
    """`oracle.attention` of packed rows; blocks of queries and keys that share no segment cost nothing.

    Args:
        q: [B, S, N, H], bfloat16 or float32; query head n reads kv head n // (N // K).
        k, v: [B, L, K, H] in q's dtype.
        q_segments, kv_segments: int32 [B, S] and [B, L], both or neither; only equal ids see one another, and
            padding, 0 or less, sees nothing and is seen by nothing. Fastest where ids rise along a row, 0 at its end.
        causal: whether query i sees only the kv positions j <= q_offset + i.
        q_offset: the kv position at which query 0 stands.
        interpret: run on any platform, slowly; with parameters, as a simulation of a TPU's memories.

    Returns:
        [B, S, N, H] in q's dtype, accumulated in float32; zeros for a query that sees nothing, whose gradients are
        zero too. Gradients are the same in every run.

    Raises:
        ValueError: a shape or dtype that is not supported, naming the nearest that is.
    """
    if reason := unsupported(q, k, q_segments, kv_segments, q_offset if causal else None):
        raise ValueError(f"attention: {reason}")
    if q.size == 0 or k.size == 0:
        return jnp.zeros_like(q)
    return _attention(*_run(causal, q_offset, interpret), q, k, v, q_segments, kv_segments)


def _run(causal: bool, q_offset: int | jax.Array, interpret) -> tuple[Run, jax.Array]:
    known = q_offset if isinstance(q_offset, int) else None
    return Run(causal, known, interpret), jnp.asarray(q_offset, jnp.int32)


def partial_attention(q, k, v, q_segments, kv_segments, *, causal, q_offset, interpret=False):
    """`oracle.partial_attention`."""
    run, q_offset = _run(causal, q_offset, interpret)
    out, lse = _forward(run, q_offset, q, k, v, q_segments, kv_segments, jnp.float32)
    lse = jnp.where(lse > NOTHING_SEEN / 2, lse / LOG2_E, NOTHING_SEEN)
    return out, lse.reshape(q.shape[0], q.shape[2], q.shape[1])


def partial_gradients(q, k, v, q_segments, kv_segments, out, lse, d_out, *, causal, q_offset, interpret=False):
    """`oracle.partial_gradients`; `out` and `d_out` in q's dtype."""
    run, q_offset = _run(causal, q_offset, interpret)
    tiles = _tiles(forward_blocks, q, k)
    lse = (lse * LOG2_E).reshape(q.shape[0], tiles.steps, tiles.heads, q.shape[1])
    return _gradients(run, q_offset, q, k, v, q_segments, kv_segments, out, lse, d_out, jnp.float32)


def unsupported(q, k, q_segments, kv_segments, q_offset: int | jax.Array | None = 0) -> str | None:
    """Why `attention` refuses the operands, naming the nearest that it takes; None if it does not.

    `q_offset` is None where nothing is causal.
    """
    (B, S, N, H), (L, K) = q.shape, k.shape[1:3]
    if N % K:
        return f"{N} query heads are not a multiple of {K} kv heads"
    if H % 64:
        return f"head size {H} is not supported; the nearest that is: {max(64, round(H / 64) * 64)}"
    if q.dtype not in (jnp.bfloat16, jnp.float32) or k.dtype != q.dtype:
        return f"q is {q.dtype} and k {k.dtype}; give q, k and v as bfloat16 or as float32"
    if (q_segments is None) != (kv_segments is None):
        return "give both q_segments and kv_segments, or neither"
    if q.size == 0 or k.size == 0:
        return None  # there is nothing to do
    tiles = _tiles(forward_blocks, q, k)
    for count, most in ((tiles.heads, LANES_AT_ONCE), (tiles.kv_heads, KV_LANES_AT_ONCE)):
        if count * H > most:
            heads = f"{tiles.kv_heads} kv heads with their {tiles.heads} query heads of {H}"
            return f"{heads} are worked on at once, {count * H} lanes; at most {most} are supported"
    backward_tiles = _tiles(backward_blocks, q, k)

    def pairs(queries: int, keys: int) -> int:
        """The most of both passes; the backward one takes its keys in spans."""
        both = (tiles.blocks, keys), (backward_tiles.blocks, min(keys, span(backward_tiles)))
        return max(
            schedule.most_pairs(B, -(-queries // blocks.q), -(-n // blocks.kv), blocks, True, q_offset)
            for blocks, n in both
        )

    if (most := pairs(S, L)) <= schedule.MOST_PAIRS:
        return None
    if rows := B * schedule.MOST_PAIRS // most:
        would = f"{rows} such rows would do"
    else:
        whole = S == L
        step = max(tiles.blocks.q, backward_tiles.blocks.q)
        counts = range(step, S, step)
        fitting = bisect.bisect_right(counts, schedule.MOST_PAIRS, key=lambda n: pairs(n, n if whole else L))
        would = f"{counts[max(0, fitting - 1)]} queries{' and keys' * whole} would do"
    told = f"{B} rows of {S} queries and {L} keys make up to {most} pairs of blocks"
    return f"{told}, and {schedule.MOST_PAIRS} are supported on a device; {would}"


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(run, q_offset, q, k, v, q_segments, kv_segments):
    return _forward(run, q_offset, q, k, v, q_segments, kv_segments, q.dtype)[0]


def _forward(run: Run, q_offset, q, k, v, q_segments, kv_segments, dtype):
    tiles = _tiles(forward_blocks, q, k)
    ids = _ids(tiles, q, k, q_segments, kv_segments)
    known = q_offset if run.known_offset is None else run.known_offset
    pairs = schedule.pairs(*ids, known, blocks=tiles.blocks, causal=run.causal)
    q_flat, k_flat, v_flat = _flat(q, tiles.blocks.q), _flat(k, tiles.blocks.kv), _flat(v, tiles.blocks.kv)
    out, lse = forward(tiles, run, pairs, q_offset, q_flat, k_flat, v_flat, *ids, dtype)
    return out[:, : q.shape[1]].reshape(q.shape), lse[..., : q.shape[1]]


def _tiles(blocks_for, q, k) -> Tiles:
    (S, N, H), (L, K) = q.shape[1:], k.shape[1:3]
    return Tiles.of(N, K, H, blocks_for(S, L, N // K * together(K, H) * H, q.dtype))


def _ids(tiles: Tiles, q, k, q_segments, kv_segments) -> tuple[jax.Array, jax.Array]:
    return (
        schedule.marked_ids(q_segments, q.shape[:2], tiles.blocks.q, schedule.PADDED_QUERY),
        schedule.marked_ids(kv_segments, k.shape[:2], tiles.blocks.kv, schedule.PADDED_KEY),
    )


def _flat(x: jax.Array, block: int) -> jax.Array:
    """[B, S, N, H] -> [B, S, N * H], S made a multiple of `block`."""
    return jnp.pad(x.reshape(*x.shape[:2], -1), ((0, 0), (0, -x.shape[1] % block), (0, 0)))


def _forward_saving(run, q_offset, q, k, v, q_segments, kv_segments):
    out, lse = _forward(run, q_offset, q, k, v, q_segments, kv_segments, q.dtype)
    out, lse = (checkpoint_name(x, ATTENTION) for x in (out, lse))
    return out, (q_offset, q, k, v, q_segments, kv_segments, out, lse)


def _backward(run: Run, saved, d_out):
    q_offset, q, k, v, q_segments, kv_segments, out, lse = saved
    gradients = _gradients(run, q_offset, q, k, v, q_segments, kv_segments, out, lse, d_out, q.dtype)
    return None, *gradients, None, None


def _gradients(run: Run, q_offset, q, k, v, q_segments, kv_segments, out, lse, d_out, dtype):
    tiles = _tiles(backward_blocks, q, k)
    q_ids, kv_ids = _ids(tiles, q, k, q_segments, kv_segments)
    q_flat, out, d_out = (_flat(x, tiles.blocks.q) for x in (q, out, d_out))
    k_flat, v_flat = _flat(k, tiles.blocks.kv), _flat(v, tiles.blocks.kv)
    lse = jnp.pad(jnp.where(lse > NOTHING_SEEN / 2, lse, 0), (*((0, 0),) * 3, (0, q_ids.shape[1] - lse.shape[-1])))
    length = span(tiles)
    starts = range(0, kv_ids.shape[1], length)
    d_q, d_k, d_v = None, [], []
    for start in starts:
        here = slice(start, start + length)
        offset = q_offset - start
        known = offset if run.known_offset is None else run.known_offset - start
        pairs = schedule.pairs(q_ids, kv_ids[:, here], known, blocks=tiles.blocks, causal=run.causal)
        of_keys = k_flat[:, here], v_flat[:, here], q_ids, kv_ids[:, here]
        # A rounded share of several would be rounded again in the sum.
        dtypes = dtype if len(starts) == 1 else jnp.float32, dtype
        share, d_k_here, d_v_here = backward(tiles, run, pairs, offset, q_flat, out, d_out, lse, *of_keys, dtypes)
        # One share after the other, so that no more than two are held.
        d_q, q_flat = (share, q_flat) if d_q is None else lax.optimization_barrier((d_q + share, q_flat))
        d_k.append(d_k_here)
        d_v.append(d_v_here)
    gradients = d_q, jnp.concatenate(d_k, 1), jnp.concatenate(d_v, 1)
    return tuple(g[:, : x.shape[1]].reshape(x.shape).astype(dtype) for g, x in zip(gradients, (q, k, v), strict=True))


_attention.defvjp(_forward_saving, _backward)
