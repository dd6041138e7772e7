"""Cross-entropy straight from hidden states, in plain JAX: a chunk of logits at a time, never [T, V].

The log-sum-exp is taken online over chunks of the vocabulary, and the backward pass recomputes the logits from it
(the cut cross-entropy of Wijmans et al. 2024). Tokens of weight 0, in fine-tuning most of them, are sorted to the end
and their chunks are left out at run time.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

MASKED = -1e30  # finite, so that masked logits never meet in inf - inf
COLUMNS = 8192  # at most so many columns of the vocabulary in a chunk
LOGITS = 1 << 21  # at most so many logits in a chunk; beside a large vocabulary that is 256 tokens

Axis = str | tuple[str, ...] | None


def cross_entropy(
    x: jax.Array, w: jax.Array, labels: jax.Array, weights: jax.Array, *, vocab: int, axis: Axis = None
) -> jax.Array:
    """weights * (logsumexp(logits) - logits[label]) for logits = x w; differentiable in x, w and weights.

    Args:
        x: [T, D]. w: [D, V]; the columns from `vocab` on are padding and count as -inf.
        labels: int32 [T] in 0..vocab-1; anything where the weight is 0. Elsewhere a label out of range gives NaN.
        weights: float32 [T]. A token of weight 0 takes no part: its loss and all its gradients are 0.
        vocab: how many columns there are, over all shards.
        axis: mesh axes over which the columns are sharded, inside `jax.shard_map(..., check_vma=False)` that is itself
            differentiated: w is then the local [D, V_local], column c stands for axis_index * V_local + c, and x,
            labels and weights are the same along these axes.

    Returns:
        float32 [T] (float64 if x is), in nats.
    """
    x, w, labels, weights = (jnp.asarray(operand) for operand in (x, w, labels, weights))
    known = (labels >= 0) & (labels < vocab)
    nll = _nll(vocab, axis, x, w, labels, weights != 0)
    return weights * jnp.where(known | (weights == 0), nll, jnp.nan)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _nll(vocab, axis, x, w, labels, active):
    return _forward(vocab, axis, x, w, labels, active)[0]


def _even(length: int, limit: int) -> tuple[int, int]:
    """How many chunks of at most `limit` cover `length`, and their size when they are as equal as can be."""
    chunks = max(1, -(-length // limit))
    return chunks, -(-length // chunks)


def _token_chunks(active: jax.Array, columns: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The tokens in chunks to go with chunks of so many columns, those that take part first.

    Returns:
        int32 [chunks, size], which token stands where (T, one past the last, in the remainder of the last chunk); int32
        [T], where each token stands in that; int32 scalar, how many chunks have a token that takes part.
    """
    chunks, size = _even(active.shape[0], max(1, LOGITS // columns))
    order = jnp.argsort(~active, stable=True).astype(jnp.int32)
    places = jnp.pad(order, (0, chunks * size - order.shape[0]), constant_values=order.shape[0])
    used = (active.sum(dtype=jnp.int32) + size - 1) // size
    return places.reshape(chunks, size), jnp.argsort(order).astype(jnp.int32), used


def _columns(j, w, vocab, axis):
    """Chunk j of w's columns, its start in w, and which of its columns count.

    The last chunk is moved left to end with w; what it shares with the one before does not count a second time.
    """
    _, size = _even(w.shape[1], COLUMNS)
    start = jnp.minimum(j * size, w.shape[1] - size)
    column = start + jnp.arange(size)
    counts = (column >= j * size) & (column < vocab - _first_column(w, axis))
    return lax.dynamic_slice_in_dim(w, start, size, axis=1), start, counts


def _first_column(w: jax.Array, axis: Axis):
    return 0 if axis is None else lax.axis_index(axis) * w.shape[1]


def _forward(vocab, axis, x, w, labels, active):
    wide = jnp.promote_types(x.dtype, jnp.float32)
    chunks, size = _even(w.shape[1], COLUMNS)
    places, place_of, used = _token_chunks(active, size)
    local_labels = labels - _first_column(w, axis)

    def token_chunk(i, stats):
        here = places[i]
        x_i, label = x.at[here].get(mode="clip").astype(wide), local_labels.at[here].get(mode="clip")

        def column_chunk(j, carry):
            top, total, label_logit = carry
            w_j, start, counts = _columns(j, w, vocab, axis)
            logits = jnp.where(counts, x_i @ w_j.astype(wide), MASKED)
            new_top = jnp.maximum(top, logits.max(-1))
            total = total * jnp.exp(top - new_top) + jnp.exp(logits - new_top[:, None]).sum(-1)
            is_label = start + jnp.arange(size) == label[:, None]
            return new_top, total, label_logit + jnp.where(is_label & counts, logits, 0).sum(-1)

        zero = jnp.zeros(here.shape, wide)
        new = lax.fori_loop(0, chunks, column_chunk, (zero + MASKED, zero, zero))
        return tuple(stat.at[i].set(n) for stat, n in zip(stats, new, strict=True))

    zero = jnp.zeros(places.shape, wide)
    top, total, label_logit = lax.fori_loop(0, used, token_chunk, (zero + MASKED, zero + 1, zero))
    if axis is not None:
        local_top, top = top, lax.pmax(top, axis)
        total, label_logit = lax.psum((total * jnp.exp(local_top - top), label_logit), axis)
    lse = top + jnp.log(total)
    nll = jnp.where(active, (lse - label_logit).reshape(-1)[place_of], 0)
    return nll, (x, w, labels, active, lse)


def _backward(vocab, axis, saved, d_nll):
    x, w, labels, active, lse = saved
    wide = jnp.promote_types(x.dtype, jnp.float32)
    if axis is not None:
        # Each shard gets its share of the cotangent of a result that is the same on all of them (shard_map's rule
        # without check_vma); the sum is what psum's own transpose would give.
        d_nll = lax.psum(d_nll, axis)
    d_nll = jnp.where(active, d_nll, 0)
    chunks, size = _even(w.shape[1], COLUMNS)
    places, place_of, used = _token_chunks(active, size)
    local_labels = labels - _first_column(w, axis)

    def token_chunk(i, carry):
        d_x, d_w = carry
        here = places[i]
        x_i, label = x.at[here].get(mode="clip").astype(wide), local_labels.at[here].get(mode="clip")
        d_i = d_nll.at[here].get(mode="fill", fill_value=0)

        def column_chunk(j, carry):
            d_x_i, d_w = carry
            w_j, start, counts = _columns(j, w, vocab, axis)
            w_j = w_j.astype(wide)
            p = jnp.exp(x_i @ w_j - lse[i][:, None])
            is_label = start + jnp.arange(size) == label[:, None]
            d_logits = jnp.where(counts, (p - is_label) * d_i[:, None], 0)
            d_w_j = lax.dynamic_slice_in_dim(d_w, start, size, axis=1) + x_i.T @ d_logits
            return d_x_i + d_logits @ w_j.T, lax.dynamic_update_slice_in_dim(d_w, d_w_j, start, axis=1)

        d_x_i, d_w = lax.fori_loop(0, chunks, column_chunk, (jnp.zeros(x_i.shape, wide), d_w))
        return d_x.at[i].set(d_x_i), d_w

    zeros = jnp.zeros((*places.shape, x.shape[1]), wide), jnp.zeros(w.shape, wide)
    d_x, d_w = lax.fori_loop(0, used, token_chunk, zeros)
    d_x = d_x.reshape(-1, x.shape[1])[place_of]
    return d_x.astype(x.dtype), d_w.astype(w.dtype), None, None


_nll.defvjp(_forward, _backward)
