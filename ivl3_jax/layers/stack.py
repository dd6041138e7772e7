"""Stacked layers and the one scan that runs them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from ivl3_jax.layers import taps
from ivl3_jax.sharding.remat import INPUT, POLICIES, Remat


def stack(make_layer: Callable[[nnx.Rngs], nnx.Module], layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """`layers` freshly initialised layers as one module whose parameters have a leading axis of that length."""
    make = nnx.vmap(make_layer, in_axes=0, out_axes=0)
    return nnx.split_rngs(splits=layers)(make)(rngs)


def unstack(layers: nnx.Module) -> nnx.List:
    """The layers one by one, for loops that are unrolled: decoding, where a scan would copy each layer every token."""
    count = jax.tree.leaves(layers)[0].shape[0]
    return nnx.List([jax.tree.map(partial(_take, i), layers) for i in range(count)])


def _take(i: int, leaf: jax.Array) -> jax.Array:
    return leaf[i]


def run(
    layers: nnx.Module | nnx.List,
    x: jax.Array,
    call: Callable[[nnx.Module, jax.Array, Any], jax.Array],
    *,
    remat: Remat = POLICIES["none"],
    each: Any = None,
) -> jax.Array:
    """x after all layers: x = call(layer, x, each[i]) for every layer i of the (local) stack.

    Args:
        layers: a stack, run by one scan; or taken apart by `unstack`, run by an unrolled loop.
        x: the residual stream; its shape and layout do not change.
        call: applies one layer. What it closes over is the same for all layers.
        remat: what the backward pass finds saved of each layer.
        each: a pytree with one leading entry for every layer (keys, drop rates), or None.

    Taps passed inside are recorded with a leading axis of layers.
    """

    def body(x: jax.Array, inputs: tuple[nnx.Module, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
        x = checkpoint_name(x, INPUT)
        if not taps.collecting():
            return call(inputs[0], x, inputs[1]), {}
        with taps.collect() as found:
            return call(inputs[0], x, inputs[1]), found

    if remat.policy is not None:
        body = jax.checkpoint(body, policy=remat.policy, prevent_cse=isinstance(layers, nnx.List))
    if isinstance(layers, nnx.List):
        every = []
        for i, layer in enumerate(layers):
            x, found = body(x, (layer, jax.tree.map(partial(_take, i), each)))
            every.append(found)
        recorded = jax.tree.map(lambda *values: jax.numpy.stack(values), *every)
    else:
        x, recorded = jax.lax.scan(body, x, (layers, each))
    taps.tap_all(recorded)
    return x
