"""Rows of `kernels.py` for the decoder: attention of packed rows beside JAX's splash attention, by the schedule.

The row is one that the packer made: 16,384 positions, 20 segments. Our kernels take as many grid steps as the list of
pairs of that row has; the parts of a step that some pairs leave out count as often as the list has them. Splash skips
what its causal mask makes empty when it is built, before segments are known; they only mask its scores.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from measuring import table
from packing_speed import KINDS, ours
from schedule import CHIPS, Kernel, cycles_of

S, SEGMENTS = 16384, 20
KINDS_OF_CHIP = {"v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite"}


def packed_row() -> np.ndarray:
    """int32 [1, S], the ids of the first row of 20 segments out of 2,000 samples of text, images and videos."""
    rows = ours(KINDS["all three"](np.random.default_rng(0), 2000), 20)
    lengths = [item.tokens for item in next(row for row in rows if len(row) == SEGMENTS)]
    ids = np.repeat(np.arange(1, SEGMENTS + 1, dtype=np.int32), lengths)
    return np.pad(ids, (0, S - len(ids)))[None]


def one_segment() -> np.ndarray:
    """int32 [1, S], all one: where splash has nothing to lose."""
    return np.ones((1, S), np.int32)


def listed(ids: np.ndarray, blocks) -> tuple[dict[str, np.ndarray], int]:
    """The list of pairs of a row as the kernels get it, and how many they are."""
    from ivl3_jax.kernels import packed_schedule as schedule

    marked = (schedule.marked_ids(jnp.asarray(ids), ids.shape, 1, pad) for pad in (-1, 0))
    pairs = schedule.pairs(*marked, 0, blocks=blocks, causal=True)
    count = int(pairs.count)
    names = ("queries", "keys", "closing")
    return {name: np.asarray(x)[:count] for name, x in zip(names, pairs, strict=False)}, count
