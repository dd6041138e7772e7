"""The report of a search as one self-contained HTML page, without scripts and without anything fetched."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from ivl3_jax.data.markup import escape
from ivl3_jax.data.page_style import STYLE
from ivl3_jax.lab.inventory import size
from ivl3_jax.lab.layer_picture import collectives_of, layer_loops, layer_picture
from ivl3_jax.lab.pictures import front, legend, scatter, stack
from ivl3_jax.lab.places import direction
from ivl3_jax.lab.prediction import Prediction
from ivl3_jax.lab.report_style import sheet

GIB = 2**30
AT_ONCE = 12  # plans of a picture that are not folded away
DRAWN = 3  # plans whose layer is drawn
LISTED = 200  # pruned plans of one kind of reason
KINDS = ("parameters", "optimizer", "batch", "temporaries")
PARTS = ("products", "other compute", "kernels", "exposed communication", "memory moves")
HELD_OUT = "held-out error"


@dataclass(frozen=True)
class Plan:
    """A compiled plan: its rank, from 1, its label, and what was found."""

    number: int
    name: str
    found: Prediction

    @property
    def fits(self) -> bool:
        return self.found.fits and self.found.rate is not None

    @property
    def gibibytes(self) -> float | None:
        """Of a chip; what the compiler wanted, where it gave up."""
        compiled = self.found.compiled
        if compiled.memory is not None:
            return compiled.memory.total / GIB
        wanted = compiled.shortage.wanted if compiled.shortage is not None else None
        return None if wanted is None else wanted / GIB

    @property
    def rate(self) -> float:
        return self.found.rate or 0.0

    @property
    def label(self) -> str:
        """HTML."""
        return f"<b>{self.number}</b>{escape(self.name)}"


def page(plans: Sequence[Plan], rejected: Sequence[tuple[str, str]], facts: Mapping[str, str]) -> str:
    """The page. `plans` are ranked, those that fit first; `rejected` and `facts` as in `report.write_report`."""
    fitting, others = [plan for plan in plans if plan.fits], [plan for plan in plans if not plan.fits]
    title = _title(plans)
    about = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in _asked(plans, facts).items()
    )
    sections = [_ranks(fitting), _memory(plans), _time(fitting), _pareto(fitting), _layers(fitting)]
    sections += [_collectives(plans), _unfit(others), _pruned(rejected), _made_of(plans, facts)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE}{sheet()}</style></head><body><main>"
        f'<header class="top"><p class="quiet">ivl3 lab search</p><h1>{escape(title)}</h1>'
        f'<dl class="about">{about}</dl></header>{_headline(fitting, others, rejected)}{"".join(sections)}'
        "</main></body></html>\n"
    )


def _title(plans: Sequence[Plan]) -> str:
    models = dict.fromkeys(plan.found.case.model for plan in plans)
    slices = dict.fromkeys(plan.found.case.topology.name for plan in plans)
    return f"{', '.join(models)} on {', '.join(slices)}" if plans else "No plan was compiled"


def _asked(plans: Sequence[Plan], facts: Mapping[str, str]) -> dict[str, str]:
    """What all plans have in common, and the facts."""
    told: dict[str, Callable[[Plan], str]] = {
        "chips": lambda plan: f"{plan.found.case.topology.chips:,}",
        "tokens a row": lambda plan: f"{plan.found.case.batch.tokens:,}",
        "tiles a row": lambda plan: f"{plan.found.case.batch.tiles:,}",
        "documents a row": lambda plan: f"{plan.found.case.documents:,}",
        "parameters in": lambda plan: plan.found.case.param_dtype,
        "computed in": lambda plan: plan.found.case.dtype,
    }
    common = {name: {value(plan) for plan in plans} for name, value in told.items()}
    found = {name: values.pop() for name, values in common.items() if len(values) == 1}
    return found | {name: value for name, value in facts.items() if name != HELD_OUT}


def _headline(fitting: Sequence[Plan], others: Sequence[Plan], rejected: Sequence[tuple[str, str]]) -> str:
    counts = f"{len(fitting) + len(others):,} plans compiled, {len(fitting):,} fit, {len(rejected):,} left out before"
    honest = "<li>Every figure is predicted from what the TPU compiler made of the step. No TPU took part.</li>"
    if not fitting:
        return f'<ul class="findings"><li><b>No plan fits.</b> {counts}.</li>{honest}</ul>'
    best = fitting[0]
    found = best.found
    figures = [
        (f"{best.rate:,.0f}", "tokens a second and chip, the best plan"),
        (f"{found.utilisation:.1%}", "predicted MFU"),
        (_seconds(found), f"a step of {found.case.tokens:,} tokens"),
        (f"{best.gibibytes:.2f}", f"GiB of {found.case.topology.chip.hbm:g} a chip"),
        (f"{len(fitting)} of {len(fitting) + len(others)}", "compiled plans fit"),
    ]
    cells = "".join(f"<div><b>{value}</b><span>{said}</span></div>" for value, said in figures)
    ahead = ""
    if len(fitting) > 1:
        second = fitting[1]
        ahead = f", {best.rate / second.rate - 1:.1%} ahead of {escape(second.name)}"
    sentence = (
        f"<b>{escape(best.name)}</b> is the best plan: {best.rate:,.0f} tokens a second and chip at "
        f"{found.utilisation:.1%} MFU in {best.gibibytes:.1f} of {found.case.topology.chip.hbm:g} GiB{ahead}. {counts}."
    )
    return f'<div class="headline">{cells}</div><ul class="findings"><li class="best">{sentence}</li>{honest}</ul>'


def _ranks(fitting: Sequence[Plan]) -> str:
    if not fitting:
        return ""
    head = ("plan", "rows a chip", "memory, GiB", "step", "MFU", "tokens/s a chip", "of the best")
    rows = []
    for plan in fitting:
        found = plan.found
        cells = (
            f"{found.case.rows:g}",
            f"{plan.gibibytes:.2f}",
            _seconds(found),
            f"{found.utilisation:.1%}",
            f"{plan.rate:,.0f}",
            f"{plan.rate / fitting[0].rate:.1%}",
        )
        name = f'<td class="name{" first" if plan is fitting[0] else ""}">{escape(plan.name)}</td>'
        rows.append(f"<tr><th>{plan.number}</th>{name}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    titles = "".join(f"<th{' class=name' if not i else ''}>{name}</th>" for i, name in enumerate(head))
    return (
        '<section><h2>Plans by predicted rate</h2><p class="quiet">The names hold what differs between the plans. '
        "Pictures below name them by these numbers; plans.csv beside this page has all figures.</p>"
        f'<div class="wide"><table class="ranks"><thead><tr><th>#</th>{titles}</tr></thead><tbody>{"".join(rows)}'
        "</tbody></table></div></section>"
    )


def _memory(plans: Sequence[Plan]) -> str:
    known = [plan for plan in plans if plan.gibibytes is not None]
    if not known:
        return ""
    hbm = max(plan.found.case.topology.chip.hbm for plan in known)
    # A plan that wants many times what there is would leave the others no width.
    most = min(max([hbm, *(plan.gibibytes or 0.0 for plan in known)]) * 1.02, 2.5 * hbm)
    bars = []
    for plan in known:
        memory, total = plan.found.compiled.memory, plan.gibibytes or 0.0
        parts = {"wanted": total} if memory is None else {kind: getattr(memory, kind) / GIB for kind in KINDS}
        room = most * min(1.0, most / total)
        drawn = {kind: amount / total * min(total, room) for kind, amount in parts.items()}
        told = "of what is not known" if memory is None else ", ".join(f"{kind} {n:.2f}" for kind, n in parts.items())
        verdict = "" if plan.found.fits else ' <span class="bad">does not fit</span>'
        said = f"<b>{total:.2f} GiB</b>{verdict}<br>{told}"
        bars.append(stack(plan.label, drawn, most, said, plan.found.case.topology.chip.hbm))
    kinds = [*KINDS, *(["wanted"] if any(plan.found.compiled.memory is None for plan in known) else [])]
    return (
        '<section><h2>Memory of a chip</h2><p class="quiet">As the compiler counts it, padding included. Temporaries '
        "are all that a step has at its fullest besides: activations, gathered weights, gradients.</p>"
        f"{legend(kinds, f'HBM of a chip, {hbm:g} GiB')}{_bars(bars)}</section>"
    )


def _time(fitting: Sequence[Plan]) -> str:
    if not fitting:
        return ""
    same = len({plan.found.case.tokens for plan in fitting}) == 1
    # Steps of unequal size are compared by what a token takes of one chip.
    unit = {plan.number: 1e3 if same else 1e6 / (plan.found.case.tokens / plan.found.case.topology.chips) for plan in fitting}
    name = "ms" if same else "µs a token"
    bars = []
    most = max((plan.found.seconds or 0.0) * unit[plan.number] for plan in fitting)
    for plan in fitting:
        timeline = plan.found.timeline
        assert timeline is not None
        parts = {part: timeline.parts.get(part, 0.0) * unit[plan.number] for part in (*PARTS, *timeline.parts)}
        told = ", ".join(f"{part} {amount:,.2f}" for part, amount in parts.items() if amount)
        step = "" if same else f", a step {_seconds(plan.found)}"
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


def _pareto(fitting: Sequence[Plan]) -> str:
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
        '<section><h2>Memory against rate</h2><p class="quiet">Numbers are ranks. On the dashed line are the plans than '
        f"which no other is both smaller and faster.</p>{_chart(drawn)}"
        f'<ul class="plain">{items}</ul></section>'
    )


def _chart(drawn: str) -> str:
    return f'<figure class="chart">{drawn}</figure>'


def _layers(fitting: Sequence[Plan]) -> str:
    drawn = []
    for plan in fitting[:DRAWN]:
        assert plan.found.timeline is not None
        loops = layer_loops(plan.found.timeline)
        if not loops:
            continue
        longest = max(loop.seconds for loop in loops)
        parts = []
        for loop in loops:
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
            listed = _table(("from, µs", "takes, µs", "collective", "over", "bytes", "where"), rows, text=(2, 3, 5))
            parts.append(
                f"<h4>{way}: {loop.seconds * 1e6:,.0f} µs, {loop.trips} times</h4>{layer_picture(loop, longest)}"
                f"<details><summary>{len(rows)} collectives of the layer</summary>{listed}</details>"
            )
        drawn.append(f'<div class="layer"><h3>{plan.number}. {escape(plan.name)}</h3>{"".join(parts)}</div>')
    if not drawn:
        return ""
    kinds = [*(part for part in PARTS if part != "exposed communication"), "all-gather", "all-reduce"]
    kinds += ["reduce-scatter", "all-to-all", "collective-permute"]
    return (
        '<section><h2>One decoder layer</h2><p class="quiet">As the compiler has scheduled it, an iteration that follows '
        "another. Where the lane of compute shows its pale ground, the core waits. Pictures scroll sideways.</p>"
        f"{legend(kinds)}{''.join(drawn)}</section>"
    )


def _collectives(plans: Sequence[Plan]) -> str:
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
        told = _table(("over", "kind", "manner", "a step", "bytes a chip", "on its links, ms"), cells, text=(0, 1, 2))
        total = sum(moved for moved, _ in rows)
        parts.append(
            f"<details><summary>{plan.label}: {size(total)} a step</summary>{told if rows else '<p>There are none.</p>'}"
            "</details>"
        )
    if not parts:
        return ""
    return (
        '<section><h2>Collectives by axis</h2><p class="quiet">Bytes are of results of gathers and operands of '
        "reductions, on one chip.</p>" + "".join(parts) + "</section>"
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], text: Sequence[int]) -> str:
    """A table whose columns numbered in `text` hold words, which are set to the left."""
    style = [' class="name"' if i in text else "" for i in range(len(columns))]
    head = "".join(f"<th{how}>{name}</th>" for how, name in zip(style, columns, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{how}>{escape(cell)}</td>' for how, cell in zip(style, row, strict=True))}</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _unfit(others: Sequence[Plan]) -> str:
    if not others:
        return ""
    items = []
    for plan in others:
        shortage, chip = plan.found.compiled.shortage, plan.found.case.topology.chip
        if shortage is None:
            told = "the time of its step could not be read"
        else:
            wanted = "" if shortage.wanted is None else f"{shortage.wanted / GIB:.2f} GiB wanted"
            room = shortage.available / GIB if shortage.available is not None else chip.hbm
            lacks = f", {shortage.wanted / GIB - room:.2f} more than there is" if shortage.wanted is not None else ""
            told = f"{shortage.kind}: {wanted}{lacks}. The compiler says: {shortage.message}"
        items.append(f"<li><b>{escape(plan.name)}</b>: {escape(told)}</li>")
    return f'<section><h2>Plans that do not fit</h2><ul class="plain">{"".join(items)}</ul></section>'


def _pruned(rejected: Sequence[tuple[str, str]]) -> str:
    if not rejected:
        return ""
    groups = defaultdict(list)
    for name, reason in rejected:
        groups[re.sub(r"\d[\d,.]*", "…", reason)].append((name, reason))
    parts = []
    for alike, members in sorted(groups.items(), key=lambda group: -len(group[1])):
        rows = _table(("plan", "why"), members[:LISTED], text=(0, 1))
        left = f'<p class="quiet">and {len(members) - LISTED:,} more</p>' if len(members) > LISTED else ""
        told = members[0][1] if len(members) == 1 else alike
        parts.append(f"<details><summary>{len(members):,}: {escape(told)}</summary>{rows}{left}</details>")
    return (
        f'<section><h2>Plans left out</h2><p class="quiet">{len(rejected):,} were not compiled, or failed, by reason.'
        f"</p>{''.join(parts)}</section>"
    )


def _made_of(plans: Sequence[Plan], facts: Mapping[str, str]) -> str:
    warnings = dict.fromkeys(
        f"{plan.name}: {warning}" for plan in plans if plan.found.timeline for warning in plan.found.timeline.warnings
    )
    items = [
        "No TPU took part. The real train step was compiled by XLA's TPU compiler for this slice; memory is what that "
        "compiler counts.",
        "Time follows from the compiled schedule: the compiler's own estimates for fusions, the chip's peak for matrix "
        "products, a model of each Pallas kernel, the torus's links for collectives, and few constants for the share of "
        "these speeds that is reached.",
        "It does not see: input pipeline, checkpoints, other jobs on the network, chips of unequal speed, and what the "
        "hardware does otherwise than the compiler believes.",
        f"Error on published runs that no constant was fitted on: {facts[HELD_OUT]}." if HELD_OUT in facts else "",
    ]
    told = "".join(f"<li>{escape(item)}</li>" for item in items if item)
    seen = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    folded = f'<details><summary>{len(warnings)} things that could not be read</summary><ul class="plain">{seen}</ul></details>'
    return (
        f'<section><h2>What the prediction is made of</h2><ul class="plain">{told}</ul>{folded if seen else ""}</section>'
    )


def _seconds(found: Prediction) -> str:
    seconds = found.seconds or 0.0
    return f"{seconds * 1e3:,.1f} ms" if seconds < 1 else f"{seconds:,.3f} s"
