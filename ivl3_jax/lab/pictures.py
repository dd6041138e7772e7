"""Pictures of plans beside each other, as SVG that needs no script: stacked bars, and memory against rate."""

import math
from collections.abc import Mapping, Sequence

from ivl3_jax.data.markup import escape
from ivl3_jax.lab.report_style import colour_class

LONG = 1000  # units of a bar's whole width
WIDTH, HEIGHT = 640, 380  # of the drawing of memory against rate
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 34, 46
CHARACTER, LINE = 7.5, 13  # of a label, in the same units


def stack(label: str, parts: Mapping[str, float], most: float, said: str, limit: float | None = None) -> str:
    """One bar of parts put end to end, its label before it and its figures behind; `most` is the whole width.

    Args:
        label, said: HTML. limit: where a line is drawn.
    """
    at, drawn = 0.0, []
    for kind, amount in parts.items():
        width = LONG * amount / most
        if width > 0:
            drawn.append(
                f'<rect class="{colour_class(kind)}" x="{at:.1f}" y="0" width="{width:.1f}" height="10">'
                f"<title>{escape(kind)}</title></rect>"
            )
        at += width
    if limit is not None:
        drawn.append(f'<path class="limit" d="M{LONG * limit / most:.1f} -1.5V11.5"/>')
    return (
        f'<div class="stack"><span class="label">{label}</span><svg viewBox="0 0 {LONG} 10" aria-hidden="true" '
        f'preserveAspectRatio="none">{"".join(drawn)}</svg><span class="said">{said}</span></div>'
    )


def legend(kinds: Sequence[str], line: str = "") -> str:
    """What the colours are, and the line, if there is one."""
    found = "".join(f'<span><i class="{colour_class(kind)}"></i>{escape(kind)}</span>' for kind in kinds)
    return f'<div class="legend">{found}{f"""<span><i class="line"></i>{escape(line)}</span>""" if line else ""}</div>'


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Of points (memory, rate) those that no other beats in both, by memory: their numbers in the sequence."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    found, best = [], -math.inf
    for i in order:
        if points[i][1] > best:
            found.append(i)
            best = points[i][1]
    return found


def scatter(points: Sequence[tuple[float, float]], names: Sequence[str], marks: Sequence[str], limit: float) -> str:
    """Memory in GiB against tokens a second and chip, with the front that no plan beats in both.

    Args:
        points: (memory, rate). names: of plans. marks: what stands beside a point. limit: the HBM of a chip.
    """
    best = front(points)
    ys = ticks(*_around([y for _, y in points]))

    most = 1.03 * max([limit, *(x for x, _ in points)])

    def place(x: float, y: float) -> tuple[float, float]:
        across = x / most
        up = (y - ys[0]) / (ys[-1] - ys[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    said = f"Memory of a chip against tokens a second and chip, {len(points)} plans"
    drawn = [f'<svg class="pareto" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}"><title>{said}</title>']
    for x in ticks(0, most):
        if x > most:
            break
        at = place(x, ys[0])[0]
        drawn.append(f'<path class="grid" d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        drawn.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:g}</text>')
    for y in ys:
        at = place(0, y)[1]
        drawn.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y:,g}</text>')
    edge = place(limit, ys[0])[0]
    drawn.append(f'<path class="limit" d="M{edge:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
    drawn.append(f'<text x="{edge - 4:.1f}" y="{TOP + 11}" text-anchor="end">HBM {limit:g}</text>')
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*points[i]) for i in best))
    drawn.append(f'<polyline class="front" points="{line}"/>')
    placed = [place(*point) for point in points]
    spots = _labels(placed, marks, [*best, *(i for i in range(len(points)) if i not in best)])
    for i, (x, y) in enumerate(placed):
        told = f"{escape(names[i])}: {points[i][0]:.2f} GiB, {points[i][1]:,.0f} tokens a second and chip"
        on = ' class="on"' if i in best else ""
        drawn.append(f'<circle{on} cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{told}</title></circle>')
    for i, (x, y) in spots.items():
        drawn.append(f'<text class="point" x="{x:.1f}" y="{y:.1f}">{escape(marks[i])}</text>')
    drawn.append(
        f'<text class="axis-name" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">memory of a '
        "chip, GiB</text>"
        '<text class="axis-name" x="0" y="16">tokens a second and chip</text>'
    )
    return "".join([*drawn, "</svg>"])


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers, evenly spaced, that reach around a range."""
    span = (high - low) or abs(high) or 1.0
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(n * power for n in (1, 2, 2.5, 5, 10) if n * power >= raw)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _around(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.1 * high or 1.0
    return max(0.0, low - margin), high + margin


def _labels(
    points: Sequence[tuple[float, float]], marks: Sequence[str], order: Sequence[int]
) -> dict[int, tuple[float, float]]:
    """Where marks stand beside their points without covering others; those that find no place are left out."""
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    found = {}
    for i in order:
        (x, y), wide = points[i], CHARACTER * len(marks[i])
        for left, base in ((x + 7, y + 4), (x - 7 - wide, y + 4), (x - wide / 2, y - 8), (x - wide / 2, y + 17)):
            box = (left, base - LINE + 3, left + wide, base + 2)
            if box[0] > LEFT and box[2] < WIDTH - RIGHT and not any(_meet(box, other) for other in taken):
                found[i] = (left, base)
                taken.append(box)
                break
    return found


def _meet(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
