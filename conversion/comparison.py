"""Comparing two sets of named tensors, and telling people about it: terminal, Markdown, JSON, a plot."""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

PIECE = 1 << 22  # elements that are compared at a time


@dataclass(frozen=True)
class Difference:
    """One compared tensor, or one layer of a stacked one.

    Attributes:
        kind: `alone` (our module given the reference's input), `in place` (the whole model), `gradient`, and others of
            the comparisons beside that of a model with PyTorch.
        name: of the tap or parameter. layer: of the stack, or None.
        max_abs: largest absolute difference. relative: ||ours - theirs|| / ||theirs||.
        tolerance: what `relative` may be.
    """

    kind: str
    name: str
    layer: int | None
    max_abs: float
    relative: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.relative <= self.tolerance  # False for NaN

    @property
    def place(self) -> str:
        return self.name if self.layer is None else f"{self.name}[{self.layer}]"


def difference(
    kind: str,
    name: str,
    layer: int | None,
    ours: np.ndarray,
    theirs: np.ndarray,
    tolerance: float,
    scale: float | None = None,
) -> Difference:
    """Compares two arrays of one shape; `scale` replaces ||theirs|| for what is zero but for rounding.

    Raises:
        ValueError: the shapes differ.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"{name}: our shape is {list(ours.shape)}, the reference's {list(theirs.shape)}")
    largest, apart, whole = 0.0, 0.0, 0.0
    for a, b in _pieces(ours, theirs):
        gap = a - b
        largest = float(np.maximum(largest, np.abs(gap).max(initial=0)))  # unlike Python's max, keeps NaN
        apart, whole = apart + float(np.vdot(gap, gap)), whole + float(np.vdot(b, b))
    scale = math.sqrt(whole) if scale is None else scale
    relative = 0.0 if apart == 0 else math.sqrt(apart) / scale if scale else float("inf")
    return Difference(kind, name, layer, largest, relative, tolerance)


def _pieces(ours: np.ndarray, theirs: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Both in float64, some rows at a time: a whole embedding table three times over in float64 would not fit."""
    ours, theirs = np.atleast_1d(ours), np.atleast_1d(theirs)
    step = max(1, PIECE // max(1, ours[:1].size))
    for at in range(0, len(ours), step):
        yield ours[at : at + step].astype(np.float64), theirs[at : at + step].astype(np.float64)


def mismatch(kind: str, name: str, ours: Sequence, theirs: Sequence) -> Difference:
    """Compares ids, text or settings place by place, of which none may differ.

    `max_abs` of the result counts the places that differ, `relative` is their share.
    """
    places = max(len(ours), len(theirs))
    count = sum(a != b for a, b in zip_longest(ours, theirs))
    return Difference(kind, name, None, count, count / places if places else 0.0, 0.0)


def compare(
    kind: str, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], tolerance: float
) -> list[Difference]:
    """Every tensor of `theirs`, layer by layer where the name has `/layers/`, in its order.

    Raises:
        ValueError: we lack one, or shapes differ.
    """
    found = []
    for name, reference in theirs.items():
        if name not in ours:
            raise ValueError(f"{name}: the reference has it and we do not")
        pairs: Iterable = [(None, ours[name], reference)]
        if "/layers/" in name:
            pairs = zip(range(len(reference)), ours[name], reference, strict=True)
        found += [difference(kind, name, layer, a, b, tolerance) for layer, a, b in pairs]
    return found


@dataclass(frozen=True)
class Report:
    """What was compared and what came out.

    Attributes:
        title, facts: of what, and how.
        differences: in the order of computation.
        equality, inequality: how the verdict begins where nothing is over tolerance, and where something is.
    """

    title: str
    facts: Mapping[str, str]
    differences: list[Difference]
    equality: str = "equal within tolerance"
    inequality: str = "NOT equal"

    @property
    def ok(self) -> bool:
        return all(d.ok for d in self.differences)

    @property
    def verdict(self) -> str:
        over = [d for d in self.differences if not d.ok]
        if not over:
            return f"{self.equality}: {len(self.differences)} comparisons"
        worst = max(over, key=lambda d: float("inf") if math.isnan(d.relative) else d.relative)
        said = f"{self.inequality}: {len(over)} of {len(self.differences)} comparisons over tolerance, "
        return f"{said}the first is {_said(over[0])}{'' if worst is over[0] else f', the worst {_said(worst)}'}"

    def summary(self) -> list[tuple[str, ...]]:
        """The table's rows: for each kind and name its worst layer, in the order of `COLUMNS`."""
        worst: dict[tuple[str, str], Difference] = {}
        for d in self.differences:
            held = worst.get((d.kind, d.name))
            if held is None or (held.ok and not d.relative <= held.relative):
                worst[d.kind, d.name] = d
        return [
            (
                d.kind,
                d.name,
                "" if d.layer is None else str(d.layer),
                _figure(d.max_abs),
                _figure(d.relative),
                _figure(d.tolerance, 0),
                "ok" if d.ok else "OVER",
            )
            for d in worst.values()
        ]

    def markdown(self) -> str:
        """A page of its own: the title over `body`."""
        return f"# {self.title}\n\n{self.body()}"

    def body(self) -> str:
        """The facts, the verdict, and the summary as a table, in Markdown without a heading."""
        lines = [f"- {name}: {value}" for name, value in self.facts.items()]
        lines += ["", f"**{self.verdict}**", "", f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
        return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in self.summary()), ""])

    def json(self) -> str:
        """Everything, one object per difference."""
        fields = [dataclasses.asdict(d) | {"ok": d.ok} for d in self.differences]
        return json.dumps(
            {"title": self.title, "facts": dict(self.facts), "ok": self.ok, "differences": fields}, indent=1
        )

    def write(self, directory: str | Path) -> list[Path]:
        """Writes parity.md, parity.json and, where layers differ at all, parity.png; returns their paths."""
        from ivl3_jax.conversion.comparison_plot import plot

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        files = [directory / f"parity.{suffix}" for suffix in ("md", "json", "png")]
        files[0].write_text(self.markdown(), encoding="utf-8")
        files[1].write_text(self.json(), encoding="utf-8")
        return files if plot(self, files[2]) else files[:2]


def _said(d: Difference) -> str:
    return f"{d.place} ({d.kind}): relative {_figure(d.relative)}, allowed {_figure(d.tolerance, 0)}"


def _figure(value: float, digits: int = 2) -> str:
    return "0" if value == 0 else f"{value:.{digits}e}"


# The layer is the worst one of a stack.
COLUMNS = ("kind", "tensor", "layer", "max abs", "relative", "allowed", "")
