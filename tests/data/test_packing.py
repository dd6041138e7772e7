"""The packer: every item once, no budget passed, good fill, never more rows than the published algorithm."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivl3_jax.data.packing import Budget, Item, Packer

SIZES = st.tuples(st.integers(1, 100), st.integers(0, 8), st.integers(1, 2))


def rows_of(sizes, budget, lookahead):
    packer, rows = Packer(budget, lookahead), []
    for key, size in enumerate(sizes):
        packer.add(Item(key, *size))
        while packer.ready and len(packer.waiting) > 1:
            rows.append(packer.row())
    while row := packer.row():
        rows.append(row)
    return rows


def published_rows(sizes, budget, buffers):
    """reference: InternVL's buffers, ordered by tiles, a text-only sample counted as one tile; returns the number."""
    full, open_rows = 0, []
    for tokens, tiles, _ in sizes:
        tiles = max(1, tiles)
        found = next(
            (r for r in open_rows if r[0] + tiles <= budget.tiles and r[1] + tokens <= budget.tokens), (0, 0, None)
        )
        if found[-1] is not None:
            open_rows.remove(found)
        merged = (found[0] + tiles, found[1] + tokens, object())
        if merged[1] == budget.tokens:
            full += 1
        else:
            open_rows.insert(sum(r[0] >= merged[0] for r in open_rows), merged)
        while open_rows and (open_rows[0][0] == budget.tiles or len(open_rows) > buffers):
            open_rows.pop(0)
            full += 1
    return full + len(open_rows)


@given(st.lists(SIZES, max_size=60), st.sampled_from([0.5, 1.0, 3.0]))
@settings(max_examples=300, deadline=None)
def test_every_item_once_and_no_budget_passed(sizes, lookahead):
    budget = Budget(tokens=100, tiles=8, segments=5)
    rows = rows_of(sizes, budget, lookahead)
    assert sorted(item.key for row in rows for item in row) == list(range(len(sizes)))
    for row in rows:
        assert all(item[1:] == sizes[item.key] for item in row)
        assert sum(item.tokens for item in row) <= budget.tokens
        assert sum(item.tiles for item in row) <= budget.tiles
        assert sum(item.segments for item in row) <= budget.segments
        assert [item.key for item in row] == sorted(item.key for item in row)


@given(st.lists(SIZES, min_size=5, max_size=60), st.integers(0, 59))
@settings(max_examples=200, deadline=None)
def test_going_on_from_what_waits_gives_the_same_rows(sizes, cut):
    budget = Budget(tokens=100, tiles=8, segments=6)
    packer, other, after = Packer(budget, 2.0), None, []
    for key, size in enumerate(sizes):
        if key == cut:
            other = Packer(budget, 2.0, packer.waiting, packer.rows)
        packer.add(Item(key, *size))
        if other is not None:
            other.add(Item(key, *size))
        while packer.ready:
            row = packer.row()
            if other is not None:
                assert other.ready
                assert other.row() == row
                after.append(row)
    while other is not None and (row := packer.row()):
        assert other.row() == row


@given(st.lists(SIZES, min_size=30, max_size=200))
@settings(max_examples=100, deadline=None)
def test_none_waits_for_ever(sizes):
    """What has waited longest is in one of the next eight rows."""
    packer, oldest, rows = Packer(Budget(tokens=100, tiles=8, segments=100), 3.0), None, 0
    for key, size in enumerate(sizes):
        packer.add(Item(key, *size))
        if packer.ready:
            oldest, rows = (oldest, rows + 1) if oldest == packer.waiting[0] else (packer.waiting[0], 1)
            assert rows <= 8
            packer.row()


def text(rng, count):
    return [(int(n), 0, 1) for n in np.clip(rng.lognormal(5.8, 0.9, count), 8, 16384)]


def images(rng, count):
    tiles = rng.choice([1, 3, 5, 7, 9, 13], count)
    return [(int(256 * t + 2 + n), int(t), 1) for t, n in zip(tiles, rng.lognormal(5, 0.8, count), strict=True)]


def videos(rng, count):
    frames = rng.integers(8, 33, count)
    return [(int(258 * f + n), int(f), 1) for f, n in zip(frames, rng.lognormal(5, 0.8, count), strict=True)]


def mixed(rng, count):
    kinds = [text(rng, count), images(rng, count), videos(rng, count)]
    return [kinds[k][i] for i, k in enumerate(rng.choice(3, count, p=[0.5, 0.4, 0.1]))]


STREAMS = {"text": text, "images": images, "videos": videos, "mixed": mixed}
ROW = Budget(tokens=16384, tiles=48, segments=10_000)


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("buffers", [20, 50, 200, 1000])
def test_never_more_rows_than_published(kind, buffers):
    for seed in range(2):
        sizes = STREAMS[kind](np.random.default_rng(seed), 1500)
        assert len(rows_of(sizes, ROW, buffers)) <= published_rows(sizes, ROW, buffers)


@pytest.mark.parametrize(("kind", "least_tokens", "least_tiles"), [("text", 0.98, 0), ("images", 0, 0.99)])
def test_rows_are_full(kind, least_tokens, least_tiles):
    sizes = STREAMS[kind](np.random.default_rng(0), 3000)
    rows = rows_of(sizes, ROW, 4.0)[:-5]
    assert np.mean([sum(item.tokens for item in row) for row in rows]) / ROW.tokens > least_tokens
    assert np.mean([sum(item.tiles for item in row) for row in rows]) / ROW.tiles >= least_tiles


def test_few_segments_let_no_more_wait():
    """Short samples, of which a row takes few, neither pile up nor wait long; a state keeps all that wait."""
    packer, rng, ages = Packer(Budget(tokens=16384, tiles=48, segments=16), 4.0), np.random.default_rng(0), []
    for key in range(2000):
        packer.add(Item(key, int(rng.integers(5, 40)), 0, 1))
        if packer.ready:
            ages.append(max(key - item.key for item in packer.row()))
            assert len(packer.waiting) < 4 * 16
    assert max(ages) < 64 * 16


def test_what_fits_no_row():
    with pytest.raises(ValueError, match="does not fit into a row of"):
        Packer(Budget(10, 2, 3), 2.0).add(Item(0, 11, 0, 1))


def test_rows_without_tiles():
    rows = rows_of([(4, 0, 1)] * 10, Budget(tokens=8, tiles=0, segments=4), 2.0)
    assert [len(row) for row in rows] == [2] * 5
