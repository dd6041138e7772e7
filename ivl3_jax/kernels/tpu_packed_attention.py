"""Attention of packed rows on TPUs, in Pallas: FlashAttention-2 (Dao 2023) over a list of blocks that are not empty.

Scores lie as [keys, queries]: the maximum and the sum over the keys then run down sublanes, which costs next to nothing,
statistics of a query are a row of lanes, and heads of 64 lie beside one another without padding. All query heads that
read one kv head are worked on together, so that keys are fetched and masks made once for all of them. The list is made
by `packed_schedule` at run time; blocks of one segment below the diagonal take a path that masks nothing.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ivl3_jax.kernels import packed_schedule as schedule
from ivl3_jax.kernels.packed_tiles import LANES, LOG2_E, MASKED, Tiles, ceiling, delta, product
from ivl3_jax.kernels.residuals import ATTENTION_RESIDUALS
from ivl3_jax.kernels.tpu_packed_attention_backward import backward

BLOCKS = (512, 512)
VMEM = 64 << 20


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
    (B, S, N, H), (L, K) = q.shape, k.shape[1:3]
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
    blocks = tuple(min(block, -(-n // LANES) * LANES) for block, n in zip(BLOCKS, (S, L), strict=True))
    static = (causal, q_offset if isinstance(q_offset, int) else None, blocks, interpret)
    return _attention(static, q, k, v, q_segments, kv_segments, jnp.asarray(q_offset, jnp.int32))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(static, q, k, v, q_segments, kv_segments, q_offset):
    return _forward(static, q, k, v, q_segments, kv_segments, q_offset)[0]


def _flat(x: jax.Array, length: int) -> jax.Array:
    """[B, S, N, H] -> [B, length, N * H]."""
    return jnp.pad(x.reshape(*x.shape[:2], -1), ((0, 0), (0, length - x.shape[1]), (0, 0)))


def _forward(static, q, k, v, q_segments, kv_segments, q_offset):
    causal, known_offset, blocks, interpret = static
    tiles, pairs, q_ids, kv_ids, S, L = _prepared(static, q, k, q_segments, kv_segments, q_offset)
    out, lse = _forward_call(
        tiles, causal, interpret, pairs, q_offset, _flat(q, S), _flat(k, L), _flat(v, L), q_ids, kv_ids
    )
    return out[:, : q.shape[1]].reshape(q.shape), lse


def _prepared(static, q, k, q_segments, kv_segments, q_offset):
    causal, known_offset, blocks, interpret = static
    (B, S, N, H), (L, K) = q.shape, k.shape[1:3]
    tiles = Tiles.of(N, K, H, *blocks)
    padded_S, padded_L = (-(-n // block) * block for n, block in zip((S, L), blocks, strict=True))
    q_ids = schedule.marked_ids(q_segments, (B, S), padded_S, schedule.PADDED_QUERY)
    kv_ids = schedule.marked_ids(kv_segments, (B, L), padded_L, schedule.PADDED_KEY)
    offset = q_offset if known_offset is None else known_offset
    pairs = schedule.pairs(q_ids, kv_ids, offset, q=tiles.q, kv=tiles.kv, causal=causal)
    return tiles, pairs, q_ids, kv_ids, padded_S, padded_L


def _forward_call(tiles: Tiles, causal, interpret, pairs, q_offset, q, k, v, q_ids, kv_ids):
    B, S = q.shape[:2]
    statistics = jax.ShapeDtypeStruct((B, tiles.steps, tiles.heads, S), jnp.float32)
    wide = tiles.heads * tiles.head
    outputs = (jax.ShapeDtypeStruct(q.shape, q.dtype), statistics)
    return pl.pallas_call(
        partial(_forward_kernel, tiles, causal),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(tiles.steps, pairs.count),
            in_specs=[
                tiles.q_spec,
                tiles.kv_spec,
                tiles.kv_spec,
                tiles.q_row_spec,
                tiles.kv_row_spec,
                pl.BlockSpec(memory_space=pl.ANY),
                pl.BlockSpec(memory_space=pl.ANY),
            ],
            out_specs=[tiles.q_spec, tiles.statistic_spec],
            scratch_shapes=[
                pltpu.VMEM((wide, tiles.q), q.dtype),
                pltpu.VMEM((wide, tiles.q), jnp.float32),
                pltpu.VMEM((tiles.heads, tiles.q), jnp.float32),
                pltpu.VMEM((tiles.heads, tiles.q), jnp.float32),
            ],
        ),
        out_shape=outputs,
        # A query block in no pair is never written: its zeros are these.
        input_output_aliases={8: 0, 9: 1},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM),
        interpret=interpret,
        name="packed_attention_forward",
    )(
        pairs.queries,
        pairs.keys,
        q_offset.reshape(1),
        q,
        k,
        v,
        q_ids[:, None],
        kv_ids[:, None],
        *(jnp.zeros(x.shape, x.dtype) for x in outputs),
    )


def _forward_kernel(
    tiles, causal, queries, keys, q_offset, q, k, v, q_ids, kv_ids, _, __, out, lse, q_t, out_t, top, total
):
    """One pair. q_t, out_t: [heads * H, q], transposed. top, total: [heads, q], the online softmax's."""
    p = pl.program_id(1)
    flags = keys[p]

    @pl.when(flags & schedule.FIRST_OF_QUERIES != 0)
    def _():
        scaled = q[...].astype(jnp.float32) * (LOG2_E * tiles.head**-0.5)
        q_t[...] = scaled.astype(q.dtype).T
        out_t[...] = jnp.zeros_like(out_t)
        top[...] = jnp.full_like(top, MASKED)
        total[...] = jnp.zeros_like(total)

    def step(these: slice, those: slice, most):
        """Of the queries `these` and the keys `those` of the blocks."""
        v_t = v[those].T

        def scores_of(n: int):
            mine, theirs = tiles.of_head(n)
            return product(k[those, theirs], q_t[mine, these])

        following = scores_of(0)
        for n in range(tiles.heads):
            mine, theirs = tiles.of_head(n)
            here = slice(n, n + 1), these
            scores = following
            if n + 1 < tiles.heads:
                following = scores_of(n + 1)
            if most is not None:
                scores = jnp.minimum(scores, most)
            new_top = jnp.maximum(top[here], scores.max(0, keepdims=True))
            weights = jnp.exp2(scores - new_top)
            shrink = jnp.exp2(top[here] - new_top)
            top[here] = new_top
            total[here] = total[here] * shrink + weights.sum(0, keepdims=True)
            out_t[mine, these] = out_t[mine, these] * shrink + product(v_t[theirs], weights.astype(v.dtype))

    @pl.when(flags & schedule.FULL != 0)
    def _():
        step(slice(0, tiles.q), slice(0, tiles.kv), most=None)

    for bit, these, those in tiles.pieces():

        @pl.when(flags & (bit | schedule.FULL) == bit)
        def _(these=these, those=those):
            latest = None
            if causal:
                latest = delta(tiles, queries[p], flags, q_offset[0]) + these.start - those.start
            step(these, those, ceiling(q_ids[:, these], kv_ids[:, those], latest))

    @pl.when(flags & schedule.LAST_OF_QUERIES != 0)
    def _():
        some = top[...] > MASKED / 2
        inverse = jnp.where(some, 1 / total[...], 0)
        # For a query that sees nothing 0 stands in: its recomputed probabilities are then exp2(MASKED), exactly 0.
        lse[...] = jnp.where(some, top[...] + jnp.log2(total[...]), 0)
        for n in range(tiles.heads):
            mine, _ = tiles.of_head(n)
            out_t[mine] = out_t[mine] * inverse[n : n + 1]
        out[...] = out_t[...].T.astype(out.dtype)


def _forward_saving(static, q, k, v, q_segments, kv_segments, q_offset):
    out, lse = (
        checkpoint_name(x, ATTENTION_RESIDUALS) for x in _forward(static, q, k, v, q_segments, kv_segments, q_offset)
    )
    return out, (q, k, v, q_segments, kv_segments, q_offset, out, lse)


def _backward(static, saved, d_out):
    causal, known_offset, blocks, interpret = static
    q, k, v, q_segments, kv_segments, q_offset, out, lse = saved
    tiles, pairs, q_ids, kv_ids, S, L = _prepared(static, q, k, q_segments, kv_segments, q_offset)
    grads = backward(
        tiles,
        (causal, interpret, VMEM),
        pairs,
        q_offset,
        _flat(q, S),
        _flat(k, L),
        _flat(v, L),
        q_ids,
        kv_ids,
        _flat(out, S),
        lse,
        _flat(d_out, S),
    )
    return *(g[:, : x.shape[1]].reshape(x.shape) for g, x in zip(grads, (q, k, v))), None, None, None


_attention.defvjp(_forward_saving, _backward)
