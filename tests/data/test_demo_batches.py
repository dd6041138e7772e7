"""Batches: the order is keyed, nothing is lost, budgets hold, threads change nothing."""

from itertools import islice

import numpy as np
import pytest

from ivl3_jax.data import Message, Sample, prefetch
from ivl3_jax.demo.batches import batches, epoch_order
from tests.data.pictures import picture

ROOM = {"rows": 2, "tokens": 70, "tiles": 3, "segments": 3}


def numbered(index):
    """Sample `index` answers with a number of its own; every third one has an image."""
    images = (picture(40, 40, index),) if index % 3 == 0 else ()
    messages = (Message("user", "Which?"), Message("assistant", f"{index:03d}" * (1 + index % 4)))
    return Sample(messages, images, source=index, where=f"file:{index}")


def sources(batch):
    return [int(s) for row in range(2) for s in batch.source_id[row][: batch.segment_ids[row].max()]]


def test_every_sample_once_an_epoch(plain):
    found = [s for batch in batches(numbered, 23, plain, **ROOM, epochs=2) for s in sources(batch)]
    assert sorted(found) == sorted([*range(23)] * 2)
    assert sorted(found[:23]) != found[:23]


def test_shapes_are_static_and_budgets_hold(plain):
    for batch in batches(numbered, 23, plain, **ROOM, epochs=1):
        assert batch.tokens.shape == (2, 70) and batch.tiles.shape == (2, 3, 56, 56, 3)
        assert batch.segment_ids.max() <= 3 and batch.visual_index.max() < 3 * 4


def test_first_row_with_room_takes_the_sample(plain):
    order = [int(i) for i in epoch_order(23, 0, 0)]
    rows, expected = [[0, 0, []], [0, 0, []]], []
    for index in order:
        encoded = plain.encode(numbered(index))
        size, tiles = len(encoded), len(encoded.tiles)
        for row in rows:
            if row[0] + size <= 70 and row[1] + tiles <= 3 and len(row[2]) < 3:
                break
        else:
            expected.append(rows[0][2] + rows[1][2])
            rows = [[0, 0, []], [0, 0, []]]
            row = rows[0]
        row[0], row[1] = row[0] + size, row[1] + tiles
        row[2].append(index)
    expected.append(rows[0][2] + rows[1][2])
    assert [sources(batch) for batch in batches(numbered, 23, plain, **ROOM, epochs=1)] == expected


def test_order_is_a_function_of_seed_and_epoch(plain):
    assert epoch_order(5, 0, 0).tolist() == epoch_order(5, 0, 0).tolist()
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    # Written down once, so that another version of numpy cannot change the order unnoticed.
    assert epoch_order(8, 1, 2).tolist() == [7, 0, 5, 4, 6, 2, 3, 1]


def test_prefetch_changes_nothing(plain):
    straight = list(islice(batches(numbered, 23, plain, **ROOM, seed=5), 12))
    ahead = list(islice(prefetch(batches(numbered, 23, plain, **ROOM, seed=5)), 12))
    for one, other in zip(straight, ahead, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_prefetch_ends_and_passes_errors_on_in_their_place():
    assert list(prefetch(iter(range(5)), ahead=3)) == [0, 1, 2, 3, 4]

    def failing():
        yield 1
        yield 2
        raise ValueError("third")

    seen = []
    with pytest.raises(ValueError, match="third"):
        for item in prefetch(failing(), ahead=4):
            seen.append(item)
    assert seen == [1, 2]


def test_samples_that_never_fit(plain):
    long = Sample((Message("user", "?"), Message("assistant", "0123456789" * 9)), where="file:9")
    with pytest.raises(ValueError, match=r"^file:9 has \d+ tokens, but a row has room for 70"):
        next(batches(lambda index: long, 1, plain, **ROOM))
    many = Sample((Message("user", "?"), Message("assistant", "7")), (picture(9, 9),) * 4, where="file:8")
    with pytest.raises(ValueError, match="file:8 has 4 tiles, but a row has room for 3"):
        next(batches(lambda index: many, 1, plain, **(ROOM | {"tokens": 99})))
    with pytest.raises(ValueError, match="there are 0 samples"):
        next(batches(numbered, 0, plain, **ROOM))


def test_faulty_samples_stop_with_their_place(plain):
    bad = Sample((Message("user", "<image>"), Message("assistant", "7")), where="file:7")
    with pytest.raises(ValueError, match="^file:7: "):
        next(batches(lambda index: bad, 1, plain, **ROOM))
