"""`ivl3 parity`: proves a checkpoint equal to PyTorch, or says where it is not."""

import os
from typing import Literal

from ivl3_jax.cli import UsageError
from ivl3_jax.cli.arguments import parse

HELP = """Compares a checkpoint here with PyTorch: every module, layer, logits, gradients.
ivl3 parity InternVL3-1B-hf --gradients --output parity-1b
"""


def settings(
    directory: str,
    *,
    gradients: bool = False,
    dtype: Literal["float32", "float64"] = "float32",
    tokens: int = 512,
    tiles: int = 3,
    seed: int = 0,
    output: str | None = None,
) -> None:
    """The options of `ivl3 parity`.

    Args:
        directory: checkpoint in transformers' `-hf` layout.
        gradients: compare the loss and every gradient too.
        dtype: of both sides; in float64 the reference is kept from rounding to float32 inside.
        tokens: of text in the random input.
        tiles: of two images in it; 0 for text only.
        seed: of the input.
        output: directory for parity.md, parity.json and parity.png.
    """


def run(argv: list[str]) -> int:
    """Prints the table; returns 0 if everything is within tolerance, else 1."""
    chosen = parse(
        settings,
        argv,
        prog="ivl3 parity",
        description="Runs transformers and this model on the same input and compares every tensor on the way.",
        example="ivl3 parity InternVL3-1B-hf --gradients --output parity-1b",
    )
    for name, least in (("tokens", 8), ("tiles", 0)):
        if getattr(chosen, name) < least:
            raise UsageError(f"--{name} is {getattr(chosen, name)}; it must be at least {least}")
    if chosen.dtype == "float64":
        os.environ["JAX_ENABLE_X64"] = "1"
    from rich.console import Console
    from rich.table import Table

    from ivl3_jax.conversion.comparison import COLUMNS
    from ivl3_jax.conversion.parity import check

    console = Console()
    with console.status("starting") as status:
        report = check(
            chosen.directory,
            dtype=chosen.dtype,
            with_gradients=chosen.gradients,
            tokens=chosen.tokens,
            tiles=chosen.tiles,
            seed=chosen.seed,
            say=status.update,
        )
    console.print(report.title, style="bold")
    for name, value in report.facts.items():
        console.print(f"{name}: {value}", highlight=False)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in COLUMNS[2:6] else "left", overflow="fold")
    for row in report.summary():
        table.add_row(*row, style=None if row[-1] == "ok" else "bold red")
    console.print(table)
    console.print(report.verdict, style="green" if report.ok else "bold red")
    if chosen.output:
        console.print("written: " + ", ".join(str(file) for file in report.write(chosen.output)))
    return 0 if report.ok else 1
