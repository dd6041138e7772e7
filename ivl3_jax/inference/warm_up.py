"""Programs compiled before anybody waits for them."""

from collections.abc import Iterator

import numpy as np

from ivl3_jax.batch import IGNORE
from ivl3_jax.data.encoded import Encoded
from ivl3_jax.inference.device import fitting
from ivl3_jax.inference.engine import Engine
from ivl3_jax.inference.request import Request

ANSWER = 3  # tokens: the first, one that goes on from what was heard, and one that goes on from what was not


def warm_up(engine: Engine, longest: int) -> None:
    """Compiles what requests need whose prompt and answer have at most `longest` positions, by asking such requests.

    Left out are what penalties, log-probabilities and tokens to weigh need, which few ask for, and what follows when
    a cache grows: its programs are others.

    Raises:
        ValueError: the cache is one that grows, or `longest` is less than an answer or more than a request may have.
    """
    limits = engine.limits
    if limits.positions is None:
        raise ValueError("a cache that grows compiles anew; give it its positions to warm up")
    if not ANSWER < longest <= engine.room:
        raise ValueError(f"{longest} positions are to warm up; a request has {ANSWER + 1} to {engine.room}")
    rng = np.random.default_rng(0)

    def text(count: int) -> np.ndarray:
        return rng.integers(0, engine.config.decoder.vocab, count, dtype=np.int32)

    beginning = text(longest)
    for tiles in _doublings(1, min(limits.tiles_at_once, (longest - 1) // engine.config.tile_tokens)):
        engine.run([Request(_prompt(engine, text(tiles * engine.config.tile_tokens), tiles), 1)])
    for filled, size in _pieces(engine, longest):
        for together in (1, 2) if size < limits.piece else (1,):
            tails = [np.concatenate([beginning[:filled], text(size)]) for _ in range(together)]
            engine.run([Request(_prompt(engine, tail), 1) for tail in tails])
    for size in _doublings(limits.page, min(limits.piece // 2, longest - 1)):
        for samples in _doublings(1, limits.rows // 2):  # first tokens of prompts that end together
            engine.run([Request(_prompt(engine, text(size)), 1, samples=samples) for _ in range(2)])
    pages = 4
    while True:
        prompt = _prompt(engine, beginning[: max(1, min(pages * limits.page, longest) - ANSWER)])
        for samples in _samples(limits.rows):
            engine.run([Request(prompt, ANSWER, samples=samples)])
        if pages * limits.page >= longest:
            return
        pages *= 2


def _pieces(engine: Engine, longest: int) -> Iterator[tuple[int, int]]:
    """What is filled before the last piece of a prompt, and that piece's size: each size under each width of pages."""
    page, piece = engine.limits.page, engine.limits.piece
    width = 16
    while True:
        for size in _doublings(page, piece):
            end = min(width * page, (longest - 1) // page * page)
            if end >= size:
                yield end - size, size
        if width * page >= longest:
            return
        width *= 4


def _samples(rows: int) -> list[int]:
    """Of a prompt, so that every width of a step comes up, and every number of copies of its last page."""
    doublings = list(_doublings(1, fitting(rows)))
    return sorted({min(count, rows) for power in doublings for count in (power, power + 1)})


def _doublings(first: int, last: int) -> Iterator[int]:
    while first <= last:
        yield first
        first *= 2


def _prompt(engine: Engine, tokens: np.ndarray, tiles: int = 0) -> Encoded:
    """Text alone, or so many tiles alone, which are those of no other such prompt."""
    size = engine.config.vision.image_size
    pictures = np.zeros((tiles, size, size, 3), np.uint8)
    pictures[:, 0, 0] = [(number, tiles, 0) for number in range(tiles)] or 0
    visual = np.arange(len(tokens)) if tiles else np.full(len(tokens), -1)
    nothing = np.full(len(tokens), IGNORE, np.int32), np.zeros(len(tokens), bool)
    return Encoded(tokens, *nothing, pictures, visual.astype(np.int32), np.arange(len(tokens), dtype=np.float32))
