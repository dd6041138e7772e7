"""The demo's lessons in a keyed order to batches, first come first served."""

from collections.abc import Callable, Iterator
from itertools import count as count_from

import numpy as np

from ivl3_jax.batch import Batch
from ivl3_jax.data.collate import collate
from ivl3_jax.data.encoded import Encoded
from ivl3_jax.data.processor import Processor
from ivl3_jax.data.records import Sample


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(count), a pure function of (seed, epoch): int64 [count]."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)


def batches(
    samples: Callable[[int], Sample],
    count: int,
    processor: Processor,
    *,
    rows: int,
    tokens: int,
    tiles: int,
    segments: int,
    seed: int = 0,
    epochs: int | None = None,
    weighting: str = "square",
) -> Iterator[Batch]:
    """Encodes samples in shuffled order and packs them, first come first served.

    A sample goes to the first row of the batch in the making that has room for its tokens and its tiles. When none has,
    the batch is complete and the sample opens the next; batches therefore run on across epochs.

    Args:
        samples: index -> sample, for 0 <= index < count.
        count: number of samples.
        processor: encodes them.
        rows, tokens, tiles, segments: B, S, T and G, the static shape of every batch.
        seed: of the order, together with the number of the epoch.
        epochs: how often every sample is seen; None goes on forever. At the end a last batch may have empty rows.
        weighting: see `collate`.

    Yields:
        Batches of numpy arrays.

    Raises:
        ValueError: there are no samples, or a sample is faulty or does not fit into an empty row; the message says
            where it came from.
    """
    if count < 1:
        raise ValueError(f"there are {count} samples; at least one is needed")
    open_rows: list[list[Encoded]] = [[] for _ in range(rows)]
    for epoch in count_from() if epochs is None else range(epochs):
        for index in epoch_order(count, seed, epoch):
            sample = processor.encode(samples(int(index)))
            _check_fits(sample, tokens, tiles)
            room = (row for row in open_rows if _fits(sample, row, tokens, tiles, segments))
            if (row := next(room, None)) is None:
                yield collate(processor, open_rows, tokens, tiles, segments, weighting)
                open_rows = [[] for _ in range(rows)]
                row = open_rows[0]
            row.append(sample)
    if any(open_rows):
        yield collate(processor, open_rows, tokens, tiles, segments, weighting)


def _fits(sample: Encoded, row: list[Encoded], tokens: int, tiles: int, segments: int) -> bool:
    return (
        len(row) < segments
        and len(sample) + sum(map(len, row)) <= tokens
        and len(sample.tiles) + sum(len(member.tiles) for member in row) <= tiles
    )


def _check_fits(sample: Encoded, tokens: int, tiles: int) -> None:
    for what, used, room in (("tokens", len(sample), tokens), ("tiles", len(sample.tiles), tiles)):
        if used > room:
            raise ValueError(
                f"{sample.where or 'a sample'} has {used} {what}, but a row has room for {room}; leave the sample out, "
                f"raise {what} of a row, or lower max_tiles of the processor"
            )
