"""What was found by looking at a data set; see `data.inspection`."""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ivl3_jax.batch import Batch
from ivl3_jax.data.faults import REASONS, Fault, FaultPolicy
from ivl3_jax.data.histogram import Histogram, doubling, even
from ivl3_jax.data.kinds import KINDS, PAIR
from ivl3_jax.data.packing import Budget
from ivl3_jax.data.units import Unit

LISTED = 100  # messages that are kept of each reason
LONGEST = 400  # characters that are kept of a message


@dataclass
class SourceReport:
    """One source.

    Attributes:
        name: of it. samples: that it has. share: of all draws, by its weight.
        looked_at: different samples. skipped: the bad ones among them. kinds: of those measured, see `KINDS`.
        tokens, learned, tiles: sums over those measured.
        packed: tokens in rows. loss: sum of the loss weights of its tokens in rows.
    """

    name: str
    samples: int
    share: float
    looked_at: int = 0
    skipped: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    learned: int = 0
    tiles: int = 0
    packed: int = 0
    loss: float = 0.0

    @property
    def measured(self) -> int:
        """Samples with a size: all but those found bad before that."""
        return self.kinds.total()


class RowReport(NamedTuple):
    """What one packed row holds. `samples` counts each piece of a split sample, and a pair once."""

    tokens: int
    tiles: int
    segments: int
    samples: int


class PackedRow(NamedTuple):
    """A row to be shown.

    Attributes:
        step, row: counted from 1, which row of which batch it is in training.
        batch: that row alone, [1, ...]. units: what is in it, in order, of which pairs make two segments.
    """

    step: int
    row: int
    batch: Batch
    units: tuple[Unit, ...]


@dataclass
class Skips:
    """The bad samples of one reason: how many, and the first `LISTED` messages."""

    count: int = 0
    first: list[str] = field(default_factory=list)


@dataclass
class Report:
    """What training would see.

    Attributes:
        budget: the room in a row. policy: what training does about bad samples.
        sources: in the order of the mixture.
        draws: samples drawn, some perhaps more than once. system: samples measured that bring a system turn.
        split: those that became several pieces.
        tokens, learned, tiles, turns: of the samples measured, how many have so many; learned ones are trained on.
        skips: by reason.
        rows: in the order in which they were made, step after step. pictures: some of them.
        unopened: sources that could not be opened, and why. about: names and values that a reader is told first.
    """

    budget: Budget
    policy: FaultPolicy
    sources: list[SourceReport]
    draws: int = 0
    system: int = 0
    split: int = 0
    tokens: Counter[int] = field(default_factory=Counter)
    learned: Counter[int] = field(default_factory=Counter)
    tiles: Counter[int] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    skips: dict[str, Skips] = field(default_factory=dict)
    rows: list[RowReport] = field(default_factory=list)
    pictures: list[PackedRow] = field(default_factory=list)
    unopened: dict[str, str] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """That there are."""
        return sum(source.samples for source in self.sources)

    @property
    def looked_at(self) -> int:
        """Different samples."""
        return sum(source.looked_at for source in self.sources)

    @property
    def skipped(self) -> int:
        """The bad ones."""
        return sum(source.skipped for source in self.sources)

    @property
    def kinds(self) -> dict[str, int]:
        """Samples measured of each kind, in the order of `KINDS`."""
        return {kind: sum(source.kinds[kind] for source in self.sources) for kind in KINDS}

    @property
    def histograms(self) -> dict[str, Histogram]:
        """Of the samples measured."""
        return {
            "tokens": doubling(self.tokens),
            "learned": doubling(self.learned),
            "tiles": even(self.tiles),
            "turns": even(self.turns),
        }

    @property
    def fills(self) -> dict[str, float]:
        """The filled fraction of the room for tokens and of that for tiles, over all rows; without tiles that is 0."""
        room = {"tokens": self.budget.tokens, "tiles": self.budget.tiles}
        used = {"tokens": sum(row.tokens for row in self.rows), "tiles": sum(row.tiles for row in self.rows)}
        return {name: used[name] / max(1, room[name] * len(self.rows)) for name in room}

    @property
    def limited_by(self) -> dict[str, int]:
        """How many rows have least room left in each budget; of two the one named first."""
        limits = [max(fill, key=fill.__getitem__) for fill in map(self.fill_of, self.rows)]
        return {name: limits.count(name) for name in ("tokens", "tiles", "segments")}

    def fill_of(self, row: RowReport) -> dict[str, float]:
        """The filled fraction of each budget."""
        room = self.budget
        tiles = row.tiles / room.tiles if room.tiles else 0.0
        return {"tokens": row.tokens / room.tokens, "tiles": tiles, "segments": row.segments / room.segments}

    def skip(self, source: int, fault: Fault) -> None:
        """Counts a bad sample."""
        self.sources[source].skipped += 1
        skips = self.skips.setdefault(fault.reason, Skips())
        skips.count += 1
        if len(skips.first) < LISTED:
            message = str(fault)
            skips.first.append(message if len(message) <= LONGEST else f"{message[: LONGEST - 1]}…")

    @property
    def by_reason(self) -> dict[str, Skips]:
        """The skips, the most frequent reason first, their messages by file and line."""
        ordered = sorted(self.skips.items(), key=lambda item: (-item[1].count, item[0]))
        return {reason: Skips(skips.count, sorted(skips.first, key=_place)) for reason, skips in ordered}

    @property
    def findings(self) -> list[str]:
        """What a reader should know before training, in sentences."""
        return [*self._of_sources(), *self._of_skips(), *self._of_rows()]

    def _of_sources(self) -> list[str]:
        found = [f"{name} cannot be opened, and training would not start: {why}" for name, why in self.unopened.items()]
        if pairs := self.kinds[PAIR]:
            found.append(
                f"{_are(pairs, 'preference pair')} among the samples. ivl3 train takes conversations alone: to it each "
                "is a bad line."
            )
        return found

    def _of_skips(self) -> list[str]:
        if not self.skipped:
            return []
        share, most = self.skipped / self.looked_at, self.policy.most
        told = f"{_are(self.skipped, 'bad sample')} among the {self.looked_at:,} looked at ({share:.2%})."
        if self.skipped == self.looked_at:
            return [f"{told} None is good."]
        if self.policy.action == "raise":
            return [f"{told} Training ends at the first of them, as faults.action is raise."]
        allowed = "leaves them out" if share <= most else "ends"
        return [f"{told} Training {allowed}, as faults.most allows {most:.2%}."]

    def _of_rows(self) -> list[str]:
        if not self.rows:
            if self.skipped == self.looked_at:
                return []
            return [
                f"No row was made of {self.draws:,} draws: more samples have to wait before any is. Draw more, or "
                "choose fewer tokens, fewer rows in a batch, or less lookahead."
            ]
        found, fills, limits = [], self.fills, self.limited_by
        for name in ("tiles", "segments"):
            share, padding = limits[name] / len(self.rows), 1 - fills["tokens"]
            if share >= 0.5 and padding >= 0.05:
                found.append(
                    f"In {share:.0%} of the rows {name} run out before tokens: {padding:.0%} of all positions are "
                    f"padding. More {name} a row, or fewer tokens, would fill them."
                )
        if self.budget.tiles and self.tiles and set(self.tiles) == {0}:
            found.append(
                f"No sample has a picture, but each row has room for {self.budget.tiles} tiles: 0 would save it."
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """All figures in JSON's types; pictures are left out."""
        packed, loss = sum(s.packed for s in self.sources), sum(s.loss for s in self.sources)
        columns = np.array(self.rows, float).reshape(-1, len(RowReport._fields))
        return {
            "about": self.about,
            "row": {"tokens": self.budget.tokens, "tiles": self.budget.tiles, "segments": self.budget.segments},
            "findings": self.findings,
            "samples": {
                "there_are": self.samples,
                "draws": self.draws,
                "looked_at": self.looked_at,
                "skipped": self.skipped,
                "with_system_turn": self.system,
                "split": self.split,
            },
            "kinds": self.kinds,
            "sources": {
                source.name: {
                    "samples": source.samples,
                    "share_of_draws": round(source.share, 6),
                    "looked_at": source.looked_at,
                    "skipped": source.skipped,
                    "kinds": {kind: source.kinds[kind] for kind in KINDS if source.kinds[kind]},
                    "mean_tokens": round(source.tokens / max(1, source.measured), 3),
                    "mean_learned": round(source.learned / max(1, source.measured), 3),
                    "mean_tiles": round(source.tiles / max(1, source.measured), 3),
                    "share_of_packed_tokens": round(source.packed / max(1, packed), 6),
                    "share_of_loss": round(source.loss / loss, 6) if loss else 0.0,
                }
                for source in self.sources
            },
            "unopened": self.unopened,
            "a_sample": {name: histogram.to_json() for name, histogram in self.histograms.items()},
            "packing": {
                "rows": len(self.rows),
                "token_fill": round(self.fills["tokens"], 6),
                "tile_fill": round(self.fills["tiles"], 6),
                "a_row": {
                    name: round(float(column.mean()), 3) if len(column) else 0.0
                    for name, column in zip(RowReport._fields, columns.T, strict=True)
                },
                "limited_by": self.limited_by,
            },
            "skips": {
                reason: {"meaning": REASONS[reason], "count": skips.count, "first": skips.first}
                for reason, skips in self.by_reason.items()
            },
        }


def _place(message: str) -> list[str | int]:
    """What messages are sorted by, so that line 9 stands before line 10."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", message))]


def _are(count: int, what: str) -> str:
    return f"There is 1 {what}" if count == 1 else f"There are {count:,} {what}s"
