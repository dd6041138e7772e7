"""What the TPUs are whose schedules are read and whose kernels' costs are modelled."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """What a device is. Peaks and bandwidth are Google's published ones; v6e's clock is inferred from its peak."""

    topology: str
    ghz: float
    teraflops: float  # bf16, of the device
    gigabytes: float  # a second, HBM
    cores: int
    array: int  # rows and columns of a matrix unit
    units: int  # matrix units of a core

    @property
    def row_cycles(self) -> float:
        """Cycles in which a matrix unit takes one row: what makes its peak the published one."""
        return 2 * self.array**2 * self.units * self.cores * self.ghz / (self.teraflops * 1e3)

    def product(self, rows: float, inner: float, columns: float) -> float:
        """Cycles of a core's matrix units for [rows, inner] x [inner, columns] in bf16, of which the left is streamed.

        The right operand fills whole units: an inner dimension of 64 costs what one of `array` does.
        """
        tiles = math.ceil(inner / self.array) * math.ceil(columns / self.array)
        return rows * tiles * self.row_cycles / self.units

    def reading(self, bytes_: float) -> float:
        """Cycles in which so many bytes pass between HBM and the device."""
        return bytes_ / self.gigabytes * self.ghz


CHIPS = {
    "v5e": Chip("v5e:2x2", 1.5, 197, 819, 1, 128, 4),
    "v5p": Chip("v5p:2x2x1", 1.75, 459, 2765, 2, 128, 4),
    "v6e": Chip("v6e:2x2", 1.75, 918, 1640, 1, 256, 2),
}
