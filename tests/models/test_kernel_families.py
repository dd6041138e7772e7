"""The whole model with each family of kernels: logits, loss and gradients, on one device and on four."""

from unittest import mock

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from ivl3_jax.kernels import attention, cross_entropy
from ivl3_jax.kernels.family import preferring
from ivl3_jax.models.model import Model
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.training.config import TrainConfig
from ivl3_jax.training.objectives import NextToken
from ivl3_jax.training.placing import Placement
from ivl3_jax.training.step import init_state, make_step
from tests.models.small import changed, random_batch, relative
from tests.tolerances import GRADIENT, STACK

# Shapes that the TPU kernels take, on half of the heads too: 257 positions a tile, heads of 64.
CONFIG = changed(
    vision={"image_size": 112, "layers": 1, "width": 256, "heads": 4},
    decoder={"width": 128, "heads": 4, "kv_heads": 2, "head_dim": 64},
)
TRAIN = TrainConfig(steps=10, warmup_steps=0, learning_rate=1e-2, clip_norm=1e9)
PLANS = {
    "one device": ShardingPlan(),
    "fsdp 2 x tensor 2": ShardingPlan.read("fsdp_tensor", {"fsdp": 2, "tensor": 2}),
}
USED = {
    "oracle": {"oracle"},
    "chunked": {"chunked"},
    "tpu": {"tpu", "tpu_vit", "tpu_packed"},
}

pytestmark = pytest.mark.slow


def everything(family: str, plan: ShardingPlan) -> tuple[dict[str, np.ndarray], set[str]]:
    """Logits, the loss and all gradients, and the implementations that took part."""
    used: set[str] = set()

    def spied(known):
        def watched(name, run):
            def call(*operands, **options):
                used.add(name)
                return run(*operands, **options)

            return call

        return {name: watched(name, run) for name, run in known.items()}

    model = Model.init(CONFIG, plan, seed=1)
    batch = random_batch(4, [(80, 1), (20, 0), (70, 1)], length=200, tiles=2, config=CONFIG)
    with (
        preferring(family),
        mock.patch.dict(attention.IMPLEMENTATIONS, spied(attention.IMPLEMENTATIONS)),
        mock.patch.dict(cross_entropy.IMPLEMENTATIONS, spied(cross_entropy.IMPLEMENTATIONS)),
    ):
        found = {"logits": np.asarray(model(batch))}
        place = Placement(plan, model.mesh, *batch.tokens.shape)
        with jax.set_mesh(model.mesh):
            state = init_state(model.params, TRAIN)
            step = make_step(model.graphdef, model.params, NextToken(), TRAIN, CONFIG.tile_tokens)
            state, metrics = step(state, place(batch), None, jax.random.key(5))
    moments = flatten_dict(jax.tree.map(np.asarray, optax.tree_utils.tree_get(state.optimizer, "mu")), sep="/")
    return found | {"loss": np.asarray(metrics.loss)} | moments, used


@pytest.fixture(scope="module")
def exact():
    return everything("oracle", PLANS["one device"])[0]


@pytest.mark.parametrize(
    ("family", "plan"),
    [
        pytest.param(family, plan, marks=() if plan == "one device" and family != "oracle" else pytest.mark.long)
        for family in USED
        for plan in PLANS
    ],
)
def test_families_agree(family, plan, exact):
    found, used = everything(family, PLANS[plan])
    assert used == USED[family]
    filled = np.asarray(found["logits"]).shape
    assert filled == exact["logits"].shape
    assert relative(found["logits"][:, :170], exact["logits"][:, :170]) < STACK["float32"]
    assert relative(found["loss"], exact["loss"]) < STACK["float32"]
    for path, expected in exact.items():
        if path not in ("logits", "loss") and "k/bias" not in path:
            size = expected.shape  # a plan pads the vocabulary
            cut = tuple(slice(n) for n in size)
            assert relative(found[path][cut], expected) < GRADIENT["float32"], path


def test_a_model_that_was_called_before_takes_another_family_within():
    model = Model.init(CONFIG, seed=1)
    batch = random_batch(1, [(80, 1)], length=100, tiles=1, config=CONFIG)
    used: list[str] = []
    oracle = attention.IMPLEMENTATIONS["oracle"]
    with mock.patch.dict(attention.IMPLEMENTATIONS, oracle=lambda *x, **y: used.append("oracle") or oracle(*x, **y)):
        plain = np.asarray(model(batch))
        assert not used
        with preferring("oracle"):
            exact = np.asarray(model(batch))
        assert used
        used.clear()
        np.testing.assert_array_equal(np.asarray(model(batch)), plain)
        assert not used
    assert 0 < relative(exact[:, :80], plain[:, :80]) < STACK["float32"]


def test_cudnn_stands_back_where_there_is_none():
    q = jax.ShapeDtypeStruct((1, 64, 2, 64), "bfloat16")
    with preferring("cudnn"), mock.patch.object(attention, "on_gpu", lambda: False):
        assert attention.chosen(q, q, None, False) == "chunked"


def test_an_unknown_family_is_refused():
    told = "'gpu' is no family of kernels; there are oracle, chunked, tpu, cudnn"
    with pytest.raises(ValueError, match=told), preferring("gpu"):
        pass
