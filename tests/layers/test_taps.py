"""Named intermediates."""

import jax.numpy as jnp
import pytest

from ivl3_jax.layers.taps import collect, collecting, scope, tap, tap_all


def test_names_are_prefixed_by_the_scopes_around_them():
    with collect() as found:
        with scope("a"), scope("b"):
            assert tap("x", jnp.ones(2)) is not None
        tap("y", jnp.zeros(()))
        with scope("c"):
            tap_all({"z": jnp.ones(3)})
    assert {name: value.shape for name, value in found.items()} == {"a/b/x": (2,), "y": (), "c/z": (3,)}


def test_nothing_is_kept_when_nobody_collects():
    value = jnp.ones(2)
    with scope("a"):
        assert tap("x", value) is value
    assert not collecting()


def test_an_inner_collection_is_its_own_and_ends_with_an_error():
    with collect() as outer:
        with scope("a"), collect() as inner:
            tap("x", jnp.ones(1))
        with pytest.raises(RuntimeError), collect(), scope("b"):
            raise RuntimeError
        tap("y", jnp.ones(1))
    assert (set(outer), set(inner)) == ({"y"}, {"x"})
    assert not collecting()
