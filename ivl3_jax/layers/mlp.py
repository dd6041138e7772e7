"""The two feed-forward blocks: GELU in the ViT and projector, SwiGLU in the decoder."""

import jax
import jax.numpy as jnp
from flax import nnx

from ivl3_jax.layers.linear import Linear
from ivl3_jax.layers.parameter import normal
from ivl3_jax.sharding.plan import Rules


class GeluMLP(nnx.Module):
    """down(gelu(up(x))) with biases and the exact (erf) GELU."""

    def __init__(self, width: int, mlp: int, *, std: float, rules: Rules, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        shared = {"bias": True, "init": normal(std), "rules": rules, "rngs": rngs, "dtype": dtype}
        self.up = Linear({"embed": width}, {"mlp": mlp}, name="up", **shared)
        self.down = Linear({"mlp": mlp}, {"embed": width}, name="down", **shared)

    def __call__(self, x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
        """x [*axes, D]; same shape."""
        return self.down(jax.nn.gelu(self.up(x, *axes), approximate=False), *axes)


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) · up(x)), mostly without biases (Shazeer 2020, equation 6)."""

    def __init__(
        self, width: int, mlp: int, *, bias: bool, std: float, rules: Rules, rngs: nnx.Rngs, dtype: jnp.dtype
    ) -> None:
        shared = {"bias": bias, "init": normal(std), "rules": rules, "rngs": rngs, "dtype": dtype}
        self.gate = Linear({"embed": width}, {"mlp": mlp}, name="gate", **shared)
        self.up = Linear({"embed": width}, {"mlp": mlp}, name="up", **shared)
        self.down = Linear({"mlp": mlp}, {"embed": width}, name="down", **shared)

    def __call__(self, x: jax.Array, axes: tuple[str, ...], out_axes: tuple[str, ...]) -> jax.Array:
        """x [*axes, D] to [*out_axes, D]; the two differ in layout only."""
        return self.down(jax.nn.silu(self.gate(x, *axes)) * self.up(x, *axes), *out_axes)
