"""The backward pass of `tpu_vit_attention`: d_q, d_k and d_v of a tile's 128 lanes in one kernel.

Scores lie as [keys, queries] here, so that a query's log-sum-exp is a row, and both products that contract the queries
take the probabilities as they lie. The one position that is left over is 1 of 16 further rows of keys, and as a query
it never meets the matrix unit: its scores are a column, which the vector unit makes beside the products.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ivl3_jax.kernels.tpu_tiling import LANES, VitBlocks, dividing

ROWS = 16  # of bfloat16 in a register: the extra key's


def backward(H: int, blocks: VitBlocks, interpret: bool, vmem: int, q, k, v, out, lse, d_out):
    """d_q, d_k, d_v [B, S, N * H] of operands and result of that shape and lse [B, N * H / 128, G, S] in log2."""
    B, S, width = q.shape
    lanes = pl.BlockSpec((None, S, LANES), lambda b, n: (b, 0, n))
    return pl.pallas_call(
        functools.partial(_kernel, H, dividing(blocks.backward, S - 1)),
        grid=(B, width // LANES),
        in_specs=[lanes] * 5 + [pl.BlockSpec((None, None, LANES // H, S), lambda b, n: (b, n, 0, 0))],
        out_specs=[lanes] * 3,
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype)] * 3,
        scratch_shapes=[pltpu.VMEM((LANES, S - 1), jnp.float32)] * 2,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=vmem),
        interpret=interpret,
        name="vit_attention_backward",
    )(q, k, v, out, d_out, lse)


def _kernel(H, block, q_ref, k_ref, v_ref, out_ref, d_out_ref, lse_ref, d_q_ref, d_k_ref, d_v_ref, d_k_sum, d_v_sum):
    P = q_ref.shape[0] - 1
    dtype = q_ref.dtype
    precision = lax.Precision.HIGHEST if dtype == jnp.float32 else None
    product = functools.partial(lax.dot_general, precision=precision, preferred_element_type=jnp.float32)
    first = lax.broadcasted_iota(jnp.int32, (1, LANES), 1) < H
    heads = [first, ~first][: LANES // H]
    scale = H**-0.5
    real = lax.broadcasted_iota(jnp.int32, (P + ROWS, 1), 0) <= P

    def with_extra(ref):
        return jnp.concatenate([ref[:P], jnp.broadcast_to(ref[P:], (ROWS, LANES))])

    def only(mine, x):
        return x if len(heads) == 1 else jnp.where(mine, x, jnp.zeros((), x.dtype))

    def columns(x):
        return x.astype(jnp.float32).T.astype(dtype)

    k, v = with_extra(k_ref), with_extra(v_ref)
    k_columns = columns(k_ref[:P])
    extra_k_column = jnp.broadcast_to(k_ref[P:].astype(jnp.float32), (8, LANES)).T[:, :1]

    # The extra query, in columns of keys.
    wide_k, wide_v = k.astype(jnp.float32), v.astype(jnp.float32)
    q_row, d_out_row, out_row = (ref[P:].astype(jnp.float32) for ref in (q_ref, d_out_ref, out_ref))
    d_q_row = jnp.zeros((1, LANES), jnp.float32)
    d_k = d_v = jnp.zeros((P + ROWS, LANES), jnp.float32)
    for head, mine in enumerate(heads):
        mine_q, mine_d_out = only(mine, q_row), only(mine, d_out_row)
        scores = jnp.sum(wide_k * (mine_q * (scale * math.log2(math.e))), axis=1, keepdims=True)
        p = jnp.where(real, jnp.exp2(scores - lse_ref[head : head + 1, P:]), 0)
        d_p = jnp.sum(wide_v * mine_d_out, axis=1, keepdims=True)
        d_scores = p * (d_p - jnp.sum(mine_d_out * out_row, axis=1, keepdims=True))
        d_v += p * mine_d_out
        d_k += d_scores * mine_q
        d_q_row += only(mine, jnp.sum(d_scores * wide_k, axis=0, keepdims=True))
    d_q_ref[P:] = (d_q_row * scale).astype(dtype)
    d_k_sum[...] = d_v_sum[...] = jnp.zeros((LANES, P), jnp.float32)
    d_extra_k = d_extra_v = jnp.zeros((ROWS, LANES), jnp.float32)

    for start in range(0, P, block):
        rows = pl.ds(start, block)
        q, d_out = q_ref[rows], d_out_ref[rows]
        inner = (d_out.astype(jnp.float32) * out_ref[rows].astype(jnp.float32)).T
        q_columns, d_out_columns = columns(q), columns(d_out)
        d_q = []
        for head, mine in enumerate(heads):
            part = slice(head * H, head * H + H)
            # The scores are scaled, not q, which would be rounded again.
            scores = product(k, only(mine, q), (((1,), (1,)), ((), ()))) * (scale * math.log2(math.e))
            p = jnp.exp2(scores - lse_ref[head : head + 1, rows])
            d_p = product(v, only(mine, d_out), (((1,), (1,)), ((), ())))
            # The sum of p * d_p over the keys is that of out * d_out (FlashAttention, appendix B.4).
            d_scores = p * (d_p - inner[part].sum(axis=0, keepdims=True))
            extra_p, extra_d_scores = (jnp.where(real[P:], x[P:], 0) for x in (p, d_scores))
            p, d_scores = p[:P].astype(dtype), d_scores[:P].astype(dtype)
            d_v_sum[part] += product(d_out_columns[part], p, (((1,), (1,)), ((), ())))
            d_k_sum[part] += product(q_columns[part], d_scores, (((1,), (1,)), ((), ())))
            d_extra_v += product(extra_p.astype(dtype), only(mine, d_out), (((1,), (0,)), ((), ())))
            d_extra_k += product(extra_d_scores.astype(dtype), only(mine, q), (((1,), (0,)), ((), ())))
            d_q_columns = product(k_columns[part], d_scores, (((1,), (0,)), ((), ())))
            d_q.append(d_q_columns + extra_k_column[part] * extra_d_scores[:1])
        d_q_ref[rows] = (jnp.concatenate(d_q).T * scale).astype(dtype)
    for ref, total, extra, others, factor in (
        (d_k_ref, d_k_sum, d_extra_k, d_k, scale),
        (d_v_ref, d_v_sum, d_extra_v, d_v, 1.0),
    ):
        ref[:P] = ((total[...].T + others[:P]) * factor).astype(dtype)
        ref[P:] = ((extra[:1] + others[P : P + 1]) * factor).astype(dtype)
