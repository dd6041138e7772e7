"""The plot of a report: relative differences by layer."""

from pathlib import Path

from ivl3_jax.conversion.comparison import Report

COMPONENTS = ("vision", "decoder")
FLOOR = 1e-17  # an exact zero has no place on a logarithmic axis: it is drawn here


def plot(report: Report, file: Path) -> bool:
    """Draws the worst relative difference of each layer by kind, one panel for each component, with the tolerances.

    Returns:
        Whether there was anything to draw: a report may have compared no layers, or found them all bit-equal.
    """
    layered = [d for d in report.differences if d.layer is not None and d.name.startswith(COMPONENTS)]
    if all(d.relative == 0 for d in layered):
        return False
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    kinds = list(dict.fromkeys(d.kind for d in layered))
    for panel, component in zip(panels, COMPONENTS, strict=True):
        for number, kind in enumerate(kinds):
            rows = [d for d in layered if d.kind == kind and d.name.startswith(f"{component}/")]
            if not rows:
                continue
            layers = sorted({d.layer for d in rows if d.layer is not None})
            worst = [max(max(d.relative for d in rows if d.layer == layer), FLOOR) for layer in layers]
            colour = f"C{number}"
            panel.semilogy(layers, worst, "o-", color=colour, markersize=4, label=f"{kind}, worst tensor of the layer")
            if rows[0].tolerance > 0:
                panel.axhline(rows[0].tolerance, color=colour, linestyle=":", linewidth=1)
        panel.set_title(component)
        panel.set_xlabel("layer")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("relative difference (dotted: tolerance)")
    panels[1].legend(fontsize=8)
    figure.suptitle(report.title)
    figure.savefig(file, dpi=120)
    plt.close(figure)
    return True
