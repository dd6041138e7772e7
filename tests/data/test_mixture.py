"""Draws: pure functions of their place, every sample once in a pass, in proportion over any stretch."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivl3_jax.data.mixture import Mixture, weights_by
from ivl3_jax.data.permutation import generator, mixed, permuted


@given(st.integers(1, 400), st.integers(0, 2**64), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_a_permutation(count, seed, key):
    assert sorted(permuted(place, count, seed, key) for place in range(count)) == list(range(count))


def test_permutations_differ_and_look_random():
    orders = {
        tuple(permuted(place, 50, seed, epoch) for place in range(50)) for seed in range(20) for epoch in range(20)
    }
    assert len(orders) == 400
    # Where an element comes to lie is even: chi-square over places, 99.9% is 149 for 99 degrees of freedom.
    found = Counter(permuted(0, 100, seed) for seed in range(20_000))
    assert sum((found[i] - 200) ** 2 / 200 for i in range(100)) < 149
    assert permuted(123_456_789, 10**12, 7) < 10**12


def test_keys_are_apart():
    assert len({mixed(a, b) for a in range(50) for b in range(50)}) == 2500
    assert generator(1, 2, 3).random() == generator(1, 2, 3).random() != generator(1, 3, 2).random()


@pytest.mark.parametrize("streams", [1, 3, 8])
def test_a_pass_has_every_sample_once(streams):
    lengths, passes = (50, 7, 200), (1, 2, 1)
    mixture = Mixture(lengths, (50, 30, 100), streams, seed=1, passes=passes, exhausted="drop")
    seen = Counter()
    for stream in range(streams):
        number = 0
        while not mixture.ended(stream, number):
            draw = mixture.draw(stream, number)
            seen[draw] += draw is not None
            number += 1
        assert all(mixture.draw(stream, number + i) is None for i in range(50))
    del seen[None]
    assert set(seen.values()) == {1}
    expected = {(s, i, e) for s, n in enumerate(lengths) for i in range(n) for e in range(passes[s])}
    assert set(seen) == expected


def test_streams_share_a_pass():
    mixture = Mixture((1000,), (1,), 4, seed=1)
    draws = [mixture.draw(stream, number) for stream in range(4) for number in range(250)]
    assert {draw.sample for draw in draws} == set(range(1000))
    assert {draw.epoch for draw in draws} == {0}
    assert {mixture.draw(0, number).epoch for number in range(250, 500)} == {1}


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=6), st.integers(0, 20_000), st.integers(1, 5000))
@settings(max_examples=50, deadline=None)
def test_sources_come_in_proportion(weights, start, count):
    mixture = Mixture((1000,) * len(weights), tuple(weights), 3, seed=2)
    found = Counter(mixture.draw(1, number).source for number in range(start, start + count))
    for source, weight in enumerate(weights):
        share = weight / sum(weights)
        # Whole blocks are exact to one; the two blocks at the ends are shuffled, five sigmas each.
        assert abs(found[source] - count * share) < 2 + 2 * 5 * np.sqrt(min(count, 1024) * share)


def test_a_draw_needs_no_earlier_one():
    mixture = Mixture((10**9, 17), (10**9, 10**6), 64, seed=5)
    assert mixture.draw(63, 10**9) == Mixture((10**9, 17), (10**9, 10**6), 64, seed=5).draw(63, 10**9)
    assert mixture.draw(63, 10**9) != mixture.draw(62, 10**9)


def test_the_seed_changes_the_order():
    first, second = (Mixture((1000, 500), (2, 1), 2, seed=seed) for seed in (0, 1))
    assert [first.draw(0, n) for n in range(50)] != [second.draw(0, n) for n in range(50)]


def test_weights():
    names, lengths = ("a", "b", "c"), (100, 400, 500)
    assert weights_by("length", names, lengths) == (100, 400, 500)
    assert weights_by("sqrt", names, lengths)[:2] == (10, 20)
    assert weights_by({"c": 1, "a": 2, "b": 3}, names, lengths) == (2, 3, 1)
    shared = weights_by("length", names, lengths, (False, True, True), 0.25, (1, 1, 1))
    np.testing.assert_allclose(shared, (0.25, 0.75 * 4 / 9, 0.75 * 5 / 9))
    tokens = (200, 1000, 50)
    of_tokens = np.multiply(weights_by("length", names, lengths, (False, True, True), 0.25, tokens), tokens)
    np.testing.assert_allclose(of_tokens / of_tokens.sum(), (0.25, 0.75 * 400 / 425, 0.75 * 25 / 425))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("lenght", "ab", (1, 2)), "weights are 'lenght'; they must be length, sqrt, or a number"),
        (({"a": 1, "x": 2}, "ab", (1, 2)), r"given for \['x'\] and missing for \['b'\]; the sources are a, b"),
        (({"a": 1, "b": 0}, "ab", (1, 2)), "the weight of b is 0.0; it must be above 0 and finite"),
        (("length", "ab", (1, 2), (True, True), 0.25, (1, 1)), "text_share is 0.25, but all sources are multimodal"),
        (("length", "ab", (1, 2), (True, False), 1.0), "text_share is 1.0; it must be above 0 and below 1"),
    ],
)
def test_bad_weights(arguments, words):
    with pytest.raises(ValueError, match=words):
        weights_by(*arguments)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"lengths": (), "weights": ()}, "0 sources have 0 weights"),
        ({"lengths": (3, 0)}, "source 1 has 0 samples"),
        ({"weights": (1, -1)}, "source 1 has the weight -1; it must be above 0"),
        ({"streams": 0}, "there are 0 streams"),
        ({"exhausted": "stop"}, "exhausted is 'stop'; it must be repeat or drop"),
    ],
)
def test_bad_mixtures(fields, words):
    with pytest.raises(ValueError, match=words):
        Mixture(**({"lengths": (3, 4), "weights": (1, 2), "streams": 2} | fields))
