"""The constants of the prediction, few and each with a meaning; a user may feed his own, from real profiles."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ivl3_jax.data.json_values import shown
from ivl3_jax.yaml_file import read_yaml

SLOWEST = 10.0  # times the compiler's estimate of vector work, beyond which no profile can be

# Of the constants below, by benchmarks/published_runs.py (docs/lab.md); it says nothing of others.
HELD_OUT = "3.9% mean, 6.5% worst, on four published runs (libtpu 0.0.42.1)"


@dataclass(frozen=True)
class Calibration:
    """Shares of what the chip could do, and one factor on time.

    Greater is faster, but for `vectors`: greater is slower there, and above 1 slower than the compiler estimates.

    `vectors` and `kernels` were fitted on the runs in `lab.published` that are marked so, by
    benchmarks/published_runs.py. `products` is what 8,192 x 8,192 x 8,192 reaches on a v5e in JAX's guide to Pallas
    matrix products. The others are what such links and memories commonly reach, and fitted on nothing.

    Attributes:
        products: of the peak that matrix products of XLA reach.
        vectors: time that the vector work of an instruction takes over the compiler's estimate of it; at most 10, the
            others at most 1.
        hbm: of HBM's bandwidth that fusions and moves reach.
        ici: of a link's bandwidth that collectives reach. dcn: of the network's between slices.
        host: of the way between a chip and its host's memory.
        kernels: of the speed that their schedules have, by the models kept with them.
    """

    products: float = 0.92
    vectors: float = 0.85
    hbm: float = 0.9
    ici: float = 0.85
    dcn: float = 0.8
    host: float = 0.9
    kernels: float = 1.0

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            most = SLOWEST if name == "vectors" else 1
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= most:
                raise ValueError(f"Calibration.{name} is {shown(value)}; it must be above 0 and at most {most:g}")

    @property
    def changed(self) -> str:
        """What differs from the shipped constants, in words; nothing where none does."""
        shipped = dataclasses.asdict(type(self)())
        mine = dataclasses.asdict(self).items()
        return ", ".join(f"{name} {value} (shipped {shipped[name]})" for name, value in mine if value != shipped[name])

    @classmethod
    def read(cls, file: str | Path) -> Self:
        """A YAML table of some of the fields; the others keep their defaults.

        Raises:
            OSError: the file cannot be read. ValueError: it holds something else, or a constant twice.
        """
        found = read_yaml(file)
        found = {} if found is None else found
        known = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(found, dict) or (unknown := [name for name in found if name not in known]):
            wrong = found if not isinstance(found, dict) else unknown[0]
            raise ValueError(f"{file}: {shown(wrong)} is no constant; known: {', '.join(known)}")
        try:
            return cls(**found)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
