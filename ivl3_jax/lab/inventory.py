"""The collectives of a step as a short list that two steps can be compared by."""

from collections.abc import Iterable, Mapping
from typing import Any

from ivl3_jax.lab.collectives import Collective
from ivl3_jax.lab.timeline import Timeline

Row = Mapping[str, Any]


def inventory(timeline: Timeline) -> dict[str, dict[str, float]]:
    """`kind|axes|place` -> executions in a step, and bytes of all of them on a device; sorted, in JSON's types.

    Collectives on the same axes and from the same place in the model are one line. Times are left out: they depend on
    `Calibration`.
    """
    found: dict[str, dict[str, float]] = {}
    for each in timeline.collectives:
        row = found.setdefault(key(each), {"count": 0, "bytes": 0})
        row["count"] += each.count
        row["bytes"] += round(each.count * each.bytes)
    return dict(sorted(found.items()))


def key(collective: Collective) -> str:
    """By which collectives of two steps are taken for the same."""
    return "|".join((collective.kind, " x ".join(collective.axes), collective.place))


def difference(before: Mapping[str, Row], after: Mapping[str, Row]) -> list[str]:
    """What differs between two inventories, a line each, the greatest change of bytes first; empty if nothing does."""
    lines = []
    for name in before.keys() | after.keys():
        old, new = before.get(name), after.get(name)
        if old is not None and new is not None and (old["count"], old["bytes"]) == (new["count"], new["bytes"]):
            continue
        sign = "+" if old is None else "-" if new is None else "~"
        kind, axes, place = name.split("|")
        told = " -> ".join(_amount(row) for row in (old, new) if row is not None)
        moved = abs((new["bytes"] if new else 0) - (old["bytes"] if old else 0))
        lines.append((-moved, f"{sign} {kind} over {axes}, {place or 'of no known place'}: {told}"))
    return [line for _, line in sorted(lines)]


def _amount(row: Row) -> str:
    return f"{row['count']:,g} times, {size(row['bytes'])}"


def size(amount: float) -> str:
    """Bytes in words, such as `8.3 MiB`."""
    for unit, most in (("B", 2**10), ("KiB", 2**20), ("MiB", 2**30)):
        if abs(amount) < most:
            return f"{amount / (most / 2**10):.{0 if unit == 'B' else 1}f} {unit}"
    return f"{amount / 2**30:.2f} GiB"


def together(collectives: Iterable[Collective]) -> dict[str, tuple[float, float, float]]:
    """By `key`: executions, bytes of all, seconds of all on their links."""
    found: dict[str, tuple[float, float, float]] = {}
    for each in collectives:
        count, moved, seconds = found.get(key(each), (0.0, 0.0, 0.0))
        found[key(each)] = (
            count + each.count,
            moved + each.count * each.bytes,
            seconds + each.count * each.seconds,
        )
    return found
