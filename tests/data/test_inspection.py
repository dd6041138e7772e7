"""What is said of a data set is what is in it, and the rows are the loader's."""

import dataclasses
import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from ivl3_jax.batch import Batch
from ivl3_jax.data import Fault, Pair, inspection, open_source
from ivl3_jax.data.faults import FaultPolicy
from ivl3_jax.data.inspection import ROWS, inspect, open_with_pairs
from ivl3_jax.data.inspection_report import LISTED
from ivl3_jax.data.kinds import kind_of
from ivl3_jax.data.loader import Loader
from ivl3_jax.data.settings import DataRecipe, open_feed, source_specs
from tests.data.metas import talk, write_lines, write_meta
from tests.data.talks import sample
from tests.data.toys import Toys, feed

SIZES = {"rows": 2, "tokens": 400, "tiles": 12, "segments": 8}
SKIP = FaultPolicy("skip", most=1.0)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def meta(work):
    return write_meta(work)


@pytest.fixture(scope="module")
def with_pairs(tmp_path_factory):
    return write_meta(tmp_path_factory.mktemp("pairs"), pairs=True)


def recipe(meta, **fields):
    return DataRecipe(meta=[str(meta)], **{**SIZES, **fields})


def look(processor, recipe, **settings):
    found, unopened = open_with_pairs(recipe, processor, seed=5)
    assert not unopened
    return inspect(found, **{"draws": 10_000, **settings})


@pytest.fixture(scope="module")
def report(processor, meta):
    return look(processor, recipe(meta), pictures=3)


def measured(processor, meta):
    """Every good sample with what the processor alone makes of it; every bad one with its fault."""
    good, bad = [], []
    for number, spec in enumerate(source_specs(recipe(meta))):
        source = open_source(spec, number)
        for index in range(len(source)):
            try:
                good.append((source[index], processor.measure(source[index], spec.max_tiles)))
            except Fault as fault:
                bad.append((number, fault))
    return good, bad


def test_samples_are_counted_as_they_are(processor, with_pairs):
    found = look(processor, recipe(with_pairs))
    good, bad = measured(processor, with_pairs)
    assert (found.samples, found.looked_at, found.skipped) == (76, 76, 5)
    assert (len(good), len(bad)) == (71, 5)
    assert found.draws < 1000  # all have been seen, and there are rows enough
    assert found.kinds == {
        "text": 38,
        "one image": 14,
        "several images": 11,
        "interleaved": 3,
        "video": 0,
        "preference pair": 5,
    }
    assert found.tokens == Counter(unit.tokens for _, unit in good)
    assert found.tiles == Counter(unit.tiles for _, unit in good)
    assert found.learned == Counter(sum(unit.supervised) for _, unit in good)
    assert found.turns == Counter(len(s.messages) + isinstance(s, Pair) for s, _ in good)
    assert (found.system, found.split) == (1, 0)
    for number, source in enumerate(found.sources):
        units = [unit for s, unit in good if s.source == number]
        assert source.kinds == Counter(kind_of(s) for s, _ in good if s.source == number)
        assert (source.tokens, source.tiles) == (sum(u.tokens for u in units), sum(u.tiles for u in units))
        assert source.skipped == sum(of == number for of, _ in bad)
        assert source.looked_at == source.samples == source.skipped + len(units)
    assert [source.samples for source in found.sources] == [40, 24, 6, 6]
    assert [source.share for source in found.sources] == pytest.approx([40 / 82, 24 / 82, 12 / 82, 6 / 82])
    reasons = Counter(fault.reason for _, fault in bad)
    assert {reason: skips.count for reason, skips in found.by_reason.items()} == reasons
    assert {m for skips in found.skips.values() for m in skips.first} == {str(fault) for _, fault in bad}


def batches_of(processor, meta, **fields):
    """The batches that training gets, without end."""
    return Loader(open_feed(recipe(meta, faults=SKIP, **fields), processor, seed=5))


@pytest.mark.parametrize("fields", [{}, {"weights": {"text": 1, "images": 5, "<some>": 1}}, {"positions": "v2pe"}])
def test_rows_are_those_of_the_loader(processor, meta, fields):
    # A row with a damaged picture has a hole in it only if it is decoded.
    found = look(processor, recipe(meta, **fields), decode=True, pictures=5)
    loader = batches_of(processor, meta, **fields)
    batches = list(islice(loader, -(-len(found.rows) // 2)))
    loader.close()
    assert len(found.pictures) == 5 and len(found.rows) >= ROWS
    for shown in found.pictures:
        for name, ours, theirs in zip(Batch._fields, shown.batch, batches[shown.step - 1], strict=True):
            np.testing.assert_array_equal(ours[0], theirs[shown.row - 1], err_msg=name)
    assert [(shown.step, shown.row) for shown in found.pictures] == [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)]
    rows = [(batch, row) for batch in batches for row in range(2)][: len(found.rows)]
    loss = Counter()
    for (batch, row), said in zip(rows, found.rows, strict=True):
        ids = batch.segment_ids[row]
        assert said.tokens == (ids > 0).sum()
        assert said.segments == said.samples == ids.max()
        assert said.tiles == (batch.visual_index[row] >= 0).sum() / processor.tile_tokens
        for index in range(ids.max()):
            loss[int(batch.source_id[row, index])] += batch.loss_weights[row][ids == index + 1].sum(dtype=float)
    assert [source.loss for source in found.sources] == pytest.approx([loss[number] for number in range(3)], rel=1e-6)
    assert found.fills["tokens"] == pytest.approx(np.mean([(b.segment_ids[r] > 0).mean() for b, r in rows]))
    assert sum(found.limited_by.values()) == len(found.rows)


def test_which_budget_is_limiting(processor):
    cases = [
        (Toys("a", 90, pictures=1), (800, 3, 8), "tiles"),
        (Toys("a", 90, pictures=0), (100, 3, 20), "tokens"),
        (Toys("a", 90, pictures=0), (800, 3, 2), "segments"),
    ]
    for source, budget, limit in cases:
        found = inspect(feed(processor, source, budget=budget), draws=500)
        assert found.limited_by[limit] == len(found.rows) > 0
        assert all(found.fill_of(row)[limit] == max(found.fill_of(row).values()) for row in found.rows)
    found = inspect(feed(processor, Toys("a", 90, pictures=0), budget=(100, 0, 8)), draws=500)
    assert found.fills["tiles"] == 0 and found.limited_by["tiles"] == 0


def test_pairs_are_in_rows_too(processor, with_pairs):
    found = look(processor, recipe(with_pairs, weights={"text": 1, "images": 1, "<some>": 1, "pairs": 9}), pictures=4)
    chosen = [shown.batch.chosen.any() for shown in found.pictures]
    assert any(chosen) and any(row.samples < row.segments for row in found.rows)
    assert any("5 preference pairs" in finding for finding in found.findings)


def test_damage_behind_the_header_is_found_by_decoding(processor, meta, monkeypatch):
    monkeypatch.setattr(inspection, "ROWS", 60)  # so many that the damaged sample is in one, wherever it is packed
    lacking = look(processor, recipe(meta))
    found = look(processor, recipe(meta), decode=True)
    assert (lacking.skipped, found.skipped) == (4, 5)
    (told,) = {*found.skips["image"].first} - {*lacking.skips["image"].first}
    assert "images.jsonl:9: " in told and "cut.png: cannot be read as an image" in told
    assert found.rows != lacking.rows  # it leaves holes
    shown = look(processor, recipe(meta), pictures=60)
    assert shown.skipped == 5  # of many draws, once
    assert look(processor, recipe(meta), draws=20, everything=True, decode=True).skipped == 5


def test_how_much_is_looked_at(processor, meta):
    few = look(processor, recipe(meta), draws=25)
    assert few.draws == 25 and 20 <= few.looked_at <= 25
    assert few.looked_at == sum(few.tokens.values()) + few.skipped
    told = []
    all_of_them = look(
        processor,
        recipe(meta),
        draws=25,
        everything=True,
        say=lambda what, done, there_are: told.append((what, done, there_are)),
    )
    assert (all_of_them.draws, all_of_them.looked_at, all_of_them.rows) == (25, 70, few.rows)
    assert all_of_them.tokens == look(processor, recipe(meta)).tokens
    assert told[24] == ("samples", 25, 25)
    assert told[-1] == ("the other samples", 70 - few.looked_at, 70 - few.looked_at)


def test_sources_that_are_dropped_end_the_rows(processor, meta):
    found = look(processor, recipe(meta, exhausted="drop"), decode=True)
    assert (found.draws, found.looked_at) == (76, 70)  # <some> comes twice
    batches = list(batches_of(processor, meta, exhausted="drop"))
    tokens = [int(count) for batch in batches for count in (batch.segment_ids > 0).sum(axis=1) if count]
    assert [row.tokens for row in found.rows] == tokens


def test_split_samples(processor, tmp_path):
    write_lines(tmp_path / "a.jsonl", [talk("Say it.", "word " * n) for n in (10, 300, 20, 400)])
    settings = DataRecipe(annotation=str(tmp_path / "a.jsonl"), tokens=100, tiles=0, too_long="split")
    found = look(processor, settings)
    assert found.split == 2 and sum(found.tokens.values()) == 4
    assert max(found.tokens) > 400
    assert max(row.tokens for row in found.rows) <= 100
    refused = look(processor, dataclasses.replace(settings, too_long="raise"))
    assert refused.skips["tokens"].count == 2


def test_many_bad_lines_are_counted_and_few_are_listed(processor, tmp_path):
    write_lines(tmp_path / "a.jsonl", [f"{{{n}" for n in range(3000)] + ["[1]", talk("?", "7")])
    found = look(processor, DataRecipe(annotation=str(tmp_path / "a.jsonl"), **SIZES), everything=True)
    skips = found.by_reason["line"]
    assert (skips.count, len(skips.first), found.looked_at, found.skipped) == (3001, LISTED, 3002, 3001)
    places = [int(message.split("a.jsonl:")[1].split(":")[0]) for message in skips.first]
    assert places == sorted(places)
    assert found.findings[0] == (
        "There are 3,001 bad samples among the 3,002 looked at (99.97%). Training ends at the first of them, as "
        "faults.action is raise."
    )


def test_no_good_sample(processor, tmp_path):
    write_lines(tmp_path / "a.jsonl", ["{"] * 300)
    found = look(processor, DataRecipe(annotation=str(tmp_path / "a.jsonl"), **SIZES), pictures=4)
    assert (found.looked_at, found.skipped, found.rows, found.pictures) == (300, 300, [], [])
    assert found.findings == ["There are 300 bad samples among the 300 looked at (100.00%). None is good."]
    json.dumps(found.to_json(), allow_nan=False)


def test_sources_that_cannot_be_opened_are_told(processor, work, meta):
    sources = json.loads(meta.read_text())
    (work / "empty.jsonl").write_text("\n")
    sources |= {"none": {"annotation": "nowhere.jsonl"}, "empty": {"annotation": "empty.jsonl"}}
    other = work / "other.json"
    other.write_text(json.dumps(sources))
    weights = dict.fromkeys(sources, 1.0)
    found, unopened = open_with_pairs(recipe(other, weights=weights), processor, seed=5)
    assert [part.source.name for part in found.parts] == ["text", "images", "<some>"]
    assert list(unopened) == ["none", "empty"]
    assert "which does not exist" in unopened["none"] and "has no records" in unopened["empty"]
    other.write_text(json.dumps({"empty": sources["empty"]}))
    with pytest.raises(ValueError, match=r"empty.jsonl: has no records"):
        open_with_pairs(recipe(other), processor, seed=5)


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        (FaultPolicy("skip", most=0.5), "Training leaves them out, as faults.most allows 50.00%."),
        (FaultPolicy("skip", most=0.01), "Training ends, as faults.most allows 1.00%."),
    ],
)
def test_what_the_policy_makes_of_them(processor, meta, policy, told):
    found = look(processor, recipe(meta, faults=policy))
    assert found.findings[0] == f"There are 4 bad samples among the 70 looked at (5.71%). {told}"


def test_no_bad_samples_and_no_tiles(processor, tmp_path):
    write_lines(tmp_path / "a.jsonl", [talk("?", f"{n}") for n in range(50)])
    found = look(
        processor, DataRecipe(annotation=str(tmp_path / "a.jsonl"), tokens=100, tiles=4, segments=2), draws=200
    )
    assert found.findings == [
        f"In 100% of the rows segments run out before tokens: {1 - found.fills['tokens']:.0%} of all positions are "
        "padding. More segments a row, or fewer tokens, would fill them.",
        "No sample has a picture, but each row has room for 4 tiles: 0 would save it.",
    ]


def test_too_few_draws_for_a_row(processor, meta):
    found = look(processor, recipe(meta, tokens=20_000), draws=10)
    assert not found.rows
    assert any("No row was made of 10 draws" in finding for finding in found.findings)


def test_figures_as_json(report, processor, meta):
    figures = json.loads(json.dumps(report.to_json(), allow_nan=False))
    good, _ = measured(processor, meta)
    tokens = [unit.tokens for _, unit in good]
    assert figures["a_sample"]["tokens"]["mean"] == pytest.approx(np.mean(tokens), abs=1e-3)
    assert figures["a_sample"]["tokens"]["median"] == sorted(tokens)[(len(tokens) - 1) // 2]
    assert sum(figures["a_sample"]["tiles"]["counts"]) == len(good)
    assert figures["packing"]["rows"] == len(report.rows)
    assert figures["packing"]["a_row"]["tokens"] == pytest.approx(
        np.mean([row.tokens for row in report.rows]), abs=1e-3
    )
    assert sum(source["share_of_loss"] for source in figures["sources"].values()) == pytest.approx(1, abs=1e-5)
    assert figures["samples"]["skipped"] == sum(skips["count"] for skips in figures["skips"].values())
    assert figures["row"] == {"tokens": 400, "tiles": 12, "segments": 8}


@pytest.mark.parametrize(
    ("turns", "images", "kind"),
    [
        (("u", "?"), 0, "text"),
        (("u", "What is <image>?"), 1, "one image"),
        (("u", "?"), 2, "several images"),
        (("u", "<image><image>\n?"), 2, "several images"),
        (("u", "Image-1: <image>\nImage-2: <image>\n?"), 2, "several images"),
        (("u", "<image> and <image>"), 2, "interleaved"),
        (("u", "What? <image><image>"), 2, "interleaved"),
    ],
)
def test_kinds(turns, images, kind):
    assert kind_of(sample(turns, ("a", "7"), images=["a.png"] * images)) == kind
    spoken = ("u", "<image>"), ("a", "7"), ("u", "<image>"), ("a", "8")
    assert kind_of(sample(*spoken, images=["a.png"] * 2)) == "interleaved"
    assert kind_of(sample(("u", "?"), ("a", "7"), videos=("a.mp4",))) == "video"
