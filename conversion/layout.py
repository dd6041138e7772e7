"""How an array of ours and a tensor of a checkpoint hold the same numbers: a permutation of named axes.

A pattern such as `(heads head_dim) embed -> embed heads head_dim` says it for both directions: the left side lists the
dimensions of the checkpoint's tensor, the right side those of our array; axes in parentheses are merged into one
dimension, the first varying slowest; `1` is a dimension of size one. Every axis stands on both sides, so each pattern
is invertible, and a slice of our array is found in a slice of the tensor.

Where a tensor holds several of our arrays, an axis of its first dimension is a window into a longer one:
`(one:2:3 heads head_dim) embed` is the last third of the rows, `(kv_heads group:0:slots head_dim) embed` the first
`group` of each kv head's `slots` blocks.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

CHUNK_BYTES = 4 << 20  # of the file that are in memory at a time; small enough for the CPU's caches
CACHE_LINE = 64  # bytes

Index = tuple[slice, ...]
ReadBlock = Callable[[range, range], np.ndarray]


class Layout:
    """One pattern with the sizes of its axes.

    Attributes:
        pattern, sizes: as given.
        their_shape: shape of the checkpoint's tensor.
        our_shape: shape of our array, of a single layer where layers are stacked.
        width: columns of their tensor seen as a matrix, whose rows are the first dimension not written `1`.
        shared: whether the tensor holds other arrays of ours too.
    """

    def __init__(self, pattern: str, sizes: Mapping[str, int]) -> None:
        """`sizes` gives at least the size of each axis that `pattern` names, and of what windows name."""
        self.pattern, self.sizes = pattern, sizes
        left, right = pattern.split("->")
        windows = {axis: (start, total) for axis, start, total in re.findall(r"(\w+):(\w+):(\w+)", left)}
        left = re.sub(r":\w+", "", left)

        def number(text: str) -> int:
            return int(text) if text.isdigit() else sizes[text]

        theirs, self._ours = _dimensions(left), _dimensions(right)
        self._theirs = [dimension for dimension in theirs if dimension]
        self._their_axes = [axis for dimension in self._theirs for axis in dimension]
        self._our_axes = [axis for dimension in self._ours for axis in dimension]
        if sorted(self._their_axes) != sorted(self._our_axes):
            raise ValueError(f"pattern {pattern!r} does not name the same axes on both sides")
        if not windows.keys() <= set(self._theirs[0]):
            raise ValueError(f"pattern {pattern!r} has a window outside of the tensor's first dimension")
        self._sizes = {axis: sizes[axis] for axis in self._their_axes}
        self._starts = {axis: number(windows[axis][0]) if axis in windows else 0 for axis in self._their_axes}
        self._totals = {
            axis: number(windows[axis][1]) if axis in windows else self._sizes[axis] for axis in self._their_axes
        }
        self.their_shape = tuple(self._total(dimension) for dimension in theirs)
        self.our_shape = tuple(self._size(dimension) for dimension in self._ours)
        self.width = math.prod(map(self._size, self._theirs[1:]))
        self.shared = self._totals != self._sizes

    def holds_as(self, other: "Layout") -> bool:
        """Whether both arrange the same array as the same whole tensor."""
        alike = (self._theirs, self._ours, self._sizes) == (other._theirs, other._ours, other._sizes)
        return alike and self.their_shape == other.their_shape and not self.shared and not other.shared

    def _size(self, axes: list[str]) -> int:
        return math.prod(self._sizes[axis] for axis in axes)

    def _total(self, axes: list[str]) -> int:
        return math.prod(self._totals[axis] for axis in axes)

    def _view(self, tensor: np.ndarray) -> np.ndarray:
        """What a tensor of theirs holds of ours, with our axes in our order."""
        axes = tensor.reshape([self._totals[axis] for axis in self._their_axes])
        axes = axes[*(slice(self._starts[a], self._starts[a] + self._sizes[a]) for a in self._their_axes)]
        return axes.transpose([self._their_axes.index(axis) for axis in self._our_axes])

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """A whole tensor of theirs [*their_shape] as ours [*our_shape], same dtype."""
        return self._view(tensor).reshape(self.our_shape)

    def put(self, array: np.ndarray, tensor: np.ndarray) -> None:
        """Writes a whole array of ours [*our_shape] to its place in a contiguous tensor of theirs [*their_shape]."""
        _copy(array.reshape([self._sizes[axis] for axis in self._our_axes]), self._view(tensor))

    def slabs(self, array: np.ndarray, dtype: np.dtype) -> Iterator[np.ndarray]:
        """An array of ours [*our_shape], alone in their tensor, as theirs in `dtype`, a few megabytes at a time."""
        axes = array.reshape([self._sizes[axis] for axis in self._our_axes])
        axes = axes.transpose([self._our_axes.index(axis) for axis in self._their_axes])
        step = max(1, CHUNK_BYTES // (math.prod(axes.shape[1:]) * dtype.itemsize))
        for at in range(0, len(axes), step):
            slab = np.empty(axes[at : at + step].shape, dtype)
            _copy(axes[at : at + step], slab)
            yield slab

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

        (*outer, last), *others = self._theirs
        # Columns can be cut where they are one dimension; with more of them, whole rows are read and cut afterwards.
        columns = self._span(others[0], ranges) if len(others) == 1 else range(self.width)
        read_whole = {axis for dimension in others for axis in (dimension[1:] if len(others) == 1 else dimension)}
        inner = [axis for dimension in others for axis in dimension]
        shape = [self._sizes[axis] if axis in read_whole else len(ranges[axis]) for axis in inner]
        cut = [slice(ranges[axis].start, ranges[axis].stop) if axis in read_whole else slice(None) for axis in inner]
        step = max(1, CHUNK_BYTES // (len(columns) * itemsize))
        for place in itertools.product(*(ranges[axis] for axis in outer)):
            row = 0
            for axis, i in zip(outer, place, strict=True):
                row = row * self._totals[axis] + self._starts[axis] + i
            row = row * self._totals[last] + self._starts[last]
            part = view[*(i - ranges[axis].start for axis, i in zip(outer, place, strict=True))]
            first, stop = ranges[last].start, ranges[last].stop
            for at in range(first, stop, step):
                end = min(at + step, stop)
                chunk = read(range(row + at, row + end), columns).reshape(end - at, *shape)
                _copy(chunk[:, *cut], part[at - first : end - first])
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


def _copy(source: np.ndarray, target: np.ndarray) -> None:
    """`target[...] = source`, cast, in strips one cache line wide: transposed in larger ones, lines are fetched twice.

    Array types that numpy does not know itself are copied as the integers they are made of, which is faster.
    """
    if source.dtype == target.dtype:
        bits = np.dtype(f"u{source.itemsize}")
        source, target = source.view(bits), target.view(bits)
    axis = min(range(target.ndim), key=lambda axis: (target.shape[axis] == 1, target.strides[axis]))
    if source.strides[axis] == source.itemsize:
        target[...] = source
        return
    width = max(1, CACHE_LINE // target.itemsize)
    source, target = np.moveaxis(source, axis, 0), np.moveaxis(target, axis, 0)
    for at in range(0, len(source), width):
        target[at : at + width] = source[at : at + width].astype(target.dtype, copy=False)


def _dimensions(side: str) -> list[list[str]]:
    """`1 (a b) c` to [[], [a, b], [c]]."""
    return [[name for name in re.findall(r"\w+", part) if name != "1"] for part in re.findall(r"\([^)]*\)|\w+", side)]
