"""One tokenised conversation, the unit that is packed into rows."""

from dataclasses import dataclass

import numpy as np

from ivl3_jax.batch import IGNORE

WEIGHTINGS = ("token", "sample", "square")


@dataclass(frozen=True)
class Encoded:
    """One segment of n tokens with t tiles.

    Attributes:
        tokens: int32 [n].
        labels: int32 [n], what each position predicts: the next token if that is supervised, else `IGNORE`.
        supervised: bool [n], the tokens that are trained on, before the shift.
        tiles: uint8 [t, size, size, 3].
        visual_index: int32 [n], the row of the segment's own visual tokens that a position takes, or -1.
        positions: float32 [n], from 0.
        source: number of the data source.
        where: where the sample came from, for error messages.
    """

    tokens: np.ndarray
    labels: np.ndarray
    supervised: np.ndarray
    tiles: np.ndarray
    visual_index: np.ndarray
    positions: np.ndarray
    source: int = 0
    where: str = ""

    def __len__(self) -> int:
        return len(self.tokens)


def shift_labels(tokens: np.ndarray, supervised: np.ndarray) -> np.ndarray:
    """Labels int32 [n]: at i the token i + 1 if that one is supervised, else `IGNORE`; the last has none."""
    labels = np.full(len(tokens), IGNORE, np.int32)
    labels[:-1] = np.where(supervised[1:], tokens[1:], IGNORE)
    return labels


def loss_weight(supervised: int, weighting: str) -> float:
    """The loss weight of each token of a segment with `supervised` trained tokens, counted before the shift.

    "token" gives 1, "sample" 1/x, "square" 1/sqrt(x) (InternVL2.5, arXiv 2412.05271, "loss reweighting").

    Raises:
        ValueError: unknown weighting.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"loss weighting is {weighting!r}; valid: {', '.join(WEIGHTINGS)}")
    if supervised == 0:
        return 0.0
    return {"token": 1.0, "sample": 1 / supervised, "square": supervised**-0.5}[weighting]
