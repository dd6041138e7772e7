"""A state that was saved under one plan is restored under every other, bit by bit."""

import dataclasses
from functools import cache

import jax
import numpy as np
import optax
import pytest

from ivl3_jax.models.model import Model, abstract_model
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.training.config import SaveRecipe, TrainConfig
from ivl3_jax.training.states import States
from ivl3_jax.training.step import abstract_state, init_state
from tests.lab.test_executed import SHIPPED, mesh_of
from tests.models.small import changed

# Widths that divide over eight; the padding of the vocabulary differs from plan to plan.
CONFIG = changed(decoder={"layers": 2, "heads": 8, "kv_heads": 2})
TRAIN = TrainConfig()

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A function to the directory of a plan's state; all are of the same values, and made when asked for."""
    directory = tmp_path_factory.mktemp("states")

    @cache
    def of(name):
        plan = ShardingPlan.read(name, mesh_of(name))
        model = Model.init(CONFIG, plan, seed=4)
        with jax.set_mesh(model.mesh):
            state = init_state(model.params, TRAIN, plan)
            # Fresh moments would be zeros: here they are the parameters and their squares.
            moments = {"mu": model.params, "nu": jax.tree.map(lambda leaf: leaf * leaf, model.params)}
            state = state._replace(optimizer=optax.tree_utils.tree_set(state.optimizer, **moments))
            states = States(directory / name, SaveRecipe())
            states.save(state, {}, {})
            states.close()
        return directory / name

    return of


def values(state):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def restored(directory, name):
    plan = ShardingPlan.read(name, mesh_of(name))
    mesh = plan.make_mesh()
    like = abstract_state(abstract_model(CONFIG, plan, mesh)[1], TRAIN, plan, mesh)
    states = States(directory, SaveRecipe())
    with jax.set_mesh(mesh):
        state = states.newest(like).state
    states.close()
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == jax.tree.map(lambda leaf: leaf.sharding, like)
    return values(state)


def test_other_plans_states_under_a_pipeline(saved):
    """In `test-all` every plan's under every other."""
    expected = restored(saved("pipeline"), "pipeline")
    for source in ("fsdp_tensor", "single"):
        assert_same(restored(saved(source), "pipeline"), expected)


@pytest.mark.long
@pytest.mark.parametrize("under", SHIPPED)
def test_every_other_plans_state_under(under, saved):
    expected = restored(saved(under), under)
    for source in SHIPPED:
        assert_same(restored(saved(source), under), expected)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        if "'table'" in path or "'head'" in path:  # which each plan pads to a size of its own
            axis = 0 if "'table'" in path else 1
            found[path], value = (x.take(range(CONFIG.decoder.vocab), axis) for x in (found[path], value))
        np.testing.assert_array_equal(found[path], value, err_msg=path)


def test_moments_that_live_on_the_host(tmp_path):
    """They are saved from there and restored to there."""
    plan = dataclasses.replace(ShardingPlan.read("fsdp", {"fsdp": 8}), offload=("optimizer",))
    model = Model.init(CONFIG, plan, seed=4)
    with jax.set_mesh(model.mesh):
        state = init_state(model.params, TRAIN, plan)
        states = States(tmp_path, SaveRecipe())
        states.save(state, {}, {})
        states.close()
        like = abstract_state(abstract_model(CONFIG, plan, model.mesh)[1], TRAIN, plan, model.mesh)
        states = States(tmp_path, SaveRecipe())
        found = states.newest(like).state
        states.close()
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(found.optimizer) if leaf.ndim}
    assert kinds == {"pinned_host"}
    assert_same(values(found), values(state))
