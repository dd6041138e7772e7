"""Which family of implementations the seams take where their caller names none."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ivl3_jax.kernels.chip import chip, on_gpu

FAMILIES = ("oracle", "chunked", "tpu", "cudnn")

_named: ContextVar[str | None] = ContextVar("family", default=None)


@contextmanager
def preferring(family: str) -> Iterator[None]:
    """What is traced within it takes this family in place of the platform's own, wherever that supports the shapes.

    Where it does not, `chunked` stands in. TPU kernels are interpreted elsewhere, slowly.

    Args:
        family: "oracle", "chunked", "tpu" or "cudnn".

    Raises:
        ValueError: it is none of them.
    """
    if family not in FAMILIES:
        raise ValueError(f"{family!r} is no family of kernels; there are {', '.join(FAMILIES)}")
    token = _named.set(family)
    try:
        yield
    finally:
        _named.reset(token)


def family() -> str:
    """The one that was asked for, or the platform's."""
    return _named.get() or ("tpu" if chip() else "cudnn" if on_gpu() else "chunked")


def interpreting(implementation: str | None) -> bool:
    """Whether kernels of a TPU, by this name or by the family, are to run where there is none."""
    return chip() is None and (implementation or family()).startswith("tpu")
