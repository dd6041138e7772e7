"""Slices by name, what is refused, and where mesh axes lie."""

import pytest

from ivl3_jax.lab.topology import Ring, Span, Topology
from ivl3_jax.sharding.plan import ShardingPlan


def plan(**mesh: int) -> ShardingPlan:
    return ShardingPlan.read("fsdp_tensor", mesh)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("v3:4x4", "known: v4, v5e, v5p, v6e"),
        ("v5p", "has 3 dimensions, as in v5p:2x2x1"),
        ("v5p:8x8", "has 3 dimensions"),
        ("v5e:4x4x4", "has 2 dimensions, as in v5e:2x2"),
        ("v5p:axbxc", "has 3 dimensions"),
        ("v5p:3x4x4", "must be even"),
        ("v5p:0x4x4", "must be even"),
        ("v5e:32x32", "the largest slice of v5e has 16 x 16"),
        ("v5p:64x64x64", "the largest slice of v5p has 8960 chips"),
    ],
)
def test_names_that_are_none(text, says):
    with pytest.raises(ValueError, match=says):
        Topology.read(text)


def test_what_wraps():
    assert Topology.read("v5p:8x8x16").wraps == (True, True, True)
    assert Topology.read("v5p:2x2x4").wraps == (False, False, False)
    assert Topology.read("v5e:8x16").wraps == (False, True)
    assert Topology.read("v6e:16x16").wraps == (True, True)


def test_another_number_of_chips_is_refused(libtpu):
    with pytest.raises(ValueError, match=r"needs 32 chips \(fsdp 32\); v5p:4x4x4 has 64: .* multiply to 64"):
        Topology.read("v5p:4x4x4").make_mesh(plan(fsdp=32))


def test_slices_need_an_axis_between_them(libtpu):
    with pytest.raises(ValueError, match="mesh.data is 1 and the devices are 2 slices"):
        Topology.read("v5p:2x2x1", slices=2).make_mesh(plan(fsdp=8))


def test_where_axes_lie(libtpu):
    placed = Topology.read("v5p:4x4x4").make_mesh(plan(fsdp=16, tensor=4))
    assert placed.axis("fsdp") == Span((Ring(1, 4, True), Ring(2, 4, True)), 1)
    assert placed.axis("tensor") == Span((Ring(0, 4, True),), 1)
    assert placed.axis("data") == Span((), 1)


def test_an_axis_between_slices(libtpu):
    placed = Topology.read("v5e:4x4", slices=2).make_mesh(plan(data=2, fsdp=16))
    assert placed.axis("data") == Span((), 2)
    assert placed.axis("fsdp") == Span((Ring(0, 4, False), Ring(1, 4, False)), 1)


def test_a_dimension_shared_by_two_axes(libtpu):
    placed = Topology.read("v5p:4x4x4").make_mesh(plan(fsdp=32, tensor=2))
    assert placed.axis("tensor") == Span((Ring(0, 2, False),), 1)
