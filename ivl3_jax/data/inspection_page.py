"""A report as one self-contained HTML page, without scripts and without anything fetched."""

from collections import Counter
from collections.abc import Sequence

from ivl3_jax.data.faults import REASONS
from ivl3_jax.data.histogram import Histogram, even
from ivl3_jax.data.inspection_report import Report, SourceReport
from ivl3_jax.data.markup import escape
from ivl3_jax.data.page_style import STYLE
from ivl3_jax.data.processor import Processor
from ivl3_jax.data.row_picture import fill_bar, row_picture

AT_ONCE = 8  # messages of a reason that are not folded away


def page(report: Report, processor: Processor) -> str:
    """The page, HTML that can be encoded in UTF-8 whatever the data has in it."""
    title = f"Data inspection: {report.about.get('data', '')}"
    about = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in report.about.items()
        if name != "data"
    )
    sections = [_sources(report), _samples(report), _packing(report), _skips(report), _pictures(report, processor)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f'<header class="top"><p class="quiet">ivl3 data inspect</p><h1>{escape(report.about.get("data", "Data"))}</h1>'
        f'<dl class="about">{about}</dl></header>{_headline(report)}{_findings(report)}{"".join(sections)}'
        "</main></body></html>\n"
    )


def _headline(report: Report) -> str:
    rows, measured = report.rows, report.histograms
    samples = sum(row.samples for row in rows)
    learned = sum(source.learned for source in report.sources) / max(1, sum(source.tokens for source in report.sources))
    figures = [
        (f"{report.looked_at:,}", f"of {report.samples:,} samples looked at"),
        (f"{report.skipped:,}", "bad samples"),
        (f"{measured['tokens'].quantile(0.5):,}", "tokens in the median sample"),
        (f"{learned:.1%}", "of the tokens are learned"),
        (f"{len(rows):,}", f"rows made, of {samples / max(1, len(rows)):.1f} samples"),
        (f"{report.fills['tokens']:.1%}", "of their positions filled"),
        (f"{report.fills['tiles']:.1%}" if report.budget.tiles else "none", "of their tiles filled"),
    ]
    cells = "".join(f"<div><b>{value}</b><span>{said}</span></div>" for value, said in figures)
    return f'<div class="headline">{cells}</div>'


def _findings(report: Report) -> str:
    items = "".join(f"<li>{escape(finding)}</li>" for finding in report.findings)
    return f'<ul class="findings">{items}</ul>' if items else ""


def _sources(report: Report) -> str:
    packed, loss = sum(s.packed for s in report.sources), sum(s.loss for s in report.sources)
    total = SourceReport("all", report.samples, 1.0, report.looked_at, report.skipped, Counter(report.kinds))
    for source in report.sources:
        total.tokens, total.learned = total.tokens + source.tokens, total.learned + source.learned
        total.tiles, total.packed, total.loss = total.tiles + source.tiles, packed, loss
    sources = [*report.sources, total] if len(report.sources) > 1 else report.sources
    kinds = [kind for kind, count in report.kinds.items() if count]
    sizes = "samples", "of draws", "looked at", "bad", "tokens", "learned", "tiles", "of all tokens", "of the loss"
    return (
        '<section><h2>Sources</h2><p class="quiet">Tokens, learned tokens and tiles are means of a sample. The shares '
        "of all tokens and of the loss are those in the rows; the loss goes by the weights of learned tokens.</p>"
        + _table(sizes, [(source.name, _sizes(source, packed, loss)) for source in sources])
        + "<h2>Kinds</h2>"
        + _table(kinds, [(source.name, _kinds(source, kinds)) for source in sources])
        + "</section>"
    )


def _sizes(source: SourceReport, packed: int, loss: float) -> list[str]:
    measured = max(1, source.measured)
    return [
        f"{source.samples:,}",
        f"{source.share:.1%}",
        f"{source.looked_at:,}",
        f'<span class="bad">{source.skipped:,}</span>' if source.skipped else "",
        f"{source.tokens / measured:,.1f}",
        f"{source.learned / measured:,.1f}",
        f"{source.tiles / measured:,.2f}",
        f"{source.packed / max(1, packed):.1%}",
        f"{source.loss / loss:.1%}" if loss else "–",
    ]


def _kinds(source: SourceReport, kinds: Sequence[str]) -> list[str]:
    return [f"{source.kinds[kind]:,}" if source.kinds[kind] else "" for kind in kinds]


def _table(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    head = "".join(f"<th>{column}</th>" for column in columns)
    cells = ["".join(f"<td>{cell}</td>" for cell in row) for _, row in rows]
    body = "".join(f"<tr><th>{escape(name)}</th>{row}</tr>" for (name, _), row in zip(rows, cells, strict=True))
    return f'<div class="wide"><table><thead><tr><th>source</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _samples(report: Report) -> str:
    drawn, without = report.histograms, report.tiles[0]
    charts = [
        _chart("Tokens of a sample", drawn["tokens"]),
        _chart("Learned tokens of a sample", drawn["learned"]),
        _chart("Tiles of a sample, if any", even(report.tiles - Counter({0: without}))),
        _chart("Turns of a sample", drawn["turns"]),
    ]
    measured = sum(source.measured for source in report.sources)
    told = f"{measured:,} samples measured; {without:,} have no tiles, {report.system:,} a system turn of their own."
    if report.split:
        told += f" {report.split:,} are longer than a row and were split."
    return f'<section><h2>Samples</h2><p class="quiet">{told}</p><div class="charts">{"".join(charts)}</div></section>'


def _chart(title: str, histogram: Histogram, of: str = "samples", unit: str = "") -> str:
    if not histogram.values:
        return f'<figure class="chart"><h3>{title}</h3><p class="quiet">There are none.</p></figure>'
    middle, high, most = histogram.quantile(0.5), histogram.quantile(0.95), max(histogram.values)
    figures = {"median": f"{middle:,}", "95% up to": f"{high:,}", "most": f"{most:,}"}
    if not unit:  # of whole per cent, cut off, the mean would be too small
        figures["mean"] = f"{histogram.mean:,.1f}"
    said = "".join(f"<span>{name} <b>{value}{unit}</b></span>" for name, value in figures.items())
    return (
        f'<figure class="chart"><h3>{title}</h3>{histogram.svg(f"{title}: number of {of}")}'
        f"<figcaption>{said}</figcaption></figure>"
    )


def _packing(report: Report) -> str:
    rows, room = report.rows, report.budget
    if not rows:
        return '<section><h2>Rows</h2><p class="quiet">None was made.</p></section>'
    made, limits = len(rows), report.limited_by
    mean = {name: sum(getattr(row, name) for row in rows) / made for name in ("tokens", "tiles", "segments")}
    bars = "".join(
        fill_bar(name, mean[name], size, f"{mean[name]:,.1f} of {size:,}")
        for name, size in (("tokens", room.tokens), ("tiles", room.tiles), ("segments", room.segments))
    )
    limited = ", ".join(f"{count:,} by {name} ({count / made:.0%})" for name, count in limits.items() if count)
    budgets = {"tokens": "Token fill of a row, %", "tiles": "Tile fill of a row, %"}
    charts = [
        _chart(title, even(Counter(int(100 * report.fill_of(row)[name]) for row in rows)), "rows", "%")
        for name, title in budgets.items()
        if getattr(room, name)
    ]
    charts.append(_chart("Samples of a row", even(Counter(row.samples for row in rows)), "rows"))
    return (
        f'<section><h2>Rows</h2><p class="quiet">The first {made:,} rows of training, from {report.draws:,} draws, on '
        f'average:</p><div class="fills">{bars}</div><p class="quiet">Limited {limited}: the budget of which least is '
        f"left. {1 - report.fills['tokens']:.1%} of all positions are padding.</p>"
        f'<div class="charts">{"".join(charts)}</div></section>'
    )


def _skips(report: Report) -> str:
    if not report.skips:
        return '<section><h2>Bad samples</h2><p class="quiet">None was found.</p></section>'
    parts = []
    for reason, skips in report.by_reason.items():
        lines = [f"<li>{escape(message)}</li>" for message in skips.first]
        shown, folded = "".join(lines[:AT_ONCE]), "".join(lines[AT_ONCE:])
        rest = skips.count - len(skips.first)
        more = f"<details><summary>{len(lines) - AT_ONCE:,} more</summary><ul>{folded}</ul></details>" if folded else ""
        left = f'<p class="quiet">and {rest:,} that are not listed</p>' if rest else ""
        parts.append(
            f'<div class="reason"><h3><b class="bad">{skips.count:,}</b> {reason} '
            f'<span class="quiet">{REASONS[reason]}</span></h3><ul>{shown}</ul>{more}{left}</div>'
        )
    return f"<section><h2>Bad samples</h2>{''.join(parts)}</section>"


def _pictures(report: Report, processor: Processor) -> str:
    if not report.pictures:
        return ""
    names = [source.name for source in report.sources]
    rows = "".join(row_picture(shown, processor, report.budget, names) for shown in report.pictures)
    legend = "".join(
        f'<span><i class="{name}"></i>{said}</span>'
        for name, said in (
            ("text", "text that is given"),
            ("visual", "visual tokens"),
            ("learned", "learned: the labels, deeper where they weigh more"),
            ("padding", "padding"),
        )
    )
    return (
        '<section><h2>Rows as the model gets them</h2><p class="quiet">The first rows that training would make, with '
        f'their tiles and tokens.</p><p class="legend">{legend}</p>{rows}</section>'
    )
