"""Rows of unequal length with several images, padded on the left and on the right, beside the reference."""

import numpy as np
import pytest

from ivl3_jax.batch import IGNORE, empty_batch
from ivl3_jax.conversion import parity
from ivl3_jax.conversion.checkpoint import load
from ivl3_jax.conversion.tolerances import STACK
from ivl3_jax.hf_config import read_config
from tests.parity.reference import tiny

parity_reference = pytest.importorskip("ivl3_jax.conversion.parity_reference", exc_type=ImportError)

S = 620
# One row each: first position, length, where images start, tiles of each image.
ROWS = [(0, 620, (3, 300), (2, 1)), (90, 530, (1, 70, 140), (1, 1, 1)), (0, 515, (200,), (2,))]


def padded_batch(config):
    rng = np.random.default_rng(7)
    batch = empty_batch(len(ROWS), S, 3, 1, config.vision.image_size)
    batch.tiles[...] = rng.integers(0, 256, batch.tiles.shape)
    for row, (start, length, starts, tiles) in enumerate(ROWS):
        here = np.s_[row, start : start + length]
        batch.tokens[here] = rng.integers(0, 300, length)
        batch.segment_ids[here], batch.positions[here] = 1, np.arange(length)
        first = 0
        for at, count in zip(starts, tiles, strict=True):
            image = np.s_[row, start + at : start + at + count * config.tile_tokens]
            batch.tokens[image] = config.image_token_id
            batch.visual_index[image] = first + np.arange(count * config.tile_tokens)
            first += count * config.tile_tokens
        labels = batch.labels[row, start : start + length - 1]
        labels[:] = np.where(batch.visual_index[row, start + 1 : start + length] < 0, rng.integers(0, 600), IGNORE)
    batch.loss_weights[...] = np.where(batch.labels == IGNORE, 0, rng.uniform(0.1, 2, batch.labels.shape))
    return batch


@pytest.mark.parametrize("style", ["300m", "6b"])
def test_padded_rows(style):
    config = read_config(tiny(style))
    batch, model = padded_batch(config), load(tiny(style))
    reference = parity_reference.load_reference(tiny(style))
    inputs = parity_reference.inputs_from_batch(batch, config)
    ours, theirs = parity.run(model, batch), parity_reference.run(reference, inputs)

    used = np.concatenate([row * 3 + np.arange(sum(tiles)) for row, (*_, tiles) in enumerate(ROWS)])
    real = batch.segment_ids > 0
    for name, value in theirs.items():
        # Ours has a static number of tiles a row, and padded positions mean nothing on either side.
        axis = 1 if "/layers/" in name else 0
        if name.startswith(("vision", "projector")):
            found = np.take(ours[name], used, axis)
        else:
            found, value = (x[(slice(None),) * axis + (real,)] for x in (ours[name], value))
        relative = np.linalg.norm(found - value) / np.linalg.norm(value)
        assert relative < STACK["float32"], name

    weighted = batch.labels, batch.loss_weights
    differences = parity.compare_gradients(
        parity.gradients(model, batch), parity_reference.gradients(reference, inputs, *weighted, config), "float32"
    )
    assert [d.place for d in differences if not d.ok] == []
