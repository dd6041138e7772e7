"""Patterns, whole and sliced, against plain reshapes and transposes."""

import itertools

import numpy as np
import pytest

from ivl3_jax.conversion import layout
from ivl3_jax.conversion.layout import Layout

SIZES = {
    "embed": 6,
    "heads": 4,
    "head_dim": 3,
    "row": 2,
    "column": 2,
    "channel": 3,
    "positions": 5,
    "one": 1,
    "group": 2,
    "slots": 4,
    "v": 3,
}

PATTERNS = {
    "embed -> embed": lambda x: x,
    "1 1 embed -> embed": lambda x: x[0, 0],
    "1 positions embed -> positions embed": lambda x: x[0],
    "one embed -> embed one": lambda x: x.T,
    "positions embed -> embed positions": lambda x: x.T,
    "(heads head_dim) -> heads head_dim": lambda x: x.reshape(4, 3),
    "(heads head_dim) embed -> embed heads head_dim": lambda x: x.T.reshape(6, 4, 3),
    "embed (heads head_dim) -> heads head_dim embed": lambda x: x.T.reshape(4, 3, 6),
    "(one:0:3 heads head_dim) embed -> embed (heads one) head_dim": lambda x: x[:12].T.reshape(6, 4, 3),
    "(one:2:3 heads head_dim) embed -> embed (heads one) head_dim": lambda x: x[24:].T.reshape(6, 4, 3),
    "(one:1:3 heads head_dim) -> (heads one) head_dim": lambda x: x[12:24].reshape(4, 3),
    "(heads group:0:slots head_dim) embed -> embed (heads group) head_dim": lambda x: (
        x.reshape(4, 4, 3, 6)[:, :2].reshape(24, 6).T.reshape(6, 8, 3)
    ),
    "(heads one:v:slots head_dim) embed -> embed (heads one) head_dim": lambda x: (
        x.reshape(4, 4, 3, 6)[:, 3].reshape(12, 6).T.reshape(6, 4, 3)
    ),
    "embed channel row column -> (row column channel) embed": lambda x: x.transpose(2, 3, 1, 0).reshape(12, 6),
}


def tensor(pattern):
    shape = Layout(pattern, SIZES).their_shape
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_whole_tensors_both_ways(pattern):
    theirs = tensor(pattern)
    arrangement = Layout(pattern, SIZES)
    ours = arrangement.to_ours(theirs)
    np.testing.assert_array_equal(ours, PATTERNS[pattern](theirs))
    assert ours.shape == arrangement.our_shape
    back = np.where(arrangement.shared, -1, 0) + np.zeros_like(theirs)
    arrangement.put(ours, back)
    mine = back != -1
    assert mine.sum() == ours.size
    np.testing.assert_array_equal(back[mine], theirs[mine])


@pytest.mark.parametrize("chunk", [1, 40, 1 << 20])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_slice(pattern, chunk, monkeypatch):
    monkeypatch.setattr(layout, "CHUNK_BYTES", chunk)
    theirs = tensor(pattern)
    arrangement = Layout(pattern, SIZES)
    ours = PATTERNS[pattern](theirs)
    matrix = theirs.reshape(-1, arrangement.width)
    choices = [
        [(a, b) for a in range(size) for b in range(a + 1, size + 1) if b - a in (1, 2, size)] for size in ours.shape
    ]
    for bounds in itertools.product(*choices):
        index = tuple(slice(*bound) for bound in bounds)
        out = np.full(ours[index].shape, -1, np.float64)
        arrangement.fill(out, index, lambda rows, cols: matrix[rows.start : rows.stop, cols.start : cols.stop], 4)
        np.testing.assert_array_equal(out, ours[index])


def test_reads_only_what_a_slice_needs():
    arrangement = Layout("(heads head_dim) embed -> embed heads head_dim", SIZES)
    asked = []

    def read(rows, columns):
        asked.append((rows, columns))
        return np.zeros((len(rows), len(columns)), np.float32)

    arrangement.fill(np.empty((2, 1, 3), np.float32), (slice(4, 6), slice(1, 2), slice(0, 3)), read, 4)
    assert asked == [(range(3, 6), range(4, 6))]


def test_a_window_must_lie_in_the_first_dimension():
    with pytest.raises(ValueError, match="first dimension"):
        Layout("embed (one:0:3 heads) -> heads embed one", SIZES)


def test_axes_must_agree():
    with pytest.raises(ValueError, match="same axes"):
        Layout("embed heads -> embed", SIZES)
