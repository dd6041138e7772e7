"""Segments to a Batch."""

from collections.abc import Sequence

import numpy as np

from ivl3_jax.batch import IGNORE, Batch, empty_batch
from ivl3_jax.data.encoded import Encoded, loss_weight
from ivl3_jax.data.processor import Processor


def collate(
    processor: Processor,
    rows: Sequence[Sequence[Encoded]],
    tokens: int,
    tiles: int,
    segments: int,
    weighting: str = "square",
) -> Batch:
    """Lays segments side by side into rows of static shape.

    Args:
        processor: what encoded them.
        rows: the segments of each row, in order; a row may be empty. The chosen answer of a pair stands right before
            the rejected one, which takes its tiles.
        tokens, tiles, segments: S, T and G, the room in each row.
        weighting: loss weight of a token in a segment of x trained tokens: "token" 1, "sample" 1/x,
            "square" 1/sqrt(x).

    Returns:
        A Batch of numpy arrays, [len(rows), ...].

    Raises:
        ValueError: a row overflows, the weighting is unknown, or one answer of a pair is without the other.
    """
    batch = empty_batch(len(rows), tokens, tiles, segments, processor.tile_size)
    for row, members in enumerate(rows):
        for what, used, room in (
            ("tokens", sum(map(len, members)), tokens),
            ("tiles", sum(len(member.tiles) for member in members), tiles),
            ("segments", len(members), segments),
        ):
            if used > room:
                names = ", ".join(member.where or "?" for member in members)
                raise ValueError(f"row {row} ({names}) needs {used} {what}, but has room for {room}")
        _check_pairs(row, members)
        start = tile = shown = pairs = 0
        for index, member in enumerate(members):
            here = np.s_[row, start : start + len(member)]
            weight = loss_weight(int(member.supervised.sum()), weighting)
            if member.answer != "rejected":  # which sees the tiles of the segment before
                shown, tile = tile, tile + len(member.tiles)
                batch.tiles[row, shown:tile] = member.tiles
            if member.answer != "only":
                batch.pair_id[row, index] = pairs
                batch.chosen[row, index] = member.answer == "chosen"
                pairs += member.answer == "rejected"
            visual = member.visual_index
            batch.tokens[here] = member.tokens
            batch.labels[here] = member.labels
            batch.segment_ids[here] = index + 1
            batch.positions[here] = member.positions
            batch.loss_weights[here] = np.where(member.labels == IGNORE, 0, weight)
            batch.visual_index[here] = np.where(visual < 0, -1, visual + shown * processor.tile_tokens)
            batch.source_id[row, index] = member.source
            start += len(member)
    return batch


def _check_pairs(row: int, members: Sequence[Encoded]) -> None:
    before = ["only", *(member.answer for member in members)]
    for index, (first, second) in enumerate(zip(before, [*before[1:], "only"], strict=True)):
        if (first == "chosen") != (second == "rejected"):
            lonely = members[min(index, len(members) - 1)]
            raise ValueError(
                f"row {row}: a pair is torn apart at segment {index} ({lonely.where or '?'}); its chosen answer must "
                "stand right before its rejected one"
            )
