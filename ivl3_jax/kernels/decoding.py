"""The KV cache and attention of a few new queries against it: how it lies follows from what reads it best."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from ivl3_jax.kernels.chip import chip, interpreted
from ivl3_jax.kernels.family import family
from ivl3_jax.kernels.tpu_decoding_attention import PAGE, paged_attention, supports
from ivl3_jax.sharding.local import on_shards


class PlainCache(NamedTuple):
    """Keys [B·K, H, C] and values [B·K, C, H] of one layer, with room for C positions.

    Rows and kv heads are one dimension and keys are transposed, so that both products read the cache as it lies; with
    the two dimensions apart XLA copies the whole cache once a step on the CPU.
    """

    keys: jax.Array
    values: jax.Array

    @property
    def capacity(self) -> int:
        return self.keys.shape[2]


class PagedCache(NamedTuple):
    """Keys and values [B, C, K·H] of one layer: each row is C / page size pages of the TPU kernel, in order."""

    keys: jax.Array
    values: jax.Array

    @property
    def capacity(self) -> int:
        return self.keys.shape[1]


Cache = PlainCache | PagedCache
IMPLEMENTATIONS = {"plain": PlainCache, "tpu": PagedCache}


def preferred(k: jax.Array, capacity: int) -> str:
    """The name of the implementation for the platform, and k [B, S, K, H] in a cache of so many positions."""
    fits = supports(k.shape[2], k.shape[3], k.dtype) and capacity % PAGE == 0
    return "tpu" if family() == "tpu" and fits else "plain"


def new_cache(k: jax.Array, v: jax.Array, capacity: int, implementation: str | None = None) -> Cache:
    """A cache that begins with k and v [B, S, K, H], S at most `capacity`.

    `implementation` is a name in `IMPLEMENTATIONS`; None takes the one for the platform. Raises ValueError for another,
    or for a capacity below S, or that is no whole number of pages.
    """
    B, S, K, H = k.shape
    whole, more = (0, 0), (0, capacity - S)
    name = implementation or preferred(k, capacity)
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"decoding implementation {name!r} is unknown; there are {', '.join(IMPLEMENTATIONS)}")
    if capacity < S:
        raise ValueError(f"a cache of {capacity} positions has no room for the {S} that it begins with")
    if name == "tpu" and capacity % PAGE:
        nearest = -(-capacity // PAGE) * PAGE
        raise ValueError(f"a paged cache has whole pages of {PAGE}; capacity is {capacity}, the nearest is {nearest}")
    if name == "tpu" and not supports(K, H, k.dtype):
        raise ValueError(f"{K} kv heads of {H} in {k.dtype} cannot lie in a paged cache; take plain")
    if name == "tpu":
        return PagedCache(*(jnp.pad(x.reshape(B, S, K * H), (whole, more, whole)) for x in (k, v)))
    keys = jnp.pad(k.transpose(0, 2, 3, 1).reshape(B * K, H, S), (whole, whole, more))
    values = jnp.pad(v.transpose(0, 2, 1, 3).reshape(B * K, S, H), (whole, more, whole))
    return PlainCache(keys, values)


def append(cache: Cache, k: jax.Array, v: jax.Array, lengths: jax.Array) -> Cache:
    """Writes k and v [B, S, K, H] of each row behind its `lengths` filled positions, int32 [B]; donate the cache.

    There must be room for S more in every row: a write beyond the capacity would move to its end.
    """
    if isinstance(cache, PagedCache):
        return _append_rows(cache, k, v, lengths)
    K = k.shape[2]
    k, v = k.transpose(0, 2, 3, 1).astype(cache.keys.dtype), v.transpose(0, 2, 1, 3).astype(cache.values.dtype)

    def write(row: jax.Array, cache: PlainCache) -> PlainCache:
        first, filled = row * K, lengths[row].astype(row.dtype)
        keys = lax.dynamic_update_slice(cache.keys, k[row], (first, 0, filled))
        values = lax.dynamic_update_slice(cache.values, v[row], (first, filled, 0))
        return PlainCache(keys, values)

    return lax.fori_loop(0, k.shape[0], write, cache)


def _append_rows(cache: PagedCache, k: jax.Array, v: jax.Array, lengths: jax.Array) -> PagedCache:
    def write(row: jax.Array, cache: PagedCache) -> PagedCache:
        place = row, lengths[row].astype(row.dtype), 0
        new = (x[row].reshape(1, x.shape[1], -1).astype(cache.keys.dtype) for x in (k, v))
        return PagedCache(*(lax.dynamic_update_slice(x, n, place) for x, n in zip(cache, new, strict=True)))

    return lax.fori_loop(0, k.shape[0], write, cache)


def decode_attention(q: jax.Array, cache: Cache, lengths: jax.Array) -> jax.Array:
    """A few new queries of each row against its cache; the last query stands at position lengths - 1.

    Args:
        q: [B, S, N, H], the positions lengths - S .. lengths - 1.
        cache: what lies at or past `lengths` is not looked at.
        lengths: int32 [B], at least S.

    Returns:
        [B, S, N, H] in q's dtype. Softmax and products accumulate in at least float32.
    """
    if isinstance(cache, PagedCache):
        return _paged(q, cache, lengths)
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


def _paged(q: jax.Array, cache: PagedCache, lengths: jax.Array) -> jax.Array:
    B, capacity, width = cache.keys.shape
    page = max(size for size in (PAGE, 64, 256) if capacity % size == 0)
    table = jnp.arange(B * capacity // page, dtype=jnp.int32).reshape(B, -1)

    def local(q, keys, values, lengths):
        keys, values = (x.reshape(-1, page, width).astype(q.dtype) for x in (keys, values))
        if chip() is None:
            return interpreted(partial(paged_attention, interpret=True))(q, keys, values, table, lengths)
        return paged_attention(q, keys, values, table, lengths)

    layout = jax.typeof(q).sharding.spec
    whole = PartitionSpec(*[None] * 3)
    run = on_shards(local, in_specs=(layout, whole, whole, PartitionSpec(None)), out_specs=layout)
    return run(q, *cache, lengths)
