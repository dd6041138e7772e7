"""Random JPEG: Pillow's bytes, the stated qualities and probability, and nothing drawn from elsewhere."""

import io

import numpy as np
import pytest
from PIL import Image

from ivl3_jax.data import Jpeg
from ivl3_jax.data.jpeg import reencode
from tests.data.pictures import picture


def as_pillow(pixels, quality):
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, format="JPEG", quality=quality)
    return np.asarray(Image.open(stored))


def tiles_of(count):
    return np.stack([np.asarray(picture(28, 28, seed)) for seed in range(count)])


def applied(jpeg, tiles, seed):
    """The tiles afterwards, and the quality of each, 0 if it was left alone."""
    found = tiles.copy()
    jpeg.apply(found, np.random.default_rng(seed))
    qualities = []
    for before, after in zip(tiles, found, strict=True):
        options = [q for q in range(1, 101) if np.array_equal(as_pillow(before, q), after)]
        qualities.append(options[0] if options else 0)
        assert options or np.array_equal(before, after)
    return found, qualities


@pytest.mark.parametrize("quality", [1, 75, 100])
def test_pillow_s_bytes(quality):
    pixels = np.asarray(picture(40, 28))
    found = reencode(pixels, quality)
    assert found.dtype == np.uint8 and np.array_equal(found, as_pillow(pixels, quality))


def test_each_tile_has_a_quality_of_its_own():
    _, qualities = applied(Jpeg(), tiles_of(30), 0)
    assert min(qualities) >= 75 and len(set(qualities)) > 8
    many = np.random.default_rng(0).integers(75, 100, 26000, endpoint=True)  # what `apply` draws
    assert np.array_equal(np.unique(many), np.arange(75, 101))


def test_an_image_has_one_quality():
    for seed in range(4):
        _, qualities = applied(Jpeg(0.5, (20, 60), "image"), tiles_of(5), seed)
        assert len(set(qualities)) == 1
    chosen = [applied(Jpeg(0.5, (20, 60), "image"), tiles_of(1), seed)[1][0] > 0 for seed in range(40)]
    assert 8 < sum(chosen) < 32


def test_probability():
    tiles = tiles_of(40)
    assert np.array_equal(applied(Jpeg(0.0), tiles, 0)[0], tiles)
    left = applied(Jpeg(0.25, (10, 10)), tiles, 0)[1].count(0)
    assert 20 < left < 38
    assert Jpeg().probability == 1 and Jpeg().quality == (75, 100) and Jpeg().each == "tile"


def test_a_function_of_its_generator():
    tiles, jpeg = tiles_of(6), Jpeg(0.5)
    assert np.array_equal(applied(jpeg, tiles, 3)[0], applied(jpeg, tiles, 3)[0])
    assert not np.array_equal(applied(jpeg, tiles, 3)[0], applied(jpeg, tiles, 4)[0])
    states = []
    for probability in (0.0, 1.0):  # what follows does not depend on what came of the draws
        rng = np.random.default_rng(0)
        Jpeg(probability).apply(tiles.copy(), rng)
        states.append(rng.random())
    assert states[0] == states[1]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"probability": 1.5}, "Jpeg.probability is 1.5; it must be from 0 to 1"),
        ({"quality": (80, 75)}, r"Jpeg.quality is \(80, 75\); valid: \(lowest, highest\), whole numbers from 1 to 100"),
        ({"quality": (0, 75)}, "Jpeg.quality"),
        ({"quality": (75, 101)}, "Jpeg.quality"),
        ({"quality": (7.5, 10)}, "Jpeg.quality"),
        ({"each": "frame"}, "Jpeg.each is 'frame'; valid: tile, image"),
    ],
)
def test_settings_that_cannot_be(fields, told):
    with pytest.raises(ValueError, match=told):
        Jpeg(**fields)
