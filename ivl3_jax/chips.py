"""What TPU chips are: one table of each generation's published figures."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One generation. A device is a whole chip: v4's and v5p's two cores run as one (megacore).

    Attributes:
        name: as topologies name it. kinds: as jax names its devices.
        teraflops: bf16 products, peak. ghz: clock of the cores; v6e's is inferred from its peak.
        hbm: GiB that a program can have, as the compiler counts them. gigabytes: HBM bandwidth, GB a second.
        vmem: MiB of a core.
        link: ICI bandwidth of one link, dcn: of a chip's part of its host's network cards, pcie: between chip and
            host; GB a second, in one direction. axes: dimensions of the torus.
        cores: of a chip. array: rows and columns of a matrix unit. units: matrix units of a core.
        largest: chips of the largest slice.
    """

    name: str
    kinds: tuple[str, ...]
    teraflops: float
    ghz: float
    hbm: float
    gigabytes: float
    vmem: int
    link: float
    dcn: float
    pcie: float
    axes: int
    cores: int
    array: int
    units: int
    largest: int

    @property
    def row_cycles(self) -> float:
        """Cycles in which a matrix unit takes one row: what makes its peak the published one."""
        return 2 * self.array**2 * self.units * self.cores * self.ghz / (self.teraflops * 1e3)

    @property
    def host(self) -> str:
        """The topology of one host's chips."""
        return f"{self.name}:{'x'.join(('2', '2', '1')[: self.axes])}"

    def product(self, rows: float, inner: float, columns: float) -> float:
        """Cycles of a core's matrix units for [rows, inner] x [inner, columns] in bf16, of which the left is streamed.

        The right operand fills whole units: an inner dimension of 64 costs what one of `array` does.
        """
        tiles = math.ceil(inner / self.array) * math.ceil(columns / self.array)
        return rows * tiles * self.row_cycles / self.units

    def reading(self, bytes_: float) -> float:
        """Cycles in which so many bytes pass between HBM and the device."""
        return bytes_ / self.gigabytes * self.ghz

    def wraps(self, shape: tuple[int, ...]) -> tuple[bool, ...]:
        """Which dimensions of a slice have links that close the ring.

        Slices of v4 and v5p are cut from cubes of 4 x 4 x 4, whose optical switches close every ring of whole cubes; on
        v5e and v6e only a full dimension of 16 has wraparound links (Cloud TPU documentation, system architecture).
        """
        if self.axes == 3:
            return (all(size % 4 == 0 for size in shape),) * 3
        return tuple(size == 16 for size in shape)


# From Google's documentation of Cloud TPU; what a link brings in one direction, and a chip's way to its host, from How
# to Scale Your Model (jax-ml.github.io/scaling-book). v6e's way to its host is published nowhere and assumed.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", ("TPU v4",), 275, 1.05, 30.75, 1228, 16, 45, 6.25, 16, 3, 2, 128, 4, 4096),
        Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197, 1.5, 15.75, 819, 128, 45, 3.125, 16, 2, 1, 128, 4, 256),
        Chip("v5p", ("TPU v5", "TPU v5p"), 459, 1.75, 95.74, 2765, 64, 90, 6.25, 16, 3, 2, 128, 4, 8960),
        Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918, 1.75, 31.25, 1640, 128, 90, 12.5, 32, 2, 1, 256, 2, 256),
    )
}


def by_kind(kind: str) -> Chip | None:
    """The chip whose devices jax names so; None if it is none of these."""
    return next((chip for chip in CHIPS.values() if kind in chip.kinds), None)
