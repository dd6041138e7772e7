"""A small model, random batches for it, and a checkpoint directory, all made without PyTorch."""

import atexit
import dataclasses
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from ivl3_jax.batch import IGNORE, Batch, empty_batch
from ivl3_jax.config import DecoderConfig, InternVLConfig, ProjectorConfig, VisionConfig
from ivl3_jax.conversion.checkpoint import save
from ivl3_jax.data.tokenizer_training import train_tokenizer, write_tokenizer_files
from ivl3_jax.models.model import Model, abstract_model
from ivl3_jax.sharding.plan import ShardingPlan

# 16 patches and 4 visual tokens a tile; a vocabulary that no mesh divides.
CONFIG = InternVLConfig(
    VisionConfig(
        layers=3, width=64, heads=4, mlp=128, image_size=28, patch_size=7, layer_scale=1.0, initializer_range=0.2
    ),
    ProjectorConfig(),
    DecoderConfig(layers=2, width=64, heads=8, kv_heads=2, head_dim=16, mlp=128, vocab=301, initializer_range=0.2),
    image_token_id=300,
)


def changed(*, vision=None, decoder=None, **fields) -> InternVLConfig:
    """CONFIG with other fields; `vision` and `decoder` are those of its parts."""
    parts = {
        "vision": dataclasses.replace(CONFIG.vision, **(vision or {})),
        "decoder": dataclasses.replace(CONFIG.decoder, **(decoder or {})),
    }
    return dataclasses.replace(CONFIG, **parts, **fields)


@cache
def _fresh() -> Model:
    return Model.init(CONFIG, seed=1)


@cache
def model(config: InternVLConfig = CONFIG, remat: str = "none") -> Model:
    """Always the same parameters, those of CONFIG: the arguments may only change how they are used."""
    if (config, remat) == (CONFIG, "none"):
        return _fresh()
    plan = ShardingPlan(remat={"vision": remat, "decoder": remat})
    graphdef, _ = abstract_model(config, plan, _fresh().mesh)
    return dataclasses.replace(_fresh(), config=config, plan=plan, graphdef=graphdef)


@cache
def checkpoint() -> Path:
    """A directory with weights, tokenizer and processor files that everything opens; made once a process."""
    directory = Path(tempfile.mkdtemp(prefix="small-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    tokenizer = train_tokenizer(["How many digits are there? There are 3 digits.", "über 你好"] * 4, 330)
    size = tokenizer.get_vocab_size()
    config = changed(
        decoder={"vocab": size, "max_positions": 512}, image_token_id=tokenizer.token_to_id("<IMG_CONTEXT>")
    )
    save(Model.init(config, seed=3), directory)
    write_tokenizer_files(tokenizer, directory)
    preprocessor = {"size": {"height": 28, "width": 28}, "min_patches": 1, "max_patches": 4}
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    eos = {"eos_token_id": [tokenizer.token_to_id("<|im_end|>")]}
    (directory / "generation_config.json").write_text(json.dumps(eos))
    return directory


def random_batch(
    rows: int, segments: list[tuple[int, int]], *, length: int, tiles: int, seed: int = 0, config=CONFIG
) -> Batch:
    """Rows of segments given as (positions, tiles), all rows alike in shape and random in content.

    The visual tokens of a segment stand from its third position on; about half of the other positions are trained.
    """
    rng = np.random.default_rng(seed)
    batch = empty_batch(rows, length, tiles, len(segments), config.vision.image_size)
    batch.tiles[...] = rng.integers(0, 256, batch.tiles.shape)
    start = first = 0
    for number, (positions, count) in enumerate(segments, 1):
        here = np.s_[:, start : start + positions]
        visual = count * config.tile_tokens
        batch.tokens[here] = rng.integers(0, 300, (rows, positions))
        batch.tokens[:, start + 2 : start + 2 + visual] = config.image_token_id
        batch.visual_index[:, start + 2 : start + 2 + visual] = first + np.arange(visual)
        batch.segment_ids[here], batch.positions[here] = number, np.arange(positions)
        batch.labels[here] = np.where(rng.random((rows, positions)) < 0.5, rng.integers(0, 300, positions), IGNORE)
        start, first = start + positions, first + visual
    batch.loss_weights[...] = np.where(batch.labels == IGNORE, 0, rng.uniform(0.5, 1.5, batch.labels.shape))
    return batch


def relative(found, expected) -> float:
    """||found - expected|| / ||expected||."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
