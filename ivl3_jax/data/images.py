"""Images to tiles, to the byte as InternVL's `dynamic_preprocess` does it with Pillow (reference: OpenGVLab/InternVL).

An image becomes RGB by Pillow's own `convert("RGB")`, whatever its mode. That is what the original does, with three
consequences a user may not expect: an EXIF orientation is not applied, transparency is dropped rather than blended, and
16-bit greys are clipped at 255 rather than scaled. The model was trained on exactly that.
"""

import io
import os
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from ivl3_jax.config import IMAGE_MEAN
from ivl3_jax.data.faults import Fault
from ivl3_jax.data.files import is_remote, read_bytes, require_file
from ivl3_jax.data.records import ImageSource, Stored

T = TypeVar("T")

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM", "ICO")
"""What is read, by Pillow's names. Of its other formats some run programs (EPS) or know anything for an image."""

LARGEST_GRID = 256
"""Tiles that an image may have at most; grids of millions could be asked for, and would be looked through for hours."""

# What Pillow says of metadata and large images names no file. A filter that a user sets comes first.
warnings.filterwarnings("ignore", module=r"PIL\.", append=True)

PADDING = tuple(int(mean * 255) for mean in IMAGE_MEAN)
"""The colour that fills an image up to a square, RGB."""


def open_image(source: ImageSource) -> Image.Image:
    """Reads an image completely and converts it to RGB.

    Args:
        source: a path, which may be remote, the bytes of a file, or a PIL image (which is left as it is).

    Returns:
        A PIL image of mode RGB, not to be drawn on: where `source` is one, it may be the same.

    Raises:
        Fault: the file is missing, truncated, no image of `FORMATS`, or a decompression bomb (more than twice
            `PIL.Image.MAX_IMAGE_PIXELS`); the message names the file.
        ModuleNotFoundError: it is at gs://, and what reads that is not installed.
    """
    return _look(source, _rgb)


def most_pixels() -> float:
    """The most pixels that are decoded at a time: where Pillow draws the line between an image and a bomb."""
    return 2 * (Image.MAX_IMAGE_PIXELS or float("inf"))


def image_size(source: ImageSource) -> tuple[int, int]:
    """(width, height) of an image in pixels, of which no more than the header is read.

    Raises:
        Fault: as `open_image`, as far as a header tells.
    """
    return _look(source, lambda image: image.size)


def _rgb(image: Image.Image) -> Image.Image:
    image.load()  # what is RGB already is not copied, as `convert` would
    return image if image.mode == "RGB" else image.convert("RGB")


def _look(source: ImageSource, at: Callable[[Image.Image], T]) -> T:
    try:
        if isinstance(source, Image.Image):
            return at(source)
        with Image.open(_at_hand(source), formats=_formats()) as image:
            return at(image)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # on damaged bytes Pillow's decoders raise nearly every type there is
        bomb = isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning)
        raise Fault("bomb" if bomb else "image", f"{name_of(source)}: {_trouble(source, error)}") from error


@lru_cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _at_hand(source: ImageSource) -> Any:
    """What Pillow opens: a local path as it is, anything else as a stream of its bytes."""
    if isinstance(source, Stored):
        return io.BytesIO(source.data)
    if isinstance(source, str) and is_remote(source):
        return io.BytesIO(read_bytes(source))
    if isinstance(source, str | os.PathLike):
        require_file(source)
    return source


def name_of(source: ImageSource) -> str:
    """What messages call an image."""
    if isinstance(source, Stored):
        return source.name
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or f"PIL image of mode {source.mode}"
    return os.fspath(source) if isinstance(source, str | os.PathLike) else f"image of type {type(source).__name__}"


def _trouble(source: ImageSource, error: Exception) -> str:
    if not isinstance(source, str | os.PathLike | Stored | Image.Image):
        return "an image must be given as a path or as a PIL image"
    if isinstance(error, FileNotFoundError):
        return "no such image file"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"refused as a possible decompression bomb ({error})"
    if isinstance(source, Stored):
        empty = not source.data
    else:
        empty = not isinstance(source, Image.Image) and os.path.isfile(source) and not os.path.getsize(source)
    if empty:
        return "cannot be read as an image: the file is empty"
    if isinstance(error, UnidentifiedImageError):
        kinds = ", ".join(_formats())
        return f"cannot be read as an image (UnidentifiedImageError: it does not begin as a file of {kinds} does)"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read as an image ({type(error).__name__}: {error.strerror})"
    return f"cannot be read as an image ({type(error).__name__}: {error})"


@lru_cache
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """All (columns, rows) with min_tiles <= columns * rows <= max_tiles, by ascending area.

    Grids of one area come in the order in which the original has them: that of a Python set filled as here. It decides
    between two that are equally near, which happens where `min_tiles` is not 1.
    """
    if not 1 <= min_tiles <= max_tiles <= LARGEST_GRID:
        raise ValueError(
            f"min_tiles is {min_tiles} and max_tiles {max_tiles}; valid: 1 <= min_tiles <= max_tiles <= {LARGEST_GRID}"
        )
    grids = {
        (cols, rows)
        for side in range(min_tiles, max_tiles + 1)
        for cols in range(1, side + 1)
        for rows in range(1, min(side, max_tiles // cols) + 1)
        if min_tiles <= cols * rows
    }
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def choose_grid(width: int, height: int, min_tiles: int, max_tiles: int, size: int) -> tuple[int, int]:
    """The grid whose aspect ratio is nearest to the image's.

    Of grids that are equally near, a larger one wins only if the image has more than half of its pixels.

    Args:
        width, height: of the image, in pixels.
        min_tiles, max_tiles: bounds of columns * rows.
        size: height and width of a tile in pixels.

    Returns:
        (columns, rows).

    Raises:
        Fault: the image has no pixels.
        ValueError: no grid lies within the bounds.
    """
    if width < 1 or height < 1:
        raise Fault("image", f"the image is {width} x {height} pixels; it must be at least 1 x 1")
    aspect = width / height
    best, best_distance = (1, 1), float("inf")
    for cols, rows in _grids(min_tiles, max_tiles):
        distance = abs(aspect - cols / rows)
        if distance < best_distance or (distance == best_distance and width * height > 0.5 * size * size * cols * rows):
            best, best_distance = (cols, rows), distance
    return best


def tile_image(image: ImageSource, size: int, min_tiles: int, max_tiles: int, thumbnail: bool) -> np.ndarray:
    """Cuts an image into tiles.

    The whole image is resized (bicubic, its aspect ignored) to fill the chosen grid, which is cut row by row. If that
    makes more than one tile and `thumbnail` is set, the whole image resized to one tile follows last.

    Args:
        image: a path or a PIL image, read by `open_image`.
        size: height and width of a tile in pixels.
        min_tiles, max_tiles: bounds of the grid's tiles, the thumbnail not counted.
        thumbnail: whether the thumbnail is appended.

    Returns:
        uint8 [tiles, size, size, 3], RGB, not normalised.

    Raises:
        Fault: the image cannot be read.
        ValueError: no grid lies within the bounds.
    """
    rgb = open_image(image)
    grid = choose_grid(*rgb.size, min_tiles, max_tiles, size)
    return cut(rgb, grid, np.empty((tiles_of(grid, thumbnail), size, size, 3), np.uint8))


def tiles_of(grid: tuple[int, int], thumbnail: bool) -> int:
    """The tiles of an image in a grid of (columns, rows), counting the thumbnail that follows several."""
    tiles = grid[0] * grid[1]
    return tiles + (thumbnail and tiles > 1)


def cut(rgb: Image.Image, grid: tuple[int, int], out: np.ndarray) -> np.ndarray:
    """Cuts an RGB image as `tile_image` does.

    Args:
        grid: (columns, rows).
        out: where the tiles go, uint8 [tiles, size, size, 3]: as many as the grid has, or one more for the thumbnail.

    Returns:
        `out`.
    """
    (cols, rows), size = grid, out.shape[1]
    whole = np.asarray(rgb.resize((cols * size, rows * size), Image.Resampling.BICUBIC))
    by_place = out[: rows * cols].reshape(rows, cols, size, size, 3)
    by_place[:] = whole.reshape(rows, size, cols, size, 3).swapaxes(1, 2)
    if len(out) > rows * cols:
        out[-1] = np.asarray(rgb.resize((size, size), Image.Resampling.BICUBIC))
    return out


def square(rgb: Image.Image) -> Image.Image:
    """The image in the middle of a square of `PADDING`; the odd pixel goes to the right or below."""
    width, height = rgb.size
    if width == height:
        return rgb
    side = max(width, height)
    padded = Image.new("RGB", (side, side), PADDING)
    padded.paste(rgb, ((side - width) // 2, (side - height) // 2))
    return padded
