"""Dense projections, from and to any number of dimensions."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec, reshard

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
        rules, n = self.rules.activation, len(self.inputs)
        layout = rules(*axes, *self.outputs)
        kernel = reshard(self.kernel[...].astype(x.dtype), rules(*self.inputs, *self.outputs))
        outputs = kernel.shape[n:]
        # As one matrix: XLA's CPU backend copies a kernel of three dimensions to transpose it in the backward pass.
        kernel = merged(merged(kernel, n, kernel.ndim), 0, n)
        y = jnp.dot(merged(x, x.ndim - n, x.ndim), kernel, out_sharding=PartitionSpec(*layout[: len(axes) + 1]))
        y = y.reshape(*y.shape[:-1], *outputs, out_sharding=layout)
        if hasattr(self, "bias"):
            y = y + reshard(self.bias[...].astype(x.dtype), rules(*self.outputs))
        return y


def merged(x: jax.Array, start: int, stop: int) -> jax.Array:
    """x with its dimensions start .. stop - 1 made one; of these only the first may be sharded."""
    if stop - start == 1:
        return x
    shape, spec = x.shape, jax.typeof(x).sharding.spec
    layout = PartitionSpec(*spec[: start + 1], *spec[stop:])
    return x.reshape(*shape[:start], math.prod(shape[start:stop]), *shape[stop:], out_sharding=layout)
