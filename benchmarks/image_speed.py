"""Tiles a second of the loader and of the plain one, from JSONL and JPEG files to batches, by size of the images.

Each loader has a process of its own, which is stopped while another is measured, so that what it makes in advance is
counted where it is used. Tiles are those of images: neither padding nor anything else.
"""

import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from measuring import ROW, TILE_TOKENS, feed, table, trained
from photographs import write_photographs
from tokenizers import Tokenizer

from ivl3_jax.data.loader import Loader

MEGAPIXELS = (0.2, 0.5, 1, 2, 4, 8, 12)
BATCHES = 6  # in a turn
BEFORE = 24  # batches before the first turn, so that the plain loader's 20 open rows are filled

Batches = Iterator[tuple[int, int]]  # the tiles of each batch, and the bytes they are handed on in
Read = Callable[[Path, Tokenizer, int], Batches]


class Turn(NamedTuple):
    """Tiles that were read in one go, the seconds that took by the clock and of all processes, bytes in a batch."""

    tiles: int
    clock: float
    cpu: float
    size: int


def ours(file: Path, tokenizer: Tokenizer, workers: int) -> Batches:
    with closing(Loader(feed(file, tokenizer), workers=workers)) as loader:
        for batch in loader:
            yield int((batch.visual_index >= 0).sum()) // TILE_TOKENS, batch.tiles.nbytes


def plain(file: Path, tokenizer: Tokenizer, workers: int) -> Batches:
    from plain_loader import plain_loader

    for batch in plain_loader(file, tokenizer, ROW.tokens, ROW.tiles, workers):
        yield int(batch["image_flags"].sum()), batch["pixel_values"].nbytes


def serve(pipe: Connection, read: Read, file: Path, tokenizer: Tokenizer, workers: int) -> None:
    """Takes a turn whenever it is told to."""
    os.setsid()  # so that it can be stopped with its workers
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with closing(read(file, tokenizer, workers)) as batches:
        for _ in range(BEFORE):
            next(batches)
        pipe.send(None)
        while pipe.recv():
            clock, cpu = time.perf_counter(), cpu_seconds()
            found = [next(batches) for _ in range(BATCHES)]
            tiles = sum(tiles for tiles, _ in found)
            pipe.send(Turn(tiles, time.perf_counter() - clock, cpu_seconds() - cpu, found[0][1]))
    time.sleep(1)  # a thread of grain's gives shared memory back


def cpu_seconds() -> float:
    """CPU time of this process and its children so far; on Linux the clock of process p has the number ~p << 3 | 2."""
    children = multiprocessing.active_children()
    return time.process_time() + sum(time.clock_gettime(~child.pid << 3 | 2) for child in children)


def compare(file: Path, repeats: int) -> dict[tuple[Read, int], list[Turn]]:
    """The turns of both loaders with 0 and 1 workers, taken by one after the other, so that noise meets all."""
    context, tokenizer = multiprocessing.get_context("spawn"), trained()
    kinds = [(read, workers) for workers in (0, 1) for read in (ours, plain)]
    servers = []
    for read, workers in kinds:
        pipe, other = context.Pipe()
        process = context.Process(target=serve, args=(other, read, file, tokenizer, workers))
        process.start()
        other.close()
        servers.append((process, pipe))
    for process, pipe in servers:
        pipe.recv()
        os.killpg(process.pid, signal.SIGSTOP)
    turns: dict[tuple[Read, int], list[Turn]] = {kind: [] for kind in kinds}
    for left in reversed(range(repeats)):
        for kind, (process, pipe) in zip(kinds, servers, strict=True):
            os.killpg(process.pid, signal.SIGCONT)
            pipe.send(True)
            turns[kind].append(pipe.recv())
            if left:
                os.killpg(process.pid, signal.SIGSTOP)
            else:
                pipe.send(False)
                process.join()
    return turns


def rows(folder: Path, repeats: int) -> Iterator[list[str]]:
    for megapixels in MEGAPIXELS:
        file = write_photographs(folder / f"{megapixels}", megapixels)
        turns = compare(file, repeats)
        sizes = [photograph.stat().st_size for photograph in file.parent.glob("*.jpg")]
        row = [f"{megapixels}", f"{statistics.mean(sizes) / 1e3:,.0f}"]
        for workers in (0, 1):
            us, them = turns[ours, workers], turns[plain, workers]
            first, second = (statistics.median(turn.tiles / turn.cpu for turn in found) for found in (us, them))
            clock = [statistics.median(turn.tiles / turn.clock for turn in found) for found in (us, them)]
            row += [f"{first:.0f}", f"{second:.0f}", f"{first / second:.2f}", f"{clock[0] / clock[1]:.2f}"]
        yield [*row, f"{turns[ours, 0][0].size / 1e6:.1f}", f"{turns[plain, 0][0].size / 1e6:.1f}"]


def images(folder: Path, repeats: int) -> None:
    """Prints tiles a second and core."""
    print("\nTiles a second and core, ours and plain, with 0 workers, then with 1; MB of tiles in a batch of one row")
    by_workers = ["ours", "plain", "ratio", "by the clock"]
    table(["megapixels", "KB a file", *by_workers, *by_workers, "MB, ours", "MB, plain"], rows(folder, repeats))
