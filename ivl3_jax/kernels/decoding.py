"""The paged KV cache, and attention of new positions of rows that lie in it."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from ivl3_jax.kernels import chunked_attention, cpu_decoding_attention, oracle, tpu_packed_attention
from ivl3_jax.kernels.chip import interpreted
from ivl3_jax.kernels.family import family, interpreting
from ivl3_jax.kernels.tpu_decoding_attention import PAGE, paged_attention, supports
from ivl3_jax.sharding.local import on_shards

FEW = 8  # queries of a row up to which they are decoded with; more of them are a piece of a prompt


class Cache(NamedTuple):
    """Keys and values of one layer, each [pages, page size, K·H]: the heads of a position side by side.

    A row's positions lie in the pages that its table names, in order; a page may be in several rows' tables.
    """

    keys: jax.Array
    values: jax.Array

    @property
    def page(self) -> int:
        """Positions of a page."""
        return self.keys.shape[1]


class Int8Cache(NamedTuple):
    """A cache in a quarter of float32's room: each head of each position with a scale of its own.

    Keys and values int8 [pages, page size, K·H], their scales float32 [pages, page size, K].
    """

    keys: jax.Array
    values: jax.Array
    key_scales: jax.Array
    value_scales: jax.Array

    @property
    def page(self) -> int:
        """Positions of a page."""
        return self.keys.shape[1]


AnyCache = Cache | Int8Cache
CACHES: dict[str, type[Cache] | type[Int8Cache]] = {"plain": Cache, "int8": Int8Cache}


class Places(NamedTuple):
    """Where the new positions of B rows go.

    Attributes:
        table: int32 [B, M], the pages of each row; position p lies in page table[b, p // page], at p % page.
        lengths: int32 [B], positions that are filled before; the new ones follow.
    """

    table: jax.Array
    lengths: jax.Array

    def room(self, page: int) -> int:
        """Positions of the longest row that the table can tell of."""
        return self.table.shape[1] * page


def new_cache(kind: str, pages: int, page: int, K: int, H: int, dtype: jnp.dtype, heads: Any) -> AnyCache:
    """An empty cache for K kv heads of H, which are spread over the mesh axes `heads`; a mesh has to be set.

    kind: a name in `CACHES`. dtype: of keys and values, where it is not the kind that says it.
    """

    def zeros(width: int, dtype: jnp.dtype) -> jax.Array:
        return jnp.zeros((pages, page, width), dtype, out_sharding=PartitionSpec(None, None, heads))

    if CACHES[kind] is Cache:
        return Cache(zeros(K * H, dtype), zeros(K * H, dtype))
    scales = jnp.promote_types(dtype, jnp.float32)
    return Int8Cache(zeros(K * H, jnp.int8), zeros(K * H, jnp.int8), zeros(K, scales), zeros(K, scales))


def in_pages(k: jax.Array, v: jax.Array, page: int) -> tuple[Cache, jax.Array]:
    """Whole rows k and v [B, S, K, H] as a cache, and their table; S is a multiple of `page`."""
    B, S = k.shape[:2]
    cache = Cache(*(x.reshape(B * S // page, page, -1) for x in (k, v)))
    return cache, jnp.arange(B * S // page, dtype=jnp.int32).reshape(B, -1)


def _rows(cache: AnyCache, k: jax.Array, v: jax.Array) -> list[jax.Array]:
    """k and v [B, S, K, H] as the arrays of a cache have them, [B, S, ...]."""
    B, S = k.shape[:2]
    if isinstance(cache, Cache):
        return [x.reshape(B, S, -1).astype(cache.keys.dtype) for x in (k, v)]
    whole, scales = [], []
    for x in (k, v):
        scale = jnp.maximum(jnp.abs(x).max(-1).astype(cache.key_scales.dtype) / 127, jnp.finfo(jnp.float32).tiny)
        whole.append(jnp.round(x / scale[..., None]).astype(jnp.int8).reshape(B, S, -1))
        scales.append(scale)
    return [*whole, *scales]


def _gathered(cache: AnyCache, table: jax.Array, H: int, dtype: jnp.dtype) -> list[jax.Array]:
    """Keys and values [B, L, K, H] of the rows of a table, in order."""
    B = table.shape[0]
    keys, values, *scales = (x[table].reshape(B, table.shape[1] * cache.page, -1) for x in cache)
    parts = [x.reshape(*x.shape[:2], -1, H).astype(dtype) for x in (keys, values)]
    return [x * scale[..., None].astype(dtype) for x, scale in zip(parts, scales, strict=True)] if scales else parts


def write(cache: AnyCache, k: jax.Array, v: jax.Array, places: Places) -> AnyCache:
    """The cache with the new positions k and v [B, S, K, H] of each row; donate it.

    Where S is a multiple of the page size the rows' lengths have to be too.
    """
    B, S = k.shape[:2]
    page = cache.page
    together = page if S % page == 0 else 1  # positions that are written at once
    new = _rows(cache, k, v)

    def one(i: jax.Array, arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        i = i.astype(places.lengths.dtype)
        row, n = i // (S // together), i % (S // together) * together
        place = places.lengths[row] + n
        at = places.table[row, place // page], place % page, jnp.zeros_like(n)
        pieces = (lax.dynamic_slice(x, (row, n, jnp.zeros_like(n)), (1, together, x.shape[2])) for x in new)
        return tuple(lax.dynamic_update_slice(x, piece, at) for x, piece in zip(arrays, pieces, strict=True))

    return type(cache)(*lax.fori_loop(0, B * S // together, one, tuple(cache)))


def attend(q: jax.Array, cache: AnyCache, places: Places) -> jax.Array:
    """`oracle.paged_attention` by what the platform has for it: new positions that are already in the cache.

    Args:
        q: [B, S, N, H], the queries at positions lengths .. lengths + S - 1 of each row.
        cache: what lies past a row's end is not looked at.

    Returns:
        [B, S, N, H] in q's dtype. Softmax and products accumulate in at least float32.
    """
    name = chosen(q, cache)
    if name == "pages":
        return cpu_decoding_attention.paged_attention(q, cache, places.table, places.lengths)
    if name == "plain":
        k, v = _gathered(cache, places.table, q.shape[3], q.dtype)
        return (_decode if q.shape[1] <= FEW else _pieces)(q, k, v, places.lengths)
    pages = cache.keys.astype(q.dtype), cache.values.astype(q.dtype), places.table, places.lengths + q.shape[1]
    if name == "oracle":
        return oracle.paged_attention(q, *pages)
    return paged_attention(q, *pages, interpret=interpreting(None))


def chosen(q: jax.Array, cache: AnyCache) -> str:
    """Who attends: `oracle`, `tpu` and `pages` (read as they lie), or `plain` (pages are put in order first)."""
    K, H = cache.keys.shape[2] // q.shape[3], q.shape[3]
    if family() == "oracle" and isinstance(cache, Cache):
        return "oracle"
    if family() == "chunked" and q.shape[1] <= FEW:
        return "pages"
    if isinstance(cache, Int8Cache):
        return "plain"
    fits = q.shape[1] <= FEW and cache.page % PAGE == 0 and supports(K, H, q.dtype)
    return "tpu" if family() == "tpu" and fits else "plain"


def _decode(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
    """A few queries of each row, q [B, S, N, H], by one product with keys, and one with values [B, L, K, H]."""
    B, S, N, H = q.shape
    L, K = k.shape[1:3]
    accumulate = jnp.promote_types(q.dtype, jnp.float32)
    # All queries of one kv head are rows of one product, [B, K, S·G, H] with G = N / K.
    grouped = q.reshape(B, S, K, N // K, H).swapaxes(1, 2).reshape(B, K, -1, H)
    scores = jnp.einsum("bkgh,blkh->bkgl", grouped, k, preferred_element_type=accumulate) * H**-0.5
    place = jnp.repeat(lengths[:, None] + jnp.arange(S), N // K, axis=1)  # [B, S·G]
    seen = jnp.arange(L) <= place[:, None, :, None]
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1).astype(q.dtype)
    y = jnp.einsum("bkgl,blkh->bkgh", weights, v, preferred_element_type=accumulate)
    return y.reshape(B, K, S, N // K, H).swapaxes(1, 2).reshape(B, S, N, H).astype(q.dtype)


def _pieces(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
    """A piece of a prompt of each row, q [B, S, N, H], against all that is before it, one row after the other."""
    on_tpu = family() == "tpu" and tpu_packed_attention.unsupported(q, k, None, None, lengths[0]) is None
    attention = (
        partial(tpu_packed_attention.attention, interpret=interpreting(None)) if on_tpu else chunked_attention.attention
    )

    def row(operands: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v, offset = operands
        return attention(q[None], k[None], v[None], causal=True, q_offset=offset)[0]

    if q.shape[0] == 1:
        return row((q[0], k[0], v[0], lengths[0]))[None]
    return lax.map(row, (q, k, v, lengths))


def extend(
    cache: AnyCache, q: jax.Array, k: jax.Array, v: jax.Array, places: Places, layout: PartitionSpec
) -> tuple[jax.Array, AnyCache]:
    """Writes new positions and attends with them; a mesh has to be set.

    Args:
        cache: to be donated. q: [B, S, N, H]. k, v: [B, S, K, H].
        layout: of q and the result; k and v have their heads where q has, and so has the cache. Rows and positions are
            on every device.

    Returns:
        [B, S, N, H] in q's dtype, and the cache.
    """
    pages, whole = (PartitionSpec(None, None, layout[2]),) * len(cache), PartitionSpec(None, None)

    def local(q, k, v, table, lengths, *arrays):
        places = Places(table, lengths)
        written = write(type(cache)(*arrays), k, v, places)
        return attend(q, written, places), *written

    operands = layout, layout, layout, whole, PartitionSpec(None), *pages
    run = on_shards(interpreted(local) if interpreting(None) else local, in_specs=operands, out_specs=(layout, *pages))
    y, *arrays = run(q, k, v, *places, *cache)
    return y, type(cache)(*arrays)
