"""How many answers are right when the best of N is taken, and a picture of it."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ivl3_jax.inference.scaling.best_of import Candidate, best, majority
from ivl3_jax.inference.scaling.final_answer import same_answer

COUNTS = (1, 2, 4, 8, 16)
COLOURS = {"critic": "#0969da", "majority": "#bf8700", "any is right": "#6e7781", "one alone": "#8250df"}


@dataclass(frozen=True)
class Share:
    """Of the questions, those answered right by a way of taking one of the first `count` candidates.

    Attributes:
        way: a key of `COLOURS`; "any is right" is what no choice can pass, "one alone" the mean over candidates.
        right: float [questions], 1 for a right answer, or the share of right candidates.
    """

    way: str
    count: int
    right: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.right.mean())

    @property
    def error(self) -> float:
        """The standard error of the mean over questions."""
        return float(self.right.std() / math.sqrt(len(self.right)))


def shares(answered: Sequence[tuple[Sequence[Candidate], str]], counts: Sequence[int] = COUNTS) -> list[Share]:
    """For each number of candidates that all questions have, and for all of them.

    Args:
        answered: the candidates of each question, and its right answer.
    """
    right = np.array([[same_answer(each.final, answer) for each in candidates] for candidates, answer in answered])
    judged = all(each.judged for candidates, _ in answered for each in candidates)
    found, rows = [], np.arange(len(right))
    for count in sorted({*(count for count in counts if count <= right.shape[1]), right.shape[1]}):
        first = [candidates[:count] for candidates, _ in answered]
        ways = {"majority": right[rows, [majority(each) for each in first]]}
        if judged:
            ways = {"critic": right[rows, [best(each) for each in first]], **ways}
        ways |= {"any is right": right[:, :count].any(1), "one alone": right[:, :count].mean(1)}
        found += [Share(way, count, np.asarray(values, np.float64)) for way, values in ways.items()]
    return found


def write_table(runs: Sequence[Sequence[Share]], file: Path) -> None:
    """As CSV: the number of the run, way, count, mean and standard error."""
    with file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(("run", "way", "candidates", "right", "standard error"))
        for number, run in enumerate(runs):
            writer.writerows((number, each.way, each.count, f"{each.mean:.4f}", f"{each.error:.4f}") for each in run)


def draw(runs: Sequence[Sequence[Share]], file: Path, title: str) -> None:
    """Right answers over the number of candidates, as a PNG.

    Args:
        runs: of one run, whose bands are a standard error to either side; or of several, then from least to most.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    for way, colour in COLOURS.items():
        counts = [share.count for share in runs[0] if share.way == way]
        if not counts:
            continue
        means = np.array([[share.mean for share in run if share.way == way] for run in runs])
        middle, low, high = means.mean(0), means.min(0), means.max(0)
        if len(runs) == 1:
            error = np.array([share.error for share in runs[0] if share.way == way])
            low, high = middle - error, middle + error
        dashed = "--" if way in ("any is right", "one alone") else "-"
        axes.plot(counts, middle, dashed, color=colour, marker="o", markersize=4, linewidth=1.6)
        axes.fill_between(counts, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.annotate(
            way, (counts[-1], middle[-1]), xytext=(8, 0), textcoords="offset points", va="center", color=colour
        )
    every = sorted({share.count for share in runs[0]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(every, [str(count) for count in every])
    axes.set_xlim(every[0] * 0.9, every[-1] * 1.7)
    axes.set(xlabel="candidates", ylabel="right answers", title=title)
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
    axes.grid(alpha=0.25)
    figure.savefig(file, dpi=110)
    plt.close(figure)
