"""Rows whose positions lie on several devices: loss, gradients and a step equal one device's, in every form."""

import dataclasses
from functools import cache

import numpy as np
import pytest

from ivl3_jax.batch import IGNORE
from ivl3_jax.sharding.context import Context
from ivl3_jax.sharding.plan import ShardingPlan
from tests.models.small import random_batch, relative
from tests.sharding.test_equal import assert_gradients, assert_stepped, computed
from tests.tolerances import GRADIENT, STACK

MESHES = {
    "fsdp 2 x context 2 x tensor 2": {"fsdp": 2, "context": 2, "tensor": 2},
    "fsdp 2 x context 4": {"fsdp": 2, "context": 4},
    "context 8": {"context": 8},
}
FORMS = ["gather plain", "gather zigzag", "all_to_all plain", "ring plain", "ring zigzag"]
QUICK = [*((mesh, form) for mesh in list(MESHES)[:1] for form in FORMS), ("context 8", "ring zigzag")]

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
