"""The page: closed as it was opened, escaped, and marked exactly where there are labels."""

import base64
import html
import io
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from ivl3_jax.batch import IGNORE
from ivl3_jax.data.inspection import inspect, open_with_pairs
from ivl3_jax.data.inspection_page import page
from ivl3_jax.data.inspection_report import PackedRow
from ivl3_jax.data.markup import escape, visible
from ivl3_jax.data.row_picture import SEGMENT, row_picture
from ivl3_jax.data.settings import DataRecipe
from tests.data.html import check_html
from tests.data.metas import talk, write_lines, write_meta
from tests.data.pictures import picture
from tests.data.toys import Toys, feed

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def report(processor, tmp_path_factory):
    meta = write_meta(tmp_path_factory.mktemp("data"), pairs=True)
    weights = {"text": 1, "images": 1, "<some>": 1, "pairs": 2}
    recipe = DataRecipe(meta=[str(meta)], rows=2, tokens=600, tiles=12, segments=10, weights=weights)
    found, _ = open_with_pairs(recipe, processor, seed=1)
    report = inspect(found, draws=400, pictures=6)
    report.about = {"data": "<meta>.json", "model": "a & b"}
    return report


@pytest.fixture(scope="module")
def drawn(report, processor):
    return page(report, processor)


def segments_of(drawn):
    """Of each segment the pieces of its text: (what is around, text)."""
    found = []
    for around, text in check_html(drawn).texts:
        if "li.segment" in around and "header" in around and "span.number" in around:
            found.append([])
        if "div.text" in around:
            found[-1].append((around[around.index("div.text") + 1 :], text))
    return found


def test_the_page_is_closed_as_it_was_opened(drawn):
    found = check_html(drawn)
    assert drawn.startswith("<!doctype html>")
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "iframe", "link", "some", "meta>.json"}
    sources = [fields[name] for _, fields in found.elements for name in ("src", "href") if name in fields]
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "<meta>.json" in found.texts_in("h1") and "<some>" in found.texts_in("th")
    drawn.encode()


def test_what_is_marked_is_what_has_a_label(report, drawn, processor):
    decode = processor.tokenizer.decode
    shown = [(picture.batch, index) for picture in report.pictures for index in range(picture.batch.segment_ids.max())]
    segments = segments_of(drawn)
    assert len(segments) == len(shown) > 20
    for (batch, index), pieces in zip(shown, segments, strict=True):
        here = batch.segment_ids[0] == index + 1
        labels = batch.labels[0][here]
        marked = "".join(text for around, text in pieces if "mark" in around)
        assert marked == decode(labels[labels != IGNORE], skip_special=False)
        # Everything else is there too, but for the context tokens of each image, which are one chip.
        tokens, visual = batch.tokens[0][here], batch.visual_index[0][here] >= 0
        text = "".join(text for around, text in pieces if "span.chip.visual" not in around)
        assert text == decode(tokens[~visual], skip_special=False)
        runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[False], visual, [False]]))))[::2]
        chips = [text for around, text in pieces if "span.chip.visual" in around]
        tiles = [int(run) // processor.tile_tokens for run in runs]
        assert chips == [f"{processor.tile_tokens} × {n} tile{'s' * (n > 1)}" for n in tiles]
        special = [text for around, text in pieces if around[-1] == "span.chip"]
        assert set(special) <= {"<|im_start|>", "<|im_end|>", "<img>", "</img>"}
        assert special.count("<|im_end|>") == (tokens == processor.tokenizer.id("<|im_end|>")).sum()


def test_deeper_where_it_weighs_more(report, drawn):
    depths = {}
    for tag, fields in check_html(drawn).elements:
        if tag == "mark":
            weight = float(fields["title"].removeprefix("learned, weight "))
            depths[weight] = float(re.fullmatch(r"--depth:([\d.]+)", fields["style"])[1])
    assert len(depths) > 3 and max(depths) <= 1
    assert [depths[weight] for weight in sorted(depths)] == sorted(depths.values())
    weights = {f"{w:.3g}" for shown in report.pictures for w in shown.batch.loss_weights.ravel() if w}
    assert {f"{w:.3g}" for w in depths} == weights


def test_tiles_stand_in_the_grid_of_their_image(report, processor):
    for shown in report.pictures:
        drawn = check_html(row_picture(shown, processor, report.budget, [s.name for s in report.sources]))
        grids = [
            int(fields["style"].removeprefix("--columns:"))
            for _, fields in drawn.elements
            if fields.get("class") == "grid"
        ]
        visuals = [visual for unit in shown.units for visual in unit.visuals]
        assert grids == [visual.grid[0] for visual in visuals]
        images = sum(tag == "img" for tag, _ in drawn.elements)
        assert images == sum(visual.tiles for visual in visuals) == sum(unit.tiles for unit in shown.units)


def test_tiles_are_those_of_their_segment(processor, tmp_path):
    colours = [(250, 10, 10), (10, 200, 10), (20, 20, 240), (240, 240, 30)]
    for number, colour in enumerate(colours):
        Image.new("RGB", (60 + 60 * number, 60), colour).save(tmp_path / f"{number}.png")
    lines = [talk("?", f"{n}", image=[f"{n % 4}.png", f"{(n + 1) % 4}.png"]) for n in range(8)]
    write_lines(tmp_path / "a.jsonl", lines)
    recipe = DataRecipe(annotation=str(tmp_path / "a.jsonl"), tokens=900, tiles=30)
    found, _ = open_with_pairs(recipe, processor, seed=0)
    report = inspect(found, draws=200, pictures=1)
    drawn = check_html(row_picture(report.pictures[0], processor, report.budget, ["a"]))
    seen = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(fields["src"].partition(",")[2])))).mean(axis=(0, 1))
        for tag, fields in drawn.elements
        if tag == "img"
    ]
    tiles = report.pictures[0].batch.tiles[0]
    assert len({tuple(colour) for colour in tiles[: len(seen), 0, 0].tolist()}) == len(colours)
    np.testing.assert_allclose(seen, tiles[: len(seen)].mean(axis=(1, 2)), atol=4)


def test_the_bar_has_every_position(report, processor):
    for shown in report.pictures:
        drawn = check_html(row_picture(shown, processor, report.budget, [s.name for s in report.sources]))
        widths = dict.fromkeys(("text", "visual", "learned", "padding"), 0)
        for tag, fields in drawn.elements:
            if tag == "rect":
                widths[fields["class"]] += int(fields["width"])
        labels, ids = shown.batch.labels[0], shown.batch.segment_ids[0]
        assert widths["learned"] == (labels != IGNORE).sum()
        assert widths["visual"] == (shown.batch.visual_index[0] >= 0).sum()
        assert widths["padding"] == (ids == 0).sum()
        assert sum(widths.values()) == report.budget.tokens


def test_pairs_say_which_answer_is_which(drawn):
    answers = [text for around, text in check_html(drawn).texts if around[-1:] in (("b.chosen",), ("b.rejected",))]
    assert answers[::2] == ["chosen"] * (len(answers) // 2) and answers[1::2] == ["rejected"] * (len(answers) // 2)
    assert answers


def test_frames_are_told_by_their_numbers(processor, tmp_path):
    (tmp_path / "film").mkdir()
    for number in range(3):
        picture(40, 30, number).save(tmp_path / f"film/{number}.png")
    write_lines(tmp_path / "a.jsonl", [talk("What happens?", "Noise.", video="film/")] * 3)
    recipe = DataRecipe(annotation=str(tmp_path / "a.jsonl"), tokens=1000, tiles=40, lookahead=1)
    found, _ = open_with_pairs(recipe, processor, seed=0)
    report = inspect(found, draws=200, pictures=1)
    assert report.kinds["video"] == 3
    told = check_html(page(report, processor)).texts_in("figcaption")
    frames = [text for text in told if text.startswith("frame ")]
    (shown,) = report.pictures
    assert frames == [f"frame {frame.index}" for unit in shown.units for frame in unit.visuals]
    assert set(frames) == {"frame 0", "frame 1", "frame 2"}


def test_bad_samples_are_listed(report, drawn):
    listed = check_html(drawn).texts_in("div.reason")
    for skips in report.skips.values():
        assert all(message in listed for message in skips.first)
    assert any("none.png" in text for text in listed)


def test_long_texts_are_cut_and_large_rows_stay_small(processor, tmp_path):
    write_lines(tmp_path / "a.jsonl", [talk("Say it.", "all the words " * 9000), talk(*["?", "It is 7."] * 4000)])
    recipe = DataRecipe(annotation=str(tmp_path / "a.jsonl"), tokens=250_000, tiles=0, segments=4, lookahead=0.1)
    found, _ = open_with_pairs(recipe, processor, seed=0)
    report = inspect(found, draws=20, pictures=2)
    drawn = page(report, processor)
    assert len(report.pictures) == 2 and len(drawn) < 200_000
    folds = check_html(drawn).texts_in("span.fold")
    assert any("more characters" in fold for fold in folds)
    assert any(re.search(r"[\d,]+ more tokens, [\d,]+ of them learned", fold) for fold in folds)
    assert all(sum(len(text) for _, text in pieces) < 2 * SEGMENT for pieces in segments_of(drawn))


def test_what_cannot_be_seen_is_spelled_out(processor, tmp_path):
    said = "a\x00\x1b[1m\u202eb\r\n\tc</mark><script>\N{REPLACEMENT CHARACTER}"
    write_lines(tmp_path / "a.jsonl", [talk("?", said)] * 3)
    recipe = DataRecipe(annotation=str(tmp_path / "a.jsonl"), tokens=300, tiles=0)
    found, _ = open_with_pairs(recipe, processor, seed=0)
    drawn = page(inspect(found, draws=200, pictures=1), processor)
    marked = "".join(text for around, text in segments_of(drawn)[0] if "mark" in around)
    assert marked == "a⟨U+0000⟩⟨U+001B⟩[1m⟨U+202E⟩b⟨U+000D⟩\n\tc</mark><script>\N{REPLACEMENT CHARACTER}<|im_end|>"
    assert visible("a\udce9\x7f") == "a⟨U+DCE9⟩⟨U+007F⟩"
    assert html.unescape(escape("<\"&'>")) == "<\"&'>" and '"' not in escape('"')


def test_any_special_token_is_a_chip(processor, tmp_path):
    write_lines(tmp_path / "a.jsonl", [talk("?", "<ref>cat</ref><|endoftext|><quad>")] * 3)
    recipe = DataRecipe(annotation=str(tmp_path / "a.jsonl"), tokens=300, tiles=0)
    found, _ = open_with_pairs(recipe, processor, seed=0)
    drawn = page(inspect(found, draws=200, pictures=1), processor)
    chips = [text for around, text in segments_of(drawn)[0] if around == ("mark", "span.chip")]
    assert chips == ["<ref>", "</ref>", "<|endoftext|>", "<quad>", "<|im_end|>"]


def test_a_page_about_nothing(processor, tmp_path):
    write_lines(tmp_path / "a.jsonl", ["{"])
    found, _ = open_with_pairs(DataRecipe(annotation=str(tmp_path / "a.jsonl"), tiles=0), processor, seed=0)
    report = inspect(found, draws=20, pictures=1)
    report.unopened = {"<b>": "is & was"}
    drawn = check_html(page(report, processor))
    assert "<b> cannot be opened, and training would not start: is & was" in drawn.texts_in("ul.findings")


def test_a_row_without_anything(processor):
    found = inspect(feed(processor, Toys("a", 9, pictures=0)), draws=500, pictures=1)
    (shown,) = found.pictures
    bare = PackedRow(1, 1, shown.batch._replace(segment_ids=shown.batch.segment_ids * 0), ())
    assert "200 positions are padding" in row_picture(bare, processor, found.budget, ["a"])


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 420])
def test_a_browser_lays_it_out(drawn, tmp_path, width):
    """No part is wider than the window, every picture is there, and what is drawn is not blank."""
    measure = (
        "<script>addEventListener('load', () => { const root = document.documentElement;"
        "root.dataset.over = root.scrollWidth - root.clientWidth;"
        "root.dataset.marked = document.querySelector('mark').getBoundingClientRect().height > 0;"
        "for (const part of document.querySelectorAll('details')) part.open = true;"
        "const seen = [...document.images].filter(i => i.naturalWidth && i.getBoundingClientRect().width);"
        "root.dataset.images = seen.length;"
        "root.dataset.opened = root.scrollWidth - root.clientWidth; })</script>"
    )
    file = tmp_path / "page.html"
    file.write_text(drawn.replace("</body>", f"{measure}</body>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command = [BROWSER, *options, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2000"]
    dumped = subprocess.run([*command, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120)
    root = re.search(r"<html[^>]*>", dumped.stdout)[0]
    said = dict(re.findall(r'data-(\w+)="([^"]*)"', root))
    assert said == {"over": "0", "opened": "0", "images": str(drawn.count("<img ")), "marked": "true"}
    pixels = {}
    for scheme in (0, 1):  # dark and light
        shot = tmp_path / f"{scheme}.png"
        settings = [f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={shot}"]
        subprocess.run([*command, *settings, file.as_uri()], capture_output=True, timeout=120, check=True)
        pixels[scheme] = np.asarray(Image.open(shot).convert("L"), float)
    assert pixels[0].shape[1] == width
    assert all(found.std() > 5 for found in pixels.values())
    assert np.median(pixels[0]) < 60 < 200 < np.median(pixels[1])
