"""The report of a search as one self-contained HTML page, without scripts and without anything fetched."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from ivl3_jax.data.markup import escape
from ivl3_jax.data.page_style import STYLE
from ivl3_jax.lab import report_pictures
from ivl3_jax.lab.ranking import GIB, Plan, step_time, table
from ivl3_jax.lab.report_style import sheet

LISTED = 200  # pruned plans of one kind of reason
HELD_OUT = "held-out error"


def page(plans: Sequence[Plan], rejected: Sequence[tuple[str, str]], facts: Mapping[str, str]) -> str:
    """The page. `plans` are ranked, those that fit first; `rejected` and `facts` as in `report.write_report`."""
    fitting, others = [plan for plan in plans if plan.fits], [plan for plan in plans if not plan.fits]
    title = _title(plans)
    about = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in _asked(plans, facts).items()
    )
    sections = [
        _ranks(fitting),
        report_pictures.memory(plans),
        report_pictures.time(fitting),
        report_pictures.pareto(fitting),
        report_pictures.layers(fitting),
    ]
    sections += [report_pictures.collectives(plans), _unfit(others), _pruned(rejected), _made_of(plans, facts)]
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
        (step_time(found), f"a step of {found.case.tokens:,} tokens"),
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
            step_time(found),
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
        rows = table(("plan", "why"), members[:LISTED], text=(0, 1))
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
        "products, a model of each Pallas kernel, the torus's links for collectives, and few constants for the share "
        "of these speeds that is reached.",
        "It does not see: input pipeline, checkpoints, other jobs on the network, chips of unequal speed, and what the "
        "hardware does otherwise than the compiler believes.",
        f"Error on published runs that no constant was fitted on: {facts[HELD_OUT]}." if HELD_OUT in facts else "",
    ]
    told = "".join(f"<li>{escape(item)}</li>" for item in items if item)
    seen = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    folded = f"<summary>{len(warnings)} things that could not be read</summary>" + f'<ul class="plain">{seen}</ul>'
    more = f"<details>{folded}</details>" if seen else ""
    return f'<section><h2>What the prediction is made of</h2><ul class="plain">{told}</ul>{more}</section>'
