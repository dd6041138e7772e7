"""From ViT features to visual tokens: pixel unshuffle and a two-layer MLP."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from ivl3_jax.config import InternVLConfig
from ivl3_jax.layers.linear import Linear
from ivl3_jax.layers.norm import LayerNorm
from ivl3_jax.layers.parameter import normal
from ivl3_jax.layers.taps import scope, tap
from ivl3_jax.sharding.plan import Rules


def pixel_unshuffle(x: jax.Array, factor: int, layout: PartitionSpec) -> jax.Array:
    """Merges factor × factor neighbouring patches: [T, P, D] to [T, P / factor², factor² · D], laid out by `layout`.

    The order of the merged patches is row-major within the square, InternVL's `ps_version` v2.
    """
    T, P, D = x.shape
    side = round(P**0.5) // factor
    by_tile = PartitionSpec(layout[0], *(None,) * 5)
    x = x.reshape(T, side, factor, side, factor, D, out_sharding=by_tile).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(T, side * side, factor * factor * D, out_sharding=layout)


class Projector(nnx.Module):
    """LayerNorm, up, exact GELU, down; both projections end at the decoder's width."""

    def __init__(self, config: InternVLConfig, *, rules: Rules, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        self.rules, self.factor = rules, config.projector.downsample
        merged, width = {"unshuffled": self.factor**2 * config.vision.width}, config.decoder.width
        init = normal(config.decoder.initializer_range)
        shared = {"rules": rules, "rngs": rngs, "dtype": dtype}
        self.norm = LayerNorm(merged, config.projector.norm_eps, **shared)
        self.up = Linear(merged, {"mlp": width}, bias=True, init=init, **shared)
        self.down = Linear({"mlp": width}, {"embed": width}, bias=True, init=init, **shared)

    def __call__(self, features: jax.Array) -> jax.Array:
        """ViT features [T, P + 1, Dv], CLS first, to visual tokens [T, P / factor², D]."""
        layout = self.rules.activation("tiles", "visual", "unshuffled")
        return self.from_unshuffled(pixel_unshuffle(features[:, 1:], self.factor, layout))

    def from_unshuffled(self, x: jax.Array) -> jax.Array:
        """Unshuffled features [T, P / factor², factor² · Dv] to visual tokens [T, P / factor², D]."""
        with scope("projector"):
            x = tap("norm", self.norm(tap("unshuffle", x)))
            x = tap("up", self.up(x, "tiles", "visual"))
            return tap("down", self.down(jax.nn.gelu(x, approximate=False), "tiles", "visual"))
