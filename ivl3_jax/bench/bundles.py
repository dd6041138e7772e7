"""Reads the final VLIW bundles of one TPU kernel, as the compiler dumps them, into regions with their number of runs.

A bundle is what a TensorCore issues in one cycle: up to so many operations of each unit. Waits that the compiler knows
of are bundles too. What it cannot know, such as a DMA that is late, is not in them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

# Columns of the compiler's table of slots; FILL and SPILL are the loads and stores that spilling adds.
SLOTS = ("MXU", "XLU", "VALU", "VPOP", "EUP", "VLOAD", "FILL", "VSTORE", "SPILL", "SALU")
ROWS = {"f32": 8, "bf16": 16}  # rows of the left operand that one vmatmul streams: one vector register
_BUNDLE = re.compile(r"^\s*(0x[0-9a-f]+|0)\s+(LH|LB|LE|PB|PF|CT)?:([ >]*){(.*)")
_LABEL = re.compile(r"Start(?:/End empty)? region (\d+)")
_BRANCH = re.compile(r"sbr\.rel (\(\S+\))? ?target = \$region(\d+)")
_EXIT = re.compile(r"scmp\.\w+\.s32\.totalorder %\w+, (\d+) /\* loop exit test")
_PRODUCT = re.compile(r"= vmatmul(\.lmr)?[.\w]*?\.(f32|bf16)[.\w]*?\.mxu(\d)")
GUARDED = 64  # slots of vector units from which a region that may be jumped over counts as one of the kernel's own


@dataclass
class Span:
    """Bundles first..last of a loop's body, or of what a jump may leave out, and how often it runs when reached."""

    first: int
    last: int
    runs: float = 1.0
    known: bool = True  # whether `runs` is the compiler's or the caller's, not the default


@dataclass
class Region:
    """A straight line of bundles that is executed `runs` times on one core.

    `slots` are operations issued in it, by unit; `busy` the cycles that the busiest of the matrix units needs for its
    products; `products` the multiply-adds of all of them, those with padding included.
    """

    first: int
    bundles: int = 0
    depth: int = 0
    runs: float = 1.0
    slots: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SLOTS, 0))
    units: dict[str, int] = field(default_factory=dict)
    rows: int = 0

    @property
    def busy(self) -> int:
        return max(self.units.values(), default=0)

    @property
    def cycles(self) -> int:
        return max(self.bundles, self.busy)


@dataclass
class Program:
    """The regions of a kernel in program order, its loops and guards, and the slots of each unit in a bundle."""

    regions: list[Region]
    loops: list[Span]
    guards: list[Span]
    capacity: dict[str, int]


def read_program(bundles: Path, slots: Path, row_cycles: float) -> Program:
    """The program in a dump `...final_bundles.txt` with its table `...final_hlo-static-per-bundle-utilization.txt`.

    Args:
        row_cycles: cycles in which a matrix unit takes one row of the left operand.

    Raises:
        ValueError: the dump is not of the known form.
    """
    lines = [m for m in map(_BUNDLE.match, bundles.read_text().splitlines()) if m]
    table = [list(map(int, line.split())) for line in slots.read_text().splitlines() if re.fullmatch(r"[\d ]+", line)]
    capacity, table = dict(zip(SLOTS, table[0], strict=True)), table[1:]
    if len(lines) != len(table):
        raise ValueError(f"{bundles.name}: {len(lines)} bundles, but a table of slots for {len(table)}")
    starts = {int(name): i for i, m in enumerate(lines) for name in _LABEL.findall(m[4])}
    loops, guards, cuts = [], [], {0}
    for i, match in enumerate(lines):
        if match[2]:
            cuts.add(i)
        for _, target in _BRANCH.findall(match[4]):
            if int(target) not in starts:
                continue  # past the kernel's end: what is jumped over counts as executed
            to = starts[int(target)]
            (loops if to <= i else guards).append(Span(to, i) if to <= i else Span(i + 1, to - 1))
            cuts |= {to, i + 1}
    edges = [*sorted(cut for cut in cuts if cut < len(lines)), len(lines)]
    regions = []
    for first, end in zip(edges, edges[1:], strict=False):
        region = Region(first, end - first, lines[first][3].count(">"))
        for match, row in zip(lines[first:end], table[first:end], strict=True):
            for unit, n in zip(SLOTS, row, strict=True):
                region.slots[unit] += n
            for half, dtype, unit in _PRODUCT.findall(match[4]):
                # This form streams half a register, 8 rows: it has one register of results, and the others two.
                rows = ROWS["f32" if half else dtype]
                region.units[unit] = region.units.get(unit, 0) + round(rows * row_cycles)
                region.rows += rows
        regions.append(region)
    for loop in loops:
        loop.runs, loop.known = _trips(lines, loop, loops)
    own = [guard for guard in guards if _vector_slots(regions, guard) >= GUARDED]
    return Program(regions, sorted(loops, key=lambda s: s.first), sorted(own, key=lambda s: s.first), capacity)


def _trips(lines, loop, loops) -> tuple[float, bool]:
    """The constant with which the loop's counter is compared; counters start at 0 unless the caller says otherwise."""
    inner = [s for s in loops if s is not loop and loop.first <= s.first and s.last <= loop.last]
    found = [
        int(n)
        for i in range(loop.first, loop.last + 1)
        if not any(s.first <= i <= s.last for s in inner)
        for n in _EXIT.findall(lines[i][4])
    ]
    return (float(found[0]), True) if len(found) == 1 else (1.0, False)


def _vector_slots(regions: list[Region], span: Span) -> int:
    inside = [region for region in regions if span.first <= region.first <= span.last]
    return sum(region.slots[unit] for region in inside for unit in SLOTS if unit != "SALU")


def own_guards(program: Program) -> list[Span]:
    """What a kernel itself may jump over, in program order.

    Not the body of the pipeline over its grid, the first guard in that loop if it holds most of it: its loop takes two
    turns more than the grid has steps, which do not execute the body.
    """
    own = list(program.guards)
    for loop in _outermost(program.loops):
        body = next((g for g in own if loop.first <= g.first <= loop.last), None)
        if body is not None and 2 * (body.last - body.first) > loop.last - loop.first and loop.runs > 2:
            body.runs = (loop.runs - 2) / loop.runs
            own.remove(body)
    return own


def first_with_products(program: Program) -> int:
    """The place among `own_guards` of the first that makes products and holds no other guard."""
    own = own_guards(program)
    for place, guard in enumerate(own):
        holds = any(o is not guard and guard.first <= o.first and o.last <= guard.last for o in own)
        if not holds and any(region.rows for region in program.regions if guard.first <= region.first <= guard.last):
            return place
    raise ValueError("no guarded part of the kernel makes products")


def _outermost(loops: list[Span]) -> list[Span]:
    return [s for s in loops if not any(o is not s and o.first <= s.first and s.last <= o.last for o in loops)]


def count_runs(program: Program, trips: Mapping[int, float], guards: Mapping[int, float]) -> None:
    """Fills in `runs` of every region of a kernel whose outermost loop is the pipeline over its grid.

    Args:
        trips: of the inner loops, by their place in program order, instead of the constants that the compiler
            compares with. guards: the same for `own_guards`: the part of the times that each is reached.

    Raises:
        ValueError: the trips of a loop are neither constant nor given, or there is no such loop or guard.
    """
    outer = _outermost(program.loops)
    inner = [s for s in program.loops if s not in outer]
    own = own_guards(program)
    for kind, spans, given in (("inner loop", inner, trips), ("guard", own, guards)):
        for place, runs in given.items():
            if not 0 <= place < len(spans):
                raise ValueError(f"{kind} {place} is given, but the kernel has {len(spans)}")
            spans[place].runs, spans[place].known = runs, True
    unknown = [place for place, loop in enumerate(inner) if not loop.known]
    if unknown or not all(loop.known for loop in outer):
        raise ValueError(f"inner loops {unknown} of {len(inner)} have no constant number of trips: give `trips`")
    for region in program.regions:
        region.runs = 1.0
        for span in (*program.loops, *program.guards):
            if span.first <= region.first <= span.last:
                region.runs *= span.runs
