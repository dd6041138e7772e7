"""Two answers side by side: memory, time, and the collectives that changed with what may have changed them."""

import textwrap
from collections import defaultdict
from collections.abc import Sequence

from ivl3_jax.lab.answer import Answer
from ivl3_jax.lab.collectives import Collective
from ivl3_jax.lab.inventory import size, together
from ivl3_jax.lab.prediction import MEMORY
from ivl3_jax.lab.reasons import Change, changes, shortened
from ivl3_jax.lab.timeline import AND_OTHERS

GIB = 2**30
COLUMNS = 100
SMALL = 0.002  # places that differ by less than this share of all bytes are summed up in one line

NOTHING = (0.0, 0.0, 0.0)
Use = dict[tuple[str, str], tuple[float, float, float]]  # (kind, axes): executions, bytes, seconds


def compare(before: Answer, after: Answer, names: tuple[str, str]) -> str:
    """Lines of at most `COLUMNS` characters. `names`: what the two were called by, in the command line."""
    found = changes(before.case, after.case)
    found += [
        Change(f"version of {name}", before.versions.get(name, "none"), after.versions.get(name, "none"))
        for name in dict.fromkeys([*before.versions, *after.versions])
        if before.versions.get(name) != after.versions.get(name)
    ]
    for name in dict.fromkeys([*before.constants, *after.constants]):
        old, new = (str(answer.constants.get(name, "unknown")) for answer in (before, after))
        if old != new:
            found.append(Change(f"calibration.{name}", old, new, "times follow from it, and nothing else"))
    lines = [*_title("A", names[0], before), *_title("B", names[1], after)]
    lines += ["no TPU took part: memory is the compiler's, time is predicted from its schedule", ""]
    lines += _figures(before, after)
    lines += ["", *_changes(found), "", *_collectives(before.collectives, after.collectives, found)]
    return "\n".join(lines)


def _title(letter: str, name: str, answer: Answer) -> list[str]:
    figures = answer.figures
    told = (
        f"{letter}  {name}: {figures['model']} under {figures['plan']} ({figures['mesh']}) on {figures['topology']}; "
        f"{figures['rows']:,} rows of {figures['tokens']:,} tokens and {figures['tiles']} tiles"
    )
    lines = textwrap.wrap(told, COLUMNS, subsequent_indent="   ")
    if figures.get("shortage"):
        lines += textwrap.wrap(f"DOES NOT FIT: {figures['shortage']}", COLUMNS, initial_indent="   ", max_lines=3)
    return lines


def _figures(before: Answer, after: Answer) -> list[str]:
    rows: list[tuple[str, float | None, float | None, str]] = []
    for kind in (*MEMORY, "total"):
        rows.append((f"memory, {kind}, GiB", _gibibytes(before, kind), _gibibytes(after, kind), ".2f"))
    parts = dict.fromkeys([*before.parts, *after.parts])
    for name in sorted(parts, key=lambda part: -max(before.parts.get(part, 0), after.parts.get(part, 0))):
        rows.append((f"time, {name}, s", _part(before, name), _part(after, name), ".4f"))
    for name, field, form in (
        ("time, step, s", "step_seconds", ".4f"),
        ("predicted MFU", "mfu", ".1%"),
        ("tokens a second and chip", "tokens_per_second_per_chip", ",.0f"),
    ):
        rows.append((name, before.figures.get(field), after.figures.get(field), form))
    lines = [f"{'':34}{'A':>14}{'B':>14}{'B - A':>14}{'B / A':>10}"]
    for name, old, new, form in rows:
        cells = [format(value, form) if value is not None else "unknown" for value in (old, new)]
        moved = ratio = ""
        if old is not None and new is not None:
            moved = format(new - old, f"+{form}")
            ratio = f"{new / old:.2f}" if old else ""
        lines.append(f"{name:34}{cells[0]:>14}{cells[1]:>14}{moved:>14}{ratio:>10}".rstrip())
    return lines


def _gibibytes(answer: Answer, kind: str) -> float | None:
    if kind == "temporaries" and "activations" not in answer.memory:
        return None  # an earlier answer, whose temporaries are both
    return answer.memory[kind] / GIB if kind in answer.memory else None


def _part(answer: Answer, name: str) -> float | None:
    return None if answer.figures.get("step_seconds") is None else answer.parts.get(name, 0.0)


def _changes(found: Sequence[Change]) -> list[str]:
    if not found:
        same = "nothing that was asked differs, nor the compiler, nor a constant of the prediction;"
        return [same, "what differs below is this project's doing"]
    lines = ["what differs"]
    for change in found:
        lines += _wrapped(f"{change.name}: {change.before} -> {change.after}", 2)
        lines += _wrapped(change.effect, 6) if change.effect else []
    return lines


def _collectives(before: Sequence[Collective], after: Sequence[Collective], found: Sequence[Change]) -> list[str]:
    old, new = _by_place(before), _by_place(after)
    moved = {
        place: _moved(old.get(place, {}), new.get(place, {}))
        for place in old.keys() | new.keys()
        if _counted(old.get(place, {})) != _counted(new.get(place, {}))
    }
    if not moved:
        return ["the same collectives: kinds, axes, executions and bytes" if old else "no collectives"]
    least = SMALL * sum(bytes_ for use in (*old.values(), *new.values()) for _, bytes_, _ in use.values())
    shown = sorted((place for place in moved if moved[place] >= least), key=lambda place: (-moved[place], place))
    lines = ["collectives that changed, by where they come from; executions of a step, bytes of each on a chip"]
    for place in shown:
        uses = old.get(place, {}), new.get(place, {})
        combined = AND_OTHERS if any(each.place == place + AND_OTHERS for each in (*before, *after)) else ""
        lines += ["", *_wrapped((place or "of no known place") + combined, 2)]
        for letter, use in zip("AB", uses, strict=True):
            lines += _use(letter, use)
        axes = {axis for use in uses for _, joined in use for axis in joined.split(" x ")}
        if causes := [change for change in found if change.causes(place, axes)]:
            lines += _wrapped(f"by {shortened(causes)}", 6)
    if len(moved) > len(shown):
        rest = sum(moved[place] for place in moved if place not in shown)
        lines += ["", f"  and {len(moved) - len(shown)} places of little weight, {size(rest)} of difference together"]
    same = len(old.keys() | new.keys()) - len(moved)
    return [*lines, *([f"  the same in both: {same} places"] if same else [])]


def _by_place(collectives: Sequence[Collective]) -> dict[str, Use]:
    found: dict[str, Use] = defaultdict(dict)
    for name, (count, bytes_, seconds) in together(collectives).items():
        kind, axes, place = name.split("|", 2)
        place = place.removesuffix(AND_OTHERS)
        had = found[place].get((kind, axes), NOTHING)
        found[place][kind, axes] = had[0] + count, had[1] + bytes_, had[2] + seconds
    return dict(found)


def _counted(use: Use) -> dict[tuple[str, str], tuple[float, float]]:
    return {name: (count, bytes_) for name, (count, bytes_, _) in use.items()}


def _moved(old: Use, new: Use) -> float:
    """Bytes that one of the two moves and the other does not, or not so."""
    return sum(abs(old.get(name, NOTHING)[1] - new.get(name, NOTHING)[1]) for name in old.keys() | new.keys())


def _use(letter: str, use: Use) -> list[str]:
    if not use:
        return [f"      {letter}  none"]
    lines = []
    for (kind, axes), (count, bytes_, seconds) in sorted(use.items(), key=lambda item: -item[1][1]):
        each = f"{count:6,g} x {size(bytes_ / count)}"
        lines.append(f"      {letter}  {kind:18} over {axes:24} {each:20} {1e3 * seconds:9.2f} ms")
        letter = " "
    return lines


def _wrapped(text: str, indent: int) -> list[str]:
    pad = " " * indent
    return textwrap.wrap(text, COLUMNS, initial_indent=pad, subsequent_indent=f"{pad}  ")
