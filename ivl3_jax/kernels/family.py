"""Which family of implementations the seams take where their caller names none."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

from ivl3_jax.kernels.chip import chip, on_gpu

FAMILIES = ("oracle", "chunked", "tpu", "cudnn")

_named = jax.make_user_context(default_value=None)  # part of what jax.jit remembers a traced function by


@contextmanager
def preferring(family: str) -> Iterator[None]:
    """Within it functions take this family in place of the platform's own, wherever it can do what is asked.

    Where it cannot, `chunked` stands in. TPU kernels are interpreted elsewhere, slowly. jax.jit compiles anew within,
    and keeps both.

    Args:
        family: "oracle", "chunked", "tpu" or "cudnn".

    Raises:
        ValueError: it is none of them.
    """
    if family not in FAMILIES:
        raise ValueError(f"{family!r} is no family of kernels; there are {', '.join(FAMILIES)}")
    with _named(family):
        yield


def family() -> str:
    """The one that was asked for, or the platform's."""
    return _named.value or ("tpu" if chip() else "cudnn" if on_gpu() else "chunked")


def interpreting(implementation: str | None) -> bool:
    """Whether kernels of a TPU, by this name or by the family, are to run where there is none."""
    return chip() is None and (implementation or family()).startswith("tpu")
