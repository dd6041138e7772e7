"""The loop: it learns, compiles once, gives its memory back, and says what is wrong."""

import dataclasses
from itertools import repeat

import jax
import numpy as np
import pytest

from ivl3_jax.models.model import Model
from ivl3_jax.training import loop
from ivl3_jax.training.config import TrainConfig
from tests.models.small import changed, random_batch

CONFIG = changed(vision={"drop_path": 0.1})
TRAIN = TrainConfig(steps=8, learning_rate=3e-3, warmup_steps=2, seed=4)


@pytest.fixture(scope="module")
def batch():
    return random_batch(2, [(24, 1), (10, 1)], length=40, tiles=2)


@pytest.fixture(scope="module")
def run(batch):
    """A run: the given and the trained model, what was told, and the compiled step."""
    steps, told = [], []
    patch = pytest.MonkeyPatch()
    make = loop.make_step
    patch.setattr(loop, "make_step", lambda *given, **named: steps.append(make(*given, **named)) or steps[0])
    model = Model.init(CONFIG, seed=0)
    trained, _ = loop.train(model, repeat(batch), TRAIN, report=told.append)
    patch.undo()
    return model, trained, told, steps[0]


def test_the_loss_goes_down(run):
    _, _, told, _ = run
    losses = [now.loss for now in told]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)  # the first step of the warm-up has a rate of zero
    assert losses[-1] < 0.8 * losses[0] and np.isfinite(losses).all()


def test_what_is_told(run, batch):
    _, _, told, _ = run
    assert [now.step for now in told] == list(range(1, 9)) and {now.steps for now in told} == {8}
    assert {now.tokens for now in told} == {int((batch.loss_weights > 0).sum())}
    assert {now.positions for now in told} == {2 * 34}
    assert [now.learning_rate for now in told[:3]] == pytest.approx([0, 1.5e-3, 3e-3])
    assert all(now.grad_norm > 0 for now in told)
    assert sorted(now.seconds for now in told) == [now.seconds for now in told]


def test_one_compilation_serves_all_steps(run):
    assert run[3]._cache_size() == 1


def test_the_old_parameters_are_given_up(run):
    model, trained, _, _ = run
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(model.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(trained.params))
    assert trained.config == model.config


def test_the_same_seed_gives_the_same_run(run, batch):
    told = []
    loop.train(Model.init(CONFIG, seed=0), repeat(batch), TRAIN, report=told.append)
    assert [now.loss for now in told] == [now.loss for now in run[2]]


def test_reports_now_and_then_and_at_the_end(batch):
    told = []
    config = dataclasses.replace(TRAIN, steps=5, log_every=3)
    loop.train(Model.init(CONFIG), repeat(batch), config, report=told.append)
    assert [now.step for now in told] == [3, 5]


def test_data_that_ends_early(batch):
    with pytest.raises(ValueError, match="the data ended after 2 of 8 steps; lower train.steps"):
        loop.train(Model.init(CONFIG), iter([batch] * 2), TRAIN)


def test_a_loss_that_is_no_number(batch):
    model = Model.init(CONFIG)
    model.params["decoder"]["norm"]["scale"] = model.params["decoder"]["norm"]["scale"] * np.nan
    with pytest.raises(ValueError, match="the loss is nan at step 1 .* not applied. Try a lower learning_rate"):
        loop.train(model, repeat(batch), TRAIN)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "TrainConfig.steps is 0; it must be above 0"),
        ({"clip_norm": 0.0}, "TrainConfig.clip_norm is 0.0; it must be above 0"),
        ({"weight_decay": -0.1}, "TrainConfig.weight_decay is -0.1; it must be at least 0"),
        ({"beta2": 1.0}, "TrainConfig.beta2 is 1.0; it must be at least 0 and below 1"),
    ],
)
def test_settings_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**fields)
