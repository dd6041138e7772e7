"""A prediction in words and tables, for a terminal."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from ivl3_jax.lab.calibration import HELD_OUT
from ivl3_jax.lab.collectives import Collective
from ivl3_jax.lab.complaints import in_plain_words
from ivl3_jax.lab.prediction import Prediction

GIB = 2**30
OPERATIONS = (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6))
WIDTH = 40  # of a bar


def tell(found: Prediction) -> str:
    """Everything there is to say, in lines of at most 120 characters."""
    case, compiled = found.case, found.compiled
    batch = case.batch
    rows = f"{_counted(batch.rows, 'row')} of {_counted(batch.tokens, 'token')} and {_counted(batch.tiles, 'tile')}"
    changed = found.calibration.changed
    documents = f"{case.documents:,} equal documents" if case.documents > 1 else "one document"
    lines = [
        f"{case.name}, {_counted(case.topology.chips, 'chip')}",
        f"a step: {rows}, together {_counted(case.tokens, 'token')}; {documents} a row",
        f"compiled in {compiled.trace_seconds + compiled.compile_seconds:.0f} s; no TPU took part in what follows",
        f"constants of your own: {changed}" if changed else f"held-out error of the time: {HELD_OUT}",
        "",
        *_memory(found),
    ]
    if found.timeline is not None:
        lines += ["", *_time(found), "", *_collectives(found.timeline.collectives)]
        lines += [f"not seen: {warning}" for warning in found.timeline.warnings]
    lines += [f"the compiler says: {told}" for told in dict.fromkeys(map(in_plain_words, compiled.complaints))]
    return "\n".join(lines)


def _memory(found: Prediction) -> list[str]:
    memory, hbm, shortage = found.compiled.memory, found.case.topology.chip.hbm, found.compiled.shortage
    if memory is None:
        assert shortage is not None
        wanted = "" if shortage.wanted is None else f": {shortage.wanted / GIB:.1f} GiB wanted"
        return [f"DOES NOT FIT, {shortage.kind}{wanted}; {hbm} GiB of HBM", f"  {shortage.message[:400]}"]
    verdict = "fits" if shortage is None else "DOES NOT FIT"
    lines = [f"memory of a chip: {memory.total / GIB:.2f} of {hbm} GiB, {verdict}"]
    return lines + table(
        [(name, f"{size / GIB:8.2f} GiB", bar(size / GIB / hbm)) for name, size in found.memory.items()]
    )


def _time(found: Prediction) -> list[str]:
    timeline = found.timeline
    assert timeline is not None and found.utilisation is not None
    parts = sorted(timeline.parts.items(), key=lambda part: -part[1])
    lines = [f"predicted step: {timeline.seconds:.3f} s"]
    lines += table([(name, f"{s:8.3f} s {s / timeline.seconds:5.0%}", bar(s / timeline.seconds)) for name, s in parts])
    beside = ", ".join(f"{lane} {seconds:.2f} s" for lane, seconds in timeline.busy.items() if seconds > 0.005)
    lines += [f"  beside compute were busy: {beside}"] if beside else []
    return [
        *lines,
        f"predicted MFU: {found.utilisation:.1%} of {found.case.topology.chip.teraflops:g} TFLOP/s "
        f"({_operations(found.operations)} a chip, causal attention counted once)",
        f"predicted rate: {found.rate:,.0f} tokens a second and chip",
    ]


def _collectives(collectives: Sequence[Collective]) -> list[str]:
    """One line for each kind and axes."""

    def of(each: Collective) -> tuple:
        return each.kind, each.axes, each.asynchronous

    rows = []
    for (kind, axes, asynchronous), group in groupby(sorted(collectives, key=of), key=of):
        same = list(group)
        size = sum(each.count * each.bytes for each in same)
        count, seconds = sum(each.count for each in same), sum(each.count * each.seconds for each in same)
        manner = "beside compute" if asynchronous else "waited for"
        cells = kind, " x ".join(axes), f"{count:8,.0f}", f"{size / GIB:9.3f} GiB", f"{seconds:8.3f} s"
        rows.append((size, (*cells, manner)))
    if not rows:
        return ["no collectives"]
    head = [("collective", "over", "a step", "bytes a chip", "on its links", "")]
    return table(head + [cells for _, cells in sorted(rows, key=lambda row: -row[0])])


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _operations(number: float) -> str:
    """Floating-point operations in the largest unit of which there is one."""
    unit, size = next(((unit, size) for unit, size in OPERATIONS if number >= size), ("FLOP", 1.0))
    return f"{number / size:,.{0 if number >= 10 * size else 1}f} {unit}"


def table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines with columns of even width."""
    rows = [tuple(map(str, row)) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def bar(share: float) -> str:
    """A bar of that share of `WIDTH`."""
    return "█" * max(0, min(WIDTH, round(share * WIDTH)))
