"""Several processes: how they find one another."""

import os

import jax


def join_processes(how: str) -> None:
    """Makes this process one of several, before anything else uses jax.

    Args:
        how: as `Recipe.distributed`.

    Raises:
        ValueError: it is nothing of that kind.
    """
    if how == "off":
        return
    jax.config.update("jax_enable_preemption_service", True)
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if how == "auto":
        jax.distributed.initialize()
        return
    try:
        address, number, count = how.split(",")
        found = int(number), int(count)
    except ValueError:
        raise ValueError(f"distributed is {how!r}; it must be off, auto, or HOST:PORT,NUMBER,COUNT") from None
    jax.distributed.initialize(address, num_processes=found[1], process_id=found[0])
