"""InternVL: tiles through the ViT and projector, merged into the decoder's embeddings; the token-level loss."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec, reshard

from ivl3_jax.batch import Batch
from ivl3_jax.config import InternVLConfig
from ivl3_jax.kernels.cross_entropy import cross_entropy
from ivl3_jax.layers.taps import tap
from ivl3_jax.models.decoder import INSIDE, STREAM, Decoder
from ivl3_jax.models.intern_vit import InternViT
from ivl3_jax.models.projector import Projector
from ivl3_jax.sharding.context import GATHER, inverse, reordered
from ivl3_jax.sharding.local import on_shards, shard_count
from ivl3_jax.sharding.plan import ShardingPlan


class InternVL(nnx.Module):
    """Vision, projector and decoder under one sharding plan.

    A pure function of its parameters: split it once with `nnx.split`, then use `jax.jit`, `jax.grad`, optax, orbax.
    """

    def __init__(
        self,
        config: InternVLConfig,
        plan: ShardingPlan,
        *,
        rngs: nnx.Rngs,
        param_dtype: jnp.dtype = jnp.float32,
        dtype: jnp.dtype = jnp.float32,
    ) -> None:
        """`param_dtype` is how parameters are stored, `dtype` that of the computation."""
        plan = plan.for_heads(config.decoder.kv_heads)
        self.config, self.dtype, self.vision_rules, self.rules = config, dtype, plan.vision, plan.decoder
        self.chunks = plan.chunks
        shared = {"rngs": rngs, "dtype": param_dtype}
        self.vision = InternViT(config.vision, rules=plan.vision, remat=plan.remat_of("vision"), **shared)
        self.projector = Projector(config, rules=plan.projector, **shared)
        self.decoder = Decoder(
            config.decoder,
            vocab_rows=plan.padded_vocab(config.decoder.vocab),
            rules=plan.decoder,
            remat=plan.remat_of("decoder"),
            schedule=plan.schedule,
            context=plan.context,
            **shared,
        )

    def serve(self) -> None:
        """Lays the decoder out for generation: every device has all rows and positions, and there is no pipeline.

        Weights stay where the plan stores them, and are gathered for use where they were.
        """
        known, rules = (self.rules, self.decoder.inner), self.rules.whole("batch", "sequence", "residual")
        for _, part in nnx.iter_graph(self):
            if getattr(part, "rules", None) in known:
                part.rules = rules
            if getattr(part, "context", None) is not None:
                part.context = GATHER
        self.decoder.inner, self.decoder.schedule, self.chunks = rules, None, (0,)

    def __call__(self, batch: Batch, *, keys: jax.Array | None = None) -> jax.Array:
        """Logits [B, S, V] of a batch; `keys` [B], one for each row, switch drop-path on."""
        return tap("logits", self.decoder.logits(self.leave(self.hidden(batch, keys=keys))))

    def hidden(self, batch: Batch, *, keys: jax.Array | None = None) -> jax.Array:
        """Final hidden states [B, S, D] of a batch, positions in the order of `enter`."""
        tokens, visual_index, positions, segment_ids = map(
            self.enter, (batch.tokens, batch.visual_index, batch.positions, batch.segment_ids)
        )
        x = self.merge(self.decoder.embed(tokens, self.dtype), self.visual_tokens(batch.tiles, keys=keys), visual_index)
        return self.decoder(x, positions, segment_ids)

    def enter(self, x: jax.Array) -> jax.Array:
        """x [B, S] in the order in which the plan's shards hold a row; every device has whole rows."""
        return reordered(reshard(x, self.rules.activation("batch", None)), self.chunks)

    def leave(self, x: jax.Array) -> jax.Array:
        """The inverse of `enter`, of x [B, S, ...]."""
        if len(self.chunks) == 1:
            return x
        return reordered(reshard(x, self.rules.activation("batch", *(None,) * (x.ndim - 1))), inverse(self.chunks))

    def visual_tokens(self, tiles: jax.Array, *, keys: jax.Array | None = None) -> jax.Array:
        """uint8 tiles [B, T, size, size, 3] to the visual-token table [B, T * tile_tokens, D] of each row.

        The tiles of all rows are spread evenly over the vision layout, blank ones added where they do not divide, and
        come back to the decoder's. The table then has rows for the blank ones too, which no position takes.
        """
        B, T = tiles.shape[:2]
        by_row = self.rules.activation("batch", "visual", "embed")
        if T == 0:
            return jnp.zeros((B, 0, self.config.decoder.width), self.dtype, out_sharding=by_row)
        # Rows stay where they are while the two leading axes become one; only then do tiles move.
        tiles = reshard(tiles, PartitionSpec(by_row[0], None, None, None, None))
        shards = shard_count(self.vision_rules.activation("tiles")[0])
        if blank := -T % (shards // math.gcd(shards, B)):
            tiles = jnp.pad(tiles, ((0, 0), (0, blank), *((0, 0),) * 3))
            T += blank
        tiles = tiles.reshape(B * T, *tiles.shape[2:], out_sharding=PartitionSpec(by_row[0], None, None, None))
        tiles = reshard(tiles, self.vision_rules.activation("tiles", None, None, None))
        if keys is not None:  # a tile's draw depends on its place in its row alone, not on how rows are spread
            keys = jax.vmap(lambda key: jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(T)))(keys).reshape(-1)
        features = self.vision(tiles, self.dtype, select_layer=self.config.select_layer, keys=keys)
        visual = reshard(self.projector(features), PartitionSpec(by_row[0], None, None))
        return visual.reshape(B, T * self.config.tile_tokens, visual.shape[-1], out_sharding=by_row)

    def merge(self, x: jax.Array, visual: jax.Array, visual_index: jax.Array) -> jax.Array:
        """Puts visual tokens [B, R, D] in the places of x [B, S, D] that `visual_index` [B, S] names."""
        if visual.shape[1] == 0:
            return x
        layout = self.rules.activation(*STREAM, "embed")
        index = reshard(visual_index, PartitionSpec(layout[0], layout[1]))
        rows = on_shards(
            lambda visual, index: jnp.take_along_axis(visual, jnp.maximum(index, 0)[..., None], axis=1),
            in_specs=(PartitionSpec(layout[0], None, layout[2]), PartitionSpec(layout[0], layout[1])),
            out_specs=layout,
        )(visual, index)
        return jnp.where((index >= 0)[..., None], rows.astype(x.dtype), x)


def token_losses(model: InternVL, batch: Batch, *, keys: jax.Array | None = None) -> jax.Array:
    """Weighted negative log-likelihood of every position's label, [B, S] in nats, without full logits."""
    hidden = model.hidden(batch, keys=keys)
    layout = model.rules.activation(*INSIDE)
    kernel = model.decoder.output_kernel(hidden.dtype)
    losses = cross_entropy(
        hidden,
        kernel,
        model.enter(batch.labels),
        model.enter(batch.loss_weights),
        vocab=model.config.decoder.vocab,
        layout=layout,
        vocab_axes=model.rules.activation("vocab")[0],
    )
    return model.leave(reshard(losses, model.rules.activation("batch", None)))


def batch_loss(model: InternVL, batch: Batch, *, keys: jax.Array | None = None) -> jax.Array:
    """Next-token loss sum(w · nll) / sum(w) over the global batch, in nats (InternVL2.5, arXiv 2412.05271).

    A batch in which nothing is trained on has loss 0.
    """
    losses = token_losses(model, batch, keys=keys)
    total = batch.loss_weights.astype(losses.dtype).sum()
    return losses.sum() / jnp.where(total > 0, total, 1)
