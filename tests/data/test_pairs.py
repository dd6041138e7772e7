"""Preference pairs: two segments of one prompt, one set of tiles, and their place in a batch."""

import dataclasses

import numpy as np
import pytest

from ivl3_jax.data import Fault, Message, Pair, collate
from ivl3_jax.data.positions import random_deltas
from tests.data.pictures import picture
from tests.data.talks import messages, sample

IGNORE = -100


def pair(*turns, chosen="It is 7.", rejected="Eight, I think.", images=(), **fields):
    return Pair(messages(*turns), chosen, rejected, tuple(images), **fields)


SEEN = [("s", "Be brief."), ("u", "<image> and"), ("a", "Yes?"), ("u", "<image>?")]


def test_both_answers_follow_the_same_prompt(encoder, rng):
    images = [picture(120, 60, 1), picture(40, 40, 2)]
    (unit,) = encoder.measure(pair(*SEEN, images=images, source=2, where="a:1"), rng)
    chosen, rejected = encoder.decode(unit, rng)
    assert (unit.segments, unit.tokens, unit.tiles) == (2, len(chosen) + len(rejected), 4)
    assert (chosen.answer, rejected.answer) == ("chosen", "rejected") and len(rejected.tiles) == 0
    assert {(s.source, s.where) for s in (chosen, rejected)} == {(2, "a:1")}
    tokenizer = encoder.processor.tokenizer
    for found, text in ((chosen, "It is 7."), (rejected, "Eight, I think.")):
        alone = encoder.processor.encode(sample(*SEEN, ("a", text), images=images))
        assert np.array_equal(found.tokens, alone.tokens) and np.array_equal(found.visual_index, alone.visual_index)
        assert found.labels[found.labels != IGNORE].tolist() == [*tokenizer.encode(text), tokenizer.id("<|im_end|>")]
    assert unit.supervised == (chosen.supervised.sum(), rejected.supervised.sum())
    assert np.array_equal(chosen.tiles, alone.tiles)


def test_both_answers_see_the_same_steps(encoder, rng):
    stepped = dataclasses.replace(encoder, deltas=random_deltas)
    (unit,) = stepped.measure(pair(*SEEN, images=[picture(120, 60), picture(120, 60)]), rng)
    chosen, rejected = stepped.decode(unit, rng)
    prompt = len(chosen) - unit.supervised[0] - 1
    assert np.array_equal(chosen.positions[:prompt], rejected.positions[:prompt])
    assert chosen.positions[prompt - 1] < prompt - 1


def test_pairs_in_a_batch(encoder, rng):
    first = encoder.decode(encoder.measure(pair(*SEEN, images=[picture(120, 60), picture(9, 9)]), rng)[0], rng)
    second = encoder.decode(encoder.measure(pair(("u", "Which?"), images=[picture(9, 9, 3)]), rng)[0], rng)
    alone = encoder.processor.encode(sample(("u", "?"), ("a", "7"), images=[picture(9, 9, 4)]))
    members = [*first, alone, *second]
    batch = collate(encoder.processor, [members, second], 300, 6, 6)
    assert batch.pair_id.tolist() == [[0, 0, -1, 1, 1, -1], [0, 0, -1, -1, -1, -1]]
    assert batch.chosen.tolist() == [[True, False, False, True, False, False], [True] + [False] * 5]
    assert np.array_equal(batch.tiles[0], np.concatenate([m.tiles for m in members]))
    for index, (member, start) in enumerate(zip(members, (0, 0, 16, 20, 20), strict=True)):
        here = batch.visual_index[0][batch.segment_ids[0] == index + 1]
        assert np.array_equal(here, np.where(member.visual_index < 0, -1, member.visual_index + start))
    for torn in ([first[0]], [first[1]], [first[0], alone, first[1]], [first[1], first[0]], [*first, first[1]]):
        with pytest.raises(ValueError, match=r"^row 0: a pair is torn apart at segment \d"):
            collate(encoder.processor, [torn], 300, 9, 6)


def test_a_pair_is_never_cut(encoder, rng):
    for policy in ("raise", "truncate", "split"):
        short = dataclasses.replace(encoder, tokens=30, too_long=policy)
        with pytest.raises(Fault, match=r"^a:1: the two answers with their prompts have \d+ tokens, .* 30") as raised:
            short.measure(pair(("u", "Which of them?"), where="a:1"), rng)
        assert raised.value.reason == "tokens"
    (unit,) = dataclasses.replace(encoder, tiles=2, too_many_tiles="shrink").measure(
        pair(("u", "?"), images=[picture(120, 60)]), rng
    )
    assert unit.tiles == 1 and len(encoder.decode(unit, rng)[1]) == len(unit.texts[1])


@pytest.mark.parametrize(
    ("made", "reason", "told"),
    [
        (lambda: pair(("u", "?"), ("a", "!")), "line", "the prompt's last turn is the assistant's; it must"),
        (lambda: pair(), "line", "the conversation has no user turn"),
        (lambda: pair(("u", "?"), chosen="<img>"), "placeholder", "assistant turn contains the special token <img>"),
        (lambda: pair(("u", "?"), rejected="\udce9"), "line", "lone surrogate"),
        (lambda: pair(("u", "<image>")), "placeholder", "1 <image> placeholders for 0 images"),
    ],
)
def test_faulty_pairs(made, reason, told, encoder, rng):
    with pytest.raises(Fault, match=f"^a:1: .*{told}") as raised:
        encoder.measure(dataclasses.replace(made(), where="a:1"), rng)
    assert raised.value.reason == reason


def test_fields_are_the_agreed_ones():
    names = [field.name for field in dataclasses.fields(Pair)]
    assert names == ["messages", "chosen", "rejected", "images", "videos", "source", "where"]
    assert Pair((Message("user", "?"),), "a", "b") == Pair((Message("user", "?"),), "a", "b", (), (), 0, "")
