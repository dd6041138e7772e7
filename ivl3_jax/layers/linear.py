"""Dense projections, from and to any number of dimensions."""

import math
from collections.abc import Set

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec, reshard

from ivl3_jax.kernels.chip import on_cpu
from ivl3_jax.layers.parameter import Initializer, constant, parameter
from ivl3_jax.sharding.local import mesh_axes, shard_count
from ivl3_jax.sharding.plan import Rules

FEW = 64  # rows of x up to which CPUs take a kernel whose outputs stand first as the first factor of a product


class Linear(nnx.Module):
    """y = x W + b, contracting the last `len(inputs)` dimensions of x; with an adapter, + lora_scale · (x A) B.

    Attributes:
        kernel: W [*inputs, *outputs], stored (in, out); once `outputs_first`, [*outputs, *inputs].
        scale: [*outputs], what a kernel in int8 is to be multiplied by, see `to_int8`; absent otherwise.
        bias: [*outputs], absent without bias.
        lora_a, lora_b: A [*inputs, r] and B [r, *outputs] (Hu et al. 2021), absent without an adapter, see
            `models.adapters`. lora_scale: alpha / r.
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
        name: str | None = None,
    ) -> None:
        """`inputs` and `outputs` map the logical axis of each dimension to its size, in order.

        `name` is that under which remat policies may keep what it gives, see `sharding.remat`.
        """
        self.inputs, self.outputs, self.rules, self.name = tuple(inputs), tuple(outputs), rules, name
        self.outputs_first = False
        sizes = (*inputs.values(), *outputs.values())
        self.kernel = parameter(rngs, init, sizes, self.inputs + self.outputs, dtype)
        if bias:
            self.bias = parameter(rngs, constant(0), tuple(outputs.values()), self.outputs, dtype)

    def __call__(self, x: jax.Array, *axes: str) -> jax.Array:
        """Projects x [*axes, *inputs] to [*axes, *outputs], in x's dtype; `axes` name the leading dimensions."""
        layout = self.rules.activation(*axes, *self.outputs)

        def product(x: jax.Array, weight: nnx.Param, layout: PartitionSpec, outputs_first: bool = False) -> jax.Array:
            kernel, in_use = weight[...].astype(x.dtype), self.rules.activation(*weight.axes)
            return contract(x, kernel, in_use, layout, outputs_first=outputs_first)

        y = product(x, self.kernel, layout, self.outputs_first)
        if hasattr(self, "scale"):
            y = y * reshard(self.scale[...].astype(x.dtype), self.rules.activation(*self.outputs))
        if hasattr(self, "lora_a"):
            # Neither W + A B nor the gradient of W is made: what is between A and B has only r columns.
            low = product(x, self.lora_a, self.rules.activation(*axes, "rank"))
            low = self.named(low * self.lora_scale)
            y = y + product(low, self.lora_b, layout)
        if hasattr(self, "bias"):
            y = y + reshard(self.bias[...].astype(x.dtype), self.rules.activation(*self.outputs))
        return self.named(y)

    def weight(self, dtype: jnp.dtype) -> jax.Array:
        """W [*inputs, *outputs] in this dtype, laid out as it is stored."""
        kernel, inputs, outputs = self.kernel[...].astype(dtype), len(self.inputs), len(self.outputs)
        if self.outputs_first:
            kernel = jnp.moveaxis(kernel, range(-inputs, 0), range(-inputs - outputs, -outputs))
        return kernel * self.scale[...].astype(dtype) if hasattr(self, "scale") else kernel

    def put_outputs_first(self) -> None:
        """Stores W with its outputs first, which CPUs multiply by fastest. For inference only.

        XLA's CPU backend rearranges the second factor of a product before it multiplies, which takes longer than
        multiplying where rows of x are few. The first factor it reads as it lies, rows behind one another.
        """
        kernel, inputs = self.kernel[...], len(self.inputs)
        first = kernel.ndim - inputs - len(self.outputs)  # behind the layers of a stack
        order = (*range(first), *range(first + inputs, kernel.ndim), *range(first, first + inputs))
        self.kernel = nnx.Param(kernel.transpose(order), axes=self.outputs + self.inputs)
        self.outputs_first = True

    def to_int8(self) -> None:
        """Rounds W to int8, with one scale for each output: its largest weight becomes 127. For inference only.

        Raises:
            ValueError: its outputs stand first already.
        """
        if self.outputs_first:
            raise ValueError("the kernel's outputs stand first; round it before put_outputs_first")
        kernel, inputs = self.kernel[...], len(self.inputs)
        first = kernel.ndim - inputs - len(self.outputs)  # behind the layers of a stack
        summed = tuple(range(first, first + inputs))
        scale = jnp.abs(kernel.astype(jnp.float32)).max(summed, keepdims=True) / 127
        scale = jnp.where(scale > 0, scale, 1)
        self.kernel = nnx.Param(jnp.round(kernel / scale).astype(jnp.int8), axes=self.kernel.axes)
        self.scale = nnx.Param(scale.squeeze(summed), axes=self.outputs)

    def named(self, y: jax.Array) -> jax.Array:
        return y if self.name is None else checkpoint_name(y, self.name)


def contract(
    x: jax.Array, kernel: jax.Array, in_use: PartitionSpec, layout: PartitionSpec, *, outputs_first: bool = False
) -> jax.Array:
    """x [*leading, *inputs] times kernel [*inputs, *outputs]: [*leading, *outputs], laid out by `layout`.

    A kernel that is `outputs_first` is [*outputs, *inputs], see `Linear.put_outputs_first`. As it is stored, the kernel
    is brought to the layout `in_use`. Its gradient takes the way back as a sum that is not made until it is scattered:
    each device only ever receives its part.
    """
    n = (x.ndim + kernel.ndim - len(layout)) // 2
    leading, split = x.ndim - n, kernel.ndim - n if outputs_first else n
    outputs, inner = (kernel.shape[:split], 1) if outputs_first else (kernel.shape[split:], 0)
    x = merged(x, leading, x.ndim)
    spec, out = jax.typeof(x).sharding.spec, PartitionSpec(*layout[: leading + 1])
    # Within a stage of a pipeline JAX knows no sums that are yet to be made.
    explicit = jax.sharding.get_abstract_mesh().are_all_axes_explicit
    rows = mesh_axes(*spec[:leading]) if explicit else set()
    # As one matrix: XLA's CPU backend copies a kernel of three dimensions to transpose it in the backward pass.
    kernel = merged(merged(kernel, split, kernel.ndim, rows), 0, split, rows)
    used = PartitionSpec(in_use[0], in_use[split])
    if explicit and not outputs_first and [bool(axes) for axes in freed(kernel, used)] == [False, True]:
        # What is gathered stands first: along the last dimension shards that fill no tile of a TPU would be copied.
        kernel, used, inner = kernel.T, PartitionSpec(used[1], used[0]), 1
    kernel = brought(kernel, used, rows)

    def product(layout: PartitionSpec) -> jax.Array:
        if outputs_first and on_cpu() and math.prod(x.shape[:leading]) <= FEW:
            first = layout.update(partitions=(layout[-1], *layout[:-1]))
            y = jax.lax.dot_general(kernel, x, (((1,), (leading,)), ((), ())), out_sharding=first)
            return jnp.moveaxis(y, 0, -1)
        return jax.lax.dot_general(x, kernel, (((leading,), (inner,)), ((), ())), out_sharding=layout)

    if not explicit or PartitionSpec(*spec[:leading]) == PartitionSpec(*out[:leading]):
        y = product(out)
    else:  # the sum over the devices that share the inputs is scattered over positions
        y = reshard(product(PartitionSpec(*spec[:leading], out[leading], unreduced=mesh_axes(spec[leading]))), out)
    return y.reshape(*y.shape[:-1], *outputs, out_sharding=layout)


def brought(kernel: jax.Array, in_use: PartitionSpec, rows: Set[str]) -> jax.Array:
    """A matrix brought to the layout `in_use`; its gradient is a sum over the mesh axes `rows`.

    Where both dimensions are gathered, one after the other, the one with fewer shards first: for both at once XLA makes
    an all-reduce of zeros, and so it does for the gradient.
    """
    spec = jax.typeof(kernel).sharding.spec
    stored, used, gathered = spec.partitions, in_use.partitions, freed(kernel, in_use)
    if all(gathered):
        first = min((0, 1), key=lambda axis: shard_count(tuple(gathered[axis])))
        step = (used[0], stored[1]) if first == 0 else (stored[0], used[1])
        kernel = reshard(kernel, PartitionSpec(*step, reduced=spec.reduced | (gathered[first] & rows)))
    return reshard(kernel, PartitionSpec(*used, reduced=rows))


def freed(x: jax.Array, in_use: PartitionSpec) -> list[set[str]]:
    """The mesh axes that each dimension of x is spread over, and is not any more in the layout `in_use`."""
    stored = jax.typeof(x).sharding.spec.partitions
    return [mesh_axes(here) - mesh_axes(there) for here, there in zip(stored, in_use.partitions, strict=True)]


def merged(x: jax.Array, start: int, stop: int, rows: Set[str] = frozenset()) -> jax.Array:
    """x with its dimensions start .. stop - 1 made one, whose first stays sharded alone; `rows` as in `brought`."""
    if stop - start == 1:
        return x
    shape, layout = x.shape, jax.typeof(x).sharding.spec
    spec = layout.partitions
    reduced = layout.reduced | (mesh_axes(*spec[start + 1 : stop]) & rows)
    x = reshard(x, PartitionSpec(*spec[: start + 1], *(None,) * (stop - start - 1), *spec[stop:], reduced=reduced))
    layout = PartitionSpec(*spec[: start + 1], *spec[stop:], reduced=reduced)
    return x.reshape(*shape[:start], math.prod(shape[start:stop]), *shape[stop:], out_sharding=layout)
