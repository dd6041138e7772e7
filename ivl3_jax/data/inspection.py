"""Looking at what training would see: the loader's own rows, of which most are measured and not decoded.

The streams of a feed run as in `Loader`, row after row, with parts that keep count of every sample on its way: nothing
is encoded or packed in a second manner. Whatever the policy, bad samples are left out and counted.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

import numpy as np

from ivl3_jax.batch import IGNORE
from ivl3_jax.data.collate import collate
from ivl3_jax.data.encoded import Encoded, loss_weight, segments_of
from ivl3_jax.data.faults import Fault, FaultPolicy
from ivl3_jax.data.inspection_report import PackedRow, Report, RowReport, SourceReport
from ivl3_jax.data.kinds import kind_of
from ivl3_jax.data.meta import open_source
from ivl3_jax.data.permutation import generator
from ivl3_jax.data.processor import Processor
from ivl3_jax.data.records import Pair, Sample
from ivl3_jax.data.settings import DataRecipe, make_feed, source_specs
from ivl3_jax.data.sources import Source, SourceSpec
from ivl3_jax.data.stream import MEASURE, Feed, Part, Stream
from ivl3_jax.data.units import Unit

ROWS = 32  # that are made, if the draws suffice, also of few samples that have all been seen

Say = Callable[[str, int, int], None]
"""Told what is being done, how much of that is done, and how much there is."""


def open_with_pairs(recipe: DataRecipe, processor: Processor, seed: int) -> tuple[Feed, dict[str, str]]:
    """The feed of a recipe, and of each source that cannot be opened its name and why.

    It is that of `settings.open_feed`, but that preference pairs are samples like others, and that what cannot be
    opened is left out.

    Raises:
        ValueError, OSError: a meta file is faulty, no source can be opened, or two settings do not fit.
    """
    specs: list[SourceSpec] = []
    sources: list[Source] = []
    unopened: dict[str, ValueError | OSError] = {}
    for spec in source_specs(recipe):
        try:
            sources.append(open_source(spec, len(sources)))
            specs.append(spec)
        except (ValueError, OSError) as error:
            unopened[spec.name] = error
    if not sources:
        raise next(iter(unopened.values()))
    if isinstance(recipe.weights, Mapping):
        weights = {name: weight for name, weight in recipe.weights.items() if name not in unopened}
        recipe = dataclasses.replace(recipe, weights=weights)
    return make_feed(recipe, processor, seed, sources, specs), {name: str(why) for name, why in unopened.items()}


def inspect(
    feed: Feed,
    *,
    draws: int,
    everything: bool = False,
    decode: bool = False,
    pictures: int = 0,
    say: Say = lambda what, done, there_are: None,
) -> Report:
    """Draws samples and packs them into rows as training does, in its order.

    A sample counts once, however often it is drawn, in all that is said of samples. Rows are those that training makes
    first; what has been drawn for a row that is not full yet is in none. Where all samples have been seen, `ROWS` rows
    are enough, so few samples are not drawn again and again.

    Args:
        feed: its `faults` are reported, not obeyed.
        draws: that are made at most.
        everything: whether the samples that were not drawn are looked at too, source after source.
        decode: whether the pixels of all are decoded, so that damage behind headers is found.
        pictures: how many rows, the first, are decoded and kept.
        say: told of the progress.

    Raises:
        ValueError: the tokenizer does not belong to the model. ModuleNotFoundError: what reads videos is not installed.
    """
    weights, lengths = feed.mixture.weights, feed.mixture.lengths
    sources = [
        SourceReport(part.source.name, length, weight / sum(weights))
        for part, length, weight in zip(feed.parts, lengths, weights, strict=True)
    ]
    look = _Look(Report(feed.budget, feed.faults, sources), draws, max(ROWS, pictures), decode, say)
    parts = [
        _Watched(part.source, part.encoder, part.max_tiles, number=number, look=look)
        for number, part in enumerate(feed.parts)
    ]
    patient = FaultPolicy("skip", most=1.0, grace=sys.maxsize)
    with suppress(_Enough):
        _make_rows(dataclasses.replace(feed, parts=parts, faults=patient), look, pictures)
    if everything:
        rest = look.unseen
        for part in parts:
            for index in range(len(part.source)):
                if not look.seen[part.number][index]:
                    with suppress(Fault):
                        part.look_at(index, generator(feed.mixture.seed, MEASURE, -1, part.number, index))
                    say("the other samples", rest - look.unseen, rest)
    return look.report


class _Enough(Exception):
    """As many samples have been drawn as are wanted."""


class _Look:
    """Where the parts of a feed keep count."""

    def __init__(self, report: Report, draws: int, rows: int, decode: bool, say: Say) -> None:
        self.report, self.draws, self.rows, self.decode, self.say = report, draws, rows, decode, say
        self.seen = [np.zeros(source.samples, bool) for source in report.sources]  # takes memory where it is written
        self.unseen = report.samples
        self.damaged: dict[tuple[int, str], Fault] = {}
        self.pixels = False  # whether the row in the making is decoded
        self.units: list[Unit] = []  # decoded for it

    def draw(self) -> None:
        """Counts a draw.

        Raises:
            _Enough: no other is wanted.
        """
        if self.report.draws >= self.draws or not self.unseen and len(self.report.rows) >= self.rows:
            raise _Enough
        self.report.draws += 1
        self.say("samples", self.report.draws, self.draws)

    def first(self, source: int, index: int) -> bool:
        """Whether a sample is seen for the first time, which it is not from now on."""
        first = not self.seen[source][index]
        self.seen[source][index] = True
        self.unseen -= first
        self.report.sources[source].looked_at += first
        return first

    def measured(self, source: int, sample: Sample | Pair, units: list[Unit]) -> None:
        report, of = self.report, self.report.sources[source]
        tokens, tiles = sum(unit.tokens for unit in units), sum(unit.tiles for unit in units)
        learned = sum(sum(unit.supervised) for unit in units)
        of.kinds[kind_of(sample)] += 1
        of.tokens, of.tiles, of.learned = of.tokens + tokens, of.tiles + tiles, of.learned + learned
        report.tokens[tokens] += 1
        report.tiles[tiles] += 1
        report.learned[learned] += 1
        report.turns[len(sample.messages) + isinstance(sample, Pair)] += 1
        report.system += sample.messages[0].role == "system"
        report.split += len(units) > 1

    def is_damaged(self, source: int, fault: Fault, where: str) -> None:
        if (source, where) not in self.damaged:
            self.damaged[source, where] = fault
            self.report.skip(source, fault)

    def packed(self, segments: list[Encoded], weighting: str) -> None:
        for segment in segments:
            of = self.report.sources[segment.source]
            weight = loss_weight(int(segment.supervised.sum()), weighting)
            of.packed += len(segment)
            of.loss += weight * int((segment.labels != IGNORE).sum())
        self.report.rows.append(
            RowReport(
                tokens=sum(map(len, segments)),
                tiles=sum(len(segment.tiles) for segment in segments),
                segments=len(segments),
                samples=sum(segment.answer != "rejected" for segment in segments),
            )
        )


@dataclass(frozen=True, kw_only=True)
class _Watched(Part):
    """A part, source `number`, that keeps count in `look` of what it measures and decodes pixels only where asked."""

    number: int
    look: _Look

    def measure(self, index: int, rng: np.random.Generator) -> list[Unit]:
        self.look.draw()
        return self.look_at(index, rng)

    def look_at(self, index: int, rng: np.random.Generator) -> list[Unit]:
        """The units of a sample, which is counted, but not as a draw."""
        first = self.look.first(self.number, index)
        try:
            sample = self.source[index]
            units = self.encoder.measure(sample, rng, self.max_tiles)
        except Fault as fault:
            if first:
                self.look.report.skip(self.number, fault)
            raise
        if first:
            self.look.measured(self.number, sample, units)
            if self.look.decode:
                with suppress(Fault):
                    for unit in units:
                        self._decoded(unit, np.random.default_rng(0))
        return units

    def decode(self, unit: Unit, rng: np.random.Generator) -> list[Encoded]:
        """The segments, whose tiles are black in rows that nobody looks at."""
        if self.look.pixels:
            segments = self._decoded(unit, rng)
            self.look.units.append(unit)
            return segments
        if fault := self.look.damaged.get((self.number, unit.where)):
            raise fault
        processor = self.encoder.processor
        black = np.broadcast_to(np.uint8(0), (unit.tiles, processor.tile_size, processor.tile_size, 3))
        return segments_of(unit, black, processor.positions)

    def _decoded(self, unit: Unit, rng: np.random.Generator) -> list[Encoded]:
        try:
            return self.encoder.decode(unit, rng)
        except Fault as fault:
            self.look.is_damaged(self.number, fault, unit.where)
            raise


def _make_rows(feed: Feed, look: _Look, pictures: int) -> None:
    """Runs the streams as the loader does, step after step, until they end or as `_Look.draw` says."""
    processor, room = feed.parts[0].encoder.processor, feed.budget
    streams = [Stream(feed, number) for number in range(feed.mixture.streams)]
    for step in count(1):
        for row, stream in enumerate(streams, 1):
            look.pixels, look.units = len(look.report.pictures) < pictures, []
            segments = stream.row()
            stream.take_skips()  # they have been counted
            if stream.state.ended:
                continue
            look.packed(segments, feed.weighting)
            if look.pixels:
                batch = collate(processor, [segments], room.tokens, room.tiles, room.segments, feed.weighting)
                look.report.pictures.append(PackedRow(step, row, batch, tuple(look.units)))
        if all(stream.state.ended for stream in streams):
            return
