"""LayerNorm and RMSNorm, computed in at least float32."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import reshard

from ivl3_jax.layers.parameter import accumulation_dtype, constant, parameter
from ivl3_jax.sharding.plan import Rules


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x²) + eps) · scale over the last dimensions (Zhang & Sennrich 2019, equation 4).

    The scale multiplies after the cast back to x's dtype, as in the reference. `axes` may name several dimensions: the
    qk-norm of InternViT-6B normalises over all heads together.
    """

    def __init__(self, axes: dict[str, int], eps: float, *, rules: Rules, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        self.axes, self.eps, self.rules = tuple(axes), eps, rules
        self.scale = parameter(rngs, constant(1), tuple(axes.values()), self.axes, dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., *axes], any float dtype; same shape and dtype."""
        over = tuple(range(x.ndim - len(self.axes), x.ndim))
        y = x.astype(accumulation_dtype(x.dtype))
        y = y * jax.lax.rsqrt(jnp.mean(y * y, over, keepdims=True) + self.eps)
        scale = reshard(self.scale[...].astype(x.dtype), self.rules.activation(*self.axes))
        return y.astype(x.dtype) * scale


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + eps) · scale + bias over the last dimension (Ba et al. 2016)."""

    def __init__(self, axes: dict[str, int], eps: float, *, rules: Rules, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        self.axes, self.eps, self.rules = tuple(axes), eps, rules
        self.scale = parameter(rngs, constant(1), tuple(axes.values()), self.axes, dtype)
        self.bias = parameter(rngs, constant(0), tuple(axes.values()), self.axes, dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., width], any float dtype; same shape and dtype."""
        accumulate = accumulation_dtype(x.dtype)
        y = x.astype(accumulate)
        y = y - jnp.mean(y, -1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.eps)
        scale, bias = (
            reshard(p[...].astype(accumulate), self.rules.activation(*self.axes)) for p in (self.scale, self.bias)
        )
        return (y * scale + bias).astype(x.dtype)


NORMS: dict[str, type[LayerNorm] | type[RMSNorm]] = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}
