"""What is done with a sample that is larger than a row; see `data.encoding.Encoder`.

No cut goes through an image block, `<img>` ... `</img>`.
"""

from collections.abc import Callable
from typing import NoReturn

import numpy as np

from ivl3_jax.data.faults import Fault
from ivl3_jax.data.units import Frame, Picture, Unit


def refuse(unit: Unit, room: int) -> NoReturn:
    """Raises a `Fault` that says how many tokens there are and how many a row takes."""
    what = "the two answers with their prompts have" if unit.segments > 1 else "has"
    raise Fault(
        "tokens",
        f"{what} {unit.tokens} tokens, but a row has room for {room}; leave the sample out, raise tokens of a row, or "
        f"{_fewer(unit)}",
    )


def truncate(unit: Unit, room: int) -> list[Unit]:
    """The first `room` tokens at most; images that are not whole among them go, with their tiles.

    Raises:
        Fault: nothing that is trained on is left.
    """
    cut = unit.between(0, _end(unit, 0, room))
    if not any(cut.supervised):
        raise Fault(
            "tokens",
            f"has {unit.tokens} tokens, but a row has room for {room}, and no answer begins within them; raise tokens "
            f"of a row, or {_fewer(unit)}",
        )
    return [cut]


def split(unit: Unit, room: int) -> list[Unit]:
    """Pieces of at most `room` tokens, which together are the whole.

    Each piece is a segment of its own: it sees nothing of those before, its positions start at 0, and it is weighted by
    its own supervised tokens. The original lets positions run on; rope turns by differences alone, so that within a
    piece nothing depends on it, and at 0 they stay within what the model was trained on.

    Raises:
        Fault: a single image block is longer than `room`.
    """
    pieces, start, ids = [], 0, len(unit.texts[0].ids)
    while start < ids:
        end = _end(unit, start, room)
        if end == start:
            block = unit.texts[0].sizes[np.searchsorted(unit.texts[0].blocks, start)] + 2
            raise Fault(
                "tokens",
                f"an image takes {block} tokens, but a row has room for {room}; raise tokens of a row, or lower "
                "max_tiles of the processor",
            )
        pieces.append(unit.between(start, end))
        start = end
    return pieces


def shrink(unit: Unit, room: int, at_most: Callable[[Unit, int], Unit]) -> Unit:
    """The unit with the largest limit of tiles per image by which all of them are at most `room`.

    Args:
        at_most: (unit, limit) to the unit whose images have so many tiles at most, thumbnails not counted.

    Raises:
        Fault: there are too many even with one tile for each image.
    """
    largest = max((cols * rows for v in unit.visuals if isinstance(v, Picture) for cols, rows in (v.grid,)), default=1)
    for limit in range(largest - 1, 0, -1):
        unit = at_most(unit, limit)
        if unit.tiles <= room:
            return unit
    crowded(unit, room)


def crowded(unit: Unit, room: int) -> NoReturn:
    """Raises a `Fault` that says how many tiles there are and how many a row takes."""
    raise Fault(
        "tiles",
        f"has {unit.tiles} tiles, but a row has room for {room}; leave the sample out, raise tiles of a row, or "
        f"{_fewer(unit)}",
    )


def _fewer(unit: Unit) -> str:
    """What makes a unit smaller; a frame has one tile, whatever max_tiles is."""
    if any(isinstance(visual, Frame) for visual in unit.visuals):
        return "look at fewer frames of its video"
    if unit.visuals:
        return "lower max_tiles of the processor"
    return "set too_long to split" if unit.segments == 1 else "shorten it"  # pairs are never cut


def _end(unit: Unit, start: int, room: int) -> int:
    """The id before which a piece that begins at `start` has to end."""
    (text,) = unit.texts
    end = start + int(np.searchsorted(np.cumsum(text.repeats()[start:]), room, side="right"))
    after = int(np.searchsorted(text.blocks, end - 1))  # the first block whose last id is not before the end
    if after < len(text.blocks) and text.blocks[after] - 1 < end < text.blocks[after] + 2:
        return int(text.blocks[after]) - 1
    return end
