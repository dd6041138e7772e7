"""Samples and pairs to what is packed, in two steps: measured without any pixel, and decoded once they have a row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ivl3_jax.data.encoded import Encoded, segments_of
from ivl3_jax.data.faults import at
from ivl3_jax.data.frames import TrainingFrames
from ivl3_jax.data.jpeg import Jpeg
from ivl3_jax.data.length import crowded, refuse, shrink, split, truncate
from ivl3_jax.data.positions import v2pe_positions
from ivl3_jax.data.processor import Processor
from ivl3_jax.data.records import Pair, Sample, Video
from ivl3_jax.data.units import Frame, Unit, Visual
from ivl3_jax.data.video import Choose, spread

TOO_LONG = {"raise": refuse, "truncate": truncate, "split": split}


@dataclass(frozen=True)
class Encoder:
    """Encodes samples for training.

    Left as they are, the settings below the row's give what `Processor.encode` gives, and draw nothing at random.

    Attributes:
        processor: of the checkpoint.
        tokens, tiles: the room in a row.
        too_long: what becomes of a sample with more tokens than that: "raise" is a `Fault`, "truncate" leaves out its
            end, "split" makes several units of it; see data/length.py. A pair is never cut: half an answer compares
            to nothing.
        too_many_tiles: what becomes of one with more tiles: "raise" is a `Fault`, "shrink" lowers the number of tiles
            that each of its images may have until they fit. This comes before `too_long`.
        jpeg, video_jpeg: re-encoding of the tiles of images, and of the frames of videos; None does not.
        frames: which frames of a video are seen; None goes by the `Video`, as in inference.
        deltas: draws the step of V2PE for each of so many images, such as `positions.random_deltas`; both answers of a
            pair have the same. None goes by the processor's positions.

    Raises:
        ValueError: a value cannot be.
    """

    processor: Processor
    tokens: int
    tiles: int
    too_long: str = "raise"
    too_many_tiles: str = "raise"
    jpeg: Jpeg | None = None
    video_jpeg: Jpeg | None = None
    frames: TrainingFrames | None = None
    deltas: Callable[[np.random.Generator, int], Sequence[float]] | None = None

    def __post_init__(self) -> None:
        for name, valid in (("too_long", tuple(TOO_LONG)), ("too_many_tiles", ("raise", "shrink"))):
            if getattr(self, name) not in valid:
                raise ValueError(f"Encoder.{name} is {getattr(self, name)!r}; valid: {', '.join(valid)}")
        for name, least in (("tokens", 1), ("tiles", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"Encoder.{name} is {getattr(self, name)}; it must be at least {least}")

    def measure(self, sample: Sample | Pair, rng: np.random.Generator, max_tiles: int | None = None) -> list[Unit]:
        """What a sample will be, without decoding a pixel.

        Args:
            rng: draws the frames of videos.
            max_tiles: of the sample's data set, instead of the processor's; shared out among several images.

        Returns:
            One unit, or the pieces of a long sample in order; each fits into an empty row.

        Raises:
            Fault: the sample is faulty or too large; the message begins with `sample.where`.
            ValueError: not the sample but the tokenizer is at fault.
        """

        def choose(video: Video) -> Choose:
            return spread(video) if self.frames is None else self.frames.choose(video, rng)

        unit = self.processor.measure(sample, max_tiles, choose)
        try:
            if unit.tiles > self.tiles:
                if self.too_many_tiles == "raise":
                    crowded(unit, self.tiles)
                unit = shrink(unit, self.tiles, self.processor.at_most)
            if unit.tokens <= self.tokens:
                return [unit]
            if unit.segments > 1:
                refuse(unit, self.tokens)
            return TOO_LONG[self.too_long](unit, self.tokens)
        except ValueError as error:
            raise at(unit.where, error) from error

    def decode(self, unit: Unit, rng: np.random.Generator) -> list[Encoded]:
        """The segments of a unit with their tiles, which of a pair the first one has.

        Args:
            rng: draws the steps of positions, then qualities, for one visual after the other.

        Raises:
            Fault: an image or a video turns out damaged; the message begins with `unit.where`.
        """
        positions = self.processor.positions
        if self.deltas is not None:
            positions = partial(v2pe_positions, delta=self.deltas(rng, len(unit.visuals)))

        def finish(visual: Visual, tiles: np.ndarray) -> None:
            jpeg = self.video_jpeg if isinstance(visual, Frame) else self.jpeg
            if jpeg is not None:
                jpeg.apply(tiles, rng)

        try:
            return segments_of(unit, self.processor.tiles(unit.visuals, finish), positions)
        except ValueError as error:
            raise at(unit.where, error) from error
