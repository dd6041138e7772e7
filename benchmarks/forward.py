"""Speed of InternVL3-1B's shapes in float32, beside transformers in the same run.

    python benchmarks/forward.py [--repeat 3] [--checkpoint DIR]

Random weights are made once by transformers and kept in .cache/benchmarks/1b. Two measures: the ViT on 4 tiles; loss
and gradients of 1 tile and 256 text tokens. For generation see benchmarks/inference.py.
Each side runs once to warm up (for us that is the compile time shown) and then `--repeat` times; medians count. One
side after the other, not in turn: a run would pay for the memory that the other side has just given back.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import torch
import transformers
from flax import nnx

import ivl3_jax
from ivl3_jax.batch import Batch, empty_batch
from ivl3_jax.config import IMAGE_MEAN, IMAGE_STD, InternVLConfig
from ivl3_jax.hf_config import to_hf
from ivl3_jax.models.internvl import batch_loss
from ivl3_jax.models.model import place_batch
from ivl3_jax.sharding.plan import ShardingPlan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", help="measures whose name begins so")
    parser.add_argument("--checkpoint", type=Path, default=Path(".cache/benchmarks/1b"))
    arguments = parser.parse_args()
    if not (arguments.checkpoint / "config.json").exists():
        make_checkpoint(arguments.checkpoint)
    ours, theirs = Ours(arguments.checkpoint), Theirs(arguments.checkpoint)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; jax {jax.__version__}, ", end="")
    print(f"torch {torch.__version__} ({torch.get_num_threads()} threads), transformers {transformers.__version__}\n")
    print("| measure | transformers s | ivl3_jax s | times as fast | compile s |\n|---|---|---|---|---|", flush=True)
    figures = {}
    for name in ("vit, 4 tiles", "forward + backward, 1 tile + 256"):
        if not name.startswith(arguments.only or ""):
            continue
        method = name.split(",")[0].replace(" + ", "_")
        _, them = measured(getattr(theirs, method), arguments.repeat)
        compile_seconds, us = measured(getattr(ours, method), arguments.repeat)
        figures[name] = {"transformers": them, "ivl3_jax": us, "ratio": them / us, "compile": compile_seconds}
        print(f"| {name} | {them:.3f} | {us:.3f} | {them / us:.2f} | {compile_seconds:.1f} |", flush=True)
    print("\n" + json.dumps(figures))


def timed(call: Callable[[], object]) -> float:
    """Seconds that `call` itself reports, or those it takes."""
    began = time.perf_counter()
    reported = call()
    return reported if isinstance(reported, float) else time.perf_counter() - began


def measured(call: Callable[[], object], repeat: int) -> tuple[float, float]:
    """Seconds of the first call, and the median of `repeat` later ones."""
    first = timed(call)
    return first, statistics.median(timed(call) for _ in range(repeat))


def make_checkpoint(directory: Path) -> None:
    config = transformers.InternVLConfig.from_dict(to_hf(InternVLConfig.preset("InternVL3-1B")))
    torch.manual_seed(0)
    transformers.InternVLForConditionalGeneration(config).save_pretrained(directory)


def example(tiles: int, text: int, config: InternVLConfig) -> Batch:
    """One row: `tiles` tiles of noise, then `text` tokens."""
    rng = np.random.default_rng(0)
    visual = tiles * config.tile_tokens
    batch = empty_batch(1, visual + text, tiles, 1, config.vision.image_size)
    batch.tokens[:] = rng.integers(0, 150_000, batch.tokens.shape)
    batch.tokens[0, 8 : 8 + visual] = config.image_token_id
    batch.visual_index[0, 8 : 8 + visual] = np.arange(visual)
    batch.segment_ids[:] = 1
    batch.positions[:] = np.arange(visual + text)
    batch.tiles[:] = rng.integers(0, 256, batch.tiles.shape)
    batch.labels[0, :-1] = np.where(batch.visual_index[0, 1:] < 0, batch.tokens[0, 1:], -100)
    batch.loss_weights[:] = batch.labels != -100
    return batch


class Ours:
    def __init__(self, checkpoint: Path) -> None:
        # Keeping matrix products and attention's results is as fast here, and leaves room for both sides in 24 GiB.
        plan = ShardingPlan(remat={"vision": "dots", "decoder": "dots"})
        self.model = ivl3_jax.load(checkpoint, "float32", plan)
        graphdef, config = self.model.graphdef, self.model.config
        self.vit_batch, self.train_batch = (example(*n, config) for n in ((4, 200), (1, 256)))
        self.run_vit = jax.jit(lambda p, t: nnx.merge(graphdef, p).vision(t, np.float32))
        self.run_backward = jax.jit(jax.value_and_grad(lambda p, b: batch_loss(nnx.merge(graphdef, p), b)))

    def vit(self) -> None:
        with jax.set_mesh(self.model.mesh):
            jax.block_until_ready(self.run_vit(self.model.params, self.vit_batch.tiles[0]))

    def forward_backward(self) -> None:
        batch = place_batch(self.train_batch, self.model.plan, self.model.mesh)
        with jax.set_mesh(self.model.mesh):
            jax.block_until_ready(self.run_backward(self.model.params, batch))


class Theirs:
    def __init__(self, checkpoint: Path) -> None:
        load = transformers.InternVLForConditionalGeneration.from_pretrained
        self.model = load(checkpoint, dtype=torch.float32).eval()
        self.config = InternVLConfig.preset("InternVL3-1B")
        self.prompt = self.inputs(example(4, 200, self.config))
        self.training = self.inputs(example(1, 256, self.config))
        self.labels = torch.from_numpy(example(1, 256, self.config).labels).long()

    def inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        pixels = (batch.tiles[0].astype(np.float32) / 255 - np.float32(IMAGE_MEAN)) / np.float32(IMAGE_STD)
        pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        return {"input_ids": torch.from_numpy(batch.tokens).long(), "pixel_values": torch.from_numpy(pixels)}

    @torch.no_grad()
    def vit(self) -> None:
        self.model.model.vision_tower(self.prompt["pixel_values"])

    def forward_backward(self) -> None:
        logits = self.model(**self.training, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits[0].float(), self.labels[0], ignore_index=-100).backward()
        self.model.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main()
