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

    def __init__(self, steps: int, *, shown: bool = True) -> None:
        """`shown`: False prints nothing, for all but one of several processes."""
        self.shown = shown
        self.every = max(1, steps // 20)
        self.first = 0
        self.bar = Bar(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not (shown and sys.stderr.isatty()),
        )
        self.task = self.bar.add_task("train", total=steps, figures="compiling")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()

    def __call__(self, now: Progress) -> None:
        self.first = self.first or now.step
        figures = f"loss {now.loss:.3f}  lr {now.learning_rate:.1e}"
        if now.step > self.first:  # whose time is mostly compilation
            figures += f"  {now.positions_per_second:,.0f} tokens/s"
            figures += "" if now.mfu is None else f"  MFU {now.mfu:.0%}"
        if now.waited > 0.05:
            figures += f"  {now.waited:.0%} waiting for data"
        self.bar.update(self.task, completed=now.step, figures=figures)
        if self.shown and self.bar.disable and (now.step % self.every == 0 or now.step == now.steps):
            print(f"step {now.step}/{now.steps}  {figures}  {now.seconds:.0f} s", file=sys.stderr, flush=True)
