"""AdamW beside PyTorch's, and the schedule."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from ivl3_jax.conversion import parity
from ivl3_jax.conversion.checkpoint import load
from ivl3_jax.conversion.names import parameters
from ivl3_jax.training.config import TrainConfig
from ivl3_jax.training.objectives import NextToken
from ivl3_jax.training.optimizer import decay_mask, learning_rate
from ivl3_jax.training.placing import Placement
from ivl3_jax.training.step import init_state, make_step
from tests.models.small import model
from tests.parity.reference import tiny
from tests.tolerances import STACK


def test_schedule():
    rate = learning_rate(TrainConfig(steps=110, learning_rate=1e-3, warmup_steps=10, final_learning_rate=0.1))
    assert [float(rate(step)) for step in (0, 5, 10, 60, 110)] == pytest.approx([0, 5e-4, 1e-3, 5.5e-4, 1e-4])
    flat = learning_rate(TrainConfig(steps=2, learning_rate=1e-3, warmup_steps=0))
    assert float(flat(0)) == pytest.approx(1e-3)


def test_what_decays():
    mask = flatten_dict(decay_mask(model().params), sep="/")
    decayed = {path for path, value in mask.items() if value}
    assert {"vision/patch/kernel", "vision/positions", "decoder/embed/table", "decoder/head/kernel"} <= decayed
    assert "decoder/layers/mlp/gate/kernel" in decayed and "projector/up/kernel" in decayed
    spared = {path.split("/")[-1] for path in mask.keys() - decayed}
    assert spared == {"bias", "scale", "ls1", "ls2", "cls"}


def ours(batch, config):
    """Loss and gradient norm of each step, and the parameters after the last."""
    with jax.enable_x64(True):
        start = load(tiny("6b"), "float64")
        step = make_step(start.graphdef, start.params, NextToken(), config, start.config.tile_tokens)
        with jax.set_mesh(start.mesh):
            state, told = init_state(start.params, config), []
            placed = Placement(start.plan, start.mesh, *batch.tokens.shape)(batch)
            for _ in range(config.steps):
                state, metrics = step(state, placed, None, jax.random.key(0))
                told.append((float(metrics.loss), float(metrics.grad_norm)))
        # As the step counts: optax computes rates in float32 from an int32.
        rates = [float(learning_rate(config)(np.int32(number))) for number in range(config.steps)]
        return told, {path: np.asarray(leaf) for path, leaf in flatten_dict(state.params, sep="/").items()}, rates


def theirs(batch, config, rates, torch, parity_reference, model_config):
    reference = parity_reference.load_reference(tiny("6b"), "float64")
    inputs = parity_reference.inputs_from_batch(batch, model_config, "float64")
    places = {name: p for p in parameters(model_config) for name in p.tensors}
    weights = dict(reference.named_parameters())
    decays = {name: places[name].path.split("/")[-1] in ("kernel", "table", "positions") for name in weights}
    groups = [
        {"params": [w for name, w in weights.items() if decays[name] is chosen], "weight_decay": decay}
        for chosen, decay in ((True, config.weight_decay), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps)
    told = []
    for rate in rates:
        optimizer.zero_grad()
        loss = parity_reference.loss(reference, inputs, batch.labels, batch.loss_weights)
        loss.backward()
        # Written out: PyTorch's own clipping adds 1e-6 to the norm.
        norm = torch.sqrt(sum((w.grad**2).sum() for w in weights.values()))
        for w in weights.values():
            w.grad *= min(1.0, config.clip_norm / norm.item())
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        told.append((loss.item(), norm.item()))
    found = {}
    for p in parameters(model_config):
        layers = [p.layout.to_ours(weights[name].detach().numpy()) for name in p.tensors]
        found[p.path] = np.stack(layers) if p.stacked else layers[0]
    return told, found


@pytest.mark.slow
def test_steps_are_those_of_pytorch(torch):
    """Three steps in float64, the gradient clipped, in a style without key biases (whose gradient is only noise)."""
    parity_reference = pytest.importorskip("ivl3_jax.conversion.parity_reference", exc_type=ImportError)
    config = TrainConfig(steps=3, warmup_steps=1, learning_rate=1e-2, weight_decay=0.1, clip_norm=0.5)
    model_config = load(tiny("6b")).config
    batch = parity.example_batch(model_config, 40, 2)
    told, found, rates = ours(batch, config)
    their_told, expected = theirs(batch, config, rates, torch, parity_reference, model_config)
    np.testing.assert_allclose(told, their_told, rtol=1e-8)
    assert told[0][1] > config.clip_norm and told[2][0] < told[0][0]
    start = flatten_dict(load(tiny("6b")).params, sep="/")
    for path, value in expected.items():
        assert np.linalg.norm(found[path] - value) < STACK["float64"] * np.linalg.norm(value), path
        assert np.linalg.norm(value - start[path]) > 1e-3 * np.linalg.norm(value), f"{path} has not moved"
