"""InternViT: both published styles by configuration."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec, reshard

from ivl3_jax.config import IMAGE_MEAN, IMAGE_STD, VisionConfig
from ivl3_jax.layers import stack
from ivl3_jax.layers.attention import Attention
from ivl3_jax.layers.drop_path import drop_path, drop_path_rates
from ivl3_jax.layers.linear import Linear
from ivl3_jax.layers.mlp import GeluMLP
from ivl3_jax.layers.norm import NORMS
from ivl3_jax.layers.parameter import accumulation_dtype, constant, normal, parameter
from ivl3_jax.layers.taps import scope, tap
from ivl3_jax.sharding.plan import Rules
from ivl3_jax.sharding.remat import POLICIES, Remat

AXES = ("tiles", "positions")


def normalise(tiles: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """uint8 pixels [..., 3] to (pixel / 255 - mean) / std, computed in at least float32, returned in `dtype`."""
    accumulate = accumulation_dtype(dtype)
    mean, std = np.asarray(IMAGE_MEAN, accumulate), np.asarray(IMAGE_STD, accumulate)
    return ((tiles.astype(accumulate) / 255 - mean) / std).astype(dtype)


class Block(nnx.Module):
    """x + ls1 · attention(norm1(x)), then x + ls2 · mlp(norm2(x))."""

    def __init__(self, config: VisionConfig, *, rules: Rules, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        self.rules = rules
        norm, width = NORMS[config.norm], {"embed": config.width}
        shared = {"rules": rules, "rngs": rngs, "dtype": dtype}
        self.norm1 = norm(width, config.norm_eps, **shared)
        self.attention = Attention(
            config.width,
            config.heads,
            config.heads,
            config.head_dim,
            axes=AXES,
            out_axes=AXES,
            causal=False,
            qkv_bias=config.qkv_bias,
            out_bias=True,
            qk_norm_eps=QK_NORM_EPS if config.qk_norm else None,
            std=config.initializer_range,
            **shared,
        )
        self.ls1 = parameter(rngs, constant(config.layer_scale), (config.width,), ("embed",), dtype)
        self.norm2 = norm(width, config.norm_eps, **shared)
        self.mlp = GeluMLP(config.width, config.mlp, std=config.initializer_range, **shared)
        self.ls2 = parameter(rngs, constant(config.layer_scale), (config.width,), ("embed",), dtype)

    def __call__(self, x: jax.Array, rate: jax.Array, draws: jax.Array | None) -> jax.Array:
        """x [T, P+1, D]; `draws` [2, T] switch drop-path on at `rate`, see `drop_path`."""
        y = self.attention(tap("norm1", self.norm1(x)))
        x = x + self.branch(tap("attention", y), self.ls1, rate, None if draws is None else draws[0])
        y = self.mlp(tap("norm2", self.norm2(x)), AXES)
        x = x + self.branch(tap("mlp", y), self.ls2, rate, None if draws is None else draws[1])
        return tap("out", x)

    def branch(self, y: jax.Array, scale: nnx.Param, rate: jax.Array, draws: jax.Array | None) -> jax.Array:
        """A residual branch, scaled and, with draws, dropped for whole tiles."""
        # Contracted in the backward pass, where a product that is summed is a scalar loop on the CPU.
        y = jnp.einsum("tpd,d->tpd", y, reshard(scale[...].astype(y.dtype), self.rules.activation("embed")))
        return y if draws is None else drop_path(y, rate, draws, self.rules.activation(*AXES, "embed"))


# The reference leaves the epsilon of its qk-norm at its class default, whatever the config says of the other norms.
QK_NORM_EPS = 1e-6


class InternViT(nnx.Module):
    """Patch embedding, CLS, learned positions, and blocks without a final norm."""

    def __init__(
        self, config: VisionConfig, *, rules: Rules, remat: Remat = POLICIES["none"], rngs: nnx.Rngs, dtype: jnp.dtype
    ) -> None:
        self.config, self.rules, self.remat = config, rules, remat
        std, width = config.initializer_range, config.width
        self.patch = Linear(
            {"patch": 3 * config.patch_size**2},
            {"embed": width},
            bias=True,
            init=normal(std),
            rules=rules,
            rngs=rngs,
            dtype=dtype,
        )
        self.cls = parameter(rngs, normal(std), (width,), ("embed",), dtype)
        self.positions = parameter(rngs, normal(std), (config.positions, width), ("positions", "embed"), dtype)
        self.layers = stack.stack(lambda rngs: Block(config, rules=rules, rngs=rngs, dtype=dtype), config.layers, rngs)

    def __call__(self, tiles: jax.Array, dtype: jnp.dtype, *, select_layer: int = -1, keys: jax.Array | None = None):
        """Features of every position.

        Args:
            tiles: uint8 [T, size, size, 3]. dtype: of the computation.
            select_layer: which hidden state to return: -1 the last block's output, 0 the embeddings.
            keys: [T], one for each tile; switch drop-path on.

        Returns:
            [T, P + 1, D], CLS first.
        """
        config = self.config
        with scope("vision"):
            x = tap("embed", self.embed(normalise(tiles, dtype)))
            count = select_layer % (config.layers + 1)
            layers, rates = self.layers, drop_path_rates(config.layers, config.drop_path)
            if count < config.layers:
                layers = jax.tree.map(lambda p: p[:count], layers)
                rates = rates[:count]
            draws = None
            if keys is not None and config.drop_path > 0:
                of_tile = jax.vmap(lambda key: jax.random.uniform(key, (config.layers, 2)))(keys)
                draws = of_tile.transpose(1, 2, 0)[:count]
            each = (jnp.asarray(rates), draws)
            with scope("layers"):
                return stack.run(layers, x, lambda layer, x, each: layer(x, *each), remat=self.remat, each=each)

    def embed(self, pixels: jax.Array) -> jax.Array:
        """Normalised pixels [T, size, size, 3] to [T, P + 1, D]: a convolution of stride `patch_size` as a product."""
        T, grid, size = pixels.shape[0], self.config.grid, self.config.patch_size
        layout = self.rules.activation(*AXES, "embed")
        by_tile = PartitionSpec(layout[0], *(None,) * 5)
        x = pixels.reshape(T, grid, size, grid, size, 3, out_sharding=by_tile).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(T, grid * grid, size * size * 3, out_sharding=PartitionSpec(layout[0], None, None))
        x = self.patch(x, *AXES)
        cls = reshard(self.cls[...].astype(x.dtype), self.rules.activation("embed"))
        cls = jax.lax.broadcast_in_dim(cls, (T, 1, x.shape[-1]), (2,), out_sharding=layout)
        positions = reshard(self.positions[...].astype(x.dtype), self.rules.activation("positions", "embed"))
        return jnp.concatenate([cls, x], axis=1) + positions
