"""Rows whose positions lie on several devices: loss, gradients and a step equal one device's, in every form."""

import dataclasses
from functools import cache

import jax
import numpy as np
import pytest
from flax import nnx

from ivl3_jax.batch import IGNORE
from ivl3_jax.config import RopeScaling
from ivl3_jax.models.internvl import token_losses
from ivl3_jax.models.model import Model, place_batch
from ivl3_jax.sharding.context import Context
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.training.objectives import answer_log_probs
from tests.models.small import changed, random_batch, relative
from tests.sharding.test_equal import assert_gradients, assert_stepped, computed
from tests.tolerances import GRADIENT, STACK

MESHES = {
    "fsdp 2 x context 2 x tensor 2": {"fsdp": 2, "context": 2, "tensor": 2},
    "fsdp 2 x context 4": {"fsdp": 2, "context": 4},
    "context 8": {"context": 8},
}
FORMS = ["gather plain", "gather zigzag", "all_to_all plain", "ring plain", "ring zigzag"]
QUICK = [(list(MESHES)[0], "gather zigzag")]

pytestmark = pytest.mark.slow


def mixed_batch():
    """Four rows of 48 positions: two segments with images and padding; one segment; text alone; little but padding."""
    batch = random_batch(4, [(20, 1), (17, 1)], length=48, tiles=2)
    batch.segment_ids[1, :37] = 1
    batch.positions[1, :37] = np.arange(37) / 4  # V2PE's fractions
    for row in (2, 3):
        batch.visual_index[row] = -1
        batch.tokens[row, :37] = np.random.default_rng(row).integers(0, 300, 37)
    for name, padding in (("segment_ids", 0), ("positions", 0), ("labels", IGNORE), ("loss_weights", 0)):
        getattr(batch, name)[3, 9:] = padding
    return batch


def plan_of(mesh, form):
    plan = ShardingPlan.read("context", MESHES[mesh])
    return dataclasses.replace(plan, context=Context(*form.split()))


@cache
def one_device():
    return computed(ShardingPlan(), mixed_batch())


@pytest.mark.parametrize(
    ("mesh", "form"),
    [
        pytest.param(mesh, form, marks=() if (mesh, form) in QUICK else pytest.mark.long)
        for mesh in MESHES
        for form in FORMS
    ],
)
def test_everything_equals_one_device(mesh, form):
    sharded, expected = computed(plan_of(mesh, form), mixed_batch()), one_device()
    filled = mixed_batch().segment_ids > 0
    assert relative(sharded["logits"][filled], expected["logits"][filled]) < STACK["float32"]
    assert sharded["loss"] == pytest.approx(expected["loss"], rel=STACK["float32"])
    assert sharded["norm"] == pytest.approx(expected["norm"], rel=GRADIENT["float32"])
    assert_gradients(sharded, expected)
    assert_stepped(sharded, expected)


@pytest.mark.parametrize("form", ["gather zigzag", pytest.param("ring zigzag", marks=pytest.mark.long)])
def test_what_leaves_the_model_is_in_the_order_of_the_row(form):
    """Logits, losses of tokens and of the answers of pairs, where rope depends on the longest position of a row."""
    scaling = RopeScaling("dynamic", 2.0, applied=True)
    config = changed(decoder={"max_positions": 16, "rope_scaling": scaling})
    batch = mixed_batch()
    batch.pair_id[...], batch.chosen[...] = 0, [True, False]

    def leaving(plan, config):
        model = Model.init(config, plan, seed=1)

        def run(params, batch):
            module = nnx.merge(model.graphdef, params)
            return module(batch), token_losses(module, batch), answer_log_probs(module, batch)

        with jax.set_mesh(model.mesh):
            return jax.device_get(jax.jit(run)(model.params, place_batch(batch, plan, model.mesh)))

    found, expected = leaving(plan_of("context 8", form), config), leaving(ShardingPlan(), config)
    plain, _, _ = leaving(ShardingPlan(), changed())
    filled = batch.segment_ids > 0
    assert relative(found[0][filled], expected[0][filled]) < STACK["float32"] < relative(plain, expected[0])
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert ours.shape == theirs.shape and relative(ours, theirs) < STACK["float32"]
