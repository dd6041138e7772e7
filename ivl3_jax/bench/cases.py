"""Cycles of this project's TPU kernels by the compiler's schedule, beside JAX's own or the least that is possible."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from ivl3_jax.bench import decoding, loss, packed, timing, vit
from ivl3_jax.bench.costs import modelled
from ivl3_jax.bench.problems import Attention, Decoding, Loss
from ivl3_jax.bench.schedule import Kernel
from ivl3_jax.kernels.family import preferring
from ivl3_jax.kernels.tpu_chips import CHIPS

# What ours / theirs shall not exceed.
BARS = {"vit-6b": 0.82, "vit-300m": 0.75, "packed": 0.9, "loss-1b": 1.15, "loss-2b": 1.15, "loss-8b": 1.15}
UNITS = ("XLU", "VALU", "EUP", "VLOAD", "VSTORE")


@dataclass(frozen=True)
class Reading:
    """One pass of one kernel on one chip.

    Attributes:
        chip, problem, title, part: what was read.
        cycles: of ours. against: what `other` takes; None without one. bar: what their ratio shall not exceed.
        milliseconds: of ours at the chip's clock.
        matrix: the part of what the matrix units can do, padding's products included. units: of other units' slots.
        memory: cycles of the HBM traffic over `cycles`. around: cycles of XLA's own operations in our program, by the
            compiler's estimate, which are in no ratio: transpositions, lists; None where only a part of it is read.
        model: cycles by the models of the kernels' costs; None where they do not know the segments.
        error: of ours interpreted in bfloat16, by v5's blocks, from the oracle in float32, see `timing.Timing`.
        blocks: sizes that were used, ours and theirs.
    """

    chip: str
    problem: str
    title: str
    part: str
    cycles: float
    milliseconds: float
    matrix: float
    units: dict[str, float]
    memory: float
    around: float | None
    other: str
    against: float | None
    model: float | None
    error: float
    blocks: str
    bar: float | None

    @property
    def ratio(self) -> float | None:
        return None if self.against is None else self.cycles / self.against


def read(
    problem: Attention | Loss | Decoding,
    chip: str,
    *,
    splash: bool = True,
    search: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Reading]:
    """The readings of a problem on a chip, by the method of `schedule`.

    Args:
        splash: read splash attention too. search: try all its block sizes instead of taking those found before.
        say: told what is being compiled.

    Raises:
        ValueError: a kernel does not compile, or its reading is impossible.
    """
    say(f"{chip}: {problem.title}")
    if isinstance(problem, Attention):
        kind = packed if problem.causal else vit
        mine, blocks = kind.ours(problem, chip)
        theirs: list[Kernel] = []
        if splash:
            theirs, words = kind.theirs(problem, chip, search, lambda text: say(f"{chip}: {problem.title}: {text}"))
            blocks = f"{blocks} / {words}" if blocks else words
        for part, count in (("forward", 1), ("both", 2)):
            against = sum(kernel.cycles for kernel in theirs[:count]) if theirs else None
            bar = BARS.get(problem.name) if theirs and (count == 2 or not problem.causal) else None
            yield _reading(chip, problem, part, mine[:count], "splash attention", against, blocks, bar)
    elif isinstance(problem, Loss):
        mine, blocks = loss.ours(problem, chip)
        bare = loss.bare(problem, chip)
        yield _reading(
            chip, problem, "both", mine, "its three products at the chip's peak", bare, blocks, BARS.get(problem.name)
        )
    else:
        mine, blocks = decoding.ours(problem, chip)
        cache = CHIPS[chip].reading(problem.bytes)
        yield _reading(chip, problem, "forward", mine, "reading the cache at the chip's bandwidth", cache, blocks, None)


def _reading(chip, problem, part, kernels: list[Kernel], other, against, blocks, bar) -> Reading:
    cycles = sum(kernel.cycles for kernel in kernels)
    models = [modelled(kernel, problem) for kernel in kernels]

    def mean(value: Callable[[Kernel], float]) -> float:
        return sum(value(kernel) * kernel.cycles for kernel in kernels) / cycles

    return Reading(
        chip,
        problem.name,
        problem.title,
        part,
        cycles,
        sum(kernel.milliseconds for kernel in kernels),
        mean(lambda kernel: kernel.utilisation),
        {unit: mean(partial(Kernel.use, unit=unit)) for unit in UNITS},
        sum(kernel.memory or 0 for kernel in kernels) / cycles,
        None if part == "forward" and not isinstance(problem, Decoding) else kernels[0].around,
        other if against is not None else "",
        against,
        None if None in models else sum(filter(None, models)),
        _error(problem, part == "both"),
        blocks,
        bar,
    )


@cache
def _error(problem: Attention | Loss | Decoding, backward: bool) -> float:
    mesh = jax.make_mesh((1,), ("device",), (AxisType.Auto,), devices=jax.devices()[:1])
    with jax.set_mesh(mesh), preferring("tpu"):
        return timing.error(problem.for_errors(), "ours", jnp.bfloat16, backward)
