"""The backward pass of `tpu_packed_attention`: one kernel, five products for each pair of blocks.

Pairs come by query block, as forward, so that the gradient of a query block gathers in VMEM and is written once. Those
of keys and values gather in VMEM for all keys at hand: with grouped queries they are small beside the queries', 1 KiB a
position for heads of 128, so the kernel is called for as many keys at once as fit. Every sum is formed in the order of
the list: gradients are the same in every run.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ivl3_jax.kernels import packed_schedule as schedule
from ivl3_jax.kernels.packed_blocks import VMEM
from ivl3_jax.kernels.packed_tiles import LOG2_E, Run, Tiles, ceiling, delta, product


def backward(tiles: Tiles, run: Run, pairs: schedule.Pairs, q_offset, q, out, d_out, lse, k, v, q_ids, kv_ids, dtypes):
    """The gradients of q, k and v.

    Args:
        q, out, d_out: [B, S, N * H]. k, v: [B, L, K * H]. lse: as of `forward`, 0 for a query that sees nothing: its
            recomputed probabilities are then exp2(MASKED), exactly 0.
        q_ids, kv_ids: int32 [B, S] and [B, L], from `marked_ids`. q_offset: int32 scalar.
        dtypes: of the gradient of q, and of those of k and v.

    Returns:
        [B, S, N * H], and twice [B, L, K * H].
    """
    L = k.shape[1]
    wide, kv_wide = tiles.heads * tiles.head, tiles.kv_heads * tiles.head
    of_q, of_kv = dtypes
    outputs = tuple(jax.ShapeDtypeStruct(x.shape, dtype) for x, dtype in ((q, of_q), (k, of_kv), (v, of_kv)))
    closing = pl.BlockSpec(
        (None, tiles.blocks.kv, kv_wide),
        lambda h, p, queries, keys, closing, *_: (*schedule.row_and_block(closing[p]), h),
    )
    return pl.pallas_call(
        partial(_kernel, tiles, run.causal),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(tiles.steps, pairs.count),
            in_specs=[
                tiles.q_spec,
                tiles.kv_spec,
                tiles.kv_spec,
                tiles.q_row_spec,
                tiles.kv_row_spec,
                tiles.q_spec,
                tiles.statistic_spec,
                tiles.q_spec,
            ],
            out_specs=[tiles.q_spec, closing, closing],
            scratch_shapes=[
                pltpu.VMEM((wide, tiles.blocks.q), q.dtype),
                pltpu.VMEM((wide, tiles.blocks.q), q.dtype),
                pltpu.VMEM((wide, tiles.blocks.q), jnp.float32),
                pltpu.VMEM((tiles.heads, tiles.blocks.q), jnp.float32),
                pltpu.VMEM((L, kv_wide), jnp.float32),
                pltpu.VMEM((L, kv_wide), jnp.float32),
            ],
        ),
        out_shape=outputs,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM),
        cost_estimate=tiles.cost(run, q, k, products=5),
        interpret=run.interpret,
        name="packed_attention_backward",
    )(
        pairs.queries,
        pairs.keys,
        pairs.closing,
        q_offset.reshape(1),
        q,
        k,
        v,
        q_ids[:, None],
        kv_ids[:, None],
        out,
        lse,
        d_out,
    )


def _kernel(tiles, causal, queries, keys, closing, q_offset, *refs):
    """One pair. The scratch q_t, d_out_t and d_q_t are [heads * H, q], transposed; inner is [heads, q]."""
    q, k, v, q_ids, kv_ids, out, lse, d_out, d_q, d_k, d_v, q_t, d_out_t, d_q_t, inner, sum_k, sum_v = refs
    p = pl.program_id(1)
    flags = keys[p]
    first_key = pl.multiple_of((flags >> schedule.FLAG_BITS) * tiles.blocks.kv, tiles.blocks.kv)
    block = pl.ds(first_key, tiles.blocks.kv)

    @pl.when(flags & schedule.FIRST_OF_QUERIES != 0)
    def begin_queries():
        q_t[...] = q[...].T
        d_out_t[...] = d_out[...].T
        d_q_t[...] = jnp.zeros_like(d_q_t)
        both = (out[...].astype(jnp.float32) * d_out[...].astype(jnp.float32)).T
        for n in range(tiles.heads):
            # The sum of weight * d_weight over the keys (FlashAttention, appendix B.4).
            inner[n : n + 1] = both[tiles.of_head(n)[0]].sum(0, keepdims=True)

    @pl.when(flags & schedule.FIRST_OF_KEYS != 0)
    def begin_keys():
        sum_k[block] = jnp.zeros((tiles.blocks.kv, sum_k.shape[1]), jnp.float32)
        sum_v[block] = jnp.zeros((tiles.blocks.kv, sum_v.shape[1]), jnp.float32)

    def step(these: slice, those: slice, most):
        """Of the queries `these` and the keys `those` of the blocks."""
        k_t = k[those].T
        rows = pl.ds(pl.multiple_of(first_key + those.start, tiles.blocks.kv_piece), those.stop - those.start)

        def scores_of(n: int):
            mine, theirs = tiles.of_head(n)
            return product(k[those, theirs], q_t[mine, these]), product(v[those, theirs], d_out_t[mine, these])

        following = scores_of(0)
        for n in range(tiles.heads):
            mine, theirs = tiles.of_head(n)
            here = slice(n, n + 1), these
            scores, d_weights = following
            if n + 1 < tiles.heads:
                following = scores_of(n + 1)
            if most is not None:
                scores = jnp.minimum(scores, most)
            weights = jnp.exp2(scores * (LOG2_E * tiles.head**-0.5) - lse[here])
            d_scores = (weights * (d_weights - inner[here])).astype(q.dtype)
            sum_v[rows, theirs] += product(weights.astype(v.dtype), d_out[these, mine])
            sum_k[rows, theirs] += product(d_scores, q[these, mine])
            d_q_t[mine, these] += product(k_t[theirs], d_scores)

    @pl.when(flags & schedule.FULL != 0)
    def whole():
        step(slice(0, tiles.blocks.q), slice(0, tiles.blocks.kv), most=None)

    for bit, these, those in tiles.pieces():

        @pl.when(flags & (bit | schedule.FULL) == bit)
        def piece(these=these, those=those):
            latest = None
            if causal:
                latest = delta(tiles, queries[p], flags, q_offset[0]) + these.start - those.start
            step(these, those, ceiling(q_ids[:, these], kv_ids[:, those], latest))

    scale = tiles.head**-0.5

    @pl.when(flags & schedule.LAST_OF_QUERIES != 0)
    def end_queries():
        d_q[...] = (d_q_t[...].T * scale).astype(d_q.dtype)

    @pl.when(flags & schedule.LAST_OF_KEYS != 0)
    def end_keys():
        d_k[...] = (sum_k[block] * scale).astype(d_k.dtype)
        d_v[...] = sum_v[block].astype(d_v.dtype)
