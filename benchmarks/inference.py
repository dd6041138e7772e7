"""Generation with InternVL3-1B's shapes in float32 on the CPU, beside transformers in the same run.

    python benchmarks/inference.py [--new 48] [--repeat 3] [--only decode] [--checkpoint DIR]

Random weights are made once by transformers and kept in .cache/benchmarks/1b. A prompt has 4 tiles and 200 text tokens.
Measures: the time to the first token; tokens a second with one row and with eight; eight samples of one prompt beside
one; and the first token of a second question about the same pictures. Each side runs once to warm up (for us that is
compiling), then `--repeat` times; medians count. A prompt that is prefilled again has other tokens from its first on,
and other pictures, so that nothing of it is in the cache. transformers decodes by its own forward pass in a plain loop,
which is faster than its `generate`.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import torch
import transformers
from forward import example, make_checkpoint

import ivl3_jax
from ivl3_jax.config import IMAGE_MEAN, IMAGE_STD, InternVLConfig
from ivl3_jax.data.encoded import Encoded
from ivl3_jax.inference.engine import Engine
from ivl3_jax.inference.request import Request
from ivl3_jax.inference.sampling import Sampling

TILES, TEXT, ROWS = 4, 200, 8
DRAWING = Sampling(0.6, top_p=0.95)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--new", type=int, default=48, help="tokens that are decoded")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", default="", help="measures whose name begins so")
    parser.add_argument("--checkpoint", type=Path, default=Path(".cache/benchmarks/1b"))
    arguments = parser.parse_args()
    if not (arguments.checkpoint / "config.json").exists():
        make_checkpoint(arguments.checkpoint)
    ours, theirs = Ours(arguments.checkpoint, arguments.new), Theirs(arguments.checkpoint, arguments.new)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; jax {jax.__version__}, ", end="")
    print(f"torch {torch.__version__} ({torch.get_num_threads()} threads), transformers {transformers.__version__}\n")
    print("| measure | transformers | ivl3_jax | ratio |\n|---|---|---|---|", flush=True)

    def wanted(name: str) -> bool:
        return name.startswith(arguments.only)

    if wanted("first token"):
        them, us = (median(side.first_token, arguments.repeat) for side in (theirs, ours))
        print(
            f"| first token, {TILES} tiles + {TEXT} tokens, s | {them:.2f} | {us:.2f} | {us / them:.2f} |", flush=True
        )
    for rows in (1, ROWS):
        if wanted(f"decode {rows}"):
            them, us = (median(partial(side.decode, rows), arguments.repeat) for side in (theirs, ours))
            them, us = (rows * arguments.new / seconds for seconds in (them, us))
            print(f"| decode {rows} rows, tokens/s | {them:.1f} | {us:.1f} | {us / them:.2f} |", flush=True)
    if wanted("samples"):
        one, eight = (median(partial(ours.samples, n), arguments.repeat) for n in (1, ROWS))
        told = f"{ROWS} samples of one prompt, {arguments.new} tokens each, s"
        print(f"| {told} | one: {one:.2f} | {eight:.2f} | {eight / one:.2f} |", flush=True)
    if wanted("second question"):
        first, second = ours.two_questions(arguments.repeat)
        told = "second question about the same pictures, first token, s"
        print(f"| {told} | first: {first:.2f} | {second:.2f} | {second / first:.2f} |", flush=True)


def median(call: Callable[[], float], repeat: int) -> float:
    """Of the seconds that `call` reports, after a first time."""
    call()
    return statistics.median(call() for _ in range(repeat))


class Ours:
    def __init__(self, checkpoint: Path, new: int) -> None:
        self.engine, self.new, self.asked = Engine(ivl3_jax.load(checkpoint, "float32")), new, 0

    def prompt(self, pictures: int | None = None, begins: int | None = None) -> Encoded:
        """Another prompt each time, unless its pictures or its first tokens are said by number."""
        self.asked += 1
        batch = example(TILES, TEXT, self.engine.config)
        tokens, tiles = batch.tokens[0].copy(), batch.tiles[0].copy()
        tokens[0] = self.asked if begins is None else begins
        tokens[-1] = self.asked
        tiles[:, 0, 0, 0] = self.asked % 256 if pictures is None else pictures
        nothing = np.zeros(len(tokens), bool)
        return Encoded(tokens, batch.labels[0], nothing, tiles, batch.visual_index[0], batch.positions[0])

    def until_first(self, prompt: Encoded) -> float:
        began = time.perf_counter()
        next(self.engine.stream(Request(prompt, 2)))
        return time.perf_counter() - began

    def first_token(self) -> float:
        return self.until_first(self.prompt())

    def decode(self, rows: int) -> float:
        # Rows that are prefilled first go ahead: none may have ended before the clock stops.
        most = self.new + 8 * rows
        tickets = [self.engine.submit(Request(self.prompt(pictures=0), most)) for _ in range(rows)]
        while any(ticket.said.empty() for ticket in tickets):
            self.engine.step()
        before = sum(ticket.said.qsize() for ticket in tickets)
        began = time.perf_counter()
        for _ in range(self.new):
            self.engine.step()
        seconds = time.perf_counter() - began
        said = sum(ticket.said.qsize() for ticket in tickets) - before
        for ticket in tickets:
            ticket.cancel()
        while any(ticket.unfinished for ticket in tickets):
            self.engine.step()
        return seconds * rows * self.new / said

    def samples(self, count: int) -> float:
        began = time.perf_counter()
        for _ in self.engine.stream(Request(self.prompt(), self.new, DRAWING, samples=count)):
            pass
        return time.perf_counter() - began

    def two_questions(self, repeat: int) -> tuple[float, float]:
        first, second = [], []
        for number in range(repeat + 1):
            first.append(self.until_first(self.prompt(pictures=100 + number, begins=5000 + number)))
            second.append(self.until_first(self.prompt(pictures=100 + number, begins=5000 + number)))
        return statistics.median(first[1:]), statistics.median(second[1:])


class Theirs:
    def __init__(self, checkpoint: Path, new: int) -> None:
        load = transformers.InternVLForConditionalGeneration.from_pretrained
        self.model, self.new = load(checkpoint, dtype=torch.float32).eval(), new
        batch = example(TILES, TEXT, InternVLConfig.preset("InternVL3-1B"))
        pixels = (batch.tiles[0].astype(np.float32) / 255 - np.float32(IMAGE_MEAN)) / np.float32(IMAGE_STD)
        pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        self.prompt = {"input_ids": torch.from_numpy(batch.tokens).long(), "pixel_values": torch.from_numpy(pixels)}

    @torch.no_grad()
    def prefill(self) -> transformers.modeling_outputs.ModelOutput:
        return self.model(**self.prompt, use_cache=True, logits_to_keep=1)

    def first_token(self) -> float:
        began = time.perf_counter()
        self.prefill().logits.argmax()
        return time.perf_counter() - began

    @torch.no_grad()
    def decode(self, rows: int) -> float:
        out = self.prefill()
        cache, logits = out.past_key_values, out.logits.repeat(rows, 1, 1)
        cache.batch_repeat_interleave(rows)
        began = time.perf_counter()
        for _ in range(self.new):
            out = self.model(input_ids=logits[:, -1:].argmax(-1), past_key_values=cache, use_cache=True)
            cache, logits = out.past_key_values, out.logits
        return time.perf_counter() - began


if __name__ == "__main__":
    main()
