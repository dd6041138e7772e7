"""`ivl3 bench kernels`: this project's kernels by the clock, or on TPUs by the compiler's schedule, beside others."""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from ivl3_jax.cli import UsageError

HELP = """Kernels by the clock on the device at hand, or on TPUs by the compiler's schedule, beside others.
ivl3 bench kernels --only vit-6b,packed --chips v5p --against splash
"""
PROBLEMS = ("vit-6b", "vit-300m", "packed", "causal", "loss-1b", "loss-2b", "loss-8b", "decoding")
PEERS = ("splash", "tokamax", "cudnn", "cudnn-packed", "xla", "oracle")
CHIPS = ("v5e", "v5p", "v6e")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see ivl3 bench kernels --help")


def _parse(argv: list[str]) -> argparse.Namespace:
    summary, example = HELP.strip().splitlines()
    parser = _Parser(prog="ivl3 bench kernels", description=summary, epilog=f"example: {example}", allow_abbrev=False)
    add = parser.add_argument
    add("--only", default="", metavar="NAMES", help=f"some of {', '.join(PROBLEMS)}, with commas; all if not given")
    add(
        "--against",
        default="",
        metavar="NAMES",
        help=f"{', '.join(PEERS)}: xla and cudnn are JAX's own attention, "
        "with a mask of all pairs where rows are packed, and logits in full; cudnn-packed is the seam's by that name",
    )
    add(
        "--chips",
        default="",
        metavar="NAMES",
        help=f"{', '.join(CHIPS)}: read the schedule that the TPU compiler makes for them (extra tpu; no TPU takes "
        "part) in place of timing the device at hand; against splash only",
    )
    add(
        "--search",
        action="store_true",
        help="with --chips: try all blocks of splash attention again",
    )
    add(
        "--models",
        action="store_true",
        help="with --chips: the models of the kernels' costs beside the schedule, on many more shapes; minutes a chip",
    )
    add("--output", type=Path, metavar="DIR", help="write kernels.md and kernels.json there")
    return parser.parse_args(argv)


def run(argv: list[str]) -> int:
    """Prints a table; what there is of it when it is interrupted."""
    options = _parse(argv)
    chips, against = _names("chips", options.chips, CHIPS), _names("against", options.against, PEERS)
    if chips and set(against) - {"splash"}:
        raise UsageError(f"--against={options.against}: by the schedule only splash attention can be read")
    if options.search and not (chips and against):
        raise UsageError("--search has a meaning only with --chips and --against=splash")
    names = _names("only", options.only, PROBLEMS)
    if options.models and (not chips or against or names):
        raise UsageError("--models has a meaning only with --chips, and with neither --only nor --against")
    from ivl3_jax.bench import problems as known

    problems = [known.PROBLEMS[name] for name in names or PROBLEMS]
    if options.models:
        table = _of_models(chips)
    elif chips:
        table = _by_schedule(problems, chips, bool(against), options.search)
    else:
        table = _by_clock(problems, against)
    _report(*table, options.output)
    return 0


def _names(option: str, text: str, allowed: tuple[str, ...]) -> list[str]:
    found = [name for name in text.replace(" ", "").split(",") if name]
    for name in found:
        if name not in allowed:
            raise UsageError(f"option --{option} {name!r} is unknown; there are {', '.join(allowed)}")
    return found


Say = Callable[[str], None]
Table = tuple[Callable[[Say], Iterator[Any]], Sequence[str], Callable[[Any], list[str]]]


def _by_schedule(problems, chips: list[str], splash: bool, search: bool) -> Table:
    import_module("libtpu")  # its absence is told before anything is compiled

    from ivl3_jax.bench import cases, check

    def readings(say: Say) -> Iterator[cases.Reading]:
        for chip in chips:
            say(f"{chip}: kernels of known work")
            list(check.check([chip]))
            for problem in problems:
                yield from cases.read(problem, chip, splash=splash, search=search, say=say)

    head = ["chip", "kernel", "pass", "Mcycles", "model", "ms", "matrix", "then", "against", "ratio", "bar", "error"]
    return readings, [*head, "HBM", "around", "blocks"], _reading


def _reading(reading) -> list[str]:
    unit, part = max(reading.units.items(), key=lambda item: item[1])
    other = f"{reading.against / 1e6:.3f}" if reading.against else ""
    ratio = "" if reading.ratio is None else f"{reading.ratio:.2f}"
    bar = "" if reading.bar is None else f"{reading.bar}"
    model = "" if reading.model is None else f"{reading.model / reading.cycles - 1:+.0%}"
    numbers = f"{reading.cycles / 1e6:.3f}", model, f"{reading.milliseconds:.3f}"
    shares = f"{reading.matrix:.0%}", f"{unit} {part:.0%}"
    around = "" if reading.around is None else f"{reading.around / 1e6:.3f}"
    rest = f"{reading.error:.0e}", f"{reading.memory:.0%}", around, reading.blocks
    return [reading.chip, reading.problem, reading.part, *numbers, *shares, other, ratio, bar, *rest]


def _of_models(chips: list[str]) -> Table:
    import_module("libtpu")

    from ivl3_jax.bench import costs

    return lambda say: costs.compare(chips, say), ["chip", "kernel", "shape", "fitted", "Mcycles", "model", "off"], _off


def _off(compared) -> list[str]:
    numbers = f"{compared.cycles / 1e6:.3f}", f"{compared.model / 1e6:.3f}", f"{compared.off:+.1%}"
    return [compared.chip, compared.kernel, compared.problem, "yes" if compared.fitted else "", *numbers]


def _by_clock(problems, against: list[str]) -> Table:
    from ivl3_jax.bench import timing

    def timings(say: Say) -> Iterator[timing.Timing]:
        for problem in problems:
            yield from timing.measure(problem, against, say)

    return timings, ["kernel", "pass", "by", "ms", "TFLOP/s", "of a product's rate", "error"], _timing


def _timing(timing) -> list[str]:
    named = [timing.problem, timing.part, timing.implementation]
    rates = f"{timing.milliseconds:.2f}", f"{timing.teraflops:.3g}", f"{timing.ceiling:.0%}"
    return [*named, *rates, f"{timing.error:.1e}"]


METHOD = """
Cycles are the compiler's schedule of the kernels alone: bundles of each region times its runs, or what its matrix units
or the memory traffic need where that is more; a lower bound. matrix: the part of what the matrix units can do, products
with padding included. then: the unit that is fullest beside them. ratio: cycles over those in "against"; bar: what
was asked of it at most. model: by which part the models of the kernels' costs have more cycles, or less. error: of the
kernels interpreted in bfloat16, from the oracle in float32, root mean square, the worst of result and gradients, on a
smaller problem.
"""
MODELS = """
Cycles are the compiler's schedule of a kernel: bundles of each region times its runs, or what its matrix units or the
memory traffic need where that is more. model: by the model of its cost, which no compiler takes part in. fitted: its
constants are from this shape.
"""
CLOCK = """
Medians of five rounds. TFLOP/s are of what has to be computed; beside them the part of a large matrix product's rate.
error: from the oracle in float32, root mean square, the worst of result and gradients, on a smaller problem.
"""


def _against(results: list[Any]) -> str:
    """What the readings are compared with."""
    found = dict.fromkeys(one.other for one in results if getattr(one, "other", ""))
    return ", ".join(found)


def _report(found, head: Sequence[str], cells, output: Path | None) -> None:
    """Measures under a status line; prints and writes what is there so far when it is interrupted."""
    from rich.console import Console
    from rich.table import Table as Drawn

    if output is not None:
        output.mkdir(parents=True, exist_ok=True)  # before anything is measured, in case it cannot be
    results: list[Any] = []
    console, progress = Console(), Console(stderr=True)
    try:
        with progress.status("starting") as status:
            for result in found(status.update):
                results.append(result)
    finally:
        if results:
            rows = [cells(result) for result in results if result.milliseconds is not None]
            shown = [name for name in head if name not in ("HBM", "around", "blocks")]  # what a terminal has room for
            drawn = Drawn(box=None, padding=(0, 1, 0, 0), pad_edge=False)
            for number, column in enumerate(shown):
                drawn.add_column(column, justify="left" if number < 3 else "right")
            for row in rows:
                drawn.add_row(*row[: len(shown)])
            console.print(drawn)
            notes = {one.problem: one.title for one in results if hasattr(one, "title")}
            notes |= {one.implementation: one.why for one in results if getattr(one, "why", "")}
            if against := _against(results):
                notes["against"] = against
            for name, note in notes.items():
                console.print(f"{name}: {note}", highlight=False, markup=False, soft_wrap=True)
            words = MODELS if "off" in head else METHOD if "Mcycles" in head else CLOCK
            console.print(" ".join(words.split()), highlight=False, markup=False)
            if output is not None:
                lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
                (output / "kernels.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
                (output / "kernels.json").write_text(json.dumps([asdict(one) for one in results], indent=1) + "\n")
                written = f"written: {output / 'kernels.md'}, {output / 'kernels.json'}"
                console.print(written, highlight=False, markup=False, soft_wrap=True)
