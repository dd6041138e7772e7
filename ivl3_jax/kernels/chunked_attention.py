"""Attention in memory linear in the sequence, in plain JAX, laid out for the CPU.

The algorithm is FlashAttention-2 (Dao 2023): an online softmax over chunks of kv positions for each chunk of queries,
and a backward pass that recomputes the probabilities from the saved log-sum-exp. On the CPU a loop over (row, kv head)
with plain two-dimensional products is several times faster than one batched product over all of them, so the pairs
(row, kv head), called units here, are walked through one by one, or in groups where their scores are small.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from ivl3_jax.kernels.oracle import NOTHING_SEEN
from ivl3_jax.sharding.remat import ATTENTION

MASKED = NOTHING_SEEN  # finite, so that masked scores never meet in inf - inf
CHUNK = 1536  # positions at most in a chunk of a bidirectional sequence: a whole ViT tile, where a cut saves nothing
CAUSAL_CHUNK = 256  # small chunks stay in the cache and leave out more of the triangle that is not seen
GROUP_BYTES = 1 << 22  # scores held at once when several units share one step


class _Tiling(NamedTuple):
    """How B rows of S queries and L keys are cut: `units` at once, chunks of `q` queries and `kv` keys."""

    rows: int
    kv_heads: int
    group: int
    queries: int
    keys: int
    units: int
    q: int
    kv: int

    @classmethod
    def of(cls, q_shape: tuple[int, ...], kv_shape: tuple[int, ...], causal: bool) -> "_Tiling":
        (B, S, N, _), (L, K) = q_shape, kv_shape[1:3]
        G = N // K
        limit = CAUSAL_CHUNK if causal else CHUNK
        q, kv = (math.ceil(n / math.ceil(n / limit)) for n in (S, L))
        fitting = max(1, GROUP_BYTES // (G * q * kv * 4)) if (q, kv) == (S, L) else 1
        units = max(n for n in range(1, min(fitting, B * K) + 1) if B * K % n == 0)
        return cls(B, K, G, S, L, units, q, kv)

    @property
    def q_chunks(self) -> int:
        return -(-self.queries // self.q)

    @property
    def kv_chunks(self) -> int:
        return -(-self.keys // self.kv)

    def split_q(self, x: jax.Array) -> jax.Array:
        """[B, S, N, H] -> [steps, q_chunks, units, G * q, H]: the queries of one kv head are rows of one product."""
        x = _pad(x, self.q_chunks * self.q)
        x = x.reshape(self.rows, self.q_chunks, self.q, self.kv_heads, self.group, -1).transpose(0, 3, 1, 4, 2, 5)
        x = x.reshape(-1, self.units, self.q_chunks, self.group * self.q, x.shape[-1])
        return x.swapaxes(1, 2)

    def join_q(self, x: jax.Array) -> jax.Array:
        """The inverse of `split_q`."""
        H = x.shape[-1]
        x = x.swapaxes(1, 2).reshape(self.rows, self.kv_heads, self.q_chunks, self.group, self.q, H)
        x = x.transpose(0, 2, 4, 1, 3, 5).reshape(self.rows, -1, self.kv_heads * self.group, H)
        return x[:, : self.queries]

    def split_kv(self, x: jax.Array) -> jax.Array:
        """[B, L, K, H] -> [steps, kv_chunks, units, kv, H]."""
        x = _pad(x, self.kv_chunks * self.kv).swapaxes(1, 2)
        return x.reshape(-1, self.units, self.kv_chunks, self.kv, x.shape[-1]).swapaxes(1, 2)

    def join_kv(self, x: jax.Array) -> jax.Array:
        """The inverse of `split_kv`."""
        x = x.swapaxes(1, 2).reshape(self.rows, self.kv_heads, self.kv_chunks * self.kv, x.shape[-1])
        return x.swapaxes(1, 2)[:, : self.keys]

    def split_ids(self, ids: jax.Array | None, length: int) -> jax.Array | None:
        """int32 [B, positions] -> uint32 [steps, chunks, units, length], padding (id 0) turned into the largest id.

        Padding stands last in a row: with the largest id a chunk that mixes it with the last segment spans a narrow
        range of ids, which is what the test for empty chunks looks at.
        """
        if ids is None:
            return None
        chunks = -(-ids.shape[1] // length)
        ids = (ids - 1).astype(jnp.uint32)
        ids = jnp.pad(ids, ((0, 0), (0, chunks * length - ids.shape[1])), mode="edge")
        ids = jnp.repeat(ids, self.kv_heads, axis=0).reshape(-1, self.units, chunks, length)
        return ids.swapaxes(1, 2)


def _pad(x: jax.Array, length: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)))


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
    """`oracle.attention` without ever holding S x L scores; kv chunks that no query of a chunk sees are skipped.

    Args:
        q: [B, S, N, H]; query head n reads kv head n // (N // K).
        k, v: [B, L, K, H].
        q_segments, kv_segments: int32 [B, S] and [B, L], both or neither, in any order; only equal ids see one
            another. Skipping is exact where ids rise along a row, with 0 (padding) at its end.
        causal: whether query i sees only the kv positions j <= q_offset + i.
        q_offset: the kv position at which query 0 stands.

    Returns:
        [B, S, N, H] in q's dtype, accumulated in at least float32; zeros for a query that sees nothing.

    Raises:
        ValueError: if heads are not a multiple of kv heads, or only one side has segments.
    """
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"attention: {q.shape[2]} query heads are not a multiple of {k.shape[2]} kv heads")
    if (q_segments is None) != (kv_segments is None):
        raise ValueError("attention: give both q_segments and kv_segments, or neither")
    if q.size == 0 or k.size == 0:
        return jnp.zeros_like(q)
    return _attention(causal, q, k, v, q_segments, kv_segments, jnp.asarray(q_offset, jnp.int32))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(causal, q, k, v, q_segments, kv_segments, q_offset):
    return _forward(causal, q, k, v, q_segments, kv_segments, q_offset)[0].astype(q.dtype)


def partial_attention(q, k, v, q_segments, kv_segments, *, causal, q_offset):
    """`oracle.partial_attention`."""
    out, lse = _forward(causal, q, k, v, q_segments, kv_segments, q_offset)
    lse = _Tiling.of(q.shape, k.shape, causal).join_q(lse[..., None])
    return out, lse[..., 0].swapaxes(1, 2)


def partial_gradients(q, k, v, q_segments, kv_segments, out, lse, d_out, *, causal, q_offset):
    """`oracle.partial_gradients`."""
    lse = _Tiling.of(q.shape, k.shape, causal).split_q(lse.swapaxes(1, 2)[..., None])[..., 0]
    return _gradients(causal, q, k, v, q_segments, kv_segments, q_offset, out, lse, d_out)


def _chunk_order(tiling: _Tiling, causal: bool, q_ids, kv_ids, q_offset) -> tuple[jax.Array, jax.Array]:
    """For each step and q chunk, the kv chunks that it may see, those first, and how many they are.

    Returns:
        int32 [steps, q_chunks, kv_chunks] and int32 [steps, q_chunks].
    """
    steps = tiling.rows * tiling.kv_heads // tiling.units
    seen = jnp.ones((steps, tiling.q_chunks, tiling.kv_chunks), bool)
    if causal:
        last_query = q_offset + (jnp.arange(tiling.q_chunks) + 1) * tiling.q - 1
        seen &= jnp.arange(tiling.kv_chunks) * tiling.kv <= last_query[:, None]
    if q_ids is not None:
        lowest_q, highest_q = q_ids.min(-1)[:, :, None], q_ids.max(-1)[:, :, None]
        lowest_kv, highest_kv = kv_ids.min(-1)[:, None], kv_ids.max(-1)[:, None]
        seen &= ((lowest_q <= highest_kv) & (lowest_kv <= highest_q)).any(-1)
    return jnp.argsort(~seen, axis=-1, stable=True).astype(jnp.int32), seen.sum(-1, dtype=jnp.int32)


def _seen(tiling: _Tiling, causal: bool, i, j, q_ids, kv_ids, q_offset) -> jax.Array | None:
    """bool [units or 1, q, kv], which keys of kv chunk j the queries of q chunk i see; None for all of them."""
    seen = None
    key = j * tiling.kv + jnp.arange(tiling.kv)
    if tiling.kv_chunks * tiling.kv != tiling.keys:
        seen = jnp.broadcast_to(key < tiling.keys, (1, tiling.q, tiling.kv))
    if causal:
        query = q_offset + i * tiling.q + jnp.arange(tiling.q)
        seen = _both(seen, (key <= query[:, None])[None])
    if q_ids is not None:
        seen = _both(seen, q_ids[:, :, None] == kv_ids[:, None, :])
    return seen


def _both(a: jax.Array | None, b: jax.Array) -> jax.Array:
    return b if a is None else a & b


def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """A product over the unit axis `u`; a single unit is a two-dimensional product."""
    if a.shape[0] > 1:
        return jnp.einsum(equation, a, b)
    return jnp.einsum(equation.replace("u", ""), a[0], b[0])[None]


def _at(x: Any, index) -> Any:
    return None if x is None else lax.dynamic_index_in_dim(x, index, keepdims=False)


def _forward(causal, q, k, v, q_segments, kv_segments, q_offset):
    tiling = _Tiling.of(q.shape, k.shape, causal)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scale = q.shape[-1] ** -0.5
    q_ids, kv_ids = tiling.split_ids(q_segments, tiling.q), tiling.split_ids(kv_segments, tiling.kv)
    order, counts = _chunk_order(tiling, causal, q_ids, kv_ids, q_offset)

    def step(operands):
        q, k, v, q_ids, kv_ids, order, counts = operands

        def q_chunk(operands):
            i, q, q_ids, order, count = operands
            q = q.astype(wide) * scale

            def kv_chunk(n, carry):
                top, total, out = carry
                j = order[n]
                scores = _product("uqh,ukh->uqk", q, _at(k, j).astype(wide))
                seen = _seen(tiling, causal, i, j, q_ids, _at(kv_ids, j), q_offset)
                if seen is not None:
                    by_head = scores.reshape(-1, tiling.group, tiling.q, tiling.kv)
                    scores = jnp.where(seen[:, None], by_head, MASKED).reshape(scores.shape)
                new_top = jnp.maximum(top, scores.max(-1))
                p = jnp.exp(scores - new_top[..., None])
                shrink = jnp.exp(top - new_top)
                out = out * shrink[..., None] + _product("uqk,ukh->uqh", p, _at(v, j).astype(wide))
                return new_top, total * shrink + p.sum(-1), out

            start = jnp.full(q.shape[:-1], MASKED, wide), jnp.zeros(q.shape[:-1], wide), jnp.zeros(q.shape, wide)
            top, total, out = lax.fori_loop(0, count, kv_chunk, start)
            some = top > MASKED / 2
            out = out * jnp.where(some, 1 / total, 0)[..., None]
            return out, jnp.where(some, top + jnp.log(total), NOTHING_SEEN)

        return lax.map(q_chunk, (jnp.arange(tiling.q_chunks), q, q_ids, order, counts))

    split = tiling.split_q(q), tiling.split_kv(k), tiling.split_kv(v)
    out, lse = lax.map(step, (*split, q_ids, kv_ids, order, counts))
    return tiling.join_q(out), lse


def _forward_saving(causal, q, k, v, q_segments, kv_segments, q_offset):
    out, lse = _forward(causal, q, k, v, q_segments, kv_segments, q_offset)
    out, lse = (checkpoint_name(x, ATTENTION) for x in (out.astype(q.dtype), lse))
    return out, (q, k, v, q_segments, kv_segments, q_offset, out, lse)


def _backward(causal, saved, d_out):
    q, k, v, q_segments, kv_segments, q_offset, out, lse = saved
    d_q, d_k, d_v = _gradients(causal, q, k, v, q_segments, kv_segments, q_offset, out, lse, d_out)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None, None, None


def _gradients(causal, q, k, v, q_segments, kv_segments, q_offset, out, lse, d_out):
    tiling = _Tiling.of(q.shape, k.shape, causal)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scale = q.shape[-1] ** -0.5
    q_ids, kv_ids = tiling.split_ids(q_segments, tiling.q), tiling.split_ids(kv_segments, tiling.kv)
    order, counts = _chunk_order(tiling, causal, q_ids, kv_ids, q_offset)
    # For a query that sees nothing 0 stands in: its recomputed probabilities are then exp(MASKED), exactly 0.
    lse = jnp.where(lse > NOTHING_SEEN / 2, lse, 0)

    def step(operands):
        q, k, v, q_ids, kv_ids, order, counts, lse, out, d_out = operands

        def q_chunk(d_kv, operands):
            i, q, q_ids, order, count, lse, out, d_out = operands
            q, d_out = q.astype(wide) * scale, d_out.astype(wide)
            inner = (d_out * out.astype(wide)).sum(-1)  # sum of p * dp over the keys (FlashAttention, appendix B.4)

            def kv_chunk(n, carry):
                # Scores lie as [kv, q] here: two of the three products that contract them then need no transposition,
                # and the third is formed as d_q transposed.
                d_q, d_k, d_v = carry
                j = order[n]
                k_j, v_j = _at(k, j).astype(wide), _at(v, j).astype(wide)
                scores = _product("ukh,uqh->ukq", k_j, q)
                seen = _seen(tiling, causal, i, j, q_ids, _at(kv_ids, j), q_offset)
                if seen is not None:
                    by_head = scores.reshape(-1, tiling.kv, tiling.group, tiling.q)
                    scores = jnp.where(seen.swapaxes(1, 2)[:, :, None], by_head, MASKED).reshape(scores.shape)
                p = jnp.exp(scores - lse[:, None])
                d_v = d_v.at[j].add(_product("ukq,uqh->ukh", p, d_out))
                d_scores = p * (_product("ukh,uqh->ukq", v_j, d_out) - inner[:, None])
                d_k = d_k.at[j].add(_product("ukq,uqh->ukh", d_scores, q))
                return d_q + _product("ukh,ukq->uhq", k_j, d_scores), d_k, d_v

            d_q, *d_kv = lax.fori_loop(0, count, kv_chunk, (jnp.zeros_like(q.swapaxes(1, 2)), *d_kv))
            return d_kv, d_q.swapaxes(1, 2) * scale

        zeros = [jnp.zeros(k.shape, wide), jnp.zeros(v.shape, wide)]
        d_kv, d_q = lax.scan(q_chunk, zeros, (jnp.arange(tiling.q_chunks), q, q_ids, order, counts, lse, out, d_out))
        return d_q, *d_kv

    split = tiling.split_q(q), tiling.split_kv(k), tiling.split_kv(v), q_ids, kv_ids, order, counts
    d_q, d_k, d_v = lax.map(step, (*split, lse, tiling.split_q(out), tiling.split_q(d_out)))
    return tiling.join_q(d_q), tiling.join_kv(d_k), tiling.join_kv(d_v)


_attention.defvjp(_forward_saving, _backward)
