"""Histograms of whole numbers."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivl3_jax.data.histogram import MOST_BINS, doubling, even
from tests.data.html import check_html

NUMBERS = st.lists(st.integers(0, 200_000), min_size=1, max_size=60)


@pytest.mark.parametrize("make", [doubling, even])
@given(NUMBERS)
def test_every_number_is_in_its_bin(make, numbers):
    found = make(Counter(numbers))
    expected = [sum(start <= number < end for number in numbers) for start, end in pairwise(found.edges)]
    assert found.counts == expected and sum(expected) == len(numbers)
    assert expected[0] and expected[-1]  # no empty bins at the ends
    assert len(expected) <= MOST_BINS


@given(NUMBERS, st.floats(0.01, 1))
def test_mean_and_quantiles(numbers, share):
    found = even(Counter(numbers))
    assert found.mean == pytest.approx(np.mean(numbers))
    assert found.quantile(share) == np.quantile(numbers, share, method="inverted_cdf")
    assert found.to_json()["largest"] == max(numbers)


def test_edges():
    assert doubling(Counter([0, 30])).edges == (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
    assert doubling(Counter([100, 1000])).edges == (96, 128, 192, 256, 384, 512, 768, 1024)
    assert even(Counter([3, 7])).edges == (3, 4, 5, 6, 7, 8)
    assert even(Counter([0, 95])).edges == tuple(range(0, 101, 5))
    assert even(Counter()).edges == doubling(Counter()).edges == ()
    assert even(Counter()).to_json()["counts"] == [] and even(Counter()).quantile(0.5) == 0


@pytest.mark.parametrize("values", [Counter(), Counter([0]), Counter([1, 5, 5]), Counter(range(5000))])
def test_the_drawing_has_a_bar_for_each_bin_that_is_not_empty(values):
    found = even(values)
    drawn = found.svg("how many")
    heights = [float(fields["height"]) for _, fields in check_html(drawn).elements if fields.get("class") == "bar"]
    assert len(heights) == len(found.counts)
    assert [height > 0 for height in heights] == [count > 0 for count in found.counts]
