"""Positions of V2PE against its recurrence, written out token by token in exact fractions."""

from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivl3_jax.data.positions import exact_v2pe_positions, plain_positions, v2pe_positions

DELTAS = [Fraction(1, 2**k) for k in range(9)]


def recurrence(visual, deltas, rounding):
    """Exact positions: +1 before text, +delta before a visual token; `rounding` of the last one behind an image."""
    positions, last, inside, following = [], Fraction(-1), False, iter(deltas)
    for token in visual:
        if token and not inside:
            delta = next(following)
        if inside and not token:
            last = rounding(last)
        if not positions and token and rounding is exact:
            last = -delta  # the formula begins at 0 whatever the token is
        last += delta if token else 1
        positions.append(last)
        inside = token
    return [float(position) for position in positions]


def exact(position):
    return position


segments = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 600), st.sampled_from(DELTAS)), max_size=4)


@given(segments, st.integers(0, 5))
def test_against_the_recurrence(images, tail):
    visual = np.array([token for text, count, _ in images for token in [False] * text + [True] * count], bool)
    visual = np.concatenate([visual, np.zeros(tail, bool)])
    deltas = [delta for _, _, delta in images]
    steps = [float(delta) for delta in deltas]
    for function, rounding in ((v2pe_positions, lambda last: Fraction(ceil(last))), (exact_v2pe_positions, exact)):
        found = function(visual, steps)
        assert found.dtype == np.float32
        assert found.tolist() == recurrence(visual.tolist(), deltas, rounding)


def test_an_image_by_hand():
    visual = np.array([0, 0, 1, 1, 1, 0, 0, 1, 0], bool)
    assert v2pe_positions(visual, 1 / 4).tolist() == [0, 1, 1.25, 1.5, 1.75, 3, 4, 4.25, 6]
    assert exact_v2pe_positions(visual, 1 / 4).tolist() == [0, 1, 1.25, 1.5, 1.75, 2.75, 3.75, 4, 5]
    assert v2pe_positions(visual, [1, 1 / 2]).tolist() == [0, 1, 2, 3, 4, 5, 6, 6.5, 8]


@pytest.mark.parametrize("function", [v2pe_positions, exact_v2pe_positions])
def test_delta_one_is_plain(function):
    visual = np.random.default_rng(0).random(5000) < 0.8
    for delta in (1, 1.0):
        np.testing.assert_array_equal(function(visual, delta), plain_positions(visual))
    assert function(np.zeros(0, bool), 0.5).shape == (0,)
    np.testing.assert_array_equal(function(np.zeros(7, bool), 0.5), np.arange(7))


@pytest.mark.parametrize("function", [v2pe_positions, exact_v2pe_positions])
def test_faulty_deltas(function):
    visual = np.array([0, 1, 0, 1], bool)
    for delta in (0, 1 / 257, 1.5, -1, float("nan"), True):
        with pytest.raises(ValueError, match="the visual delta is .*; it must be a number from 1/256 to 1"):
            function(visual, delta)
    with pytest.raises(ValueError, match="there are 1 deltas for 2 images; valid: one for each, or one for all"):
        function(visual, [0.5])


def test_a_delta_may_be_any_number():
    visual = np.array([False, True, True, False])
    expected = v2pe_positions(visual, 0.25)
    for delta in (np.float32(0.25), np.float64(0.25), Fraction(1, 4), [np.float32(0.25)], np.array([0.25])):
        np.testing.assert_array_equal(v2pe_positions(visual, delta), expected)
