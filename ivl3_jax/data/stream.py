"""One virtual stream: draws, measured and packed into rows, of which pixels are decoded last."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ivl3_jax.data.encoded import Encoded
from ivl3_jax.data.encoding import Encoder, Unit
from ivl3_jax.data.faults import Fault, FaultPolicy, Skip
from ivl3_jax.data.mixture import Mixture
from ivl3_jax.data.packing import Budget, Item, Packer
from ivl3_jax.data.permutation import generator
from ivl3_jax.data.sources import Source

MEASURE, DECODE = 3, 4  # what a key is for, beside those of the mixture
PIECES = 1 << 12  # units that one sample may be split into, by which its key is told from the next one's


@dataclass(frozen=True)
class Part:
    """A source in a feed, how its samples are encoded, and how many tiles an image may have; None is the encoder's."""

    source: Source
    encoder: Encoder
    max_tiles: int | None = None

    def measure(self, index: int, rng: np.random.Generator) -> list[Unit]:
        """The units of sample `index`; faults are those of the source and of `Encoder.measure`."""
        return self.encoder.measure(self.source[index], rng, self.max_tiles)

    def decode(self, unit: Unit, rng: np.random.Generator) -> list[Encoded]:
        """See `Encoder.decode`."""
        return self.encoder.decode(unit, rng)


@dataclass(frozen=True)
class Feed:
    """Everything that the rows of all streams follow from.

    Attributes:
        parts: the sources, in the order of the mixture. mixture: which sample is drawn when.
        budget: the room in a row. lookahead: rows' worth of samples among which those of a row are chosen.
        faults: what becomes of bad samples. weighting: of tokens in the loss, see `loss_weight`.
    """

    parts: Sequence[Part]
    mixture: Mixture
    budget: Budget
    lookahead: float = 4.0
    faults: FaultPolicy = FaultPolicy()
    weighting: str = "square"


@dataclass
class StreamState:
    """Where a stream is; with the feed it says everything that follows.

    Attributes:
        next: number of the next draw. ended: whether all that waited has been given out, too.
        waiting: sizes of the units that no row has yet; their content is measured again when it is needed.
        drawn: samples so far, each piece of one that was split counted. skipped: those left out, by reason.
    """

    next: int = 0
    ended: bool = False
    waiting: list[Item] = field(default_factory=list)
    rows: int = 0
    drawn: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return {
            "next": self.next,
            "ended": self.ended,
            "waiting": [list(item) for item in self.waiting],
            "rows": self.rows,
            "drawn": self.drawn,
            "skipped": dict(self.skipped),
        }

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> "StreamState":
        waiting = [Item(*item) for item in fields["waiting"]]
        numbers = fields["rows"], fields["drawn"]
        return StreamState(fields["next"], fields["ended"], waiting, *numbers, Counter(fields["skipped"]))


class Stream:
    """Rows of one stream, one after the other."""

    def __init__(self, feed: Feed, number: int, state: StreamState | None = None) -> None:
        """`number`: which of the mixture's streams. `state`: where to go on."""
        self._feed, self._number = feed, number
        state = state or StreamState()
        self._next, self._ended, self._drawn = state.next, state.ended, state.drawn
        self._skipped = Counter(state.skipped)
        self._packer = Packer(feed.budget, feed.lookahead, state.waiting, state.rows)
        self._units: dict[int, Unit] = {}
        self._skips: list[Skip] = []

    @property
    def state(self) -> StreamState:
        waiting, rows = self._packer.waiting, self._packer.rows
        return StreamState(self._next, self._ended, waiting, rows, self._drawn, Counter(self._skipped))

    def take_skips(self) -> list[Skip]:
        """The samples skipped since the last call."""
        skips, self._skips = self._skips, []
        return skips

    def row(self) -> list[Encoded]:
        """The segments of the next row; none if the stream has ended.

        Raises:
            Fault: a sample is bad, and the policy is to raise. ValueError: too many were skipped.
        """
        items = self._pack()
        segments: list[Encoded] = []
        for item in items:
            try:
                segments += self._decode(item)
            except Fault as fault:
                self._skip(fault)
        return segments

    def _pack(self) -> list[Item]:
        while not self._packer.ready and not self._feed.mixture.ended(self._number, self._next):
            self._draw()
        row = self._packer.row()
        self._ended = not row
        return row

    def _draw(self) -> None:
        """Measures the next sample and lets it wait."""
        number, self._next = self._next, self._next + 1
        try:
            units = self._measure(number)
            if len(units) > PIECES:
                raise Fault("tokens", f"{units[0].where}: makes {len(units)} pieces; a sample may make {PIECES}")
        except Fault as fault:
            self._drawn += 1
            self._skip(fault)
            return
        self._drawn += len(units)
        for piece, unit in enumerate(units):
            key = number * PIECES + piece
            self._units[key] = unit
            self._packer.add(Item(key, unit.tokens, unit.tiles, unit.segments))

    def _measure(self, number: int) -> list[Unit]:
        mixture = self._feed.mixture
        draw = mixture.draw(self._number, number)
        if draw is None:
            return []
        rng = generator(mixture.seed, MEASURE, self._number, number)
        return self._feed.parts[draw.source].measure(draw.sample, rng)

    def _decode(self, item: Item) -> list[Encoded]:
        number, piece = divmod(item.key, PIECES)
        unit = self._units.pop(item.key, None)
        if unit is None:  # it was measured before a restart
            found = self._measure(number)[piece:]
            if not found or item != Item(item.key, found[0].tokens, found[0].tiles, found[0].segments):
                raise ValueError(f"{found[0].where if found else 'a sample'} has changed since the state was saved")
            unit = found[0]
        mixture = self._feed.mixture
        draw = mixture.draw(self._number, number)
        assert draw is not None  # it has a unit
        return self._feed.parts[draw.source].decode(unit, generator(mixture.seed, DECODE, self._number, item.key))

    def _skip(self, fault: Fault) -> None:
        if self._feed.faults.action == "raise":
            raise fault
        self._skips.append(Skip(fault.reason, str(fault)))
        self._skipped[fault.reason] += 1
        self._feed.faults.check(self._drawn, self._skipped.total(), str(fault))
