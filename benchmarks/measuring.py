"""What the benchmarks of the data engine share: a small tokenizer, a published row, fresh processes, tables."""

import multiprocessing
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import tokenizers

from ivl3_jax.data.packing import Budget
from ivl3_jax.data.processor import Processor
from ivl3_jax.data.settings import DataRecipe, open_feed
from ivl3_jax.data.stream import Feed
from ivl3_jax.data.template import ChatTemplate
from ivl3_jax.data.tokenizer import Tokenizer
from ivl3_jax.data.tokenizer_training import train_tokenizer

T = TypeVar("T")

ROW = Budget(tokens=16384, tiles=48, segments=512)  # of InternVL3's own recipes, which do not bound segments
SIZE, TILE_TOKENS, MAX_TILES = 448, 256, 12


def trained() -> tokenizers.Tokenizer:
    """A tokenizer of 8,000 entries, from the pages of docs/."""
    pages = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
    return train_tokenizer([page.read_text() for page in pages], 8000)


def processor(tokenizer: tokenizers.Tokenizer) -> Processor:
    return Processor(Tokenizer(tokenizer), ChatTemplate(), SIZE, TILE_TOKENS, 1, MAX_TILES)


def feed(file: Path | str, tokenizer: tokenizers.Tokenizer) -> Feed:
    """One row a batch from a JSONL file, images beside it."""
    room = {"tokens": ROW.tokens, "tiles": ROW.tiles, "segments": ROW.segments}
    return open_feed(DataRecipe(annotation=str(file), **room), processor(tokenizer), 0)


def fresh(function: Callable[..., T], *arguments: Any) -> T:
    """What a function gives in a process of its own, in which nothing has run before."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def medians(turns: Iterable[Sequence[float]]) -> list[float]:
    """The median of each figure over several turns."""
    return [statistics.median(figures) for figures in zip(*turns, strict=True)]


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints Markdown, each row as soon as it is there."""
    print(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def machine() -> str:
    """The processor, its cores, the memory, and the versions that matter."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    model = names[0].partition(": ")[2] if names else platform.machine()
    versions = [f"{name} {version(name)}" for name in ("numpy", "pillow", "grain", "torch")]
    found = [model, f"{os.cpu_count()} cores", f"{gigabytes:.0f} GiB", f"Python {platform.python_version()}"]
    return ", ".join([*found, *versions])
