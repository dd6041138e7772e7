"""The recipe's curves over several seeds, and what the ways come to."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

BLUE, GREY = "#0969da", "#6e7781"


def draw_recipe(
    losses: Mapping[str, Sequence[Sequence[float]]],
    along: Mapping[str, Sequence[Sequence[tuple[int, float]]]],
    shares: Mapping[str, Sequence[float]],
    file: Path,
) -> None:
    """Losses of the stages, right answers while fine-tuning, and right answers at the end, as one PNG.

    A line is the mean over seeds and its band reaches from the least to the most; a point is a seed.

    Args:
        losses, along, shares: see `recipe.Found`. file: the PNG to write.
    """
    figure, (left, middle, bars) = plt.subplots(1, 3, figsize=(16, 6), width_ratios=(1, 1, 1.1), layout="constrained")
    for name, runs in losses.items():
        window = max(1, len(runs[0]) // 40)
        kernel = np.ones(window) / window
        smooth = np.array([np.convolve(run, kernel, mode="valid") for run in runs])
        _band(left, np.arange(window, len(runs[0]) + 1), smooth, name)
    left.set(yscale="log", xlabel="step of the stage", ylabel="loss (a running mean)")
    left.set_ylim(top=5 * left.get_ylim()[1])  # room for the names
    for name, points in along.items():
        _band(
            middle, np.array([step for step, _ in points[0]]), np.array([[y for _, y in run] for run in points]), name
        )
    middle.set(ylim=(0, 1), xlabel="step of fine-tuning", ylabel="right answers (a few questions)")
    for axes in (left, middle):
        axes.grid(alpha=0.25, which="both")
        axes.legend(frameon=False, fontsize=9, loc="upper right")
    _bars(bars, shares)
    figure.suptitle("The recipe on handwriting")
    figure.savefig(file, dpi=100)
    plt.close(figure)


def _band(axes: Axes, x: np.ndarray, values: np.ndarray, name: str) -> None:
    """The mean of values [seeds, points], between the least and the most."""
    (line,) = axes.plot(x, values.mean(0), label=name, linewidth=1.5)
    axes.fill_between(x, values.min(0), values.max(0), color=line.get_color(), alpha=0.15, linewidth=0)


def _bars(axes: Axes, shares: Mapping[str, Sequence[float]]) -> None:
    for place, (name, values) in enumerate(shares.items()):
        colour = BLUE if "sampled" not in name and "finer" not in name else GREY
        axes.barh(place, np.mean(values), color=colour, alpha=0.35)
        axes.plot(values, [place] * len(values), "o", color=colour, markersize=4)
        axes.text(1.01, place, f"{np.mean(values):.1%}", va="center", fontsize=9)
    axes.set_yticks(range(len(shares)), shares)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="right answers on held-out handwriting")
    axes.grid(alpha=0.25, axis="x")
