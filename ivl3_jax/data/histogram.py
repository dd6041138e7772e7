"""Histograms of whole numbers: their bins, and a small SVG of them."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

MOST_BINS = 40
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 280, 140, 6, 22, 16  # of the drawing, in pixels
WIDEST, APART = 40, 46  # of a bar, and of two numbers at the axis, in pixels


@dataclass(frozen=True)
class Histogram:
    """How often whole numbers came.

    Attributes:
        values: each number and how often it came.
        edges: n + 1 numbers, ascending; bin i has those from edges[i] to before edges[i + 1]. Empty without values.
    """

    values: Mapping[int, int]
    edges: tuple[int, ...]

    @property
    def counts(self) -> list[int]:
        """What is in each of the n bins."""
        counts, bins = [], sorted(self.values.items(), reverse=True)
        for _, end in pairwise(self.edges):
            counts.append(0)
            while bins and bins[-1][0] < end:
                counts[-1] += bins.pop()[1]
        return counts

    @property
    def mean(self) -> float:
        """Of all values; 0 without any."""
        return sum(value * count for value, count in self.values.items()) / max(1, sum(self.values.values()))

    def quantile(self, share: float) -> int:
        """The smallest value that so large a share of all does not exceed; 0 without any."""
        wanted, found = share * sum(self.values.values()), 0
        for value, count in sorted(self.values.items()):
            found += count
            if found >= wanted:
                return value
        return 0

    def to_json(self) -> dict[str, Any]:
        """Mean, quantiles and bins."""
        return {
            "mean": round(self.mean, 3),
            "median": self.quantile(0.5),
            "percentile_95": self.quantile(0.95),
            "largest": max(self.values, default=0),
            "edges": list(self.edges),
            "counts": self.counts,
        }

    def svg(self, label: str) -> str:
        """A drawing, styled by the classes `bar`, `column`, `axis` and `tick`; `label` is for who cannot see it."""
        counts, bins = self.counts, len(self.edges) - 1
        most, total = max(counts, default=1), max(1, sum(counts))
        step = min(WIDEST, (WIDTH - 2 * LEFT) / max(1, bins))
        floor = HEIGHT - BOTTOM
        drawn = [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}"><title>{label}</title>'
            f'<text class="tick" x="{LEFT}" y="10">{most:,}</text>'
        ]
        for number, count in enumerate(counts):
            height = max(1.5, (floor - TOP) * count / most) if count else 0
            x, said = LEFT + number * step, f"{self._range(number)}: {count:,} ({count / total:.1%})"
            drawn.append(  # the whole column answers to a pointer, not the bar alone
                f'<g><title>{said}</title><rect class="column" x="{x:.1f}" y="{TOP}" width="{step:.1f}" '
                f'height="{floor - TOP}"/><rect class="bar" x="{x + 0.5:.1f}" y="{floor - height:.1f}" '
                f'width="{max(1.0, step - 1):.1f}" height="{height:.1f}"/></g>'
            )
        drawn.append(f'<path class="axis" d="M{LEFT} {floor + 0.5}H{WIDTH - LEFT}"/>')
        marked = -math.inf
        for number in range(bins):
            x = LEFT + number * step + (step / 2 if self._single(number) else 0)
            if x - marked >= APART and self._round(number):
                drawn.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 7}">{self.edges[number]:,}</text>')
                marked = x
        return "".join([*drawn, "</svg>"])

    def _single(self, number: int) -> bool:
        return self.edges[number + 1] == self.edges[number] + 1

    def _round(self, number: int) -> bool:
        """Whether a bin's edge is a number to be read: any of bins of one width, else the powers of two."""
        edge, steps = self.edges[number], {end - start for start, end in pairwise(self.edges)}
        return len(steps) == 1 or edge & (edge - 1) == 0

    def _range(self, number: int) -> str:
        first, last = self.edges[number], self.edges[number + 1] - 1
        return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def doubling(values: Counter[int]) -> Histogram:
    """Two bins to each doubling: 1, 2, 3, 4, 6, 8, 12, 16, ..."""
    edges, size = [0, 1], 2
    while edges[-1] <= max(values, default=0):
        edges += [size, size // 2 * 3]
        size *= 2
    return _around(values, edges)


def even(values: Counter[int]) -> Histogram:
    """Bins of one width, 1, 2, 5, 10, ..., of which there are `MOST_BINS` at most."""
    first, last = min(values, default=0), max(values, default=0)
    width = next(
        w
        for power in range(20)
        for w in (10**power, 2 * 10**power, 5 * 10**power)
        if last // w - first // w < MOST_BINS
    )
    return _around(values, [width * number for number in range(first // width, last // width + 2)])


def _around(values: Counter[int], edges: list[int]) -> Histogram:
    """The histogram with those of the edges that are needed."""
    if not values:
        return Histogram({}, ())
    first = max(number for number, edge in enumerate(edges) if edge <= min(values))
    last = min(number for number, edge in enumerate(edges) if edge > max(values))
    return Histogram(dict(sorted(values.items())), tuple(edges[first : last + 1]))
