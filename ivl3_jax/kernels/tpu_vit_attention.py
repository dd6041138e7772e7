"""Attention of a ViT's tiles on TPUs: bidirectional, P patches and one position more (CLS), P a multiple of 128.

Softmax attention does not care in which order its keys stand, nor the queries among themselves. So P of the positions
are cut into aligned blocks, and the one that is left over, the last, wherever CLS stands, is an extra column of scores
and an extra row of queries; 1,025 positions are never padded to 1,152.

A head's keys and values lie in VMEM whole, so that the softmax is not an online one: a block of queries meets all keys
at once. Operands are read as [B, S, N * H], 128 lanes at a time: one head of 128, or two of 64. Of two, each meets the
keys with the other's lanes set to zero, which costs the matrix unit what padding them to 128 would, and moves no data.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ivl3_jax.kernels.tpu_tiling import LANES, VitBlocks, dividing, vit_blocks
from ivl3_jax.kernels.tpu_vit_attention_backward import backward
from ivl3_jax.sharding.remat import ATTENTION

HEAD_DIMS = (64, 128)
PATCHES = 2048  # at most: keys, values and scores have to fit in VMEM
VMEM = 100 << 20


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_segments: jax.Array | None = None,
    kv_segments: jax.Array | None = None,
    *,
    causal: bool = False,
    q_offset: int | jax.Array = 0,
    interpret: bool = False,
) -> jax.Array:
    """`oracle.attention` where every position sees all others.

    Args:
        q, k, v: [B, S, N, H], float32 or bfloat16; S = P + 1 with P a multiple of 128, and N * H a multiple of 128.
        q_segments, kv_segments, causal: None, None and False; here because the other implementations have them.
        q_offset: without meaning where nothing is causal.
        interpret: run on the CPU, for tests.

    Returns:
        [B, S, N, H] in q's dtype. Softmax and products accumulate in float32; of bfloat16 operands the probabilities
        are rounded to bfloat16 before they meet the values.

    Raises:
        ValueError: what is asked for is not supported; the message says what is.
    """
    del q_offset
    if (found := unsupported(q, k, q_segments, kv_segments, causal)) is not None:
        raise ValueError(f"ViT attention for TPUs: {found}")
    if q.size == 0:
        return jnp.zeros_like(q)
    B, S, N, H = q.shape
    flat = (x.reshape(B, S, N * H) for x in (q, k, v))
    return _attention(H, vit_blocks(H), interpret, *flat).reshape(q.shape)


def unsupported(q, k, q_segments, kv_segments, causal: bool) -> str | None:
    """Why `attention` would refuse these operands, and what is nearest to them; None where it takes them."""
    B, S, N, H = q.shape
    P = min(max(round((S - 1) / LANES), 1) * LANES, PATCHES)
    if causal or q_segments is not None or kv_segments is not None:
        return "causal attention and segments are not supported, only rows in which every position sees all others"
    if k.shape != q.shape:
        return f"k is {k.shape}, q {q.shape}; they have to be of one shape"
    if H not in HEAD_DIMS:
        return f"head size {H} is not supported, only {' and '.join(map(str, HEAD_DIMS))}"
    if N * H % LANES:
        nearest = " or ".join(str(n) for n in (N - 1, N + 1) if n)
        return f"{N} heads of {H} do not fill {LANES} lanes; {nearest} heads would"
    if S != P + 1:
        return (
            f"{S} positions are not supported; the nearest are {P + 1}, a multiple of {LANES} up to {PATCHES} and one"
        )
    if q.dtype not in (jnp.float32, jnp.bfloat16):
        return f"{q.dtype} is not supported, only float32 and bfloat16"
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attention(H, blocks, interpret, q, k, v):
    return _forward(H, blocks, interpret, False, q, k, v)[0]


def _forward(H: int, blocks: VitBlocks, interpret: bool, save: bool, q, k, v):
    """The result [B, S, N * H] and, if `save`, each query's log2 of the sum of exponentials, [B, N * H / 128, G, S]."""
    B, S, width = q.shape
    G = LANES // H
    lanes = pl.BlockSpec((None, S, LANES), lambda b, n: (b, 0, n))
    lse = pl.BlockSpec((None, None, G, S), lambda b, n: (b, n, 0, 0))
    lse_shape = jax.ShapeDtypeStruct((B, width // LANES, G, S), jnp.float32)
    return pl.pallas_call(
        functools.partial(_kernel, H, dividing(blocks.forward, S - 1), blocks.ahead, blocks.sum_by_product),
        grid=(B, width // LANES),
        in_specs=[lanes] * 3,
        out_specs=[lanes, *([lse] if save else ())],
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), *([lse_shape] if save else ())],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=VMEM),
        interpret=interpret,
        name="vit_attention_forward",
    )(q, k, v)


def _kernel(H, block, ahead, sum_by_product, q_ref, k_ref, v_ref, out_ref, lse_ref=None):
    P = k_ref.shape[0] - 1
    precision = lax.Precision.HIGHEST if q_ref.dtype == jnp.float32 else None
    product = functools.partial(lax.dot_general, precision=precision, preferred_element_type=jnp.float32)
    first = lax.broadcasted_iota(jnp.int32, (1, LANES), 1) < H  # lanes of the first head
    heads = [first, ~first][: LANES // H]
    k, v = k_ref[:P], v_ref[:P]
    extra_k, extra_v = (ref[P:].astype(jnp.float32) for ref in (k_ref, v_ref))
    one = jnp.ones((), v.dtype)

    def scored(start, mine):
        q = q_ref[start : start + block]
        if start + block == P:  # the extra query rides along; 16 rows are what a register holds of bfloat16
            q = jnp.concatenate([q, jnp.broadcast_to(q_ref[P:], (16, LANES))])
        q = q if len(heads) == 1 else jnp.where(mine, q, jnp.zeros((), q.dtype))
        scores = product(q, k, (((1,), (1,)), ((), ())))
        extra = jnp.sum(q.astype(jnp.float32) * extra_k, axis=1, keepdims=True)
        # In units of log2, for exp2; q itself would be rounded again.
        return tuple(x * (H**-0.5 * math.log2(math.e)) for x in (scores, extra))

    tasks = [(start, mine) for start in range(0, P, block) for mine in heads]
    made, taken = [], 0
    for start in range(0, P, block):
        last = start + block == P
        outs, tops, extras, sums = [], [], [], []
        for mine in heads:
            while len(made) < min(taken + 1 + ahead, len(tasks)):
                made.append(scored(*tasks[len(made)]))
            scores, extra = made[taken]
            taken += 1
            top = jnp.maximum(scores.max(axis=1, keepdims=True), extra)
            p = jnp.exp2(scores - top)
            if len(heads) == 2:
                values = jnp.where(mine, v, one)
            elif sum_by_product:
                values = jnp.concatenate([v, jnp.ones_like(v)], axis=1)
            else:
                values = v
                sums.append(p.sum(axis=1, keepdims=True))
            outs.append(product(p.astype(v.dtype), values, (((1,), (0,)), ((), ()))))
            tops.append(top)
            extras.append(jnp.exp2(extra - top))
        if len(heads) == 2:
            # Each head's product has its sum of exponentials in the other's lanes.
            out, top, extra = (jnp.where(first, *pair) for pair in (outs, tops, extras))
            total = pltpu.roll(jnp.where(first, outs[1], outs[0]), H, 1)
        else:
            out, top, extra, total = outs[0][:, :LANES], tops[0], extras[0], (sums or [outs[0][:, LANES:]])[0]
        total = total + extra
        out = ((out + extra * extra_v) / total).astype(out_ref.dtype)
        out_ref[start : start + block] = out[:block]
        if last:
            out_ref[P:] = out[block : block + 1]
        if lse_ref is not None:
            lse = jnp.broadcast_to(top + jnp.log2(total), (out.shape[0], LANES))
            rows = lse[:block].T
            for head in range(len(heads)):
                lse_ref[head : head + 1, start : start + block] = rows[head * H : head * H + 1]
                if last:
                    lse_ref[head : head + 1, P:] = lse[block : block + 1, head * H : head * H + 1]


def _forward_saving(H, blocks, interpret, q, k, v):
    out, lse = (checkpoint_name(x, ATTENTION) for x in _forward(H, blocks, interpret, True, q, k, v))
    return out, (q, k, v, out, lse)


def _backward(H, blocks, interpret, saved, d_out):
    q, k, v, out, lse = saved
    return backward(H, blocks, interpret, VMEM, q, k, v, out, lse, d_out)


_attention.defvjp(_forward_saving, _backward)
