"""Pixel unshuffle and the choice of a hidden state, against tables and against transformers."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ivl3_jax.conversion.checkpoint import load
from ivl3_jax.conversion.parity import example_batch
from ivl3_jax.models.intern_vit import normalise
from ivl3_jax.models.projector import pixel_unshuffle
from tests.models.small import changed, model
from tests.parity.reference import tiny
from tests.tolerances import STACK


def unshuffled(values, factor):
    with jax.set_mesh(model().mesh):
        return np.asarray(pixel_unshuffle(jnp.asarray(values), factor, PartitionSpec(None, None, None)))


def test_pixel_unshuffle_of_a_grid_of_indices():
    found = unshuffled(np.arange(16.0).reshape(1, 16, 1), 2)[0]
    assert found.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_pixel_unshuffle_keeps_channels_together():
    found = unshuffled(np.arange(36.0 * 2).reshape(1, 36, 2), 3)[0]
    assert found.shape == (4, 18)
    assert found[0].tolist() == [x for patch in (0, 1, 2, 6, 7, 8, 12, 13, 14) for x in (2 * patch, 2 * patch + 1)]


def test_pixels_are_normalised_to_imagenet_statistics():
    found = normalise(jnp.asarray([[[[0, 128, 255]]]], jnp.uint8), jnp.float32)[0, 0, 0]
    expected = [-0.485 / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("select_layer", "same"), [(-1, 3), (1, -3), (0, -4)])
def test_a_hidden_state_counts_from_either_end(select_layer, same):
    logits = [
        np.asarray(model(config)(batch))
        for config in (changed(select_layer=select_layer), changed(select_layer=same))
        for batch in [example_batch(config, 8, 1)]
    ]
    np.testing.assert_array_equal(*logits)


# transformers takes a 0 for "no hidden states", so the first one it can select is 1.
@pytest.mark.parametrize("select_layer", [-2, 1])
def test_other_hidden_states_as_transformers_selects_them(select_layer, tmp_path):
    parity_reference = pytest.importorskip("ivl3_jax.conversion.parity_reference", exc_type=ImportError)
    directory = shutil.copytree(tiny("300m"), tmp_path / "checkpoint")
    fields = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(fields | {"vision_feature_layer": select_layer}))
    ours = load(directory)
    assert ours.config.select_layer == select_layer
    batch = example_batch(ours.config, 30, 2)
    reference = parity_reference.load_reference(directory)
    theirs = parity_reference.run(reference, parity_reference.inputs_from_batch(batch, ours.config))["logits"]
    found = np.asarray(ours(batch))
    assert np.linalg.norm(found - theirs) < STACK["float32"] * np.linalg.norm(theirs)
    last = parity_reference.load_reference(tiny("300m"))
    plain = parity_reference.run(last, parity_reference.inputs_from_batch(batch, ours.config))["logits"]
    assert np.linalg.norm(plain - theirs) > 0.01 * np.linalg.norm(theirs)
