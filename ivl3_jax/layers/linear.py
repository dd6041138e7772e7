"""Dense projections, from and to any number of dimensions."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import reshard

from ivl3_jax.layers.parameter import Initializer, constant, parameter
from ivl3_jax.sharding.plan import Rules


class Linear(nnx.Module):
    """y = x W + b, contracting the last `len(inputs)` dimensions of x.

    Attributes:
        kernel: [*inputs, *outputs], stored (in, out).
        bias: [*outputs], absent without bias.
    """

    def __init__(
        self,
        inputs: dict[str, int],
        outputs: dict[str, int],
        *,
        bias: bool,
        init: Initializer,
        rules: Rules,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
    ) -> None:
        """`inputs` and `outputs` map the logical axis of each dimension to its size, in order."""
        self.inputs, self.outputs, self.rules = tuple(inputs), tuple(outputs), rules
        sizes = (*inputs.values(), *outputs.values())
        self.kernel = parameter(rngs, init, sizes, self.inputs + self.outputs, dtype)
        if bias:
            self.bias = parameter(rngs, constant(0), tuple(outputs.values()), self.outputs, dtype)

    def __call__(self, x: jax.Array, *axes: str) -> jax.Array:
        """Projects x [*axes, *inputs] to [*axes, *outputs], in x's dtype; `axes` name the leading dimensions."""
        kernel = reshard(self.kernel[...].astype(x.dtype), self.rules.activation(*self.inputs, *self.outputs))
        n = len(self.inputs)
        contraction = tuple(range(x.ndim - n, x.ndim)), tuple(range(n))
        layout = self.rules.activation(*axes, *self.outputs)
        y = jax.lax.dot_general(x, kernel, (contraction, ((), ())), out_sharding=layout)
        if hasattr(self, "bias"):
            y = y + reshard(self.bias[...].astype(x.dtype), self.rules.activation(*self.outputs))
        return y
