"""Attention of a sequence that lies on several devices: keys and values travel round them (Liu et al. 2023).

At each of as many steps as there are shards, every shard attends to the keys and values that have come to it and merges
the result with those before by their log-sum-exps; what comes next is on its way meanwhile. The backward pass is
FlashAttention-2's (Dao 2023) with the final log-sum-exp at every step: keys and values go round once more, and one step
behind them the gradients that they have gathered so far.

In zigzag order a shard holds an early and a late half of its keys, and of 2 x 2 pairs of halves exactly two are seen at
each step but the first, both wholly: the late queries see the early keys, and either the early queries see them too, or
the late queries see the late keys as well. They are worked on side by side, as if they were rows of a batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from ivl3_jax.kernels.oracle import NOTHING_SEEN
from ivl3_jax.sharding.remat import ATTENTION

Partial = tuple[jax.Array, jax.Array]  # out [B, S, N, H] and its log-sum-exp [B, N, S], of some of the keys


class Parts(NamedTuple):
    """An implementation's `partial_attention` and `partial_gradients`, see `oracle`."""

    attention: Callable
    gradients: Callable


class Ring(NamedTuple):
    """`shards` devices along the mesh axis or axes `axis`; `choose` picks the implementation for operands q, k, ids."""

    axis: str | tuple[str, ...]
    shards: int
    causal: bool
    zigzag: bool
    choose: Callable[..., Parts]

    def send(self, x: jax.Array) -> jax.Array:
        """To the next shard, from the one before."""
        return lax.ppermute(x, self.axis, [(shard, (shard + 1) % self.shards) for shard in range(self.shards)])

    def meeting(self, step: int | jax.Array, length: int) -> "_Meeting":
        """What is worked on at a step, when the keys of the shard `step` before this one are here; 0 is static."""
        if isinstance(step, int) and step == 0:
            return _Whole(self.causal, 0)
        here = lax.axis_index(self.axis)
        keys = (here - step) % self.shards
        return _Halves(keys < here) if self.zigzag else _Whole(self.causal, (here - keys) * length)

    def ids(self, every: jax.Array | None, step: int | jax.Array, length: int) -> jax.Array | None:
        """Of ids [B, S] in the order of the shards, those of the shard `step` before this one, [B, length]."""
        if every is None:
            return None
        shard = (lax.axis_index(self.axis) - step) % self.shards
        return lax.dynamic_slice_in_dim(every, shard * length, length, axis=1)


class _Meeting(Protocol):
    """Which queries meet which keys. `axis` is that of positions."""

    @property
    def mask(self) -> dict:
        """`causal` and `q_offset` of what is worked on."""

    def queries(self, x: jax.Array, axis: int = 1) -> jax.Array:
        """What is worked on, of something that each query of the shard has."""

    def keys(self, x: jax.Array, axis: int = 1) -> jax.Array:
        """What is worked on, of something that each key of the shard has."""

    def results(self, out: jax.Array, lse: jax.Array) -> list[Partial]:
        """Of what was worked on, as results of all queries of the shard, to be merged."""

    def of_queries(self, x: jax.Array) -> jax.Array:
        """Sums of what was worked on, for all queries of the shard."""

    def of_keys(self, x: jax.Array) -> jax.Array:
        """Sums of what was worked on, for all keys of the shard."""


@dataclass(frozen=True)
class _Whole:
    """All queries with all keys; with causality, `offset` says how far the first query stands behind the first key."""

    causal: bool
    offset: int | jax.Array

    @property
    def mask(self) -> dict:
        return {"causal": self.causal, "q_offset": self.offset}

    def queries(self, x: jax.Array, axis: int = 1) -> jax.Array:
        return x

    keys = queries

    def results(self, out: jax.Array, lse: jax.Array) -> list[Partial]:
        return [(out, lse)]

    def of_queries(self, x: jax.Array) -> jax.Array:
        return x

    of_keys = of_queries


@dataclass(frozen=True)
class _Halves:
    """The late queries with the early keys; beside them the early ones of both if `earlier`, else the late ones."""

    earlier: jax.Array

    @property
    def mask(self) -> dict:
        return {"causal": False, "q_offset": 0}

    def queries(self, x: jax.Array, axis: int = 1) -> jax.Array:
        early, late = jnp.split(x, 2, axis)
        return jnp.concatenate([late, jnp.where(self.earlier, early, late)])

    def keys(self, x: jax.Array, axis: int = 1) -> jax.Array:
        early, late = jnp.split(x, 2, axis)
        return jnp.concatenate([early, jnp.where(self.earlier, early, late)])

    def results(self, out: jax.Array, lse: jax.Array) -> list[Partial]:
        (first, second), (first_lse, second_lse) = jnp.split(out, 2), jnp.split(lse, 2)
        nothing, unseen = jnp.zeros_like(first), jnp.full_like(first_lse, NOTHING_SEEN)
        second = jnp.concatenate(self._either(second, nothing), axis=1)
        second_lse = jnp.concatenate(self._either(second_lse, unseen), axis=2)
        of_first = jnp.concatenate([nothing, first], axis=1), jnp.concatenate([unseen, first_lse], axis=2)
        return [of_first, (second, second_lse)]

    def of_queries(self, x: jax.Array) -> jax.Array:
        first, second = jnp.split(x, 2)
        early, late = self._either(second, jnp.zeros_like(second))
        return jnp.concatenate([early, first + late], axis=1)

    def of_keys(self, x: jax.Array) -> jax.Array:
        first, second = jnp.split(x, 2)
        early, late = self._either(second, jnp.zeros_like(second))
        return jnp.concatenate([first + early, late], axis=1)

    def _either(self, x: jax.Array, nothing: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of the second pair of halves, what is of early positions and what is of late ones."""
        return jnp.where(self.earlier, x, nothing), jnp.where(self.earlier, nothing, x)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def ring_attention(ring: Ring, q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array | None) -> jax.Array:
    """Softmax attention of a row within itself, on each of the shards that hold it, inside jax.shard_map.

    Args:
        ring: the shards. q: [B, S, N, H] of this shard. k, v: [B, S, K, H] of this shard, in q's dtype.
        ids: int32 [B, shards * S], the segments of the whole row in the order in which the shards hold it, or None.

    Returns:
        [B, S, N, H] in q's dtype; merged in at least float32. No more than two shards of keys and values are held.
    """
    return _forward(ring, q, k, v, ids)[0].astype(q.dtype)


def _forward(ring: Ring, q, k, v, ids) -> Partial:
    S = q.shape[1]
    q_ids = ring.ids(ids, 0, S)

    def results(step, here, under_way=None) -> tuple[jax.Array | None, list[Partial]]:
        meeting = ring.meeting(step, S)
        operands, segments = _operands(meeting, q, here, q_ids, ring.ids(ids, step, S))
        found = ring.choose(*operands[:2], segments[0]).attention(*operands, *segments, **meeting.mask)
        under_way, found = _meanwhile(under_way, found)
        return under_way, meeting.results(*found)

    def middle(step, carry):
        here, found = carry
        following, more = results(step, here, ring.send(here))
        return following, _merged([found, *more])

    here = jnp.stack((k, v))
    following, found = results(0, here, ring.send(here))
    last, whole = lax.fori_loop(1, ring.shards - 1, middle, (following, _merged(found)))
    return _merged([whole, *results(ring.shards - 1, last)[1]])


def _meanwhile(under_way, found):
    """Both arguments, so that what is sent has come before what was `found` is put to use.

    XLA's scheduler would else let the sums that follow a kernel hide what is sent, and send it after the kernel.
    """
    return lax.optimization_barrier((under_way, found))


def _operands(meeting: _Meeting, q, kv, q_ids, kv_ids):
    k, v = kv
    segments = (None, None) if q_ids is None else (meeting.queries(q_ids), meeting.keys(kv_ids))
    return (meeting.queries(q), meeting.keys(k), meeting.keys(v)), segments


def _merged(found: Sequence[Partial]) -> Partial:
    if len(found) == 1:
        return found[0]
    top = jnp.stack([lse for _, lse in found]).max(0)
    weights = [jnp.exp(lse - top) for _, lse in found]
    total = sum(weights)
    out = sum(out * (weight / total).swapaxes(1, 2)[..., None] for (out, _), weight in zip(found, weights, strict=True))
    return out, top + jnp.log(total)


def _forward_saving(ring: Ring, q, k, v, ids):
    out, lse = _forward(ring, q, k, v, ids)
    out, lse = (checkpoint_name(x, ATTENTION) for x in (out.astype(q.dtype), lse))
    return out, (q, k, v, ids, out, lse)


def _backward(ring: Ring, saved, d_out):
    q, k, v, ids, out, lse = saved
    S = q.shape[1]
    q_ids = ring.ids(ids, 0, S)

    def shares(step, here, under_way=None):
        meeting = ring.meeting(step, S)
        operands, segments = _operands(meeting, q, here, q_ids, ring.ids(ids, step, S))
        merged = meeting.queries(out), meeting.queries(lse, axis=2), meeting.queries(d_out)
        run = ring.choose(*operands[:2], segments[0]).gradients
        under_way, (d_q, d_k, d_v) = _meanwhile(under_way, run(*operands, *segments, *merged, **meeting.mask))
        return under_way, meeting.of_queries(d_q), jnp.stack((meeting.of_keys(d_k), meeting.of_keys(d_v)))

    def middle(step, carry):
        # `gathered` by these keys on their way, up to the step before the last; `d_kv` at that one, here.
        here, gathered, d_q, d_kv = carry
        under_way, share, d_kv = shares(step, here, (ring.send(here), ring.send(gathered + d_kv)))
        return *under_way, d_q + share, d_kv

    here = jnp.stack((k, v))
    following, d_q, d_kv = shares(0, here, ring.send(here))
    start = following, jnp.zeros_like(d_kv), d_q, d_kv
    last, gathered, d_q, d_kv = lax.fori_loop(1, ring.shards - 1, middle, start)
    gathered, share, d_kv = shares(ring.shards - 1, last, ring.send(gathered + d_kv))
    d_q, (d_k, d_v) = d_q + share, ring.send(gathered + d_kv)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None


ring_attention.defvjp(_forward_saving, _backward)
