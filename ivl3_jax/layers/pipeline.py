"""Stacked layers as a pipeline: each stage holds some of them, and microbatches go round (GPipe, arXiv 1811.06965).

The derivative is written out. A step keeps what enters each iteration, and nothing else of the forward pass; gradients
of the layers add up in place and in at least float32, however many microbatches there are.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec, reshard

from ivl3_jax.layers import taps
from ivl3_jax.layers.parameter import accumulation_dtype
from ivl3_jax.sharding.local import APART, on_stages, without
from ivl3_jax.sharding.pipeline import Schedule

Call = Callable[[Any, jax.Array, Any], jax.Array]
Leaves = list[jax.Array]
Carry = tuple[jax.Array, jax.Array]


def run(call: Call, layers: Any, x: jax.Array, rows: Any, schedule: Schedule) -> jax.Array:
    """x after all layers, each applied by the stage that holds it.

    Parameters stay where they are at rest. For use they are cast to x's dtype and brought to their stages, by one
    exchange a step; their gradients, summed over `data` once, go back the same way. Rows belong to stages as well:
    outside the pipeline a stage holds `schedule.owned` microbatches, which come to the first stage, and go home, one
    place an iteration.

    Args:
        call: x [b, ...] of a microbatch after a run of layers, call(layers, x, rows); it closes over no array. The mesh
            axes `stage` and `data` do not exist for it, the others are as everywhere.
        layers: a stack, leaves [L, ...] with L unsharded and a multiple of stages * repeats.
        x: [B, ...], B sharded over `stage`, `data` and others. rows: a pytree of [B, ...] laid out alike; no gradient
            flows to it.

    Raises:
        ValueError: somebody collects taps.
    """
    if taps.collecting():
        raise ValueError("intermediates cannot be collected inside a pipeline; take a plan whose mesh has stage: 1")
    leaves, tree = jax.tree.flatten(layers)

    def of_leaves(leaves: Leaves, x: jax.Array, rows: Any) -> jax.Array:
        return call(jax.tree.unflatten(tree, leaves), x, rows)

    def everywhere(leaf: jax.Array) -> jax.Array:
        leaf = _microbatches(leaf, schedule)
        return reshard(leaf, without(_layout(leaf), "stage"))

    runs = [_to_stages(leaf.astype(x.dtype), schedule) for leaf in leaves]
    y = _pipeline(of_leaves, schedule, runs, _microbatches(x, schedule), jax.tree.map(everywhere, rows))
    return y.reshape(x.shape, out_sharding=_layout(x))


def _layout(x: jax.Array) -> PartitionSpec:
    return jax.typeof(x).sharding.spec


def _to_stages(leaf: jax.Array, schedule: Schedule) -> jax.Array:
    """[L, ...] at rest as [repeats, stages, k, ...], each run of k layers in its stage."""
    _, *rest = _layout(leaf)
    shape = schedule.repeats, schedule.stages, leaf.shape[0] // (schedule.repeats * schedule.stages)
    leaf = leaf.reshape(*shape, *leaf.shape[1:], out_sharding=PartitionSpec(None, None, None, *rest))
    return reshard(leaf, PartitionSpec(None, "stage", None, *without(PartitionSpec(*rest), *APART)))


def _microbatches(x: jax.Array, schedule: Schedule) -> jax.Array:
    """[B, ...] as [stages, data, b, owned, ...]: the microbatches of each stage, with rows of every other shard."""
    (stage, data, *others), *rest = _layout(x)
    replicas = jax.sharding.get_abstract_mesh().shape[data]
    shape = schedule.stages, replicas, x.shape[0] // (replicas * schedule.microbatches), schedule.owned
    layout = PartitionSpec(stage, data, tuple(others) or None, None, *rest)
    return x.reshape(*shape, *x.shape[1:], out_sharding=layout)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pipeline(call: Call, schedule: Schedule, runs: Leaves, x: jax.Array, rows: Any) -> jax.Array:
    """Microbatches x [stages, data, b, owned, ...] after runs [repeats, stages, k, ...]; all stages have all rows."""
    return _forward(call, schedule, runs, x, rows)[0]


def _forward(call: Call, schedule: Schedule, runs: Leaves, x: jax.Array, rows: Any) -> tuple[jax.Array, Any]:
    def stage(runs: Leaves, x: jax.Array, rows: Any) -> Carry:
        runs = [leaf[:, 0] for leaf in runs]

        def iteration(carry: Carry, t: jax.Array) -> tuple[Carry, jax.Array]:
            x, slots = carry
            busy, number, microbatch = schedule.work(t, jax.lax.axis_index("stage"))
            x = jnp.where(busy, x, 0)  # a bubble: nothing comes of it
            y = call([leaf[number] for leaf in runs], x, _rows_of(rows, microbatch, schedule))
            return _move(schedule, t, y, slots), x

        start = _enter(schedule, x[0, 0])
        (_, slots), entered = jax.lax.scan(iteration, start, jnp.arange(schedule.iterations))
        return _leave(schedule, slots)[None, None], entered[:, None, None]

    in_specs = jax.tree.map(_layout, (runs, x, rows))
    y, entered = on_stages(stage, in_specs=in_specs, out_specs=(_layout(x), _entered(_layout(x))))(runs, x, rows)
    return y, (runs, entered, rows)


def _backward(call: Call, schedule: Schedule, kept: Any, g: jax.Array) -> tuple[Leaves, jax.Array, None]:
    runs, entered, rows = kept

    def stage(runs: Leaves, entered: jax.Array, rows: Any, g: jax.Array) -> tuple[Leaves, jax.Array]:
        runs, entered, g = [leaf[:, 0] for leaf in runs], entered[:, 0, 0], g[0, 0]
        nothing = jnp.zeros_like(entered[0])

        def iteration(carry: tuple[Carry, Leaves], inputs: tuple[jax.Array, jax.Array]):
            moved, sums = carry
            t, x = inputs
            busy, number, microbatch = schedule.work(t, jax.lax.axis_index("stage"))
            g_y, g_slots = _transposed(partial(_move, schedule, t), nothing, g)(moved)
            of_microbatch = _rows_of(rows, microbatch, schedule)
            _, pull = jax.vjp(lambda run, x: call(run, x, of_microbatch), [leaf[number] for leaf in runs], x)
            g_run, g_x = pull(g_y)
            # Selected, not only multiplied by zeros: what a bubble computes need not be a number.
            sums = [_added(total, number, jnp.where(busy, g, 0)) for total, g in zip(sums, g_run, strict=True)]
            return ((jnp.where(busy, g_x, 0), g_slots), sums), None

        (g_slots,) = _transposed(partial(_leave, schedule), g)(g)
        sums = [jnp.zeros_like(leaf, accumulation_dtype(leaf.dtype)) for leaf in runs]
        order = jnp.arange(schedule.iterations), entered
        (moved, sums), _ = jax.lax.scan(iteration, ((nothing, g_slots), sums), order, reverse=True)
        (g_x,) = _transposed(partial(_enter, schedule), g)(moved)
        sums = [jax.lax.psum(total.astype(leaf.dtype), "data") for total, leaf in zip(sums, runs, strict=True)]
        return [total[:, None] for total in sums], g_x[None, None]

    in_specs = jax.tree.map(_layout, (runs, entered, rows, g))
    out_specs = jax.tree.map(_layout, (runs, g))
    return *on_stages(stage, in_specs=in_specs, out_specs=out_specs)(runs, entered, rows, g), None


_pipeline.defvjp(_forward, _backward)


def _entered(layout: PartitionSpec) -> PartitionSpec:
    """Of what enters the iterations, [iterations, stages, data, b, ...], by that of [stages, data, b, owned, ...]."""
    return PartitionSpec(None, *layout[:3], *layout[4:])


def _rows_of(rows: Any, microbatch: jax.Array, schedule: Schedule) -> Any:
    def one(leaf: jax.Array) -> jax.Array:
        return leaf[microbatch // schedule.owned, 0, :, microbatch % schedule.owned]

    return jax.tree.map(one, rows)


def _added(total: jax.Array, number: jax.Array, part: jax.Array) -> jax.Array:
    """[repeats, ...] with `part` added to one of them, in place."""
    return jax.lax.dynamic_update_index_in_dim(total, total[number] + part.astype(total.dtype), number, 0)


def _transposed(linear: Callable, *like: jax.Array) -> Callable:
    return jax.vjp(linear, *like)[1]


# Where microbatches are, seen from one stage. It has slots [b, owned, ...] of which one is in turn: there the first
# stage takes a fresh microbatch and puts a finished one, just come from the last stage; then the slot's content moves
# one stage on, towards the first. So each stage's microbatches reach the first in time, and in the end all are at home.


def _enter(schedule: Schedule, slots: jax.Array) -> Carry:
    """What the first iteration works on, and the slots."""
    return _swap(schedule, 0, jnp.zeros_like(slots[:, 0]), slots)


def _move(schedule: Schedule, t: jax.Array | int, y: jax.Array, slots: jax.Array) -> Carry:
    """What iteration t + 1 works on, and the slots, after y came out of iteration t."""
    slots = _turn(schedule, t, slots)  # first: it does not wait for y
    towards_last = [(s, (s + 1) % schedule.stages) for s in range(schedule.stages)]
    return _swap(schedule, t + 1, jax.lax.ppermute(y, "stage", towards_last), slots)


def _leave(schedule: Schedule, slots: jax.Array) -> jax.Array:
    """The finished microbatches, in the order in which they came."""
    slots = _turn(schedule, schedule.iterations, slots)
    return jnp.roll(slots, -(schedule.stages % schedule.owned), axis=1)


def _swap(schedule: Schedule, t: jax.Array | int, y: jax.Array, slots: jax.Array) -> Carry:
    due, slot = schedule.exchange(t)
    here = due & (jax.lax.axis_index("stage") == 0)
    fresh = slots[:, slot]
    x, finished = jnp.where(here, fresh, y), jnp.where(here, y, fresh)
    return x, jax.lax.dynamic_update_index_in_dim(slots, finished, slot, 1)


def _turn(schedule: Schedule, t: jax.Array | int, slots: jax.Array) -> jax.Array:
    due, slot = schedule.exchange(t)
    towards_first = [(s, (s - 1) % schedule.stages) for s in range(schedule.stages)]
    moved = jax.lax.ppermute(slots[:, slot], "stage", towards_first)
    return jax.lax.dynamic_update_index_in_dim(slots, jnp.where(due, moved, slots[:, slot]), slot, 1)
