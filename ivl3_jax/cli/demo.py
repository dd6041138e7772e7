"""`ivl3 demo`: teaches a small InternVL3 to read handwriting, examines it, and lets it answer."""

import ctypes
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.table import Table

from ivl3_jax.cli.arguments import parse

if TYPE_CHECKING:
    from ivl3_jax.demo.evaluation import Score

F = TypeVar("F")

HELP = """Teaches a small InternVL3 to read real handwriting, in minutes on a CPU.
ivl3 demo --output runs/demo --seed 0
"""

CONFIG = Path(__file__).parent.parent / "configs" / "demo.yaml"


def run(argv: list[str]) -> int:
    """Runs the demo, printing what happens, accuracies and one answer; returns 0."""
    keep_freed_memory()
    if "--best-of" in argv:
        return run_best_of([token for token in argv if token != "--best-of"])
    if "--recipe" in argv:
        return run_stages([token for token in argv if token != "--recipe"])
    # Late, so that `ivl3 --help` needs neither jax nor the extra `demo`.
    from ivl3_jax.demo.run import DemoConfig, run_demo

    config = parse(
        DemoConfig,
        [f"--config={CONFIG}", *argv],
        prog="ivl3 demo",
        description="Trains a small InternVL3 on pictures of handwritten digits, asks it about digits it never saw, "
        "and draws a page of its answers.",
        example="ivl3 demo --seed 1 --output runs/demo1",
    )
    from ivl3_jax.cli.progress import TrainProgress

    console = Console()
    with TrainProgress(config.steps) as progress:
        result = run_demo(config, tell=progress.bar.console.print, report=progress)
    console.print(score_table(result.scores))
    console.print(f"All of it took {result.seconds:.0f} s. To look at: {Path(config.output) / 'page.html'}")
    console.print(f"\n{result.picture}: {result.example}")
    console.print("> ", end="")
    for piece in result.chat.stream(result.example, [result.picture], max_new_tokens=16):
        print(piece, end="", flush=True)
    command = f'ivl3 chat {result.checkpoint} {result.picture} "Add the digits."'
    console.print(f"\n\nTry more:\n  {command}", soft_wrap=True, highlight=False)
    return 0


def run_stages(argv: list[str]) -> int:
    """Runs the paper's stages and ablations, printing mean and spread over seeds; returns 0."""
    from ivl3_jax.demo.recipe import RecipeConfig, run_recipe_demo, summary

    config = parse(
        RecipeConfig,
        [f"--config={CONFIG.with_name('demo_recipe.yaml')}", *argv],
        prog="ivl3 demo --recipe",
        description="Native pre-training, supervised fine-tuning and preference optimisation of a small model on "
        "handwritten digits, beside an MLP warm-up and plain positions, over several seeds.",
        example="ivl3 demo --recipe --seeds '[0]' --ablations false",
    )
    found = _with_bar(run_recipe_demo, config)
    table = Table(title="Right answers on held-out handwriting")
    for name in ("after", "mean", "least", "most"):
        table.add_column(name, justify="left" if name == "after" else "right")
    for name, *shares in summary(found.shares):
        table.add_row(name, *(f"{share:.1%}" for share in shares))
    console = Console()
    console.print(table)
    console.print(f"All of it took {found.seconds:.0f} s. To look at: {Path(config.output) / 'recipe.png'}")
    return 0


def run_best_of(argv: list[str]) -> int:
    """Trains a model and a critic, and prints right answers over numbers of candidates; returns 0."""
    from ivl3_jax.demo.best_of import BestOfConfig, run_best_of_demo

    config = parse(
        BestOfConfig,
        [f"--config={CONFIG.with_name('demo_best_of.yaml')}", *argv],
        prog="ivl3 demo --best-of",
        description="A small model that reads handwriting step by step, a critic that learns to judge its steps, and "
        "how many answers are right when the best of several is taken, over several seeds.",
        example="ivl3 demo --best-of --seeds '[0]'",
    )
    found = _with_bar(run_best_of_demo, config)
    ways = list(dict.fromkeys(share.way for share in found.shares[0]))
    several = len(config.seeds) > 1
    spread = ": mean of the seeds, least and most" * several
    table = Table(title=f"Right answers on held-out handwriting{spread}")
    for name in ("candidates", *ways):
        table.add_column(name, justify="right")
    for count in dict.fromkeys(share.count for share in found.shares[0]):
        cells = []
        for way in ways:
            means = [share.mean for run in found.shares for share in run if (share.way, share.count) == (way, count)]
            between = f" ({min(means):.1%} to {max(means):.1%})" * several
            cells.append(f"{sum(means) / len(means):.1%}{between}")
        table.add_row(str(count), *cells)
    console = Console()
    console.print(table)
    output = Path(config.output)
    console.print(f"All of it took {found.seconds:.0f} s. To look at: {output / 'best-of.png'}")
    command = (
        f"ivl3 best-of {output / 'checkpoint'} {output / 'questions.jsonl'} --critic {output / 'critic'} --prompt plain"
    )
    console.print(f"\nTry more:\n  {command}", soft_wrap=True, highlight=False)
    return 0


def _with_bar(demo: Callable[..., F], config: Any) -> F:
    """Runs a demo of several trainings under one bar."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("all stages"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("steps", total=config.all_steps)
        return demo(
            config,
            tell=lambda line: console.print(line, highlight=False),
            report=lambda now: bar.advance(task),
        )


def keep_freed_memory() -> None:
    """Lets glibc reuse the large buffers that every step frees, instead of returning them to the system.

    Getting each page back costs a fifth of a small model's step on a CPU. Does nothing with another C library. Must run
    before there are threads.
    """
    # From malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD and M_ARENA_MAX.
    settings = {-4: 0, -1: 2**31 - 1, -2: 2**26, -8: 1}
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for name, value in settings.items():
            mallopt(name, value)


def score_table(scores: Sequence["Score"]) -> Table:
    """The examination's result as a table for the terminal."""
    table = Table(title="On held-out handwriting, right answers of")
    table.add_column("task")
    for name in ("questions", "this model", "SVM"):
        table.add_column(name, justify="right")
    for score in scores:
        svm = "–" if score.svm is None else f"{score.svm:.1%}"
        table.add_row(score.part, str(score.questions), f"{score.model:.1%}", svm)
    return table
