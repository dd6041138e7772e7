"""Cycles of this project's TPU kernels beside JAX's own, by the compiler's schedule; no TPU takes part.

    python benchmarks/kernels.py [v5e v5p v6e] [--search]

Both sides of a row are read in one run by the method of `schedule.py`, whose check comes first. Splash attention gets
the block sizes that serve it best, forward and backward apart; `--search` tries them all again instead of taking those
found before. Cycles are of the kernels alone: the padding and the transpositions that splash attention needs around it
are not counted against it.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import vit_kernels
from measuring import table
from schedule import CHIPS, Kernel
from schedule_check import check


@dataclass(frozen=True)
class Case:
    """One row for each pass: what is compared, on one chip.

    Attributes:
        ours, theirs: the chip, and whether blocks are searched, to the kernels of the forward and of the backward pass
            and a word on the block sizes.
        bar: what ours / theirs shall not exceed.
    """

    name: str
    ours: Callable[[str, bool], tuple[list[Kernel], str]]
    theirs: Callable[[str, bool], tuple[list[Kernel], str]]
    bar: float


CASES = [
    Case("ViT-6B, 13 x 1,025, 25 heads of 128", vit_kernels.ours(25, 128), vit_kernels.splash(25, 128), 0.82),
    Case("ViT-300M, 13 x 1,025, 16 heads of 64", vit_kernels.ours(16, 64), vit_kernels.splash(16, 64), 0.75),
]
HEAD = (
    "chip",
    "kernel",
    "pass",
    "ours: cycles",
    "ms",
    "matrix unit",
    "VALU",
    "EUP",
    "XLU",
    "bound by HBM",
    "JAX's: cycles",
    "matrix unit",
    "VALU",
    "blocks",
    "ours / JAX's",
    "bar",
)


def rows(chips: list[str], search: bool):
    for chip in chips:
        for case in CASES:
            ours, _ = case.ours(chip, search)
            theirs, blocks = case.theirs(chip, search)
            for name, count in (("forward", 1), ("forward + backward", 2)):
                mine, other = ours[:count], theirs[:count]
                cycles, against = (sum(kernel.cycles for kernel in side) for side in (mine, other))
                yield (
                    chip,
                    case.name,
                    name,
                    f"{cycles:,.0f}",
                    f"{cycles / CHIPS[chip].ghz / 1e6:.3f}",
                    *(_share(mine, unit) for unit in (None, "VALU", "EUP", "XLU")),
                    f"{100 * sum(kernel.memory or 0 for kernel in mine) / cycles:.0f} %",
                    f"{against:,.0f}",
                    *(_share(other, unit) for unit in (None, "VALU")),
                    blocks,
                    f"{cycles / against:.2f}",
                    f"{case.bar}",
                )


def _share(kernels: list[Kernel], unit: str | None) -> str:
    """Of the slots of a unit, or of what the matrix units can do; weighted by cycles."""
    used = sum((k.utilisation if unit is None else k.use(unit)) * k.cycles for k in kernels)
    return f"{100 * used / sum(k.cycles for k in kernels):.0f} %"


if __name__ == "__main__":
    chips = [argument for argument in sys.argv[1:] if argument != "--search"] or list(CHIPS)
    if unknown := [chip for chip in chips if chip not in CHIPS]:
        sys.exit(f"kernels.py: {unknown[0]!r} is no chip; there are {', '.join(CHIPS)}")
    check()
    table(HEAD, rows(chips, "--search" in sys.argv))
