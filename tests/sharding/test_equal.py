"""The same model on eight fake devices in several meshes: what is computed does not depend on where it lies."""

from functools import cache

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P

from ivl3_jax.conversion.checkpoint import load, save
from ivl3_jax.models.model import Model
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.training.config import TrainConfig
from ivl3_jax.training.objectives import NextToken
from ivl3_jax.training.placing import Placement
from ivl3_jax.training.step import init_state, make_step
from tests.models.small import changed, random_batch, relative
from tests.tolerances import GRADIENT, STACK

MESHES = {
    "fsdp 4 x tensor 2": {"fsdp": 4, "tensor": 2},
    "data 2 x fsdp 2 x tensor 2": {"data": 2, "fsdp": 2, "tensor": 2},
    "fsdp 1 x tensor 8": {"tensor": 8},
    "fsdp 8 x tensor 1": {"fsdp": 8},
    "one device, by its plan": {"fsdp": 1, "tensor": 1},
}
CONFIG = changed(vision={"drop_path": 0.3})
# An epsilon that keeps AdamW from blowing gradients up that are zero but for rounding; no clipping, so that the first
# moment is the gradient but for its factor.
TRAIN = TrainConfig(steps=10, warmup_steps=0, learning_rate=1e-2, eps=1e-3, clip_norm=1e9)
K_BIAS = "vision/layers/attention/k/bias"

pytestmark = pytest.mark.slow


def trimmed(params):
    """Parameters by their paths, without what the plan pads the vocabulary with."""
    found = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
    vocab = CONFIG.decoder.vocab
    table, head = found["decoder/embed/table"], found["decoder/head/kernel"]
    assert not table[vocab:].any() and not head[:, vocab:].any()
    return found | {"decoder/embed/table": table[:vocab], "decoder/head/kernel": head[:, :vocab]}


@cache
def everything(name):
    plan = ShardingPlan.read("fsdp_tensor", MESHES[name]) if name else ShardingPlan()
    return computed(plan, random_batch(8, [(20, 1), (17, 1)], length=40, tiles=2))


def computed(plan, batch, config=CONFIG):
    """Fresh parameters, logits, and the loss, gradients and parameters of one training step with drop-path."""
    model = Model.init(config, plan, seed=1)
    found = {"fresh": trimmed(model.params), "logits": np.asarray(model(batch))}
    place = Placement(plan, model.mesh, *batch.tokens.shape)
    with jax.set_mesh(model.mesh):
        state = init_state(model.params, TRAIN)
        layouts = jax.tree.map(lambda leaf: leaf.sharding, state.params)
        step = make_step(model.graphdef, model.params, NextToken(), TRAIN, model.config.tile_tokens)
        state, metrics = step(state, place(batch), None, jax.random.key(5))
    assert jax.tree.map(lambda leaf: leaf.sharding, state.params) == layouts
    moments = optax.tree_utils.tree_get(state.optimizer, "mu")
    gradients = jax.tree.map(lambda leaf: leaf / (1 - TRAIN.beta1), moments)
    return found | {
        "loss": float(metrics.loss),
        "norm": float(metrics.grad_norm),
        "gradients": trimmed(gradients),
        "stepped": trimmed(state.params),
    }


@pytest.fixture(scope="module")
def one_device():
    return everything(None)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=() if name == "data 2 x fsdp 2 x tensor 2" else pytest.mark.long) for name in MESHES
    ],
)
def sharded(request):
    return everything(request.param)


def test_fresh_parameters_are_the_same_numbers(one_device, sharded):
    for path, expected in one_device["fresh"].items():
        np.testing.assert_array_equal(sharded["fresh"][path], expected, err_msg=path)


def test_logits_and_loss(one_device, sharded):
    assert sharded["logits"].shape == (8, 40, CONFIG.decoder.vocab)
    assert relative(sharded["logits"], one_device["logits"]) < STACK["float32"]
    assert sharded["loss"] == pytest.approx(one_device["loss"], rel=STACK["float32"])
    assert sharded["norm"] == pytest.approx(one_device["norm"], rel=GRADIENT["float32"])


def test_every_gradient(one_device, sharded):
    assert_gradients(sharded, one_device)


def assert_gradients(sharded, one_device):
    expected = dict(one_device["gradients"])
    scale = np.abs(expected["vision/layers/attention/q/bias"]).max()
    # Zero but for rounding: a constant added to all keys changes no softmax.
    np.testing.assert_allclose(sharded["gradients"][K_BIAS], expected.pop(K_BIAS), atol=GRADIENT["float32"] * scale)
    over = {path: relative(sharded["gradients"][path], value) for path, value in expected.items()}
    assert {path: error for path, error in over.items() if error >= GRADIENT["float32"]} == {}


def test_one_step_of_adamw(one_device, sharded):
    assert_stepped(sharded, one_device)


def assert_stepped(sharded, one_device):
    for path, expected in one_device["stepped"].items():
        if path == K_BIAS:
            np.testing.assert_allclose(sharded["stepped"][path], expected, atol=STACK["float32"])
            continue
        assert relative(sharded["stepped"][path], expected) < STACK["float32"], path
        assert relative(expected, one_device["fresh"][path] + 1e-30) > 1e-4, f"{path} has not moved"


def test_key_and_value_heads_are_replicated_where_they_do_not_divide():
    plan = ShardingPlan.read("fsdp_tensor", {"tensor": 8})
    model = Model.init(CONFIG, plan)
    attention = model.params["decoder"]["layers"]["attention"]
    assert attention["k"]["kernel"].sharding.spec == P(None, "fsdp", None, None)
    assert attention["q"]["kernel"].sharding.spec == P(None, "fsdp", "tensor", None)


def test_a_checkpoint_loads_alike_under_a_plan(tmp_path):
    source = Model.init(CONFIG, seed=2)
    save(source, tmp_path / "checkpoint")
    model = load(tmp_path / "checkpoint", plan=ShardingPlan.read("fsdp_tensor", {"fsdp": 4, "tensor": 2}))
    assert model.params["decoder"]["embed"]["table"].shape[0] == 302
    expected = flatten_dict(source.params, sep="/")
    for path, found in trimmed(model.params).items():
        np.testing.assert_array_equal(found, expected[path], err_msg=path)


@pytest.mark.long
def test_tiles_that_do_not_divide():
    """Four rows of three tiles on eight devices."""
    batch = random_batch(4, [(20, 1), (17, 2)], length=40, tiles=3)
    found, expected = (
        computed(plan, batch)
        for plan in (ShardingPlan.read("fsdp_tensor", MESHES["fsdp 4 x tensor 2"]), ShardingPlan())
    )
    assert relative(found["logits"], expected["logits"]) < STACK["float32"]
    assert_gradients(found, expected)
