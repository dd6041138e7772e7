"""Attention of a few new positions of each row to a paged cache, for CPUs: XLA's own operations, few of them."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

EACH, MOST = 4, 32  # pages that are looked at together: of each row, and of all
WIDTH = 128  # numbers of a position that one product takes


def paged_attention(q: jax.Array, cache: Sequence[jax.Array], table: jax.Array, lengths: jax.Array) -> jax.Array:
    """`oracle.paged_attention` of queries whose positions are in the cache already.

    The pages of all rows are one list, of which some are looked at together: no page behind a row's end is read,
    however their lengths differ, and there are few operations, of which each costs a CPU some microseconds. What pages
    give of a row is put together by a running softmax (Milakov and Gimelshein 2018, arXiv 1805.02867); no row's numbers
    touch another's.

    Args:
        q: [B, S, N, H], the queries at positions lengths .. lengths + S - 1 of each row.
        cache: keys and values [pages, page, K·H], and where they are int8 the scales of both, [pages, page, K].
        table: int32 [B, M], the pages of each row. lengths: int32 [B].

    Returns:
        [B, S, N, H] in q's dtype; softmax and products in at least float32.
    """
    B, S, N, H = q.shape
    page, K = cache[0].shape[1], cache[0].shape[2] // H
    accumulate = jnp.promote_types(q.dtype, jnp.float32)
    lowest = jnp.finfo(accumulate).min
    # Narrow heads share a product, whose queries are zero where the keys are another head's: n products for n·g heads.
    g = math.gcd(K, max(1, WIDTH // H))
    n, R = K // g, S * (N // K)  # R queries of each kv head
    heads = q.reshape(B, S, n, g, N // K, H).transpose(0, 2, 3, 1, 4, 5).reshape(B, n, g, R, 1, H)
    own = jnp.eye(g, dtype=accumulate)[:, None, :, None]
    queries = (heads.astype(accumulate) * H**-0.5 * own).reshape(B, n, g * R, g * H)
    last = jnp.tile(jnp.repeat(lengths[:, None] + jnp.arange(S), N // K, axis=1), (1, g))  # [B, g·R], seen by each

    counts = (lengths + S - 1) // page + 1
    ends = jnp.cumsum(counts)
    together = min(EACH * B, MOST)

    def look(step: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        most, total, sums = carry
        item = step * together + jnp.arange(together)
        row = jnp.minimum((item[:, None] >= ends).sum(1), B - 1)
        turn = item - (ends - counts)[row]
        pages = table[row, jnp.minimum(turn, counts[row] - 1)]  # behind the list's end the last one again, unseen
        keys, values, *scales = (x[pages].astype(accumulate) for x in cache)
        if scales:
            pairs = zip((keys, values), scales, strict=True)
            keys, values = ((x.reshape(*scale.shape, H) * scale[..., None]).reshape(x.shape) for x, scale in pairs)
        place = (turn * page)[:, None] + jnp.arange(page)
        # What others left behind the row's end has no weight, but no weight times NaN is NaN.
        values = jnp.where(place[..., None] < (lengths + S)[row, None, None], values, 0)
        keys, values = (x.reshape(together, page, n, g * H) for x in (keys, values))
        seen = place[:, None] <= last[row][:, :, None]
        scores = jnp.where(seen[:, None], jnp.einsum("inrc,ipnc->inrp", queries[row], keys), -jnp.inf)
        highest = most.at[row].max(scores.max(-1))  # [B, n, g·R]
        weights, kept = jnp.exp(scores - highest[row][..., None]), jnp.exp(most - highest)
        found = jnp.einsum("inrp,ipnc->inrc", weights, values)
        total = (total * kept).at[row].add(weights.sum(-1))
        return highest, total, (sums * kept[..., None]).at[row].add(found)

    shape = B, n, g * R
    begin = jnp.full(shape, lowest, accumulate), jnp.zeros(shape, accumulate), jnp.zeros((*shape, g * H), accumulate)
    _, total, sums = lax.fori_loop(0, -(-ends[-1] // together), look, begin)
    y = jnp.einsum("bngrgh->bngrh", (sums / total[..., None]).reshape(B, n, g, R, g, H))
    return y.reshape(B, n, g, S, N // K, H).transpose(0, 3, 1, 2, 4, 5).reshape(B, S, N, H).astype(q.dtype)
