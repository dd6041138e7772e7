"""InternVL3-1B's shapes in bfloat16 on whatever accelerator jax sees: prefill, decoding, a train step.

    python benchmarks/accelerator.py [--size InternVL3-1B] [--layers N] [--tokens 4096] [--tiles 8]

Weights are random. Times are medians of `--repeat` runs after a warm-up; MFU counts 6 floating-point operations a
parameter and position (2 for the forward pass) and attention's products, without recomputation, against `--peak`.
"""

import argparse
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from ivl3_jax.batch import IGNORE, Batch, empty_batch
from ivl3_jax.config import InternVLConfig
from ivl3_jax.data.encoded import Encoded
from ivl3_jax.inference.generate import Generator
from ivl3_jax.models.model import Model, place_batch
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.training.config import TrainConfig
from ivl3_jax.training.optimizer import make_optimizer
from ivl3_jax.training.step import init_state, make_step

NEW_TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="InternVL3-1B")
    parser.add_argument("--layers", type=int, help="of ViT and decoder, for a quick try")
    parser.add_argument("--tokens", type=int, default=4096, help="of a row, visual tokens included")
    parser.add_argument("--tiles", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--peak", type=float, default=989e12, help="FLOP/s of the chip in bf16; 989e12 is an H200's")
    arguments = parser.parse_args()
    config = InternVLConfig.preset(arguments.size)
    if arguments.layers:
        vision = dataclasses.replace(config.vision, layers=arguments.layers)
        decoder = dataclasses.replace(config.decoder, layers=arguments.layers)
        config = dataclasses.replace(config, vision=vision, decoder=decoder)
    batch = example(config, arguments.tokens, arguments.tiles)
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {arguments.size}, {arguments.tokens} tokens, ", end=""
    )
    print(f"{arguments.tiles} tiles\n\n| measure | seconds | MFU |\n|---|---|---|", flush=True)
    work = forward_flops(config, arguments.tokens, arguments.tiles)

    generation(config, batch, work, arguments)
    training(config, batch, work, arguments)


def generation(config: InternVLConfig, batch: Batch, work: float, arguments: argparse.Namespace) -> None:
    """Prefill and decoding with bfloat16 weights."""
    generator = Generator(Model.init(config, param_dtype="bfloat16", dtype="bfloat16"))
    nothing = np.zeros(arguments.tokens, bool)
    prompt = Encoded(*(x[0] for x in batch[:2]), nothing, batch.tiles[0], batch.visual_index[0], batch.positions[0])
    prefill = median(arguments.repeat, lambda: next(generator.stream([prompt], NEW_TOKENS)))
    # A prefill projects its last position only.
    projected = 2 * (arguments.tokens - 1) * config.decoder.width * config.decoder.vocab
    print(f"| prefill | {prefill:.4f} | {(work - projected) / prefill / arguments.peak:.1%} |", flush=True)
    whole = median(arguments.repeat, lambda: list(generator.stream([prompt], NEW_TOKENS)))
    print(f"| decoding, a token | {(whole - prefill) / (NEW_TOKENS - 1):.5f} | |", flush=True)


def training(config: InternVLConfig, batch: Batch, work: float, arguments: argparse.Namespace) -> None:
    """A whole step with float32 parameters and moments, computed in bfloat16, every layer rematerialised."""
    plan = ShardingPlan(remat={"vision": "full", "decoder": "full"})
    model = Model.init(config, plan, dtype="bfloat16")
    optimizer = make_optimizer(TrainConfig())
    step = make_step(model.graphdef, optimizer)
    with jax.set_mesh(model.mesh):
        placed, key = place_batch(batch, plan, model.mesh), jax.random.key(0)
        states = [init_state(model.params, optimizer)]

        def train() -> None:
            state, metrics = step(states.pop(), placed, key)
            states.append(state)
            jax.block_until_ready(metrics)

        seconds = median(arguments.repeat, train)
    print(f"| train step | {seconds:.4f} | {3 * work / seconds / arguments.peak:.1%} |", flush=True)


def median(repeat: int, call: Callable[[], object]) -> float:
    times = []
    for _ in itertools.repeat(None, repeat + 1):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def example(config: InternVLConfig, tokens: int, tiles: int) -> Batch:
    """One row: a few tokens of text, the tiles, text to the end."""
    rng = np.random.default_rng(0)
    visual = np.arange(tiles * config.tile_tokens)
    if len(visual) + 16 > tokens:
        raise SystemExit(f"--tokens is {tokens}; {tiles} tiles need at least {len(visual) + 16}")
    batch = empty_batch(1, tokens, tiles, 1, config.vision.image_size)
    batch.tokens[:] = rng.integers(0, config.decoder.vocab, batch.tokens.shape)
    batch.visual_index[0, 8 + visual] = visual
    batch.segment_ids[:] = 1
    batch.positions[:] = np.arange(tokens)
    batch.tiles[:] = rng.integers(0, 256, batch.tiles.shape)
    batch.labels[0, :-1] = np.where(batch.visual_index[0, 1:] < 0, batch.tokens[0, 1:], IGNORE)
    batch.loss_weights[:] = batch.labels != IGNORE
    return batch


def forward_flops(config: InternVLConfig, tokens: int, tiles: int) -> float:
    """Of one forward pass over one row: products with weights, and attention (half of the square where causal)."""
    v, d = config.vision, config.decoder
    vit = v.layers * (4 * v.width**2 + 2 * v.width * v.mlp)
    block = d.width * d.head_dim * (2 * d.heads + 2 * d.kv_heads) + 3 * d.width * d.mlp
    attention = 4 * tiles * v.layers * v.positions**2 * v.width + 2 * d.layers * tokens**2 * d.heads * d.head_dim
    return 2 * tiles * v.positions * vit + 2 * tokens * (d.layers * block + d.width * d.vocab) + attention


if __name__ == "__main__":
    main()
