"""One progress line for a training run."""

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from ivl3_jax.training.loop import Progress


class TrainProgress:
    """A bar in a terminal; elsewhere a plain line about every twentieth of the run."""

    def __init__(self, steps: int) -> None:
        self.every = max(1, steps // 20)
        self.last: int | None = None
        self.began, self.positions = 0.0, 0
        self.bar = Bar(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self.task = self.bar.add_task("train", total=steps, figures="compiling")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()

    def __call__(self, now: Progress) -> None:
        if self.last is None:
            self.began = now.seconds  # the first step's time is mostly compilation
        else:
            self.positions += now.positions * (now.step - self.last)
        self.last = now.step
        rate = self.positions / max(now.seconds - self.began, 1e-9)
        figures = f"loss {now.loss:.3f}  lr {now.learning_rate:.1e}  {rate:,.0f} tokens/s"
        self.bar.update(self.task, completed=now.step, figures=figures)
        if self.bar.disable and (now.step % self.every == 0 or now.step == now.steps):
            print(f"step {now.step}/{now.steps}  {figures}  {now.seconds:.0f} s", file=sys.stderr, flush=True)
