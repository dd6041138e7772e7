"""Named intermediates on request, for parity tools and probes; free when nobody collects.

    with collect() as taps:
        logits = model(batch)
    taps["decoder/layers/attention"]   # [layers, B, S, D]

`tap` and `scope` are called while a function is traced, so `collect` must be opened inside the function that is jitted,
and its dictionary returned from there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import local

import jax

_state = local()


@contextmanager
def collect() -> Iterator[dict[str, jax.Array]]:
    """Collects every tap passed while open, by its full name."""
    outer = getattr(_state, "taps", None), getattr(_state, "scope", ())
    _state.taps, _state.scope = {}, ()
    try:
        yield _state.taps
    finally:
        _state.taps, _state.scope = outer


def collecting() -> bool:
    """Whether a `collect` is open."""
    return getattr(_state, "taps", None) is not None


@contextmanager
def scope(name: str) -> Iterator[None]:
    """Prefixes the names of taps inside, and names the operations for profiles."""
    outer = getattr(_state, "scope", ())
    _state.scope = (*outer, name)
    try:
        with jax.named_scope(name):
            yield
    finally:
        _state.scope = outer


def tap(name: str, value: jax.Array) -> jax.Array:
    """Records `value` under the current scope if somebody collects; returns it unchanged."""
    if collecting():
        _state.taps["/".join((*_state.scope, name))] = value
    return value


def tap_all(values: dict[str, jax.Array]) -> None:
    """Records values gathered elsewhere, such as those a scan has stacked."""
    for name, value in values.items():
        tap(name, value)
