"""Re-encoding as JPEG at random quality, the one augmentation of the original (InternVL, `data_augment`)."""

import io
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image

Each = Literal["tile", "image"]


@dataclass(frozen=True)
class Jpeg:
    """Tiles stored as JPEG and read back.

    Attributes:
        probability: with which it happens.
        quality: (lowest, highest); any whole number from the one to the other is equally likely.
        each: whether chance decides for each tile, as in the original, or once for all tiles of an image.

    Raises:
        ValueError: a value cannot be.
    """

    probability: float = 1.0
    quality: tuple[int, int] = (75, 100)
    each: Each = "tile"

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"Jpeg.probability is {self.probability!r}; it must be from 0 to 1")
        lowest, highest = self.quality
        if not all(type(bound) is int for bound in self.quality) or not 1 <= lowest <= highest <= 100:
            raise ValueError(f"Jpeg.quality is {self.quality!r}; valid: (lowest, highest), whole numbers from 1 to 100")
        if self.each not in get_args(Each):
            raise ValueError(f"Jpeg.each is {self.each!r}; valid: {', '.join(get_args(Each))}")

    def apply(self, tiles: np.ndarray, rng: np.random.Generator) -> None:
        """Changes the tiles of one image, uint8 [t, size, size, 3], in place.

        What is drawn from `rng` depends on the settings and on t alone, not on what came of it.
        """
        draws = len(tiles) if self.each == "tile" else 1
        chosen = np.broadcast_to(rng.random(draws) < self.probability, len(tiles))
        qualities = np.broadcast_to(rng.integers(*self.quality, draws, endpoint=True), len(tiles))
        for index in np.flatnonzero(chosen):
            tiles[index] = reencode(tiles[index], int(qualities[index]))


def reencode(pixels: np.ndarray, quality: int) -> np.ndarray:
    """uint8 [height, width, 3] as JPEG of that quality and back, by Pillow with its other settings left alone."""
    with io.BytesIO() as stored:
        Image.fromarray(pixels).save(stored, "JPEG", quality=quality)
        with Image.open(stored) as image:
            return np.asarray(image)
