"""The TPUs whose schedules are read and whose kernels' costs are modelled."""

from ivl3_jax import chips

CHIPS = {name: chips.CHIPS[name] for name in ("v5e", "v5p", "v6e")}
