"""Speed of packing, indexing and resuming, beside InternVL's own algorithm written out from its description.

    python benchmarks/data.py [--samples 20000] [--lines 5000000]

Packing: made-up sizes (lognormal text, images of 1 to 13 tiles, videos of 8 to 32 frames) into rows of 16,384 tokens
and 48 tiles, with the published buffers of 20 rows and as many rows' worth of look-ahead: rows, fill, time a sample.
Index: a JSONL file of that many lines, its index built, and the first samples drawn through it. Resuming: the first row
of a stream that goes on from draw 10^9. Speed of images is in benchmarks/encoding.py.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ivl3_jax.data.line_index import LineIndex
from ivl3_jax.data.mixture import Mixture
from ivl3_jax.data.packing import Budget, Item, Packer

ROW = Budget(tokens=16384, tiles=48, segments=10_000)
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


def timed(work: Callable) -> tuple[object, float]:
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


def packing(count: int) -> None:
    print("| stream | theirs, rows | µs a sample | ours, rows | µs a sample | at least | tokens | tiles |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in (text, images, videos, mixed):
        sizes = kind(np.random.default_rng(0), count)
        theirs, slow = timed(lambda sizes=sizes: published(sizes, 20))
        rows, fast = timed(lambda sizes=sizes: ours(sizes, 20))
        full = rows[:-20]
        tokens = np.mean([sum(item.tokens for item in row) for row in full]) / ROW.tokens
        tiles = np.mean([sum(item.tiles for item in row) for row in full]) / ROW.tiles
        least = max(sum(n for n, _ in sizes) / ROW.tokens, sum(t for _, t in sizes) / ROW.tiles)
        figures = f"{theirs} | {slow / count * 1e6:.1f} | {len(rows)} | {fast / count * 1e6:.1f} | {least:.1f}"
        print(f"| {kind.__name__} | {figures} | {tokens:.2%} | {tiles:.2%} |")


def indexing(lines: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "lines.jsonl"
        turns = [{"from": "human", "value": "What is written here? " * 8}, {"from": "gpt", "value": "A number. " * 9}]
        with file.open("w") as stream:
            for number in range(lines):
                stream.write(json.dumps({"id": number, "conversations": turns}) + "\n")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        index, build = timed(lambda: LineIndex.open(file))
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
        _, again = timed(lambda: LineIndex.open(file))
        size = file.stat().st_size / 1e6
        print(f"\nindex of {len(index):,} lines, {size:,.0f} MB: {build:.2f} s, {size / build:,.0f} MB/s, ", end="")
        print(f"resident memory grew by {grown:.0f} MB; opened again in {again * 1e3:.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--lines", type=int, default=5_000_000)
    arguments = parser.parse_args()
    packing(arguments.samples)
    indexing(arguments.lines)
    mixture = Mixture((50_000_000, 3_000_000, 17), (50, 3, 1), streams=1024)
    _, first = timed(lambda: [mixture.draw(1023, number) for number in range(10**9, 10**9 + 100)])
    print(f"100 draws of a stream from draw 10^9 on: {first * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
