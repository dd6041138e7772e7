"""One tokenised conversation, the unit that is packed into rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ivl3_jax.batch import IGNORE
from ivl3_jax.data.units import Unit

Answer = Literal["only", "chosen", "rejected"]
ALONE: tuple[Answer, ...] = ("only",)
PAIR: tuple[Answer, ...] = ("chosen", "rejected")

Positions = Callable[[np.ndarray], np.ndarray]
"""Which tokens are visual, bool [n], to their rope positions, float32 [n]."""

WEIGHTINGS = ("token", "sample", "square")


@dataclass(frozen=True)
class Encoded:
    """One segment of n tokens with t tiles.

    Attributes:
        tokens: int32 [n].
        labels: int32 [n], what each position predicts: the next token if that is supervised, else `IGNORE`.
        supervised: bool [n], the tokens that are trained on, before the shift.
        tiles: uint8 [t, size, size, 3]. The rejected answer of a pair has none: its tiles are those of the chosen one,
            the segment before.
        visual_index: int32 [n], the row of the segment's visual tokens that a position takes, or -1.
        positions: float32 [n], from 0.
        source: number of the data source.
        where: where the sample came from, for error messages.
        answer: "chosen" or "rejected" of a pair, "only" where there is no other.
    """

    tokens: np.ndarray
    labels: np.ndarray
    supervised: np.ndarray
    tiles: np.ndarray
    visual_index: np.ndarray
    positions: np.ndarray
    source: int = 0
    where: str = ""
    answer: Answer = "only"

    def __len__(self) -> int:
        return len(self.tokens)


def segments_of(unit: Unit, tiles: np.ndarray, positions: Positions) -> list[Encoded]:
    """The segments of a unit, expanded.

    Args:
        tiles: of all its visuals, uint8 [t, size, size, 3]; they go to the first segment.
        positions: called for each segment.
    """
    answers = PAIR if unit.segments > 1 else ALONE
    segments = []
    for text, answer in zip(unit.texts, answers, strict=True):
        tokens, supervised, visual = text.expanded()
        segments.append(
            Encoded(
                tokens=tokens,
                labels=shift_labels(tokens, supervised),
                supervised=supervised,
                tiles=tiles[:0] if answer == "rejected" else tiles,
                visual_index=np.where(visual, np.cumsum(visual) - 1, -1).astype(np.int32),
                positions=positions(visual),
                source=unit.source,
                where=unit.where,
                answer=answer,
            )
        )
    return segments


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
