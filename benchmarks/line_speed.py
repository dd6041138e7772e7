"""A JSONL file of millions of lines: its index, the memory that a loader takes, and the first batch."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from measuring import feed, fresh, medians, table, trained
from photographs import write_photographs
from tokenizers import Tokenizer

from ivl3_jax.data.line_index import LineIndex
from ivl3_jax.data.loader import Loader

FEW = 1000  # lines of a small file
BATCHES = 20  # by which memory no longer grows
IMAGES = 21
IMPORTS = "import time; t = time.perf_counter(); import ivl3_jax.data.settings; print(time.perf_counter() - t)"


def write_lines(folder: Path, lines: int) -> dict[str, Path]:
    """Two files of records of about 420 bytes, without images and with one of 2 megapixels each, if not yet there."""
    files = {"text": folder / f"text {lines}.jsonl", "images": folder / f"images {lines}.jsonl"}
    if not (folder / "0.jpg").exists():
        write_photographs(folder, 2, IMAGES)
    for kind, file in files.items():
        if file.exists():
            continue
        question, answer = "What is written here? " * 6, "A number. " * 20
        if kind == "images":
            question = f"<image>\\n{question}"
        said = f'[{{"from": "human", "value": "{question}"}}, {{"from": "gpt", "value": "{answer}"}}]'
        with file.open("w") as stream:
            for number in range(lines):
                image = f'"image": "{number % IMAGES}.jpg", ' if kind == "images" else ""
                stream.write(f'{{"id": {number}, {image}"conversations": {said}}}\n')
    return files


def megabytes(which: str) -> float:
    """Of this process: resident now (VmRSS), or the most so far (VmHWM), which getrusage mixes with its parent's."""
    (found,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(found.split()[1]) / 1e3


def without_index(file: Path) -> Path:
    Path(f"{file}.index").unlink(missing_ok=True)
    return file


def index_built(file: Path) -> tuple[float, float]:
    """Seconds that a new index takes, and MB of memory."""
    before, began = megabytes("VmRSS"), time.perf_counter()
    LineIndex.open(without_index(file))
    return time.perf_counter() - began, megabytes("VmHWM") - before


def memory(file: Path, tokenizer: Tokenizer) -> tuple[float]:
    """MB that a loader takes, which builds the index, too."""
    before = megabytes("VmRSS")
    with closing(Loader(feed(without_index(file), tokenizer))) as loader:
        for _ in range(BATCHES):
            next(loader)
    return (megabytes("VmHWM") - before,)


def first_batch(
    file: Path, tokenizer: Tokenizer, workers: int, state: dict[str, Any] | None = None
) -> tuple[float, float]:
    """Seconds until the feed is open, and until there is a batch."""
    began = time.perf_counter()
    opened = feed(file, tokenizer)
    feed_open = time.perf_counter() - began
    with closing(Loader(opened, workers=workers, state=state)) as loader:
        next(loader)
        return feed_open, time.perf_counter() - began


def imports() -> tuple[float]:
    """Seconds that the data engine takes to import."""
    return (float(subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, check=True).stdout),)


def repeated(repeats: int, function: Callable[..., Sequence[float]], *arguments: Any) -> list[float]:
    """Medians of the figures that a function gives in fresh processes."""
    return medians(fresh(function, *arguments) for _ in range(repeats))


def first_batches(files: dict[str, Path], repeats: int, state: dict[str, Any] | None = None) -> Iterator[list[str]]:
    tokenizer = trained()
    for kind, file in files.items():
        for workers in (0, 1):
            seconds = repeated(repeats, first_batch, file, tokenizer, workers, state and state[kind])
            yield [kind, str(workers), *(f"{figure:.2f}" for figure in seconds)]


def index(folder: Path, lines: int, repeats: int) -> None:
    """Prints the speed and memory of the index, the memory of a loader, and the time to the first batch."""
    files, few, tokenizer = write_lines(folder, lines), write_lines(folder, FEW), trained()
    size = files["text"].stat().st_size / 1e6
    seconds, grown = repeated(repeats, index_built, files["text"])
    print(
        f"\nAn index of {lines:,} lines, {size:,.0f} MB: {seconds:.2f} s, {size / seconds:,.0f} MB/s, ",
        end="",
    )
    print(f"memory grows by {grown:.0f} MB")
    print(f"\nMB that a loader takes, {BATCHES} batches and a new index, by number of lines")
    taken = {kind: [repeated(repeats, memory, of[kind], tokenizer)[0] for of in (files, few)] for kind in files}
    rows = ([kind, *(f"{most:.0f}" for most in figures)] for kind, figures in taken.items())
    table(["lines", f"{lines:,}", f"{FEW:,}"], rows)
    (importing,) = medians(imports() for _ in range(repeats))
    print(f"\nSeconds to the first batch of a fresh process, after {importing:.2f} s of imports")
    table(["lines", "workers", "feed open", "first batch"], first_batches(files, repeats))
