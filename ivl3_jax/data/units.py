"""What is packed: tokenised texts, and images that were looked at but not decoded."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np

from ivl3_jax.data.records import ImageSource


@dataclass(frozen=True, eq=False)
class Picture:
    """An image of which only the header was read.

    Attributes:
        source: where its pixels are.
        size: (width, height) in pixels.
        grid: (columns, rows) that it will be cut into.
        tiles: how many that makes, with its thumbnail.
    """

    source: ImageSource
    size: tuple[int, int]
    grid: tuple[int, int]
    tiles: int


@dataclass(frozen=True)
class Frame:
    """One frame of a video by its index, which will be one tile."""

    path: str | os.PathLike
    index: int


# An array is tiles already: uint8 [t, size, size, 3].
Visual: TypeAlias = Picture | Frame | np.ndarray


def tile_count(visual: Visual) -> int:
    """The tiles of one image block."""
    if isinstance(visual, Frame):
        return 1
    return visual.tiles if isinstance(visual, Picture) else len(visual)


@dataclass(frozen=True, eq=False)
class Text:
    """A segment's m ids, in which each image block is `<img> <IMG_CONTEXT> </img>`, however many tiles it has.

    Attributes:
        ids: int32 [m].
        supervised: bool [m], the ids that are trained on.
        blocks: int64 [b], the places of the context ids in `ids`.
        sizes: int64 [b], how often each of them stands in the expanded segment.
    """

    ids: np.ndarray
    supervised: np.ndarray
    blocks: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        """The tokens of the expanded segment."""
        return len(self.ids) + int(self.sizes.sum()) - len(self.blocks)

    def repeats(self) -> np.ndarray:
        """How many tokens each id becomes: int64 [m]."""
        repeats = np.ones(len(self.ids), np.int64)
        repeats[self.blocks] = self.sizes
        return repeats

    def expanded(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the n tokens: their ids int32 [n], which are supervised and which visual, both bool [n]."""
        repeats = self.repeats()
        visual = np.zeros(len(self.ids), bool)
        visual[self.blocks] = True
        return np.repeat(self.ids, repeats), np.repeat(self.supervised, repeats), np.repeat(visual, repeats)

    def between(self, start: int, end: int) -> "Text":
        """The ids from `start` to before `end`, with the blocks among them."""
        first, last = np.searchsorted(self.blocks, (start, end))
        blocks, sizes = self.blocks[first:last] - start, self.sizes[first:last]
        return Text(self.ids[start:end], self.supervised[start:end], blocks, sizes)


@dataclass(frozen=True, eq=False)
class Unit:
    """What is packed as a whole: one segment, or the chosen and the rejected one of a pair, which share their images.

    Attributes:
        texts: of each segment.
        visuals: of the image blocks in order, the same for each segment.
        source: number of the data source.
        where: where the sample came from, for error messages.
    """

    texts: tuple[Text, ...]
    visuals: tuple[Visual, ...] = ()
    source: int = 0
    where: str = ""

    @property
    def segments(self) -> int:
        """How many segments of a row it takes."""
        return len(self.texts)

    @cached_property
    def tokens(self) -> int:
        """The tokens of all segments."""
        return sum(map(len, self.texts))

    @cached_property
    def tiles(self) -> int:
        """The tiles, which a pair has once."""
        return sum(map(tile_count, self.visuals))

    @cached_property
    def supervised(self) -> tuple[int, ...]:
        """The tokens of each segment that are trained on, before the shift."""
        return tuple(int(text.supervised.sum()) for text in self.texts)

    def between(self, start: int, end: int) -> "Unit":
        """The ids from `start` to before `end` of a unit of one segment, with their images."""
        (text,) = self.texts
        first, last = np.searchsorted(text.blocks, (start, end))
        return replace(self, texts=(text.between(start, end),), visuals=self.visuals[first:last])

    def with_visuals(self, visuals: Sequence[Visual], tile_tokens: int) -> "Unit":
        """The same with other visuals in the places of its own."""
        sizes = np.array([tile_count(visual) * tile_tokens for visual in visuals], np.int64)
        texts = tuple(replace(text, sizes=sizes) for text in self.texts)
        return replace(self, texts=texts, visuals=tuple(visuals))
