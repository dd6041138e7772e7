"""Cuts of long units: nothing is lost that should stay, no image is cut, and every piece has room."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivl3_jax.data import Fault
from ivl3_jax.data.length import split, truncate
from ivl3_jax.data.units import Frame, Picture, Text, Unit

START, CONTEXT, END = 1, 2, 3

# Stretches of text, each with its label, or an image of so many tiles of 4 tokens.
stretches = st.lists(st.tuples(st.integers(1, 12), st.booleans()) | st.integers(1, 3), min_size=1, max_size=8)


def unit_of(parts):
    ids, supervised, blocks, visuals = [], [], [], []
    for part in parts:
        if isinstance(part, tuple):
            ids += [100 + len(ids) + n for n in range(part[0])]
            supervised += [part[1]] * part[0]
        else:
            blocks.append(len(ids) + 1)
            ids += [START, CONTEXT, END]
            supervised += [False] * 3
            visuals.append(Picture(f"{len(visuals)}.png", (1, 1), (part, 1), part))
    sizes = np.array([4 * v.tiles for v in visuals], np.int64)
    text = Text(np.array(ids, np.int32), np.array(supervised, bool), np.array(blocks, np.int64), sizes)
    return Unit((text,), tuple(visuals), 3, "a:1")


def spelled(parts):
    """The whole token by token, with the number of the image that each belongs to, or -1."""
    tokens, place, image = [], 0, 0
    for part in parts:
        if isinstance(part, tuple):
            tokens += [(100 + place + n, part[1], -1) for n in range(part[0])]
            place += part[0]
        else:
            tokens += [(token, False, image) for token in [START, *[CONTEXT] * 4 * part, END]]
            place, image = place + 3, image + 1
    return tokens


def tokens_of(unit):
    ids, supervised, visual = unit.texts[0].expanded()
    assert len(ids) == unit.tokens and visual.sum() == 4 * unit.tiles
    assert np.array_equal(visual, ids == CONTEXT)
    assert (ids == START).sum() == (ids == END).sum() == len(unit.visuals)
    return list(zip(ids.tolist(), supervised.tolist(), strict=True))


@given(stretches, st.integers(1, 40))
def test_truncated_is_the_longest_beginning_that_cuts_no_image(parts, room):
    whole = spelled(parts)
    end = min(room, len(whole))
    while 0 < end < len(whole) and whole[end - 1][2] == whole[end][2] != -1:
        end -= 1
    unit = unit_of(parts)
    if not any(trained for _, trained, _ in whole[:end]):
        with pytest.raises(Fault, match=rf"^has {len(whole)} tokens, but a row has room for {room}, and no answer"):
            truncate(unit, room)
        return
    (cut,) = truncate(unit, room)
    assert tokens_of(cut) == [token[:2] for token in whole[:end]]
    assert [v.source for v in cut.visuals] == [f"{n}.png" for n in sorted({image for *_, image in whole[:end]} - {-1})]
    assert (cut.source, cut.where) == (3, "a:1")


@given(stretches, st.integers(14, 40))
def test_split_keeps_everything_in_order(parts, room):
    unit = unit_of(parts)
    pieces = split(unit, room)
    assert [token for piece in pieces for token in tokens_of(piece)] == [token[:2] for token in spelled(parts)]
    assert all(0 < piece.tokens <= room for piece in pieces)
    assert [v for piece in pieces for v in piece.visuals] == list(unit.visuals)
    assert sum(piece.supervised[0] for piece in pieces) == unit.supervised[0]
    for piece, following in zip(pieces, pieces[1:], strict=False):  # as full as can be
        first = following.texts[0]
        step = first.sizes[0] + 2 if first.ids[0] == START else 1
        assert piece.tokens + step > room


def test_an_image_longer_than_a_row():
    with pytest.raises(Fault, match="^an image takes 14 tokens, but a row has room for 13; raise tokens") as raised:
        split(unit_of([(2, True), 3]), 13)
    assert raised.value.reason == "tokens"


def test_frames_go_one_by_one():
    ids = np.array([9, *[START, CONTEXT, END] * 4, 9], np.int32)
    blocks = np.array([2, 5, 8, 11], np.int64)
    text = Text(ids, ids == 9, blocks, np.full(4, 4))
    unit = Unit((text,), tuple(Frame("a.mp4", 10 * n) for n in range(4)))
    assert [[v.index for v in piece.visuals] for piece in split(unit, 12)] == [[0], [10, 20], [30]]
    assert [v.index for v in truncate(unit, 20)[0].visuals] == [0, 10, 20]
