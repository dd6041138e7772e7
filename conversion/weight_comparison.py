"""The weights of two checkpoints of any layout: bit-equal, equal in value, rounded, or different."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ivl3_jax.config import InternVLConfig
from ivl3_jax.conversion.comparison import Difference, difference
from ivl3_jax.conversion.convert import DirectoryLayers
from ivl3_jax.conversion.lora import open_weights
from ivl3_jax.conversion.names import parameters


class WeightComparison:
    """The comparison of all weights, and what can be said of them together.

    One layer of one parameter of each side is in memory at a time.
    """

    def __init__(self, tolerance: float) -> None:
        """`tolerance`: the relative difference that a weight may have."""
        self.tolerance = tolerance
        self.dtypes: Counter[tuple[str, str]] = Counter()
        self.layers = self.same_bits = self.same_values = self.rounded = 0

    def compare(
        self, directories: tuple[Path, Path], configs: Sequence[InternVLConfig], say: Callable[[str], None]
    ) -> list[Difference]:
        """Every parameter, layer by layer; both sides have the same parameters of the same shapes.

        Raises:
            FileNotFoundError, ValueError: one of the directories cannot be read or does not fit its config.
        """
        differences = []
        with open_weights(directories[0]) as file, open_weights(directories[1]) as other:
            ours, theirs = DirectoryLayers(file, configs[0]), DirectoryLayers(other, configs[1])
            for parameter in parameters(configs[0]):
                say(f"weights: {parameter.path}")
                for number in range(len(parameter.tensors)):
                    layers = ours.read(parameter, number), theirs.read(parameter, number)
                    layer = number if parameter.stacked else None
                    differences.append(self._layer(parameter.path, layer, *layers))
        return differences

    def _layer(self, path: str, layer: int | None, ours: np.ndarray, theirs: np.ndarray) -> Difference:
        self.layers += 1
        self.dtypes[str(ours.dtype), str(theirs.dtype)] += 1
        if _same_bits(ours, theirs):
            self.same_bits += 1
            return Difference("weights", path, layer, 0.0, 0.0, self.tolerance)
        found = difference("weights", path, layer, ours, theirs, self.tolerance)
        self.same_values += found.relative == 0
        if found.relative != 0 and ours.dtype != theirs.dtype:
            wide, narrow = sorted((ours, theirs), key=lambda array: -array.dtype.itemsize)
            with np.errstate(over="ignore"):  # what float16 cannot hold is not equal, and no cause for a warning
                self.rounded += _same_bits(wide.astype(narrow.dtype), narrow)
        return found

    @property
    def unequal(self) -> int:
        return self.layers - self.same_bits - self.same_values

    def verdict(self) -> dict[str, str]:
        """How a report's verdict begins, by the report's fields."""
        if self.same_bits == self.layers:
            return {"equality": "bit-equal", "inequality": "NOT equal, though all weights are"}
        if not self.unequal:
            return {"equality": "equal in value, not in bits", "inequality": "NOT equal, though all weights are"}
        if self.rounded == self.unequal:
            return {"inequality": "NOT equal, weights by rounding to the narrower dtype alone"}
        return {}

    def facts(self) -> dict[str, str]:
        """What a report tells: the dtypes, and how many tensors are equal in which way."""
        counts = {"bit-equal": self.same_bits, "equal in value": self.same_values, "different": self.unequal}
        return {
            "dtypes": "; ".join(a if a == b else f"{a} and {b}, compared in the wider" for a, b in self.dtypes),
            "tensors": ", ".join(f"{count} {what}" for what, count in counts.items() if count),
        }


def _same_bits(ours: np.ndarray, theirs: np.ndarray) -> bool:
    bits = f"u{ours.dtype.itemsize}"
    return ours.dtype == theirs.dtype and np.array_equal(ours.view(bits), theirs.view(bits))
