"""The reference as the parity tools run it: taps, gradients, and its float64 form."""

import numpy as np
import pytest

from ivl3_jax.batch import Batch, empty_batch
from ivl3_jax.conversion.names import parameters
from ivl3_jax.hf_config import read_config
from tests.parity.reference import tiny

parity_reference = pytest.importorskip("ivl3_jax.conversion.parity_reference", exc_type=ImportError)

TILES = (2, 1)  # of the two rows


@pytest.fixture(scope="module", params=["300m", "6b"])
def style(request):
    return request.param


@pytest.fixture(scope="module")
def config(style):
    return read_config(tiny(style))


def make_batch(config, left: bool) -> Batch:
    """Two rows of unequal length with images, padded on one side."""
    rng = np.random.default_rng(0)
    S, per_tile = 60, config.tile_tokens
    batch = empty_batch(2, S, 3, 1, 56)
    batch.tiles[...] = rng.integers(0, 256, batch.tiles.shape)
    for row, length in enumerate((S, 47)):
        at = slice(S - length, S) if left else slice(0, length)
        tokens = rng.integers(0, 300, length)
        images = TILES[row] * per_tile
        tokens[3 : 3 + images] = config.image_token_id
        index = np.full(length, -1)
        index[3 : 3 + images] = np.arange(images)
        batch.tokens[row, at], batch.visual_index[row, at] = tokens, index
        batch.segment_ids[row, at], batch.positions[row, at] = 1, np.arange(length)
        batch.labels[row, at][-20:] = rng.integers(0, 600, 20)
        batch.loss_weights[row, at][-20:] = rng.random(20)
    return batch


@pytest.fixture(scope="module")
def found(style, config):
    """Taps in float32 and float64, of both paddings."""
    results = {}
    for dtype in ("float32", "float64"):
        model = parity_reference.load_reference(tiny(style), dtype)
        for left in (False, True):
            inputs = parity_reference.inputs_from_batch(make_batch(config, left), config, dtype)
            results[dtype, left] = parity_reference.run(model, inputs)
    return results


def test_shapes_of_taps(config, found):
    taps, tiles, (B, S) = found["float32", False], sum(TILES), (2, 60)
    v, d = config.vision, config.decoder
    expected = {
        "vision/embed": (tiles, v.positions, v.width),
        **{
            f"vision/layers/{n}": (3, tiles, v.positions, v.width)
            for n in ("norm1", "attention", "norm2", "mlp", "out")
        },
        "projector/unshuffle": (tiles, config.tile_tokens, 4 * v.width),
        "projector/norm": (tiles, config.tile_tokens, 4 * v.width),
        "projector/up": (tiles, config.tile_tokens, d.width),
        "projector/down": (tiles, config.tile_tokens, d.width),
        "decoder/embed": (B, S, d.width),
        **{f"decoder/layers/{n}": (3, B, S, d.width) for n in ("norm1", "attention", "norm2", "mlp", "out")},
        "decoder/norm": (B, S, d.width),
        "logits": (B, S, d.vocab),
    }
    assert {name: value.shape for name, value in taps.items()} == expected
    assert all(value.dtype == np.float32 for value in taps.values())
    np.testing.assert_array_equal(
        taps["decoder/embed"][0, 3 : 3 + 2 * config.tile_tokens], taps["projector/down"][:2].reshape(-1, d.width)
    )


def test_activations_are_sane(found):
    for name, value in found["float32", False].items():
        assert 0.05 < value.std() < 20, name


def test_float64_is_the_same_model_to_more_digits(config, found):
    valid = make_batch(config, False).segment_ids > 0
    for name, wide in found["float64", False].items():
        narrow = found["float32", False][name]
        assert wide.dtype == np.float64
        if wide.shape[-3:-1] == valid.shape:
            narrow, wide = narrow[..., valid, :], wide[..., valid, :]
        difference = np.abs(narrow - wide).max() / np.abs(wide).max()
        assert 1e-9 < difference < 2e-5, name


def test_float64_is_float64_throughout(config, found):
    """Padding on the other side changes the order of sums only: float32 anywhere would show at 1e-7."""
    right, left = (found["float64", side]["logits"] for side in (False, True))
    np.testing.assert_allclose(right[1, :47], left[1, -47:], rtol=0, atol=1e-12 * np.abs(right).max())


@pytest.mark.parametrize("tied", [False, True])
def test_gradients(style, tied, torch):
    """Against central differences along a random direction in all parameters at once."""
    config = read_config(tiny(style, tied))
    batch = make_batch(config, left=True)
    model = parity_reference.load_reference(tiny(style, tied), "float64")
    inputs = parity_reference.inputs_from_batch(batch, config, "float64")
    value, gradients = parity_reference.gradients(model, inputs, batch.labels, batch.loss_weights, config)
    expected = {parameter.path: parameter for parameter in parameters(config)}
    assert {path: gradient.shape for path, gradient in gradients.items()} == {
        path: parameter.shape for path, parameter in expected.items()
    }
    assert all(gradient.dtype == np.float64 for gradient in gradients.values())
    # A bias that shifts all keys alike changes no attention: its gradient is zero but for rounding.
    zero = {path for path, gradient in gradients.items() if np.abs(gradient).max() < 1e-12}
    assert zero <= {"vision/layers/attention/k/bias"}

    rng = np.random.default_rng(0)
    theirs = dict(model.named_parameters())
    slope, losses = 0.0, []
    steps = {}
    for path, parameter in expected.items():
        step = rng.standard_normal((len(parameter.tensors), *parameter.layout.our_shape))
        slope += np.vdot(step.reshape(gradients[path].shape), gradients[path])
        for name, layer in zip(parameter.tensors, step, strict=True):
            steps[name] = np.empty(parameter.layout.their_shape)
            parameter.layout.put(layer, steps[name])
    with torch.no_grad():
        for epsilon in (1e-6, -2e-6):
            for name, step in steps.items():
                theirs[name] += epsilon * torch.from_numpy(step)
            losses.append(parity_reference.loss(model, inputs, batch.labels, batch.loss_weights).item())
    assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(slope, rel=1e-4)
    assert value == pytest.approx(np.mean(losses), rel=1e-6)


def test_text_only_rows_have_no_vision(config, style):
    batch = make_batch(config, left=False)
    text = batch._replace(
        tokens=np.where(batch.visual_index >= 0, 5, batch.tokens),
        visual_index=np.full_like(batch.visual_index, -1),
        tiles=batch.tiles[:, :0],
    )
    inputs = parity_reference.inputs_from_batch(text, config)
    assert "pixel_values" not in inputs
    taps = parity_reference.run(parity_reference.load_reference(tiny(style)), inputs)
    assert {name.split("/")[0] for name in taps} == {"decoder", "logits"}


def test_batches_that_the_reference_cannot_take(config):
    batch = make_batch(config, left=False)
    convert = parity_reference.inputs_from_batch
    with pytest.raises(ValueError, match="several segments"):
        convert(batch._replace(segment_ids=batch.segment_ids * 2), config)
    with pytest.raises(ValueError, match="fractional positions"):
        convert(batch._replace(positions=batch.positions / 4), config)
    with pytest.raises(ValueError, match="image token"):
        convert(batch._replace(tokens=np.zeros_like(batch.tokens)), config)
    with pytest.raises(ValueError, match="row 0: visual_index"):
        convert(batch._replace(visual_index=np.where(batch.visual_index >= 0, 1, -1)), config)
