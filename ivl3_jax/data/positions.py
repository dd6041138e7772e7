"""Rope positions of a segment: plain, or V2PE's smaller steps for visual tokens (arXiv 2412.09616).

float32 holds every multiple of 1/256 exactly up to 65536; positions must never be rounded to bfloat16.
"""

import numbers
from collections.abc import Sequence

import numpy as np

SMALLEST = 1 / 256
"""The smallest step that V2PE was trained with."""


def plain_positions(visual: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... whatever the tokens are: float32 [n] for `visual`, bool [n]."""
    return np.arange(len(visual), dtype=np.float32)


def v2pe_positions(visual: np.ndarray, delta: float | Sequence[float]) -> np.ndarray:
    """V2PE as its reference code has it: after an image the next text token takes a whole number again.

    A text token takes the whole number after the last position; visual tokens take the last + delta, + 2 delta, ...;
    behind an image the last position counts as rounded up (`ceil`). With delta 1 these are plain positions.

    Args:
        visual: bool [n], which tokens are visual. Neighbouring ones are one image, thumbnail included.
        delta: the step of visual tokens, or one for each image; from 1/256 to 1.

    Returns:
        float32 [n].

    Raises:
        ValueError: a delta is out of its bounds, or their number is not that of the images.
    """
    positions = np.empty(len(visual))
    last = -1.0
    for start, end, step in _runs(visual, delta):
        steps = np.arange(1, end - start + 1) * step
        positions[start:end] = last + steps
        last = np.ceil(positions[end - 1])
    return positions.astype(np.float32)


def exact_v2pe_positions(visual: np.ndarray, delta: float | Sequence[float]) -> np.ndarray:
    """V2PE as its paper has it: p_0 = 0, and p_i = p_{i-1} + (delta if token i is visual else 1).

    Text behind an image may take fractions. Arguments, result and errors are those of `v2pe_positions`.
    """
    steps = np.ones(len(visual))
    for start, end, step in _runs(visual, delta):
        steps[start:end] = step
    return (np.cumsum(steps) - steps[:1]).astype(np.float32)


def _runs(visual: np.ndarray, delta: float | Sequence[float]) -> list[tuple[int, int, float]]:
    """(start, end, step) of each run of text, whose step is 1, and of each image."""
    edges = np.flatnonzero(np.diff(visual)) + 1
    bounds = [0, *edges.tolist(), len(visual)] if len(visual) else []
    starts = bounds[:-1]
    images = sum(bool(visual[start]) for start in starts)
    deltas = list(delta) if isinstance(delta, Sequence | np.ndarray) else [delta] * images
    if len(deltas) != images:
        raise ValueError(f"there are {len(deltas)} deltas for {images} images; valid: one for each, or one for all")
    following = iter([checked_delta(step) for step in deltas])
    return [
        (start, end, next(following) if visual[start] else 1.0) for start, end in zip(starts, bounds[1:], strict=True)
    ]


def checked_delta(delta: float) -> float:
    """`delta`, a number of any type, as a float; raises a ValueError unless it is a step that V2PE knows."""
    if not isinstance(delta, numbers.Real) or isinstance(delta, bool) or not SMALLEST <= delta <= 1:
        raise ValueError(
            f"the visual delta is {delta!r}; it must be a number from 1/256 to 1, which is plain positions"
        )
    return float(delta)


def random_deltas(rng: np.random.Generator, images: int) -> np.ndarray:
    """A step for each image as V2PE draws them in training: of 1, 1/2, 1/4, ..., 1/256, float64 [images]."""
    return 0.5 ** rng.integers(0, 8, images, endpoint=True)
