"""Boxes in InternVL's text, `<ref>a cat</ref><box>[[x1, y1, x2, y2], ...]</box>`, and in pixels.

In text they are whole thousandths of the original image's width and height, whatever its tiles. The maintainers cut
fractions off, their documentation rounds: a box is as large as its reader believes only where both do the same.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

# x1, y1, x2, y2 in pixels: left, top, right, bottom edge.
Box: TypeAlias = tuple[float, float, float, float]

_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")
# The tags are special tokens, which a decoded answer may lack.
_GROUP = re.compile(rf"(?:<ref>([^<]*)</ref>\s*)?(?:<box>)?\s*\[\s*({_BOX.pattern}(?:\s*,\s*{_BOX.pattern})*)\s*\]")


@dataclass(frozen=True)
class Grounded:
    """What stands in a picture where.

    Attributes:
        phrase: what it is called, "" where the text has no `<ref>` for it.
        boxes: in pixels.
    """

    phrase: str
    boxes: tuple[Box, ...]


def cut_off(value: float) -> int:
    """The whole number below; a thousandth that came out a hair too small when it was computed is itself."""
    return math.floor(value + 1e-6)


def write_boxes(grounded: Grounded, width: int, height: int, whole: Callable[[float], int] = cut_off) -> str:
    """The text of a phrase and its boxes.

    Args:
        width, height: of the original image in pixels.
        whole: how thousandths become whole, `cut_off` as the maintainers say, or `round`.

    Raises:
        ValueError: there is no box, or one is not within the image.
    """
    if not grounded.boxes:
        raise ValueError(f"{grounded.phrase!r} has no box; at least one is needed")
    boxes = ", ".join(_written(box, width, height, whole) for box in grounded.boxes)
    reference = f"<ref>{grounded.phrase}</ref>" if grounded.phrase else ""
    return f"{reference}<box>[{boxes}]</box>"


def read_boxes(text: str, width: int, height: int) -> list[Grounded]:
    """All boxes of a text, such as an answer, in pixels.

    What does not have the form of a box is passed over, since models write it too; no number is corrected.

    Args:
        width, height: of the original image in pixels.
    """
    return [
        Grounded(
            group[1] or "",
            tuple(_pixels(box.groups(), width / 1000, height / 1000) for box in _BOX.finditer(group[2])),
        )
        for group in _GROUP.finditer(text)
    ]


def _pixels(numbers: Sequence[str], x: float, y: float) -> Box:
    x1, y1, x2, y2 = map(float, numbers)
    return x1 * x, y1 * y, x2 * x, y2 * y


def _written(box: Sequence[float], width: int, height: int, whole: Callable[[float], int]) -> str:
    x1, y1, x2, y2 = box
    if not (0 <= x1 <= x2 <= width and 0 <= y1 <= y2 <= height):
        raise ValueError(
            f"the box {x1:g}, {y1:g}, {x2:g}, {y2:g} is not within {width} x {height} pixels; valid: "
            f"0 <= x1 <= x2 <= {width} and 0 <= y1 <= y2 <= {height}"
        )
    places = zip(box, (width, height, width, height), strict=True)
    return f"[{', '.join(str(whole(1000 * value / side)) for value, side in places)}]"
