"""InternVL3's shapes in bfloat16 on whatever accelerator jax sees: train steps on packed rows, prefill, decoding.

    python benchmarks/accelerator.py [SIZE[:lora] ...] [--layers N] [--tokens 8192] [--tiles 16] [--profile DIRECTORY]

Weights are random. Training: full fine-tuning with float32 parameters and moments, or adapters of rank 16 on a decoder
in bfloat16; computed in bfloat16, every layer rematerialised. The MFU is that which `ivl3 train` reports
(docs/training.md): neither padding nor recomputation counts. Generation: bfloat16 weights, one row and 64; GB/s are
those of the decoder's weights alone, each of which is read once a step.
"""

import argparse
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable
from itertools import repeat

import jax
import numpy as np

from ivl3_jax.batch import IGNORE, Batch, empty_batch
from ivl3_jax.config import InternVLConfig, Lora
from ivl3_jax.data.encoded import Encoded
from ivl3_jax.inference.engine import Engine
from ivl3_jax.inference.request import Request
from ivl3_jax.inference.sampling import Sampling
from ivl3_jax.models.adapters import adapted
from ivl3_jax.models.model import Model
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.training.config import Component, TrainConfig
from ivl3_jax.training.flops import StepFlops, peak_flops
from ivl3_jax.training.loop import Progress, train

SIZES = ("InternVL3-1B", "InternVL3-2B", "InternVL3-8B:lora")
NEW_TOKENS = 64
ROWS = (1, 64)
WARM_DRAWS = Sampling(temperature=1.0)
WARM = 3  # steps before the clock starts
LORA = Lora(16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", default=SIZES, metavar="SIZE", help="default: " + " ".join(SIZES))
    parser.add_argument("--layers", type=int, help="of ViT and decoder, for a quick try")
    parser.add_argument("--tokens", type=int, default=8192, help="of a row, visual tokens included")
    parser.add_argument("--tiles", type=int, default=16, help="of a row")
    parser.add_argument("--segments", type=int, default=8, help="of a row")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--profile", help="where to write a trace of the last three steps of each")
    arguments = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}\n")
    print("| train step | tokens, tiles, segments | trained | seconds | tokens a second | MFU | peak memory |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for size in arguments.sizes:
        name, _, adapters = size.partition(":")
        training(shapes(name, arguments.layers), name, adapters == "lora", arguments)
    print("\n| generation | seconds | tokens a second | GB/s of weights |\n|---|---|---|---|", flush=True)
    name = arguments.sizes[0].partition(":")[0]
    generation(shapes(name, arguments.layers), name, arguments)


def shapes(name: str, layers: int | None) -> InternVLConfig:
    config = InternVLConfig.preset(name)
    if layers:
        vision = dataclasses.replace(config.vision, layers=layers)
        decoder = dataclasses.replace(config.decoder, layers=layers)
        config = dataclasses.replace(config, vision=vision, decoder=decoder)
    return config


def training(config: InternVLConfig, name: str, lora: bool, arguments: argparse.Namespace) -> None:
    """The loop's steps on one packed row."""
    plan = ShardingPlan(remat={"vision": "full", "decoder": "full"})
    model = Model.init(config, plan, param_dtype="bfloat16" if lora else "float32", dtype="bfloat16")
    settings = TrainConfig(steps=arguments.steps, learning_rate=1e-6)
    if lora:
        model = adapted(model, {"decoder": LORA})
        frozen = Component(train=False)
        settings = dataclasses.replace(settings, vision=frozen, projector=frozen, decoder=Component(lora=LORA))
    batch = packed_row(config, arguments.tokens, arguments.tiles, arguments.segments)
    seen: list[Progress] = []

    def look(model: Model, step: int) -> None:
        if arguments.profile and step == arguments.steps - 3:
            jax.profiler.start_trace(f"{arguments.profile}/{name}")

    flops = StepFlops(config, model.params, settings.components)
    train(model, repeat(batch), settings, report=seen.append, look=look)
    if arguments.profile:
        jax.profiler.stop_trace()
    last = arguments.steps - (4 if arguments.profile else 1)
    seconds = (seen[last].seconds - seen[WARM - 1].seconds) / (last - WARM + 1)
    work = flops(
        positions=arguments.tokens,
        tokens=seen[-1].tokens,
        attended=attended(arguments.tokens, arguments.segments),
        tiles=arguments.tiles,
    )
    peak = peak_flops()
    mfu = "unknown peak" if peak is None else f"{work / seconds / peak:.1%}"
    stats = jax.devices()[0].memory_stats() or {}
    memory = f"{stats['peak_bytes_in_use'] / 1e9:.1f} GB" if "peak_bytes_in_use" in stats else ""
    shape = f"{arguments.tokens}, {arguments.tiles}, {arguments.segments}"
    trained = "adapters" if lora else "all"
    rate = arguments.tokens / seconds
    print(f"| {name} | {shape} | {trained} | {seconds:.4f} | {rate:,.0f} | {mfu} | {memory} |", flush=True)


def generation(config: InternVLConfig, name: str, arguments: argparse.Namespace) -> None:
    """Prefill and decoding with bfloat16 weights."""
    tokens, tiles = arguments.tokens // 2, arguments.tiles // 2
    batch = packed_row(config, tokens, tiles, 1)
    model = Model.init(config, param_dtype="bfloat16", dtype="bfloat16")
    decoder = model.params["decoder"]
    table = decoder["embed"]["table"].nbytes if "head" in decoder else 0  # of which a step takes a row each
    read = sum(leaf.nbytes for leaf in jax.tree.leaves(decoder)) - table
    engine = Engine(model)
    del model
    nothing, asked = np.zeros(tokens, bool), itertools.count()

    def prompt() -> Encoded:
        """Another one each time, pictures too: nothing of it is in the cache."""
        number = next(asked)
        ids, pictures = batch.tokens[0].copy(), batch.tiles[0].copy()
        ids[0], pictures[:, 0, 0, 0] = number, number % 256
        return Encoded(ids, batch.labels[0], nothing, pictures, batch.visual_index[0], batch.positions[0])

    prefill = median(5, lambda: next(engine.stream(Request(prompt(), NEW_TOKENS))))
    rate = f"{tokens / prefill:,.0f}"
    print(f"| {name}, prefill of {tokens} tokens with {tiles} tiles | {prefill:.4f} | {rate} | |", flush=True)
    for rows in ROWS:

        def decode(rows: int = rows) -> float:
            """Seconds of a step of so many rows, from the first that all of them run in."""
            ticket = engine.submit(Request(prompt(), NEW_TOKENS, WARM_DRAWS, samples=rows))
            while ticket.said.empty():
                engine.step()
            began, said = time.perf_counter(), ticket.said.qsize()
            while ticket.unfinished:
                engine.step()
            return (time.perf_counter() - began) / (rows * NEW_TOKENS - said) * rows

        decode()
        step = statistics.median(decode() for _ in range(5))
        figures = f"{step:.5f} | {rows / step:,.0f} | {read / step / 1e9:,.0f}"
        print(f"| {name}, a step of {rows} rows behind them | {figures} |", flush=True)


def median(times: int, call: Callable[[], object]) -> float:
    taken = []
    for _ in itertools.repeat(None, times + 1):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def packed_row(config: InternVLConfig, tokens: int, tiles: int, segments: int) -> Batch:
    """One row of segments of equal length: a few tokens of text, a share of the tiles, text to the end."""
    rng = np.random.default_rng(0)
    length, each = tokens // segments, tiles // segments
    visual = np.arange(each * config.tile_tokens)
    if tokens % segments or tiles % segments or len(visual) + 16 > length:
        told = f"{segments} segments of {length} tokens and {each} tiles"
        raise SystemExit(f"--tokens {tokens} and --tiles {tiles} make no {told} of {config.tile_tokens} tokens each")
    batch = empty_batch(1, tokens, tiles, segments, config.vision.image_size)
    batch.tokens[:] = rng.integers(0, config.decoder.vocab, batch.tokens.shape)
    batch.tiles[:] = rng.integers(0, 256, batch.tiles.shape)
    for number in range(segments):
        here = slice(number * length, (number + 1) * length)
        batch.visual_index[0, here][8 + visual] = number * len(visual) + visual
        batch.segment_ids[0, here], batch.positions[0, here] = number + 1, np.arange(length)
        text = batch.visual_index[0, here][1:] < 0
        batch.labels[0, here][:-1] = np.where(text, batch.tokens[0, here][1:], IGNORE)
    batch.loss_weights[:] = batch.labels != IGNORE
    return batch


def attended(tokens: int, segments: int) -> float:
    """Pairs of positions that see each other."""
    length = tokens // segments
    return segments * length * (length + 1) / 2


if __name__ == "__main__":
    main()
