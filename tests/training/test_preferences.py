"""Mixed preference optimisation: each part, the reward shift and every gradient beside a plain PyTorch computation."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from ivl3_jax.batch import IGNORE
from ivl3_jax.conversion.checkpoint import load
from ivl3_jax.models.model import Model
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.training.config import TrainConfig
from ivl3_jax.training.objectives import MixedPreference, NextToken, PreferenceWeights
from ivl3_jax.training.placing import Placement
from ivl3_jax.training.reference import ReferenceModel
from ivl3_jax.training.step import init_state, make_step
from tests.models.small import CONFIG, relative
from tests.parity.reference import tiny
from tests.tolerances import GRADIENT, STACK
from tests.training.segments import batch_of, pair, segment

BETA = 0.1
TRAIN = TrainConfig(steps=10, warmup_steps=0, learning_rate=1e-2, eps=1e-3, clip_norm=1e9)


def pairs(count=4, seed=0):
    rng = np.random.default_rng(seed)
    return [pair(rng, text, tiles) for text, tiles in [(24, 1), (18, 0), (30, 2), (21, 1)][:count]]


def packed(alone=False):
    """Two pairs in a row, one, and one beside a segment that is in no pair, or none."""
    a, b, c, d = pairs()
    others = [segment(np.random.default_rng(9), 12)] if alone else []
    return batch_of([[*a, *b], [*c], [*d, *others], []], tokens=96, tiles=4, segments=5, weighting="token")


def unpacked():
    """A pair in each row."""
    return batch_of(pairs(), tokens=96, tiles=4, segments=5, weighting="token")


def made(batch, weights=PreferenceWeights(), plan=None, parts=1, steps=1):  # noqa: B008 (frozen)
    """Metrics of each step, gradients of the first, the last state; the reference is another fresh model."""
    config = dataclasses.replace(TRAIN, accumulate=parts, preference=weights)
    plan = plan or ShardingPlan()
    model, other = Model.init(CONFIG, plan, seed=1), Model.init(CONFIG, plan, seed=2)
    place = Placement(plan, model.mesh, *batch.tokens.shape, parts=parts)
    told, gradients = [], None
    with jax.set_mesh(model.mesh):
        step = make_step(model.graphdef, model.params, MixedPreference(weights), config, model.config.tile_tokens)
        reference = ReferenceModel(other)
        state = init_state(model.params, config)
        for number in range(steps):
            placed = place(batch)
            state, metrics = step(state, placed, reference(number, placed), jax.random.key(0))
            told.append(metrics)
            if number == 0:
                moments = optax.tree_utils.tree_get(state.optimizer, "mu")
                gradients = jax.tree.map(lambda leaf: np.asarray(leaf / (1 - config.beta1)), moments)
    return told, flatten_dict(gradients, sep="/"), state


def same_gradients(found, expected):
    for path, value in expected.items():
        if not path.endswith("attention/k/bias"):
            trimmed = found[path][tuple(map(slice, value.shape))]
            assert relative(trimmed, value) < GRADIENT["float32"], path


def test_packed_equals_unpacked():
    (expected,), gradients, _ = made(unpacked())
    (metrics,), found, state = made(packed())
    for name, value in expected.parts.items():
        assert float(metrics.parts[name]) == pytest.approx(float(value), rel=STACK["float32"]), name
    assert float(metrics.loss) == pytest.approx(float(expected.loss), rel=STACK["float32"])
    same_gradients(found, gradients)
    assert float(state.shift.count) == 8


@pytest.mark.long
def test_packed_on_eight_devices():
    (expected,), gradients, _ = made(packed())
    plan = ShardingPlan.read("fsdp_tensor", {"fsdp": 4, "tensor": 2})
    (metrics,), found, _ = made(packed(), plan=plan)
    assert float(metrics.loss) == pytest.approx(float(expected.loss), rel=STACK["float32"])
    same_gradients(found, gradients)


def test_preference_and_generation_do_not_depend_on_the_parts():
    """Quality does: the reward shift moves with each part before its use, as in the original."""
    weights = PreferenceWeights(quality=0.0)
    (expected,), gradients, _ = made(packed(), weights)
    (metrics,), found, state = made(packed(), weights, parts=2)
    assert float(metrics.loss) == pytest.approx(float(expected.loss), rel=STACK["float32"])
    same_gradients(found, gradients)
    assert float(state.shift.count) == 8


def test_what_is_in_no_pair_is_taught():
    (metrics,), _, _ = made(packed(alone=True), PreferenceWeights(0, 0, 1))
    batch = packed(alone=True)
    rejected = np.where(batch.pair_id >= 0, ~batch.chosen, False)
    of_rejected = np.take_along_axis(rejected, np.maximum(batch.segment_ids - 1, 0), axis=1) & (batch.segment_ids > 0)
    taught = batch._replace(loss_weights=((batch.labels != IGNORE) & ~of_rejected).astype(np.float32))
    model = Model.init(CONFIG, seed=1)
    place = Placement(model.plan, model.mesh, *batch.tokens.shape)
    with jax.set_mesh(model.mesh):
        step = make_step(model.graphdef, model.params, NextToken(), TRAIN, model.config.tile_tokens)
        _, expected = step(init_state(model.params, TRAIN), place(taught), None, jax.random.key(0))
    assert float(metrics.loss) == pytest.approx(float(expected.loss), rel=STACK["float32"])


def torch_parts(torch, log_probs, reference, shift):
    """reference.md 8.3, from log-probabilities (chosen, rejected) of all pairs; the shift is (mean, count) before."""
    rewards = BETA * (log_probs - reference)
    mean, count = shift
    detached = rewards.detach().flatten()
    mean = (mean * count + detached.sum()) / (count + len(detached))
    chosen, rejected = rewards
    preference = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
    quality = (
        -torch.nn.functional.logsigmoid(chosen - mean) - torch.nn.functional.logsigmoid(-(rejected - mean))
    ).mean()
    return preference, quality, (mean, count + len(detached))


@pytest.mark.slow
def test_three_steps_are_those_of_pytorch(torch):
    """Parts, shift and gradients in float64, the reference being the model that the steps begin with, as in MPO."""
    parity_reference = pytest.importorskip("ivl3_jax.conversion.parity_reference", exc_type=ImportError)
    from ivl3_jax.conversion.names import parameters
    from ivl3_jax.conversion.parity import example_batch

    config = load(tiny("6b")).config
    chosen, rejected = example_batch(config, 40, 1), example_batch(config, 40, 1)
    answer = np.arange(chosen.tokens.shape[1]) >= chosen.tokens.shape[1] - 15
    rng = np.random.default_rng(3)
    tokens = np.where(answer, rng.integers(0, 200, chosen.tokens.shape), chosen.tokens).astype(np.int32)
    labels = [np.where(answer, np.roll(t, -1, axis=1), IGNORE).astype(np.int32) for t in (chosen.tokens, tokens)]
    for label in labels:
        label[:, -1] = IGNORE
    rejected = chosen._replace(tokens=tokens, labels=labels[1], loss_weights=(labels[1] != IGNORE).astype(np.float32))
    chosen = chosen._replace(labels=labels[0], loss_weights=(labels[0] != IGNORE).astype(np.float32))
    rows, S = chosen.tokens.shape

    def beside(a, b):
        return np.concatenate([a, b], axis=1)

    both = chosen._replace(
        tokens=beside(chosen.tokens, rejected.tokens),
        labels=beside(*labels),
        segment_ids=beside(chosen.segment_ids, rejected.segment_ids * 2),
        positions=beside(chosen.positions, chosen.positions),
        loss_weights=beside(chosen.loss_weights, rejected.loss_weights),
        visual_index=beside(chosen.visual_index, chosen.visual_index),
        source_id=np.zeros((rows, 2), np.int32),
        pair_id=np.zeros((rows, 2), np.int32),
        chosen=np.array([[True, False]] * rows),
    )
    weights = PreferenceWeights()
    train = TrainConfig(
        steps=3, warmup_steps=0, learning_rate=1e-3, clip_norm=1e9, weight_decay=0.0, preference=weights
    )

    with jax.enable_x64(True):
        start = load(tiny("6b"), "float64")
        place = Placement(start.plan, start.mesh, rows, 2 * S)
        told, first = [], None
        with jax.set_mesh(start.mesh):
            step = make_step(start.graphdef, start.params, MixedPreference(weights), train, config.tile_tokens)
            reference = ReferenceModel(load(tiny("6b"), "float64"))
            state = init_state(start.params, train)
            for number in range(3):
                placed = place(both)
                state, metrics = step(state, placed, reference(number, placed), jax.random.key(0))
                told.append([float(metrics.parts[name]) for name in ("preference", "quality", "generation")])
                told[-1].append(float(state.shift.mean))
                if first is None:
                    moments = optax.tree_utils.tree_get(state.optimizer, "mu")
                    first = flatten_dict(
                        jax.tree.map(lambda leaf: np.asarray(leaf) / (1 - train.beta1), moments), sep="/"
                    )

    theirs = parity_reference.load_reference(tiny("6b"), "float64")
    frozen = parity_reference.load_reference(tiny("6b"), "float64")
    inputs = [parity_reference.inputs_from_batch(one, config, "float64") for one in (chosen, rejected)]

    def log_probs(model):
        found = []
        for given, label in zip(inputs, labels, strict=True):
            logits = model(**given, use_cache=False).logits
            target = torch.from_numpy(label.astype(np.int64))
            each = torch.nn.functional.cross_entropy(
                logits.transpose(1, 2), target, ignore_index=IGNORE, reduction="none"
            )
            found.append(-each.sum(dim=1))
        return torch.stack(found)

    with torch.no_grad():
        fixed = log_probs(frozen)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-3, eps=train.eps, weight_decay=0.0)
    rates = [1e-3 * 0.5 * (1 + np.cos(np.pi * number / 3)) for number in range(3)]
    shift, expected = (0.0, 0), []
    for number in range(3):
        optimizer.zero_grad()
        found = log_probs(theirs)
        preference, quality, shift = torch_parts(torch, found, fixed, shift)
        generation = -found[0].sum() / int((labels[0] != IGNORE).sum())
        (0.8 * preference + 0.2 * quality + 1.0 * generation).backward()
        if number == 0:
            gradients = {
                p.path: np.stack([p.layout.to_ours(dict(theirs.named_parameters())[n].grad.numpy()) for n in p.tensors])
                for p in parameters(config)
            }
        optimizer.param_groups[0]["lr"] = rates[number]
        optimizer.step()
        expected.append([preference.item(), quality.item(), generation.item(), float(shift[0])])
    np.testing.assert_allclose(told, expected, rtol=1e-6, atol=1e-9)
    assert abs(expected[-1][3]) > 1e-6, "the shift has not moved"
    for path, value in gradients.items():
        found = first[path] if value.shape == first[path].shape else first[path][None]
        assert relative(found, value) < 1e-8, path
