"""The step: packed equals unpacked, in any parts and on any mesh; what is frozen stays; bad ones are not made."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils

from ivl3_jax.models.model import Model
from ivl3_jax.sharding.compiler import OPTIONS
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.training.config import TrainConfig
from ivl3_jax.training.objectives import NextToken
from ivl3_jax.training.placing import Placement
from ivl3_jax.training.step import _or_fewer, init_state, make_step
from ivl3_jax.training.trained import Component
from tests.models.small import CONFIG, changed, relative
from tests.tolerances import GRADIENT, STACK
from tests.training.segments import batch_of, segment

WEIGHTINGS = ("token", "sample", "square")
TRAIN = TrainConfig(steps=10, warmup_steps=0, learning_rate=1e-2, eps=1e-3, clip_norm=1e9)
K_BIAS = "vision/layers/attention/k/bias"  # its gradient is zero but for rounding


@cache
def segments():
    """With one image, several, none; long and short answers."""
    rng = np.random.default_rng(0)
    shapes = [
        (20, 1, 0.5),
        (9, 2, 0.2),
        (30, 0, 0.9),
        (12, 0, 0.3),
        (6, 1, 1.0),
        (25, 2, 0.6),
        (16, 0, 0.1),
        (8, 1, 0.5),
    ]
    return [segment(rng, *shape, source=number % 2) for number, shape in enumerate(shapes)]


def packed(weighting):
    """Two segments in each of four rows, and four rows that are empty but for one."""
    found = segments()
    rows = [found[0:2], found[2:4], found[4:6], [found[6]], [found[7]], [], [], []]
    return batch_of(rows, tokens=64, tiles=4, weighting=weighting)


def unpacked(weighting):
    return batch_of([[one] for one in segments()], tokens=64, tiles=4, weighting=weighting)


def step_of(batch, *options, **named):
    """Metrics, gradients by path, and the state after a step from fresh parameters."""
    (found,) = steps_of([batch], *options, **named)
    return found


def steps_of(batches, config=TRAIN, plan=None, model_config=CONFIG, parts=1):
    """`step_of` each of several batches of one shape, which is compiled once."""
    config = dataclasses.replace(config, accumulate=parts)
    model = Model.init(model_config, plan or ShardingPlan(), seed=1)
    place = Placement(model.plan, model.mesh, *batches[0].tokens.shape, parts=parts)
    with jax.set_mesh(model.mesh):
        step = make_step(model.graphdef, model.params, NextToken(), config, model.config.tile_tokens, sources=2)
        for batch in batches:
            placed = place(here(batch, place))
            fresh = jax.tree.map(jnp.copy, model.params)  # the step takes its state's memory over
            state, metrics = step(init_state(fresh, config), placed, None, jax.random.key(5))
            moments = flat(optax.tree_utils.tree_get(state.optimizer, "mu"))
            yield metrics, {path: value / (1 - config.beta1) for path, value in moments.items()}, state


def here(batch, place):
    """The rows that this process has to make."""
    return type(batch)(*(leaf[place.rows] for leaf in batch))


def flat(tree):
    return {path: gathered(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}


def gathered(leaf):
    """The whole of an array, where several processes have parts of it too."""
    local = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
    return np.asarray(leaf if local else multihost_utils.process_allgather(leaf, tiled=True), np.float64)


def agree(found, expected):
    for path, value in expected.items():
        if path != K_BIAS:
            trimmed = found[path][tuple(map(slice, value.shape))]
            assert relative(trimmed, value) < GRADIENT["float32"], path


@cache
def whole(weighting):
    return step_of(unpacked(weighting))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("parts", [2, *(pytest.param(parts, marks=pytest.mark.long) for parts in (1, 4))])
def test_packed_in_parts_equals_unpacked(weighting, parts):
    expected, gradients, _ = whole(weighting)
    metrics, found, _ = step_of(packed(weighting), parts=parts)
    assert float(metrics.loss) == pytest.approx(float(expected.loss), rel=STACK["float32"])
    np.testing.assert_allclose(metrics.by_source, expected.by_source, rtol=STACK["float32"])
    np.testing.assert_allclose(metrics.by_kind, expected.by_kind, rtol=STACK["float32"])
    agree(found, gradients)


@pytest.mark.slow
@pytest.mark.parametrize("weighting", [pytest.param("token", marks=pytest.mark.long), "sample", "square"])
@pytest.mark.parametrize("parts", [pytest.param(1, marks=pytest.mark.long), 2])
def test_packed_on_eight_devices_equals_unpacked(weighting, parts):
    plan = ShardingPlan.read("fsdp_tensor", {"fsdp": 4, "tensor": 2})
    metrics, found, _ = step_of(packed(weighting), plan=plan, parts=parts)
    assert float(metrics.loss) == pytest.approx(float(whole(weighting)[0].loss), rel=STACK["float32"])
    agree(found, whole(weighting)[1])


def test_what_is_counted():
    metrics, _, _ = step_of(packed("token"), parts=2)
    found = segments()
    assert int(metrics.tokens) == sum(int((one.labels != -100).sum()) for one in found)
    assert int(metrics.positions) == sum(map(len, found)) and int(metrics.segments) == len(found)
    assert int(metrics.tiles) == sum(len(one.tiles) for one in found)
    assert float(metrics.attended) == sum(len(one) * (len(one) + 1) / 2 for one in found)
    weights = [sum((one.labels != -100).sum() for one in found[source::2]) for source in range(2)]
    assert metrics.by_source[1].tolist() == weights
    assert float(metrics.by_source[0].sum() / sum(weights)) == pytest.approx(float(metrics.loss), rel=1e-5)


def test_each_part_for_itself():
    """per_microstep: the mean of the parts' own means, as the original accumulates."""
    batch = packed("token")
    config = dataclasses.replace(TRAIN, normalize="per_microstep")
    metrics, _, _ = step_of(batch, config, parts=2)
    halves = [step_of(type(batch)(*(leaf[half] for leaf in batch)))[0] for half in (np.s_[:4], np.s_[4:])]
    assert float(metrics.loss) == pytest.approx(np.mean([float(half.loss) for half in halves]), rel=STACK["float32"])
    assert abs(float(metrics.loss) - float(whole("token")[0].loss)) > 1e-3


@pytest.mark.long
def test_drop_path_does_not_depend_on_the_parts():
    config = changed(vision={"drop_path": 0.5})
    losses = [float(step_of(packed("token"), model_config=config, parts=parts)[0].loss) for parts in (1, 2, 4)]
    assert losses == pytest.approx([losses[0]] * 3, rel=STACK["float32"])
    assert abs(losses[0] - float(whole("token")[0].loss)) > 1e-4


FROZEN = {
    "the ViT": ({"vision": Component(train=False)}, lambda path: path[0] != "vision"),
    "all but the projector": (
        {"vision": Component(train=False), "decoder": Component(train=False)},
        lambda path: path[0] == "projector",
    ),
    "all but the ViT's last layer": (
        {"vision": Component(layers="-1:"), "projector": Component(train=False), "decoder": Component(train=False)},
        lambda path: path[:2] == ("vision", "layers"),
    ),
}


@pytest.mark.parametrize(
    "name", [name if "last layer" in name else pytest.param(name, marks=pytest.mark.long) for name in FROZEN]
)
def test_what_is_frozen_does_not_move(name):
    components, moves = FROZEN[name]
    model = Model.init(CONFIG, seed=1)
    before = flat(model.params)
    _, gradients, state = step_of(packed("square"), dataclasses.replace(TRAIN, **components))
    for path, value in flat(state.params).items():
        parts = tuple(path.split("/"))
        moved = (value != before[path]).reshape(value.shape[0], -1).any(axis=1) if value.ndim else value != before[path]
        if not moves(parts):
            assert not moved.any() and path not in gradients, path
        elif parts[:2] == ("vision", "layers") and "last" in name:
            assert not moved[:-1].any() and moved[-1], path
        else:
            assert moved.any(), path


def test_rates_of_components_and_layers():
    slow = dataclasses.replace(TRAIN, vision=Component(rate=0.5, layer_decay=0.5), weight_decay=0.0)
    start = flat(Model.init(CONFIG, seed=1).params)
    plain = flat(step_of(packed("square"), dataclasses.replace(TRAIN, weight_decay=0.0))[2].params)
    found = flat(step_of(packed("square"), slow)[2].params)

    def ratio(path, at=...):
        return np.linalg.norm((found[path] - start[path])[at]) / np.linalg.norm((plain[path] - start[path])[at])

    kernel = "vision/layers/mlp/up/kernel"
    assert [ratio(kernel, layer) for layer in range(3)] == pytest.approx([0.5**4, 0.5**3, 0.5**2], rel=1e-3)
    assert ratio("vision/patch/kernel") == pytest.approx(0.5**5, rel=1e-3)
    assert ratio("decoder/layers/mlp/up/kernel") == pytest.approx(1, rel=1e-6)


def test_layers_that_are_no_slice():
    with pytest.raises(ValueError, match=r"TrainConfig.decoder.layers is 'last'; it must be a slice such as 20: or"):
        TrainConfig(decoder=Component(layers="last"))
    with pytest.raises(ValueError, match="train.vision.layers is '90:'; it selects none of the 3 layers"):
        none = {
            "vision": Component(layers="90:"),
            "projector": Component(train=False),
            "decoder": Component(train=False),
        }
        init_state(Model.init(CONFIG).params, dataclasses.replace(TRAIN, **none))


def test_a_step_that_is_no_number_changes_nothing():
    batch = packed("token")
    batch.loss_weights[0] *= np.nan
    before = flat(Model.init(CONFIG, seed=1).params)
    metrics, gradients, state = step_of(batch)
    assert not metrics.applied and np.isnan(metrics.loss)
    assert int(state.step) == 1
    assert all((value == before[path]).all() for path, value in flat(state.params).items())
    assert not any(value.any() for value in gradients.values())


def test_the_rate_is_that_of_the_step_also_behind_steps_that_were_not_applied():
    model, good, bad = Model.init(CONFIG, seed=1), packed("token"), packed("token")
    bad.loss_weights[0] *= np.nan
    place = Placement(model.plan, model.mesh, *good.tokens.shape)
    with jax.set_mesh(model.mesh):
        step = make_step(model.graphdef, model.params, NextToken(), TRAIN, model.config.tile_tokens)
        state = init_state(copies(model.params), TRAIN)
        for _ in range(5):
            state, metrics = step(state, place(bad), None, jax.random.key(0))
            assert not metrics.applied
        behind, _ = step(state, place(good), None, jax.random.key(0))
        state = init_state(copies(model.params), TRAIN)._replace(step=jax.numpy.int32(5))
        straight, _ = step(state, place(good), None, jax.random.key(0))
    assert int(behind.step) == int(straight.step) == 6
    found, expected = flat(behind.params), flat(straight.params)
    assert all((value == expected[path]).all() for path, value in found.items())
    assert any((value != flat(model.params)[path]).any() for path, value in found.items())


def copies(params):
    return jax.tree.map(lambda leaf: leaf.copy(), params)


def test_a_spike_changes_nothing():
    model = Model.init(CONFIG, seed=1)
    config = dataclasses.replace(TRAIN, spike=1.5, learning_rate=1e-6)
    batch = packed("token")
    place = Placement(model.plan, model.mesh, *batch.tokens.shape)
    with jax.set_mesh(model.mesh):
        step = make_step(model.graphdef, model.params, NextToken(), config, model.config.tile_tokens)
        state = init_state(model.params, config)
        for _ in range(20):
            state, metrics = step(state, place(batch), None, jax.random.key(0))
            assert metrics.applied
        usual = float(state.usual[0])
        assert usual == pytest.approx(float(metrics.loss), rel=1e-2)
        state = state._replace(usual=(state.usual[0] / 2, state.usual[1]))
        before = flat(state.params)
        state, metrics = step(state, place(batch), None, jax.random.key(0))
    assert not metrics.applied
    assert all((value == before[path]).all() for path, value in flat(state.params).items())


def test_moving_average_and_moment_dtype():
    config = dataclasses.replace(TRAIN, average=0.9, moment_dtype="bfloat16")
    before = flat(Model.init(CONFIG, seed=1).params)
    _, _, state = step_of(packed("square"), config)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(optax.tree_utils.tree_get(state.optimizer, "mu"))} == {
        "bfloat16"
    }
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(optax.tree_utils.tree_get(state.optimizer, "nu"))} == {
        "float32"
    }
    after = flat(state.params)
    for path, value in flat(state.average).items():
        np.testing.assert_allclose(value, 0.1 * before[path] + 0.9 * after[path], rtol=1e-5, atol=1e-7, err_msg=path)


NO_ROOM = "FAILED_PRECONDITION: ... requires allocation in the alternate memory, ..."
NOT_HERE = (
    "FAILED_PRECONDITION: Continuation fusion for AllGather is enabled on platform viperfish (variant: ), but ..."
)


@pytest.mark.parametrize(("said", "gathers"), [([NO_ROOM], 1), ([NOT_HERE], 0), ([NO_ROOM, NOT_HERE], 0)])
def test_a_step_is_compiled_without_options_for_which_the_compiler_gives_it_up(said, gathers):
    errors, tried = iter(said), []

    def jitted(options):
        def step(x):
            tried.append(options)
            if error := next(errors, None):
                raise jax.errors.JaxRuntimeError(error)
            return x

        return step

    step = _or_fewer(jitted, OPTIONS["v5p"])
    with pytest.warns(UserWarning, match="the step is compiled without"):
        assert step(1) == 1
    assert step(2) == 2 and len(tried) == len(said) + 2
    assert tried[0] == OPTIONS["v5p"] and tried[-1] is tried[-2]
    fuses = [name for name in tried[-1] if "fuse" in name]
    assert fuses == ["xla_tpu_enable_async_collective_fusion_fuse_all_gather"] * gathers
    assert "xla_enable_async_all_gather" in tried[-1]


@pytest.mark.parametrize(
    ("error", "options"),
    [("INTERNAL: something else", OPTIONS["v5e"]), (NOT_HERE, {"xla_enable_async_all_gather": True})],
)
def test_other_errors_of_the_compiler_are_raised(error, options):
    def broken(x):
        raise jax.errors.JaxRuntimeError(error)

    with pytest.raises(jax.errors.JaxRuntimeError, match=error.partition(":")[0]):
        _or_fewer(lambda options: broken, options)(1)
