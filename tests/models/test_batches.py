"""What a batch may look like: without tiles, packed, with nothing to train on."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from ivl3_jax.batch import IGNORE
from ivl3_jax.models.internvl import batch_loss, token_losses
from ivl3_jax.models.model import place_batch
from tests.models.small import CONFIG, model, random_batch, relative
from tests.tolerances import GRADIENT, STACK

SEGMENTS = [(30, 2), (21, 0), (17, 1)]
SHAPE = {"length": 72, "tiles": 4}  # one for all, so that little is compiled


@cache
def compiled():
    def loss(params, batch):
        module = nnx.merge(model().graphdef, params)
        return batch_loss(module, batch), token_losses(module, batch)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def summed(batch):
    """Losses [B, S], the gradient of their sum, and their weighted mean (whose gradient it is, but for a factor)."""
    with jax.set_mesh(model().mesh):
        placed = place_batch(batch, model().plan, model().mesh)
        (mean, losses), gradient = compiled()(model().params, placed)
    total = batch.loss_weights.sum() or 1
    return np.asarray(losses), {path: leaf * total for path, leaf in flatten_dict(gradient, sep="/").items()}, mean


def alone(batch, positions, tiles, start, first):
    """One segment of a packed batch as a batch of its own, with padding behind it and unused tiles."""

    def cut(values, empty):
        found = np.full_like(values, empty)
        found[:, :positions] = values[:, start : start + positions]
        return found

    names = {"tokens": 0, "labels": IGNORE, "positions": 0, "loss_weights": 0, "visual_index": -1}
    fields = {name: cut(getattr(batch, name), empty) for name, empty in names.items()}
    fields["visual_index"] -= np.where(fields["visual_index"] < 0, 0, first * CONFIG.tile_tokens).astype(np.int32)
    pixels = batch.tiles[:, ::-1].copy()
    pixels[:, :tiles] = batch.tiles[:, first : first + tiles]
    return batch._replace(tiles=pixels, segment_ids=cut(np.ones_like(batch.segment_ids), 0), **fields)


def test_packed_segments_do_not_see_one_another():
    packed = random_batch(1, SEGMENTS, **SHAPE)
    logits, (losses, gradient, _) = np.asarray(model()(packed)), summed(packed)
    total = None
    start = first = 0
    for positions, tiles in SEGMENTS:
        single = alone(packed, positions, tiles, start, first)
        own_logits, (own_losses, own, _) = np.asarray(model()(single)), summed(single)
        here = np.s_[0, start : start + positions]
        assert relative(logits[here], own_logits[0, :positions]) < STACK["float32"]
        assert relative(losses[here], own_losses[0, :positions]) < STACK["float32"]
        total = own if total is None else jax.tree.map(jnp.add, total, own)
        start, first = start + positions, first + tiles
    assert losses[0, start:].tolist() == [0] * (72 - start)
    scale = np.linalg.norm(total["vision/layers/attention/q/bias"])
    zero = "vision/layers/attention/k/bias"
    assert np.linalg.norm(np.asarray(gradient.pop(zero) - total[zero])) < GRADIENT["float32"] * scale
    assert {path for path, value in gradient.items() if relative(value, total[path]) > GRADIENT["float32"]} == set()


def test_no_tiles_is_the_same_as_unused_tiles():
    unused = random_batch(1, [(20, 0)] * 3, **SHAPE)
    without = unused._replace(tiles=unused.tiles[:, :0])
    (losses, gradient, _), (losses0, gradient0, _) = summed(unused), summed(without)
    assert relative(model()(without), model()(unused)) < STACK["float32"]
    np.testing.assert_allclose(losses0, losses, atol=1e-5 * np.abs(losses).max())
    for path, value in gradient0.items():
        np.testing.assert_allclose(value, gradient[path], atol=1e-4 * np.abs(gradient[path]).max(), err_msg=path)
        if not path.startswith("decoder"):
            assert not np.asarray(value).any(), path


@pytest.mark.parametrize("empty", ["no weights", "padding only"])
def test_nothing_to_train_on_is_a_loss_of_zero(empty):
    batch = random_batch(1, SEGMENTS, **SHAPE)
    batch.loss_weights[...] = 0
    if empty == "padding only":
        batch.segment_ids[...] = 0

    losses, gradient, mean = summed(batch)
    assert mean == 0 and not losses.any()
    assert all(not np.asarray(leaf).any() for leaf in gradient.values())  # a NaN would count as something


def test_loss_is_the_weighted_mean():
    batch = random_batch(1, SEGMENTS, **SHAPE)
    losses, _, mean = summed(batch)
    assert float(mean) == pytest.approx(losses.sum() / batch.loss_weights.sum(), rel=1e-5)
    assert not losses[batch.labels == IGNORE].any()
