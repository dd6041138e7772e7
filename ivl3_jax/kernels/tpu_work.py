"""What the models of the TPU kernels' costs are asked, and what they answer."""

from dataclasses import dataclass
from typing import NamedTuple

from ivl3_jax.chips import Chip
from ivl3_jax.kernels.tpu_chips import CHIPS

Array = tuple[str, tuple[int, ...]]  # dtype and shape
REGISTER = 8 * 128  # 32-bit elements that a vector register has


class Work(NamedTuple):
    """Of one call: floating-point operations and bytes of the device, and cycles of its core that has most to do."""

    flops: float
    bytes: float
    cycles: float


@dataclass(frozen=True)
class Call:
    """One call of the kernel `name`; see `costs.cost`."""

    name: str
    operands: tuple[Array, ...]
    results: tuple[Array, ...]
    chip: str
    documents: int

    @property
    def on(self) -> Chip:
        return CHIPS[self.chip]

    @property
    def generation(self) -> str:
        return self.chip[:2]

    def shapes(self, operands: dict[int, int], results: dict[int, int]) -> list[tuple[int, ...]]:
        """The shapes of some operands, then of some results: those that are named with the rank that they have.

        Raises:
            ValueError: there are none such.
        """
        found = []
        for what, arrays, ranks in (("operand", self.operands, operands), ("result", self.results, results)):
            for place, rank in ranks.items():
                if not -len(arrays) <= place < len(arrays) or len(arrays[place][1]) != rank:
                    raise ValueError(
                        f"{self.name}: {what} {place} is to have {rank} dimensions; there are "
                        f"{', '.join(f'{dtype}{list(shape)}' for dtype, shape in arrays) or 'none'}"
                    )
                found.append(arrays[place][1])
        return found

    def expect_bfloat16(self, place: int) -> None:
        """Raises ValueError where an operand is of another type, for which the models do not hold."""
        dtype = self.operands[place][0]
        if dtype not in ("bf16", "bfloat16"):
            raise ValueError(f"{self.name}: operand {place} is {dtype}; the model of its cost is of bf16")
