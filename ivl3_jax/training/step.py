"""The training state and one optimizer step: pure, jitted, donated."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ivl3_jax.batch import Batch
from ivl3_jax.kernels.chip import chip
from ivl3_jax.models.model import Params
from ivl3_jax.sharding.compiler import Options, fewer_options, options_of
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.training.config import TrainConfig
from ivl3_jax.training.objectives import Found, Objective, RewardShift, by_segment
from ivl3_jax.training.optimizer import learning_rate, make_optimizer
from ivl3_jax.training.trained import join, rates, split

SETTLED = 20  # steps before a loss can be a spike
MEMORY = 0.98  # decay of the moving average that a spike is held against
KINDS = ("text", "visual")


class TrainState(NamedTuple):
    """Everything a step changes.

    Attributes:
        step: int32 scalar, batches seen. params: all of them. optimizer: moments of the trained ones.
        average: exponential moving average of the trained parameters, None without.
        shift: BCO's running mean of rewards. usual: moving average of the loss, and steps it is of; float32 scalars.
    """

    step: jax.Array
    params: Params
    optimizer: optax.OptState
    average: Params | None
    shift: RewardShift
    usual: tuple[jax.Array, jax.Array]


class Metrics(NamedTuple):
    """What a step reports, arrays on device.

    Attributes:
        loss: of the global batch, in nats. parts: of it, by name.
        grad_norm: global norm over what is trained, before clipping. applied: whether the step was, see `on_bad_step`.
        tokens: trained positions. positions: those that are not padding. attended: pairs of positions in attention.
        tiles: of which any visual token is shown. segments: not empty.
        by_source: weighted losses and weights [2, sources]. by_kind: [2, len(KINDS)].
    """

    loss: jax.Array
    parts: dict[str, jax.Array]
    grad_norm: jax.Array
    applied: jax.Array
    tokens: jax.Array
    positions: jax.Array
    attended: jax.Array
    tiles: jax.Array
    segments: jax.Array
    by_source: jax.Array
    by_kind: jax.Array


TrainStep = Callable[[TrainState, Batch, jax.Array | None, jax.Array], tuple[TrainState, Metrics]]


def init_state(params: Params, config: TrainConfig, plan: ShardingPlan | None = None) -> TrainState:
    """The state before the first step; moments take the layout of their parameters, in the memory that `plan` says."""
    trained = rates(params, config.components)

    def fresh(params: Params) -> TrainState:
        moving, _ = split(params, trained)
        average = None if config.average is None else jax.tree.map(_wide, moving)
        moments = _kept(make_optimizer(config, trained).init(moving), plan)
        zeros = [jnp.zeros((), jnp.float32) for _ in range(4)]
        step = jnp.zeros((), jnp.int32)
        return TrainState(step, {}, moments, average, RewardShift(*zeros[:2]), (zeros[2], zeros[3]))

    return jax.jit(fresh)(params)._replace(params=params)


def abstract_state(params: Params, config: TrainConfig, plan: ShardingPlan, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and layouts of the state, of those of the parameters; nothing is allocated."""
    with jax.set_mesh(mesh):
        found = jax.eval_shape(lambda params: init_state(params, config), params)

    def placed(leaf: jax.ShapeDtypeStruct, kind: str | None = None) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec() if leaf.sharding is None else leaf.sharding.spec
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec, memory_kind=kind if leaf.ndim else None)
        )

    host = "pinned_host" if "optimizer" in plan.offload else None
    moments = jax.tree.map(lambda leaf: placed(leaf, host), found.optimizer)
    return jax.tree.map(placed, found)._replace(optimizer=moments)


def make_step(
    graphdef: nnx.GraphDef,
    params: Params,
    objective: Objective,
    config: TrainConfig,
    tile_tokens: int,
    sources: int = 1,
    plan: ShardingPlan | None = None,
    options: Options | None = None,
) -> TrainStep:
    """The jitted step(state, batch, reference, key) -> (state, metrics); the state is donated.

    Call it under the model's mesh. The batch has a leading axis of parts, [A, B, ...], that are computed one after the
    other and add up. `reference` float32 [A, B, G] are the reference model's log-probabilities, None where the
    objective needs none. `key` is the run's: a row's draws depend on nothing but it, the step and the row's number.

    Args:
        graphdef: the model's. params: its parameters, or their shapes; only paths and ranks are looked at.
        tile_tokens: visual tokens of a tile. sources: data sources that losses are reported for.
        plan: says what is kept in the host's memory, and options of the compiler; nothing and none without.
        options: of the compiler, in place of the plan's for the chip at hand.
    """
    trained = rates(params, config.components)
    optimizer, rate = make_optimizer(config, trained), learning_rate(config)

    def step(
        state: TrainState, batch: Batch, reference: jax.Array | None, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        state = state._replace(optimizer=_fetched(state.optimizer, plan))
        moving, fixed = split(state.params, trained)
        parts, rows = batch.tokens.shape[:2]
        keys = _row_keys(jax.random.fold_in(key, state.step), parts * rows).reshape(parts, rows)
        totals = [objective.totals(_part(batch, a)) for a in range(parts)]
        if config.normalize == "global":
            totals = [jax.tree.map(lambda *each: sum(each), *totals)] * parts
        else:
            totals = [jax.tree.map(lambda total: total * parts, each) for each in totals]

        def loss_of(moving: Params, shift: RewardShift, inputs: tuple) -> tuple[jax.Array, Found]:
            batch, totals, reference, keys = inputs
            model = nnx.merge(graphdef, join(moving, fixed))
            found = objective(model, batch, totals, shift, reference, keys)
            return found.loss, found

        def one(carry: tuple[Params, RewardShift], inputs: tuple) -> tuple[tuple[Params, RewardShift], Found]:
            sums, shift = carry
            (_, found), grads = jax.value_and_grad(loss_of, has_aux=True)(moving, shift, inputs)
            return (jax.tree.map(lambda total, grad: total + grad.astype(total.dtype), sums, grads), found.shift), found

        stacked = jax.tree.map(lambda *each: jnp.stack(each), *totals)
        if parts == 1:
            first = _part((batch, stacked, reference, keys), 0)
            (_, found), grads = jax.value_and_grad(loss_of, has_aux=True)(moving, state.shift, first)
            shift, found = found.shift, jax.tree.map(lambda leaf: leaf[None], found)
        else:
            start = jax.tree.map(lambda leaf: jnp.zeros_like(_wide(leaf)), moving), state.shift
            (grads, shift), found = jax.lax.scan(one, start, (batch, stacked, reference, keys))

        updates, moments = optimizer.update(grads, state.optimizer, moving)
        updates = jax.tree.map(lambda update: -rate(state.step).astype(update.dtype) * update, updates)
        moved = optax.apply_updates(moving, updates)
        loss, norm = found.loss.sum(), optax.tree.norm(_counted(grads, trained))
        usual, count = state.usual
        applied = jnp.isfinite(loss) & jnp.isfinite(norm)
        if config.spike is not None:
            applied &= (count < SETTLED) | (loss < config.spike * usual)
        weight = jnp.where(count > 0, MEMORY, 0.0)
        new = TrainState(
            state.step,
            join(moved, fixed),
            moments,
            _averaged(state.average, moved, config.average, count),
            shift,
            (weight * usual + (1 - weight) * loss.astype(usual.dtype), count + 1),
        )
        kept = jax.tree.map(lambda new, old: jnp.where(applied, new, old), new, state)
        metrics = Metrics(
            loss,
            jax.tree.map(lambda part: part.sum(), found.parts),
            norm,
            applied,
            (batch.loss_weights > 0).sum(),
            (batch.segment_ids > 0).sum(),
            _attended(batch),
            _shown_tiles(batch, tile_tokens),
            (by_segment(batch.segment_ids > 0, batch) > 0).sum(),
            *_by_group(found, batch, sources),
        )
        return kept._replace(step=state.step + 1, optimizer=_kept(kept.optimizer, plan)), metrics

    def jitted(options: Options | None) -> TrainStep:
        return jax.jit(step, donate_argnums=0, compiler_options=dict(options) if options else None)

    if options is not None or plan is None or (name := chip()) is None:
        return jitted(options)
    return _or_fewer(jitted, options_of(name, plan))


def _or_fewer(jitted: Callable[[Options], TrainStep], options: Options) -> TrainStep:
    """The step with these options, or without those for which the compiler gives it up; nothing was donated by then."""
    step = jitted(options)

    def run(*arguments: Any) -> Any:
        nonlocal step, options
        while True:
            try:
                return step(*arguments)
            except jax.errors.JaxRuntimeError as error:
                found = fewer_options(error, options)
                if found is None:
                    raise
            options, why = found
            warnings.warn(why, stacklevel=2)
            step = jitted(options)

    return run


def _kept(moments: optax.OptState, plan: ShardingPlan | None) -> optax.OptState:
    """Moments as they are kept between steps."""
    return _moved(moments, jax.memory.Space.Host) if plan and "optimizer" in plan.offload else moments


def _fetched(moments: optax.OptState, plan: ShardingPlan | None) -> optax.OptState:
    return _moved(moments, jax.memory.Space.Device) if plan and "optimizer" in plan.offload else moments


def _moved(tree: Any, to: jax.memory.Space) -> Any:
    return jax.tree.map(lambda leaf: jax.device_put(leaf, to) if leaf.ndim else leaf, tree)


def _row_keys(key: jax.Array, rows: int) -> jax.Array:
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(rows))


def _part(tree: Any, number: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[number], tree)


def _wide(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


def _counted(grads: Params, trained) -> Params:
    """Gradients without those of layers that are not trained."""

    def counted(path, grad: jax.Array) -> jax.Array:
        rate = trained[tuple(key.key for key in path)]
        return grad if rate.all() else jnp.where(rate > 0, grad, 0)

    return jax.tree_util.tree_map_with_path(counted, grads)


def _averaged(average: Params | None, params: Params, decay: float | None, count: jax.Array) -> Params | None:
    """The moving average a step later; it follows faster at first, so that the start does not linger."""
    if average is None:
        return None
    keep = jnp.minimum(decay, (1 + count) / (10 + count))
    return jax.tree.map(lambda old, new: keep * old + (1 - keep) * new.astype(old.dtype), average, params)


def _attended(batch: Batch) -> jax.Array:
    lengths = by_segment(batch.segment_ids > 0, batch).astype(jnp.float32)
    return (lengths * (lengths + 1) / 2).sum()


def _shown_tiles(batch: Batch, tile_tokens: int) -> jax.Array:
    """Tiles that any position takes a visual token of: each tile's first one is taken once, or by both of a pair."""
    last = batch.visual_index.max(axis=-1)
    return ((last + 1) // tile_tokens).sum()


def _by_group(found: Found, batch: Batch, sources: int) -> tuple[jax.Array, jax.Array]:
    """Weighted losses and weights by source and by kind."""
    visual = by_segment(batch.visual_index >= 0, batch) > 0
    values = jnp.stack([found.by_segment, found.weights.astype(found.by_segment.dtype)])  # [2, A, B, G]

    def sums(groups: jax.Array, count: int) -> jax.Array:
        return jnp.stack([jnp.where(groups == n, values, 0).sum(axis=(1, 2, 3)) for n in range(count)], axis=-1)

    return sums(batch.source_id, sources), sums(visual.astype(jnp.int32), len(KINDS))
