"""From images that were looked at to their tiles."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TypeAlias

import numpy as np
from PIL import Image

from ivl3_jax.data.faults import Fault
from ivl3_jax.data.images import cut, most_pixels, name_of, open_image, square
from ivl3_jax.data.records import ImageSource
from ivl3_jax.data.units import Frame, Picture, Visual, tile_count
from ivl3_jax.data.video import frames_at

# Changes the tiles of one visual, uint8 [t, size, size, 3], in place.
Finish: TypeAlias = Callable[[Visual, np.ndarray], None]


def leave(visual: Visual, tiles: np.ndarray) -> None:
    """Changes nothing."""


def decode_visuals(visuals: Sequence[Visual], size: int, pad_to_square: bool, finish: Finish) -> np.ndarray:
    """The tiles of all visuals in their order: uint8 [t, size, size, 3].

    Args:
        size: height and width of a tile in pixels.
        pad_to_square: whether images are filled up to a square before they are resized.
        finish: called for each visual in order.

    Raises:
        Fault: an image or a video is gone or damaged, an image has another size than its header said, or a video fewer
            frames than were counted.
        ModuleNotFoundError: there is a video file, and PyAV is not installed.
    """
    tiles = np.empty((sum(map(tile_count, visuals)), size, size, 3), np.uint8)
    start = 0
    for _, group in groupby(visuals, lambda visual: visual.path if isinstance(visual, Frame) else None):
        members = list(group)
        frames = [visual for visual in members if isinstance(visual, Frame)]
        found = _frames(frames, size) if frames else members
        for visual, source in zip(members, found, strict=True):
            out = tiles[start : start + tile_count(visual)]
            if isinstance(source, Picture):
                rgb = _decoded(source)
                cut(square(rgb) if pad_to_square else rgb, source.grid, out)
            else:
                out[:] = source
            finish(visual, out)
            start += len(out)
    return tiles


def check_square(image: ImageSource, size: tuple[int, int]) -> None:
    """Raises a `Fault` if an image of that size would become too large a square."""
    pixels = max(size) ** 2
    if pixels > most_pixels():
        told = f"filled up to a square it would have {pixels} pixels; at most {most_pixels()} are taken"
        raise Fault("bomb", f"{name_of(image)}: {told}")


def _decoded(picture: Picture) -> Image.Image:
    rgb = open_image(picture.source)
    if rgb.size != picture.size:
        (width, height), (stated_width, stated_height) = rgb.size, picture.size
        raise Fault(
            "image",
            f"{name_of(picture.source)}: has {width} x {height} pixels, but its header said {stated_width} x "
            f"{stated_height}",
        )
    return rgb


def _frames(frames: Sequence[Frame], size: int) -> list[np.ndarray]:
    """The tile of each of a video's frames, [1, size, size, 3]."""

    def keep(rgb: Image.Image) -> np.ndarray:
        return cut(open_image(rgb), (1, 1), np.empty((1, size, size, 3), np.uint8))

    return frames_at(frames[0].path, [frame.index for frame in frames], keep)
