"""The attention block: projections, optional qk-norm, optional rope, and the kernel seam."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from ivl3_jax.kernels.attention import attention
from ivl3_jax.kernels.decoding import AnyCache, Places, extend, new_cache
from ivl3_jax.layers.linear import Linear
from ivl3_jax.layers.norm import RMSNorm
from ivl3_jax.layers.parameter import normal
from ivl3_jax.layers.rope import Rope, apply_rope
from ivl3_jax.sharding.context import GATHER, Context
from ivl3_jax.sharding.local import in_use, shard_count
from ivl3_jax.sharding.plan import Rules


class Attention(nnx.Module):
    """Multi-head attention, grouped-query where kv_heads < heads.

    `axes` are the logical names of the two leading dimensions: ("batch", "sequence") in the decoder,
    ("tiles", "positions") in the ViT; `out_axes` those of the output. `context` says what is done where the second is
    sharded.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        axes: tuple[str, str],
        out_axes: tuple[str, str],
        causal: bool,
        qkv_bias: bool,
        out_bias: bool,
        qk_norm_eps: float | None,
        std: float,
        rules: Rules,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
        context: Context = GATHER,
    ) -> None:
        self.axes, self.out_axes, self.causal, self.rules = axes, out_axes, causal, rules
        self.context, self.kv_heads, self.head_dim = context, kv_heads, head_dim
        self.kv_axis = "heads" if kv_heads == heads else "kv_heads"
        shared = {"init": normal(std), "rules": rules, "rngs": rngs, "dtype": dtype}
        self.q = Linear({"embed": width}, {"heads": heads, "head_dim": head_dim}, bias=qkv_bias, name="q", **shared)
        self.k = Linear(
            {"embed": width}, {self.kv_axis: kv_heads, "head_dim": head_dim}, bias=qkv_bias, name="k", **shared
        )
        self.v = Linear(
            {"embed": width}, {self.kv_axis: kv_heads, "head_dim": head_dim}, bias=qkv_bias, name="v", **shared
        )
        self.out = Linear({"heads": heads, "head_dim": head_dim}, {"embed": width}, bias=out_bias, name="out", **shared)
        if qk_norm_eps is not None:
            all_heads = {"heads": heads, "head_dim": head_dim}
            self.q_norm = RMSNorm(all_heads, qk_norm_eps, rules=rules, rngs=rngs, dtype=dtype)
            self.k_norm = RMSNorm(all_heads, qk_norm_eps, rules=rules, rngs=rngs, dtype=dtype)

    def project(self, x: jax.Array, rope: Rope | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x [B, S, D] to q [B, S, N, H], k and v [B, S, K, H], rotated where `rope` is given."""
        q, k, v = self.q(x, *self.axes), self.k(x, *self.axes), self.v(x, *self.axes)
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        return q, k, v

    def __call__(self, x: jax.Array, rope: Rope | None = None, segment_ids: jax.Array | None = None) -> jax.Array:
        """x [B, S, D] attends within itself; segment_ids: int32 [B, S], S whole."""
        q, k, v = self.project(x, rope)
        layout = self.rules.activation(*self.axes, "heads", "head_dim")
        kv_layout = self.rules.activation(*self.axes, self.kv_axis, "head_dim")
        y = attention(
            q,
            k,
            v,
            segment_ids=segment_ids,
            causal=self.causal,
            layout=layout,
            kv_layout=kv_layout,
            context=self.context,
        )
        return self.out(y, *self.out_axes)

    def extend(self, x: jax.Array, rope: Rope | None, cache: AnyCache, places: Places) -> tuple[jax.Array, AnyCache]:
        """New positions of rows that lie in a cache.

        Args:
            x: [B, S, D]. rope: tables of the new positions.
            cache: of this layer, see `new_cache`.
            places: where they go, behind what is there.

        Returns:
            [B, S, D] and the cache with the new positions.
        """
        q, k, v = self.project(x, rope)
        layout = self.rules.activation(*self.axes, "heads", "head_dim")
        if copies := self.cached_heads // k.shape[2] - 1:
            k, v = (jnp.repeat(y, copies + 1, axis=2) for y in (k, v))
        y, cache = extend(cache, q, k, v, places, layout)
        return self.out(y, *self.out_axes), cache

    def new_cache(self, kind: str, pages: int, page: int, dtype: jnp.dtype) -> AnyCache:
        """An empty cache: pages of so many positions; see `kernels.decoding.new_cache`."""
        heads = self.rules.activation("heads")[0]
        return new_cache(kind, pages, page, self.cached_heads, self.head_dim, dtype, heads)

    @property
    def cached_heads(self) -> int:
        """The kv heads in a cache: where query heads alone are sharded, each shard has those that it reads."""
        K, heads = self.kv_heads, self.rules.activation("heads")
        shards = shard_count(heads[0]) if in_use(self.rules.activation(self.kv_axis))[0] is None else 1
        return K * shards // math.gcd(K, shards)
