"""Comparing two sets of named tensors, and telling people about it: terminal, Markdown, JSON, a plot."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Difference:
    """One compared tensor, or one layer of a stacked one.

    Attributes:
        kind: `alone` (our module given the reference's input), `in place` (the whole model), `gradient`.
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
    wide = np.promote_types(theirs.dtype, np.float64)
    apart = ours.astype(wide) - theirs.astype(wide)
    scale = float(np.linalg.norm(theirs.astype(wide))) if scale is None else scale
    norm = float(np.linalg.norm(apart))
    relative = 0.0 if norm == 0 else norm / scale if scale else float("inf")
    return Difference(kind, name, layer, float(np.abs(apart).max(initial=0)), relative, tolerance)


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
    """What was compared and what came out; `title` and `facts` say on what."""

    title: str
    facts: Mapping[str, str]
    differences: list[Difference]

    @property
    def ok(self) -> bool:
        return all(d.ok for d in self.differences)

    @property
    def first_over(self) -> Difference | None:
        """The first difference over its tolerance, in the order of computation."""
        return next((d for d in self.differences if not d.ok), None)

    @property
    def verdict(self) -> str:
        over = self.first_over
        if over is None:
            return f"equal within tolerance: {len(self.differences)} tensors compared"
        count = sum(not d.ok for d in self.differences)
        return (
            f"NOT equal: {count} of {len(self.differences)} tensors over tolerance, the first is {over.place} "
            f"({over.kind}): relative {over.relative:.2e}, allowed {over.tolerance:.0e}"
        )

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
                f"{d.max_abs:.2e}",
                f"{d.relative:.2e}",
                f"{d.tolerance:.0e}",
                "ok" if d.ok else "OVER",
            )
            for d in worst.values()
        ]

    def markdown(self) -> str:
        """The facts, the verdict, and the summary as a table."""
        lines = [f"# {self.title}", "", *(f"- {name}: {value}" for name, value in self.facts.items()), ""]
        lines += [f"**{self.verdict}**", "", f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
        return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in self.summary()), ""])

    def json(self) -> str:
        """Everything, one object per difference."""
        fields = [dataclasses.asdict(d) | {"ok": d.ok} for d in self.differences]
        return json.dumps(
            {"title": self.title, "facts": dict(self.facts), "ok": self.ok, "differences": fields}, indent=1
        )

    def write(self, directory: str | Path) -> list[Path]:
        """Writes parity.md, parity.json and parity.png; returns their paths."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        files = [directory / f"parity.{suffix}" for suffix in ("md", "json", "png")]
        files[0].write_text(self.markdown(), encoding="utf-8")
        files[1].write_text(self.json(), encoding="utf-8")
        self.plot(files[2])
        return files

    def plot(self, file: Path) -> None:
        """Relative error by layer of each kind, one panel for each component, with the tolerances."""
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt

        figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
        colours = {"alone": "tab:blue", "in place": "tab:orange", "gradient": "tab:green"}
        for panel, component in zip(panels, ("vision", "decoder"), strict=True):
            for kind, colour in colours.items():
                rows = [
                    d
                    for d in self.differences
                    if d.kind == kind and d.layer is not None and d.name.startswith(f"{component}/")
                ]
                if not rows:
                    continue
                layers = sorted({d.layer for d in rows if d.layer is not None})
                # An exact zero has no place on a logarithmic axis: draw it at the bottom.
                worst = [max(max(d.relative for d in rows if d.layer == layer), 1e-17) for layer in layers]
                panel.semilogy(
                    layers, worst, "o-", color=colour, markersize=4, label=f"{kind}, worst tensor of the layer"
                )
                panel.axhline(rows[0].tolerance, color=colour, linestyle=":", linewidth=1)
            panel.set_title(component)
            panel.set_xlabel("layer")
            panel.grid(alpha=0.3)
        panels[0].set_ylabel("relative difference (dotted: tolerance)")
        panels[1].legend(fontsize=8)
        figure.suptitle(self.title)
        figure.savefig(file, dpi=120)
        plt.close(figure)


# The layer is the worst one of a stack.
COLUMNS = ("kind", "tensor", "layer", "max abs", "relative", "allowed", "")
