"""Boxes to text and back: nothing moves by more than a thousandth, and what was written reads the same again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivl3_jax.data.grounding import Grounded, cut_off, read_boxes, write_boxes

sides = st.integers(1, 5000)
roundings = st.sampled_from([cut_off, round])


@st.composite
def boxes(draw):
    width, height = draw(sides), draw(sides)

    def span(side):
        return sorted(draw(st.tuples(*[st.floats(0, side)] * 2)))

    found = []
    for _ in range(draw(st.integers(1, 4))):
        (x1, x2), (y1, y2) = span(width), span(height)
        found.append((x1, y1, x2, y2))
    return width, height, tuple(found)


@given(boxes(), roundings)
def test_pixels_to_text_and_back(made, whole):
    width, height, found = made
    text = write_boxes(Grounded("a cat", found), width, height, whole)
    (back,) = read_boxes(text, width, height)
    assert back.phrase == "a cat" and len(back.boxes) == len(found)
    for before, after in zip(found, back.boxes, strict=True):
        for a, b, side in zip(before, after, (width, height) * 2, strict=True):
            assert abs(a - b) <= side / 1000 * 1.00001
            assert b <= a + 1e-5 * side if whole is cut_off else abs(a - b) <= side / 2000 * 1.00001
    assert write_boxes(back, width, height, whole) == text


@given(st.lists(st.integers(0, 1000), min_size=4, max_size=4), sides, sides, roundings)
def test_text_to_pixels_and_back(numbers, width, height, whole):
    x1, x2 = sorted(numbers[:2])
    y1, y2 = sorted(numbers[2:])
    text = f"<ref>it</ref><box>[[{x1}, {y1}, {x2}, {y2}]]</box>"
    assert write_boxes(read_boxes(text, width, height)[0], width, height, whole) == text


def test_by_hand():
    cat = Grounded("a cat", ((10, 20, 110, 70), (0, 0, 200, 100)))
    assert write_boxes(cat, 200, 100) == "<ref>a cat</ref><box>[[50, 200, 550, 700], [0, 0, 1000, 1000]]</box>"
    third = Grounded("", ((100 / 3, 0, 200 / 3, 1),))
    assert write_boxes(third, 100, 1) == "<box>[[333, 0, 666, 1000]]</box>"
    assert write_boxes(third, 100, 1, round) == "<box>[[333, 0, 667, 1000]]</box>"


def test_all_boxes_of_an_answer():
    answer = (
        "There is <ref>a cat</ref><box>[[100, 0, 500, 1000]]</box> beside <ref>dogs</ref> "
        "<box>[[0,0,10,10],[500, 500 , 750,1000]]</box>, and <box>[[1, 2, 3]]</box> is none, nor <ref>x</ref> [[a]]. "
        "Without tags: tree[[0, 0, 1000, 500]]; <quad>[[1, 2, 3, 4, 5, 6, 7, 8]]</quad>"
    )
    assert read_boxes(answer, 200, 100) == [
        Grounded("a cat", ((20, 0, 100, 100),)),
        Grounded("dogs", ((0, 0, 2, 1), (100, 50, 150, 100))),
        Grounded("", ((0, 0, 200, 50),)),
    ]
    assert read_boxes("none [1, 2, 3, 4]", 200, 100) == []


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, 0, 101, 5), (6, 0, 5, 5), (0, 0, 5, float("nan"))])
def test_boxes_that_cannot_be(box):
    with pytest.raises(ValueError, match="the box .* is not within 100 x 50 pixels; valid: 0 <= x1 <= x2 <= 100 and"):
        write_boxes(Grounded("it", (box,)), 100, 50)
    with pytest.raises(ValueError, match="'it' has no box; at least one is needed"):
        write_boxes(Grounded("it", ()), 100, 50)
