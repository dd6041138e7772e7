"""Segments of made-up tokens for the small model, alone and in pairs, and their batches."""

from types import SimpleNamespace

import numpy as np

from ivl3_jax.data.collate import collate
from ivl3_jax.data.encoded import Encoded, shift_labels
from tests.models.small import CONFIG

PROCESSOR = SimpleNamespace(tile_size=CONFIG.vision.image_size, tile_tokens=CONFIG.tile_tokens)


def segment(rng, text, tiles=0, trained=0.5, **fields) -> Encoded:
    """`text` random tokens with the visual tokens of `tiles` tiles from the third position on."""
    visual = tiles * CONFIG.tile_tokens
    tokens = rng.integers(0, 300, text + visual).astype(np.int32)
    tokens[2 : 2 + visual] = CONFIG.image_token_id
    is_visual = tokens == CONFIG.image_token_id
    supervised = ~is_visual & (rng.random(len(tokens)) < trained)
    supervised[:2] = False
    size = CONFIG.vision.image_size
    return Encoded(
        tokens=tokens,
        labels=shift_labels(tokens, supervised),
        supervised=supervised,
        tiles=rng.integers(0, 256, (tiles, size, size, 3)).astype(np.uint8),
        visual_index=np.where(is_visual, np.cumsum(is_visual) - 1, -1).astype(np.int32),
        positions=np.arange(len(tokens), dtype=np.float32),
        **fields,
    )


def pair(rng, text, tiles=0) -> list[Encoded]:
    """A chosen and a rejected answer of one prompt about the same tiles; only their last thirds differ."""
    chosen = segment(rng, text, tiles, answer="chosen")
    start = len(chosen) - text // 3
    supervised = np.arange(len(chosen)) >= start
    tokens = np.where(supervised, rng.integers(0, 300, len(chosen)), chosen.tokens).astype(np.int32)
    answers = []
    for answer, words, shown in (("chosen", chosen.tokens, chosen.tiles), ("rejected", tokens, chosen.tiles[:0])):
        answers.append(
            Encoded(
                words, shift_labels(words, supervised), supervised, shown, chosen.visual_index, chosen.positions,
                answer=answer,
            )
        )  # fmt: skip
    return answers


def batch_of(rows, *, tokens, tiles, segments=4, weighting="square"):
    """A batch of rows of segments."""
    return collate(PROCESSOR, rows, tokens, tiles, segments, weighting)
