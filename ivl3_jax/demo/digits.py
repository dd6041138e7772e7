"""Real handwritten digits, and pictures of one to three of them.

The digits are those of the UCI set that comes with scikit-learn: 1,797 scans of 8 x 8 grey values. The last third is
held out: no training picture ever shows one of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_digits

Split = Literal["train", "held_out"]

FIRST_HELD_OUT = 1198
SCALE = 5  # the smooth enlargement from which pictures are sampled
SIDE = 8 * SCALE
MARGIN = 2  # of paper around it


@dataclass(frozen=True)
class Digits:
    """One split of the digits.

    Attributes:
        pixels: float32 [n, 8, 8], ink from 0 to 1.
        labels: int [n].
        index: int [n], each one's place in scikit-learn's set.
    """

    pixels: np.ndarray
    labels: np.ndarray
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@cache
def load(split: Split) -> Digits:
    """The digits to learn from, or the last third, which is held out."""
    found = load_digits()
    index = np.arange(FIRST_HELD_OUT) if split == "train" else np.arange(FIRST_HELD_OUT, len(found.target))
    return Digits((found.images[index] / 16).astype(np.float32), found.target[index], index)


@cache
def _enlarged(split: Split) -> np.ndarray:
    """The digits of a split at 40 x 40 by cubic splines, with a margin: float32 [n, 44, 44] in 0..1."""
    pixels = load(split).pixels
    # Each sample is the middle of a square of 5 x 5, so that the enlargement is centred.
    at = (np.arange(SIDE) + 0.5) / SCALE - 0.5
    rows, cols = np.meshgrid(at, at, indexing="ij")
    smooth = [ndimage.map_coordinates(np.pad(digit, 1), (rows + 1, cols + 1), order=3) for digit in pixels]
    sides = (MARGIN, MARGIN)
    return np.pad(np.clip(np.stack(smooth), 0, 1).astype(np.float32), ((0, 0), sides, sides))


@dataclass(frozen=True)
class Picture:
    """A composed image and the truth about it.

    Attributes:
        image: RGB.
        digits: the digits from left to right.
        index: which scans they are, see `Digits.index`.
    """

    image: Image.Image
    digits: tuple[int, ...]
    index: tuple[int, ...]

    @property
    def text(self) -> str:
        return "".join(map(str, self.digits))


def compose(split: Split, members: Sequence[int], rng: np.random.Generator, *, largest: float = 1.0) -> Picture:
    """Writes digits beside each other on a sheet of random size, shape and colour.

    Training digits are also bent, turned, sheared, thickened and thinned; held-out digits keep their shape.

    Args:
        split: where the digits come from.
        members: their places in that split, left to right.
        rng: decides everything else.
        largest: scales the sheet; below 1 for small pictures of few tiles.
    """
    digits, warp = load(split), split == "train"
    height = rng.uniform(16, 38) * largest
    heights = height * rng.uniform(0.8, 1.0, len(members))
    widths = heights * rng.uniform(0.8, 1.1, len(members))
    gaps = height * rng.uniform(-0.05, 0.3, len(members) - 1)
    row = float(widths.sum() + gaps.sum())
    width = round(row + height * rng.uniform(0.1, 0.5))
    tall = round(height * rng.choice((1.05, 1.25, 1.6), p=(0.6, 0.25, 0.15)) * rng.uniform(1, 1.1))
    ink = np.zeros((tall, width), np.float32)
    x = rng.uniform(0, width - row)
    y = rng.uniform(0, tall - height)
    for place, member in enumerate(members):
        top = y + rng.uniform(0, height - heights[place])
        _write(ink, _enlarged(split)[member], (top, x), (heights[place], widths[place]), rng, warp)
        x += widths[place] + (gaps[place] if place < len(gaps) else 0)
    return Picture(
        _coloured(ink, rng),
        tuple(int(digits.labels[member]) for member in members),
        tuple(int(digits.index[member]) for member in members),
    )


def _write(
    ink: np.ndarray,
    digit: np.ndarray,
    corner: tuple[float, float],
    size: tuple[float, float],
    rng: np.random.Generator,
    warp: bool,
) -> None:
    """Adds one enlarged digit to a sheet of ink, in the box at `corner` (top, left) of `size` (height, width)."""
    # The warped digit may leave its box a little.
    low = [max(0, int(c - 0.15 * s)) for c, s in zip(corner, size, strict=True)]
    high = [min(n, int(c + 1.15 * s) + 1) for c, s, n in zip(corner, size, ink.shape, strict=True)]
    # Places of the sheet's pixels in the box, from -1 to 1.
    v = (2 * (np.arange(low[0], high[0], dtype=np.float32) + 0.5 - corner[0]) / size[0] - 1)[:, None]
    u = (2 * (np.arange(low[1], high[1], dtype=np.float32) + 0.5 - corner[1]) / size[1] - 1)[None]
    if warp:
        turn, shear = rng.normal(0, 0.1), rng.normal(0, 0.12)
        stretch = np.exp(rng.normal(0, 0.08, 2))
        rows = (v * np.cos(turn) - u * np.sin(turn)) * stretch[0]
        cols = (u * np.cos(turn) + v * (np.sin(turn) + shear)) * stretch[1]
        # Bending: slow waves of random phase, the smoothest of elastic distortions.
        size_a, size_b = rng.normal(0, 0.06, 2)
        phase = rng.uniform(0, 2 * np.pi, 4)
        rows = rows + size_a * np.sin(2.2 * u + phase[0]) * np.sin(2.2 * v + phase[1])
        cols = cols + size_b * np.sin(2.2 * u + phase[2]) * np.sin(2.2 * v + phase[3])
    else:
        rows, cols = np.broadcast_arrays(v, u)
    value = _sample(digit, (rows + 1) * SIDE / 2 - 0.5, (cols + 1) * SIDE / 2 - 0.5)
    if warp:
        # Thicker or thinner: the slopes of the strokes are lifted or lowered.
        value = np.clip(value * rng.uniform(0.9, 1.3), 0, 1) ** np.exp(rng.normal(0, 0.2))
    here = ink[low[0] : high[0], low[1] : high[1]]
    np.maximum(here, value, out=here)


def _sample(digit: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Linear interpolation of an enlarged digit at fractional places; outside there is no ink."""
    flat, side, last = digit.ravel(), digit.shape[1], digit.shape[1] - 1.01
    rows = np.clip(rows + MARGIN, 0, last)
    cols = np.clip(cols + MARGIN, 0, last)
    top, left = rows.astype(np.int32), cols.astype(np.int32)
    down, right = rows - top, cols - left
    at = top * side + left
    above = flat[at] * (1 - right) + flat[at + 1] * right
    below = flat[at + side] * (1 - right) + flat[at + side + 1] * right
    return above * (1 - down) + below * down


def _coloured(ink: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Dark ink on light paper."""
    paper = rng.uniform(200, 255) + rng.uniform(-20, 0, 3)
    pen = rng.uniform(0, 60) + rng.uniform(0, 60, 3)
    rgb = paper + ink[..., None] * (pen - paper)
    return Image.fromarray(np.clip(rgb + 0.5, 0, 255).astype(np.uint8))
