"""Adapters under every plan: what they begin with, compute and learn does not depend on where they lie."""

from functools import cache

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P

from ivl3_jax.models.adapters import adapted, merged
from ivl3_jax.models.model import Model
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.sharding.plan_file import PLAN_DIRECTORY
from tests.models.adapted import EVERYWHERE, adapter_gradients, trained
from tests.models.small import CONFIG, random_batch, relative
from tests.tolerances import GRADIENT, STACK

# Meshes of eight devices, by plan.
PLANS = {
    "single": [{}],
    "fsdp_tensor": [{"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}, {"tensor": 8}],
    "context": [{"context": 4, "tensor": 2}],
    "fsdp": [{"fsdp": 8}],
    "fsdp_wide": [{"data": 2, "fsdp": 4}],
    "hybrid": [{"data": 2, "fsdp": 4}],
    "sequence": [{"fsdp": 2, "tensor": 4}],
    "pipeline": [{"stage": 2, "fsdp": 2, "tensor": 2}],
}

pytestmark = pytest.mark.slow


def fresh(plan):
    return Model.init(CONFIG, plan, seed=1)


def by_path(model):
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(model.params, sep="/").items()}


@cache
def everything(name, **mesh):
    plan = ShardingPlan.read(name, mesh) if name else ShardingPlan()
    batch = random_batch(8, [(20, 1), (17, 1)], length=40, tiles=2)
    one = trained(fresh(plan))
    loss, gradients = adapter_gradients(one, batch)
    return {
        "begin": by_path(adapted(fresh(plan), EVERYWHERE)),
        "merged": by_path(merged(one)),
        "logits": np.asarray(one(batch)),
        "loss": loss,
        "gradients": gradients,
    }


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        pytest.param(name, mesh, marks=() if name == "context" else pytest.mark.long)
        for name, meshes in PLANS.items()
        for mesh in meshes
    ],
)
def test_sharded_equals_unsharded(name, mesh):
    found, expected = everything(name, **mesh), everything(None)
    for what in ("begin", "merged"):  # bit by bit
        for path, values in expected[what].items():
            if path not in ("decoder/embed/table", "decoder/head/kernel"):  # padded by some plans
                np.testing.assert_array_equal(found[what][path], values, err_msg=f"{what} {path}")
    assert relative(found["logits"], expected["logits"]) < STACK["float32"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=STACK["float32"])
    assert found["gradients"].keys() == expected["gradients"].keys() and len(expected["gradients"]) == 30
    over = {path: relative(found["gradients"][path], values) for path, values in expected["gradients"].items()}
    assert {path: error for path, error in over.items() if error >= GRADIENT["float32"]} == {}


def test_every_shipped_plan_is_here():
    shipped = {file.stem for file in PLAN_DIRECTORY.glob("*.yaml")}
    assert PLANS.keys() == {name for name in shipped if not name.endswith("_coupled")}


def test_where_adapters_lie():
    """As the kernels beside them, the rank unsharded."""
    params = adapted(fresh(ShardingPlan.read("fsdp_tensor", {"fsdp": 4, "tensor": 2})), EVERYWHERE).params
    layer = params["decoder"]["layers"]
    assert layer["attention"]["q"]["lora_a"].sharding.spec == P(None, "fsdp", None)
    assert layer["attention"]["q"]["lora_b"].sharding.spec == P(None, None, "tensor", None)
    assert layer["mlp"]["down"]["lora_a"].sharding.spec == P(None, "tensor", None)
    assert layer["mlp"]["down"]["lora_b"].sharding.spec == P(None, None, "fsdp")
    vision = params["vision"]["layers"]
    assert vision["mlp"]["up"]["lora_a"].sharding.spec == P(None, "fsdp", None)
    assert vision["mlp"]["up"]["lora_b"].sharding.spec == P(None, None, "tensor")
    assert vision["attention"]["q"]["lora_b"].sharding.spec == P(None, None, None, "tensor")
