"""What is learned from, as typed data, and the feed that follows from it."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ivl3_jax.data.encoding import Encoder
from ivl3_jax.data.faults import Fault, FaultPolicy
from ivl3_jax.data.files import is_remote
from ivl3_jax.data.frames import TrainingFrames
from ivl3_jax.data.images import LARGEST_GRID
from ivl3_jax.data.jpeg import Jpeg
from ivl3_jax.data.meta import open_source, read_meta
from ivl3_jax.data.mixture import Exhausted, Mixture, weights_by
from ivl3_jax.data.packing import Budget
from ivl3_jax.data.positions import random_deltas
from ivl3_jax.data.processor import Processor
from ivl3_jax.data.sources import Conversations, Source, SourceSpec
from ivl3_jax.data.stream import Feed, Part

LOOKED_AT = 64  # samples of a source by which `text_share` knows whether it is text alone, and its mean length


@dataclass(frozen=True)
class DataRecipe:
    """What is learned from, and the static shape of a batch.

    Attributes:
        meta: InternVL meta files; the sources of all of them are mixed.
        annotation: instead of a meta file, one InternVL JSONL or Parquet file, or a directory of shards.
        root: with `annotation`, the directory that its image paths start from; by default that of the file.
        rows, tokens, tiles, segments: B, S, T and G of a batch, see `ivl3_jax.batch`.
        min_tiles, max_tiles, thumbnail: dynamic tiling; null takes the checkpoint's. Several images share max_tiles.
        pad_to_square: instead, one tile of each image, filled up to a square.
        weighting: of each answer by its number n of trained tokens: 1, 1/n or 1/sqrt(n) a token.
        weights: of the sources: by their `length` times repeat_time, the `sqrt` of that, or a number for each name.
        text_share: fraction of tokens from sources without images, such as 0.25, by the mean length of a few samples of
            each source; null leaves it to the weights.
        exhausted: `repeat` a source that was gone through, in a new order, or `drop` it.
        lookahead: rows' worth of samples among which those of a row are chosen.
        too_long: what becomes of a sample with more tokens than a row: `raise` is a fault, `truncate` cuts its end off,
            `split` makes several segments of it; never within an image.
        too_many_tiles: likewise with tiles: `raise` is a fault, `shrink` gives its images fewer.
        faults: what becomes of bad samples, and how many there may be.
        frames: of a video.
        jpeg: of images of sources with data_augment. jpeg_videos: whether their frames of videos go through it too.
        positions: `plain`, or `v2pe` with a step drawn for each image.
        workers: processes that read. ahead: batches made in advance.
    """

    meta: list[str] = field(default_factory=list)
    annotation: str | None = None
    root: str | None = None
    rows: int = 1
    tokens: int = 4096
    tiles: int = 12
    segments: int = 16
    min_tiles: int | None = None
    max_tiles: int | None = None
    thumbnail: bool | None = None
    pad_to_square: bool = False
    weighting: Literal["token", "sample", "square"] = "square"
    weights: Literal["length", "sqrt"] | Mapping[str, float] = "length"
    text_share: float | None = None
    exhausted: Exhausted = "repeat"
    lookahead: float = 4.0
    too_long: Literal["raise", "truncate", "split"] = "raise"
    too_many_tiles: Literal["raise", "shrink"] = "raise"
    faults: FaultPolicy = field(default_factory=FaultPolicy)
    frames: TrainingFrames = field(default_factory=TrainingFrames)
    jpeg: Jpeg = field(default_factory=Jpeg)
    jpeg_videos: bool = False
    positions: Literal["plain", "v2pe"] = "plain"
    workers: int = 0
    ahead: int = 2

    def __post_init__(self) -> None:
        for name in ("rows", "tokens", "tiles", "segments", "min_tiles", "max_tiles", "workers", "ahead"):
            value, least = getattr(self, name), 0 if name in ("tiles", "workers") else 1
            if value is not None and value < least:
                raise ValueError(f"DataRecipe.{name} is {value}; it must be at least {least}")
        if self.min_tiles is not None and self.max_tiles is not None and self.min_tiles > self.max_tiles:
            raise ValueError(
                f"DataRecipe.min_tiles is {self.min_tiles} and max_tiles {self.max_tiles}; "
                "valid: min_tiles <= max_tiles"
            )
        if self.max_tiles is not None and self.max_tiles > LARGEST_GRID:
            raise ValueError(f"DataRecipe.max_tiles is {self.max_tiles}; it must be at most {LARGEST_GRID}")
        if not self.lookahead > 0:
            raise ValueError(f"DataRecipe.lookahead is {self.lookahead}; it must be above 0")
        if bool(self.meta) == (self.annotation is not None):
            raise ValueError("DataRecipe: give either meta (files) or annotation (a file or shards)")
        if self.root is not None and self.annotation is None:
            raise ValueError("DataRecipe.root goes with annotation; a meta file has the root of each source")

    @property
    def budget(self) -> Budget:
        return Budget(self.tokens, self.tiles, self.segments)


def open_feed(recipe: DataRecipe, processor: Processor, seed: int, *, pairs: bool = False) -> Feed:
    """The feed of a recipe; `seed` is that of everything drawn at random.

    Preference pairs are faults in supervised training; with `pairs` they are given beside conversations.

    Raises:
        ValueError, OSError: a file is missing or faulty, or two settings do not fit; the message names it.
    """
    at = recipe.annotation
    if at is not None and not is_remote(at) and not os.path.exists(at):
        raise ValueError(f"DataRecipe.annotation is {at!r}, which does not exist")
    specs = source_specs(recipe)
    sources: list[Source] = [open_source(spec, number) for number, spec in enumerate(specs)]
    if not pairs:
        sources = [Conversations(source) for source in sources]
    return make_feed(recipe, processor, seed, sources, specs)


def make_feed(
    recipe: DataRecipe, processor: Processor, seed: int, sources: Sequence[Source], specs: Sequence[SourceSpec]
) -> Feed:
    """The feed of open sources; `specs` say how each is repeated, augmented and tiled."""
    lengths = tuple(map(len, sources))
    repeated = [length * max(1, spec.repeat) for length, spec in zip(lengths, specs, strict=True)]
    encoder = Encoder(
        adapt(processor, recipe),
        recipe.tokens,
        recipe.tiles,
        too_long=recipe.too_long,
        too_many_tiles=recipe.too_many_tiles,
        frames=recipe.frames,
        deltas=random_deltas if recipe.positions == "v2pe" else None,
    )
    augmented = dataclasses.replace(encoder, jpeg=recipe.jpeg, video_jpeg=recipe.jpeg if recipe.jpeg_videos else None)
    parts = [
        Part(source, augmented if spec.augment else encoder, spec.max_tiles)
        for source, spec in zip(sources, specs, strict=True)
    ]
    looked = [_look(part) for part in parts] if recipe.text_share is not None else []
    mixture = Mixture(
        lengths,
        weights_by(
            recipe.weights,
            [source.name for source in sources],
            repeated,
            [multimodal for multimodal, _ in looked],
            recipe.text_share,
            [tokens for _, tokens in looked],
        ),
        streams=recipe.rows,
        seed=seed,
        passes=tuple(int(max(1, spec.repeat)) for spec in specs),
        exhausted=recipe.exhausted,
    )
    return Feed(parts, mixture, recipe.budget, recipe.lookahead, recipe.faults, recipe.weighting)


def source_specs(recipe: DataRecipe) -> list[SourceSpec]:
    """The sources that a recipe names.

    Raises:
        ValueError: a meta file is faulty, or two sources have one name.
    """
    if recipe.annotation is not None:
        at = str(recipe.annotation)
        root = recipe.root if recipe.root is not None else at.rpartition("/")[0]
        return [SourceSpec(at.rpartition("/")[2], root, at)]
    specs = [spec for file in recipe.meta for spec in read_meta(file)]
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"{', '.join(recipe.meta)}: the sources {', '.join(twice)} are listed twice; rename one of each"
        )
    return specs


def adapt(processor: Processor, recipe: DataRecipe) -> Processor:
    """The processor with the recipe's ways of making tiles, where it states any."""
    stated = {name: getattr(recipe, name) for name in ("min_tiles", "max_tiles", "thumbnail")}
    given = {name: value for name, value in stated.items() if value is not None}
    return dataclasses.replace(processor, **given, pad_to_square=recipe.pad_to_square or processor.pad_to_square)


def _look(part: Part) -> tuple[bool, float]:
    """Whether any of a few samples, evenly spread, has an image or a video, and how many tokens they have on average.

    Raises:
        ValueError: all of them are faulty.
    """
    length = len(part.source)
    count = min(LOOKED_AT, length)
    multimodal, tokens, fault = False, [], None
    for number in range(count):
        index = number * length // count
        try:
            # The frames of a video are drawn; the same ones whatever the seed of the run.
            units = part.measure(index, np.random.default_rng(index))
        except Fault as error:
            fault = error
            continue
        multimodal = multimodal or any(unit.visuals for unit in units)
        tokens.append(sum(unit.tokens for unit in units))
    if not tokens:
        raise ValueError(f"text_share needs the length of samples, but all {count} looked at are faulty: {fault}")
    return multimodal, sum(tokens) / len(tokens)
