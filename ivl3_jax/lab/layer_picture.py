"""The timeline of one layer: what the core, the links and the ways to memory do in an iteration of a loop, as SVG."""

from collections.abc import Sequence

from ivl3_jax.data.markup import escape
from ivl3_jax.lab.inventory import size
from ivl3_jax.lab.pictures import ticks
from ivl3_jax.lab.places import direction
from ivl3_jax.lab.report_style import colour_class
from ivl3_jax.lab.timeline import COMPUTE, DCN, DMA, HOST_LANE, ICI, Event, Loop, Timeline

LANES = {
    COMPUTE: "compute",
    ICI: "links (ICI)",
    DMA: "HBM moves (DMA)",
    HOST_LANE: "host memory",
    DCN: "network (DCN)",
}
WIDTH, NAMES, RIGHT = 1130, 118, 130  # of the drawing, of the lanes' names, behind the lanes for the last label
HIGH, APART = 22, 8  # of a lane, between lanes
ROWS, LINE, CHARACTER = 7, 13, 5.6  # of labels under a lane of collectives
TOLD = 0.012  # collectives that take less of the iteration are listed only


def layer_loops(timeline: Timeline) -> list[Loop]:
    """The loops over the decoder's layers, forward and backward.

    Of loops that hold an MLP the one with the shortest iteration: those of a pipeline go around it, and those of a ring
    are within.
    """
    found: dict[str, Loop] = {}
    for loop in timeline.loops:
        whole = any("MLP" in event.place for event in loop.events)
        if "decoder" not in loop.scope or "layers" not in loop.scope or not whole:
            continue
        way = "backward" if direction(loop.scope) in ("backward", "recomputed") else "forward"
        if way not in found or loop.seconds < found[way].seconds:
            found[way] = loop
    return [found[way] for way in ("forward", "backward") if way in found]


def collectives_of(loop: Loop) -> list[Event]:
    """In order of their beginning."""
    return sorted((event for event in loop.events if event.axes), key=lambda event: event.start)


def layer_picture(loop: Loop) -> str:
    """One iteration, over the whole width."""
    way = "forward" if direction(loop.scope) == "forward" else "backward"
    scale = (WIDTH - NAMES - RIGHT) / loop.seconds
    lanes = [lane for lane in LANES if lane == COMPUTE or any(event.lane == lane for event in loop.events)]
    drawn, top = [], 4.0
    for lane in lanes:
        events = [event for event in loop.events if event.lane == lane]
        back = "waits" if lane == COMPUTE else "lane"
        drawn.append(
            f'<text class="lane-name" x="0" y="{top + 15:.0f}">{LANES[lane]}</text><rect class="{back}" x="{NAMES}" '
            f'y="{top:.0f}" width="{loop.seconds * scale:.1f}" height="{HIGH}"/>'
        )
        for event in events:
            drawn.append(_box(event, scale, top, loop.seconds))
        top += HIGH
        told = [event for event in events if event.axes and event.seconds > TOLD * loop.seconds]
        if told:
            labels, rows = _labels(told, scale, top)
            drawn.append(labels)
            top += rows * LINE + 2
        top += APART
    marks = [mark for mark in ticks(0, loop.seconds * 1e6, 8) if mark <= loop.seconds * 1e6 * 1.001]
    for mark in marks:
        x = NAMES + mark * 1e-6 * scale
        drawn.append(f'<path class="tickline" d="M{x:.1f} {top:.0f}v5"/>')
        drawn.append(f'<text x="{x:.1f}" y="{top + 17:.0f}" text-anchor="middle">{mark:,.0f} µs</text>')
    said = f"One decoder layer, {way}: {loop.seconds * 1e6:,.0f} microseconds"
    return (
        f'<div class="scroll" tabindex="0"><svg class="lanes" viewBox="0 0 {WIDTH} {top + 22:.0f}" role="img" '
        f'aria-label="{said}"><title>{said}</title>{"".join(drawn)}</svg></div>'
    )


def short(event: Event) -> str:
    """A collective's label: kind, axes, bytes."""
    return f"{event.kind} {' x '.join(event.axes)} {size(event.bytes)}"


def _box(event: Event, scale: float, top: float, end: float) -> str:
    start, seconds = max(0.0, event.start), min(event.seconds, end - event.start)
    told = short(event) if event.axes else event.kind
    title = f"{told}, {event.seconds * 1e6:,.1f} µs from {event.start * 1e6:,.1f} µs on: {event.place} ({event.name})"
    return (
        f'<rect class="{colour_class(event.kind)}" x="{NAMES + start * scale:.1f}" y="{top:.0f}" '
        f'width="{max(0.6, seconds * scale - 0.4):.1f}" height="{HIGH}"><title>{escape(title)}</title></rect>'
    )


def _labels(events: Sequence[Event], scale: float, top: float) -> tuple[str, int]:
    """Labels under a lane, each in the first row where it covers no other; SVG, and the rows in use.

    From right to left, and above no line that goes down to a lower row.
    """
    starts, drawn, used = [WIDTH + 1.0] * ROWS, [], 0
    for event in sorted(events, key=lambda event: -event.start):
        x, text = NAMES + event.start * scale, short(event)
        wide = CHARACTER * len(text) + 8
        left = min(x, WIDTH - wide)
        row = next((row for row in range(ROWS) if left + wide <= min(starts[row:])), None)
        if row is None:
            continue
        starts[row], used = min(left, x), max(used, row + 1)
        base = top + (row + 1) * LINE
        drawn.append(f'<path class="leader" d="M{x + 0.5:.1f} {top:.0f}V{base - 3:.0f}"/>')
        drawn.append(f'<text class="told" x="{left + 3:.1f}" y="{base - 1:.0f}">{escape(text)}</text>')
    return "".join(drawn), used
