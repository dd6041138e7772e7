"""Every published size beside PyTorch, from an original-layout checkpoint of random weights.

    python benchmarks/parity_sizes.py [--size InternVL3-1B ...] [--tokens 512] [--tiles 3]

Widths, heads, epsilons, norms, biases, rope and layout are those of the size (the 9B has InternLM2's names and fused
wqkv); the depth is cut to one ViT layer and one decoder layer, and the vocabulary to 2,048 rows. Each size is written
to a temporary directory in float32, read there by this package and, through the second map, by transformers, and
compared as `ivl3 parity DIR --gradients` does. Several sizes run in a process each. The exit code is 1 if anything is
over its tolerance.
"""

import argparse
import dataclasses
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import numpy as np

from ivl3_jax.config import PRESETS, InternVLConfig
from ivl3_jax.conversion import parity
from ivl3_jax.conversion.comparison import Report
from ivl3_jax.conversion.names import Parameter
from ivl3_jax.conversion.shards import Chunks, Tensor, assemble
from ivl3_jax.conversion.writer import write_layers

VOCAB = 2048
COLUMNS = ("size", "text + tiles", "alone", "in place", "logits", "loss", "gradient", "over", "peak GB", "seconds")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=list(PRESETS), default=list(PRESETS), metavar="SIZE")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--tiles", type=int, default=3)
    parser.add_argument("--rows-only", action="store_true", help="no head of the table")
    arguments = parser.parse_args(argv)
    if not arguments.rows_only:
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores\n")
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    if len(arguments.size) > 1:
        common = ["--rows-only", "--tokens", str(arguments.tokens), "--tiles", str(arguments.tiles)]
        commands = ([sys.executable, __file__, "--size", size, *common] for size in arguments.size)
        return max(subprocess.run(command).returncode for command in commands)
    (size,) = arguments.size
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        report = measure(PRESETS[size], Path(directory) / "original", arguments.tokens, arguments.tiles)
    figures = (f"{arguments.tokens} + {arguments.tiles}", *worst(report), f"{peak():.1f}")
    print(f"| {size} | {' | '.join(figures)} | {time.perf_counter() - began:.0f} |", flush=True)
    if not report.ok:
        print(report.verdict, file=sys.stderr)
    return 0 if report.ok else 1


def measure(config: InternVLConfig, directory: Path, tokens: int, tiles: int) -> Report:
    """Writes a checkpoint of the cut model and compares it, gradients included."""
    config = cut(config)
    write_layers(RandomLayers(), config, directory, layout="original")
    return parity.check(directory, with_gradients=True, tokens=tokens, tiles=tiles)


def cut(config: InternVLConfig) -> InternVLConfig:
    """One layer of each kind and a short vocabulary, the image token its last."""
    vision = dataclasses.replace(config.vision, layers=1)
    decoder = dataclasses.replace(config.decoder, layers=1, vocab=VOCAB)
    return dataclasses.replace(config, vision=vision, decoder=decoder, image_token_id=VOCAB - 1)


class RandomLayers:
    """Weights that keep activations near one and are neither zero nor one anywhere, drawn when they are written."""

    origin = "random numbers"

    def dtype(self, parameter: Parameter, number: int) -> np.dtype:
        return np.dtype(np.float32)

    def chunks(self, tensor: Tensor) -> Chunks:
        return assemble(tensor, self.read)

    def read(self, parameter: Parameter, number: int) -> np.ndarray:
        path, shape = parameter.path, parameter.layout.our_shape
        noise = np.random.default_rng([zlib.crc32(path.encode()), number]).standard_normal(shape, np.float32)
        if path.endswith("/scale"):
            return 1 + 0.2 * noise
        if "/ls" in path:
            return 0.5 + 0.1 * noise
        if path.endswith("/bias"):
            return 0.1 * noise
        if not path.endswith("/kernel"):
            return 0.3 * noise  # embeddings, CLS, positions
        # The attention's output has two input axes, every other kernel one.
        inputs = math.prod(shape[:-1]) if path.endswith("attention/out/kernel") else shape[0]
        return noise * np.float32(inputs**-0.5)


def worst(report: Report) -> tuple[str, ...]:
    """The largest relative difference of each kind, and how many comparisons are over their tolerance."""

    def largest(kind: str, *names: str) -> str:
        rows = [d for d in report.differences if d.kind == kind and (not names or d.name in names)]
        return f"{max(d.relative for d in rows):.1e}"

    over = sum(not d.ok for d in report.differences)
    return (
        largest("alone"),
        largest("in place"),
        largest("in place", "logits"),
        largest("gradient", "loss"),
        largest("gradient"),
        f"{over} of {len(report.differences)}",
    )


def peak() -> float:
    """Gigabytes of resident memory at the highest so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    sys.exit(main())
