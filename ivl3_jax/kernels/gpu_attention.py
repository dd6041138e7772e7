"""Attention on NVIDIA GPUs by cuDNN; packed rows as sequences that lie one behind the other, without a mask."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ivl3_jax.kernels import chunked_attention

SEGMENTS = 64  # of a row; cuDNN takes memory for as many rows of statistics as a row can have
HOPPER = 9.0


class Segments(NamedTuple):
    """Where the segments of packed rows lie, as cuDNN reads it; -1 behind the last.

    `lengths`: int32 [B, M]. `starts`: int32 [B, M + 1]. `told`: whether that says it all: no row has more than M, and
    none lies in two places.
    """

    lengths: jax.Array
    starts: jax.Array
    told: jax.Array

    @classmethod
    def of(cls, ids: jax.Array, most: int) -> "Segments":
        """Of ids int32 [B, S], where 0 is padding and belongs to none."""

        def row(ids):
            S = ids.shape[0]
            begins = (ids != jnp.pad(ids[:-1], (1, 0), constant_values=-1)) & (ids > 0)
            ends = (ids != jnp.pad(ids[1:], (0, 1), constant_values=-1)) & (ids > 0)
            starts = jnp.nonzero(begins, size=most, fill_value=-1)[0]
            lengths = jnp.where(starts < 0, -1, jnp.nonzero(ends, size=most, fill_value=-1)[0] - starts + 1)
            by_id = jnp.sort(ids)
            distinct = ((by_id != jnp.pad(by_id[:-1], (1, 0), constant_values=-1)) & (by_id > 0)).sum()
            told = (begins.sum() == distinct) & (distinct <= most) & (S > 0)
            return lengths.astype(jnp.int32), jnp.pad(starts, (0, 1), constant_values=-1).astype(jnp.int32), told

        lengths, starts, told = jax.vmap(row)(ids)
        return cls(lengths, starts, told.all())


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_segments: jax.Array | None = None,
    kv_segments: jax.Array | None = None,
    *,
    causal: bool,
    q_offset: int | jax.Array = 0,
) -> jax.Array:
    """`oracle.attention`; padding, id 0, sees nothing.

    Args:
        q: [B, S, N, H], bfloat16 or float16. k, v: [B, L, K, H] in q's dtype.
        q_segments, kv_segments: int32 [B, S], both or neither. Rows of more than `SEGMENTS` segments, or with one in
            two places, which show themselves when the program runs, are computed by `chunked_attention`.
        causal: whether query i sees only the kv positions j <= i.
        q_offset: 0; elsewhere a row's queries are not all here.

    Raises:
        ValueError: a shape, dtype or device that is not supported, naming what is.
    """
    if reason := unsupported(q, k, q_segments, causal, q_offset):
        raise ValueError(f"attention by cuDNN: {reason}")
    if q_segments is None or kv_segments is None:
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn")
    segments = Segments.of(q_segments, SEGMENTS)

    def otherwise(q, k, v):
        return chunked_attention.attention(q, k, v, q_segments, kv_segments, causal=causal)

    def packed(q, k, v):
        return _packed(q, k, v, q_segments, segments, causal)

    return jax.lax.cond(segments.told, packed, otherwise, q, k, v)


def _packed(q, k, v, ids, segments: Segments, causal: bool):
    # jax.nn has no parameter for segments that lie one behind the other; what it calls has.
    from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

    # It writes neither results nor gradients of padding.
    filled = (ids > 0)[:, :, None, None]
    q, k, v = (jnp.where(filled, x, 0) for x in (q, k, v))
    # It counts the places of keys in heads of queries, so there have to be as many.
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    out = dot_product_attention(
        q,
        k,
        v,
        q_seqlen=segments.lengths,
        kv_seqlen=segments.lengths,
        q_offsets=segments.starts,
        kv_offsets=segments.starts,
        scale=q.shape[-1] ** -0.5,
        mask_type=MaskType.CAUSAL if causal else MaskType.NO_MASK,
    )
    return jnp.where(filled, out, 0)


def unsupported(q, k, q_segments, causal: bool, q_offset: int | jax.Array = 0) -> str | None:
    """Why `attention` refuses the operands, naming the nearest that it takes; None if it does not."""
    (S, N, H), (L, K) = q.shape[1:], k.shape[1:3]
    if q.dtype not in (jnp.bfloat16, jnp.float16) or k.dtype != q.dtype:
        return f"q is {q.dtype} and k {k.dtype}; give q, k and v as bfloat16 or as float16"
    if N % K:
        return f"{N} query heads are not a multiple of {K} kv heads"
    if H % 8 or H > 128:
        return f"head size {H} is not supported; the nearest that is: {min(128, max(8, round(H / 8) * 8))}"
    whole = S == L and isinstance(q_offset, int) and q_offset == 0
    if not whole and (causal or q_segments is not None):
        return f"{S} queries of rows of {L}; causal or packed rows have to be whole"
    if q_segments is not None and _capability() < HOPPER:
        return f"packed rows need a GPU of compute capability {HOPPER} (Hopper) or later"
    return None


def _capability() -> float:
    return float(getattr(jax.local_devices()[0], "compute_capability", 0))
