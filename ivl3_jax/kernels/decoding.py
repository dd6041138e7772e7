"""The KV cache and attention of a few new queries against it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Cache(NamedTuple):
    """Keys [B·K, H, C] and values [B·K, C, H] of one layer, with room for C positions.

    Rows and kv heads are one dimension and keys are transposed, so that both products read the cache as it lies; with
    the two dimensions apart XLA copies the whole cache once a step on the CPU.
    """

    keys: jax.Array
    values: jax.Array


def new_cache(k: jax.Array, v: jax.Array, capacity: int) -> Cache:
    """A cache that begins with k and v [B, S, K, H], S at most `capacity`."""
    B, S, K, H = k.shape
    whole, more = (0, 0), (0, capacity - S)
    keys = jnp.pad(k.transpose(0, 2, 3, 1).reshape(B * K, H, S), (whole, whole, more))
    values = jnp.pad(v.transpose(0, 2, 1, 3).reshape(B * K, S, H), (whole, more, whole))
    return Cache(keys, values)


def append(cache: Cache, k: jax.Array, v: jax.Array, lengths: jax.Array) -> Cache:
    """Writes k and v [B, S, K, H] of each row behind its `lengths` filled positions, int32 [B]; donate the cache.

    There must be room for S more in every row: a write beyond the capacity would move to its end.
    """
    K = k.shape[2]
    k, v = k.transpose(0, 2, 3, 1).astype(cache.keys.dtype), v.transpose(0, 2, 1, 3).astype(cache.values.dtype)

    def write(row: jax.Array, cache: Cache) -> Cache:
        first, filled = row * K, lengths[row].astype(row.dtype)
        keys = lax.dynamic_update_slice(cache.keys, k[row], (first, 0, filled))
        values = lax.dynamic_update_slice(cache.values, v[row], (first, filled, 0))
        return Cache(keys, values)

    return lax.fori_loop(0, k.shape[0], write, cache)


def decode_attention(q: jax.Array, cache: Cache, lengths: jax.Array) -> jax.Array:
    """A few new queries of each row against its cache; the last query stands at position lengths - 1.

    Args:
        q: [B, S, N, H], the positions lengths - S .. lengths - 1.
        cache: what lies at or past `lengths` is not looked at.
        lengths: int32 [B].

    Returns:
        [B, S, N, H] in q's dtype. Softmax and products accumulate in at least float32.
    """
    B, S, N, H = q.shape
    K, C = cache.keys.shape[0] // B, cache.keys.shape[2]
    accumulate = jnp.promote_types(q.dtype, jnp.float32)
    keys, values = (x.astype(q.dtype) for x in cache)
    # All queries of one kv head are rows of one product, [B·K, S·G, H] with G = N / K.
    grouped = q.reshape(B, S, K, N // K, H).swapaxes(1, 2).reshape(B * K, -1, H)
    scores = jnp.einsum("ngh,nhc->ngc", grouped, keys, preferred_element_type=accumulate) * H**-0.5
    place = jnp.repeat(lengths[:, None] - S + jnp.arange(S), N // K, axis=1)  # [B, S·G]
    seen = jnp.repeat(jnp.arange(C) <= place[:, :, None], K, axis=0)
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1).astype(q.dtype)
    y = jnp.einsum("ngc,nch->ngh", weights, values, preferred_element_type=accumulate)
    return y.reshape(B, K, S, N // K, H).swapaxes(1, 2).reshape(B, S, N, H).astype(q.dtype)
