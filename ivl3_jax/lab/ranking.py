"""The plans of a search in their order, and how their figures are written."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ivl3_jax.data.markup import escape
from ivl3_jax.lab.labels import labels
from ivl3_jax.lab.prediction import Prediction

GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """A compiled plan: its rank, from 1, its label, and what was found."""

    number: int
    name: str
    found: Prediction

    @property
    def fits(self) -> bool:
        return self.found.fits and self.found.rate is not None

    @property
    def gibibytes(self) -> float | None:
        """Of a chip; what the compiler wanted, where it gave up."""
        compiled = self.found.compiled
        if compiled.memory is not None:
            return compiled.memory.total / GIB
        wanted = compiled.shortage.wanted if compiled.shortage is not None else None
        return None if wanted is None else wanted / GIB

    @property
    def rate(self) -> float:
        return self.found.rate or 0.0

    @property
    def label(self) -> str:
        """HTML."""
        return f"<b>{self.number}</b>{escape(self.name)}"


def ranked(predictions: Sequence[Prediction]) -> list[Plan]:
    """The plans that fit, most tokens a second first, and behind them those that do not."""
    named = zip(predictions, labels([each.case for each in predictions]), strict=True)
    order = sorted(named, key=lambda pair: (not _counts(pair[0]), -(pair[0].rate or 0.0), pair[1]))
    return [Plan(number, name, found) for number, (found, name) in enumerate(order, 1)]


def _counts(found: Prediction) -> bool:
    return found.fits and found.rate is not None


def step_time(found: Prediction) -> str:
    """The predicted seconds of a step, as text."""
    seconds = found.seconds or 0.0
    return f"{seconds * 1e3:,.1f} ms" if seconds < 1 else f"{seconds:,.3f} s"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], text: Sequence[int]) -> str:
    """A table whose columns numbered in `text` hold words, which are set to the left."""
    style = [' class="name"' if i in text else "" for i in range(len(columns))]
    head = "".join(f"<th{how}>{name}</th>" for how, name in zip(style, columns, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{how}>{escape(cell)}</td>' for how, cell in zip(style, row, strict=True))}</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
