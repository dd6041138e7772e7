"""Who has which page, what is known, and what gives way."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ivl3_jax.inference.pages import NOBODY, Pages, page_names
from ivl3_jax.inference.tile_table import TileTable


def test_pages_are_found_again_by_their_longest_beginning():
    pages = Pages(6)
    mine = pages.take(3)
    assert NOBODY not in mine and len(set(mine)) == 3
    for page, name in zip(mine, (b"a", b"b", b"c"), strict=True):
        pages.name(page, name)
    pages.drop(mine)
    assert pages.available == 5
    assert pages.find([b"a", b"b", b"x", b"c"]) == mine[:2]
    assert pages.available == 3
    assert pages.find([b"x", b"a"]) == []


def test_the_longest_unused_gives_way_and_a_rows_end_before_its_beginning():
    pages = Pages(4)
    mine = pages.take(3)
    for page, name in zip(mine, (b"a", b"b", b"c"), strict=True):
        pages.name(page, name)
    pages.drop(mine)
    assert pages.take(1) == [mine[2]]
    assert pages.find([b"a", b"b", b"c"]) == mine[:2]
    assert pages.take(1) is None


def test_more_pages():
    pages = Pages(3)
    mine = pages.take(2)
    pages.grow(5)
    assert sorted(pages.take(2) + mine) == [1, 2, 3, 4]


def test_names_are_equal_where_everything_before_is():
    tokens, positions = np.arange(40, dtype=np.int32), np.arange(40, dtype=np.float32)
    visual = np.full(40, -1, np.int32)
    visual[4:12] = np.arange(8)

    def names(tokens=tokens, positions=positions, visual=visual, digests=(b"p", b"q")):
        return page_names(tokens, positions, visual, digests, 4, 8)

    def same(other):
        return [mine == its for mine, its in zip(names(), other, strict=True)]

    assert len(names()) == len(set(names())) == 5
    assert same(names()) == [True] * 5
    changed = tokens.copy()
    changed[17] += 1
    assert same(names(tokens=changed)) == [True, True, False, False, False]
    moved = positions.copy()
    moved[39] += 0.5
    assert same(names(positions=moved)) == [True, True, True, True, False]
    assert same(names(digests=(b"p", b"other"))) == [True, False, False, False, False]
    assert same(names(visual=np.where(visual == 0, -1, visual))) == [False] * 5
    assert names(tokens[:15], positions[:15], visual[:15]) == names()[:1]


class Rows(RuleBasedStateMachine):
    """Rows that take, name, share and drop pages at random."""

    def __init__(self):
        super().__init__()
        self.pages, self.rows, self.named = Pages(9), [], 0

    @rule(count=st.integers(0, 4))
    def take(self, count):
        available = self.pages.available
        taken = self.pages.take(count)
        assert (taken is None) == (count > available)
        if taken:
            self.rows.append(taken)

    @rule(data=st.data())
    def name(self, data):
        if self.rows:
            page = data.draw(st.sampled_from(data.draw(st.sampled_from(self.rows))))
            self.pages.name(page, b"%d" % data.draw(st.integers(0, 5)))

    @rule(data=st.data())
    def find(self, data):
        if found := self.pages.find([b"%d" % n for n in data.draw(st.permutations(range(6)))]):
            self.rows.append(found)

    @rule(data=st.data())
    def drop(self, data):
        if self.rows:
            self.pages.drop(self.rows.pop(data.draw(st.integers(0, len(self.rows) - 1))))

    @invariant()
    def every_page_is_somewhere(self):
        held = {page for row in self.rows for page in row}
        assert NOBODY not in held
        assert self.pages.available == 8 - len(held)


TestRows = Rows.TestCase
TestRows.settings = settings(max_examples=50, deadline=None)


def test_places_for_tiles():
    table = TileTable(2)
    assert table.add([b"a", b"b"], keep=()) == [0, 1]
    assert b"a" in table and table.place(b"a") == 0
    assert table.add([b"c"], keep=()) == [1], "the longest unused gives way"
    assert b"b" not in table
    assert table.add([b"d"], keep=[b"a"]) == [1]
    with pytest.raises(ValueError, match="the table of visual tokens has 2 places; more tiles are needed at once"):
        table.add([b"e"], keep=[b"a", b"d"])
