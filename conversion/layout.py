"""How an array of ours and a tensor of a checkpoint hold the same numbers: a permutation of named axes.

A pattern such as `(heads head_dim) embed -> embed heads head_dim` says it for both directions: the left side lists the
dimensions of the checkpoint's tensor, the right side those of our array; axes in parentheses are merged into one
dimension, the first varying slowest; `1` is a dimension of size one. Every axis stands on both sides, so each pattern
is invertible, and a slice of our array is found in a slice of the tensor.
"""

import math
import re
from collections.abc import Callable, Mapping

import numpy as np

CHUNK_BYTES = 4 << 20  # of the file that are in memory at a time; small enough for the CPU's caches

Index = tuple[slice, ...]
ReadBlock = Callable[[range, range], np.ndarray]


class Layout:
    """One pattern with the sizes of its axes.

    Attributes:
        their_shape: shape of the checkpoint's tensor.
        our_shape: shape of our array, of a single layer where layers are stacked.
        width: columns of their tensor seen as a matrix, whose rows are the first dimension not written `1`.
    """

    def __init__(self, pattern: str, sizes: Mapping[str, int]) -> None:
        """`sizes` gives at least the size of each axis that `pattern` names."""
        left, right = (_dimensions(side) for side in pattern.split("->"))
        self._sizes = sizes
        self._theirs = [dimension for dimension in left if dimension]
        self._ours = right
        self._their_axes = [axis for dimension in self._theirs for axis in dimension]
        self._our_axes = [axis for dimension in self._ours for axis in dimension]
        if sorted(self._their_axes) != sorted(self._our_axes):
            raise ValueError(f"pattern {pattern!r} does not name the same axes on both sides")
        self.their_shape = tuple(self._size(dimension) for dimension in left)
        self.our_shape = tuple(self._size(dimension) for dimension in right)
        self.width = math.prod(map(self._size, self._theirs[1:]))

    def _size(self, axes: list[str]) -> int:
        return math.prod(self._sizes[axis] for axis in axes)

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """A whole tensor of theirs [*their_shape] as ours [*our_shape], same dtype."""
        axes = tensor.reshape([self._sizes[axis] for axis in self._their_axes])
        return axes.transpose([self._their_axes.index(axis) for axis in self._our_axes]).reshape(self.our_shape)

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """A whole array of ours [*our_shape] as theirs [*their_shape], same dtype."""
        axes = array.reshape([self._sizes[axis] for axis in self._our_axes])
        return axes.transpose([self._our_axes.index(axis) for axis in self._their_axes]).reshape(self.their_shape)

    def fill(self, out: np.ndarray, index: Index, read: ReadBlock, itemsize: int) -> None:
        """Fills `out` with `ours[index]`, reading no more of their tensor than that needs, a chunk at a time.

        Args:
            out: array of the shape of `ours[index]` and any float dtype; values are cast.
            index: one slice with start and stop, and no step, for each dimension of ours.
            read: gives a block of rows and columns of their tensor seen as a matrix, see `width`.
            itemsize: bytes of one element of theirs.
        """
        ranges, inside, exact = self._cover(index)
        block = out if exact else np.empty([len(self._span(dimension, ranges)) for dimension in self._ours], out.dtype)
        # `block` with the axes in their order: splitting and permuting dimensions copies nothing.
        view = block.reshape([len(ranges[axis]) for axis in self._our_axes])
        view = view.transpose([self._our_axes.index(axis) for axis in self._their_axes])

        first, *others = self._theirs
        outer, inner = first[0], self._size(first[1:])
        # Columns can be cut where they are one dimension; with more of them, whole rows are read and cut afterwards.
        columns = self._span(others[0], ranges) if len(others) == 1 else range(self.width)
        read_whole = {axis for dimension in others for axis in (dimension[1:] if len(others) == 1 else dimension)}
        read_whole.update(first[1:])
        shape = [self._sizes[axis] if axis in read_whole else len(ranges[axis]) for axis in self._their_axes[1:]]
        cut = tuple(
            slice(ranges[axis].start, ranges[axis].stop) if axis in read_whole else slice(None)
            for axis in self._their_axes[1:]
        )
        step = max(1, CHUNK_BYTES // (inner * len(columns) * itemsize))
        start, stop = ranges[outer].start, ranges[outer].stop
        for at in range(start, stop, step):
            end = min(at + step, stop)
            chunk = read(range(at * inner, end * inner), columns).reshape(end - at, *shape)
            # Casting before transposing keeps the slower of the two in cache.
            view[at - start : end - start] = chunk[:, *cut].astype(out.dtype, copy=False)
        if not exact:
            out[...] = block[inside]

    def _cover(self, index: Index) -> tuple[dict[str, range], Index, bool]:
        """The axis ranges whose block covers `ours[index]`, where it lies in the block, whether it is all of it."""
        ranges, inside, exact = {}, [], True
        for dimension, wanted in zip(self._ours, index, strict=True):
            outer, inner = dimension[0], self._size(dimension[1:])
            first, last = wanted.start // inner, -(-wanted.stop // inner)
            ranges[outer] = range(first, last)
            ranges.update({axis: range(self._sizes[axis]) for axis in dimension[1:]})
            inside.append(slice(wanted.start - first * inner, wanted.stop - first * inner))
            exact &= (wanted.start, wanted.stop) == (first * inner, last * inner)
        return ranges, tuple(inside), exact

    def _span(self, dimension: list[str], ranges: Mapping[str, range]) -> range:
        """The part of a dimension of merged axes from the first to the last that is in range of its slowest axis."""
        inner = self._size(dimension[1:])
        return range(ranges[dimension[0]].start * inner, ranges[dimension[0]].stop * inner)


def _dimensions(side: str) -> list[list[str]]:
    """`1 (a b) c` to [[], [a, b], [c]]."""
    return [[name for name in re.findall(r"\w+", part) if name != "1"] for part in re.findall(r"\([^)]*\)|\w+", side)]
