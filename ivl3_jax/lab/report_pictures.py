"""The pictures of a search's report, each a section of the page."""

from collections.abc import Sequence
from itertools import groupby

from ivl3_jax.data.markup import escape
from ivl3_jax.lab.collectives import KINDS as COLLECTIVES
from ivl3_jax.lab.collectives import SEND
from ivl3_jax.lab.inventory import size
from ivl3_jax.lab.layer_picture import collectives_of, layer_loops, layer_picture
from ivl3_jax.lab.pictures import front, legend, scatter, stack
from ivl3_jax.lab.places import direction
from ivl3_jax.lab.prediction import MEMORY
from ivl3_jax.lab.ranking import GIB, Plan, step_time, table

AT_ONCE = 12  # plans of a picture that are not folded away
DRAWN = 3  # plans whose layer is drawn
PARTS = ("products", "other compute", "kernels", "exposed communication", "memory moves")


def memory(plans: Sequence[Plan]) -> str:
    """Bars of memory by kind, against the HBM of a chip."""
    known = [plan for plan in plans if plan.gibibytes is not None]
    if not known:
        return ""
    hbm = max(plan.found.case.topology.chip.hbm for plan in known)
    # A plan that wants many times what there is would leave the others no width.
    most = min(max([hbm, *(plan.gibibytes or 0.0 for plan in known)]) * 1.02, 2.5 * hbm)
    bars = []
    for plan in known:
        memory, total = plan.found.memory, plan.gibibytes or 0.0
        parts = {kind: size / GIB for kind, size in memory.items()} or {"wanted": total}
        room = most * min(1.0, most / total)
        drawn = {kind: amount / total * min(total, room) for kind, amount in parts.items()}
        told = (
            "the compiler does not say of what"
            if not memory
            else ", ".join(f"{kind} {n:.2f}" for kind, n in parts.items())
        )
        verdict = "" if plan.found.fits else ' <span class="bad">does not fit</span>'
        said = f"<b>{total:.2f} GiB</b>{verdict}<br>{told}"
        bars.append(stack(plan.label, drawn, most, said, plan.found.case.topology.chip.hbm))
    kinds = [*MEMORY, *(["wanted"] if any(not plan.found.memory for plan in known) else [])]
    return (
        '<section><h2>Memory of a chip</h2><p class="quiet">As the compiler counts it, padding included. '
        "Activations are those kept for the backward pass; temporaries all that a step has at its fullest besides: "
        "gathered weights, gradients, what a layer works on.</p>"
        f"{legend(kinds, f'HBM of a chip, {hbm:g} GiB')}{_bars(bars)}</section>"
    )


def time(fitting: Sequence[Plan]) -> str:
    """Bars of time by part, of a step or, where steps are of unequal size, of a token."""
    if not fitting:
        return ""
    same = len({plan.found.case.tokens for plan in fitting}) == 1
    # Steps of unequal size are compared by what a token takes of one chip.
    unit = {
        plan.number: 1e3 if same else 1e6 / (plan.found.case.tokens / plan.found.case.topology.chips)
        for plan in fitting
    }
    name = "ms" if same else "µs a token"
    bars = []
    most = max((plan.found.seconds or 0.0) * unit[plan.number] for plan in fitting)
    for plan in fitting:
        timeline = plan.found.timeline
        assert timeline is not None
        parts = {part: timeline.parts.get(part, 0.0) * unit[plan.number] for part in (*PARTS, *timeline.parts)}
        told = ", ".join(f"{part} {amount:,.2f}" for part, amount in parts.items() if amount)
        step = "" if same else f", a step {step_time(plan.found)}"
        bars.append(stack(plan.label, parts, most, f"<b>{sum(parts.values()):,.2f} {name}</b>{step}<br>{told}"))
    how = "Of a step." if same else "Of one chip for one token, as the plans' steps are of unequal size."
    return (
        f'<section><h2>Predicted time</h2><p class="quiet">{how} Exposed communication is what the core waits for '
        f"collectives; what runs beside compute is not in it.</p>{legend(PARTS)}{_bars(bars)}</section>"
    )


def _bars(bars: Sequence[str]) -> str:
    shown, folded = "".join(bars[:AT_ONCE]), "".join(bars[AT_ONCE:])
    more = f"<details><summary>{len(bars) - AT_ONCE} more</summary><div class=bars>{folded}</div></details>"
    return f'<div class="bars">{shown}</div>{more if folded else ""}'


def pareto(fitting: Sequence[Plan]) -> str:
    """Memory against rate, and the plans on the front."""
    if not fitting:
        return ""
    points = [(plan.gibibytes or 0.0, plan.rate) for plan in fitting]
    names, marks = [plan.name for plan in fitting], [str(plan.number) for plan in fitting]
    best = [fitting[i] for i in front(points)]
    items = "".join(
        f"<li><b>{plan.number}</b> {escape(plan.name)}: {plan.gibibytes:.2f} GiB, {plan.rate:,.0f} tokens/s a chip</li>"
        for plan in best
    )
    drawn = scatter(points, names, marks, fitting[0].found.case.topology.chip.hbm)
    return (
        '<section><h2>Memory against rate</h2><p class="quiet">Numbers are ranks. On the dashed line are the plans '
        f'than which no other is both smaller and faster.</p><div class="beside"><figure class="chart">{drawn}</figure>'
        f'<div><h3>On the line</h3><ul class="plain">{items}</ul></div></div></section>'
    )


def layers(fitting: Sequence[Plan]) -> str:
    """What happens in a layer of the decoder, of the best plans."""
    drawn, seen = [], set()
    for plan in fitting[:DRAWN]:
        assert plan.found.timeline is not None
        loops = layer_loops(plan.found.timeline)
        if not loops:
            continue
        parts = []
        for loop in loops:
            seen |= {event.kind for event in loop.events}
            forward = direction(loop.scope) == "forward"
            way = "forward" if forward else "backward, with what is computed again"
            rows = [
                (
                    f"{event.start * 1e6:,.1f}",
                    f"{event.seconds * 1e6:,.1f}",
                    event.kind,
                    " x ".join(event.axes),
                    size(event.bytes),
                    event.place,
                )
                for event in collectives_of(loop)
            ]
            listed = table(("from, µs", "takes, µs", "collective", "over", "bytes", "where"), rows, text=(2, 3, 5))
            parts.append(
                f"<h4>{way}: {loop.seconds * 1e6:,.0f} µs, {loop.trips} times</h4>{layer_picture(loop)}"
                f"<details><summary>{len(rows)} collectives of the layer</summary>{listed}</details>"
            )
        drawn.append(f'<div class="layer"><h3>{plan.number}. {escape(plan.name)}</h3>{"".join(parts)}</div>')
    if not drawn:
        return ""
    kinds = [kind for kind in (*PARTS, *COLLECTIVES, SEND) if kind in seen]
    return (
        '<section><h2>One decoder layer</h2><p class="quiet">As the compiler has scheduled it, an iteration that '
        "follows another. Where the lane of compute shows its pale ground, the core waits. On a narrow screen the "
        "pictures scroll sideways.</p>"
        f"{legend(kinds)}{''.join(drawn)}</section>"
    )


def collectives(plans: Sequence[Plan]) -> str:
    """A table for each plan, folded away."""
    parts = []
    for plan in plans:
        timeline = plan.found.timeline
        if timeline is None:
            continue

        def of(each) -> tuple:
            return " x ".join(each.axes), each.kind, each.asynchronous

        rows: list[tuple[float, tuple[str, ...]]] = []
        for (axes, kind, asynchronous), group in groupby(sorted(timeline.collectives, key=of), key=of):
            same = list(group)
            moved, count = sum(each.count * each.bytes for each in same), sum(each.count for each in same)
            seconds = sum(each.count * each.seconds for each in same)
            manner = "beside compute" if asynchronous else "waited for"
            rows.append((moved, (axes, kind, manner, f"{count:,.0f}", size(moved), f"{seconds * 1e3:,.2f}")))
        cells = [row for _, row in sorted(rows, key=lambda row: -row[0])]
        told = table(("over", "kind", "manner", "a step", "bytes a chip", "on its links, ms"), cells, text=(0, 1, 2))
        total = size(sum(moved for moved, _ in rows))
        told = told if rows else "<p>There are none.</p>"
        parts.append(f"<details><summary>{plan.label}: {total} a step</summary>{told}</details>")
    if not parts:
        return ""
    return (
        '<section><h2>Collectives by axis</h2><p class="quiet">Bytes are of results of gathers and operands of '
        "reductions, on one chip.</p>" + "".join(parts) + "</section>"
    )
