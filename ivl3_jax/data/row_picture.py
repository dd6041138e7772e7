"""A packed row as HTML: a bar of all its positions, and of each segment the tiles and the text with what is learned."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
from PIL import Image

from ivl3_jax.batch import IGNORE, Batch
from ivl3_jax.data.inspection_report import PackedRow
from ivl3_jax.data.markup import data_uri, escape
from ivl3_jax.data.packing import Budget
from ivl3_jax.data.processor import Processor
from ivl3_jax.data.tokenizer import Tokenizer
from ivl3_jax.data.units import Frame, Picture, Unit, tile_count

TILE = 84  # pixels to which a tile's side is reduced
TILES = 120  # that are shown of a row at most
PICTURED, PLAIN = 6, 4  # segments with and without tiles that are not folded away
RUN = 1600, 1000, 400  # a longer text is cut: the characters shown of its beginning and of its end
SEGMENT = 8000  # characters after which the rest of a segment is left out
COLUMNS = 1200  # of the bar

PADDING, TEXT, VISUAL, LEARNED = range(4)
NAMES = "padding", "text", "visual", "learned"


@dataclass(frozen=True)
class _Segment:
    """A segment of a row, cut out of the batch.

    Attributes:
        number: from 1. unit: what it is made from.
        tokens: int32 [n]. visual: bool [n]. learned: bool [n], those that are the label of the position before.
        weight: of each of those in the loss.
        answer: "", or "chosen" or "rejected" of a pair.
        tiles: uint8 [t, size, size, 3], of which a rejected answer shows none.
    """

    number: int
    unit: Unit
    tokens: np.ndarray
    visual: np.ndarray
    learned: np.ndarray
    weight: float
    answer: str
    tiles: np.ndarray


def row_picture(shown: PackedRow, processor: Processor, budget: Budget, sources: list[str]) -> str:
    """The picture of one row; `sources` are the names by `Unit.source`."""
    segments = list(_segments(shown))
    tokens, tiles = sum(len(s.tokens) for s in segments), sum(len(s.tiles) for s in segments)
    samples = sum(s.answer != "rejected" for s in segments)
    left = TILES
    cards: list[tuple[str, bool]] = []
    pictured = plain = 0
    for segment in segments:
        if segment.answer != "rejected":  # which goes along with the chosen one
            shown_whole = pictured < PICTURED if len(segment.tiles) else plain < PLAIN
            pictured, plain = pictured + bool(len(segment.tiles)), plain + (not len(segment.tiles))
        cards.append((_card(segment, processor, sources[segment.unit.source], left), shown_whole))
        left -= len(segment.tiles)
    learned = sum(int(s.learned.sum()) for s in segments)
    return (
        f'<article class="row"><h3>Step {shown.step}, row {shown.row}</h3>'
        f'<p class="quiet">{_many(samples, "sample")} in {_many(len(segments), "segment")} of {budget.segments}; '
        f"{learned:,} of {tokens:,} tokens are learned; {budget.tokens - tokens:,} positions are padding</p>"
        f'<div class="fills">{fill_bar("tokens", tokens, budget.tokens)}{fill_bar("tiles", tiles, budget.tiles)}</div>'
        f"{_strip(shown.batch)}{_folded(cards)}</article>"
    )


def _folded(cards: list[tuple[str, bool]]) -> str:
    """All segments, of which neighbouring ones that are not to be shown are folded away together."""
    parts = []
    for shown, members in groupby(cards, lambda card: card[1]):
        found = [card for card, _ in members]
        listed = f'<ol class="segments">{"".join(found)}</ol>'
        parts.append(
            listed if shown else f"<details><summary>{_many(len(found), 'more segment')}</summary>{listed}</details>"
        )
    return "".join(parts)


def fill_bar(name: str, used: float, room: int, said: str = "") -> str:
    """How much of a budget is used."""
    share = used / room if room else 0.0
    said = (said or f"{used:,} of {room:,}") + (f" · {share:.1%}" if room else "")
    bar = f'<span class="{name}" style="width:{share:.2%}"></span>'
    return f'<div class="fill"><span>{name}</span><span class="track">{bar}</span><span>{said}</span></div>'


def _segments(shown: PackedRow) -> Iterator[_Segment]:
    """The segments as the batch has them, and of each the unit that it comes from."""
    batch = Batch(*(array[0] for array in shown.batch))
    units = [unit for unit in shown.units for _ in range(unit.segments)]
    start = 0
    for index, unit in enumerate(units):
        here = np.flatnonzero(batch.segment_ids == index + 1)
        learned = np.zeros(len(here), bool)
        learned[1:] = batch.labels[here][:-1] != IGNORE
        paired = batch.pair_id[index] >= 0
        answer = ("chosen" if batch.chosen[index] else "rejected") if paired else ""
        count = 0 if answer == "rejected" else unit.tiles
        yield _Segment(
            index + 1,
            unit,
            batch.tokens[here],
            batch.visual_index[here] >= 0,
            learned,
            float(batch.loss_weights[here].max(initial=0)),
            answer,
            batch.tiles[start : start + count],
        )
        start += count


def _strip(batch: Batch) -> str:
    """All positions of a row from left to right, each column in the colour of what is most in it."""
    segment_ids, labels, visual = batch.segment_ids[0], batch.labels[0], batch.visual_index[0]
    classes = np.where(segment_ids > 0, TEXT, PADDING)
    classes[visual >= 0] = VISUAL
    classes[1:][labels[:-1] != IGNORE] = LEARNED
    edges = np.linspace(0, len(classes), min(COLUMNS, len(classes)) + 1).astype(int)
    most = np.argmax([np.add.reduceat(classes == kind, edges[:-1]) for kind in range(len(NAMES))], axis=0)
    bounds = [0, *(np.flatnonzero(np.diff(most)) + 1).tolist(), len(most)]
    rects = "".join(
        f'<rect class="{NAMES[most[first]]}" x="{first}" width="{last - first}" height="10"/>'
        for first, last in pairwise(bounds)
    )
    begins = np.flatnonzero(np.diff(segment_ids)) + 1
    lines = "".join(f"M{place / len(classes) * len(most):.1f} 0V10" for place in begins.tolist())
    return (
        f'<svg class="strip" viewBox="0 0 {len(most)} 10" preserveAspectRatio="none" role="img" '
        f'aria-label="the positions of the row">{rects}<path class="cut" d="{lines}"/></svg>'
    )


def _card(segment: _Segment, processor: Processor, source: str, left: int) -> str:
    learned = int(segment.learned.sum())
    facts = [f"{len(segment.tokens):,} tokens"]
    if len(segment.tiles):
        facts.append(_many(len(segment.tiles), "tile"))
    if segment.answer == "rejected" and segment.unit.tiles:
        facts.append("sees the tiles of the chosen answer")
    facts.append(f"{learned:,} learned, each with weight {segment.weight:.3g}" if learned else "none learned")
    answer = f'<b class="{segment.answer}">{segment.answer}</b> ' if segment.answer else ""
    pictures = _pictures(segment, left)
    return (
        f'<li class="segment"><header><span class="number">{segment.number}</span>{answer}<b>{escape(source)}</b>'
        f' <span class="where">{escape(segment.unit.where)}</span>'
        f'<span class="facts">{" · ".join(facts)}</span></header>'
        f'<div class="body{" pictured" if pictures else ""}">{pictures}{_text(segment, processor)}</div></li>'
    )


def _pictures(segment: _Segment, left: int) -> str:
    """The tiles of each image in its grid, the thumbnail beside it; frames one after the other."""
    if not len(segment.tiles):
        return ""
    figures, start, frames = [], 0, 0
    for visual in segment.unit.visuals:
        tiles = segment.tiles[start : start + tile_count(visual)]
        start += len(tiles)
        if start > left:
            hidden = len(segment.tiles) - start + len(tiles)
            figures.append(f'<p class="quiet">{_many(hidden, "more tile")}</p>')
            break
        if isinstance(visual, Frame):
            frames += 1
            figures.append(_figure(tiles, 1, f"frame {visual.index}"))
        elif isinstance(visual, Picture):
            columns, rows = visual.grid
            cut = f"{columns} × {rows}" if len(tiles) > 1 else "1 tile"
            caption = f"{visual.size[0]:,} × {visual.size[1]:,} px: {cut}"
            figures.append(_figure(tiles, columns, caption, columns * rows))
        else:
            figures.append(_figure(tiles, len(tiles), f"{len(tiles)} ready-made tiles"))
    return f'<div class="pictures{" frames" if frames else ""}">{"".join(figures)}</div>'


def _figure(tiles: np.ndarray, columns: int, caption: str, cut: int | None = None) -> str:
    """Tiles in so many columns; those from number `cut` on are the thumbnail."""
    images = [f'<img alt="" width="{TILE}" height="{TILE}" src="{_tile(tile)}">' for tile in tiles]
    cut = len(images) if cut is None else cut
    thumbnail = f'<div class="thumbnail">{"".join(images[cut:])}</div>' if images[cut:] else ""
    note = " and the whole" if thumbnail else ""
    grid = f'<div class="grid" style="--columns:{columns}">{"".join(images[:cut])}</div>'
    return f'<figure><div class="tiles">{grid}{thumbnail}</div><figcaption>{caption}{note}</figcaption></figure>'


def _tile(tile: np.ndarray) -> str:
    image = Image.fromarray(tile)
    if image.width > TILE:
        image = image.resize((TILE, TILE), Image.Resampling.LANCZOS)
    return data_uri(image, "JPEG", quality=72, optimize=True)


def _text(segment: _Segment, processor: Processor) -> str:
    """The text, special tokens as chips, image blocks folded, what is learned marked."""
    tint = f' style="--depth:{min(1.0, segment.weight) ** 0.5:.3f}"'
    said = f'title="learned, weight {segment.weight:.3g}"'
    parts, length = [], 0
    for start, end, special in _runs(segment, processor.tokenizer):
        if length > SEGMENT:
            learned = int(segment.learned[start:].sum())
            told = f"{len(segment.tokens) - start:,} more tokens" + (
                f", {learned:,} of them learned" if learned else ""
            )
            parts.append(f'<span class="fold">⋯ {told} ⋯</span>')
            break
        if segment.visual[start]:
            tiles = (end - start) // processor.tile_tokens
            part = f'<span class="chip visual">{processor.tile_tokens} × {_many(tiles, "tile")}</span>'
        else:
            text = processor.tokenizer.decode(segment.tokens[start:end].tolist(), skip_special=False)
            length += min(len(text), RUN[0])
            part = f'<span class="chip">{escape(text)}</span>' if special else f"<bdi>{_cut(text)}</bdi>"
        parts.append(f"<mark {said}{tint}>{part}</mark>" if segment.learned[start] else part)
    return f'<div class="text">{"".join(parts)}</div>'


def _runs(segment: _Segment, tokenizer: Tokenizer) -> Iterator[tuple[int, int, bool]]:
    """(start, end, whether a special token) of each stretch that looks alike; a special token is one by itself."""
    ids, places = np.unique(segment.tokens, return_inverse=True)
    special = np.array([_is_special(tokenizer, int(i)) for i in ids], bool)[places] & ~segment.visual
    kinds = np.stack([segment.visual, segment.learned, special])
    edges = np.any(kinds[:, 1:] != kinds[:, :-1], axis=0) | special[1:]
    for start, end in pairwise([0, *(np.flatnonzero(edges) + 1).tolist(), len(special)]):
        yield start, end, bool(special[start])


def _is_special(tokenizer: Tokenizer, number: int) -> bool:
    return not tokenizer.decode([number]) and bool(tokenizer.decode([number], skip_special=False))


def _cut(text: str) -> str:
    longest, first, last = RUN
    if len(text) <= longest:
        return escape(text)
    hidden = len(text) - first - last
    return f'{escape(text[:first])}<span class="fold">⋯ {hidden:,} more characters ⋯</span>{escape(text[-last:])}'


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
