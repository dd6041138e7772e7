"""The plain formulas that every implementation of attention and of cross-entropy is tested against.

They materialise everything, S x L scores and [T, V] logits included, and leave gradients to JAX.
"""

import jax
import jax.numpy as jnp

NOTHING_SEEN = -1e30  # the log-sum-exp of no score: finite, so that two of them never meet in inf - inf


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
    """softmax(q k^T / sqrt(H)) v (Vaswani et al. 2017, equation 1), grouped-query, within segments.

    Args:
        q: [B, S, N, H]; query head n reads kv head n // (N // K).
        k, v: [B, L, K, H].
        q_segments, kv_segments: int32 [B, S] and [B, L], both or neither; only equal ids see one another.
        causal: whether query i sees only the kv positions j <= q_offset + i.
        q_offset: the kv position at which query 0 stands.

    Returns:
        [B, S, N, H] in q's dtype, accumulated in at least float32; zeros for a query that sees nothing.
    """
    scores, seen = _scores(q, k, q_segments, kv_segments, causal, q_offset)
    wide = scores.dtype
    # A finite stand-in for -inf keeps the gradient of a query that sees nothing free of NaN.
    weights = jnp.where(seen, jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(wide).min / 2), axis=-1), 0)
    return jnp.einsum("bkgsl,blkh->bskgh", weights, v.astype(wide)).reshape(q.shape).astype(q.dtype)


def _scores(q, k, q_segments, kv_segments, causal: bool, q_offset) -> tuple[jax.Array, jax.Array]:
    """Scores [B, K, N // K, S, L] in at least float32, and which of them count, bool [B, 1, 1, S, L]."""
    (B, S, N, H), (L, K) = q.shape, k.shape[1:3]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    queries = q.reshape(B, S, K, N // K, H).astype(wide)
    scores = jnp.einsum("bskgh,blkh->bkgsl", queries, k.astype(wide)) * H**-0.5
    seen = jnp.ones((B, S, L), bool)
    if causal:
        seen &= jnp.arange(L) <= q_offset + jnp.arange(S)[:, None]
    if q_segments is not None and kv_segments is not None:
        seen &= q_segments[:, :, None] == kv_segments[:, None, :]
    return scores, seen[:, None, None]


def partial_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_segments: jax.Array | None,
    kv_segments: jax.Array | None,
    *,
    causal: bool,
    q_offset: int | jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """`attention` over some of the keys of its queries, and what it takes to merge it with that over others.

    Returns:
        [B, S, N, H] and the log-sum-exp of each query's scores [B, N, S], `NOTHING_SEEN` for a query that sees nothing;
        both in at least float32.
    """
    B, S, N, H = q.shape
    scores, seen = _scores(q, k, q_segments, kv_segments, causal, q_offset)
    top = jnp.where(seen, scores, NOTHING_SEEN).max(-1, keepdims=True)
    weights = jnp.where(seen, jnp.exp(scores - top), 0)
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum("bkgsl,blkh->bskgh", weights / jnp.where(total > 0, total, 1), v.astype(scores.dtype))
    lse = jnp.where(total > 0, top + jnp.log(total), NOTHING_SEEN)
    return out.reshape(B, S, N, H), lse.reshape(B, N, S)


def partial_gradients(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_segments: jax.Array | None,
    kv_segments: jax.Array | None,
    out: jax.Array,
    lse: jax.Array,
    d_out: jax.Array,
    *,
    causal: bool,
    q_offset: int | jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What these keys contribute to the gradients (FlashAttention-2, Dao 2023, algorithm 2).

    Args:
        q, k, v, q_segments, kv_segments, causal, q_offset: as of `partial_attention`.
        out, lse: [B, S, N, H] and [B, N, S], merged over all keys of the queries. d_out: the gradient of `out`.

    Returns:
        Those of q, k and v in at least float32.
    """
    (B, S, N, H), K = q.shape, k.shape[2]
    scores, seen = _scores(q, k, q_segments, kv_segments, causal, q_offset)
    wide = scores.dtype
    q, out, d_out = (x.reshape(B, S, K, N // K, H).astype(wide) for x in (q, out, d_out))
    weights = jnp.where(seen, jnp.exp(scores - lse.reshape(B, K, N // K, S, 1)), 0)
    d_weights = jnp.einsum("bskgh,blkh->bkgsl", d_out, v.astype(wide))
    d_scores = weights * (d_weights - jnp.einsum("bskgh,bskgh->bkgs", out, d_out)[..., None]) * H**-0.5
    d_q = jnp.einsum("bkgsl,blkh->bskgh", d_scores, k.astype(wide)).reshape(B, S, N, H)
    return d_q, jnp.einsum("bkgsl,bskgh->blkh", d_scores, q), jnp.einsum("bkgsl,bskgh->blkh", weights, d_out)


def paged_attention(
    q: jax.Array, keys: jax.Array, values: jax.Array, table: jax.Array, lengths: jax.Array
) -> jax.Array:
    """Causal attention of the last positions of rows that lie in pages.

    Args:
        q: [B, S, N, H], the positions lengths - S .. lengths - 1 of each row.
        keys, values: [pages, page_size, K·H], the heads of a position side by side.
        table: int32 [B, M], the page of positions m · page_size and on of each row. lengths: int32 [B].

    Returns:
        [B, S, N, H] in q's dtype; zeros for a query whose position is below 0.
    """
    B, S, _, H = q.shape
    filled = jnp.arange(table.shape[1] * keys.shape[1]) < lengths[:, None]
    k, v = (
        jnp.where(filled[..., None], pages[table].reshape(*filled.shape, -1), 0).reshape(*filled.shape, -1, H)
        for pages in (keys, values)
    )
    one_row = jax.vmap(lambda q, k, v, offset: attention(q[None], k[None], v[None], causal=True, q_offset=offset)[0])
    return one_row(q, k, v, lengths - S)


def cross_entropy(x: jax.Array, w: jax.Array, labels: jax.Array, weights: jax.Array, *, vocab: int) -> jax.Array:
    """weights * (logsumexp(logits) - logits[label]) for logits = x w.

    Args:
        x: [T, D]. w: [D, V]; the columns from `vocab` on are padding and count as -inf.
        labels: int32 [T] in 0..vocab-1; anything where the weight is 0. Elsewhere a label out of range gives NaN.
        weights: float32 [T]. A token of weight 0 takes no part: its loss and all its gradients are 0.

    Returns:
        float32 [T] (float64 if x is), in nats.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    logits = x.astype(wide) @ w[:, :vocab].astype(wide)
    known = (labels >= 0) & (labels < vocab)
    label_logits = jnp.take_along_axis(logits, jnp.where(known, labels, 0)[:, None], axis=1)[:, 0]
    nll = jax.nn.logsumexp(logits, axis=1) - label_logits
    return weights * jnp.where(weights == 0, 0, jnp.where(known, nll, jnp.nan))
