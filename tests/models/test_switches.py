"""Drop-path, remat policies and taps of the whole model."""

from functools import cache

import jax
import numpy as np
import pytest
from flax import nnx

from ivl3_jax.config import RopeScaling
from ivl3_jax.hf_config import to_hf
from ivl3_jax.layers import taps
from ivl3_jax.models.internvl import batch_loss
from ivl3_jax.models.model import place_batch
from ivl3_jax.original_config import to_original
from tests.models.small import CONFIG, changed, model, random_batch, relative

DROPPING = changed(vision={"drop_path": 0.5})
# Also where the other tests compile with little optimisation: what is compared are roundings.
AS_FOR_USERS = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}


@pytest.fixture(scope="module")
def batch():
    return random_batch(2, [(24, 2)], length=24, tiles=2)


@cache
def loss_of(config):
    graphdef = model(config).graphdef
    return jax.jit(lambda params, batch, keys: batch_loss(nnx.merge(graphdef, params), batch, keys=keys))


def loss(config, batch, seed):
    keys = None if seed is None else jax.random.split(jax.random.key(seed), 2)
    with jax.set_mesh(model().mesh):
        return float(loss_of(config)(model().params, place_batch(batch, model().plan, model().mesh), keys))


def test_drop_path_needs_a_key_and_follows_it(batch):
    still = loss(CONFIG, batch, None)
    assert loss(DROPPING, batch, None) == still == loss(CONFIG, batch, 1)
    drawn = [loss(DROPPING, batch, seed) for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len({still, *drawn}) == 4


@cache
def gradient_function(policy):
    graphdef, keys = model(DROPPING, policy).graphdef, jax.random.split(jax.random.key(0), 2)
    return jax.value_and_grad(lambda params, batch: batch_loss(nnx.merge(graphdef, params), batch, keys=keys))


def gradients(policy, batch):
    with jax.set_mesh(model().mesh):
        placed = place_batch(batch, model().plan, model().mesh)
        traced = jax.jit(gradient_function(policy)).trace(model().params, placed)
        assert ("remat" in str(traced.jaxpr)) == (policy != "none")
        value, found = traced.lower().compile(AS_FOR_USERS)(model().params, placed)
    return float(value), found


@pytest.mark.parametrize("policy", ["dots", "full"])
def test_remat_changes_no_gradient(policy, batch):
    (value, found), (expected_value, expected) = gradients(policy, batch), gradients("none", batch)
    assert value == pytest.approx(expected_value, rel=1e-6)
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 1e-3), err_msg=str(path))


def test_taps_have_the_promised_names_and_shapes(batch):
    def forward(params, batch):
        with taps.collect() as found:
            nnx.merge(model().graphdef, params)(batch)
            return found

    with jax.set_mesh(model().mesh):
        found = jax.eval_shape(forward, model().params, place_batch(batch, model().plan, model().mesh))
    v, d, tiles, (B, S) = CONFIG.vision, CONFIG.decoder, 4, batch.tokens.shape
    inside = ("norm1", "attention", "norm2", "mlp", "out")
    merged = (tiles, CONFIG.tile_tokens)
    assert {name: leaf.shape for name, leaf in found.items()} == {
        "vision/embed": (tiles, v.positions, v.width),
        **{f"vision/layers/{name}": (v.layers, tiles, v.positions, v.width) for name in inside},
        "projector/unshuffle": (*merged, 4 * v.width),
        "projector/norm": (*merged, 4 * v.width),
        "projector/up": (*merged, d.width),
        "projector/down": (*merged, d.width),
        "decoder/embed": (B, S, d.width),
        **{f"decoder/layers/{name}": (d.layers, B, S, d.width) for name in inside},
        "decoder/norm": (B, S, d.width),
        "logits": (B, S, d.vocab),
    }


def test_taps_cost_nothing_when_nobody_collects(batch):
    """The scans return no stacked intermediates."""
    with jax.set_mesh(model().mesh):
        placed = place_batch(batch, model().plan, model().mesh)
        jaxpr = jax.make_jaxpr(lambda p, b: nnx.merge(model().graphdef, p)(b))(model().params, placed)
    scans = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
    assert len(scans) == 2 and all(len(eqn.outvars) == 1 for eqn in scans)


def test_fractional_positions_are_not_rounded(batch):
    """V2PE gives visual tokens steps below one; nothing on the way may round them."""
    plain = model()(batch)
    assert relative(model()(batch._replace(positions=batch.positions + np.float32(0.5))), plain) < 1e-4
    stretched = model()(batch._replace(positions=batch.positions / 4))
    rounded = model()(batch._replace(positions=np.rint(batch.positions / 4)))
    assert relative(stretched, plain) > 1e-3 and relative(stretched, rounded) > 1e-3


def test_dynamic_ntk_can_be_off():
    """Then a row beyond the trained length has plain frequencies, and the config is written as before."""
    batch = random_batch(2, [(24, 2)], length=24, tiles=2)
    short = model(changed(decoder={"max_positions": 16, "rope_scaling": RopeScaling("dynamic", 2.0)}))
    plain = short.with_plain_rope()
    np.testing.assert_array_equal(plain(batch), model()(batch))
    assert relative(short(batch), model()(batch)) > 1e-3
    assert plain.config.decoder.longest_row == short.config.decoder.longest_row == 32
    assert to_hf(plain.config) == to_hf(short.config) and to_original(plain.config) == to_original(short.config)
