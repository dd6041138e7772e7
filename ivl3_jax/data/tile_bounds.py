"""How many tiles a checkpoint allows an image."""

from pathlib import Path
from typing import Any

from ivl3_jax.config import IMAGE_MEAN, IMAGE_STD
from ivl3_jax.data.images import LARGEST_GRID
from ivl3_jax.data.tokenizer_files import read_json
from ivl3_jax.original_config import MODEL_TYPE

FEWEST, MOST = 1, 12  # where a checkpoint does not say

# What the model's own normalisation of tiles and Pillow's bicubic resize assume of a preprocessor file.
ASSUMED = {"image_mean": list(IMAGE_MEAN), "image_std": list(IMAGE_STD), "resample": 3}


def tile_bounds(directory: Path, tile_size: int, tile_tokens: int) -> tuple[int, int]:
    """(min_tiles, max_tiles) of a checkpoint's processor files, whose other fields are checked against the model.

    Raises:
        ValueError: a file is malformed, or asks for another processing than InternVL's.
    """
    fields = read_json(directory / "config.json")
    if fields.get("model_type") == MODEL_TYPE:
        return _original(fields, directory / "config.json")
    file = directory / "processor_config.json"
    outer = read_json(file)
    stated = outer.get("image_seq_length", tile_tokens)
    if stated != tile_tokens:
        raise ValueError(
            f"{file}: image_seq_length is {stated!r}, but config.json makes {tile_tokens} tokens of a tile"
        )
    inner: Any = outer.get("image_processor", {})
    if (directory / "preprocessor_config.json").is_file():
        file = directory / "preprocessor_config.json"
        inner = read_json(file)
    if not isinstance(inner, dict):
        raise ValueError(f"{file}: image_processor is {inner!r}; it must be an object")
    size = inner.get("size", tile_size)
    sides = size if isinstance(size, dict) else {"height": size, "width": size}
    if sides.get("height") != tile_size or sides.get("width") != tile_size:
        raise ValueError(f"{file}: size is {size!r}, but config.json has tiles of {tile_size} x {tile_size} pixels")
    for field, value in ASSUMED.items():
        if inner.get(field, value) != value:
            raise ValueError(f"{file}: {field} is {inner[field]!r}; only InternVL's {value} can be used")
    names = "min_patches", "max_patches"
    return _bounds(file, names, (inner.get(names[0], FEWEST), inner.get(names[1], MOST)))


def _original(fields: dict[str, Any], file: Path) -> tuple[int, int]:
    """(min_tiles, max_tiles) of an original config.json; its preprocessor_config.json is CLIP's and not used."""
    for field in ("dynamic_image_size", "use_thumbnail"):
        if fields.get(field, True) is not True:
            raise ValueError(f"{file}: {field} is {fields[field]!r}; only true can be used")
    names = "min_dynamic_patch", "max_dynamic_patch"
    return _bounds(file, names, (fields.get(names[0], FEWEST), fields.get(names[1], MOST)))


def _bounds(file: Path, names: tuple[str, str], bounds: tuple[Any, Any]) -> tuple[int, int]:
    if not all(type(bound) is int for bound in bounds) or not 1 <= bounds[0] <= bounds[1] <= LARGEST_GRID:
        raise ValueError(
            f"{file}: {names[0]} is {bounds[0]!r} and {names[1]} {bounds[1]!r}; they must be integers with "
            f"1 <= {names[0]} <= {names[1]} <= {LARGEST_GRID}"
        )
    return bounds
