"""The decoder, Qwen2.5's or InternLM's."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec, reshard

from ivl3_jax.config import DecoderConfig
from ivl3_jax.kernels.decoding import AnyCache, Places
from ivl3_jax.layers import pipeline, stack
from ivl3_jax.layers.attention import Attention
from ivl3_jax.layers.linear import Linear, contract
from ivl3_jax.layers.mlp import SwiGLU
from ivl3_jax.layers.norm import RMSNorm
from ivl3_jax.layers.parameter import Initializer, accumulation_dtype, normal, padded, parameter
from ivl3_jax.layers.rope import Rope, dynamic_inverse_frequencies, inverse_frequencies, rope_table
from ivl3_jax.layers.taps import scope, tap
from ivl3_jax.sharding.context import Context
from ivl3_jax.sharding.local import APART, in_use, mesh_axes, on_shards
from ivl3_jax.sharding.pipeline import Schedule
from ivl3_jax.sharding.plan import Rules
from ivl3_jax.sharding.remat import POLICIES, Remat

INSIDE = ("batch", "sequence")  # inside a block
STREAM = ("batch", "residual")  # between blocks


class Embedding(nnx.Module):
    """The table of token embeddings, [V, D]."""

    def __init__(
        self, rows: int, width: int, *, init: Initializer, rules: Rules, rngs: nnx.Rngs, dtype: jnp.dtype
    ) -> None:
        self.rules = rules
        self.table = parameter(rngs, init, (rows, width), ("vocab", "embed"), dtype)

    def __call__(self, tokens: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """tokens int32 [B, S] to [B, S, D]."""
        layout, stored = self.rules.activation(*STREAM, "embed"), jax.typeof(self.table[...]).sharding.spec
        (vocab,) = in_use(self.rules.activation("vocab"))
        (width,) = in_use(PartitionSpec(None if mesh_axes(stored[1]) & mesh_axes(vocab, layout[2]) else stored[1]))
        # Positions that are parted over the same axes as the vocabulary are looked up whole, and parted in the sum.
        shared = bool(mesh_axes(layout[1]) & mesh_axes(vocab))
        positions = PartitionSpec(layout[0], None if shared else layout[1])

        def local(table: jax.Array, tokens: jax.Array) -> jax.Array:
            # Gathered within, so that the sum of the gradient over devices is a scattered one.
            table = table if width is None else jax.lax.all_gather(table, width, axis=1, tiled=True)
            if vocab is None:
                return table[tokens].astype(dtype)
            place = tokens - jax.lax.axis_index(vocab) * len(table)
            mine = (place >= 0) & (place < len(table))
            rows = jnp.where(mine[..., None], table[jnp.where(mine, place, 0)], 0).astype(dtype)
            return jax.lax.psum(rows, vocab)

        out = PartitionSpec(*positions, layout[2])
        found = on_shards(local, in_specs=(PartitionSpec(vocab, width or layout[2]), positions), out_specs=out)
        return reshard(found(self.table[...], tokens), layout)


class Block(nnx.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(
        self, config: DecoderConfig, *, rules: Rules, context: Context, rngs: nnx.Rngs, dtype: jnp.dtype
    ) -> None:
        self.rules = rules
        std, width = config.initializer_range, {"embed": config.width}
        shared = {"rules": rules, "rngs": rngs, "dtype": dtype}
        self.norm1 = RMSNorm(width, config.norm_eps, **shared)
        self.attention = Attention(
            config.width,
            config.heads,
            config.kv_heads,
            config.head_dim,
            axes=INSIDE,
            out_axes=STREAM,
            causal=True,
            qkv_bias=config.qkv_bias,
            out_bias=config.out_bias,
            qk_norm_eps=None,
            std=std,
            context=context,
            **shared,
        )
        self.norm2 = RMSNorm(width, config.norm_eps, **shared)
        self.mlp = SwiGLU(config.width, config.mlp, bias=config.mlp_bias, std=std, **shared)

    def __call__(self, x: jax.Array, rope: Rope, segment_ids: jax.Array | None) -> jax.Array:
        """x [B, S, D]."""
        y = self.attention(self.inside(tap("norm1", self.norm1(x))), rope, segment_ids)
        return self.feed_forward(x + tap("attention", y))

    def extend(self, x: jax.Array, rope: Rope, cache: AnyCache, places: Places) -> tuple[jax.Array, AnyCache]:
        """New positions x [B, S, D] of rows that lie in the cache, see `Attention.extend`."""
        y, cache = self.attention.extend(self.norm1(x), rope, cache, places)
        return self.feed_forward(x + y), cache

    def feed_forward(self, x: jax.Array) -> jax.Array:
        y = self.mlp(self.inside(tap("norm2", self.norm2(x))), INSIDE, STREAM)
        return tap("out", x + tap("mlp", y))

    def inside(self, x: jax.Array) -> jax.Array:
        return reshard(x, self.rules.activation(*INSIDE, "embed"))


class Decoder(nnx.Module):
    """Embedding, causal blocks, final norm, output projection."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        vocab_rows: int,
        rules: Rules,
        remat: Remat = POLICIES["none"],
        schedule: Schedule | None = None,
        context: Context,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
    ) -> None:
        """`vocab_rows` is the stored vocabulary, `config.vocab` or more: the sharding plan pads it.

        With a `schedule` the layers are a pipeline.
        """
        self.config, self.rules, self.remat, self.schedule = config, rules, remat, schedule
        self.inner = inner = rules.without(*APART) if schedule else rules  # where a layer runs
        shared = {"rules": rules, "rngs": rngs, "dtype": dtype}
        init = normal(config.initializer_range)
        self.embed = Embedding(vocab_rows, config.width, init=padded(init, 0, config.vocab), **shared)
        self.layers = stack.stack(
            lambda rngs: Block(config, rules=inner, context=context, rngs=rngs, dtype=dtype), config.layers, rngs
        )
        self.norm = RMSNorm({"embed": config.width}, config.norm_eps, **shared)
        if not config.tie_embeddings:
            init = padded(init, 1, config.vocab)
            self.head = Linear({"embed": config.width}, {"vocab": vocab_rows}, bias=False, init=init, **shared)

    def __call__(self, x: jax.Array, positions: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
        """Embeddings x [B, S, D] to final hidden states [B, S, D], after the norm.

        positions: float32 [B, S]. segment_ids: int32 [B, S] or None for one segment. Both with S whole, whatever x's.
        """
        with scope("decoder"):
            tap("embed", x)
            with scope("layers"):
                if self.schedule:
                    x = pipeline.run(self.apply, self.layers, x, (positions, segment_ids), self.schedule)
                else:
                    x = self.apply(self.layers, x, (positions, segment_ids))
            return tap("norm", self.norm(x))

    def apply(self, layers: nnx.Module, x: jax.Array, rows: tuple[jax.Array, jax.Array | None]) -> jax.Array:
        """x [B, S, D] after some layers in a stack; rows: its positions and segments [B, S]."""
        positions, segment_ids = rows
        rope = self.rope(positions, self.ends(positions, segment_ids), x.dtype)
        return stack.run(layers, x, lambda layer, x, _: layer(x, rope, segment_ids), remat=self.remat)

    def extend(
        self, x: jax.Array, positions: jax.Array, ends: jax.Array, cache: list[AnyCache], places: Places
    ) -> tuple[jax.Array, list[AnyCache]]:
        """New positions of rows that lie in a cache, through layers that were taken apart.

        Args:
            x: [B, S, D]. positions: float32 [B, S].
            ends: float32 [B], the last position plus one of each row, of what is known of it now.
            cache: of each layer. places: where the new positions go.

        Returns:
            Hidden states [B, S, D] before the final norm, and the cache.
        """
        room = places.room(cache[0].page)
        rope = self.rope(positions, ends if self.config.stretches(room) else None, x.dtype)
        extended = []
        for layer, filled in zip(self.layers, cache, strict=True):
            x, filled = layer.extend(x, rope, filled, places)
            extended.append(filled)
        return x, extended

    def new_cache(self, kind: str, pages: int, page: int, dtype: jnp.dtype) -> list[AnyCache]:
        """That of each layer, see `Attention.new_cache`."""
        return [layer.attention.new_cache(kind, pages, page, dtype) for layer in self.layers]

    def ends(self, positions: jax.Array, segment_ids: jax.Array | None) -> jax.Array | None:
        """What `rope` wants of whole rows [B, S], padding left out."""
        if not self.config.stretches(positions.shape[1]):
            return None
        return (positions if segment_ids is None else jnp.where(segment_ids > 0, positions, 0)).max(axis=1) + 1

    def rope(self, positions: jax.Array, ends: jax.Array | None, dtype: jnp.dtype) -> Rope:
        """Rotation tables of positions [B, S].

        ends: [B], the last position plus one of each row, on which the frequencies of rows longer than the trained
        length depend; None for plain ones.
        """
        config, accumulate = self.config, accumulation_dtype(dtype)
        layout, shape = self.inner.activation(*INSIDE), (config.head_dim, config.rope_theta)
        if ends is None:
            return rope_table(reshard(positions, layout), inverse_frequencies(*shape, accumulate), dtype)
        frequencies = dynamic_inverse_frequencies(
            ends, *shape, config.rope_scaling.factor, config.max_positions, accumulate
        )
        return rope_table(reshard(positions, layout), frequencies, dtype)

    def output_kernel(self, dtype: jnp.dtype) -> jax.Array:
        """[D, V], the transposed embedding table where it is tied, laid out as it is stored."""
        return self.embed.table[...].T.astype(dtype) if self.config.tie_embeddings else self.head.weight(dtype)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Final hidden states [B, S, D] to [B, S, vocab] in their dtype, without the plan's padding."""
        hidden = reshard(hidden, self.rules.activation(*INSIDE, "embed"))
        if self.config.tie_embeddings:
            table, in_use = self.embed.table[...].astype(hidden.dtype), self.rules.activation("vocab", "embed")
            logits = contract(hidden, table, in_use, self.rules.activation(*INSIDE, "vocab"), outputs_first=True)
        else:
            logits = self.head(hidden, *INSIDE)
        if logits.shape[-1] == self.config.vocab:
            return logits
        return reshard(logits, self.rules.activation(*INSIDE, None))[..., : self.config.vocab]
