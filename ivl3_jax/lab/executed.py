"""A plan executed on fake devices with a tiny model, beside one device: loss, gradients, one step of the optimizer."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from ivl3_jax.batch import IGNORE, Batch, empty_batch
from ivl3_jax.config import DecoderConfig, InternVLConfig, ProjectorConfig, VisionConfig
from ivl3_jax.conversion.tolerances import GRADIENT, STACK
from ivl3_jax.models.model import Model
from ivl3_jax.sharding.axes import MESH_AXES
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.training.config import TrainConfig
from ivl3_jax.training.objectives import NextToken
from ivl3_jax.training.placing import Placement
from ivl3_jax.training.step import init_state, make_step

TOKENS, TILES = 48, 2
# No clipping, so that the first moment is the gradient but for its factor; an epsilon that keeps gradients which are
# zero but for rounding from making steps of full size.
TRAIN = TrainConfig(steps=10, warmup_steps=0, learning_rate=1e-2, eps=1e-3, clip_norm=1e9)
# Its gradient is zero but for rounding, since a constant added to all keys changes no softmax: held against Q_BIAS's.
K_BIAS, Q_BIAS = "vision/layers/attention/k/bias", "vision/layers/attention/q/bias"


@dataclass(frozen=True)
class Deviation:
    """How far an array, or the loss, is from one device's: ||a - b|| / ||b||, and how far it may be."""

    what: str
    error: float
    tolerance: float

    @property
    def over(self) -> bool:
        return not self.error < self.tolerance


def deviations(plan: ShardingPlan, devices: list | None = None) -> Iterator[Deviation]:
    """One training step under a plan against the same step on one device, in float32.

    The rows are packed from two segments with a tile each, but for one of text alone and one that is mostly padding.
    The ViT's drop-path is on.

    Args:
        devices: that the plan's mesh is made of; by default the first of this process.

    Raises:
        ValueError: the plan cannot be, or there are too few devices.
    """
    config, rows, tokens = tiny(plan)
    batch = mixed(config, rows, tokens)
    expected, found = stepped(config, ShardingPlan(), batch), stepped(config, plan, batch, devices)
    for what, tolerance in (("loss", STACK), ("gradient", GRADIENT), ("stepped", STACK)):
        for path, value in expected[what].items():
            size = np.linalg.norm(expected[what][Q_BIAS] if path == K_BIAS else value)
            error = np.linalg.norm(found[what][path] - value) / (size or 1)
            yield Deviation(f"{what} {path}".strip(), float(error), tolerance["float32"])


def tiny(plan: ShardingPlan) -> tuple[InternVLConfig, int, int]:
    """A model whose every dimension divides over the plan's mesh, rows of a step, and positions of a row."""
    sizes = [plan.mesh.get(axis, 1) for axis in MESH_AXES]
    schedule, all_ = plan.schedule, math.prod(sizes)
    across = plan.mesh.get("tensor", 1) * plan.mesh.get("context", 1)
    heads = math.lcm(8, across)
    layers = 2 if schedule is None else schedule.stages * schedule.repeats
    width = math.lcm(64, 2 * all_)
    vision = VisionConfig(
        layers=2,
        width=width,
        heads=math.lcm(4, plan.mesh.get("tensor", 1)),
        mlp=2 * width,
        image_size=56,
        patch_size=14,
        layer_scale=1.0,
        initializer_range=0.2,
        drop_path=0.3,
    )
    decoder = DecoderConfig(
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=2,
        head_dim=16,
        mlp=2 * width,
        vocab=301,
        initializer_range=0.2,
    )
    shards = plan.size(plan.decoder.activations.get("batch", ()))
    rows = math.lcm(4, shards * (1 if schedule is None else schedule.owned))
    positions = {axis for name in ("sequence", "residual") for axis in plan.decoder.activations.get(name, ())}
    tokens = math.lcm(TOKENS, 2 * plan.size(tuple(positions)))
    return InternVLConfig(vision, ProjectorConfig(), decoder, image_token_id=300), rows, tokens


def mixed(config: InternVLConfig, rows: int, tokens: int) -> Batch:
    """Random rows of two segments with a tile each, then padding; the last but one has no tile, the last few tokens."""
    rng = np.random.default_rng(0)
    batch = empty_batch(rows, tokens, TILES, 2, config.vision.image_size)
    batch.tiles[...] = rng.integers(0, 256, batch.tiles.shape)
    visual, length = config.tile_tokens, tokens * 5 // 12
    for number in (1, 2):
        start = (number - 1) * length
        here = np.s_[:, start : start + length]
        batch.tokens[here] = rng.integers(0, 300, (rows, length))
        batch.segment_ids[here], batch.positions[here] = number, np.arange(length)
        batch.labels[here] = np.where(rng.random((rows, length)) < 0.5, rng.integers(0, 300, length), IGNORE)
        shown = np.s_[:-2, start + 2 : start + 2 + visual]
        batch.tokens[shown] = config.image_token_id
        batch.visual_index[shown] = (number - 1) * visual + np.arange(visual)
    for name, nothing in (("segment_ids", 0), ("positions", 0), ("labels", IGNORE)):
        getattr(batch, name)[-1, 9:] = nothing
    batch.loss_weights[...] = np.where(batch.labels == IGNORE, 0, rng.uniform(0.5, 1.5, batch.labels.shape))
    return batch


def stepped(
    config: InternVLConfig, plan: ShardingPlan, batch: Batch, devices: list | None = None
) -> dict[str, dict[str, np.ndarray]]:
    """The loss, every gradient, and every parameter after a step, in float32, without the plan's padding."""
    model = Model.init(config, plan, seed=1, devices=devices)
    place = Placement(plan, model.mesh, *batch.tokens.shape)
    with jax.set_mesh(model.mesh):
        state = init_state(model.params, TRAIN, plan)
        step = make_step(model.graphdef, model.params, NextToken(), TRAIN, config.tile_tokens, plan=plan)
        state, metrics = step(state, place(batch), None, jax.random.key(5))
    moments = optax.tree_utils.tree_get(state.optimizer, "mu")

    def trimmed(tree: Any, change: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
        found = {path: change(np.asarray(leaf)) for path, leaf in flatten_dict(tree, sep="/").items()}
        vocab = config.decoder.vocab
        found["decoder/embed/table"] = found["decoder/embed/table"][:vocab]
        found["decoder/head/kernel"] = found["decoder/head/kernel"][:, :vocab]
        return found

    return {
        "loss": {"": np.asarray(metrics.loss)},
        "gradient": trimmed(moments, lambda leaf: leaf / (1 - TRAIN.beta1)),
        "stepped": trimmed(state.params, lambda leaf: leaf),
    }
