"""What the Pallas kernels of a compiled step take, by the models kept with them."""

from collections.abc import Sequence

from ivl3_jax.kernels.costs import cost
from ivl3_jax.lab.calibration import Calibration
from ivl3_jax.lab.timeline import Array, KernelSeconds


def kernel_seconds(chip: str, documents: int = 1, calibration: Calibration | None = None) -> KernelSeconds:
    """The time of one call of a kernel, as `walk` wants it.

    Args:
        chip: v5e, v5p or v6e. documents: of how many equal segments a row is made up, between which attention is none.
        calibration: says what share of their schedules' speed kernels reach.
    """
    share = (calibration or Calibration()).kernels

    def seconds(name: str, operands: Sequence[Array], results: Sequence[Array]) -> float | None:
        found = cost(name, operands, results, chip, documents)
        return None if found is None else float(found.seconds) / share

    return seconds
