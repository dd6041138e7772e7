"""Attention of a sequence that lies on several devices, by one collective before it and one after, in jax.shard_map."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from ivl3_jax.sharding.context import inverse, reordered, zigzag

Axes = str | tuple[str, ...]
# Attention on one device, of q, k, v, the segments of queries and keys or None, and the queries' offset.
Local = Callable[..., jax.Array]


def gathered(
    attend: Local, axes: Axes, shards: int, in_zigzag: bool, q: jax.Array, k: jax.Array, v: jax.Array, ids
) -> jax.Array:
    """This shard's queries against keys and values that are gathered from all of them.

    Args:
        axes, shards: where the positions lie. in_zigzag: in which order.
        q: [B, S, N, H]. k, v: [B, S, K, H], all of this shard.
        ids: int32 [B, shards * S], the segments of the whole row in the order in which the shards hold it, or None.

    Returns:
        [B, S, N, H] in q's dtype.
    """
    S, shard = q.shape[1], lax.axis_index(axes)
    k, v = (_whole(x, axes, in_zigzag) for x in (k, v))
    mine = None if ids is None else lax.dynamic_slice_in_dim(ids, shard * S, S, axis=1)
    if not in_zigzag:
        return attend(q, k, v, mine, ids, shard * S)
    everyone = None if ids is None else reordered(ids, inverse(zigzag(shards)))
    # Two runs of queries that are not neighbours.
    both = jnp.split(q, 2, axis=1), (None, None) if mine is None else jnp.split(mine, 2, axis=1)
    places = shard, 2 * shards - 1 - shard
    out = [attend(q, k, v, ids, everyone, place * (S // 2)) for q, ids, place in zip(*both, places, strict=True)]
    return jnp.concatenate(out, axis=1)


def _whole(x: jax.Array, axes: Axes, in_zigzag: bool) -> jax.Array:
    """[B, S, ...] of each shard to [B, shards * S, ...] in plain order."""
    # Along a new leading dimension: of gradients that are scattered along any other TPUs make a whole all-reduce.
    every = lax.all_gather(x, axes)
    runs = [every]
    if in_zigzag:  # the late halves lie from the end of the row to its middle
        early, late = jnp.split(every, 2, axis=2)
        runs = [early, late[::-1]]
    return jnp.concatenate([jnp.moveaxis(run, 0, 1).reshape(x.shape[0], -1, *x.shape[2:]) for run in runs], axis=1)


def headwise(attend: Local, axes: Axes, q: jax.Array, k: jax.Array, v: jax.Array, ids) -> jax.Array:
    """Whole rows of a share of the heads: shards of positions become shards of heads, and back again.

    Args:
        axes: where the positions lie, in plain order.
        q: [B, S, N, H]. k, v: [B, S, K, H], all of this shard; N and K divide over the shards.
        ids: int32 [B, shards * S], the segments of the whole row, or None.

    Returns:
        [B, S, N, H] in q's dtype.
    """
    q, k, v = (lax.all_to_all(x, axes, split_axis=2, concat_axis=1, tiled=True) for x in (q, k, v))
    return lax.all_to_all(attend(q, k, v, ids, ids, 0), axes, split_axis=1, concat_axis=2, tiled=True)
