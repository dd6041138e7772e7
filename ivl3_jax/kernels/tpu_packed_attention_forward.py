"""The forward pass of `tpu_packed_attention`: an online softmax over the list of pairs of blocks."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ivl3_jax.kernels import packed_schedule as schedule
from ivl3_jax.kernels.oracle import NOTHING_SEEN
from ivl3_jax.kernels.packed_blocks import VMEM
from ivl3_jax.kernels.packed_tiles import LOG2_E, MASKED, Run, Tiles, ceiling, delta, product


def forward(tiles: Tiles, run: Run, pairs: schedule.Pairs, q_offset, q, k, v, q_ids, kv_ids, out_dtype):
    """The result and the log2 of its sums of powers of 2.

    Args:
        q: [B, S, N * H]. k, v: [B, L, K * H]. q_ids, kv_ids: int32 [B, S] and [B, L], from `marked_ids`.
        q_offset: int32 scalar. out_dtype: of the result.

    Returns:
        [B, S, N * H] and float32 [B, steps, heads, S], `NOTHING_SEEN` for a query that sees nothing.
    """
    B, S = q.shape[:2]
    statistics = jax.ShapeDtypeStruct((B, tiles.steps, tiles.heads, S), jnp.float32)
    wide = tiles.heads * tiles.head
    outputs = (jax.ShapeDtypeStruct(q.shape, out_dtype), statistics)
    return pl.pallas_call(
        partial(_kernel, tiles, run.causal),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(tiles.steps, pairs.count),
            in_specs=[
                tiles.q_spec,
                tiles.kv_spec,
                tiles.kv_spec,
                tiles.q_row_spec,
                tiles.kv_row_spec,
            ],
            out_specs=[tiles.q_spec, tiles.statistic_spec],
            scratch_shapes=[
                pltpu.VMEM((wide, tiles.blocks.q), q.dtype),
                pltpu.VMEM((wide, tiles.blocks.q), jnp.float32),
                pltpu.VMEM((tiles.heads, tiles.blocks.q), jnp.float32),
                pltpu.VMEM((tiles.heads, tiles.blocks.q), jnp.float32),
            ],
        ),
        out_shape=outputs,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM),
        cost_estimate=tiles.cost(run, q, k, products=2),
        interpret=run.interpret,
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
    )


def _kernel(tiles, causal, queries, keys, q_offset, q, k, v, q_ids, kv_ids, out, lse, q_t, out_t, top, total):
    """One pair. q_t, out_t: [heads * H, q], transposed. top, total: [heads, q], the online softmax's."""
    p = pl.program_id(1)
    flags = keys[p]

    @pl.when(flags & schedule.FIRST_OF_QUERIES != 0)
    def begin_queries():
        q_t[...] = q[...].T
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
            scores = following * (LOG2_E * tiles.head**-0.5)  # not q, which would be rounded again
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
    def whole():
        step(slice(0, tiles.blocks.q), slice(0, tiles.blocks.kv), most=None)

    for bit, these, those in tiles.pieces():

        @pl.when(flags & (bit | schedule.FULL) == bit)
        def piece(these=these, those=those):
            latest = None
            if causal:
                latest = delta(tiles, queries[p], flags, q_offset[0]) + these.start - those.start
            step(these, those, ceiling(q_ids[:, these], kv_ids[:, those], latest))

    @pl.when(flags & schedule.LAST_OF_QUERIES != 0)
    def end_queries():
        some = top[...] > MASKED / 2
        inverse = jnp.where(some, 1 / total[...], 0)
        lse[...] = jnp.where(some, top[...] + jnp.log2(total[...]), NOTHING_SEEN)
        for n in range(tiles.heads):
            mine, _ = tiles.of_head(n)
            out_t[mine] = out_t[mine] * inverse[n : n + 1]
        out[...] = out_t[...].T.astype(out.dtype)
