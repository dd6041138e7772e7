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
        return scaled_norm(self.eps, x, scale)


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
        scale, bias = (
            reshard(p[...].astype(accumulate), self.rules.activation(*self.axes)) for p in (self.scale, self.bias)
        )
        return (scaled_norm(self.eps, y, scale) + bias).astype(x.dtype)


NORMS: dict[str, type[LayerNorm] | type[RMSNorm]] = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def scaled_norm(eps: float, x: jax.Array, scale: jax.Array) -> jax.Array:
    """x divided by its root mean square over the dimensions of `scale`, in x's dtype, times `scale`.

    The derivative is written out: what autodiff makes of the formula is twenty times slower on XLA's CPU backend.
    """
    y, _ = _normalise(eps, x, scale.ndim)
    return y.astype(x.dtype) * scale


def _normalise(eps: float, x: jax.Array, dims: int) -> tuple[jax.Array, jax.Array]:
    """The normalised x and what it was multiplied by, both in at least float32."""
    over = tuple(range(x.ndim - dims, x.ndim))
    y = x.astype(accumulation_dtype(x.dtype))
    factor = jax.lax.rsqrt(jnp.mean(y * y, over, keepdims=True) + eps)
    return y * factor, factor


def _forward(eps, x, scale):
    return scaled_norm(eps, x, scale), (x, scale)


def _backward(eps, saved, g):
    x, scale = saved
    y, factor = _normalise(eps, x, scale.ndim)
    g = g.astype(y.dtype)
    over = tuple(range(x.ndim - scale.ndim, x.ndim))
    rows, spec = tuple(range(over[0])), jax.typeof(x).sharding.spec
    by_row, by_scale = PartitionSpec(*spec[: len(rows)]), PartitionSpec(*spec[len(rows) :])
    g_y = g * scale.astype(y.dtype)
    # Products contracted as such, not multiplied and summed: there XLA's CPU backend falls to a scalar loop.
    along = jax.lax.dot_general(g_y, y, ((over, over), (rows, rows)), out_sharding=by_row).reshape(factor.shape)
    d_scale = jax.lax.dot_general(g, y, ((rows, rows), (over, over)), out_sharding=by_scale)
    d_x = (g_y - y * (along / scale.size)) * factor
    return d_x.astype(x.dtype), d_scale.astype(scale.dtype)


scaled_norm.defvjp(_forward, _backward)
