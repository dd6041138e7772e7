"""Programs compiled before anybody waits for them."""

from collections.abc import Iterator

import numpy as np

from ivl3_jax.batch import IGNORE
from ivl3_jax.data.encoded import Encoded
from ivl3_jax.inference.device import fitting
from ivl3_jax.inference.engine import Engine
from ivl3_jax.inference.request import Limits, Request

ANSWER = 3  # tokens: the first, one that goes on from what was heard, and one that goes on from what was not


def warm_up(engine: Engine, longest: int) -> None:
    """Compiles what requests need whose prompt and answer have at most `longest` positions, by asking such requests.

    Left out are what penalties, log-probabilities and tokens to weigh need, which few ask for. The cache should have a
    page for every row besides the longest request: where it has not, requests wait for one another here too.

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

    for tiles in _doublings(1, min(limits.tiles_at_once, limits.tiles, longest - 1)):
        engine.run([Request(_prompt(engine, text(tiles), tiles), 1)])
    beginning = text(longest)
    engine.run([Request(_prompt(engine, beginning[:-1]), 1)])  # so that it is known
    for filled, rest in _pieces(limits, longest):
        for together in (1, 2):
            tails = [np.concatenate([beginning[:filled], text(rest)]) for _ in range(together)]
            engine.run([Request(_prompt(engine, tail), 1) for tail in tails])
        if filled == 0:
            for count in _counts(limits.rows)[1:]:  # first tokens of prompts that end together
                halves = [Request(_prompt(engine, text(rest)), 1, samples=n) for n in (count // 2, count - count // 2)]
                engine.run(halves)
    pages = 4
    while True:
        prompt = _prompt(engine, beginning[: min(pages * limits.page, longest) - ANSWER])
        for samples in _counts(limits.rows):
            engine.run([Request(prompt, ANSWER, samples=samples)])
        if pages * limits.page >= longest:
            return
        pages *= 2


def _pieces(limits: Limits, longest: int) -> Iterator[tuple[int, int]]:
    """The least that a prompt has known and new for each size of a last piece under each width of pages.

    As `Device.prefill` and `Prefills.advance` choose them: a size is the least that has room for what is new, a width
    the least that has room for what is known and that size.
    """
    page, before, width = limits.page, 0, 16
    while True:
        found = [
            (filled, rest)
            for size in _doublings(page, limits.piece)
            if size <= width * page
            for filled, rest in [(max(0, (before + 1) * page - size), 1 if size == page else size // 2 + 1)]
            if filled + rest < longest
        ]
        if not found:
            return
        yield from found
        before, width = width, 4 * width


def _counts(rows: int) -> list[int]:
    """Of answers that run, so that every width of a step comes up, and every number of copies of a page."""
    return sorted({min(count, rows) for power in _doublings(1, fitting(rows)) for count in (power, power + 1)})


def _doublings(first: int, last: int) -> Iterator[int]:
    while first <= last:
        yield first
        first *= 2


def _prompt(engine: Engine, tokens: np.ndarray, tiles: int = 0) -> Encoded:
    """Text alone, or a position of each of so many tiles, which are those of no other such prompt."""
    size = engine.config.vision.image_size
    pictures = np.zeros((tiles, size, size, 3), np.uint8)
    pictures[:, 0, 0, 0], pictures[:, 0, 0, 1] = np.arange(tiles), tiles
    visual = np.arange(tiles) * engine.config.tile_tokens if tiles else np.full(len(tokens), -1)
    nothing = np.full(len(tokens), IGNORE, np.int32), np.zeros(len(tokens), bool)
    return Encoded(tokens, *nothing, pictures, visual.astype(np.int32), np.arange(len(tokens), dtype=np.float32))
