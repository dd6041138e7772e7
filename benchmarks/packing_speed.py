"""Rows, fill and time of the packer beside InternVL's own algorithm, written out from its description.

Made-up sizes (lognormal text, images of 1 to 13 tiles, videos of 8 to 32 frames) go into rows of 16,384 tokens and 48
tiles, with as many rows' worth of look-ahead as the published algorithm has buffers.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from measuring import ROW, table

from ivl3_jax.data.packing import Item, Packer

BUFFERS = (20, 100, 1000)
Sizes = Sequence[tuple[int, int]]


def text(rng: np.random.Generator, count: int) -> Sizes:
    return [(int(n), 0) for n in np.clip(rng.lognormal(5.8, 0.9, count), 8, ROW.tokens)]


def images(rng: np.random.Generator, count: int) -> Sizes:
    tiles = rng.choice([1, 3, 5, 7, 9, 13], count)
    return [(int(256 * t + 2 + n), int(t)) for t, n in zip(tiles, rng.lognormal(5, 0.8, count), strict=True)]


def videos(rng: np.random.Generator, count: int) -> Sizes:
    frames = rng.integers(8, 33, count)
    return [(int(258 * f + n), int(f)) for f, n in zip(frames, rng.lognormal(5, 0.8, count), strict=True)]


def mixed(rng: np.random.Generator, count: int) -> Sizes:
    kinds = [text(rng, count), images(rng, count), videos(rng, count)]
    return [kinds[k][i] for i, k in enumerate(rng.choice(3, count, p=[0.5, 0.4, 0.1]))]


def half(rng: np.random.Generator, count: int) -> Sizes:
    kinds = [text(rng, count), images(rng, count)]
    return [kinds[k][i] for i, k in enumerate(rng.choice(2, count))]


KINDS = {"text": text, "images": images, "half text, half images": half, "videos": videos, "all three": mixed}


def published(sizes: Sizes, buffers: int) -> int:
    """The number of rows of InternVL's algorithm: rows ordered by tiles, text counted as one tile."""
    rows, waiting = 0, []
    for tokens, tiles in sizes:
        tiles = max(1, tiles)
        hit = next(
            (i for i, row in enumerate(waiting) if row[0] + tiles <= ROW.tiles and row[1] + tokens <= ROW.tokens), None
        )
        before = (0, 0) if hit is None else waiting.pop(hit)
        merged = (before[0] + tiles, before[1] + tokens)
        if merged[1] == ROW.tokens:
            rows += 1
        else:
            waiting.insert(sum(row[0] >= merged[0] for row in waiting), merged)
        while waiting and (waiting[0][0] == ROW.tiles or len(waiting) > buffers):
            waiting.pop(0)
            rows += 1
    return rows + len(waiting)


def ours(sizes: Sizes, lookahead: float) -> list[list[Item]]:
    packer, rows = Packer(ROW, lookahead), []
    for key, (tokens, tiles) in enumerate(sizes):
        packer.add(Item(key, tokens, tiles, 1))
        if packer.ready:
            rows.append(packer.row())
    while row := packer.row():
        rows.append(row)
    return rows


def timed(work: Callable[[], object], repeats: int) -> tuple[object, float]:
    """What comes of it, and the median of the seconds of CPU time it takes."""
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        result = work()
        taken.append(time.process_time() - began)
    return result, statistics.median(taken)


def lines(count: int, repeats: int) -> Iterator[list[str]]:
    for buffers in BUFFERS:
        for name, kind in KINDS.items():
            sizes = kind(np.random.default_rng(0), count)
            theirs, slow = timed(lambda sizes=sizes, buffers=buffers: published(sizes, buffers), repeats)
            rows, fast = timed(lambda sizes=sizes, buffers=buffers: ours(sizes, buffers), repeats)
            full = rows[:-20]
            tokens = np.mean([sum(item.tokens for item in row) for row in full]) / ROW.tokens
            tiles = np.mean([sum(item.tiles for item in row) for row in full]) / ROW.tiles
            least = max(sum(n for n, _ in sizes) / ROW.tokens, sum(t for _, t in sizes) / ROW.tiles)
            figures = [f"{least:.1f}", f"{tokens:.2%}", f"{tiles:.2%}"]
            speed = [f"{seconds / count * 1e6:.1f}" for seconds in (slow, fast)]
            yield [str(buffers), name, str(theirs), str(len(rows)), *figures, *speed]


def mixture(rng: np.random.Generator, count: int) -> Sizes:
    """One to seven sizes of image, at most 48 tiles, of 16 to 256 tokens a tile, with short or long text."""
    kinds = rng.choice(np.arange(0, rng.integers(2, ROW.tiles + 1)), rng.integers(1, 8))
    tiles = rng.choice(kinds, count, p=rng.dirichlet(np.ones(len(kinds))))
    each = rng.choice([16, 64, 256])
    words = np.clip(rng.lognormal(rng.uniform(3, 7.5), rng.uniform(0.2, 1.2), count), 8, 4000)
    return [(min(ROW.tokens, int(each * t + n)), int(t)) for t, n in zip(tiles, words, strict=True)]


def mixtures(count: int) -> None:
    """Prints in how many made-up mixtures, with how many buffers, the packer makes more rows than the original."""
    cases = []
    for seed in range(count):
        sizes = mixture(np.random.default_rng(seed), 1500)
        cases += [(published(sizes, buffers), len(ours(sizes, buffers))) for buffers in BUFFERS]
    more = [rows - theirs for theirs, rows in cases if rows > theirs]
    total = [sum(rows) for rows in zip(*cases, strict=True)]
    buffers = ", ".join(map(str, BUFFERS))
    print(
        f"\n{count} mixtures with buffers of {buffers}: {len(more)} of {len(cases)} make more rows than the original,"
    )
    print(f"{sum(more)} together; in all {total[0]:,} rows theirs, {total[1]:,} ours")


def packing(count: int, repeats: int) -> None:
    """Prints rows, fill, and microseconds a sample; then how often there are more rows than in the original."""
    print(f"\nRows made of {count:,} samples, and µs a sample")
    head = ["buffers", "stream", "theirs", "ours", "at least", "token fill", "tile fill", "µs, theirs", "µs, ours"]
    table(head, lines(count, repeats))
    mixtures(50)
