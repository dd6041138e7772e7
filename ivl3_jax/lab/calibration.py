"""The constants of the prediction, few and each with a meaning; a user may feed his own, from real profiles."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import yaml

# Of the constants below, by benchmarks/published_runs.py (docs/lab.md); it says nothing of others.
HELD_OUT = "3.6% mean, 6.5% worst, on three published runs"


@dataclass(frozen=True)
class Calibration:
    """Shares of what the chip could do.

    `vectors` and `kernels` were fitted on the runs in `lab.published` that are marked so, by
    benchmarks/published_runs.py. `products` is what 8,192 x 8,192 x 8,192 reaches on a v5e in JAX's guide to Pallas
    matrix products. The others are what such links and memories commonly reach, and fitted on nothing.

    Attributes:
        products: of the peak that matrix products of XLA reach.
        vectors: of the compiler's estimate that the vector work of an instruction takes.
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
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1:
                raise ValueError(f"Calibration.{name} is {value!r}; it must be above 0 and at most 1")

    @classmethod
    def read(cls, file: str | Path) -> Self:
        """A YAML table of some of the fields; the others keep their defaults.

        Raises:
            OSError: the file cannot be read. ValueError: it holds something else.
        """
        try:
            found = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
        known = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(found, dict) or (unknown := [name for name in found if name not in known]):
            wrong = found if not isinstance(found, dict) else unknown[0]
            raise ValueError(f"{file}: {wrong!r} is no constant; known: {', '.join(known)}")
        try:
            return cls(**found)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
