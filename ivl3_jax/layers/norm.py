"""LayerNorm and RMSNorm, computed in at least float32."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec, reshard

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
        scale = reshard(self.scale[...].astype(x.dtype), self.rules.activation(*self.axes))
        return scaled_norm(self.eps, False, x, scale)


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + eps) · scale + bias over the last dimension (Ba et al. 2016)."""

    def __init__(self, axes: dict[str, int], eps: float, *, rules: Rules, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        self.axes, self.eps, self.rules = tuple(axes), eps, rules
        self.scale = parameter(rngs, constant(1), tuple(axes.values()), self.axes, dtype)
        self.bias = parameter(rngs, constant(0), tuple(axes.values()), self.axes, dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., width], any float dtype; same shape and dtype."""
        accumulate = accumulation_dtype(x.dtype)
        scale, bias = (
            reshard(p[...].astype(accumulate), self.rules.activation(*self.axes)) for p in (self.scale, self.bias)
        )
        return (scaled_norm(self.eps, True, x.astype(accumulate), scale) + bias).astype(x.dtype)


NORMS: dict[str, type[LayerNorm] | type[RMSNorm]] = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def scaled_norm(eps: float, centred: bool, x: jax.Array, scale: jax.Array) -> jax.Array:
    """x, less its mean if `centred`, divided by its root mean square over the dimensions of `scale`, times `scale`.

    The derivative is written out: what XLA makes of the formula's own is twenty times slower on the CPU.
    """
    y, _ = _normalise(eps, centred, x, scale.ndim)
    return y.astype(x.dtype) * scale


def _normalise(eps: float, centred: bool, x: jax.Array, dims: int) -> tuple[jax.Array, jax.Array]:
    """The normalised x and what it was multiplied by, both in at least float32."""
    over = tuple(range(x.ndim - dims, x.ndim))
    y = x.astype(accumulation_dtype(x.dtype))
    if centred:
        y = y - jnp.mean(y, over, keepdims=True)
    factor = jax.lax.rsqrt(jnp.mean(y * y, over, keepdims=True) + eps)
    return y * factor, factor


def _forward(eps, centred, x, scale):
    return scaled_norm(eps, centred, x, scale), (x, scale)


def _backward(eps, centred, saved, g):
    x, scale = saved
    y, factor = _normalise(eps, centred, x, scale.ndim)
    g = g.astype(y.dtype)
    over = tuple(range(x.ndim - scale.ndim, x.ndim))
    rows, spec = tuple(range(over[0])), jax.typeof(x).sharding.spec
    g_y = g * scale.astype(y.dtype)
    # Products contracted as such, not multiplied and summed: there XLA's CPU backend falls to a scalar loop.
    along = jax.lax.dot_general(
        g_y, y, ((over, over), (rows, rows)), out_sharding=PartitionSpec(*spec[: len(rows)])
    ).reshape(factor.shape)
    d_scale = jax.lax.dot_general(g, y, ((rows, rows), (over, over)), out_sharding=PartitionSpec(*spec[len(rows) :]))
    d_x = g_y - y * (along / scale.size)
    if centred:
        d_x = d_x - jnp.mean(g_y, over, keepdims=True)
    return (d_x * factor).astype(x.dtype), d_scale.astype(scale.dtype)


scaled_norm.defvjp(_forward, _backward)
