"""The models of the kernels' costs beside the compiler's schedule, on shapes that they were fitted to and on others."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ivl3_jax.bench import loss, packed, vit
from ivl3_jax.bench.problems import Attention, Decoding, Loss
from ivl3_jax.bench.schedule import Kernel
from ivl3_jax.kernels.costs import cost


def _packed(B: int, S: int, N: int, K: int, H: int, documents: int = 1) -> Attention:
    lengths = [S * (n + 1) // documents - S * n // documents for n in range(documents)]
    return Attention("packed", B, S, N, K, H, tuple(lengths))


# Heads of InternVL3's sizes, many heads without groups, both ViTs and fewer positions, two widths of the loss.
FITTED: tuple[Attention | Loss, ...] = (
    _packed(1, 16384, 14, 2, 64),
    _packed(1, 16384, 28, 4, 128),
    _packed(1, 16384, 32, 2, 128),
    _packed(1, 2048, 64, 64, 128),
    Attention("vit-6b", 13, 1025, 25, 25, 128),
    Attention("vit-300m", 13, 1025, 16, 16, 64),
    Attention("vit", 40, 513, 8, 8, 128),
    Loss("loss", 16384, 896),
    Loss("loss", 16384, 3584),
)
# Shares of heads on several devices, short and long rows, several documents, other tiles and vocabularies.
OTHERS: tuple[Attention | Loss, ...] = (
    _packed(1, 4096, 8, 1, 128),
    _packed(1, 32768, 16, 8, 128, documents=20),
    _packed(6, 2048, 16, 16, 128),
    _packed(1, 4096, 7, 1, 64, documents=3),
    _packed(1, 16384, 64, 8, 128),
    _packed(1, 16384, 12, 2, 128),
    _packed(1, 16384, 40, 8, 128),
    _packed(1, 8192, 10, 2, 128, documents=4),
    _packed(4, 8192, 32, 8, 128),
    _packed(2, 4096, 8, 8, 64),
    _packed(1, 32768, 7, 1, 128),
    Attention("vit", 2, 1025, 25, 25, 128),
    Loss("loss", 2048, 3584, 37920),
    Loss("loss", 4096, 8192, 38016),
    Loss("loss", 12288, 4096, 32000),
    Loss("loss", 1024, 5120, 152064),
    Loss("loss", 8192, 2048, 128256),
    Loss("loss", 16384, 1536),
)


@dataclass(frozen=True)
class Compared:
    """One kernel on one chip: cycles of the schedule, and of the model; `fitted`: whether the model saw this shape."""

    chip: str
    kernel: str
    problem: str
    fitted: bool
    cycles: float
    milliseconds: float
    model: float

    @property
    def off(self) -> float:
        """By which part the model has more, or less."""
        return self.model / self.cycles - 1


def modelled(kernel: Kernel, problem: Attention | Loss | Decoding) -> float | None:
    """Cycles by the model; None without one, and where segments are not equal, of which the models know nothing."""
    lengths = getattr(problem, "segments", ())
    if lengths and max(lengths) - min(lengths) > 1:
        return None
    found = cost(kernel.name, kernel.operands, kernel.results, kernel.chip, len(lengths) or None)
    return None if found is None else found.cycles


def compare(chips: list[str], say: Callable[[str], None] = lambda text: None) -> Iterator[Compared]:
    """Every kernel of every shape on every chip.

    Raises:
        ValueError: a kernel does not compile, or its reading is impossible.
    """
    for chip in chips:
        for problem in (*FITTED, *OTHERS):
            say(f"{chip}: {problem.title}")
            kernels, _ = _ours(problem)(problem, chip)
            for kernel in kernels:
                model = modelled(kernel, problem)
                assert model is not None, f"{kernel.name} has no model"
                yield Compared(
                    chip, kernel.name, problem.title, problem in FITTED, kernel.cycles, kernel.milliseconds, model
                )


def _ours(problem: Attention | Loss) -> Callable[..., tuple[list[Kernel], str]]:
    if isinstance(problem, Loss):
        return loss.ours
    return packed.ours if problem.causal else vit.ours
