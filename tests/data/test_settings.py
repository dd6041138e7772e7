"""From a recipe's settings to a feed."""

import json

import numpy as np
import pytest

from ivl3_jax.data import Fault, Jpeg
from ivl3_jax.data.jsonl import JsonlSource
from ivl3_jax.data.loader import Loader
from ivl3_jax.data.settings import DataRecipe, open_feed, source_specs
from tests.data.pictures import picture


def line(answer, **fields):
    turns = [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": answer}]
    return json.dumps({"conversations": turns} | fields)


@pytest.fixture
def meta(tmp_path):
    picture(60, 40).save(tmp_path / "a.png")
    (tmp_path / "text.jsonl").write_text("".join(f"{line(f'number {i}')}\n" for i in range(40)))
    (tmp_path / "images.jsonl").write_text("".join(f"{line(f'digit {i}', image='a.png')}\n" for i in range(10)))
    pair = {"question": "Which?", "chosen": "a", "rejected": "b"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    entries = {
        "text": {"annotation": "text.jsonl", "repeat_time": 0.5},
        "images": {"annotation": "images.jsonl", "repeat_time": 3, "data_augment": True, "max_dynamic_patch": 2},
    }
    (tmp_path / "meta.json").write_text(json.dumps(entries))
    return tmp_path / "meta.json"


def recipe(meta, **fields):
    return DataRecipe(meta=[str(meta)], rows=2, tokens=200, tiles=8, segments=8, **fields)


def test_a_meta_file(processor, meta):
    feed = open_feed(recipe(meta, max_tiles=4), processor, seed=7)
    text, images = feed.parts
    assert [len(part.source) for part in feed.parts] == [20, 10]
    assert feed.mixture.weights == (20, 30)
    assert (feed.mixture.passes, feed.mixture.streams, feed.mixture.seed) == ((1, 3), 2, 7)
    assert (text.encoder.jpeg, images.encoder.jpeg is None, images.max_tiles) == (None, False, 2)
    assert text.encoder.processor.max_tiles == 4
    batch = next(loader := Loader(feed))
    loader.close()
    assert batch.tokens.shape == (2, 200)
    assert set(batch.source_id[batch.source_id > 0]) == {1}


def test_other_ways_of_making_tiles(processor, meta):
    plain = open_feed(recipe(meta), processor, seed=7).parts[1].encoder
    assert (plain.video_jpeg, plain.processor.pad_to_square) == (None, False)
    chosen = recipe(meta, pad_to_square=True, jpeg=Jpeg(quality=(80, 80)), jpeg_videos=True)
    text, images = (part.encoder for part in open_feed(chosen, processor, seed=7).parts)
    assert images.jpeg == images.video_jpeg == Jpeg(quality=(80, 80)) and text.video_jpeg is None
    (unit,) = images.measure(JsonlSource(source_specs(chosen)[1], 1)[0], np.random.default_rng(0), 2)
    assert unit.tiles == 1


def test_text_and_pictures_in_proportion(processor, meta):
    """A share of tokens, not of samples, whose lengths are unequal."""
    feed = open_feed(recipe(meta, text_share=0.25), processor, seed=0)
    assert feed.mixture.weights[0] > 0.4 * feed.mixture.weights[1]  # where 0.33 times would be the share of samples
    rng = np.random.default_rng(0)
    lengths = [[part.measure(i, rng)[0].tokens for i in range(len(part.source))] for part in feed.parts]
    text, images = np.multiply(feed.mixture.weights, [np.mean(tokens) for tokens in lengths])
    assert text / (text + images) == pytest.approx(0.25)
    assert open_feed(recipe(meta, weights={"text": 2, "images": 1}), processor, seed=0).mixture.weights == (2, 1)


def test_a_pass_and_no_more(processor, meta):
    feed = open_feed(recipe(meta, exhausted="drop"), processor, seed=0)
    assert sum(int(batch.segment_ids.max(axis=1).sum()) for batch in Loader(feed)) == 20 + 3 * 10


def test_one_file(processor, meta):
    (spec,) = source_specs(DataRecipe(annotation=str(meta.with_name("text.jsonl"))))
    assert (spec.name, spec.root) == ("text.jsonl", str(meta.parent))
    assert source_specs(DataRecipe(annotation="text.jsonl", root="/pictures"))[0].root == "/pictures"


def test_pairs_are_no_conversations(processor, meta):
    feed = open_feed(DataRecipe(annotation=str(meta.with_name("pairs.jsonl"))), processor, seed=0)
    with pytest.raises(Fault, match=r"pairs.jsonl:1: is a preference pair; supervised training takes conversations"):
        next(Loader(feed))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, r"give either meta \(files\) or annotation"),
        ({"meta": ["a.json"], "annotation": "b.jsonl"}, r"give either meta \(files\) or annotation"),
        ({"meta": ["a.json"], "root": "r"}, "DataRecipe.root goes with annotation"),
        ({"annotation": "b.jsonl", "lookahead": 0}, "DataRecipe.lookahead is 0; it must be above 0"),
        ({"annotation": "b.jsonl", "rows": 0}, "DataRecipe.rows is 0; it must be at least 1"),
        ({"annotation": "b.jsonl", "min_tiles": 3, "max_tiles": 2}, "min_tiles is 3 and max_tiles 2"),
    ],
)
def test_bad_settings(fields, words):
    with pytest.raises(ValueError, match=words):
        DataRecipe(**fields)


def test_sources_of_one_name(meta):
    with pytest.raises(ValueError, match="the sources images, text are listed twice; rename one of each"):
        source_specs(DataRecipe(meta=[str(meta)] * 2))
