"""The tolerances of the tests: those of `ivl3 parity`, where users meet the same promise."""

from ivl3_jax.conversion.tolerances import GRADIENT, LAYER, STACK

# float64 against stock transformers, which casts norms, softmax and rope to float32.
FLOAT64_STOCK = 1e-6

__all__ = ["FLOAT64_STOCK", "GRADIENT", "LAYER", "STACK"]
