"""The contract between the data engine and the model: one batch of packed rows.

A NamedTuple, so that it is a pytree for JAX without this module (or the data engine) importing it.
Glossary of the one-letter axes used throughout: B rows (batch), S positions of a row (sequence), T tiles of a row,
G segments of a row, N heads, K kv heads, H head dim, D width, F mlp, V vocab, P patches of a tile.
"""

from typing import Any, NamedTuple

import numpy as np

Array = Any  # numpy on the host, jax.Array on device

IGNORE = -100  # a label that is not trained on


class Batch(NamedTuple):
    """B packed rows of S positions with at most T tiles and G segments each; every shape is static.

    Attributes:
        tokens: int32 [B, S].
        labels: int32 [B, S], the token to be predicted *at* each position; shifted on the host within its segment, so
            that no shift ever crosses a sharded sequence. `IGNORE` where nothing is predicted.
        segment_ids: int32 [B, S], 1..G in order along the row, 0 is padding. Attention never crosses segments.
        positions: float32 [B, S], rope positions, starting at 0 in each segment. Float because V2PE has fractions.
        loss_weights: float32 [B, S], already carrying the re-weighting; 0 where the label is `IGNORE`.
        tiles: uint8 [B, T, size, size, 3], RGB, normalised on device. T may be 0.
        visual_index: int32 [B, S], which row of the visual-token table [T * tile_tokens] of its own batch row a
            position takes instead of its token's embedding, or -1.
        source_id: int32 [B, G], the data source of each segment, for loss by data set.
        pair_id: int32 [B, G], links the chosen and the rejected answer of a preference pair, -1 if none. Both are in
            one row, which counts its pairs from 0, and their visual positions take the same rows of the table.
        chosen: bool [B, G], True for the chosen answer of a pair.
    """

    tokens: Array
    labels: Array
    segment_ids: Array
    positions: Array
    loss_weights: Array
    tiles: Array
    visual_index: Array
    source_id: Array
    pair_id: Array
    chosen: Array


def empty_batch(rows: int, tokens: int, tiles: int, segments: int, tile_size: int) -> Batch:
    """A batch of nothing but padding, of the given static shape, in numpy; a starting point to fill in.

    Args:
        rows: B. tokens: S. tiles: T, may be 0. segments: G.
        tile_size: height and width of a tile in pixels.
    """
    return Batch(
        tokens=np.zeros((rows, tokens), np.int32),
        labels=np.full((rows, tokens), IGNORE, np.int32),
        segment_ids=np.zeros((rows, tokens), np.int32),
        positions=np.zeros((rows, tokens), np.float32),
        loss_weights=np.zeros((rows, tokens), np.float32),
        tiles=np.zeros((rows, tiles, tile_size, tile_size, 3), np.uint8),
        visual_index=np.full((rows, tokens), -1, np.int32),
        source_id=np.zeros((rows, segments), np.int32),
        pair_id=np.full((rows, segments), -1, np.int32),
        chosen=np.zeros((rows, segments), bool),
    )
