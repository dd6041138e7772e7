"""`ivl3 parity`: proves a checkpoint equal to PyTorch, a processor to transformers', or one checkpoint to another."""

import argparse
import inspect
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from ivl3_jax.cli import UsageError

if TYPE_CHECKING:
    from ivl3_jax.conversion.comparison import Report

HELP = """Compares a checkpoint with PyTorch, its processor with transformers', or two checkpoints.
ivl3 parity InternVL3-1B --gradients --output parity-1b
"""

EXAMPLES = """examples:
  ivl3 parity InternVL3-1B --gradients --output parity-1b    every module, layer, logits and gradient beside PyTorch
  ivl3 parity InternVL3-1B --processor                       tiles, pixels, text and ids beside transformers' processor
  ivl3 parity InternVL3-1B InternVL3-1B-hf                   configs, every weight and the tokenizers of two checkpoints
"""


def run(argv: list[str]) -> int:
    """Prints the table; returns 0 if everything is within tolerance, else 1."""
    chosen = vars(_parse(argv))
    directory, other, output = chosen.pop("directory"), chosen.pop("other"), chosen.pop("output")
    processor, card = chosen.pop("processor"), chosen.pop("card")
    if processor and other:
        raise UsageError("--processor compares one checkpoint with transformers; leave the second directory out")
    for name, least in (("tokens", 8), ("tiles", 0), ("tolerance", 0)):
        if not chosen.get(name, least) >= least:
            raise UsageError(f"--{name} is {chosen[name]}; it must be at least {least}")
    if chosen.get("dtype") == "float64":
        os.environ["JAX_ENABLE_X64"] = "1"
    from rich.console import Console

    console = Console()
    with console.status("starting") as status:
        if other:
            from ivl3_jax.conversion.two_checkpoints import compare_checkpoints

            _check_options(compare_checkpoints, chosen, "comparing two checkpoints")
            report = compare_checkpoints(directory, other, say=status.update, **chosen)
        elif processor:
            from ivl3_jax.conversion import parity_processor

            _check_options(parity_processor.check, chosen, "comparing processors")
            report = parity_processor.check(directory)
        else:
            from ivl3_jax.conversion import parity

            _check_options(parity.check, chosen, "comparing a checkpoint with PyTorch")
            report = parity.check(directory, say=status.update, **chosen)
    show(report)
    if output:
        console.print("written: " + ", ".join(str(file) for file in report.write(output)))
    if card:
        kind = "with another" if other else "processor" if processor else "with PyTorch"
        from ivl3_jax.conversion.card import add_report

        console.print(f"written: {add_report(other or directory, report, kind)}")
    return 0 if report.ok else 1


def show(report: "Report") -> None:
    """Prints a report: what it is of, the table, the verdict."""
    from rich.console import Console
    from rich.table import Table

    from ivl3_jax.conversion.comparison import COLUMNS

    console = Console()
    console.print(report.title, style="bold", markup=False)
    for name, value in report.facts.items():
        console.print(f"{name}: {value}", highlight=False, markup=False)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in COLUMNS[2:6] else "left", overflow="fold")
    for row in report.summary():
        table.add_row(*row, style=None if row[-1] == "ok" else "bold red")
    if report.differences:
        console.print(table)
    console.print(report.verdict, style="green" if report.ok else "bold red", markup=False)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see ivl3 parity --help")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="ivl3 parity",
        description="Compares a checkpoint with PyTorch; with --processor its processor with transformers'; with a\n"
        "second directory, two checkpoints. The exit code is 1 where they differ.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("directory", help="checkpoint in transformers' `-hf` layout or the authors' original one")
    add("other", nargs="?", help="a second one, in any layout and dtype; neither needs PyTorch")
    add("--output", metavar="DIR", help="write parity.md, parity.json and parity.png there")
    add("--card", action="store_true", help="put the report into the model card (README.md) of the last directory")
    # What is not given stays out, so that each comparison keeps its own defaults and can refuse what is not for it.
    group = parser.add_argument_group("the input", argument_default=argparse.SUPPRESS)
    group.add_argument("--tokens", type=int, help="of text in the random input (512)")
    group.add_argument("--tiles", type=int, help="of two images in it; 0 for text only (3)")
    group.add_argument("--seed", type=int, help="of the input (0)")
    group = parser.add_argument_group("with PyTorch", argument_default=argparse.SUPPRESS)
    group.add_argument(
        "--gradients", dest="with_gradients", action="store_true", help="compare the loss and every gradient too"
    )
    group.add_argument(
        "--dtype",
        choices=("float32", "float64"),
        help="of both sides (float32); in float64 the reference is kept from rounding to float32 inside",
    )
    group = parser.add_argument_group("with transformers' processor")
    group.add_argument("--processor", action="store_true", help="tiles, pixels, chat text and ids; reads no weights")
    group = parser.add_argument_group("of two checkpoints", argument_default=argparse.SUPPRESS)
    group.add_argument("--outputs", action="store_true", help="compare every layer's output on the input too")
    group.add_argument(
        "--tolerance", type=float, help="relative difference that a weight may have (0), and an output (1e-4)"
    )
    if not argv:
        parser.print_help(sys.stderr)
        raise UsageError("a checkpoint directory is needed")
    return parser.parse_intermixed_args(argv)


def _check_options(compare: Callable, chosen: dict, what: str) -> None:
    """Refuses options that belong to another of the three comparisons."""
    for name in chosen:
        if name not in inspect.signature(compare).parameters:
            raise UsageError(f"--{name.removeprefix('with_')} has no meaning for {what}; see ivl3 parity --help")
